"""One way to speak NAT-PMP, one to speak PCP, behind one interface.

A dialect turns an intention into a request and a response into an outcome, and brings its own retransmission,
renewal and epoch rules. The client knows no version numbers beyond which dialect comes first.
"""

from __future__ import annotations

import random
import typing

import attrs

from ..config import Config
from ..errors import DecodeError, LocalProtocolError
from ..events import Reason
from ..wire import Message, decode, natpmp, pcp
from ..wire.fields import Endpoint, IPAddress, Protocol, Value, any_address, pack_address
from . import schedules
from .address_scope import is_private
from .epoch import EpochCheck, NatPmpEpoch, PcpEpoch
from .spec import MappingSpec

LONG_HOLD = 1800.0
"""How long an error lasts, in seconds, that does not say so itself (RFC 6887 section 7.4)."""


@attrs.define(kw_only=True, eq=False, repr=False)  # nobody changes it; but frozen it would take twice as long to make
class MapAnswer(Value):
    """To a map or delete request. `reason` None is success; `internal_port` None: the answer does not say."""

    protocol: Protocol | int
    internal_port: int | None
    nonce: bytes = b""
    remote: Endpoint | None = None
    external_port: int = 0
    external_address: IPAddress | None = None
    lifetime: int = 0
    options: tuple[pcp.Option, ...] = ()
    epoch: int | None
    reason: Reason | None = None
    result_code: int = 0
    hold: float = 0.0
    server_wide: bool = False
    """Whether a refusal is about the whole server, so that others would fare the same."""

    @property
    def external(self) -> Endpoint:
        return Endpoint(self.external_address, self.external_port)

    @property
    def is_deletion(self) -> bool:
        """Whether it says that a mapping is gone, as was asked."""
        return self.reason is None and self.lifetime == 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class AddressAnswer(Value):
    """To a request for the external address, or an announcement of it. `address` None: there is none to tell."""

    address: IPAddress | None
    epoch: int | None
    reason: Reason | None = None
    result_code: int = 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Announcement(Value):
    """The gateway is there, and this is its epoch."""

    epoch: int
    reason: Reason | None = None
    result_code: int = 0
    options: tuple[pcp.Option, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class VersionError(Value):
    """The gateway does not speak the version it was asked in, and offers another. `hold`: for so long (s)."""

    offered: int
    hold: float


Outcome = MapAnswer | AddressAnswer | Announcement


def read_message(data: bytes) -> Message | None:
    """The message in a datagram; None: there is none."""
    try:
        return decode(data)
    except DecodeError:
        return None


def read_version_error(message: Message) -> VersionError | None:
    """Whether a response is a version error, of whatever protocol and shape."""
    if getattr(message, "result_code", None) != _VERSION_ERROR:
        return None  # nearly always, and soon known
    match message:
        case natpmp.ErrorResponse():
            return VersionError(offered=natpmp.VERSION, hold=LONG_HOLD)
        case pcp.ErrorResponse(lifetime=lifetime):
            return VersionError(offered=message.version, hold=LONG_HOLD if lifetime is None else float(lifetime))
        case pcp.MapResponse() | pcp.AnnounceResponse():
            return VersionError(offered=pcp.VERSION, hold=float(message.lifetime))
        case _:
            return None


class Dialect(typing.Protocol):
    """How one protocol is spoken with one gateway."""

    version: int
    attempts: int | None
    """How often a request is sent before silence is an answer; None: for ever."""
    renewal_attempts: int
    """The same for one try to renew."""
    renewal_gap: float
    """Seconds from one try to renew to the next, at least."""
    probe_attempts: int
    """How often `probe_request` is sent when the caller wants to know."""
    attempts_until_unreachable: int
    """After how many unanswered transmissions the gateway counts as silent."""
    serial: bool
    """Whether there may be only one request at a time."""
    has_nonce: bool
    """Whether an answer proves that its sender has seen a request, so that it may come at any time."""
    tells_address: bool
    """Whether `probe_request` asks for the external address; else only a mapping tells it."""

    def serves(self, local: IPAddress, *, strict: bool) -> bool:
        """Whether it can be spoken from that address; `strict`: and is meant to be."""
        ...

    def supports(self, spec: MappingSpec) -> bool:
        """Whether it can ask for all of that spec."""
        ...

    def probe_request(self) -> bytes:
        """A request that changes nothing at the gateway."""
        ...

    def map_request(self, spec: MappingSpec) -> bytes: ...
    def delete_request(self, spec: MappingSpec) -> bytes | None:
        """None: there is no request that would delete this mapping and nothing else."""
        ...

    def wait(self, attempt: int, previous: float | None) -> float:
        """Seconds to wait for an answer to the attempt-th transmission; `previous` is the wait before it."""
        ...

    def renewal(self, attempt: int, lifetime: float) -> float:
        """When the attempt-th try to renew begins, in seconds from the grant."""
        ...

    def new_epoch(self) -> EpochCheck: ...
    def read(self, message: Message) -> Outcome | None:
        """What a response says; None: it is none of this dialect's."""
        ...

    def matches(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        """Whether this is the answer to requests for that spec."""
        ...

    def matches_truncated_port(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        """Whether it would be that answer, had the gateway not kept a part of the port only."""
        ...

    def restore_response_bit(self, data: bytes, *, is_awaited: bool) -> bytes | None:
        """A response from which only the response bit is missing, with it; None: that is not all that is amiss.
        `is_awaited`: an answer in this dialect is, and not only one in another."""
        ...

    def is_deleted(self, answer: MapAnswer) -> bool:
        """Whether an answer to a delete request says that it is done, and is not a late answer to another one."""
        ...


class NatPmpDialect:
    """RFC 6886. `any_internal_port`: what a VPN makes of internal port 0, see `Config`."""

    version = natpmp.VERSION
    attempts: int | None = schedules.NAT_PMP_ATTEMPTS
    renewal_attempts = schedules.NAT_PMP_ATTEMPTS
    renewal_gap = 0.0
    probe_attempts = 4  # within four seconds
    attempts_until_unreachable = schedules.NAT_PMP_ATTEMPTS
    serial = True  # section 3.1
    has_nonce = False
    tells_address = True

    def __init__(self, *, any_internal_port: bool = False) -> None:
        self._any_internal_port = any_internal_port

    def serves(self, local: IPAddress, *, strict: bool) -> bool:
        return local.version == 4 and (is_private(local) or not strict)  # section 3

    def supports(self, spec: MappingSpec) -> bool:
        """An option that a server may ignore may be left out; nothing else that was asked for may."""
        served = spec.protocol in (Protocol.TCP, Protocol.UDP) and (spec.internal_port != 0 or self._any_internal_port)
        is_plain = spec.remote is None and spec.family is None
        return served and is_plain and not any(option.mandatory for option in spec.options)

    def probe_request(self) -> bytes:
        return natpmp.ExternalAddressRequest().encode()

    def map_request(self, spec: MappingSpec) -> bytes:
        return natpmp.pack_map_request(spec.protocol, spec.internal_port, spec.external.port, spec.lifetime)

    def delete_request(self, spec: MappingSpec) -> bytes | None:
        # Section 3.4; with internal port 0 it would delete all. Where 0 asked for any port, it is the same inside.
        port = spec.internal_port or spec.external.port
        return natpmp.pack_map_request(spec.protocol, port, 0, 0) if port else None

    def wait(self, attempt: int, previous: float | None) -> float:
        return schedules.nat_pmp_wait(attempt)

    def renewal(self, attempt: int, lifetime: float) -> float:
        return schedules.nat_pmp_renewal(attempt, lifetime)

    def new_epoch(self) -> EpochCheck:
        return NatPmpEpoch()

    def read(self, message: Message) -> Outcome | None:
        match message:
            case natpmp.ExternalAddressResponse(result_code=code, external_address=address):
                reason, _ = self._reason(code)
                if reason is None and address == any_address(address):
                    reason = Reason.NETWORK_FAILURE
                known = address if reason is None else None
                return AddressAnswer(address=known, epoch=message.epoch, reason=reason, result_code=int(code))
            case natpmp.MapResponse(result_code=code):
                reason, hold = self._reason(code)
                return MapAnswer(
                    protocol=message.protocol,
                    # Some gateways leave the port out of an error (field notes): then only the opcode tells.
                    internal_port=None if code and not message.internal_port else message.internal_port,
                    external_port=message.external_port,
                    lifetime=message.lifetime,
                    epoch=message.epoch,
                    reason=reason,
                    result_code=int(code),
                    hold=hold,
                )
            case natpmp.ErrorResponse(opcode=0, result_code=code):
                reason, _ = self._reason(code)
                return AddressAnswer(address=None, epoch=message.epoch, reason=reason, result_code=int(code))
            case natpmp.ErrorResponse(opcode=1 | 2 as opcode):
                reason, hold = self._reason(message.result_code)
                return MapAnswer(
                    protocol=Protocol.UDP if opcode == 1 else Protocol.TCP,
                    internal_port=None,
                    epoch=message.epoch,
                    reason=reason,
                    result_code=int(message.result_code),
                    hold=hold,
                )
            case _:
                return None

    def matches(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        # In answer to internal port 0 some say 0 and some the assigned port: only the opcode tells (field notes).
        is_same = answer.internal_port in (None, spec.internal_port) or spec.internal_port == 0
        return is_same and answer.protocol == spec.protocol

    def matches_truncated_port(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        port = spec.internal_port
        return answer.protocol == spec.protocol and port > 0xFF and answer.internal_port == port & 0xFF

    def restore_response_bit(self, data: bytes, *, is_awaited: bool) -> bytes | None:
        is_version_error = data[2:4] == b"\0\1"  # of whatever opcode and length
        is_answer = is_version_error or (is_awaited and len(data) == _ANSWER_SIZES.get(data[1]))
        return bytes((data[0], data[1] | 0x80, *data[2:])) if is_answer else None

    def is_deleted(self, answer: MapAnswer) -> bool:
        return answer.lifetime == 0  # whatever the port: some gateways repeat the old one

    @staticmethod
    def _reason(code: natpmp.ResultCode) -> tuple[Reason | None, float]:
        hold = LONG_HOLD if code.lifetime is None else float(code.lifetime)
        return (_NAT_PMP_REASONS.get(code, Reason.OTHER), hold) if code.is_error else (None, 0.0)


class PcpDialect:
    """RFC 6887, from `client_address`."""

    version = pcp.VERSION
    attempts: int | None = None  # section 8.1.1: MRC and MRD are 0
    renewal_attempts = 1  # section 11.2.1
    renewal_gap = schedules.MIN_RENEWAL_GAP
    probe_attempts = 2  # within ten seconds
    attempts_until_unreachable = schedules.PCP_MULTI_ADDRESS_ATTEMPTS
    serial = False
    has_nonce = True
    tells_address = False

    def __init__(self, client_address: IPAddress, rng: random.Random) -> None:
        self._client_address = client_address
        self._packed_address = pack_address(client_address)
        self._rng = rng

    def serves(self, local: IPAddress, *, strict: bool) -> bool:
        return True

    def supports(self, spec: MappingSpec) -> bool:
        return True

    def probe_request(self) -> bytes:
        return pcp.AnnounceRequest(self._client_address).encode()  # section 14.1.2

    def map_request(self, spec: MappingSpec) -> bytes:
        return self._request(spec, spec.external.port, spec.external.address, spec.lifetime)

    def delete_request(self, spec: MappingSpec) -> bytes | None:
        if spec.remote is not None:
            return None  # PEER deletes nothing (section 12.3); the flow's own end does
        # Port zero, and the all-zeros address of the family of the mapping (section 15.1, erratum 3621).
        address = spec.external.address
        kept = tuple(o for o in spec.options if not isinstance(o, pcp.PreferFailure | pcp.Filter))  # section 11.3
        zeros = None if address is None else any_address(address)
        return self._request(attrs.evolve(spec, options=kept), 0, zeros, 0)

    def wait(self, attempt: int, previous: float | None) -> float:
        return schedules.pcp_wait(previous, self._rng)

    def renewal(self, attempt: int, lifetime: float) -> float:
        return schedules.pcp_renewal(attempt, lifetime, self._rng)

    def new_epoch(self) -> EpochCheck:
        return PcpEpoch()

    def read(self, message: Message) -> Outcome | None:
        match message:
            case pcp.MapResponse(result_code=code) | pcp.PeerResponse(result_code=code):
                remote = None
                if isinstance(message, pcp.PeerResponse):
                    remote = Endpoint(message.remote_address, message.remote_port)
                return MapAnswer(
                    protocol=message.protocol,
                    internal_port=message.internal_port,
                    nonce=message.nonce,
                    remote=remote,
                    external_port=message.external_port,
                    external_address=message.external_address,
                    lifetime=message.lifetime,
                    options=message.options,
                    epoch=message.epoch,
                    reason=self._reason(code) if code else None,
                    result_code=int(code),
                    hold=float(message.lifetime) if code else 0.0,
                    server_wide=bool(code) and code == pcp.ResultCode.NO_RESOURCES,
                )
            case pcp.AnnounceResponse(result_code=code):
                return Announcement(
                    epoch=message.epoch, reason=self._reason(code), result_code=int(code), options=message.options
                )
            case pcp.ErrorResponse(opcode=pcp.ANNOUNCE, result_code=code, epoch=int(epoch)):
                return Announcement(epoch=epoch, reason=self._reason(code), result_code=int(code))
            case _:
                return None

    def matches(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        # Sections 11.4 and 12.4. The nonce is new for each mapping, so it stands for the internal address as well.
        is_same = answer.nonce == spec.nonce and answer.internal_port == spec.internal_port
        return is_same and answer.protocol == spec.protocol and answer.remote == spec.remote

    def matches_truncated_port(self, answer: MapAnswer, spec: MappingSpec) -> bool:
        return False

    def restore_response_bit(self, data: bytes, *, is_awaited: bool) -> bytes | None:
        return None  # without the bit it is a request, and dropped (section 8.3)

    def is_deleted(self, answer: MapAnswer) -> bool:
        # A server may keep it for as long as traffic would (section 15), but it copies the request's port of zero.
        return answer.lifetime == 0 or answer.external_port == 0

    def _request(self, spec: MappingSpec, port: int, address: IPAddress | None, lifetime: int) -> bytes:
        """Without the checks of pcp.MapRequest, which the spec has passed; they would take as long as all the rest."""
        client, remote, options = self._client_address, spec.remote, spec.options
        if address is None:
            address = any_address(client)
        if remote is None:
            packed = self._packed_address
            return pcp.pack_map_request(
                packed, spec.nonce, spec.protocol, spec.internal_port, port, address, lifetime, options
            )
        assert remote.address is not None  # checked when the spec was made
        head = (client, spec.nonce, spec.protocol, spec.internal_port, remote.port, remote.address)
        return pcp.PeerRequest(*head, port, address, lifetime, options).encode()

    @staticmethod
    def _reason(code: pcp.ResultCode) -> Reason | None:
        return None if code == pcp.ResultCode.SUCCESS else _PCP_REASONS.get(code, Reason.OTHER)


def make_dialects(local: IPAddress, config: Config, rng: random.Random) -> dict[int, Dialect]:
    """The dialects that are configured and can be spoken from the `local` address, the preferred one first.

    Raises:
        LocalProtocolError: there is none.
    """
    known: dict[int, Dialect] = {
        pcp.VERSION: PcpDialect(local, rng),
        natpmp.VERSION: NatPmpDialect(any_internal_port=config.any_internal_port),
    }
    for strict in (config.strict, False):  # what is not meant for this address will do if there is no other
        served = {each: known[each] for each in config.versions if known[each].serves(local, strict=strict)}
        if served:
            return served
    raise LocalProtocolError("NAT-PMP is for IPv4; an IPv6 gateway needs version 2 in Config.versions")


_VERSION_ERROR = 1  # in both protocols
_ANSWER_SIZES = {0: 12, 1: 16, 2: 16}  # NAT-PMP answers by opcode; requests are 2 and 12 octets long
_NAT_PMP_REASONS = {
    natpmp.ResultCode.NOT_AUTHORIZED: Reason.NOT_AUTHORIZED,
    natpmp.ResultCode.NETWORK_FAILURE: Reason.NETWORK_FAILURE,
    natpmp.ResultCode.OUT_OF_RESOURCES: Reason.NO_RESOURCES,
    natpmp.ResultCode.UNSUPPORTED_OPCODE: Reason.UNSUPPORTED_OPCODE,
}
_PCP_REASONS = {
    pcp.ResultCode.NOT_AUTHORIZED: Reason.NOT_AUTHORIZED,
    pcp.ResultCode.MALFORMED_REQUEST: Reason.MALFORMED,
    pcp.ResultCode.UNSUPP_OPCODE: Reason.UNSUPPORTED_OPCODE,
    pcp.ResultCode.UNSUPP_OPTION: Reason.UNSUPPORTED_OPTION,
    pcp.ResultCode.MALFORMED_OPTION: Reason.MALFORMED,
    pcp.ResultCode.NETWORK_FAILURE: Reason.NETWORK_FAILURE,
    pcp.ResultCode.NO_RESOURCES: Reason.NO_RESOURCES,
    pcp.ResultCode.UNSUPP_PROTOCOL: Reason.UNSUPPORTED_PROTOCOL,
    pcp.ResultCode.USER_EX_QUOTA: Reason.QUOTA,
    pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL: Reason.CANNOT_PROVIDE_EXTERNAL,
    pcp.ResultCode.ADDRESS_MISMATCH: Reason.ADDRESS_MISMATCH,
    pcp.ResultCode.EXCESSIVE_REMOTE_PEERS: Reason.NO_RESOURCES,
    pcp.ResultCode.THIRD_PARTY_ID_UNKNOWN: Reason.THIRD_PARTY_ID,
    pcp.ResultCode.THIRD_PARTY_MISSING_OPTION: Reason.THIRD_PARTY_ID,
    pcp.ResultCode.UNSUPP_THIRD_PARTY_ID_LENGTH: Reason.THIRD_PARTY_ID,
}
