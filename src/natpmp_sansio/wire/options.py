"""PCP options: code, length, data, padding (RFC 6887 section 7.3), and what the data of each known one mean."""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import attrs

from ..errors import DecodeError, LocalProtocolError
from .fields import U8, U16, U32, IPAddress, Value, octets, pack_address, to_address, unpack_address


class Option(Value):
    """Base of all options. `code` says which; codes below 128 are mandatory to process: a server that does not know
    one refuses the request."""

    __slots__ = ()
    CODE: typing.ClassVar[int]
    NAME: typing.ClassVar[str]

    @property
    def code(self) -> int:
        return self.CODE

    @property
    def mandatory(self) -> bool:
        return self.code < 128

    @property
    def data(self) -> bytes:
        """What stands between header and padding."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """Header, data, and zeros up to a multiple of 4."""
        data = self.data
        return _HEADER.pack(self.code, len(data)) + data + bytes(-len(data) % 4)

    def describe(self) -> str:
        """The option in a few words."""
        fields = [f"{field.name} {getattr(self, field.name)}" for field in attrs.fields(type(self))]  # type: ignore[arg-type]
        return f"{self.NAME} ({', '.join(fields)})" if fields else self.NAME


def _text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        size = len(value.encode())
    except (UnicodeEncodeError, AttributeError):
        raise LocalProtocolError(f"{type(instance).__name__}.text must be text that UTF-8 can encode") from None
    if size > _MAX_DATA or "\0" in value:
        raise LocalProtocolError(
            f"{type(instance).__name__}.text must have at most {_MAX_DATA} octets in UTF-8, and no NUL"
        )


def _at_most(instance: object, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    octets()(instance, attribute, value)
    if len(value) > _MAX_DATA:
        raise LocalProtocolError(f"{type(instance).__name__}.{attribute.name} must have at most {_MAX_DATA} octets")


@attrs.frozen(eq=False, repr=False)
class ThirdParty(Option):
    """The mapping is for this internal address, not for the sender's (RFC 6887 section 13.1). MAP and PEER, once."""

    CODE = 1
    NAME = "THIRD_PARTY"
    address: IPAddress = attrs.field(converter=to_address)

    @property
    def data(self) -> bytes:
        return pack_address(self.address)

    @classmethod
    def from_data(cls, data: bytes) -> ThirdParty:
        return cls(unpack_address(_exactly(data, 16)))


@attrs.frozen(eq=False, repr=False)
class PreferFailure(Option):
    """Just the suggested external address and port, or nothing (RFC 6887 section 13.2). MAP, once."""

    CODE = 2
    NAME = "PREFER_FAILURE"

    @property
    def data(self) -> bytes:
        return b""

    @classmethod
    def from_data(cls, data: bytes) -> PreferFailure:
        _exactly(data, 0)
        return cls()


@attrs.frozen(eq=False, repr=False)
class Filter(Option):
    """Let in only what comes from these remote peers (RFC 6887 section 13.3). MAP, any number; they add up.

    `prefix_length` counts over 128 bits: 0 to 128, and for an IPv4 address 96 plus its own length. 0 removes all
    filters, and goes with port 0 and the address `::` (erratum 3891). `remote_port` 0 is any port.
    """

    CODE = 3
    NAME = "FILTER"
    prefix_length: int = attrs.field(default=0, validator=U8)
    remote_port: int = attrs.field(default=0, validator=U16)
    remote_address: IPAddress = attrs.field(default=IPv6Address(0), converter=to_address)

    def __attrs_post_init__(self) -> None:
        low = 96 if self.remote_address.version == 4 else 1
        if self.prefix_length == 0:
            if self.remote_port or self.remote_address != IPv6Address(0):
                raise LocalProtocolError("Filter.prefix_length 0 goes with port 0 and address :: only")
        elif not low <= self.prefix_length <= 128:
            raise LocalProtocolError(
                f"Filter.prefix_length must be 0 or {low} to 128 for IPv{self.remote_address.version}, "
                f"not {self.prefix_length}"
            )

    @property
    def data(self) -> bytes:
        return _FILTER.pack(self.prefix_length, self.remote_port, pack_address(self.remote_address))

    @classmethod
    def from_data(cls, data: bytes) -> Filter:
        prefix_length, port, address = _FILTER.unpack(data)
        return cls(prefix_length, port, unpack_address(address)) if prefix_length else cls()


@attrs.frozen(eq=False, repr=False)
class Nonce(Option):
    """Part of a PA session's start (RFC 7652 section 5.3): 32 bits, unrelated to a mapping's nonce. AUTHENTICATION."""

    CODE = 4
    NAME = "NONCE"
    nonce: int = attrs.field(validator=U32)

    @property
    def data(self) -> bytes:
        return self.nonce.to_bytes(4)

    @classmethod
    def from_data(cls, data: bytes) -> Nonce:
        return cls(_number(data))


@attrs.frozen(eq=False, repr=False)
class AuthenticationTag(Option):
    """Authenticates a common PCP message (RFC 7652 section 5.4). MAP, PEER and ANNOUNCE, once, the last option."""

    CODE = 5
    NAME = "AUTHENTICATION_TAG"
    session_id: int = attrs.field(validator=U32)
    sequence: int = attrs.field(validator=U32)
    key_id: int = attrs.field(validator=U32)
    authentication_data: bytes = attrs.field(validator=octets(), repr=bytes.hex)

    @property
    def data(self) -> bytes:
        return _TAG.pack(self.session_id, self.sequence, self.key_id) + self.authentication_data

    @classmethod
    def from_data(cls, data: bytes) -> AuthenticationTag:
        session, sequence, key = _TAG.unpack_from(data)
        return cls(session, sequence, key, data[12:])

    def describe(self) -> str:
        return f"{self.NAME} (session {self.session_id}, sequence {self.sequence}, key {self.key_id})"


@attrs.frozen(eq=False, repr=False)
class PaAuthenticationTag(Option):
    """Authenticates a PA message (RFC 7652 section 5.5). AUTHENTICATION, once, the last option."""

    CODE = 6
    NAME = "PA_AUTHENTICATION_TAG"
    key_id: int = attrs.field(validator=U32)
    authentication_data: bytes = attrs.field(validator=octets(), repr=bytes.hex)

    @property
    def data(self) -> bytes:
        return self.key_id.to_bytes(4) + self.authentication_data

    @classmethod
    def from_data(cls, data: bytes) -> PaAuthenticationTag:
        return cls(_number(data[:4]), data[4:])

    def describe(self) -> str:
        return f"{self.NAME} (key {self.key_id})"


@attrs.frozen(eq=False, repr=False)
class EapPayload(Option):
    """An EAP message (RFC 7652 section 5.6). AUTHENTICATION, once."""

    CODE = 7
    NAME = "EAP_PAYLOAD"
    message: bytes = attrs.field(validator=octets(), repr=bytes.hex)

    @property
    def data(self) -> bytes:
        return self.message

    @classmethod
    def from_data(cls, data: bytes) -> EapPayload:
        return cls(data)

    def describe(self) -> str:
        return f"{self.NAME} ({len(self.message)} octets)"


@attrs.frozen(eq=False, repr=False)
class _Algorithm(Option):
    """A choice of algorithm, by the number of its IKEv2 transform."""

    algorithm: int = attrs.field(validator=U32)

    @property
    def data(self) -> bytes:
        return self.algorithm.to_bytes(4)

    @classmethod
    def from_data(cls, data: bytes) -> typing.Self:
        return cls(_number(data))


class Prf(_Algorithm):
    """A pseudo-random function, an IKEv2 transform of type 2 (RFC 7652 section 5.7). AUTHENTICATION, any number."""

    __slots__ = ()
    CODE = 8
    NAME = "PRF"


class MacAlgorithm(_Algorithm):
    """A MAC algorithm, an IKEv2 transform of type 3 (RFC 7652 section 5.8). AUTHENTICATION, any number."""

    __slots__ = ()
    CODE = 9
    NAME = "MAC_ALGORITHM"


@attrs.frozen(eq=False, repr=False)
class SessionLifetime(Option):
    """How long a PA session lasts, in seconds (RFC 7652 section 5.9). AUTHENTICATION, responses."""

    CODE = 10
    NAME = "SESSION_LIFETIME"
    seconds: int = attrs.field(validator=U32)

    @property
    def data(self) -> bytes:
        return self.seconds.to_bytes(4)

    @classmethod
    def from_data(cls, data: bytes) -> SessionLifetime:
        return cls(_number(data))


@attrs.frozen(eq=False, repr=False)
class ReceivedPak(Option):
    """The sequence number of the last PA message received (RFC 7652 section 5.10). AUTHENTICATION, once."""

    CODE = 11
    NAME = "RECEIVED_PAK"
    sequence: int = attrs.field(validator=U32)

    @property
    def data(self) -> bytes:
        return self.sequence.to_bytes(4)

    @classmethod
    def from_data(cls, data: bytes) -> ReceivedPak:
        return cls(_number(data))


@attrs.frozen(eq=False, repr=False)
class _Text(Option):
    """UTF-8 of at most 1016 octets, without NUL."""

    text: str = attrs.field(validator=_text)

    @property
    def data(self) -> bytes:
        return self.text.encode()

    @classmethod
    def from_data(cls, data: bytes) -> typing.Self:
        return cls(data.decode())

    def describe(self) -> str:
        return f"{self.NAME} ({self.text!r})"


class IdIndicator(_Text):
    """A hint at the credentials to use, compared octet by octet (RFC 7652 section 5.11). AUTHENTICATION, responses."""

    __slots__ = ()
    CODE = 12
    NAME = "ID_INDICATOR"


@attrs.frozen(eq=False, repr=False)
class ThirdPartyId(Option):
    """Which of several hosts with the THIRD_PARTY's address is meant: opaque, at most 1016 octets, whose spare bits
    are zero (RFC 7843 section 4). MAP and PEER, once, together with THIRD_PARTY."""

    CODE = 13
    NAME = "THIRD_PARTY_ID"
    identifier: bytes = attrs.field(validator=_at_most, repr=bytes.hex)

    @property
    def data(self) -> bytes:
        return self.identifier

    @classmethod
    def from_data(cls, data: bytes) -> ThirdPartyId:
        return cls(data)

    def describe(self) -> str:
        return f"{self.NAME} ({self.identifier.hex()})"


class Description(_Text):
    """What the mapping is for, to be shown to people (RFC 7220 section 2). An empty one erases what was stored. MAP
    and PEER, once."""

    __slots__ = ()
    CODE = 128
    NAME = "DESCRIPTION"


def _to_network6(value: IPv6Network | str) -> IPv6Network:
    try:
        return IPv6Network(value)
    except ValueError as error:
        raise LocalProtocolError(f"Prefix64.prefix must be an IPv6 prefix: {error}") from None


def _to_networks4(values: Iterable[IPv4Network | str] | None) -> tuple[IPv4Network, ...] | None:
    try:
        return None if values is None else tuple(IPv4Network(value) for value in values)
    except (ValueError, TypeError) as error:
        raise LocalProtocolError(f"Prefix64.ipv4_prefixes must be IPv4 prefixes: {error}") from None


@attrs.frozen(eq=False, repr=False)
class Prefix64(Option):
    """A prefix with which a NAT64 turns IPv4 addresses into IPv6 ones (RFC 7225). MAP and ANNOUNCE.

    `prefix` has 32, 40, 48, 56, 64 or 96 bits; a request asks with `::/96`. `suffix` fills what prefix and IPv4
    address leave: 12 octets less the prefix's, by default zeros. `ipv4_prefixes` are the destinations it is for;
    None means any. A request has none, as None or ().
    """

    CODE = 129
    NAME = "PREFIX64"
    prefix: IPv6Network = attrs.field(default=IPv6Network("::/96"), converter=_to_network6)
    suffix: bytes = attrs.field(
        default=attrs.Factory(lambda self: bytes(max(0, 12 - self.prefix.prefixlen // 8)), takes_self=True),
        validator=octets(),
        repr=bytes.hex,
    )
    ipv4_prefixes: tuple[IPv4Network, ...] | None = attrs.field(default=None, converter=_to_networks4)

    def __attrs_post_init__(self) -> None:
        if self.prefix.prefixlen not in _NAT64_LENGTHS:
            raise LocalProtocolError(f"Prefix64.prefix must have 32, 40, 48, 56, 64 or 96 bits, not {self.prefix}")
        if len(self.suffix) != 12 - self.prefix.prefixlen // 8:
            raise LocalProtocolError(f"Prefix64.suffix must have {12 - self.prefix.prefixlen // 8} octets")

    @property
    def data(self) -> bytes:
        length = self.prefix.prefixlen // 8
        fixed = length.to_bytes(2) + self.prefix.network_address.packed[:length] + self.suffix
        if self.ipv4_prefixes is None:
            return fixed
        entries = [_PREFIX4.pack(net.prefixlen, net.network_address.packed) for net in self.ipv4_prefixes]
        return fixed + len(entries).to_bytes(2) + b"".join(entries)

    @classmethod
    def from_data(cls, data: bytes) -> Prefix64:
        """An invalid entry of the list is left out and the rest is used (RFC 7225 section 4.3)."""
        length = _U16.unpack_from(data)[0]
        if length * 8 not in _NAT64_LENGTHS or len(data) < 14:
            raise LocalProtocolError("a PREFIX64 option that is no prefix")
        prefix = IPv6Network((data[2 : 2 + length] + bytes(16 - length), length * 8))
        suffix = data[2 + length : 14]
        if len(data) == 14:
            return cls(prefix, suffix)
        (count,) = _U16.unpack_from(data, 14)
        entries = [_PREFIX4.unpack_from(data, 16 + 6 * index) for index in range(count)]
        return cls(
            prefix, suffix, [IPv4Network((packed, bits), strict=False) for bits, packed in entries if bits <= 32]
        )

    def synthesize(self, address: IPv4Address | str) -> IPv6Address:
        """The IPv6 address for an IPv4 one (RFC 6052 section 2.2): octet 8, bits 64 to 71, stays zero."""
        length = self.prefix.prefixlen // 8
        prefix, ipv4 = self.prefix.network_address.packed[:length], _to_ipv4(address).packed
        if length == 12:
            return IPv6Address(prefix + ipv4)
        head, tail = ipv4[: 8 - length], ipv4[8 - length :]
        return IPv6Address(prefix + head + b"\0" + tail + self.suffix[1:])

    def describe(self) -> str:
        networks = "" if not self.ipv4_prefixes else f" for {', '.join(map(str, self.ipv4_prefixes))}"
        return f"{self.NAME} ({self.prefix}{networks})"


def select_prefix64(options: Iterable[Option], address: IPv4Address | str) -> Prefix64 | None:
    """The first prefix that is for an IPv4 destination (RFC 7225 section 4.3): the most specific list entry wins,
    and a prefix without a list is for all others."""
    wanted = _to_ipv4(address)
    best: tuple[int, Prefix64] | None = None
    for option in options:
        if isinstance(option, Prefix64):
            for network in (IPv4Network("0.0.0.0/0"),) if option.ipv4_prefixes is None else option.ipv4_prefixes:
                if wanted in network and (best is None or network.prefixlen > best[0]):
                    best = (network.prefixlen, option)
    return best[1] if best else None


@attrs.frozen(eq=False, repr=False)
class PortSet(Option):
    """Several ports at once (RFC 7753 section 4): `size` ports from `first_internal_port` on, which in a request is
    the MAP request's own internal port. `parity`: the external ports keep odd odd and even even. MAP, once."""

    CODE = 130
    NAME = "PORT_SET"
    size: int = attrs.field(validator=U16)
    first_internal_port: int = attrs.field(validator=U16)
    parity: bool = attrs.field(default=False, converter=bool)

    @property
    def data(self) -> bytes:
        return _PORT_SET.pack(self.size, self.first_internal_port, self.parity)

    @classmethod
    def from_data(cls, data: bytes) -> PortSet:
        size, first, bits = _PORT_SET.unpack(data)
        return cls(size, first, bits & 1)


@attrs.frozen(eq=False, repr=False)
class RawOption(Option):
    """An option with a code that this package does not know, or one it knows with contents that make no sense."""

    NAME = "option"
    code: int = attrs.field(validator=U8)
    data: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)

    def __attrs_post_init__(self) -> None:
        option = _typed(self.code, self.data)
        if option is not None:
            raise LocalProtocolError(f"RawOption({self.code}, ...) is {type(option).__name__} in full")
        if len(self.data) > 0xFFFF:
            raise LocalProtocolError(f"RawOption.data must have at most 65535 octets, not {len(self.data)}")

    def describe(self) -> str:
        flaw = ", malformed" if self.code in KINDS else ""
        return f"option {self.code} ({len(self.data)} octets{flaw})"


KINDS: dict[int, type[Option]] = {
    kind.CODE: kind
    for kind in (
        ThirdParty,
        PreferFailure,
        Filter,
        Nonce,
        AuthenticationTag,
        PaAuthenticationTag,
        EapPayload,
        Prf,
        MacAlgorithm,
        SessionLifetime,
        ReceivedPak,
        IdIndicator,
        ThirdPartyId,
        Description,
        Prefix64,
        PortSet,
    )
}
"""The options that have a class of their own, by code."""


def decode_options(data: bytes, offset: int) -> tuple[Option, ...]:
    """The options from `offset` to the end of the datagram, in their order. One whose contents make no sense stays raw.

    Raises:
        DecodeError: an option runs past the end.
    """
    options: list[Option] = []
    while offset < len(data):
        if offset + 4 > len(data):
            raise DecodeError("truncated option header", offset)
        code, length = _HEADER.unpack_from(data, offset)
        end = offset + 4 + length
        if end > len(data):
            raise DecodeError(f"option {code} with {length} octets runs past the datagram", offset)
        contents = bytes(data[offset + 4 : end])
        options.append(_typed(code, contents) or RawOption(code, contents))
        offset = end + -length % 4
    return tuple(options)


def encode_options(options: tuple[Option, ...]) -> bytes:
    return b"".join([option.encode() for option in options])


def _typed(code: int, data: bytes) -> Option | None:
    kind = KINDS.get(code)
    try:
        return None if kind is None else typing.cast("typing.Any", kind).from_data(data)
    except (LocalProtocolError, struct.error, UnicodeDecodeError):
        return None


def _to_ipv4(value: IPv4Address | str) -> IPv4Address:
    address = to_address(value)
    if not isinstance(address, IPv4Address):
        raise LocalProtocolError(f"not an IPv4 address: {value!r}")
    return address


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise LocalProtocolError(f"an option of {len(data)} octets; it has {length}")
    return data


def _number(data: bytes) -> int:
    return int.from_bytes(_exactly(data, 4))


_MAX_DATA = 1016  # octets of text or identifier: RFC 7220 section 2, RFC 7843 section 4
_NAT64_LENGTHS = (32, 40, 48, 56, 64, 96)  # RFC 6052 section 2.2
_HEADER = struct.Struct("!BxH")
_FILTER = struct.Struct("!xBH16s")
_TAG = struct.Struct("!III")
_PORT_SET = struct.Struct("!HHB")
_PREFIX4 = struct.Struct("!H4s")
_U16 = struct.Struct("!H")
