"""NAT-PMP, RFC 6886: every message, from octets and to octets."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import attrs

from ..errors import DecodeError, LocalProtocolError
from .fields import U7, U16, U32, OpenIntEnum, Protocol, octets, protocol_name, to_address, unchecked

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


def _tcp_or_udp(protocol: int) -> Protocol:
    if protocol not in (Protocol.TCP, Protocol.UDP):
        raise LocalProtocolError(f"NAT-PMP maps TCP and UDP, not {protocol!r}")
    return Protocol(protocol)


def _ipv4(value: IPv4Address | str) -> IPv4Address:
    address = to_address(value)
    if not isinstance(address, IPv4Address):
        raise LocalProtocolError(f"NAT-PMP knows IPv4 addresses, not {value!r}")
    return address


@attrs.frozen(weakref_slot=False)
class ExternalAddressRequest:
    """Which external address has the gateway? RFC 6886 section 3.2."""

    def encode(self) -> bytes:
        return b"\0\0"

    def describe(self) -> str:
        return "NAT-PMP external address request"


@attrs.frozen(weakref_slot=False)
class ExternalAddressResponse:
    """The answer, and unasked to 224.0.0.1:5350 the announcement (RFC 6886 sections 3.2 and 3.2.1).

    `epoch` is in seconds since the gateway lost its mappings last. With a result other than SUCCESS the address
    means nothing.
    """

    result_code: ResultCode = attrs.field(converter=ResultCode)
    epoch: int = attrs.field(validator=U32)
    external_address: IPv4Address = attrs.field(converter=_ipv4, default=IPv4Address(0))

    def encode(self) -> bytes:
        return _ADDRESS_RESPONSE.pack(0, 0x80, self.result_code, self.epoch, self.external_address.packed)

    def describe(self) -> str:
        answer = _failure(self.result_code) or str(self.external_address)
        return f"NAT-PMP external address response: {answer}, epoch {self.epoch} s"


@attrs.frozen(weakref_slot=False)
class MapRequest:
    """Map, renew (the same again) or delete (`lifetime` 0). RFC 6886 sections 3.3 and 3.4.

    `suggested_external_port` 0 lets the gateway choose; a delete carries 0. `lifetime` is in seconds. With
    `internal_port`, port and lifetime all 0 it deletes every mapping of this protocol.
    """

    protocol: Protocol = attrs.field(converter=_tcp_or_udp)
    internal_port: int = attrs.field(validator=U16)
    suggested_external_port: int = attrs.field(default=0, validator=U16)
    lifetime: int = attrs.field(default=DEFAULT_LIFETIME, validator=U32)

    def encode(self) -> bytes:
        return _MAP_REQUEST.pack(
            0, _OPCODES[self.protocol], self.internal_port, self.suggested_external_port, self.lifetime
        )

    def describe(self) -> str:
        what = f"{protocol_name(self.protocol)} {self.internal_port or 'all ports'}"
        if self.lifetime == 0:
            return f"NAT-PMP delete request: {what}"
        return f"NAT-PMP map request: {what}, suggests port {self.suggested_external_port}, for {self.lifetime} s"


@attrs.frozen(weakref_slot=False)
class MapResponse:
    """The answer to a MapRequest: the mapped external port and the granted lifetime in seconds (section 3.3)."""

    protocol: Protocol = attrs.field(converter=_tcp_or_udp)
    result_code: ResultCode = attrs.field(converter=ResultCode)
    epoch: int = attrs.field(validator=U32)
    internal_port: int = attrs.field(validator=U16)
    external_port: int = attrs.field(default=0, validator=U16)
    lifetime: int = attrs.field(default=0, validator=U32)

    def encode(self) -> bytes:
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


@attrs.frozen(weakref_slot=False)
class ErrorResponse:
    """An error that is shorter than its opcode's response, or that has no layout of its own (RFC 6886 section 3.5).

    A version error has 4, 8 or more octets. An unsupported opcode comes back as a copy of the request, so what
    follows the result code is `payload` and not an epoch. `epoch` is None where the octets are none.
    """

    opcode: int = attrs.field(validator=U7)
    result_code: ResultCode = attrs.field(converter=ResultCode)
    epoch: int | None = attrs.field(default=None, validator=attrs.validators.optional(U32))
    payload: bytes = attrs.field(default=b"", validator=octets(), kw_only=True, repr=bytes.hex)

    def encode(self) -> bytes:
        epoch = b"" if self.epoch is None else _U32.pack(self.epoch)
        return _SHORT_RESPONSE.pack(0, 0x80 | self.opcode, self.result_code) + epoch + self.payload

    def describe(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch} s"
        return f"NAT-PMP error response to opcode {self.opcode}: {_failure(self.result_code) or 'SUCCESS'}{epoch}"


@attrs.frozen(weakref_slot=False)
class UnknownRequest:
    """A request with an opcode that RFC 6886 does not define; `payload` is all that follows the opcode."""

    opcode: int = attrs.field(validator=U7)
    payload: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)

    def encode(self) -> bytes:
        return bytes((0, self.opcode)) + self.payload

    def describe(self) -> str:
        return f"NAT-PMP request with unknown opcode {self.opcode}, {len(self.payload)} octets"


Request = ExternalAddressRequest | MapRequest | UnknownRequest
Response = ExternalAddressResponse | MapResponse | ErrorResponse
Message = Request | Response


def decode(data: bytes) -> Message:
    """The message in a datagram whose first octet is 0. Octets behind a message are ignored.

    Raises:
        DecodeError: nothing else, whatever the octets.
    """
    size = len(data)
    if size < 2:
        raise DecodeError("too short for a NAT-PMP header", size)
    if data[0] != VERSION:
        raise DecodeError(f"version {data[0]} is not NAT-PMP", 0)
    opcode = data[1]
    if opcode >= 0x80:
        return _decode_response(data, size, opcode & 0x7F)
    if opcode == 0:
        # As printed in section 3.5, and sent by some, a version error has the response bit clear (erratum 3618).
        return _decode_response(data, size, 0) if data[2:4] == b"\0\1" else ExternalAddressRequest()
    protocol = _PROTOCOLS.get(opcode)
    if protocol is None:
        return UnknownRequest(opcode, bytes(data[2:]))
    if size < 12:
        raise DecodeError("truncated NAT-PMP map request", size)
    request = _map_request(protocol, *_MAP_REQUEST_BODY.unpack_from(data, 4))
    request.__class__ = MapRequest
    return request


def _decode_response(data: bytes, size: int, opcode: int) -> Response:
    if size < 4:
        raise DecodeError("truncated NAT-PMP response", size)
    code = data[2] << 8 | data[3]
    result_code = _RESULT_CODES.get(code) or ResultCode(code)
    if code in _WITHOUT_BODY:
        if code == ResultCode.UNSUPPORTED_OPCODE or size < 8:
            return ErrorResponse(opcode, result_code, payload=bytes(data[4:]))
        return ErrorResponse(opcode, result_code, _U32.unpack_from(data, 4)[0], payload=bytes(data[8:]))
    if opcode == 0 and size >= 12:
        response = _address_response(result_code, _U32.unpack_from(data, 4)[0], IPv4Address(bytes(data[8:12])))
        response.__class__ = ExternalAddressResponse
        return response
    protocol = _PROTOCOLS.get(opcode)
    if protocol is not None and size >= 16:
        mapped = _map_response(protocol, result_code, *_MAP_RESPONSE_BODY.unpack_from(data, 4))
        mapped.__class__ = MapResponse
        return mapped
    if code == 0:
        reason = "truncated NAT-PMP response" if opcode in (0, 1, 2) else f"response to unknown opcode {opcode}"
        raise DecodeError(reason, min(size, 4))
    epoch, rest = (_U32.unpack_from(data, 4)[0], data[8:]) if size >= 8 else (None, data[4:])
    return ErrorResponse(opcode, result_code, epoch, payload=bytes(rest))


def _failure(result_code: ResultCode) -> str:
    return "" if result_code == 0 else f"{result_code.name} ({result_code.meaning})"


_OPCODES = {Protocol.UDP: 1, Protocol.TCP: 2}  # section 3.3, the reverse of what many expect
_PROTOCOLS = {opcode: protocol for protocol, opcode in _OPCODES.items()}
_RESULT_CODES = {code.value: code for code in ResultCode}
_WITHOUT_BODY = (ResultCode.UNSUPPORTED_VERSION, ResultCode.UNSUPPORTED_OPCODE)
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
_MAP_REQUEST_BODY = struct.Struct("!HHI")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")
_MAP_RESPONSE_BODY = struct.Struct("!IHHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")  # section 3.2
_SHORT_RESPONSE = struct.Struct("!BBH")  # section 3.5

_map_request = unchecked(MapRequest)
_map_response = unchecked(MapResponse)
_address_response = unchecked(ExternalAddressResponse)
