"""PEER at the gateway, and the outbound mappings that traffic makes (RFC 6887 sections 12 and 16)."""

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
    Middle,
    ask,
    drain,
    endpoint,
    exchange,
    externals,
    make_gateway,
    pcp_map,
    pcp_peer,
)
from natpmp_sansio import (
    Address,
    Endpoint,
    Gateway,
    LocalProtocolError,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingId,
    MappingKind,
    MappingRefreshed,
    Protocol,
    pcp,
)
from natpmp_sansio.gateway.gateway import GatewayMapping

TCP, UDP = Protocol.TCP, Protocol.UDP
Code = pcp.ResultCode
WEB = endpoint("198.51.100.7", 443)
DNS = endpoint("192.0.2.9", 53)
INSIDE = endpoint(LOCAL, 5000)


def outbound(gateway: Gateway) -> list[tuple[MappingKind, str, float]]:
    """The outbound mappings: kind, remote peer and end."""
    return [(each.kind, str(each.remote), each.expires_at) for each in gateway.mappings if each.remote]


# --- a new mapping


@pytest.mark.requirement("PCP-12.3-05")
@pytest.mark.requirement("PCP-12.3-10")
@pytest.mark.parametrize("suggested", [0, 6000])
def test_a_new_flow_gets_a_mapping_that_lives_longer_than_traffic_alone_would_keep_it(suggested: int) -> None:
    gateway = make_gateway()
    request = pcp.PeerRequest(LOCAL, NONCE, UDP, 5000, 443, "198.51.100.7", suggested, lifetime=600)
    (reply,), events = exchange(gateway, request.encode(), 9.0)
    (mapping,) = gateway.mappings
    assert suggested in (0, mapping.external.port)
    about: dict[str, typing.Any] = {
        "kind": MappingKind.PEER,
        "protocol": UDP,
        "internal": INSIDE,
        "external": endpoint(EXTERNAL, mapping.external.port),
        "remote": WEB,
        "size": 1,
        "filters": (),
        "description": "",
        "third_party_id": b"",
        "expires_at": 609.0,
    }
    assert mapping == GatewayMapping(id=MappingId(1), **about)
    assert events == [MappingCreated(gateway=SERVER, mapping=MappingId(1), **about)]
    port = mapping.external.port
    assert (
        reply == pcp.PeerResponse(Code.SUCCESS, 600, 0, NONCE, UDP, 5000, port, EXTERNAL, 443, "198.51.100.7").encode()
    )
    assert gateway.outbound(UDP, endpoint(LOCAL, 5001), WEB, 9.0) is not None
    assert outbound(gateway)[1] == (MappingKind.IMPLICIT, str(WEB), 129.0)


@pytest.mark.requirement("PCP-12.3-04")
@pytest.mark.requirement("PCP-12-02")
def test_each_flow_has_a_mapping_of_its_own_and_all_of_one_endpoint_look_the_same_from_outside() -> None:
    """This NAT maps independently of the remote endpoint, by PEER as by traffic, and lets in only the peer."""
    gateway = make_gateway()
    there = gateway.outbound(UDP, INSIDE, endpoint("192.0.2.1", 1), 0.0)
    assert there is not None
    for remote in (WEB, DNS, endpoint("198.51.100.7", 444)):
        assert pcp_peer(gateway, UDP, 5000, remote).external_port == there.port
    assert [each.remote for each in gateway.mappings] == [
        endpoint("192.0.2.1", 1),
        WEB,
        DNS,
        endpoint("198.51.100.7", 444),
    ]
    assert pcp_peer(gateway, UDP, 5001, WEB).external_port != there.port
    assert pcp_peer(gateway, TCP, 5000, WEB).result_code == Code.SUCCESS
    assert len(gateway.mappings) == 6


@pytest.mark.requirement("PCP-12.1-13")
@pytest.mark.requirement("PCP-12.3-06")
@pytest.mark.parametrize(
    ("port", "address"),
    [
        (4000, EXTERNAL),  # another host's
        (4000, None),
        (1023, EXTERNAL),  # not in the range that is given out
        (5351, EXTERNAL),  # PCP's own
        (6000, "203.0.113.99"),  # not an address of this NAT
        (0, "203.0.113.99"),
        (6000, "127.0.0.1"),
        (6000, "2001:db8::5"),
    ],
)
def test_a_suggestion_that_cannot_be_honoured_makes_nothing(port: int, address: str | None) -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 80, 4000, source=OTHER)
    before = gateway.mappings
    reply = pcp_peer(gateway, UDP, 5000, WEB, port, address=address)
    assert reply.result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert (reply.external_port, reply.external_address) == (port, endpoint(address or "0.0.0.0", 0).address)
    assert gateway.mappings == before


@pytest.mark.requirement("PCP-12.3-06")
def test_an_endpoint_that_is_mapped_already_cannot_look_different_to_another_peer() -> None:
    gateway = make_gateway()
    assert pcp_peer(gateway, UDP, 5000, WEB, 6000).result_code == Code.SUCCESS
    assert pcp_peer(gateway, UDP, 5000, DNS, 6001).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert pcp_peer(gateway, UDP, 5000, DNS, 6000).result_code == Code.SUCCESS


def test_a_flow_of_a_mapped_endpoint_has_the_external_endpoint_of_the_mapping() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000)
    assert pcp_peer(gateway, UDP, 5000, WEB, nonce=OTHER_NONCE).external_port == 6000


def test_peer_counts_in_the_quota_of_its_host() -> None:
    gateway = make_gateway(max_mappings_per_host=1)
    assert pcp_peer(gateway, UDP, 5000, WEB).result_code == Code.SUCCESS
    refused = pcp_peer(gateway, UDP, 5000, DNS)
    assert (refused.result_code, refused.lifetime) == (Code.USER_EX_QUOTA, 30)
    assert pcp_peer(gateway, UDP, 5000, WEB).result_code == Code.SUCCESS
    assert pcp_peer(gateway, UDP, 5000, DNS, source=OTHER).result_code == Code.SUCCESS


def test_traffic_and_peer_find_the_same_mapping_behind_a_nat64() -> None:
    """Whatever family PEER suggests: it is the remote peer that says where a packet goes."""
    gateway = Gateway(EXTERNAL, address=V6_SERVER, rng=Middle(2))
    gateway.set_prefix64([pcp.Prefix64("64:ff9b::/96")], 0.0)
    remote = endpoint("64:ff9b::198.51.100.7", 443)
    there = gateway.outbound(UDP, endpoint(V6_HOST[0], 5000), remote, 0.0)
    assert there is not None
    assert there.address == IPv4Address(EXTERNAL)
    drain(gateway)
    reply = pcp_peer(gateway, UDP, 5000, remote, address="::", source=V6_HOST)
    assert (reply.result_code, reply.external_address, reply.external_port) == (Code.SUCCESS, there.address, there.port)
    assert outbound(gateway) == [(MappingKind.PEER, str(remote), 7200.0)]
    native = endpoint("2001:db8:9::1", 443)  # and this one goes through the firewall
    assert gateway.outbound(UDP, endpoint(V6_HOST[0], 5000), native, 0.0) == endpoint(V6_HOST[0], 5000)


# --- a mapping that is there


@pytest.mark.requirement("PCP-12.3-07")
def test_a_mapping_that_traffic_made_is_told_lengthened_and_then_guarded_by_the_nonce() -> None:
    gateway = make_gateway(first_port=50001, last_port=60000)
    there = gateway.outbound(UDP, INSIDE, WEB, 0.0)
    assert there is not None
    drain(gateway)
    for now in (10.0, 20.0):  # the suggestion is ignored
        reply = pcp_peer(gateway, UDP, 5000, WEB, 60000 if there.port != 60000 else 50001, 600, now=now)
        assert (reply.result_code, reply.lifetime) == (Code.SUCCESS, 600)
        assert (reply.external_port, reply.external_address) == (there.port, there.address)
        assert outbound(gateway) == [(MappingKind.PEER, str(WEB), now + 600.0)]
    assert pcp_peer(gateway, UDP, 5000, WEB, nonce=OTHER_NONCE, now=30.0).result_code == Code.NOT_AUTHORIZED


@pytest.mark.requirement("PCP-12.3-08")
def test_another_nonce_is_refused_for_as_long_as_the_mapping_lives() -> None:
    gateway = make_gateway()
    pcp_peer(gateway, UDP, 5000, WEB, lifetime=120)
    before = gateway.mappings
    for lifetime in (7200, 0):
        refused = pcp_peer(gateway, UDP, 5000, WEB, lifetime=lifetime, nonce=OTHER_NONCE, now=30.0)
        assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 90)
    assert gateway.mappings == before
    assert pcp_peer(gateway, UDP, 5000, WEB, now=30.0).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-12.1-02")
@pytest.mark.parametrize("lifetime", [0, 1, 120, 6999])
def test_peer_never_shortens_a_mapping_and_so_can_ask_how_long_it_lives(lifetime: int) -> None:
    gateway = make_gateway()
    pcp_peer(gateway, TCP, 5000, WEB)
    before = gateway.mappings
    reply = pcp_peer(gateway, TCP, 5000, WEB, lifetime=lifetime, now=200.0)
    assert (reply.result_code, reply.lifetime) == (Code.SUCCESS, 7000)
    assert gateway.mappings == before
    assert pcp_peer(gateway, TCP, 5000, WEB, lifetime=lifetime, now=200.5).result_code == Code.SUCCESS
    assert gateway.mappings == before
    assert pcp_peer(gateway, TCP, 5000, WEB, lifetime=7001, now=201.0).lifetime == 7001


@pytest.mark.parametrize(("asked", "granted"), [(1, 300), (300, 300), (450, 450), (600, 600), (601, 600)])
def test_peer_grants_a_lifetime_between_its_bounds(asked: int, granted: int) -> None:
    gateway = make_gateway(min_lifetime=300, max_lifetime=600)
    assert pcp_peer(gateway, UDP, 5000, WEB, lifetime=asked).lifetime == granted


# --- its end


@pytest.mark.requirement("PCP-12.3-11")
def test_a_mapping_that_is_not_renewed_is_kept_by_traffic_like_any_other() -> None:
    gateway = make_gateway(udp_idle=100.0)
    external = pcp_peer(gateway, UDP, 5000, WEB, lifetime=120).external_port
    assert gateway.outbound(UDP, INSIDE, WEB, 110.0) == endpoint(EXTERNAL, external)
    gateway.handle_timeout(119.0)
    assert [kind for kind, _, _ in outbound(gateway)] == [MappingKind.PEER]
    drain(gateway)
    gateway.handle_timeout(120.0)
    assert [type(event) for event in drain(gateway)[1]] == [MappingExpired]
    assert outbound(gateway) == [(MappingKind.IMPLICIT, str(WEB), 210.0)]
    assert externals(gateway) == [f"{EXTERNAL}:{external}"]
    assert pcp_peer(gateway, UDP, 5000, DNS, nonce=OTHER_NONCE, now=130.0).external_port == external
    gateway.handle_timeout(209.0)
    assert outbound(gateway)[0] == (MappingKind.IMPLICIT, str(WEB), 210.0)
    gateway.handle_timeout(210.0)
    assert [remote for _, remote, _ in outbound(gateway)] == [str(DNS)]


def test_a_mapping_that_neither_peer_nor_traffic_keeps_is_gone_with_its_lifetime() -> None:
    gateway = make_gateway()
    pcp_peer(gateway, UDP, 5000, WEB, lifetime=600)
    gateway.handle_timeout(599.0)
    assert len(gateway.mappings) == 1
    gateway.handle_timeout(600.0)
    assert not gateway.mappings


@pytest.mark.requirement("PCP-16.2-01")
@pytest.mark.requirement("PCP-15.1-08")
def test_inbound_and_outbound_mappings_of_one_endpoint_end_each_in_its_own_time() -> None:
    gateway = make_gateway()
    external = pcp_map(gateway, UDP, 5000, 6000, 3600).external_port
    assert pcp_peer(gateway, UDP, 5000, WEB, lifetime=600).external_port == external
    gateway.handle_timeout(600.0)
    assert [(each.kind, each.expires_at) for each in gateway.mappings] == [(MappingKind.MAP, 3600.0)]
    assert pcp_peer(gateway, UDP, 5000, WEB, lifetime=7200, now=600.0).external_port == external
    deleted = pcp_map(gateway, UDP, 5000, lifetime=0, now=1000.0)  # nothing has been sent for long
    assert (deleted.result_code, deleted.lifetime) == (Code.SUCCESS, 0)
    assert outbound(gateway) == [(MappingKind.PEER, str(WEB), 7800.0)]
    assert len(gateway.mappings) == 1


@pytest.mark.parametrize(("protocol", "idle"), [(UDP, 120.0), (TCP, 7440.0)])
def test_traffic_keeps_a_mapping_for_the_idle_time_and_says_nothing_about_it(protocol: Protocol, idle: float) -> None:
    gateway = make_gateway()
    there = gateway.outbound(protocol, INSIDE, WEB, 0.0)
    assert gateway.outbound(protocol, INSIDE, WEB, 50.0) == there
    assert outbound(gateway) == [(MappingKind.IMPLICIT, str(WEB), 50.0 + idle)]
    assert gateway.next_timeout() == 50.0 + idle
    gateway.handle_timeout(50.0 + idle)
    assert not gateway.mappings
    assert list(gateway.outputs()) == []


def test_a_nat_without_a_free_port_lets_no_new_flow_out() -> None:
    gateway = make_gateway(first_port=4000, last_port=4000)
    assert gateway.outbound(UDP, INSIDE, WEB, 0.0) == endpoint(EXTERNAL, 4000)
    assert gateway.outbound(UDP, INSIDE, DNS, 0.0) == endpoint(EXTERNAL, 4000)
    assert gateway.outbound(UDP, endpoint(OTHER[0], 5000), WEB, 0.0) is None
    assert make_gateway(external=None).outbound(UDP, INSIDE, WEB, 0.0) is None


@pytest.mark.parametrize(
    ("protocol", "internal", "remote"),
    [
        (UDP, endpoint(LOCAL, 0), WEB),
        (UDP, INSIDE, endpoint("198.51.100.7", 0)),
        (UDP, endpoint(LOCAL, 65536), WEB),
        (UDP, Endpoint(None, 5000), WEB),
        (UDP, INSIDE, Endpoint(None, 443)),
        (256, INSIDE, WEB),
    ],
)
def test_traffic_of_no_endpoint_is_the_callers_mistake(protocol: int, internal: Endpoint, remote: Endpoint) -> None:
    gateway = make_gateway()
    with pytest.raises(LocalProtocolError, match="a mapping needs a protocol from 0 to 255, an address and a port"):
        gateway.outbound(protocol, internal, remote, 0.0)
    assert not gateway.mappings


@pytest.mark.requirement("PCP-16.5-01")
def test_an_endpoint_goes_from_implicit_to_peer_managed_to_map_created() -> None:
    gateway = make_gateway()
    there = gateway.outbound(UDP, INSIDE, WEB, 0.0)
    assert [each.kind for each in gateway.mappings] == [MappingKind.IMPLICIT]
    assert there is not None
    assert pcp_peer(gateway, UDP, 5000, WEB, now=1.0).external_port == there.port
    assert [each.kind for each in gateway.mappings] == [MappingKind.PEER]
    assert pcp_map(gateway, UDP, 5000, now=2.0).external_port == there.port
    assert sorted(each.kind.name for each in gateway.mappings) == ["MAP", "PEER"]
    assert set(externals(gateway)) == {str(there)}


def test_a_restart_ends_what_peer_and_traffic_have_made() -> None:
    gateway = make_gateway()
    pcp_peer(gateway, UDP, 5000, WEB)
    gateway.outbound(UDP, INSIDE, DNS, 1.0)
    drain(gateway)
    gateway.reboot(2.0)
    events = drain(gateway)[1]
    assert [(type(event), event.mapping) for event in events if isinstance(event, MappingDeleted)] == [
        (MappingDeleted, 1)
    ]
    assert len(events) == 1
    assert not gateway.mappings


# --- what is refused


PLAIN = pcp.PeerRequest(LOCAL, NONCE, UDP, 5000, 443, "198.51.100.7", 6000).encode()


def patched(octets: str, offset: int) -> bytes:
    """A PEER request that no constructor makes."""
    return PLAIN[:offset] + bytes.fromhex(octets) + PLAIN[offset + len(octets) // 2 :]


@pytest.mark.requirement("PCP-12-01")
def test_peer_can_be_switched_off_and_map_goes_on() -> None:
    gateway = make_gateway(allow_peer=False)
    refused = pcp_peer(gateway, UDP, 5000, WEB)
    assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 1800)
    assert not gateway.mappings
    assert pcp_map(gateway, UDP, 5000).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-12.1-14")
@pytest.mark.requirement("PCP-12.1-19")
@pytest.mark.parametrize(
    "data",
    [
        PLAIN + pcp.PreferFailure().encode(),
        patched("00", 36),
        patched("0000", 40),
        patched("0000", 60),
    ],
    ids=["PREFER_FAILURE", "protocol", "internal port", "remote port"],
)
def test_a_flow_that_says_too_little_or_too_much_is_malformed_and_comes_back_as_it_was(data: bytes) -> None:
    gateway = make_gateway()
    (reply,), events = exchange(gateway, data)
    assert (reply[1], reply[3], int.from_bytes(reply[4:8])) == (0x82, Code.MALFORMED_REQUEST, 1800)
    assert reply[24:] == data[24:]
    assert events == []
    assert not gateway.mappings


@pytest.mark.requirement("PCP-12.3-03")
@pytest.mark.parametrize(
    ("source", "remote"),
    [
        (HOST, "127.0.0.1"),
        (HOST, "224.0.0.251"),
        (HOST, "0.0.0.0"),
        (V6_HOST, "::1"),
        (V6_HOST, "ff02::fb"),
        (V6_HOST, "::"),
    ],
)
def test_a_remote_peer_that_nobody_can_be_is_malformed(source: Address, remote: str) -> None:
    gateway = make_gateway() if source is HOST else Gateway(None, address=V6_SERVER, rng=Middle(2))
    reply = pcp_peer(gateway, UDP, 5000, endpoint(remote, 80), 6000, source=source)
    assert (reply.result_code, reply.lifetime) == (Code.MALFORMED_REQUEST, 1800)
    assert reply.external_port == 6000
    assert not gateway.mappings


def test_a_protocol_that_is_not_to_be_mapped_is_not_mapped_by_peer_either() -> None:
    gateway = make_gateway(protocols=(6,))
    refused = pcp_peer(gateway, UDP, 5000, WEB)
    assert (refused.result_code, refused.lifetime) == (Code.UNSUPP_PROTOCOL, 1800)
    assert not gateway.mappings


@pytest.mark.requirement("PCP-12.3-01")
def test_of_two_faults_the_first_of_the_section_is_told() -> None:
    """The remote peer, then the suggestion of a new mapping, or the nonce of an old one."""
    gateway = make_gateway()
    pcp_peer(gateway, UDP, 5000, WEB, 6000)
    pcp_map(gateway, UDP, 80, 4000, source=OTHER)
    before = gateway.mappings
    loopback = pcp.PeerRequest(LOCAL, OTHER_NONCE, UDP, 5000, 443, "127.0.0.1", 4000)
    malformed = ask(gateway, loopback)
    assert isinstance(malformed, pcp.PeerResponse)
    assert malformed.result_code == Code.MALFORMED_REQUEST
    assert pcp_peer(gateway, UDP, 5000, WEB, 4000, nonce=OTHER_NONCE).result_code == Code.NOT_AUTHORIZED
    assert pcp_peer(gateway, UDP, 5001, WEB, 4000).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert gateway.mappings == before


def test_a_flow_through_a_firewall_keeps_its_address_and_port() -> None:
    gateway = Gateway(None, address=V6_SERVER, rng=Middle(2))
    remote = endpoint("2001:db8:9::1", 443)
    reply = pcp_peer(gateway, TCP, 5000, remote, source=V6_HOST)
    assert (str(reply.external_address), reply.external_port) == (V6_HOST[0], 5000)
    assert pcp_peer(gateway, TCP, 5001, remote, 6000, source=V6_HOST).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert externals(gateway) == [f"[{V6_HOST[0]}]:5000"]


def test_what_a_nat_engine_has_to_know_of_a_flow_comes_out_as_events() -> None:
    gateway = make_gateway()
    request = pcp.PeerRequest(LOCAL, NONCE, UDP, 5000, 443, "198.51.100.7", 6000, lifetime=600)
    about: dict[str, typing.Any] = {
        "gateway": SERVER,
        "mapping": MappingId(1),
        "kind": MappingKind.PEER,
        "protocol": UDP,
        "internal": INSIDE,
        "external": endpoint(EXTERNAL, 6000),
        "remote": WEB,
    }
    assert exchange(gateway, request.encode(), 0.0)[1] == [MappingCreated(**about, expires_at=600.0)]
    assert exchange(gateway, request.encode(), 300.0)[1] == [MappingRefreshed(**about, expires_at=900.0)]
    gateway.handle_timeout(900.0)
    assert drain(gateway) == ([], [MappingExpired(**about)])


def test_traffic_does_not_lead_past_the_limit_of_all_mappings() -> None:
    gateway = make_gateway(max_mappings=1)
    pcp_map(gateway, TCP, 80, source=OTHER)
    gateway.outbound(UDP, INSIDE, WEB, 0.0)
    before = gateway.mappings
    assert pcp_peer(gateway, UDP, 5000, WEB).result_code == Code.NO_RESOURCES
    assert gateway.mappings == before
