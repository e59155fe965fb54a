"""NAT-PMP, RFC 6886: every message, from octets and to octets."""

from __future__ import annotations

import struct
import typing
from ipaddress import IPv4Address

import attrs

from ..errors import DecodeError, LocalProtocolError
from .fields import (
    U7,
    U16,
    U32,
    CodeTable,
    OpenIntEnum,
    Protocol,
    Value,
    check_decodes_to_itself,
    keep_irregular,
    octets,
    protocol_name,
    received_field,
    to_address,
    to_result_code,
    unchecked,
    unfilled,
)

VERSION = 0
DEFAULT_LIFETIME = 7200
"""The recommended lease, in seconds (RFC 6886 section 3.3)."""


class ResultCode(OpenIntEnum):
    """RFC 6886 section 3.5. The numbers 3, 4 and 5 mean other things in PCP. Unknown numbers are kept."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5

    @property
    def meaning(self) -> str:
        """What it says, in words."""
        return _MEANINGS.get(self, f"result code {self.value}, which RFC 6886 does not define")

    @property
    def is_error(self) -> bool:
        """Whether it says no."""
        return self != ResultCode.SUCCESS

    @property
    def lifetime(self) -> int | None:
        """How long the error is likely to last, in seconds. RFC 6886 does not say; these are PCP's (RFC 6887 7.4)."""
        return _LIFETIMES.get(self)


def _to_result_code(value: int) -> ResultCode:
    return to_result_code(ResultCode, value, 16)


def _has_body(instance: object, attribute: attrs.Attribute[ResultCode], code: ResultCode) -> None:
    if code in _WITHOUT_BODY:
        raise LocalProtocolError(f"{type(instance).__name__} has no room for {code.name}; ErrorResponse is for that")


def _tcp_or_udp(protocol: int) -> Protocol:
    if protocol not in (Protocol.TCP, Protocol.UDP):
        raise LocalProtocolError(f"NAT-PMP maps TCP and UDP, not {protocol!r}")
    return Protocol(protocol)


def _ipv4(value: IPv4Address | str) -> IPv4Address:
    address = to_address(value)
    if not isinstance(address, IPv4Address):
        raise LocalProtocolError(f"NAT-PMP knows IPv4 addresses, not {value!r}")
    return address


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class ExternalAddressRequest(Value):
    """Which external address has the gateway? RFC 6886 section 3.2."""

    received: bytes | None = received_field()

    def encode(self) -> bytes:
        return b"\0\0" if self.received is None else self.received

    def describe(self) -> str:
        return "NAT-PMP external address request"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class ExternalAddressResponse(Value):
    """The answer, and unasked to 224.0.0.1:5350 the announcement (RFC 6886 sections 3.2 and 3.2.1).

    `epoch` is in seconds since the gateway lost its mappings last. With a result other than SUCCESS the address
    means nothing.
    """

    result_code: ResultCode = attrs.field(converter=_to_result_code, validator=_has_body)
    epoch: int = attrs.field(validator=U32)
    external_address: IPv4Address = attrs.field(converter=_ipv4, default=IPv4Address(0))
    received: bytes | None = received_field()

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        return _ADDRESS_RESPONSE.pack(0, 0x80, self.result_code, self.epoch, self.external_address.packed)

    def describe(self) -> str:
        answer = _failure(self.result_code) or str(self.external_address)
        return f"NAT-PMP external address response: {answer}, epoch {self.epoch} s"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class MapRequest(Value):
    """Map, renew (the same again) or delete (`lifetime` 0). RFC 6886 sections 3.3 and 3.4.

    `suggested_external_port` 0 lets the gateway choose; a delete carries 0. `lifetime` is in seconds. With
    `internal_port`, port and lifetime all 0 it deletes every mapping of this protocol.
    """

    protocol: Protocol = attrs.field(converter=_tcp_or_udp)
    internal_port: int = attrs.field(validator=U16)
    suggested_external_port: int = attrs.field(default=0, validator=U16)
    lifetime: int = attrs.field(default=DEFAULT_LIFETIME, validator=U32)
    received: bytes | None = received_field()

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        return _MAP_REQUEST.pack(
            0, _OPCODES[self.protocol], self.internal_port, self.suggested_external_port, self.lifetime
        )

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        if self.lifetime == 0:
            return f"NAT-PMP delete request: {what}"
        return f"NAT-PMP map request: {what}, suggests port {self.suggested_external_port}, for {self.lifetime} s"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class MapResponse(Value):
    """The answer to a MapRequest: the mapped external port and the granted lifetime in seconds (section 3.3)."""

    protocol: Protocol = attrs.field(converter=_tcp_or_udp)
    result_code: ResultCode = attrs.field(converter=_to_result_code, validator=_has_body)
    epoch: int = attrs.field(validator=U32)
    internal_port: int = attrs.field(validator=U16)
    external_port: int = attrs.field(default=0, validator=U16)
    lifetime: int = attrs.field(default=0, validator=U32)
    received: bytes | None = received_field()

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        return _MAP_RESPONSE.pack(
            0,
            0x80 | _OPCODES[self.protocol],
            self.result_code,
            self.epoch,
            self.internal_port,
            self.external_port,
            self.lifetime,
        )

    def describe(self) -> str:
        granted = "deleted" if self.lifetime == 0 else f"external port {self.external_port}, for {self.lifetime} s"
        answer = _failure(self.result_code) or granted
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        return f"NAT-PMP map response: {what}: {answer}, epoch {self.epoch} s"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class ErrorResponse(Value):
    """An error that is shorter than its opcode's response, or that has no layout of its own (RFC 6886 section 3.5).

    A version error has 4, 8 or more octets. An unsupported opcode comes back as a copy of the request, so what
    follows the result code is `payload` and not an epoch. `epoch` is None where the octets are none.
    """

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=_to_result_code)
    epoch: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    payload: bytes = attrs.field(default=b"", validator=octets(), kw_only=True, repr=bytes.hex)
    received: bytes | None = received_field()

    def __attrs_post_init__(self) -> None:
        check_decodes_to_itself(self, decode)

    def encode(self) -> bytes:
        if self.received is not None:
            return self.received
        epoch = b"" if self.epoch is None else _U32.pack(self.epoch)
        return _SHORT_RESPONSE.pack(0, 0x80 | self.opcode, self.result_code) + epoch + self.payload

    def describe(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch} s"
        return f"NAT-PMP error response to opcode {self.opcode}: {_failure(self.result_code)}{epoch}"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class UnknownRequest(Value):
    """A request with an opcode that RFC 6886 does not define; `payload` is all that follows the opcode."""

    opcode: int = attrs.field(validator=U7)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)
    received: bytes | None = received_field()

    def __attrs_post_init__(self) -> None:
        check_decodes_to_itself(self, decode)

    def encode(self) -> bytes:
        return bytes((0, self.opcode)) + self.payload

    def describe(self) -> str:
        return f"NAT-PMP request with unknown opcode {self.opcode}, {len(self.payload)} octets"


Request = ExternalAddressRequest | MapRequest | UnknownRequest
Response = ExternalAddressResponse | MapResponse | ErrorResponse
Message = Request | Response


def decode(data: bytes) -> Message:
    """The message in a datagram whose first octet is 0. Octets behind a message are tolerated.

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    size = len(data)
    if size == 16:  # most of all that comes in: a mapping was granted
        version, opcode, code, epoch, internal_port, external_port, lifetime = _unpack_map_response(data)
        protocol = _MAP_RESPONSE_PROTOCOLS[opcode]
        if protocol is not None and code == 0 and version == 0:
            response = _unfilled_map_response()
            fill: typing.Any = response
            fill.protocol = protocol
            fill.result_code = _SUCCESS
            fill.epoch = epoch
            fill.internal_port = internal_port
            fill.external_port = external_port
            fill.lifetime = lifetime
            fill.received = None
            fill.__class__ = MapResponse
            return response
    if size < 2:
        raise DecodeError("too short for a NAT-PMP header", size)
    if data[0] != VERSION:
        raise DecodeError(f"version {data[0]} is not NAT-PMP", 0)
    if data[1] >= 0x80 or data[1:4] == b"\0\0\1":
        # As printed in section 3.5, and sent by some, a version error has the response bit clear (erratum 3618).
        return _decode_response(data, size, data[1] & 0x7F)
    return _decode_request(data, size, data[1])


def pack_map_request(protocol: Protocol | int, internal_port: int, port: int, lifetime: int) -> bytes:
    """The octets of a MapRequest, for those whose fields have been checked before."""
    return _MAP_REQUEST.pack(0, _OPCODES[protocol], internal_port, port, lifetime)


def _decode_request(data: bytes, size: int, opcode: int) -> Request:
    if opcode == 0:
        question = ExternalAddressRequest()
        if size > 2:
            keep_irregular(question, data)
        return question
    protocol = _PROTOCOLS.get(opcode)
    if protocol is None:
        return _unknown_request(opcode, bytes(data[2:]))
    if size < 12:
        raise DecodeError("truncated NAT-PMP map request", size)
    reserved, internal, suggested, lifetime = _MAP_REQUEST_BODY.unpack_from(data, 2)
    request = _map_request(protocol, internal, suggested, lifetime)
    if reserved or size > 12:
        keep_irregular(request, data)
    return request


def _decode_response(data: bytes, size: int, opcode: int) -> Response:
    if size < 4:
        raise DecodeError("truncated NAT-PMP response", size)
    code = data[2] << 8 | data[3]
    protocol = _PROTOCOLS.get(opcode)
    if protocol is not None and size >= 16 and code not in _WITHOUT_BODY:
        mapped = _map_response(protocol, _RESULT_CODES[code], *_MAP_RESPONSE_BODY.unpack_from(data, 4))
        if size > 16:
            keep_irregular(mapped, data)
        return mapped
    result_code = _RESULT_CODES[code]
    if opcode == 0 and size >= 12 and code not in _WITHOUT_BODY:
        address = _address_response(result_code, _U32.unpack_from(data, 4)[0], IPv4Address(bytes(data[8:12])))
        if size > 12:
            keep_irregular(address, data)
        return address
    if code == 0:
        reason = "truncated NAT-PMP response" if opcode in (0, 1, 2) else f"response to unknown opcode {opcode}"
        raise DecodeError(reason, min(size, 4))
    has_epoch = size >= 8 and code != ResultCode.UNSUPPORTED_OPCODE
    epoch, rest = (_U32.unpack_from(data, 4)[0], data[8:]) if has_epoch else (None, data[4:])
    error = _error_response(opcode, result_code, epoch, bytes(rest))
    if data[1] < 0x80:
        keep_irregular(error, data)
    return error


def _failure(result_code: ResultCode) -> str:
    return "" if result_code == 0 else f"{result_code.name} ({result_code.meaning})"


_OPCODES: dict[int, int] = {Protocol.UDP: 1, Protocol.TCP: 2}  # section 3.3, the reverse of what many expect
_PROTOCOLS = {opcode: Protocol(protocol) for protocol, opcode in _OPCODES.items()}
_RESULT_CODES = CodeTable(ResultCode)
_MAP_RESPONSE_PROTOCOLS = [_PROTOCOLS.get(opcode - 0x80) for opcode in range(256)]
_SUCCESS = ResultCode.SUCCESS
_WITHOUT_BODY = (1, 5)  # a version error and the copy of an unknown request, whatever their length
_LIFETIMES = {
    ResultCode.UNSUPPORTED_VERSION: 1800,
    ResultCode.NOT_AUTHORIZED: 1800,
    ResultCode.NETWORK_FAILURE: 30,
    ResultCode.OUT_OF_RESOURCES: 30,
    ResultCode.UNSUPPORTED_OPCODE: 1800,
}
_MEANINGS = {
    ResultCode.SUCCESS: "success",
    ResultCode.UNSUPPORTED_VERSION: "the gateway does not speak this version",
    ResultCode.NOT_AUTHORIZED: "the gateway does not allow it: port mapping may be switched off, or this host barred",
    ResultCode.NETWORK_FAILURE: "the gateway itself has no usable external address now",
    ResultCode.OUT_OF_RESOURCES: "the gateway has no room for another mapping now",
    ResultCode.UNSUPPORTED_OPCODE: "the gateway does not know this request",
}

_U32 = struct.Struct("!I")
_MAP_REQUEST = struct.Struct("!BBxxHHI")  # section 3.3
_MAP_REQUEST_BODY = struct.Struct("!HHHI")  # with the reserved bits
_MAP_RESPONSE = struct.Struct("!BBHIHHI")
_unpack_map_response = _MAP_RESPONSE.unpack
_MAP_RESPONSE_BODY = struct.Struct("!IHHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")  # section 3.2
_SHORT_RESPONSE = struct.Struct("!BBH")  # section 3.5

_unfilled_map_response = unfilled(MapResponse)
_map_request = unchecked(MapRequest)
_map_response = unchecked(MapResponse)
_address_response = unchecked(ExternalAddressResponse)
_error_response = unchecked(ErrorResponse)
_unknown_request = unchecked(UnknownRequest)
