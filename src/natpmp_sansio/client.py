"""The client role: what we want, what we have, and what to do next about one gateway.

Theory of operation. A mapping is a wish with a state (`_TRANSITIONS`). Whenever something has to be asked for it, a
task goes into one queue; `_pump` starts tasks as far as the dialect allows requests to be under way. A started task
is an exchange: one datagram, sent again on the dialect's schedule until it is answered, given up or overtaken.
Every answer is matched, run through the epoch check, and only then believed.
"""

from __future__ import annotations

import enum
import math
import random
import typing
from collections import deque

import attrs

from .config import Config
from .core import Machine, checked_peer, peer_key, same_host
from .dialects import (
    AddressAnswer,
    Announcement,
    Dialect,
    MapAnswer,
    NatPmpDialect,
    Outcome,
    PcpDialect,
    VersionError,
    Wish,
    read_version_error,
)
from .errors import DecodeError, LocalProtocolError
from .events import (
    Address,
    Closed,
    ExternalAddressChanged,
    ExternalAddressLearned,
    GatewayRecovered,
    GatewayRestarted,
    GatewayUnreachable,
    MappingChanged,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    Reason,
    VersionNegotiated,
)
from .retransmission import recovery_delay
from .wire import decode, is_response, pcp
from .wire.fields import MAX_LIFETIME, Endpoint, IPAddress, Protocol, Value, to_address, to_protocol, unpack_address


class MappingState(enum.Enum):
    """Where a mapping stands."""

    REQUESTING = "asked for, or about to be"
    HELD = "the gateway forwards it"
    REFUSED = "refused or lost; asked for again later"
    RELEASING = "being deleted"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Mapping(Value):
    """A look at one mapping. Times are seconds on the caller's clock; what does not apply is None."""

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


class Wishes(typing.TypedDict, total=False):
    """The keyword arguments of `Client.map_port`, for those who pass them on."""

    external_port: int
    external_address: str | IPAddress | None
    lifetime: int
    until: float | None
    options: tuple[pcp.Option, ...]


class Timer(enum.Enum):
    """Every reason to be woken."""

    RETRANSMIT = "an answer is overdue"
    RENEW = "a lease is half over"
    EXPIRE = "a lease is over"
    RETRY = "a refused mapping may be asked for again"
    DEADLINE = "a mapping's own end has come"
    FALLBACK = "the gateway is silent to the preferred protocol: try the other one as well"
    RECOVER = "the gateway has lost its state: ask for everything again"
    ADDRESS = "a grant has waited long enough for the external address"
    HOLD = "the gateway was out of resources and may have some again"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class TimerInfo(Value):
    """One entry of `Client.timers()`."""

    deadline: float
    reason: Timer
    mapping: MappingId | None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Stats(Value):
    """What the client saw and did not act on. Datagrams are dropped when nobody drains the output."""

    datagrams_invalid: int
    datagrams_unmatched: int
    datagrams_dropped: int
    clock_backwards: int


class Client(Machine["_TimerKey"]):
    """Keeps mappings at one gateway.

    `gateway` is where requests go; `local_address` is the address they come from (it stands in PCP requests, and is
    compared there with the real source). `rng` draws, in this order: the nonce of each mapping when it is asked for,
    and the jitter of each wait when it begins. It must be unpredictable, as the default is; tests hand in a seeded one.

    Nothing happens before the first command. Every method that takes `now` (seconds, monotonic) may produce
    output: drain `outputs()` and re-read `next_timeout()` afterwards. Not thread-safe.

    Raises:
        LocalProtocolError: an address is none, or the configuration leaves no protocol for its family.
    """

    def __init__(
        self,
        gateway: Address,
        *,
        local_address: str | IPAddress,
        config: Config | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._gateway = gateway
        self._peer = checked_peer(gateway, "gateway")
        if unpack_address(self._peer[0]).is_link_local and len(gateway) == 2 and ":" in gateway[0]:
            raise LocalProtocolError(
                f"a link-local gateway needs its scope id: ({gateway[0]!r}, {gateway[1]}, 0, 2), say"
            )
        self._local = to_address(local_address)
        self._config = config or Config()
        self._rng = rng or random.SystemRandom()
        self._dialects = self._make_dialects()
        self._epochs = {version: dialect.new_epoch() for version, dialect in self._dialects.items()}

        self._mappings: dict[MappingId, _Mapping] = {}
        self._wanted: dict[_Target, _Mapping] = {}
        self._releasing: dict[_Target, _Mapping] = {}
        self._last_id = 0
        self._tasks: deque[tuple[_Purpose, _Mapping]] = deque()
        self._exchanges: dict[_Exchange, None] = {}

        self._current: Dialect | None = None  # what the gateway was last found to speak
        self._current_until = -math.inf
        self._is_certain = False  # whether the gateway itself said so, or was only silent to the other version
        self._told_version: int | None = None
        self._refused_versions: set[int] = set()
        self._external_address: IPAddress | None = None
        self._address_wanted = False
        self._address_at = -math.inf

        self._failures = 0
        self._silent_reason = Reason.NO_ANSWER
        self._silent_until = -math.inf
        self._unreachable = False
        self._hold_new_until = -math.inf
        self._hold_all_until = -math.inf
        self._generation = 0  # how often the gateway has lost its state
        self._last_recovery = -math.inf
        self._closing = False
        self._closed = False
        self._invalid = 0
        self._unmatched = 0

    # --- what there is

    @property
    def gateway(self) -> Address:
        return self._gateway

    @property
    def bind_address(self) -> Address:
        """The local address of the socket: requests must come from it; any port will do."""
        host = str(self._local)
        return (host, 0) if self._local.version == 4 else (host, 0, 0, self._peer[2])

    @property
    def version(self) -> int | None:
        """What the gateway speaks: 2 is PCP, 0 is NAT-PMP; None until it has answered."""
        return self._told_version

    @property
    def external_address(self) -> IPAddress | None:
        """The gateway's external address, as last told by it."""
        return self._external_address

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """Every mapping that is not finished, in the order of asking."""
        return tuple(mapping.look() for mapping in self._mappings.values())

    def mapping(self, mapping: MappingId) -> Mapping | None:
        """One mapping, or None once it is finished."""
        found = self._mappings.get(mapping)
        return found.look() if found else None

    @property
    def stats(self) -> Stats:
        return Stats(
            datagrams_invalid=self._invalid,
            datagrams_unmatched=self._unmatched,
            datagrams_dropped=self._overflowed,
            clock_backwards=self._backwards,
        )

    def timers(self) -> list[TimerInfo]:
        """Every deadline and its reason, the earliest first."""
        infos = []
        for deadline, (reason, about) in self._timers.items():
            mapping = about.mapping if isinstance(about, _Exchange) else about
            infos.append(TimerInfo(deadline=deadline, reason=reason, mapping=mapping.id if mapping else None))
        return infos

    def __repr__(self) -> str:
        return f"<Client of {self._gateway[0]} version={self.version} mappings={len(self._mappings)}>"

    # --- commands

    def map_port(
        self,
        protocol: Protocol | int,
        internal_port: int,
        now: float,
        *,
        external_port: int = 0,
        external_address: str | IPAddress | None = None,
        lifetime: int = 7200,
        until: float | None = None,
        options: tuple[pcp.Option, ...] = (),
    ) -> MappingId:
        """Ask for a mapping, and keep it until `unmap`, `close`, or the time `until` (s, on the clock of `now`).

        `internal_port` is 1 to 65535, or 0 for all ports of the protocol (PCP). `external_port` and
        `external_address` are suggestions that the gateway need not follow; 0 and None leave the choice to it.
        `lifetime` (1 to 2**32-1 s) is what each request asks for; renewals follow the granted one. Mandatory
        `options` and other protocols than TCP and UDP need PCP.

        Emits: MappingGranted, MappingRefused or MappingFailed, then as `events` says.
        Raises: LocalProtocolError, before anything has changed: the same protocol and internal port is wanted
        already, a value is out of range, or the client is closed.
        RFC: 6886 section 3.3, 6887 section 11.2.
        """
        if self._closing:
            raise LocalProtocolError("the client is closed")
        wish = self._checked_wish(protocol, internal_port, external_port, external_address, lifetime, options)
        target = (wish.protocol, wish.internal_port)
        if target in self._wanted:
            raise LocalProtocolError(f"there is a mapping for {protocol!r} port {internal_port} already")
        if until is not None and not now < until < math.inf:
            raise LocalProtocolError(f"until must be finite and later than now ({now!r}), not {until!r}")
        now = self._advance(now)
        self._last_id += 1
        wish = attrs.evolve(wish, nonce=self._rng.randbytes(12))
        mapping = _Mapping(id=MappingId(self._last_id), wish=wish, until=until)
        self._mappings[mapping.id] = self._wanted[target] = mapping
        if until is not None:
            self._timers.set((Timer.DEADLINE, mapping), until)
        self._tasks.append((_Purpose.CREATE, mapping))
        self._pump(now)
        return mapping.id

    def unmap(self, mapping: MappingId, now: float) -> bool:
        """Give a mapping up and delete it at the gateway. False: it is finished, or on its way out, already.

        Emits: MappingReleased, in bounded time.
        RFC: 6886 section 3.4, 6887 section 15.1.
        """
        found = self._mappings.get(mapping)
        now = self._advance(now)
        if found is None or found.state is MappingState.RELEASING:
            return False
        self._release(found, None)
        self._pump(now)
        return True

    def close(self, now: float) -> None:
        """Release every mapping; Closed follows when they are gone. A second call does nothing."""
        now = self._advance(now)
        if self._closing:
            return
        self._closing = True
        for mapping in list(self._mappings.values()):
            if mapping.state is not MappingState.RELEASING:
                self._release(mapping, None)
        self._pump(now)

    def gateway_unreachable(self, now: float) -> None:
        """ICMP told us that nothing listens there: what is under way ends at once (RFC 6886 section 3.1).

        Emits: GatewayUnreachable, and MappingRefused for what was being asked for.
        """
        now = self._advance(now)
        if self._exchanges:
            self._give_up(Reason.UNREACHABLE, now)
            self._pump(now)

    # --- bytes and time in

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram. True: it came from the gateway and is an answer or announcement, if perhaps an invalid
        one, which is counted. False: it is somebody else's, and nothing has changed."""
        peer = peer_key(addr)
        if self._closed or peer is None or not same_host(peer, self._peer) or not is_response(data):
            return False
        try:
            message = decode(data)
        except DecodeError:
            message = None
        from_server = peer == self._peer
        dialect = self._dialects.get(data[0])
        outcome = dialect.read(message) if dialect and message else None
        if not from_server and not isinstance(outcome, AddressAnswer):
            return False  # only a NAT-PMP announcement may come from another port
        now = self._advance(now)
        if self._overflows():
            return True
        if message is None:
            self._invalid += 1
        elif (error := read_version_error(message)) is not None:
            self._on_version_error(error, now)
        elif dialect is None or outcome is None:
            self._unmatched += 1
        else:
            self._take(dialect, outcome, from_server, now)
        self._pump(now)
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due: send again, renew, expire, retry, recover."""
        now = self._advance(now)
        due = False
        overdue: dict[_Exchange, None] = {}  # last: what has ended by now is not sent again
        while (key := self._timers.pop_due(now)) is not None or overdue:
            due = True
            if key is None:
                exchange = next(iter(overdue))
                del overdue[exchange]
                if exchange in self._exchanges:
                    self._on_overdue(exchange, now)
                continue
            reason, about = key
            match reason:
                case Timer.RETRANSMIT:
                    overdue[typing.cast("_Exchange", about)] = None
                case Timer.FALLBACK:
                    self._on_fallback(now)
                case Timer.RECOVER:
                    self._on_recover(now)
                case Timer.ADDRESS:
                    self._tell_waiting_grants()
                case Timer.HOLD:
                    self._wake_after_hold(now)
                case _:
                    self._on_mapping_timer(reason, typing.cast("_Mapping", about), now)
        if due:
            self._pump(now)

    # --- answers

    def _take(self, dialect: Dialect, outcome: Outcome, from_server: bool, now: float) -> None:
        match outcome:
            case Announcement():
                self._heard(dialect, outcome.epoch, now)
                if (probe := self._probe_of(dialect)) is not None:
                    self._end(probe)
                    self._adopt(dialect, now)
            case AddressAnswer():
                probe = self._probe_of(dialect) if from_server else None
                if probe is None and outcome.address is None:
                    self._unmatched += 1  # an error that nobody asked for proves nothing, least of all an epoch
                    return
                self._heard(dialect, outcome.epoch, now)
                self._learn_address(outcome.address, now)
                if probe is not None:
                    self._end(probe)
                    self._adopt(dialect, now)
                    self._tell_waiting_grants()
            case _:
                self._on_map_answer(dialect, outcome, now)

    def _on_map_answer(self, dialect: Dialect, answer: MapAnswer, now: float) -> None:
        mapping = self._find(dialect, answer)
        if mapping is None:
            self._unmatched += 1
            return
        exchange = mapping.exchange
        awaited = exchange is not None and exchange.dialect is dialect
        if not awaited and not dialect.has_nonce:
            # A copy of an answer we had. Only its epoch is of use (RFC 6886 section 3.6).
            if mapping.dialect is dialect:
                self._heard(dialect, answer.epoch, now)
            else:
                self._unmatched += 1
            return
        if awaited and not dialect.has_nonce and mapping.state is not MappingState.RELEASING and answer.is_deletion:
            self._unmatched += 1  # a copy of the answer to an earlier delete of the same port
            return
        self._heard(dialect, answer.epoch, now)
        self._refused_versions.clear()
        self._adopt(dialect, now)
        if mapping.state is MappingState.RELEASING:
            self._on_delete_answer(dialect, mapping, answer, now)
        elif answer.reason is not None:
            self._on_refusal(mapping, answer.reason, answer.result_code, answer, now)
        elif answer.lifetime == 0 or (answer.external_port == 0 and mapping.wish.internal_port != 0):
            self._on_refusal(mapping, Reason.UNUSABLE_GRANT, answer.result_code, answer, now)
        else:
            self._on_grant(dialect, mapping, answer, now)

    def _on_grant(self, dialect: Dialect, mapping: _Mapping, answer: MapAnswer, now: float) -> None:
        self._end(mapping.exchange)
        mapping.move(_Input.GRANT)
        mapping.dialect = dialect
        mapping.generation = self._generation
        mapping.lifetime = float(min(answer.lifetime, self._config.max_lifetime))
        mapping.granted_at, mapping.expires_at = now, now + mapping.lifetime
        mapping.retry_at, mapping.renewals, mapping.hold_until = None, 0, -math.inf
        mapping.is_renewal_open = False
        self._timers.cancel((Timer.RETRY, mapping))
        self._timers.set((Timer.EXPIRE, mapping), mapping.expires_at)
        self._schedule_renewal(mapping, now)
        if answer.external_address is not None:
            mapping.follows_gateway = False
            self._learn_address(answer.external_address, now)
            self._tell_grant(mapping, Endpoint(answer.external_address, answer.external_port))
            return
        # NAT-PMP does not tell the address with the port: ask, unless it was told only just now.
        mapping.follows_gateway = True
        mapping.wish = attrs.evolve(mapping.wish, external=Endpoint(self._external_address, answer.external_port))
        if now - self._address_at >= _ADDRESS_FRESH:
            self._address_wanted = True
        if self._external_address is not None or mapping.told is not None:
            self._tell_grant(mapping, mapping.wish.external)
        else:
            self._timers.set((Timer.ADDRESS, mapping), now + _ADDRESS_WAIT)

    def _tell_grant(self, mapping: _Mapping, external: Endpoint) -> None:
        """Say what is true now of a held mapping: new, moved or renewed."""
        old, mapping.told = mapping.told, external
        mapping.wish = attrs.evolve(mapping.wish, external=external)
        self._timers.cancel((Timer.ADDRESS, mapping))
        about = mapping.about(self._gateway)
        about |= {"lifetime": mapping.lifetime, "expires_at": mapping.expires_at}
        if old is None:
            self._emit(MappingGranted(**about, external=external))
        elif old != external:
            self._emit(MappingChanged(**about, old=old, new=external))
        else:
            self._emit(MappingRenewed(**about, external=external))

    def _tell_waiting_grants(self) -> None:
        """Tell the grants that wait for an external address, which is known now or will not be soon."""
        for mapping in self._mappings.values():
            if mapping.state is MappingState.HELD and mapping.told is None:
                self._tell_grant(mapping, Endpoint(self._external_address, mapping.wish.external.port))

    def _on_refusal(self, mapping: _Mapping, reason: Reason, code: int | None, answer: MapAnswer, now: float) -> None:
        hold = self._bounded(answer.hold)
        exchange, asked = mapping.exchange, mapping.exchange is not None
        self._end(exchange)
        if answer.server_wide:  # RFC 6887 section 11.4
            self._hold_new_until = now + hold
            self._wake_after_hold(now)
        asked_to_renew = mapping.is_renewal_open if exchange is None else exchange.purpose is _Purpose.RENEW
        if mapping.state is MappingState.HELD and asked_to_renew:
            # The lease stands; the same request is not sent again within the error's lifetime (RFC 6887 section 8.3).
            mapping.hold_until, mapping.is_renewal_open = now + hold, False
            self._schedule_renewal(mapping, now + hold)
        elif mapping.state is MappingState.HELD:
            self._lose(mapping, reason, code, now + hold, now)
        elif asked and reason in _HOPELESS:
            self._finish(mapping, MappingFailed(**mapping.about(self._gateway), reason=reason, result_code=code))
        elif asked:
            self._refuse(mapping, reason, code, now + hold)

    def _on_delete_answer(self, dialect: Dialect, mapping: _Mapping, answer: MapAnswer, now: float) -> None:
        if answer.reason is None and not dialect.is_deleted(answer):
            return  # a late answer to a request to map; the delete is still on its way
        if answer.server_wide:  # RFC 6887 section 11.4
            self._hold_all_until = now + self._bounded(answer.hold)
            self._wake_after_hold(now)
        self._released(mapping, confirmed=answer.reason is None)

    def _on_version_error(self, error: VersionError, now: float) -> None:
        """Go over to the version offered, at once and with the same request (RFC 6886 section 1.1, 6887 section 9)."""
        offered = self._dialects.get(error.offered)
        affected = [exchange for exchange in self._exchanges if exchange.dialect is not offered]
        if self._is_proven_other_than(offered) or (not affected and offered is self._current) or not self._exchanges:
            # Not believed: who answered with our nonce speaks its version. Or nothing new: each request that was under
            # way draws its own error, and the first was enough.
            self._unmatched += 1
        elif offered is not None and affected and error.offered not in self._refused_versions:
            self._refused_versions.update(exchange.dialect.version for exchange in affected)
            self._contact()
            self._adopt(offered, now)
            self._is_certain = True
        else:
            self._refused_versions.clear()
            self._contact()
            self._current = None
            self._refuse_all(Reason.UNSUPPORTED_VERSION, 1, now + self._bounded(error.hold), now)

    def _find(self, dialect: Dialect, answer: MapAnswer) -> _Mapping | None:
        """The mapping that an answer is about."""
        if answer.internal_port is None:  # only the request under way can tell
            candidates = [exchange.mapping for exchange in self._exchanges if exchange.dialect is dialect]
        else:
            target = (answer.protocol, answer.internal_port)
            candidates = [self._releasing.get(target), self._wanted.get(target)]
        for mapping in candidates:
            if mapping is not None and dialect.is_for(answer, mapping.wish):
                return mapping
        return None

    def _heard(self, dialect: Dialect, epoch: int | None, now: float) -> None:
        """A believable datagram of the gateway: it is there, and its epoch says whether it lost its state."""
        self._contact()
        if self._current is not None and dialect is self._preferred and self._current is not dialect:
            self._current_until = now  # it speaks the preferred protocol after all: the next request tries it
        if epoch is None or not self._epochs[dialect.version].observe(epoch, now):
            return
        self._generation += 1
        if self._timers.deadline((Timer.RECOVER, None)) is None:
            at = max(now + recovery_delay(self._rng), self._last_recovery + self._config.recovery_interval)
            self._timers.set((Timer.RECOVER, None), at)
            self._emit(GatewayRestarted(gateway=self._gateway, recovery_at=at))

    def _contact(self) -> None:
        self._failures = 0
        self._silent_until = -math.inf
        if not self._unreachable:
            return
        self._unreachable = False
        self._emit(GatewayRecovered(gateway=self._gateway))
        for mapping in self._mappings.values():
            if mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, self._now)
            elif mapping.state is MappingState.HELD and mapping.exchange is None and mapping.is_renewal_open:
                self._schedule_renewal(mapping, self._now)  # it was put off

    def _learn_address(self, address: IPAddress | None, now: float) -> None:
        if address is None:
            return
        self._address_at = now
        old, self._external_address = self._external_address, address
        if old == address:
            return
        if old is None:
            self._emit(ExternalAddressLearned(gateway=self._gateway, address=address))
        else:
            self._emit(ExternalAddressChanged(gateway=self._gateway, old=old, new=address))
        for mapping in self._mappings.values():
            if mapping.state is MappingState.HELD and mapping.follows_gateway:
                self._tell_grant(mapping, Endpoint(address, mapping.wish.external.port))

    # --- versions

    def _is_proven_other_than(self, dialect: Dialect | None) -> bool:
        """Whether a lease in force was granted with a nonce in another dialect, which no forger could have done."""
        return any(
            m.state is MappingState.HELD and m.dialect is not None and m.dialect.has_nonce and m.dialect is not dialect
            for m in self._mappings.values()
        )

    @property
    def _preferred(self) -> Dialect:
        return next(iter(self._dialects.values()))

    def _make_dialects(self) -> dict[int, Dialect]:
        known: dict[int, Dialect] = {2: PcpDialect(self._local, self._rng), 0: NatPmpDialect()}
        six = self._local.version == 6
        dialects = {version: known[version] for version in self._config.versions if version == 2 or not six}
        if not dialects:
            raise LocalProtocolError("NAT-PMP is for IPv4; an IPv6 gateway needs version 2 in Config.versions")
        return dialects

    def _speaking(self, now: float) -> Dialect:
        """The dialect for the next request. A lesser one is soon forgotten again (RFC 6886 section 1.1)."""
        if self._current is None or now >= self._current_until:
            self._current = None
            return self._preferred
        return self._current

    def _adopt(self, dialect: Dialect, now: float) -> None:
        """The gateway speaks this. What waits for an answer in another dialect is asked again in this one."""
        if self._current is dialect:
            return
        self._current = dialect
        self._is_certain = dialect is self._preferred
        self._current_until = math.inf if dialect is self._preferred else now + self._config.version_memory
        self._timers.cancel((Timer.FALLBACK, None))
        if self._told_version != dialect.version:
            if dialect is self._preferred:  # what was refused in a lesser protocol may be granted in this one
                for refused in self._mappings.values():
                    if refused.state is MappingState.REFUSED:
                        self._retry_later(refused, now)
            self._told_version = dialect.version
            self._emit(VersionNegotiated(gateway=self._gateway, version=dialect.version))
        again = []
        for exchange in [exchange for exchange in self._exchanges if exchange.dialect is not dialect]:
            mapping = exchange.mapping
            if exchange.purpose is _Purpose.DELETE and mapping is not None and mapping.dialect is exchange.dialect:
                continue  # it can be deleted in no other
            self._end(exchange)
            if mapping is not None:
                again.append((exchange.purpose, mapping))
        self._tasks.extendleft(reversed(again))

    def _on_fallback(self, now: float) -> None:
        """Ask in the other dialects as well, with a request that changes nothing there, and once more in the preferred
        one, so that a single lost datagram does not decide."""
        if not self._is_asking:
            return
        for dialect in self._dialects.values():
            if dialect is self._preferred:
                continue
            if not self._has_room(dialect):
                self._timers.set((Timer.FALLBACK, None), now + _FALLBACK_RETRY)
                continue
            for first in self._exchanges:  # a renewal is a single packet (RFC 6887 section 11.2.1)
                if first.dialect is self._preferred and first.purpose in (_Purpose.CREATE, _Purpose.RECOVER):
                    self._send(first.data, self._gateway, first)
                    break
            self._start(_Purpose.PROBE, None, dialect, now)

    # --- time

    def _on_overdue(self, exchange: _Exchange, now: float) -> None:
        if exchange.limit is None or exchange.attempts < exchange.limit:
            self._transmit(exchange, now)
            if exchange.attempts == exchange.dialect.patience + 1:
                self._on_patience_over(exchange, now)
            return
        mapping = exchange.mapping
        self._end(exchange)
        if exchange.purpose is _Purpose.ADDRESS:
            self._tell_waiting_grants()
        elif mapping is None:
            self._give_up(Reason.NO_ANSWER, now)  # silent to both
        elif exchange.purpose is _Purpose.DELETE:
            self._released(mapping, confirmed=False)
        elif mapping.state is MappingState.HELD:
            if exchange.dialect.renewal_attempts > 1:
                self._lose_contact(Reason.NO_ANSWER)
            self._ask_again(mapping, now, now + self._config.min_hold)
        else:
            self._give_up(Reason.NO_ANSWER, now)

    def _on_patience_over(self, exchange: _Exchange, now: float) -> None:
        """A request that is sent for ever has met with silence for long enough to say so."""
        mapping = exchange.mapping
        if mapping is None or mapping.state is not MappingState.REQUESTING:
            return
        if self._current is not None and not self._current.supports(mapping.wish):
            about = mapping.about(self._gateway)
            self._finish(mapping, MappingFailed(**about, reason=Reason.NEEDS_PCP, result_code=None))
            return
        if any(other.purpose is _Purpose.PROBE for other in self._exchanges):
            return  # the verdict comes when the other dialect has met with silence, too
        if self._may_fall_back and not self._is_proven_other_than(None):
            self._current = None  # it answered once, and may have been replaced
            self._on_fallback(now)
            return
        self._lose_contact(Reason.NO_ANSWER)
        about = mapping.about(self._gateway) | {"reason": Reason.NO_ANSWER, "result_code": None}
        self._emit(MappingRefused(**about, retry_at=now + exchange.wait))

    def _on_mapping_timer(self, reason: Timer, mapping: _Mapping, now: float) -> None:
        match reason:
            case Timer.RENEW:
                mapping.renew_at = None
                if mapping.exchange is None:
                    self._tasks.append((_Purpose.RENEW, mapping))
            case Timer.EXPIRE:
                self._lose(mapping, Reason.EXPIRED, None, max(now, mapping.hold_until), now)
            case Timer.RETRY:
                mapping.move(_Input.RETRY)
                mapping.retry_at = None
                self._tasks.append((_Purpose.CREATE, mapping))
            case _:
                about = mapping.about(self._gateway)
                self._release(mapping, MappingFailed(**about, reason=Reason.DEADLINE, result_code=None))

    def _on_recover(self, now: float) -> None:
        """Ask for everything again that was granted before the gateway lost its state (RFC 6887 section 14.1.3)."""
        self._last_recovery = now
        for mapping in self._mappings.values():
            if mapping.state is MappingState.HELD and mapping.generation < self._generation:
                self._end(mapping.exchange)
                self._tasks.append((_Purpose.RECOVER, mapping))
            elif mapping.state is MappingState.REFUSED:
                self._retry_later(mapping, now)

    def _schedule_renewal(self, mapping: _Mapping, earliest: float) -> None:
        """The next try to renew that is not before `earliest`; none if the lease is over by then."""
        dialect = mapping.dialect
        assert dialect is not None
        mapping.renew_at = None
        self._timers.cancel((Timer.RENEW, mapping))
        earliest = max(earliest, mapping.no_renewal_before)
        if mapping.until is not None and mapping.expires_at >= mapping.until:
            return  # it lasts as long as it is wanted
        attempt = mapping.renewals
        while earliest < mapping.expires_at:
            attempt += 1
            at = mapping.granted_at + dialect.renewal(attempt, mapping.lifetime)
            if at >= earliest:
                mapping.renew_at, mapping.next_renewal = at, attempt
                self._timers.set((Timer.RENEW, mapping), at)
                return

    def _ask_again(self, mapping: _Mapping, renew_after: float, recover_at: float) -> None:
        """Nobody answered the request of a mapping that is held: renew later, or recover if the gateway lost it."""
        if mapping.generation == self._generation:
            self._schedule_renewal(mapping, renew_after)
        else:
            due = self._timers.deadline((Timer.RECOVER, None))
            self._timers.set((Timer.RECOVER, None), recover_at if due is None else min(due, recover_at))

    def _give_up(self, reason: Reason, now: float) -> None:
        """The gateway does not answer at all: end what is under way, and try again after a growing wait."""
        hold = min(self._config.min_hold * 2.0**self._failures, self._config.max_hold)
        self._failures = min(self._failures + 1, 16)
        self._silent_reason, self._silent_until = reason, now + hold
        self._current = None
        self._timers.cancel((Timer.FALLBACK, None))
        self._lose_contact(reason)
        self._refuse_all(reason, None, now + hold, now)

    def _refuse_all(self, reason: Reason, code: int | None, retry_at: float, now: float) -> None:
        for exchange in list(self._exchanges):
            self._end(exchange)
            mapping = exchange.mapping
            if mapping is None:
                continue
            if mapping.state is MappingState.RELEASING:
                self._released(mapping, confirmed=False)
            elif mapping.state is MappingState.HELD:
                self._ask_again(mapping, min(retry_at, (now + mapping.expires_at) / 2), retry_at)
        for mapping in list(self._mappings.values()):
            if mapping.state is MappingState.REQUESTING:
                self._refuse(mapping, reason, code, retry_at)
            elif mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, retry_at)
        self._tasks = deque(task for task in self._tasks if task[1].state is not MappingState.REFUSED)

    def _bounded(self, hold: float) -> float:
        """An error's lifetime as far as it is believed (RFC 6887 section 8.3): some gateways send 0."""
        return min(max(hold, self._config.min_hold), self._config.max_hold)

    def _wake_after_hold(self, now: float) -> None:
        holds = [until for until in (self._hold_new_until, self._hold_all_until) if until > now]
        if holds:
            self._timers.set((Timer.HOLD, None), min(holds))

    def _lose_contact(self, reason: Reason) -> None:
        if not self._unreachable:
            self._unreachable = True
            self._emit(GatewayUnreachable(gateway=self._gateway, reason=reason))

    # --- ends of a mapping

    def _refuse(self, mapping: _Mapping, reason: Reason, code: int | None, retry_at: float) -> None:
        mapping.move(_Input.REFUSE)
        mapping.refused_by_silence = code is None
        mapping.maybe_there = mapping.maybe_there and code is None
        self._retry_later(mapping, retry_at)
        about = mapping.about(self._gateway)
        self._emit(MappingRefused(**about, reason=reason, result_code=code, retry_at=retry_at))

    def _lose(self, mapping: _Mapping, reason: Reason, code: int | None, retry_at: float, now: float) -> None:
        self._end(mapping.exchange)
        mapping.move(_Input.LOSE)
        mapping.refused_by_silence = mapping.maybe_there = False
        mapping.told = mapping.renew_at = None
        for timer in (Timer.EXPIRE, Timer.RENEW, Timer.ADDRESS):
            self._timers.cancel((timer, mapping))
        mapping.dialect = None
        if not any(other.state is MappingState.HELD for other in self._mappings.values()):
            self._current = None  # nothing proves any more which version it speaks
        about = mapping.about(self._gateway)
        self._emit(MappingLost(**about, reason=reason, result_code=code, retry_at=retry_at))
        self._retry_later(mapping, retry_at)

    def _retry_later(self, mapping: _Mapping, retry_at: float) -> None:
        mapping.retry_at = retry_at
        self._timers.set((Timer.RETRY, mapping), retry_at)

    def _release(self, mapping: _Mapping, ending: MappingFailed | None) -> None:
        """Delete it at the gateway if it may be there; `ending` is the terminal event, else MappingReleased."""
        self._end(mapping.exchange)
        mapping.move(_Input.RELEASE)
        mapping.ending = ending
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        target = mapping.target
        del self._wanted[target]
        if mapping.maybe_there:
            self._releasing[target] = mapping
            self._tasks.append((_Purpose.DELETE, mapping))
        else:
            self._released(mapping, confirmed=True)

    def _released(self, mapping: _Mapping, *, confirmed: bool) -> None:
        released = MappingReleased(**mapping.about(self._gateway), confirmed=confirmed)
        self._finish(mapping, mapping.ending or released)

    def _finish(self, mapping: _Mapping, event: MappingFailed | MappingReleased) -> None:
        self._end(mapping.exchange)
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        for table in (self._wanted, self._releasing):
            if table.get(mapping.target) is mapping:
                del table[mapping.target]
        del self._mappings[mapping.id]
        self._emit(event)

    # --- exchanges

    def _pump(self, now: float) -> None:
        """Start what waits, in order, as far as the dialect lets requests be under way."""
        self._end_idle_questions()
        if self._address_wanted and not self._closing and (teller := self._address_teller()) and self._has_room(teller):
            self._address_wanted = False
            self._start(_Purpose.ADDRESS, None, teller, now)
        put_off = []
        while self._tasks and (now >= self._hold_all_until or self._closing):
            purpose, mapping = self._tasks[0]
            if mapping.id in self._mappings and mapping.has_use_for(purpose, self._generation):
                dialect = self._speaking(now)
                if not self._is_certain and not dialect.supports(mapping.wish):
                    dialect = self._preferred  # it was silent, which proves nothing; what needs PCP is worth a wait
                if purpose is _Purpose.DELETE and mapping.dialect is not None:
                    dialect = mapping.dialect
                if not self._has_room(dialect):
                    break
                if purpose is _Purpose.CREATE and self._has_to_wait(mapping, now):
                    put_off.append((purpose, mapping))
                else:
                    self._start_task(purpose, mapping, dialect, now)
            self._tasks.popleft()
        self._tasks.extendleft(reversed(put_off))
        if self._closing and not self._mappings and not self._closed:
            self._finish_closing()

    def _end_idle_questions(self) -> None:
        """End what nobody wants to know any more, before it takes the place of another request."""
        idle = set() if self._is_asking else {_Purpose.PROBE}
        if self._closing:
            idle.add(_Purpose.ADDRESS)
        for exchange in [exchange for exchange in self._exchanges if exchange.purpose in idle]:
            self._end(exchange)

    @property
    def _is_asking(self) -> bool:
        """Whether some mapping that is still wanted waits for an answer."""
        return any(exchange.purpose in _ASKING for exchange in self._exchanges)

    def _has_to_wait(self, mapping: _Mapping, now: float) -> bool:
        """Whether a new request must wait: the gateway has no room, or still deletes another for the same port."""
        return now < self._hold_new_until or mapping.target in self._releasing

    def _start_task(self, purpose: _Purpose, mapping: _Mapping, dialect: Dialect, now: float) -> None:
        if purpose is _Purpose.CREATE and now < self._silent_until:
            self._refuse(mapping, self._silent_reason, None, self._silent_until)
        elif dialect.supports(mapping.wish):
            self._start(purpose, mapping, dialect, now)
        elif purpose is _Purpose.DELETE:  # the gateway cannot have it
            self._released(mapping, confirmed=False)
        else:
            about = mapping.about(self._gateway)
            self._finish(mapping, MappingFailed(**about, reason=Reason.NEEDS_PCP, result_code=None))

    def _finish_closing(self) -> None:
        self._timers.clear()
        self._closed = True
        self._emit(Closed(gateway=self._gateway))

    def _has_room(self, dialect: Dialect) -> bool:
        under_way = sum(exchange.dialect is dialect for exchange in self._exchanges)
        return under_way < (1 if dialect.serial else self._config.window)

    def _address_teller(self) -> Dialect | None:
        """The dialect in which the gateway can be asked for its address alone, if we speak it."""
        held = [m.dialect for m in self._mappings.values() if m.state is MappingState.HELD and m.follows_gateway]
        return held[0] if held else None

    def _probe_of(self, dialect: Dialect) -> _Exchange | None:
        """The request under way that asks for nothing but a sign of life or the address."""
        for exchange in self._exchanges:
            if exchange.mapping is None and exchange.dialect is dialect:
                return exchange
        return None

    @property
    def _may_fall_back(self) -> bool:
        return len(self._dialects) > 1 and not self._config.strict

    def _start(self, purpose: _Purpose, mapping: _Mapping | None, dialect: Dialect, now: float) -> None:
        limit = dialect.attempts
        if mapping is None:
            data = dialect.probe_request()
            limit = _ADDRESS_ATTEMPTS if purpose is _Purpose.ADDRESS else limit
        elif purpose is _Purpose.DELETE:
            data = dialect.delete_request(mapping.wish)
            limit = self._config.delete_attempts if mapping.dialect is not None else 1
        else:
            wish = mapping.wish
            if mapping.until is not None:
                wish = attrs.evolve(wish, lifetime=min(wish.lifetime, max(1, math.ceil(mapping.until - now))))
            data = dialect.map_request(wish)
            mapping.maybe_there = True
            if purpose is _Purpose.RENEW:
                limit, mapping.renewals = dialect.renewal_attempts, mapping.next_renewal
                # The gap of the dialect in which it is asked, not of that in which it was granted.
                mapping.is_renewal_open, mapping.no_renewal_before = True, now + dialect.renewal_gap
        exchange = _Exchange(purpose=purpose, mapping=mapping, dialect=dialect, data=data, limit=limit)
        self._exchanges[exchange] = None
        if mapping is not None:
            mapping.exchange = exchange
        if self._current is None and dialect is self._preferred and self._may_fall_back:
            fallback = (Timer.FALLBACK, None)
            if self._timers.deadline(fallback) is None and not any(
                other.dialect is not dialect for other in self._exchanges
            ):
                self._timers.set(fallback, now + self._config.fallback_delay)
        self._transmit(exchange, now)

    def _transmit(self, exchange: _Exchange, now: float) -> None:
        exchange.attempts += 1
        exchange.wait = exchange.dialect.wait(exchange.attempts, exchange.wait or None)
        self._send(exchange.data, self._gateway, exchange)
        self._timers.set((Timer.RETRANSMIT, exchange), now + exchange.wait)

    def _end(self, exchange: _Exchange | None) -> None:
        if exchange is None:
            return
        self._exchanges.pop(exchange, None)
        self._timers.cancel((Timer.RETRANSMIT, exchange))
        if exchange.mapping is not None:
            exchange.mapping.exchange = None

    def _checked_wish(
        self,
        protocol: Protocol | int,
        internal_port: int,
        external_port: int,
        external_address: str | IPAddress | None,
        lifetime: int,
        options: tuple[pcp.Option, ...],
    ) -> Wish:
        address = None if external_address is None else to_address(external_address)
        request = pcp.MapRequest(
            self._local,
            bytes(12),
            protocol,
            internal_port,
            external_port,
            lifetime=lifetime,
            options=tuple(options),
        )
        if lifetime == 0:
            raise LocalProtocolError(f"lifetime must be from 1 to {MAX_LIFETIME} s; to delete a mapping, unmap it")
        return Wish(
            protocol=to_protocol(protocol),
            internal_port=internal_port,
            external=Endpoint(address, external_port),
            lifetime=lifetime,
            nonce=request.nonce,
            options=request.options,
        )


class _Input(enum.Enum):
    GRANT = enum.auto()
    REFUSE = enum.auto()
    LOSE = enum.auto()
    RETRY = enum.auto()
    RELEASE = enum.auto()


_TRANSITIONS = {
    (MappingState.REQUESTING, _Input.GRANT): MappingState.HELD,
    (MappingState.REQUESTING, _Input.REFUSE): MappingState.REFUSED,
    (MappingState.REQUESTING, _Input.RELEASE): MappingState.RELEASING,
    (MappingState.HELD, _Input.GRANT): MappingState.HELD,
    (MappingState.HELD, _Input.LOSE): MappingState.REFUSED,
    (MappingState.HELD, _Input.RELEASE): MappingState.RELEASING,
    (MappingState.REFUSED, _Input.GRANT): MappingState.HELD,  # the gateway changed its mind unasked
    (MappingState.REFUSED, _Input.RETRY): MappingState.REQUESTING,
    (MappingState.REFUSED, _Input.RELEASE): MappingState.RELEASING,
}
"""The life of a mapping. What is not here cannot happen."""


class _Purpose(enum.Enum):
    CREATE = enum.auto()
    RENEW = enum.auto()
    RECOVER = enum.auto()
    DELETE = enum.auto()
    ADDRESS = enum.auto()
    PROBE = enum.auto()


_Target = tuple[Protocol | int, int]


@attrs.define(kw_only=True, eq=False, repr=False)
class _Mapping:
    """What the client knows of one mapping."""

    id: MappingId
    wish: Wish  # its `external` is what to suggest: the caller's wish at first, then what was granted
    until: float | None
    state: MappingState = MappingState.REQUESTING
    exchange: _Exchange | None = None
    dialect: Dialect | None = None  # in which it was granted
    told: Endpoint | None = None  # the endpoint of the last event, while it holds
    follows_gateway: bool = False  # its external address is the gateway's, which is told apart from the grant
    maybe_there: bool = False  # the gateway may have it
    generation: int = 0
    lifetime: float = 0.0
    granted_at: float = 0.0
    expires_at: float = 0.0
    renew_at: float | None = None
    renewals: int = 0  # how many times it should have been renewed when it was last tried
    next_renewal: int = 0
    no_renewal_before: float = -math.inf
    is_renewal_open: bool = False  # a renewal was sent, and neither granted nor refused
    retry_at: float | None = None
    hold_until: float = -math.inf
    refused_by_silence: bool = False
    ending: MappingFailed | None = None

    @property
    def target(self) -> _Target:
        return (self.wish.protocol, self.wish.internal_port)

    def has_use_for(self, purpose: _Purpose, generation: int) -> bool:
        """Whether a queued task is still to be done."""
        if self.exchange is not None:
            return False
        match purpose:
            case _Purpose.CREATE:
                return self.state is MappingState.REQUESTING
            case _Purpose.RENEW:
                is_due = self.renew_at is None and self.generation == generation  # else a recovery does it
                return self.state is MappingState.HELD and is_due
            case _Purpose.RECOVER:
                return self.state is MappingState.HELD and self.generation < generation
            case _:
                return self.state is MappingState.RELEASING

    def move(self, what: _Input) -> None:
        self.state = _TRANSITIONS[self.state, what]

    def about(self, gateway: Address) -> dict[str, typing.Any]:
        """The fields that every event of a mapping has."""
        protocol, port = self.target
        return {"gateway": gateway, "mapping": self.id, "protocol": protocol, "internal_port": port}

    def look(self) -> Mapping:
        held = self.state is MappingState.HELD
        return Mapping(
            id=self.id,
            state=self.state,
            protocol=self.wish.protocol,
            internal_port=self.wish.internal_port,
            remote=None,
            external=self.told if held else None,
            lifetime=self.lifetime if held else None,
            expires_at=self.expires_at if held else None,
            renew_at=self.renew_at,
            retry_at=self.retry_at,
            options=self.wish.options,
        )


@attrs.define(kw_only=True, eq=False, repr=False)
class _Exchange:
    """One request and the wait for its answer."""

    purpose: _Purpose
    mapping: _Mapping | None
    dialect: Dialect
    data: bytes
    limit: int | None
    attempts: int = 0
    wait: float = 0.0


_FALLBACK_RETRY = 1.0  # s until the other dialect is tried again that had no room
_ASKING = (_Purpose.CREATE, _Purpose.RENEW, _Purpose.RECOVER)
_TimerKey = tuple[Timer, "_Mapping | _Exchange | None"]

_HOPELESS = frozenset({Reason.UNSUPPORTED_OPTION, Reason.UNSUPPORTED_PROTOCOL})
_ADDRESS_FRESH = 60.0  # s for which a NAT-PMP gateway is not asked for its address again
_ADDRESS_ATTEMPTS = 4  # before the question for the address makes room for other requests
_ADDRESS_WAIT = 2.0  # s for which a NAT-PMP grant waits for the external address before it is told without
