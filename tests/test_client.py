"""The client role, as stories about one host and one gateway in virtual time."""

from __future__ import annotations

import itertools
import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from helpers import (
    EXTERNAL,
    LOCAL,
    SERVER,
    Middle,
    answer,
    drain,
    events_of,
    held,
    make_client,
    make_gateway,
    natpmp_answer,
    sends_of,
    times_of,
)
from natpmp_sansio import (
    Client,
    Closed,
    Config,
    Endpoint,
    ExternalAddressChanged,
    ExternalAddressLearned,
    Gateway,
    GatewayRecovered,
    GatewayRestarted,
    GatewayUnreachable,
    LocalProtocolError,
    Mapping,
    MappingChanged,
    MappingFailed,
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    MappingState,
    Protocol,
    Reason,
    Rejected,
    Stats,
    Timer,
    TimerInfo,
    VersionNegotiated,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Link, Simulation

NAT_PMP_SENDS = [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75]
PCP_SENDS = [0.0, 3.0, 9.0, 21.0, 45.0, 93.0, 189.0, 381.0, 765.0, 1533.0, 2557.0]


# --- silence


@pytest.mark.requirement("NP-3.1-05")
@pytest.mark.requirement("NP-3.1-06")
@pytest.mark.requirement("NP-3.1-07")
@pytest.mark.requirement("NP-3.1-08")
@pytest.mark.requirement("NP-3.3-10")
def test_a_gateway_silent_to_nat_pmp_is_asked_nine_times_and_given_up_after_127_75_seconds() -> None:
    client = make_client((0,))
    sim = Simulation(client)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(130.0)
    assert [at for at, _ in sends_of(sim)] == NAT_PMP_SENDS
    assert len({data for _, data in sends_of(sim)}) == 1
    assert sim.events == [
        (127.75, GatewayUnreachable(gateway=SERVER, reason=Reason.NO_ANSWER)),
        (
            127.75,
            MappingRefused(
                gateway=SERVER,
                mapping=mapping,
                protocol=Protocol.TCP,
                internal_port=8080,
                reason=Reason.NO_ANSWER,
                result_code=None,
                retry_at=157.75,
            ),
        ),
    ]


@pytest.mark.requirement("PCP-8.1.1-01")
@pytest.mark.requirement("PCP-8.1.1-02")
@pytest.mark.requirement("PCP-8.1.1-03")
@pytest.mark.requirement("PCP-8.1.1-05")
@pytest.mark.requirement("PCP-8.1.1-10")
def test_a_gateway_silent_to_pcp_is_asked_on_and_on() -> None:
    client = make_client((2,))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(2600.0)
    assert [at for at, _ in sends_of(sim)] == PCP_SENDS
    assert len({data for _, data in sends_of(sim)}) == 1


@pytest.mark.requirement("PCP-8.1.1-04")
@pytest.mark.requirement("PCP-8.1.1-06")
def test_pcp_never_gives_up_by_itself_but_says_early_that_nobody_answers() -> None:
    client = make_client((2,))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(7 * 86400.0)
    assert len(sim.sent) > 500
    assert times_of(sim, GatewayUnreachable) == [45.0]
    (refused,) = events_of(sim, MappingRefused)
    assert (refused.reason, refused.retry_at) == (Reason.NO_ANSWER, 93.0)
    assert client.mappings[0].state is MappingState.REQUESTING


@pytest.mark.requirement("PCP-8.1.1-07")
def test_pcp_waits_are_jittered_anew_each_time_by_a_tenth_at_most() -> None:
    client = make_client((2,), rng=random.Random(3))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(20000.0)
    at = [when for when, _ in sends_of(sim)]
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert 2.7 <= gaps[0] <= 3.3
    assert all(1.8 * a <= b <= 2.2 * a for a, b in itertools.pairwise(gaps[:7]))
    assert all(gap <= 1126.4 for gap in gaps)
    assert len(set(gaps)) == len(gaps)


def test_strictly_by_the_rfcs_silence_never_leads_to_nat_pmp() -> None:
    client = make_client(strict=True)
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(2600.0)
    assert [at for at, _ in sends_of(sim)] == PCP_SENDS
    assert {data[0] for _, data in sends_of(sim)} == {2}


def test_a_gateway_silent_to_both_is_asked_in_both_and_again_after_growing_waits() -> None:
    client = make_client()
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(600.0)
    first = [(at, data[0]) for at, data in sends_of(sim) if at < 129.0]
    assert [at for at, version in first if version == 2] == [0.0, 1.0, 3.0, 9.0, 21.0, 45.0, 93.0]
    assert [at for at, version in first if version == 0] == [1.0 + at for at in NAT_PMP_SENDS]
    assert times_of(sim, GatewayUnreachable) == [128.75]
    # 30 s, then 60 s after the end of the next attempt, which takes as long as the first one
    assert [(at, event.retry_at) for at, event in sim.events if isinstance(event, MappingRefused)] == [
        (128.75, 158.75),
        (287.5, 347.5),
        (476.25, 596.25),
    ]


@pytest.mark.requirement("NP-3.1-10")
@pytest.mark.requirement("NP-3.1-11")
def test_after_silence_a_second_wish_is_refused_without_a_datagram_for_a_while() -> None:
    client = make_client((0,))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(128.0)
    client.map_port(Protocol.UDP, 8081, sim.now)
    sim.run_until(157.5)
    assert len(sim.sent) == 9
    assert [event.retry_at for event in events_of(sim, MappingRefused)] == [157.75, 157.75]
    sim.run_until(158.0)
    assert len(sim.sent) > 9


@pytest.mark.requirement("NP-3.1-12")
def test_an_announcement_ends_the_silence_at_once() -> None:
    client = make_client((0,))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(128.0)
    assert sim.inject(client, natpmp_answer(b"\0\0", epoch=0), ("192.168.1.1", 1900))
    sim.run_until(128.0)
    assert times_of(sim, GatewayRecovered) == [128.0]
    assert [
        event.describe() for _, event in sim.events if isinstance(event, GatewayUnreachable | GatewayRecovered)
    ] == [
        Reason.NO_ANSWER.value,
        "the gateway answers again",
    ]
    assert sends_of(sim)[-1][0] == 128.0


@pytest.mark.requirement("NP-3.1-09")
@pytest.mark.requirement("NP-3.8-04")
def test_a_closed_port_ends_the_attempt_at_once() -> None:
    client = make_client()
    sim = Simulation(client)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(0.5)
    client.gateway_unreachable(sim.now)
    sim.run_until(30.0)
    assert len(sim.sent) == 1
    assert [event for _, event in sim.events] == [
        GatewayUnreachable(gateway=SERVER, reason=Reason.UNREACHABLE),
        MappingRefused(
            gateway=SERVER,
            mapping=mapping,
            protocol=Protocol.TCP,
            internal_port=8080,
            reason=Reason.UNREACHABLE,
            result_code=None,
            retry_at=30.5,
        ),
    ]
    sim.run_until(30.5)
    assert len(sim.sent) == 2


def test_a_port_that_stays_closed_is_asked_ever_more_rarely_for_all_mappings_at_once() -> None:
    client = make_client((2,))
    first = client.map_port(Protocol.TCP, 8080, 0.0)
    client.gateway_unreachable(0.0)
    client.map_port(Protocol.UDP, 8081, 1.0)  # refused at once, without a datagram
    client.handle_timeout(30.0)
    client.gateway_unreachable(30.0)
    drain(client)
    client.unmap(first, 31.0)
    assert [(info.reason, info.deadline) for info in client.timers()] == [(Timer.RETRANSMIT, 34.0), (Timer.RETRY, 90.0)]
    client.gateway_unreachable(31.5)
    assert [(info.reason, info.deadline) for info in client.timers()] == [(Timer.RETRY, 151.5)]


def test_a_closed_port_ends_the_question_for_the_other_version_too() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    client.handle_timeout(1.0)
    client.gateway_unreachable(1.125)
    assert [(info.reason, info.deadline) for info in client.timers()] == [(Timer.RETRY, 31.125)]


def test_a_sign_of_life_retries_what_silence_refused_and_nothing_else() -> None:
    client = make_client((2,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=2, lifetime=600), SERVER, 0.0)
    client.map_port(Protocol.UDP, 8081, 1.0)
    client.gateway_unreachable(1.0)
    drain(client)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1002).encode(), SERVER, 2.0)
    assert [(info.deadline, info.mapping) for info in client.timers()] == [(2.0, 2), (600.0, 1)]


def test_a_lease_that_is_lost_leaves_the_others_alone() -> None:
    client = make_client((2,))
    held(client, lifetime=600)
    client.map_port(Protocol.UDP, 8081, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001), SERVER, 0.0)
    drain(client)
    client.receive_datagram(answer(request, result_code=2, lifetime=100, external_port=40001), SERVER, 1.0)
    assert [type(event) for event in drain(client)[1]] == [MappingLost]
    assert [mapping.state for mapping in client.mappings] == [MappingState.HELD, MappingState.REFUSED]


def test_an_icmp_error_for_nothing_of_ours_means_nothing() -> None:
    client = make_client()
    client.gateway_unreachable(1.0)
    assert drain(client) == ([], [])


def test_a_closed_port_ends_a_release_too_and_leaves_a_lease_standing() -> None:
    client = make_client()
    going = held(client)
    staying = client.map_port(Protocol.UDP, 8081, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001), SERVER, 0.0)
    client.unmap(going, 1.0)
    client.handle_timeout(4500.0)
    drain(client)
    client.gateway_unreachable(4500.5)
    _, events = drain(client)
    assert [type(event) for event in events] == [GatewayUnreachable, MappingReleased]
    look = client.mapping(staying)
    assert look is not None
    assert look.state is MappingState.HELD
    assert look.renew_at is not None


# --- granted, renewed, changed, lost


@pytest.mark.requirement("NP-1.1-05")
@pytest.mark.requirement("PCP-A-01")
@pytest.mark.requirement("PCP-9-03")
def test_pcp_comes_first_and_the_grant_says_all_there_is_to_know() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now, external_port=8080)
    sim.run_until(1.0)
    address = IPv4Address(EXTERNAL)
    granted = MappingGranted(
        gateway=SERVER,
        mapping=mapping,
        protocol=Protocol.TCP,
        internal_port=8080,
        external=Endpoint(address, 8080),
        lifetime=7200.0,
        expires_at=7200.25,
    )
    mine = [(at, event) for at, event in sim.events if at == 0.25]
    assert mine == [
        (0.25, VersionNegotiated(gateway=SERVER, version=2)),
        (0.25, ExternalAddressLearned(gateway=SERVER, address=address)),
        (0.25, granted),
    ]
    assert sends_of(sim)[0][1][0] == 2
    assert client.version == 2
    assert client.external_address == address
    assert client.mapping(mapping) == Mapping(
        id=mapping,
        state=MappingState.HELD,
        protocol=Protocol.TCP,
        internal_port=8080,
        remote=None,
        external=Endpoint(address, 8080),
        lifetime=7200.0,
        expires_at=7200.25,
        renew_at=4050.25,
        retry_at=None,
        options=(),
        granted_options=(),
    )
    assert client.mappings == (client.mapping(mapping),)


@pytest.mark.requirement("PCP-11.2.1-01")
@pytest.mark.requirement("PCP-11.2.1-02")
@pytest.mark.requirement("PCP-11.2.1-03")
@pytest.mark.requirement("PCP-11.2.1-05")
@pytest.mark.requirement("PCP-11.4-04")
@pytest.mark.requirement("PCP-11.4-05")
def test_a_pcp_lease_is_renewed_between_a_half_and_five_eighths_for_ever() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now, lifetime=960)
    sim.run_until(3000.0)
    assert [at for at, _ in sends_of(sim)] == [0.0, 540.0, 1080.0, 1620.0, 2160.0, 2700.0]
    assert times_of(sim, MappingRenewed) == [540.0, 1080.0, 1620.0, 2160.0, 2700.0]
    first, *renewals = [decode(data) for _, data in sends_of(sim)]
    assert isinstance(first, pcp.MapRequest)
    (granted,) = events_of(sim, MappingGranted)
    for renewal in renewals:
        assert isinstance(renewal, pcp.MapRequest)
        assert renewal.nonce == first.nonce
        assert (renewal.suggested_external_address, renewal.suggested_external_port) == (
            granted.external.address,
            granted.external.port,
        )


@pytest.mark.requirement("PCP-11.2.1-06")
@pytest.mark.requirement("PCP-11.2.1-07")
@pytest.mark.requirement("PCP-11.2.1-08")
def test_unanswered_pcp_renewals_are_single_packets_at_shrinking_times_and_then_the_lease_is_lost() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now, lifetime=960)
    sim.run_until(1.0)
    sim.connect(client, gateway, Link(loss=1.0))
    sim.run_until(960.0)
    # the middle of 480..600, 720..780, 840..870, ... until the next would be less than 4 s after the one before
    assert [at for at, _ in sends_of(sim)][1:] == [
        540.0,
        750.0,
        855.0,
        907.5,
        933.75,
        946.875,
        953.4375,
        958.359375,
        960.0,
    ]
    assert [(at, event) for at, event in sim.events if isinstance(event, MappingLost)] == [
        (
            960.0,
            MappingLost(
                gateway=SERVER,
                mapping=mapping,
                protocol=Protocol.TCP,
                internal_port=8080,
                reason=Reason.EXPIRED,
                result_code=None,
                retry_at=960.0,
            ),
        )
    ]
    sim.connect(client, gateway, Link())
    sim.run_until(970.0)
    assert times_of(sim, MappingGranted) == [0.0, 963.0]


@pytest.mark.requirement("NP-3.3-29")
@pytest.mark.requirement("NP-3.3-30")
def test_a_nat_pmp_lease_is_renewed_at_its_half_with_the_assigned_port() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(Protocol.UDP, 5000, sim.now, external_port=80)
    sim.run_until(3600.0)
    requests = [decode(data) for _, data in sends_of(sim)]
    maps = [request for request in requests if isinstance(request, natpmp.MapRequest)]
    (granted,) = events_of(sim, MappingGranted)
    assert [at for at, data in sends_of(sim) if len(data) == 12] == [0.0, 3600.0]
    assert [request.suggested_external_port for request in maps] == [80, granted.external.port]
    assert granted.external.port != 80  # privileged, and the gateway's range starts at 1024
    assert times_of(sim, MappingRenewed) == [3600.0]


@pytest.mark.requirement("NP-9.5-01")
def test_an_unanswered_nat_pmp_renewal_starts_again_at_half_of_what_remains_until_the_lease_is_lost() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(Protocol.UDP, 5000, sim.now, lifetime=1024)
    sim.run_until(1.0)
    sim.connect(client, gateway, Link(loss=1.0))
    sim.run_until(1024.0)
    renewals = [at for at, _ in sends_of(sim) if at > 1.0]
    assert renewals[:9] == [512.0 + at for at in NAT_PMP_SENDS]
    assert renewals[9:18] == [768.0 + at for at in NAT_PMP_SENDS]
    assert renewals[18:26] == [896.0 + at for at in NAT_PMP_SENDS[:8]]
    assert times_of(sim, GatewayUnreachable) == [639.75]
    assert times_of(sim, MappingLost) == [1024.0]


@pytest.mark.requirement("PCP-8.3-12")
@pytest.mark.requirement("PCP-15-08")
def test_an_absurd_lifetime_is_believed_for_a_day() -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, lifetime=2**32 - 1), SERVER, 0.0)
    look = client.mapping(mapping)
    assert look is not None
    assert (look.lifetime, look.renew_at) == (86400.0, 48600.0)


@pytest.mark.requirement("PCP-16.3.2-01")
@pytest.mark.requirement("PCP-14.2-10")
@pytest.mark.requirement("PCP-8-04")
def test_a_moved_endpoint_is_an_event_whether_asked_for_or_not() -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 0.0)
    drain(client)
    moved = answer(request, external_address="203.0.113.99", external_port=50000, lifetime=600)
    assert client.receive_datagram(moved, SERVER, 0.5)
    old, new = (Endpoint(IPv4Address(host), port) for host, port in ((EXTERNAL, 40000), ("203.0.113.99", 50000)))
    assert drain(client)[1] == [
        ExternalAddressChanged(gateway=SERVER, old=IPv4Address(EXTERNAL), new=IPv4Address("203.0.113.99")),
        MappingChanged(
            gateway=SERVER,
            mapping=mapping,
            protocol=Protocol.TCP,
            internal_port=8080,
            old=old,
            new=new,
            lifetime=600.0,
            expires_at=600.5,
        ),
    ]


def test_a_changed_address_that_nat_pmp_announces_moves_every_mapping() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    client.map_port(Protocol.UDP, 8081, sim.now)
    sim.run_until(10.0)
    gateway.set_external_address("203.0.113.77", sim.now)
    sim.run_until(10.0)
    assert [event.new for event in events_of(sim, ExternalAddressChanged)] == [IPv4Address("203.0.113.77")]
    assert {str(event.new.address) for event in events_of(sim, MappingChanged)} == {"203.0.113.77"}
    assert len(events_of(sim, MappingChanged)) == 2


def test_a_changed_address_that_nobody_announced_is_noticed_at_the_next_renewal() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(10.0)
    sim.connect(gateway, client, Link(loss=1.0))
    gateway.set_external_address("203.0.113.77", sim.now)
    sim.run_until(3000.0)
    sim.connect(gateway, client, Link())
    sim.run_until(3600.0)
    assert times_of(sim, ExternalAddressChanged) == [3600.0]
    assert times_of(sim, MappingChanged) == [3600.0]


def test_a_gateway_that_does_not_tell_its_address_holds_a_grant_up_for_two_seconds_only() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.5)
    (question,), events = drain(client)
    assert question == b"\0\0"
    assert [type(event) for event in events] == [VersionNegotiated]
    client.handle_timeout(2.5)
    (granted,) = [event for event in drain(client)[1] if isinstance(event, MappingGranted)]
    assert granted.external == Endpoint(None, 40000)
    client.receive_datagram(natpmp_answer(question), SERVER, 2.75)
    events = drain(client)[1]
    assert [type(event) for event in events] == [ExternalAddressLearned, MappingChanged]


@pytest.mark.requirement("NP-3.2-05")
def test_a_gateway_without_an_address_grants_all_the_same_and_the_address_is_none() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.5)
    drain(client)
    failure = natpmp.ExternalAddressResponse(natpmp.ResultCode.NETWORK_FAILURE, 1000, IPv4Address("1.2.3.4"))
    client.receive_datagram(failure.encode(), SERVER, 0.75)
    (granted,) = drain(client)[1]
    assert isinstance(granted, MappingGranted)
    assert granted.external == Endpoint(None, 40000)
    assert client.external_address is None


def test_a_gateway_that_never_tells_its_address_is_left_alone_after_four_questions() -> None:
    client, gateway = make_client((0,)), make_gateway((0,), external=None)
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(0.0)
    assert [event.reason for event in events_of(sim, MappingRefused)] == [Reason.NETWORK_FAILURE]
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
    questions = 0
    while (deadline := client.next_timeout()) is not None and deadline < 200.0:
        client.handle_timeout(deadline)
        questions += len(drain(client)[0])
    assert questions == 4


# --- versions


@pytest.mark.requirement("NP-1.1-06")
@pytest.mark.requirement("PCP-8.3-04")
@pytest.mark.requirement("PCP-9-05")
@pytest.mark.parametrize("error", ["00000001000004d2", "00800001000004d2", "00810001000004d2", "00800001", "00000001"])
def test_a_version_error_of_any_shape_leads_to_nat_pmp_at_once(error: str) -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    assert client.receive_datagram(bytes.fromhex(error), SERVER, 0.01)
    datagrams, events = drain(client)
    assert datagrams == [natpmp.MapRequest(Protocol.TCP, 8080).encode()]
    assert events == [VersionNegotiated(gateway=SERVER, version=0)]
    assert client.version == 0


@pytest.mark.requirement("NP-1.1-07")
@pytest.mark.requirement("NP-1.1-08")
def test_that_a_gateway_speaks_nat_pmp_only_is_soon_forgotten() -> None:
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(60.0)
    client.map_port(Protocol.UDP, 8081, sim.now)
    sim.run_until(3600.0)
    sent = [(at, data[0]) for at, data in sends_of(sim)]
    assert [version for at, version in sent if at == 0.0] == [2, 0, 0]
    assert {version for at, version in sent if at == 60.0} == {0}
    assert [version for at, version in sent if at == 3600.0][:2] == [2, 0]
    assert len(events_of(sim, VersionNegotiated)) == 1


def test_a_gateway_silent_to_pcp_is_asked_in_nat_pmp_after_a_second_and_only_then_mapped() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    assert client.next_timeout() == 1.0
    client.handle_timeout(1.0)
    (copy, question), _ = drain(client)
    assert (copy[0], question) == (2, b"\0\0")
    client.receive_datagram(natpmp_answer(question), SERVER, 1.25)
    (request,), events = drain(client)
    assert decode(request) == natpmp.MapRequest(Protocol.TCP, 8080)
    assert events == [
        ExternalAddressLearned(gateway=SERVER, address=IPv4Address(EXTERNAL)),
        VersionNegotiated(gateway=SERVER, version=0),
    ]
    client.receive_datagram(natpmp_answer(request), SERVER, 1.5)
    datagrams, events = drain(client)
    assert datagrams == []  # the address is known
    assert [type(event) for event in events] == [MappingGranted]


def test_pcp_is_preferred_where_both_answer_also_when_it_answers_late() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    (in_pcp,), _ = drain(client)
    client.handle_timeout(1.0)
    (_, question), _ = drain(client)
    client.receive_datagram(natpmp_answer(question), SERVER, 1.25)
    (in_natpmp,), _ = drain(client)
    client.receive_datagram(answer(in_pcp), SERVER, 1.5)
    datagrams, events = drain(client)
    assert datagrams == []
    assert [type(event) for event in events] == [VersionNegotiated, MappingGranted]
    assert client.version == 2
    assert client.receive_datagram(natpmp_answer(in_natpmp), SERVER, 1.75)
    assert drain(client) == ([], [])
    assert client.stats.rejected == {Rejected.OLD: 1}


def test_the_question_for_the_other_version_waits_for_its_turn() -> None:
    client = make_client((2, 0))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0, lifetime=1000)
    drain(client)
    client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
    client.receive_datagram(natpmp_answer(b"\0\0"), SERVER, 0.0)
    client.map_port(Protocol.UDP, 8081, 400.0)  # in PCP again, after so long
    client.unmap(mapping, 400.5)  # in NAT-PMP, as it was granted; nobody answers
    drain(client)
    sent = []
    while (deadline := client.next_timeout()) is not None and deadline <= 403.0:
        client.handle_timeout(deadline)
        sent += [(deadline, data) for data in drain(client)[0]]
    assert [at for at, data in sent if data == b"\0\0"] == [403.0]  # the delete was given up at 402.25


def test_pcp_that_answers_before_the_other_question_does_ends_it() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.handle_timeout(1.0)
    drain(client)
    client.receive_datagram(answer(request), SERVER, 1.0)
    drain(client)
    client.handle_timeout(100.0)
    assert drain(client)[0] == []


@pytest.mark.requirement("NP-1.1-02")
def test_nat_pmp_first_if_configured_so_and_pcp_when_the_gateway_offers_it() -> None:
    client, gateway = make_client((0, 2)), make_gateway((2,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(1.0)
    assert [data[0] for _, data in sends_of(sim)] == [0, 2]
    assert len(events_of(sim, MappingGranted)) == 1


def test_a_gateway_silent_to_nat_pmp_is_asked_in_pcp_where_nat_pmp_is_preferred() -> None:
    client = make_client((0, 2))
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    client.handle_timeout(0.25)
    drain(client)
    client.handle_timeout(0.75)
    drain(client)
    client.handle_timeout(1.0)
    (_, probe), _ = drain(client)
    assert decode(probe) == pcp.AnnounceRequest(LOCAL)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1000).encode(), SERVER, 1.25)
    (request,), events = drain(client)
    assert isinstance(decode(request), pcp.MapRequest)
    assert events == [VersionNegotiated(gateway=SERVER, version=2)]


@pytest.mark.requirement("PCP-9-06")
@pytest.mark.requirement("PCP-9-09")
@pytest.mark.parametrize(
    ("error", "retry_at"),
    [
        ("00800001000004d2", 1800.0),  # NAT-PMP says no for how long
        ("0281000100000708000004d2000000000000000000000000", 1800.0),
        ("028100010000003c000004d2000000000000000000000000", 60.0),
        ("0281000100000000000004d2000000000000000000000000", 30.0),  # some gateways say 0
        ("02810001", 1800.0),
        ("0381000100007080000004d2", 1800.0),  # another version, for 8 hours
    ],
)
def test_a_version_error_without_a_version_in_common_is_a_refusal_for_a_while(error: str, retry_at: float) -> None:
    client = make_client((2,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    assert client.receive_datagram(bytes.fromhex(error), SERVER, 0.0)
    (refused,) = drain(client)[1]
    assert isinstance(refused, MappingRefused)
    assert (refused.reason, refused.result_code, refused.retry_at) == (Reason.UNSUPPORTED_VERSION, 1, retry_at)


def test_a_version_error_with_the_whole_request_in_it_counts_too() -> None:
    client = make_client((2,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=1, lifetime=40), SERVER, 0.0)
    (refused,) = drain(client)[1]
    assert isinstance(refused, MappingRefused)
    assert refused.retry_at == 40.0


def test_two_versions_that_each_refer_to_the_other_do_not_make_a_loop() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 0.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("02820001"), SERVER, 0.0)
    datagrams, events = drain(client)
    assert datagrams == []
    assert [type(event) for event in events] == [MappingRefused]


def test_a_version_error_is_not_believed_while_a_lease_with_a_nonce_is_in_force() -> None:
    client = make_client()
    held(client)
    client.map_port(Protocol.UDP, 8081, 1.0)
    drain(client)
    assert client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 1.0)
    assert drain(client) == ([], [])
    assert client.stats.rejected == {Rejected.VERSION_ERROR: 1}
    assert client.version == 2


def test_each_request_that_was_under_way_draws_its_own_version_error_and_one_is_enough() -> None:
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.01)
    for port in (1, 2, 3):
        client.map_port(Protocol.TCP, port, sim.now)
    sim.run_until(2.0)
    assert len(events_of(sim, MappingGranted)) == 3
    assert events_of(sim, MappingRefused) == []


def test_a_version_error_that_comes_while_the_other_version_is_asked_for_loses_no_request() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    client.map_port(Protocol.TCP, 8081, 0.0)
    client.handle_timeout(1.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 1.125)  # the probe is under way
    (request,), _ = drain(client)
    assert decode(request) == natpmp.MapRequest(Protocol.TCP, 8080)
    assert client.next_timeout() is not None


def test_one_lost_datagram_does_not_make_a_gateway_speak_nat_pmp_only() -> None:
    held_in_time = 0
    for seed in range(60):
        client, gateway = make_client(rng=random.Random(seed)), make_gateway()
        sim = Simulation(client, gateway, latency=0.01, loss=0.1, seed=seed)
        client.map_port(Protocol.TCP, 8080, sim.now)
        client.map_port(132, 8081, sim.now)  # the gateway maps no SCTP, and says so; NAT-PMP could not even ask
        sim.run_until(60.0)
        held_in_time += len(events_of(sim, MappingGranted))
        assert {event.reason for event in events_of(sim, MappingFailed)} <= {Reason.UNSUPPORTED_PROTOCOL}
    assert held_in_time == 60


def test_what_nat_pmp_was_refused_is_asked_in_pcp_once_that_answers_after_all() -> None:
    """The answers that said that it was mapped in PCP were lost; NAT-PMP may not touch it at many a gateway."""
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    sim.connect(gateway, client, Link(loss=1.0))
    client.map_port(Protocol.TCP, 8080, sim.now)
    client.map_port(132, 8081, sim.now)
    sim.run_until(1.0)
    assert sim.inject(client, natpmp_answer(b"\0\0", 1), SERVER)
    sim.run_until(1.0)
    refused = natpmp_answer(sends_of(sim)[-1][1], 1, result_code=2, external_port=0, lifetime=0)
    assert sim.inject(client, refused, SERVER)
    sim.run_until(2.0)
    assert [event.retry_at for event in events_of(sim, MappingRefused)] == [1801.0]
    sim.connect(gateway, client, Link())
    sim.run_until(10.0)  # the other mapping goes on asking in PCP
    assert [event.version for event in events_of(sim, VersionNegotiated)] == [0, 2]
    assert times_of(sim, MappingGranted) == times_of(sim, VersionNegotiated)[1:]


def test_what_needs_pcp_waits_for_it_at_a_gateway_that_was_only_silent_and_fails_in_the_end() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    client.map_port(132, 8081, sim.now)
    gateway_in_natpmp = natpmp_answer(b"\0\0")
    sim.connect(client, gateway, Link(loss=1.0))
    sim.run_until(1.25)
    assert sim.inject(client, gateway_in_natpmp, SERVER)
    sim.run_until(100.0)
    assert {data[0] for at, data in sends_of(sim) if at > 1.25} == {2}
    (failed,) = [(at, event.reason) for at, event in sim.events if isinstance(event, MappingFailed)]
    assert failed == (45.0, Reason.NEEDS_PCP)


def test_a_version_error_that_answers_nothing_is_not_believed() -> None:
    client = make_client()
    assert client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 1.0)
    assert client.version is None
    assert client.stats.rejected == {Rejected.VERSION_ERROR: 1}


@pytest.mark.parametrize(
    ("protocol", "port", "options"),
    [(132, 5000, ()), (Protocol.TCP, 0, ()), (Protocol.TCP, 8080, (pcp.ThirdParty("192.168.1.20"),))],
)
def test_what_nat_pmp_cannot_do_fails_there_and_is_never_weakened(
    protocol: int, port: int, options: tuple[pcp.Option, ...]
) -> None:
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway)
    mapping = client.map_port(protocol, port, sim.now, options=options)
    sim.run_until(1.0)
    assert events_of(sim, MappingFailed) == [
        MappingFailed(
            gateway=SERVER,
            mapping=mapping,
            protocol=protocol,
            internal_port=port,
            reason=Reason.NEEDS_PCP,
            result_code=None,
        )
    ]
    assert client.mapping(mapping) is None
    assert [data[0] for _, data in sends_of(sim)] == [2]


def test_an_option_that_a_server_may_ignore_may_be_left_out_in_nat_pmp() -> None:
    client, gateway = make_client(), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now, options=(pcp.Description("web"),))
    sim.run_until(1.0)
    assert len(events_of(sim, MappingGranted)) == 1


def test_a_pcp_gateway_that_was_replaced_by_a_silent_one_is_asked_in_nat_pmp_once_no_lease_is_left() -> None:
    client = make_client()
    mapping = held(client, lifetime=120)
    client.unmap(mapping, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 0.0)
    client.map_port(Protocol.UDP, 8081, 1.0)
    drain(client)
    sent = []
    while (deadline := client.next_timeout()) is not None and deadline <= 46.0:
        client.handle_timeout(deadline)
        sent += [(deadline, data[0]) for data in drain(client)[0]]
    assert sent == [(4.0, 2), (10.0, 2), (22.0, 2), (46.0, 2), (46.0, 0)]


def test_a_pcp_gateway_with_a_lease_in_force_that_falls_silent_is_said_to_be_unreachable() -> None:
    client = make_client()
    held(client)
    client.map_port(Protocol.UDP, 8081, 1.0)
    events = []
    while (deadline := client.next_timeout()) is not None and deadline <= 46.0:
        client.handle_timeout(deadline)
        events += drain(client)[1]
    assert [type(event) for event in events] == [GatewayUnreachable, MappingRefused]
    assert client.version == 2


# --- restarts


@pytest.mark.requirement("NP-3.2.1-07")
@pytest.mark.requirement("NP-3.7-05")
@pytest.mark.requirement("NP-3.7-06")
@pytest.mark.requirement("NP-3.7-07")
@pytest.mark.requirement("NP-3.6-04")
def test_after_a_nat_pmp_gateway_lost_its_state_all_mappings_come_back_one_by_one() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.125)
    ports = [5001, 5002, 5003]
    for port in ports:
        client.map_port(Protocol.UDP, port, sim.now)
    sim.run_until(1000.0)
    gateway.reboot(sim.now)
    assert list(gateway.mappings) == []
    sim.run_until(1010.0)
    assert [(at, event) for at, event in sim.events if isinstance(event, GatewayRestarted)] == [
        (1000.125, GatewayRestarted(gateway=SERVER, recovery_at=1002.625))
    ]
    again = [at for at, _ in sends_of(sim) if at > 1000.0]
    assert again == [1002.625, 1002.875, 1003.125]  # 2.5 s of delay, then each after the answer to the one before
    assert [mapping.internal.port for mapping in gateway.mappings] == ports
    assert len([at for at in times_of(sim, MappingRenewed) if at > 1000.0]) == 3
    assert events_of(sim, MappingLost) == []


@pytest.mark.requirement("PCP-14.1.3-11")
@pytest.mark.requirement("PCP-8.5-11")
@pytest.mark.requirement("PCP-16.3.1-01")
def test_after_a_pcp_gateway_lost_its_state_the_mappings_come_back_within_five_seconds() -> None:
    client, gateway = make_client(rng=random.Random(5)), make_gateway()
    sim = Simulation(client, gateway)
    for port in (5001, 5002):
        client.map_port(Protocol.UDP, port, sim.now)
    sim.run_until(100.0)
    gateway.reboot(sim.now)
    sim.run_until(105.0)
    (restarted,) = events_of(sim, GatewayRestarted)
    assert 100.0 <= restarted.recovery_at <= 105.0
    again = [(at, decode(data)) for at, data in sends_of(sim) if at > 1.0]
    assert [at for at, _ in again] == [restarted.recovery_at] * 2
    assert len(gateway.mappings) == 2
    sim.run_until(300.0)
    assert len(events_of(sim, GatewayRestarted)) == 1  # ten copies of the announcement, one recovery


@pytest.mark.requirement("NP-3.7-04")
def test_a_restart_that_nobody_announced_is_noticed_at_the_next_renewal() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.UDP, 5001, sim.now)
    sim.run_until(3000.0)
    sim.connect(gateway, client, Link(loss=1.0))
    gateway.reboot(sim.now)
    sim.run_until(3500.0)
    sim.connect(gateway, client, Link())
    sim.run_until(3610.0)
    assert times_of(sim, GatewayRestarted) == [3600.0]
    assert len(gateway.mappings) == 1


def test_however_many_restarts_are_announced_recoveries_keep_their_distance() -> None:
    client = make_client()
    held(client)
    sent = []
    for second in range(1, 100):
        announcement = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 5000 * (second % 2)).encode()
        assert client.receive_datagram(announcement, SERVER, float(second))
        client.handle_timeout(float(second))
        sent += [(second, data) for data in drain(client)[0]]
        for _, data in sent[-1:]:
            client.receive_datagram(answer(data, epoch=5000 * (second % 2)), SERVER, float(second))
    assert [second for second, _ in sent] == [4, 34, 64, 94]


def test_a_mapping_granted_after_the_restart_was_seen_is_not_asked_for_twice() -> None:
    client = make_client()
    held(client)
    client.map_port(Protocol.UDP, 8081, 10.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, epoch=0, external_port=40001), SERVER, 10.0)
    drain(client)
    client.handle_timeout(12.5)
    (again,), _ = drain(client)
    recreated = decode(again)
    assert isinstance(recreated, pcp.MapRequest)
    assert recreated.internal_port == 8080


def test_a_renewal_under_way_when_the_gateway_restarts_is_sent_anew() -> None:
    client = make_client()
    held(client)
    client.handle_timeout(4050.0)
    (renewal,), _ = drain(client)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), SERVER, 4050.0)
    drain(client)
    client.handle_timeout(4052.5)
    assert drain(client)[0] == [renewal]
    client.receive_datagram(answer(renewal, epoch=2), SERVER, 4052.5)
    assert [type(event) for event in drain(client)[1]] == [MappingRenewed]


def test_a_restarted_gateway_may_allow_what_it_refused_before() -> None:
    client, gateway = make_client((2,)), make_gateway((2,), external=None)
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(10.0)
    assert [event.retry_at for event in events_of(sim, MappingRefused)] == [30.0]
    gateway.set_external_address(EXTERNAL, sim.now)
    sim.run_until(13.0)
    assert times_of(sim, MappingGranted) == [12.5]


def test_a_recovery_that_the_gateway_refuses_loses_the_mapping() -> None:
    client = make_client()
    held(client)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), SERVER, 10.0)
    client.handle_timeout(12.5)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=2, lifetime=600, epoch=2), SERVER, 12.5)
    (lost,) = drain(client)[1]
    assert isinstance(lost, MappingLost)
    assert (lost.reason, lost.result_code, lost.retry_at) == (Reason.NOT_AUTHORIZED, 2, 612.5)


@pytest.mark.requirement("NP-3.2.1-06")
@pytest.mark.requirement("PCP-14.1.3-10")
def test_only_the_gateway_is_believed_to_have_restarted() -> None:
    client = make_client()
    held(client)
    for announcement in (
        pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(),
        natpmp_answer(b"\0\0", epoch=0),
    ):
        assert not client.receive_datagram(announcement, ("192.168.1.66", 5351), 10.0)
    assert not client.receive_datagram(
        pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), ("192.168.1.1", 5350), 10.0
    )
    assert drain(client) == ([], [])


@pytest.mark.requirement("PCP-14.1.3-12")
def test_an_announcement_with_a_plausible_epoch_changes_nothing() -> None:
    client = make_client()
    held(client)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1010).encode(), SERVER, 10.0)
    assert drain(client) == ([], [])


def test_a_gateway_that_announces_pcp_is_asked_in_pcp_again() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
    client.receive_datagram(natpmp_answer(b"\0\0"), SERVER, 0.0)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1000).encode(), SERVER, 1.0)
    drain(client)
    client.map_port(Protocol.UDP, 8081, 2.0)
    (request,), _ = drain(client)
    assert isinstance(decode(request), pcp.MapRequest)


# --- refusals


@pytest.mark.requirement("PCP-8.3-13")
@pytest.mark.requirement("PCP-11.4-06")
@pytest.mark.parametrize(
    ("code", "lifetime", "reason", "hold"),
    [
        (2, 1800, Reason.NOT_AUTHORIZED, 1800.0),
        (2, 0, Reason.NOT_AUTHORIZED, 30.0),
        (2, 86400, Reason.NOT_AUTHORIZED, 1800.0),
        (3, 1800, Reason.MALFORMED, 1800.0),
        (4, 1800, Reason.UNSUPPORTED_OPCODE, 1800.0),
        (6, 1800, Reason.MALFORMED, 1800.0),
        (7, 30, Reason.NETWORK_FAILURE, 30.0),
        (8, 30, Reason.NO_RESOURCES, 30.0),
        (10, 30, Reason.QUOTA, 30.0),
        (11, 340, Reason.CANNOT_PROVIDE_EXTERNAL, 340.0),
        (12, 1800, Reason.ADDRESS_MISMATCH, 1800.0),
        (13, 1800, Reason.NO_RESOURCES, 1800.0),
        (99, 60, Reason.OTHER, 60.0),
    ],
)
def test_a_pcp_refusal_is_repeated_after_its_lifetime_within_bounds(
    code: int, lifetime: int, reason: Reason, hold: float
) -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=code, lifetime=lifetime), SERVER, 1.0)
    refused = drain(client)[1][-1]
    assert refused == MappingRefused(
        gateway=SERVER,
        mapping=mapping,
        protocol=Protocol.TCP,
        internal_port=8080,
        reason=reason,
        result_code=code,
        retry_at=1.0 + hold,
    )
    look = client.mapping(mapping)
    assert look is not None
    assert (look.state, look.retry_at, look.external) == (MappingState.REFUSED, 1.0 + hold, None)
    client.handle_timeout(1.0 + hold - 0.125)
    assert drain(client)[0] == []
    client.handle_timeout(1.0 + hold)
    assert drain(client)[0] == [request]


@pytest.mark.requirement("NP-3.5-13")
@pytest.mark.requirement("NP-3.5-14")
@pytest.mark.parametrize(
    ("reply", "code", "reason", "hold"),
    [
        ("00820002000003e81f90000000000000", 2, Reason.NOT_AUTHORIZED, 1800.0),
        ("00820003000003e81f90000000000000", 3, Reason.NETWORK_FAILURE, 30.0),
        ("00820004000003e81f900bb800000e10", 4, Reason.NO_RESOURCES, 30.0),  # with live-looking fields
        ("00820002000003e80000000000000000", 2, Reason.NOT_AUTHORIZED, 1800.0),  # without the port
        ("00820002000003e8", 2, Reason.NOT_AUTHORIZED, 1800.0),  # short
        ("008200051f90000000001c20", 5, Reason.UNSUPPORTED_OPCODE, 1800.0),
        ("0082004d000003e81f90000000000000", 77, Reason.OTHER, 1800.0),
    ],
)
def test_a_nat_pmp_refusal_of_any_shape_is_a_refusal(reply: str, code: int, reason: Reason, hold: float) -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    drain(client)
    assert client.receive_datagram(bytes.fromhex(reply), SERVER, 1.0)
    refused = drain(client)[1][-1]
    assert isinstance(refused, MappingRefused)
    assert (refused.reason, refused.result_code, refused.retry_at) == (reason, code, 1.0 + hold)
    client.handle_timeout(10.0)
    assert drain(client)[0] == []


@pytest.mark.parametrize(("code", "reason"), [(5, Reason.UNSUPPORTED_OPTION), (9, Reason.UNSUPPORTED_PROTOCOL)])
def test_a_refusal_that_will_never_change_is_a_failure(code: int, reason: Reason) -> None:
    client = make_client((2,))
    mapping = client.map_port(132, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=code, lifetime=1800), SERVER, 1.0)
    failed = drain(client)[1][-1]
    assert isinstance(failed, MappingFailed)
    assert (failed.reason, failed.result_code) == (reason, code)
    assert client.mapping(mapping) is None
    assert client.next_timeout() is None


@pytest.mark.parametrize("changes", [{"lifetime": 0}, {"external_port": 0}])
def test_a_success_that_grants_nothing_is_a_refusal(changes: dict[str, object]) -> None:
    client = make_client((2,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, **changes), SERVER, 1.0)
    refused = drain(client)[1][-1]
    assert isinstance(refused, MappingRefused)
    assert (refused.reason, refused.retry_at) == (Reason.UNUSABLE_GRANT, 31.0)


@pytest.mark.requirement("PCP-11.4-02")
def test_no_resources_holds_new_mappings_back_but_no_renewal() -> None:
    client = make_client((2,))
    held(client, lifetime=120)
    refused = client.map_port(Protocol.UDP, 8081, 60.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=8, lifetime=30, epoch=1060), SERVER, 60.0)
    client.map_port(Protocol.UDP, 8082, 61.0)
    assert drain(client)[0] == []
    client.handle_timeout(67.5)
    (renewal,), _ = drain(client)
    asked = decode(renewal)
    assert isinstance(asked, pcp.MapRequest)
    assert asked.internal_port == 8080
    client.receive_datagram(answer(renewal, epoch=1067), SERVER, 67.5)
    client.handle_timeout(90.0)
    ports = [message.internal_port for data in drain(client)[0] if isinstance(message := decode(data), pcp.MapRequest)]
    assert sorted(ports) == [8081, 8082]
    assert client.mapping(refused) is not None


@pytest.mark.requirement("PCP-11.4-03")
def test_no_resources_in_answer_to_a_delete_holds_everything_back() -> None:
    client = make_client((2,))
    mapping = held(client, lifetime=120)
    client.map_port(Protocol.UDP, 8083, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001, lifetime=120), SERVER, 0.0)
    client.unmap(mapping, 60.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, result_code=8, lifetime=30, epoch=1060), SERVER, 60.0)
    (released,) = drain(client)[1]
    assert isinstance(released, MappingReleased)
    assert not released.confirmed
    client.map_port(Protocol.UDP, 8082, 61.0)
    client.handle_timeout(89.0)
    assert drain(client)[0] == []
    client.handle_timeout(90.0)
    assert len(drain(client)[0]) == 2


def test_two_holds_end_each_in_its_time() -> None:
    client = make_client((2,))
    mapping = held(client)
    client.map_port(Protocol.UDP, 8081, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=8, lifetime=100), SERVER, 0.0)
    client.unmap(mapping, 1.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, result_code=8, lifetime=40, epoch=1001), SERVER, 1.0)
    client.map_port(Protocol.UDP, 8082, 2.0)
    client.handle_timeout(41.0)
    assert drain(client)[0] == []
    client.handle_timeout(100.0)
    assert len(drain(client)[0]) == 2


def test_a_refused_renewal_leaves_the_lease_alone_and_waits_for_the_errors_lifetime() -> None:
    client = make_client((2,))
    mapping = held(client, lifetime=1000)
    client.handle_timeout(562.5)
    (renewal,), _ = drain(client)
    client.receive_datagram(answer(renewal, result_code=7, lifetime=300, epoch=1562), SERVER, 562.5)
    assert drain(client)[1] == []
    look = client.mapping(mapping)
    assert look is not None
    # 3/4 would be within the 300 s; 7/8 is not
    assert (look.state, look.renew_at) == (MappingState.HELD, 890.625)


def test_a_refusal_that_comes_after_the_wait_for_it_leaves_the_lease_alone_too() -> None:
    client = make_client((2,))
    mapping = held(client, lifetime=1000)
    client.handle_timeout(562.5)
    (renewal,), _ = drain(client)
    client.handle_timeout(565.5)
    client.receive_datagram(answer(renewal, result_code=7, lifetime=30, epoch=1567), SERVER, 567.0)
    assert drain(client) == ([], [])
    look = client.mapping(mapping)
    assert look is not None
    assert (look.state, look.renew_at) == (MappingState.HELD, 781.25)


def test_pcp_renewals_of_a_tiny_lease_keep_four_seconds_apart() -> None:
    client, gateway = make_client((2,)), make_gateway((2,), min_lifetime=1)
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now, lifetime=6)
    sim.run_until(60.0)
    renewed = times_of(sim, MappingRenewed)
    assert len(renewed) > 3
    assert all(b - a >= 4.0 for a, b in itertools.pairwise(renewed))


def test_a_lease_that_ends_within_the_errors_lifetime_is_asked_for_again_only_after_it() -> None:
    client = make_client((2,))
    held(client, lifetime=1000)
    client.handle_timeout(562.5)
    (renewal,), _ = drain(client)
    client.receive_datagram(answer(renewal, result_code=2, lifetime=1800, epoch=1562), SERVER, 562.5)
    client.handle_timeout(1000.0)
    datagrams, (lost,) = drain(client)
    assert datagrams == []
    assert isinstance(lost, MappingLost)
    assert (lost.reason, lost.retry_at) == (Reason.EXPIRED, 2362.5)


@pytest.mark.requirement("PCP-8.3-09")
def test_a_refusal_that_nobody_asked_for_loses_the_mapping() -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 1.0)
    drain(client)
    client.receive_datagram(answer(request, result_code=2, lifetime=100, epoch=1049), SERVER, 50.0)
    assert drain(client)[1] == [
        MappingLost(
            gateway=SERVER,
            mapping=mapping,
            protocol=Protocol.TCP,
            internal_port=8080,
            reason=Reason.NOT_AUTHORIZED,
            result_code=2,
            retry_at=150.0,
        )
    ]
    # a second copy says nothing new, and a change of mind is welcome
    client.receive_datagram(answer(request, result_code=2, lifetime=100, epoch=1049), SERVER, 50.0)
    assert drain(client)[1] == []
    client.receive_datagram(answer(request, epoch=1060), SERVER, 60.0)
    assert [type(event) for event in drain(client)[1]] == [MappingGranted]


# --- release


@pytest.mark.requirement("PCP-15.1-05")
@pytest.mark.requirement("PCP-11.1-02")
def test_a_pcp_mapping_is_deleted_with_its_nonce_and_zeros_of_its_family() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(10.0)
    assert client.unmap(mapping, sim.now)
    sim.run_until(10.0)
    created, delete = (decode(data) for _, data in sends_of(sim))
    assert isinstance(created, pcp.MapRequest)
    assert delete == pcp.MapRequest(LOCAL, created.nonce, Protocol.TCP, 8080, 0, "0.0.0.0", 0)
    assert events_of(sim, MappingReleased) == [
        MappingReleased(gateway=SERVER, mapping=mapping, protocol=Protocol.TCP, internal_port=8080, confirmed=True)
    ]
    assert gateway.mappings == ()
    assert client.mapping(mapping) is None
    assert not client.unmap(mapping, sim.now)


def test_options_that_make_no_sense_in_a_delete_are_left_out_of_it() -> None:
    client = make_client((2,))
    sorts = (pcp.ThirdParty("192.168.1.20"), pcp.PreferFailure(), pcp.Filter(120, 0, "198.51.100.0"))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0, external_port=40000, options=sorts)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 0.0)
    client.unmap(mapping, 1.0)
    delete = decode(drain(client)[0][0])
    assert isinstance(delete, pcp.MapRequest)
    assert delete.options == sorts[:1]


@pytest.mark.requirement("NP-3.4-04")
@pytest.mark.requirement("NP-3.4-05")
@pytest.mark.requirement("NP-3.1-13")
@pytest.mark.requirement("NP-3.1-14")
def test_a_nat_pmp_delete_that_nobody_confirms_is_given_up_after_a_few_tries() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(Protocol.UDP, 5000, sim.now)
    sim.run_until(10.0)
    sim.connect(client, gateway, Link(loss=1.0))
    client.unmap(mapping, sim.now)
    sim.run_until(20.0)
    deletes = [(at, decode(data)) for at, data in sends_of(sim) if at >= 10.0]
    request = natpmp.MapRequest(Protocol.UDP, 5000, 0, 0)
    assert deletes == [(10.0, request), (10.25, request), (10.75, request)]
    assert [(at, event.confirmed) for at, event in sim.events if isinstance(event, MappingReleased)] == [(11.75, False)]


@pytest.mark.requirement("NP-3.1-15")
def test_a_wish_that_was_never_answered_is_withdrawn_with_one_delete() -> None:
    client = make_client()
    sim = Simulation(client)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(0.5)
    client.unmap(mapping, sim.now)
    sim.run_until(20.0)
    assert [at for at, _ in sends_of(sim)] == [0.0, 0.5]
    assert times_of(sim, MappingReleased) == [3.5]


def test_nobody_asks_for_the_version_once_nothing_is_wanted() -> None:
    client = make_client()
    sim = Simulation(client)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(1.5)
    client.unmap(mapping, sim.now)
    sim.run_until(200.0)
    assert [(at, data[0]) for at, data in sends_of(sim)] == [(0.0, 2), (1.0, 2), (1.0, 0), (1.25, 0), (1.5, 2)]
    assert [type(event) for _, event in sim.events] == [MappingReleased]


def test_a_refused_mapping_is_released_without_a_word() -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=2, lifetime=100), SERVER, 1.0)
    drain(client)
    client.unmap(mapping, 2.0)
    datagrams, (released,) = drain(client)
    assert datagrams == []
    assert isinstance(released, MappingReleased)
    assert released.confirmed
    assert client.next_timeout() is None


@pytest.mark.requirement("PCP-15-01")
def test_a_late_grant_does_not_pass_for_the_answer_to_a_delete() -> None:
    client = make_client((2,))
    mapping = client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.unmap(mapping, 1.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 1.5)
    assert [type(event) for event in drain(client)[1]] == [VersionNegotiated]
    # a server may keep it as long as traffic would, and says so with a lifetime but the port that was sent
    client.receive_datagram(answer(delete, lifetime=100), SERVER, 2.0)
    assert [type(event) for event in drain(client)[1]] == [MappingReleased]


def test_a_refusal_of_an_earlier_request_does_not_pass_for_the_answer_to_a_delete_that_still_waits() -> None:
    client = make_client((2,))
    first = held(client)
    second = client.map_port(Protocol.UDP, 8081, 0.0, lifetime=1000)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001), SERVER, 0.0)
    client.handle_timeout(562.5)
    (renewal,), _ = drain(client)
    client.unmap(first, 563.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, result_code=8, lifetime=30, epoch=1563), SERVER, 563.0)
    client.unmap(second, 563.5)  # held back
    client.receive_datagram(answer(renewal, result_code=2, lifetime=30, epoch=1564), SERVER, 564.0)
    assert [type(event) for event in drain(client)[1]] == [MappingReleased]  # of the first alone
    client.handle_timeout(593.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, epoch=1594), SERVER, 593.5)
    assert client.mapping(second) is None


def test_a_late_copy_of_the_answer_to_a_delete_does_not_refuse_the_next_mapping_of_the_port() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.15)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(100.0)
    client.unmap(mapping, sim.now)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(110.0)
    assert events_of(sim, MappingRefused) == []
    assert len(events_of(sim, MappingGranted)) == 2


def test_closing_does_not_wait_for_what_a_gateway_holds_back() -> None:
    client = make_client((2,))
    first = held(client)
    client.map_port(Protocol.UDP, 8081, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001), SERVER, 0.0)
    client.unmap(first, 1.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, result_code=8, lifetime=1800, epoch=1001), SERVER, 1.0)
    client.close(2.0)
    assert len(drain(client)[0]) == 1


def test_a_port_that_is_wanted_again_waits_until_its_delete_is_answered() -> None:
    client = make_client((2,))
    mapping = held(client)
    client.unmap(mapping, 1.0)
    again = client.map_port(Protocol.TCP, 8080, 1.0)
    (delete,), _ = drain(client)
    client.receive_datagram(answer(delete, epoch=1001), SERVER, 1.25)
    (request,), _ = drain(client)
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    assert asked.lifetime == 7200
    first, second = decode(delete), asked
    assert isinstance(first, pcp.MapRequest)
    assert first.nonce != second.nonce
    assert client.mapping(again) is not None


def test_until_ends_a_mapping_by_itself() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    mapping = client.map_port(Protocol.TCP, 8080, sim.now, until=500.0)
    sim.run_until(1000.0)
    created = decode(sends_of(sim)[0][1])
    assert isinstance(created, pcp.MapRequest)
    assert created.lifetime == 500
    assert [(at, event) for at, event in sim.events if isinstance(event, MappingFailed)] == [
        (
            500.0,
            MappingFailed(
                gateway=SERVER,
                mapping=mapping,
                protocol=Protocol.TCP,
                internal_port=8080,
                reason=Reason.DEADLINE,
                result_code=None,
            ),
        )
    ]
    assert events_of(sim, MappingReleased) == []
    assert gateway.mappings == ()


def test_close_releases_everything_and_says_so_last() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway)
    for port in (1, 2, 3):
        client.map_port(Protocol.TCP, port, sim.now)
    sim.run_until(10.0)
    client.unmap(client.mappings[0].id, sim.now)
    client.close(sim.now)
    sim.run_until(10.0)
    assert len(events_of(sim, MappingReleased)) == 3
    assert sim.events[-1] == (10.0, Closed(gateway=SERVER))
    assert gateway.mappings == ()
    assert client.next_timeout() is None
    assert not client.receive_datagram(b"\0\x80\0\0", SERVER, sim.now)


def test_closing_ends_a_question_that_is_still_open_and_deletes_at_once() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)  # and now it asks for the address
    client.close(0.0)
    question, delete = drain(client)[0]
    assert (question, decode(delete)) == (b"\0\0", natpmp.MapRequest(Protocol.TCP, 8080, 0, 0))
    client.receive_datagram(natpmp_answer(delete), SERVER, 0.5)
    assert drain(client)[1][-1] == Closed(gateway=SERVER)


def test_closing_ends_a_question_about_a_mapping_that_is_gone() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request, lifetime=1), SERVER, 0.0)
    client.handle_timeout(1.0)
    client.close(1.0)
    assert drain(client)[1][-1] == Closed(gateway=SERVER)
    assert client.next_timeout() is None


# --- one at a time, or a window


@pytest.mark.requirement("NP-3.1-01")
@pytest.mark.requirement("NP-3.1-02")
@pytest.mark.requirement("NP-3.1-03")
@pytest.mark.requirement("NP-3.1-04")
def test_nat_pmp_requests_go_out_one_after_the_other() -> None:
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.0625)
    for port in (1, 2, 3):
        client.map_port(Protocol.TCP, port, sim.now)
    sim.run_until(5.0)
    assert [(at, len(data)) for at, data in sends_of(sim)] == [(0.0, 12), (0.125, 2), (0.25, 12), (0.375, 12)]


def test_pcp_requests_go_out_together_up_to_the_window() -> None:
    client, gateway = make_client((2,), window=2), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    for port in (1, 2, 3, 4, 5):
        client.map_port(Protocol.TCP, port, sim.now)
    sim.run_until(5.0)
    assert [at for at, _ in sends_of(sim)] == [0.0, 0.0, 0.25, 0.25, 0.5]


def test_an_answer_that_comes_twice_is_no_second_event() -> None:
    client = make_client((0,))
    client.map_port(Protocol.TCP, 8080, 0.0)
    (request,), _ = drain(client)
    for _ in range(3):
        assert client.receive_datagram(natpmp_answer(request), SERVER, 0.5)
        assert client.receive_datagram(natpmp_answer(b"\0\0"), SERVER, 0.5)
    assert [type(event) for event in drain(client)[1]] == [VersionNegotiated, ExternalAddressLearned, MappingGranted]


def test_a_recovery_overtakes_what_still_waits_in_the_queue() -> None:
    client, gateway = make_client((2,), window=2), make_gateway((2,))
    sim = Simulation(client, gateway)
    for port in (1, 2, 3):
        client.map_port(Protocol.TCP, port, sim.now)
    sim.run_until(10.0)
    sim.connect(client, gateway, Link(loss=1.0))
    gateway.reboot(sim.now)
    sim.run_until(20.0)
    gateway.reboot(sim.now)  # again, while the first recovery waits for its answers
    sim.run_until(42.5)
    asked = [int.from_bytes(data[40:42]) for at, data in sends_of(sim) if at > 10.0]
    assert asked[-2:] == [3, 1]  # what never had its turn comes first
    sim.connect(client, gateway, Link())
    sim.run_until(60.0)
    assert sorted(mapping.internal.port for mapping in gateway.mappings) == [1, 2, 3]
    asked = [int.from_bytes(data[40:42]) for at, data in sends_of(sim) if at > 42.5]
    assert sorted(asked) == [1, 2, 3]  # each once more


def test_a_mapping_that_two_recoveries_queued_is_asked_for_once() -> None:
    client = make_client((2,), window=2)
    for port in (1, 2, 3):
        client.map_port(Protocol.TCP, port, 0.0)
        (request,), _ = drain(client)
        client.receive_datagram(answer(request), SERVER, 0.0)
    restarted = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode()
    client.receive_datagram(restarted, SERVER, 10.0)
    client.handle_timeout(12.5)
    client.receive_datagram(restarted, SERVER, 20.0)
    drain(client)
    client.handle_timeout(42.5)
    third, first = drain(client)[0][-2:]
    client.receive_datagram(answer(first, epoch=22), SERVER, 42.5)
    (second,), _ = drain(client)
    assert [int.from_bytes(data[40:42]) for data in (third, first, second)] == [3, 1, 2]


def test_a_recovery_that_meets_with_a_closed_port_is_tried_again() -> None:
    client = make_client((2,))
    mapping = held(client, lifetime=86400)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), SERVER, 100.0)
    client.handle_timeout(102.5)
    (request,), _ = drain(client)
    client.gateway_unreachable(102.625)  # its daemon is not up yet
    assert client.timers()[0] == TimerInfo(deadline=132.625, reason=Timer.RECOVER, mapping=None)
    client.handle_timeout(132.625)
    assert drain(client)[0] == [request]
    client.receive_datagram(answer(request, epoch=32), SERVER, 132.625)
    look = client.mapping(mapping)
    assert look is not None
    assert look.renew_at is not None


def test_a_nat_pmp_recovery_that_nobody_answers_is_tried_again() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.UDP, 5000, sim.now, lifetime=86400)
    sim.run_until(10.0)
    gateway.reboot(sim.now)
    sim.run_until(11.0)
    sim.connect(client, gateway, Link(loss=1.0))
    sim.run_until(142.0)
    sim.connect(client, gateway, Link())
    sim.run_until(180.0)
    assert len(gateway.mappings) == 1


def test_a_closed_port_in_the_middle_of_a_short_lease_does_not_lose_it() -> None:
    client = make_client((2,))
    mapping = held(client, lifetime=60)
    client.handle_timeout(33.75)
    (renewal,), _ = drain(client)
    client.gateway_unreachable(34.0)
    look = client.mapping(mapping)
    assert look is not None
    assert look.renew_at is not None  # although the wait of 30 s would go beyond the lease
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1036).encode(), SERVER, 36.0)
    client.handle_timeout(37.75)
    assert drain(client)[0] == []
    look = client.mapping(mapping)
    assert look is not None
    assert look.renew_at == 46.875  # the middle of its next window
    client.handle_timeout(46.875)
    assert drain(client)[0] == [renewal]


def test_an_unanswered_recovery_begins_anew_and_keeps_no_renewal_back_until_the_lease_is_over() -> None:
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now, lifetime=120)
    sim.run_until(10.0)
    sim.connect(client, gateway, Link(loss=1.0))
    gateway.reboot(sim.now)
    sim.run_until(120.0)
    # Four packets, then the renewal that is due, then anew; and at the end of the lease the next request.
    assert [at for at, _ in sends_of(sim)][1:] == [12.5, 15.5, 21.5, 33.5, 67.5, 87.5, 90.5, 96.5, 108.5, 120.0]
    assert times_of(sim, MappingLost) == [120.0]


def test_a_probe_for_pcp_goes_on_quietly() -> None:
    client = make_client((0, 2))
    sim = Simulation(client)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(127.0)
    assert [at for at, data in sends_of(sim) if data[0] == 2] == [1.0, 4.0, 10.0, 22.0, 46.0, 94.0]
    assert sim.events == []


# --- IPv6


def test_an_ipv6_gateway_is_asked_in_pcp_alone_and_keeps_its_scope() -> None:
    server = ("fe80::1", 5351, 0, 3)
    client = Client(server, local_address="fe80::7%eth0", rng=Middle(1))
    gateway = Gateway(None, address=server)
    sim = Simulation(client, gateway)
    client.map_port(Protocol.TCP, 8080, sim.now)
    sim.run_until(1.0)
    assert client.bind_address == ("fe80::7", 0, 0, 3)
    assert events_of(sim, MappingGranted)[0].external == Endpoint(IPv6Address("fe80::7"), 8080)
    assert sim.sent[0].target == server
    assert not client.receive_datagram(sim.sent[1].data, ("fe80::1", 5351, 0, 4), sim.now)


def test_an_ipv6_gateway_and_nat_pmp_alone_do_not_go_together() -> None:
    with pytest.raises(LocalProtocolError, match="NAT-PMP is for IPv4"):
        Client(("fe80::1", 5351, 0, 3), local_address="fe80::7", config=Config(versions=(0,)))


# --- wrong use


def test_wrong_use_is_refused_before_anything_changes() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 5.0)
    drain(client)
    before = (client.mappings, client.timers(), client.stats)
    with pytest.raises(LocalProtocolError, match="already"):
        client.map_port(Protocol.TCP, 8080, 6.0)
    with pytest.raises(LocalProtocolError, match="0 to 65535"):
        client.map_port(Protocol.TCP, 70000, 6.0)
    with pytest.raises(LocalProtocolError, match="0 to 65535"):
        client.map_port(Protocol.TCP, 80, 6.0, external_port=-1)
    with pytest.raises(LocalProtocolError, match="0 to 255"):
        client.map_port(300, 80, 6.0)
    with pytest.raises(LocalProtocolError, match="not an IP address"):
        client.map_port(Protocol.TCP, 80, 6.0, external_address="nowhere")
    with pytest.raises(LocalProtocolError, match="lifetime must be from 1"):
        client.map_port(Protocol.TCP, 80, 6.0, lifetime=0)
    with pytest.raises(LocalProtocolError, match="protocol 0 goes with internal_port 0 only"):
        client.map_port(Protocol.ALL, 80, 6.0)
    for until in (6.0, float("inf"), float("nan")):
        with pytest.raises(LocalProtocolError, match="until must be finite and later"):
            client.map_port(Protocol.TCP, 80, 6.0, until=until)
    for now in (float("nan"), float("inf"), "soon"):
        with pytest.raises(LocalProtocolError, match="finite number"):
            client.map_port(Protocol.TCP, 80, now)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="would have 1164 octets"):
        client.map_port(Protocol.TCP, 80, 6.0, options=(pcp.RawOption(200, bytes(1100)),))
    assert (client.mappings, client.timers(), client.stats) == before
    assert drain(client) == ([], [])


def test_an_address_that_is_none_is_refused() -> None:
    for gateway in (("nowhere", 5351), ("192.168.1.1", 0), ("192.168.1.1",), "192.168.1.1"):
        with pytest.raises(LocalProtocolError, match="gateway must be a socket address"):
            Client(gateway, local_address=LOCAL)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="needs its scope id"):
        Client(("fe80::1%eth0", 5351), local_address="fe80::7")
    with pytest.raises(LocalProtocolError, match="not an IP address"):
        Client(SERVER, local_address="nowhere")


@pytest.mark.requirement("PCP-8.5-12")
def test_time_that_runs_backwards_stands_still_and_is_counted() -> None:
    client = make_client()
    client.map_port(Protocol.TCP, 8080, 100.0)
    drain(client)
    client.handle_timeout(50.0)
    client.map_port(Protocol.TCP, 8081, 60.0)
    assert client.next_timeout() == 100.0  # there is output, as of the latest time seen
    assert client.stats == Stats(rejected={}, tolerated={}, clock_backwards=2)


def test_the_timers_say_why_the_client_wants_to_be_woken() -> None:
    client = make_client()
    mapping = client.map_port(Protocol.TCP, 8080, 0.0, until=9000.0)
    (request,), _ = drain(client)
    assert client.timers() == [
        TimerInfo(deadline=1.0, reason=Timer.FALLBACK, mapping=None),
        TimerInfo(deadline=3.0, reason=Timer.RETRANSMIT, mapping=mapping),
        TimerInfo(deadline=9000.0, reason=Timer.DEADLINE, mapping=mapping),
    ]
    client.receive_datagram(answer(request), SERVER, 0.0)
    assert [info.reason for info in client.timers()] == [Timer.RENEW, Timer.DEADLINE]
    assert repr(client) == "<Client of 192.168.1.1 version=2 mappings=1>"


def test_every_timer_says_in_words_what_it_is_for() -> None:
    assert all(len(timer.value.split()) > 3 for timer in Timer)


def test_without_a_generator_nonces_cannot_be_foreseen() -> None:
    nonces = set()
    for _ in range(3):
        client = Client(SERVER, local_address=LOCAL)
        client.map_port(Protocol.TCP, 8080, 0.0)
        request = decode(drain(client)[0][0])
        assert isinstance(request, pcp.MapRequest)
        nonces.add(request.nonce)
    assert len(nonces) == 3
