"""PCP, RFC 6887 and its extensions: every message, from octets and to octets.

A server reads a request in stages, because policy comes in between (section 8.2): `decode_header`, then
`decode_request`, then `find_fault`; what it refuses it answers with `error_reply`.
"""

from __future__ import annotations

import struct
import typing
from collections.abc import Callable, Container, Iterable, Iterator

import attrs

from ..errors import DecodeError, LocalProtocolError
from .fields import (
    PROTOCOLS,
    U7,
    U8,
    U16,
    U32,
    CodeTable,
    IPAddress,
    OpenIntEnum,
    Protocol,
    Value,
    any_address,
    check_decodes_to_itself,
    keep_irregular,
    octets,
    pack_address,
    protocol_name,
    received_field,
    to_address,
    to_protocol,
    to_result_code,
    unchecked,
    unfilled,
    unpack_address,
)
from .options import (
    AuthenticationTag,
    Description,
    EapPayload,
    Filter,
    IdIndicator,
    MacAlgorithm,
    Nonce,
    Option,
    PaAuthenticationTag,
    PortSet,
    PreferFailure,
    Prefix64,
    Prf,
    RawOption,
    ReceivedPak,
    SessionLifetime,
    ThirdParty,
    ThirdPartyId,
    decode_options,
    encode_options,
    select_prefix64,
)

__all__ = [
    "AnnounceRequest",
    "AnnounceResponse",
    "AuthenticationRequest",
    "AuthenticationResponse",
    "AuthenticationTag",
    "Description",
    "EapPayload",
    "ErrorResponse",
    "Fault",
    "Filter",
    "Header",
    "IdIndicator",
    "MacAlgorithm",
    "MapRequest",
    "MapResponse",
    "Nonce",
    "Option",
    "PaAuthenticationTag",
    "PeerRequest",
    "PeerResponse",
    "PortSet",
    "PreferFailure",
    "Prefix64",
    "Prf",
    "RawOption",
    "ReceivedPak",
    "ResultCode",
    "SessionLifetime",
    "ThirdParty",
    "ThirdPartyId",
    "UnknownRequest",
    "UnknownResponse",
    "decode",
    "decode_header",
    "decode_options",
    "decode_request",
    "error_reply",
    "find_fault",
    "find_strict_fault",
    "select_prefix64",
]

VERSION = 2
ANNOUNCE = 0
MAP = 1
PEER = 2
AUTHENTICATION = 3  # RFC 7652
HEADER_SIZE = 24
MAX_SIZE = 1100
"""The largest UDP payload (RFC 6887 section 7). Sizes are multiples of 4."""
SIZES = {ANNOUNCE: 24, MAP: 60, PEER: 80, AUTHENTICATION: 32}
"""What a message of each known opcode has at least: the header and the opcode's own data."""
ANYCAST_V4 = "192.0.0.9"
ANYCAST_V6 = "2001:1::1"
"""The anycast addresses of a PCP server (RFC 7723 section 4)."""


class ResultCode(OpenIntEnum):
    """RFC 6887 section 7.4, RFC 7652 section 7, RFC 7843 section 4.1. Unknown numbers are kept.

    The numbers 3, 4 and 5 mean other things in NAT-PMP.
    """

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13
    INITIATION = 14
    AUTHENTICATION_REQUIRED = 15
    AUTHENTICATION_FAILED = 16
    AUTHENTICATION_SUCCEEDED = 17
    AUTHORIZATION_FAILED = 18
    SESSION_TERMINATED = 19
    UNKNOWN_SESSION_ID = 20
    DOWNGRADE_ATTACK_DETECTED = 21
    AUTHENTICATION_REQUEST = 22
    AUTHENTICATION_REPLY = 23
    THIRD_PARTY_ID_UNKNOWN = 24
    THIRD_PARTY_MISSING_OPTION = 25
    UNSUPP_THIRD_PARTY_ID_LENGTH = 26

    @property
    def meaning(self) -> str:
        """What it says, in words."""
        return _MEANINGS.get(self, f"result code {self.value}, which no RFC defines")

    @property
    def is_error(self) -> bool:
        """Whether it says no. Some codes of a PA session do not (RFC 7652 section 7)."""
        return self not in _NO_ERRORS

    @property
    def lifetime(self) -> int | None:
        """How long the error lasts, in seconds, as section 7.4 recommends: 30 or 1800; None where that depends."""
        return 30 if self in _SHORT_LIVED else 1800 if self in _LONG_LIVED else None


def _to_options(options: Iterable[Option]) -> tuple[Option, ...]:
    try:
        found = tuple(options)
    except TypeError:
        found = (options,)  # type: ignore[assignment]
    if not all(isinstance(option, Option) for option in found):
        raise LocalProtocolError(f"options must be PCP options, not {options!r}")
    return found


def _to_result_code(value: int) -> ResultCode:
    return to_result_code(ResultCode, value, 8)


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class AnnounceRequest(Value):
    """Are you there, and what is your epoch? Changes nothing (RFC 6887 section 14.1)."""

    client_address: IPAddress = attrs.field(converter=to_address)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = ANNOUNCE

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        header = _REQUEST.pack(VERSION, ANNOUNCE, 0, pack_address(self.client_address))
        return header + encode_options(self.options)

    def describe(self) -> str:
        return f"PCP ANNOUNCE request from {self.client_address}{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class AnnounceResponse(Value):
    """The answer, and unasked to port 5350 the sign of a restart (RFC 6887 section 14.1.3).

    `epoch` is in seconds since the server lost its mappings last.
    """

    result_code: ResultCode = attrs.field(converter=_to_result_code)
    lifetime: int = attrs.field(default=0, validator=U32)
    epoch: int = attrs.field(default=0, validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = ANNOUNCE

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        header = _RESPONSE.pack(VERSION, 0x80 | ANNOUNCE, self.result_code, self.lifetime, self.epoch)
        return header + encode_options(self.options)

    def describe(self) -> str:
        answer = _failure(self.result_code, self.lifetime) or "SUCCESS"
        return f"PCP ANNOUNCE response: {answer}, epoch {self.epoch} s{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class MapRequest(Value):
    """Map, renew (the same again) or delete (`lifetime` 0). RFC 6887 sections 11.1 and 15.1.

    `nonce` is 12 unguessable bytes that every later request for the mapping repeats. `internal_port` 0 means all
    ports of the protocol. `suggested_external_port` 0 and an all-zeros address (the default, of the family of
    `client_address`) let the server choose. `lifetime` is in seconds.
    """

    client_address: IPAddress = attrs.field(converter=to_address)
    nonce: bytes = attrs.field(validator=octets(12), repr=bytes.hex)
    protocol: Protocol | int = attrs.field(validator=U8, converter=to_protocol)
    internal_port: int = attrs.field(validator=U16)
    suggested_external_port: int = attrs.field(default=0, validator=U16)
    suggested_external_address: IPAddress = attrs.field(
        default=attrs.Factory(lambda self: any_address(self.client_address), takes_self=True), converter=to_address
    )
    lifetime: int = attrs.field(default=7200, validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = MAP

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        return pack_map_request(
            pack_address(self.client_address),
            self.nonce,
            self.protocol,
            self.internal_port,
            self.suggested_external_port,
            self.suggested_external_address,
            self.lifetime,
            self.options,
        )

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        suggestion = f"suggests {self.suggested_external_address} port {self.suggested_external_port}"
        action = "delete" if self.lifetime == 0 else f"{suggestion}, for {self.lifetime} s"
        return f"PCP MAP request: {what} of {self.client_address}: {action}{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class MapResponse(Value):
    """The answer to a MapRequest (RFC 6887 section 11.1).

    On SUCCESS `lifetime` (s) is how long the mapping holds; on an error it is how long the same request will go on
    failing, and the rest is as in the request: an error copies it, faults and all.
    """

    result_code: ResultCode = attrs.field(converter=_to_result_code)
    lifetime: int = attrs.field(validator=U32)
    epoch: int = attrs.field(validator=U32)
    nonce: bytes = attrs.field(validator=octets(12), repr=bytes.hex)
    protocol: Protocol | int = attrs.field(validator=U8, converter=to_protocol)
    internal_port: int = attrs.field(validator=U16)
    external_port: int = attrs.field(validator=U16)
    external_address: IPAddress = attrs.field(converter=to_address)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = MAP

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        fixed = _MAP_RESPONSE.pack(
            VERSION,
            0x80 | MAP,
            self.result_code,
            self.lifetime,
            self.epoch,
            self.nonce,
            self.protocol,
            self.internal_port,
            self.external_port,
            pack_address(self.external_address),
        )
        return fixed + encode_options(self.options)

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        external = f"external {self.external_address} port {self.external_port}"
        granted = "deleted" if self.lifetime == 0 else f"{external}, for {self.lifetime} s"
        answer = _failure(self.result_code, self.lifetime) or granted
        return f"PCP MAP response: {what}: {answer}, epoch {self.epoch} s{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class PeerRequest(Value):
    """Make, learn of, or lengthen the mapping of one flow to one remote peer (RFC 6887 section 12.1).

    The fields that a MapRequest has mean the same. `remote_address` has the family of `client_address`, but behind a
    NAT64; protocol and both ports are not 0. It never shortens or deletes a mapping.
    """

    client_address: IPAddress = attrs.field(converter=to_address)
    nonce: bytes = attrs.field(validator=octets(12), repr=bytes.hex)
    protocol: Protocol | int = attrs.field(validator=U8, converter=to_protocol)
    internal_port: int = attrs.field(validator=U16)
    remote_port: int = attrs.field(validator=U16)
    remote_address: IPAddress = attrs.field(converter=to_address)
    suggested_external_port: int = attrs.field(default=0, validator=U16)
    suggested_external_address: IPAddress = attrs.field(
        default=attrs.Factory(lambda self: any_address(self.client_address), takes_self=True), converter=to_address
    )
    lifetime: int = attrs.field(default=7200, validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = PEER

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        fixed = _PEER_REQUEST.pack(
            VERSION,
            PEER,
            self.lifetime,
            pack_address(self.client_address),
            self.nonce,
            self.protocol,
            self.internal_port,
            self.suggested_external_port,
            pack_address(self.suggested_external_address),
            self.remote_port,
            pack_address(self.remote_address),
        )
        return fixed + encode_options(self.options)

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port} of {self.client_address}"
        peer = f"with {self.remote_address} port {self.remote_port}"
        suggestion = f"suggests {self.suggested_external_address} port {self.suggested_external_port}"
        return f"PCP PEER request: {what} {peer}: {suggestion}, for {self.lifetime} s{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class PeerResponse(Value):
    """The answer to a PeerRequest (RFC 6887 section 12.1); `lifetime` as in a MapResponse."""

    result_code: ResultCode = attrs.field(converter=_to_result_code)
    lifetime: int = attrs.field(validator=U32)
    epoch: int = attrs.field(validator=U32)
    nonce: bytes = attrs.field(validator=octets(12), repr=bytes.hex)
    protocol: Protocol | int = attrs.field(validator=U8, converter=to_protocol)
    internal_port: int = attrs.field(validator=U16)
    external_port: int = attrs.field(validator=U16)
    external_address: IPAddress = attrs.field(converter=to_address)
    remote_port: int = attrs.field(validator=U16)
    remote_address: IPAddress = attrs.field(converter=to_address)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = PEER

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        fixed = _PEER_RESPONSE.pack(
            VERSION,
            0x80 | PEER,
            self.result_code,
            self.lifetime,
            self.epoch,
            self.nonce,
            self.protocol,
            self.internal_port,
            self.external_port,
            pack_address(self.external_address),
            self.remote_port,
            pack_address(self.remote_address),
        )
        return fixed + encode_options(self.options)

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port} with {self.remote_address} port {self.remote_port}"
        granted = f"external {self.external_address} port {self.external_port}, for {self.lifetime} s"
        answer = _failure(self.result_code, self.lifetime) or granted
        return f"PCP PEER response: {what}: {answer}, epoch {self.epoch} s{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class AuthenticationRequest(Value):
    """A PA message from a client (RFC 7652 section 5): the frame around an EAP exchange, which is not done here.

    `result_code` says what kind it is: INITIATION, AUTHENTICATION_REPLY, or SUCCESS for an acknowledgement.
    """

    client_address: IPAddress = attrs.field(converter=to_address)
    result_code: ResultCode = attrs.field(converter=_to_result_code)
    session_id: int = attrs.field(validator=U32)
    sequence: int = attrs.field(validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = AUTHENTICATION

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        client = pack_address(self.client_address)
        body = (self.result_code, client, self.session_id, self.sequence)
        return _PA_REQUEST.pack(VERSION, AUTHENTICATION, *body) + encode_options(self.options)

    def describe(self) -> str:
        session = f"session {self.session_id}, sequence {self.sequence}"
        return f"PCP PA request: {self.result_code.name}, {session}{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class AuthenticationResponse(Value):
    """A PA message from a server (RFC 7652 section 5)."""

    result_code: ResultCode = attrs.field(converter=_to_result_code)
    epoch: int = attrs.field(validator=U32)
    session_id: int = attrs.field(validator=U32)
    sequence: int = attrs.field(validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options)
    received: bytes | None = received_field()

    opcode: typing.ClassVar[int] = AUTHENTICATION

    def __attrs_post_init__(self) -> None:
        _check(self)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        body = (self.result_code, self.epoch, self.session_id, self.sequence)
        return _PA_RESPONSE.pack(VERSION, 0x80 | AUTHENTICATION, *body) + encode_options(self.options)

    def describe(self) -> str:
        session = f"session {self.session_id}, sequence {self.sequence}, epoch {self.epoch} s"
        return f"PCP PA response: {self.result_code.name}, {session}{_with_options(self.options)}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class ErrorResponse(Value):
    """An error whose body is not that of its opcode, or that is too short to have one.

    Version errors may have 4 to 23 octets (RFC 6887 section 8.3): what is not there is None. `version` is the
    one that the server offers instead, which in PCP is another than 2 only in a version error (section 9).
    """

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=_to_result_code)
    lifetime: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    epoch: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)
    version: int = attrs.field(default=VERSION, validator=U8, kw_only=True)
    received: bytes | None = received_field()

    def __attrs_post_init__(self) -> None:
        check_decodes_to_itself(self, decode)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        start = bytes((self.version, 0x80 | self.opcode, 0, self.result_code))
        if self.lifetime is None:
            return start
        if self.epoch is None:
            return start + self.lifetime.to_bytes(4)
        return start + self.lifetime.to_bytes(4) + self.epoch.to_bytes(4) + bytes(12) + self.payload

    def describe(self) -> str:
        offer = "" if self.version == VERSION else f", offers version {self.version}"
        failure = _failure(self.result_code, self.lifetime)
        return f"PCP error response to opcode {self.opcode}: {failure}{offer}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class UnknownRequest(Value):
    """A request with another opcode; `payload` is all that follows the header."""

    opcode: int = attrs.field(validator=U7)
    lifetime: int = attrs.field(validator=U32)
    client_address: IPAddress = attrs.field(converter=to_address)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)
    received: bytes | None = received_field()

    def __attrs_post_init__(self) -> None:
        check_decodes_to_itself(self, decode)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        return _REQUEST.pack(VERSION, self.opcode, self.lifetime, pack_address(self.client_address)) + self.payload

    def describe(self) -> str:
        return f"PCP request with opcode {self.opcode} from {self.client_address}, {len(self.payload)} octets"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class UnknownResponse(Value):
    """A successful response to another opcode; `payload` is all that follows the header."""

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=_to_result_code)
    lifetime: int = attrs.field(validator=U32)
    epoch: int = attrs.field(validator=U32)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)
    received: bytes | None = received_field()

    def __attrs_post_init__(self) -> None:
        check_decodes_to_itself(self, decode)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        header = _RESPONSE.pack(VERSION, 0x80 | self.opcode, self.result_code, self.lifetime, self.epoch)
        return header + self.payload

    def describe(self) -> str:
        return f"PCP response to opcode {self.opcode}, {len(self.payload)} octets, epoch {self.epoch} s"


KnownRequest = AnnounceRequest | MapRequest | PeerRequest | AuthenticationRequest
Request = KnownRequest | UnknownRequest
KnownResponse = AnnounceResponse | MapResponse | PeerResponse | AuthenticationResponse
Response = KnownResponse | ErrorResponse | UnknownResponse
Message = Request | Response


def decode(data: bytes) -> Message:
    """The message in a datagram whose first octet is not 0.

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    size = len(data)
    if size < 2:
        raise DecodeError("too short for a PCP header", size)
    if size == SIZES[MAP] and data[1] == 0x80 | MAP and data[0] == VERSION:  # most of all that comes in
        return _decode_map_response(data, size)
    if data[1] >= 0x80:
        return _decode_response(data, size)
    decode_header(data)
    return decode_request(data)


# --- a server's stages


@attrs.frozen(eq=False, repr=False)
class Header(Value):
    """The first 24 octets of a request (RFC 6887 section 7.1)."""

    opcode: int
    lifetime: int
    client_address: IPAddress


def decode_header(data: bytes) -> Header:
    """The first stage: the header of a request, and that the datagram may be a request at all.

    Raises:
        DecodeError: another version, a response, shorter than 24 octets, longer than 1100, or no multiple of 4.
    """
    size = len(data)
    if size < 2:
        raise DecodeError("too short for a PCP header", size)
    if data[1] >= 0x80:
        raise DecodeError("a response, not a request", 1)
    if data[0] != VERSION:
        raise DecodeError(f"version {data[0]} is not PCP", 0)
    _check_datagram_size(size)
    lifetime, client = _REQUEST_BODY.unpack_from(data)
    return Header(data[1], lifetime, unpack_address(client))


def decode_request(data: bytes) -> Request:
    """The second stage: opcode data and options of a request whose header is right.

    Raises:
        DecodeError: too short for its opcode (at the end of the datagram), or an option runs past the end (there).
    """
    size, opcode = len(data), data[1]
    if size < SIZES.get(opcode, 0):
        raise DecodeError(f"truncated PCP {_OPCODE_NAMES[opcode]} request", size)
    return _REQUEST_DECODERS.get(opcode, _decode_unknown_request)(data, size)


@attrs.frozen(eq=False, repr=False)
class Fault(Value):
    """Why a request breaks a rule: in words, at which octet, and what a server that knows the rule answers."""

    reason: str
    offset: int
    result_code: ResultCode


def find_fault(request: Request, implemented: Container[int] | None = None) -> Fault | None:
    """The third stage: the rules between the fields and options of one request, in their order.

    Of RFC 6887 sections 7.3, 11.1, 11.3, 12.1, 13 and 15.1, RFC 7225 4.1, RFC 7652 5, RFC 7753 4 and RFC 7843 4.
    `implemented` are the codes of the options that a server implements: of others it does not know that they are
    broken, but it refuses those that are mandatory to process. None: no option is refused for being unknown.
    """
    if isinstance(request, UnknownRequest):
        return None
    taken: list[tuple[int, Option]] = []
    for offset, option in _positions(request):
        if implemented is not None and option.code not in implemented:
            if option.mandatory:
                return Fault(f"option {option.code} is not supported", offset, ResultCode.UNSUPP_OPTION)
            continue
        fault = _fault_of_form(option, [before for _, before in taken], offset)
        if fault is not None:
            return fault
        taken.append((offset, option))
    fault = _fault_of_fields(request)
    if fault is not None:
        return fault
    for number, (offset, option) in enumerate(taken):
        fault = _fault_of_option(request, option, [before for _, before in taken[:number]], offset)
        if fault is not None:
            return fault
    return None


def find_strict_fault(message: Message) -> Fault | None:
    """The same of any message, and whatever only a careless sender gets wrong: an option with contents that make no
    sense, or with an opcode that it does not go with."""
    if isinstance(message, Request):
        fault = find_fault(message)
        if fault is not None:
            return fault
    if not isinstance(message, KnownRequest | KnownResponse):
        return None
    for offset, option in _positions(message):
        if option.code in _RULES:
            if isinstance(option, RawOption):
                return Fault(f"malformed option {option.code}", offset, ResultCode.MALFORMED_OPTION)
            if message.opcode not in _RULES[option.code][0]:
                reason = f"{option.NAME} does not go with {_OPCODE_NAMES[message.opcode]}"
                return Fault(reason, offset, ResultCode.MALFORMED_OPTION)
    return None


def error_reply(request: bytes, code: ResultCode, lifetime: int, epoch: int) -> bytes:
    """The error response to a request's octets: a copy with its header overwritten (RFC 6887 section 8.2).

    Cut to 1100 octets, padded to a multiple of 4 and to a whole header. `lifetime` and `epoch` are seconds, from 0 to
    2**32-1.

    Raises:
        LocalProtocolError: they are out of range.
    """
    if not (0 <= lifetime < 2**32 and 0 <= epoch < 2**32):
        raise LocalProtocolError(f"lifetime and epoch must be from 0 to 4294967295, not {lifetime!r} and {epoch!r}")
    copy = request[:MAX_SIZE]
    copy += bytes(max(HEADER_SIZE - len(copy), -len(copy) % 4))
    unread = code in (ResultCode.UNSUPP_VERSION, ResultCode.MALFORMED_REQUEST)
    reserved = copy[12:24] if unread else bytes(12)  # section 7.2
    header = bytes((VERSION, 0x80 | copy[1], 0, code)) + lifetime.to_bytes(4) + epoch.to_bytes(4)
    return header + reserved + copy[24:]


# --- to octets


def pack_map_request(
    client: bytes,
    nonce: bytes,
    protocol: Protocol | int,
    internal_port: int,
    port: int,
    address: IPAddress,
    lifetime: int,
    options: tuple[Option, ...],
) -> bytes:
    """The octets of a MapRequest, for those whose fields have been checked before; `client` is packed already."""
    fixed = _MAP_REQUEST.pack(
        VERSION, MAP, lifetime, client, nonce, protocol, internal_port, port, pack_address(address)
    )
    return fixed + encode_options(options) if options else fixed


# --- from octets


def _decode_map_request(data: bytes, size: int) -> MapRequest:
    reserved, lifetime, client, nonce, protocol, spare, internal, port, address = _MAP_REQUEST_ALL.unpack_from(data)
    options = decode_options(data, 60) if size > 60 else ()
    request = _map_request(
        unpack_address(client), nonce, PROTOCOLS[protocol], internal, port, unpack_address(address), lifetime, options
    )
    if size > 60 or reserved or spare != b"\0\0\0":
        keep_irregular(request, data)
    return request


def _decode_peer_request(data: bytes, size: int) -> PeerRequest:
    lifetime, client, nonce, protocol, internal, port, address, *remote = _PEER_REQUEST_BODY.unpack_from(data)
    request = _peer_request(
        unpack_address(client),
        nonce,
        PROTOCOLS[protocol],
        internal,
        remote[0],
        unpack_address(remote[1]),
        port,
        unpack_address(address),
        lifetime,
        decode_options(data, 80),
    )
    keep_irregular(request, data)
    return request


def _decode_announce_request(data: bytes, size: int) -> AnnounceRequest:
    request = _announce_request(unpack_address(bytes(data[8:24])), decode_options(data, 24))
    keep_irregular(request, data)
    return request


def _decode_pa_request(data: bytes, size: int) -> AuthenticationRequest:
    code, client, session, sequence = _PA_REQUEST_BODY.unpack_from(data)
    request = _pa_request(unpack_address(client), _RESULT_CODES[code], session, sequence, decode_options(data, 32))
    keep_irregular(request, data)
    return request


def _decode_unknown_request(data: bytes, size: int) -> UnknownRequest:
    lifetime, client = _REQUEST_BODY.unpack_from(data)
    request = _unknown_request(data[1], lifetime, unpack_address(client), bytes(data[24:]))
    keep_irregular(request, data)
    return request


def _decode_response(data: bytes, size: int) -> Response:
    if size < 4:
        raise DecodeError("truncated PCP response", size)
    opcode, code = data[1] & 0x7F, data[3]
    if data[0] != VERSION:
        if code == ResultCode.UNSUPP_VERSION and data[0] != 0:  # section 9: the server offers its own version
            return _decode_error(data, size)
        raise DecodeError(f"version {data[0]} is not PCP", 0)
    if code != 0 and size < HEADER_SIZE:  # section 8.3 for version errors; a router in the field for others
        return _decode_error(data, size)
    _check_datagram_size(size)
    decoder = _RESPONSE_DECODERS.get(opcode)
    if decoder is not None and size >= SIZES[opcode]:
        return decoder(data, size)
    if code != 0:
        return _decode_error(data, size)
    if decoder is not None:
        raise DecodeError(f"truncated PCP {_OPCODE_NAMES[opcode]} response", size)
    lifetime, epoch = _RESPONSE_BODY.unpack_from(data)
    response = _unknown_response(opcode, _RESULT_CODES[code], lifetime, epoch, bytes(data[24:]))
    keep_irregular(response, data)
    return response


def _decode_map_response(data: bytes, size: int) -> MapResponse:
    fields = _MAP_RESPONSE_ALL.unpack_from(data)
    zero, code, lifetime, epoch, copied, nonce, protocol, spare, internal, external, address = fields
    response = _unfilled_map_response()
    fill: typing.Any = response
    fill.result_code = _RESULT_CODES[code]
    fill.lifetime = lifetime
    fill.epoch = epoch
    fill.nonce = nonce
    fill.protocol = PROTOCOLS[protocol]
    fill.internal_port = internal
    fill.external_port = external
    fill.external_address = unpack_address(address)
    fill.options = _response_options(data, 60) if size > 60 else ()
    fill.received = None
    fill.__class__ = MapResponse
    if size > 60 or zero or spare != b"\0\0\0" or copied != _ZEROS:
        keep_irregular(response, data)
    return response


def _decode_peer_response(data: bytes, size: int) -> PeerResponse:
    lifetime, epoch, nonce, protocol, internal, port, address, *remote = _PEER_RESPONSE_BODY.unpack_from(data)
    response = _peer_response(
        _RESULT_CODES[data[3]],
        lifetime,
        epoch,
        nonce,
        PROTOCOLS[protocol],
        internal,
        port,
        unpack_address(address),
        remote[0],
        unpack_address(remote[1]),
        _response_options(data, 80),
    )
    keep_irregular(response, data)
    return response


def _decode_announce_response(data: bytes, size: int) -> AnnounceResponse:
    lifetime, epoch = _RESPONSE_BODY.unpack_from(data)
    response = _announce_response(_RESULT_CODES[data[3]], lifetime, epoch, _response_options(data, 24))
    if size > 24 or data[2] or data[12:24] != _ZEROS:
        keep_irregular(response, data)
    return response


def _decode_pa_response(data: bytes, size: int) -> AuthenticationResponse:
    epoch, session, sequence = _PA_RESPONSE_BODY.unpack_from(data)
    response = _pa_response(_RESULT_CODES[data[3]], epoch, session, sequence, _response_options(data, 32))
    keep_irregular(response, data)
    return response


def _decode_error(data: bytes, size: int) -> ErrorResponse:
    lifetime = int.from_bytes(data[4:8]) if size >= 8 else None
    epoch = int.from_bytes(data[8:12]) if size >= 12 else None
    response = _error_response(data[1] & 0x7F, _RESULT_CODES[data[3]], lifetime, epoch, bytes(data[24:]), data[0])
    keep_irregular(response, data)
    return response


def _response_options(data: bytes, offset: int) -> tuple[Option, ...]:
    """The options of a response. An error is a copy of its request, whose options may be the very fault."""
    try:
        return decode_options(data, offset)
    except DecodeError:
        if not _RESULT_CODES[data[3]].is_error:
            raise
        return ()


def _check_datagram_size(size: int) -> None:
    if size < HEADER_SIZE:
        raise DecodeError("too short for a PCP header", size)
    if size > MAX_SIZE:
        raise DecodeError(f"{size} octets; PCP's limit is {MAX_SIZE}", MAX_SIZE)
    if size % 4:
        raise DecodeError(f"{size} octets are no multiple of 4", size)


# --- the rules of messages


def _positions(message: KnownRequest | KnownResponse) -> Iterator[tuple[int, Option]]:
    """The options and at which octet each stands: as received, where it was longer than what is left of it."""
    octets, offset = message.encode(), SIZES[message.opcode]
    for option in message.options:
        yield offset, option
        length = int.from_bytes(octets[offset + 2 : offset + 4])
        offset += 4 + length + -length % 4


def _fault_of_fields(request: KnownRequest) -> Fault | None:
    if isinstance(request, MapRequest) and request.protocol == Protocol.ALL and request.internal_port:
        return Fault("protocol 0 goes with internal_port 0 only", 40, ResultCode.MALFORMED_REQUEST)
    if isinstance(request, PeerRequest):
        for name, offset in (("protocol", 36), ("internal_port", 40), ("remote_port", 60)):
            if getattr(request, name) == 0:
                return Fault(f"{name} of a PEER request must not be 0", offset, ResultCode.MALFORMED_REQUEST)
    return None


def _fault_of_form(option: Option, before: list[Option], offset: int) -> Fault | None:
    """What is wrong with an option wherever it stands (section 7.3)."""
    malformed = ResultCode.MALFORMED_OPTION
    if any(isinstance(o, AuthenticationTag | PaAuthenticationTag) and o.code != option.code for o in before):
        return Fault("an option stands behind the authentication tag", offset, malformed)
    if isinstance(option, RawOption):
        # A DESCRIPTION that is no UTF-8 is ignored, and the request goes on (RFC 7220 section 3).
        known = option.code in _RULES and option.code != _DESCRIPTION
        return Fault(f"malformed option {option.code}", offset, malformed) if known else None
    if not _RULES[option.code][1] and any(other.code == option.code for other in before):
        return Fault(f"{option.NAME} stands twice", offset, malformed)
    return None


def _fault_of_option(request: KnownRequest, option: Option, before: list[Option], offset: int) -> Fault | None:
    """What is wrong with an option in this request."""
    if isinstance(option, RawOption):
        return None
    if request.opcode not in _RULES[option.code][0]:
        is_prefer_failure = isinstance(option, PreferFailure)  # section 12.1
        code = ResultCode.MALFORMED_REQUEST if is_prefer_failure else ResultCode.MALFORMED_OPTION
        return Fault(f"{option.NAME} does not go with {_OPCODE_NAMES[request.opcode]}", offset, code)
    if isinstance(option, ThirdParty) and option.address == request.client_address:
        return Fault("THIRD_PARTY names the sender itself", offset, ResultCode.MALFORMED_REQUEST)
    if isinstance(option, ThirdPartyId) and not any(isinstance(other, ThirdParty) for other in request.options):
        return Fault("THIRD_PARTY_ID needs THIRD_PARTY", offset, ResultCode.THIRD_PARTY_MISSING_OPTION)
    reason = _fault_of_contents(request, option, before)
    return Fault(reason, offset, ResultCode.MALFORMED_OPTION) if reason else None


def _fault_of_contents(request: KnownRequest, option: Option, before: list[Option]) -> str:
    match option:
        case SessionLifetime() | IdIndicator():
            return f"{option.NAME} is for responses"
        case Prefix64() if option.ipv4_prefixes or option.prefix != Prefix64().prefix:
            return "PREFIX64 in a request must be ::/96, without a list"
    if not isinstance(request, MapRequest):
        return ""
    match option:
        case PreferFailure() | Filter() if request.lifetime == 0:
            return f"{option.NAME} makes no sense in a delete"
        case PreferFailure() if request.suggested_external_port == 0:
            return "PREFER_FAILURE needs a suggested_external_port"
        case PreferFailure() | PortSet() if any(isinstance(other, PreferFailure | PortSet) for other in before):
            return "PREFER_FAILURE and PORT_SET do not go together"
        case PortSet() if option.size == 0:
            return "PORT_SET of no port"
        case PortSet() if option.first_internal_port != request.internal_port:
            return "PORT_SET.first_internal_port must be the internal_port of the request"
    return ""


def _check(message: KnownRequest | KnownResponse) -> None:
    """That a message which our caller makes can be sent, and may be."""
    kind = type(message).__name__
    size = SIZES[message.opcode] + sum(4 + len(option.data) + -len(option.data) % 4 for option in message.options)
    if size > MAX_SIZE:
        raise LocalProtocolError(f"{kind} would have {size} octets; PCP's limit is {MAX_SIZE}")
    is_copy = isinstance(message, KnownResponse) and message.result_code.is_error  # repeats whatever was asked
    fault = None if is_copy else find_strict_fault(message)
    if fault is not None:
        raise LocalProtocolError(f"{kind}: {fault.reason}")


def _failure(code: ResultCode, lifetime: int | None) -> str:
    if code == 0:
        return ""
    hold = "" if lifetime is None else f", for {lifetime} s"
    return f"{code.name} ({code.meaning}){hold}"


def _with_options(options: tuple[Option, ...]) -> str:
    return "".join([f", {option.describe()}" for option in options])


_OPCODE_NAMES = {ANNOUNCE: "ANNOUNCE", MAP: "MAP", PEER: "PEER", AUTHENTICATION: "AUTHENTICATION"}
# In which requests and responses an option may stand, and whether more than once in one request.
_RULES: dict[int, tuple[tuple[int, ...], bool]] = {
    1: ((MAP, PEER), False),  # RFC 6887 section 13
    2: ((MAP,), False),
    3: ((MAP,), True),
    4: ((AUTHENTICATION,), False),  # RFC 7652 section 5
    5: ((ANNOUNCE, MAP, PEER), False),
    6: ((AUTHENTICATION,), False),
    7: ((AUTHENTICATION,), False),
    8: ((AUTHENTICATION,), True),
    9: ((AUTHENTICATION,), True),
    10: ((AUTHENTICATION,), False),
    11: ((AUTHENTICATION,), False),
    12: ((AUTHENTICATION,), False),
    13: ((MAP, PEER), False),  # RFC 7843 section 4
    128: ((MAP, PEER), False),  # RFC 7220 section 2
    129: ((ANNOUNCE, MAP), False),  # RFC 7225 section 4.1
    130: ((MAP,), False),  # RFC 7753 section 4
}

_DESCRIPTION = 128

_RESULT_CODES = CodeTable(ResultCode)
_NO_ERRORS = frozenset(
    (
        ResultCode.SUCCESS,
        ResultCode.INITIATION,
        ResultCode.AUTHENTICATION_SUCCEEDED,
        ResultCode.SESSION_TERMINATED,
        ResultCode.AUTHENTICATION_REQUEST,
        ResultCode.AUTHENTICATION_REPLY,
    )
)
_SHORT_LIVED = frozenset((ResultCode.NETWORK_FAILURE, ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA))
_LONG_LIVED = frozenset(ResultCode(code) for code in (1, 2, 3, 4, 5, 6, 9, 12, 13, 24, 25, 26))
_MEANINGS = {
    ResultCode.SUCCESS: "success",
    ResultCode.UNSUPP_VERSION: "the gateway does not speak this version",
    ResultCode.NOT_AUTHORIZED: "the gateway does not allow it: port mapping may be switched off, or this host barred",
    ResultCode.MALFORMED_REQUEST: "the gateway could not read the request",
    ResultCode.UNSUPP_OPCODE: "the gateway does not know this request",
    ResultCode.UNSUPP_OPTION: "the gateway does not know, or does not allow, an option of the request",
    ResultCode.MALFORMED_OPTION: "the gateway could not read an option of the request",
    ResultCode.NETWORK_FAILURE: "the gateway itself has no usable external address now",
    ResultCode.NO_RESOURCES: "the gateway has no room for another mapping now",
    ResultCode.UNSUPP_PROTOCOL: "the gateway cannot map this protocol",
    ResultCode.USER_EX_QUOTA: "this host has used up its share of mappings",
    ResultCode.CANNOT_PROVIDE_EXTERNAL: "the gateway cannot give just this external address and port",
    ResultCode.ADDRESS_MISMATCH: "the gateway sees another source address: there is another NAT in between",
    ResultCode.EXCESSIVE_REMOTE_PEERS: "the gateway cannot filter for so many remote peers",
    ResultCode.INITIATION: "a client starts a PA session",
    ResultCode.AUTHENTICATION_REQUIRED: "the gateway wants to know first who asks",
    ResultCode.AUTHENTICATION_FAILED: "the gateway does not believe who asks",
    ResultCode.AUTHENTICATION_SUCCEEDED: "the gateway knows now who asks",
    ResultCode.AUTHORIZATION_FAILED: "the gateway knows who asks, and does not allow it",
    ResultCode.SESSION_TERMINATED: "the PA session is over",
    ResultCode.UNKNOWN_SESSION_ID: "the gateway does not know this PA session",
    ResultCode.DOWNGRADE_ATTACK_DETECTED: "somebody has tampered with the choice of algorithms",
    ResultCode.AUTHENTICATION_REQUEST: "the gateway goes on asking who asks",
    ResultCode.AUTHENTICATION_REPLY: "a client goes on saying who it is",
    ResultCode.THIRD_PARTY_ID_UNKNOWN: "the gateway does not know the host that is meant",
    ResultCode.THIRD_PARTY_MISSING_OPTION: "THIRD_PARTY_ID came without THIRD_PARTY",
    ResultCode.UNSUPP_THIRD_PARTY_ID_LENGTH: "the gateway does not take a THIRD_PARTY_ID of this length",
}

_ZEROS = bytes(12)
_REQUEST = struct.Struct("!BBxxI16s")  # section 7.1
_REQUEST_BODY = struct.Struct("!4xI16s")
_RESPONSE = struct.Struct("!BBxBII12x")  # section 7.2
_RESPONSE_BODY = struct.Struct("!4xII12x")
_MAP_REQUEST = struct.Struct("!BBxxI16s12sB3xHH16s")  # section 11.1
_MAP_REQUEST_ALL = struct.Struct("!2xHI16s12sB3sHH16s")  # with the reserved bits
_MAP_RESPONSE = struct.Struct("!BBxBII12x12sB3xHH16s")
_MAP_RESPONSE_ALL = struct.Struct("!2xBBII12s12sB3sHH16s")
_PEER_REQUEST = struct.Struct("!BBxxI16s12sB3xHH16sHxx16s")  # section 12.1
_PEER_REQUEST_BODY = struct.Struct("!4xI16s12sB3xHH16sHxx16s")
_PEER_RESPONSE = struct.Struct("!BBxBII12x12sB3xHH16sHxx16s")
_PEER_RESPONSE_BODY = struct.Struct("!4xII12x12sB3xHH16sHxx16s")
_PA_REQUEST = struct.Struct("!BBxB4x16sII")  # RFC 7652 section 5.1
_PA_REQUEST_BODY = struct.Struct("!3xB4x16sII")
_PA_RESPONSE = struct.Struct("!BBxB4xI12xII")
_PA_RESPONSE_BODY = struct.Struct("!8xI12xII")

_REQUEST_DECODERS: dict[int, Callable[[bytes, int], Request]] = {
    ANNOUNCE: _decode_announce_request,
    MAP: _decode_map_request,
    PEER: _decode_peer_request,
    AUTHENTICATION: _decode_pa_request,
}
_RESPONSE_DECODERS: dict[int, Callable[[bytes, int], Response]] = {
    ANNOUNCE: _decode_announce_response,
    MAP: _decode_map_response,
    PEER: _decode_peer_response,
    AUTHENTICATION: _decode_pa_response,
}

_unfilled_map_response = unfilled(MapResponse)
_announce_request = unchecked(AnnounceRequest)
_announce_response = unchecked(AnnounceResponse)
_map_request = unchecked(MapRequest)
_peer_request = unchecked(PeerRequest)
_peer_response = unchecked(PeerResponse)
_pa_request = unchecked(AuthenticationRequest)
_pa_response = unchecked(AuthenticationResponse)
_error_response = unchecked(ErrorResponse)
_unknown_request = unchecked(UnknownRequest)
_unknown_response = unchecked(UnknownResponse)
