"""The contract of every core, a test a line, and that what is forged changes nothing."""

from __future__ import annotations

import contextlib
import random
import typing
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers import LOCAL, SERVER, STRANGER, drain, events_of, make_client, make_gateway, sends_of
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Event,
    Gateway,
    LocalProtocolError,
    MappingFailed,
    MappingId,
    MappingReleased,
    MappingState,
    Output,
    Protocol,
    Rejected,
    SendDatagram,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Link, Simulation

Terminal = MappingReleased | MappingFailed


def look(client: Client) -> tuple[object, ...]:
    """All that can be observed of a client without changing it, but for its statistics."""
    return (
        client.mappings,
        client.timers(),
        client.next_timeout(),
        client.version,
        client.external_address,
        repr(client),
    )


def busy_client(versions: tuple[int, ...] = (2, 0), seed: int = 1) -> tuple[Client, list[bytes]]:
    """A client with one mapping held and one asked for, and its last request."""
    client = make_client(versions, rng=random.Random(seed))
    gateway = make_gateway(versions)
    client.map_port(Protocol.TCP, 8080, 0.0)
    for _ in range(4):
        for data in drain(client)[0]:
            gateway.receive_datagram(data, (LOCAL, 49152), 0.0)
        for data in drain(gateway)[0]:
            client.receive_datagram(data, SERVER, 0.0)
    drain(client)
    client.map_port(Protocol.UDP, 8081, 0.0)
    requests, _ = drain(client)
    assert [mapping.state for mapping in client.mappings] == [MappingState.HELD, MappingState.REQUESTING]
    return client, requests


ADDRESSES: list[typing.Any] = [
    SERVER,
    ("::ffff:192.168.1.1", 5351, 0, 0),
    ("192.168.1.1", 5350),
    STRANGER,
    ("192.168.1.1", 5351, 0, 9),
    ("", 0),
    ("nowhere", 5351),
    (),
    ("192.168.1.1",),
    ("192.168.1.1", "5351"),
    (b"192.168.1.1", 5351),
    ("192.168.1.1", 5351, 0),
    (1, 2, 3, 4, 5),
]
FIRST_OCTETS = st.sampled_from(
    [b"", b"\0", b"\0\0", b"\0\x80", b"\0\x81\0\0", b"\0\x82\0\1", b"\0\0\0\1", b"\2\x80", b"\2\x81\0\0", b"\2\x81\0\1"]
)
DATAGRAMS = st.builds(bytes.__add__, FIRST_OCTETS, st.binary(max_size=80))


# --- the fourteen lines


def test_1_constructing_a_client_emits_nothing_and_sets_no_timer() -> None:
    client = make_client()
    assert client.next_timeout() is None
    assert client.timers() == []
    assert client.poll() is None


@given(data=DATAGRAMS, addr=st.sampled_from(ADDRESSES))
def test_2_receive_datagram_never_raises(data: bytes, addr: Address) -> None:
    client, _ = busy_client()
    assert client.receive_datagram(data, addr, 1.0) in (True, False)


@given(data=DATAGRAMS, addr=st.sampled_from(ADDRESSES))
def test_3_receive_datagram_returning_false_changes_nothing(data: bytes, addr: Address) -> None:
    client, _ = busy_client()
    before, stats = look(client), client.stats
    if not client.receive_datagram(data, addr, 1.0):
        event("not ours")
        assert (look(client), client.stats) == (before, stats)


@given(earlier=st.floats(0.0, 1.0, exclude_max=True))
def test_4_handle_timeout_before_its_time_changes_nothing(earlier: float) -> None:
    client, _ = busy_client()
    deadline = client.next_timeout()
    assert deadline is not None
    before = look(client)
    client.handle_timeout(deadline * earlier)
    assert look(client) == before


class Life(RuleBasedStateMachine):
    """A client, a gateway and a bad network, in any order; the contract holds after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.client = make_client(rng=random.Random(1), window=3, delete_attempts=2)
        self.gateway = make_gateway(max_mappings_per_host=3)
        self.to_gateway: list[bytes] = []
        self.to_client: list[bytes] = []
        self.started: list[MappingId] = []
        self.events: list[Event] = []

    def take(self) -> None:
        for output in self.client.outputs():
            assert not self.events or not isinstance(self.events[-1], Closed)
            if isinstance(output, SendDatagram):
                self.to_gateway.append(output.data)
            else:
                self.events.append(output)
        self.to_client += drain(self.gateway)[0]

    @rule(port=st.integers(1, 4), protocol=st.sampled_from([Protocol.TCP, Protocol.UDP, 132]))
    def map(self, port: int, protocol: int) -> None:
        with contextlib.suppress(LocalProtocolError):  # wanted already, or closed
            self.started.append(self.client.map_port(protocol, port, self.now, lifetime=600))

    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        if self.started:
            mapping = data.draw(st.sampled_from(self.started))
            wanted = self.client.mapping(mapping)
            released = self.client.unmap(mapping, self.now)
            assert released == (wanted is not None and wanted.state is not MappingState.RELEASING)

    @rule()
    def close(self) -> None:
        self.client.close(self.now)

    @precondition(lambda self: self.client.next_timeout() is not None)
    @rule()
    def sleep_until_woken(self) -> None:
        deadline = self.client.next_timeout()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.client.handle_timeout(self.now)
        self.gateway.handle_timeout(self.now)
        self.take()
        again = self.client.next_timeout()
        assert again is None or again > self.now  # line 5

    @rule(seconds=st.sampled_from([0.125, 1.0, 60.0, 86400.0]))
    def oversleep(self, seconds: float) -> None:
        self.now += seconds
        self.client.handle_timeout(self.now)
        self.gateway.handle_timeout(self.now)
        self.take()
        again = self.client.next_timeout()
        assert again is None or again > self.now

    @rule()
    def deliver(self) -> None:
        self.take()
        for data in self.to_gateway:
            self.gateway.receive_datagram(data, (LOCAL, 49152), self.now)
        self.take()
        self.to_gateway.clear()
        for data in self.to_client:
            self.client.receive_datagram(data, SERVER, self.now)
        self.to_client.clear()

    @rule()
    def lose(self) -> None:
        self.take()
        self.to_gateway.clear()
        self.to_client.clear()

    @rule()
    def reboot(self) -> None:
        event("reboot")
        self.gateway.reboot(self.now)

    @rule(address=st.sampled_from([None, "203.0.113.5", "203.0.113.6"]))
    def readdress(self, address: str | None) -> None:
        self.gateway.set_external_address(address, self.now)

    @rule()
    def refuse_the_port(self) -> None:
        self.client.gateway_unreachable(self.now)

    @rule(data=DATAGRAMS)
    def forge(self, data: bytes) -> None:
        self.client.receive_datagram(data, SERVER, self.now)

    @invariant()
    def queries_are_pure(self) -> None:  # line 7
        assert look(self.client) == look(self.client)

    @invariant()
    def output_that_waits_is_announced(self) -> None:  # line 6
        deadline = self.client.next_timeout()
        output = self.client.poll()
        if output is not None:
            assert deadline is not None
            assert deadline <= self.now
            if isinstance(output, SendDatagram):
                self.to_gateway.append(output.data)
            else:
                self.events.append(output)
                event(type(output).__name__)

    @invariant()
    def memory_is_bounded(self) -> None:  # line 11
        assert len(self.client.timers()) <= 5 * len(self.client.mappings) + 6

    def teardown(self) -> None:
        """Line 13: close, let time pass, and count the ends."""
        self.client.close(self.now)
        for _ in range(200):
            self.take()
            deadline = self.client.next_timeout()
            if deadline is None:
                break
            self.now = max(self.now, deadline)
            self.client.handle_timeout(self.now)
        self.take()
        ended = [event.mapping for event in self.events if isinstance(event, Terminal)]
        assert sorted(ended) == sorted(self.started)
        assert isinstance(self.events[-1], Closed)
        assert sum(isinstance(event, Closed) for event in self.events) == 1


TestLinesFiveSixSevenElevenAndThirteen = Life.TestCase
TestLinesFiveSixSevenElevenAndThirteen.settings = settings(
    max_examples=150, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
)


def story(drain_after_each: Callable[[Client], list[Output]]) -> list[Output]:
    """A fixed sequence of inputs; what comes out depends on how it is drained only as far as line 8 allows."""
    client, gateway = make_client((0,)), make_gateway((0,))
    outputs: list[Output] = []
    client.map_port(Protocol.TCP, 1, 0.0)
    client.map_port(Protocol.UDP, 2, 0.0)
    outputs += drain_after_each(client)
    for number in range(6):
        gateway.receive_datagram(natpmp.MapRequest(Protocol.TCP, 1).encode(), (LOCAL, 1), float(number))
        for data in drain(gateway)[0]:
            client.receive_datagram(data, SERVER, float(number))
        client.handle_timeout(float(number))
        outputs += drain_after_each(client)
    client.close(10.0)
    return outputs + list(client.outputs())


def test_8_outputs_come_in_causal_order_however_they_are_drained() -> None:
    at_once = story(lambda client: list(client.outputs()))

    def one_by_one(client: Client) -> list[Output]:
        taken = []
        while (output := client.poll()) is not None:
            taken.append(output)
        return taken

    def breaking_off(client: Client) -> list[Output]:
        taken: list[Output] = []
        while client.next_timeout() is not None and (first := next(client.outputs(), None)) is not None:
            taken.append(first)
        return taken

    assert story(one_by_one) == at_once
    assert story(breaking_off) == at_once
    late = iter(at_once)
    assert all(output in late for output in story(lambda _: []))  # a subsequence: only copies were left out
    assert {repr(output) for output in story(lambda _: [])} == {repr(output) for output in at_once}


def test_8_a_retransmission_is_not_queued_while_its_twin_still_waits() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 1, 0.0)
    for at in (0.25, 0.75, 1.75, 3.75):
        client.handle_timeout(at)
    assert len(drain(client)[0]) == 1


@pytest.mark.parametrize("state", list(MappingState))
def test_9_unmap_and_close_are_accepted_in_every_state_also_twice(state: MappingState) -> None:
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway)
    gateway.set_external_address(None if state is MappingState.REFUSED else "203.0.113.5", sim.now)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    if state is not MappingState.REQUESTING:
        sim.run_until(1.0)
    if state is MappingState.RELEASING:
        sim.connect(client, gateway, Link(loss=1.0))
        client.unmap(mapping, sim.now)
    seen = client.mapping(mapping)
    assert seen is not None
    assert seen.state is state
    assert client.unmap(mapping, sim.now) is (state is not MappingState.RELEASING)
    assert client.unmap(mapping, sim.now) is False
    client.close(sim.now)
    client.close(sim.now)
    assert client.unmap(MappingId(99), sim.now) is False
    sim.run_until(100.0)
    assert len(events_of(sim, MappingReleased)) == 1
    before = look(client)
    with pytest.raises(LocalProtocolError, match="closed"):
        client.map_port(Protocol.TCP, 8080, sim.now)
    assert look(client) == before


@pytest.mark.parametrize(("versions", "window", "most"), [((0,), 16, 1), ((2,), 4, 4)])
def test_10_only_so_many_requests_wait_for_an_answer_renewals_included(
    versions: tuple[int, ...], window: int, most: int
) -> None:
    client, gateway = make_client(versions, window=window), make_gateway(versions)
    sim = Simulation(client, gateway)
    for port in range(1, 11):
        client.map_port(Protocol.TCP, port, sim.now, lifetime=600)
    sim.run_until(200.0)
    assert len(gateway.mappings) == 10
    sim.connect(gateway, client, Link(loss=1.0))
    for port in range(11, 21):
        client.map_port(Protocol.TCP, port, sim.now, lifetime=600)
    sim.run_until(203.0)
    assert len({data for at, data in sends_of(sim) if at >= 200.0}) == most
    asked = [_internal_port(data) for _, data in sends_of(sim)]
    assert [p for p in dict.fromkeys(asked) if p is not None and p <= 10 + most] == list(range(1, 11 + most))


def _internal_port(data: bytes) -> int | None:
    match data[0], len(data):
        case (0, 12):
            return int.from_bytes(data[4:6])
        case (2, 60):
            return int.from_bytes(data[40:42])
    return None


@pytest.mark.parametrize(("versions", "overflows"), [((2, 0), False), ((0,), True)], ids=["PCP", "NAT-PMP"])
def test_11_nothing_grows_under_a_flood(versions: tuple[int, ...], overflows: bool) -> None:
    """What bears no nonce is an event in NAT-PMP; with a PCP lease in force it is none."""
    client, _ = busy_client(versions)
    flood = random.Random(7)
    for number in range(10_000):
        head = flood.choice([b"\0\x80\0\0", b"\0\x81\0\0", b"\2\x80\0\0", b"\2\x81\0\0", b"\0\x80\0\1"])
        client.receive_datagram(head + flood.randbytes(flood.choice([8, 12, 20, 56])), SERVER, number / 1000)
    assert (Rejected.OVERFLOW in client.stats.rejected) is overflows
    datagrams, events = drain(client)
    assert (len(datagrams) + len(events) in (1024, 1025)) is overflows  # the last datagram may be two events
    assert len(datagrams) + len(events) <= 1025
    assert len(client.timers()) < 10
    gateway = make_gateway()
    for number in range(10_000):
        gateway.receive_datagram(b"\0\0", ("192.168.1.7", 1024 + number), number / 1000)
    assert len(drain(gateway)[0]) == 1024


def day(seed: int) -> Simulation:
    client = make_client(rng=random.Random(seed))
    gateway = Gateway("203.0.113.5", address=SERVER, rng=random.Random(seed))
    sim = Simulation(client, gateway, latency=0.03, loss=0.2, seed=seed)
    for port in range(5):
        client.map_port(Protocol.TCP, 8000 + port, sim.now, lifetime=1200)
    for hour in range(24):
        sim.run_until(hour * 3600.0)
        if hour % 7 == 3:
            gateway.reboot(sim.now)
    client.close(sim.now)
    sim.run_until(86400.0)
    return sim


def test_12_a_day_with_equal_seeds_is_the_same_day_to_the_last_octet() -> None:
    first, second, other = day(1), day(1), day(2)
    assert len(first.sent) > 300
    assert first.sent == second.sent
    assert first.transcript() == second.transcript()
    assert first.transcript() != other.transcript()


def test_12_without_a_dice_to_throw_different_seeds_make_no_difference() -> None:
    stories = []
    for seed in (1, 2):
        client = make_client((0,), rng=random.Random(seed))  # NAT-PMP draws nothing until a gateway restarts
        sim = Simulation(client, make_gateway((0,)), latency=0.125)
        client.map_port(Protocol.TCP, 8080, sim.now)
        sim.run_until(20_000.0)
        stories.append(sim.transcript())
    assert stories[0] == stories[1]


def _ticked(client: Client, gateway: Gateway, ticks: typing.Iterable[float]) -> list[tuple[float, Output]]:
    """Drive both by hand, awake at the given times only, with no latency."""
    happened: list[tuple[float, Output]] = []
    for now in ticks:
        client.handle_timeout(now)
        gateway.handle_timeout(now)
        if now == 4.0:
            gateway.reboot(now)
        if now == 9.0:
            client.close(now)
        moved = True
        while moved:
            moved = False
            for source, target, addr in ((client, gateway, (LOCAL, 49152)), (gateway, client, SERVER)):
                for output in source.outputs():
                    moved = True
                    happened.append((now, output))
                    if isinstance(output, SendDatagram) and now != 1.0:
                        target.receive_datagram(output.data, addr, now)
    return happened


@pytest.mark.parametrize("versions", [(0,), (2,), (2, 0)])
def test_14_sleeping_exactly_until_woken_or_ticking_every_millisecond_is_the_same(versions: tuple[int, ...]) -> None:
    def pair() -> tuple[Client, Gateway]:
        client, gateway = make_client(versions), make_gateway(versions, min_lifetime=1)
        client.map_port(Protocol.TCP, 8080, 0.0, lifetime=6)
        return client, gateway

    client, gateway = pair()

    def exactly() -> typing.Iterator[float]:
        now = 0.0
        while now <= 16.0:
            yield now
            deadlines = [at for at in (client.next_timeout(), gateway.next_timeout()) if at is not None]
            deadlines += [at for at in (4.0, 9.0) if at > now]
            now = min([at for at in deadlines if at > now], default=17.0)

    slept = _ticked(client, gateway, exactly())
    ticked = _ticked(*pair(), (tick / 1024 for tick in range(16 * 1024 + 1)))
    assert slept == ticked
    assert any(isinstance(output, Closed) for _, output in slept)


# --- what is forged changes nothing


def cut_short(data: bytes) -> list[tuple[bytes, Address]]:
    return [(data[:length], SERVER) for length in range(len(data))]


def grant(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "result_code": pcp.ResultCode.SUCCESS,
        "lifetime": 600,
        "epoch": 0,
        "protocol": Protocol.UDP,
        "internal_port": 8081,
        "external_port": 666,
        "external_address": "198.51.100.66",
    }
    return fields | changes


@pytest.mark.requirement("PCP-8.3-01")
@pytest.mark.requirement("PCP-8.3-02")
@pytest.mark.requirement("PCP-8.3-03")
@pytest.mark.requirement("PCP-8.3-05")
@pytest.mark.requirement("PCP-8.3-06")
@pytest.mark.requirement("PCP-8.3-07")
@pytest.mark.requirement("PCP-8.3-08")
@pytest.mark.requirement("PCP-8.3-10")
@pytest.mark.requirement("PCP-11.4-01")
def test_a_forged_pcp_answer_changes_nothing() -> None:
    client, (request,) = busy_client()
    nonce = request[24:36]
    good = pcp.MapResponse(nonce=nonce, **grant()).encode()  # type: ignore[arg-type]
    before = look(client)
    forged: list[tuple[bytes, Address]] = [
        (good, STRANGER),
        (good, ("192.168.1.1", 5352)),
        (good, ("192.168.1.1", 5351, 0, 2)),
        (pcp.MapResponse(nonce=bytes(12), **grant()).encode(), SERVER),  # type: ignore[arg-type]
        (pcp.MapResponse(nonce=nonce, **grant(internal_port=8082)).encode(), SERVER),  # type: ignore[arg-type]
        (pcp.MapResponse(nonce=nonce, **grant(internal_port=8080)).encode(), SERVER),  # type: ignore[arg-type]
        (pcp.MapResponse(nonce=nonce, **grant(protocol=Protocol.TCP)).encode(), SERVER),  # type: ignore[arg-type]
        (b"\2\x82" + good[2:], SERVER),  # another opcode
        (b"\2\1" + good[2:], SERVER),  # no response
        (good + b"\0\0", SERVER),  # no multiple of 4
        (good + b"\1\0\1\0", SERVER),  # an option that runs past the end
        *cut_short(good),
    ]
    for data, addr in forged:
        client.receive_datagram(data, addr, 1.0)
        assert look(client) == before, data.hex()
    assert client.poll() is None
    assert client.receive_datagram(good, SERVER, 1.0)
    assert look(client) != before


@pytest.mark.requirement("NP-3.2-07")
@pytest.mark.requirement("NP-3.3-12")
@pytest.mark.requirement("NP-3.3-28")
@pytest.mark.requirement("NP-3.5-12")
def test_a_forged_nat_pmp_answer_changes_nothing() -> None:
    client, (request,) = busy_client((0,))
    assert request == natpmp.MapRequest(Protocol.UDP, 8081).encode()
    success = natpmp.ResultCode.SUCCESS
    good = natpmp.MapResponse(Protocol.UDP, success, 0, 8081, 666, 600).encode()
    before = look(client)
    forged: list[tuple[bytes, Address]] = [
        (good, STRANGER),
        (good, ("192.168.1.1", 5352)),
        (natpmp.MapResponse(Protocol.UDP, success, 0, 8082, 666, 600).encode(), SERVER),
        (natpmp.MapResponse(Protocol.TCP, success, 0, 8081, 666, 600).encode(), SERVER),
        (b"\0\x83" + good[2:], SERVER),
        (natpmp.ExternalAddressResponse(natpmp.ResultCode.NETWORK_FAILURE, 0).encode(), SERVER),
        *cut_short(good),
    ]
    for data, addr in forged:
        client.receive_datagram(data, addr, 1.0)
        assert look(client) == before, data.hex()
    assert client.poll() is None
    assert client.receive_datagram(good, SERVER, 1.0)
    assert look(client) != before


@pytest.mark.parametrize("addr", [SERVER, STRANGER])
def test_ten_thousand_random_datagrams_change_nothing(addr: Address) -> None:
    client, _ = busy_client()
    before = look(client)
    noise = random.Random(11)
    for _ in range(10_000):
        client.receive_datagram(noise.randbytes(noise.randrange(100)), addr, 1.0)
    assert look(client) == before
    assert client.poll() is None


def test_what_is_not_ours_is_said_to_be_not_ours() -> None:
    client, _ = busy_client()
    stun = bytes.fromhex("000100002112a442") + bytes(12)
    assert not client.receive_datagram(stun, SERVER, 1.0)
    assert not client.receive_datagram(b"\2\x80\0\0" + bytes(20), STRANGER, 1.0)
    assert client.receive_datagram(b"\2\x84\0\0" + bytes(20), SERVER, 1.0)
    assert client.stats.rejected == {Rejected.UNKNOWN: 1}
    assert client.receive_datagram(b"\2\x81\0\0", SERVER, 1.0)
    assert client.stats.rejected == {Rejected.UNKNOWN: 1, Rejected.MALFORMED: 1}
