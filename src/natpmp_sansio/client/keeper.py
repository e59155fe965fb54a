"""What keeps a client's mappings: bytes and time in, and all that follows from them.

Theory of operation. A mapping is a spec with a state (the table in `lifecycle.py`). Whenever something has to be asked
for it, a task goes into one queue; `_send_requests` starts tasks as far as the dialect allows requests in flight. A
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
from ..core.socket_address import PeerKey, checked_addresses, checked_local, peer_key
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
from ..wire import Message, is_response
from ..wire.fields import IPAddress
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
    ClientMapping,
    Exchange,
    InFlight,
    Input,
    MappingState,
    Pair,
    Purpose,
    Timer,
    max_attempts,
)
from .probe import Probe, reason_of
from .schedules import MIN_RENEWAL_GAP
from .session import AddressChange, GatewaySession
from .spec import Target

TimerKey = tuple[Timer, ClientMapping | None] | Exchange  # an exchange waits for one thing alone: to be sent again
Task = tuple[Purpose, ClientMapping]


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
        self._jitter = rng or random.Random()  # which need not be a secret: the system's takes as long as a datagram
        self._session = GatewaySession(
            checked_addresses(gateway), checked_local(local_address), self._config, rng=self._rng, jitter=self._jitter
        )

        self._mappings: dict[MappingId, ClientMapping] = {}
        self._wanted: dict[Target, ClientMapping] = {}
        self._releasing: dict[Target, ClientMapping] = {}  # what another request for the same target waits for
        self._by_nonce: dict[bytes, ClientMapping] = {}
        self._port_sets: dict[MappingId, ClientMapping] = {}
        self._awaiting_external_address: dict[
            ClientMapping, None
        ] = {}  # held, and waiting for the external address to be told
        self._last_id = 0
        self._ready: deque[Task] = deque()
        self._blocked: deque[Task] = deque()
        self._in_flight = InFlight()
        self._probe: Probe | None = None

        self._address_wanted = False
        self._address_requested = False  # by the caller, who gets an event even if it is the same

        self._closing = False
        self._closed = False
        self._rejected: Counter[Rejected] = Counter()
        self._tolerated: Counter[Tolerated] = Counter()

    @property
    def gateway(self) -> Address:
        """Where requests go now."""
        return self._session.servers.current

    # --- bytes and time in

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram. True: it came from the gateway and is an answer or announcement, if perhaps an invalid
        one, which is counted. False: it is somebody else's, and nothing has changed."""
        # Nearly all that comes is from where requests go, and an address takes long to be read.
        servers = self._session.servers
        peer = servers.current_peer if addr == servers.current else peer_key(addr)
        if self._closed or peer is None or not servers.owns(peer):
            return False
        regular = data if is_response(data) else self._restore_response_bit(data, peer)
        if regular is None:
            return False
        message = read_message(regular)
        dialect = self._session.versions.dialects.get(regular[0])
        outcome = dialect.read(message) if dialect and message else None
        if peer not in servers.peers and not isinstance(outcome, AddressAnswer):
            return False  # only a NAT-PMP announcement may come from another port
        now = self._advance(now)
        if self._queue.overflows():
            return True
        if regular is not data:
            self._tolerated[Tolerated.RESPONSE_BIT_MISSING] += 1
        elif message is not None and message.received is not None:
            self._tolerated[Tolerated.IRREGULAR] += 1
        self._dispatch(peer, message, dialect, outcome, now)
        self._send_requests(now)
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
            self._send_requests(now)

    # --- answers

    def _restore_response_bit(self, data: bytes, peer: PeerKey) -> bytes | None:
        """A NAT-PMP answer without the response bit, with it, while any answer is awaited. Changes nothing."""
        if self._config.strict or len(data) < 2 or peer != self._session.servers.current_peer:
            return None
        dialect = self._session.versions.dialects.get(data[0])
        if dialect is None or not self._in_flight:
            return None
        return dialect.restore_response_bit(
            data, is_awaited=any(exchange.dialect is dialect for exchange in self._in_flight)
        )

    def _dispatch(
        self, peer: PeerKey, message: Message | None, dialect: Dialect | None, outcome: Outcome | None, now: float
    ) -> None:
        servers = self._session.servers
        is_current = peer == servers.current_peer
        if dialect is not None and is_current and isinstance(outcome, MapAnswer) and outcome.reason is None:
            self._on_mapping_response(dialect, outcome, now)  # nearly always: all that follows is soon ruled out
        elif servers.is_given_up(peer):
            self._rejected[Rejected.GIVEN_UP] += 1
        elif message is not None and (error := read_version_error(message)) is not None:
            self._on_version_error(error, now)
        elif dialect is None or outcome is None:
            self._on_unreadable(dialect, Rejected.MALFORMED if message is None else Rejected.UNKNOWN, now)
        else:
            self._on_question_response(dialect, outcome, is_current, now)

    def _on_question_response(self, dialect: Dialect, outcome: Outcome, from_server: bool, now: float) -> None:
        if isinstance(outcome, MapAnswer):
            self._on_mapping_response(dialect, outcome, now)
            return
        open_here = self._in_flight if from_server else ()
        questions = [each for each in open_here if each.mapping is None and each.dialect is dialect]
        if not questions and outcome.reason is not None:
            self._rejected[Rejected.UNASKED] += 1  # it proves nothing, least of all an epoch
            return
        has_lost = self._on_authentic_response(dialect, outcome.epoch, now)
        if isinstance(outcome, Announcement):
            self._session.external.learn_prefixes(outcome.options)
        elif questions or not self._session.versions.is_proven_other_than(dialect):
            self._learn_address(outcome.address, now)
        elif outcome.address != self._session.external.address:
            self._schedule_confirmation(now)  # anybody might say so; the answers to the renewals have a nonce
        for question in questions:
            self._complete_question(question, outcome, now)
        if not questions:
            self._on_announcement(has_lost, now)

    def _complete_question(self, question: Exchange, outcome: AddressAnswer | Announcement, now: float) -> None:
        dialect = question.dialect
        self._end_exchange(question)
        if question.attempts > 1:
            self._session.restarts.on_announcement(now)  # what comes twice looks like an announcement
        if question.purpose is Purpose.PROBE:
            self._add_finding(question, outcome.reason, outcome.result_code, outcome.epoch, now)
            return
        self._adopt(dialect, now)
        if dialect.tells_address:
            self._report_waiting_grants()

    def _on_announcement(self, has_lost: bool, now: float) -> None:
        """A gateway may lose its state and count on (field notes): what it announces for no visible reason is a reason
        to confirm every mapping, once for all the copies, which come up to 64 s apart (RFC 6886 section 3.2.1)."""
        is_new = self._session.restarts.on_announcement(now)
        if is_new and not has_lost and not self._config.strict and self._session.versions.has_leases:
            self._tolerated[Tolerated.QUIET_ANNOUNCEMENT] += 1
            self._schedule_confirmation(now)

    def _on_unreadable(self, dialect: Dialect | None, why: Rejected, now: float) -> None:
        """Octets of the better protocol that say nothing, in answer to the lesser one, still say that it is spoken."""
        others = {exchange.dialect is not dialect for exchange in self._in_flight}
        if dialect is not None and dialect.has_nonce and others == {True} and not self._config.strict:
            self._tolerated[Tolerated.FRAGMENT] += 1
            self._on_version_error(VersionError(offered=dialect.version, hold=self._config.max_hold), now)
        else:
            self._rejected[why] += 1

    def _on_mapping_response(self, dialect: Dialect, answer: MapAnswer, now: float) -> None:
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
                self._on_authentic_response(dialect, answer.epoch, now)
            return
        if exchange is not None and not dialect.has_nonce and not is_deleting and answer.is_deletion:
            exchange.mismatches += 1
            if exchange.mismatches <= self._config.delete_attempts:
                self._rejected[Rejected.OLD] += 1  # a copy of the answer to an earlier delete of the same port
                return
        has_lost = self._on_authentic_response(dialect, answer.epoch, now)
        self._session.versions.refused_versions.clear()
        if not is_deleting or mapping.dialect is not dialect:  # it is deleted in its own, whatever is spoken by now
            self._adopt(dialect, now)
        self._apply_response(dialect, mapping, answer, awaited, is_deleting, now)
        if has_lost and not awaited:
            mapping.loss_count -= 1  # it may be a late copy, from before the loss that it seems to show

    def _apply_response(
        self, dialect: Dialect, mapping: ClientMapping, answer: MapAnswer, awaited: bool, is_deleting: bool, now: float
    ) -> None:
        """What an answer that is about this mapping, and from the gateway, says."""
        if answer.reason is Reason.OTHER:
            self._tolerated[Tolerated.UNKNOWN_RESULT] += 1
        if mapping.is_releasing and not is_deleting and not answer.is_deletion:
            self._rejected[Rejected.OLD] += 1  # to a request before the delete, which is still to come
        elif is_deleting or mapping.is_releasing:
            self._on_delete_response(dialect, mapping, answer, now)
        elif answer.reason is not None:
            self._on_refusal(mapping, answer.reason, answer, now)
        elif not awaited and answer.lifetime == 0:
            self._on_refusal(mapping, Reason.DELETED, answer, now)
        elif answer.lifetime == 0 or (answer.external_port == 0 and mapping.spec.internal_port != 0):
            self._tolerated[Tolerated.UNUSABLE_GRANT] += 1
            self._on_refusal(mapping, Reason.UNUSABLE_GRANT, answer, now)
        elif not awaited and mapping.is_copy(answer, now):
            self._rejected[Rejected.OLD] += 1
        elif mapping.spec.prefers_failure and not mapping.spec.is_met_by(answer.external):
            self._on_other_endpoint(mapping, answer, now)
        else:
            self._on_grant(dialect, mapping, answer, now)

    def _on_unmatched(self, dialect: Dialect, answer: MapAnswer, now: float) -> None:
        awaited = [each.mapping for each in self._in_flight if each.purpose in ASKING and each.dialect is dialect]
        cut = [mapping for mapping in awaited if mapping and dialect.matches_truncated_port(answer, mapping.spec)]
        if cut and answer.reason is None and not self._config.strict:
            # It is mapped, but nobody can say where: what is left of the external port is not to be told.
            self._tolerated[Tolerated.PORT_CUT] += 1
            self._on_refusal(cut[0], Reason.UNUSABLE_GRANT, answer, now)
        else:
            self._rejected[Rejected.UNASKED] += 1

    def _on_grant(self, dialect: Dialect, mapping: ClientMapping, answer: MapAnswer, now: float) -> None:
        purpose = mapping.exchange.purpose if mapping.exchange else None
        self._end_exchange(mapping.exchange)
        if answer.lifetime > self._config.max_lifetime:
            self._tolerated[Tolerated.LONG_LIFETIME] += 1
        was_held = mapping.is_held
        if was_held and mapping.external and mapping.external.port != answer.external_port:
            self._tolerated[Tolerated.PORT_MOVED] += 1
        if not was_held or mapping.dialect is not dialect:  # what is renewed stays where it is
            self._transition(mapping, Input.GRANT, dialect)
        mapping.loss_count = self._session.restarts.loss_count
        mapping.granted_options = answer.options
        mapping.lifetime = float(min(answer.lifetime, self._config.max_lifetime))
        mapping.granted_at, mapping.expires_at = now, now + mapping.lifetime
        if mapping.retry_at is not None:
            mapping.retry_at = None
            self._timers.cancel((Timer.RETRY, mapping))
        mapping.renewals, mapping.hold_until = 0, -math.inf
        mapping.is_renewal_open, mapping.unusable_grants, mapping.may_exist_at_gateway = False, 0, True
        self._schedule_renewal(mapping, now)
        self._session.external.learn_prefixes(answer.options)
        mapping.follows_gateway = answer.external_address is None
        if answer.external_address is not None:
            mapping.assign(answer.external_address, answer.external_port)
            if mapping.spec.family is None:
                self._learn_address(answer.external_address, now)
            if mapping.is_address_probe:
                self._begin_delete(mapping, None)
                return
            self._report_grant(mapping)
        else:
            # NAT-PMP does not tell the address with the port: ask, unless it was told only just now.
            mapping.assign(self._session.external.address, answer.external_port)
            if not self._session.external.is_fresh(now):
                self._address_wanted = True
            was_without_address = (
                mapping.reported_external is not None and mapping.reported_external.address is None
            )  # then it has none to tell
            if self._session.external.address is not None or was_without_address:
                self._report_grant(mapping)
            else:
                self._awaiting_external_address[mapping] = None
                self._timers.set((Timer.ADDRESS, mapping), now + _ADDRESS_WAIT)
        self._reconcile(mapping, purpose, now)

    def _report_grant(self, mapping: ClientMapping) -> None:
        """Say what is true now of a held mapping. One of a pair waits until its twin has been answered as well."""
        if mapping in self._awaiting_external_address:
            del self._awaiting_external_address[mapping]
            self._timers.cancel((Timer.ADDRESS, mapping))
        mapping.has_unreported_grant = True
        if mapping.pair is None or mapping.pair.agrees:
            self._report_unreported(mapping)

    def _report_unreported(self, mapping: ClientMapping) -> None:
        """New, moved or renewed: what no event has said yet of a mapping that is held."""
        if (
            mapping.has_unreported_grant
            and mapping.is_held
            and mapping.external is not None
            and not mapping.is_address_probe
        ):
            self._queue.emit(mapping.take_event(self.gateway))

    def _report_waiting_grants(self) -> None:
        """Tell the grants that wait for an external address, which is known now or will not be soon."""
        for mapping in list(self._awaiting_external_address):
            assert mapping.external is not None
            mapping.assign(self._session.external.address, mapping.external.port)
            self._report_grant(mapping)

    def _on_refusal(self, mapping: ClientMapping, reason: Reason, answer: MapAnswer, now: float) -> None:
        exchange, code = mapping.exchange, answer.result_code
        purpose = exchange.purpose if exchange else None
        if purpose is CREATE and self._relax_request(mapping, reason):
            self._end_exchange(exchange)
            self._ready.appendleft((CREATE, mapping))
            return
        self._end_exchange(exchange)
        mapping.unusable_grants += reason is Reason.UNUSABLE_GRANT
        # A success says nothing about how long it is no use to ask again: ever longer, as after silence.
        hold = (
            self._bounded(answer.hold) if code else self._session.reachability.growing_hold(mapping.unusable_grants - 1)
        )
        if answer.server_wide:  # RFC 6887 section 11.4
            self._session.reachability.hold_new(now + hold)
            self._wake_after_hold(now)
        asked_to_renew = mapping.is_renewal_open if exchange is None else purpose in (RENEW, Purpose.CONFIRM)
        is_lost = (
            mapping.loss_count < self._session.restarts.last_certain_loss
            or mapping.dialect is None
            or reason is Reason.DELETED
        )
        if mapping.is_held and asked_to_renew and not is_lost:
            # The lease stands; the same request is not sent again within the error's lifetime (RFC 6887 section 8.3).
            mapping.hold_until, mapping.is_renewal_open = now + hold, False
            mapping.loss_count = self._session.restarts.loss_count
            self._schedule_renewal(mapping, now + hold)
        elif mapping.is_held:
            self._lose(mapping, reason, code, now + hold)
        elif exchange is not None and reason in _HOPELESS:
            self._fail(mapping, reason, code)
        elif exchange is not None:
            self._refuse(mapping, reason, code, now + hold)
        self._reconcile(mapping, purpose, now)

    def _relax_request(self, mapping: ClientMapping, reason: Reason) -> bool:
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

    def _on_other_endpoint(self, mapping: ClientMapping, answer: MapAnswer, now: float) -> None:
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
        self._end_exchange(exchange)
        end = self._lose if mapping.is_held else self._refuse
        end(mapping, Reason.CANNOT_PROVIDE_EXTERNAL, answer.result_code, now + self._config.max_hold)

    def _on_delete_response(self, dialect: Dialect, mapping: ClientMapping, answer: MapAnswer, now: float) -> None:
        if answer.reason is None and not dialect.is_deleted(answer):
            self._rejected[Rejected.OLD] += 1  # a late answer to a request to map; the delete is still on its way
            return
        if answer.reason is not None:
            self._tolerated[Tolerated.DELETE_REFUSED] += 1
        if answer.server_wide:  # RFC 6887 section 11.4
            self._session.reachability.hold_all(now + self._bounded(answer.hold))
            self._wake_after_hold(now)
        if mapping.state is MappingState.RELEASING:
            self._finish_delete(mapping, confirmed=answer.reason is None)
        else:
            self._on_reassigned(mapping, now)

    def _on_version_error(self, error: VersionError, now: float) -> None:
        """Go over to the version offered, at once and with the same request (RFC 6886 section 1.1, 6887 section 9)."""
        offered = self._session.versions.dialects.get(error.offered)
        affected = [exchange for exchange in self._in_flight if exchange.dialect is not offered]
        if (
            self._session.versions.is_proven_other_than(offered)
            or (not affected and offered is self._session.versions.current)
            or not self._in_flight
        ):
            # Not believed: who answered with our nonce speaks its version. Or nothing new: each request that was under
            # way draws its own error, and the first was enough.
            self._rejected[Rejected.VERSION_ERROR] += 1
            return
        self._mark_reachable()
        probes = [each for each in affected or self._in_flight if each.purpose is Purpose.PROBE]
        for probe in probes:
            self._end_exchange(probe)
            self._add_finding(probe, Reason.UNSUPPORTED_VERSION, 1, None, now)
        affected = [exchange for exchange in affected if exchange in self._in_flight]
        if offered is not None and affected and error.offered not in self._session.versions.refused_versions:
            self._session.versions.refused_versions.update(exchange.dialect.version for exchange in affected)
            self._adopt(offered, now, is_certain=True)
        elif affected or not probes:
            self._session.versions.refused_versions.clear()
            self._session.versions.current = None
            self._refuse_all(Reason.UNSUPPORTED_VERSION, 1, now + self._bounded(error.hold), now)

    def _find(self, dialect: Dialect, answer: MapAnswer) -> ClientMapping | None:
        """The mapping that an answer is about."""
        if dialect.has_nonce:
            found = self._by_nonce.get(answer.nonce)
            return found if found is not None and dialect.matches(answer, found.spec) else None
        target = (answer.protocol, answer.internal_port)
        named = self._releasing.get(target) or self._wanted.get(target)
        # Only the request under way can tell, unless the answer names another mapping.
        awaited = [each.mapping for each in self._in_flight if each.mapping and each.dialect is dialect]
        return next((each for each in awaited if named in (None, each) and dialect.matches(answer, each.spec)), named)

    def _on_authentic_response(self, dialect: Dialect, epoch: int | None, now: float) -> bool:
        """A believable datagram of the gateway: it is there, and its epoch says whether it lost its state."""
        self._mark_reachable()
        self._session.versions.on_response(dialect, now)
        loss = self._session.restarts.observe(dialect, epoch, now)
        if loss is None:
            return False
        self._arm_recovery()
        if loss.is_first:
            self._queue.emit(GatewayRestarted(gateway=self.gateway, recovery_at=loss.recovery_at))
        return True

    def _schedule_confirmation(self, now: float) -> None:
        """The gateway may have lost its state, though its epoch does not show it."""
        self._session.restarts.suspect(now)
        self._arm_recovery()

    def _arm_recovery(self) -> None:
        due, recover = self._session.restarts.due, (Timer.RECOVER, None)
        if due is not None and due != self._timers.deadline(recover):
            self._timers.set(recover, due)

    def _mark_reachable(self) -> None:
        self._session.servers.on_response()
        comeback = self._session.reachability.on_response(self._now)
        if comeback is None:
            return
        self._queue.emit(GatewayRecovered(gateway=self.gateway))
        for mapping in self._mappings.values():
            if mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, min(comeback, mapping.retry_at or self._now))
            elif mapping.is_held and mapping.exchange is None and mapping.is_renewal_open:
                self._schedule_renewal(mapping, self._now)  # it was put off

    def _learn_address(self, address: IPAddress | None, now: float) -> None:
        old = self._session.external.address
        change = self._session.external.learn(address, now)
        if change is None or address is None:
            return
        was_requested, self._address_requested = self._address_requested, False
        if change is not AddressChange.SAME and old is not None:
            self._queue.emit(ExternalAddressChanged(gateway=self.gateway, old=old, new=address))
        elif change is not AddressChange.SAME or was_requested:
            self._queue.emit(ExternalAddressLearned(gateway=self.gateway, address=address))
        if change is AddressChange.SAME:
            return
        if (reason := reason_of(address)) is not None:
            self._queue.emit(DoubleNatSuspected(gateway=self.gateway, address=address, reason=reason))
        for mapping in self._mappings.values():
            if mapping.is_held and mapping.follows_gateway and mapping.external is not None:
                mapping.assign(address, mapping.external.port)
                self._report_grant(mapping)

    # --- pairs

    def _reconcile(self, mapping: ClientMapping, purpose: Purpose | None, now: float) -> None:
        """What becomes of a pair after something has become of one of it; `purpose` of the request that is over."""
        pair = mapping.pair
        if pair is None or mapping.state is MappingState.RELEASING:
            return
        twin = pair.twin(mapping)
        self._unblock()  # it waits for this one, whose answer may come while no request is under way
        if mapping.is_held and mapping.external is not None and not twin.is_held:
            twin.suggest(twin.spec.external.address, mapping.external.port)
        if mapping is pair.tcp:
            pair.is_following = pair.is_following and purpose is None and mapping.is_held
        elif purpose not in (None, CREATE):
            pair.is_following = self._renew_now(pair.tcp, now)
        self._conclude(pair)

    def _conclude(self, pair: Pair) -> None:
        """Tell both once both have been answered here, or let one of them ask for the other's port."""
        both = (pair.tcp, pair.udp)
        if pair.is_following or any(each.exchange or each.is_unsure for each in both):
            return
        if pair.agrees:
            pair.rounds, pair.is_split = 0, False
        elif pair.udp.is_held and pair.tcp.is_held:
            if pair.rounds < pair.MAX_ROUNDS:
                pair.rounds += 1
                self._reassign(both[pair.rounds % 2], both[(pair.rounds + 1) % 2])  # in turn, TCP's port first
                return
            if not pair.is_split:
                pair.is_split = True
                self._queue.emit(PairSplit(gateway=self.gateway, tcp=pair.tcp.id, udp=pair.udp.id))
        for each in both:
            self._report_unreported(each)

    def _reassign(self, mapping: ClientMapping, twin: ClientMapping) -> None:
        """Delete it, to ask for it anew with the port of its twin; what was told of it stands until then."""
        assert twin.external is not None
        mapping.suggest(twin.external.address, twin.external.port)
        self._transition(mapping, Input.MOVE)
        self._cancel_lease(mapping)
        self._ready.append((Purpose.REASSIGN, mapping))

    def _on_reassigned(self, mapping: ClientMapping, now: float) -> None:
        self._end_exchange(mapping.exchange)
        mapping.external = None
        self._ready.appendleft((CREATE, mapping))
        self._reconcile(mapping, Purpose.REASSIGN, now)

    def _dissolve(self, mapping: ClientMapping) -> None:
        """One of a pair is wanted no more; the other is left alone. UDP remembers TCP, which has to be renewed once
        more when the delete is done."""
        pair = mapping.pair
        if pair is None:
            return
        twin = pair.twin(mapping)
        twin.pair = None
        if mapping is pair.tcp:
            mapping.pair = None
        self._report_unreported(twin)
        self._unblock()

    # --- versions and addresses

    def _adopt(self, dialect: Dialect, now: float, *, is_certain: bool = False) -> None:
        """The gateway speaks this. What waits for an answer in another dialect is asked again in this one."""
        if self._session.versions.current is dialect and self._session.versions.is_certain >= is_certain:
            return
        self._session.versions.adopt(dialect, now, is_certain=is_certain)
        self._timers.cancel((Timer.FALLBACK, None))
        if self._session.versions.reported_version != dialect.version:
            if (
                dialect is self._session.versions.preferred
            ):  # what was refused in a lesser protocol may be granted in this one
                for refused in self._mappings.values():
                    if refused.state is MappingState.REFUSED:
                        self._retry_later(refused, now)
            self._session.versions.reported_version = dialect.version
            self._queue.emit(VersionNegotiated(gateway=self.gateway, version=dialect.version))
        again = []
        for exchange in list(self._in_flight):
            mapping = exchange.mapping
            stays = exchange.purpose is Purpose.PROBE
            if mapping is not None:  # what can be asked in no other keeps its schedule
                stays = exchange.dialect is self._dialect_for(exchange.purpose, mapping)
            if exchange.dialect is not dialect and not stays:
                self._end_exchange(exchange)
                if mapping is not None:
                    again.append((exchange.purpose, mapping))
        self._ready.extendleft(reversed(again))

    def _on_fallback(self, now: float) -> None:
        """Ask in the other dialects as well, with a request that changes nothing there, and once more in the preferred
        one, so that a single lost datagram does not decide."""
        preferred = self._session.versions.preferred
        asking = [exchange for exchange in self._in_flight if exchange.purpose in ASKING]
        for dialect in self._session.versions.dialects.values():
            if dialect is preferred or not asking:
                continue
            if not self._has_capacity(dialect):
                self._timers.set((Timer.FALLBACK, None), now + _FALLBACK_RETRY)
                continue
            # Not a renewal: that is a single packet (RFC 6887 section 11.2.1).
            again = [each for each in asking if each.dialect is preferred and each.purpose is not RENEW]
            for first in again[:1]:
                self._queue.send(first.data, self.gateway, first)
            self._start(Purpose.FALLBACK, None, dialect, dialect.probe_request(), now)

    def _on_address_failed(self, reason: Reason, now: float) -> None:
        """Nobody answers at this address: go on at the next one of the server, or give it up (RFC 7488 section 3)."""
        if self._session.servers.on_failure() is None:
            self._give_up(reason, now)
            return
        self._session.restarts.forget_epochs()
        self._timers.cancel((Timer.FALLBACK, None))
        for exchange in list(self._in_flight):
            self._end_exchange(exchange)
            if exchange.mapping is not None:
                self._ready.append((exchange.purpose, exchange.mapping))
            elif exchange.purpose is Purpose.PROBE and self._probe is not None:
                self._probe.waiting.append(exchange.dialect)

    # --- time

    def _on_timer(self, reason: Timer, about: ClientMapping | None, now: float) -> None:
        match reason:
            case Timer.FALLBACK:
                self._on_fallback(now)
            case Timer.RECOVER:
                self._on_recover(now)
            case Timer.ADDRESS:
                self._report_waiting_grants()
            case Timer.HOLD:
                self._unblock()
                self._wake_after_hold(now)
            case _:
                self._on_mapping_timer(reason, typing.cast("ClientMapping", about), now)

    def _on_overdue(self, exchange: Exchange, now: float) -> None:
        if exchange not in self._in_flight:
            return
        if exchange.limit is not None and exchange.attempts >= exchange.limit:
            self._on_unanswered(exchange, now)
        elif exchange.attempts == exchange.dialect.attempts_until_unreachable and not self._session.servers.is_single:
            self._on_address_failed(Reason.NO_ANSWER, now)
        else:
            self._transmit(exchange, now)
            if exchange.attempts == exchange.dialect.attempts_until_unreachable + 1:
                self._on_past_patience(exchange, now)

    def _on_unanswered(self, exchange: Exchange, now: float) -> None:
        mapping = exchange.mapping
        if exchange.purpose in (Purpose.FALLBACK, CREATE):
            self._on_address_failed(Reason.NO_ANSWER, now)  # which ends it, or takes it along to the next address
            return
        self._end_exchange(exchange)
        if exchange.purpose is Purpose.PROBE:
            self._add_finding(exchange, Reason.NO_ANSWER, None, None, now)
        elif mapping is None:
            self._report_waiting_grants()
        elif exchange.purpose is Purpose.DELETE:  # whoever closes does not wait for each of many to meet with silence
            for each in list(self._mappings.values()) if self._closing else [mapping]:
                self._finish_delete(each, confirmed=False)
        elif exchange.purpose is Purpose.REASSIGN:
            self._on_reassigned(mapping, now)
        else:
            if exchange.dialect.renewal_attempts > 1:
                self._mark_unreachable(Reason.NO_ANSWER)
            self._ask_again(mapping, now, now + self._config.min_hold)
            self._reconcile(mapping, exchange.purpose, now)
            unanswered = self._session.servers.on_unanswered(exchange.attempts)
            if unanswered >= exchange.dialect.attempts_until_unreachable and not self._session.servers.is_single:
                # As many as a request would have been sent: another address may save the lease.
                self._on_address_failed(Reason.NO_ANSWER, now)
                if self._session.servers.is_mid_round:
                    self._renew_now(mapping, now)

    def _on_past_patience(self, exchange: Exchange, now: float) -> None:
        """A request that is sent for ever has met with silence for long enough to say so."""
        mapping = exchange.mapping
        if mapping is None or mapping.state is not MappingState.REQUESTING:
            return
        if self._session.versions.current is not None and not self._session.versions.current.supports(mapping.spec):
            self._fail(mapping, Reason.NEEDS_PCP, None)
            return
        if any(other.purpose is Purpose.FALLBACK for other in self._in_flight):
            return  # the verdict comes when the other dialect has met with silence, too
        if self._session.versions.can_fall_back and not self._session.versions.is_proven_other_than(None):
            self._session.versions.current = None  # it answered once, and may have been replaced
            self._on_fallback(now)
            return
        self._mark_unreachable(Reason.NO_ANSWER)
        for each in [mapping] if mapping.pair is None else [mapping, mapping.pair.twin(mapping)]:
            if each.state is MappingState.REQUESTING:
                self._report_missing(each, Reason.NO_ANSWER, None, now + exchange.wait)
            else:
                self._report_unreported(each)

    def _on_mapping_timer(self, reason: Timer, mapping: ClientMapping, now: float) -> None:
        match reason:
            case Timer.RENEW if now < mapping.expires_at:
                mapping.renew_at = None
                self._arm(mapping)
                if not self._renew_udp_first(mapping, now):
                    self._queue_renewal(mapping)
            case Timer.RENEW | Timer.EXPIRE:
                why = Reason.EXPIRED if mapping.dialect is not None else Reason.NETWORK_CHANGED
                self._lose(mapping, why, None, max(now, mapping.hold_until))
                self._reconcile(mapping, None, now)
            case Timer.RETRY:
                self._retry(mapping)
            case _:
                about = mapping.about(self.gateway)
                self._begin_delete(mapping, MappingFailed(**about, reason=Reason.DEADLINE, result_code=None))

    def _renew_udp_first(self, mapping: ClientMapping, now: float) -> bool:
        """Whether UDP of the pair is renewed instead of TCP, which follows."""
        pair = mapping.pair
        if pair is None or mapping is pair.udp or pair.is_following:
            return False
        return self._renew_now(pair.udp, now, is_put_off=False)

    def _on_recover(self, now: float) -> None:
        """Ask for everything again that was granted before the gateway lost its state (RFC 6887 section 14.1.3)."""
        restarts, reachability = self._session.restarts, self._session.reachability
        if now < reachability.hold_all_until:  # nothing may be asked (RFC 6887 section 11.4)
            restarts.postpone(reachability.hold_all_until)
            self._arm_recovery()
            return
        has_lost = restarts.begin_recovery(now)
        waiting = {mapping for purpose, mapping in (*self._ready, *self._blocked) if purpose is Purpose.CONFIRM}
        for mapping in self._mappings.values():
            if mapping.is_held and mapping.loss_count < restarts.loss_count:
                self._end_exchange(mapping.exchange)
                if mapping not in waiting:
                    self._ready.append((Purpose.CONFIRM, mapping))
            elif has_lost and mapping.state is MappingState.REFUSED:
                self._retry_later(mapping, now)
            if has_lost and mapping.pair is not None:
                mapping.pair.rounds = 0

    def _schedule_renewal(self, mapping: ClientMapping, earliest: float) -> None:
        mapping.plan_renewal(earliest)
        self._arm(mapping)

    def _renew_now(self, mapping: ClientMapping, now: float, *, is_put_off: bool = True) -> bool:
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

    def _queue_renewal(self, mapping: ClientMapping) -> None:
        if not mapping.is_renewal_queued:
            mapping.is_renewal_queued = True
            self._ready.append((RENEW, mapping))

    def _arm(self, mapping: ClientMapping) -> None:
        """Wake up for a held mapping at its next renewal, or at the end of its lease if there is none."""
        if mapping.renew_at is not None:
            self._timers.cancel((Timer.EXPIRE, mapping))
            self._timers.set((Timer.RENEW, mapping), mapping.renew_at)
        else:
            self._timers.cancel((Timer.RENEW, mapping))
            self._timers.set((Timer.EXPIRE, mapping), mapping.expires_at)

    def _ask_again(self, mapping: ClientMapping, renew_after: float, recover_at: float) -> None:
        """Nobody answered the request of a mapping that is held: renew later, or recover if the gateway lost it."""
        if mapping.loss_count == self._session.restarts.loss_count:
            self._schedule_renewal(mapping, renew_after)
        else:
            self._timers.set((Timer.RECOVER, None), self._session.restarts.retry(recover_at))

    def _give_up(self, reason: Reason, now: float) -> None:
        """The gateway does not answer at all: end what is under way, and try again after a growing wait."""
        session = self._session
        retry_at = session.reachability.on_silence(reason, now, is_single=session.servers.is_single)
        self._session.versions.current = None
        self._timers.cancel((Timer.FALLBACK, None))
        self._mark_unreachable(reason)
        self._refuse_all(reason, None, retry_at, now)

    def _refuse_all(self, reason: Reason, code: int | None, retry_at: float, now: float) -> None:
        for exchange in list(self._in_flight):
            self._end_exchange(exchange)
            mapping = exchange.mapping
            if mapping is None:
                if exchange.purpose is Purpose.PROBE:
                    self._add_finding(exchange, reason, None, None, now)
            elif mapping.state is MappingState.RELEASING:
                self._finish_delete(mapping, confirmed=False)
            elif mapping.is_held:
                renew_after = max(now + MIN_RENEWAL_GAP, (now + mapping.expires_at) / 2)
                self._ask_again(mapping, min(retry_at, renew_after), retry_at)
                self._reconcile(mapping, exchange.purpose, now)
        for mapping in list(self._mappings.values()):
            if mapping.state is MappingState.REQUESTING:
                self._refuse(mapping, reason, code, retry_at)
                self._reconcile(mapping, None, now)
            elif mapping.state is MappingState.REFUSED and mapping.refused_by_silence:
                self._retry_later(mapping, retry_at)
        self._ready = deque(task for task in self._ready if task[1].state is not MappingState.REFUSED)

    def _bounded(self, hold: float) -> float:
        """An error's lifetime as far as it is believed (RFC 6887 section 8.3): some gateways send 0."""
        if hold < self._config.min_hold:
            self._tolerated[Tolerated.SHORT_ERROR] += 1
        return min(max(hold, self._config.min_hold), self._config.max_hold)

    def _wake_after_hold(self, now: float) -> None:
        end = self._session.reachability.next_hold_end(now)
        if end is not None:
            self._timers.set((Timer.HOLD, None), end)

    def _mark_unreachable(self, reason: Reason) -> None:
        self._session.external.forget_prefixes()
        if self._session.reachability.mark_unreachable():
            self._queue.emit(GatewayUnreachable(gateway=self.gateway, reason=reason))

    # --- ends of a mapping

    def _refuse(self, mapping: ClientMapping, reason: Reason, code: int | None, retry_at: float) -> None:
        if mapping.is_address_probe:
            self._remove(mapping)
            return
        self._transition(mapping, Input.REFUSE)
        mapping.refused_by_silence = code is None
        mapping.may_exist_at_gateway = mapping.may_exist_at_gateway and not code  # a grant of no use is one
        self._retry_later(mapping, retry_at)
        self._report_missing(mapping, reason, code, retry_at)
        self._unblock()

    def _lose(self, mapping: ClientMapping, reason: Reason, code: int | None, retry_at: float) -> None:
        self._end_exchange(mapping.exchange)
        self._transition(mapping, Input.LOSE)
        mapping.refused_by_silence = mapping.may_exist_at_gateway = mapping.has_unreported_grant = False
        mapping.external = mapping.dialect = None
        self._cancel_lease(mapping)
        if not self._session.versions.has_leases:
            self._session.versions.current = None  # nothing proves any more which version it speaks
        self._report_missing(mapping, reason, code, retry_at)
        self._retry_later(mapping, retry_at)
        self._unblock()

    def _report_missing(self, mapping: ClientMapping, reason: Reason, code: int | None, retry_at: float) -> None:
        """Lost is only what was told as granted."""
        told, mapping.reported_external = mapping.reported_external, None
        kind = MappingRefused if told is None else MappingLost
        self._report_about(kind, mapping, reason=reason, result_code=code, retry_at=retry_at)

    def _cancel_lease(self, mapping: ClientMapping) -> None:
        mapping.renew_at, mapping.is_renewal_queued = None, False
        self._awaiting_external_address.pop(mapping, None)
        for timer in (Timer.EXPIRE, Timer.RENEW, Timer.ADDRESS):
            self._timers.cancel((timer, mapping))

    def _retry_later(self, mapping: ClientMapping, retry_at: float) -> None:
        mapping.retry_at = retry_at
        self._timers.set((Timer.RETRY, mapping), retry_at)

    def _retry(self, mapping: ClientMapping) -> None:
        self._transition(mapping, Input.RETRY)
        mapping.retry_at = None
        self._timers.cancel((Timer.RETRY, mapping))
        self._ready.append((CREATE, mapping))

    def _begin_delete(self, mapping: ClientMapping, ending: MappingFailed | None) -> None:
        """Delete it at the gateway if it may be there; `ending` is the terminal event, else MappingReleased."""
        self._end_exchange(mapping.exchange)
        self._transition(mapping, Input.RELEASE)
        mapping.ending = ending
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        self._awaiting_external_address.pop(mapping, None)
        self._dissolve(mapping)
        target = mapping.spec.target
        if self._wanted.get(target) is mapping:
            del self._wanted[target]
        if mapping.may_exist_at_gateway:
            self._releasing[target] = mapping
            self._ready.append((Purpose.DELETE, mapping))
        else:
            self._finish_delete(mapping, confirmed=True)

    def _finish_delete(self, mapping: ClientMapping, *, confirmed: bool) -> None:
        self._remove(mapping)
        if mapping.ending is not None:
            self._queue.emit(mapping.ending)
        else:
            self._report_about(MappingReleased, mapping, confirmed=confirmed)
        if mapping.pair is not None:
            self._renew_now(mapping.pair.tcp, self._now)

    def _fail(self, mapping: ClientMapping, reason: Reason, code: int | None) -> None:
        """It can never work as asked."""
        self._dissolve(mapping)
        self._remove(mapping)
        self._report_about(MappingFailed, mapping, reason=reason, result_code=code)

    def _remove(self, mapping: ClientMapping) -> None:
        """Forget a mapping."""
        self._end_exchange(mapping.exchange)
        self._transition(mapping, Input.END)
        for timer in Timer:
            self._timers.cancel((timer, mapping))
        target = mapping.spec.target
        for table in (self._wanted, self._releasing):
            if table.get(target) is mapping:
                del table[target]
        self._by_nonce.pop(mapping.spec.nonce, None)
        self._port_sets.pop(mapping.id, None)
        del self._mappings[mapping.id]
        self._unblock()

    def _transition(self, mapping: ClientMapping, what: Input, dialect: Dialect | None = None) -> None:
        """Take a step of the table, and count what the gateway has of us."""
        self._count(mapping, -1)
        mapping.move(what)
        mapping.dialect = dialect or mapping.dialect
        self._count(mapping, +1)

    def _count(self, mapping: ClientMapping, change: int) -> None:
        if mapping.dialect is not None and mapping.state in (MappingState.HELD, MappingState.RELEASING):
            self._session.versions.count_lease(mapping.dialect, change)

    def _report_about(self, kind: Callable[..., Event], mapping: ClientMapping, **fields: object) -> None:
        if not mapping.is_address_probe:
            self._queue.emit(kind(**mapping.about(self.gateway), **fields))

    # --- exchanges

    def _send_requests(self, now: float) -> None:
        """Start what waits, in order, as far as the dialect lets requests be under way."""
        self._session.versions.expire(now)
        if self._in_flight.questions:
            self._end_idle_questions()
        if self._address_wanted or self._probe is not None:
            self._ask_questions(now)
        while self._ready and (now >= self._session.reachability.hold_all_until or self._closing):
            purpose, mapping = task = self._ready.popleft()
            dialect: Dialect | None = None
            if mapping.has_use_for(purpose, self._session.restarts.loss_count, now):
                if self._has_to_wait(purpose, mapping, now):
                    self._blocked.append(task)
                    continue
                dialect = self._dialect_for(purpose, mapping)
                if not self._has_capacity(dialect) and not self._free_capacity(dialect):
                    self._ready.appendleft(task)
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
            idle = {Purpose.FALLBACK, Purpose.ADDRESS, Purpose.PROBE}
        elif any(exchange.purpose in ASKING for exchange in self._in_flight):
            return
        else:
            idle = {Purpose.FALLBACK}
        for exchange in [exchange for exchange in self._in_flight if exchange.purpose in idle]:
            self._end_exchange(exchange)

    def _ask_questions(self, now: float) -> None:
        """Start what is about no mapping, as far as there is room for it."""
        if self._probe is not None:
            for dialect in tuple(self._probe.waiting):
                if self._has_capacity(dialect) or self._free_capacity(dialect):
                    self._probe.waiting.remove(dialect)
                    self._start(Purpose.PROBE, None, dialect, dialect.probe_request(), now)
                    self._end_idle_questions()  # what has given its place up may have left one
        teller = self._session.versions.address_teller if self._address_wanted and not self._closing else None
        if teller is not None and self._has_capacity(teller):
            self._address_wanted = False
            self._start(Purpose.ADDRESS, None, teller, teller.probe_request(), now)

    def _has_to_wait(self, purpose: Purpose, mapping: ClientMapping, now: float) -> bool:
        """Whether a request must wait for the gateway to have room, for the delete of another mapping of the same port,
        or for the twin's answer."""
        if purpose is CREATE:
            is_taken = self._releasing.get(mapping.spec.target, mapping) is not mapping
            if is_taken or not self._session.reachability.may_create(now):
                return True
        pair = mapping.pair
        if pair is None or purpose is Purpose.DELETE:
            return False
        udp = pair.udp
        is_udp_next = udp.state is MappingState.REQUESTING and purpose is CREATE
        is_udp_next = is_udp_next or (udp.is_held and udp.loss_count < self._session.restarts.loss_count)
        return pair.twin(mapping).exchange is not None or (mapping is pair.tcp and is_udp_next)

    def _unblock(self) -> None:
        self._ready.extendleft(reversed(self._blocked))
        self._blocked.clear()

    def _dialect_for(self, purpose: Purpose, mapping: ClientMapping) -> Dialect:
        if purpose in DELETING and mapping.dialect is not None:
            return mapping.dialect
        return self._session.versions.for_spec(mapping.spec)

    def _has_capacity(self, dialect: Dialect) -> bool:
        return self._in_flight.in_version[dialect.version] < (1 if dialect.serial else self._config.window)

    def _free_capacity(self, dialect: Dialect) -> bool:
        """What is sent for ever and meets with silence gives its place up, and comes last. True: there is room now."""
        tired = self._in_flight.first_past_patience(dialect)
        if tired is not None and tired.mapping is not None:
            self._end_exchange(tired)
            self._ready.append((tired.purpose, tired.mapping))
        return tired is not None and self._has_capacity(dialect)

    def _start_task(self, purpose: Purpose, mapping: ClientMapping, dialect: Dialect, now: float) -> None:
        spec = mapping.spec
        reachability = self._session.reachability
        if purpose is CREATE and now < reachability.silent_until:
            self._refuse(mapping, reachability.silent_reason, None, reachability.silent_until)
        elif mapping.is_address_probe and purpose is CREATE and dialect.tells_address:
            self._remove(mapping)  # it speaks a protocol that has a question for it
            self._start(Purpose.ADDRESS, None, dialect, dialect.probe_request(), now)
        elif not dialect.supports(spec):
            if purpose is Purpose.DELETE:
                self._finish_delete(mapping, confirmed=False)  # the gateway cannot have it
            else:
                self._fail(mapping, Reason.NEEDS_PCP, None)
        elif purpose in DELETING:
            data = dialect.delete_request(mapping.granted)
            if data is not None:
                self._start(purpose, mapping, dialect, data, now)
            else:
                self._finish_delete(mapping, confirmed=False)
        else:
            if mapping.spec.until is not None:
                left = max(1, math.ceil(mapping.spec.until - now))
                if left < spec.lifetime:
                    spec = attrs.evolve(spec, lifetime=left)
            mapping.may_exist_at_gateway = True
            if purpose is RENEW:
                mapping.renewals = mapping.next_renewal
                # The gap of the dialect in which it is asked, not of that in which it was granted.
                mapping.is_renewal_open, mapping.no_renewal_before = True, now + dialect.renewal_gap
                lifetime, spec = spec.lifetime, mapping.granted
                spec = spec if spec.lifetime == lifetime else attrs.evolve(spec, lifetime=lifetime)
            self._start(purpose, mapping, dialect, mapping.map_request(spec, dialect), now)

    def _start(
        self, purpose: Purpose, mapping: ClientMapping | None, dialect: Dialect, data: bytes, now: float
    ) -> None:
        limit = max_attempts(purpose, dialect, mapping, self._config.delete_attempts)
        exchange = Exchange(purpose=purpose, mapping=mapping, dialect=dialect, data=data, limit=limit)
        self._in_flight.begin(exchange)
        if mapping is not None:
            mapping.exchange = exchange
        is_first = (
            self._session.versions.current is None
            and dialect is self._session.versions.preferred
            and purpose is not Purpose.PROBE
        )
        if is_first and self._session.versions.can_fall_back:
            fallback = (Timer.FALLBACK, None)
            if self._timers.deadline(fallback) is None and all(
                other.dialect is dialect or other.purpose is Purpose.PROBE for other in self._in_flight
            ):
                self._timers.set(fallback, now + self._config.fallback_delay)
        self._transmit(exchange, now)

    def _transmit(self, exchange: Exchange, now: float) -> None:
        exchange.attempts += 1
        exchange.sent_at = now
        exchange.wait = exchange.dialect.wait(exchange.attempts, exchange.wait or None)
        self._queue.send(exchange.data, self.gateway, exchange)
        self._timers.set(exchange, now + exchange.wait)

    def _end_exchange(self, exchange: Exchange | None) -> None:
        if exchange is None:
            return
        self._in_flight.end(exchange)
        self._timers.cancel(exchange)
        mapping = exchange.mapping
        if mapping is not None:
            mapping.exchange = None
            if mapping.pair is not None:
                self._unblock()

    def _add_finding(
        self, probe: Exchange, reason: Reason | None, code: int | None, epoch: int | None, now: float
    ) -> None:
        """One more finding for `Client.probe`; a result code of None: nobody has answered."""
        assert self._probe is not None  # its questions end with it
        version, trip = probe.dialect.version, None if code is None else now - probe.sent_at
        self._probe.add(Finding(version=version, reason=reason, result_code=code, epoch=epoch, round_trip=trip))
        if self._probe.is_complete:
            completed = self._probe.result(self.gateway, self._session.external.address)
            self._probe = None
            self._queue.emit(completed)


_HOPELESS = frozenset({Reason.UNSUPPORTED_OPTION, Reason.UNSUPPORTED_PROTOCOL, Reason.THIRD_PARTY_ID})
_ADDRESS_WAIT = 2.0  # s for which a NAT-PMP grant waits for the external address before it is told without
_FALLBACK_RETRY = 1.0  # s until the other dialect is tried again that had no room
_MISMATCHES = 2  # answers with another endpoint than the only one wanted, before they are taken at their word
