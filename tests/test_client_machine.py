"""The life of clients as a state machine: whatever the network, the gateway and an attacker do, in whatever order.

`Watched` is a client on the wire with its twin: equal seeds, equal inputs, but woken too often and drained late. What
the client hears and puts out is checked, item by item, against a model: `Exchange` knows the schedules, `Known` what
is true of one mapping. `World` is the LAN with its gateway; `Life` lets Hypothesis choose what happens to it. For a
longer look, with figures: CLIENT_EXAMPLES=10000 python -m pytest -s tests/test_client_machine.py
"""

from __future__ import annotations

import math
import os
import random
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import zip_longest

import attrs
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from forgery import KINDS, forged
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Config,
    DecodeError,
    Endpoint,
    Event,
    ExternalAddressChanged,
    ExternalAddressLearned,
    Gateway,
    GatewayConfig,
    GatewayRecovered,
    GatewayRestarted,
    GatewayUnreachable,
    LocalProtocolError,
    MappingChanged,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    MappingState,
    Output,
    Protocol,
    Reason,
    SendDatagram,
    VersionNegotiated,
    decode,
    natpmp,
    pcp,
    wire,
)
from natpmp_sansio.testing import Clock, Link, Simulation
from natpmp_sansio.wire.fields import IPAddress

EXAMPLES = int(os.environ.get("CLIENT_EXAMPLES", "100"))

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, 132
HELD, REFUSED, RELEASING = MappingState.HELD, MappingState.REFUSED, MappingState.RELEASING
ROUNDING = 1e-6  # s: times are floats
MAX_LEASE = 900.0  # s, of the gateway, and the longest that is believed
MAX_HOLD = 300.0
# Long enough for all to be well again: what an old silence has made of the wait (RFC 6887 section 8.1.1), a mapping
# under another nonce until its lease is over, one more hold time, a lease of our own, and a recovery.
CONVERGENCE = 1.1 * 1024 + 2 * MAX_LEASE + 2 * MAX_HOLD + 60.0

EXTERNALS = ("203.0.113.5", "203.0.113.6")
SERVERS: dict[int, Address] = {4: ("192.168.1.1", 5351), 6: ("fe80::1", 5351, 0, 2)}
STRANGERS: dict[int, tuple[Address, ...]] = {
    4: (("192.168.1.66", 5351), ("192.168.1.1", 5352)),
    6: (("fe80::66", 5351, 0, 2), ("fe80::1", 5351, 0, 3)),
}
LOCALS = {4: ("192.168.1.7", "192.168.1.8"), 6: ("2001:db8:1::7",)}

Target = tuple[int, int]
T = typing.TypeVar("T")


@attrs.define(eq=False)
class Exchange:
    """One request, and when it may be sent again (RFC 6886 section 3.1, RFC 6887 section 8.1.1)."""

    version: int
    kind: str  # "ask", "renew", "recover", "delete" or "question"
    data: bytes
    limit: float  # how often it may be sent
    at: float  # when it was sent last
    count: int = 1
    waited: tuple[float, float] = (1.5, 1.5)  # at least and at most, before that
    is_over: bool = False
    is_doubtful: bool = False  # over, perhaps

    @property
    def wait(self) -> tuple[float, float]:
        """How long it waits for an answer, at least and at most."""
        if self.version == 0:
            return (0.25 * 2.0 ** (self.count - 1),) * 2
        least, most = (min(2.0 * each, 1024.0) for each in self.waited)
        return 0.9 * least, 1.1 * most

    def is_open(self, now: float) -> bool:
        return not self.is_over and (self.count < self.limit or now < self.at + self.wait[0] - ROUNDING)

    def goes_on(self, data: bytes, now: float) -> bool:
        """Whether a transmission is another one of it."""
        least, most = self.wait
        fits = self.is_doubtful and data == self.data and least - ROUNDING <= now - self.at <= most + ROUNDING
        return data[0] == self.version and (fits or self.is_open(now))

    def is_too_early_for(self, data: bytes, now: float) -> bool:
        """Whether a transmission in PCP is out of turn, and nothing else."""
        is_asking = self.kind in ("ask", "recover") and (not self.is_over or self.is_doubtful)
        return is_asking and data == self.data and data[0] == 2 and now < self.at + self.wait[0] - ROUNDING

    def again(self, data: bytes, now: float, is_punctual: bool) -> None:
        least, most = self.wait
        assert data == self.data, f"another {self.kind} while the first may be answered"
        assert now - self.at >= least - ROUNDING, f"a {self.kind} sent again after {now - self.at} s"
        if is_punctual:
            self.check_not_overdue(now)
            least = most = now - self.at
        self.waited, self.at, self.count = (least, most), now, self.count + 1
        self.is_over = self.is_doubtful = False

    def check_not_overdue(self, now: float) -> None:
        if self.is_open(now) and self.count < self.limit:
            assert now - self.at <= self.wait[1] + ROUNDING, f"a {self.kind} not sent again in time"


@attrs.frozen
class Grant:
    """What an answer promised."""

    at: float
    lifetime: float
    port: int
    address: IPAddress | None  # NAT-PMP does not tell
    version: int

    @property
    def ends(self) -> float:
        return self.at + self.lifetime


@attrs.define(eq=False)
class Known:
    """What is known of one mapping. Times are on the client's clock."""

    id: MappingId
    target: Target
    until: float | None
    is_wanted: bool = True
    is_finished: bool = False
    nonce: bytes | None = None
    exchange: Exchange | None = None
    is_sent: bool = False
    may_exist: bool = False
    was_refused: bool = False
    refusal: int | None = None  # the result code that was heard last, and when
    refused: float = -math.inf
    hold: float = -math.inf  # not to be asked for again before
    grants: list[Grant] = attrs.field(factory=list)  # of which one is believed
    held: Grant | None = None
    told: Endpoint | None = None
    calm: float = math.inf  # since when all was well, as it was granted (clock of the simulation)
    renewals: int = 0
    renewed: float = -math.inf
    is_stale: bool | None = False  # the gateway has lost its state since; None: who knows
    stale_since: float = math.inf  # clock of the simulation
    was_held: bool = False  # as it was given up
    deletes: int = 0
    is_confirmed: bool = False

    @property
    def needs_pcp(self) -> bool:
        return self.target[0] not in (TCP, UDP)


def look(client: Client) -> tuple[object, ...]:
    """All that can be observed of a client without changing it, but for what it counts and what waits."""
    return (client.mappings, client.timers(), client.version, client.external_address, repr(client))


def read(data: bytes) -> wire.Message | None:
    try:
        return decode(data)
    except DecodeError:
        return None


def is_version_error(message: wire.Message) -> bool:
    return getattr(message, "result_code", 0) == 1 and not isinstance(
        message, natpmp.MapResponse | natpmp.ExternalAddressResponse
    )


def has_lost_state(version: int, then: tuple[int, float] | None, epoch: int, now: float) -> bool:
    """RFC 6886 section 3.6, RFC 6887 section 8.5."""
    if then is None:
        return False
    if version == 0:
        return epoch < then[0] + (now - then[1]) * 0.875 - 2
    server, client = epoch - then[0], int(now - then[1])
    return server + 1 < 0 or client + 2 < server - server // 16 or server + 2 < client - client // 16


class Watched:
    """A client with its twin, and what must be true of both. To the simulation it is the client."""

    def __init__(self, world: World, local: str, versions: tuple[int, ...], seed: int, **config: typing.Any) -> None:
        self.world, self.local = world, local
        self.server, self.met = world.server, world.met
        self.config = Config(versions=versions, max_hold=MAX_HOLD, max_lifetime=int(MAX_LEASE), **config)
        self.versions = versions if "." in local else (2,)
        self.prompt, self.late = (
            Client(world.server, local_address=local, config=self.config, rng=random.Random(seed)) for _ in range(2)
        )
        assert self.prompt.next_timeout() is None  # line 1
        assert self.prompt.poll() is None
        self.bind_address = self.prompt.bind_address
        self.now = -math.inf
        self.queue: list[Output] = []
        self.owed: list[Output] = []
        self.known: dict[MappingId, Known] = {}
        self.wanted: dict[Target, Known] = {}
        self.leaving: dict[MappingId, Known] = {}
        self.nonces: set[bytes] = set()
        self.question: Exchange | None = None
        self.epochs: dict[int, list[tuple[int, float] | None]] = {0: [None], 2: [None]}  # references that it may have
        self.verdicts = {False}
        self.recovered = -math.inf
        self.hold_new = self.hold_all = -math.inf
        self.late_at = -math.inf  # when it was woken too late
        self.address: IPAddress | None = None
        self.version: int | None = None
        self.is_unreachable = self.is_closing = self.is_closed = False
        self.heard: list[bytes] = []
        self.expected: Known | None = None

    # --- what a core has

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        is_from_server = addr == self.server
        is_plain = is_from_server and len(data) > 1 and bool(data[1] & 0x80)
        before = None if is_plain else self.all_of_it()
        self.wake_twin_early(now)
        claimed, again = (client.receive_datagram(data, addr, now) for client in (self.prompt, self.late))
        assert claimed is again
        if not claimed:
            assert before is None or self.all_of_it() == before  # line 3
            return False
        if is_plain:
            self.heard = [*self.heard[-30:], data]
        self.hear(data, is_from_server, now)
        self.drain(now)
        return True

    def handle_timeout(self, now: float) -> None:
        due = self.prompt.next_timeout()
        if due is not None and now > due + ROUNDING:
            self.late_at = now
        for known in [each for each in self.wanted.values() if each.until is not None and each.until <= now]:
            self.leave(known)
        recovery = self.pending_recovery()
        if recovery is not None and recovery <= now:
            self.recover(now)
        if any(each.version == 0 and each.count >= 9 and not each.is_open(now) for each in self.exchanges()):
            for exchange in self.exchanges():  # it may give up altogether
                exchange.is_over = exchange.is_doubtful = True
        self.prompt.handle_timeout(now)
        self.late.handle_timeout(now)
        self.drain(now)
        again = self.prompt.next_timeout()
        assert again is None or again > now  # line 5

    def next_timeout(self) -> float | None:
        return self.now if self.queue else self.prompt.next_timeout()

    def poll(self) -> Output | None:
        return self.queue.pop(0) if self.queue else None

    def outputs(self) -> Iterator[Output]:
        while (output := self.poll()) is not None:
            yield output

    # --- commands and other things that happen to it

    def wake_twin_early(self, now: float) -> None:
        """Lines 4 and 14: that makes no difference."""
        deadline = self.prompt.next_timeout()
        if deadline is None or deadline > now:
            self.late.handle_timeout(now)

    def command(self, act: Callable[[Client, float], T]) -> T:
        now = self.world.sim.now_of(self)
        self.wake_twin_early(now)
        outcome, again = (act(client, now) for client in (self.prompt, self.late))
        assert outcome == again
        return outcome

    def map_port(self, target: Target, *, life: float | None = None, **wish: typing.Any) -> None:
        now = self.world.sim.now_of(self)
        until = None if life is None else now + life
        if target in self.wanted or self.is_closing:
            before = self.all_of_it()
            for client in (self.prompt, self.late):
                try:
                    client.map_port(*target, now, **wish)
                except LocalProtocolError:
                    continue
                raise AssertionError("wanted twice")
            assert self.all_of_it() == before  # line 9
            return
        mapping = self.command(lambda client, now: client.map_port(*target, now, until=until, **wish))
        assert mapping not in self.known
        self.known[mapping] = self.wanted[target] = Known(id=mapping, target=target, until=until)
        self.drain(now)

    def unmap(self, known: Known) -> None:
        is_wanted = known.is_wanted
        if is_wanted:
            self.leave(known)
        assert self.command(lambda client, now: client.unmap(known.id, now)) is is_wanted
        self.drain(self.world.sim.now_of(self))

    def close(self) -> None:
        self.is_closing = True
        for known in list(self.wanted.values()):
            self.leave(known)
        self.finish(self.question)
        self.command(lambda client, now: client.close(now))
        self.drain(self.world.sim.now_of(self))

    def gateway_unreachable(self) -> None:
        for exchange in self.exchanges():
            self.finish(exchange)
        self.command(lambda client, now: client.gateway_unreachable(now))
        self.drain(self.world.sim.now_of(self))

    def leave(self, known: Known) -> None:
        known.is_wanted, known.was_held = False, known.held is not None
        self.finish(known.exchange)
        self.leaving[known.id] = self.wanted.pop(known.target)

    def left(self, target: Target) -> Known | None:
        """What is to be deleted there."""
        return next((known for known in self.leaving.values() if known.target == target), None)

    def recover(self, now: float) -> None:
        """What is due now (RFC 6886 section 3.7, RFC 6887 section 14.1.3), but not too often."""
        assert now >= self.recovered + self.config.recovery_interval - ROUNDING, "recovered too often"
        self.recovered = now
        for known in self.wanted.values():
            if known.held is None:
                known.hold = -math.inf
            elif known.is_stale is not False:
                self.finish(known.exchange)
        self.met["recovery"] += 1

    def pending_recovery(self) -> float | None:
        return next((timer.deadline for timer in self.prompt.timers() if timer.reason.name == "RECOVER"), None)

    def wake_early(self) -> None:
        """Line 4, of the prompt one."""
        deadline, now = self.prompt.next_timeout(), self.world.sim.now_of(self)
        if deadline is not None and now < deadline:
            before = self.all_of_it()
            self.prompt.handle_timeout(now)
            assert self.all_of_it() == before

    def forge(self, kind: str, dice: random.Random) -> None:
        """What an attacker sends who cannot see what is sent (RFC 6887 section 18.1). Promise 4."""
        world = self.world
        known = [(*each.target, each.told) for each in (*self.wanted.values(), *self.leaving.values())]
        epoch = world.gateway_epoch()
        if "announcement" in kind and dice.random() < 0.5:
            epoch = self.edge(0 if "NAT-PMP" in kind else 2, epoch)
        data = forged(kind, dice, self.local, known or [(TCP, 80, None)], epoch, world.gateway.external_address)
        source = dice.choice(world.strangers) if kind == "stranger" else self.server
        if not self.is_harmless(kind):
            return
        before = (*look(self.prompt), self.prompt.next_timeout(), len(self.queue))
        claimed = world.sim.inject(self, data, source)
        if "announcement" not in kind:
            after = (*look(self.prompt), self.prompt.next_timeout(), len(self.queue))
            assert after == before, f"a forged {kind} has an effect"
        self.met[f"forged {kind}, {'' if claimed else 'not '}claimed"] += 1

    def edge(self, version: int, epoch: int) -> int:
        """The first epoch that shows a loss of state, or the last that does not, or so."""
        seen, now = self.epochs[version][0], self.world.sim.now_of(self)
        if seen is None:
            return epoch
        since = now - seen[1]
        return max(0, seen[0] + math.floor(since * 7 / 8 if version == 0 else since * 15 / 16) - 2)

    def is_harmless(self, kind: str) -> bool:
        """Whether there is a nonce in the way; NAT-PMP has none."""
        every = (*self.wanted.values(), *self.leaving.values())
        if kind == "version error":
            return any(each.held is not None and each.held.version == 2 for each in self.wanted.values())
        if kind == "NAT-PMP answer":
            exchanges = [each.exchange for each in every] + [self.question]
            is_asked = any(each and each.version == 0 and (not each.is_over or each.is_doubtful) for each in exchanges)
            is_held = any(each.held is not None and each.held.version == 0 for each in every)
            return not is_asked and not is_held and 2 in self.versions
        return True

    def drain_late(self) -> None:
        """Line 8: the same in the same order, but for retransmissions whose twin still waited."""
        waiting = self.late.next_timeout()
        assert not self.owed or (waiting is not None and waiting <= self.world.sim.now_of(self))  # line 6
        taken = list(self.late.outputs())
        mine = iter(taken)
        following = next(mine, None)
        for output in self.owed:
            if output == following:
                following = next(mine, None)
            else:
                assert isinstance(output, SendDatagram), f"the late twin has forgotten {output}"
                self.met["retransmission overtaken"] += 1
        assert following is None
        self.owed.clear()

    def all_of_it(self) -> tuple[object, ...]:
        assert self.prompt.poll() is None
        return (*look(self.prompt), self.prompt.next_timeout(), self.prompt.stats)

    # --- what it hears

    def exchanges(self) -> list[Exchange]:
        every = [known.exchange for known in (*self.wanted.values(), *self.leaving.values())]
        return [each for each in (*every, self.question) if each is not None and not each.is_over]

    @staticmethod
    def finish(exchange: Exchange | None) -> None:
        if exchange:
            exchange.is_over, exchange.is_doubtful = True, False

    def turn(self, version: int) -> None:
        """The gateway speaks this version: what was asked in another may be asked anew in this one."""
        for exchange in self.exchanges():
            if exchange.version != version:
                exchange.is_over = exchange.is_doubtful = True

    def hear(self, data: bytes, is_from_server: bool, now: float) -> None:
        """Take in a datagram as the RFCs have it."""
        message = None if self.is_closed else read(data)
        if message is None:
            return
        if is_version_error(message):
            self.turn(data[0])
            return
        if data[0] not in self.versions:
            return
        match message:
            case pcp.AnnounceResponse():
                self.check_epoch(2, message.epoch, now)
            case natpmp.ExternalAddressResponse() | natpmp.ErrorResponse(opcode=0):
                self.hear_address(message, is_from_server, now)
            case pcp.MapResponse():
                self.hear_pcp(message, now)
            case natpmp.MapResponse():
                self.hear_natpmp(message, now)
            case natpmp.ErrorResponse(opcode=1 | 2):  # only the request under way can tell what it is about
                self.check_epoch(0, message.epoch, now, is_certain=False)
                for exchange in self.exchanges():
                    self.finish(exchange)

    def hear_address(
        self, message: natpmp.ExternalAddressResponse | natpmp.ErrorResponse, is_from_server: bool, now: float
    ) -> None:
        question = self.question
        is_asked = is_from_server and question is not None and (not question.is_over or question.is_doubtful)
        if isinstance(message, natpmp.ExternalAddressResponse) and message.result_code == 0:
            self.check_epoch(0, message.epoch, now)
        elif is_asked:
            self.check_epoch(0, message.epoch, now, is_certain=False)
        if is_asked:
            self.finish(question)
            self.turn(0)

    def hear_pcp(self, message: pcp.MapResponse, now: float) -> None:
        target = (message.protocol, message.internal_port)
        about = [each for each in (self.left(target), self.wanted.get(target)) if each]
        known = next((each for each in about if each.nonce == message.nonce), None)
        if known is None:
            return
        is_asked = known.held is not None or (known.exchange is not None and not known.exchange.is_over)
        self.check_epoch(2, message.epoch, now)
        self.turn(2)
        code = message.result_code
        is_grant = code == 0 and message.lifetime > 0 and message.external_port > 0
        if not known.is_wanted and is_grant:
            return  # to an earlier request; the delete is still on its way
        known.may_exist &= known.is_wanted or code == 0
        self.finish(known.exchange)
        hold = now + min(max(message.lifetime if code else 0.0, self.config.min_hold), MAX_HOLD)
        if code == pcp.ResultCode.NO_RESOURCES:  # of a server without room, ask no more (RFC 6887 section 11.4)
            self.hold_new, self.hold_all = (hold, self.hold_all) if known.is_wanted else (self.hold_new, hold)
        if is_grant:
            lifetime = min(float(message.lifetime), MAX_LEASE)
            self.grant(known, Grant(now, lifetime, message.external_port, message.external_address, 2))
        elif known.is_wanted:
            known.refusal, known.refused = int(code), now
            known.hold = hold if is_asked else known.hold  # else it is a copy
        else:
            known.is_confirmed |= code == 0

    def hear_natpmp(self, message: natpmp.MapResponse, now: float) -> None:
        target = (int(message.protocol), message.internal_port)
        known = self.left(target) or self.wanted.get(target)
        if known is None:
            return
        exchange, code = known.exchange, message.result_code
        is_awaited = exchange is not None and exchange.version == 0 and exchange.is_open(now)
        if not is_awaited:  # a copy; or the model has missed something
            self.check_epoch(0, message.epoch, now, is_certain=False)
            known.is_confirmed |= not known.is_wanted and code == 0 and message.lifetime == 0
            if exchange is not None and code == 0:
                known.grants.append(Grant(now, min(float(message.lifetime), MAX_LEASE), message.external_port, None, 0))
            return
        is_grant = code == 0 and message.lifetime > 0 and message.external_port > 0
        if known.is_wanted and code == 0 and message.lifetime == 0:
            return  # a copy of the answer to an earlier delete
        self.check_epoch(0, message.epoch, now)
        self.turn(0)
        if not known.is_wanted and is_grant:
            return
        self.finish(exchange)
        if is_grant:
            lifetime = min(float(message.lifetime), MAX_LEASE)
            self.grant(known, Grant(now, lifetime, message.external_port, None, 0))
        elif known.is_wanted:
            lasts = (code.lifetime or 1800.0) if code else 0.0
            known.refusal, known.refused = int(code), now
            known.hold = now + min(max(lasts, self.config.min_hold), MAX_HOLD)
        else:
            known.is_confirmed |= code == 0

    def grant(self, known: Known, grant: Grant) -> None:
        known.grants = [grant]
        self.expected = known

    def check_epoch(self, version: int, epoch: int | None, now: float, *, is_certain: bool = True) -> None:
        """Which it must take for a sign that the gateway has lost its state. Uncertain: whether it believes it."""
        if epoch is None:
            return
        now = float(math.floor(now)) if version == 2 else now
        seen = self.epochs[version]
        self.verdicts = {has_lost_state(version, each, epoch, now) for each in seen}
        self.epochs[version] = [(epoch, now)]
        if not is_certain:
            self.verdicts.add(False)
            self.epochs[version] += seen[-4:]
        if True in self.verdicts:
            for known in self.wanted.values():
                if known.held is not None and not known.is_stale:
                    known.stale_since = self.world.sim.now
                    known.is_stale = True if self.verdicts == {True} else None

    # --- what it puts out

    def drain(self, now: float) -> None:
        """Check all that came of one input."""
        self.now = max(self.now, now)
        restart = False
        expected, self.expected = self.expected, None
        verdicts, self.verdicts = self.verdicts, {False}
        told: list[Event] = []
        outputs = list(self.prompt.outputs())
        for output, following in zip_longest(outputs, outputs[1:]):
            assert not self.is_closed, "something after Closed"
            self.owed.append(output)
            self.queue.append(output)
            if isinstance(output, SendDatagram):
                self.check_datagram(output, isinstance(following, SendDatagram) and following.data == b"\0\0")
                continue
            told.append(output)
            self.met[type(output).__name__] += 1
            restart |= isinstance(output, GatewayRestarted)
            self.check_event(output)
        if restart:
            assert True in verdicts, "no restart could be seen"
            assert sum(isinstance(each, GatewayRestarted) for each in told) == 1
        elif verdicts == {True}:
            assert self.is_closed or self.pending_recovery() is not None, "a restart was not seen"
        if expected is not None and expected.is_wanted:
            self.check_told(expected, told)
        if len(self.owed) > 400:
            self.drain_late()

    def check_told(self, known: Known, told: list[Event]) -> None:
        """A grant is told at once; NAT-PMP's waits for the address, but not for long."""
        about = [each for each in told if getattr(each, "mapping", None) == known.id]
        held = MappingGranted | MappingRenewed | MappingChanged
        assert sum(isinstance(each, held) for each in about) == 1 or known.grants[0].version == 0, "a grant is not told"
        if known.held != known.grants[0]:  # it waits
            assert known.grants[0].version == 0
            self.hold_grant(known, known.grants[0])

    def hold_grant(self, known: Known, grant: Grant) -> None:
        known.held, known.grants = grant, [grant]
        world = self.world
        known.calm = world.calm if world.calm <= world.sim.now else math.inf
        known.renewals, known.is_stale, known.hold = 0, False, -math.inf

    def check_datagram(self, sent: SendDatagram, is_followed: bool) -> None:
        """`is_followed`: by a question in the other version, with which a request may go out once more."""
        assert sent.addr == self.server
        message = decode(sent.data)
        assert not isinstance(message, pcp.MapRequest) or message.client_address == ip_address(self.local)
        assert sent.data[0] in self.versions
        if isinstance(message, natpmp.ExternalAddressRequest):
            self.check_question(sent.data)
            return
        assert isinstance(message, natpmp.MapRequest | pcp.MapRequest)
        target = (int(message.protocol), message.internal_port)
        known = self.wanted.get(target) if message.lifetime else self.left(target)
        assert known is not None, f"nobody wants {message}"
        assert not message.lifetime or known.held is None or self.now < known.held.ends, "after it has expired"
        if isinstance(message, pcp.MapRequest):
            assert known.nonce == message.nonce or (known.nonce is None and message.nonce not in self.nonces)
            self.nonces.add(message.nonce)
            known.nonce = message.nonce
        if message.lifetime == 0:
            self.check_delete(known, message)
        exchange = known.exchange
        if exchange is not None and exchange.is_too_early_for(sent.data, self.now) and is_followed:
            self.met["sent again with the first question in the other version"] += 1
        elif exchange is not None and exchange.goes_on(sent.data, self.now):
            exchange.again(sent.data, self.now, exchange.at >= self.late_at)
            exchange.is_over = exchange.is_doubtful = is_followed  # it may have been in turn, or not
            self.met["retransmission"] += 1
        else:
            self.check_new(known, message, sent.data)
        known.is_sent = True
        known.may_exist |= message.lifetime > 0

    def check_new(self, known: Known, message: natpmp.MapRequest | pcp.MapRequest, data: bytes) -> None:
        version, now, held = data[0], self.now, known.held
        assert now >= self.hold_all - ROUNDING or self.is_closing, "the gateway has no room even for a delete"
        if not message.lifetime:
            kind, limit = "delete", float(self.config.delete_attempts if known.was_held else 1)
        elif held is None:
            kind, limit = "ask", 9.0 if version == 0 else math.inf
            assert now >= known.hold - ROUNDING, "asked for again within the hold time"
            assert now >= self.hold_new - ROUNDING, "the gateway has no room"
            assert self.left(known.target) is None, "another for the same port is being deleted"
            self.check_order(known)
        else:
            is_renewal = known.is_stale is False or (known.is_stale is None and now >= held.at + held.lifetime / 2)
            kind, limit = ("renew", 1.0) if is_renewal else ("recover", math.inf)
            limit = 9.0 if version == 0 else limit
            if is_renewal:
                self.check_renewal(known, held, version)
            else:
                assert now >= self.recovered, "recovered too early"
        if known.until is not None and message.lifetime:
            assert message.lifetime <= max(1, math.ceil(known.until - now)), "longer than it is wanted"
        before, known.exchange = known.exchange, Exchange(version, kind, data, limit, now)
        if before is not None and before.is_doubtful and before.data == data:
            known.exchange.waited = (1.5, 512.0)  # it may be the old one
        self.met[f"{kind} in {'PCP' if version else 'NAT-PMP'}"] += 1
        under_way = [each for each in self.exchanges() if each.version == version and each.is_open(now)]
        if version == 0 and len(self.versions) == 2:
            under_way = [each for each in under_way if each is not self.question]  # it may have been dropped
        most = self.config.window if version == 2 else 1
        self.met["window full"] += len(under_way) == most and version == 2
        assert len(under_way) <= most, f"{len(under_way)} requests wait for an answer"

    def check_renewal(self, known: Known, held: Grant, version: int) -> None:
        """RFC 6886 section 3.3, RFC 6887 section 11.2.1."""
        before = known.exchange
        if before is None or before.kind != "renew" or before.version == version or before.at < held.at:
            known.renewals += 1  # else it goes on in another version
        since = self.now - held.at
        assert since >= held.lifetime * (1 - 0.5**known.renewals) - ROUNDING, f"renewed {since} s after"
        assert known.until is None or held.ends < known.until, "renewed though it lasts as long as it is wanted"
        assert version == 0 or self.now >= known.renewed + 4.0 - ROUNDING, "renewed twice within 4 s"
        assert known.hold <= self.now + ROUNDING, "renewed within the hold time"
        known.renewed = self.now

    def check_order(self, known: Known) -> None:
        """Commands keep their order: line 10."""
        if known.is_sent or known.was_refused:
            return
        for other in self.wanted.values():
            if other.id < known.id and not other.is_sent and not other.was_refused:
                assert self.left(other.target), "a later command was done first"

    def check_delete(self, known: Known, message: natpmp.MapRequest | pcp.MapRequest) -> None:
        """RFC 6886 section 3.4, RFC 6887 section 15.1."""
        assert message.suggested_external_port == 0
        assert isinstance(message, natpmp.MapRequest) or int(message.suggested_external_address) in (0, 0xFFFF00000000)
        assert known.may_exist, "there is nothing to delete"
        known.deletes += 1
        assert known.deletes <= self.config.delete_attempts

    def check_question(self, data: bytes) -> None:
        question = self.question
        if question is not None and question.is_open(self.now) and len(self.versions) == 1:
            question.again(data, self.now, question.at >= self.late_at)
            return
        if (
            question is not None
            and question.is_open(self.now)
            and self.now >= question.at + question.wait[0] - ROUNDING
        ):
            question.again(data, self.now, False)
            return
        self.question = Exchange(0, "question", data, 4.0 if len(self.versions) == 1 else 9.0, self.now)
        self.met["question"] += 1
        under_way = [each for each in self.exchanges() if each.version == 0 and each.is_open(self.now)]
        assert len(under_way) <= 1, f"{len(under_way)} requests wait for an answer"

    def check_event(self, told: Event) -> None:
        match told:
            case MappingGranted() | MappingRenewed() | MappingChanged():
                self.check_holding(self.known[told.mapping], told)
            case MappingLost() | MappingRefused():
                self.check_missing(self.known[told.mapping], told)
            case MappingFailed() | MappingReleased():
                self.check_end(self.known[told.mapping], told)
            case Closed():
                assert self.is_closing
                assert not self.wanted
                assert not self.leaving
                self.is_closed = True
            case _:
                self.check_gateway_event(told)

    def check_gateway_event(self, told: Event) -> None:
        match told:
            case GatewayRestarted():
                earliest = max(self.now, self.recovered + self.config.recovery_interval)
                assert earliest - ROUNDING <= told.recovery_at, "it will be recovered too often"
                assert told.recovery_at <= max(self.now + 5.0, earliest) + ROUNDING, "it will be recovered too late"
                for known in self.wanted.values():
                    known.is_stale = known.is_stale is not False
            case GatewayUnreachable() | GatewayRecovered():
                assert self.is_unreachable is isinstance(told, GatewayRecovered)
                self.is_unreachable = not self.is_unreachable
            case ExternalAddressLearned(address=address):
                assert self.address is None
                self.address = address
            case ExternalAddressChanged(old=old, new=new):
                assert self.address == old != new
                self.address = new
            case VersionNegotiated(version=version):
                assert self.version != version
                self.version = version
                self.turn(version)
                if version == self.versions[0]:
                    for known in self.wanted.values():
                        known.hold = -math.inf
            case _:
                raise AssertionError(f"{told} is not for a client to tell")

    def check_missing(self, known: Known, told: MappingLost | MappingRefused) -> None:
        is_answer = (known.refusal, known.refused) == (told.result_code, self.now)
        assert told.retry_at >= self.now
        if isinstance(told, MappingRefused):
            assert known.is_wanted
            assert known.held is None
            assert told.result_code in (None, 1) or is_answer, "refused without a refusal"
            seen = self.prompt.mapping(told.mapping)
            if seen is None or seen.state is not MappingState.REQUESTING:
                self.finish(known.exchange)
            known.may_exist &= told.result_code is None
            self.met["refused"] += told.result_code is not None
        else:
            assert known.held is not None, "lost what was not held"
            if told.reason is Reason.EXPIRED:
                assert self.now >= known.held.ends - ROUNDING, "expired too early"
                assert not self.is_calm(known), "expired though all was well"
            else:
                assert is_answer, "lost without a refusal"
            self.finish(known.exchange)
            known.held = known.told = None
            known.grants, known.may_exist = [], False
        known.was_refused = True

    def check_holding(self, known: Known, told: MappingGranted | MappingRenewed | MappingChanged) -> None:
        assert known.is_wanted
        external = told.new if isinstance(told, MappingChanged) else told.external
        if isinstance(told, MappingGranted):
            assert known.told is None
        elif isinstance(told, MappingRenewed):
            assert known.told == external
        else:
            assert known.told == told.old != external
        promised = [each for each in known.grants if (each.ends, each.port) == (told.expires_at, external.port)]
        assert promised, "nobody promised that"
        assert told.lifetime == promised[-1].lifetime
        assert external.address == (promised[-1].address or self.address)
        if known.held != promised[-1]:
            self.hold_grant(known, promised[-1])
            self.finish(known.exchange)
        known.told = external

    def check_end(self, known: Known, told: MappingFailed | MappingReleased) -> None:
        assert not known.is_finished, "two ends"
        known.is_finished = True
        if isinstance(told, MappingReleased):
            assert not known.is_wanted
            assert not told.confirmed or known.is_confirmed or not known.may_exist, "nobody confirmed it"
            self.met["released" if told.confirmed else "released without an answer"] += 1
        elif told.reason is Reason.DEADLINE:
            assert not known.is_wanted
            assert known.until is not None
            assert known.until <= self.now
            self.met["deadline"] += 1
        elif told.reason is Reason.NEEDS_PCP:
            assert known.needs_pcp
            assert known.is_wanted
            self.met["needs PCP"] += 1
        else:
            assert told.reason in (Reason.UNSUPPORTED_PROTOCOL, Reason.UNSUPPORTED_OPTION)
            assert (known.refusal, known.refused) == (told.result_code, self.now)
        is_impossible = known.needs_pcp and self.version == 0
        assert known.is_wanted or not known.may_exist or known.deletes or is_impossible, "given up, but not deleted"
        self.finish(known.exchange)
        if known.is_wanted:
            self.leave(known)
        del self.leaving[known.id]

    # --- what is true between inputs

    def check(self) -> None:
        now = self.now
        assert look(self.prompt) == look(self.prompt) == look(self.late)  # lines 7, 12 and 14
        assert self.prompt.version == self.version
        assert self.prompt.external_address == self.address
        seen = {mapping.id: mapping for mapping in self.prompt.mappings}
        assert seen.keys() == {known.id for known in (*self.wanted.values(), *self.leaving.values())}
        timers = [timer.reason.name for timer in self.prompt.timers()]
        assert len(timers) <= 5 * len(seen) + 6  # line 11
        assert timers.count("RETRANSMIT") <= len(seen) + 1
        deadline = self.prompt.next_timeout()
        for known in self.leaving.values():
            assert seen[known.id].state is RELEASING
        for known in self.wanted.values():
            mapping = seen[known.id]
            assert (mapping.state is HELD) is (known.held is not None)
            if known.held is not None:
                assert mapping.expires_at == known.held.ends > now, "held for longer than was promised"
                assert mapping.external == known.told
                assert known.told is not None or now <= known.held.at + 2.0 + ROUNDING, "a grant is not told"
                self.check_renewed(known, known.held)
                self.check_recovered(known)
            times = [each for each in (mapping.expires_at, mapping.renew_at, mapping.retry_at) if each is not None]
            assert not times or (deadline is not None and deadline <= min(times)), "a deadline is forgotten"
        for exchange in self.exchanges():
            if exchange.at >= self.late_at and (exchange.kind != "question" or len(self.versions) == 1):
                exchange.check_not_overdue(now)

    def is_calm(self, known: Known) -> bool:
        """Whether all was well since it was granted."""
        return known.calm == self.world.calm < math.inf and self.hold_all < self.now and self.world.serves(self)

    def check_recovered(self, known: Known) -> None:
        """What the gateway may have lost is asked for, as soon as that is possible."""
        since = max(known.stale_since, self.world.calm) + 130.0  # a request may have been under way
        if (
            known.is_stale
            and since < self.world.sim.now
            and self.pending_recovery() is None
            and self.world.serves(self)
        ):
            every = [each.exchange for each in self.wanted.values()]
            assert any(each and (not each.is_over or each.is_doubtful) for each in every), "not recovered"

    def check_renewed(self, known: Known, held: Grant) -> None:
        """In good time, if nothing stood in its way since it was granted."""
        is_needed = known.until is None or held.ends < known.until
        if is_needed and self.is_calm(known) and known.is_stale is False and held.lifetime >= 60:
            assert known.renewals or self.now <= held.at + held.lifetime * 5 / 8 + 5.0, "not renewed in good time"


# --- the network

GOOD = Link(latency=0.02)
LINKS = (
    GOOD,
    Link(latency=0.05, jitter=0.1, loss=0.3),
    Link(latency=0.05, jitter=1.0, loss=0.6, duplicate=0.3),
    Link(latency=0.5, jitter=0.5, reorder=0.3, hold=6.0, duplicate=0.2),
    Link(latency=2.0, loss=0.2),
    Link(latency=0.02, corrupt=0.2),
    Link(loss=1.0),
)
GRACE = 10.0  # s until what bad links have held back has arrived


class World:
    """A gateway that may be another after a while, clients, and all that lies between them."""

    def __init__(self, family: int, versions: tuple[int, ...], seed: int, window: int) -> None:
        self.family, self.server = family, SERVERS[family]
        self.met: Counter[str] = Counter()
        self.sim = Simulation(seed=seed, record=False)
        self.calm = 0.0  # since when all is well; infinite while it is not
        self.refusal: pcp.ResultCode | None = None
        self.bad: set[object] = set()
        self.epoch_start = 0.0
        self.strangers = STRANGERS[family]
        self.gateway = self.make_gateway(versions)
        self.sim.add(self.gateway)
        speaks = ((2, 0), (0,)) if family == 4 else ((2, 0),)
        self.clients = [
            Watched(self, local, speak, seed + number, window=window)
            for number, (local, speak) in enumerate(zip(LOCALS[family], speaks, strict=True))
        ]
        clocks = (Clock(offset=1000.0, rate=1.01), Clock(offset=-5.0, rate=0.995, stops=False))
        for client, clock in zip(self.clients, clocks, strict=False):
            self.sim.add(client, clock=clock)
            self.link(client, GOOD, GOOD)

    def gateway_epoch(self) -> int:
        """As far as the attacker knows."""
        return int(self.sim.now - self.epoch_start)

    def make_gateway(self, versions: tuple[int, ...]) -> Gateway:
        self.versions = versions if self.family == 4 else (2,)
        protocols: typing.Any = (TCP, UDP, SCTP)
        config = GatewayConfig(versions=self.versions, max_lifetime=int(MAX_LEASE), protocols=protocols)
        external = EXTERNALS[0] if self.family == 4 else None
        return Gateway(
            external, address=self.server, config=config, policy=lambda *_: self.refusal, rng=random.Random(1)
        )

    def serves(self, client: Watched) -> bool:
        return bool(set(self.versions) & set(client.versions))

    def disturb(self, what: object = None, *, is_bad: bool = True) -> None:
        """Something bad has happened, or begins, or ends."""
        if what is not None:
            (self.bad.add if is_bad else self.bad.discard)(what)
        self.calm = math.inf if self.bad else self.sim.now + GRACE

    def run(self, seconds: float) -> None:
        self.sim.run_until(self.sim.now + seconds)

    def link(self, client: Watched, there: Link, back: Link) -> None:
        self.sim.connect(client, self.gateway, there)
        self.sim.connect(self.gateway, client, back)
        if (there, back) != (GOOD, GOOD) or client in self.bad:
            self.disturb(client, is_bad=(there, back) != (GOOD, GOOD))
        self.met["bad link"] += (there, back) != (GOOD, GOOD)

    def partition(self, client: Watched) -> None:
        self.sim.partition(client)
        self.disturb("partition")
        self.met["partition"] += 1

    def heal(self) -> None:
        self.sim.heal()
        if "partition" in self.bad:
            self.disturb("partition", is_bad=False)

    def sleep(self, client: Watched, seconds: float) -> None:
        self.disturb()
        self.sim.sleep(client, self.sim.now, self.sim.now + seconds)
        self.run(seconds)
        self.disturb()
        self.met["sleep"] += 1

    def reboot(self) -> None:
        self.gateway.reboot(self.sim.now)
        self.epoch_start = self.sim.now
        self.disturb()
        self.met["reboot"] += 1

    def replace(self, versions: tuple[int, ...]) -> None:
        """Another gateway, or the same without its memory, and no announcement tells."""
        old, self.gateway = self.gateway, self.make_gateway(versions)
        self.sim.replace(old, self.gateway)
        self.epoch_start = self.sim.now
        self.disturb("address", is_bad=False)
        self.met["reboot that nobody hears of"] += 1

    def readdress(self, address: str | None) -> None:
        if self.family == 4:
            self.gateway.set_external_address(address, self.sim.now)
            self.disturb("address", is_bad=address is None)
            self.met["external address change"] += 1

    def refuse(self, code: pcp.ResultCode | None) -> None:
        self.refusal = code
        self.disturb("refusal", is_bad=code is not None)

    def icmp(self, client: Watched) -> None:
        self.met["ICMP"] += 1
        self.disturb()
        client.gateway_unreachable()

    def settle(self) -> None:
        """All becomes well, and then, given time, it is: promise 1. What nobody wants is gone: promise 2."""
        self.heal()
        self.refuse(None)
        if self.gateway.external_address is None:
            self.readdress(EXTERNALS[0])
        for client in self.clients:
            self.link(client, GOOD, GOOD)
        self.run(CONVERGENCE)
        for client in self.clients:
            client.check()
            if self.serves(client):
                self.check_agreement(client)
        self.met["settled"] += 1

    def check_agreement(self, client: Watched) -> None:
        here = ip_address(client.local)
        there = {
            (int(each.protocol), each.internal.port): each
            for each in self.gateway.mappings
            if each.internal.address == here
        }
        assert not client.leaving
        assert there.keys() == client.wanted.keys(), "they do not have the same mappings"
        for target, known in client.wanted.items():
            assert known.held is not None
            assert known.is_stale is False
            assert there[target].external == known.told, "they do not agree on the endpoint"
            left = there[target].expires_at - self.sim.now
            assert left >= (known.held.ends - self.sim.now_of(client)) * 0.98 - 2.0, "the gateway forgets it earlier"
        if client.wanted and self.family == 4:
            assert client.address == self.gateway.external_address
        self.met["agreement of so many mappings"] += len(there)


# --- what Hypothesis chooses from

SECONDS = st.sampled_from((0.0, 0.1, 1.0, 3.0, 10.0, 60.0, 300.0, 1000.0, 3000.0))
TARGETS = st.sampled_from([(TCP, 80), (UDP, 80), (TCP, 81), (UDP, 82), (TCP, 83)])
CODES = st.sampled_from(
    [
        pcp.ResultCode.NO_RESOURCES,
        pcp.ResultCode.NETWORK_FAILURE,
        pcp.ResultCode.NOT_AUTHORIZED,
        pcp.ResultCode.USER_EX_QUOTA,
    ]
)
WHO = st.integers(0, 1)
VERSIONS = st.sampled_from(((2, 0), (2, 0), (2,), (0,)))


class Life(RuleBasedStateMachine):
    """Commands, mishaps, forgeries and time in any order. All that must hold is checked by `Watched` and `World`."""

    met: typing.ClassVar[Counter[str]] = Counter()

    @initialize(
        family=st.sampled_from((4, 4, 4, 6)),
        versions=VERSIONS,
        seed=st.integers(0, 99),
        window=st.sampled_from((1, 2, 16)),
    )
    def begin(self, family: int, versions: tuple[int, ...], seed: int, window: int) -> None:
        self.world = World(family, versions, seed, window)

    def client(self, who: int) -> Watched:
        return self.world.clients[who % len(self.world.clients)]

    # --- commands

    @rule(
        who=WHO,
        what=TARGETS | st.just((SCTP, 2905)),
        external_port=st.sampled_from((0, 0, 8080)),
        lifetime=st.sampled_from((120, 600, 7200)),
        life=st.sampled_from((None, None, None, 200.5, 2000.0)),
    )
    def map_port(self, who: int, what: Target, external_port: int, lifetime: int, life: float | None) -> None:
        self.client(who).map_port(what, external_port=external_port, lifetime=lifetime, life=life)

    @rule(who=WHO, several=st.lists(TARGETS, min_size=3, max_size=5, unique=True))
    def map_ports(self, who: int, several: list[Target]) -> None:
        for target in several:
            self.client(who).map_port(target, lifetime=600)

    @rule(who=WHO, which=st.integers(0, 9), is_wanted_again=st.booleans())
    def unmap(self, who: int, which: int, is_wanted_again: bool) -> None:
        client = self.client(who)
        every = list(client.known.values())[-10:]
        if every:
            known = every[which % len(every)]
            client.unmap(known)
            if is_wanted_again:
                client.map_port(known.target)
                self.world.met["wanted again at once"] += 1

    # --- time

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(who=WHO, how_often=st.integers(1, 4))
    def wait_for_deadline(self, who: int, how_often: int) -> None:
        for _ in range(how_often):
            client = self.client(who)
            deadline = client.next_timeout()
            if deadline is not None:
                self.world.run(max(0.0, deadline - self.world.sim.now_of(client)))

    @rule(who=WHO)
    def wake_early(self, who: int) -> None:
        client = self.client(who)
        if not client.queue:
            client.wake_early()

    @rule(who=WHO)
    def drain_late(self, who: int) -> None:
        self.client(who).drain_late()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    # --- mishaps

    @rule(who=WHO, there=st.sampled_from(LINKS), back=st.sampled_from(LINKS))
    def link(self, who: int, there: Link, back: Link) -> None:
        self.world.link(self.client(who), there, back)

    @rule(who=WHO)
    def partition(self, who: int) -> None:
        self.world.partition(self.client(who))

    @rule()
    def heal(self) -> None:
        self.world.heal()

    @rule(who=WHO, seconds=st.sampled_from((5.0, 400.0, 2000.0)))
    def sleep(self, who: int, seconds: float) -> None:
        self.world.sleep(self.client(who), seconds)

    @rule()
    def reboot(self) -> None:
        self.world.reboot()

    @rule(versions=VERSIONS)
    def replace(self, versions: tuple[int, ...]) -> None:
        self.world.replace(versions)

    @rule(address=st.sampled_from((*EXTERNALS, None)))
    def readdress(self, address: str | None) -> None:
        self.world.readdress(address)

    @rule(code=CODES | st.none())
    def refuse(self, code: pcp.ResultCode | None) -> None:
        self.world.refuse(code)

    @rule(who=WHO)
    def icmp(self, who: int) -> None:
        self.world.icmp(self.client(who))

    # --- what is forged

    @rule(who=WHO, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
    def forge(self, who: int, kind: str, seed: int) -> None:
        dice = random.Random(seed)
        for each in (kind, *dice.choices(KINDS, k=4)):
            self.client(who).forge(each, dice)

    @rule(who=WHO, which=st.integers(0, 30))
    def repeat_old_datagram(self, who: int, which: int) -> None:
        client, world = self.client(who), self.world
        if client.heard:
            world.disturb()
            world.sim.inject(client, client.heard[which % len(client.heard)], world.server)
            world.met["old datagram again"] += 1

    @invariant()
    def check(self) -> None:
        if hasattr(self, "world"):
            for client in self.world.clients:
                client.check()

    def teardown(self) -> None:
        """Settle, close, settle, and count what this life has met."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.settle()
        for client in world.clients:
            client.close()
        world.run(CONVERGENCE)
        for client in world.clients:
            assert client.is_closed
            assert all(known.is_finished for known in client.known.values())  # line 13
            assert client.next_timeout() is None
            client.drain_late()
        assert not world.gateway.mappings
        for what in world.met:
            event(what)
        type(self).met += world.met


LIVES = settings(
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[None]:
    """For those who run it with `-s`."""
    yield
    print("".join(f"\n{count:9} {what}" for what, count in sorted(Life.met.items())))


TestLife = Life.TestCase
TestLife.settings = settings(LIVES, max_examples=EXAMPLES)

# What sixty lives meet ten times and more, whatever the dice.
REACHED = {
    "Closed",
    "ExternalAddressChanged",
    "GatewayRestarted",
    "GatewayUnreachable",
    "GatewayRecovered",
    "ICMP",
    "MappingChanged",
    "MappingFailed",
    "MappingGranted",
    "MappingLost",
    "MappingRefused",
    "MappingReleased",
    "MappingRenewed",
    "VersionNegotiated",
    "agreement of so many mappings",
    "ask in NAT-PMP",
    "ask in PCP",
    "bad link",
    "deadline",
    "delete in NAT-PMP",
    "delete in PCP",
    "external address change",
    "forged MAP answer, claimed",
    "forged announcement, claimed",
    "forged stranger, not claimed",
    "forged version error, claimed",
    "needs PCP",
    "old datagram again",
    "partition",
    "reboot",
    "reboot that nobody hears of",
    "recover in NAT-PMP",
    "recover in PCP",
    "renew in NAT-PMP",
    "renew in PCP",
    "retransmission",
    "retransmission overtaken",
    "sent again with the first question in the other version",
    "sleep",
    "wanted again at once",
    "window full",
}


def search(examples: int, kind: type[Life] = Life) -> None:
    """Look for a life in which something is wrong, and do not make it shorter."""
    lives = settings(LIVES, max_examples=examples, derandomize=True, database=None, phases=[Phase.generate])
    run_state_machine_as_test(kind, settings=lives)


def test_the_rules_are_mixed_so_that_everything_that_matters_is_reached() -> None:
    class Counted(Life):
        met: typing.ClassVar[Counter[str]] = Counter()

    search(60, Counted)
    assert REACHED - Counted.met.keys() == set()
