"""The life of a client's mapping: its states and the one table of how they follow each other, what the caller may see
of it, and what the client remembers of it and of the request that is under way for it.

Nothing here decides anything; `keeper.py` does. `python docs/draw_lifecycle.py` draws the table.
"""

from __future__ import annotations

import enum
import math
import typing
from collections import Counter

import attrs

from ..events import Address, MappingChanged, MappingFailed, MappingGranted, MappingId, MappingRenewed
from ..wire import pcp
from ..wire.fields import Endpoint, IPAddress, Protocol, Value
from .dialects import Dialect, MapAnswer
from .spec import MappingSpec


class MappingState(enum.Enum):
    """Where a mapping stands."""

    REQUESTING = "asked for, or about to be"
    HELD = "the gateway forwards it"
    REFUSED = "refused or lost; asked for again later"
    RELEASING = "being deleted"

    __hash__ = object.__hash__  # in C: Enum's own is in Python, and these are the keys of every step


# By themselves, for what is asked for each datagram: before Python 3.12 a class of enums is slow to look into.
_HELD, _RELEASING = MappingState.HELD, MappingState.RELEASING


class Input(enum.Enum):
    """What can happen to a mapping."""

    GRANT = "the gateway grants it"
    REFUSE = "the gateway refuses it, or nobody answers"
    LOSE = "its lease is over, or the gateway ends it"
    MOVE = "its twin has another port: it is asked for there"
    RETRY = "the wait is over"
    RELEASE = "it is wanted no more"
    END = "it can never work, or is gone"

    __hash__ = object.__hash__


TRANSITIONS: typing.Final[dict[tuple[MappingState, Input], MappingState | None]] = {
    (MappingState.REQUESTING, Input.GRANT): MappingState.HELD,
    (MappingState.REQUESTING, Input.REFUSE): MappingState.REFUSED,
    (MappingState.REQUESTING, Input.RELEASE): MappingState.RELEASING,
    (MappingState.REQUESTING, Input.END): None,
    (MappingState.HELD, Input.GRANT): MappingState.HELD,
    (MappingState.HELD, Input.LOSE): MappingState.REFUSED,
    (MappingState.HELD, Input.MOVE): MappingState.REQUESTING,
    (MappingState.HELD, Input.RELEASE): MappingState.RELEASING,
    (MappingState.HELD, Input.END): None,  # it was held elsewhere, and the gateway here cannot have it
    (MappingState.REFUSED, Input.GRANT): MappingState.HELD,  # the gateway changed its mind unasked
    (MappingState.REFUSED, Input.RETRY): MappingState.REQUESTING,
    (MappingState.REFUSED, Input.RELEASE): MappingState.RELEASING,
    (MappingState.RELEASING, Input.END): None,
}
"""The life of a mapping: from a state and an input to the next state; None is the end. What is not here cannot happen.
"""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Mapping(Value):
    """A look at one mapping. Times are seconds on the caller's clock; what does not apply is None.

    `options` were asked for, `granted_options` are those of the last grant: what is not there was not processed
    (RFC 6887 section 7.3), except at gateways that copy whatever they are sent.
    """

    id: MappingId
    state: MappingState
    protocol: Protocol | int
    internal_port: int
    remote: Endpoint | None
    external: Endpoint | None
    lifetime: float | None
    expires_at: float | None
    renew_at: float | None
    retry_at: float | None
    options: tuple[pcp.Option, ...]
    granted_options: tuple[pcp.Option, ...]


class Timer(enum.Enum):
    """Every reason to be woken."""

    RETRANSMIT = "an answer is overdue"
    RENEW = "a lease is to be renewed"
    EXPIRE = "a lease is over, and there is no time left to renew it"
    RETRY = "a refused mapping may be asked for again"
    DEADLINE = "a mapping's own end has come"
    FALLBACK = "the gateway is silent to the preferred protocol: try the other one as well"
    RECOVER = "the gateway has, or may have, lost its state: ask for everything again"
    ADDRESS = "a grant has waited long enough for the external address"
    HOLD = "the gateway was out of resources and may have some again"

    __hash__ = object.__hash__


class Purpose(enum.Enum):
    """What a request is for."""

    CREATE = enum.auto()
    RENEW = enum.auto()
    CONFIRM = enum.auto()  # a request for what is held: the gateway has, or may have, lost it
    REASSIGN = enum.auto()  # a delete that another request for the same mapping follows
    DELETE = enum.auto()
    ADDRESS = enum.auto()  # which is the external address?
    FALLBACK = enum.auto()  # does the gateway speak this at all?
    PROBE = enum.auto()  # the same, because the caller wants to know

    __hash__ = object.__hash__


CREATE, RENEW = Purpose.CREATE, Purpose.RENEW  # by themselves, for the same reason
ASKING = frozenset({Purpose.CREATE, Purpose.RENEW, Purpose.CONFIRM})
"""The purposes of a mapping that is still wanted."""
DELETING = frozenset({Purpose.REASSIGN, Purpose.DELETE})
_OF_HELD = frozenset({Purpose.RENEW, Purpose.CONFIRM})


def max_attempts(purpose: Purpose, dialect: Dialect, mapping: ClientMapping | None, delete_attempts: int) -> int | None:
    """How often a request is sent before silence is its answer; None: for ever."""
    match purpose:
        case Purpose.CONFIRM:
            return dialect.attempts_until_unreachable  # then anew, before the waits grow as long as the lease
        case Purpose.RENEW:
            return dialect.renewal_attempts
        case Purpose.DELETE if mapping is None or mapping.dialect is None:
            return 1  # it may not be there at all
        case Purpose.DELETE | Purpose.REASSIGN:
            return delete_attempts
        case Purpose.ADDRESS | Purpose.PROBE:
            return dialect.probe_attempts
        case _:
            return dialect.attempts


@attrs.define(kw_only=True, eq=False, repr=False)
class Exchange:
    """One request and the wait for its answer. `limit` is how often it may be sent, None for ever."""

    purpose: Purpose
    mapping: ClientMapping | None
    dialect: Dialect
    data: bytes
    limit: int | None
    attempts: int = 0
    wait: float = 0.0
    sent_at: float = 0.0
    mismatches: int = 0  # successes that may be answers to an earlier request


class InFlight(dict[Exchange, None]):
    """The requests under way, in the order in which they began. How many there are of which kind is counted, because
    whatever comes in makes the client look for the next request that there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0  # about no mapping
        self.unlimited = 0  # sent until they are answered
        self.in_version: Counter[int] = Counter()

    def begin(self, exchange: Exchange) -> None:
        self[exchange] = None
        self.in_version[exchange.dialect.version] += 1
        if exchange.mapping is None:
            self.questions += 1
        if exchange.limit is None:
            self.unlimited += 1

    def end(self, exchange: Exchange) -> None:
        """Forget one, whether it is still under way or not."""
        if exchange in self:
            del self[exchange]
            self.in_version[exchange.dialect.version] -= 1
            if exchange.mapping is None:
                self.questions -= 1
            if exchange.limit is None:
                self.unlimited -= 1

    def first_past_patience(self, dialect: Dialect) -> Exchange | None:
        """The first that would be sent for ever, and has met with silence."""
        if not self.unlimited:
            return None
        creating = [each for each in self if each.dialect is dialect and each.purpose is Purpose.CREATE]
        return next((each for each in creating if each.attempts > dialect.attempts_until_unreachable), None)


@attrs.define(kw_only=True, eq=False, repr=False)
class ClientMapping:
    """What the client remembers of one mapping."""

    id: MappingId
    spec: MappingSpec  # its `external` is what to suggest: the caller's spec at first, then what was granted
    is_address_probe: bool = False  # made by the client itself, to learn the external address; not the caller's
    request: tuple[MappingSpec, Dialect, bytes] | None = (
        None  # the last one, as long as the next is likely to be the same
    )
    pair: Pair | None = None
    state: MappingState | None = MappingState.REQUESTING  # None: it is over
    exchange: Exchange | None = None
    dialect: Dialect | None = None  # in which it was granted; None while held: from elsewhere, see `network_changed`
    external: Endpoint | None = None  # as last granted
    reported_external: Endpoint | None = None  # the endpoint of the last event, until one has said that it is lost
    has_unreported_grant: bool = False  # a grant that no event has told yet
    follows_gateway: bool = False  # its external address is the gateway's, which is told apart from the grant
    may_exist_at_gateway: bool = False  # the gateway may have it
    loss_count: int = 0
    granted_options: tuple[pcp.Option, ...] = ()
    lifetime: float = 0.0
    granted_at: float = 0.0
    expires_at: float = 0.0
    renew_at: float | None = None
    renewals: int = 0  # how many times it should have been renewed when it was last tried
    next_renewal: int = 0
    no_renewal_before: float = -math.inf
    is_renewal_queued: bool = False
    is_renewal_open: bool = False  # a renewal was sent, and neither granted nor refused
    retry_at: float | None = None
    hold_until: float = -math.inf
    unusable_grants: int = 0  # how many grants in a row could not be used
    refused_by_silence: bool = False
    ending: MappingFailed | None = None

    @property
    def is_held(self) -> bool:
        return self.state is _HELD

    @property
    def is_releasing(self) -> bool:
        return self.state is _RELEASING

    @property
    def is_unsure(self) -> bool:
        """Whether the gateway here has not been heard about it."""
        return self.state is MappingState.REQUESTING or (self.is_held and self.dialect is None)

    @property
    def granted(self) -> MappingSpec:
        """The spec with what was granted, to renew or delete just that; the spec itself may suggest another by now."""
        if self.external in (None, self.spec.external) or not self.spec.has_ports:
            return self.spec
        return attrs.evolve(self.spec, external=self.external)

    def map_request(self, spec: MappingSpec, dialect: Dialect) -> bytes:
        """The request for a spec. A renewal repeats the request before, which takes longer to make than to keep."""
        if self.request is not None and self.request[0] is spec and self.request[1] is dialect:
            return self.request[2]
        data = dialect.map_request(spec)
        self.request = (spec, dialect, data) if spec is self.spec else None
        return data

    def has_use_for(self, purpose: Purpose, generation: int, now: float) -> bool:
        """Whether a queued task is still to be done; `generation` counts the gateway's losses of state."""
        if self.exchange is not None:
            return False
        if purpose in _OF_HELD:
            if not self.is_held or now >= self.expires_at:  # what is over may not have been told yet
                return False
            if purpose is RENEW:
                return self.renew_at is None and now >= self.hold_until
            return self.loss_count < generation
        return self.state is (MappingState.RELEASING if purpose is Purpose.DELETE else MappingState.REQUESTING)

    def plan_renewal(self, earliest: float) -> None:
        """`renew_at` is the next try that is not before `earliest`; None if the lease is over by then, or enough."""
        assert self.dialect is not None
        self.renew_at = None
        earliest = max(earliest, self.no_renewal_before)
        is_enough = self.spec.until is not None and self.expires_at >= self.spec.until
        attempt = self.renewals
        while earliest < self.expires_at and self.renew_at is None and not is_enough:
            attempt += 1
            at = self.granted_at + self.dialect.renewal(attempt, self.lifetime)
            if at >= earliest:
                self.renew_at, self.next_renewal = at, attempt

    def suggest(self, address: IPAddress | None, port: int) -> None:
        """Ask for this endpoint from now on."""
        self._suggest(Endpoint(address, port))

    def assign(self, address: IPAddress | None, port: int) -> None:
        """Note the endpoint that it has. It is also what is suggested from now on, unless the caller insists: who
        insists on a port alone shall have it at the next address, too (field notes)."""
        known = self.external
        if known is None or known.port != port or (known.address is not address and known.address != address):
            known = self.external = Endpoint(address, port)
        elif self.spec.external is known:
            return  # as at each renewal
        if not self.spec.prefers_failure:
            self._suggest(known if self.spec.has_ports else Endpoint(address, 0))

    def _suggest(self, external: Endpoint) -> None:
        self.spec, self.request = attrs.evolve(self.spec, external=external), None

    def is_copy(self, answer: MapAnswer, now: float) -> bool:
        """Whether a success that nobody waits for is a copy of one before: it says nothing new, or too much of a lease
        that began earlier than now."""
        is_same = self.is_held and not self.is_renewal_open and self.external == answer.external
        return is_same and now + answer.lifetime > self.expires_at - 1.0

    def move(self, what: Input) -> None:
        assert self.state is not None
        self.state = TRANSITIONS[self.state, what]

    def about(self, gateway: Address) -> dict[str, typing.Any]:
        """The fields that every event of a mapping has."""
        return {
            "gateway": gateway,
            "mapping": self.id,
            "protocol": self.spec.protocol,
            "internal_port": self.spec.internal_port,
        }

    def take_event(self, gateway: Address) -> MappingGranted | MappingChanged | MappingRenewed:
        """What there is to be told of it, as it is held now; then it is told."""
        assert self.external is not None
        old, self.reported_external, self.has_unreported_grant = self.reported_external, self.external, False
        if old is not None and old != self.external:
            return MappingChanged(
                **self.about(gateway),
                old=old,
                new=self.external,
                lifetime=self.lifetime,
                expires_at=self.expires_at,
            )
        kind = MappingGranted if old is None else MappingRenewed
        return kind(
            gateway=gateway,
            mapping=self.id,
            protocol=self.spec.protocol,
            internal_port=self.spec.internal_port,
            external=self.external,
            lifetime=self.lifetime,
            expires_at=self.expires_at,
        )

    def view(self) -> Mapping:
        assert self.state is not None
        held = self.is_held
        return Mapping(
            id=self.id,
            state=self.state,
            protocol=self.spec.protocol,
            internal_port=self.spec.internal_port,
            remote=self.spec.remote,
            external=self.reported_external if held else None,
            lifetime=self.lifetime if held else None,
            expires_at=self.expires_at if held else None,
            renew_at=self.renew_at if held else None,
            retry_at=self.retry_at,
            options=self.spec.options,
            granted_options=self.granted_options if held else (),
        )


@attrs.define(eq=False, repr=False)
class Pair:
    """TCP and UDP of one internal port, which are to have the same external port.

    UDP goes first and TCP follows right behind it, in each round: some gateways drop a rule of TCP's when UDP of the
    same port is renewed or deleted, and TCP's own renewal puts it back (miniupnpd 2.3.1).
    """

    MAX_ROUNDS: typing.ClassVar[int] = 4  # before the gateway is said not to be able to

    udp: ClientMapping
    tcp: ClientMapping
    rounds: int = 0  # how often one of them was asked for again, because their ports differed
    is_split: bool = False  # it was told that they differ
    is_following: bool = False  # TCP is to be renewed because UDP was asked for

    def twin(self, mapping: ClientMapping) -> ClientMapping:
        return self.tcp if mapping is self.udp else self.udp

    @property
    def agrees(self) -> bool:
        """Whether both are held on one port."""
        udp, tcp = self.udp.external, self.tcp.external
        is_held = self.udp.is_held and self.tcp.is_held
        return is_held and udp is not None and tcp is not None and udp.port == tcp.port
