"""The life of clients as a state machine: whatever networks, gateways and an attacker do, in whatever order.

First comes the model: `Request` knows the schedules, `Known` what must be true of one mapping. `Watched` is a client on
the wire with its twin (equal seeds and inputs, but woken too often and drained late), and holds what goes in and comes
out against the model. `World` is the LAN with its gateways; `Life` lets Hypothesis choose what happens to it. For a
longer look, with figures: CLIENT_EXAMPLES=10000 python -m pytest -s tests/test_client_machine.py
"""

from __future__ import annotations

import json
import math
import os
import random
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address
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
    DoubleNatSuspected,
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
    MappingKind,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    MappingState,
    Output,
    PairSplit,
    ProbeCompleted,
    Protocol,
    Reason,
    SendDatagram,
    Timer,
    VersionNegotiated,
    decode,
    natpmp,
    pcp,
    wire,
)
from natpmp_sansio.testing import Clock, Link, Simulation
from natpmp_sansio.wire.fields import IPAddress

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, 132
ROUNDING = 1e-6  # s: times are floats
MIN_HOLD, MAX_HOLD = 30.0, 300.0
MAX_LEASE = 900.0  # s, of the gateways, and the longest that is believed
PATIENCE = 4  # how often a recovery or confirmation is sent in PCP before it begins anew
DELETES = 3
PACE = 30.0  # s from one recovery to the next
PROMPT = 40.0  # s until what the gateway has lost has been asked for where all is well: the pace, and the delay
SLACK = 130.0  # s until then with all that may be under way before
# Long enough for all to be well again: what an old silence has made of the wait (RFC 6887 section 8.1.1), a mapping
# under another nonce until its lease is over, one more hold time, a lease of our own, and a recovery.
CONVERGENCE = 1.1 * 1024 + 2 * MAX_LEASE + 2 * MAX_HOLD + 60.0

Target = tuple[typing.Any, ...]  # protocol, internal port, and the peer of an outbound mapping
Holding = MappingGranted | MappingRenewed | MappingChanged
T = typing.TypeVar("T")


# --- the model


def waits(version: int, count: int, before: float) -> tuple[float, float]:
    """How long to wait after the count-th transmission, at least and at most (RFC 6886 3.1, RFC 6887 8.1.1)."""
    if version == 0:
        return (0.25 * 2.0 ** (count - 1),) * 2
    nominal = 3.0 if count == 1 else min(2.0 * before, 1024.0)
    return 0.9 * nominal, 1.1 * nominal


def has_lost_state(version: int, then: tuple[int, float] | None, epoch: int, now: float) -> bool:
    """RFC 6886 section 3.6, RFC 6887 section 8.5."""
    if then is None:
        return False
    if version == 0:
        return epoch < then[0] + (now - then[1]) * 0.875 - 2
    server, client = epoch - then[0], int(now - then[1])
    return server + 1 < 0 or client + 2 < server - server // 16 or server + 2 < client - client // 16


@attrs.define(eq=False)
class Request:
    """One request, from its first transmission until it is answered, given up or overtaken."""

    kind: str  # "ask", "renew", "recover", "delete" or "question"
    data: bytes
    limits: tuple[float, float]  # sent so often at least, if nothing happens, and at most
    due: float  # when it is to be sent again, or given up
    wait: float
    count: int = 1

    @property
    def version(self) -> int:
        return self.data[0]

    def goes_on(self, data: bytes, now: float, due: float) -> bool:
        """Whether a transmission is the next one of it; then the wait for the next is `due`."""
        least, most = waits(self.version, self.count + 1, self.wait)
        is_next = data == self.data and now >= self.due and self.count < self.limits[1]
        return is_next and least - ROUNDING <= due - now <= most + ROUNDING

    @property
    def is_tired(self) -> bool:
        """Whether it may give its place up to others that wait, and begin anew."""
        return self.kind == "ask" and self.version == 2 and self.count > PATIENCE

    def again(self, now: float, due: float) -> None:
        self.count, self.wait, self.due = self.count + 1, due - now, due


@attrs.frozen
class Promise:
    """What a grant says."""

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
    """One mapping: what was promised, told and asked. Times are on the client's clock."""

    id: MappingId
    target: Target
    until: float | None
    twin: Known | None = None
    is_wanted: bool = True
    is_finished: bool = False
    nonce: bytes | None = None
    request: Request | None = None  # that is under way
    again: str | None = None  # the kind of one that something has interrupted, which may begin anew at once
    suggested: int = 0  # the port, in the last request
    is_port_busy: bool = False
    may_exist: bool = False
    promises: list[Promise] = attrs.field(factory=list)  # that may be believed
    held: Promise | None = None
    ends: float = math.inf  # of what is held: a move ends it sooner
    is_here: bool = False  # it was granted where the client is now
    told: Endpoint | None = None
    refusal: tuple[int, float] | None = None  # the result code that was heard last, and when
    hold: float = -math.inf  # not to be asked for again before
    is_silence: bool = False  # it is held back because nobody answered
    renewals: int = 0
    renewed: float = -math.inf
    renewed_in_pcp: float = -math.inf
    asked: float = -math.inf
    spare: int = 0  # renewals out of turn that there is a reason for
    is_doubted: bool = False  # a recovery or confirmation is due
    lost: float = math.inf  # since when the gateway has lost it, or, doubted: may have (clock of the simulation)
    doubted: float = math.inf
    calm: float = math.inf  # since when all was well, as it was granted (clock of the simulation)
    lead: float = -math.inf  # when UDP of the pair was granted last: TCP is to follow
    old_twin: Known | None = None  # TCP, to be renewed when UDP is deleted
    is_split: bool = False
    was_refused: bool = False
    deletes: int = 0
    is_confirmed: bool = False

    @property
    def kind(self) -> str | None:
        """Of the request that is under way."""
        return self.request.kind if self.request else None

    @property
    def needs_pcp(self) -> bool:
        return self.target[0] not in (TCP, UDP) or len(self.target) > 2

    def begin(self, data: bytes, now: float) -> tuple[str, float, float]:
        """A new request: what for, and how often it may be sent at least and at most."""
        message = decode(data)
        assert isinstance(message, natpmp.MapRequest | pcp.MapRequest | pcp.PeerRequest)
        self.asked, again, self.again = now, self.again, None
        if message.lifetime == 0:
            self.deletes += 1
            return "delete", DELETES if self.held else 1, DELETES
        assert self.is_wanted, "nobody wants it"
        if self.until is not None:
            assert message.lifetime <= max(1, math.ceil(self.until - now)), "longer than it is wanted"
        self.doubted = math.inf
        self.suggested, self.may_exist = message.suggested_external_port, True
        many = 9 if data[0] == 0 else math.inf
        if self.held is None:
            assert now >= self.hold - ROUNDING or again, "asked for again within the hold time"
            assert not self.is_port_busy or self.suggested == 0, "asked for a port that is taken"
            self.is_port_busy = False
            return "ask", many, many
        assert now < self.ends, "renewed after it has expired"
        some = 9 if data[0] == 0 else PATIENCE
        one = 9 if data[0] == 0 else 1
        if self.is_doubted or again == "recover" or min(self.lost, self.doubted) < math.inf:
            is_due = now >= self.held.at + self.held.lifetime / 2 or self.spare > 0 or self.twin is not None
            self.is_doubted = False
            return "recover", one if is_due else some, some
        self.check_renewal(data[0], now, is_same=again == "renew")
        return "renew", one, one

    def check_renewal(self, version: int, now: float, *, is_same: bool) -> None:
        """RFC 6886 section 3.3, RFC 6887 section 11.2.1."""
        assert self.held is not None
        is_needed = self.until is None or self.ends < self.until or self.spare or self.twin is not None
        assert is_needed, "renewed though it lasts as long as it is wanted"
        assert version == 0 or now >= self.renewed_in_pcp + 4.0 - ROUNDING, "renewed twice within 4 s"
        assert now >= self.hold - ROUNDING, "renewed within the hold time"
        before, self.renewed = self.renewed, now
        self.renewed_in_pcp = now if version == 2 else self.renewed_in_pcp
        earliest = self.held.at + self.held.lifetime * (1 - 0.5 ** (self.renewals + 1)) - ROUNDING
        if is_same:
            return
        if now >= earliest:
            self.renewals += 1
        elif not self.is_led(now, before):
            assert self.spare > 0, f"renewed {now - self.held.at} s after it was granted"
            self.spare -= 1

    def is_led(self, now: float, before: float) -> bool:
        """Of a pair, TCP is renewed right behind UDP, and UDP also when it is TCP's turn."""
        twin = self.twin
        if twin is None or self.target[0] == TCP:
            return twin is not None and twin.asked >= before
        return twin.held is not None and now >= twin.held.at + twin.held.lifetime / 2 - ROUNDING

    def grant(self, promise: Promise, calm: float, *, is_sure: bool) -> None:
        """`is_sure`: it is no late copy from before the loss of state that it seems to show."""
        self.held, self.ends, self.promises, self.is_here = promise, promise.ends, [promise], True
        self.renewals, self.hold, self.is_silence, self.calm = 0, -math.inf, False, calm
        self.is_port_busy, self.again = False, None
        if is_sure:
            self.is_doubted, self.lost, self.doubted = False, math.inf, math.inf

    def forget(self) -> None:
        """It is held no more."""
        self.held, self.ends, self.promises = None, math.inf, []
        self.lost = self.doubted = math.inf
        self.is_doubted = False

    def tell(self, told: Holding, address: IPAddress | None) -> None:
        """A grant, renewal or change: it follows what was told before, and says what was promised."""
        assert self.is_wanted
        external = told.new if isinstance(told, MappingChanged) else told.external
        before = told.old if isinstance(told, MappingChanged) else external
        assert self.told == (None if isinstance(told, MappingGranted) else before)
        assert not isinstance(told, MappingChanged) or told.old != told.new
        held = [
            p for p in self.promises if (p.ends, p.lifetime, p.port) == (told.expires_at, told.lifetime, external.port)
        ]
        assert held, "nobody promised that"
        assert external.address == (held[-1].address or address)
        self.told = external

    def miss(self, told: MappingLost | MappingRefused, now: float, *, is_refused: bool) -> None:
        """`is_refused`: else the request goes on."""
        assert isinstance(told, MappingLost) is (self.told is not None), (
            "lost is what was told before, and nothing else"
        )
        is_answer = self.refusal == (told.result_code, now)
        if told.reason is Reason.EXPIRED or told.reason is Reason.NETWORK_CHANGED:
            assert now >= self.ends - ROUNDING, "expired too early"
            assert told.retry_at >= now
        elif told.result_code in (None, 1) and not is_answer:  # silence, or another version
            is_first = is_refused and self.request is not None  # else it is known already that nobody answers
            assert told.retry_at >= now + (MIN_HOLD if is_first else 0.0) - ROUNDING
        else:
            assert is_answer, "nobody refused it"
            assert told.retry_at >= self.hold - ROUNDING, "the hold time of the error is ignored"
        if isinstance(told, MappingLost):
            self.forget()
            self.request, self.may_exist = None, False
        elif told.result_code is not None:
            self.may_exist = self.may_exist and not told.result_code
        if is_refused:
            self.hold, self.is_silence = told.retry_at, told.result_code is None
        self.told, self.was_refused = None, True

    def end(self, told: MappingFailed | MappingReleased, now: float, *, is_hopeless: bool) -> None:
        """`is_hopeless`: there is no way to delete it, or no use."""
        assert not self.is_finished, "two ends"
        self.is_finished = True
        if isinstance(told, MappingReleased):
            assert not self.is_wanted
            assert not told.confirmed or self.is_confirmed or not self.may_exist, "nobody confirmed it"
        elif told.reason is Reason.DEADLINE:
            assert self.until is not None
            assert not self.is_wanted
            assert self.until <= now
        elif told.reason is Reason.NEEDS_PCP:
            assert self.needs_pcp
            assert self.is_wanted
        else:
            assert told.reason in (Reason.UNSUPPORTED_PROTOCOL, Reason.UNSUPPORTED_OPTION)
            assert self.refusal == (told.result_code, now)
        assert self.is_wanted or not self.may_exist or self.deletes or is_hopeless, "given up, but not deleted"


# --- the client on the wire


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


def target_of(message: typing.Any) -> Target:
    """What a request or an answer is about."""
    remote = getattr(message, "remote_port", None)
    peer = () if remote is None else ((str(message.remote_address), remote),)
    return (int(message.protocol), message.internal_port, *peer)


ERRAND: Target = (UDP, 9)
QUESTION = b"\0\0"


class Dues(dict[MappingId, float]):
    """When the requests under way are due; `nameless` are those about no mapping."""

    def __init__(self, client: Client) -> None:
        self.nameless: list[float] = []
        for each in client.timers():
            if each.reason is Timer.RETRANSMIT and each.mapping is None:
                self.nameless.append(each.deadline)
            elif each.reason is Timer.RETRANSMIT and each.mapping is not None:
                self[each.mapping] = each.deadline


class Watched:
    """A client with its twin, and what must be true of both. To the simulation it is the client."""

    def __init__(self, world: World, local: str, versions: tuple[int, ...], seed: int, **config: typing.Any) -> None:
        self.world, self.met, self.seed = world, world.met, seed
        self.local, self.server = local, world.servers[0]
        self.config = Config(versions=versions, max_hold=MAX_HOLD, max_lifetime=int(MAX_LEASE), **config)
        self.versions = versions if "." in local else (2,)
        self.prompt, self.late = (
            Client(self.server, local_address=local, config=self.config, rng=random.Random(seed)) for _ in range(2)
        )
        assert self.prompt.next_timeout() is None  # line 1
        assert self.prompt.poll() is None
        self.queue: list[Output] = []
        self.owed: list[Output] = []
        self.known: dict[MappingId, Known] = {}
        self.wanted: dict[Target, Known] = {}
        self.leaving: dict[MappingId, Known] = {}
        self.nonces: set[bytes] = set()
        self.pairs: list[tuple[Known, Known]] = []
        self.heard: list[bytes] = []
        self.now = -math.inf
        self.parting: tuple[set[bytes | None], Address] = (set(), self.server)  # what may be deleted at another gateway
        self.parted: list[bytes] = []
        self.is_parting = False
        self.is_dead = self.is_unreachable = self.is_closing = self.is_closed = False
        self.start()

    def start(self) -> None:
        """What a new process knows, or rather does not."""
        self.epochs: dict[int, list[tuple[int, float] | None]] = {0: [None], 2: [None]}  # references that it may have
        self.verdicts = {False}
        self.expected: Known | None = None  # whose grant is to be believed
        self.answered: Known | None = None
        self.restart_told = False
        self.recovered = -math.inf
        self.hold_new = self.hold_all = self.announced = -math.inf
        self.question: Request | None = None
        self.address: IPAddress | None = None
        self.version: int | None = None
        self.is_probing = self.is_asked = False
        self.announces = 0  # how often it may still ask in PCP whether anybody is there

    # --- what a core has

    @property
    def bind_address(self) -> Address:
        return self.prompt.bind_address

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        if self.is_dead:
            return False
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
        has_turned = self.hear(bytes((data[0], data[1] | 0x80, *data[2:])), now)  # without the bit it was mended
        self.drain(now, may_end=True, may_begin=has_turned)
        return True

    def handle_timeout(self, now: float) -> None:
        if self.is_dead:
            return
        for known in [each for each in self.wanted.values() if each.until is not None and each.until <= now]:
            self.leave(known)
        recovers = (self.pending_recovery() or math.inf) <= now
        if recovers:
            self.recover(now)
        self.prompt.handle_timeout(now)
        self.late.handle_timeout(now)
        self.drain(now, may_end=recovers, may_begin=recovers)
        again = self.prompt.next_timeout()
        assert again is None or again > now  # line 5

    def next_timeout(self) -> float | None:
        return self.now if self.queue else None if self.is_dead else self.prompt.next_timeout()

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

    @property
    def clock(self) -> float:
        return self.world.sim.now_of(self)

    def command(self, act: Callable[[Client, float], T]) -> T:
        now = self.clock
        self.wake_twin_early(now)
        outcome, again = (act(client, now) for client in (self.prompt, self.late))
        assert outcome == again
        return outcome

    def refuses(self, act: Callable[[Client, float], object]) -> None:
        """Line 9: what is refused changes nothing."""
        before, now = self.all_of_it(), self.clock
        for client in (self.prompt, self.late):
            with pytest.raises(LocalProtocolError):
                act(client, now)
        assert self.all_of_it() == before

    def want(self, mapping: MappingId, target: Target, until: float | None) -> Known:
        assert mapping not in self.known
        self.known[mapping] = self.wanted[target] = known = Known(id=mapping, target=target, until=until)
        return known

    def map(self, target: Target, life: float | None = None, **wish: typing.Any) -> None:
        until = None if life is None else self.clock + life

        def act(client: Client, now: float) -> MappingId:
            protocol, port, *peer = target
            if peer:
                return client.map_peer(protocol, port, peer[0], now, until=until, **wish)
            return client.map_port(protocol, port, now, until=until, **wish)

        if target in self.wanted or self.is_closing:
            self.refuses(act)
            return
        self.want(self.command(act), target, until)
        self.drain(self.clock)

    def map_pair(self, port: int, **wish: typing.Any) -> None:
        if (TCP, port) in self.wanted or (UDP, port) in self.wanted or self.is_closing:
            self.refuses(lambda client, now: client.map_pair(port, now, **wish))
            return
        tcp_id, udp_id = self.command(lambda client, now: client.map_pair(port, now, **wish))
        udp, tcp = self.want(udp_id, (UDP, port), None), self.want(tcp_id, (TCP, port), None)
        udp.twin, tcp.twin = tcp, udp
        self.pairs.append((tcp, udp))
        self.drain(self.clock)
        self.met["pair"] += 1

    def unmap(self, known: Known) -> None:
        is_wanted = known.is_wanted
        if is_wanted:
            self.leave(known)
        assert self.command(lambda client, now: client.unmap(known.id, now)) is is_wanted
        self.drain(self.clock, may_end=True)

    def close(self) -> None:
        self.is_closing = True
        for known in list(self.wanted.values()):
            self.leave(known)
        self.is_probing = False
        self.command(lambda client, now: client.close(now))
        self.drain(self.clock, may_end=True)

    def gateway_unreachable(self) -> None:
        self.command(lambda client, now: client.gateway_unreachable(now))
        self.drain(self.clock, may_end=True)

    def ask_for_address(self) -> None:
        if self.is_closing:
            return
        self.is_asked = True
        for known in self.wanted.values():
            known.spare += known.held is not None
        self.command(lambda client, now: client.request_external_address(now))
        self.drain(self.clock, may_end=True)

    def probe(self) -> None:
        if self.is_closing:
            return
        self.is_probing, self.announces = True, self.announces + 2
        self.command(lambda client, now: client.probe(now))
        self.drain(self.clock, may_end=True)

    def network_changed(self, local: str | None = None, server: Address | None = None) -> None:
        """The old gateway hears what it is told in parting from where the client was."""
        if self.is_closing:
            return
        old_address, old = self.world.sim.address_of(self), (self.local, self.server)
        self.local, self.server = local or self.local, server or self.server
        has_moved = (self.local, self.server) != old
        self.command(lambda client, now: client.network_changed(now, local, server))
        self.announces += 2 * self.is_probing
        self.epochs, self.restart_told = {0: [None], 2: [None]}, False
        self.hold_new = self.hold_all = self.announced = -math.inf
        for known in (*self.wanted.values(), *self.leaving.values()):
            known.request = None
            known.again = "delete" if not known.is_wanted else "recover" if known.held else "ask"
            known.hold = -math.inf
        if has_moved:
            self.address = self.version = None
            self.is_unreachable = False
            every = (*self.wanted.values(), *self.leaving.values())
            self.parting, self.is_parting = ({known.nonce for known in every}, old[1]), True
            self.move()
        self.drain(self.clock, may_end=True, may_begin=True)
        if has_moved:
            gone = [each for each in self.queue if isinstance(each, SendDatagram) and each.data in self.parted]
            self.queue = [each for each in self.queue if each not in gone]
            for each in gone:
                self.world.sim.send(each.data, old_address, each.addr)
            self.parted, self.is_parting = [], False
        if self.bind_address[0] != old_address[0]:
            self.world.sim.move(self)
        self.met["move" if has_moved else "wake-up call"] += 1

    def move(self) -> None:
        """Mappings are new elsewhere, and those left behind are no longer of interest."""
        for known in self.leaving.values():
            known.may_exist = False
        for known in self.wanted.values():
            known.nonce, known.may_exist, known.is_here = None, False, False
            if known.held is not None:
                known.ends = min(known.ends, self.clock + 30.0)

    def restore(self, pause: float) -> None:
        """A new process takes over, `pause` seconds later."""
        if self.is_closing:
            return
        then = self.clock
        saved, again = (client.snapshot(self.clock) for client in (self.prompt, self.late))
        assert saved == again == self.prompt.snapshot(self.clock)
        self.drain_late()
        self.is_dead = True
        self.world.run(pause)
        self.is_dead = False
        self.seed += 1000
        plain = json.loads(json.dumps(saved))
        self.prompt, self.late = (
            Client.restore(plain, self.clock, elapsed=pause, config=self.config, rng=random.Random(self.seed))
            for _ in range(2)
        )
        self.start()
        self.is_unreachable = False
        self.now = self.clock
        for known in self.leaving.values():
            known.is_finished, known.request = True, None
        self.leaving.clear()
        for known in self.wanted.values():
            known.may_exist = known.held is not None and known.is_here and known.ends - then > pause
            known.forget()
            known.request = known.told = known.refusal = None
            known.hold, known.again = -math.inf, None
            if known.until is not None:
                known.until = self.clock + max(0.0, known.until - then - pause)
        self.drain(self.clock)
        self.met["restore"] += 1

    def leave(self, known: Known) -> None:
        known.is_wanted = False
        self.leaving[known.id] = self.wanted.pop(known.target)
        if known.twin is not None:
            known.twin.spare += 1
            known.twin.twin, known.old_twin, known.twin = None, known.twin, None

    def left(self, target: Target) -> Known | None:
        """What is to be deleted there."""
        return next((known for known in self.leaving.values() if known.target == target), None)

    def recover(self, now: float) -> None:
        """What is due now (RFC 6886 section 3.7, RFC 6887 section 14.1.3)."""
        is_certain = self.restart_told
        if is_certain:
            assert now >= self.recovered + PACE - ROUNDING, "recovered too often"
            self.recovered = now
        self.restart_told = False
        for known in self.wanted.values():
            known.is_doubted = known.held is not None
            known.hold = -math.inf if is_certain and known.held is None else known.hold
        self.met["recovery" if is_certain else "confirmation"] += 1

    def pending_recovery(self) -> float | None:
        return next((each.deadline for each in self.prompt.timers() if each.reason is Timer.RECOVER), None)

    def wake_early(self) -> None:
        """Line 4, of the prompt one."""
        deadline, now = self.prompt.next_timeout(), self.clock
        if deadline is not None and now < deadline and not self.queue:
            before = self.all_of_it()
            self.prompt.handle_timeout(now)
            assert self.all_of_it() == before

    def drain_late(self) -> None:
        """Line 8: the same in the same order, but for retransmissions whose twin still waited."""
        waiting = self.late.next_timeout()
        assert not self.owed or (waiting is not None and waiting <= self.clock)  # line 6
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

    # --- the attacker

    def forge(self, kind: str, dice: random.Random) -> None:
        """What an attacker sends who cannot see what is sent (RFC 6887 section 18.1). Promise 4."""
        gateway = self.world.gateways[self.server]
        every = (*self.wanted.values(), *self.leaving.values())
        known = [(each.target[0], each.target[1], each.told) for each in every]
        epoch = int(self.world.sim.now - self.world.starts[self.server])
        if "announcement" in kind and dice.random() < 0.5:
            epoch = self.edge(0 if "NAT-PMP" in kind else 2, epoch)
        data = forged(kind, dice, self.local, known or [(TCP, 80, None)], epoch, gateway.external_address)
        source = dice.choice(self.world.strangers(self.server)) if kind == "stranger" else self.server
        if not self.is_harmless(kind):
            return
        before = (*look(self.prompt), self.prompt.next_timeout(), len(self.queue))
        claimed = self.world.sim.inject(self, data, source)
        if "announcement" not in kind:
            after = (*look(self.prompt), self.prompt.next_timeout(), len(self.queue))
            assert after == before, f"a forged {kind} has an effect"
        self.met[f"forged {kind}, {'' if claimed else 'not '}claimed"] += 1

    def edge(self, version: int, epoch: int) -> int:
        """The first epoch that shows a loss of state, or the last that does not, or so."""
        seen = self.epochs[version][0]
        if seen is None:
            return epoch
        since = self.clock - seen[1]
        return max(0, seen[0] + math.floor(since * 7 / 8 if version == 0 else since * 15 / 16) - 2)

    def is_harmless(self, kind: str) -> bool:
        """Whether there is a nonce in the way; NAT-PMP has none."""
        every = (*self.wanted.values(), *self.leaving.values())
        is_asked = self.question is not None or any(each.request and each.request.version == 0 for each in every)
        if kind == "version error":
            is_proven = any(each.held and each.held.version == 2 and each.is_here for each in self.wanted.values())
            return is_proven and not is_asked
        if kind == "NAT-PMP answer":
            return not is_asked and not any(each.held and each.held.version == 0 for each in every)
        return not is_asked or kind not in ("noise", "truncated answer", "PEER answer")

    # --- what it hears

    def hear(self, data: bytes, now: float) -> bool:
        """Take in a datagram as the RFCs have it. True: all that is under way may begin anew."""
        self.verdicts = {False}
        every = (*self.wanted.values(), *self.leaving.values())
        is_asked = self.question is not None or any(each.request and each.request.version == 0 for each in every)
        if is_asked and data[:1] == b"\0" and (len(data), data[1]) in ((12, 0), (16, 1), (16, 2)):
            data = bytes((0, data[1] | 0x80, *data[2:]))  # an answer without its response bit
        message = None if self.is_closed else read(data)
        if message is None or data[0] not in self.versions:
            return False
        match message:
            case _ if is_version_error(message):
                return True
            case pcp.AnnounceResponse() | natpmp.ExternalAddressResponse() | natpmp.ErrorResponse(opcode=0):
                self.check_epoch(data[0], message.epoch, now, is_certain=message.result_code == 0)
                if message.result_code == 0:
                    self.hear_announcement(now)
            case pcp.MapResponse() | pcp.PeerResponse():
                self.hear_pcp(message, now)
            case natpmp.MapResponse():
                self.hear_natpmp(message, now)
            case natpmp.ErrorResponse(opcode=1 | 2):
                self.hear_short_error(message, now)
            case natpmp.ErrorResponse() | pcp.ErrorResponse():
                self.check_epoch(data[0], message.epoch, now, is_certain=False)
        return False

    def hear_announcement(self, now: float) -> None:
        """One that shows no loss of state is a reason to doubt, but for copies of another (RFC 6886 section 3.2.1)."""
        is_new, self.announced = now - self.announced > 75.0, now
        is_answer = self.question is not None or self.is_probing
        if is_new and self.verdicts == {False} and not is_answer:
            for known in self.wanted.values():
                if known.held is not None:
                    known.doubted = min(known.doubted, self.world.sim.now)

    def hear_pcp(self, message: pcp.MapResponse | pcp.PeerResponse, now: float) -> None:
        target = target_of(message)
        about = [each for each in (self.left(target), self.wanted.get(target)) if each]
        known = next((each for each in about if each.nonce == message.nonce), None)
        if known is None:
            if target == ERRAND and message.nonce in self.nonces:
                self.check_epoch(2, message.epoch, now, is_certain=False)
            return
        self.check_epoch(2, message.epoch, now)
        self.answered = known
        request, code = known.request, message.result_code
        is_awaited = request is not None and request.version == 2
        if code == 0 and message.lifetime > 0 and message.external_port > 0:
            lifetime = min(float(message.lifetime), MAX_LEASE)
            promise = Promise(now, lifetime, message.external_port, message.external_address, 2)
            self.promise(known, promise, is_awaited=is_awaited)
            return
        known.is_confirmed |= not known.is_wanted and code == 0
        known.may_exist &= known.kind != "delete" or code == 0  # what cannot be deleted is taken to be gone
        hold = now + min(max(float(message.lifetime) if code else 0.0, MIN_HOLD), MAX_HOLD)
        if code == pcp.ResultCode.NO_RESOURCES and (known.kind == "delete" or not known.is_wanted):
            self.hold_all = hold  # of a server without room, ask no more (RFC 6887 section 11.4)
        else:
            self.refuse(known, int(code), hold, is_busy=code == pcp.ResultCode.NO_RESOURCES)

    def hear_natpmp(self, message: natpmp.MapResponse, now: float) -> None:
        target = (int(message.protocol), message.internal_port)
        known = self.left(target) or self.wanted.get(target)
        request, code = known.request if known else None, message.result_code
        if known is None or request is None or request.version != 0:
            self.check_epoch(0, message.epoch, now, is_certain=False)
            return
        is_grant = code == 0 and message.lifetime > 0 and message.external_port > 0
        if request.kind != "delete" and code == 0 and message.lifetime == 0:
            return  # a copy of the answer to an earlier delete
        self.answered = known
        self.check_epoch(0, message.epoch, now)
        if is_grant:
            lifetime = min(float(message.lifetime), MAX_LEASE)
            self.promise(known, Promise(now, lifetime, message.external_port, None, 0), is_awaited=True)
            return
        self.refuse_in_natpmp(known, code, now)

    def hear_short_error(self, message: natpmp.ErrorResponse, now: float) -> None:
        """Without a port: only the request under way can tell."""
        protocol = UDP if message.opcode == 1 else TCP
        every = (*self.leaving.values(), *self.wanted.values())
        asked = [each for each in every if each.request and each.request.version == 0 and each.target[0] == protocol]
        if not asked:
            self.check_epoch(0, message.epoch, now, is_certain=False)
            return
        self.answered = asked[0]
        self.check_epoch(0, message.epoch, now)
        self.refuse_in_natpmp(asked[0], message.result_code, now)

    def refuse_in_natpmp(self, known: Known, code: natpmp.ResultCode, now: float) -> None:
        known.is_confirmed |= not known.is_wanted and code == 0
        known.may_exist &= known.is_wanted or code == 0  # what cannot be deleted is taken to be gone
        lasts = (1800.0 if code.lifetime is None else float(code.lifetime)) if code else 0.0
        hold = now + min(max(lasts, MIN_HOLD), MAX_HOLD)
        self.refuse(known, int(code), hold, is_busy=code == natpmp.ResultCode.OUT_OF_RESOURCES)

    def promise(self, known: Known, promise: Promise, *, is_awaited: bool) -> None:
        """A grant; one that nobody waits for may be a copy."""
        if not known.is_wanted or known.kind == "delete":
            return  # to an earlier request; the delete is still on its way
        if not is_awaited and known.request is not None:
            known.again = known.request.kind  # it turns back to this version
        known.promises = [promise] if is_awaited else [*known.promises[-9:], promise]
        self.expected = known if is_awaited else None

    def refuse(self, known: Known, code: int, hold: float, *, is_busy: bool) -> None:
        if not known.is_wanted or known.kind == "delete":
            return
        if is_busy and known.kind == "ask" and known.suggested:
            known.is_port_busy = True  # another will do, perhaps
            known.again = "ask"
            return
        if is_busy and known.request is not None and known.request.version == 2:
            self.hold_new = hold
        known.refusal, known.hold = (code, self.clock), hold if known.request is not None else known.hold

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
        if self.verdicts == {True}:
            for known in self.wanted.values():
                if known.held is not None:
                    known.lost = min(known.lost, self.world.sim.now)

    # --- what it puts out

    def drain(self, now: float, *, may_end: bool = False, may_begin: bool = False) -> None:
        """Check all that came of one input. It may end requests that are under way, or let them begin anew."""
        self.now = max(self.now, now)
        verdicts, self.verdicts = self.verdicts, {False}
        expected, self.expected = self.expected, None
        dues = Dues(self.prompt)
        told: list[Event] = []
        outputs = list(self.prompt.outputs())
        before = {each.id: each.request for each in self.known.values() if each.request is not None}
        for output, following in zip_longest(outputs, outputs[1:]):
            assert not self.is_closed, "something after Closed"
            self.owed.append(output)
            self.queue.append(output)
            if isinstance(output, SendDatagram):
                is_followed = isinstance(following, SendDatagram) and following.data == QUESTION
                self.check_datagram(output, dues, is_followed=is_followed, may_begin=may_begin)
                continue
            told.append(output)
            self.met[type(output).__name__] += 1
            self.check_event(output)
        restarts = sum(isinstance(each, GatewayRestarted) for each in told)
        assert restarts <= (True in verdicts), "no restart could be seen"
        if verdicts == {True} and not self.is_closed:
            assert self.pending_recovery() is not None, "a restart was not seen"
        self.check_ends(before, dues, told, may_end=may_end)
        self.check_held(expected, told, has_lost=True in verdicts)
        self.answered = None
        if len(self.owed) > 400:
            self.drain_late()

    def check_datagram(self, sent: SendDatagram, dues: Dues, *, is_followed: bool, may_begin: bool) -> None:
        """`is_followed`: by a question in the other version, with which a request may go out once more."""
        message, now = decode(sent.data), self.now
        if isinstance(message, natpmp.ExternalAddressRequest):
            self.check_question(sent.data, dues)
            return
        if isinstance(message, pcp.AnnounceRequest):
            self.announces -= 1
            assert self.announces >= 0, "more questions than the caller wants answered"
            return
        assert isinstance(message, natpmp.MapRequest | pcp.MapRequest | pcp.PeerRequest)
        if self.is_parting and message.lifetime == 0:
            self.check_parting(sent, message)
            return
        assert sent.addr == self.server
        assert sent.data[0] in self.versions
        target = target_of(message)
        known = self.wanted.get(target) if message.lifetime else self.left(target) or self.vacated(target)
        if not isinstance(message, natpmp.MapRequest):
            assert message.client_address == ip_address(self.local)
            if known is not None:
                assert known.nonce == message.nonce or (known.nonce is None and message.nonce not in self.nonces)
                known.nonce = message.nonce
            self.nonces.add(message.nonce)
        if known is None:
            assert target == ERRAND, f"nobody wants {message}"
            assert self.is_asked
            return
        request, due = known.request, dues.get(known.id, math.inf)
        if request is not None and request.goes_on(sent.data, now, due):
            request.again(now, due)
            self.met["retransmission"] += 1
        elif request is not None and sent.data == request.data and now >= request.due and due == math.inf:
            request.count += 1
            self.met["retransmission that was the last"] += 1  # it has ended in the same instant
        elif request is not None and sent.data == request.data and is_followed and request.kind in ("ask", "recover"):
            self.met["sent again with the first question in the other version"] += 1
        else:
            self.check_new(known, message, sent.data, due, may_begin=may_begin)

    def check_new(self, known: Known, message: typing.Any, data: bytes, due: float, *, may_begin: bool) -> None:
        request, now = known.request, self.now
        if request is not None and known is not self.answered and message.lifetime:
            is_turned = data[0] != request.version
            is_over = is_turned or request.is_tired or request.count >= request.limits[0]
            assert may_begin or is_over, f"a {request.kind} begins anew"
            known.again = request.kind
        if message.lifetime == 0:
            self.check_delete(known, message)
        elif known.held is None:
            assert now >= self.hold_new - ROUNDING, "the gateway has no room"
            assert self.left(known.target) is None, "another for the same port is being deleted"
            self.check_order(known)
        assert now >= self.hold_all - ROUNDING or self.is_closing, "the gateway has no room even for a delete"
        kind, least, most = known.begin(data, now)
        self.met[f"{kind} in {'PCP' if data[0] else 'NAT-PMP'}"] += 1
        if due < math.inf:
            shortest, longest = waits(data[0], 1, 0.0)
            assert shortest - ROUNDING <= due - now <= longest + ROUNDING, f"a {kind} waits for {due - now} s"
            known.request = Request(kind, data, (least, most), due, due - now)
        else:
            known.request = None  # it is over again already

    def check_order(self, known: Known) -> None:
        """Commands keep their order: line 10."""
        if known.asked == -math.inf and known.refusal is None and not known.was_refused:
            for other in self.wanted.values():
                is_first = other.id < known.id and other.asked == -math.inf and not other.was_refused
                assert not is_first or self.left(other.target) or other.twin, "a later command was done first"

    def check_delete(self, known: Known, message: typing.Any) -> None:
        """RFC 6886 section 3.4, RFC 6887 section 15.1."""
        assert message.suggested_external_port == 0
        assert isinstance(message, natpmp.MapRequest) or int(message.suggested_external_address) in (0, 0xFFFF00000000)
        assert known.may_exist, "there is nothing to delete"
        assert not isinstance(message, pcp.PeerRequest)

    def check_parting(self, sent: SendDatagram, message: typing.Any) -> None:
        nonces, server = self.parting
        assert sent.addr == server
        assert sent.data not in self.parted
        assert message.suggested_external_port == 0
        assert isinstance(message, natpmp.MapRequest) or message.nonce in nonces
        self.parted.append(sent.data)
        self.met["parting delete"] += 1

    def check_question(self, data: bytes, dues: Dues) -> None:
        """There may be a question in PCP under way as well."""
        now, question = self.now, self.question
        whens = [due for due in dues.nameless if due > now] or [math.inf]
        again = [due for due in whens if question is not None and question.goes_on(data, now, due)]
        if question is not None and again:
            question.again(now, again[0])
            return
        whens = [due for due in whens if due == math.inf or abs(due - now - 0.25) < ROUNDING]
        assert whens, "a question that does not keep its schedule"
        self.question = Request("question", data, (4, 9), whens[0], 0.25)
        self.met["question"] += 1

    def vacated(self, target: Target) -> Known | None:
        """One of a pair that is to move to the port of its twin."""
        known = self.wanted.get(target)
        return known if known is not None and known.twin is not None else None

    def check_ends(self, before: dict[MappingId, Request], dues: Dues, told: list[Event], *, may_end: bool) -> None:
        """No request ends without a cause."""
        question = self.question
        has_failed = any(isinstance(each, GatewayUnreachable | MappingRefused | MappingLost) for each in told)
        has_failed |= any(each.version == 0 and each.count >= 9 for each in before.values())
        if question is not None and question.due not in dues.nameless:
            has_failed |= question.count >= 9
            self.question = None
        ended = {each.mapping for each in told if isinstance(each, MappingReleased | MappingFailed)}
        for known in (*self.wanted.values(), *self.leaving.values()):
            request = known.request
            if known.id in dues:
                assert request is not None
                assert request.due == dues[known.id], "its deadline is another without a transmission"
                continue
            known.request = None
            if request is None or request is not before.get(known.id):
                continue
            is_given_up = request.kind != "delete" and not known.is_wanted
            is_done = request.count >= request.limits[0] or known is self.answered or is_given_up
            is_done |= request.is_tired
            assert may_end or has_failed or is_done or known.id in ended, f"a {request.kind} is not sent again"
            if (may_end or request.is_tired) and known is not self.answered:
                known.again = request.kind
        kinds = Counter(each.request.version for each in self.known.values() if each.request is not None)
        self.met["window full"] += kinds[2] == self.config.window
        assert kinds[2] <= self.config.window, f"{kinds[2]} requests wait for an answer"
        assert kinds[0] + (self.question is not None) <= 1, "two requests in NAT-PMP"

    def check_held(self, expected: Known | None, told: list[Event], *, has_lost: bool) -> None:
        """What it holds was promised to it, and is told."""
        for mapping in self.prompt.mappings:
            known = self.known[mapping.id]
            if not known.is_wanted:
                continue
            if mapping.state is not MappingState.HELD:
                if known.held is not None:
                    known.forget()
                continue
            if known.held is None or mapping.expires_at != known.ends:
                promise = next((each for each in reversed(known.promises) if each.ends == mapping.expires_at), None)
                assert promise is not None, "held for longer than was promised"
                world = self.world
                is_sure = expected is known or not has_lost
                known.grant(promise, world.calm if world.calm <= world.sim.now else math.inf, is_sure=is_sure)
                said = sum(isinstance(each, Holding) and each.mapping == known.id for each in told)
                is_told = said == 1 or known.twin is not None or (promise.version == 0 and self.address is None)
                assert is_told, f"a grant is not told {mapping} {told}"
                if known.target[0] == UDP and known.twin is not None:
                    known.twin.spare, known.twin.lead = known.twin.spare + 1, promise.at
            assert expected is not known or known.held is known.promises[-1], "a grant is not believed"

    def check_event(self, told: Event) -> None:
        match told:
            case MappingGranted() | MappingRenewed() | MappingChanged():
                self.known[told.mapping].tell(told, self.address)
            case MappingLost() | MappingRefused():
                seen = self.prompt.mapping(told.mapping)
                is_refused = seen is None or seen.state is MappingState.REFUSED
                known = self.known[told.mapping]
                known.miss(told, self.now, is_refused=is_refused)
                self.met["refused"] += told.result_code is not None
            case MappingFailed() | MappingReleased():
                known = self.known[told.mapping]
                is_useless = self.is_closing or len(known.target) > 2 or (known.needs_pcp and self.version == 0)
                known.end(told, self.now, is_hopeless=is_useless)
                if known.is_wanted:
                    self.leave(known)
                known.request = None
                del self.leaving[known.id]
                if known.old_twin is not None:
                    known.old_twin.spare += 1
                self.met[getattr(told, "reason", Reason.DELETED).name] += isinstance(told, MappingFailed)
            case PairSplit():
                assert (self.known[told.tcp], self.known[told.udp]) in self.pairs
                self.known[told.tcp].is_split = self.known[told.udp].is_split = True
            case ProbeCompleted():
                assert self.is_probing
                self.is_probing = False
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
                earliest = max(self.now, self.recovered + PACE)
                assert not self.restart_told
                self.restart_told = True
                assert earliest - ROUNDING <= told.recovery_at or self.pending_recovery() == told.recovery_at
                assert told.recovery_at <= max(self.now + 5.0, earliest) + ROUNDING, "it will be recovered too late"
            case GatewayUnreachable() | GatewayRecovered():
                assert self.is_unreachable is isinstance(told, GatewayRecovered)
                self.is_unreachable = not self.is_unreachable
                for known in self.wanted.values():
                    known.hold = -math.inf if known.is_silence else known.hold
            case ExternalAddressLearned(address=address):
                assert self.address is None or (self.address == address and self.is_asked)
                self.address = address
            case ExternalAddressChanged(old=old, new=new):
                assert self.address == old != new
                self.address = new
            case VersionNegotiated(version=version):
                assert self.version != version
                self.version = version
                for known in self.wanted.values():
                    known.hold = -math.inf if version == self.versions[0] else known.hold
            case _:
                assert isinstance(told, DoubleNatSuspected), f"{told} is not for a client to tell"

    # --- what is true between inputs

    def check(self) -> None:
        """The contract's lines, and what must happen in time when nothing is in the way."""
        now = self.now
        assert look(self.prompt) == look(self.prompt) == look(self.late)  # lines 7, 12 and 14
        assert self.prompt.version == self.version
        assert self.prompt.external_address == self.address
        seen = {mapping.id: mapping for mapping in self.prompt.mappings}
        assert seen.keys() == {known.id for known in (*self.wanted.values(), *self.leaving.values())}
        timers = self.prompt.timers()
        assert len(timers) <= 5 * len(seen) + 8  # line 11
        assert self.prompt.next_timeout() == (timers[0].deadline if timers else None), "a stale deadline"
        for known in self.leaving.values():
            assert seen[known.id].state is MappingState.RELEASING
        for known in self.wanted.values():
            mapping, held = seen[known.id], known.held
            assert (mapping.state is MappingState.HELD) is (held is not None)
            times = [each for each in (mapping.expires_at, mapping.renew_at, mapping.retry_at) if each is not None]
            assert not times or timers[0].deadline <= min(times), "a deadline is forgotten"
            if held is not None:
                assert mapping.external == known.told
                assert mapping.expires_at == known.ends > now, "held for longer than was promised"
                assert known.told or known.twin or now <= held.at + 2.0 + ROUNDING, "a grant is not told"
                follows = (
                    known.told is not None and self.address is not None and held.version == 0 and known.twin is None
                )
                assert not follows or getattr(known.told, "address", None) == self.address, "a move is not told"
                self.check_in_time(known, held)

    def is_calm(self, known: Known) -> bool:
        """Whether all was well since it was granted."""
        return known.calm == self.world.calm < math.inf and self.hold_all < self.now and self.world.serves(self)

    def check_in_time(self, known: Known, held: Promise) -> None:
        """Renewed, recovered, confirmed, and TCP after UDP of a pair: if nothing has stood in the way."""
        is_needed = known.until is None or known.ends < known.until
        if is_needed and self.is_calm(known) and known.lost == math.inf and held.lifetime >= 60:
            assert known.renewals or self.now <= held.at + held.lifetime * 5 / 8 + 5.0, "not renewed in good time"
            is_led = known.twin is None or self.now < known.lead + 10.0 or known.ends == known.until
            assert is_led or known.asked >= known.lead, "TCP does not follow UDP"
        now, calm = self.world.sim.now, self.world.calm
        is_free = all(
            each.request is None or each.request.wait < 30.0 for each in self.wanted.values()
        )  # of old silence
        if is_free and self.world.serves(self) and self.hold_all < self.now:
            for since, what in ((known.lost, "recovered"), (known.doubted, "confirmed")):
                assert now <= max(since, calm) + (PROMPT if calm <= since else SLACK), f"not {what}"


# --- the network

GOOD = Link(latency=0.02)
LINKS = {
    "good": GOOD,
    "lossy": Link(latency=0.05, jitter=0.1, loss=0.3),
    "bad": Link(latency=0.05, jitter=1.0, loss=0.6, duplicate=0.3),
    "muddled": Link(latency=0.5, jitter=0.5, reorder=0.3, hold=6.0, duplicate=0.2),
    "slow": Link(latency=2.0, loss=0.2),
    "noisy": Link(latency=0.02, corrupt=0.2),
    "cut": Link(loss=1.0),
}
GRACE = 10.0  # s until what bad links have held back has arrived

EXTERNALS = ("203.0.113.5", "203.0.113.6")
SERVERS: dict[int, tuple[Address, ...]] = {
    4: (("192.168.1.1", 5351), ("192.168.1.254", 5351)),
    6: (("fe80::1", 5351, 0, 2), ("fe80::2", 5351, 0, 2)),
}
STRANGERS: dict[int, tuple[Address, ...]] = {
    4: (("192.168.1.66", 5351), ("192.168.1.1", 5352), ("192.168.1.254", 5352)),
    6: (("fe80::66", 5351, 0, 2), ("fe80::1", 5351, 0, 3), ("fe80::2", 5351, 0, 3)),
}
LOCALS = {
    4: (("192.168.1.7", "192.168.1.17"), ("192.168.1.8", "192.168.1.18")),
    6: (("2001:db8:1::7", "2001:db8:1::17"),),
}
PEERS = {4: ("198.51.100.9", 443), 6: ("2001:db8:9::9", 443)}


class World:
    """Two gateways, each of which may be another after a while, clients at one of them, and all that lies between."""

    def __init__(self, family: int, versions: tuple[int, ...], seed: int, window: int) -> None:
        self.family, self.servers = family, SERVERS[family]
        self.met: Counter[str] = Counter()
        self.sim = Simulation(seed=seed, record=False)
        self.calm = 0.0  # since when all is well; infinite while it is not
        self.refusal: pcp.ResultCode | None = None
        self.bad: set[object] = set()
        self.starts = dict.fromkeys(self.servers, 0.0)
        self.versions: dict[Address, tuple[int, ...]] = {}
        self.gateways = {server: self.make_gateway(server, versions) for server in self.servers}
        for gateway in self.gateways.values():
            self.sim.add(gateway)
        speaks = ((2, 0), (0,)) if family == 4 else ((2, 0),)
        self.clients = [
            Watched(self, locals_[0], speak, seed + number, window=window)
            for number, (locals_, speak) in enumerate(zip(LOCALS[family], speaks, strict=True))
        ]
        clocks = (Clock(offset=1000.0, rate=1.01), Clock(offset=-5.0, rate=0.995, stops=False))
        for client, clock in zip(self.clients, clocks, strict=False):
            self.sim.add(client, clock=clock)
            self.link(client, GOOD, GOOD)

    def strangers(self, server: Address) -> list[Address]:
        return [each for each in (*STRANGERS[self.family], *self.servers) if each != server]

    def make_gateway(self, server: Address, versions: tuple[int, ...]) -> Gateway:
        self.versions[server] = versions if self.family == 4 else (2,)
        protocols: typing.Any = (TCP, UDP, SCTP)
        config = GatewayConfig(versions=self.versions[server], max_lifetime=int(MAX_LEASE), protocols=protocols)
        external = EXTERNALS[0] if self.family == 4 else None
        return Gateway(external, address=server, config=config, policy=lambda *_: self.refusal, rng=random.Random(1))

    def serves(self, client: Watched) -> bool:
        return bool(set(self.versions[client.server]) & set(client.versions))

    def disturb(self, what: object = None, *, is_bad: bool = True) -> None:
        """Something bad has happened, or begins, or ends."""
        if what is not None:
            (self.bad.add if is_bad else self.bad.discard)(what)
        self.calm = math.inf if self.bad else self.sim.now + GRACE

    def run(self, seconds: float) -> None:
        self.sim.run_until(self.sim.now + seconds)

    def link(self, client: Watched, there: Link, back: Link) -> None:
        for gateway in self.gateways.values():
            self.sim.connect(client, gateway, there)
            self.sim.connect(gateway, client, back)
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

    def reboot(self, server: Address) -> None:
        self.gateways[server].reboot(self.sim.now)
        self.starts[server] = self.sim.now
        self.disturb()
        self.met["reboot"] += 1

    def replace(self, server: Address, versions: tuple[int, ...]) -> None:
        """Another gateway, or the same without its memory, and no announcement tells."""
        old = self.gateways[server]
        self.gateways[server] = self.make_gateway(server, versions)
        self.sim.replace(old, self.gateways[server])
        self.starts[server] = self.sim.now
        self.disturb(("address", server), is_bad=False)
        self.met["reboot that nobody hears of"] += 1

    def readdress(self, server: Address, address: str | None) -> None:
        if self.family == 4:
            self.gateways[server].set_external_address(address, self.sim.now)
            self.disturb(("address", server), is_bad=address is None)
            self.met["external address change"] += 1

    def refuse(self, code: pcp.ResultCode | None) -> None:
        self.refusal = code
        self.disturb("refusal", is_bad=code is not None)

    def settle(self) -> None:
        """All becomes well, and then, given time, it is: promise 1. What nobody wants is gone: promise 2."""
        self.heal()
        self.refuse(None)
        for server, gateway in self.gateways.items():
            if gateway.external_address is None:
                self.readdress(server, EXTERNALS[0])
        for client in self.clients:
            self.link(client, GOOD, GOOD)
        self.run(CONVERGENCE)
        for client in self.clients:
            client.check()
            assert not client.leaving
            assert not client.is_probing, "a probe has no end"
        for server in self.servers:
            self.check_agreement(server)
        self.met["settled"] += 1

    def check_agreement(self, server: Address) -> None:
        """A gateway has what its clients want, and nothing else; they know where it is, and for how long."""
        there = {
            (each.internal.address, *key_of(each)): each
            for each in self.gateways[server].mappings
            if each.kind is not MappingKind.IMPLICIT
        }
        here = [client for client in self.clients if client.server == server and self.serves(client)]
        wanted = {(ip_address(each.local), *target): (each, target) for each in here for target in each.wanted}
        for key, (client, target) in list(wanted.items()):
            known = client.wanted[target]
            was_refused = known.refusal is not None and known.refusal[0] == pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL
            if len(target) > 2 and was_refused and known.held is None:
                del wanted[key]  # the endpoint of that flow is gone
        assert there.keys() == wanted.keys(), "they do not have the same mappings"
        for key, (client, target) in wanted.items():
            known, entry = client.wanted[target], there[key]
            assert known.held is not None
            assert known.lost == math.inf
            assert entry.external == known.told, "they do not agree on the endpoint"
            assert entry.expires_at - self.sim.now >= (known.ends - client.clock) * 0.98 - 2.0, (
                "it is forgotten earlier"
            )
            twin = known.twin
            assert twin is None or twin.told is None or known.is_split or twin.told.port == entry.external.port
            if self.family == 4:
                assert client.address == self.gateways[server].external_address
        self.met["agreement of so many mappings"] += len(there)


def key_of(entry: typing.Any) -> Target:
    remote = entry.remote
    peer = () if remote is None else ((str(remote.address), remote.port),)
    return (int(entry.protocol), entry.internal.port, *peer)


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

    begun: typing.ClassVar[int] = 0

    @initialize(
        family=st.sampled_from((4, 4, 4, 6)),
        versions=VERSIONS,
        seed=st.integers(0, 99),
        window=st.sampled_from((1, 2, 16)),
    )
    def begin(self, family: int, versions: tuple[int, ...], seed: int, window: int) -> None:
        Life.begun += 1
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
        self.client(who).map(what, life, external_port=external_port, lifetime=lifetime)

    @rule(who=WHO, several=st.lists(TARGETS, min_size=3, max_size=5, unique=True))
    def map_ports(self, who: int, several: list[Target]) -> None:
        for target in several:
            self.client(who).map(target, lifetime=600)

    @rule(who=WHO, port=st.sampled_from((80, 84)), external_port=st.sampled_from((0, 8080)))
    def map_pair(self, who: int, port: int, external_port: int) -> None:
        self.client(who).map_pair(port, external_port=external_port, lifetime=600)

    @rule(who=WHO, port=st.sampled_from((85, 86)))
    def map_peer(self, who: int, port: int) -> None:
        self.client(who).map((TCP, port, PEERS[self.world.family]), lifetime=600)

    @rule(who=WHO, which=st.integers(0, 9), is_wanted_again=st.booleans())
    def unmap(self, who: int, which: int, is_wanted_again: bool) -> None:
        client = self.client(who)
        every = [known for known in client.known.values() if known.is_wanted or known.id in client.leaving][-10:]
        if every:
            known = every[which % len(every)]
            client.unmap(known)
            if is_wanted_again:
                client.map(known.target)
                self.world.met["wanted again at once"] += 1

    @rule(who=WHO)
    def ask_for_address(self, who: int) -> None:
        self.client(who).ask_for_address()

    @rule(who=WHO)
    def probe(self, who: int) -> None:
        self.client(who).probe()

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
                self.world.run(max(0.0, deadline - client.clock))

    @rule(who=WHO)
    def wake_early(self, who: int) -> None:
        self.client(who).wake_early()

    @rule(who=WHO)
    def drain_late(self, who: int) -> None:
        self.client(who).drain_late()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    # --- mishaps

    @rule(who=WHO, there=st.sampled_from([*LINKS]), back=st.sampled_from([*LINKS]))
    def link(self, who: int, there: str, back: str) -> None:
        self.world.link(self.client(who), LINKS[there], LINKS[back])

    @rule(who=WHO)
    def partition(self, who: int) -> None:
        self.world.partition(self.client(who))

    @rule()
    def heal(self) -> None:
        self.world.heal()

    @rule(who=WHO, seconds=st.sampled_from((5.0, 400.0, 2000.0)))
    def sleep(self, who: int, seconds: float) -> None:
        self.world.sleep(self.client(who), seconds)

    @rule(who=WHO)
    def reboot(self, who: int) -> None:
        self.world.reboot(self.client(who).server)

    @rule(who=WHO, versions=VERSIONS)
    def replace(self, who: int, versions: tuple[int, ...]) -> None:
        self.world.replace(self.client(who).server, versions)

    @rule(who=WHO, address=st.sampled_from((*EXTERNALS, None)))
    def readdress(self, who: int, address: str | None) -> None:
        self.world.readdress(self.client(who).server, address)

    @rule(code=CODES | st.none())
    def refuse(self, code: pcp.ResultCode | None) -> None:
        self.world.refuse(code)

    @rule(who=WHO)
    def icmp(self, who: int) -> None:
        self.world.disturb()
        self.client(who).gateway_unreachable()
        self.world.met["ICMP"] += 1

    @rule(who=WHO, to=st.sampled_from(((0, 0), (0, 0), (1, 0), (0, 1), (1, 1))))
    def change_network(self, who: int, to: tuple[int, int]) -> None:
        """To another address or gateway, back, or neither."""
        client, world = self.client(who), self.world
        locals_ = LOCALS[world.family][who % len(world.clients)]
        world.disturb()
        client.network_changed(
            locals_[locals_.index(client.local) ^ to[0]], world.servers[world.servers.index(client.server) ^ to[1]]
        )

    @rule(who=WHO, pause=st.sampled_from((0.0, 5.0, 400.0)))
    def restore(self, who: int, pause: float) -> None:
        self.world.disturb()
        self.client(who).restore(pause)
        self.world.disturb()

    @rule(who=WHO)
    def reboot_unheard(self, who: int) -> None:
        """It announces its restart, but for a minute nobody gets through to it."""
        client, world = self.client(who), self.world
        world.link(client, LINKS["cut"], GOOD)
        world.reboot(client.server)
        self.run_and_check(60.0)
        world.link(client, GOOD, GOOD)
        self.run_and_check(2 * SLACK)

    @rule(who=WHO, version=st.sampled_from((0, 2)), other=st.booleans())
    def announce(self, who: int, version: int, other: bool) -> None:
        """The gateway, or somebody who knows its epoch, says that it is there, for no visible reason."""
        client, world = self.client(who), self.world
        epoch = int(world.sim.now - world.starts[client.server])
        if version == 2:
            data = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, epoch).encode()
        else:
            address = ip_address("203.0.113.66" if other else EXTERNALS[0])
            assert isinstance(address, IPv4Address)
            data = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, epoch, address).encode()
        world.sim.inject(client, data, client.server)
        self.run_and_check(PROMPT + 5.0)

    def run_and_check(self, seconds: float) -> None:
        self.world.run(seconds)
        self.check()

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
            world.sim.inject(client, client.heard[which % len(client.heard)], client.server)
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
        world.run(MAX_LEASE + 1.0)
        for client in world.clients:
            assert client.is_closed
            assert all(known.is_finished for known in client.known.values())  # line 13
            assert client.next_timeout() is None
            client.drain_late()
        assert all(
            each.kind is MappingKind.IMPLICIT for gateway in world.gateways.values() for each in gateway.mappings
        )
        for what in world.met:
            event(what)
        type(self).met += world.met


LIVES = settings(
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


# What every run must meet, or else it proves nothing.
REACHED = {
    "Closed",
    "ExternalAddressChanged",
    "GatewayRecovered",
    "GatewayRestarted",
    "GatewayUnreachable",
    "ICMP",
    "MappingChanged",
    "MappingFailed",
    "MappingGranted",
    "MappingLost",
    "MappingRefused",
    "MappingReleased",
    "MappingRenewed",
    "NEEDS_PCP",
    "DEADLINE",
    "ProbeCompleted",
    "VersionNegotiated",
    "agreement of so many mappings",
    "ask in NAT-PMP",
    "ask in PCP",
    "bad link",
    "confirmation",
    "delete in NAT-PMP",
    "delete in PCP",
    "external address change",
    "forged MAP answer, claimed",
    "forged announcement, claimed",
    "forged stranger, not claimed",
    "move",
    "old datagram again",
    "pair",
    "parting delete",
    "partition",
    "reboot",
    "reboot that nobody hears of",
    "recover in NAT-PMP",
    "recover in PCP",
    "recovery",
    "renew in NAT-PMP",
    "renew in PCP",
    "restore",
    "retransmission",
    "sent again with the first question in the other version",
    "sleep",
    "wake-up call",
    "wanted again at once",
    "window full",
}


def search(examples: int) -> None:
    """Look for a life in which something is wrong, and do not make it shorter."""
    lives = settings(LIVES, max_examples=examples, derandomize=True, database=None, phases=[Phase.generate])
    run_state_machine_as_test(Life, settings=lives)


def test_whatever_happens_clients_keep_what_is_wanted_and_know_what_they_have() -> None:
    """Always the same lives, or as many others as are asked for."""
    number = os.environ.get("CLIENT_EXAMPLES")
    lives = settings(LIVES, max_examples=int(number or 60), derandomize=number is None)
    Life.met.clear()
    try:
        run_state_machine_as_test(Life, settings=lives)
    finally:
        print("".join(f"\n{count:9} {what}" for what, count in sorted(Life.met.items())))  # for who runs it with -s
    assert REACHED - Life.met.keys() == set()
