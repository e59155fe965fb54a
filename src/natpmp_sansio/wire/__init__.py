"""Octets and messages, two views of one thing. Usable alone; needs nothing of the rest of the package."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

from ..errors import DecodeError
from . import natpmp, pcp

Message = natpmp.Message | pcp.Message

_decode_natpmp: Callable[[bytes], natpmp.Message] = natpmp.decode
_decode_pcp: Callable[[bytes], pcp.Message] = pcp.decode


def decode(data: bytes, *, strict: bool = False) -> Message:
    """The NAT-PMP or PCP message in a datagram, told apart by its first octet (RFC 6886 section 1.1).

    What deployed boxes send is tolerated, and kept in the message's `received` where a conforming sender would have
    sent other octets; an option whose contents make no sense stays a `RawOption`. `strict` refuses both, and
    requests that break a rule between their fields and options (`pcp.find_fault`).

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    if strict:
        return _decode_strictly(data)
    return _decode_natpmp(data) if data and data[0] == 0 else _decode_pcp(data)


def is_response(data: bytes) -> bool:
    """Whether a datagram looks like an answer or announcement of either protocol: by version and response bit.

    Version errors count whatever version they offer, and NAT-PMP's also with the bit clear, as its RFC prints it.
    """
    if len(data) < 2:
        return False
    if data[1] & 0x80 and data[0] in (natpmp.VERSION, pcp.VERSION):
        return True
    version_error = bytes(data[2:4]) == b"\0\1" if data[0] == 0 else len(data) >= 4 and data[3] == 1
    return version_error and (data[1] & 0x80 != 0 or (data[0] == natpmp.VERSION and data[1] == 0))


def describe(data: bytes) -> str:
    """A datagram in one line: what it says, or why it says nothing."""
    try:
        message = decode(data)
        return message.describe() + ("" if message.received is None else ", not as the RFC has it")
    except DecodeError as error:
        return f"{len(data)} octets, no message: {error}"


def _decode_strictly(data: bytes) -> Message:
    message = decode(data)
    is_copy = isinstance(message, pcp.Response) and message.result_code.is_error
    if not is_copy:
        fault = None if isinstance(message, natpmp.Message) else pcp.find_strict_fault(message)
        if fault is not None:
            raise DecodeError(fault.reason, fault.offset)
    if message.received is None:
        return message
    regular = copy.copy(message)
    object.__setattr__(regular, "received", None)
    for offset, (octet, expected) in enumerate(itertools.zip_longest(data, regular.encode())):
        if octet != expected and not (
            is_copy and offset >= 12
        ):  # of the request, faults and all (RFC 6887 section 8.2)
            raise DecodeError("octets that a conforming sender would not send", offset)
    return message
