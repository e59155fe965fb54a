"""What the state machine of the clients has found, each as short as it could be made."""

from __future__ import annotations

from itertools import pairwise

import pytest

from helpers import EXTERNAL, SERVER, Middle, drain, events_of, make_client, make_gateway, natpmp_answer, sends_of
from natpmp_sansio import (
    ExternalAddressChanged,
    Gateway,
    GatewayConfig,
    MappingChanged,
    MappingFailed,
    MappingLost,
    MappingRefused,
    MappingReleased,
    Protocol,
    Reason,
    VersionNegotiated,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Link, Simulation

TCP, UDP = Protocol.TCP, Protocol.UDP
LOST = Link(loss=1.0)
OTHER_SERVER = ("192.168.1.254", 5351)


def test_who_wakes_up_too_late_does_not_ask_for_what_is_over() -> None:
    """1. The retransmission that was due first goes out although the mapping's own end has come."""
    client = make_client((0,))
    client.map_port(TCP, 80, 0.0, until=100.0)
    drain(client)
    client.handle_timeout(400.0)
    assert [decode(data) for data in drain(client)[0]] == [natpmp.MapRequest(TCP, 80, 0, 0)]


def test_a_lease_that_lasts_as_long_as_it_is_wanted_is_not_renewed() -> None:
    """2. At the half of what remains, again and again: at last every half second."""
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 80, sim.now, lifetime=600, until=500.0)
    sim.run_until(499.5)
    assert sum(data[1] != 0 for _, data in sends_of(sim)) == 1


def test_a_renewal_is_one_packet_also_where_the_other_version_is_tried() -> None:
    """3. RFC 6887 section 11.2.1: the next one is not before 3/4 of the lease."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(TCP, 80, sim.now, lifetime=600)
    sim.run_until(1.0)
    sim.connect(client, gateway, LOST)
    other = client.map_port(UDP, 81, sim.now)
    client.gateway_unreachable(sim.now)  # so the version is forgotten
    client.unmap(other, sim.now)
    sim.run_until(340.0)
    renewals = [at for at, data in sends_of(sim) if at >= 300.0 and data[0] == 2 and data[36:42] == b"\6\0\0\0\0\x50"]
    assert len(renewals) == 1


def test_two_renewals_in_pcp_are_4_s_apart_also_of_a_lease_that_nat_pmp_has_granted() -> None:
    """4. RFC 6887 section 11.2.1. The gap was that of the protocol of the grant."""
    client, gateway = make_client(fallback_delay=2.5), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 80, sim.now, lifetime=640)
    sim.run_until(300.0)
    sim.connect(client, gateway, LOST)
    sim.run_until(640.0)
    renewals = [at for at, data in sends_of(sim) if 300.0 < at < 640.0 and data[:2] == b"\2\1"]
    assert len(renewals) > 5
    assert min(after - before for before, after in pairwise(renewals)) >= 4.0


def test_the_answer_to_an_old_delete_does_not_take_the_client_back_to_nat_pmp() -> None:
    """5. What waits in PCP is asked again in NAT-PMP, and the version goes to and fro."""
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.02)
    old = client.map_port(TCP, 80, sim.now, lifetime=3600)
    sim.run_until(400.0)  # longer than it is remembered that the gateway speaks NAT-PMP only
    new = make_gateway()
    sim.replace(gateway, new)
    client.map_port(TCP, 81, sim.now)
    sim.run_until(401.0)
    assert client.version == 2
    client.unmap(old, sim.now)
    client.map_port(TCP, 82, sim.now)
    sim.run_until(402.0)
    assert [event.version for event in events_of(sim, VersionNegotiated)] == [0, 2]
    assert [data[0] for at, data in sends_of(sim) if at >= 401.0] == [0, 2]


def test_a_nat_pmp_request_keeps_its_schedule_while_pcp_is_silent() -> None:
    """6. When the patience with a PCP request was over, the first request was sent again, of whatever version."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.02)
    sim.connect(client, gateway, LOST)
    for port in (80, 81):
        client.map_port(TCP, port, sim.now)
    gateway.reboot(sim.now)  # its announcements are taken for the answer to the question in NAT-PMP
    sim.run_until(120.0)
    times = [at for at, data in sends_of(sim) if data[:2] == b"\0\2"]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == pytest.approx([0.25 * 2**n for n in range(8)])


def test_a_delete_that_draws_a_version_error_is_not_sent_more_often() -> None:
    """7. It began anew, in the version that had been refused."""
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway)
    mapping = client.map_port(TCP, 80, sim.now, lifetime=3600)
    sim.run_until(10.0)
    sim.replace(gateway, make_gateway((2,)))
    client.unmap(mapping, sim.now)
    sim.run_until(20.0)
    assert len([data for at, data in sends_of(sim) if at >= 10.0]) == 3
    assert len(events_of(sim, MappingReleased)) == 1


def test_what_was_given_up_is_released_even_if_it_turns_out_to_be_impossible() -> None:
    """8. It ended as MappingFailed (NEEDS_PCP), though nobody wanted it any more."""
    client, gateway = make_client(window=1), make_gateway((0,))
    sim = Simulation(client, gateway)
    sim.connect(client, gateway, LOST)
    mapping = client.map_port(132, 2905, sim.now)
    client.map_port(TCP, 80, sim.now)
    sim.run_until(0.5)
    client.unmap(mapping, sim.now)
    sim.connect(client, gateway, Link())
    sim.run_until(10.0)
    assert events_of(sim, MappingFailed) == []
    assert len(events_of(sim, MappingReleased)) == 1


def test_a_forged_nat_pmp_announcement_does_not_tell_a_pcp_client_its_external_address() -> None:
    """9. Two datagrams make as many events, and `external_address` contradicts the mappings."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(1.0)
    for address in ("198.51.100.66", "198.51.100.67"):
        forged = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1, address)
        sim.inject(client, forged.encode(), (SERVER[0], 9999))
    sim.run_until(1.0)
    held = client.mapping(mapping)
    assert held is not None
    assert held.external is not None
    assert str(held.external.address) == EXTERNAL
    assert str(client.external_address) == EXTERNAL
    assert events_of(sim, ExternalAddressChanged) == []


def test_a_recovery_that_met_with_silence_does_not_cost_the_lease() -> None:
    """10. The request to recover waits for ever longer, and the renewals that would have come in time do not begin."""
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 80, sim.now, lifetime=600)
    sim.run_until(10.0)
    sim.connect(client, gateway, LOST)
    gateway.reboot(sim.now)
    sim.run_until(400.0)
    sim.connect(client, gateway, Link())  # all is well, for a third of the lease
    sim.run_until(1000.0)
    assert [event.reason for event in events_of(sim, MappingLost)] == []


def test_an_answer_with_an_old_epoch_is_a_grant_that_has_to_be_confirmed() -> None:
    """11. A late copy of an old grant is believed, and then counts as newer than the restart that it shows."""
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0, lifetime=600)
    (request,), _ = drain(client)

    def grant(port: int, epoch: int) -> bytes:
        message = decode(request)
        assert isinstance(message, pcp.MapRequest)
        success = pcp.ResultCode.SUCCESS
        return pcp.MapResponse(success, 600, epoch, message.nonce, TCP, 80, port, EXTERNAL).encode()

    client.receive_datagram(grant(4001, 1000), SERVER, 1.0)
    client.receive_datagram(grant(4002, 5), SERVER, 100.0)  # a restart, and another port
    client.receive_datagram(grant(4001, 1000), SERVER, 101.0)  # the first again, too late
    drain(client)
    client.handle_timeout(110.0)
    assert drain(client)[0], "nothing is asked, though the endpoint is an old one"


def test_a_forged_version_error_does_not_end_a_delete() -> None:
    """12. The delete is lost on its way, and not sent again: the mapping stays until its lease is over."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(1.0)
    sim.connect(client, gateway, LOST)
    client.unmap(mapping, sim.now)
    sim.run_until(2.0)
    sim.connect(client, gateway, Link())
    for data in ("0080000100000000", "0080000100000000", "ff800001"):
        sim.inject(client, bytes.fromhex(data), SERVER)
    sim.run_until(20.0)
    assert gateway.mappings == ()


def test_another_gateways_address_makes_no_endpoint_of_a_port_of_the_old_one() -> None:
    """13. What waited to be asked for there was told to have moved, to the new address and the old port."""
    client, gateway = make_client((0,)), make_gateway((0,))
    other = Gateway("203.0.113.9", address=OTHER_SERVER, config=GatewayConfig(versions=(0,)), rng=Middle(3))
    sim = Simulation(client, gateway, other, latency=0.02)
    for port in (80, 81):
        client.map_port(TCP, port, sim.now)
    sim.run_until(1.0)
    client.network_changed(sim.now, gateway=OTHER_SERVER)
    sim.run_until(2.0)
    there = {(entry.internal.port, entry.external) for entry in other.mappings}
    told = {(event.internal_port, event.new) for event in events_of(sim, MappingChanged) if event.new.address}
    assert told == there


def test_a_request_that_goes_on_in_pcp_keeps_its_schedule_when_nat_pmp_is_answered() -> None:
    """14. It was sent again at once, though it would be in PCP again (RFC 6887 section 8.1.1)."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    sim.connect(client, gateway, LOST)
    client.map_port(132, 2905, sim.now)
    sim.run_until(2.0)
    sim.inject(client, natpmp_answer(b"\0\0"), SERVER)
    sim.run_until(20.0)
    assert [at for at, data in sends_of(sim) if data[0] == 2] == [0.0, 1.0, 3.0, 9.0]  # 1.0: with the question


def test_what_needs_pcp_fails_at_once_when_the_gateway_says_that_it_has_none() -> None:
    """15. It went on asking when NAT-PMP had been answered before the version error came."""
    client = make_client()
    client.map_port(132, 2905, 0.0)
    client.handle_timeout(1.0)
    drain(client)
    client.receive_datagram(natpmp_answer(b"\0\0"), SERVER, 1.1)
    client.receive_datagram(natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 1).encode(), SERVER, 1.2)
    assert [event.reason for event in drain(client)[1] if isinstance(event, MappingFailed)] == [Reason.NEEDS_PCP]


def test_a_flow_at_another_address_is_not_tied_to_the_endpoint_of_the_old_one() -> None:
    """16. A port that PEER suggests is a condition: the new gateway refused it again and again (RFC 6887 12.3)."""
    client, gateway = make_client((2,)), make_gateway((2,))
    other = Gateway("203.0.113.9", address=OTHER_SERVER, rng=Middle(3))
    sim = Simulation(client, gateway, other)
    mapping = client.map_peer(TCP, 80, ("198.51.100.9", 443), sim.now)
    sim.run_until(1.0)
    client.network_changed(sim.now, gateway=OTHER_SERVER)
    sim.run_until(2.0)
    assert events_of(sim, MappingLost) == events_of(sim, MappingRefused) == []
    asked = decode(sends_of(sim)[-1][1])
    assert isinstance(asked, pcp.PeerRequest)
    assert asked.suggested_external_port == 0
    assert client.mapping(mapping) is not None


def test_what_waits_to_be_renewed_is_not_asked_for_when_its_lease_is_over() -> None:
    """17. An answer made room for it in the very instant in which the lease ended."""
    client = make_client((0,))
    for port in (80, 81):
        client.map_port(TCP, port, 0.0, lifetime=100)
        (request, *_), _ = drain(client)
        client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
        client.receive_datagram(natpmp_answer(b"\0\0"), SERVER, 0.0)
    drain(client)
    while (now := client.next_timeout() or 0.0) < 100.0:
        client.handle_timeout(now)
        drain(client)
    for request in (natpmp.MapRequest(TCP, 80, 40000, 100).encode(), b"\0\0"):
        client.receive_datagram(natpmp_answer(request, 1100), SERVER, 100.0)
    assert not any(data[1] for data in drain(client)[0]), "it is"
