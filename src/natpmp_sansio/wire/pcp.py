"""PCP, RFC 6887: header, ANNOUNCE and MAP, from octets and to octets."""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterable

import attrs

from ..errors import DecodeError, LocalProtocolError
from .fields import (
    PROTOCOLS,
    U7,
    U8,
    U16,
    U32,
    IPAddress,
    OpenIntEnum,
    Protocol,
    any_address,
    octets,
    pack_address,
    protocol_name,
    to_address,
    to_protocol,
    unchecked,
    unpack_address,
)
from .options import Option, RawOption, decode_options, encode_options

__all__ = [
    "AnnounceRequest",
    "AnnounceResponse",
    "ErrorResponse",
    "MapRequest",
    "MapResponse",
    "Option",
    "RawOption",
    "ResultCode",
    "UnknownRequest",
    "UnknownResponse",
    "decode",
]

VERSION = 2
ANNOUNCE = 0
MAP = 1
HEADER_SIZE = 24
MAP_SIZE = 60
MAX_SIZE = 1100
"""The largest UDP payload (RFC 6887 section 7). Sizes are multiples of 4."""


class ResultCode(OpenIntEnum):
    """RFC 6887 section 7.4. The numbers 3, 4 and 5 mean other things in NAT-PMP. Unknown numbers are kept."""

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

    @property
    def meaning(self) -> str:
        """What it says, in words."""
        return _MEANINGS.get(self, f"result code {self.value}, which RFC 6887 does not define")


def _to_options(options: Iterable[Option]) -> tuple[Option, ...]:
    return tuple(options)


def _check_size(instance: object, attribute: attrs.Attribute[typing.Any], options: tuple[Option, ...]) -> None:
    if not all(isinstance(option, RawOption) for option in options):
        raise LocalProtocolError(f"{type(instance).__name__}.options must be options, not {options!r}")
    fixed = MAP_SIZE if isinstance(instance, MapRequest | MapResponse) else HEADER_SIZE
    size = fixed + len(encode_options(options))
    if size > MAX_SIZE:
        raise LocalProtocolError(f"{type(instance).__name__} would have {size} octets; PCP's limit is {MAX_SIZE}")


@attrs.frozen(weakref_slot=False)
class AnnounceRequest:
    """Are you there, and what is your epoch? Changes nothing (RFC 6887 section 14.1)."""

    client_address: IPAddress = attrs.field(converter=to_address)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options, validator=_check_size)

    def encode(self) -> bytes:
        header = _REQUEST.pack(VERSION, ANNOUNCE, 0, pack_address(self.client_address))
        return header + encode_options(self.options)

    def describe(self) -> str:
        return f"PCP ANNOUNCE request from {self.client_address}{_with_options(self.options)}"


@attrs.frozen(weakref_slot=False)
class AnnounceResponse:
    """The answer, and unasked to port 5350 the sign of a restart (RFC 6887 section 14.1.3).

    `epoch` is in seconds since the server lost its mappings last.
    """

    result_code: ResultCode = attrs.field(converter=ResultCode)
    lifetime: int = attrs.field(default=0, validator=U32)
    epoch: int = attrs.field(default=0, validator=U32)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options, validator=_check_size)

    def encode(self) -> bytes:
        header = _RESPONSE.pack(VERSION, 0x80 | ANNOUNCE, self.result_code, self.lifetime, self.epoch)
        return header + encode_options(self.options)

    def describe(self) -> str:
        answer = _failure(self.result_code, self.lifetime) or "SUCCESS"
        return f"PCP ANNOUNCE response: {answer}, epoch {self.epoch} s{_with_options(self.options)}"


@attrs.frozen(weakref_slot=False)
class MapRequest:
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
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options, validator=_check_size)

    def encode(self) -> bytes:
        fixed = _MAP_REQUEST.pack(
            VERSION,
            MAP,
            self.lifetime,
            pack_address(self.client_address),
            self.nonce,
            self.protocol,
            self.internal_port,
            self.suggested_external_port,
            pack_address(self.suggested_external_address),
        )
        return fixed + encode_options(self.options)

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        suggestion = f"suggests {self.suggested_external_address} port {self.suggested_external_port}"
        wish = "delete" if self.lifetime == 0 else f"{suggestion}, for {self.lifetime} s"
        return f"PCP MAP request: {what} of {self.client_address}: {wish}{_with_options(self.options)}"


@attrs.frozen(weakref_slot=False)
class MapResponse:
    """The answer to a MapRequest (RFC 6887 section 11.1).

    On SUCCESS `lifetime` (s) is how long the mapping holds; on an error it is how long the same request will go on
    failing, and the external port and address are those of the request. `trailing` are the octets of an error
    from the first option on that cannot be parsed: an error copies its request, faults and all.
    """

    result_code: ResultCode = attrs.field(converter=ResultCode)
    lifetime: int = attrs.field(validator=U32)
    epoch: int = attrs.field(validator=U32)
    nonce: bytes = attrs.field(validator=octets(12), repr=bytes.hex)
    protocol: Protocol | int = attrs.field(validator=U8, converter=to_protocol)
    internal_port: int = attrs.field(validator=U16)
    external_port: int = attrs.field(validator=U16)
    external_address: IPAddress = attrs.field(converter=to_address)
    options: tuple[Option, ...] = attrs.field(default=(), converter=_to_options, validator=_check_size)
    trailing: bytes = attrs.field(default=b"", validator=octets(), kw_only=True, repr=bytes.hex)

    def encode(self) -> bytes:
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
        return fixed + encode_options(self.options) + self.trailing

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        external = f"external {self.external_address} port {self.external_port}"
        granted = "deleted" if self.lifetime == 0 else f"{external}, for {self.lifetime} s"
        answer = _failure(self.result_code, self.lifetime) or granted
        return f"PCP MAP response: {what}: {answer}, epoch {self.epoch} s{_with_options(self.options)}"


@attrs.frozen(weakref_slot=False)
class ErrorResponse:
    """An error whose body is not that of its opcode, or that is too short to have one.

    Version errors may have 4 to 23 octets (RFC 6887 section 8.3): what is not there is None. `version` is the
    one that the server offers instead, which in PCP is another than 2 only in a version error (section 9).
    """

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=ResultCode)
    lifetime: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    epoch: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)
    version: int = attrs.field(default=VERSION, validator=U8, kw_only=True)

    def encode(self) -> bytes:
        start = bytes((self.version, 0x80 | self.opcode, 0, self.result_code))
        if self.lifetime is None:
            return start
        if self.epoch is None:
            return start + self.lifetime.to_bytes(4)
        return start + self.lifetime.to_bytes(4) + self.epoch.to_bytes(4) + bytes(12) + self.payload

    def describe(self) -> str:
        offer = "" if self.version == VERSION else f", offers version {self.version}"
        failure = _failure(self.result_code, self.lifetime) or "SUCCESS"
        return f"PCP error response to opcode {self.opcode}: {failure}{offer}"


@attrs.frozen(weakref_slot=False)
class UnknownRequest:
    """A request with another opcode; `payload` is all that follows the header."""

    opcode: int = attrs.field(validator=U7)
    lifetime: int = attrs.field(validator=U32)
    client_address: IPAddress = attrs.field(converter=to_address)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)

    def encode(self) -> bytes:
        return _REQUEST.pack(VERSION, self.opcode, self.lifetime, pack_address(self.client_address)) + self.payload

    def describe(self) -> str:
        return f"PCP request with opcode {self.opcode} from {self.client_address}, {len(self.payload)} octets"


@attrs.frozen(weakref_slot=False)
class UnknownResponse:
    """A successful response to another opcode; `payload` is all that follows the header."""

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=ResultCode)
    lifetime: int = attrs.field(validator=U32)
    epoch: int = attrs.field(validator=U32)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)

    def encode(self) -> bytes:
        header = _RESPONSE.pack(VERSION, 0x80 | self.opcode, self.result_code, self.lifetime, self.epoch)
        return header + self.payload

    def describe(self) -> str:
        return f"PCP response to opcode {self.opcode}, {len(self.payload)} octets, epoch {self.epoch} s"


Request = AnnounceRequest | MapRequest | UnknownRequest
Response = AnnounceResponse | MapResponse | ErrorResponse | UnknownResponse
Message = Request | Response


def decode(data: bytes) -> Message:
    """The message in a datagram whose first octet is not 0.

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    size = len(data)
    if size < 2:
        raise DecodeError("too short for a PCP header", size)
    if data[1] >= 0x80:
        return _decode_response(data, size)
    if data[0] != VERSION:
        raise DecodeError(f"version {data[0]} is neither NAT-PMP nor PCP", 0)
    _check_datagram_size(size)
    opcode = data[1]
    if opcode == MAP:
        if size < MAP_SIZE:
            raise DecodeError("truncated PCP MAP request", size)
        lifetime, client, nonce, protocol, internal, port, address = _MAP_REQUEST_BODY.unpack_from(data)
        request = _map_request(
            unpack_address(client),
            nonce,
            PROTOCOLS[protocol],
            internal,
            port,
            unpack_address(address),
            lifetime,
            decode_options(data, MAP_SIZE) if size > MAP_SIZE else (),
        )
        request.__class__ = MapRequest
        return request
    lifetime, client = _REQUEST_BODY.unpack_from(data)
    if opcode == ANNOUNCE:
        return AnnounceRequest(unpack_address(client), decode_options(data, HEADER_SIZE))
    return UnknownRequest(opcode, lifetime, unpack_address(client), bytes(data[HEADER_SIZE:]))


def _decode_response(data: bytes, size: int) -> Response:
    if size < 4:
        raise DecodeError("truncated PCP response", size)
    version, opcode, code = data[0], data[1] & 0x7F, data[3]
    result_code = _RESULT_CODES.get(code) or ResultCode(code)
    if version != VERSION:
        if code == ResultCode.UNSUPP_VERSION:  # section 9: the server offers its own version
            return _decode_error(data, size, opcode, result_code)
        raise DecodeError(f"version {version} is neither NAT-PMP nor PCP", 0)
    if code != 0 and size < HEADER_SIZE:  # section 8.3 for version errors; a router in the field for others
        return _decode_error(data, size, opcode, result_code)
    _check_datagram_size(size)
    if opcode == MAP and size >= MAP_SIZE:
        lifetime, epoch, nonce, protocol, internal, port, address = _MAP_RESPONSE_BODY.unpack_from(data)
        options, trailing = _response_options(data, MAP_SIZE, code) if size > MAP_SIZE else ((), b"")
        response = _map_response(
            result_code,
            lifetime,
            epoch,
            nonce,
            PROTOCOLS[protocol],
            internal,
            port,
            unpack_address(address),
            options,
            trailing,
        )
        response.__class__ = MapResponse
        return response
    if opcode == ANNOUNCE:
        lifetime, epoch = _RESPONSE_BODY.unpack_from(data)
        options, trailing = _response_options(data, HEADER_SIZE, code)
        if not trailing:
            return AnnounceResponse(result_code, lifetime, epoch, options)
    if code != 0:
        return _decode_error(data, size, opcode, result_code)
    if opcode == MAP:
        raise DecodeError("truncated PCP MAP response", size)
    lifetime, epoch = _RESPONSE_BODY.unpack_from(data)
    return UnknownResponse(opcode, result_code, lifetime, epoch, bytes(data[HEADER_SIZE:]))


def _decode_error(data: bytes, size: int, opcode: int, result_code: ResultCode) -> ErrorResponse:
    lifetime = int.from_bytes(data[4:8]) if size >= 8 else None
    epoch = int.from_bytes(data[8:12]) if size >= 12 else None
    return ErrorResponse(opcode, result_code, lifetime, epoch, bytes(data[HEADER_SIZE:]), version=data[0])


def _response_options(data: bytes, offset: int, code: int) -> tuple[tuple[Option, ...], bytes]:
    """The options of a response. An error is a copy of its request, whose options may be the very fault."""
    try:
        return decode_options(data, offset), b""
    except DecodeError:
        if code == 0:
            raise
        return (), bytes(data[offset:])


def _check_datagram_size(size: int) -> None:
    if size < HEADER_SIZE:
        raise DecodeError("too short for a PCP header", size)
    if size > MAX_SIZE:
        raise DecodeError(f"{size} octets; PCP's limit is {MAX_SIZE}", MAX_SIZE)
    if size % 4:
        raise DecodeError(f"{size} octets are no multiple of 4", size)


def _failure(result_code: ResultCode, lifetime: int | None) -> str:
    if result_code == 0:
        return ""
    hold = "" if lifetime is None else f", for {lifetime} s"
    return f"{result_code.name} ({result_code.meaning}){hold}"


def _with_options(options: tuple[Option, ...]) -> str:
    return "".join([f", {option.describe()}" for option in options])


_RESULT_CODES = {code.value: code for code in ResultCode}
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
}

_REQUEST = struct.Struct("!BBxxI16s")  # section 7.1
_REQUEST_BODY = struct.Struct("!4xI16s")
_RESPONSE = struct.Struct("!BBxBII12x")  # section 7.2
_RESPONSE_BODY = struct.Struct("!4xII12x")
_MAP_REQUEST = struct.Struct("!BBxxI16s12sB3xHH16s")  # section 11.1
_MAP_REQUEST_BODY = struct.Struct("!4xI16s12sB3xHH16s")
_MAP_RESPONSE = struct.Struct("!BBxBII12x12sB3xHH16s")
_MAP_RESPONSE_BODY = struct.Struct("!4xII12x12sB3xHH16s")

_map_request = unchecked(MapRequest)
_map_response = unchecked(MapResponse)
