"""The fields that both protocols share: protocol numbers, addresses, result codes, and how each is checked."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs

from ..errors import LocalProtocolError

IPAddress = IPv4Address | IPv6Address
"""An address inside a message. Scope ids never enter one."""

SERVER_PORT = 5351
"""Gateways listen here for requests of both protocols (RFC 6886 section 3.1, RFC 6887 section 19.1)."""
CLIENT_PORT = 5350
"""Clients listen here for announcements of both protocols (RFC 6886 section 3.2.1, RFC 6887 section 14.1.3)."""
MULTICAST_V4 = "224.0.0.1"
MULTICAST_V6 = "ff02::1"
MAX_LIFETIME = 2**32 - 1


class Protocol(enum.IntEnum):
    """An IP protocol number. Any other number is an `int` (RFC 6887 section 11.1)."""

    ALL = 0
    TCP = 6
    UDP = 17


PROTOCOLS: dict[int, Protocol | int] = dict(enumerate(range(256))) | {p.value: p for p in Protocol}
"""The number as decoded, named where it has a name."""


@attrs.frozen
class Endpoint:
    """An address and a port; `address` is None while a NAT-PMP gateway has not told it (RFC 6886 section 3.2)."""

    address: IPAddress | None
    port: int

    def __str__(self) -> str:
        host = "?" if self.address is None else str(self.address)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class OpenIntEnum(enum.IntEnum):
    """An IntEnum that keeps numbers it has no name for, because receivers have to cope with them."""

    @classmethod
    def _missing_(cls, value: object) -> typing.Self | None:
        if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


def pack_address(address: IPAddress) -> bytes:
    """16 octets; IPv4 as ::ffff:a.b.c.d, so that "no IPv4 address" is ::ffff:0:0 (RFC 6887 section 5)."""
    packed = address.packed
    return packed if len(packed) == 16 else _MAPPED + packed


def unpack_address(octets: bytes) -> IPAddress:
    """The address in 16 octets; IPv4 only when all 96 leading bits say so (RFC 6887 section 5)."""
    if octets[:12] == _MAPPED:
        return IPv4Address(octets[12:])
    return IPv6Address(octets)


def to_address(value: IPAddress | str) -> IPAddress:
    """An address from its text or from itself, without scope, IPv4-mapped IPv6 as IPv4.

    Raises:
        LocalProtocolError: it is no IP address.
    """
    try:
        address = ip_address(value) if isinstance(value, str) else value
        return unpack_address(pack_address(address))
    except (ValueError, AttributeError):
        raise LocalProtocolError(f"not an IP address: {value!r}") from None


def any_address(like: IPAddress) -> IPAddress:
    """The all-zeros address of the same family: "no address" and "any will do" (RFC 6887 section 11.1)."""
    return _ANY_V4 if like.version == 4 else _ANY_V6


def to_protocol(value: Protocol | int) -> Protocol | int:
    """A protocol number, named where it has a name."""
    return PROTOCOLS.get(value, value)


def protocol_name(protocol: Protocol | int) -> str:
    return protocol.name if isinstance(protocol, Protocol) else f"protocol {protocol}"


M = typing.TypeVar("M")


def unchecked(cls: type[M]) -> Callable[..., M]:
    """A constructor of `cls` for decoders, whose values are right by construction: positional, in field order.

    It makes an instance of a mutable twin with the same slots, at half the price of a frozen one. The decoder
    turns it into the real, immutable thing with `message.__class__ = cls` before anybody else sees it.
    """
    names = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]
    twin = attrs.make_class(cls.__name__, names, slots=True, eq=False, repr=False, weakref_slot=False)
    return typing.cast("Callable[..., M]", twin)


Validator = Callable[[object, "attrs.Attribute[typing.Any]", typing.Any], None]


def unsigned(bits: int) -> Validator:
    """An attrs validator: an integer that fits in so many bits."""
    top = 2**bits - 1

    def check(instance: object, attribute: attrs.Attribute[typing.Any], value: typing.Any) -> None:
        if not isinstance(value, int) or not 0 <= value <= top:
            raise _refused(instance, attribute, f"must be an integer from 0 to {top}, not {value!r}")

    return check


def octets(length: int | None = None) -> Validator:
    """An attrs validator: bytes, and exactly so many."""

    def check(instance: object, attribute: attrs.Attribute[typing.Any], value: typing.Any) -> None:
        if not isinstance(value, bytes) or length not in (None, len(value)):
            size = "bytes" if length is None else f"{length} bytes"
            raise _refused(instance, attribute, f"must be {size}, not {value!r}")

    return check


U7 = unsigned(7)
U8 = unsigned(8)
U16 = unsigned(16)
U32 = unsigned(32)


def _refused(instance: object, attribute: attrs.Attribute[typing.Any], text: str) -> LocalProtocolError:
    return LocalProtocolError(f"{type(instance).__name__}.{attribute.name} {text}")


_MAPPED = bytes(10) + b"\xff\xff"
_ANY_V4 = IPv4Address(0)
_ANY_V6 = IPv6Address(0)
