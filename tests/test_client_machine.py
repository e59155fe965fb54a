"""The life of clients as a state machine: whatever networks, gateways and an attacker do, in whatever order.

`Watched` is a client on the wire with its twin (equal seeds and inputs, but woken too often and drained late): what
goes in and comes out is held against the model in client_model.py. `World` is the LAN with its gateways; `Life` lets
Hypothesis choose what happens to it. For a longer look, with figures:
CLIENT_EXAMPLES=10000 python -m pytest -s tests/test_client_machine.py
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

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from client_model import PATIENCE, ROUNDING, TCP, UDP, Burst, Holding, Known, Promise, Target, has_lost_state, waits
from forgery import KINDS, forged
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Config,
    DecodeError,
    DoubleNatSuspected,
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

SCTP = 132
MIN_HOLD, MAX_HOLD = 30.0, 300.0
MAX_LEASE = 900.0  # s, of the gateways, and the longest that is believed
DELETES = 3
BUSY = {0: natpmp.ResultCode.OUT_OF_RESOURCES, 2: pcp.ResultCode.NO_RESOURCES}  # some say so of a port that is taken
PACE = 30.0  # s from one recovery to the next
PROMPT = 40.0  # s until what the gateway has lost has been asked for where all is well: the pace, and the delay
SLACK = 130.0  # s until then with all that may be under way before
# Long enough for all to be well again: what an old silence has made of the wait (RFC 6887 section 8.1.1), a mapping
# under another nonce until its lease is over, one more hold time, a lease of our own, and a recovery.
CONVERGENCE = 1.1 * 1024 + 2 * MAX_LEASE + 2 * MAX_HOLD + 60.0

T = typing.TypeVar("T")


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


def lasts(code: natpmp.ResultCode) -> float:
    """For how long an error in NAT-PMP holds: it does not say."""
    return 0.0 if not code else 1800.0 if code.lifetime is None else float(code.lifetime)


def suggested_in(request: bytes) -> int:
    """The external port."""
    return int(getattr(decode(request), "suggested_external_port", 0))


def target_of(message: typing.Any) -> Target:
    """What a request or an answer is about."""
    remote = getattr(message, "remote_port", None)
    peer = () if remote is None else ((str(message.remote_address), remote),)
    return (int(message.protocol), message.internal_port, *peer)


ERRAND: Target = (UDP, 9)
QUESTION = b"\0\0"
NOWHERE = (0, 0xFFFF00000000)


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
        self.restart_told = False
        self.recovery_due: float | None = None
        self.recovered = -math.inf
        self.hold_new = self.hold_all = self.announced = -math.inf
        self.question: Burst | None = None
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
        self.hear(bytes((data[0], data[1] | 0x80, *data[2:])), now)  # without the bit it was mended
        self.drain(now, "datagram")
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
        self.drain(now, "recovery" if recovers else "time")
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

    @property
    def every(self) -> tuple[Known, ...]:
        return (*self.wanted.values(), *self.leaving.values())

    def stir(self) -> None:
        """What happens now may be a reason to ask for anything out of turn."""
        for known in self.every:
            known.reasons += 1

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

    def map(self, target: Target, life: float | None = None, **parameters: typing.Any) -> None:
        until = None if life is None else self.clock + life

        def act(client: Client, now: float) -> MappingId:
            protocol, port, *peer = target
            if peer:
                return client.map_peer(protocol, port, peer[0], now, until=until, **parameters)
            return client.map_port(protocol, port, now, until=until, **parameters)

        if target in self.wanted or self.is_closing:
            self.refuses(act)
            return
        self.want(self.command(act), target, until)
        self.drain(self.clock)

    def map_pair(self, port: int, **parameters: typing.Any) -> None:
        if (TCP, port) in self.wanted or (UDP, port) in self.wanted or self.is_closing:
            self.refuses(lambda client, now: client.map_pair(port, now, **parameters))
            return
        tcp_id, udp_id = self.command(lambda client, now: client.map_pair(port, now, **parameters))
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
        self.drain(self.clock)

    def close(self) -> None:
        self.is_closing = True
        for known in list(self.wanted.values()):
            self.leave(known)
        self.is_probing = False
        self.command(lambda client, now: client.close(now))
        self.drain(self.clock)

    def gateway_unreachable(self) -> None:
        self.stir()
        self.command(lambda client, now: client.gateway_unreachable(now))
        self.drain(self.clock)

    def ask_for_address(self) -> None:
        if self.is_closing:
            return
        self.is_asked = True
        self.stir()
        self.command(lambda client, now: client.request_external_address(now))
        self.drain(self.clock)

    def probe(self) -> None:
        if self.is_closing:
            return
        self.is_probing, self.announces = True, self.announces + 2
        self.command(lambda client, now: client.probe(now))
        self.drain(self.clock)

    def network_changed(self, local: str | None = None, server: Address | None = None) -> None:
        """The old gateway hears what it is told in parting from where the client was."""
        if self.is_closing:
            return
        old_address, old = self.world.sim.address_of(self), (self.local, self.server)
        self.local, self.server = local or self.local, server or self.server
        has_moved = (self.local, self.server) != old
        self.command(lambda client, now: client.network_changed(now, local, server))
        self.stir()
        self.announces += 2 * self.is_probing
        self.epochs, self.restart_told = {0: [None], 2: [None]}, False
        self.hold_new = self.hold_all = self.announced = -math.inf
        if has_moved:
            self.address = self.version = None
            self.is_unreachable = False
            self.parting, self.is_parting = ({known.nonce for known in self.every}, old[1]), True
            for known in self.every:
                known.nonce, known.is_there, known.renewed = None, False, -math.inf
                known.ends = min(known.ends, self.clock + 30.0) if known.held else math.inf
        self.drain(self.clock)
        if has_moved:
            gone = [each for each in self.queue if isinstance(each, SendDatagram) and each.data in self.parted]
            self.queue = [each for each in self.queue if each not in gone]
            for each in gone:
                self.world.sim.send(each.data, old_address, each.addr)
            self.parted, self.is_parting = [], False
        if self.bind_address[0] != old_address[0]:
            self.world.sim.move(self)
        self.met["move" if has_moved else "wake-up call"] += 1

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
            known.is_finished, known.burst = True, None
        self.leaving.clear()
        for known in self.wanted.values():
            is_there = known.held is not None and known.is_there and known.ends - then > pause
            known.forget()
            known.is_there = is_there
            known.burst, known.told, known.retry_at = None, None, -math.inf
            if known.until is not None:
                known.until = self.clock + max(0.0, known.until - then - pause)
        self.drain(self.clock)
        self.met["restore"] += 1

    def leave(self, known: Known) -> None:
        known.is_wanted = False
        known.retry_at, known.reasons, known.extra, known.deletes = -math.inf, 0, 0, 0
        self.leaving[known.id] = self.wanted.pop(known.target)
        if known.twin is not None:
            known.twin.reasons += 1
            known.twin.twin = None
            known.twin = None

    def left(self, target: Target) -> Known | None:
        """What is to be deleted there."""
        return next((known for known in self.leaving.values() if known.target == target), None)

    def recover(self, now: float) -> None:
        """What is due now (RFC 6886 section 3.7, RFC 6887 section 14.1.3)."""
        self.stir()
        if now < self.hold_all:
            return  # it is put off
        if self.restart_told:
            assert now >= self.recovered + PACE - ROUNDING, "recovered too often"
            self.recovered = now
        self.met["recovery" if self.restart_told else "confirmation"] += 1
        self.restart_told = False

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
        known = [(each.target[0], each.target[1], each.told) for each in self.every]
        epoch = int(self.world.sim.now - self.world.starts[self.server])
        if "announcement" in kind and dice.random() < 0.5:
            epoch = self.edge(0 if "NAT-PMP" in kind else 2, epoch)
        data = forged(kind, dice, self.local, known or [(TCP, 80, None)], epoch, gateway.external_address)
        source = dice.choice(self.world.strangers(self.server)) if kind == "stranger" else self.server
        message = read(data)
        is_error = message is not None and is_version_error(message)  # noise may be anything
        if not self.is_harmless("version error" if is_error else kind):
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
        is_asked = self.is_asked_in_natpmp
        if kind == "version error":
            return self.is_pcp_proven and not is_asked
        if kind == "NAT-PMP answer":
            return not is_asked and not any(each.version == 0 for each in self.every)
        return not is_asked or kind not in ("noise", "truncated answer", "PEER answer")

    # --- what it hears

    def hear(self, data: bytes, now: float) -> None:
        """Take in a datagram as the RFCs have it."""
        if self.is_asked_in_natpmp and data[:1] == b"\0" and (len(data), data[1]) in ((12, 0), (16, 1), (16, 2)):
            data = bytes((0, data[1] | 0x80, *data[2:]))  # an answer without its response bit
        message = None if self.is_closed else read(data)
        if message is None or is_version_error(message) or data[0] not in self.versions:
            self.stir()  # which may turn it to another version
            return
        for known in self.every:
            known.reasons += known.burst is not None and known.burst.version != data[0]
        match message:
            case pcp.MapResponse() | pcp.PeerResponse():
                self.hear_pcp(message, data, now)
            case natpmp.MapResponse():
                self.hear_natpmp(message, data, now)
            case natpmp.ErrorResponse(opcode=1 | 2):
                self.hear_short_error(message, now)
            case _:
                self.hear_announcement(message, data[0], now)

    @property
    def is_asked_in_natpmp(self) -> bool:
        return self.question is not None or any(each.burst and each.burst.version == 0 for each in self.every)

    @property
    def is_pcp_proven(self) -> bool:
        """Whether a grant had a nonce."""
        return any(each.held and each.held.version == 2 and each.is_there for each in self.wanted.values())

    def hear_announcement(self, message: typing.Any, version: int, now: float) -> None:
        """One that shows no loss of state is a reason to doubt, but for copies of another (RFC 6886 section 3.2.1)."""
        is_answer = self.question is not None or self.is_probing
        is_success = message.result_code == 0
        self.check_epoch(version, message.epoch, now, is_certain=is_success)
        is_other = getattr(message, "external_address", self.address) != self.address
        is_new = now - self.announced > 75.0 or (is_other and self.is_pcp_proven)
        self.announced = now if is_success else self.announced
        if is_success and is_new and self.verdicts == {False} and not is_answer and self.recovery_due is None:
            for known in self.wanted.values():
                if known.held is not None:
                    known.doubted = min(known.doubted, self.world.sim.now)

    def hear_pcp(self, message: pcp.MapResponse | pcp.PeerResponse, data: bytes, now: float) -> None:
        target = target_of(message)
        about = [each for each in (self.left(target), self.wanted.get(target)) if each]
        known = next((each for each in about if each.nonce == message.nonce), None)
        if known is None:
            if target == ERRAND and message.nonce in self.nonces:
                self.check_epoch(2, message.epoch, now, is_certain=False)
            for each in self.every:
                each.codes.add(message.result_code)  # one bit of it may be another
            return
        self.check_epoch(2, message.epoch, now)
        is_awaited = known.burst is not None and known.burst.version == 2
        code, lifetime, port = message.result_code, float(message.lifetime), message.external_port
        if code == 0 and lifetime and port:
            promise = Promise(now, min(lifetime, MAX_LEASE), port, message.external_address, 2)
            self.hear_grant(known, promise, data, is_awaited=is_awaited)
        else:
            self.hear_error(known, int(code), lifetime if code else 0.0, 2, is_awaited=is_awaited)

    def hear_natpmp(self, message: natpmp.MapResponse, data: bytes, now: float) -> None:
        target = (int(message.protocol), message.internal_port)
        known = self.left(target) or self.wanted.get(target)
        code, lifetime, port = message.result_code, float(message.lifetime), message.external_port
        if known is None or known.burst is None or known.burst.version != 0:
            self.check_epoch(0, message.epoch, now, is_certain=False)
            return
        if not known.burst.is_delete and code == lifetime == 0:
            known.burst.copies += 1  # of an answer to an earlier delete, it seems
            if known.burst.copies <= DELETES:
                return
        self.check_epoch(0, message.epoch, now)
        if code == 0 and lifetime and port:
            self.hear_grant(known, Promise(now, min(lifetime, MAX_LEASE), port, None, 0), data, is_awaited=True)
        else:
            self.hear_error(known, int(code), lasts(code), 0, is_awaited=True)

    def hear_short_error(self, message: natpmp.ErrorResponse, now: float) -> None:
        """Without a port: only the request under way can tell."""
        protocol = UDP if message.opcode == 1 else TCP
        asked = [each for each in self.every if each.burst and each.burst.version == 0 and each.target[0] == protocol]
        self.check_epoch(0, message.epoch, now, is_certain=bool(asked))
        if asked:
            self.hear_error(asked[0], int(message.result_code), lasts(message.result_code), 0, is_awaited=True)

    def hear_grant(self, known: Known, promise: Promise, data: bytes, *, is_awaited: bool) -> None:
        """One that nobody waits for may be a copy, which is not to be believed again."""
        if not known.is_wanted or (known.burst and known.burst.is_delete):
            return  # to an earlier request; the delete is still on its way
        is_copy = data == known.heard and known.held is not None and known.reasons == known.tries == 0
        known.heard = data
        if is_awaited or not is_copy:
            known.offer = promise
        self.expected = known if is_awaited else None

    def hear_error(self, known: Known, code: int, lifetime: float, version: int, *, is_awaited: bool) -> None:
        """An error, or a success that is no grant."""
        hold = self.clock + min(max(lifetime, MIN_HOLD), MAX_HOLD)
        is_full = version == 2 and code == pcp.ResultCode.NO_RESOURCES
        known.codes.add(code)
        if not known.is_wanted or (known.burst and known.burst.is_delete):
            known.is_confirmed |= code == 0
            known.reasons += known.is_wanted
            self.hold_all = hold if is_full else self.hold_all  # ask it no more (RFC 6887 section 11.4)
            return
        known.refused = (code, hold)
        if known.held is not None and is_awaited and code:
            known.hold = hold
        else:
            known.reasons += 1
        if known.held is None and known.burst and is_awaited and code == BUSY[version]:
            known.busy = suggested_in(known.burst.data)
        if known.busy:
            return  # another will do, perhaps
        if is_full:
            self.hold_new = hold if is_awaited else min(hold, self.hold_new)

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
            self.epochs[version] += seen
        if True in self.verdicts:
            self.stir()
        if self.verdicts == {True}:
            for known in self.wanted.values():
                if known.held is not None:
                    known.lost = min(known.lost, self.world.sim.now)

    # --- what it puts out

    def drain(self, now: float, why: str = "command") -> None:
        """Check all that came of one input."""
        self.now = max(self.now, now)
        verdicts, self.verdicts = self.verdicts, {False}
        dues, before = Dues(self.prompt), {known: known.burst for known in self.every}
        asked = [burst for burst in (*before.values(), self.question) if burst is not None]
        outputs, sent = list(self.prompt.outputs()), dict[Known, list[bytes]]()
        told = [each for each in outputs if not isinstance(each, SendDatagram)]
        granted = self.take_up(has_lost=True in verdicts)
        for output in outputs:
            assert not self.is_closed, "something after Closed"
            self.owed.append(output)
            self.queue.append(output)
            if isinstance(output, SendDatagram):
                known = self.check_datagram(output, dues)
                if known is not None:
                    sent.setdefault(known, []).append(output.data)
            else:
                self.met[type(output).__name__] += 1
                self.check_event(output)
        self.check_told(granted, told)
        restarts = sum(isinstance(each, GatewayRestarted) for each in told)
        assert restarts <= (True in verdicts), "no restart could be seen"
        if verdicts == {True} and not self.is_closed:
            assert self.restart_told, "a restart was not seen"
            assert self.pending_recovery() is not None, "a restart is not recovered from"
        is_asked_twice = any(isinstance(each, SendDatagram) and each.data == QUESTION for each in outputs)
        for known, datagrams in sent.items():
            may_double = why != "datagram" or known in granted
            self.check_sent(known, datagrams, dues.get(known.id, math.inf), is_asked_twice, may_double)
        is_silent = any(each.count >= 9 if each.version == 0 else each.is_tired for each in asked)
        if why == "time" and any(isinstance(each, GatewayUnreachable) for each in told):
            assert is_silent or self.is_asked, "unreachable, but not asked often enough"
        about = {getattr(each, "mapping", None) for each in told}
        self.check_ends([*before, *self.every], dues, about, may_end=is_silent or why != "time")
        self.recovery_due = self.pending_recovery()
        if len(self.owed) > 400:
            self.drain_late()

    def take_up(self, *, has_lost: bool) -> dict[Known, bool]:
        """What it holds was promised to it just now, or before. True: for sure since the last loss of state."""
        granted, expected, self.expected = dict[Known, bool](), self.expected, None
        for mapping in self.prompt.mappings:
            known, offer = self.known[mapping.id], self.known[mapping.id].offer
            is_new = known.held is None or mapping.expires_at != known.ends or known is expected
            is_new |= offer is not None and mapping.external not in (None, known.told)  # two in one instant
            if known.is_wanted and mapping.state is MappingState.HELD and is_new:
                assert offer is not None, "held, but not promised"
                assert offer.ends == mapping.expires_at, "held for another time than was promised"
                calm = self.world.calm if self.world.calm <= self.world.sim.now else math.inf
                granted[known] = known is expected or not has_lost
                known.grant(offer, calm, is_sure=granted[known])
        assert expected is None or expected in granted or expected.twin is not None, "a grant is not believed"
        return granted

    def check_told(self, granted: dict[Known, bool], told: list[Event]) -> None:
        """Every grant is told, but of a pair later, and in NAT-PMP with the address."""
        for known, is_sure in granted.items():
            assert known.held is not None
            said = sum(isinstance(each, Holding) and each.mapping == known.id for each in told)
            is_later = known.twin is not None or (known.held.version == 0 and self.address is None)
            assert said == 1 or is_later, "a grant is not told"
            if is_sure:
                known.rest()
        for mapping in self.prompt.mappings:
            known = self.known[mapping.id]
            known.offer = known.refused = None
            if mapping.state is not MappingState.HELD and known.is_wanted and known.held is not None:
                known.forget()

    def check_datagram(self, sent: SendDatagram, dues: Dues) -> Known | None:
        """Where it goes, and what it is about."""
        message = decode(sent.data)
        if isinstance(message, natpmp.ExternalAddressRequest):
            self.check_question(sent.data, dues)
            return None
        if isinstance(message, pcp.AnnounceRequest):
            self.announces -= 1
            assert self.announces >= 0, "more questions than the caller wants answered"
            return None
        assert isinstance(message, natpmp.MapRequest | pcp.MapRequest | pcp.PeerRequest)
        if self.is_parting and message.lifetime == 0:
            self.check_parting(sent, message)
            return None
        assert sent.addr == self.server
        assert sent.data[0] in self.versions
        target = target_of(message)
        known = self.wanted.get(target)
        if message.lifetime == 0:  # of a pair, one is deleted to move to the port of its twin
            known = self.left(target) or (known if known is not None and known.twin else None)
        if not isinstance(message, natpmp.MapRequest):
            assert message.client_address == ip_address(self.local)
            if known is not None:
                assert known.nonce == message.nonce or (known.nonce is None and message.nonce not in self.nonces)
                known.nonce = message.nonce
            self.nonces.add(message.nonce)
        assert known is not None or (target == ERRAND and self.is_asked), f"nobody wants {message}"
        return known

    def check_sent(
        self, known: Known, datagrams: list[bytes], due: float, is_asked_twice: bool, may_double: bool
    ) -> None:
        """Each goes on with what is under way, or begins anew, but not with the same for an answer to something else.
        `is_asked_twice`: so is the first question in the other version, with which a request may go out once more."""
        for number, data in enumerate(datagrams, 1):
            burst, is_over = known.burst, due == math.inf or number < len(datagrams)
            if burst is not None and burst.goes_on(data, self.now, due, is_over=is_over):
                self.met["retransmission"] += 1
            elif burst is not None and is_asked_twice and (data, due) == (burst.data, burst.due):
                assert burst.limits[1] > 1, "a renewal is a single packet"
                self.met["sent again with the first question in the other version"] += 1
            else:
                is_double = burst is not None and burst.data == data and not burst.is_tired
                assert may_double or not is_double, "what is under way is asked for once more"
                (least, most), wait = waits(data[0], 1, 0.0), due - self.now
                assert is_over or least - ROUNDING <= wait <= most + ROUNDING, f"it waits for {wait} s"
                known.burst = self.check_new(known, data, due)

    def check_new(self, known: Known, data: bytes, due: float) -> Burst:
        """A request that begins, and how often it may be sent."""
        message, now, version, burst = decode(data), self.now, data[0], known.burst
        assert isinstance(message, natpmp.MapRequest | pcp.MapRequest | pcp.PeerRequest)
        suggested, is_first = suggested_in(data), known.asked == -math.inf
        known.reasons += burst is not None and burst.is_tired
        is_quiet, kind, limits = known.reasons == 0, "ask", (0.0, math.inf)
        is_due = known.begin(version, now)
        if message.lifetime == 0:
            kind, limits = "delete", (DELETES if known.held else 1, DELETES)
            known.deletes += 1
            assert suggested == 0
            assert not isinstance(message, pcp.PeerRequest)
            assert isinstance(message, natpmp.MapRequest) or int(message.suggested_external_address) in NOWHERE
        elif known.held is None:
            limits = (9, 9) if version == 0 else (PATIENCE + 1, math.inf)
            assert now >= self.hold_new - ROUNDING, "the gateway has no room"
            assert self.left(known.target) is None, "another for the same port is being deleted"
            assert not suggested or suggested != known.busy or known.twin, "asked for a port that is taken"
            if is_first:
                self.check_order(known)
        else:
            kind = "renew" if is_due else "ask out of turn"
            limits = (9, 9) if version == 0 else (1, 1 if is_quiet else PATIENCE)
        left = math.inf if known.until is None else max(1, math.ceil(known.until - now))
        assert message.lifetime <= left, "longer than it is wanted"
        known.busy = 0
        self.met[f"{kind} in {'PCP' if version else 'NAT-PMP'}"] += 1
        return Burst(data, kind == "delete", limits, due, due - now)

    def check_order(self, known: Known) -> None:
        """Commands keep their order: line 10."""
        for other in self.wanted.values():
            is_first = other.id < known.id and other.asked == -math.inf
            assert not is_first or self.left(other.target) or other.twin, "a later command was done first"

    def check_parting(self, sent: SendDatagram, message: typing.Any) -> None:
        nonces, server = self.parting
        assert sent.addr == server
        assert sent.data not in self.parted
        assert message.suggested_external_port == 0
        is_errand = target_of(message) == ERRAND and self.is_asked
        assert isinstance(message, natpmp.MapRequest) or message.nonce in nonces or is_errand
        self.parted.append(sent.data)
        self.met["parting delete"] += 1

    def check_question(self, data: bytes, dues: Dues) -> None:
        """There may be a question in PCP under way as well, and this one be over in the same instant."""
        now, question = self.now, self.question
        whens = [due for due in dues.nameless if due > now]
        whens += [math.inf] * (len(whens) <= self.is_probing)
        if question is not None and any(question.goes_on(data, now, due, is_over=due == math.inf) for due in whens):
            return
        whens = [due for due in whens if due == math.inf or abs(due - now - 0.25) < ROUNDING]
        assert whens, "a question that does not keep its schedule"
        self.question = Burst(data, False, (4, 9), whens[0], 0.25)
        self.met["question"] += 1

    def check_ends(self, every: list[Known], dues: Dues, about: set[MappingId | None], *, may_end: bool) -> None:
        """No request ends without a cause, and none is under way beyond what there is room for."""
        for known in every:
            burst = known.burst
            if known.id in dues:
                assert burst is not None
                assert burst.due == dues[known.id], "its deadline is another without a transmission"
            elif burst is not None:
                known.burst, known.reasons = None, known.reasons + burst.is_tired
                is_given_up = known.id in about or (not known.is_wanted and not burst.is_delete)
                assert may_end or is_given_up or burst.count >= burst.limits[0], f"it is not sent again {burst}"
        if self.question is not None and self.question.due not in dues.nameless:
            self.question = None
        versions = Counter(each.burst.version for each in self.every if each.burst is not None)
        self.met["window full"] += versions[2] == self.config.window
        assert versions[2] <= self.config.window, f"{versions[2]} requests wait for an answer"
        assert versions[0] + (self.question is not None) <= 1, "two requests in NAT-PMP"

    def check_event(self, told: Event) -> None:
        match told:
            case MappingGranted() | MappingRenewed() | MappingChanged():
                self.known[told.mapping].tell(told, self.address)
            case MappingLost() | MappingRefused():
                seen = self.prompt.mapping(told.mapping)
                is_over = seen is None or seen.state is MappingState.REFUSED or told.retry_at <= self.now
                self.known[told.mapping].miss(told, self.now, is_over=is_over)
                self.met["refused"] += told.result_code is not None
            case MappingFailed() | MappingReleased():
                known = self.known[told.mapping]
                is_silence = self.is_closing and not getattr(told, "confirmed", False)
                known.end(
                    told,
                    self.now,
                    is_hopeless=is_silence or len(known.target) > 2 or (known.needs_pcp and self.version == 0),
                )
                if known.is_wanted:
                    self.leave(known)
                del self.leaving[known.id]
                self.stir()  # of a pair, TCP is renewed when UDP is deleted
                self.met[getattr(told, "reason", Reason.DELETED).name] += isinstance(told, MappingFailed)
            case PairSplit():
                tcp, udp = self.known[told.tcp], self.known[told.udp]
                assert (tcp, udp) in self.pairs
                assert tcp.deletes + udp.deletes > 0, "they are said to differ before anything was tried"
                tcp.is_split = udp.is_split = True
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
                self.stir()
                earliest = max(self.now, self.recovered + PACE)
                assert not self.restart_told
                self.restart_told = True
                assert earliest - ROUNDING <= told.recovery_at or self.pending_recovery() == told.recovery_at
                assert told.recovery_at <= max(self.now + 5.0, earliest) + ROUNDING, "it will be recovered too late"
            case GatewayUnreachable() | GatewayRecovered():
                assert self.is_unreachable is isinstance(told, GatewayRecovered)
                self.is_unreachable = not self.is_unreachable
                self.stir()
            case ExternalAddressLearned(address=address):
                assert self.address is None or (self.address == address and self.is_asked)
                self.address = address
            case ExternalAddressChanged(old=old, new=new):
                assert self.address == old != new
                self.address = new
            case VersionNegotiated(version=version):
                assert self.version != version
                self.version = version
                self.stir()
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
                is_in_time = not known.is_there or now <= held.at + 2.0 + ROUNDING
                assert known.told or known.twin or is_in_time, "a grant is not told"
                is_told = known.told is not None and self.address is not None and known.twin is None
                follows = is_told and held.version == 0 and known.is_there
                assert not follows or getattr(known.told, "address", None) == self.address, "a move is not told"
                self.check_in_time(known, held)

    def check_in_time(self, known: Known, held: Promise) -> None:
        """Renewed, recovered, confirmed, and TCP after UDP of a pair: if nothing has stood in the way."""
        now, world = self.now, self.world
        spoken = {each.held.version for each in self.wanted.values() if each.held}
        if now <= self.hold_all or not world.serves(self) or not spoken <= set(world.versions[self.server]):
            return
        is_needed = known.until is None or known.ends < known.until
        is_calm = known.calm == world.calm < math.inf and known.lost == math.inf
        if is_needed and is_calm and held.lifetime >= 60:
            in_time = known.asked > held.at or now <= held.at + held.lifetime * 5 / 8 + 5.0
            assert in_time, "not renewed in good time"
            is_led = known.twin is None or now < known.lead + 10.0
            assert is_led or known.asked >= known.lead, "TCP does not follow UDP"
        if all(each.burst is None or each.burst.wait < 30.0 for each in self.wanted.values()):  # of old silence
            for since, what in ((known.lost, "recovered"), (known.doubted, "confirmed")):
                latest = max(since, world.calm) + (PROMPT if world.calm <= since else SLACK)
                assert world.sim.now <= latest, f"not {what}"


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
            was_refused = pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL in known.codes
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
        life=st.sampled_from((None, None, 200.5, 2000.0)),
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
                self.world.run(0.05)  # it is deleted by now, and asked for again
                if client.heard:
                    self.world.disturb()
                    self.world.sim.inject(client, client.heard[-1], client.server)

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

    @rule(who=WHO)
    def ask_in_vain(self, who: int) -> None:
        """For so long that the wait between two requests grows no more."""
        self.world.link(self.client(who), LINKS["cut"], GOOD)
        self.client(who).map((UDP, 87), lifetime=600)
        self.world.run(4000.0)
        self.world.link(self.client(who), GOOD, GOOD)

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

    @rule(who=WHO, pause=st.sampled_from((0.0, 5.0, 400.0)), is_all_wanted=st.booleans())
    def restore(self, who: int, pause: float, is_all_wanted: bool) -> None:
        """It may be that what was asked for last is wanted no more, before it is asked for again."""
        client = self.client(who)
        self.world.disturb()
        client.restore(pause)
        self.world.disturb()
        if client.wanted and not is_all_wanted:
            client.unmap(list(client.wanted.values())[-1])

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
        """The gateway, or somebody who knows its epoch, says that it is there, for no visible reason; `other`: and soon
        after that its address is another."""
        client, world = self.client(who), self.world
        for address in (EXTERNALS[0], "203.0.113.66")[: 1 + other]:
            epoch = int(world.sim.now - world.starts[client.server])
            data = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, epoch).encode()
            if version == 0:
                data = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, epoch, IPv4Address(address)).encode()
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
REACHED = """
    Closed; ExternalAddressChanged; GatewayRecovered; GatewayRestarted; GatewayUnreachable; ICMP; MappingChanged;
    MappingFailed; MappingGranted; MappingLost; MappingRefused; MappingReleased; MappingRenewed; NEEDS_PCP;
    DEADLINE; ProbeCompleted; VersionNegotiated; agreement of so many mappings; ask in NAT-PMP; ask in PCP; bad
    link; confirmation; delete in NAT-PMP; delete in PCP; external address change; forged MAP answer, claimed;
    forged announcement, claimed; forged stranger, not claimed; move; old datagram again; pair; parting delete;
    partition; reboot; reboot that nobody hears of; ask out of turn in NAT-PMP; ask out of turn in PCP; recovery;
    renew in NAT-PMP; renew in PCP; restore; retransmission; sent again with the first question in the other
    version; sleep; wake-up call; wanted again at once; window full
"""


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
    assert set(" ".join(REACHED.split()).split("; ")) - Life.met.keys() == set()
