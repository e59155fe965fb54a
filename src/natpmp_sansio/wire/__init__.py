"""Octets and messages, two views of one thing. Usable alone; needs nothing of the rest of the package."""

from __future__ import annotations

from ..errors import DecodeError
from . import natpmp, pcp

Message = natpmp.Message | pcp.Message


def decode(data: bytes) -> Message:
    """The NAT-PMP or PCP message in a datagram, told apart by its first octet (RFC 6886 section 1.1).

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    if not data:
        raise DecodeError("empty datagram", 0)
    return natpmp.decode(data) if data[0] == natpmp.VERSION else pcp.decode(data)


def is_response(data: bytes) -> bool:
    """Whether a datagram looks like an answer or announcement of either protocol: by version and response bit.

    Version errors count whatever version they offer, and NAT-PMP's also with the bit clear, as its RFC prints it.
    """
    if len(data) < 2:
        return False
    version_error = bytes(data[2:4]) == b"\0\1" if data[0] == 0 else len(data) >= 4 and data[3] == 1
    if data[1] & 0x80:
        return data[0] in (natpmp.VERSION, pcp.VERSION) or version_error
    return data[0] == natpmp.VERSION and data[1] == 0 and version_error


def describe(data: bytes) -> str:
    """A datagram in one line: what it says, or why it says nothing."""
    try:
        return decode(data).describe()
    except DecodeError as error:
        return f"{len(data)} octets, no message: {error}"
