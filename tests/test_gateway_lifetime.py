"""How long a mapping lives, what becomes of its port, and what a client hears of a change unasked (RFC 6887 sections 14
and 15)."""

from __future__ import annotations

import typing
from ipaddress import IPv4Address

import pytest

from helpers import (
    EXTERNAL,
    HOST,
    LOCAL,
    NONCE,
    OTHER,
    OTHER_NONCE,
    SERVER,
    V6_HOST,
    V6_SERVER,
    Message,
    Middle,
    ask,
    drain,
    endpoint,
    externals,
    make_gateway,
    pcp_map,
    pcp_peer,
    sent_until,
)
from natpmp_sansio import (
    Address,
    Gateway,
    MappingDeleted,
    MappingExpired,
    MappingKind,
    MappingRefreshed,
    Protocol,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Simulation

TCP, UDP = Protocol.TCP, Protocol.UDP
Code = pcp.ResultCode
WEB = endpoint("198.51.100.7", 443)
NEW = "198.51.100.9"
INSIDE = endpoint(LOCAL, 5000)
PF = (pcp.PreferFailure(),)


def updates(gateway: Gateway, now: float, end: float, to: Address = HOST) -> list[tuple[float, Message]]:
    """What one host is told unasked, and when."""
    return [(at, message) for at, addr, message in sent_until(gateway, now, end) if addr == to]


def ended(gateway: Gateway) -> list[tuple[type, int]]:
    """The ends of mappings among the events that wait."""
    return [
        (type(event), event.mapping)
        for event in drain(gateway)[1]
        if isinstance(event, MappingDeleted | MappingExpired)
    ]


# --- Mapping Updates: a new external address (section 14.2)


@pytest.mark.requirement("PCP-14-01")
@pytest.mark.requirement("PCP-14-02")
@pytest.mark.requirement("PCP-14.2-01")
@pytest.mark.requirement("PCP-14.2-02")
@pytest.mark.requirement("PCP-14.2-07")
@pytest.mark.requirement("PCP-14.2-08")
def test_a_new_external_address_is_announced_and_each_client_is_told_its_new_endpoint_three_times() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    pcp_peer(gateway, UDP, 5000, WEB, 6000, source=OTHER)
    gateway.set_external_address(NEW, 100.0)
    told = sent_until(gateway, 100.0, 300.0)
    assert [(at, message) for at, addr, message in told if addr == HOST] == [
        (100.0, pcp.MapResponse(Code.SUCCESS, 7100, 0, NONCE, TCP, 80, 8080, NEW)),
        (100.25, pcp.MapResponse(Code.SUCCESS, 7099, 0, NONCE, TCP, 80, 8080, NEW)),
        (100.75, pcp.MapResponse(Code.SUCCESS, 7099, 0, NONCE, TCP, 80, 8080, NEW)),
    ]
    assert [(at, message) for at, addr, message in told if addr == OTHER] == [
        (100.0 + at, pcp.PeerResponse(Code.SUCCESS, lifetime, 0, NONCE, UDP, 5000, 6000, NEW, 443, "198.51.100.7"))
        for at, lifetime in ((0.0, 7100), (0.25, 7099), (0.75, 7099))
    ]
    announced = [at for at, addr, message in told if isinstance(message, pcp.AnnounceResponse)]
    assert announced == [100.0 + at for at in (0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75)]


@pytest.mark.requirement("PCP-14.2-02")
def test_an_update_goes_to_where_the_last_answer_went() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    moved: Address = (LOCAL, 50505)
    pcp_map(gateway, TCP, 80, now=10.0, source=moved)
    assert pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=20.0).result_code == Code.NOT_AUTHORIZED  # not its last
    gateway.set_external_address(NEW, 100.0)
    told = sent_until(gateway, 100.0, 101.0)
    assert [at for at, addr, _ in told if addr == moved] == [100.0, 100.25, 100.75]
    assert [at for at, addr, _ in told if addr == HOST] == []


@pytest.mark.requirement("PCP-14.2-09")
@pytest.mark.parametrize("lifetime", [7200, 0])
def test_updates_of_a_mapping_end_when_its_client_has_refreshed_or_deleted_it(lifetime: int) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, TCP, 81, 8081)
    gateway.set_external_address(NEW, 100.0)
    assert len(updates(gateway, 100.0, 100.0)) == 2
    assert pcp_map(gateway, TCP, 80, lifetime=lifetime, now=100.125).result_code == Code.SUCCESS
    ports = [
        (at, message.internal_port)
        for at, message in updates(gateway, 100.125, 101.0)
        if isinstance(message, pcp.MapResponse)
    ]
    assert ports == [(100.25, 81), (100.75, 81)]


@pytest.mark.requirement("PCP-14.2-09")
def test_a_refused_request_does_not_end_the_updates() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(NEW, 100.0)
    drain(gateway)
    assert pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=100.125).result_code == Code.NOT_AUTHORIZED
    assert [at for at, _ in updates(gateway, 100.125, 101.0)] == [100.25, 100.75]


@pytest.mark.requirement("PCP-14.2-03")
@pytest.mark.requirement("PCP-14.2-05")
@pytest.mark.requirement("PCP-14.2-06")
def test_an_update_has_the_third_party_and_the_filters_of_its_mapping_and_nothing_optional() -> None:
    gateway = make_gateway(allow_third_party=True)
    third = pcp.ThirdParty("192.168.1.20")
    first = pcp.Filter(128, 443, "198.51.100.7")
    second = pcp.Filter(120, 0, "192.0.2.0")
    pcp_map(gateway, TCP, 80, 8080, options=(pcp.Description("web"), third, first))
    pcp_map(gateway, TCP, 80, options=(third, second))
    drain(gateway)
    gateway.set_external_address(NEW, 100.0)
    (mapping,) = gateway.mappings
    assert (mapping.filters, mapping.description) == ((first, second), "web")
    assert updates(gateway, 100.0, 100.0) == [
        (100.0, pcp.MapResponse(Code.SUCCESS, 7100, 0, NONCE, TCP, 80, 8080, NEW, (third, first, second)))
    ]


def test_a_mapping_that_moves_is_handed_to_the_nat_engine_with_its_filters() -> None:
    gateway = make_gateway()
    only = pcp.Filter(128, 443, "198.51.100.7")
    pcp_map(gateway, TCP, 80, 8080, options=(only,))
    gateway.set_external_address(NEW, 100.0)
    (event,) = drain(gateway)[1]
    assert isinstance(event, MappingRefreshed)
    assert (event.external, event.filters, event.expires_at) == (endpoint(NEW, 8080), (only,), 7200.0)


@pytest.mark.requirement("PCP-14.2-04")
def test_who_preferred_failure_is_told_that_the_endpoint_is_gone() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, options=PF)
    pcp_map(gateway, TCP, 81, 8081)
    drain(gateway)
    gateway.set_external_address(NEW, 100.0)
    outputs = list(gateway.outputs())
    assert [output for output in outputs if isinstance(output, MappingDeleted)] != []
    assert externals(gateway) == [f"{NEW}:8081"]
    told = [
        (at, message.result_code, message.epoch, message.nonce, message.protocol)
        for at, message in updates(gateway, 100.0, 101.0)
        if isinstance(message, pcp.MapResponse) and message.internal_port == 80
    ]
    assert told == [
        (at, Code.CANNOT_PROVIDE_EXTERNAL, 0, NONCE, TCP) for at in (100.25, 100.75)
    ]  # and one at 100.0, which was drained above


def test_who_has_given_up_to_prefer_failure_is_moved_like_the_others() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, options=PF)
    pcp_map(gateway, TCP, 80)  # the earlier associated request is this one now
    gateway.set_external_address(NEW, 100.0)
    assert externals(gateway) == [f"{NEW}:8080"]


@pytest.mark.requirement("PCP-14.2-01")
def test_two_mappings_that_would_meet_on_one_port_are_parted() -> None:
    gateway = Gateway([EXTERNAL, "203.0.113.6"], address=SERVER, rng=Middle(2))
    pcp_map(gateway, TCP, 80, 8080, address=EXTERNAL)
    pcp_map(gateway, TCP, 80, 8080, address="203.0.113.6", source=OTHER)
    gateway.set_external_address(NEW, 100.0)
    first, second = (each.external for each in gateway.mappings)
    assert first == endpoint(NEW, 8080)
    assert second.address == IPv4Address(NEW)
    assert second.port not in (0, 8080)
    told = {
        (addr[0], message.external_port)
        for _, addr, message in sent_until(gateway, 100.0, 101.0)
        if isinstance(message, pcp.MapResponse)
    }
    assert told == {(LOCAL, 8080), (OTHER[0], second.port)}


def test_what_pcp_did_not_make_or_what_has_not_moved_has_no_updates() -> None:
    gateway = make_gateway()
    ask(gateway, natpmp.MapRequest(TCP, 80, 8080))
    gateway.outbound(UDP, INSIDE, WEB, 0.0)
    gateway.add_static(TCP, endpoint(LOCAL, 22), 2222, 0.0)
    pcp_map(gateway, TCP, 443, source=V6_HOST)
    drain(gateway)
    gateway.set_external_address(NEW, 50.0)
    told = sent_until(gateway, 50.0, 51.0)
    assert {type(message) for _, _, message in told} == {natpmp.ExternalAddressResponse, pcp.AnnounceResponse}
    assert {addr for _, addr, _ in told} == {("224.0.0.1", 5350)}


def test_a_second_change_starts_the_updates_anew() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(NEW, 100.0)
    gateway.handle_timeout(100.25)
    drain(gateway)
    gateway.set_external_address(EXTERNAL, 100.5)
    told = updates(gateway, 100.5, 110.0)
    assert [at for at, _ in told] == [100.5, 100.75, 101.25]
    assert {message.external_address for _, message in told if isinstance(message, pcp.MapResponse)} == {
        IPv4Address(EXTERNAL)
    }


@pytest.mark.requirement("PCP-14.2-07")
def test_the_updates_of_a_mapping_end_with_it() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, 120)
    gateway.set_external_address(NEW, 119.5)
    assert [at for at, _ in updates(gateway, 119.5, 200.0)] == [119.5, 119.75]


# --- revoked


@pytest.mark.requirement("PCP-14.2-07")
@pytest.mark.parametrize("opcode", ["MAP", "PEER"])
def test_who_loses_a_mapping_is_told_three_times_with_the_epoch_of_the_moment(opcode: str) -> None:
    gateway = make_gateway()
    if opcode == "MAP":
        pcp_map(gateway, UDP, 5000, 6000)
    else:
        pcp_peer(gateway, UDP, 5000, WEB, 6000)
    drain(gateway)
    (mapping,) = gateway.mappings
    assert gateway.revoke(mapping.id, 9.5) is True
    assert not gateway.mappings
    told = updates(gateway, 9.5, 1000.0)
    kind = pcp.MapResponse if opcode == "MAP" else pcp.PeerResponse
    assert [
        (at, type(message), message.result_code, message.epoch, message.nonce, message.internal_port)
        for at, message in told
        if isinstance(message, pcp.MapResponse | pcp.PeerResponse)
    ] == [(at, kind, Code.NOT_AUTHORIZED, int(at), NONCE, 5000) for at in (9.5, 9.75, 10.25)]
    assert gateway.revoke(mapping.id, 11.0) is False


def test_a_mapping_that_moves_and_is_revoked_is_told_only_the_latter_from_then_on() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(NEW, 100.0)
    drain(gateway)
    assert gateway.revoke(gateway.mappings[0].id, 100.125) is True
    assert [
        (at, message.result_code)
        for at, message in updates(gateway, 100.125, 200.0)
        if isinstance(message, pcp.MapResponse)
    ] == [(at, Code.NOT_AUTHORIZED) for at in (100.125, 100.375, 100.875)]


def test_a_mapping_of_nat_pmp_is_revoked_without_a_word() -> None:
    gateway = make_gateway()
    ask(gateway, natpmp.MapRequest(TCP, 80, 8080))
    assert gateway.revoke(gateway.mappings[0].id, 9.5) is True
    assert ended(gateway) == [(MappingDeleted, 1)]
    assert sent_until(gateway, 9.5, 1000.0) == []


# --- announcements


@pytest.mark.requirement("PCP-14.1.3-02")
@pytest.mark.requirement("PCP-14.1.3-03")
def test_a_restart_is_announced_on_every_link_from_where_requests_go_to() -> None:
    links = [Gateway(EXTERNAL, address=SERVER, rng=Middle(2)), Gateway(None, address=V6_SERVER, rng=Middle(3))]
    sim = Simulation(*links)
    for gateway in links:
        gateway.reboot(sim.now)
    sim.run_until(1000.0)
    announcements = [(sent.source, sent.target) for sent in sim.sent if sent.data[:4] == bytes.fromhex("02800000")]
    assert announcements.count((SERVER, ("224.0.0.1", 5350))) == 10
    assert announcements.count((V6_SERVER, ("ff02::1", 5350, 0, 2))) == 10
    assert len(announcements) == 20


# --- lifetimes (section 15)


@pytest.mark.requirement("PCP-15-12")
@pytest.mark.requirement("PCP-15-11")
def test_a_delete_does_not_end_what_traffic_keeps() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000)
    assert gateway.outbound(UDP, INSIDE, WEB, 100.0) == endpoint(EXTERNAL, 6000)
    drain(gateway)
    kept = pcp_map(gateway, UDP, 5000, lifetime=0, now=120.0)
    assert (kept.result_code, kept.lifetime) == (Code.SUCCESS, 100)
    for now in (120.0, 219.0):
        gateway.handle_timeout(now)
        assert set(externals(gateway)) == {f"{EXTERNAL}:6000"}
    gateway.handle_timeout(220.0)
    assert not gateway.mappings
    assert [mapping for _, mapping in ended(gateway)] == [1]
    assert gateway.outbound(UDP, INSIDE, WEB, 221.0) is not None


@pytest.mark.requirement("PCP-15-12")
def test_a_short_renewal_does_not_end_what_traffic_keeps_longer() -> None:
    gateway = make_gateway(udp_idle=1000.0)
    pcp_map(gateway, UDP, 5000, 6000)
    gateway.outbound(UDP, INSIDE, WEB, 100.0)
    assert pcp_map(gateway, UDP, 5000, lifetime=120, now=200.0).lifetime == 900
    assert pcp_map(gateway, UDP, 5000, lifetime=950, now=200.0).lifetime == 950


@pytest.mark.requirement("PCP-15-12")
def test_a_delete_long_after_the_last_packet_is_a_delete() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000)
    gateway.outbound(UDP, INSIDE, WEB, 100.0)
    deleted = pcp_map(gateway, UDP, 5000, lifetime=0, now=220.0)
    assert (deleted.result_code, deleted.lifetime) == (Code.SUCCESS, 0)
    assert not gateway.mappings


@pytest.mark.requirement("PCP-15-05")
def test_a_client_may_shorten_its_mapping() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, lifetime=7200)
    assert pcp_map(gateway, TCP, 80, lifetime=600, now=100.0).lifetime == 600
    assert gateway.next_timeout() == 700.0


# --- the port of a mapping that has ended (section 15)


def freed(protocol: Protocol, how: str, **config: typing.Any) -> Gateway:
    """A gateway whose only port is free since 600."""
    gateway = make_gateway(first_port=8080, last_port=8080, **config)
    if how == "PEER":
        pcp_peer(gateway, protocol, 80, WEB, lifetime=600)
    else:
        pcp_map(gateway, protocol, 80, lifetime=600 if how == "expired" else 7200)
    if how == "deleted":
        assert pcp_map(gateway, protocol, 80, lifetime=0, now=600.0).lifetime == 0
    gateway.handle_timeout(600.0)
    assert not gateway.mappings
    drain(gateway)
    return gateway


@pytest.mark.requirement("PCP-15-13")
@pytest.mark.requirement("PCP-15-14")
@pytest.mark.parametrize("how", ["deleted", "expired", "PEER"])
@pytest.mark.parametrize(
    ("protocol", "config", "end"),
    [(UDP, {}, 720.0), (TCP, {}, 8040.0), (UDP, {"udp_idle": 300.0}, 900.0), (TCP, {"tcp_idle": 240.0}, 840.0)],
)
def test_a_freed_port_is_kept_from_others_for_the_idle_time(
    how: str, protocol: Protocol, config: dict[str, float], end: float
) -> None:
    gateway = freed(protocol, how, **config)
    for now in (600.0, end - 0.5):
        assert pcp_map(gateway, protocol, 80, 8080, source=OTHER, now=now).result_code == Code.NO_RESOURCES
        inside = endpoint(OTHER[0], 80)
        assert gateway.outbound(protocol, inside, WEB, now) is None
        refused = pcp_map(gateway, protocol, 80, 8080, source=OTHER, options=PF, now=now)
        assert refused.result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert pcp_map(gateway, protocol, 80, source=OTHER, now=end).external_port == 8080


def test_who_suggests_a_freed_port_gets_another() -> None:
    gateway = make_gateway(first_port=8080, last_port=8081)
    pcp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, TCP, 80, lifetime=0, now=10.0)
    assert pcp_map(gateway, TCP, 80, 8080, source=OTHER, now=20.0).external_port == 8081


@pytest.mark.requirement("PCP-15-15")
@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_the_same_client_may_have_a_freed_port_back_at_once(how: str) -> None:
    gateway = freed(TCP, how)
    for port, nonce, source in ((80, OTHER_NONCE, HOST), (81, NONCE, HOST), (80, NONCE, OTHER)):
        refused = pcp_map(gateway, TCP, port, 8080, nonce=nonce, source=source, now=610.0)
        assert refused.result_code == Code.NO_RESOURCES
    assert pcp_map(gateway, TCP, 80, 8080, now=610.0).result_code == Code.SUCCESS
    assert externals(gateway) == [f"{EXTERNAL}:8080"]


@pytest.mark.requirement("PCP-15-15")
def test_traffic_that_outlives_a_mapping_does_not_keep_its_port_from_the_same_client() -> None:
    gateway = make_gateway(first_port=8080, last_port=8080)
    pcp_map(gateway, UDP, 5000, lifetime=600)
    gateway.outbound(UDP, INSIDE, WEB, 590.0)
    gateway.handle_timeout(710.0)
    assert not gateway.mappings
    drain(gateway)
    assert pcp_map(gateway, UDP, 5000, 8080, now=711.0).result_code == Code.SUCCESS


def test_a_freed_port_that_was_had_back_is_kept_from_others_from_its_new_end_on() -> None:
    gateway = freed(UDP, "deleted")
    assert pcp_map(gateway, UDP, 80, now=650.0).external_port == 8080
    assert pcp_map(gateway, UDP, 80, lifetime=0, now=700.0).lifetime == 0
    for now, code in ((720.0, Code.NO_RESOURCES), (819.5, Code.NO_RESOURCES), (820.0, Code.SUCCESS)):
        assert pcp_map(gateway, UDP, 80, source=OTHER, now=now).result_code == code


# --- leases of addresses (section 15)


@pytest.mark.requirement("PCP-15-04")
@pytest.mark.parametrize(("asked", "granted"), [(604800, 5000), (5001, 5000), (600, 600), (1, 120)])
def test_no_lifetime_goes_beyond_the_lease_of_the_address(asked: int, granted: int) -> None:
    gateway = make_gateway()
    gateway.address_leased(LOCAL, 5100.0, 0.0)
    assert pcp_map(gateway, TCP, 80, lifetime=asked, now=100.0).lifetime == granted
    assert pcp_peer(gateway, TCP, 5000, WEB, lifetime=asked, now=100.0).lifetime == granted
    natpmp_reply = ask(gateway, natpmp.MapRequest(UDP, 80, 0, asked), 100.0)
    assert isinstance(natpmp_reply, natpmp.MapResponse)
    assert natpmp_reply.lifetime == min(asked, 5000)
    assert pcp_map(gateway, TCP, 80, lifetime=604800, source=OTHER, now=100.0).lifetime == 86400


def test_a_lease_that_is_nearly_over_bounds_even_the_shortest_lifetime() -> None:
    gateway = make_gateway()
    gateway.address_leased(LOCAL, 160.0, 0.0)
    assert pcp_map(gateway, TCP, 80, now=100.0).lifetime == 60


def furnished() -> Gateway:
    """One host with a mapping of each kind, by PCP and NAT-PMP, and another host with one."""
    gateway = make_gateway()
    gateway.add_static(TCP, endpoint(LOCAL, 22), 2222, 0.0)
    pcp_map(gateway, TCP, 80, 8080)
    ask(gateway, natpmp.MapRequest(TCP, 81, 8081))
    pcp_peer(gateway, UDP, 5000, WEB)
    gateway.outbound(UDP, endpoint(LOCAL, 5001), WEB, 0.0)
    pcp_map(gateway, TCP, 80, 9090, source=OTHER)
    drain(gateway)
    return gateway


def left(gateway: Gateway) -> list[tuple[MappingKind, str]]:
    return [(each.kind, str(each.internal)) for each in gateway.mappings]


LEFT = [(MappingKind.STATIC, f"{LOCAL}:22"), (MappingKind.MAP, f"{OTHER[0]}:80")]


@pytest.mark.requirement("PCP-15-09")
@pytest.mark.requirement("PCP-15-10")
def test_when_an_address_is_released_all_its_dynamic_mappings_are_discarded() -> None:
    gateway = furnished()
    gateway.address_released(LOCAL, 50.0)
    assert left(gateway) == LEFT
    assert ended(gateway) == [(MappingDeleted, each) for each in (2, 3, 4)]
    assert pcp_map(gateway, TCP, 80, lifetime=604800, now=60.0).lifetime == 86400


@pytest.mark.requirement("PCP-15-09")
@pytest.mark.requirement("PCP-15-10")
def test_when_the_lease_of_an_address_ends_all_its_dynamic_mappings_are_discarded() -> None:
    gateway = furnished()
    gateway.address_leased(LOCAL, 100.0, 50.0)
    assert gateway.next_timeout() == 100.0
    gateway.handle_timeout(99.0)
    assert len(gateway.mappings) == 6
    gateway.handle_timeout(100.0)
    assert left(gateway) == LEFT
    assert sorted(mapping for _, mapping in ended(gateway)) == [2, 3, 4]


def test_a_lease_that_is_renewed_lets_the_mappings_live_on() -> None:
    gateway = make_gateway()
    gateway.address_leased(LOCAL, 1000.0, 0.0)
    pcp_map(gateway, TCP, 80, lifetime=600)
    gateway.address_leased(LOCAL, 9000.0, 500.0)
    assert pcp_map(gateway, TCP, 80, lifetime=7200, now=500.0).lifetime == 7200
    gateway.handle_timeout(1000.0)
    assert [each.expires_at for each in gateway.mappings] == [7700.0]
    gateway.handle_timeout(7700.0)
    assert ended(gateway) == [(MappingExpired, 1)]
