"""The simulated network, and several cores on one socket."""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import EXTERNAL, LOCAL, SERVER, Middle, events_of, make_client, make_gateway, sends_of, times_of
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Config,
    Core,
    Endpoint,
    Gateway,
    LocalProtocolError,
    MappingCreated,
    MappingGranted,
    Multiplexer,
    Output,
    Protocol,
    SendDatagram,
    natpmp,
)
from natpmp_sansio.core import checked_peer, peer_key, same_host
from natpmp_sansio.testing import Link, Sent, Simulation

SECOND_SERVER: Address = ("192.168.2.1", 5351)


class Box:
    """A core that does what it is told: it sends, hears, and wakes up when it wanted to."""

    def __init__(self, address: Address = ("10.0.0.1", 1000), *, claims: bool = True) -> None:
        self.bind_address = address
        self.claims = claims
        self.heard: list[tuple[float, bytes, Address]] = []
        self.woken: list[float] = []
        self.alarms: list[float] = []
        self.outbox: deque[Output] = deque()
        self.now = 0.0

    def send(self, data: bytes, addr: Address, now: float = 0.0) -> None:
        self.now = now
        self.outbox.append(SendDatagram(data=data, addr=addr))

    def tell(self, output: Output, now: float = 0.0) -> None:
        self.now = now
        self.outbox.append(output)

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        self.heard.append((now, data, addr))
        return self.claims

    def handle_timeout(self, now: float) -> None:
        self.woken.append(now)
        self.alarms = [alarm for alarm in self.alarms if alarm > now]

    def next_timeout(self) -> float | None:
        return self.now if self.outbox else min(self.alarms, default=None)

    def poll(self) -> Output | None:
        return self.outbox.popleft() if self.outbox else None

    def outputs(self) -> Iterator[Output]:
        while (output := self.poll()) is not None:
            yield output


class Stubborn(Box):
    """Breaks the promise: once handled, it wants to be woken at the same instant again."""

    def handle_timeout(self, now: float) -> None:
        self.woken.append(now)

    def __repr__(self) -> str:
        return "<Stubborn>"


def box(number: int, port: int = 1000) -> Box:
    return Box((f"10.0.0.{number}", port))


# --- delivery


def test_a_datagram_arrives_after_exactly_the_latency_of_the_network() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, latency=0.125)
    a.send(b"\0\0", b.bind_address)
    sim.run_until(0.0625)
    assert b.heard == []
    assert sim.now == 0.0625
    sim.run_until(1.0)
    assert b.heard == [(0.125, b"\0\0", a.bind_address)]
    assert a.heard == []
    assert sim.now == 1.0
    assert sim.sent == [Sent(at=0.0, source=a.bind_address, target=b.bind_address, data=b"\0\0", lost=False)]


def test_what_is_sent_without_latency_arrives_at_the_same_instant() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    a.send(b"one", b.bind_address)
    a.send(b"two", b.bind_address)
    sim.run_until(0.0)
    assert b.heard == [(0.0, b"one", a.bind_address), (0.0, b"two", a.bind_address)]


def test_datagrams_overtake_each_other_on_links_of_different_latency() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c, latency=0.25)
    sim.connect(a, c, Link(latency=1.0))
    a.send(b"slow", c.bind_address)
    b.send(b"fast", c.bind_address)
    sim.run_until(2.0)
    assert [(at, data) for at, data, _ in c.heard] == [(0.25, b"fast"), (1.0, b"slow")]


def test_a_link_is_set_for_one_direction_and_from_now_on() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, latency=0.25)
    a.send(b"early", b.bind_address)
    sim.run_until(0.0)
    sim.connect(a, b, Link(latency=0.5, loss=0.0))
    a.send(b"late", b.bind_address)
    b.send(b"back", a.bind_address)
    sim.run_until(1.0)
    assert [(at, data) for at, data, _ in b.heard] == [(0.25, b"early"), (0.5, b"late")]
    assert [(at, data) for at, data, _ in a.heard] == [(0.25, b"back")]


def test_a_link_that_loses_everything_delivers_nothing_and_says_so() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    sim.connect(a, b, Link(loss=1.0))
    a.send(b"\0\0", b.bind_address)
    b.send(b"\0\0", a.bind_address)
    sim.run_until(1.0)
    assert b.heard == []
    assert len(a.heard) == 1
    assert [(sent.source, sent.lost) for sent in sim.sent] == [(a.bind_address, True), (b.bind_address, False)]
    assert sim.transcript().splitlines() == [
        "    0.000000 10.0.0.1:1000 > 10.0.0.2:1000 NAT-PMP external address request (lost)",
        "    0.000000 10.0.0.2:1000 > 10.0.0.1:1000 NAT-PMP external address request",
    ]


def lossy_story(seed: int) -> tuple[list[bool], list[bytes], str]:
    a, b = box(1), box(2)
    sim = Simulation(a, b, loss=0.5, seed=seed)
    for number in range(40):
        a.send(bytes((number,)), b.bind_address)
    sim.run_until(1.0)
    return [sent.lost for sent in sim.sent], [data for _, data, _ in b.heard], sim.transcript()


def test_what_is_lost_is_decided_by_the_seed() -> None:
    lost, heard, transcript = lossy_story(7)
    assert (lost, heard, transcript) == lossy_story(7)
    assert lost != lossy_story(8)[0]
    assert {True, False} == set(lost)
    assert heard == [bytes((number,)) for number, gone in enumerate(lost) if not gone]


def test_a_datagram_to_nobody_is_lost() -> None:
    a = box(1)
    sim = Simulation(a)
    for target in (("10.0.0.9", 1000), ("10.0.0.1", 1001), ("no address", 1)):
        a.send(b"\0\0", target)
    sim.run_until(1.0)
    assert a.heard == []
    assert [sent.lost for sent in sim.sent] == [True, True, True]


def test_the_same_address_may_be_written_as_ipv4_mapped_ipv6() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    a.send(b"\0\0", ("::ffff:10.0.0.2", 1000, 0, 0))
    sim.run_until(1.0)
    assert len(b.heard) == 1


@pytest.mark.parametrize("group", [("224.0.0.1", 5350), ("ff02::1", 5350, 0, 2)])
def test_multicast_reaches_every_other_host_of_the_same_family(group: Address) -> None:
    v4 = [box(number) for number in (1, 2, 3)]
    v6 = [Box((f"fe80::{number}", 1000, 0, 2)) for number in (1, 2, 3)]
    sim = Simulation(*v4, *v6, latency=0.5)
    family, strangers = (v4, v6) if len(group) == 2 else (v6, v4)
    sender, *others = family
    sender.send(b"\0\0", group)
    sim.run_until(1.0)
    assert [host.heard for host in others] == [[(0.5, b"\0\0", sender.bind_address)]] * 2
    assert [host.heard for host in (sender, *strangers)] == [[]] * 4
    assert [sent.lost for sent in sim.sent] == [False]


def test_multicast_is_lost_on_each_link_by_itself() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c)
    sim.connect(a, b, Link(loss=1.0))
    a.send(b"\0\0", ("224.0.0.1", 5350))
    sim.run_until(1.0)
    assert (len(b.heard), len(c.heard)) == (0, 1)
    assert [sent.lost for sent in sim.sent] == [False]  # one has got it
    sim.connect(a, c, Link(loss=1.0))
    a.send(b"\0\0", ("224.0.0.1", 5350), sim.now)
    sim.run_until(2.0)
    assert [sent.lost for sent in sim.sent] == [False, True]


# --- addresses


def test_a_host_that_wants_any_port_is_given_one_of_its_own() -> None:
    a, b = Box(("10.0.0.1", 0)), Box(("10.0.0.1", 0))
    c = Box(("fe80::1", 0, 0, 2))
    sim = Simulation(a, b, c)
    assert [sim.address_of(core) for core in (a, b, c)] == [
        ("10.0.0.1", 49152),
        ("10.0.0.1", 49153),
        ("fe80::1", 49154, 0, 2),
    ]
    a.send(b"\0\0", sim.address_of(b))
    sim.run_until(1.0)
    assert b.heard == [(0.0, b"\0\0", ("10.0.0.1", 49152))]


def test_a_datagram_can_be_injected_from_anywhere_and_at_once() -> None:
    a, deaf = box(1), Box(("10.0.0.2", 1000), claims=False)
    sim = Simulation(a, deaf)
    sim.run_until(3.0)
    assert sim.inject(a, b"\0\0", ("8.8.8.8", 53)) is True
    assert sim.inject(deaf, b"\0\0", ("8.8.8.8", 53)) is False
    assert a.heard == deaf.heard == [(3.0, b"\0\0", ("8.8.8.8", 53))]


# --- time


def test_time_moves_to_what_is_wanted_next_and_nowhere_between() -> None:
    a, b = box(1), box(2)
    a.alarms = [0.3, 5.0, 5.0, 7.25]
    b.alarms = [6.5]
    sim = Simulation(a, b)
    sim.run_until(7.0)
    assert a.woken == [0.3, 5.0]
    assert b.woken == [6.5]
    sim.run_until(7.25)  # that instant included
    assert a.woken == [0.3, 5.0, 7.25]
    assert sim.now == 7.25


def test_a_deadline_that_is_past_already_is_met_without_turning_back_the_clock() -> None:
    a = box(1)
    sim = Simulation(a)
    sim.run_until(10.0)
    a.alarms = [4.0]
    sim.run_until(11.0)
    assert a.woken == [10.0]


def test_running_to_the_past_changes_nothing() -> None:
    a = box(1)
    a.alarms = [20.0]
    sim = Simulation(a)
    sim.run_until(10.0)
    sim.run_until(5.0)
    assert (sim.now, a.woken) == (10.0, [])


def test_commands_between_two_runs_are_taken_up_by_the_next() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.5)
    sim.run_until(100.0)
    client.map_port(Protocol.TCP, 80, sim.now, external_port=8080)
    assert (sim.sent, sim.events) == ([], [])
    sim.run_until(102.0)
    assert [at for at, _ in sends_of(sim)][:1] == [100.0]
    assert times_of(sim, MappingCreated) == [100.5]
    assert times_of(sim, MappingGranted) == [101.0]
    assert [str(event.external) for event in events_of(sim, MappingGranted)] == [f"{EXTERNAL}:8080"]
    client.close(sim.now)
    sim.run_until(110.0)
    assert times_of(sim, Closed) == [103.0]


def test_a_core_that_wants_the_same_instant_over_and_over_is_found_out() -> None:
    stubborn = Stubborn()
    stubborn.alarms = [5.0]
    sim = Simulation(stubborn)
    sim.run_until(4.0)
    with pytest.raises(AssertionError, match=r"<Stubborn> at 5.0 still wants to be woken at 5.0"):
        sim.run_until(6.0)
    assert stubborn.woken == [5.0]


def test_a_core_that_wants_an_instant_long_past_is_found_out() -> None:
    stubborn = Stubborn()
    sim = Simulation(stubborn)
    sim.run_until(4.0)
    stubborn.alarms = [1.0]
    with pytest.raises(AssertionError, match=r"<Stubborn> at 4.0 still wants to be woken at 1.0"):
        sim.run_until(6.0)


def test_a_core_may_want_this_instant_while_something_is_on_its_way_to_arrive_in_it() -> None:
    """What arrives without latency may be what it waits for."""

    class Patient(Box):
        def handle_timeout(self, now: float) -> None:
            super().handle_timeout(now)
            if not self.heard:
                self.alarms = [now]

    patient, other = Patient(("10.0.0.1", 1000)), Box(("10.0.0.2", 1000))
    patient.alarms = [5.0]

    class Late(Box):
        def handle_timeout(self, now: float) -> None:
            super().handle_timeout(now)
            self.send(b"\0\0", patient.bind_address, now)

    late = Late(("10.0.0.3", 1000))
    late.alarms = [5.0]
    sim = Simulation(patient, other, late)
    sim.run_until(6.0)
    assert patient.heard == [(5.0, b"\0\0", late.bind_address)]
    assert patient.woken == [5.0, 5.0]


# --- records


def story(seed: int, *, record: bool = True) -> Simulation:
    gateway = make_gateway()
    client = Client(SERVER, local_address=LOCAL, config=Config(versions=(0,)), rng=Middle(1))
    sim = Simulation(client, gateway, latency=0.0625, loss=0.4, seed=seed, record=record)
    client.map_port(Protocol.TCP, 80, sim.now, external_port=8080, lifetime=600)
    sim.run_until(600.0)
    return sim


def test_the_same_seeds_and_commands_give_the_same_transcript() -> None:
    assert story(3).transcript() == story(3).transcript()
    assert story(3).transcript() != story(4).transcript()


def test_a_transcript_has_a_line_for_each_datagram_and_each_event() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now, external_port=8080)
    sim.run_until(0.5)
    lines = sim.transcript().splitlines()
    assert len(lines) == len(sim.sent) + len(sim.events)
    assert lines[0] == (
        "    0.000000 192.168.1.7:49152 > 192.168.1.1:5351 NAT-PMP map request: TCP 80, suggests port 8080, for 7200 s"
    )
    assert "    0.125000 192.168.1.1: TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80" in lines


def test_a_transcript_writes_ipv6_addresses_in_brackets() -> None:
    a, b = Box(("fe80::1", 1000, 0, 2)), Box(("fe80::2", 1000, 0, 2))
    sim = Simulation(a, b)
    a.send(b"", b.bind_address)
    sim.run_until(0.0)
    assert sim.transcript() == (
        "    0.000000 [fe80::1]:1000 > [fe80::2]:1000 0 octets, no message: too short for a PCP header (at octet 0)"
    )


def test_without_a_record_nothing_is_kept_and_the_same_happens() -> None:
    silent, told = story(3, record=False), story(3)
    assert (silent.sent, silent.transcript()) == ([], "")
    assert told.sent != []
    assert silent.events == told.events != []


# --- several cores on one socket


def test_a_multiplexer_shows_a_datagram_to_every_core_and_claims_it_if_one_does() -> None:
    for claims in ((False, False), (True, False), (False, True), (True, True)):
        cores = [Box(claims=claim) for claim in claims]
        mux = Multiplexer(*cores)
        assert mux.receive_datagram(b"\0\0", ("8.8.8.8", 53), 1.0) is any(claims)
        assert [core.heard for core in cores] == [[(1.0, b"\0\0", ("8.8.8.8", 53))]] * 2


def test_a_multiplexer_wants_to_be_woken_at_the_earliest_deadline_of_its_cores() -> None:
    a, b, c = Box(), Box(), Box()
    mux = Multiplexer(a, b, c)
    assert mux.next_timeout() is None
    b.alarms = [7.0]
    assert mux.next_timeout() == 7.0
    c.alarms = [0.0]
    assert mux.next_timeout() == 0.0
    mux.handle_timeout(1.0)
    assert [core.woken for core in (a, b, c)] == [[1.0]] * 3
    assert mux.next_timeout() == 7.0


def test_a_multiplexer_drains_one_core_after_the_other_each_in_its_own_order() -> None:
    a, b = Box(), Box()
    outputs: list[Output] = [SendDatagram(data=bytes((number,)), addr=SERVER) for number in range(4)]
    b.tell(outputs[2])
    b.tell(outputs[3])
    a.tell(outputs[0])
    a.tell(outputs[1])
    mux = Multiplexer(a, b)
    assert mux.poll() == outputs[0]
    assert list(mux.outputs()) == outputs[1:]
    assert mux.poll() is None
    assert list(mux.outputs()) == []


def test_breaking_off_the_outputs_of_a_multiplexer_loses_nothing() -> None:
    a, b = Box(), Box()
    outputs: list[Output] = [SendDatagram(data=bytes((number,)), addr=SERVER) for number in range(3)]
    a.tell(outputs[0])
    b.tell(outputs[1])
    b.tell(outputs[2])
    mux = Multiplexer(a, b)
    for output in mux.outputs():
        assert output == outputs[0]
        break
    a.tell(outputs[0])
    assert list(mux.outputs()) == outputs


def test_a_multiplexer_of_nothing_is_silent() -> None:
    mux = Multiplexer()
    mux.handle_timeout(1.0)
    assert mux.receive_datagram(b"\0\0", SERVER, 1.0) is False
    assert (mux.next_timeout(), mux.poll()) == (None, None)


def test_multiplexers_nest() -> None:
    a, b = Box(claims=False), Box()
    mux: Core = Multiplexer(Multiplexer(a), b)
    assert mux.receive_datagram(b"\0\0", SERVER, 1.0) is True
    assert len(a.heard) == len(b.heard) == 1


def client_of(gateway: Address, seed: int = 1) -> Client:
    return Client(gateway, local_address=LOCAL, config=Config(versions=(0,)), rng=Middle(seed))


@pytest.mark.parametrize("other", [SERVER, ("::ffff:192.168.1.1", 5351, 0, 0), ("::ffff:c0a8:101", 5351, 7, 0)])
def test_two_clients_of_one_gateway_cannot_share_a_socket(other: Address) -> None:
    with pytest.raises(LocalProtocolError, match="two clients for the same gateway cannot share a socket"):
        Multiplexer(client_of(SERVER), client_of(other, 2))


def test_gateways_share_a_socket_with_clients_as_they_like() -> None:
    Multiplexer(client_of(SERVER), client_of(SECOND_SERVER), make_gateway(), make_gateway())


def test_clients_of_two_gateways_share_a_socket_and_each_takes_its_own_answers() -> None:
    first, second = client_of(SERVER), client_of(SECOND_SERVER, 2)

    class Host(Multiplexer):
        bind_address: Address = (LOCAL, 49152)

    host = Host(first, second)
    gateways = [
        make_gateway(),
        Gateway("198.51.100.9", address=SECOND_SERVER, rng=Middle(2)),
    ]
    sim = Simulation(host, *gateways, latency=0.125)
    first.map_port(Protocol.TCP, 80, sim.now, external_port=8080)
    second.map_port(Protocol.TCP, 81, sim.now, external_port=8081)
    sim.run_until(1.0)
    granted = events_of(sim, MappingGranted)
    assert [(event.gateway, event.external.port) for event in granted] == [(SERVER, 8080), (SECOND_SERVER, 8081)]
    assert [len(gateway.mappings) for gateway in gateways] == [1, 1]
    assert (first.stats.datagrams_unmatched, second.stats.datagrams_unmatched) == (0, 0)


def test_a_datagram_of_another_protocol_is_nobodys() -> None:
    mux = Multiplexer(client_of(SERVER), client_of(SECOND_SERVER, 2))
    response = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1)
    assert mux.receive_datagram(response.encode(), SERVER, 0.0) is True
    assert mux.receive_datagram(response.encode(), ("192.168.3.1", 5351), 0.0) is False
    assert mux.receive_datagram(b"\1\1\0\0stun", SERVER, 0.0) is False


# --- which addresses are the same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("192.168.1.1", 5351), ("::ffff:192.168.1.1", 5351, 0, 0)),
        (("192.168.1.1", 5351), ("::ffff:c0a8:101", 5351, 9, 0)),
        (("::1", 5351), ("0:0::1", 5351, 0, 0)),
        (("FE80::1", 5351, 0, 2), ("fe80:0::1", 5351, 5, 2)),
        (("fe80::1%eth0", 5351, 0, 2), ("fe80::1", 5351, 0, 2)),
    ],
)
def test_two_ways_to_write_one_socket_address_are_the_same_peer(one: Address, other: Address) -> None:
    assert peer_key(one) is not None
    assert peer_key(one) == peer_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("192.168.1.1", 5351), ("192.168.1.2", 5351)),
        (("192.168.1.1", 5351), ("192.168.1.1", 5350)),
        (("192.168.1.1", 5351), ("::192.168.1.1", 5351, 0, 0)),
        (("fe80::1", 5351, 0, 2), ("fe80::1", 5351, 0, 3)),
    ],
)
def test_another_host_port_or_link_is_another_peer(one: Address, other: Address) -> None:
    assert peer_key(one) != peer_key(other)


@pytest.mark.parametrize(
    "address",
    [
        None,
        (),
        5351,
        "192.168.1.1",
        ("192.168.1.1",),
        (b"192.168.1.1", 5351),
        ("gateway", 5351),
        ("192.168.1", 5351),
        ("", 5351),
        ("192.168.1.1", "5351"),
        ("192.168.1.1", 5351, 0),
        ("192.168.1.1", 5351, 0, "2"),
    ],
)
def test_what_is_no_socket_address_is_no_peer(address: object) -> None:
    assert peer_key(address) is None
    with pytest.raises(LocalProtocolError) as caught:
        checked_peer(typing.cast("Address", address), "gateway")
    assert str(caught.value) == f"gateway must be a socket address such as ('192.168.1.1', 5351), not {address!r}"


@given(st.ip_addresses(), st.integers(1, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**20 - 1))
def test_every_socket_address_is_a_peer_whatever_its_flow(address: object, port: int, scope: int, flow: int) -> None:
    first = checked_peer((str(address), port, 0, scope), "gateway")
    assert checked_peer((str(address), port, flow, scope), "gateway") == first
    if scope == 0:
        assert checked_peer((str(address), port), "gateway") == first


def test_a_host_is_the_same_on_every_port_and_another_on_every_link() -> None:
    request, announcement, elsewhere = (
        checked_peer(address, "gateway")
        for address in (("fe80::1", 5351, 0, 2), ("fe80::1", 5350, 0, 2), ("fe80::1", 5351, 0, 3))
    )
    assert same_host(request, announcement)
    assert not same_host(request, elsewhere)


def test_an_endpoint_of_a_grant_is_where_the_simulated_gateway_forwards_from() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(Protocol.UDP, 5000, sim.now, external_port=40000)
    sim.run_until(0.0)
    (granted,) = events_of(sim, MappingGranted)
    (created,) = events_of(sim, MappingCreated)
    assert granted.external == created.external == Endpoint(gateway.external_address, 40000)
