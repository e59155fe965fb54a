"""What is known of one gateway, and what a move to another one leaves behind."""

from __future__ import annotations

from helpers import SERVER, Middle, drain, events_of, held, make_client, make_gateway
from natpmp_sansio import (
    Gateway,
    GatewayRecovered,
    GatewayRestarted,
    GatewayUnreachable,
    MappingState,
    Protocol,
    decode,
    pcp,
)
from natpmp_sansio.testing import Simulation

OTHER_SERVER = ("192.168.1.2", 5351)
ANNOUNCEMENT = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1000).encode()


def test_a_restart_of_the_new_gateway_is_recovered_from_at_once_although_the_old_one_restarted_just_before() -> None:
    """The pace of recoveries is that of one gateway (`Config.recovery_interval`)."""
    client, old = make_client(), make_gateway()
    new = Gateway("198.51.100.5", address=OTHER_SERVER, rng=Middle(3))
    sim = Simulation(client, old, new, latency=0.0625)
    client.map_port(Protocol.TCP, 8080, 0.0)
    sim.at(100.0, old.reboot)
    sim.at(104.0, client.network_changed, gateway=OTHER_SERVER)
    sim.at(108.0, new.reboot)
    sim.run_until(110.5)
    sent = len(sim.sent)
    sim.run_until(200.0)
    # RFC 6887 section 14.1.3: a random delay of 0 to 5 s after the announcement was heard, here the middle.
    first, second = events_of(sim, GatewayRestarted)
    assert (first.gateway, first.recovery_at) == (SERVER, 102.5625)
    assert (second.gateway, second.recovery_at) == (OTHER_SERVER, 110.5625)
    recovery = next(each for each in sim.sent[sent:] if each.source[0] == "192.168.1.7")
    assert (recovery.at, recovery.target) == (110.5625, OTHER_SERVER)
    assert isinstance(decode(recovery.data), pcp.MapRequest)


def test_two_restarts_of_one_gateway_are_recovered_from_an_interval_apart() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.0625)
    client.map_port(Protocol.TCP, 8080, 0.0)
    sim.at(100.0, gateway.reboot)
    sim.at(108.0, gateway.reboot)
    sim.run_until(200.0)
    assert [each.recovery_at for each in events_of(sim, GatewayRestarted)] == [102.5625, 132.5625]


def test_the_first_sign_of_life_of_the_new_gateway_is_followed_at_once_although_the_old_one_flapped() -> None:
    """A comeback may be forged, so those of one gateway are paced. The old gateway's do not count at the new one."""
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    for second in range(10):
        client.gateway_unreachable(2.0 * second)
        assert client.receive_datagram(ANNOUNCEMENT, SERVER, 2.0 * second + 1.0)
        client.network_changed(2.0 * second + 1.5)
    _, events = drain(client)
    assert [type(each) for each in events if isinstance(each, GatewayUnreachable | GatewayRecovered)] == [
        GatewayUnreachable,
        GatewayRecovered,
    ] * 10
    client.network_changed(20.0, gateway=OTHER_SERVER)
    client.gateway_unreachable(21.0)
    drain(client)
    refused = client.mapping(mapping)
    assert refused is not None
    assert (refused.state, refused.retry_at) == (MappingState.REFUSED, 51.0)
    assert client.receive_datagram(ANNOUNCEMENT, OTHER_SERVER, 22.0)
    drain(client)
    assert client.next_timeout() == 22.0
    client.handle_timeout(22.0)
    (request,), _ = drain(client)
    assert isinstance(decode(request), pcp.MapRequest)


def test_a_mapping_that_is_being_released_shows_no_renewal() -> None:
    client = make_client((2,))
    mapping = held(client)
    before = client.mapping(mapping)
    assert before is not None
    assert before.renew_at == 4050.0  # RFC 6887 section 11.2.1: at 1/2 to 5/8 of the lease, here the middle
    client.unmap(mapping, 10.0)
    after = client.mapping(mapping)
    assert after is not None
    assert (after.state, after.renew_at) == (MappingState.RELEASING, None)
