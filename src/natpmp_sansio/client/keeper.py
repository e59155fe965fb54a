"""What keeps a client's mappings: bytes and time in, and all that follows from them.

Theory of operation. A mapping is a spec with a state (the table in `lifecycle.py`). Whenever something has to be asked
for it, a task goes into one queue; `_pump` starts tasks as far as the dialect allows requests to be under way. A
started task is an exchange: one datagram, sent again on the dialect's schedule until it is answered, given up or
overtaken. Every answer is matched, run through the epoch check, and only then believed.

The gateway's losses of state are counted in generations: what was granted in an earlier one is asked for again.
`client.py` adds what a caller can say and ask.
"""

from __future__ import annotations

import math
import random
import typing
from collections import Counter, deque
from collections.abc import Callable, Sequence

import attrs

from ..config import Config
from ..core.machine import Machine
from ..core.socket_address import PeerKey, checked_addresses, checked_local, peer_key, peers_of, same_host
from ..events import (
    Address,
    Closed,
    DoubleNatSuspected,
    Event,
    ExternalAddressChanged,
    ExternalAddressLearned,
    Finding,
    GatewayRecovered,
    GatewayRestarted,
    GatewayUnreachable,
    MappingFailed,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    PairSplit,
    Reason,
    VersionNegotiated,
)
from ..stats import Rejected, Tolerated
from ..wire import Message, is_response, pcp
from ..wire.fields import IPAddress, any_address
from .dialects import (
    AddressAnswer,
    Announcement,
    Dialect,
    MapAnswer,
    Outcome,
    VersionError,
    read_message,
    read_version_error,
)
from .lifecycle import (
    ASKING,
    CREATE,
    DELETING,
    RENEW,
    Exchange,
    Input,
    MappingState,
    Pair,
    Purpose,
    Timer,
    Tracked,
    UnderWay,
    limit_of,
)
from .probe import Diagnosis, reason_of
from .schedules import MIN_RENEWAL_GAP, recovery_delay
from .spec import Target
from .versions import Speech

TimerKey = tuple[Timer, Tracked | None] | Exchange  # an exchange waits for one thing alone: to be sent again
Task = tuple[Purpose, Tracked]


class Keeper(Machine[TimerKey]):
    """Keeps what is wanted at one gateway. See `Client`."""

    def __init__(
        self,
        gateway: Address | Sequence[Address],
        *,
        local_address: str | IPAddress,
        config: Config | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._config = config or Config()
        self._rng = rng or random.SystemRandom()
        self._addresses = checked_addresses(gateway)
        self._peers = peers_of(self._addresses)
        self._at = 0  # which of them is in use
        self._tried = 1  # how many of them, since the last answer
        self._unanswered = 0  # renewals in a row, at this address
        self._local = checked_local(local_address)
        self._jitter = rng or random.Random()  # which need not be a secret: the system's takes as long as a datagram
        self._speech = Speech(self._local, self._config, self._jitter)

        self._mappings: dict[MappingId, Tracked] = {}
        self._wanted: dict[Target, Tracked] = {}
        self._releasing: dict[Target, Tracked] = {}  # what another request for the same target waits for
        self._by_nonce: dict[bytes, Tracked] = {}
        self._port_sets: dict[MappingId, Tracked] = {}
        self._nameless: dict[Tracked, None] = {}  # held, and waiting for the external address to be told
        self._last_id = 0
        self._tasks: deque[Task] = deque()
        self._put_off: deque[Task] = deque()
        self._exchanges = UnderWay()
        self._diagnosis: Diagnosis | None = None

        self._external_address: IPAddress | None = None
        self._prefixes: tuple[pcp.Prefix64, ...] = ()
        self._address_wanted = False
        self._address_asked = False  # by the caller, who gets an event even if it is the same
        self._address_at = -math.inf

        self._failures = 0
        self._silent_reason = Reason.NO_ANSWER
        self._silent_until = -math.inf
        self._unreachable = False
        self._hold_new_until = -math.inf
        self._hold_all_until = -math.inf
        self._generation = 0  # how often the gateway has, or may have, lost its state
        self._lost_generation = 0  # when it certainly had
        self._is_restart_told = False
        self._last_recovery = -math.inf  # from a certain loss; from a doubtful one:
        self._last_confirmation = -math.inf
        self._last_announcement = -math.inf
        self._last_comeback = -math.inf
        self._closing = False
        self._closed = False
        self._rejected: Counter[Rejected] = Counter()
        self._tolerated: Counter[Tolerated] = Counter()

    @property
    def gateway(self) -> Address:
        """Where requests go now."""
        return self._addresses[self._at]

    # --- bytes and time in

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram. True: it came from the gateway and is an answer or announcement, if perhaps an invalid
        one, which is counted. False: it is somebody else's, and nothing has changed."""
        # Nearly all that comes is from where requests go, and an address takes long to be read.
        peer = self._peers[self._at] if addr == self._addresses[self._at] else peer_key(addr)
        is_server = peer in self._peers
        if self._closed or peer is None or not (is_server or any(same_host(peer, known) for known in self._peers)):
            return False
        regular = data if is_response(data) else self._mend(data, peer)
        if regular is None:
            return False
        message = read_message(regular)
        dialect = self._speech.dialects.get(regular[0])
        outcome = dialect.read(message) if dialect and message else None
        if not is_server and not isinstance(outcome, AddressAnswer):
            return False  # only a NAT-PMP announcement may come from another port
        now = self._advance(now)
        if self._queue.overflows():
            return True
        if regular is not data:
            self._tolerated[Tolerated.RESPONSE_BIT_MISSING] += 1
        elif message is not None and message.received is not None:
            self._tolerated[Tolerated.IRREGULAR] += 1
        self._sort(peer, message, dialect, outcome, now)
        self._pump(now)
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due: send again, renew, expire, retry, recover."""
        now = self._advance(now)
        overdue: deque[Exchange] = deque()
        due = False
        while (key := self._timers.pop_due(now)) is not None or overdue:
            due = True
            if key is None:  # last, because what has ended by now is not sent again
                self._on_overdue(overdue.popleft(), now)
            elif isinstance(key, Exchange):
                overdue.append(key)
            else:
                self._on_timer(*key, now)
        if due:
            self._pump(now)

    # --- answers

    def _mend(self, data: bytes, peer: PeerKey) -> bytes | None:
        """A NAT-PMP answer without the response bit, with it, while any answer is awaited. Changes nothing."""
        if self._config.strict or len(data) < 2 or peer != self._peers[self._at]:
            return None
        dialect = self._speech.dialects.get(data[0])
        if dialect is None or not self._exchanges:
            return None
        return dialect.mend(data, is_awaited=any(exchange.dialect is dialect for exchange in self._exchanges))

    def _sort(
        self, peer: PeerKey, message: Message | None, dialect: Dialect | None, outcome: Outcome | None, now: float
    ) -> None:
        current = self._peers[self._at]
        if dialect is not None and peer == current and isinstance(outcome, MapAnswer) and outcome.reason is None:
            self._on_map_answer(dialect, outcome, now)  # nearly always: all that follows is soon ruled out
        elif peer != current and (peer in self._peers or not same_host(peer, current)):
            self._rejected[Rejected.GIVEN_UP] += 1
        elif message is not None and (error := read_version_error(message)) is not None:
            self._on_version_error(error, now)
        elif dialect is None or outcome is None:
            self._on_fragment(dialect, Rejected.MALFORMED if message is None else Rejected.UNKNOWN, now)
        else:
            self._take(dialect, outcome, peer == current, now)

    def _take(self, dialect: Dialect, outcome: Outcome, from_server: bool, now: float) -> None:
        if isinstance(outcome, MapAnswer):
            self._on_map_answer(dialect, outcome, now)
            return
        open_here = self._exchanges if from_server else ()
        questions = [each for each in open_here if each.mapping is None and each.dialect is dialect]
        if not questions and outcome.reason is not None:
            self._rejected[Rejected.UNASKED] += 1  # it proves nothing, least of all an epoch
            return
        has_lost = self._heard(dialect, outcome.epoch, now)
        if isinstance(outcome, Announcement):
            self._learn_prefixes(outcome.options)
        elif questions or not self._speech.is_proven_other_than(dialect):
            self._learn_address(outcome.address, now)
        elif outcome.address != self._external_address:
            self._suspect(now)  # anybody might say so; the answers to the renewals have a nonce
        for question in questions:
            self._on_question_answered(question, outcome, now)
        if not questions:
            self._on_announcement(has_lost, now)

    def _on_question_answered(self, question: Exchange, outcome: AddressAnswer | Announcement, now: float) -> None:
        dialect = question.dialect
        self._end(question)
        if question.attempts > 1:
            self._last_announcement = now  # what comes twice looks like an announcement
        if question.purpose is Purpose.DIAGNOSE:
            self._found(question, outcome.reason, outcome.result_code, outcome.epoch, now)
            return
        self._adopt(dialect, now)
        if dialect.tells_address:
            self._tell_waiting_grants()

    def _on_announcement(self, has_lost: bool, now: float) -> None:
        """A gateway may lose its state and count on (field notes): what it announces for no visible reason is a reason
        to confirm every mapping, once for all the copies, which come up to 64 s apart (RFC 6886 section 3.2.1)."""
        is_new = now - self._last_announcement > _BURST
        self._last_announcement = now
        if is_new and not has_lost and not self._config.strict and self._speech.has_leases:
            self._tolerated[Tolerated.QUIET_ANNOUNCEMENT] += 1
            self._suspect(now)

    def _on_fragment(self, dialect: Dialect | None, why: Rejected, now: float) -> None:
        """Octets of the better protocol that say nothing, in answer to the lesser one, still say that it is spoken."""
        others = {exchange.dialect is not dialect for exchange in self._exchanges}
        if dialect is not None and dialect.has_nonce and others == {True} and not self._config.strict:
            self._tolerated[Tolerated.FRAGMENT] += 1
            self._on_version_error(VersionError(offered=dialect.version, hold=self._config.max_hold), now)
        else:
            self._rejected[why] += 1

    def _on_map_answer(self, dialect: Dialect, answer: MapAnswer, now: float) -> None:
        mapping = self._find(dialect, answer)
        if mapping is None:
            self._on_unmatched(dialect, answer, now)
            return
        exchange = mapping.exchange
        awaited = exchange is not None and exchange.dialect is dialect
        is_deleting = exchange is not None and exchange.purpose in DELETING
        if not awaited and not dialect.has_nonce:
            # A copy of an answer we had. Only its epoch is of use (RFC 6886 section 3.6).
            self._rejected[Rejected.OLD] += 1
            if mapping.dialect is dialect:
                self._heard(dialect, answer.epoch, now)
            return
        if exchange is not None and not dialect.has_nonce and not is_deleting and answer.is_deletion:
            exchange.mismatches += 1
            if exchange.mismatches <= self._config.delete_attempts:
                self._rejected[Rejected.OLD] += 1  # a copy of the answer to an earlier delete of the same port
                return
        has_lost = self._heard(dialect, answer.epoch, now)
        self._speech.refused_versions.clear()
        if not is_deleting or mapping.dialect is not dialect:  # it is deleted in its own, whatever is spoken by now
            self._adopt(dialect, now)
        self._believe(dialect, mapping, answer, awaited, is_deleting, now)
        if has_lost and not awaited:
            mapping.generation -= 1  # it may be a late copy, from before the loss that it seems to show

    def _believe(
        self, dialect: Dialect, mapping: Tracked, answer: MapAnswer, awaited: bool, is_deleting: bool, now: float
    ) -> None:
        """What an answer that is about this mapping, and from the gateway, says."""
        if answer.reason is Reason.OTHER:
            self._tolerated[Tolerated.UNKNOWN_RESULT] += 1
        if mapping.is_releasing and not is_deleting and not answer.is_deletion:
            self._rejected[Rejected.OLD] += 1  # to a request before the delete, which is still to come
        elif is_deleting or mapping.is_releasing:
            self._on_delete_answer(dialect, mapping, answer, now)
        elif answer.reason is not None:
            self._on_refusal(mapping, answer.reason, answer, now)
        elif not awaited and answer.lifetime == 0:
            self._on_refusal(mapping, Reason.DELETED, answer, now)
        elif answer.lifetime == 0 or (answer.external_port == 0 and mapping.spec.internal_port != 0):
            self._tolerated[Tolerated.UNUSABLE_GRANT] += 1
            self._on_refusal(mapping, Reason.UNUSABLE_GRANT, answer, now)
        elif not awaited and mapping.knows(answer, now):
            self._rejected[Rejected.OLD] += 1
        elif mapping.spec.prefers_failure and not mapping.spec.is_met_by(answer.external):
            self._on_other_endpoint(mapping, answer, now)
        else:
            self._on_grant(dialect, mapping, answer, now)

    def _on_unmatched(self, dialect: Dialect, answer: MapAnswer, now: float) -> None:
        awaited = [each.mapping for each in self._exchanges if each.purpose in ASKING and each.dialect is dialect]
        cut = [mapping for mapping in awaited if mapping and dialect.is_cut(answer, mapping.spec)]
        if cut and answer.reason is None and not self._config.strict:
            # It is mapped, but nobody can say where: what is left of the external port is not to be told.
            self._tolerated[Tolerated.PORT_CUT] += 1
            self._on_refusal(cut[0], Reason.UNUSABLE_GRANT, answer, now)
        else:
            self._rejected[Rejected.UNASKED] += 1

    def _on_grant(self, dialect: Dialect, mapping: Tracked, answer: MapAnswer, now: float) -> None:
        purpose = mapping.exchange.purpose if mapping.exchange else None
        self._end(mapping.exchange)
        if answer.lifetime > self._config.max_lifetime:
            self._tolerated[Tolerated.LONG_LIFETIME] += 1
        was_held = mapping.is_held
        if was_held and mapping.external and mapping.external.port != answer.external_port:
            self._tolerated[Tolerated.PORT_MOVED] += 1
        if not was_held or mapping.dialect is not dialect:  # what is renewed stays where it is
            self._move(mapping, Input.GRANT, dialect)
        mapping.generation = self._generation
        mapping.granted_options = answer.options
        mapping.lifetime = float(min(answer.lifetime, self._config.max_lifetime))
        mapping.granted_at, mapping.expires_at = now, now + mapping.lifetime
        if mapping.retry_at is not None:
            mapping.retry_at = None
            self._timers.cancel((Timer.RETRY, mapping))
        mapping.renewals, mapping.hold_until = 0, -math.inf
        mapping.is_renewal_open, mapping.useless, mapping.maybe_there = False, 0, True
        self._schedule_renewal(mapping, now)
        self._learn_prefixes(answer.options)
        mapping.follows_gateway = answer.external_address is None
        if answer.external_address is not None:
            mapping.assign(answer.external_address, answer.external_port)
            if mapping.spec.family is None:
                self._learn_address(answer.external_address, now)
            if mapping.is_errand:
                self._release(mapping, None)
                return
            self._tell_grant(mapping)
        else:
            # NAT-PMP does not tell the address with the port: ask, unless it was told only just now.
            mapping.assign(self._external_address, answer.external_port)
            if now - self._address_at >= _ADDRESS_FRESH:
                self._address_wanted = True
            was_nameless = mapping.told is not None and mapping.told.address is None  # then it has none to tell
            if self._external_address is not None or was_nameless:
                self._tell_grant(mapping)
            else:
                self._nameless[mapping] = None
                self._timers.set((Timer.ADDRESS, mapping), now + _ADDRESS_WAIT)
        self._keep_pair(mapping, purpose, now)

    def _tell_grant(self, mapping: Tracked) -> None:
        """Say what is true now of a held mapping. One of a pair waits until its twin has been answered as well."""
        if mapping in self._nameless:
            del self._nameless[mapping]
            self._timers.cancel((Timer.ADDRESS, mapping))
        mapping.is_news = True
        if mapping.pair is None or mapping.pair.agrees:
            self._tell(mapping)

    def _tell(self, mapping: Tracked) -> None:
        """New, moved or renewed: what no event has said yet of a mapping that is held."""
        if mapping.is_news and mapping.is_held and mapping.external is not None and not mapping.is_errand:
            self._queue.emit(mapping.news(self.gateway))

    def _tell_waiting_grants(self) -> None:
        """Tell the grants that wait for an external address, which is known now or will not be soon."""
        for mapping in list(self._nameless):
            assert mapping.external is not None
            mapping.assign(self._external_address, mapping.external.port)
            self._tell_grant(mapping)

    def _on_refusal(self, mapping: Tracked, reason: Reason, answer: MapAnswer, now: float) -> None:
        exchange, code = mapping.exchange, answer.result_code
        purpose = exchange.purpose if exchange else None
        if purpose is CREATE and self._is_given_in(mapping, reason):
            self._end(exchange)
            self._tasks.appendleft((CREATE, mapping))
            return
        self._end(exchange)
        mapping.useless += reason is Reason.UNUSABLE_GRANT
        # A success says nothing about how long it is no use to ask again: ever longer, as after silence.
        hold = self._bounded(answer.hold) if code else self._growing_hold(mapping.useless - 1)
        if answer.server_wide:  # RFC 6887 section 11.4
            self._hold_new_until = now + hold
            self._wake_after_hold(now)
        asked_to_renew = mapping.is_renewal_open if exchange is None else purpose in (RENEW, Purpose.CONFIRM)
        is_lost = mapping.generation < self._lost_generation or mapping.dialect is None or reason is Reason.DELETED
        if mapping.is_held and asked_to_renew and not is_lost:
            # The lease stands; the same request is not sent again within the error's lifetime (RFC 6887 section 8.3).
            mapping.hold_until, mapping.is_renewal_open = now + hold, False
            mapping.generation = self._generation
            self._schedule_renewal(mapping, now + hold)
        elif mapping.is_held:
            self._lose(mapping, reason, code, now + hold)
        elif exchange is not None and reason in _HOPELESS:
            self._finish(mapping, reason, code)
        elif exchange is not None:
            self._refuse(mapping, reason, code, now + hold)
        self._keep_pair(mapping, purpose, now)

    def _is_given_in(self, mapping: Tracked, reason: Reason) -> bool:
        """Whether a refused request is changed to what the gateway may grant, to be sent again at once."""
        spec = mapping.spec
        if self._config.strict:
            return False
        if reason is Reason.NO_RESOURCES and spec.external.port != 0 and not spec.prefers_failure:
            # Some say so of a port that is taken (field notes).
            self._tolerated[Tolerated.PORT_BUSY] += 1
            mapping.suggest(spec.external.address, 0)
            return True
        if reason is Reason.MALFORMED and not all(option.mandatory for option in spec.options):
            # miniupnpd up to 2.3.10 stumbles over options whose length is no multiple of 4.
            self._tolerated[Tolerated.OPTIONS_REFUSED] += 1
            mapping.spec = attrs.evolve(spec, options=tuple(option for option in spec.options if option.mandatory))
            return True
        return False

    def _on_other_endpoint(self, mapping: Tracked, answer: MapAnswer, now: float) -> None:
        """A success with another endpoint than the only one that was wanted is an old Mapping Update (RFC 6887 section
        13.2), or, if it comes again, from a gateway that does not know PREFER_FAILURE."""
        exchange = mapping.exchange
        self._rejected[Rejected.OTHER_ENDPOINT] += 1
        if exchange is None or exchange.purpose not in ASKING or self._config.strict:
            return
        exchange.mismatches += 1
        if exchange.mismatches < _MISMATCHES:
            return
        self._tolerated[Tolerated.PREFERENCE_IGNORED] += 1
        data = exchange.dialect.delete_request(mapping.spec)
        assert data is not None  # PREFER_FAILURE goes with MAP, which can be deleted
        self._queue.send(data, self.gateway, mapping)
        self._end(exchange)
        end = self._lose if mapping.is_held else self._refuse
        end(mapping, Reason.CANNOT_PROVIDE_EXTERNAL, answer.result_code, now + self._config.max_hold)

    def _on_delete_answer(self, dialect: Dialect, mapping: Tracked, answer: MapAnswer, now: float) -> None:
        if answer.reason is None and not dialect.is_deleted(answer):
            self._rejected[Rejected.OLD] += 1  # a late answer to a request to map; the delete is still on its way
            return
        if answer.reason is not None:
            self._tolerated[Tolerated.DELETE_REFUSED] += 1
        if answer.server_wide:  # RFC 6887 section 11.4
            self._hold_all_until = now + self._bounded(answer.hold)
            self._wake_after_hold(now)
        if mapping.state is MappingState.RELEASING:
            self._released(mapping, confirmed=answer.reason is None)
        else:
            self._on_vacated(mapping, now)

    def _on_version_error(self, error: VersionError, now: float) -> None:
        """Go over to the version offered, at once and with the same request (RFC 6886 section 1.1, 6887 section 9)."""
        offered = self._speech.dialects.get(error.offered)
        affected = [exchange for exchange in self._exchanges if exchange.dialect is not offered]
        if (
            self._speech.is_proven_other_than(offered)
            or (not affected and offered is self._speech.current)
            or not self._exchanges
        ):
            # Not believed: who answered with our nonce speaks its version. Or nothing new: each request that was under
            # way draws its own error, and the first was enough.
            self._rejected[Rejected.VERSION_ERROR] += 1
            return
        self._contact()
        probes = [each for each in affected or self._exchanges if each.purpose is Purpose.DIAGNOSE]
        for probe in probes:
            self._end(probe)
            self._found(probe, Reason.UNSUPPORTED_VERSION, 1, None, now)
        affected = [exchange for exchange in affected if exchange in self._exchanges]
        if offered is not None and affected and error.offered not in self._speech.refused_versions:
            self._speech.refused_versions.update(exchange.dialect.version for exchange in affected)
            self._adopt(offered, now, is_certain=True)
        elif affected or not probes:
            self._speech.refused_versions.clear()
            self._speech.current = None
            self._refuse_all(Reason.UNSUPPORTED_VERSION, 1, now + self._bounded(error.hold), now)

    def _find(self, dialect: Dialect, answer: MapAnswer) -> Tracked | None:
        """The mapping that an answer is about."""
        if dialect.has_nonce:
            found = self._by_nonce.get(answer.nonce)
            return found if found is not None and dialect.is_for(answer, found.spec) else None
        target = (answer.protocol, answer.internal_port)
        named = self._releasing.get(target) or self._wanted.get(target)
        # Only the request under way can tell, unless the answer names another mapping.
        awaited = [each.mapping for each in self._exchanges if each.mapping and each.dialect is dialect]
        return next((each for each in awaited if named in (None, each) and dialect.is_for(answer, each.spec)), named)

    def _heard(self, dialect: Dialect, epoch: int | None, now: float) -> bool:
        """A believable datagram of the gateway: it is there, and its epoch says whether it lost its state."""
        self._contact()
        if not self._speech.has_lost_state(dialect, epoch, now):
            return False
        self._generation += 1
        self._lost_generation = self._generation
        at = self._recover_soon(self._last_recovery, now)
        if not self._is_restart_told:
            self._is_restart_told = True
            self._queue.emit(GatewayRestarted(gateway=self.gateway, recovery_at=at))
        return True

    def _suspect(self, now: float) -> None:
        """The gateway may have lost its state, though its epoch does not show it."""
        if self._timers.deadline((Timer.RECOVER, None)) is None:
            self._generation += 1
            self._recover_soon(max(self._last_recovery, self._last_confirmation), now)

    def _recover_soon(self, last: float, now: float) -> float:
        """When everything will be asked for again: never more often than configured. `last`: when it was."""
        at = max(now + recovery_delay(self._rng), last + self._config.recovery_interval)
        due = self._timers.deadline((Timer.RECOVER, None))
        if due is None or at < due:
            self._timers.set((Timer.RECOVER, None), at)
            return at
        return due

    def _contact(self) -> None:
        self._failures = self._unanswered = 0
        self._tried = 1
        self._silent_until = -math.inf
        if not self._unreachable:
            return
        self._unreachable = False
        self._queue.emit(GatewayRecovered(gateway=self.gateway))
        # Anybody may forge a sign of life: what it starts is paced.
        self._last_comeback = max(self._now, self._last_comeback + self._config.recovery_interval)
        for mapping in self._mappings.values():
            if mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, min(self._last_comeback, mapping.retry_at or self._now))
            elif mapping.is_held and mapping.exchange is None and mapping.is_renewal_open:
                self._schedule_renewal(mapping, self._now)  # it was put off

    def _learn_address(self, address: IPAddress | None, now: float) -> None:
        old, was_asked = self._external_address, self._address_asked
        if address is None or (address is not old and address == any_address(address)):
            return
        self._address_at = now
        self._external_address, self._address_asked = address, False
        if (address is old or address == old) and not was_asked:
            return
        if old is None or old == address:
            self._queue.emit(ExternalAddressLearned(gateway=self.gateway, address=address))
        else:
            self._queue.emit(ExternalAddressChanged(gateway=self.gateway, old=old, new=address))
        if old == address:
            return
        if (reason := reason_of(address)) is not None:
            self._queue.emit(DoubleNatSuspected(gateway=self.gateway, address=address, reason=reason))
        for mapping in self._mappings.values():
            if mapping.is_held and mapping.follows_gateway and mapping.external is not None:
                mapping.assign(address, mapping.external.port)
                self._tell_grant(mapping)

    def _learn_prefixes(self, options: tuple[pcp.Option, ...]) -> None:
        """New prefixes replace all older ones (RFC 7225 section 4.3)."""
        if options and (prefixes := tuple(option for option in options if isinstance(option, pcp.Prefix64))):
            self._prefixes = prefixes

    # --- pairs

    def _keep_pair(self, mapping: Tracked, purpose: Purpose | None, now: float) -> None:
        """What becomes of a pair after something has become of one of it; `purpose` of the request that is over."""
        pair = mapping.pair
        if pair is None or mapping.state is MappingState.RELEASING:
            return
        twin = pair.twin(mapping)
        self._wake_put_off()  # it waits for this one, whose answer may come while no request is under way
        if mapping.is_held and mapping.external is not None and not twin.is_held:
            twin.suggest(twin.spec.external.address, mapping.external.port)
        if mapping is pair.tcp:
            pair.is_following = pair.is_following and purpose is None and mapping.is_held
        elif purpose not in (None, CREATE):
            pair.is_following = self._renew_now(pair.tcp, now)
        self._settle(pair)

    def _settle(self, pair: Pair) -> None:
        """Tell both once both have been answered here, or let one of them ask for the other's port."""
        both = (pair.tcp, pair.udp)
        if pair.is_following or any(each.exchange or each.is_unsure for each in both):
            return
        if pair.agrees:
            pair.rounds, pair.is_split = 0, False
        elif pair.udp.is_held and pair.tcp.is_held:
            if pair.rounds < pair.MAX_ROUNDS:
                pair.rounds += 1
                self._vacate(both[pair.rounds % 2], both[(pair.rounds + 1) % 2])  # in turn, TCP's port first
                return
            if not pair.is_split:
                pair.is_split = True
                self._queue.emit(PairSplit(gateway=self.gateway, tcp=pair.tcp.id, udp=pair.udp.id))
        for each in both:
            self._tell(each)

    def _vacate(self, mapping: Tracked, twin: Tracked) -> None:
        """Delete it, to ask for it anew with the port of its twin; what was told of it stands until then."""
        assert twin.external is not None
        mapping.suggest(twin.external.address, twin.external.port)
        self._move(mapping, Input.MOVE)
        self._cancel_lease(mapping)
        self._tasks.append((Purpose.VACATE, mapping))

    def _on_vacated(self, mapping: Tracked, now: float) -> None:
        self._end(mapping.exchange)
        mapping.external = None
        self._tasks.appendleft((CREATE, mapping))
        self._keep_pair(mapping, Purpose.VACATE, now)

    def _part(self, mapping: Tracked) -> None:
        """One of a pair is wanted no more; the other is left alone. UDP remembers TCP, which has to be renewed once
        more when the delete is done."""
        pair = mapping.pair
        if pair is None:
            return
        twin = pair.twin(mapping)
        twin.pair = None
        if mapping is pair.tcp:
            mapping.pair = None
        self._tell(twin)
        self._wake_put_off()

    # --- versions and addresses

    def _adopt(self, dialect: Dialect, now: float, *, is_certain: bool = False) -> None:
        """The gateway speaks this. What waits for an answer in another dialect is asked again in this one."""
        if self._speech.current is dialect and self._speech.is_certain >= is_certain:
            return
        self._speech.adopt(dialect, now, is_certain=is_certain)
        self._timers.cancel((Timer.FALLBACK, None))
        if self._speech.told_version != dialect.version:
            if dialect is self._speech.preferred:  # what was refused in a lesser protocol may be granted in this one
                for refused in self._mappings.values():
                    if refused.state is MappingState.REFUSED:
                        self._retry_later(refused, now)
            self._speech.told_version = dialect.version
            self._queue.emit(VersionNegotiated(gateway=self.gateway, version=dialect.version))
        again = []
        for exchange in list(self._exchanges):
            mapping = exchange.mapping
            stays = exchange.purpose is Purpose.DIAGNOSE
            if mapping is not None:  # what can be asked in no other keeps its schedule
                stays = exchange.dialect is self._dialect_for(exchange.purpose, mapping)
            if exchange.dialect is not dialect and not stays:
                self._end(exchange)
                if mapping is not None:
                    again.append((exchange.purpose, mapping))
        self._tasks.extendleft(reversed(again))

    def _on_fallback(self, now: float) -> None:
        """Ask in the other dialects as well, with a request that changes nothing there, and once more in the preferred
        one, so that a single lost datagram does not decide."""
        preferred = self._speech.preferred
        asking = [exchange for exchange in self._exchanges if exchange.purpose in ASKING]
        for dialect in self._speech.dialects.values():
            if dialect is preferred or not asking:
                continue
            if not self._has_room(dialect):
                self._timers.set((Timer.FALLBACK, None), now + _FALLBACK_RETRY)
                continue
            # Not a renewal: that is a single packet (RFC 6887 section 11.2.1).
            again = [each for each in asking if each.dialect is preferred and each.purpose is not RENEW]
            for first in again[:1]:
                self._queue.send(first.data, self.gateway, first)
            self._start(Purpose.PROBE, None, dialect, dialect.probe_request(), now)

    def _on_address_failed(self, reason: Reason, now: float) -> None:
        """Nobody answers at this address: go on at the next one of the server, or give it up (RFC 7488 section 3)."""
        self._unanswered = 0
        if self._tried == len(self._addresses):
            self._give_up(reason, now)
            return
        self._tried += 1
        self._at = (self._at + 1) % len(self._addresses)
        self._speech.forget_epochs()
        self._timers.cancel((Timer.FALLBACK, None))
        for exchange in list(self._exchanges):
            self._end(exchange)
            if exchange.mapping is not None:
                self._tasks.append((exchange.purpose, exchange.mapping))
            elif exchange.purpose is Purpose.DIAGNOSE and self._diagnosis is not None:
                self._diagnosis.waiting.append(exchange.dialect)

    # --- time

    def _on_timer(self, reason: Timer, about: Tracked | None, now: float) -> None:
        match reason:
            case Timer.FALLBACK:
                self._on_fallback(now)
            case Timer.RECOVER:
                self._on_recover(now)
            case Timer.ADDRESS:
                self._tell_waiting_grants()
            case Timer.HOLD:
                self._wake_put_off()
                self._wake_after_hold(now)
            case _:
                self._on_mapping_timer(reason, typing.cast("Tracked", about), now)

    def _on_overdue(self, exchange: Exchange, now: float) -> None:
        if exchange not in self._exchanges:
            return
        if exchange.limit is not None and exchange.attempts >= exchange.limit:
            self._on_unanswered(exchange, now)
        elif exchange.attempts == exchange.dialect.patience and len(self._addresses) > 1:
            self._on_address_failed(Reason.NO_ANSWER, now)
        else:
            self._transmit(exchange, now)
            if exchange.attempts == exchange.dialect.patience + 1:
                self._on_patience_over(exchange, now)

    def _on_unanswered(self, exchange: Exchange, now: float) -> None:
        mapping = exchange.mapping
        if exchange.purpose in (Purpose.PROBE, CREATE):
            self._on_address_failed(Reason.NO_ANSWER, now)  # which ends it, or takes it along to the next address
            return
        self._end(exchange)
        if exchange.purpose is Purpose.DIAGNOSE:
            self._found(exchange, Reason.NO_ANSWER, None, None, now)
        elif mapping is None:
            self._tell_waiting_grants()
        elif exchange.purpose is Purpose.DELETE:  # whoever closes does not wait for each of many to meet with silence
            for each in list(self._mappings.values()) if self._closing else [mapping]:
                self._released(each, confirmed=False)
        elif exchange.purpose is Purpose.VACATE:
            self._on_vacated(mapping, now)
        else:
            if exchange.dialect.renewal_attempts > 1:
                self._lose_contact(Reason.NO_ANSWER)
            self._ask_again(mapping, now, now + self._config.min_hold)
            self._keep_pair(mapping, exchange.purpose, now)
            self._unanswered += exchange.attempts
            if self._unanswered >= exchange.dialect.patience and len(self._addresses) > 1:
                # As many as a request would have been sent: another address may save the lease.
                self._on_address_failed(Reason.NO_ANSWER, now)
                if self._tried > 1:
                    self._renew_now(mapping, now)

    def _on_patience_over(self, exchange: Exchange, now: float) -> None:
        """A request that is sent for ever has met with silence for long enough to say so."""
        mapping = exchange.mapping
        if mapping is None or mapping.state is not MappingState.REQUESTING:
            return
        if self._speech.current is not None and not self._speech.current.supports(mapping.spec):
            self._finish(mapping, Reason.NEEDS_PCP, None)
            return
        if any(other.purpose is Purpose.PROBE for other in self._exchanges):
            return  # the verdict comes when the other dialect has met with silence, too
        if self._speech.can_fall_back and not self._speech.is_proven_other_than(None):
            self._speech.current = None  # it answered once, and may have been replaced
            self._on_fallback(now)
            return
        self._lose_contact(Reason.NO_ANSWER)
        for each in [mapping] if mapping.pair is None else [mapping, mapping.pair.twin(mapping)]:
            if each.state is MappingState.REQUESTING:
                self._report_missing(each, Reason.NO_ANSWER, None, now + exchange.wait)
            else:
                self._tell(each)

    def _on_mapping_timer(self, reason: Timer, mapping: Tracked, now: float) -> None:
        match reason:
            case Timer.RENEW if now < mapping.expires_at:
                mapping.renew_at = None
                self._arm(mapping)
                if not self._is_led(mapping, now):
                    self._queue_renewal(mapping)
            case Timer.RENEW | Timer.EXPIRE:
                why = Reason.EXPIRED if mapping.dialect is not None else Reason.NETWORK_CHANGED
                self._lose(mapping, why, None, max(now, mapping.hold_until))
                self._keep_pair(mapping, None, now)
            case Timer.RETRY:
                self._retry(mapping)
            case _:
                about = mapping.about(self.gateway)
                self._release(mapping, MappingFailed(**about, reason=Reason.DEADLINE, result_code=None))

    def _is_led(self, mapping: Tracked, now: float) -> bool:
        """Whether UDP of the pair is renewed instead of TCP, which follows."""
        pair = mapping.pair
        if pair is None or mapping is pair.udp or pair.is_following:
            return False
        return self._renew_now(pair.udp, now, is_put_off=False)

    def _on_recover(self, now: float) -> None:
        """Ask for everything again that was granted before the gateway lost its state (RFC 6887 section 14.1.3)."""
        if now < self._hold_all_until:  # nothing may be asked (RFC 6887 section 11.4)
            self._timers.set((Timer.RECOVER, None), self._hold_all_until)
            return
        has_lost = self._is_restart_told
        self._is_restart_told = False
        self._last_confirmation = now
        self._last_recovery = now if has_lost else self._last_recovery
        waiting = {mapping for purpose, mapping in (*self._tasks, *self._put_off) if purpose is Purpose.CONFIRM}
        for mapping in self._mappings.values():
            if mapping.is_held and mapping.generation < self._generation:
                self._end(mapping.exchange)
                if mapping not in waiting:
                    self._tasks.append((Purpose.CONFIRM, mapping))
            elif has_lost and mapping.state is MappingState.REFUSED:
                self._retry_later(mapping, now)
            if has_lost and mapping.pair is not None:
                mapping.pair.rounds = 0

    def _schedule_renewal(self, mapping: Tracked, earliest: float) -> None:
        mapping.plan_renewal(earliest)
        self._arm(mapping)

    def _renew_now(self, mapping: Tracked, now: float, *, is_put_off: bool = True) -> bool:
        """Renew out of turn, as soon as that may be. False: not at all, or, unless it may be put off, not now."""
        if not mapping.is_held or mapping.dialect is None or mapping.exchange is not None:
            return False
        at = max(now, mapping.hold_until, mapping.no_renewal_before)
        if at >= mapping.expires_at or (at > now and not is_put_off):
            return False
        mapping.renew_at, mapping.next_renewal = at if at > now else None, mapping.renewals
        self._arm(mapping)
        if at == now:
            self._queue_renewal(mapping)
        return True

    def _queue_renewal(self, mapping: Tracked) -> None:
        if not mapping.is_renewal_queued:
            mapping.is_renewal_queued = True
            self._tasks.append((RENEW, mapping))

    def _arm(self, mapping: Tracked) -> None:
        """Wake up for a held mapping at its next renewal, or at the end of its lease if there is none."""
        if mapping.renew_at is not None:
            self._timers.cancel((Timer.EXPIRE, mapping))
            self._timers.set((Timer.RENEW, mapping), mapping.renew_at)
        else:
            self._timers.cancel((Timer.RENEW, mapping))
            self._timers.set((Timer.EXPIRE, mapping), mapping.expires_at)

    def _ask_again(self, mapping: Tracked, renew_after: float, recover_at: float) -> None:
        """Nobody answered the request of a mapping that is held: renew later, or recover if the gateway lost it."""
        if mapping.generation == self._generation:
            self._schedule_renewal(mapping, renew_after)
        else:
            due = self._timers.deadline((Timer.RECOVER, None))
            self._timers.set((Timer.RECOVER, None), recover_at if due is None else min(due, recover_at))

    def _give_up(self, reason: Reason, now: float) -> None:
        """The gateway does not answer at all: end what is under way, and try again after a growing wait."""
        hold = self._growing_hold(self._failures) if len(self._addresses) == 1 else _ALL_ADDRESSES_HOLD
        self._failures += 1
        self._tried = 1
        self._at = (self._at + 1) % len(self._addresses)
        self._silent_reason, self._silent_until = reason, now + hold
        self._speech.current = None
        self._timers.cancel((Timer.FALLBACK, None))
        self._lose_contact(reason)
        self._refuse_all(reason, None, now + hold, now)

    def _refuse_all(self, reason: Reason, code: int | None, retry_at: float, now: float) -> None:
        for exchange in list(self._exchanges):
            self._end(exchange)
            mapping = exchange.mapping
            if mapping is None:
                if exchange.purpose is Purpose.DIAGNOSE:
                    self._found(exchange, reason, None, None, now)
            elif mapping.state is MappingState.RELEASING:
                self._released(mapping, confirmed=False)
            elif mapping.is_held:
                renew_after = max(now + MIN_RENEWAL_GAP, (now + mapping.expires_at) / 2)
                self._ask_again(mapping, min(retry_at, renew_after), retry_at)
                self._keep_pair(mapping, exchange.purpose, now)
        for mapping in list(self._mappings.values()):
            if mapping.state is MappingState.REQUESTING:
                self._refuse(mapping, reason, code, retry_at)
                self._keep_pair(mapping, None, now)
            elif mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, retry_at)
        self._tasks = deque(task for task in self._tasks if task[1].state is not MappingState.REFUSED)

    def _growing_hold(self, failures: int) -> float:
        """How long to wait after so many failures before, where nobody says how long."""
        return min(self._config.min_hold * 2.0 ** min(max(failures, 0), 16), self._config.max_hold)

    def _bounded(self, hold: float) -> float:
        """An error's lifetime as far as it is believed (RFC 6887 section 8.3): some gateways send 0."""
        if hold < self._config.min_hold:
            self._tolerated[Tolerated.SHORT_ERROR] += 1
        return min(max(hold, self._config.min_hold), self._config.max_hold)

    def _wake_after_hold(self, now: float) -> None:
        holds = [until for until in (self._hold_new_until, self._hold_all_until) if until > now]
        if holds:
            self._timers.set((Timer.HOLD, None), min(holds))

    def _lose_contact(self, reason: Reason) -> None:
        self._prefixes = ()  # RFC 7225 section 4.3
        if not self._unreachable:
            self._unreachable = True
            self._queue.emit(GatewayUnreachable(gateway=self.gateway, reason=reason))

    # --- ends of a mapping

    def _refuse(self, mapping: Tracked, reason: Reason, code: int | None, retry_at: float) -> None:
        if mapping.is_errand:
            self._drop(mapping)
            return
        self._move(mapping, Input.REFUSE)
        mapping.refused_by_silence = code is None
        mapping.maybe_there = mapping.maybe_there and not code  # a grant of no use is one
        self._retry_later(mapping, retry_at)
        self._report_missing(mapping, reason, code, retry_at)
        self._wake_put_off()

    def _lose(self, mapping: Tracked, reason: Reason, code: int | None, retry_at: float) -> None:
        self._end(mapping.exchange)
        self._move(mapping, Input.LOSE)
        mapping.refused_by_silence = mapping.maybe_there = mapping.is_news = False
        mapping.external = mapping.dialect = None
        self._cancel_lease(mapping)
        if not self._speech.has_leases:
            self._speech.current = None  # nothing proves any more which version it speaks
        self._report_missing(mapping, reason, code, retry_at)
        self._retry_later(mapping, retry_at)
        self._wake_put_off()

    def _report_missing(self, mapping: Tracked, reason: Reason, code: int | None, retry_at: float) -> None:
        """Lost is only what was told as granted."""
        told, mapping.told = mapping.told, None
        kind = MappingRefused if told is None else MappingLost
        self._report(kind, mapping, reason=reason, result_code=code, retry_at=retry_at)

    def _cancel_lease(self, mapping: Tracked) -> None:
        mapping.renew_at, mapping.is_renewal_queued = None, False
        self._nameless.pop(mapping, None)
        for timer in (Timer.EXPIRE, Timer.RENEW, Timer.ADDRESS):
            self._timers.cancel((timer, mapping))

    def _retry_later(self, mapping: Tracked, retry_at: float) -> None:
        mapping.retry_at = retry_at
        self._timers.set((Timer.RETRY, mapping), retry_at)

    def _retry(self, mapping: Tracked) -> None:
        self._move(mapping, Input.RETRY)
        mapping.retry_at = None
        self._timers.cancel((Timer.RETRY, mapping))
        self._tasks.append((CREATE, mapping))

    def _release(self, mapping: Tracked, ending: MappingFailed | None) -> None:
        """Delete it at the gateway if it may be there; `ending` is the terminal event, else MappingReleased."""
        self._end(mapping.exchange)
        self._move(mapping, Input.RELEASE)
        mapping.ending = ending
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        self._nameless.pop(mapping, None)
        self._part(mapping)
        target = mapping.spec.target
        if self._wanted.get(target) is mapping:
            del self._wanted[target]
        if mapping.maybe_there:
            self._releasing[target] = mapping
            self._tasks.append((Purpose.DELETE, mapping))
        else:
            self._released(mapping, confirmed=True)

    def _released(self, mapping: Tracked, *, confirmed: bool) -> None:
        self._drop(mapping)
        if mapping.ending is not None:
            self._queue.emit(mapping.ending)
        else:
            self._report(MappingReleased, mapping, confirmed=confirmed)
        if mapping.pair is not None:
            self._renew_now(mapping.pair.tcp, self._now)

    def _finish(self, mapping: Tracked, reason: Reason, code: int | None) -> None:
        """It can never work as asked."""
        self._part(mapping)
        self._drop(mapping)
        self._report(MappingFailed, mapping, reason=reason, result_code=code)

    def _drop(self, mapping: Tracked) -> None:
        """Forget a mapping."""
        self._end(mapping.exchange)
        self._move(mapping, Input.END)
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        target = mapping.spec.target
        for table in (self._wanted, self._releasing):
            if table.get(target) is mapping:
                del table[target]
        self._by_nonce.pop(mapping.spec.nonce, None)
        self._port_sets.pop(mapping.id, None)
        del self._mappings[mapping.id]
        self._wake_put_off()

    def _move(self, mapping: Tracked, what: Input, dialect: Dialect | None = None) -> None:
        """Take a step of the table, and count what the gateway has of us."""
        self._count(mapping, -1)
        mapping.move(what)
        mapping.dialect = dialect or mapping.dialect
        self._count(mapping, +1)

    def _count(self, mapping: Tracked, change: int) -> None:
        if mapping.dialect is not None and mapping.state in (MappingState.HELD, MappingState.RELEASING):
            self._speech.count_lease(mapping.dialect, change)

    def _report(self, kind: Callable[..., Event], mapping: Tracked, **fields: object) -> None:
        if not mapping.is_errand:
            self._queue.emit(kind(**mapping.about(self.gateway), **fields))

    # --- exchanges

    def _pump(self, now: float) -> None:
        """Start what waits, in order, as far as the dialect lets requests be under way."""
        self._speech.expire(now)
        if self._exchanges.questions:
            self._end_idle_questions()
        if self._address_wanted or self._diagnosis is not None:
            self._ask_questions(now)
        while self._tasks and (now >= self._hold_all_until or self._closing):
            purpose, mapping = task = self._tasks.popleft()
            dialect: Dialect | None = None
            if mapping.has_use_for(purpose, self._generation, now):
                if self._has_to_wait(purpose, mapping, now):
                    self._put_off.append(task)
                    continue
                dialect = self._dialect_for(purpose, mapping)
                if not self._has_room(dialect) and not self._make_room(dialect):
                    self._tasks.appendleft(task)
                    break
            if mapping.is_renewal_queued and purpose is RENEW:
                mapping.is_renewal_queued = False  # not before: what has to wait stays queued
            if dialect is not None:
                self._start_task(purpose, mapping, dialect, now)
        if self._closing and not self._mappings and not self._closed:
            self._closed = True
            self._timers.clear()
            self._queue.emit(Closed(gateway=self.gateway))

    def _end_idle_questions(self) -> None:
        """End what nobody wants to know any more, before it takes the place of another request."""
        if self._closing:
            idle = {Purpose.PROBE, Purpose.ADDRESS, Purpose.DIAGNOSE}
        elif any(exchange.purpose in ASKING for exchange in self._exchanges):
            return
        else:
            idle = {Purpose.PROBE}
        for exchange in [exchange for exchange in self._exchanges if exchange.purpose in idle]:
            self._end(exchange)

    def _ask_questions(self, now: float) -> None:
        """Start what is about no mapping, as far as there is room for it."""
        if self._diagnosis is not None:
            for dialect in tuple(self._diagnosis.waiting):
                if self._has_room(dialect) or self._make_room(dialect):
                    self._diagnosis.waiting.remove(dialect)
                    self._start(Purpose.DIAGNOSE, None, dialect, dialect.probe_request(), now)
                    self._end_idle_questions()  # what has given its place up may have left one
        teller = self._speech.address_teller if self._address_wanted and not self._closing else None
        if teller is not None and self._has_room(teller):
            self._address_wanted = False
            self._start(Purpose.ADDRESS, None, teller, teller.probe_request(), now)

    def _has_to_wait(self, purpose: Purpose, mapping: Tracked, now: float) -> bool:
        """Whether a request must wait for the gateway to have room, for the delete of another mapping of the same port,
        or for the twin's answer."""
        if purpose is CREATE:
            is_taken = self._releasing.get(mapping.spec.target, mapping) is not mapping
            if is_taken or now < self._hold_new_until:
                return True
        pair = mapping.pair
        if pair is None or purpose is Purpose.DELETE:
            return False
        udp = pair.udp
        is_udp_next = udp.state is MappingState.REQUESTING and purpose is CREATE
        is_udp_next = is_udp_next or (udp.is_held and udp.generation < self._generation)
        return pair.twin(mapping).exchange is not None or (mapping is pair.tcp and is_udp_next)

    def _wake_put_off(self) -> None:
        self._tasks.extendleft(reversed(self._put_off))
        self._put_off.clear()

    def _dialect_for(self, purpose: Purpose, mapping: Tracked) -> Dialect:
        if purpose in DELETING and mapping.dialect is not None:
            return mapping.dialect
        return self._speech.for_spec(mapping.spec)

    def _has_room(self, dialect: Dialect) -> bool:
        return self._exchanges.in_version[dialect.version] < (1 if dialect.serial else self._config.window)

    def _make_room(self, dialect: Dialect) -> bool:
        """What is sent for ever and meets with silence gives its place up, and comes last. True: there is room now."""
        tired = self._exchanges.tired(dialect)
        if tired is not None and tired.mapping is not None:
            self._end(tired)
            self._tasks.append((tired.purpose, tired.mapping))
        return tired is not None and self._has_room(dialect)

    def _start_task(self, purpose: Purpose, mapping: Tracked, dialect: Dialect, now: float) -> None:
        spec = mapping.spec
        if purpose is CREATE and now < self._silent_until:
            self._refuse(mapping, self._silent_reason, None, self._silent_until)
        elif mapping.is_errand and purpose is CREATE and dialect.tells_address:
            self._drop(mapping)  # it speaks a protocol that has a question for it
            self._start(Purpose.ADDRESS, None, dialect, dialect.probe_request(), now)
        elif not dialect.supports(spec):
            if purpose is Purpose.DELETE:
                self._released(mapping, confirmed=False)  # the gateway cannot have it
            else:
                self._finish(mapping, Reason.NEEDS_PCP, None)
        elif purpose in DELETING:
            data = dialect.delete_request(mapping.granted)
            if data is not None:
                self._start(purpose, mapping, dialect, data, now)
            else:
                self._released(mapping, confirmed=False)
        else:
            if mapping.spec.until is not None:
                left = max(1, math.ceil(mapping.spec.until - now))
                if left < spec.lifetime:
                    spec = attrs.evolve(spec, lifetime=left)
            mapping.maybe_there = True
            if purpose is RENEW:
                mapping.renewals = mapping.next_renewal
                # The gap of the dialect in which it is asked, not of that in which it was granted.
                mapping.is_renewal_open, mapping.no_renewal_before = True, now + dialect.renewal_gap
                lifetime, spec = spec.lifetime, mapping.granted
                spec = spec if spec.lifetime == lifetime else attrs.evolve(spec, lifetime=lifetime)
            self._start(purpose, mapping, dialect, mapping.map_request(spec, dialect), now)

    def _start(self, purpose: Purpose, mapping: Tracked | None, dialect: Dialect, data: bytes, now: float) -> None:
        limit = limit_of(purpose, dialect, mapping, self._config.delete_attempts)
        exchange = Exchange(purpose=purpose, mapping=mapping, dialect=dialect, data=data, limit=limit)
        self._exchanges.begin(exchange)
        if mapping is not None:
            mapping.exchange = exchange
        is_first = (
            self._speech.current is None and dialect is self._speech.preferred and purpose is not Purpose.DIAGNOSE
        )
        if is_first and self._speech.can_fall_back:
            fallback = (Timer.FALLBACK, None)
            if self._timers.deadline(fallback) is None and all(
                other.dialect is dialect or other.purpose is Purpose.DIAGNOSE for other in self._exchanges
            ):
                self._timers.set(fallback, now + self._config.fallback_delay)
        self._transmit(exchange, now)

    def _transmit(self, exchange: Exchange, now: float) -> None:
        exchange.attempts += 1
        exchange.sent_at = now
        exchange.wait = exchange.dialect.wait(exchange.attempts, exchange.wait or None)
        self._queue.send(exchange.data, self._addresses[self._at], exchange)
        self._timers.set(exchange, now + exchange.wait)

    def _end(self, exchange: Exchange | None) -> None:
        if exchange is None:
            return
        self._exchanges.end(exchange)
        self._timers.cancel(exchange)
        mapping = exchange.mapping
        if mapping is not None:
            mapping.exchange = None
            if mapping.pair is not None:
                self._wake_put_off()

    def _found(self, probe: Exchange, reason: Reason | None, code: int | None, epoch: int | None, now: float) -> None:
        """One more finding for `Client.probe`; a result code of None: nobody has answered."""
        assert self._diagnosis is not None  # its questions end with it
        version, trip = probe.dialect.version, None if code is None else now - probe.sent_at
        self._diagnosis.add(Finding(version=version, reason=reason, result_code=code, epoch=epoch, round_trip=trip))
        if self._diagnosis.is_complete:
            completed = self._diagnosis.verdict(self.gateway, self._external_address)
            self._diagnosis = None
            self._queue.emit(completed)


_HOPELESS = frozenset({Reason.UNSUPPORTED_OPTION, Reason.UNSUPPORTED_PROTOCOL, Reason.THIRD_PARTY_ID})
_ADDRESS_FRESH = 60.0  # s for which a NAT-PMP gateway is not asked for its address again
_ADDRESS_WAIT = 2.0  # s for which a NAT-PMP grant waits for the external address before it is told without
_FALLBACK_RETRY = 1.0  # s until the other dialect is tried again that had no room
_BURST = 75.0  # s within which announcements are copies of one: the longest gap is 64 s (RFC 6886 section 3.2.1)
_ALL_ADDRESSES_HOLD = 900.0  # s until a server is tried again of which no address answers (RFC 7488 section 3)
_MISMATCHES = 2  # answers with another endpoint than the only one wanted, before they are taken at their word
