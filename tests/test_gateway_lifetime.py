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
    GatewayConfig,
    LocalProtocolError,
    MappingDeleted,
    MappingExpired,
    MappingKind,
    MappingRefreshed,
    Protocol,
    SendDatagram,
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


def test_an_update_says_whose_mapping_it_is_where_addresses_alone_do_not() -> None:
    gateway = make_gateway(allow_third_party=True, third_party_ids=[b"blue"])
    whose = (pcp.ThirdParty("192.168.1.20"), pcp.ThirdPartyId(b"blue"))
    pcp_map(gateway, TCP, 80, 8080, options=whose)
    gateway.set_external_address(NEW, 100.0)
    assert updates(gateway, 100.0, 100.0) == [
        (100.0, pcp.MapResponse(Code.SUCCESS, 7100, 0, NONCE, TCP, 80, 8080, NEW, whose))
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


@pytest.mark.requirement("PCP-14.2-07")
@pytest.mark.parametrize(("awake", "sent"), [(119.0, [119.0]), (119.25, [119.0, 119.25])])
def test_who_slept_past_the_end_of_a_mapping_says_nothing_more_about_its_endpoint(
    awake: float, sent: list[float]
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, 120)
    gateway.set_external_address(NEW, 119.0)
    assert [at for at, _ in updates(gateway, 119.0, awake)] == sent
    gateway.handle_timeout(1000.0)
    outputs = list(gateway.outputs())
    assert [output for output in outputs if isinstance(output, SendDatagram) and output.addr == HOST] == []
    assert [output.mapping for output in outputs if isinstance(output, MappingExpired)] == [1]
    assert updates(gateway, 1000.0, 2000.0) == []


@pytest.mark.requirement("PCP-14.2-08")
def test_updates_that_come_late_keep_their_distances() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(NEW, 100.0)
    assert [at for at, _ in updates(gateway, 100.0, 100.0)] == [100.0]
    gateway.handle_timeout(100.625)
    assert [at for at, _ in updates(gateway, 100.625, 110.0)] == [100.625, 101.125]


@pytest.mark.requirement("PCP-14.2-09")
@pytest.mark.parametrize("copies", [(), (100.25,), (100.25, 100.75)], ids=["first", "second", "last"])
def test_an_update_that_nobody_has_taken_is_taken_back_when_its_client_has_refreshed_the_mapping(
    copies: tuple[float, ...],
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(NEW, 100.0)
    for at in copies:
        drain(gateway)
        gateway.handle_timeout(at)
    refreshed = pcp_map(gateway, TCP, 80, now=100.75)  # the one answer, and nothing else
    assert (refreshed.external_address, refreshed.lifetime) == (IPv4Address(NEW), 7200)
    assert updates(gateway, 100.75, 200.0) == []


@pytest.mark.requirement("PCP-14.2-07")
@pytest.mark.parametrize("how", ["released", "lease over"])
def test_the_updates_of_a_host_end_with_its_address(how: str) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    pcp_peer(gateway, UDP, 5000, WEB)
    gateway.set_external_address(NEW, 100.0)
    assert len(updates(gateway, 100.0, 100.0)) == 2
    if how == "released":
        gateway.address_released(LOCAL, 100.125)
    else:
        gateway.address_leased(LOCAL, 100.125, 100.0)
    gateway.handle_timeout(100.125)
    assert not gateway.mappings
    assert updates(gateway, 100.125, 200.0) == []


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


def test_after_a_restart_nobody_is_told_any_more_what_was_before() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.revoke(gateway.mappings[0].id, 9.5)
    assert [at for at, _ in updates(gateway, 9.5, 9.5)] == [9.5]
    gateway.reboot(9.625)
    assert updates(gateway, 9.625, 1000.0) == []


def test_who_takes_over_the_endpoint_of_a_revoked_mapping_hears_nothing_of_it() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.revoke(gateway.mappings[0].id, 9.5)
    assert [at for at, _ in updates(gateway, 9.5, 9.5)] == [9.5]
    ask(gateway, natpmp.MapRequest(TCP, 80, 8080), 9.625)
    assert updates(gateway, 9.625, 1000.0) == []
    assert [each.kind for each in gateway.mappings] == [MappingKind.MAP]


# --- what moves first


def test_what_is_configured_keeps_its_port_when_the_external_address_changes() -> None:
    gateway = Gateway([EXTERNAL, "203.0.113.6"], address=SERVER, rng=Middle(2))
    pcp_map(gateway, TCP, 80, 8080, address="203.0.113.6", source=OTHER)
    gateway.add_static(TCP, endpoint(LOCAL, 80), 80, 0.0)  # no port that is given out
    gateway.add_static(TCP, endpoint(LOCAL, 81), 8080, 0.0)
    gateway.set_external_address(NEW, 100.0)
    moved, first, second = externals(gateway)
    assert (first, second) == (f"{NEW}:80", f"{NEW}:8080")
    assert moved.startswith(f"{NEW}:")
    assert moved != second  # it was there first, and yet it has to give way


@pytest.mark.requirement("PCP-14.2-04")
def test_who_has_nowhere_to_go_at_the_new_address_is_told_so() -> None:
    gateway = Gateway(
        [EXTERNAL, NEW], address=SERVER, config=GatewayConfig(first_port=8080, last_port=8080), rng=Middle(2)
    )
    pcp_map(gateway, TCP, 80, address=NEW, source=OTHER)
    pcp_map(gateway, TCP, 80, address=EXTERNAL)
    drain(gateway)
    gateway.set_external_address(NEW, 100.0)
    told = updates(gateway, 100.0, 200.0)
    assert [
        (at, message.result_code, message.lifetime) for at, message in told if isinstance(message, pcp.MapResponse)
    ] == [(at, Code.CANNOT_PROVIDE_EXTERNAL, 30) for at in (100.0, 100.25, 100.75)]
    assert [str(each.internal) for each in gateway.mappings] == [f"{OTHER[0]}:80"]


def test_what_is_configured_gets_another_port_if_somebody_has_its_own_there_already() -> None:
    gateway = Gateway([EXTERNAL, NEW], address=SERVER, rng=Middle(2))
    pcp_map(gateway, TCP, 80, 8080, address=NEW, source=OTHER)
    gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    gateway.set_external_address(NEW, 100.0)
    stays, moved = (mapping.external for mapping in gateway.mappings)
    assert stays == endpoint(NEW, 8080)
    assert moved.address == IPv4Address(NEW)
    assert moved.port != 8080


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


FOREVER = 2**32 - 1


def test_no_lifetime_is_longer_than_32_bits_can_say() -> None:
    gateway = make_gateway(max_lifetime=FOREVER)
    granted = pcp_map(gateway, TCP, 80, 8080, FOREVER, now=5.1, source=OTHER)
    assert granted.lifetime == FOREVER
    stolen = pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=5.1, source=OTHER)
    assert (stolen.result_code, stolen.lifetime) == (Code.NOT_AUTHORIZED, FOREVER)
    busy = pcp_map(gateway, TCP, 80, 8080, options=PF, now=5.1)  # what TCP may have under way comes on top of it
    assert (busy.result_code, busy.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, FOREVER)
    told = ask(gateway, natpmp.MapRequest(TCP, 80, 0, FOREVER), 5.1, OTHER)
    assert told == natpmp.MapResponse(TCP, natpmp.ResultCode.SUCCESS, 0, 80, 8080, FOREVER)
    gateway.set_external_address(NEW, 5.1)
    (update,) = [message for _, message in updates(gateway, 5.1, 5.1, OTHER)]
    assert isinstance(update, pcp.MapResponse)
    assert FOREVER - 1 <= update.lifetime <= FOREVER


@pytest.mark.parametrize("value", [2**32, float("inf"), float("nan"), -1.0])
def test_an_idle_time_that_no_lifetime_can_say_is_refused(value: float) -> None:
    with pytest.raises(LocalProtocolError, match=r"GatewayConfig\.tcp_idle must be from 0 to 4294967295 seconds, not"):
        GatewayConfig(tcp_idle=value)
    with pytest.raises(LocalProtocolError, match=r"GatewayConfig\.udp_idle must be from 0 to 4294967295 seconds, not"):
        GatewayConfig(udp_idle=value)
    assert GatewayConfig(tcp_idle=FOREVER, udp_idle=0.0).tcp_idle == FOREVER


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


def test_who_maps_and_deletes_port_after_port_leaves_half_of_them_to_others() -> None:
    gateway = make_gateway(first_port=2000, last_port=2099)
    for port in range(100):
        assert pcp_map(gateway, TCP, 3000 + port, 2000 + port).external_port == 2000 + port
        assert pcp_map(gateway, TCP, 3000 + port, lifetime=0).result_code == Code.SUCCESS
    replies = [pcp_map(gateway, TCP, 3000 + port, source=OTHER) for port in range(100)]
    assert {reply.external_port for reply in replies if reply.result_code == Code.SUCCESS} == set(range(2000, 2050))
    assert {reply.result_code for reply in replies[50:]} == {Code.NO_RESOURCES}


def test_the_owner_may_give_a_freed_port_to_another_and_then_it_is_whose_it_was() -> None:
    gateway = freed(TCP, "expired")
    static = gateway.add_static(TCP, endpoint(OTHER[0], 80), 8080, 601.0)
    assert externals(gateway) == [f"{EXTERNAL}:8080"]
    gateway.revoke(static, 602.0)
    assert pcp_map(gateway, TCP, 80, now=603.0).external_port == 8080  # it still is whose it was


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
    refreshed = [event for event in drain(gateway)[1] if isinstance(event, MappingRefreshed)]
    assert [(event.mapping, event.expires_at) for event in refreshed] == [(each, 100.0) for each in (2, 3, 4)]
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


def test_a_lease_bounds_also_what_traffic_would_keep_longer() -> None:
    gateway = make_gateway(udp_idle=1000.0)
    pcp_map(gateway, UDP, 5000, 6000)
    gateway.outbound(UDP, INSIDE, WEB, 100.0)
    gateway.address_leased(LOCAL, 300.0, 100.0)
    drain(gateway)
    for asked in (120, 7200, 0):
        assert pcp_map(gateway, UDP, 5000, lifetime=asked, now=200.0).lifetime == 100
    assert pcp_peer(gateway, UDP, 5000, WEB, now=200.0).lifetime == 100
    gateway.handle_timeout(300.0)
    assert not gateway.mappings
    assert sorted(ended(gateway)) == [(MappingDeleted, 1), (MappingDeleted, 2)]


def test_a_lease_shortens_the_mappings_that_would_outlive_it_and_no_others() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, lifetime=600)
    pcp_map(gateway, TCP, 81, lifetime=601)
    drain(gateway)
    gateway.address_leased(LOCAL, 600.0, 10.0)
    assert [each.expires_at for each in gateway.mappings] == [600.0, 600.0]
    (event,) = drain(gateway)[1]
    assert isinstance(event, MappingRefreshed)
    assert (event.mapping, event.expires_at) == (2, 600.0)


def test_a_thousand_leases_end_together() -> None:
    gateway = make_gateway()
    hosts = [IPv4Address("10.0.0.1") + number for number in range(1000)]
    for host in hosts:
        gateway.address_leased(host, 100.0, 0.0)
        pcp_map(gateway, TCP, 80, source=(str(host), 40001))
    drain(gateway)
    gateway.handle_timeout(100.0)
    assert ended(gateway) == [(MappingDeleted, number) for number in range(1, 1001)]
    assert gateway.next_timeout() is None


@pytest.mark.parametrize("end", [float("inf"), float("nan"), None])
def test_a_lease_without_an_end_is_the_callers_mistake(end: typing.Any) -> None:
    gateway = make_gateway()
    with pytest.raises(LocalProtocolError, match="expires_at must be a finite number of seconds, not"):
        gateway.address_leased(LOCAL, end, 0.0)
    assert pcp_map(gateway, TCP, 80, lifetime=86400).lifetime == 86400
