"""TCP and UDP on one external port, as a unit: whoever goes first, the other follows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from helpers import (
    EXTERNAL,
    NONCE,
    OTHER,
    OTHER_NONCE,
    SERVER,
    Middle,
    answer,
    drain,
    endpoint,
    events_of,
    make_client,
    make_gateway,
    pcp_map,
    sends_of,
)
from natpmp_sansio import (
    Client,
    Event,
    Gateway,
    GatewayRestarted,
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
    PairSplit,
    Protocol,
    Quirk,
    Reason,
    SendDatagram,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Simulation

TCP, UDP = Protocol.TCP, Protocol.UDP
RESTARTED = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode()


class Stubborn:
    """A PCP gateway that gives each new mapping the next port of a list, whatever is suggested.

    `asked` is what it was asked: protocol, suggested port (0 with a lifetime of 0) and lifetime, with the time.
    """

    def __init__(self, ports: Iterable[int], *, silent: tuple[Protocol, ...] = ()) -> None:
        self._ports = iter(ports)
        self.table: dict[int, int] = {}
        self.asked: list[tuple[float, int, int, int]] = []
        self.silent = silent
        self.refusing: dict[int, pcp.ResultCode] = {}
        self.lifetimes: dict[int, int] = {}
        self.epoch_start = -1000.0

    def serve(self, client: Client, end: float, start: float = 0.0) -> list[Event]:
        """Let the client live from `start` to `end`; its events."""
        now, events = start, []
        while True:
            for output in client.outputs():
                if isinstance(output, SendDatagram):
                    self._answer(client, output.data, now)
                else:
                    events.append(output)
            deadline = client.next_timeout()
            if deadline is None or deadline > end:
                return events
            now = max(now, deadline)
            client.handle_timeout(now)

    def _answer(self, client: Client, data: bytes, now: float) -> None:
        request = decode(data)
        assert isinstance(request, pcp.MapRequest)
        protocol = int(request.protocol)
        self.asked.append((now, protocol, request.suggested_external_port, request.lifetime))
        if protocol in self.silent:
            return
        if protocol in self.refusing:
            reply = answer(data, result_code=self.refusing[protocol], lifetime=60, epoch=int(now - self.epoch_start))
        elif request.lifetime == 0:
            self.table.pop(protocol, None)
            reply = answer(data, epoch=int(now - self.epoch_start))
        else:
            port = self.table.setdefault(protocol, next(self._ports) if protocol not in self.table else 0)
            lifetime = self.lifetimes.get(protocol, request.lifetime)
            reply = answer(data, external_port=port, lifetime=lifetime, epoch=int(now - self.epoch_start))
        client.receive_datagram(reply, SERVER, now)


def told(events: Iterable[Event]) -> list[tuple[type[Event], MappingId, int]]:
    """What was told of which mapping, with its external port."""
    ports: list[tuple[type[Event], MappingId, int]] = []
    for event in events:
        if isinstance(event, MappingGranted | MappingRenewed):
            ports.append((type(event), event.mapping, event.external.port))
        elif isinstance(event, MappingChanged):
            ports.append((type(event), event.mapping, event.new.port))
    return ports


@pytest.mark.parametrize("versions", [(2,), (0,)], ids=["PCP", "NAT-PMP"])
def test_udp_is_asked_for_first_and_tcp_with_its_port_and_both_are_told_when_they_agree(
    versions: tuple[int, ...],
) -> None:
    client, gateway = make_client(versions), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    tcp, udp = client.map_pair(5000, sim.now, lifetime=600)
    sim.run_until(10.0)
    requests = [decode(data) for _, data in sends_of(sim)]
    asked = [
        (request.protocol, request.suggested_external_port)
        for request in requests
        if isinstance(request, pcp.MapRequest | natpmp.MapRequest)
    ]
    assert asked == [(UDP, 0), (TCP, 2048)]
    granted = events_of(sim, MappingGranted)
    assert {(event.mapping, event.external) for event in granted} == {
        (tcp, endpoint(EXTERNAL, 2048)),
        (udp, endpoint(EXTERNAL, 2048)),
    }
    # In NAT-PMP the question for the address comes between the two.
    last = 0.5 if versions == (2,) else 0.75
    assert [at for at, event in sim.events if isinstance(event, MappingGranted)] == [last, last]


def test_the_wish_of_the_caller_is_what_udp_asks_for() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_pair(5000, sim.now, external_port=6000)
    sim.run_until(10.0)
    assert [event.external.port for event in events_of(sim, MappingGranted)] == [6000, 6000]


@pytest.mark.parametrize("versions", [(2,), (0,)], ids=["PCP", "NAT-PMP"])
def test_udp_is_renewed_first_and_tcp_right_behind_it(versions: tuple[int, ...]) -> None:
    """Where renewing UDP ends TCP's rule, TCP's renewal puts it back, for as long as it takes."""
    gateway = Gateway(EXTERNAL, address=SERVER, rng=Middle(2), quirks=[Quirk.UDP_RENEWAL_DROPS_TCP])
    client = make_client(versions)
    sim = Simulation(client, gateway, latency=0.125)
    client.map_pair(5000, sim.now, lifetime=600)
    sim.run_until(10 * 600.0)
    renewals = [
        (at, request.protocol)
        for at, data in sends_of(sim)
        if isinstance(request := decode(data), pcp.MapRequest | natpmp.MapRequest) and at > 10.0
    ]
    assert len(renewals) > 30
    udp_then_tcp = list(zip(renewals[::2], renewals[1::2], strict=False))
    assert [(first[1], second[1]) for first, second in udp_then_tcp] == [(UDP, TCP)] * len(udp_then_tcp)
    assert max(second[0] - first[0] for first, second in udp_then_tcp) <= 0.5
    assert sorted(mapping.protocol for mapping in gateway.mappings) == [TCP, UDP]
    assert events_of(sim, MappingLost) == []


def test_tcp_that_is_due_first_lets_udp_go_first_all_the_same() -> None:
    gateway = Stubborn([1000, 1000])
    client = make_client((2,), rng=Middle(1))
    client.map_pair(5000, 0.0, lifetime=600)
    gateway.serve(client, 10.0)
    # UDP is confirmed out of turn by the caller's question for the address, so that TCP is due earlier than UDP is.
    client.request_external_address(100.0)
    drained = drain(client)[0]
    assert len(drained) == 1
    client.receive_datagram(answer(drained[0], external_port=1000, epoch=1100), SERVER, 100.0)
    requests, _ = drain(client)
    assert [decode(data).protocol for data in requests] == [TCP]  # type: ignore[union-attr]


def test_while_their_ports_differ_one_is_deleted_and_asked_for_again_with_the_others_port() -> None:
    gateway = Stubborn([1000, 2000, 2000])
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 10.0)
    assert gateway.asked == [
        (0.0, UDP, 0, 600),
        (0.0, TCP, 1000, 600),
        (0.0, UDP, 0, 0),
        (0.0, UDP, 2000, 600),
        (0.0, TCP, 2000, 600),  # behind the delete and the request of UDP
    ]
    assert told(events) == [(MappingGranted, udp, 2000), (MappingGranted, tcp, 2000)]


def test_they_take_turns_in_moving() -> None:
    gateway = Stubborn([1000, 2000, 3000, 3000])
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 10.0)
    assert [(protocol, port) for _, protocol, port, lifetime in gateway.asked if lifetime == 0] == [(UDP, 0), (TCP, 0)]
    assert told(events) == [(MappingGranted, tcp, 3000), (MappingGranted, udp, 3000)]
    assert events_of_kind(events, PairSplit) == []


def events_of_kind(events: Iterable[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def test_a_gateway_that_gives_no_equal_ports_is_said_not_to_and_both_are_kept() -> None:
    gateway = Stubborn(range(1000, 2000))
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 1000.0)
    deletes = [protocol for _, protocol, _, lifetime in gateway.asked if lifetime == 0]
    assert deletes == [UDP, TCP, UDP, TCP]
    assert events_of_kind(events, PairSplit) == [PairSplit(gateway=SERVER, tcp=tcp, udp=udp)]
    split = next(n for n, event in enumerate(events) if isinstance(event, PairSplit))
    assert told(events[:split]) == []
    assert told(events[split:])[:2] == [(MappingGranted, tcp, 1005), (MappingGranted, udp, 1004)]
    # From now on each keeps its own, and nobody says so again.
    assert set(told(events[split:])[2:]) == {(MappingRenewed, tcp, 1005), (MappingRenewed, udp, 1004)}


def test_a_pair_that_could_not_agree_tries_again_after_a_restart() -> None:
    gateway = Stubborn([1000, 1001, 1002, 1003, 1004, 1005, 7, 7])
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 10.0)
    assert len(events_of_kind(events, PairSplit)) == 1
    gateway.table.clear()
    client.receive_datagram(RESTARTED, SERVER, 20.0)
    gateway.epoch_start = 20.0
    events = gateway.serve(client, 60.0, start=20.0)
    assert [type(event) for event in events] == [GatewayRestarted, MappingChanged, MappingChanged]
    assert told(events) == [(MappingChanged, tcp, 7), (MappingChanged, udp, 7)]


def test_a_port_that_rotates_on_renewal_takes_its_twin_along() -> None:
    client = make_client((0,))
    gateway = Gateway(EXTERNAL, address=SERVER, rng=Middle(2), quirks=[Quirk.ROTATES_PORTS])
    sim = Simulation(client, gateway, latency=0.125)
    tcp, udp = client.map_pair(5000, sim.now, lifetime=600)
    sim.run_until(350.0)
    assert told(event for _, event in sim.events) == [
        (MappingGranted, tcp, 2048),
        (MappingGranted, udp, 2048),
        (MappingChanged, tcp, 2049),
        (MappingChanged, udp, 2049),
    ]


def test_a_refusal_of_one_leaves_the_other_as_it_is_told() -> None:
    gateway = Stubborn([1000, 1000])
    gateway.refusing[TCP] = pcp.ResultCode.NOT_AUTHORIZED
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 10.0)
    assert told(events) == [(MappingGranted, udp, 1000)]
    (refused,) = events_of_kind(events, MappingRefused)
    assert isinstance(refused, MappingRefused)
    assert (refused.mapping, refused.reason, refused.retry_at) == (tcp, Reason.NOT_AUTHORIZED, 60.0)
    gateway.refusing.clear()
    assert told(gateway.serve(client, 70.0)) == [(MappingGranted, tcp, 1000)]


def test_while_udp_is_refused_tcp_is_asked_for_and_gives_udp_its_port_later() -> None:
    gateway = Stubborn([1000, 1000])
    gateway.refusing[UDP] = pcp.ResultCode.NOT_AUTHORIZED
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    events = gateway.serve(client, 10.0)
    assert told(events) == [(MappingGranted, tcp, 1000)]
    gateway.refusing.clear()
    assert told(gateway.serve(client, 70.0)) == [(MappingGranted, udp, 1000)]
    assert [(protocol, port) for at, protocol, port, _ in gateway.asked if at == 60.0] == [(UDP, 1000)]


def test_a_silent_gateway_refuses_both_of_a_pair() -> None:
    client = make_client((2,))
    sim = Simulation(client)
    tcp, udp = client.map_pair(5000, sim.now)
    sim.run_until(50.0)
    refused = events_of(sim, MappingRefused)
    assert [(event.mapping, event.reason) for event in refused] == [(udp, Reason.NO_ANSWER), (tcp, Reason.NO_ANSWER)]


def test_a_renewal_of_udp_that_nobody_answers_is_followed_by_tcps_all_the_same() -> None:
    gateway = Stubborn([1000, 1000])
    client = make_client((2,))
    tcp, _ = client.map_pair(5000, 0.0, lifetime=600)
    gateway.serve(client, 10.0)
    gateway.silent = (UDP,)
    gateway.asked.clear()
    events = gateway.serve(client, 350.0)
    assert [(at, protocol) for at, protocol, _, _ in gateway.asked] == [(337.5, UDP), (340.5, TCP)]
    assert told(events) == [(MappingRenewed, tcp, 1000)]


def test_tcp_is_renewed_alone_while_udp_must_not_be_asked_for() -> None:
    gateway = Stubborn([1000, 1000])
    gateway.lifetimes[TCP] = 96
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    gateway.serve(client, 10.0)
    gateway.refusing[UDP] = pcp.ResultCode.NOT_AUTHORIZED  # for 60 s
    gateway.asked.clear()
    events = gateway.serve(client, 130.0)
    assert [(at, protocol) for at, protocol, _, _ in gateway.asked] == [(54.0, UDP), (54.0, TCP), (108.0, TCP)]
    assert told(events) == [(MappingRenewed, tcp, 1000)] * 2
    gateway.refusing.clear()
    events = gateway.serve(client, 170.0, start=130.0)
    assert told(events) == [(MappingRenewed, udp, 1000), (MappingRenewed, tcp, 1000)]


def test_tcp_follows_no_sooner_than_four_seconds_after_its_last_renewal() -> None:
    """RFC 6887 section 11.2.1: two renewals of one mapping are never closer."""
    gateway = Stubborn([1000, 1000])
    client = make_client((2,))
    client.map_pair(5000, 0.0, lifetime=20)
    gateway.serve(client, 200.0)
    for protocol in (TCP, UDP):
        times = [at for at, asked, _, _ in gateway.asked if asked == protocol][1:]
        assert min(after - before for before, after in itertools.pairwise(times)) >= 4.0


def test_after_a_restart_udp_is_recovered_first_and_tcp_behind_it() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_pair(5000, sim.now)
    sim.run_until(60.0)
    gateway.reboot(sim.now)
    sim.run_until(70.0)
    recovered = [(at, decode(data).protocol) for at, data in sends_of(sim) if at > 60.0]  # type: ignore[union-attr]
    assert recovered == [(62.625, UDP), (62.875, TCP)]
    assert [event.external.port for event in events_of(sim, MappingRenewed)] == [2048, 2048]


def test_to_unmap_one_leaves_the_other_which_is_renewed_once_more_behind_udps_delete() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    tcp, udp = client.map_pair(5000, sim.now)
    sim.run_until(10.0)
    client.unmap(udp, sim.now)
    sim.run_until(20.0)
    assert [(at, decode(data).protocol) for at, data in sends_of(sim)][2:] == [(10.0, UDP), (10.25, TCP)]  # type: ignore[union-attr]
    assert [event.mapping for event in events_of(sim, MappingReleased)] == [udp]
    client.unmap(tcp, sim.now)
    sim.run_until(30.0)
    assert client.mappings == gateway.mappings == ()


def test_to_unmap_tcp_leaves_udp_alone() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    tcp, udp = client.map_pair(5000, sim.now)
    sim.run_until(10.0)
    client.unmap(tcp, sim.now)
    sim.run_until(8000.0)
    assert [mapping.id for mapping in client.mappings] == [udp]
    assert len(gateway.mappings) == 1


def test_one_that_waits_for_its_twin_is_told_when_the_twin_is_given_up() -> None:
    gateway = Stubborn([1000], silent=(TCP,))
    client = make_client((2,))
    tcp, udp = client.map_pair(5000, 0.0, lifetime=600)
    assert told(gateway.serve(client, 2.0)) == []
    client.unmap(tcp, 2.0)
    _, events = drain(client)
    assert told(events) == [(MappingGranted, udp, 1000)]


def test_what_moves_while_it_is_told_as_open_and_then_refused_is_lost() -> None:
    """The gateway gives UDP another port after a restart, and then no port at all."""
    gateway = Stubborn([1000, 1000])
    client = make_client((2,))
    _, udp = client.map_pair(5000, 0.0, lifetime=600)
    gateway.serve(client, 10.0)
    client.receive_datagram(RESTARTED, SERVER, 20.0)
    client.handle_timeout(22.5)
    (asked,), _ = drain(client)
    client.receive_datagram(answer(asked, epoch=2, external_port=1000), SERVER, 22.5)
    (asked,), _ = drain(client)
    client.receive_datagram(answer(asked, epoch=2, external_port=2000), SERVER, 22.5)  # TCP: they differ
    (deletion,), _ = drain(client)
    client.receive_datagram(answer(deletion, epoch=2), SERVER, 22.5)
    (again,), _ = drain(client)
    assert decode(again).suggested_external_port == 2000  # type: ignore[union-attr]
    refusal = answer(again, epoch=2, result_code=pcp.ResultCode.USER_EX_QUOTA, lifetime=30)
    client.receive_datagram(refusal, SERVER, 22.5)
    _, events = drain(client)
    (lost,) = events_of_kind(events, MappingLost)
    assert isinstance(lost, MappingLost)
    assert (lost.mapping, lost.reason, lost.retry_at) == (udp, Reason.QUOTA, 52.5)
    mapping = client.mapping(udp)
    assert mapping is not None
    assert mapping.state is MappingState.REFUSED


def test_a_delete_on_the_way_to_another_port_that_nobody_answers_is_given_up_for_the_request() -> None:
    client = make_client((2,))
    client.map_pair(5000, 0.0, lifetime=600)
    (asked,), _ = drain(client)
    client.receive_datagram(answer(asked, external_port=1000), SERVER, 0.0)
    (asked,), _ = drain(client)
    client.receive_datagram(answer(asked, external_port=2000), SERVER, 0.0)
    sent = []
    while (deadline := client.next_timeout()) is not None and deadline <= 21.0:
        client.handle_timeout(deadline)
        sent += [(deadline, decode(data).lifetime) for data in drain(client)[0]]  # type: ignore[union-attr]
    assert sent == [(0.0, 0), (3.0, 0), (9.0, 0), (21.0, 600)]


def test_both_of_a_pair_end_at_its_deadline() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_pair(5000, sim.now, until=100.0)
    sim.run_until(200.0)
    assert [event.reason for event in events_of(sim, MappingFailed)] == [Reason.DEADLINE] * 2
    assert gateway.mappings == ()


def test_a_pair_in_nat_pmp_where_any_internal_port_will_do_gets_one_port_for_both() -> None:
    gateway = Gateway(EXTERNAL, address=SERVER, rng=Middle(2), quirks=[Quirk.INTERNAL_PORT_0, Quirk.LIFETIME_60])
    client = make_client((0,), any_internal_port=True)
    sim = Simulation(client, gateway, latency=0.125)
    client.map_pair(0, sim.now)
    sim.run_until(600.0)
    ports = {event.external.port for event in events_of(sim, MappingGranted)}
    assert len(ports) == 1
    assert len(gateway.mappings) == 2
    client.close(sim.now)
    sim.run_until(610.0)
    assert len(gateway.mappings) == 0
    deletes = [r for _, data in sends_of(sim) if isinstance(r := decode(data), natpmp.MapRequest) and r.lifetime == 0]
    assert [request.internal_port for request in deletes] == [*ports, *ports]


def test_neither_of_a_pair_may_be_wanted_already() -> None:
    client = make_client()
    mapping = client.map_port(TCP, 5000, 0.0)
    drain(client)
    before = (client.mappings, client.timers())
    with pytest.raises(LocalProtocolError, match="already"):
        client.map_pair(5000, 0.0)
    assert (client.mappings, client.timers()) == before
    client.unmap(mapping, 0.0)
    client.map_pair(5000, 0.0)


def test_others_have_the_port_that_was_wanted() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    pcp_map(gateway, TCP, 700, 6000, nonce=OTHER_NONCE, source=OTHER)
    pcp_map(gateway, UDP, 700, 6001, nonce=NONCE, source=OTHER)
    client.map_pair(5000, sim.now, external_port=6000)
    sim.run_until(10.0)
    ports = {event.external.port for event in events_of(sim, MappingGranted)}
    assert len(ports) == 1
    assert ports.isdisjoint({6000, 6001})
