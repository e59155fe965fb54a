"""MAP at the gateway (RFC 6887 sections 10, 11.3, 15.1, 16.3.3, 17.2): which endpoint, for whom, and who may end it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import attrs
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
    GatewayConfig,
    LocalProtocolError,
    MappingCreated,
    MappingExpired,
    MappingId,
    MappingKind,
    Protocol,
    natpmp,
    pcp,
)
from natpmp_sansio.gateway.gateway import GatewayMapping

TCP, UDP, SCTP, GRE = Protocol.TCP, Protocol.UDP, 132, 47
Code = pcp.ResultCode
SECOND = "203.0.113.6"
REMOTE = endpoint("198.51.100.7", 443)
FOREVER = 2**32 - 1
TIME_WAIT = 240  # seconds that TCP may go on after the end of a mapping (section 13.2)
PF = (pcp.PreferFailure(),)


def pool_gateway(external: Sequence[str] = (EXTERNAL, SECOND), **config: typing.Any) -> Gateway:
    """A NAT with two external addresses."""
    return Gateway(external, address=SERVER, config=GatewayConfig(**config), rng=Middle(2))


def ipv6_gateway(external: str | None = None, **config: typing.Any) -> Gateway:
    """A firewall, and with an external address of IPv4 a NAT64 as well."""
    return Gateway(external, address=V6_SERVER, config=GatewayConfig(**config), rng=Middle(2))


# --- a mapping and its endpoint


@pytest.mark.requirement("PCP-11.3-27")
@pytest.mark.requirement("PCP-11-02")
def test_a_mapping_is_open_to_every_remote_peer_and_is_the_only_one_that_is_made() -> None:
    gateway = make_gateway()
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, 8080)
    replies, events = exchange(gateway, request.encode(), 9.0)
    assert replies == [pcp.MapResponse(Code.SUCCESS, 7200, 0, NONCE, TCP, 80, 8080, EXTERNAL).encode()]
    about: dict[str, typing.Any] = {
        "kind": MappingKind.MAP,
        "protocol": TCP,
        "internal": endpoint(LOCAL, 80),
        "external": endpoint(EXTERNAL, 8080),
        "remote": None,
        "size": 1,
        "filters": (),
        "description": "",
        "third_party_id": b"",
        "expires_at": 7209.0,
    }
    assert gateway.mappings == (GatewayMapping(id=MappingId(1), **about),)
    assert events == [MappingCreated(gateway=SERVER, mapping=MappingId(1), **about)]


@pytest.mark.requirement("PCP-11-03")
def test_outbound_packets_of_a_mapped_endpoint_show_its_external_endpoint() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000)
    for remote in (REMOTE, endpoint("192.0.2.9", 53)):
        assert gateway.outbound(UDP, endpoint(LOCAL, 5000), remote, 1.0) == endpoint(EXTERNAL, 6000)
    other = gateway.outbound(UDP, endpoint(LOCAL, 5001), REMOTE, 1.0)
    assert other is not None
    assert other != endpoint(EXTERNAL, 6000)


@pytest.mark.requirement("PCP-11-01")
def test_map_can_be_switched_off_and_peer_goes_on() -> None:
    gateway = make_gateway(allow_map=False)
    for lifetime in (7200, 0):
        refused = pcp_map(gateway, TCP, 80, lifetime=lifetime)
        assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 1800)
    refusal = natpmp.MapResponse(TCP, natpmp.ResultCode.NOT_AUTHORIZED, 0, 80, 0, 0)
    assert ask(gateway, natpmp.MapRequest(TCP, 80)) == refusal
    assert not gateway.mappings
    assert pcp_peer(gateway, TCP, 80, REMOTE).result_code == Code.SUCCESS


# --- several external addresses


@pytest.mark.requirement("PCP-10-02")
@pytest.mark.parametrize("first", ["static", "map", "peer", "implicit"])
def test_a_host_without_a_wish_keeps_to_the_address_it_has(first: str) -> None:
    gateway = pool_gateway()
    if first == "static":
        gateway.add_static(TCP, endpoint(LOCAL, 22), 2222, 0.0, external_address=SECOND)
    elif first == "map":
        pcp_map(gateway, TCP, 22, 2222, address=SECOND)
    elif first == "peer":
        pcp_peer(gateway, TCP, 22, REMOTE, 2222, address=SECOND)
    else:
        pcp_map(gateway, TCP, 22, 2222, address=SECOND)
        assert gateway.outbound(TCP, endpoint(LOCAL, 22), REMOTE, 0.0) == endpoint(SECOND, 2222)
        pcp_map(gateway, TCP, 22, lifetime=0)
    assert {each.external for each in gateway.mappings} == {endpoint(SECOND, 2222)}
    for protocol, port in ((TCP, 80), (UDP, 80)):
        assert pcp_map(gateway, protocol, port).external_address == IPv4Address(SECOND)
    assert pcp_peer(gateway, UDP, 90, REMOTE).external_address == IPv4Address(SECOND)
    assert pcp_map(gateway, TCP, 80, source=OTHER).external_address == IPv4Address(EXTERNAL)


@pytest.mark.requirement("PCP-10-02")
@pytest.mark.parametrize("last", ["static", "implicit"])
def test_a_host_keeps_to_its_address_as_long_as_it_has_any_mapping(last: str) -> None:
    gateway = pool_gateway()
    if last == "static":
        gateway.add_static(TCP, endpoint(LOCAL, 22), 2222, 0.0, external_address=SECOND)
    pcp_map(gateway, UDP, 22, address=SECOND)
    if last == "implicit":
        gateway.outbound(UDP, endpoint(LOCAL, 23), REMOTE, 0.0)
    pcp_map(gateway, UDP, 22, lifetime=0)
    assert [each.kind.name.lower() for each in gateway.mappings] == [last]
    assert pcp_map(gateway, UDP, 80).external_address == IPv4Address(SECOND)


@pytest.mark.requirement("PCP-10-03")
def test_a_host_that_names_another_address_of_the_pool_gets_it() -> None:
    gateway = pool_gateway()
    assert gateway.external_addresses == (IPv4Address(EXTERNAL), IPv4Address(SECOND))
    assert pcp_map(gateway, TCP, 80, 8080).external_address == IPv4Address(EXTERNAL)
    assert pcp_map(gateway, TCP, 81, 8080, address=SECOND).external_address == IPv4Address(SECOND)
    assert pcp_map(gateway, TCP, 82, 0, address=SECOND).external_address == IPv4Address(SECOND)
    assert externals(gateway)[:2] == [f"{EXTERNAL}:8080", f"{SECOND}:8080"]


# --- the order of section 11.3


@pytest.mark.requirement("PCP-11.3-09")
def test_one_nonce_is_remembered_and_only_as_long_as_the_mapping() -> None:
    gateway = make_gateway()
    for now in (0.0, 1.0, 2.0):
        assert pcp_map(gateway, TCP, 80, now=now).result_code == Code.SUCCESS
        refused = pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=now)
        assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 7200)
    assert pcp_map(gateway, TCP, 80, lifetime=0, now=3.0).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=4.0).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, now=4.0).result_code == Code.NOT_AUTHORIZED


def taken() -> Gateway:
    """Port 8080 is this host's until 600, and 9090 the other's until 900; this host may have no more."""
    gateway = make_gateway(max_mappings_per_host=1)
    pcp_map(gateway, TCP, 80, 8080, 600)
    pcp_map(gateway, TCP, 80, 9090, 900, source=OTHER)
    return gateway


def as_map(octets: bytes, *, nonce: bytes = NONCE, protocol: int = TCP) -> bytes:
    """What no constructor makes: other octets in a MAP request."""
    return octets[:24] + nonce + bytes((protocol,)) + octets[37:]


PLAIN = pcp.MapRequest(LOCAL, NONCE, TCP, 80)


@pytest.mark.requirement("PCP-11.3-01")
@pytest.mark.requirement("PCP-7.3-10")
@pytest.mark.parametrize(
    ("code", "lifetime", "data"),
    [  # each has the fault of the next line as well, as far as one request can
        pytest.param(code, lifetime, data, id=code.name)
        for code, lifetime, data in (
            (Code.MALFORMED_REQUEST, 1800, as_map(PLAIN.encode(), nonce=OTHER_NONCE, protocol=0)),
            (Code.UNSUPP_PROTOCOL, 1800, pcp.MapRequest(LOCAL, OTHER_NONCE, SCTP, 80, 9090, options=PF).encode()),
            (Code.NOT_AUTHORIZED, 500, pcp.MapRequest(LOCAL, OTHER_NONCE, TCP, 80, 9090, options=PF).encode()),
            (Code.NOT_AUTHORIZED, 500, pcp.MapRequest(LOCAL, OTHER_NONCE, TCP, 80, lifetime=0).encode()),
            (Code.CANNOT_PROVIDE_EXTERNAL, 1040, pcp.MapRequest(LOCAL, NONCE, TCP, 80, 9090, options=PF).encode()),
            (Code.CANNOT_PROVIDE_EXTERNAL, 1040, pcp.MapRequest(LOCAL, NONCE, TCP, 81, 9090, options=PF).encode()),
            (Code.USER_EX_QUOTA, 30, pcp.MapRequest(LOCAL, NONCE, TCP, 81, 9090).encode()),
        )
    ],
)
def test_of_two_faults_the_first_of_the_section_is_told_and_nothing_changes(
    code: pcp.ResultCode, lifetime: int, data: bytes
) -> None:
    gateway = taken()
    before, deadline = gateway.mappings, gateway.next_timeout()
    (reply,), events = exchange(gateway, data, 100.0)
    assert (reply[3], int.from_bytes(reply[4:8]), reply[24:]) == (code, lifetime, data[24:])
    assert events == []
    assert (gateway.mappings, gateway.next_timeout()) == (before, deadline)


@pytest.mark.requirement("PCP-11.3-11")
@pytest.mark.parametrize("option", [pcp.PreferFailure(), pcp.Filter()])
def test_a_mandatory_option_that_makes_no_sense_in_a_delete_refuses_it(option: pcp.Option) -> None:
    gateway = taken()
    before = gateway.mappings
    delete = pcp.MapRequest(LOCAL, NONCE, TCP, 80, lifetime=0).encode() + option.encode()
    refused = ask(gateway, delete, 100.0)
    assert isinstance(refused, pcp.MapResponse)
    assert (refused.result_code, refused.lifetime) == (Code.MALFORMED_OPTION, 1800)
    assert gateway.mappings == before


@pytest.mark.requirement("PCP-11.3-13")
@pytest.mark.requirement("PCP-13.2-04")
@pytest.mark.parametrize(
    ("suggested", "address", "code", "lifetime"),
    [
        (4000, EXTERNAL, Code.SUCCESS, 7200),
        (4000, None, Code.SUCCESS, 7200),
        (5000, EXTERNAL, Code.CANNOT_PROVIDE_EXTERNAL, 500 + TIME_WAIT),
        (4000, SECOND, Code.CANNOT_PROVIDE_EXTERNAL, 500 + TIME_WAIT),
    ],
)
def test_who_prefers_failure_does_not_get_a_mapping_that_is_elsewhere(
    suggested: int, address: str | None, code: pcp.ResultCode, lifetime: int
) -> None:
    gateway = pool_gateway()
    pcp_map(gateway, TCP, 80, 4000, 600)
    reply = pcp_map(gateway, TCP, 80, suggested, address=address, options=PF, now=100.0)
    assert (reply.result_code, reply.lifetime, reply.options) == (code, lifetime, PF)
    expires_at = 7300.0 if code == Code.SUCCESS else 600.0
    assert [(str(each.external), each.expires_at) for each in gateway.mappings] == [(f"{EXTERNAL}:4000", expires_at)]


IMPOSSIBLE: list[tuple[Protocol, int, str, int]] = [
    (TCP, 4000, EXTERNAL, 500 + TIME_WAIT),  # another host's, for as long as its mapping lives
    (TCP, 1023, EXTERNAL, 30),  # not in the range that is given out
    (UDP, 5350, EXTERNAL, 30),  # PCP's own ports
    (UDP, 5351, EXTERNAL, 30),
    (TCP, 8080, "203.0.113.99", 30),  # not an address of this NAT
    (TCP, 8080, "127.0.0.1", 30),
    (TCP, 8080, "224.0.0.1", 30),
    (TCP, 8080, "::1", 30),
    (TCP, 8080, "2001:db8::5", 30),  # of the other family
]


@pytest.mark.requirement("PCP-11.3-22")
@pytest.mark.parametrize(("protocol", "port", "address", "lifetime"), IMPOSSIBLE)
def test_who_prefers_failure_fails_where_the_suggestion_cannot_be(
    protocol: Protocol, port: int, address: str, lifetime: int
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 4000, 600, source=OTHER)
    before = gateway.mappings
    reply = pcp_map(gateway, protocol, 80, port, address=address, options=PF, now=100.0)
    assert (reply.result_code, reply.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, lifetime)
    assert (reply.external_address, reply.external_port) == (endpoint(address, 0).address, port)
    assert gateway.mappings == before


@pytest.mark.requirement("PCP-11.3-21")
@pytest.mark.requirement("PCP-11.3-23")
@pytest.mark.parametrize(("protocol", "port", "address", "lifetime"), IMPOSSIBLE)
def test_a_suggestion_that_cannot_be_never_does_any_harm(
    protocol: Protocol, port: int, address: str, lifetime: int
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 4000, 600, source=OTHER)
    reply = pcp_map(gateway, protocol, 80, port, address=address, now=100.0)
    assert (reply.result_code, reply.lifetime) == (Code.SUCCESS, 7200)
    assert reply.external_address == IPv4Address(EXTERNAL)
    assert 1024 <= reply.external_port <= 65535
    assert (protocol, reply.external_port) not in [(TCP, 4000), (UDP, 5350), (UDP, 5351)]


def test_the_external_port_of_another_hosts_outbound_mapping_is_taken_too() -> None:
    gateway = make_gateway()
    there = gateway.outbound(UDP, endpoint(OTHER[0], 5000), REMOTE, 0.0)
    assert there is not None
    reply = pcp_map(gateway, UDP, 5000, there.port, options=PF, now=20.0)
    assert (reply.result_code, reply.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, 100 + TIME_WAIT)
    assert pcp_map(gateway, UDP, 5000, there.port, now=20.0).external_port != there.port


# --- what the administrator has configured


@pytest.mark.requirement("PCP-11.3-10")
@pytest.mark.requirement("PCP-11.3-14")
@pytest.mark.requirement("PCP-11.3-15")
def test_a_static_mapping_is_told_to_everybody_with_whatever_nonce_and_does_not_change() -> None:
    gateway = make_gateway()
    entry = gateway.add_static(TCP, endpoint(LOCAL, 80), 80, 0.0)
    static = GatewayMapping(
        id=entry,
        kind=MappingKind.STATIC,
        protocol=TCP,
        internal=endpoint(LOCAL, 80),
        external=endpoint(EXTERNAL, 80),
        remote=None,
        size=1,
        filters=(),
        description="",
        third_party_id=b"",
        expires_at=float("inf"),
    )
    assert gateway.mappings == (static,)
    drain(gateway)
    for nonce, port, address in ((NONCE, 0, EXTERNAL), (OTHER_NONCE, 8080, EXTERNAL), (NONCE, 9, SECOND)):
        request = pcp.MapRequest(LOCAL, nonce, TCP, 80, port, address, 60).encode()
        expected = pcp.MapResponse(Code.SUCCESS, FOREVER, 0, nonce, TCP, 80, 80, EXTERNAL)
        assert exchange(gateway, request) == ([expected.encode()], [])
    natpmp_reply = ask(gateway, natpmp.MapRequest(TCP, 80, 8080, 60))
    assert natpmp_reply == natpmp.MapResponse(TCP, natpmp.ResultCode.SUCCESS, 0, 80, 80, 60)
    assert gateway.mappings == (static,)


@pytest.mark.requirement("PCP-11.3-13")
def test_who_prefers_failure_does_not_get_a_static_mapping_that_is_elsewhere() -> None:
    gateway = make_gateway()
    gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    drain(gateway)
    assert pcp_map(gateway, TCP, 80, 8081, options=PF).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert pcp_map(gateway, TCP, 80, 8080, options=PF).lifetime == FOREVER


@pytest.mark.requirement("PCP-15.1-09")
def test_nobody_can_delete_a_static_mapping_and_a_restart_does_not() -> None:
    gateway = make_gateway()
    gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    drain(gateway)
    before = gateway.mappings
    for nonce in (NONCE, OTHER_NONCE):
        assert pcp_map(gateway, TCP, 80, lifetime=0, nonce=nonce).result_code == Code.NOT_AUTHORIZED
    refused = natpmp.MapResponse(TCP, natpmp.ResultCode.NOT_AUTHORIZED, 0, 80, 0, 0)
    assert ask(gateway, natpmp.MapRequest(TCP, 80, 0, 0)) == refused
    gateway.reboot(10.0)
    assert drain(gateway)[1] == []
    assert gateway.mappings == before
    assert pcp_map(gateway, TCP, 80, 8080, source=OTHER, now=11.0).external_port != 8080


@pytest.mark.parametrize("address", [None, SECOND])
def test_the_administrator_chooses_the_external_endpoint_of_a_static_mapping(address: str | None) -> None:
    gateway = pool_gateway()
    entry = gateway.add_static(UDP, endpoint(LOCAL, 53), 53, 7.0, external_address=address)
    assert externals(gateway) == [f"{address or EXTERNAL}:53"]
    _, (event,) = drain(gateway)
    assert isinstance(event, MappingCreated)
    assert (event.mapping, event.kind, event.expires_at) == (entry, MappingKind.STATIC, float("inf"))
    assert gateway.revoke(entry, 8.0) is True
    assert not gateway.mappings


@pytest.mark.parametrize("protocol", [TCP, Protocol.ALL])
def test_the_administrator_gives_one_host_all_ports_if_nobody_else_has_any(protocol: Protocol) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, source=OTHER)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=f"{LOCAL}:0 cannot be mapped to {EXTERNAL}:0: one of them is"):
            gateway.add_static(protocol, endpoint(LOCAL, 0), 0, 10.0)
    assert pcp_map(gateway, TCP, 80, lifetime=0, source=OTHER, now=20.0).result_code == Code.SUCCESS
    gateway.add_static(protocol, endpoint(LOCAL, 0), 0, 30.0)
    assert externals(gateway) == [f"{EXTERNAL}:0"]
    assert pcp_map(gateway, TCP, 80, source=OTHER, now=40.0).result_code == Code.NO_RESOURCES
    gateway.set_external_address(SECOND, 50.0)
    assert externals(gateway) == [f"{SECOND}:0"]


@pytest.mark.parametrize(
    ("internal", "port", "address"),
    [
        (endpoint(LOCAL, 80), 0, None),
        (endpoint(LOCAL, 0), 80, None),
        (endpoint(LOCAL, 80), 65536, None),
        (endpoint(LOCAL, 80), 80, "203.0.113.99"),
        (endpoint(LOCAL, 80), 4000, None),  # another host's
        (endpoint(LOCAL, 90), 90, None),  # has a mapping
        (endpoint(LOCAL, 91), 91, None),  # leaves by another port
        (endpoint(V6_HOST[0], 80), 81, None),  # a firewall changes no ports
    ],
)
def test_the_administrator_cannot_configure_what_cannot_be(internal: Endpoint, port: int, address: str | None) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 4000, source=OTHER)
    pcp_map(gateway, TCP, 90, 9090)
    gateway.outbound(TCP, endpoint(LOCAL, 91), REMOTE, 0.0)
    drain(gateway)
    before = gateway.mappings
    with pytest.raises(LocalProtocolError, match="one of them is taken, or no endpoint"):
        gateway.add_static(TCP, internal, port, 1.0, external_address=address)
    assert gateway.mappings == before
    assert list(gateway.outputs()) == []


def test_the_administrator_may_configure_a_port_whose_mapping_has_just_ended() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, 600, source=OTHER)
    drain(gateway)
    static = gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 600.0)
    first, second = drain(gateway)[1]
    assert isinstance(first, MappingExpired)
    assert isinstance(second, MappingCreated)
    assert (first.mapping, second.mapping, [each.id for each in gateway.mappings]) == (1, static, [static])


# --- outbound mappings that are there before (section 11.3, 16.2)


@pytest.mark.requirement("PCP-11.3-18")
@pytest.mark.requirement("PCP-15.1-08")
@pytest.mark.parametrize("kind", [MappingKind.PEER, MappingKind.IMPLICIT])
def test_an_inbound_mapping_replicates_the_outbound_one_which_outlives_it(kind: MappingKind) -> None:
    gateway = make_gateway()
    if kind is MappingKind.PEER:
        external = pcp_peer(gateway, UDP, 5000, REMOTE).external_port
    else:
        there = gateway.outbound(UDP, endpoint(LOCAL, 5000), REMOTE, 0.0)
        assert there is not None
        external = there.port
    assert pcp_map(gateway, UDP, 5000, 0, 600).external_port == external
    inbound = [each for each in gateway.mappings if each.kind is MappingKind.MAP]
    assert [(each.external.port, each.remote, each.expires_at) for each in inbound] == [(external, None, 600.0)]
    for now in (100.0, 200.0, 300.0, 400.0, 500.0, 590.0):
        assert gateway.outbound(UDP, endpoint(LOCAL, 5000), REMOTE, now) == endpoint(EXTERNAL, external)
    gateway.handle_timeout(600.0)
    assert [(each.kind, each.external.port, each.remote) for each in gateway.mappings] == [(kind, external, REMOTE)]


@pytest.mark.requirement("PCP-11.3-13")
def test_who_prefers_failure_does_not_get_the_endpoint_of_an_outbound_mapping_that_is_elsewhere() -> None:
    gateway = make_gateway()
    external = pcp_peer(gateway, UDP, 5000, REMOTE, lifetime=600).external_port
    elsewhere = pcp_map(gateway, UDP, 5000, external + 1, options=PF, now=100.0)
    assert (elsewhere.result_code, elsewhere.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, 500 + TIME_WAIT)
    assert pcp_map(gateway, UDP, 5000, external, options=PF, now=100.0).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-15.1-09")
@pytest.mark.parametrize("kind", [MappingKind.PEER, MappingKind.IMPLICIT])
def test_map_cannot_delete_an_outbound_mapping(kind: MappingKind) -> None:
    gateway = make_gateway()
    if kind is MappingKind.PEER:
        pcp_peer(gateway, UDP, 5000, REMOTE)
    else:
        gateway.outbound(UDP, endpoint(LOCAL, 5000), REMOTE, 0.0)
    before = gateway.mappings
    assert [each.kind for each in before] == [kind]
    assert pcp_map(gateway, UDP, 5000, lifetime=0, now=1.0).result_code == Code.NOT_AUTHORIZED
    assert gateway.mappings == before


# --- whole protocols, and everything


@pytest.mark.requirement("PCP-15.1-02")
@pytest.mark.requirement("PCP-15.1-03")
@pytest.mark.parametrize("protocol", [TCP, UDP, Protocol.ALL])
def test_a_wildcard_mapping_is_made_and_only_its_nonce_deletes_it(protocol: Protocol) -> None:
    gateway = make_gateway(allow_wildcards=True)
    granted = pcp_map(gateway, protocol, 0, 0, 600)
    assert (granted.result_code, granted.lifetime) == (Code.SUCCESS, 600)
    assert (granted.external_address, granted.external_port) == (IPv4Address(EXTERNAL), 0)
    (mapping,) = gateway.mappings
    assert (mapping.protocol, mapping.internal, mapping.external) == (
        protocol,
        endpoint(LOCAL, 0),
        endpoint(EXTERNAL, 0),
    )
    refused = pcp_map(gateway, protocol, 0, lifetime=0, nonce=OTHER_NONCE, now=100.0)
    assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 500)
    assert pcp_map(gateway, protocol, 0, nonce=OTHER_NONCE, now=100.0).result_code == Code.NOT_AUTHORIZED
    assert gateway.mappings == (mapping,)
    deleted = pcp_map(gateway, protocol, 0, lifetime=0, now=100.0)
    assert (deleted.result_code, deleted.lifetime) == (Code.SUCCESS, 0)
    assert not gateway.mappings


@pytest.mark.requirement("PCP-11.3-04")
@pytest.mark.requirement("PCP-11.3-05")
@pytest.mark.parametrize("protocol", [TCP, Protocol.ALL])
@pytest.mark.parametrize("first", ["map", "peer", "implicit", "static", "wildcard", "DMZ"])
def test_a_wildcard_that_cannot_be_had_in_its_entirety_is_not_had(protocol: Protocol, first: str) -> None:
    gateway = make_gateway(allow_wildcards=True)
    if first == "map":
        pcp_map(gateway, TCP, 80, source=OTHER)
    elif first == "peer":
        pcp_peer(gateway, TCP, 80, REMOTE, source=OTHER)
    elif first == "implicit":
        gateway.outbound(TCP, endpoint(OTHER[0], 80), REMOTE, 0.0)
    elif first == "static":
        gateway.add_static(TCP, endpoint(OTHER[0], 80), 8080, 0.0)
    else:
        assert pcp_map(gateway, TCP if first == "wildcard" else 0, 0, source=OTHER).result_code == Code.SUCCESS
    drain(gateway)
    before = gateway.mappings
    assert len(before) == 1
    refused = pcp_map(gateway, protocol, 0)
    assert (refused.result_code, refused.lifetime) == (Code.UNSUPP_PROTOCOL, 1800)
    assert gateway.mappings == before


@pytest.mark.requirement("PCP-11.3-24")
@pytest.mark.parametrize("protocol", [TCP, Protocol.ALL])
def test_while_one_host_has_a_whole_protocol_the_others_have_nothing_of_it(protocol: Protocol) -> None:
    gateway = make_gateway(allow_wildcards=True)
    assert pcp_map(gateway, protocol, 0).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, source=OTHER).result_code == Code.NO_RESOURCES
    udp = pcp_map(gateway, UDP, 80, source=OTHER).result_code
    assert udp == (Code.SUCCESS if protocol is TCP else Code.NO_RESOURCES)
    assert gateway.outbound(TCP, endpoint(OTHER[0], 80), REMOTE, 0.0) is None


@pytest.mark.requirement("PCP-2.2-01")
def test_protocols_without_ports_are_for_firewalls_only() -> None:
    assert pcp_map(make_gateway(allow_wildcards=True), GRE, 0).result_code == Code.UNSUPP_PROTOCOL
    gateway = ipv6_gateway(allow_wildcards=True)
    assert pcp_map(gateway, GRE, 80, source=V6_HOST).result_code == Code.UNSUPP_PROTOCOL
    granted = pcp_map(gateway, GRE, 0, source=V6_HOST)
    assert (granted.result_code, granted.external_address, granted.external_port) == (
        Code.SUCCESS,
        IPv6Address(V6_HOST[0]),
        0,
    )
    assert pcp_map(ipv6_gateway(), GRE, 0, source=V6_HOST).result_code == Code.UNSUPP_PROTOCOL


@pytest.mark.requirement("PCP-11.3-22")
def test_who_insists_on_an_external_port_for_all_ports_fails() -> None:
    gateway = make_gateway(allow_wildcards=True)
    assert pcp_map(gateway, TCP, 0, 8080, options=PF).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert not gateway.mappings


# --- SCTP keeps its ports


@pytest.mark.requirement("PCP-16.3.3-04")
def test_an_sctp_port_stays_itself_or_cannot_be_had() -> None:
    gateway = make_gateway(protocols=(6, 17, SCTP))
    assert pcp_map(gateway, SCTP, 5000, 6000, 600).external_port == 5000
    for options in ((), PF):
        refused = pcp_map(gateway, SCTP, 5000, 5000, source=OTHER, options=options, now=100.0)
        assert (refused.result_code, refused.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, 500 + TIME_WAIT)
    assert pcp_map(gateway, SCTP, 5000, source=OTHER, now=100.0).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert pcp_map(gateway, SCTP, 5001, source=OTHER, now=100.0).external_port == 5001
    assert pcp_map(gateway, TCP, 5000, 5000, source=OTHER, now=100.0).result_code == Code.SUCCESS
    assert externals(gateway) == [f"{EXTERNAL}:5000", f"{EXTERNAL}:5001", f"{EXTERNAL}:5000"]


@pytest.mark.requirement("PCP-16.3.3-04")
def test_an_sctp_port_that_is_not_given_out_cannot_be_had() -> None:
    gateway = make_gateway(protocols=(6, 17, SCTP))
    refused = pcp_map(gateway, SCTP, 80)
    assert (refused.result_code, refused.lifetime) == (Code.CANNOT_PROVIDE_EXTERNAL, 30)


@pytest.mark.requirement("PCP-11.3-22")
@pytest.mark.requirement("PCP-12.1-13")
def test_who_insists_on_another_external_port_than_sctp_has_fails() -> None:
    gateway = make_gateway(protocols=(6, 17, SCTP))
    assert pcp_map(gateway, SCTP, 5000, 6000, options=PF).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert pcp_peer(gateway, SCTP, 5000, REMOTE, 6000).result_code == Code.CANNOT_PROVIDE_EXTERNAL
    assert not gateway.mappings


# --- IPv6


@pytest.mark.parametrize(
    ("suggested", "options", "code"), [(443, PF, Code.SUCCESS), (8443, PF, Code.CANNOT_PROVIDE_EXTERNAL)]
)
def test_a_pinhole_cannot_be_elsewhere(suggested: int, options: tuple[pcp.Option, ...], code: pcp.ResultCode) -> None:
    gateway = ipv6_gateway()
    reply = pcp_map(gateway, TCP, 443, suggested, address=V6_HOST[0], source=V6_HOST, options=options)
    assert reply.result_code == code
    assert externals(gateway) == ([f"[{V6_HOST[0]}]:443"] if code == Code.SUCCESS else [])


@pytest.mark.requirement("PCP-15.1-06")
def test_a_nat64_maps_to_ipv4_and_to_ipv6_and_the_family_says_which_is_deleted() -> None:
    """Erratum 3621."""
    gateway = ipv6_gateway(EXTERNAL)
    inside = pcp_map(gateway, TCP, 443, 8443, address="0.0.0.0", source=V6_HOST)
    assert (inside.external_address, inside.external_port) == (IPv4Address(EXTERNAL), 8443)
    pinhole = pcp_map(gateway, TCP, 443, 0, address="::", source=V6_HOST)
    assert (pinhole.external_address, pinhole.external_port) == (IPv6Address(V6_HOST[0]), 443)
    assert externals(gateway) == [f"{EXTERNAL}:8443", f"[{V6_HOST[0]}]:443"]
    deleted = pcp_map(gateway, TCP, 443, 0, 0, address="0.0.0.0", source=V6_HOST)
    assert (deleted.result_code, deleted.external_address) == (Code.SUCCESS, IPv4Address(0))
    assert externals(gateway) == [f"[{V6_HOST[0]}]:443"]
    assert pcp_map(gateway, TCP, 443, 0, 0, address="::", source=V6_HOST).external_address == IPv6Address(0)
    assert not gateway.mappings


@pytest.mark.parametrize("port", [5350, 5351])
def test_a_pinhole_for_the_protocols_themselves_cannot_be_had(port: int) -> None:
    gateway = ipv6_gateway()
    refused = pcp_map(gateway, UDP, port, source=V6_HOST)
    assert (refused.result_code, refused.lifetime) == (Code.NO_RESOURCES, 30)
    assert not gateway.mappings
    assert pcp_map(gateway, TCP, port, source=V6_HOST).external_port == port


@pytest.mark.requirement("PCP-15.1-06")
def test_a_delete_that_knows_of_no_families_means_the_hosts_own() -> None:
    gateway = pool_gateway((EXTERNAL, "2001:db8::5"))
    assert pcp_map(gateway, TCP, 80).external_address == IPv4Address(EXTERNAL)
    deleted = pcp_map(gateway, TCP, 80, lifetime=0, address="::")
    assert (deleted.result_code, deleted.external_address) == (Code.SUCCESS, IPv6Address(0))
    assert not gateway.mappings


@pytest.mark.requirement("PCP-15.1-06")
@pytest.mark.requirement("PCP-15.1-07")
def test_a_delete_by_an_ipv4_host_that_says_ipv6_means_its_only_mapping() -> None:
    """RFC 6887 as printed has a delete carry zeros, whatever the family."""
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80)
    deleted = pcp_map(gateway, TCP, 80, 9, 0, address="::")
    assert (deleted.result_code, deleted.lifetime) == (Code.SUCCESS, 0)
    assert (deleted.external_address, deleted.external_port) == (IPv6Address(0), 9)
    assert not gateway.mappings


# --- limits


@pytest.mark.requirement("PCP-17.2-01")
def test_the_whole_table_has_a_limit_which_no_renewal_runs_into() -> None:
    gateway = make_gateway(max_mappings=2)
    pcp_map(gateway, TCP, 80)
    pcp_map(gateway, TCP, 80, source=OTHER)
    for protocol, port in ((TCP, 81), (UDP, 80)):
        refused = pcp_map(gateway, protocol, port)
        assert (refused.result_code, refused.lifetime) == (Code.NO_RESOURCES, 30)
        assert pcp_peer(gateway, protocol, port, REMOTE).result_code == Code.NO_RESOURCES
    assert pcp_map(gateway, TCP, 80).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, lifetime=0).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 81).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-15-02")
def test_a_gateway_that_is_more_than_half_full_grants_little_to_newcomers() -> None:
    gateway = make_gateway(max_mappings=4)
    assert [pcp_map(gateway, TCP, port).lifetime for port in (1, 2, 3, 4)] == [7200, 7200, 120, 120]
    assert pcp_map(gateway, TCP, 4, now=60.0).lifetime == 7200  # it is still there: no flood
    assert pcp_map(gateway, TCP, 1, now=60.0).lifetime == 7200


def test_the_traffic_of_one_host_does_not_keep_others_from_asking() -> None:
    gateway = make_gateway(max_mappings=4)
    flows = [gateway.outbound(UDP, endpoint(OTHER[0], port), REMOTE, 0.0) for port in range(1, 6)]
    assert [flow is not None for flow in flows] == [True] * 4 + [False]
    assert pcp_map(gateway, TCP, 80).result_code == Code.SUCCESS
    gateway.handle_timeout(120.0)
    assert gateway.outbound(UDP, endpoint(OTHER[0], 5), REMOTE, 120.0) is not None


# --- what the administrator says


@pytest.mark.requirement("PCP-11.3-21")
@pytest.mark.parametrize("code", [Code.NOT_AUTHORIZED, Code.NETWORK_FAILURE, Code.USER_EX_QUOTA])
def test_a_policy_sees_each_request_and_refuses_what_it_does_not_like(code: pcp.ResultCode) -> None:
    seen: list[tuple[object, Address]] = []

    def policy(message: object, source: Address) -> pcp.ResultCode | None:
        seen.append((message, source))
        return code if source == OTHER else None

    gateway = Gateway(EXTERNAL, address=SERVER, policy=policy, rng=Middle(2))
    announce = pcp.AnnounceRequest(OTHER[0])
    map_request = pcp.MapRequest(OTHER[0], NONCE, TCP, 80)
    peer_request = pcp.PeerRequest(OTHER[0], NONCE, TCP, 80, 443, "198.51.100.7")
    requests = (announce, map_request, attrs.evolve(map_request, lifetime=0), peer_request)
    for request in requests:
        (reply,), events = exchange(gateway, request.encode(), 0.0, OTHER)
        assert (reply[3], int.from_bytes(reply[4:8]), reply[24:]) == (code, code.lifetime, request.encode()[24:])
        assert events == []
    assert seen == [(request, OTHER) for request in requests]
    assert not gateway.mappings
    assert pcp_map(gateway, TCP, 80).result_code == Code.SUCCESS
    assert seen[-1] == (pcp.MapRequest(LOCAL, NONCE, TCP, 80), HOST)


@pytest.mark.parametrize(
    ("protocol", "host", "port"), [(0, LOCAL, 80), (UDP, V6_HOST[0], 5351), (UDP, LOCAL, 5350), (256, LOCAL, 80)]
)
def test_what_no_request_could_ask_for_cannot_be_configured_either(protocol: int, host: str, port: int) -> None:
    gateway = make_gateway()
    with pytest.raises(LocalProtocolError):
        gateway.add_static(protocol, endpoint(host, port), port, 0.0)
    assert not gateway.mappings
