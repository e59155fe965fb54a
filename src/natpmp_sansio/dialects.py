"""One way to speak NAT-PMP, one to speak PCP, behind one interface.

A dialect turns an intention into a request and a response into an outcome, and brings its own retransmission,
renewal and epoch rules. The client knows no version numbers beyond which dialect comes first.
"""

from __future__ import annotations

import random
import typing

import attrs

from . import retransmission
from .epoch import EpochCheck, NatPmpEpoch, PcpEpoch
from .events import Reason
from .wire import Message, natpmp, pcp
from .wire.fields import Endpoint, IPAddress, Protocol, Value, any_address

LONG_HOLD = 1800.0
"""How long an error lasts, in seconds, that does not say so itself (RFC 6887 section 7.4)."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Wish(Value):
    """What a mapping request is about. `external` is what to suggest; its parts may be None and 0."""

    protocol: Protocol | int
    internal_port: int
    external: Endpoint
    lifetime: int
    nonce: bytes
    options: tuple[pcp.Option, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MapAnswer(Value):
    """To a map or delete request. `reason` None is success; `internal_port` None: the answer does not say."""

    protocol: Protocol | int
    internal_port: int | None
    nonce: bytes = b""
    external_port: int = 0
    external_address: IPAddress | None = None
    lifetime: int = 0
    epoch: int | None
    reason: Reason | None = None
    result_code: int = 0
    hold: float = 0.0
    server_wide: bool = False
    """Whether a refusal is about the whole server, so that others would fare the same."""

    @property
    def is_deletion(self) -> bool:
        """Whether it says that a mapping is gone, as was asked."""
        return self.reason is None and self.lifetime == 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class AddressAnswer(Value):
    """To a request for the external address, or an announcement of it. `address` None: there is none to tell."""

    address: IPAddress | None
    epoch: int | None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Announcement(Value):
    """The gateway is there, and this is its epoch."""

    epoch: int


@attrs.frozen(kw_only=True, eq=False, repr=False)
class VersionError(Value):
    """The gateway does not speak the version it was asked in, and offers another. `hold`: for so long (s)."""

    offered: int
    hold: float


Outcome = MapAnswer | AddressAnswer | Announcement


def read_version_error(message: Message) -> VersionError | None:
    """Whether a response is a version error, of whatever protocol and shape."""
    match message:
        case natpmp.ErrorResponse(result_code=natpmp.ResultCode.UNSUPPORTED_VERSION):
            return VersionError(offered=natpmp.VERSION, hold=LONG_HOLD)
        case pcp.ErrorResponse(result_code=pcp.ResultCode.UNSUPP_VERSION, lifetime=lifetime):
            return VersionError(offered=message.version, hold=LONG_HOLD if lifetime is None else float(lifetime))
        case (
            pcp.MapResponse(result_code=pcp.ResultCode.UNSUPP_VERSION)
            | pcp.AnnounceResponse(result_code=pcp.ResultCode.UNSUPP_VERSION)
        ):
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
    patience: int
    """After how many unanswered transmissions the gateway counts as silent."""
    serial: bool
    """Whether there may be only one request at a time."""
    has_nonce: bool
    """Whether an answer proves that its sender has seen a request, so that it may come at any time."""

    def supports(self, wish: Wish) -> bool:
        """Whether it can ask for all of that wish."""
        ...

    def probe_request(self) -> bytes:
        """A request that changes nothing at the gateway."""
        ...

    def map_request(self, wish: Wish) -> bytes: ...
    def delete_request(self, wish: Wish) -> bytes: ...
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

    def is_for(self, answer: MapAnswer, wish: Wish) -> bool:
        """Whether this is the answer to requests for that wish."""
        ...

    def is_deleted(self, answer: MapAnswer) -> bool:
        """Whether an answer to a delete request says that it is done, and is not a late answer to another one."""
        ...


class NatPmpDialect:
    """RFC 6886."""

    version = natpmp.VERSION
    attempts: int | None = retransmission.NAT_PMP_ATTEMPTS
    renewal_attempts = retransmission.NAT_PMP_ATTEMPTS
    renewal_gap = 0.0
    patience = retransmission.NAT_PMP_ATTEMPTS
    serial = True  # section 3.1
    has_nonce = False

    def supports(self, wish: Wish) -> bool:
        """An option that a server may ignore may be left out; nothing else that was asked for may."""
        served = wish.protocol in (Protocol.TCP, Protocol.UDP) and wish.internal_port != 0
        return served and not any(option.mandatory for option in wish.options)

    def probe_request(self) -> bytes:
        return natpmp.ExternalAddressRequest().encode()

    def map_request(self, wish: Wish) -> bytes:
        protocol = Protocol(wish.protocol)
        return natpmp.MapRequest(protocol, wish.internal_port, wish.external.port, wish.lifetime).encode()

    def delete_request(self, wish: Wish) -> bytes:
        return natpmp.MapRequest(Protocol(wish.protocol), wish.internal_port, 0, 0).encode()  # section 3.4

    def wait(self, attempt: int, previous: float | None) -> float:
        return retransmission.nat_pmp_wait(attempt)

    def renewal(self, attempt: int, lifetime: float) -> float:
        return retransmission.nat_pmp_renewal(attempt, lifetime)

    def new_epoch(self) -> EpochCheck:
        return NatPmpEpoch()

    def read(self, message: Message) -> Outcome | None:
        match message:
            case natpmp.ExternalAddressResponse(result_code=code):
                return AddressAnswer(address=message.external_address if code == 0 else None, epoch=message.epoch)
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
            case natpmp.ErrorResponse(opcode=0):
                return AddressAnswer(address=None, epoch=message.epoch)
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

    def is_for(self, answer: MapAnswer, wish: Wish) -> bool:
        return answer.protocol == wish.protocol and answer.internal_port in (None, wish.internal_port)

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
    renewal_gap = retransmission.MIN_RENEWAL_GAP
    patience = retransmission.PCP_MULTI_ADDRESS_ATTEMPTS
    serial = False
    has_nonce = True

    def __init__(self, client_address: IPAddress, rng: random.Random) -> None:
        self._client_address = client_address
        self._rng = rng

    def supports(self, wish: Wish) -> bool:
        return True

    def probe_request(self) -> bytes:
        return pcp.AnnounceRequest(self._client_address).encode()  # section 14.1.2

    def map_request(self, wish: Wish) -> bytes:
        return self._request(wish, wish.external.port, wish.external.address, wish.lifetime)

    def delete_request(self, wish: Wish) -> bytes:
        # Port zero, and the all-zeros address of the family of the mapping (section 15.1, erratum 3621).
        address = wish.external.address
        kept = tuple(o for o in wish.options if not isinstance(o, pcp.PreferFailure | pcp.Filter))  # section 11.3
        return self._request(attrs.evolve(wish, options=kept), 0, None if address is None else any_address(address), 0)

    def wait(self, attempt: int, previous: float | None) -> float:
        return retransmission.pcp_wait(previous, self._rng)

    def renewal(self, attempt: int, lifetime: float) -> float:
        return retransmission.pcp_renewal(attempt, lifetime, self._rng)

    def new_epoch(self) -> EpochCheck:
        return PcpEpoch()

    def read(self, message: Message) -> Outcome | None:
        match message:
            case pcp.AnnounceResponse():
                return Announcement(epoch=message.epoch)
            case pcp.MapResponse(result_code=code):
                reason = None if code == 0 else _PCP_REASONS.get(code, Reason.OTHER)
                return MapAnswer(
                    protocol=message.protocol,
                    internal_port=message.internal_port,
                    nonce=message.nonce,
                    external_port=message.external_port,
                    external_address=message.external_address,
                    lifetime=message.lifetime,
                    epoch=message.epoch,
                    reason=reason,
                    result_code=int(code),
                    hold=float(message.lifetime) if code else 0.0,
                    server_wide=code == pcp.ResultCode.NO_RESOURCES,
                )
            case _:
                return None

    def is_for(self, answer: MapAnswer, wish: Wish) -> bool:
        return (answer.nonce, answer.protocol, answer.internal_port) == (wish.nonce, wish.protocol, wish.internal_port)

    def is_deleted(self, answer: MapAnswer) -> bool:
        # A server may keep it for as long as traffic would (section 15), but it copies the request's port of zero.
        return answer.lifetime == 0 or answer.external_port == 0

    def _request(self, wish: Wish, port: int, address: IPAddress | None, lifetime: int) -> bytes:
        return pcp.MapRequest(
            self._client_address,
            wish.nonce,
            wish.protocol,
            wish.internal_port,
            port,
            any_address(self._client_address) if address is None else address,
            lifetime,
            wish.options,
        ).encode()


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
}
