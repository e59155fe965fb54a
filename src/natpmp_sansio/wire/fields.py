"""The fields that both protocols share: protocol numbers, addresses, result codes, and how each is checked."""

from __future__ import annotations

import enum
import operator
import typing
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs

from ..errors import DecodeError, LocalProtocolError

IPAddress = IPv4Address | IPv6Address
"""An address inside a message. Scope ids never enter one."""

SERVER_PORT = 5351
"""Gateways listen here for requests of both protocols (RFC 6886 section 3.1, RFC 6887 section 19.1)."""
CLIENT_PORT = 5350
"""Clients listen here for announcements of both protocols (RFC 6886 section 3.2.1, RFC 6887 section 14.1.3)."""
MULTICAST_V4 = "224.0.0.1"
MULTICAST_V6 = "ff02::1"
MAX_LIFETIME = 2**32 - 1


class Value:
    """Base of all immutable values: compared, hashed and shown by their fields.

    attrs would write these three methods for each class anew, and the import would pay for it.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        compared = _COMPARED[type(self)]
        return compared(self) == compared(other)

    def __hash__(self) -> int:
        return hash((type(self), *_COMPARED[type(self)](self)))

    def __repr__(self) -> str:
        shown = []
        for field in _fields_of(self):
            if field.repr:
                show = field.repr if callable(field.repr) else repr
                shown.append(f"{field.name}={show(getattr(self, field.name))}")
        return f"{type(self).__name__}({', '.join(shown)})"


class _Compared(dict[type[Value], Callable[[Value], tuple[object, ...]]]):
    """What gets the fields to compare of a value, by its class: asked for once, because attrs takes long to tell."""

    def __missing__(self, cls: type[Value]) -> Callable[[Value], tuple[object, ...]]:
        names = [field.name for field in attrs.fields(cls) if field.eq]  # type: ignore[arg-type]
        get: typing.Any = operator.attrgetter(*names) if names else lambda value: ()
        self[cls] = get if len(names) != 1 else lambda value: (get(value),)
        return self[cls]


_COMPARED = _Compared()


def _fields_of(value: Value) -> tuple[attrs.Attribute[typing.Any], ...]:
    return attrs.fields(type(value))  # type: ignore[arg-type, no-any-return]


class Protocol(enum.IntEnum):
    """An IP protocol number. Any other number is an `int` (RFC 6887 section 11.1)."""

    ALL = 0
    TCP = 6
    UDP = 17


PROTOCOLS: dict[int, Protocol | int] = dict(enumerate(range(256))) | {p.value: p for p in Protocol}
"""The number as decoded, named where it has a name."""


@attrs.frozen(eq=False, repr=False)
class Endpoint(Value):
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


R = typing.TypeVar("R", bound=OpenIntEnum)


class CodeTable(dict[int, R]):
    """The members of an OpenIntEnum by number, for decoders: much faster than calling the enum."""

    def __init__(self, kind: type[R]) -> None:
        super().__init__({member.value: member for member in kind})
        self._kind = kind

    def __missing__(self, number: int) -> R:
        return self._kind(number)


def pack_address(address: IPAddress) -> bytes:
    """16 octets; IPv4 as ::ffff:a.b.c.d, so that "no IPv4 address" is ::ffff:0:0 (RFC 6887 section 5)."""
    if address is _ANY_V4:  # in nearly every request
        return _PACKED_ANY_V4
    packed = address.packed
    return packed if len(packed) == 16 else _MAPPED + packed


def unpack_address(octets: bytes) -> IPAddress:
    """The address in 16 octets; IPv4 only when all 96 leading bits say so (RFC 6887 section 5)."""
    address = _unpacked.get(octets)
    if address is None:
        if len(_unpacked) == _MOST_UNPACKED:
            _unpacked.clear()
        is_ipv4 = octets[:12] == _MAPPED
        address = _unpacked[octets] = IPv4Address(octets[12:]) if is_ipv4 else IPv6Address(octets)
    return address


def to_address(value: IPAddress | str) -> IPAddress:
    """An address from its text or from itself, without scope, IPv4-mapped IPv6 as IPv4.

    Raises:
        LocalProtocolError: it is no IP address.
    """
    try:
        address = value if isinstance(value, IPv4Address | IPv6Address) else ip_address(str(value))
        return address if isinstance(address, IPv4Address) else unpack_address(pack_address(address))
    except ValueError:
        raise LocalProtocolError(f"not an IP address: {value!r}") from None


def any_address(like: IPAddress) -> IPAddress:
    """The all-zeros address of the same family: "no address" and "any will do" (RFC 6887 section 11.1)."""
    return _ANY_V4 if like.version == 4 else _ANY_V6


def to_protocol(value: Protocol | int) -> Protocol | int:
    """A protocol number, named where it has a name."""
    return PROTOCOLS.get(value, value) if isinstance(value, int) else value


def protocol_name(protocol: Protocol | int) -> str:
    return protocol.name if isinstance(protocol, Protocol) else f"protocol {protocol}"


def to_result_code(kind: type[R], value: int, bits: int) -> R:
    """A result code of so many bits, from its number."""
    if not isinstance(value, int) or not 0 <= value < 2**bits:
        raise LocalProtocolError(f"result_code must be an integer from 0 to {2**bits - 1}, not {value!r}")
    return kind(value)


def received_field() -> typing.Any:
    """The attrs field that every message ends with: the octets as they came, where a conforming sender writes others.

    Reserved bits that are set, octets behind the end, a form shorter than the RFC's: all that a decoder tolerated is
    kept here, and `encode` gives it back. None for everything else.
    """
    return attrs.field(default=None, init=False, eq=False, repr=False)


def keep_irregular(message: object, data: bytes) -> None:
    """Remember the octets of a message that just came out of them, if it would not write them so itself."""
    encoded = typing.cast("typing.Any", message).encode()
    if encoded != data:
        object.__setattr__(message, "received", bytes(data))


def check_decodes_to_itself(message: typing.Any, decode: Callable[[bytes], object]) -> None:
    """That a message which our caller makes says nothing that its protocol's octets cannot, or that another class is
    for. For the classes that stand for what has no layout of its own.

    Raises:
        LocalProtocolError: it does.
    """
    kind = type(message).__name__
    try:
        decoded = decode(message.encode())
    except DecodeError as error:
        raise LocalProtocolError(f"{kind}: {error.reason}") from None
    if decoded != message:
        raise LocalProtocolError(f"{kind} cannot say that; there may be a class for its opcode")


M = typing.TypeVar("M")


def unfilled(cls: type[M]) -> Callable[[], M]:
    """For decoders where speed counts most, whose values are right by construction: a blank to be filled in.

    It is a mutable twin of `cls` with the same slots, which the decoder fills and then turns into the real, immutable
    thing with `message.__class__ = cls`, before anybody else sees it. That skips the frozen class's `__init__`
    and its validation.
    """
    return typing.cast("Callable[[], M]", type(cls.__name__, (Value,), {"__slots__": _names_of(cls)}))


def unchecked(cls: type[M]) -> Callable[..., M]:
    """A constructor of `cls` for all other decoders: positional, in field order, without validation."""
    blank, names = unfilled(cls), [name for name in _names_of(cls) if name != "received"]

    def make(*values: object) -> M:
        message: typing.Any = blank()
        for name, value in zip(names, values, strict=True):
            setattr(message, name, value)
        message.received = None
        message.__class__ = cls
        return typing.cast("M", message)

    return make


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


def _names_of(cls: type) -> list[str]:
    return [field.name for field in attrs.fields(cls)]


def _refused(instance: object, attribute: attrs.Attribute[typing.Any], text: str) -> LocalProtocolError:
    return LocalProtocolError(f"{type(instance).__name__}.{attribute.name} {text}")


_MAPPED = bytes(10) + b"\xff\xff"
# A gateway has one external address, which stands in all that it says: one object is soon found, and soon compared.
_unpacked: dict[bytes, IPAddress] = {}
_MOST_UNPACKED = 64
_ANY_V4 = IPv4Address(0)
_PACKED_ANY_V4 = _MAPPED + bytes(4)
_ANY_V6 = IPv6Address(0)
