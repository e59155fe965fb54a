"""What a core puts out: datagrams to send, and what has happened. Frozen values, compared with `==`.

Times (`expires_at`, `retry_at`) are seconds on the caller's clock; lifetimes are seconds. `gateway` is the address
that the datagrams go to, so that a stream from many gateways stays readable.
"""

from __future__ import annotations

import enum
import typing

import attrs

from .errors import NatPmpError
from .wire.fields import Endpoint, IPAddress, Protocol, Value, protocol_name
from .wire.options import Filter

Address = tuple[str, int] | tuple[str, int, int, int]
"""What `recvfrom` returns and `sendto` takes, passed through unchanged."""

MappingId = typing.NewType("MappingId", int)


class Reason(enum.Enum):
    """Why a mapping was refused, lost or failed; the value says it in words."""

    NOT_AUTHORIZED = "the gateway does not allow it: port mapping may be switched off there, or this host barred"
    NETWORK_FAILURE = "the gateway has no usable external address now, or its own firewall is not set up"
    NO_RESOURCES = "the gateway has no room for another mapping now"
    QUOTA = "this host has used up its share of mappings at the gateway"
    CANNOT_PROVIDE_EXTERNAL = "the gateway cannot give just this external address and port"
    ADDRESS_MISMATCH = "the gateway sees another source address: there is another NAT between it and this host"
    MALFORMED = "the gateway says that it cannot read the request"
    UNSUPPORTED_OPCODE = "the gateway does not know this kind of request"
    UNSUPPORTED_OPTION = "the gateway does not know, or does not allow, an option that was asked for"
    UNSUPPORTED_PROTOCOL = "the gateway cannot map this protocol"
    UNSUPPORTED_VERSION = "the gateway speaks no version of the protocols that this client speaks"
    UNUSABLE_GRANT = "the gateway agreed, but to a lifetime or port that cannot be meant"
    DELETED = "the gateway ended the mapping"
    THIRD_PARTY_ID = "the gateway does not know the THIRD_PARTY_ID, or not without THIRD_PARTY, or not in this length"
    OTHER = "the gateway answered with a result code that the RFCs do not define"
    NO_ANSWER = (
        "the gateway does not answer: it may not speak NAT-PMP or PCP, have it switched off, or not serve this network"
    )
    UNREACHABLE = (
        "the gateway's port is closed: it does not speak NAT-PMP or PCP, has it switched off for us, or is not up yet"
    )
    NEEDS_PCP = "the gateway speaks only NAT-PMP, and what was asked for needs PCP"
    EXPIRED = "the lease ran out before it was renewed"
    DEADLINE = "its own deadline has passed"
    NETWORK_CHANGED = "this host has another address or gateway now, and it could not be had again there so far"
    DOUBLE_NAT = "the gateway's external address is a private one: there is another NAT behind it"
    CGNAT = "the gateway's external address is shared by the provider's customers (carrier-grade NAT)"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SendDatagram(Value):
    """Send `data` to `addr`, from the socket that the core's datagrams come from.

    `source` is None but for what is said in parting after `Client.network_changed`: then it is the local address that
    the client had before, and only a socket that is still there should be used.
    """

    data: bytes = attrs.field(repr=bytes.hex)
    addr: Address
    source: IPAddress | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _Holding(Value):
    """A mapping that holds until `expires_at`."""

    gateway: Address
    mapping: MappingId
    protocol: Protocol | int
    internal_port: int
    external: Endpoint
    lifetime: float
    expires_at: float


class MappingGranted(_Holding):
    """It holds now: for the first time, or again after a loss (RFC 6886 section 3.3, RFC 6887 section 11.4).

    Followed by Renewed, Changed, Lost, Released or Failed.
    """

    __slots__ = ()

    def describe(self) -> str:
        what = _what(self.protocol, self.internal_port)
        return f"{what} is open at {self.external} for {self.lifetime:g} s"


class MappingRenewed(_Holding):
    """The same endpoint for longer."""

    __slots__ = ()

    def describe(self) -> str:
        what = _what(self.protocol, self.internal_port)
        return f"{what} stays open at {self.external} for {self.lifetime:g} s"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MappingChanged(Value):
    """It holds, but its external endpoint is another now: tell whoever was told the old one (RFC 6887 16.3.2)."""

    gateway: Address
    mapping: MappingId
    protocol: Protocol | int
    internal_port: int
    old: Endpoint
    new: Endpoint
    lifetime: float
    expires_at: float

    def describe(self) -> str:
        return f"{_what(self.protocol, self.internal_port)} moved from {self.old} to {self.new}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _Missing(Value):
    """A mapping that does not hold, and is asked for again at `retry_at`."""

    gateway: Address
    mapping: MappingId
    protocol: Protocol | int
    internal_port: int
    reason: Reason
    result_code: int | None
    retry_at: float


class MappingRefused(_Missing):
    """The gateway says no, or nobody answered. It is asked for again at `retry_at`.

    `result_code` is the number on the wire, or None when there was no answer. The wait is the error's lifetime,
    within the bounds of the configuration (RFC 6887 section 8.3).
    """

    __slots__ = ()

    def describe(self) -> str:
        return f"{_what(self.protocol, self.internal_port)} was refused{_because(self.reason, self.result_code)}"


class MappingLost(_Missing):
    """It held and no longer does. It is asked for again at `retry_at`."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{_what(self.protocol, self.internal_port)} was lost{_because(self.reason, self.result_code)}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MappingFailed(Value):
    """Terminal: it can never work as asked, or its deadline has passed. Nothing follows."""

    gateway: Address
    mapping: MappingId
    protocol: Protocol | int
    internal_port: int
    reason: Reason
    result_code: int | None

    def describe(self) -> str:
        return f"{_what(self.protocol, self.internal_port)} has failed{_because(self.reason, self.result_code)}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MappingReleased(Value):
    """Terminal: deleted. `confirmed`: the gateway said so; else it was told and did not answer, or refused."""

    gateway: Address
    mapping: MappingId
    protocol: Protocol | int
    internal_port: int
    confirmed: bool

    def describe(self) -> str:
        doubt = "" if self.confirmed else ", though the gateway did not confirm it"
        return f"{_what(self.protocol, self.internal_port)} was released{doubt}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ExternalAddressLearned(Value):
    """The gateway's external address, for the first time (RFC 6886 section 3.2, or from a PCP mapping)."""

    gateway: Address
    address: IPAddress

    def describe(self) -> str:
        return f"the external address is {self.address}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ExternalAddressChanged(Value):
    """The external address is another now. A MappingChanged follows for each mapping that moved with it."""

    gateway: Address
    old: IPAddress
    new: IPAddress

    def describe(self) -> str:
        return f"the external address changed from {self.old} to {self.new}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class VersionNegotiated(Value):
    """From now on the gateway is spoken to in this version: 2 is PCP, 0 is NAT-PMP (RFC 6887 section 9)."""

    gateway: Address
    version: int

    def describe(self) -> str:
        return f"the gateway speaks {'PCP' if self.version == 2 else 'NAT-PMP'}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayRestarted(Value):
    """Its epoch shows that it lost its state (RFC 6886 section 3.6, 6887 8.5). At `recovery_at` every mapping is
    asked for again; what comes of it is told as Renewed, Changed or Lost. Once for each recovery."""

    gateway: Address
    recovery_at: float

    def describe(self) -> str:
        return "the gateway seems to have restarted: all mappings are asked for again"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayUnreachable(Value):
    """It answers no more, or its port is closed (ICMP). Once, until GatewayRecovered."""

    gateway: Address
    reason: Reason

    def describe(self) -> str:
        return self.reason.value


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayRecovered(Value):
    """It answers again."""

    gateway: Address

    def describe(self) -> str:
        return "the gateway answers again"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DoubleNatSuspected(Value):
    """Its external address cannot be reached from the internet, so mappings may reach no further than the next NAT.

    `reason` is DOUBLE_NAT or CGNAT. After ExternalAddressLearned or Changed; the mappings work on, as far as they do.
    """

    gateway: Address
    address: IPAddress
    reason: Reason

    def describe(self) -> str:
        return f"{self.reason.value} ({self.address})"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class PairSplit(Value):
    """The gateway cannot, or will not, give TCP and UDP of one port the same external port; each has its own.

    The grants follow. Once, until they agree again or everything is asked for anew.
    """

    gateway: Address
    tcp: MappingId
    udp: MappingId

    def describe(self) -> str:
        return "the gateway gives TCP and UDP different external ports"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Finding(Value):
    """What a probe found out about one protocol.

    `reason` says why it cannot be used, None that it can. `result_code` and `epoch` (s) are what came back, None if
    nothing did. `round_trip` is the time (s) from the last transmission to the answer.
    """

    version: int
    reason: Reason | None = None
    result_code: int | None = None
    epoch: int | None = None
    round_trip: float | None = None

    @property
    def is_spoken(self) -> bool:
        """Whether the gateway speaks it, even if only to refuse."""
        return self.result_code is not None and self.reason is not Reason.UNSUPPORTED_VERSION


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ProbeCompleted(Value):
    """What `Client.probe` found out, with one finding for each protocol that was asked for, in that order.

    `reason` says why mappings would not work, or would not reach the internet; None: nothing speaks against them.
    """

    gateway: Address
    findings: tuple[Finding, ...]
    external_address: IPAddress | None
    reason: Reason | None

    @property
    def versions(self) -> tuple[int, ...]:
        """The protocols that the gateway speaks: 2 is PCP, 0 is NAT-PMP."""
        return tuple(finding.version for finding in self.findings if finding.is_spoken)

    def describe(self) -> str:
        names = " and ".join("PCP" if version == 2 else "NAT-PMP" for version in self.versions)
        spoken = f"the gateway speaks {names}" if names else "the gateway speaks neither protocol"
        return spoken if self.reason is None else f"{spoken}: {self.reason.value}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class AnnouncementsUnavailable(Value):
    """From an adapter: port 5350 cannot be listened on, so restarts are noticed at the next renewal only."""

    gateway: Address
    reason: str

    def describe(self) -> str:
        return f"no announcements can be heard: {self.reason}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Closed(Value):
    """The core is closed: the last of its events, once."""

    gateway: Address

    def describe(self) -> str:
        return "closed"


class MappingKind(enum.Enum):
    """How an entry of a gateway's mapping table came about (RFC 6887 section 3)."""

    STATIC = "configured; never ends by itself"
    MAP = "inbound, by a NAT-PMP or PCP MAP request"
    PEER = "outbound, by a PCP PEER request"
    IMPLICIT = "outbound, by traffic that the NAT has seen"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _TableEntry(Value):
    """Gateway role: an entry of the mapping table, as a NAT engine has to know it.

    `protocol` 0 is all protocols, an internal port of 0 all ports. `size` consecutive ports from both ports on are
    mapped (RFC 7753). Only what one of `filters` lets in may pass, anything if there is none (RFC 6887 section 13.3).
    `remote` is the one peer that an outbound mapping is for. `third_party_id` tells hosts apart that have the same
    internal address (RFC 7843).
    """

    gateway: Address
    mapping: MappingId
    kind: MappingKind = MappingKind.MAP
    protocol: Protocol | int
    internal: Endpoint
    external: Endpoint
    remote: Endpoint | None = None
    size: int = 1
    filters: tuple[Filter, ...] = ()
    description: str = ""
    third_party_id: bytes = attrs.field(default=b"", repr=bytes.hex)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class _Forwarding(_TableEntry):
    """Gateway role: an entry that is there until `expires_at`."""

    expires_at: float


class MappingCreated(_Forwarding):
    """Gateway role: forward `external` to `internal`, and back, until `expires_at`."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{_rule(self)} is forwarded to {self.internal}{_limits(self)}"


class MappingRefreshed(_Forwarding):
    """Gateway role: the same mapping, as it says now, until `expires_at`."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{_rule(self)} goes on being forwarded to {self.internal}{_limits(self)}"


class MappingExpired(_TableEntry):
    """Gateway role: its lifetime is over; stop forwarding. An outbound mapping is the NAT's own again."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{_rule(self)} has expired"


class MappingDeleted(_TableEntry):
    """Gateway role: its owner, or a restart, ended it; stop forwarding."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{_rule(self)} was deleted"


MappingEvent = (
    MappingGranted | MappingRenewed | MappingChanged | MappingRefused | MappingLost | MappingFailed | MappingReleased
)
Event = (
    MappingEvent
    | ExternalAddressLearned
    | ExternalAddressChanged
    | VersionNegotiated
    | GatewayRestarted
    | GatewayUnreachable
    | GatewayRecovered
    | DoubleNatSuspected
    | PairSplit
    | ProbeCompleted
    | AnnouncementsUnavailable
    | Closed
    | MappingCreated
    | MappingRefreshed
    | MappingExpired
    | MappingDeleted
)
Output = SendDatagram | Event


class MappingError(NatPmpError):
    """A mapping that somebody waited for did not come about; `event` says why."""

    def __init__(self, event: MappingRefused | MappingLost | MappingFailed | MappingReleased) -> None:
        super().__init__(event)
        self.event = event

    def __str__(self) -> str:
        return self.event.describe()


def _what(protocol: Protocol | int, internal_port: int) -> str:
    return f"{protocol_name(protocol)} port {internal_port}"


def _because(reason: Reason, result_code: int | None) -> str:
    code = "" if result_code is None else f" (result code {result_code})"
    return f": {reason.value}{code}"


def _rule(entry: _TableEntry) -> str:
    ports = "" if entry.size == 1 else f"-{entry.external.port + entry.size - 1}"
    return f"{protocol_name(entry.protocol)} {entry.external}{ports}"


def _limits(entry: _TableEntry) -> str:
    remotes = [] if entry.remote is None else [str(entry.remote)]
    remotes += [f"{each.remote_address}/{each.prefix_length} port {each.remote_port}" for each in entry.filters]
    return f", for {', '.join(remotes)} only" if remotes else ""
