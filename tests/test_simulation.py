"""The simulated network, and several cores on one socket."""

from __future__ import annotations

import math
import typing
from collections import deque
from collections.abc import Iterator
from ipaddress import IPv4Address
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import EXTERNAL, LOCAL, SERVER, Middle, events_of, make_client, make_gateway, sends_of, times_of
from natpmp_sansio import (
    Address,
    AnnouncementsUnavailable,
    Client,
    Closed,
    Config,
    Core,
    Endpoint,
    Gateway,
    LocalProtocolError,
    MappingChanged,
    MappingCreated,
    MappingExpired,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    Multiplexer,
    Output,
    Protocol,
    Reason,
    SendDatagram,
    natpmp,
    pcp,
)
from natpmp_sansio.core.socket_address import checked_peer, peer_key, same_host
from natpmp_sansio.testing import Clock, Link, Sent, Simulation

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


def test_what_goes_over_a_new_link_may_overtake_what_is_on_the_old_one() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, latency=4.0)
    a.send(b"early", b.bind_address)
    sim.run_until(0.0)
    sim.connect(a, b, Link(latency=0.5))
    a.send(b"late", b.bind_address)
    sim.run_until(10.0)
    assert [(at, data) for at, data, _ in b.heard] == [(0.5, b"late"), (4.0, b"early")]


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
        "    0.000000 10.0.0.1:1000 x 10.0.0.2:1000 0000 NAT-PMP external address request",
        "    0.000000 10.0.0.2:1000 > 10.0.0.1:1000 0000 NAT-PMP external address request",
        "    0.000000 10.0.0.1:1000 < 10.0.0.2:1000 0000 NAT-PMP external address request",
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


# --- links


def burst(link: Link, count: int = 200, *, seed: int = 1, data: bytes = b"\0\0\0\0") -> list[tuple[float, bytes]]:
    """What arrives, and when, of so many datagrams that are sent over a link at once; each begins with its number."""
    a, b = box(1), box(2)
    sim = Simulation(a, b, seed=seed)
    sim.connect(a, b, link)
    for number in range(count):
        a.send(bytes((number,)) + data, b.bind_address)
    sim.run_until(100.0)
    return [(at, octets) for at, octets, _ in b.heard]


def test_jitter_delays_each_datagram_by_another_time_and_keeps_their_order() -> None:
    arrivals = burst(Link(latency=1.0, jitter=0.5))
    assert [data[0] for _, data in arrivals] == list(range(200))
    assert all(1.0 <= at < 1.5 for at, _ in arrivals)
    assert len({at for at, _ in arrivals}) > 3


def test_with_reordering_later_datagrams_overtake_those_that_are_held_back() -> None:
    arrivals = burst(Link(latency=1.0, reorder=0.25, hold=4.0))
    late = {data[0] for at, data in arrivals if at > 1.0}
    assert 30 < len(late) < 70
    assert all(1.0 <= at < 5.0 for at, _ in arrivals)
    assert any(at > 4.5 for at, _ in arrivals)
    assert [data[0] for _, data in arrivals][: 200 - len(late)] == [n for n in range(200) if n not in late]


def test_a_datagram_may_arrive_twice() -> None:
    arrivals = burst(Link(latency=1.0, duplicate=0.25))
    numbers = [data[0] for _, data in arrivals]
    assert sorted(set(numbers)) == list(range(200))
    assert 30 < len(numbers) - 200 < 70
    assert max(map(numbers.count, numbers)) == 2
    (first, _), (second, _) = burst(Link(latency=1.0, jitter=0.5, duplicate=1.0), 1)
    assert 1.0 <= first < second < first + 0.5


def test_a_corrupted_datagram_differs_in_one_bit_which_may_be_any() -> None:
    flipped = set()
    for number, (_, data) in enumerate(burst(Link(corrupt=1.0))):
        difference = int.from_bytes(data) ^ int.from_bytes(bytes((number, 0, 0, 0, 0)))
        assert difference.bit_count() == 1
        flipped.add(difference)
    assert len(flipped) > 30
    some = burst(Link(corrupt=0.25))
    assert 130 < sum(data[1:] == bytes(4) and data[0] == number for number, (_, data) in enumerate(some)) < 170


def test_nothing_can_be_corrupted_in_an_empty_datagram() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    sim.link = Link(corrupt=1.0)
    a.send(b"", b.bind_address)
    sim.run_until(1.0)
    assert b.heard == [(0.0, b"", a.bind_address)]


def test_what_the_links_default_is_holds_for_all_that_are_not_connected() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c, latency=0.25)
    assert sim.link == Link(latency=0.25)
    sim.connect(a, b, Link(latency=0.5))
    sim.link = Link(latency=2.0)
    a.send(b"", b.bind_address)
    a.send(b"", c.bind_address)
    sim.run_until(3.0)
    assert [at for at, _, _ in b.heard] == [0.5]
    assert [at for at, _, _ in c.heard] == [2.0]


def lost_of(sim: Simulation, sender: Box) -> list[bool]:
    return [sent.lost for sent in sim.sent if sent.source == sender.bind_address]


def test_a_pair_of_hosts_has_its_own_luck_whoever_else_talks() -> None:
    lost = []
    for crowd in (0, 5):
        a, b = box(1), box(2)
        others = [box(3 + number) for number in range(crowd)]
        sim = Simulation(*others, b, a, loss=0.5)
        for _ in range(40):
            a.send(b"", b.bind_address)
            for other in others:
                other.send(b"", b.bind_address)
                sim.send(b"forged", a.bind_address, b.bind_address)
        sim.run_until(1.0)
        lost.append([sent.lost for sent in sim.sent if sent.source == a.bind_address and not sent.data])
    assert lost[0] == lost[1]
    assert {True, False} == set(lost[0])


def test_everybody_who_is_sent_to_has_another_luck_and_so_have_forgers() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c, loss=0.5)
    for number in range(40):
        a.send(bytes((number,)), ("224.0.0.1", 5350))
        sim.send(bytes((100 + number,)), a.bind_address, b.bind_address)
    sim.run_until(1.0)
    by_b, by_c = ({data[0] for _, data, _ in host.heard} for host in (b, c))
    assert {number for number in by_b if number < 100} != by_c
    assert {number - 100 for number in by_b if number >= 100} != {number for number in by_b if number < 100}


def test_no_setting_changes_the_luck_of_the_next_datagram() -> None:
    plain = {data[0] for _, data in burst(Link(loss=0.5))}
    fancy = {data[0] for _, data in burst(Link(loss=0.5, latency=1.0, jitter=1.0, reorder=0.5, duplicate=0.5))}
    milder = {data[0] for _, data in burst(Link(loss=0.25))}
    assert plain == fancy
    assert plain < milder


def test_the_two_directions_have_different_luck() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, loss=0.5)
    for _ in range(40):
        a.send(b"", b.bind_address)
        b.send(b"", a.bind_address)
    sim.run_until(1.0)
    assert lost_of(sim, a) != lost_of(sim, b)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("latency", -1.0, "Link.latency must be a number of seconds, not -1.0"),
        ("jitter", math.inf, "Link.jitter must be a number of seconds, not inf"),
        ("hold", "long", "Link.hold must be a number of seconds, not 'long'"),
        ("loss", 1.5, "Link.loss must be a chance from 0.0 to 1.0, not 1.5"),
        ("duplicate", -0.5, "Link.duplicate must be a chance from 0.0 to 1.0, not -0.5"),
        ("reorder", None, "Link.reorder must be a chance from 0.0 to 1.0, not None"),
        ("corrupt", math.nan, "Link.corrupt must be a chance from 0.0 to 1.0, not nan"),
        ("source", "nat", "Link.source must be a socket address such as ('192.168.1.1', 5351), not 'nat'"),
    ],
)
def test_a_link_that_cannot_be_is_refused(field: str, value: typing.Any, text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        Link(**{field: value})
    assert str(caught.value) == text


# --- links that lend an address


def test_behind_a_second_nat_pcp_says_so_and_answers_find_their_way() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    sim.connect(client, gateway, Link(latency=0.125, source=("192.168.1.66", 61000)))
    client.map_port(Protocol.TCP, 80, sim.now)
    sim.run_until(1.0)
    (refused,) = events_of(sim, MappingRefused)
    assert refused.reason is Reason.ADDRESS_MISMATCH
    assert [sent.target for sent in sim.sent if sent.source == SERVER] == [("192.168.1.66", 61000)]
    assert "    0.125000 192.168.1.1:5351 < 192.168.1.66:61000 0201" in sim.transcript()
    assert "PCP MAP request" in str(sim.sequence_diagram())
    assert " (as from 192.168.1.66:61000)" in str(sim.sequence_diagram())


def test_answers_from_another_port_are_not_the_gateways() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    sim.connect(gateway, client, Link(latency=0.125, source=("192.168.1.1", 5352)))
    client.map_port(Protocol.TCP, 80, sim.now)
    sim.run_until(1.0)
    assert len(gateway.mappings) == 1
    assert events_of(sim, MappingGranted) == []


def test_an_address_that_is_lent_leads_to_whoever_sent_last_unless_somebody_lives_there() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c)
    sim.link = Link(source=("10.0.0.99", 7))
    c.send(b"too early", ("10.0.0.99", 7))
    sim.run_until(1.0)
    for sender in (a, b):
        sender.send(b"", c.bind_address)
        sim.run_until(sim.now + 1.0)
    c.send(b"back", ("10.0.0.99", 7))
    sim.run_until(5.0)
    assert [source for _, _, source in c.heard] == [("10.0.0.99", 7)] * 2
    assert [[data for _, data, _ in host.heard] for host in (a, b)] == [[], [b"back"]]
    owner = Box(("10.0.0.99", 7))
    sim.add(owner)
    c.send(b"", ("10.0.0.99", 7))
    sim.run_until(6.0)
    assert len(owner.heard) == 1


# --- partitions


def test_a_partition_cuts_off_and_heal_joins_again() -> None:
    a, b, c = box(1), box(2), box(3)
    sim = Simulation(a, b, c, latency=0.5)

    def everybody_sends() -> None:
        for sender in (a, b, c):
            for receiver in (a, b, c):
                if receiver is not sender:
                    sender.send(b"", receiver.bind_address, sim.now)
        sim.run_until(sim.now + 1.0)

    def heard() -> list[list[str]]:
        sources = [[source[0] for _, _, source in host.heard] for host in (a, b, c)]
        for host in (a, b, c):
            host.heard.clear()
        return sources

    sim.partition(a, b)
    everybody_sends()
    assert heard() == [["10.0.0.2"], ["10.0.0.1"], []]
    sim.partition(b)
    everybody_sends()
    assert heard() == [[], [], []]
    assert all(sent.lost for sent in sim.sent[-6:])
    sim.heal()
    everybody_sends()
    assert heard() == [["10.0.0.2", "10.0.0.3"], ["10.0.0.1", "10.0.0.3"], ["10.0.0.1", "10.0.0.2"]]


def test_what_is_under_way_when_a_partition_begins_arrives() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, latency=2.0)
    a.send(b"", b.bind_address)
    sim.at(1.0, lambda now: sim.partition(a))
    sim.run_until(3.0)
    assert [at for at, _, _ in b.heard] == [2.0]


def test_a_client_that_is_cut_off_for_a_while_holds_its_mapping_again_afterwards() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now, lifetime=600)
    sim.at(60.0, lambda now: sim.partition(client))
    sim.at(3600.0, lambda now: sim.heal())
    sim.run_until(7200.0)
    assert times_of(sim, MappingLost) == [600.25]
    assert times_of(sim, MappingGranted)[1] > 3600.0
    assert len(gateway.mappings) == 1


# --- hosts that come and go


def test_hosts_may_be_added_at_any_time_and_anywhere() -> None:
    a = box(1)
    sim = Simulation(a, latency=0.5)
    sim.run_until(5.0)
    client = make_client()
    sim.add(client, address=(LOCAL, 54321))
    assert sim.address_of(client) == (LOCAL, 54321)
    b = box(2)
    sim.add(b)
    b.send(b"", a.bind_address, sim.now)
    sim.run_until(6.0)
    assert a.heard == [(5.5, b"", b.bind_address)]


def test_a_port_that_is_taken_is_given_to_nobody_else() -> None:
    taken, free = Box(("10.0.0.1", 49153)), Box(("10.0.0.1", 0))
    sim = Simulation(taken, free)
    assert sim.address_of(free) == ("10.0.0.1", 49154)


def test_two_hosts_cannot_live_in_one_place_nor_one_in_two() -> None:
    a = box(1)
    sim = Simulation(a)
    with pytest.raises(LocalProtocolError, match=r"somebody lives at 10\.0\.0\.1:1000 already"):
        sim.add(Box(("::ffff:10.0.0.1", 1000, 0, 0)), address=("10.0.0.1", 1000))
    with pytest.raises(LocalProtocolError, match="is in this simulation already"):
        sim.add(a, address=("10.0.0.9", 1))
    with pytest.raises(LocalProtocolError, match="bind_address must be a socket address"):
        sim.add(Box(("nowhere", 1)))
    with pytest.raises(LocalProtocolError, match="is not in this simulation"):
        sim.address_of(box(2))


def test_a_gateway_is_replaced_by_one_that_speaks_nat_pmp_only() -> None:
    client, old, new = make_client(), make_gateway(), make_gateway((0,))
    sim = Simulation(client, old, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now, lifetime=600)
    sim.run_until(60.0)
    assert client.version == 2
    sim.replace(old, new)
    sim.run_until(3600.0)
    assert (client.version, len(new.mappings)) == (0, 1)
    assert sim.address_of(new) == SERVER
    with pytest.raises(LocalProtocolError, match="is not in this simulation"):
        sim.address_of(old)
    assert "   60.000000 192.168.1.1:5351 * is replaced" in sim.transcript().splitlines()


def test_who_replaces_another_must_be_new_and_live_at_the_same_address() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    for other in (b, Box(("10.0.0.3", 1000)), Box(("10.0.0.1", 1001))):
        with pytest.raises(LocalProtocolError, match=r"cannot live at 10\.0\.0\.1:1000"):
            sim.replace(a, other)
    heir = Box(("10.0.0.1", 0))
    sim.replace(a, heir)
    b.send(b"", a.bind_address)
    sim.run_until(1.0)
    assert (len(heir.heard), len(a.heard)) == (1, 0)


def test_a_host_that_moves_is_reached_where_its_core_says_it_is_now_and_keeps_its_clock_and_links() -> None:
    a, b = box(1), Box(("10.0.0.2", 0))
    sim = Simulation(a, latency=0.5)
    sim.add(b, clock=Clock(offset=100.0))
    sim.connect(b, a, Link(latency=0.25))
    old = sim.address_of(b)
    a.send(b"too late", old)
    sim.run_until(0.25)
    b.bind_address = ("10.0.0.9", 0)
    sim.move(b)
    new = ("10.0.0.9", old[1])
    assert sim.address_of(b) == new
    b.send(b"here", a.bind_address, sim.now_of(b))
    sim.run_until(1.0)
    assert a.heard == [(0.5, b"here", new)]
    a.send(b"lost", old, sim.now)
    a.send(b"found", new, sim.now)
    sim.run_until(2.0)
    assert b.heard == [(101.5, b"found", a.bind_address)]
    heir = Box(old)
    sim.add(heir)
    a.send(b"to the heir", old, sim.now)
    sim.run_until(3.0)
    assert heir.heard == [(2.5, b"to the heir", a.bind_address)]


def test_who_moves_must_be_there_and_cannot_take_the_place_of_another() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    b.bind_address = a.bind_address
    with pytest.raises(LocalProtocolError, match=r"somebody lives at 10\.0\.0\.1:1000 already"):
        sim.move(b)
    with pytest.raises(LocalProtocolError, match="is not in this simulation"):
        sim.move(Box())
    assert sim.address_of(b) == ("10.0.0.2", 1000)
    sim.move(a)  # to where it is: nothing happens
    assert sim.address_of(a) == ("10.0.0.1", 1000)


def test_a_host_that_moves_has_one_transcript_and_its_mappings_one_life() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    mapping: dict[str, typing.Any] = {"gateway": SERVER, "mapping": MappingId(1), "protocol": 6, "internal_port": 80}
    external, moved = Endpoint(IPv4Address(EXTERNAL), 80), Endpoint(IPv4Address(EXTERNAL), 81)
    a.tell(MappingGranted(**mapping, external=external, lifetime=600.0, expires_at=600.0))
    sim.run_until(1.0)
    a.bind_address = ("10.0.0.3", 1000)
    sim.move(a)
    a.tell(MappingChanged(**mapping, old=external, new=moved, lifetime=600.0, expires_at=601.0), sim.now)
    b.bind_address = ("10.0.0.1", 1000)
    sim.move(b)
    b.send(b"\0\0", a.bind_address, sim.now)
    sim.run_until(2.0)
    assert [line.split()[:3] for line in sim.transcript(a).splitlines()] == [
        ["0.000000", "10.0.0.1:1000", "*"],
        ["1.000000", "10.0.0.3:1000", "*"],
        ["1.000000", "10.0.0.3:1000", "<"],
    ]
    assert [line.split()[:3] for line in sim.transcript(b).splitlines()] == [["1.000000", "10.0.0.1:1000", ">"]]
    assert "    1.000000 10.0.0.3:1000 * was 10.0.0.1:1000" in sim.transcript().splitlines()
    (life,) = sim.timeline()
    assert life.host == ("10.0.0.1", 1000)
    assert [(span.start, span.external) for span in life.spans] == [(0.0, external), (1.0, moved)]


def test_an_attacker_can_send_from_any_address_past_every_partition() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now)
    sim.run_until(60.0)
    sim.partition(client)
    forged = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 0, "198.51.100.66").encode()
    sim.at(61.0, lambda now: sim.send(forged, SERVER, ("224.0.0.1", 5350)))
    sim.run_until(62.0)
    assert str(client.external_address) == "198.51.100.66"
    assert Sent(at=61.0, source=SERVER, target=("224.0.0.1", 5350), data=forged, lost=False) in sim.sent


# --- calls at chosen times


def test_a_call_at_an_instant_is_what_a_command_after_a_run_is() -> None:
    def by_hand() -> str:
        client, gateway = make_client(), make_gateway()
        sim = Simulation(client, gateway, latency=0.125)
        client.map_port(Protocol.TCP, 80, sim.now, external_port=8080)
        sim.run_until(0.25)
        gateway.reboot(sim.now)
        sim.run_until(7200.0)
        gateway.set_external_address("198.51.100.7", sim.now)
        sim.run_until(9000.0)
        return sim.transcript()

    def at_once() -> str:
        client, gateway = make_client(), make_gateway()
        sim = Simulation(client, gateway, latency=0.125)
        sim.at(7200.0, gateway.set_external_address, "198.51.100.7")
        sim.at(0.25, gateway.reboot)
        sim.at(0.0, client.map_port, Protocol.TCP, 80, external_port=8080)
        sim.run_until(9000.0)
        return sim.transcript()

    assert by_hand() == at_once()


def test_calls_come_in_the_order_of_their_times_and_then_of_asking() -> None:
    sim = Simulation()
    called: list[tuple[str, float]] = []
    sim.at(2.0, lambda now: called.append(("late", now)))
    sim.at(1.0, lambda now: called.append(("first", now)))
    sim.at(1.0, lambda now: sim.at(1.0, lambda now: called.append(("third", now))))
    sim.at(1.0, lambda now: called.append(("second", now)))
    sim.run_until(1.5)
    assert called == [("first", 1.0), ("second", 1.0), ("third", 1.0)]
    assert sim.now == 1.5


def test_a_call_may_touch_any_host() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    sim.at(1.0, lambda now: b.send(b"", a.bind_address, now))
    sim.at(2.0, lambda now: a.alarms.append(2.5))
    sim.run_until(3.0)
    assert (a.heard, a.woken) == ([(1.0, b"", b.bind_address)], [2.5])


@pytest.mark.parametrize("time", [4.0, math.nan, math.inf])
def test_nothing_can_be_called_or_played_in_the_past_or_never(time: float) -> None:
    sim = Simulation(box(1))
    sim.run_until(5.0)
    with pytest.raises(LocalProtocolError, match=r"time must be finite and not before now \(5\.0\)"):
        sim.at(time, print)
    with pytest.raises(LocalProtocolError, match="a packet cannot arrive at"):
        sim.play([(6.0, SERVER, ("10.0.0.1", 1000), b""), (time, SERVER, ("10.0.0.1", 1000), b"")])
    sim.run_until(10.0)
    assert sim.delivered == 0


@pytest.mark.parametrize("end", [math.nan, math.inf, "tomorrow"])
def test_time_passes_until_a_finite_instant(end: typing.Any) -> None:
    with pytest.raises(LocalProtocolError, match="end must be a finite number of seconds"):
        Simulation().run_until(end)


# --- clocks


def test_a_host_may_have_a_clock_of_its_own() -> None:
    a, b = box(1), box(2)
    sim = Simulation(b, latency=0.5)
    sim.add(a, clock=Clock(offset=1000.0, rate=2.0))
    a.alarms = [1003.0]
    b.send(b"", a.bind_address)
    assert (sim.now_of(a), sim.now_of(b)) == (1000.0, 0.0)
    sim.run_until(2.0)
    assert a.heard == [(1001.0, b"", b.bind_address)]
    assert a.woken == [1003.0]
    assert (sim.now_of(a), sim.now_of(b)) == (1004.0, 2.0)
    called: list[float] = []
    a.alarms = [1009.0]
    sim.at(3.0, called.append)  # not a method of a host
    sim.at(3.0, a.send, b"", b.bind_address)
    sim.run_until(4.0)
    assert (called, a.now) == ([3.0], 1006.0)
    assert a.woken == [1003.0]


def test_a_client_whose_clock_is_slow_renews_late_and_in_time() -> None:
    client, gateway = make_client(rng=Middle(1)), make_gateway()
    sim = Simulation(gateway, latency=0.125)
    sim.add(client, clock=Clock(offset=5.0, rate=0.5))
    sim.at(0.0, client.map_port, Protocol.TCP, 80, lifetime=7200)
    sim.run_until(7000.0)
    assert times_of(sim, MappingRenewed) == []
    (look,) = client.mappings
    assert look.renew_at is not None
    sim.run_until(7300.0)  # it thinks that half of the lease is over; the gateway thinks that all is
    assert times_of(sim, MappingExpired) == [7200.125]


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20),
    st.floats(-1e9, 1e9),
    st.floats(0.5, 2.0),
    st.floats(0.0, 1e6),
)
def test_no_rounding_wakes_a_host_early_or_twice(alarms: list[float], offset: float, rate: float, until: float) -> None:
    alarms = sorted({offset + alarm for alarm in alarms})
    a = box(1)
    a.alarms = list(alarms)
    sim = Simulation(record=False)
    sim.add(a, clock=Clock(offset=offset, rate=rate))
    sim.run_until(until)
    sim.run_until(3e6)
    assert len(a.woken) <= len(alarms)
    assert a.woken == sorted(a.woken)
    for alarm in alarms:
        woken = next(woken for woken in a.woken if woken >= alarm)
        assert woken - alarm <= 1e-6


def test_deadlines_that_only_the_hosts_own_clock_can_tell_apart_are_both_met() -> None:
    a = box(1)
    sim = Simulation()
    sim.add(a, clock=Clock(offset=-1e9))
    a.alarms = [0.25, 0.25 + 1e-12]
    sim.at(1e9 + 0.25, a.send, b"", a.bind_address)
    sim.run_until(1e9 + 1.0)
    assert a.woken == [0.25, 0.25 + 1e-12]
    assert a.now == 0.25 + 1e-12  # it has been there already


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"offset": math.inf}, "Clock.offset must be a number of seconds, not inf"),
        ({"rate": 0.0}, "Clock.rate must be a positive number, not 0.0"),
        ({"rate": math.nan}, "Clock.rate must be a positive number, not nan"),
    ],
)
def test_a_clock_that_cannot_be_is_refused(values: dict[str, typing.Any], text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        Clock(**values)
    assert str(caught.value) == text


# --- sleep


@pytest.mark.parametrize("stops", [True, False])
def test_a_host_that_sleeps_hears_nothing_and_its_timers_wait(stops: bool) -> None:
    a, b = box(1), box(2)
    sim = Simulation(b)
    sim.add(a, clock=Clock(stops=stops))
    a.alarms = [15.0]
    sim.sleep(a, 10.0, 30.0)
    sim.at(10.0, b.send, b"just before", a.bind_address)
    sim.at(20.0, b.send, b"meanwhile", a.bind_address)
    sim.at(20.0, a.send, b"when awake", b.bind_address)
    sim.run_until(25.0)
    assert sim.inject(a, b"", SERVER) is False
    assert sim.now_of(a) == (10.0 if stops else 25.0)
    sim.at(30.0, b.send, b"good morning", a.bind_address)
    sim.run_until(40.0)
    assert [data for _, data, _ in a.heard] == [b"good morning"]
    assert a.heard[0][0] == (10.0 if stops else 30.0)
    assert a.woken == ([15.0] if stops else [30.0])
    assert [at for at, _, _ in b.heard] == [30.0]
    assert a.now == (10.0 if stops else 30.0)
    assert sim.now_of(a) == (20.0 if stops else 40.0)
    words = [line.split()[:4] for line in sim.transcript().splitlines()]
    assert words[:3] == [
        ["10.000000", "10.0.0.1:1000", "*", "falls"],
        ["10.000000", "10.0.0.2:1000", ">", "10.0.0.1:1000"],
        ["10.000000", "10.0.0.1:1000", "z", "10.0.0.2:1000"],
    ]


def test_what_a_sleeper_was_told_between_runs_goes_out_when_it_wakes_up() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    sim.sleep(a, 0.0, 5.0)
    sim.run_until(1.0)
    a.send(b"", b.bind_address)
    sim.run_until(10.0)
    assert [at for at, _, _ in b.heard] == [5.0]


@pytest.mark.parametrize(("first", "second"), [((1.0, 5.0), (3.0, 9.0)), ((1.0, 9.0), (3.0, 5.0))])
def test_two_sleeps_that_overlap_are_one(first: tuple[float, float], second: tuple[float, float]) -> None:
    a = box(1)
    a.alarms = [4.0]
    sim = Simulation(a)
    sim.sleep(a, *first)
    sim.sleep(a, *second)
    sim.run_until(20.0)
    assert [line.split(maxsplit=1)[1] for line in sim.transcript().splitlines()] == [
        "10.0.0.1:1000 * falls asleep",
        "10.0.0.1:1000 * wakes up",
    ]
    assert a.woken == [4.0]
    assert sim.now_of(a) == 12.0


@pytest.mark.parametrize(("start", "end"), [(4.0, 6.0), (7.0, 6.0), (6.0, 6.0), (6.0, math.inf), (math.nan, 7.0)])
def test_a_sleep_is_from_now_on_and_ends(start: float, end: float) -> None:
    a = box(1)
    sim = Simulation(a)
    sim.run_until(5.0)
    with pytest.raises(LocalProtocolError, match="a sleep must begin not before now"):
        sim.sleep(a, start, end)


def test_a_laptop_that_sleeps_through_its_lease_asks_again_as_soon_as_it_can_know() -> None:
    times = []
    for stops in (False, True):
        client, gateway = make_client(), make_gateway()
        sim = Simulation(gateway, latency=0.125)
        sim.add(client, clock=Clock(stops=stops))
        sim.at(0.0, client.map_port, Protocol.TCP, 80, lifetime=600)
        sim.sleep(client, 60.0, 7200.0)
        sim.run_until(14400.0)
        assert len(gateway.mappings) == 1
        times.append(next(at for at in times_of(sim, MappingCreated) if at > 60.0))
    assert times == [7200.125, 7477.875]  # to one the lease is over, to the other a bit more than half of it


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


def test_a_transcript_has_a_line_for_each_datagram_arrival_and_event() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now, external_port=8080)
    sim.run_until(0.25)
    ask = "000200000050 1f90 00001c20".replace(" ", "")
    request = f"{ask} NAT-PMP map request: TCP 80, suggests port 8080, for 7200 s"
    lines = sim.transcript().splitlines()
    assert lines[:3] == [
        f"    0.000000 192.168.1.7:49152 > 192.168.1.1:5351 {request}",
        f"    0.125000 192.168.1.1:5351 < 192.168.1.7:49152 {request}",
        "    0.125000 192.168.1.1:5351 * TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80",
    ]
    assert len(lines) == len(sim.sent) + sim.delivered + len(sim.events)


def test_a_transcript_tells_every_instant_exactly() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, latency=0.1 + 0.2)
    a.send(b"", b.bind_address)
    sim.run_until(1.0)
    times = [line.split()[0] for line in sim.transcript().splitlines()]
    assert times == ["0.000000", "0.30000000000000004"]


def test_a_transcript_writes_ipv6_addresses_in_brackets_with_their_scope() -> None:
    a, b = Box(("fe80::1", 1000, 0, 2)), Box(("2001:db8::2", 1000, 0, 0))
    sim = Simulation(a, b)
    a.send(b"", b.bind_address)
    sim.run_until(0.0)
    nothing = "- 0 octets, no message: too short for a PCP header (at octet 0)"
    assert sim.transcript().splitlines() == [
        f"    0.000000 [fe80::1%2]:1000 > [2001:db8::2]:1000 {nothing}",
        f"    0.000000 [2001:db8::2]:1000 < [fe80::1%2]:1000 {nothing}",
    ]


def test_no_event_can_break_a_line() -> None:
    a = box(1)
    sim = Simulation(a)
    a.tell(AnnouncementsUnavailable(gateway=SERVER, reason="one\ntwo\u2028three"))
    sim.run_until(0.0)
    assert sim.transcript() == r"    0.000000 10.0.0.1:1000 * no announcements can be heard: one\ntwo\u2028three"


def rough(seed: int, client: Client | None, gateway: Gateway | None) -> Simulation:
    """A day with all that can go wrong, of both or only one of the two."""
    sim = Simulation(*(core for core in (client, gateway) if core), seed=seed)
    sim.link = Link(latency=0.01, jitter=0.5, loss=0.1, duplicate=0.1, reorder=0.1, hold=5.0, corrupt=0.1)
    if client:
        sim.at(0.0, client.map_port, Protocol.TCP, 80, external_port=8080, lifetime=1200)
        sim.at(100.0, client.map_port, 132, 9000)
        sim.sleep(client, 39_999.0, 50_000.0)
        sim.at(80_000.0, client.close)
    if gateway:
        sim.at(3600.0, gateway.reboot)
        sim.at(40_000.0, gateway.set_external_address, "198.51.100.7")
    return sim


@pytest.mark.parametrize("seed", range(3))
def test_a_transcript_replayed_to_a_fresh_core_gives_the_same_to_the_last_octet(seed: int) -> None:
    client, gateway = make_client(), make_gateway()
    sim = rough(seed, client, gateway)
    sim.run_until(86400.0)
    assert len(sim.events) > 50
    alone = make_client()
    again = rough(99, alone, None)
    again.replay(sim.transcript())
    again.run_until(86400.0)
    assert again.transcript(alone) == sim.transcript(client)
    assert " * " in again.transcript(alone)
    assert " falls asleep" not in again.transcript(alone)
    other = make_gateway()
    again = rough(99, None, other)
    again.replay(sim.transcript())
    again.run_until(86400.0)
    assert again.transcript(other) == sim.transcript(gateway)


def test_a_transcript_over_ipv6_can_be_replayed_with_its_scopes() -> None:
    def scene() -> tuple[Client, Gateway]:
        server = ("fe80::1", 5351, 0, 2)
        return Client(server, local_address="fe80::7", rng=Middle(1)), Gateway(None, address=server, rng=Middle(2))

    client, gateway = scene()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now)
    sim.run_until(10.0)
    assert len(events_of(sim, MappingGranted)) == 1
    _, alone = scene()
    again = Simulation(alone)
    again.replay(sim.transcript())
    again.run_until(10.0)
    assert again.transcript(alone) == sim.transcript(gateway) != ""


def test_what_was_empty_when_it_arrived_is_empty_when_it_is_replayed() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b)
    a.send(b"", b.bind_address)
    sim.run_until(1.0)
    fresh = box(2)
    again = Simulation(fresh)
    again.replay(sim.transcript())
    again.replay("")
    again.run_until(1.0)
    assert fresh.heard == b.heard == [(0.0, b"", a.bind_address)]


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "once upon a time",
        "    0.000000 10.0.0.1:1000 < 10.0.0.2:1000 0",
        "    0.000000 10.0.0.1:1000 < 10.0.0.2:1000",
        "    0.000000 10.0.0.1:1000 < 10.0.0.2 00",
        "    noon 10.0.0.1:1000 < 10.0.0.2:1000 00",
    ],
)
def test_what_is_no_transcript_is_not_replayed(text: str) -> None:
    with pytest.raises(LocalProtocolError, match="no line of a transcript"):
        Simulation(box(1)).replay(text)


def test_a_capture_can_be_played_to_a_core() -> None:
    gateway = make_gateway()
    sim = Simulation(gateway)
    ask = natpmp.MapRequest(Protocol.TCP, 80, 8080).encode()
    sim.play(
        [
            (1.5, (LOCAL, 50000), SERVER, ask),
            (2.0, (LOCAL, 50000), ("192.168.1.99", 5351), ask),  # to somebody else
            (2.5, SERVER, ("224.0.0.1", 5350), b"\0\x80"),
        ]
    )
    sim.run_until(10.0)
    assert [(at, data[:4]) for at, data in sends_of(sim, SERVER[0])] == [(1.5, bytes.fromhex("00820000"))]
    assert times_of(sim, MappingCreated) == [1.5]
    assert sim.delivered == 2


def test_without_a_record_nothing_is_kept_and_the_same_happens() -> None:
    silent, told = story(3, record=False), story(3)
    assert (silent.sent, silent.transcript()) == ([], "")
    assert told.sent != []
    assert silent.events == told.events != []


# --- drawings


def drawn() -> Simulation:
    """A request is lost, the next one comes twice and is granted; then a host with an odd tongue speaks."""
    client, gateway, odd = make_client((0,)), make_gateway((0,)), Box(("192.168.1.66", 9))
    sim = Simulation(client, gateway, odd, latency=0.125)
    sim.connect(client, gateway, Link(loss=1.0))
    sim.at(0.0, client.map_port, Protocol.TCP, 80, external_port=8080)
    sim.run_until(0.125)
    sim.connect(client, gateway, Link(latency=0.125, duplicate=1.0))
    sim.run_until(0.5)
    odd.tell(AnnouncementsUnavailable(gateway=SERVER, reason="<a> & #b; %c {d}\n"))
    sim.run_until(0.5)
    sim.inject(client, b"\0\0", ("192.168.1.67", 9))
    return sim


ASK = "NAT-PMP map request: TCP 80, suggests port 8080, for 7200 s"
GRANT = "NAT-PMP map response: TCP 80: external port 8080, for 7200 s, epoch 0 s"


def test_a_sequence_diagram_in_mermaid_has_arrows_crosses_and_notes() -> None:
    assert str(drawn().sequence_diagram()).splitlines() == [
        "sequenceDiagram",
        "    participant h0 as 192.168.1.7:49152",
        "    participant h1 as 192.168.1.1:5351",
        "    participant h2 as 192.168.1.66:9",
        "    participant h3 as 192.168.1.67:9",
        f"    h0-xh1: 0 s {ASK}",
        f"    h0->>h1: 0.25 s {ASK}",
        f"    h0->>h1: 0.25 s {ASK}",
        "    Note over h1: 0.375 s TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80",
        f"    h1->>h0: 0.375 s {GRANT}",
        "    Note over h1: 0.375 s TCP 203.0.113.5:8080 goes on being forwarded to 192.168.1.7:80",
        f"    h1->>h0: 0.375 s {GRANT}",
        "    Note over h0: 0.5 s the gateway speaks NAT-PMP",
        "    Note over h2: 0.5 s no announcements can be heard: #60;a#62; #38; #35;b#59; #37;c #123;d#125;\\n",
        "    h3->>h0: 0.5 s NAT-PMP external address request",
    ]


def test_a_sequence_diagram_can_be_limited_in_time_and_then_shows_only_who_takes_part() -> None:
    sim = drawn()
    assert str(sim.sequence_diagram(end=0.125)).splitlines() == [
        "sequenceDiagram",
        "    participant h0 as 192.168.1.7:49152",
        "    participant h1 as 192.168.1.1:5351",
        f"    h0-xh1: 0 s {ASK}",
    ]
    assert f"    h0->>h1: 0.25 s {ASK}" in str(sim.sequence_diagram(start=0.375)).splitlines()  # it arrives in time
    assert str(sim.sequence_diagram(start=10.0)) == "sequenceDiagram\n"


SVG = "{http://www.w3.org/2000/svg}"


def numbers(shape: Element, names: str) -> list[float]:
    return [float(shape.attrib[name]) for name in names.split()]


def test_a_sequence_diagram_in_svg_is_well_formed_and_slopes_with_the_time() -> None:
    svg = fromstring(drawn().sequence_diagram().svg)
    lives = [numbers(line, "x1 x2") for line in svg.iter(f"{SVG}line") if line.get("class") == "life"]
    places = sorted(x for x, _ in lives)
    assert all(x1 == x2 for x1, x2 in lives)
    assert len(places) == 4
    lost, *arrows, forged = [line for line in svg.findall(f"{SVG}line") if line.get("class") is None]
    x1, y1, x2, y2 = numbers(lost, "x1 y1 x2 y2")
    assert (x1, y1) == (places[0], y2)
    assert places[0] < x2 < places[1]
    (cross,) = svg.findall(f"{SVG}path")
    assert cross.attrib["d"].startswith(f"M{x2 - 4:.1f},{y2 - 4:.0f} ")
    assert len(arrows) == 4
    for line in arrows:
        x1, y1, x2, y2 = numbers(line, "x1 y1 x2 y2")
        assert {x1, x2} == {places[0], places[1]}
        assert y1 < y2
        assert line.get("marker-end") == "url(#tip)"
    assert [title.text for title in lost.iter(f"{SVG}title")] == ["0002000000501f9000001c20"]
    assert numbers(forged, "x1 x2") == [places[3], places[0]]


def test_the_texts_of_an_svg_are_escaped_in_order_and_each_written_once() -> None:
    svg = fromstring(drawn().sequence_diagram().svg)
    texts = [(float(text.attrib["y"]), text.attrib["class"], text.text) for text in svg.iter(f"{SVG}text")]
    times = [text for _, kind, text in sorted(texts) if kind == "time"]
    assert times == ["0 s", "0.25 s", "0.375 s", "0.5 s"]
    shown = [text for _, _, text in texts]
    assert shown.count(ASK) == 2  # lost once, then twice on its way but written once
    assert shown.count(GRANT) == 2
    assert "no announcements can be heard: <a> & #b; %c {d}\\n" in shown
    assert all(name in shown for name in ("192.168.1.7:49152", "192.168.1.1:5351", "192.168.1.66:9", "192.168.1.67:9"))
    assert [kind for _, kind, text in texts if text == GRANT] == ["right", "right"]


def test_what_is_announced_to_many_is_written_once_and_drawn_to_each() -> None:
    a, others = box(1), [box(number) for number in (2, 3, 4)]
    sim = Simulation(a, *others, latency=0.5)
    sim.sleep(others[0], 0.25, 2.0)
    a.send(b"\0\0", ("224.0.0.1", 5350))
    sim.run_until(1.0)
    assert str(sim.sequence_diagram()).splitlines()[5:] == [
        "    h0-xh1: 0 s NAT-PMP external address request",
        "    h0->>h2: 0 s NAT-PMP external address request",
        "    h0->>h3: 0 s NAT-PMP external address request",
        "    Note over h1: 0.25 s falls asleep",
    ]
    svg = sim.sequence_diagram().svg
    assert svg.count("NAT-PMP external address request") == 1
    assert svg.count("<title>0000</title>") == 3
    assert svg.count(' marker-end="url(#tip)"') == 2


def test_a_drawing_marks_what_was_corrupted_and_shortens_what_is_long() -> None:
    a, b = box(1), box(2)
    sim = Simulation(a, b, seed=2)
    sim.link = Link(corrupt=1.0)
    request = pcp.MapRequest(LOCAL, bytes(12), Protocol.TCP, 80, options=(pcp.Description("x" * 500),)).encode()
    a.send(request, b.bind_address)
    sim.run_until(1.0)
    diagram = sim.sequence_diagram()
    assert str(diagram).endswith(" (corrupted)\n")
    assert len(str(diagram)) > 500
    assert max(len(text.text or "") for text in fromstring(diagram.svg).iter(f"{SVG}text")) == 93


def test_a_drawing_of_nothing_is_one() -> None:
    diagram = story(1, record=False).sequence_diagram()
    assert str(diagram) == "sequenceDiagram\n"
    assert [child.tag for child in fromstring(diagram.svg)] == [f"{SVG}style", f"{SVG}rect", f"{SVG}defs"]


# --- the lives of mappings


def test_a_timeline_tells_the_life_of_every_mapping_on_both_sides() -> None:
    client, gateway = make_client((0,), strict=True), make_gateway((0,), external=None)
    sim = Simulation(client, gateway, latency=0.125)
    sim.at(1.0, client.map_port, Protocol.TCP, 80, external_port=8080, lifetime=600)
    sim.at(20.0, gateway.set_external_address, EXTERNAL)
    sim.at(2000.0, gateway.set_external_address, "198.51.100.7")
    sim.at(3000.0, lambda now: sim.partition(client))
    sim.at(3380.0, lambda now: sim.heal())
    sim.at(5000.0, client.close)
    sim.run_until(6000.0)
    told, first, second = sim.timeline()
    assert [(span.start, span.end, type(span.event)) for span in told.spans] == [
        (1.25, 31.5, MappingRefused),
        (31.5, 2000.125, MappingGranted),
        (2000.125, 3333.75, MappingChanged),
        (3333.75, 3397.75, MappingLost),
        (3397.75, 5000.25, MappingGranted),
        (5000.25, 5000.25, MappingReleased),
    ]
    assert [str(span.external) for span in told.spans] == [
        "None",
        "203.0.113.5:8080",
        "198.51.100.7:8080",
        "None",
        "198.51.100.7:8080",
        "None",
    ]
    assert [life.host for life in (told, first, second)] == [(LOCAL, 49152), SERVER, SERVER]
    assert (told.mapping, first.mapping, second.mapping, told.gateway) == (1, 1, 2, SERVER)
    assert first.describe().splitlines() == [
        "192.168.1.1:5351: mapping 1",
        "    31.375 to 2000 s: TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80, renewed 6 times",
        "    2000 to 3333.625 s: TCP 198.51.100.7:8080 goes on being forwarded to 192.168.1.7:80, renewed 3 times",
        "    3333.625 s: TCP 198.51.100.7:8080 has expired",
    ]


def test_a_mapping_that_still_lives_has_a_life_without_an_end() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(Protocol.TCP, 80, sim.now, external_port=8080, lifetime=600)
    sim.run_until(400.0)
    of_gateway, of_client = sim.timeline()
    assert of_client.spans[-1].end is of_gateway.spans[-1].end is None
    assert of_client.describe() == (
        "192.168.1.7:49152: mapping 1 at 192.168.1.1:5351\n"
        "    0.25 s: TCP port 80 is open at 203.0.113.5:8080 for 600 s, renewed once"
    )
    assert of_gateway.describe() == (
        "192.168.1.1:5351: mapping 1\n    0.125 s: TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80, renewed once"
    )


def test_the_lives_of_a_host_that_is_replaced_are_over_and_its_successor_begins_its_own() -> None:
    client, old, new = make_client((0,)), make_gateway(), make_gateway()
    sim = Simulation(client, old, latency=0.125)
    brief, _ = client.map_port(Protocol.TCP, 79, sim.now), client.map_port(Protocol.TCP, 80, sim.now, lifetime=600)
    sim.at(30.0, client.unmap, brief)
    sim.at(60.0, lambda now: sim.replace(old, new))
    sim.run_until(600.0)
    of_gateways = [life for life in sim.timeline() if life.host == SERVER]
    assert [(life.mapping, life.spans[-1].end) for life in of_gateways] == [(1, 30.125), (2, 60.0), (1, None)]
    of_client = [life for life in sim.timeline() if life.host != SERVER]
    assert [(life.mapping, life.spans[-1].end) for life in of_client] == [(1, 30.25), (2, None)]


def test_without_a_record_there_are_no_lives() -> None:
    assert story(3, record=False).timeline() == ()
    assert len(story(3).timeline()) == 2


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
    assert (first.stats.rejected, second.stats.rejected) == ({}, {})


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


def test_several_cores_on_one_address_are_a_multiplexer_which_has_to_be_given_one() -> None:
    one, other = make_client((2,)), Client(("192.168.1.2", 5351), local_address=LOCAL)
    sim = Simulation(make_gateway(), Gateway(EXTERNAL, address=("192.168.1.2", 5351)))
    both = Multiplexer(one, other)
    with pytest.raises(LocalProtocolError, match=r"no address of its own: add\(core, address=\.\.\.\)"):
        sim.add(both)
    sim.add(both, address=(LOCAL, 0))
    for client in (one, other):
        client.map_port(Protocol.TCP, 80, sim.now)
    sim.run_until(1.0)
    assert len(events_of(sim, MappingGranted)) == 2
