"""The options at the gateway: RFC 6887 section 13, DESCRIPTION (RFC 7220), PREFIX64 (7225), PORT_SET (7753) and
THIRD_PARTY_ID (7843)."""

from __future__ import annotations

import typing
from ipaddress import IPv4Address, IPv6Address

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
    sent_until,
)
from natpmp_sansio import (
    Address,
    Gateway,
    GatewayConfig,
    MappingCreated,
    MappingDeleted,
    MappingRefreshed,
    Protocol,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.wire.options import RawOption

TCP, UDP = Protocol.TCP, Protocol.UDP
Code = pcp.ResultCode
WEB = endpoint("198.51.100.7", 443)
PLAIN = pcp.MapRequest(LOCAL, NONCE, TCP, 80)
NEIGHBOUR = IPv4Address("192.168.1.20")
FOR_NEIGHBOUR = pcp.ThirdParty(NEIGHBOUR)


def refusal(gateway: Gateway, data: bytes, now: float = 0.0, source: Address = HOST) -> tuple[int, int]:
    """Result code and lifetime of what has to be a refusal: a copy of the request, and nothing has changed."""
    before = gateway.mappings
    (reply,), events = exchange(gateway, data, now, source)
    assert reply[24:] == data[24:]
    assert reply[3] != 0
    assert events == []
    assert gateway.mappings == before
    return reply[3], int.from_bytes(reply[4:8])


# --- THIRD_PARTY (RFC 6887 section 13.1)


@pytest.mark.requirement("PCP-13.1-01")
@pytest.mark.requirement("PCP-13.1-06")
@pytest.mark.requirement("PCP-13.1-07")
@pytest.mark.requirement("PCP-13.1-08")
def test_a_mapping_for_another_host_is_refused_until_that_is_switched_on() -> None:
    peer = pcp.PeerRequest(LOCAL, NONCE, TCP, 80, 443, "198.51.100.7", options=(FOR_NEIGHBOUR,))
    for request in (pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(FOR_NEIGHBOUR,)), peer):
        assert refusal(make_gateway(), request.encode()) == (Code.UNSUPP_OPTION, 1800)
        gateway = make_gateway(allow_third_party=True)
        reply = ask(gateway, request)
        assert isinstance(reply, pcp.MapResponse | pcp.PeerResponse)
        assert (reply.result_code, reply.options) == (Code.SUCCESS, (FOR_NEIGHBOUR,))
        assert [each.internal for each in gateway.mappings] == [endpoint(NEIGHBOUR, 80)]


@pytest.mark.requirement("PCP-13.1-09")
@pytest.mark.requirement("PCP-13.1-10")
def test_the_policy_says_who_may_map_for_others_and_to_the_rest_the_option_is_unsupported() -> None:
    def policy(message: object, source: Address) -> pcp.ResultCode | None:
        stranger = source[0] != LOCAL
        third_party = any(isinstance(each, pcp.ThirdParty) for each in getattr(message, "options", ()))
        return Code.NOT_AUTHORIZED if stranger and third_party else None

    config = GatewayConfig(allow_third_party=True)
    gateway = Gateway(EXTERNAL, address=SERVER, config=config, policy=policy, rng=Middle(2))
    request = pcp.MapRequest(OTHER[0], NONCE, TCP, 80, options=(FOR_NEIGHBOUR,))
    assert refusal(gateway, request.encode(), source=OTHER) == (Code.UNSUPP_OPTION, 1800)
    assert pcp_map(gateway, TCP, 80, options=(FOR_NEIGHBOUR,)).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, source=OTHER).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-11.3-02")
@pytest.mark.requirement("PCP-13.1-03")
def test_a_mapping_for_another_host_is_that_hosts_and_the_answer_says_whose() -> None:
    gateway = make_gateway(allow_third_party=True)
    granted = pcp_map(gateway, TCP, 80, 8080, 600, options=(FOR_NEIGHBOUR,))
    assert granted == pcp.MapResponse(Code.SUCCESS, 600, 0, NONCE, TCP, 80, 8080, EXTERNAL, (FOR_NEIGHBOUR,))
    own = pcp_map(gateway, TCP, 80, 8081)
    assert (own.result_code, own.external_port, own.options) == (Code.SUCCESS, 8081, ())
    neighbour: Address = (str(NEIGHBOUR), 40009)
    refused = pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, source=neighbour, now=100.0)
    assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 500)
    assert pcp_map(gateway, TCP, 80, source=neighbour, now=100.0).external_port == 8080
    deleted = pcp_map(gateway, TCP, 80, lifetime=0, options=(FOR_NEIGHBOUR,), now=200.0)
    assert (deleted.result_code, deleted.lifetime, deleted.options) == (Code.SUCCESS, 0, (FOR_NEIGHBOUR,))
    assert [str(each.internal) for each in gateway.mappings] == [f"{LOCAL}:80"]


def test_a_mapping_for_another_host_counts_in_that_hosts_quota() -> None:
    gateway = make_gateway(allow_third_party=True, max_mappings_per_host=1)
    assert pcp_map(gateway, TCP, 80, options=(FOR_NEIGHBOUR,)).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 81, options=(FOR_NEIGHBOUR,)).result_code == Code.USER_EX_QUOTA
    assert pcp_map(gateway, TCP, 80).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-13.1-05")
def test_nobody_is_a_third_party_to_himself() -> None:
    data = PLAIN.encode() + pcp.ThirdParty(LOCAL).encode()
    assert refusal(make_gateway(allow_third_party=True), data) == (Code.MALFORMED_REQUEST, 1800)


@pytest.mark.requirement("PCP-18.2-02")
def test_a_gateway_that_can_authenticate_its_clients_does_not_trust_those_that_have_not() -> None:
    gateway = Gateway(EXTERNAL, address=SERVER, authenticator=lambda message, source, epoch: None, rng=Middle(2))
    data = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(FOR_NEIGHBOUR,)).encode()
    assert refusal(gateway, data) == (Code.UNSUPP_OPTION, 1800)
    assert pcp_map(gateway, TCP, 80, lifetime=604800).lifetime == 86400
    assert pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE).result_code == Code.NOT_AUTHORIZED


@pytest.mark.parametrize("address", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "ff02::1"])
def test_nobody_can_map_for_an_address_that_no_host_can_have(address: str) -> None:
    gateway = make_gateway(allow_third_party=True)
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(pcp.ThirdParty(address),))
    assert refusal(gateway, request.encode()) == (Code.MALFORMED_REQUEST, 1800)


# --- PREFER_FAILURE (section 13.2)


@pytest.mark.requirement("PCP-13.2-05")
def test_who_prefers_failure_has_to_name_a_port() -> None:
    data = PLAIN.encode() + pcp.PreferFailure().encode()
    assert refusal(make_gateway(), data) == (Code.MALFORMED_OPTION, 1800)


def test_who_prefers_failure_and_succeeds_is_told_that_the_option_was_processed() -> None:
    reply = pcp_map(make_gateway(), TCP, 80, 8080, options=(pcp.PreferFailure(),))
    assert (reply.result_code, reply.external_port, reply.options) == (Code.SUCCESS, 8080, (pcp.PreferFailure(),))


# --- FILTER (section 13.3)

ONE = pcp.Filter(128, 443, IPv4Address("198.51.100.7"))
NET = pcp.Filter(120, 0, IPv4Address("192.0.2.0"))
CLEAR = pcp.Filter()


@pytest.mark.requirement("PCP-13.3-12")
@pytest.mark.parametrize("limit", [1, 16])
def test_a_filter_is_kept_told_and_handed_to_the_nat_engine(limit: int) -> None:
    gateway = make_gateway(max_filters=limit)
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(ONE,)).encode()
    for now, kind in ((0.0, MappingCreated), (1.0, MappingRefreshed)):  # a repetition adds nothing
        (reply,), (event,) = exchange(gateway, request, now)
        response = decode(reply)
        assert isinstance(response, pcp.MapResponse)
        assert (response.result_code, response.options) == (Code.SUCCESS, (ONE,))
        assert isinstance(event, kind)
        assert event.filters == (ONE,)
        assert [each.filters for each in gateway.mappings] == [(ONE,)]


@pytest.mark.requirement("PCP-13.3-05")
@pytest.mark.requirement("PCP-13.3-08")
@pytest.mark.requirement("PCP-7.3-08")
@pytest.mark.requirement("PCP-7.3-12")
@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ((), (ONE,), (ONE,)),  # a mapping without filters has one then
        ((), (ONE, NET), (ONE, NET)),
        ((ONE,), (NET,), (ONE, NET)),
        ((ONE,), (), (ONE,)),
        ((ONE, NET), (CLEAR,), ()),
        ((ONE,), (CLEAR, NET), (NET,)),  # in the order in which they stand
        ((ONE,), (NET, CLEAR), ()),
        ((), (CLEAR,), ()),
    ],
)
def test_filters_add_up_until_they_are_cleared(
    before: tuple[pcp.Filter, ...], asked: tuple[pcp.Filter, ...], after: tuple[pcp.Filter, ...]
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, options=before)
    reply = pcp_map(gateway, TCP, 80, options=asked, now=1.0)
    assert (reply.result_code, reply.options) == (Code.SUCCESS, asked)
    assert [each.filters for each in gateway.mappings] == [after]


@pytest.mark.requirement("PCP-13.3-11")
@pytest.mark.parametrize("asked", [(NET,), (ONE, NET), (CLEAR, ONE, NET)])
def test_filters_beyond_the_limit_refuse_the_whole_request(asked: tuple[pcp.Filter, ...]) -> None:
    gateway = make_gateway(max_filters=1)
    pcp_map(gateway, TCP, 80, options=(ONE,))
    data = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=asked).encode()
    assert refusal(gateway, data, 10.0) == (Code.EXCESSIVE_REMOTE_PEERS, 1800)
    assert pcp_map(gateway, TCP, 80, options=(CLEAR, NET), now=20.0).result_code == Code.SUCCESS
    assert [each.filters for each in gateway.mappings] == [(NET,)]


@pytest.mark.requirement("PCP-13.3-06")
@pytest.mark.requirement("PCP-13.3-10")
@pytest.mark.requirement("PCP-7.3-10")
@pytest.mark.parametrize("bits", [1, 24, 95, 129, 255])
def test_one_bad_filter_fails_the_whole_request(bits: int) -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, options=(ONE,))
    bad = RawOption(3, bytes((0, bits, 0, 0)) + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 0)))
    data = PLAIN.encode() + NET.encode() + bad.encode()
    assert refusal(gateway, data, 10.0) == (Code.MALFORMED_OPTION, 1800)


@pytest.mark.requirement("PCP-13.3-09")
def test_a_delete_has_nothing_to_filter() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, options=(ONE,))
    data = pcp.MapRequest(LOCAL, NONCE, TCP, 80, lifetime=0).encode() + ONE.encode()
    assert refusal(gateway, data, 10.0) == (Code.MALFORMED_OPTION, 1800)


def test_the_filters_of_a_static_mapping_are_not_for_a_request_to_change() -> None:
    gateway = make_gateway()
    gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    drain(gateway)
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(pcp.Filter(128, 443, "198.51.100.7"),))
    assert refusal(gateway, request.encode()) == (Code.UNSUPP_OPTION, 1800)
    assert pcp_map(gateway, TCP, 80).external_port == 8080


# --- DESCRIPTION (RFC 7220)


@pytest.mark.requirement("EXT7220-3-05")
@pytest.mark.requirement("EXT7220-3-06")
@pytest.mark.requirement("EXT7220-3-07")
@pytest.mark.requirement("EXT7220-4-01")
@pytest.mark.parametrize(
    ("limit", "text", "stored"),
    [
        (128, "web server", "web server"),
        (128, "x" * 128, "x" * 128),
        (128, "x" * 300, "x" * 128),
        (128, "x" + "é" * 64, "x" + "é" * 63),  # 129 octets; the cut moves to the left
        (128, "xx" + "\N{SNOWMAN}" * 43, "xx" + "\N{SNOWMAN}" * 42),
        (4, "abc\N{GRINNING FACE}", "abc"),
        (1, "é", ""),
    ],
)
def test_a_description_is_stored_up_to_a_limit_and_told_as_it_is_stored(limit: int, text: str, stored: str) -> None:
    gateway = make_gateway(max_description=limit)
    asked = (pcp.Description(text),)
    assert pcp_map(gateway, TCP, 80, options=asked).options == (pcp.Description(stored),)
    assert pcp_peer(gateway, UDP, 90, WEB, options=asked).options == (pcp.Description(stored),)
    assert [each.description for each in gateway.mappings] == [stored, stored]


def test_128_octets_of_a_description_are_kept_by_default() -> None:
    assert pcp_map(make_gateway(), TCP, 80, options=(pcp.Description("x" * 300),)).options == (
        pcp.Description("x" * 128),
    )


@pytest.mark.requirement("EXT7220-2-02")
@pytest.mark.requirement("EXT7220-3-04")
@pytest.mark.requirement("EXT7220-3-10")
@pytest.mark.requirement("EXT7220-3-11")
def test_a_description_stays_is_replaced_and_is_erased() -> None:
    gateway = make_gateway()

    def renew(text: str | None, now: float) -> tuple[tuple[pcp.Option, ...], str, str]:
        options = () if text is None else (pcp.Description(text),)
        data = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=options).encode()
        (reply,), (event,) = exchange(gateway, data, now)
        response = decode(reply)
        assert isinstance(response, pcp.MapResponse)
        assert isinstance(event, MappingCreated | MappingRefreshed)
        (mapping,) = gateway.mappings
        return response.options, mapping.description, event.description

    assert renew("old", 0.0) == ((pcp.Description("old"),), "old", "old")
    assert renew(None, 1.0) == ((), "old", "old")
    assert renew("new", 2.0) == ((pcp.Description("new"),), "new", "new")
    assert renew("", 3.0) == ((pcp.Description(""),), "", "")
    assert renew(None, 4.0) == ((), "", "")


@pytest.mark.requirement("EXT7220-3-08")
@pytest.mark.requirement("EXT7220-3-09")
def test_a_description_that_is_no_text_is_left_out_and_changes_nothing() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, lifetime=600, options=(pcp.Description("web"),))
    reply = ask(gateway, PLAIN.encode() + RawOption(128, b"\xff\xfe").encode(), 10.0)
    assert reply == pcp.MapResponse(Code.SUCCESS, 7200, 10, NONCE, TCP, 80, gateway.mappings[0].external.port, EXTERNAL)
    assert [(each.description, each.expires_at) for each in gateway.mappings] == [("web", 7210.0)]


# --- PREFIX64 (RFC 7225)

PREFIX = pcp.Prefix64("2001:db8:122:300::/56")
SUFFIXED = pcp.Prefix64("2001:db8:64::/96", b"", ["192.0.2.0/24", "198.51.100.0/24"])
ROUNDS = [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75]


def nat64() -> Gateway:
    return Gateway(EXTERNAL, address=V6_SERVER, rng=Middle(2))


@pytest.mark.requirement("EXT7225-4.2-01")
@pytest.mark.requirement("EXT7225-4.2-02")
@pytest.mark.requirement("EXT7225-4.2-03")
@pytest.mark.requirement("EXT7225-4.1-07")
@pytest.mark.parametrize("prefixes", [(), (PREFIX,), (SUFFIXED, PREFIX)])
def test_a_nat64_tells_its_prefixes_to_those_who_ask(prefixes: tuple[pcp.Prefix64, ...]) -> None:
    gateway = nat64()
    gateway.set_prefix64(prefixes, 0.0)
    drain(gateway)
    question = (pcp.Prefix64(),)
    assert pcp_map(gateway, TCP, 80, source=V6_HOST, options=question).options == prefixes
    assert pcp_map(gateway, TCP, 80, source=V6_HOST).options == ()
    client = IPv6Address(V6_HOST[0])
    told = ask(gateway, pcp.AnnounceRequest(client, question), 5.0, V6_HOST)
    assert told == pcp.AnnounceResponse(Code.SUCCESS, 0, 5, prefixes)
    assert ask(gateway, pcp.AnnounceRequest(client), 5.0, V6_HOST) == pcp.AnnounceResponse(Code.SUCCESS, 0, 5)
    assert PREFIX.data == b"\0\7" + PREFIX.prefix.network_address.packed[:7] + bytes(5)


@pytest.mark.requirement("EXT7225-4.2-09")
@pytest.mark.requirement("EXT7225-4.2-05")
def test_new_prefixes_are_announced_and_the_epoch_goes_on() -> None:
    gateway = nat64()
    pcp_map(gateway, TCP, 80, source=V6_HOST)
    gateway.set_prefix64((PREFIX,), 100.0)
    group: Address = ("ff02::1", 5350, 0, 2)
    assert sent_until(gateway, 100.0, 1000.0) == [
        (100.0 + at, group, pcp.AnnounceResponse(Code.SUCCESS, 0, int(100.0 + at), (PREFIX,))) for at in ROUNDS
    ]
    gateway.set_prefix64([PREFIX], 1000.0)
    assert sent_until(gateway, 1000.0, 2000.0) == []
    gateway.set_prefix64((), 2000.0)
    assert [message for _, _, message in sent_until(gateway, 2000.0, 2000.0)] == [
        pcp.AnnounceResponse(Code.SUCCESS, 0, 2000)
    ]
    assert len(gateway.mappings) == 1


# --- PORT_SET (RFC 7753)


@pytest.mark.requirement("EXT7753-4.2-05")
@pytest.mark.requirement("EXT7753-4.2-09")
@pytest.mark.requirement("EXT7753-4.2-03")
@pytest.mark.requirement("EXT7753-4.2-04")
def test_the_example_of_the_rfc_asks_for_100_ports_and_gets_32() -> None:
    gateway = make_gateway(max_port_set=32, first_port=37056, last_port=37087)
    request = pcp.MapRequest(LOCAL, NONCE, UDP, 50000, options=(pcp.PortSet(100, 50000),))
    (reply,), (event,) = exchange(gateway, request.encode())
    granted = (pcp.PortSet(32, 50000),)
    assert decode(reply) == pcp.MapResponse(Code.SUCCESS, 7200, 0, NONCE, UDP, 50000, 37056, EXTERNAL, granted)
    (mapping,) = gateway.mappings
    assert (mapping.internal, mapping.external, mapping.size) == (
        endpoint(LOCAL, 50000),
        endpoint(EXTERNAL, 37056),
        32,
    )
    assert isinstance(event, MappingCreated)
    assert (event.internal, event.external, event.size) == (mapping.internal, mapping.external, 32)
    assert pcp_map(gateway, UDP, 49999).result_code == Code.NO_RESOURCES  # all of them are taken, none outside is
    assert pcp_map(gateway, UDP, 50032).result_code == Code.NO_RESOURCES


@pytest.mark.requirement("EXT7753-4.2-05")
@pytest.mark.requirement("EXT7753-4.2-03")
@pytest.mark.parametrize(
    ("protocol", "first", "last", "taken", "external", "size"),
    [
        (TCP, 40000, 40009, [], 40000, 10),
        (TCP, 40000, 40019, [], None, 10),
        (TCP, 40000, 40009, [40007], 40000, 7),  # 7 in a row before, 2 behind
        (TCP, 40000, 40009, [40002], 40003, 7),
        (TCP, 40000, 40009, [40001, 40004, 40008], 40005, 3),
        (UDP, 5340, 5357, [], 5340, 10),
        (UDP, 5345, 5357, [], 5352, 6),  # PCP's own ports are in no set
    ],
)
def test_a_set_is_granted_as_far_as_possible(
    protocol: Protocol, first: int, last: int, taken: list[int], external: int | None, size: int
) -> None:
    gateway = make_gateway(first_port=first, last_port=last)
    for port in taken:
        assert pcp_map(gateway, protocol, port, port, source=OTHER).result_code == Code.SUCCESS
    reply = pcp_map(gateway, protocol, 5, options=(pcp.PortSet(10, 5),))
    assert (reply.result_code, reply.options) == (Code.SUCCESS, (pcp.PortSet(size, 5),))
    assert external in (None, reply.external_port)
    mapped = range(reply.external_port, reply.external_port + size)
    assert first <= mapped[0]
    assert mapped[-1] <= last
    assert not {*taken, 5350, 5351}.intersection(mapped)
    for port in mapped:  # and now they are nobody else's
        other = pcp_map(gateway, protocol, port, port, source=OTHER)
        assert other.result_code == Code.NO_RESOURCES or other.external_port not in mapped


@pytest.mark.requirement("EXT7753-4.2-03")
def test_a_set_ends_before_a_port_that_leaves_by_another_external_port_already() -> None:
    gateway = make_gateway()
    gateway.outbound(UDP, endpoint(LOCAL, 8), WEB, 0.0)
    reply = pcp_map(gateway, UDP, 5, 6000, options=(pcp.PortSet(10, 5),))
    assert (reply.external_port, reply.options) == (6000, (pcp.PortSet(3, 5),))


def test_a_set_is_granted_where_it_is_suggested() -> None:
    gateway = make_gateway()
    reply = pcp_map(gateway, TCP, 5, 6000, options=(pcp.PortSet(10, 5),))
    assert (reply.external_port, reply.options) == (6000, (pcp.PortSet(10, 5),))


@pytest.mark.requirement("EXT7753-4.2-04")
def test_a_set_ends_with_the_last_port_that_there_is() -> None:
    reply = pcp_map(make_gateway(), TCP, 65530, options=(pcp.PortSet(10, 65530),))
    assert (reply.result_code, reply.options) == (Code.SUCCESS, (pcp.PortSet(6, 65530),))


@pytest.mark.requirement("EXT7753-4.2-06")
@pytest.mark.requirement("EXT7753-4.2-07")
@pytest.mark.requirement("EXT7753-4-03")
@pytest.mark.parametrize(
    ("asked", "config"),
    [
        (10, {"first_port": 40000, "last_port": 40000}),
        (10, {"max_port_set": 1}),
        (10, {"max_mappings_per_host": 1}),
        (10, {"max_mappings": 1}),
        (1, {}),
    ],
)
def test_a_set_of_one_is_a_single_port_and_the_option_is_left_out(asked: int, config: dict[str, typing.Any]) -> None:
    gateway = make_gateway(**config)
    reply = pcp_map(gateway, UDP, 5, options=(pcp.PortSet(asked, 5),))
    assert (reply.result_code, reply.options) == (Code.SUCCESS, ())
    assert [(each.internal.port, each.size) for each in gateway.mappings] == [(5, 1)]


@pytest.mark.requirement("EXT7753-4.2-08")
@pytest.mark.parametrize("internal", [5000, 5001])
@pytest.mark.parametrize("suggested", [0, 7000, 7001])
def test_even_ports_stay_even_and_odd_ones_odd_where_that_is_asked_for(internal: int, suggested: int) -> None:
    gateway = make_gateway()
    for port in range(internal, internal + 40, 4):
        reply = pcp_map(gateway, UDP, port, suggested, options=(pcp.PortSet(3, port, parity=True),))
        (option,) = reply.options
        assert isinstance(option, pcp.PortSet)
        assert (option.size, option.first_internal_port) == (3, port)
        assert reply.external_port % 2 == port % 2


def test_a_port_of_the_other_parity_is_better_than_none() -> None:
    gateway = make_gateway(first_port=7001, last_port=7001)
    reply = pcp_map(gateway, UDP, 5000, options=(pcp.PortSet(2, 5000, parity=True),))
    assert (reply.result_code, reply.external_port, reply.options) == (Code.SUCCESS, 7001, ())


def test_parity_goes_before_size() -> None:
    gateway = make_gateway(first_port=7000, last_port=7003)
    reply = pcp_map(gateway, UDP, 5001, options=(pcp.PortSet(4, 5001, parity=True),))
    assert reply.external_port == 7001
    assert [each.size for each in gateway.mappings] == [3]


@pytest.mark.requirement("EXT7753-4.4-01")
def test_a_set_is_renewed_and_deleted_as_one() -> None:
    gateway = make_gateway()
    asked = (pcp.PortSet(10, 5),)
    external = pcp_map(gateway, UDP, 5, 6000, 600, options=asked).external_port
    renewed = pcp_map(gateway, UDP, 5, 0, 900, options=asked, now=100.0)
    assert (renewed.external_port, renewed.lifetime, renewed.options) == (external, 900, asked)
    assert [(each.size, each.expires_at) for each in gateway.mappings] == [(10, 1000.0)]
    wrong = pcp_map(gateway, UDP, 5, lifetime=0, options=asked, nonce=OTHER_NONCE, now=200.0)
    assert (wrong.result_code, wrong.lifetime) == (Code.NOT_AUTHORIZED, 800)
    drain(gateway)
    delete = pcp.MapRequest(LOCAL, NONCE, UDP, 5, lifetime=0, options=asked)
    (reply,), (event,) = exchange(gateway, delete.encode(), 200.0)
    assert (reply[3], reply[4:8]) == (Code.SUCCESS, bytes(4))
    assert isinstance(event, MappingDeleted)
    assert event.size == 10
    assert not gateway.mappings


def answers(
    gateway: Gateway, request: pcp.MapRequest, now: float
) -> list[tuple[int, int, int, tuple[pcp.Option, ...]]]:
    """Internal port, external port, lifetime and options of each answer, all of them to the same source."""
    found = []
    for data in exchange(gateway, request.encode(), now)[0]:
        reply = decode(data)
        assert isinstance(reply, pcp.MapResponse)
        assert (reply.result_code, reply.nonce) == (Code.SUCCESS, NONCE)
        found.append((reply.internal_port, reply.external_port, reply.lifetime, reply.options))
    return found


@pytest.mark.requirement("EXT7753-4.4.1-01")
def test_a_request_that_touches_two_mappings_refreshes_or_deletes_both_and_has_two_answers() -> None:
    """The example of RFC 7753 section 5.3."""
    gateway = make_gateway(first_port=100, last_port=1000)
    pcp_map(gateway, UDP, 100, 100, 600)
    pcp_map(gateway, UDP, 101, 201, 600, options=(pcp.PortSet(99, 101),))
    both = pcp.MapRequest(LOCAL, NONCE, UDP, 100, options=(pcp.PortSet(100, 100),))
    assert answers(gateway, both, 100.0) == [(100, 100, 7200, ()), (101, 201, 7200, (pcp.PortSet(99, 101),))]
    assert [(each.internal.port, each.size, each.expires_at) for each in gateway.mappings] == [
        (100, 1, 7300.0),
        (101, 99, 7300.0),
    ]
    delete = pcp.MapRequest(LOCAL, NONCE, UDP, 100, lifetime=0, options=(pcp.PortSet(100, 100),))
    assert [lifetime for _, _, lifetime, _ in answers(gateway, delete, 200.0)] == [0, 0]
    assert not gateway.mappings


@pytest.mark.requirement("EXT7753-4.4.1-01")
@pytest.mark.parametrize(
    ("options", "external", "shown"),
    [
        ((pcp.PortSet(10, 5),), 6000, (pcp.PortSet(10, 1),)),  # as in the example of RFC 7753 section 6.3
        ((), 6004, ()),  # who does not know of sets is told the port's own external one
    ],
)
def test_a_request_that_touches_a_part_of_a_set_refreshes_the_set_and_maps_nothing_more(
    options: tuple[pcp.Option, ...], external: int, shown: tuple[pcp.Option, ...]
) -> None:
    """RFC 7753 section 4: the internal port "by necessity is always identical in matched requests and responses"."""
    gateway = make_gateway()
    pcp_map(gateway, UDP, 1, 6000, 600, options=(pcp.PortSet(10, 1),))
    request = pcp.MapRequest(LOCAL, NONCE, UDP, 5, options=options)
    assert answers(gateway, request, 100.0) == [(5, external, 7200, shown)]
    assert [(each.internal.port, each.size, each.expires_at) for each in gateway.mappings] == [(1, 10, 7300.0)]


@pytest.mark.requirement("PCP-11.3-13")
@pytest.mark.parametrize(
    ("suggested", "code", "external"),
    [(6002, Code.SUCCESS, 6002), (6000, Code.CANNOT_PROVIDE_EXTERNAL, 6000)],  # an error tells what was asked
)
def test_who_prefers_failure_for_a_port_of_a_set_is_measured_by_that_port(
    suggested: int, code: pcp.ResultCode, external: int
) -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000, options=(pcp.PortSet(4, 5000),))
    reply = pcp_map(gateway, UDP, 5002, suggested, options=(pcp.PreferFailure(),), now=100.0)
    assert (reply.result_code, reply.external_port) == (code, external)
    assert [(each.internal.port, each.size) for each in gateway.mappings] == [(5000, 4)]


def test_a_port_of_a_set_that_is_deleted_takes_the_set_along() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000, options=(pcp.PortSet(4, 5000),))
    deleted = pcp_map(gateway, UDP, 5002, lifetime=0, now=100.0)  # whose internal port is echoed
    assert (deleted.result_code, deleted.lifetime, deleted.options) == (Code.SUCCESS, 0, ())
    assert not gateway.mappings


def test_nat_pmp_is_told_the_external_port_of_its_own_port_in_a_set() -> None:
    gateway = make_gateway()
    pcp_map(gateway, UDP, 5000, 6000, 600, options=(pcp.PortSet(4, 5000),))
    told = ask(gateway, natpmp.MapRequest(UDP, 5002), 100.0)
    assert told == natpmp.MapResponse(UDP, natpmp.ResultCode.SUCCESS, 100, 5002, 6002, 500)
    assert [(each.size, each.expires_at) for each in gateway.mappings] == [(4, 600.0)]


@pytest.mark.parametrize("lifetime", [7200, 0])
def test_a_set_that_begins_with_all_ports_touches_no_single_one(lifetime: int) -> None:
    gateway = make_gateway(allow_wildcards=True)
    pcp_map(gateway, UDP, 5, 6000, 600)
    request = pcp.MapRequest(LOCAL, NONCE, UDP, 0, lifetime=lifetime, options=(pcp.PortSet(10, 0),))
    assert answers(gateway, request, 100.0) == [(0, 0, lifetime, () if lifetime else request.options)]
    sets = [(each.internal.port, each.size, each.expires_at) for each in gateway.mappings]
    assert sets == [(5, 1, 600.0)] + [(0, 1, 7300.0)] * bool(lifetime)


def test_sets_of_two_hosts_or_protocols_do_not_touch_each_other() -> None:
    gateway = make_gateway()
    asked = (pcp.PortSet(10, 5),)
    for protocol, source in ((UDP, HOST), (TCP, HOST), (UDP, OTHER)):
        assert pcp_map(gateway, protocol, 5, source=source, options=asked).options == asked
    assert [each.size for each in gateway.mappings] == [10, 10, 10]


@pytest.mark.requirement("EXT7753-4.2-01")
@pytest.mark.parametrize(
    "options",
    [
        (pcp.PortSet(10, 80), pcp.PortSet(10, 80)),
        (pcp.PortSet(0, 80),),
        (pcp.PortSet(10, 80), pcp.PreferFailure()),
        (pcp.PreferFailure(), pcp.PortSet(10, 80)),
    ],
)
def test_two_sets_an_empty_one_and_one_or_failure_are_malformed(options: tuple[pcp.Option, ...]) -> None:
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, 8080).encode()
    data = request + b"".join(option.encode() for option in options)
    assert refusal(make_gateway(), data) == (Code.MALFORMED_OPTION, 1800)


@pytest.mark.requirement("EXT7753-5.2-01")
def test_the_example_of_all_protocols_from_port_1_on_is_malformed() -> None:
    """RFC 7753 section 5.2 contradicts RFC 6887 section 11.3, which is followed."""
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 1, options=(pcp.PortSet(65535, 1),)).encode()
    data = request[:36] + b"\0" + request[37:]
    assert refusal(make_gateway(allow_wildcards=True), data) == (Code.MALFORMED_REQUEST, 1800)


@pytest.mark.requirement("EXT7753-6.1-01")
def test_all_sets_of_a_host_are_on_one_external_address() -> None:
    gateway = Gateway([EXTERNAL, "203.0.113.6"], address=SERVER, rng=Middle(2))
    first = pcp_map(gateway, UDP, 5, address="203.0.113.6", options=(pcp.PortSet(10, 5),))
    second = pcp_map(gateway, UDP, 50, options=(pcp.PortSet(10, 50),))
    assert first.external_address == second.external_address == IPv4Address("203.0.113.6")


@pytest.mark.requirement("EXT7753-6.1-02")
@pytest.mark.requirement("EXT7753-6.1-03")
@pytest.mark.parametrize(("config", "size"), [({}, 256), ({"max_port_set": 2048, "max_mappings_per_host": 4096}, 2048)])
def test_who_asks_for_everything_gets_at_once_as_much_as_is_configured(
    config: dict[str, typing.Any], size: int
) -> None:
    reply = pcp_map(make_gateway(**config), UDP, 1, options=(pcp.PortSet(0xFFFF, 1),))
    assert reply.options == (pcp.PortSet(size, 1),)


def test_who_asks_for_everything_is_answered_for_no_more_mappings_than_a_set_has_ports() -> None:
    gateway = make_gateway(max_port_set=4)
    for port in range(5, 15):
        pcp_map(gateway, UDP, port, 6000 + port, 600)
    request = pcp.MapRequest(LOCAL, NONCE, UDP, 5, options=(pcp.PortSet(0xFFFF, 5),))
    assert answers(gateway, request, 100.0) == [(port, 6000 + port, 7200, ()) for port in range(5, 9)]
    assert [each.expires_at for each in gateway.mappings] == [7300.0] * 4 + [600.0] * 6


def test_a_set_is_the_longest_of_what_a_bounded_search_has_found() -> None:
    gateway = make_gateway(first_port=10000, last_port=29999)
    for port in range(10000, 30000, 255):  # 254 in a row are free, but for 509 where a search from the middle ends
        if port != 19690:
            assert pcp_map(gateway, UDP, port, port, source=OTHER).external_port == port
    asked = (pcp.PortSet(256, 5),)
    assert pcp_map(gateway, UDP, 5, options=asked).options == (pcp.PortSet(254, 5),)
    suggested = pcp_map(gateway, UDP, 1005, 19500, options=(pcp.PortSet(256, 1005),))
    assert (suggested.external_port, suggested.options) == (19500, (pcp.PortSet(256, 1005),))


@pytest.mark.requirement("PCP-17.2-01")
def test_each_port_of_a_set_counts_in_the_quotas() -> None:
    gateway = make_gateway(max_mappings_per_host=10)
    assert pcp_map(gateway, UDP, 5, options=(pcp.PortSet(8, 5),)).options == (pcp.PortSet(8, 5),)
    assert pcp_map(gateway, UDP, 50, options=(pcp.PortSet(8, 50),)).options == (pcp.PortSet(2, 50),)
    assert pcp_map(gateway, UDP, 60, options=(pcp.PortSet(8, 60),)).result_code == Code.USER_EX_QUOTA
    full = make_gateway(max_mappings=10)
    assert pcp_map(full, UDP, 5, options=(pcp.PortSet(8, 5),)).options == (pcp.PortSet(8, 5),)
    assert pcp_map(full, UDP, 5, source=OTHER, options=(pcp.PortSet(8, 5),)).options == (pcp.PortSet(2, 5),)
    assert pcp_map(full, UDP, 50, options=(pcp.PortSet(8, 50),)).result_code == Code.NO_RESOURCES


# --- THIRD_PARTY_ID (RFC 7843)


def realms() -> Gateway:
    return make_gateway(allow_third_party=True, third_party_ids=(b"aaaa", b"bbbb"))


@pytest.mark.requirement("EXT7843-5.2-01")
@pytest.mark.parametrize("config", [{}, {"allow_third_party": True}])
def test_a_gateway_without_realms_does_not_support_the_option(config: dict[str, typing.Any]) -> None:
    options = (FOR_NEIGHBOUR, pcp.ThirdPartyId(b"aaaa"))
    data = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=options).encode()
    assert refusal(make_gateway(**config), data) == (Code.UNSUPP_OPTION, 1800)


@pytest.mark.requirement("EXT7843-5.2-02")
@pytest.mark.requirement("EXT7843-5.2-03")
@pytest.mark.requirement("EXT7843-5.2-04")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((FOR_NEIGHBOUR, pcp.ThirdPartyId(b"cccc")), Code.THIRD_PARTY_ID_UNKNOWN),
        ((FOR_NEIGHBOUR, pcp.ThirdPartyId(b"aaaaa")), Code.UNSUPP_THIRD_PARTY_ID_LENGTH),
        ((FOR_NEIGHBOUR, pcp.ThirdPartyId(b"")), Code.UNSUPP_THIRD_PARTY_ID_LENGTH),
        ((pcp.ThirdPartyId(b"aaaa"),), Code.THIRD_PARTY_MISSING_OPTION),
    ],
)
def test_a_realm_that_is_not_known_is_refused(options: tuple[pcp.Option, ...], code: pcp.ResultCode) -> None:
    data = PLAIN.encode() + b"".join(option.encode() for option in options)
    assert refusal(realms(), data) == (code, 1800)
    peer = pcp.PeerRequest(LOCAL, NONCE, TCP, 80, 443, "198.51.100.7").encode() + data[60:]
    assert refusal(realms(), peer) == (code, 1800)


@pytest.mark.requirement("EXT7843-5.2-05")
def test_one_address_in_two_realms_is_two_hosts() -> None:
    gateway = realms()
    a, b = ((FOR_NEIGHBOUR, pcp.ThirdPartyId(name)) for name in (b"aaaa", b"bbbb"))
    assert pcp_map(gateway, TCP, 80, 8080, options=a).options == a
    other = pcp_map(gateway, TCP, 80, 8080, nonce=OTHER_NONCE, options=b)
    assert (other.result_code, other.options) == (Code.SUCCESS, b)
    assert other.external_port != 8080
    assert [(each.third_party_id, each.internal) for each in gateway.mappings] == [
        (b"aaaa", endpoint(NEIGHBOUR, 80)),
        (b"bbbb", endpoint(NEIGHBOUR, 80)),
    ]
    assert pcp_map(gateway, TCP, 80, lifetime=0, options=b).result_code == Code.NOT_AUTHORIZED
    assert pcp_map(gateway, TCP, 80, lifetime=0, options=a).result_code == Code.SUCCESS
    assert externals(gateway) == [f"{EXTERNAL}:{other.external_port}"]


# --- what no option may do


@pytest.mark.requirement("PCP-7.3-13")
@pytest.mark.requirement("PCP-7.3-18")
@pytest.mark.requirement("PCP-7.3-19")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((FOR_NEIGHBOUR, FOR_NEIGHBOUR), Code.MALFORMED_OPTION),
        ((RawOption(1, b"abcd"),), Code.MALFORMED_OPTION),
        ((pcp.PreferFailure(), pcp.PreferFailure()), Code.MALFORMED_OPTION),
        ((RawOption(2, b"abcd"),), Code.MALFORMED_OPTION),
        ((RawOption(100), pcp.Description("web")), Code.UNSUPP_OPTION),
        ((ONE, RawOption(3, b"abcd")), Code.MALFORMED_OPTION),
        ((pcp.Description("a"), pcp.Description("b")), Code.MALFORMED_OPTION),
    ],
)
def test_a_bad_option_refuses_the_request_with_all_its_options(
    options: tuple[pcp.Option, ...], code: pcp.ResultCode
) -> None:
    gateway = make_gateway(allow_third_party=True)
    pcp_map(gateway, TCP, 80, options=(NET,))
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, 8080).encode()
    assert refusal(gateway, request + b"".join(option.encode() for option in options), 10.0) == (code, 1800)


@pytest.mark.parametrize("make", [make_gateway, nat64])
def test_all_that_was_processed_is_in_the_answer_in_the_order_of_the_request(
    make: typing.Callable[[], Gateway],
) -> None:
    gateway = make()
    options = (
        pcp.Description("web"),
        ONE if make is make_gateway else pcp.Filter(64, 0, "2001:db8:9::"),
        RawOption(200),
    )
    source = HOST if make is make_gateway else V6_HOST
    assert pcp_map(gateway, TCP, 80, options=options, source=source).options == options[:2]
