"""The server role, by bytes: what a host on the LAN gets for what it sends."""

from __future__ import annotations

import json
import math
import pathlib
import typing
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    make_gateway,
    pcp_map,
    pcp_peer,
    sent_until,
)
from natpmp_sansio import (
    Address,
    Endpoint,
    Event,
    Gateway,
    GatewayConfig,
    LocalProtocolError,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingId,
    MappingKind,
    MappingRefreshed,
    Protocol,
    SendDatagram,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.wire import is_response
from natpmp_sansio.wire.options import RawOption

TCP, UDP = Protocol.TCP, Protocol.UDP
OK = natpmp.ResultCode.SUCCESS
Code = pcp.ResultCode
GROUP: Address = ("224.0.0.1", 5350)
WEB = endpoint("198.51.100.23", 443)

VECTORS = {
    vector["id"]: vector
    for vector in json.loads((pathlib.Path(__file__).parent / "requirements" / "vectors.json").read_text())["vectors"]
}


def octets_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def ask_bytes(gateway: Gateway, data: bytes, now: float = 0.0, source: Address = HOST) -> tuple[bytes, list[Event]]:
    """The one answer to a request, and what else happened."""
    (answer,), events = exchange(gateway, data, now, source)
    return answer, events


def natpmp_map(
    gateway: Gateway,
    protocol: Protocol,
    port: int,
    suggested: int = 0,
    lifetime: int = 7200,
    *,
    now: float = 0.0,
    source: Address = HOST,
) -> tuple[natpmp.ResultCode, int, int]:
    """Result, external port and lifetime; what has to be echoed is checked here."""
    reply = ask(gateway, natpmp.MapRequest(protocol, port, suggested, lifetime), now, source)
    assert isinstance(reply, natpmp.MapResponse)
    assert (reply.protocol, reply.internal_port) == (protocol, port)
    return reply.result_code, reply.external_port, reply.lifetime


def forwarded(gateway: Gateway) -> list[tuple[int, str, int]]:
    """Protocol, internal address and external port of each mapping."""
    return [(m.protocol, str(m.internal.address), m.external.port) for m in gateway.mappings]


# --- what is shared by both protocols


@pytest.mark.requirement("PCP-11.3-08")
@pytest.mark.requirement("PCP-7.3-11")
def test_another_nonce_is_refused_for_as_long_as_the_mapping_lives() -> None:
    gateway = make_gateway()
    assert pcp_map(gateway, TCP, 80, lifetime=600).lifetime == 600
    request = pcp.MapRequest(IPv4Address(LOCAL), OTHER_NONCE, TCP, 80, 8080).encode()
    reply, events = ask_bytes(gateway, request, 500.0)
    assert reply == bytes.fromhex("0281 0002 00000064 000001f4") + bytes(12) + request[24:]
    assert events == []
    assert [mapping.expires_at for mapping in gateway.mappings] == [600.0]


@pytest.mark.requirement("PCP-7.4-13")
@pytest.mark.requirement("PCP-11.3-26")
@pytest.mark.requirement("PCP-17.2-01")
def test_a_host_that_has_used_up_its_quota_is_refused_and_others_are_not() -> None:
    gateway = make_gateway(max_mappings_per_host=2)
    for port in (1, 2):
        assert pcp_map(gateway, TCP, port).result_code == Code.SUCCESS
    reply, events = ask_bytes(gateway, OWN.encode())
    assert (reply[3], reply[4:8], events) == (Code.USER_EX_QUOTA, (30).to_bytes(4), [])
    assert pcp_map(gateway, TCP, 80, source=OTHER).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 1).result_code == Code.SUCCESS  # what it has it keeps


def test_a_host_that_has_used_up_its_quota_gets_out_of_resources_in_nat_pmp() -> None:
    """RFC 6886 section 3.5 has no code for a quota of its own."""
    gateway = make_gateway(max_mappings_per_host=2)
    assert pcp_map(gateway, TCP, 1).result_code == Code.SUCCESS
    assert natpmp_map(gateway, TCP, 2, lifetime=60) == (OK, gateway.mappings[1].external.port, 60)
    assert natpmp_map(gateway, TCP, 3) == (natpmp.ResultCode(4), 0, 0)
    assert natpmp_map(gateway, TCP, 3, source=OTHER)[0] == OK
    assert natpmp_map(gateway, TCP, 2, now=30.0)[0] == OK  # what it has it keeps
    assert natpmp_map(gateway, TCP, 2, lifetime=0, now=31.0)[0] == OK
    assert natpmp_map(gateway, TCP, 3, now=32.0)[0] == OK


@pytest.mark.requirement("PCP-7.4-11")
def test_a_gateway_without_a_free_port_says_so_and_does_nothing() -> None:
    gateway = make_gateway(first_port=40000, last_port=40000)
    assert pcp_map(gateway, TCP, 80, source=OTHER).external_port == 40000
    reply, events = ask_bytes(gateway, OWN.encode())
    assert (reply[3], reply[4:8], events) == (Code.NO_RESOURCES, (30).to_bytes(4), [])


def test_an_answer_goes_to_where_its_request_came_from() -> None:
    gateway = make_gateway()
    gateway.receive_datagram(b"\0\0", HOST, 0.0)
    gateway.receive_datagram(b"\0\0", OTHER, 0.0)
    assert [output.addr for output in gateway.outputs() if isinstance(output, SendDatagram)] == [HOST, OTHER]


def test_a_gateway_that_has_just_been_made_wants_nothing_and_says_nothing() -> None:
    gateway = make_gateway()
    assert gateway.next_timeout() is None
    assert list(gateway.outputs()) == []
    assert (gateway.address, gateway.bind_address) == (SERVER, SERVER)
    assert gateway.external_address == IPv4Address(EXTERNAL)
    assert not gateway.mappings


@pytest.mark.parametrize("address", [("192.168.1.1", 0), ("gateway", 5351), ("192.168.1.1", 65536)])
def test_a_gateway_needs_an_address_to_live_at(address: Address) -> None:
    with pytest.raises(LocalProtocolError, match="address must be a socket address such as"):
        Gateway(EXTERNAL, address=address)


def test_the_external_address_of_a_gateway_is_one() -> None:
    with pytest.raises(LocalProtocolError, match="not an IP address: 'wan0'"):
        Gateway("wan0", address=SERVER)


def test_a_gateway_shows_itself() -> None:
    gateway = Gateway(None, address=SERVER)
    assert repr(gateway) == "<Gateway 192.168.1.1 external=None mappings=0>"
    assert pcp_map(gateway, TCP, 443, source=V6_HOST).result_code == Code.SUCCESS
    assert repr(gateway) == "<Gateway 192.168.1.1 external=None mappings=1>"


# --- NAT-PMP: mappings


@pytest.mark.requirement("NP-3.3-14")
@pytest.mark.requirement("NP-3.3-15")
@pytest.mark.requirement("NP-3.3-19")
@pytest.mark.requirement("PCP-11.3-19")
@pytest.mark.requirement("PCP-11.3-24")
@pytest.mark.requirement("PCP-11.3-25")
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [0, 2])
def test_a_mapping_is_made_on_the_suggested_port_for_the_source_of_the_request(
    version: int, protocol: Protocol
) -> None:
    gateway = make_gateway()
    if version == 0:
        assert natpmp_map(gateway, protocol, 80, 8080, now=1.0) == (OK, 8080, 7200)
    else:
        reply = pcp_map(gateway, protocol, 80, 8080, now=1.0)
        assert (reply.external_address, reply.external_port) == (IPv4Address(EXTERNAL), 8080)
    (mapping,) = gateway.mappings
    assert mapping.protocol is protocol
    assert mapping.internal == Endpoint(IPv4Address(LOCAL), 80)
    assert mapping.external == Endpoint(IPv4Address(EXTERNAL), 8080)
    assert mapping.expires_at == 7201.0


def test_what_a_nat_engine_has_to_program_comes_out_as_events() -> None:
    gateway = make_gateway()
    request = natpmp.MapRequest(TCP, 80, 8080, 60)
    about: dict[str, typing.Any] = {
        "gateway": SERVER,
        "mapping": MappingId(1),
        "protocol": TCP,
        "internal": Endpoint(IPv4Address(LOCAL), 80),
        "external": Endpoint(IPv4Address(EXTERNAL), 8080),
    }
    assert ask_bytes(gateway, request.encode(), 0.0)[1] == [MappingCreated(**about, expires_at=60.0)]
    assert ask_bytes(gateway, request.encode(), 30.0)[1] == [MappingRefreshed(**about, expires_at=90.0)]
    gateway.handle_timeout(90.0)
    assert drain(gateway) == ([], [MappingExpired(**about)])
    about["mapping"] = MappingId(2)
    assert ask_bytes(gateway, request.encode(), 100.0)[1] == [MappingCreated(**about, expires_at=160.0)]
    delete = natpmp.MapRequest(TCP, 80, 0, 0)
    assert ask_bytes(gateway, delete.encode(), 110.0)[1] == [MappingDeleted(**about)]
    assert ask_bytes(gateway, delete.encode(), 120.0)[1] == []


def test_the_events_of_a_gateway_read_as_one_line_each() -> None:
    gateway = make_gateway()
    natpmp_events = []
    for lifetime in (60, 60, 0):
        natpmp_events += ask_bytes(gateway, natpmp.MapRequest(TCP, 80, 8080, lifetime).encode())[1]
    natpmp_events += ask_bytes(gateway, natpmp.MapRequest(UDP, 80, 8080, 60).encode())[1]
    gateway.handle_timeout(60.0)
    natpmp_events += drain(gateway)[1]
    assert [event.describe() for event in natpmp_events] == [
        "TCP 203.0.113.5:8080 is forwarded to 192.168.1.7:80",
        "TCP 203.0.113.5:8080 goes on being forwarded to 192.168.1.7:80",
        "TCP 203.0.113.5:8080 was deleted",
        "UDP 203.0.113.5:8080 is forwarded to 192.168.1.7:80",
        "UDP 203.0.113.5:8080 has expired",
    ]


@pytest.mark.requirement("NP-3.3-20")
@pytest.mark.requirement("NP-3.3-21")
@pytest.mark.requirement("PCP-11.3-16")
@pytest.mark.requirement("PCP-11.3-17")
@pytest.mark.requirement("PCP-8-03")
@pytest.mark.parametrize("version", [0, 2])
def test_asking_again_returns_the_port_already_assigned_whatever_is_suggested(version: int) -> None:
    gateway = make_gateway()
    for now, suggested in ((0.0, 50000), (1.0, 50000), (2.0, 60000), (3.0, 0)):
        if version == 0:
            assert natpmp_map(gateway, TCP, 1234, suggested, 600, now=now) == (OK, 50000, 600)
        else:
            assert pcp_map(gateway, TCP, 1234, suggested, 600, now=now).external_port == 50000
        assert [mapping.expires_at for mapping in gateway.mappings] == [now + 600]


@pytest.mark.requirement("NP-3.3-07")
@pytest.mark.requirement("NP-3.3-18")
@pytest.mark.requirement("PCP-11.3-23")
def test_who_comes_second_for_a_port_gets_another_until_none_is_left() -> None:
    gateway = make_gateway(first_port=8080, last_port=8082)
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    second = natpmp_map(gateway, TCP, 80, 8080, source=OTHER)
    third = natpmp_map(gateway, TCP, 81, 8080)
    assert {second[1], third[1]} == {8081, 8082}
    assert natpmp_map(gateway, TCP, 82, 8080) == (natpmp.ResultCode.OUT_OF_RESOURCES, 0, 0)
    assert pcp_map(gateway, TCP, 82, 8080).result_code == Code.NO_RESOURCES
    assert len(gateway.mappings) == 3


@pytest.mark.requirement("PCP-11.3-21")
def test_a_port_outside_the_range_is_not_given_out_even_if_it_is_suggested() -> None:
    gateway = make_gateway(first_port=2000, last_port=2001)
    assert natpmp_map(gateway, TCP, 80, 80)[1] in (2000, 2001)
    assert pcp_map(gateway, TCP, 81, 2002).external_port in (2000, 2001)
    assert sorted(mapping.external.port for mapping in gateway.mappings) == [2000, 2001]


@pytest.mark.requirement("NP-3.3-16")
@pytest.mark.requirement("NP-3.3-17")
def test_the_same_port_of_the_other_protocol_is_reserved_for_the_same_host() -> None:
    gateway = make_gateway(first_port=8080, last_port=8081)
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    assert natpmp_map(gateway, UDP, 80, 8080, source=OTHER) == (OK, 8081, 7200)
    assert natpmp_map(gateway, UDP, 80, 8080) == (OK, 8080, 7200)
    assert natpmp_map(gateway, TCP, 81, 8081) == (natpmp.ResultCode.OUT_OF_RESOURCES, 0, 0)
    assert natpmp_map(gateway, TCP, 81, 8081, source=OTHER) == (OK, 8081, 7200)


def test_the_reservation_ends_with_the_lease() -> None:
    gateway = make_gateway(first_port=8080, last_port=8080)
    assert natpmp_map(gateway, TCP, 80, 8080, 60) == (OK, 8080, 60)
    assert natpmp_map(gateway, UDP, 80, 8080, source=OTHER)[0] == natpmp.ResultCode.OUT_OF_RESOURCES
    gateway.handle_timeout(60.0)
    drain(gateway)
    assert natpmp_map(gateway, UDP, 80, 8080, source=OTHER, now=60.0) == (OK, 8080, 7200)


@pytest.mark.requirement("PCP-11.3-20")
@pytest.mark.parametrize("port", [5350, 5351])
def test_the_udp_ports_of_the_protocols_themselves_are_never_mapped(port: int) -> None:
    gateway = make_gateway(first_port=5350, last_port=5352)
    assert pcp_map(gateway, UDP, 80, port).external_port == 5352
    assert pcp_map(gateway, UDP, 81, port).result_code == Code.NO_RESOURCES
    assert natpmp_map(gateway, UDP, 81, port)[0] == natpmp.ResultCode.OUT_OF_RESOURCES
    assert natpmp_map(gateway, TCP, 80, port) == (OK, port, 7200)


@pytest.mark.requirement("NP-3.3-26")
@pytest.mark.requirement("NP-3.3-27")
@pytest.mark.parametrize(("asked", "granted"), [(1, 1), (30, 30), (3600, 3600), (3601, 3600), (2**32 - 1, 3600)])
def test_nat_pmp_grants_what_is_asked_up_to_the_maximum(asked: int, granted: int) -> None:
    assert natpmp_map(make_gateway(max_lifetime=3600), TCP, 80, 8080, asked) == (OK, 8080, granted)


@pytest.mark.requirement("PCP-15-01")
@pytest.mark.requirement("PCP-15-02")
@pytest.mark.parametrize(
    ("asked", "granted"), [(1, 300), (299, 300), (300, 300), (450, 450), (600, 600), (601, 600), (2**32 - 1, 600)]
)
def test_pcp_grants_a_lifetime_between_its_bounds(asked: int, granted: int) -> None:
    gateway = make_gateway(min_lifetime=300, max_lifetime=600)
    assert pcp_map(gateway, TCP, 80, lifetime=asked).lifetime == granted
    assert gateway.next_timeout() == granted


@pytest.mark.requirement("PCP-15-03")
@pytest.mark.requirement("PCP-15-04")
def test_pcp_grants_2_minutes_to_a_day_by_default() -> None:
    gateway = make_gateway()
    assert pcp_map(gateway, TCP, 80, lifetime=1).lifetime == 120
    assert pcp_map(gateway, TCP, 80, lifetime=604800).lifetime == 86400


def test_internal_port_0_is_nothing_that_nat_pmp_can_map() -> None:
    gateway = make_gateway()
    assert natpmp_map(gateway, TCP, 0, 8080) == (natpmp.ResultCode.NOT_AUTHORIZED, 0, 0)
    assert not gateway.mappings


@pytest.mark.requirement("NP-3.5-05")
@pytest.mark.requirement("NP-3.5-06")
@pytest.mark.requirement("NP-3.5-07")
@pytest.mark.requirement("NP-3.5-08")
@pytest.mark.requirement("NP-3.5-09")
@pytest.mark.requirement("NP-3.5-10")
def test_without_an_external_address_nat_pmp_says_network_failure_in_full_length() -> None:
    gateway = make_gateway(external=None)
    gateway.reboot(0.0)
    drain(gateway)
    assert ask_bytes(gateway, b"\0\0", 9.0) == (bytes.fromhex("0080 0003 00000009 00000000"), [])
    request = natpmp.MapRequest(TCP, 1234, 8080)
    assert ask_bytes(gateway, request.encode(), 9.0) == (
        bytes.fromhex("0082 0003 00000009 04d2 0000 00000000"),
        [],
    )
    assert not gateway.mappings


# --- NAT-PMP: deletes


@pytest.mark.requirement("NP-3.4-01")
@pytest.mark.requirement("PCP-15-05")
@pytest.mark.parametrize("version", [0, 2])
def test_a_mapping_is_gone_at_the_very_second_its_lifetime_ends(version: int) -> None:
    gateway = make_gateway()
    if version == 0:
        natpmp_map(gateway, TCP, 80, lifetime=120, now=10.0)
    else:
        pcp_map(gateway, TCP, 80, lifetime=120, now=10.0)
    assert gateway.next_timeout() == 130.0
    gateway.handle_timeout(129.0)
    assert len(gateway.mappings) == 1
    assert gateway.next_timeout() == 130.0
    gateway.handle_timeout(130.0)
    assert not gateway.mappings
    assert [type(event) for event in drain(gateway)[1]] == [MappingExpired]
    assert gateway.next_timeout() is None


def test_a_gateway_that_has_slept_expires_all_that_is_due_in_order() -> None:
    gateway = make_gateway()
    for port, lifetime in ((1, 300), (2, 100), (3, 200), (4, 9000)):
        natpmp_map(gateway, TCP, port, lifetime=lifetime)
    gateway.handle_timeout(1000.0)
    _, events = drain(gateway)
    assert [event.internal.port for event in events if isinstance(event, MappingExpired)] == [2, 3, 1]
    assert gateway.next_timeout() == 9000.0


@pytest.mark.requirement("NP-3.4-06")
@pytest.mark.requirement("NP-3.4-08")
@pytest.mark.requirement("NP-3.4-09")
@pytest.mark.requirement("NP-3.4-10")
def test_a_nat_pmp_delete_ignores_the_suggested_port_and_may_be_repeated() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    natpmp_map(gateway, UDP, 80, 8080)
    delete = octets_of("NP-DEL-TCP-PORTSET-REQ")
    first, events = ask_bytes(gateway, delete)
    assert first == bytes.fromhex("0082 0000 00000000 0050 0000 00000000")
    assert [type(event) for event in events] == [MappingDeleted]
    assert ask_bytes(gateway, delete) == (first, [])
    assert forwarded(gateway) == [(UDP, LOCAL, 8080)]
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)  # its own port is free again


def test_nobody_can_delete_what_another_host_has_mapped() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    assert natpmp_map(gateway, TCP, 80, 0, 0, source=OTHER) == (OK, 0, 0)
    assert natpmp_map(gateway, TCP, 0, 0, 0, source=OTHER) == (OK, 0, 0)
    assert forwarded(gateway) == [(TCP, LOCAL, 8080)]


@pytest.mark.requirement("NP-3.4-18")
@pytest.mark.requirement("NP-3.4-19")
@pytest.mark.requirement("NP-3.4-21")
def test_delete_all_removes_every_mapping_of_this_host_and_protocol_and_no_other() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, UDP, 1, 2001)
    natpmp_map(gateway, UDP, 2, 2002)
    natpmp_map(gateway, TCP, 3, 2003)
    natpmp_map(gateway, UDP, 4, 2004, source=OTHER)
    reply, events = ask_bytes(gateway, octets_of("NP-DELALL-UDP-REQ"))
    assert reply == bytes.fromhex("0081 0000 00000000 0000 0000 00000000")
    assert [event.external.port for event in events if isinstance(event, MappingDeleted)] == [2001, 2002]
    assert forwarded(gateway) == [(TCP, LOCAL, 2003), (UDP, OTHER[0], 2004)]


@pytest.mark.requirement("NP-3.4-11")
@pytest.mark.requirement("NP-3.4-12")
@pytest.mark.requirement("NP-3.4-20")
def test_nat_pmp_which_has_no_nonce_cannot_touch_what_pcp_has_mapped() -> None:
    refused = natpmp.ResultCode.NOT_AUTHORIZED
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, lifetime=600)
    natpmp_map(gateway, TCP, 81, 8081)
    before = gateway.mappings
    for now, asked, rest in ((100.5, 7200, 499), (100.5, 60, 60), (599.5, 7200, 1)):  # it is told what there is
        assert natpmp_map(gateway, TCP, 80, 9090, asked, now=now) == (OK, 8080, rest)
    assert gateway.mappings == before
    assert natpmp_map(gateway, TCP, 80, 0, 0) == (refused, 0, 0)
    assert natpmp_map(gateway, TCP, 0, 0, 0) == (refused, 0, 0)  # and yet all the others are deleted
    assert forwarded(gateway) == [(TCP, LOCAL, 8080)]


def test_pcp_takes_over_what_the_same_host_has_mapped_by_nat_pmp() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    assert pcp_map(gateway, TCP, 80).external_port == 8080
    assert pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE).result_code == Code.NOT_AUTHORIZED
    assert len(gateway.mappings) == 1


# --- NAT-PMP: the rest


@pytest.mark.requirement("NP-3.5-04")
@pytest.mark.parametrize(
    ("octets", "echo"),
    [
        ("0007", "00870005"),
        ("0007aa", "00870005"),
        ("0007aabbccdd", "00870005ccdd"),
        ("0003", "00830005"),
        ("007f00000102030405060708", "00ff00050102030405060708"),
    ],
)
def test_an_unknown_opcode_comes_back_with_the_whole_request(octets: str, echo: str) -> None:
    assert ask_bytes(make_gateway(), bytes.fromhex(octets), 9.0) == (bytes.fromhex(echo), [])


@pytest.mark.requirement("NP-4.3.5-01")
@pytest.mark.parametrize("opcode", range(3, 128))
def test_nat_pmp_maps_tcp_and_udp_and_nothing_else(opcode: int) -> None:
    gateway = make_gateway()
    reply = ask(gateway, bytes((0, opcode)) + natpmp.MapRequest(TCP, 80).encode()[2:])
    assert isinstance(reply, natpmp.ErrorResponse)
    assert reply.result_code == natpmp.ResultCode.UNSUPPORTED_OPCODE
    assert not gateway.mappings


@pytest.mark.requirement("NP-3.2-06")
@pytest.mark.requirement("NP-3.3-24")
@pytest.mark.requirement("NP-3.6-02")
@pytest.mark.requirement("PCP-7.2-08")
@pytest.mark.requirement("PCP-8.5-01")
@pytest.mark.requirement("PCP-8.5-02")
@pytest.mark.requirement("PCP-8.5-04")
@pytest.mark.parametrize("request_name", ["NP-EXT-REQ", "NP-MAP-UDP-REQ", "PCP-ANN-REQ-V4", "PCP-MAP-REQ-V3"])
def test_every_answer_tells_the_seconds_since_the_state_was_lost(request_name: str) -> None:
    gateway = make_gateway()
    place = 4 if request_name.startswith("NP") else 8
    epochs = []
    for now in (1000.5, 1001.0, 1001.5, 1042.5, 1050.25, 1053.25):
        if now == 1050.25:
            gateway.reboot(now)
            drain(gateway)
        reply, _ = ask_bytes(gateway, octets_of(request_name), now, ("192.168.1.10", 50000))
        epochs.append(int.from_bytes(reply[place : place + 4]))
    assert epochs == [0, 0, 1, 42, 0, 3]


def test_an_epoch_of_136_years_starts_again_instead_of_overflowing() -> None:
    gateway = make_gateway()
    ask_bytes(gateway, b"\0\0", 0.0)
    assert ask_bytes(gateway, b"\0\0", 2.0**32 + 5.0)[0][4:8] == b"\0\0\0\5"


def test_a_clock_that_goes_back_stands_still() -> None:
    gateway = make_gateway()
    ask_bytes(gateway, b"\0\0", 0.0)
    ask_bytes(gateway, b"\0\0", 100.0)
    assert ask_bytes(gateway, b"\0\0", 50.0)[0][4:8] == (100).to_bytes(4)
    natpmp_map(gateway, TCP, 80, lifetime=60, now=50.0)
    assert gateway.next_timeout() == 160.0


@pytest.mark.parametrize("now", [float("nan"), float("inf"), "soon", None])
def test_a_clock_that_does_not_tell_the_time_is_the_callers_mistake(now: typing.Any) -> None:
    gateway = make_gateway()
    with pytest.raises(LocalProtocolError, match="now must be a finite number of seconds"):
        gateway.receive_datagram(b"\0\0", HOST, now)
    with pytest.raises(LocalProtocolError, match="now must be a finite number of seconds"):
        gateway.handle_timeout(now)
    assert list(gateway.outputs()) == []


# --- versions


@pytest.mark.requirement("NP-1.1-02")
@pytest.mark.requirement("NP-1.1-04")
@pytest.mark.requirement("NP-3-04")
@pytest.mark.requirement("NP-3.5-02")
@pytest.mark.requirement("PCP-8.2-12")
@pytest.mark.requirement("PCP-9-04")
@pytest.mark.parametrize(
    ("versions", "octets", "answer"),
    [
        ((2, 0), "0000", "0080 0000 00000009 cb007105"),
        ((0,), "0000", "0080 0000 00000009 cb007105"),
        ((2,), "0000", "0280 0001 00000708 00000009" + "00" * 12),
        ((2, 0), "0101", "0281 0001 00000708 00000009" + "00" * 12),
        ((2,), "0101", "0281 0001 00000708 00000009" + "00" * 12),
        ((0,), "0101", "0080 0001 00000009"),
        ((0,), "0200", "0080 0001 00000009"),
        ((0,), "0201" + "00" * 58, "0080 0001 00000009"),
        ((2, 0), "0700", "0280 0001 00000708 00000009" + "00" * 12),
        ((0,), "ff00", "0080 0001 00000009"),
        ((2,), "0001000013880000" + "00001c20", "0281 0001 00000708 00000009" + "00" * 12),
        ((2,), "0300" + "aa" * 21, "0280 0001 00000708 00000009" + "aa" * 11 + "00"),
        ((2,), "0300" + "aa" * 23, "0280 0001 00000708 00000009" + "aa" * 13 + "000000"),
    ],
)
def test_a_version_that_is_not_spoken_gets_a_version_error_of_a_protocol_that_is(
    versions: tuple[int, ...], octets: str, answer: str
) -> None:
    gateway = make_gateway(versions)
    gateway.reboot(0.0)
    drain(gateway)
    reply, events = ask_bytes(gateway, bytes.fromhex(octets), 9.0)
    assert (reply.hex(), events) == (bytes.fromhex(answer).hex(), [])
    assert is_response(reply)


# --- PCP: the order of the checks


@pytest.mark.requirement("PCP-8.2-10")
@pytest.mark.requirement("PCP-8.2-11")
@pytest.mark.requirement("NP-3.5-03")
@pytest.mark.parametrize("versions", [(2, 0), (2,), (0,)])
@pytest.mark.parametrize("octets", ["", "00", "02", "0080", "0081" + "00" * 14, "0281" + "00" * 58, "0381", "ffff"])
def test_a_response_or_a_single_octet_is_not_answered_and_changes_nothing(
    versions: tuple[int, ...], octets: str
) -> None:
    gateway = make_gateway(versions)
    assert gateway.receive_datagram(bytes.fromhex(octets), HOST, 5.0) is False
    assert gateway.next_timeout() is None
    assert list(gateway.outputs()) == []
    reply, _ = ask_bytes(gateway, b"\5\0", 9.0)  # a version error, which every gateway has
    assert int.from_bytes(reply[4:8] if reply[0] == 0 else reply[8:12]) == 0  # the epoch starts only now


@pytest.mark.requirement("PCP-8.2-13")
@pytest.mark.parametrize("size", [2, 3, 4, 20, 23])
def test_a_pcp_request_shorter_than_a_header_is_dropped(size: int) -> None:
    gateway = make_gateway()
    assert gateway.receive_datagram((b"\2\1" + bytes(22))[:size], HOST, 0.0) is True
    assert list(gateway.outputs()) == []


@pytest.mark.parametrize("octets", ["0001", "000200000050", "0002" + "00" * 9])
def test_a_nat_pmp_map_request_that_is_cut_off_is_dropped(octets: str) -> None:
    gateway = make_gateway()
    gateway.receive_datagram(bytes.fromhex(octets), HOST, 0.0)
    assert list(gateway.outputs()) == []


@pytest.mark.parametrize("versions", [(2, 0), (2,), (0,)])
def test_a_version_error_whose_response_bit_is_clear_is_not_answered(versions: tuple[int, ...]) -> None:
    """RFC 6886 section 3.5 prints it so; two gateways must not answer each other's errors for ever."""
    gateway = make_gateway(versions)
    assert gateway.receive_datagram(octets_of("NP-UNSUPPVER-RSP-PRINTED"), HOST, 0.0) is False
    assert gateway.next_timeout() is None
    assert list(gateway.outputs()) == []


ALIEN = pcp.MapRequest(IPv4Address("10.9.9.9"), NONCE, 132, 80)
OWN = pcp.MapRequest(IPv4Address(LOCAL), NONCE, TCP, 80)
BROKEN_OPTION = bytes.fromhex("c80001f4")
MANDATORY = RawOption(100, b"abcd").encode()
# Protocol 0, all protocols, goes with port 0, all ports: no constructor makes this one.
ALL_OF_PORT_80 = OWN.encode()[:36] + b"\0" + OWN.encode()[37:]


@pytest.mark.requirement("PCP-8.2-01")
@pytest.mark.requirement("PCP-7.4-02")
@pytest.mark.requirement("PCP-8.2-16")
@pytest.mark.requirement("PCP-8.2-17")
@pytest.mark.requirement("PCP-7.3-14")
@pytest.mark.requirement("PCP-7.3-16")
@pytest.mark.requirement("PCP-14.1.1-03")
@pytest.mark.requirement("PCP-11.3-01")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        # each has the fault of the next line as well
        (b"\3" + ALIEN.encode()[1:] + b"\0", Code.UNSUPP_VERSION),
        (b"\2\x60" + ALIEN.encode()[2:] + b"\0", Code.MALFORMED_REQUEST),
        (b"\2\x60" + ALIEN.encode()[2:40], Code.UNSUPP_OPCODE),
        (ALIEN.encode()[:40], Code.MALFORMED_REQUEST),
        (ALIEN.encode() + BROKEN_OPTION, Code.ADDRESS_MISMATCH),
        (OWN.encode() + MANDATORY + BROKEN_OPTION, Code.MALFORMED_OPTION),
        (ALL_OF_PORT_80 + MANDATORY, Code.UNSUPP_OPTION),
        (ALL_OF_PORT_80, Code.MALFORMED_REQUEST),
        (pcp.MapRequest(IPv4Address(LOCAL), NONCE, 132, 80).encode(), Code.UNSUPP_PROTOCOL),
        # the same for the other opcode
        (pcp.AnnounceRequest(IPv4Address("10.9.9.9")).encode() + BROKEN_OPTION, Code.ADDRESS_MISMATCH),
        (pcp.AnnounceRequest(IPv4Address(LOCAL)).encode() + MANDATORY + BROKEN_OPTION, Code.MALFORMED_OPTION),
        (pcp.AnnounceRequest(IPv4Address(LOCAL)).encode() + MANDATORY, Code.UNSUPP_OPTION),
    ],
)
def test_of_two_faults_the_first_in_the_order_of_the_rfc_is_told(data: bytes, code: pcp.ResultCode) -> None:
    gateway = make_gateway(external=None)
    reply, events = ask_bytes(gateway, data)
    assert pcp.ResultCode(reply[3]) == code
    assert events == []
    assert not gateway.mappings


@pytest.mark.requirement("PCP-11.3-01")
def test_a_request_that_can_never_be_right_is_told_so_before_its_nonce_is_looked_at() -> None:
    gateway = make_gateway(external=None)
    gateway_with = make_gateway()
    pcp_map(gateway_with, TCP, 80)
    reply, _ = ask_bytes(gateway_with, ALL_OF_PORT_80[:24] + OTHER_NONCE + ALL_OF_PORT_80[36:])
    assert reply[3] == Code.MALFORMED_REQUEST
    gateway_with.set_external_address(None, 1.0)
    drain(gateway_with)
    assert pcp_map(gateway_with, TCP, 80, nonce=OTHER_NONCE, now=1.0).result_code == Code.NOT_AUTHORIZED
    assert pcp_map(gateway, TCP, 80).result_code == Code.NETWORK_FAILURE


@pytest.mark.requirement("PCP-11.3-03")
@pytest.mark.parametrize("lifetime", [0, 60])
def test_all_protocols_of_one_port_is_malformed_also_in_a_delete(lifetime: int) -> None:
    reply, events = ask_bytes(make_gateway(), ALL_OF_PORT_80[:4] + lifetime.to_bytes(4) + ALL_OF_PORT_80[8:])
    assert (reply[3], events) == (Code.MALFORMED_REQUEST, [])


@pytest.mark.requirement("PCP-11.3-03")
@pytest.mark.requirement("PCP-11.3-04")
@pytest.mark.requirement("PCP-11.3-05")
@pytest.mark.requirement("PCP-11.3-06")
@pytest.mark.requirement("PCP-15.1-04")
@pytest.mark.requirement("PCP-2.2-01")
@pytest.mark.requirement("PCP-11.1-09")
@pytest.mark.parametrize(
    ("protocol", "port", "lifetime", "code"),
    [
        (132, 5000, 60, Code.UNSUPP_PROTOCOL),
        (47, 0, 60, Code.UNSUPP_PROTOCOL),
        (17, 0, 60, Code.UNSUPP_PROTOCOL),
        (0, 0, 60, Code.UNSUPP_PROTOCOL),
        (132, 5000, 0, Code.SUCCESS),  # a delete of what is not there
        (17, 0, 0, Code.SUCCESS),
        (0, 0, 0, Code.SUCCESS),
    ],
)
def test_what_this_nat_cannot_map_it_refuses_and_what_is_not_there_it_deletes(
    protocol: int, port: int, lifetime: int, code: pcp.ResultCode
) -> None:
    gateway = make_gateway()
    assert pcp_map(gateway, protocol, port, lifetime=lifetime).result_code == code
    assert not gateway.mappings


@pytest.mark.requirement("PCP-7.3-11")
@pytest.mark.requirement("PCP-7.3-19")
@pytest.mark.requirement("PCP-8.2-06")
@pytest.mark.requirement("PCP-8.2-08")
@pytest.mark.requirement("PCP-8.2-16")
@pytest.mark.requirement("PCP-11.1-16")
@pytest.mark.parametrize(
    ("data", "code", "size"),
    [
        (OWN.encode() + b"\7", Code.MALFORMED_REQUEST, 64),
        (OWN.encode()[:59], Code.MALFORMED_REQUEST, 60),
        (OWN.encode()[:26], Code.MALFORMED_REQUEST, 28),
        (OWN.encode() + RawOption(200, bytes(1036)).encode(), Code.SUCCESS, 60),
        (OWN.encode() + RawOption(200, bytes(1040)).encode(), Code.MALFORMED_REQUEST, 1100),
        (OWN.encode() + bytes(1041), Code.MALFORMED_REQUEST, 1100),
        (b"\2\x7f" + OWN.encode()[2:24] + bytes(range(40)), Code.UNSUPP_OPCODE, 64),
        (OWN.encode() + MANDATORY, Code.UNSUPP_OPTION, 68),
        (OWN.encode() + BROKEN_OPTION, Code.MALFORMED_OPTION, 64),
    ],
)
def test_an_error_is_a_copy_of_its_request_padded_to_4_and_cut_at_1100_octets(
    data: bytes, code: pcp.ResultCode, size: int
) -> None:
    gateway = make_gateway()
    reply, _ = ask_bytes(gateway, data)
    assert len(reply) == size
    assert reply[:4] == bytes((2, data[1] | 0x80, 0, code))
    if code != Code.SUCCESS:
        assert int.from_bytes(reply[4:8]) == 1800
        unparsed = code == Code.MALFORMED_REQUEST
        assert reply[12:24] == (data[12:24] if unparsed else bytes(12))
        assert reply[24:] == (data[24:1100] + bytes(3))[: size - 24]


@pytest.mark.requirement("PCP-7.2-11")
def test_the_address_octets_of_a_request_that_cannot_be_read_stay_where_they_are() -> None:
    """RFC 6887 section 7.2: the last 96 bits of the client address, in the 96 reserved bits."""
    request = pcp.AnnounceRequest(IPv6Address(V6_HOST[0])).encode()
    reply, _ = ask_bytes(make_gateway(), request + b"\0", source=V6_HOST)
    assert reply[12:24] == IPv6Address(V6_HOST[0]).packed[4:]


@pytest.mark.requirement("PCP-7.2-02")
@pytest.mark.requirement("PCP-7.2-03")
@pytest.mark.requirement("PCP-7.2-04")
@pytest.mark.requirement("PCP-8.2-07")
@given(st.integers(0, 127), st.binary(max_size=80), st.integers(3, 255) | st.just(1))
def test_every_answer_of_pcp_has_version_2_the_response_bit_and_the_opcode_of_its_request(
    opcode: int, rest: bytes, version: int
) -> None:
    gateway = make_gateway()
    for data in (bytes((2, opcode)) + bytes(22) + rest, bytes((version, opcode)) + rest):
        reply, _ = ask_bytes(gateway, data)
        assert reply[0] == 2
        assert reply[1] == opcode | 0x80
        assert reply[2] == 0
        assert len(reply) % 4 == 0
        assert 24 <= len(reply) <= 1100


# --- PCP: options


@pytest.mark.requirement("PCP-7.3-17")
@pytest.mark.requirement("PCP-7.3-18")
@pytest.mark.requirement("PCP-7.3-19")
@pytest.mark.requirement("PCP-7.4-09")
@pytest.mark.requirement("PCP-13.1-07")
@pytest.mark.requirement("PCP-13.1-08")
@pytest.mark.requirement("PCP-18.1-01")
def test_an_option_that_is_not_known_is_refused_if_mandatory_and_left_out_if_not() -> None:
    gateway = make_gateway()
    for option in (pcp.ThirdParty(IPv4Address("192.168.1.20")), RawOption(100), RawOption(127)):
        reply = pcp_map(gateway, TCP, 80, 8080, options=(RawOption(200, b"a"), option))
        assert reply.result_code == Code.UNSUPP_OPTION
        assert reply.options == (RawOption(200, b"a"), option)
        assert not gateway.mappings
    for unknown in (RawOption(200, b"a"), RawOption(255), pcp.Prefix64()):
        reply = pcp_map(gateway, TCP, 80, options=(unknown,))
        assert (reply.result_code, reply.options) == (Code.SUCCESS, ())


@pytest.mark.requirement("PCP-14.1.1-04")
@pytest.mark.requirement("PCP-14.1.2-03")
def test_an_announce_request_changes_nothing_and_may_carry_options() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80)
    before = gateway.mappings
    request = pcp.AnnounceRequest(IPv4Address(LOCAL), (RawOption(200),))
    assert ask_bytes(gateway, request.encode(), 7.0) == (bytes.fromhex("0280 0000 00000000 00000007") + bytes(12), [])
    assert gateway.mappings == before
    refused = ask(gateway, pcp.AnnounceRequest(IPv4Address(LOCAL), (RawOption(100),)), 7.0)
    assert refused == pcp.AnnounceResponse(Code.UNSUPP_OPTION, 1800, 7, (RawOption(100),))


# --- PCP: mappings


@pytest.mark.requirement("PCP-3-01")
@pytest.mark.requirement("PCP-8.2-17")
def test_the_client_address_has_to_be_the_source_of_the_request() -> None:
    gateway = make_gateway()
    reply = ask(gateway, OWN, source=OTHER)
    assert isinstance(reply, pcp.MapResponse)
    assert (reply.result_code, reply.lifetime) == (Code.ADDRESS_MISMATCH, 1800)
    compat = octets_of("PCP-MAP-REQ-ADDR-COMPAT")  # ::192.168.1.10 is not ::ffff:192.168.1.10
    assert ask_bytes(gateway, compat, source=("192.168.1.10", 1))[0][3] == Code.ADDRESS_MISMATCH
    assert not gateway.mappings


def test_a_dual_stack_socket_shows_ipv4_hosts_as_mapped_addresses_which_are_the_same() -> None:
    gateway = make_gateway()
    mapped: Address = ("::ffff:" + LOCAL, 40001, 0, 0)
    gateway.receive_datagram(OWN.encode(), mapped, 0.0)
    assert [output.addr for output in gateway.outputs() if isinstance(output, SendDatagram)] == [mapped]
    assert natpmp_map(gateway, UDP, 80, 8080, source=mapped) == (OK, 8080, 7200)
    assert {str(mapping.internal.address) for mapping in gateway.mappings} == {LOCAL}


@pytest.mark.requirement("PCP-11.3-08")
@pytest.mark.requirement("PCP-15.1-06")
@pytest.mark.requirement("PCP-15.1-07")
@pytest.mark.requirement("PCP-15.1-10")
@pytest.mark.requirement("PCP-15.1-11")
@pytest.mark.requirement("PCP-11.3-07")
@pytest.mark.requirement("PCP-15.1-01")
def test_a_pcp_delete_needs_the_nonce_and_may_be_repeated() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, 600)
    refused = pcp_map(gateway, TCP, 80, 0, 0, nonce=OTHER_NONCE, now=100.5)
    assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 500)  # 499.5 s, rounded up
    assert len(gateway.mappings) == 1
    for _ in range(2):
        deleted = pcp_map(gateway, TCP, 80, 9999, 0, now=101.0)
        assert (deleted.result_code, deleted.lifetime) == (Code.SUCCESS, 0)
        assert (deleted.external_address, deleted.external_port) == (IPv4Address(0), 9999)
        assert not gateway.mappings
    assert pcp_map(gateway, TCP, 80, 0, 0, nonce=OTHER_NONCE, now=102.0).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-15.1-01")
def test_a_mapping_can_be_deleted_while_there_is_no_external_address() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(None, 1.0)
    drain(gateway)
    assert pcp_map(gateway, TCP, 80, now=1.0).result_code == Code.NETWORK_FAILURE
    assert pcp_map(gateway, TCP, 80, lifetime=0, now=1.0).result_code == Code.SUCCESS
    assert not gateway.mappings


@pytest.mark.requirement("PCP-11.3-08")
def test_the_lifetime_of_a_refusal_is_never_shorter_than_the_mapping_that_is_in_the_way() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, lifetime=120)
    refused = pcp_map(gateway, TCP, 80, nonce=OTHER_NONCE, now=119.5)
    assert (refused.result_code, refused.lifetime) == (Code.NOT_AUTHORIZED, 1)


@pytest.mark.parametrize("now", [120.0, 500.0])
def test_a_mapping_past_its_expiry_is_gone_although_nobody_has_called_handle_timeout(now: float) -> None:
    """A driver may hand in a datagram before it notices that the mapping has expired."""
    gateway = make_gateway(first_port=8080, last_port=8080, tcp_idle=0.0)
    pcp_map(gateway, TCP, 80, lifetime=120)
    assert natpmp_map(gateway, TCP, 80, source=OTHER, now=119.0)[0] == natpmp.ResultCode.OUT_OF_RESOURCES
    _, events = ask_bytes(gateway, natpmp.MapRequest(TCP, 80).encode(), now, OTHER)
    assert [type(event) for event in events] == [MappingExpired, MappingCreated]
    (mapping,) = gateway.mappings
    assert (str(mapping.internal), mapping.expires_at) == ("192.168.1.8:80", now + 7200)


@pytest.mark.requirement("PCP-11.1-03")
def test_a_nonce_of_zeros_is_as_good_as_any() -> None:
    gateway = make_gateway()
    assert pcp_map(gateway, TCP, 80, nonce=bytes(12)).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, nonce=NONCE).result_code == Code.NOT_AUTHORIZED
    assert pcp_map(gateway, TCP, 80, nonce=bytes(12)).result_code == Code.SUCCESS


@pytest.mark.requirement("PCP-7.3-10")
def test_a_request_that_ends_in_an_error_changes_nothing() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080, 600)
    before, deadline = gateway.mappings, gateway.next_timeout()
    for data in (
        pcp.MapRequest(IPv4Address(LOCAL), OTHER_NONCE, TCP, 80).encode(),
        pcp.MapRequest(IPv4Address(LOCAL), NONCE, TCP, 80).encode() + MANDATORY,
        pcp.MapRequest(IPv4Address(LOCAL), NONCE, TCP, 80, lifetime=0).encode() + BROKEN_OPTION,
    ):
        reply, events = ask_bytes(gateway, data, 10.0)
        assert reply[3] != 0
        assert events == []
    assert (gateway.mappings, gateway.next_timeout()) == (before, deadline)


def test_ipv6_hosts_get_pinholes_at_their_own_address_and_port() -> None:
    gateway = make_gateway(external=None)
    reply = pcp_map(gateway, TCP, 443, 8443, 3600, source=V6_HOST)
    assert (reply.result_code, reply.lifetime) == (Code.SUCCESS, 3600)
    assert (reply.external_address, reply.external_port) == (IPv6Address(V6_HOST[0]), 443)
    (mapping,) = gateway.mappings
    assert mapping.internal == mapping.external == Endpoint(IPv6Address(V6_HOST[0]), 443)
    assert pcp_map(gateway, TCP, 443, lifetime=0, source=V6_HOST).result_code == Code.SUCCESS
    assert not gateway.mappings


@pytest.mark.requirement("NP-4.1-01")
def test_nat_pmp_maps_nothing_for_ipv6_hosts() -> None:
    gateway = make_gateway()
    assert natpmp_map(gateway, TCP, 80, source=V6_HOST) == (natpmp.ResultCode.NOT_AUTHORIZED, 0, 0)
    assert natpmp_map(gateway, TCP, 80, lifetime=0, source=V6_HOST) == (OK, 0, 0)
    assert not gateway.mappings


def test_nat_pmp_cannot_tell_an_external_address_of_ipv6() -> None:
    gateway = make_gateway(external="2001:db8::1")
    failure = natpmp.ExternalAddressResponse(natpmp.ResultCode.NETWORK_FAILURE, 0)
    assert ask(gateway, natpmp.ExternalAddressRequest()) == failure


def test_a_gateway_whose_external_address_is_ipv6_maps_nothing_by_nat_pmp() -> None:
    """RFC 6886 section 3.5: result 3, as for the external address, which NAT-PMP could not tell either."""
    gateway = make_gateway(external="2001:db8::1")
    assert natpmp_map(gateway, TCP, 80) == (natpmp.ResultCode.NETWORK_FAILURE, 0, 0)


def test_a_pinhole_and_a_translation_on_the_same_port_do_not_disturb_each_other() -> None:
    """A pinhole takes no port of the external IPv4 address, so its end gives none back."""
    gateway = make_gateway(first_port=8080, last_port=8080)
    assert pcp_map(gateway, TCP, 80, 8080).external_port == 8080
    assert pcp_map(gateway, TCP, 8080, source=V6_HOST).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 8080, lifetime=0, source=V6_HOST).result_code == Code.SUCCESS
    assert pcp_map(gateway, TCP, 80, 8080, source=OTHER).result_code == Code.NO_RESOURCES
    assert forwarded(gateway) == [(TCP, LOCAL, 8080)]


# --- which requests are taken at all

WAN: Address = ("198.51.100.23", 40004)


@pytest.mark.requirement("NP-3.8-01")
@pytest.mark.requirement("NP-3.8-02")
@pytest.mark.requirement("NP-5-02")
@pytest.mark.parametrize("versions", [(2, 0), (2,), (0,)])
def test_a_gateway_that_is_switched_off_neither_answers_nor_announces(versions: tuple[int, ...]) -> None:
    gateway = make_gateway(versions, enabled=False)
    gateway.reboot(0.0)
    for data in (b"\0\0", natpmp.MapRequest(TCP, 80).encode(), b"\0\7", OWN.encode(), b"\3\1"):
        gateway.receive_datagram(data, HOST, 1.0)
    gateway.set_external_address("198.51.100.9", 2.0)
    assert list(gateway.outputs()) == []
    assert gateway.next_timeout() is None
    assert not gateway.mappings


@pytest.mark.requirement("NP-3.3-22")
@pytest.mark.requirement("NP-3.3-23")
@pytest.mark.requirement("PCP-8.2-02")
@pytest.mark.requirement("PCP-8.2-03")
def test_only_the_networks_inside_are_served_and_others_hear_nothing() -> None:
    """The socket has the address of the inside; where a datagram came in shows in its source."""
    gateway = make_gateway(networks=["192.168.1.0/24", "2001:db8:1::/64"])
    assert gateway.bind_address == SERVER
    for source in (WAN, ("2001:db8:2::99", 40004, 0, 0), ("::ffff:198.51.100.23", 40004, 0, 0), ("192.168.2.7", 40001)):
        request = pcp.MapRequest(IPv4Address(WAN[0]), NONCE, TCP, 80).encode()
        for data in (b"\0\0", natpmp.MapRequest(TCP, 80).encode(), b"\0\7", request, b"\3\1"):
            gateway.receive_datagram(data, source, 0.0)
    assert list(gateway.outputs()) == []
    assert not gateway.mappings
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    assert natpmp_map(gateway, UDP, 80, 8080, source=("::ffff:192.168.1.7", 40001, 0, 0)) == (OK, 8080, 7200)
    assert pcp_map(gateway, TCP, 80, source=V6_HOST).result_code == Code.SUCCESS


@pytest.mark.parametrize("networks", [["lan"], ["192.168.1.7/24"], [None]])
def test_the_networks_inside_are_networks(networks: typing.Any) -> None:
    with pytest.raises(LocalProtocolError, match=r"GatewayConfig\.networks must be IP networks: "):
        GatewayConfig(networks=networks)


@pytest.mark.requirement("NP-3.3-22")
def test_nobody_inside_has_the_external_address() -> None:
    gateway = make_gateway()
    for data in (b"\0\0", natpmp.MapRequest(TCP, 80).encode(), pcp.MapRequest(EXTERNAL, NONCE, TCP, 80).encode()):
        gateway.receive_datagram(data, (EXTERNAL, 40001), 0.0)
    assert list(gateway.outputs()) == []
    assert not gateway.mappings


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "::", "ff02::1"])
def test_nobody_sends_from_an_address_that_no_host_can_have(host: str) -> None:
    gateway = make_gateway()
    for data in (b"\0\0", natpmp.MapRequest(TCP, 80).encode(), pcp.MapRequest(host, NONCE, TCP, 80).encode()):
        assert gateway.receive_datagram(data, (host, 40001), 0.0) is False
    assert list(gateway.outputs()) == []
    assert not gateway.mappings


def test_nat_pmp_maps_no_protocol_that_is_not_to_be_mapped() -> None:
    gateway = make_gateway(protocols=(6,))
    assert natpmp_map(gateway, UDP, 80) == (natpmp.ResultCode.NOT_AUTHORIZED, 0, 0)
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    assert forwarded(gateway) == [(TCP, LOCAL, 8080)]


@pytest.mark.requirement("PCP-7.4-06")
@pytest.mark.parametrize(
    ("code", "lifetime", "natpmp_code"),
    [
        (Code.NOT_AUTHORIZED, 1800, natpmp.ResultCode.NOT_AUTHORIZED),
        (Code.NETWORK_FAILURE, 30, natpmp.ResultCode.NETWORK_FAILURE),
        (Code.NO_RESOURCES, 30, natpmp.ResultCode.OUT_OF_RESOURCES),
        (Code.USER_EX_QUOTA, 30, natpmp.ResultCode.OUT_OF_RESOURCES),
        (Code.UNSUPP_PROTOCOL, 1800, natpmp.ResultCode.NOT_AUTHORIZED),
    ],
)
def test_the_policy_refuses_whom_it_wants_with_the_nearest_code_of_the_protocol(
    code: pcp.ResultCode, lifetime: int, natpmp_code: natpmp.ResultCode
) -> None:
    seen = []

    def policy(message: natpmp.Message | pcp.Message, source: Address) -> pcp.ResultCode | None:
        seen.append((type(message), source))
        return code if source == OTHER else None

    gateway = Gateway(EXTERNAL, address=SERVER, policy=policy, rng=Middle(2))
    assert natpmp_map(gateway, TCP, 80, source=OTHER) == (natpmp_code, 0, 0)
    failure = natpmp.ExternalAddressResponse(natpmp_code, 0)
    assert ask(gateway, natpmp.ExternalAddressRequest(), source=OTHER) == failure
    refused = pcp_map(gateway, TCP, 80, 8080, source=OTHER)
    assert (refused.result_code, refused.lifetime, refused.external_port) == (code, lifetime, 8080)
    assert not gateway.mappings
    assert seen == [(each, OTHER) for each in (natpmp.MapRequest, natpmp.ExternalAddressRequest, pcp.MapRequest)]
    assert pcp_map(gateway, TCP, 80, 8080).external_port == 8080
    assert natpmp_map(gateway, UDP, 80, 8080) == (OK, 8080, 7200)


def test_where_mapping_is_switched_off_the_external_address_is_still_told() -> None:
    gateway = make_gateway(allow_map=False)
    assert natpmp_map(gateway, TCP, 80) == (natpmp.ResultCode.NOT_AUTHORIZED, 0, 0)
    reply = ask(gateway, natpmp.ExternalAddressRequest())
    assert reply == natpmp.ExternalAddressResponse(OK, 0, IPv4Address(EXTERNAL))
    assert not gateway.mappings


@pytest.mark.requirement("NP-5-01")
def test_nat_pmp_believes_whoever_shows_the_right_source_address() -> None:
    """RFC 6886 section 5: it is for networks whose hosts trust each other."""
    gateway = make_gateway()
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    assert natpmp_map(gateway, TCP, 80, 0, 0, source=(LOCAL, 6666)) == (OK, 0, 0)
    assert not gateway.mappings


# --- what is in the table


@pytest.mark.requirement("PCP-3-02")
def test_the_table_says_how_each_mapping_came_about() -> None:
    gateway = make_gateway(tcp_idle=7440.0)
    gateway.add_static(TCP, endpoint(OTHER[0], 80), 80, 0.0)
    natpmp_map(gateway, TCP, 81)
    pcp_map(gateway, TCP, 82)
    pcp_peer(gateway, TCP, 83, WEB)
    gateway.outbound(TCP, endpoint(LOCAL, 84), WEB, 0.0)
    assert [(entry.internal.port, entry.kind, entry.remote, entry.expires_at) for entry in gateway.mappings] == [
        (80, MappingKind.STATIC, None, math.inf),
        (81, MappingKind.MAP, None, 7200.0),
        (82, MappingKind.MAP, None, 7200.0),
        (83, MappingKind.PEER, WEB, 7200.0),
        (84, MappingKind.IMPLICIT, WEB, 7440.0),
    ]


@pytest.mark.requirement("NP-3.9-01")
def test_what_leaves_a_mapped_port_leaves_by_its_external_port() -> None:
    gateway = make_gateway()
    gateway.add_static(UDP, endpoint(LOCAL, 53), 53, 0.0)
    natpmp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, UDP, 81, 8081)
    for protocol, internal, external in ((UDP, 53, 53), (TCP, 80, 8080), (UDP, 81, 8081)):
        for remote in (WEB, endpoint("198.51.100.24", 444)):
            left_by = gateway.outbound(protocol, endpoint(LOCAL, internal), remote, 1.0)
            assert left_by == endpoint(EXTERNAL, external)


@pytest.mark.requirement("NP-3.3-20")
def test_nat_pmp_is_given_the_external_port_that_traffic_or_the_owner_has_chosen_before() -> None:
    gateway = make_gateway()
    gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    left_by = gateway.outbound(TCP, endpoint(LOCAL, 81), WEB, 0.0)
    assert left_by is not None
    assert natpmp_map(gateway, TCP, 80, 9090, 600) == (OK, 8080, 600)
    assert natpmp_map(gateway, TCP, 81, left_by.port + 1) == (OK, left_by.port, 7200)


@pytest.mark.requirement("NP-3.4-11")
@pytest.mark.requirement("NP-3.4-12")
@pytest.mark.requirement("NP-3.4-14")
@pytest.mark.requirement("NP-3.4-20")
def test_nat_pmp_cannot_delete_what_the_owner_has_configured() -> None:
    gateway = make_gateway()
    static = gateway.add_static(TCP, endpoint(LOCAL, 80), 80, 0.0)
    assert natpmp_map(gateway, TCP, 81, 8081) == (OK, 8081, 7200)
    assert natpmp_map(gateway, TCP, 80, 8080, 600) == (OK, 80, 600)
    reply = ask_bytes(gateway, octets_of("NP-DEL-TCP-PORTSET-REQ"), 9.0)
    assert reply == (bytes.fromhex("0082 0002 00000009 0050 0000 00000000"), [])
    assert natpmp_map(gateway, TCP, 0, 0, 0, now=9.0) == (natpmp.ResultCode.NOT_AUTHORIZED, 0, 0)
    assert [(entry.id, entry.kind, entry.expires_at) for entry in gateway.mappings] == [
        (static, MappingKind.STATIC, math.inf)
    ]


@pytest.mark.requirement("PCP-6-01")
def test_repeating_renewing_and_recreating_are_the_same_datagram() -> None:
    gateway = make_gateway()
    request = pcp.MapRequest(IPv4Address(LOCAL), NONCE, TCP, 80, 8080, lifetime=600)
    happened = []
    for now in (0.0, 1.0, 300.0, 901.0):  # asked, asked again, renewed, and one second after it expired
        reply, events = ask_bytes(gateway, request.encode(), now)
        assert decode(reply) == pcp.MapResponse(Code.SUCCESS, 600, int(now), NONCE, TCP, 80, 8080, EXTERNAL)
        happened.append([type(event) for event in events])
    assert happened == [[MappingCreated], [MappingRefreshed], [MappingRefreshed], [MappingExpired, MappingCreated]]


@pytest.mark.requirement("PCP-7.3-15")
def test_a_request_whose_answer_would_be_too_long_is_malformed() -> None:
    gateway = make_gateway(max_filters=64)
    prefixes = [pcp.Prefix64(f"2001:db8:{number:x}::/96") for number in range(4)]
    gateway.set_prefix64(prefixes, 0.0)
    filters = [pcp.Filter(128, port, "198.51.100.23") for port in range(1, 43)]
    fits = pcp_map(gateway, TCP, 80, options=(*filters[:40], pcp.Prefix64()))
    assert (fits.result_code, fits.options) == (Code.SUCCESS, (*filters[:40], *prefixes))
    too_long = pcp.MapRequest(IPv4Address(LOCAL), NONCE, TCP, 81, options=(*filters, pcp.Prefix64()))
    reply, events = ask_bytes(gateway, too_long.encode())
    assert (reply[3], reply[24:], events) == (Code.MALFORMED_REQUEST, too_long.encode()[24:], [])
    assert len(gateway.mappings) == 1


@pytest.mark.requirement("PCP-7.4-14")
@pytest.mark.requirement("PCP-7.4-16")
@given(
    st.lists(
        st.tuples(
            st.sampled_from([HOST, OTHER]),
            st.sampled_from([TCP, UDP]),
            st.integers(2000, 2003),
            st.integers(2000, 2003),
            st.sampled_from([0, 300]),
            st.sampled_from(["map", "peer", "traffic"]),
        ),
        max_size=30,
    )
)
def test_a_plain_map_request_is_never_told_that_a_suggestion_or_a_filter_cannot_be(
    story: list[tuple[Address, Protocol, int, int, int, str]],
) -> None:
    gateway = make_gateway(first_port=2000, last_port=2002)
    gateway.add_static(TCP, endpoint(LOCAL, 2003), 2002, 0.0)
    for number, (source, protocol, port, suggested, lifetime, how) in enumerate(story):
        now = 50.0 * number
        if how == "map":
            reply = pcp_map(gateway, protocol, port, suggested, lifetime, now=now, source=source)
            assert reply.result_code not in (Code.CANNOT_PROVIDE_EXTERNAL, Code.EXCESSIVE_REMOTE_PEERS)
        elif how == "peer":
            pcp_peer(gateway, protocol, port, WEB, suggested, lifetime, now=now, source=source)
        else:
            gateway.outbound(protocol, endpoint(source[0], port), WEB, now)
        drain(gateway)


# --- several external addresses


@pytest.mark.requirement("NP-4.3.2-01")
@pytest.mark.requirement("NP-4.3.2-02")
def test_to_nat_pmp_the_first_of_several_external_addresses_is_the_only_one() -> None:
    gateway = Gateway(
        [EXTERNAL, "203.0.113.6"],
        address=SERVER,
        config=GatewayConfig(first_port=8080, last_port=8081),
        rng=Middle(2),
    )
    assert gateway.external_addresses == (IPv4Address(EXTERNAL), IPv4Address("203.0.113.6"))
    assert gateway.external_address == IPv4Address(EXTERNAL)
    assert str(pcp_map(gateway, TCP, 80, 8080, address="203.0.113.6").external_address) == "203.0.113.6"
    for port, external in ((81, 8080), (82, 8081)):
        assert natpmp_map(gateway, TCP, port, external) == (OK, external, 7200)
    assert natpmp_map(gateway, TCP, 83) == (natpmp.ResultCode.OUT_OF_RESOURCES, 0, 0)
    reply = ask(gateway, natpmp.ExternalAddressRequest())
    assert reply == natpmp.ExternalAddressResponse(OK, 0, IPv4Address(EXTERNAL))
    assert [str(entry.external) for entry in gateway.mappings] == [
        "203.0.113.6:8080",
        f"{EXTERNAL}:8080",
        f"{EXTERNAL}:8081",
    ]


@pytest.mark.requirement("NP-4.3.2-02")
def test_nat_pmp_cannot_map_what_leaves_by_an_external_address_that_it_does_not_show() -> None:
    gateway = Gateway([EXTERNAL, "203.0.113.6"], address=SERVER, rng=Middle(2))
    assert str(pcp_peer(gateway, TCP, 80, WEB, address="203.0.113.6").external_address) == "203.0.113.6"
    gateway.add_static(TCP, endpoint(LOCAL, 81), 8081, 0.0, external_address="203.0.113.6")
    for port in (80, 81):
        assert natpmp_map(gateway, TCP, port) == (natpmp.ResultCode.OUT_OF_RESOURCES, 0, 0)
    assert len(gateway.mappings) == 2


@pytest.mark.requirement("NP-4.3.1-01")
def test_behind_another_nat_the_address_that_it_has_is_mapped_and_nobody_else_is_asked() -> None:
    gateway = make_gateway(external="10.0.0.2")
    assert natpmp_map(gateway, TCP, 80, 8080) == (OK, 8080, 7200)
    assert [str(entry.external) for entry in gateway.mappings] == ["10.0.0.2:8080"]
    for data in (b"\0\0", natpmp.MapRequest(TCP, 81).encode()):
        gateway.receive_datagram(data, HOST, 0.0)
        assert [each.addr for each in gateway.outputs() if isinstance(each, SendDatagram)] == [HOST]


@pytest.mark.requirement("NP-1.1-03")
def test_a_mapping_hears_of_another_address_in_the_protocol_that_made_it() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, TCP, 81, 8081, source=OTHER)
    gateway.set_external_address("198.51.100.9", 100.0)
    sent = [(output.addr, decode(output.data)) for output in gateway.outputs() if isinstance(output, SendDatagram)]
    assert (GROUP, natpmp.ExternalAddressResponse(OK, 0, IPv4Address("198.51.100.9"))) in sent
    assert [each for each in sent if each[0] != GROUP] == [
        (OTHER, pcp.MapResponse(Code.SUCCESS, 7100, 0, NONCE, TCP, 81, 8081, "198.51.100.9")),
    ]


# --- restarts, addresses, and the administrator

ROUNDS = [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75]


def follow(gateway: Gateway) -> list[tuple[float, SendDatagram]]:
    """What a gateway sends by itself, and when, until it wants nothing more."""
    sent = []
    while (now := gateway.next_timeout()) is not None:
        gateway.handle_timeout(now)
        sent += [(now, output) for output in gateway.outputs() if isinstance(output, SendDatagram)]
    return sent


@pytest.mark.requirement("NP-3.2.1-01")
@pytest.mark.requirement("NP-3.2.1-02")
@pytest.mark.requirement("NP-3.2.1-03")
@pytest.mark.requirement("NP-3.2.1-04")
@pytest.mark.requirement("NP-3.2.1-05")
@pytest.mark.requirement("NP-3.7-02")
@pytest.mark.requirement("PCP-14.1-01")
@pytest.mark.requirement("PCP-14.1.3-01")
@pytest.mark.requirement("PCP-14.1.3-04")
@pytest.mark.requirement("PCP-14.1.3-05")
def test_a_restart_is_announced_ten_times_in_both_protocols_with_the_epoch_of_the_moment() -> None:
    gateway = make_gateway()
    gateway.reboot(0.0)
    assert follow(gateway) == [
        (at, SendDatagram(data=data, addr=GROUP))
        for at in ROUNDS
        for data in (
            natpmp.ExternalAddressResponse(OK, int(at), IPv4Address(EXTERNAL)).encode(),
            pcp.AnnounceResponse(Code.SUCCESS, 0, int(at)).encode(),
        )
    ]
    assert gateway.next_timeout() is None


@pytest.mark.requirement("PCP-14.1.3-04")
def test_a_gateway_on_ipv6_announces_itself_to_all_nodes_of_its_link() -> None:
    gateway = Gateway(None, address=V6_SERVER, rng=Middle())
    gateway.reboot(100.0)
    assert follow(gateway) == [
        (
            100.0 + at,
            SendDatagram(data=pcp.AnnounceResponse(Code.SUCCESS, 0, int(at)).encode(), addr=("ff02::1", 5350, 0, 2)),
        )
        for at in ROUNDS
    ]


@pytest.mark.parametrize(("versions", "opening"), [((2,), b"\2\x80"), ((0,), b"\0\x80")])
def test_a_gateway_announces_itself_in_the_protocols_that_it_speaks(versions: tuple[int, ...], opening: bytes) -> None:
    gateway = make_gateway(versions)
    gateway.reboot(0.0)
    sent = follow(gateway)
    assert [at for at, _ in sent] == ROUNDS
    assert {datagram.data[:2] for _, datagram in sent} == {opening}


@pytest.mark.parametrize("versions", [(2, 0), (0,)])
def test_an_announcement_before_there_is_an_external_address_says_so(versions: tuple[int, ...]) -> None:
    gateway = make_gateway(versions, external=None)
    gateway.reboot(0.0)
    assert drain(gateway)[0][0] == bytes.fromhex("0080 0003 00000000 00000000")


def test_a_gateway_that_slept_through_announcements_sends_one_and_keeps_the_distances_from_there_on() -> None:
    gateway = make_gateway((2,))
    gateway.reboot(0.0)
    drain(gateway)
    for now, then in ((10.0, 10.5), (10.5, 11.5), (1000.0, 1002.0)):
        gateway.handle_timeout(now)
        assert drain(gateway)[0] == [pcp.AnnounceResponse(Code.SUCCESS, 0, int(now)).encode()]
        assert gateway.next_timeout() == then


def test_a_second_restart_begins_the_announcements_anew() -> None:
    gateway = make_gateway((2,))
    gateway.reboot(0.0)
    drain(gateway)
    gateway.handle_timeout(0.25)
    drain(gateway)
    gateway.reboot(0.5)
    assert [at for at, _ in follow(gateway)] == [0.5 + at for at in ROUNDS]


def test_a_flood_that_nobody_drains_is_dropped_as_a_full_socket_would_drop_it() -> None:
    gateway = make_gateway()
    for _ in range(5000):
        assert gateway.receive_datagram(b"\0\0", HOST, 0.0) is True
    assert gateway.next_timeout() == 0.0
    datagrams, _ = drain(gateway)
    assert 100 < len(datagrams) < 2000
    assert ask_bytes(gateway, b"\0\0")[0] == datagrams[0]  # and then it goes on


def test_announcements_that_nobody_took_do_not_pile_up() -> None:
    gateway = make_gateway()
    for step in range(100):
        gateway.reboot(float(step))
    assert len(list(gateway.outputs())) == 2


def test_an_announcement_that_nobody_took_is_taken_back_when_it_is_not_true_any_more() -> None:
    gateway = make_gateway()
    gateway.reboot(0.0)
    gateway.set_external_address("198.51.100.9", 0.0)
    assert drain(gateway)[0] == [
        natpmp.ExternalAddressResponse(OK, 0, IPv4Address("198.51.100.9")).encode(),
        pcp.AnnounceResponse(Code.SUCCESS, 0, 0).encode(),
    ]


@pytest.mark.requirement("NP-3.2.1-05")
def test_what_only_pcp_has_to_say_does_not_cut_short_the_announcements_of_nat_pmp() -> None:
    gateway = make_gateway()
    prefix = pcp.Prefix64("64:ff9b::/96")
    gateway.reboot(0.0)
    started = sent_until(gateway, 0.0, 0.0)
    gateway.set_prefix64([prefix], 0.125)
    told = sent_until(gateway, 0.125, 1000.0)
    assert started[1:] == [(0.0, GROUP, pcp.AnnounceResponse(Code.SUCCESS, 0, 0))]
    assert [at for at, _, message in started + told if isinstance(message, natpmp.ExternalAddressResponse)] == ROUNDS
    assert [(at, message) for at, _, message in told if isinstance(message, pcp.AnnounceResponse)] == [
        (0.125 + at, pcp.AnnounceResponse(Code.SUCCESS, 0, int(0.125 + at), (prefix,))) for at in ROUNDS
    ]


def test_an_external_address_that_is_none_other_changes_nothing() -> None:
    gateway = make_gateway()
    pcp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(IPv4Address(EXTERNAL), 100.0)
    gateway.set_external_address([EXTERNAL], 100.0)
    assert list(gateway.outputs()) == []
    assert gateway.next_timeout() == 7200.0
    assert ask(gateway, pcp.AnnounceRequest(LOCAL), 105.0) == pcp.AnnounceResponse(Code.SUCCESS, 0, 105)


@pytest.mark.requirement("NP-3.6-02")
@pytest.mark.requirement("PCP-8.5-02")
def test_a_restart_forgets_every_mapping() -> None:
    gateway = make_gateway(first_port=8080, last_port=8081)
    natpmp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, UDP, 81, 8081)
    gateway.reboot(50.0)
    _, events = drain(gateway)
    assert [(type(event), event.mapping) for event in events if isinstance(event, MappingDeleted)] == [
        (MappingDeleted, 1),
        (MappingDeleted, 2),
    ]
    assert not gateway.mappings
    assert pcp_map(gateway, TCP, 80, 8080, now=51.0, source=OTHER).external_port == 8080
    follow(gateway)
    assert not gateway.mappings


@pytest.mark.requirement("NP-3.2.1-01")
@pytest.mark.requirement("PCP-8.5-03")
@pytest.mark.requirement("PCP-14.2-01")
def test_a_new_external_address_moves_the_mappings_and_starts_the_epoch_anew() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    pcp_map(gateway, TCP, 443, source=V6_HOST)
    gateway.set_external_address("198.51.100.9", 100.0)
    datagrams, events = drain(gateway)
    assert events == [
        MappingRefreshed(
            gateway=SERVER,
            mapping=MappingId(1),
            protocol=TCP,
            internal=Endpoint(IPv4Address(LOCAL), 80),
            external=Endpoint(IPv4Address("198.51.100.9"), 8080),
            expires_at=7200.0,
        )
    ]
    assert datagrams == [
        natpmp.ExternalAddressResponse(OK, 0, IPv4Address("198.51.100.9")).encode(),
        pcp.AnnounceResponse(Code.SUCCESS, 0, 0).encode(),
    ]
    assert [str(mapping.external) for mapping in gateway.mappings] == [
        "198.51.100.9:8080",
        f"[{V6_HOST[0]}]:443",
    ]
    reply = ask(gateway, natpmp.ExternalAddressRequest(), 105.0)
    assert reply == natpmp.ExternalAddressResponse(OK, 5, IPv4Address("198.51.100.9"))
    assert natpmp_map(gateway, TCP, 80, now=105.0) == (OK, 8080, 7200)


def test_where_only_nat_pmp_is_spoken_the_epoch_goes_on_when_the_external_address_changes() -> None:
    """RFC 6886 section 3.6: it tells of lost mappings, and these are not lost."""
    gateway = make_gateway((0,))
    natpmp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address("198.51.100.9", 100.0)
    assert sent_until(gateway, 100.0, 300.0) == [
        (100.0 + at, GROUP, natpmp.ExternalAddressResponse(OK, 100 + int(at), IPv4Address("198.51.100.9")))
        for at in ROUNDS
    ]
    assert natpmp_map(gateway, TCP, 80, now=300.0) == (OK, 8080, 7200)


def test_an_external_address_that_is_none_is_refused_before_anything_changes() -> None:
    gateway = make_gateway()
    with pytest.raises(LocalProtocolError, match="not an IP address: 'wan0'"):
        gateway.set_external_address("wan0", 1.0)
    assert gateway.external_address == IPv4Address(EXTERNAL)
    assert list(gateway.outputs()) == []


def test_mappings_wait_for_the_external_address_to_come_back() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    gateway.set_external_address(None, 1.0)
    assert drain(gateway)[1] == []
    assert natpmp_map(gateway, TCP, 80, now=1.0)[0] == natpmp.ResultCode.NETWORK_FAILURE
    gateway.set_external_address("198.51.100.9", 2.0)
    assert [type(event) for event in drain(gateway)[1]] == [MappingRefreshed]
    assert natpmp_map(gateway, TCP, 80, now=2.0) == (OK, 8080, 7200)


def test_the_administrator_may_revoke_a_mapping_once() -> None:
    gateway = make_gateway()
    natpmp_map(gateway, TCP, 80, 8080)
    natpmp_map(gateway, TCP, 81, 8081)
    second = gateway.mappings[1].id
    assert gateway.revoke(second, 1.0) is True
    assert [(type(event), event.mapping) for event in drain(gateway)[1] if isinstance(event, MappingDeleted)] == [
        (MappingDeleted, second)
    ]
    assert gateway.revoke(second, 1.0) is False
    assert list(gateway.outputs()) == []
    assert forwarded(gateway) == [(TCP, LOCAL, 8080)]


# --- whatever comes

hosts = st.sampled_from([LOCAL, OTHER[0], V6_HOST[0], "fe80::1%eth0", "::ffff:192.168.1.7"]) | st.text(max_size=20)
sources = st.one_of(
    st.tuples(hosts, st.integers()),
    st.tuples(hosts, st.integers(), st.integers(), st.integers()),
    st.tuples(),
    st.tuples(st.integers(), st.integers()),
    st.tuples(hosts, st.text()),
)
openings = st.sampled_from([b"", b"\0", b"\0\1", b"\0\2", b"\2\0", b"\2\1", b"\0\7", b"\3\1", b"\2\1\0\0\0\0\0\0"])
requests = st.one_of(
    st.binary(max_size=1200),
    st.builds(lambda opening, rest: opening + rest, openings, st.binary(max_size=80)),
    st.sampled_from([bytes.fromhex(vector["hex"]) for vector in VECTORS.values()]),
)


@given(st.sampled_from([(2, 0), (2,), (0,)]), st.lists(st.tuples(requests, sources, st.integers(0, 100)), max_size=8))
def test_no_datagram_from_anywhere_raises_or_is_answered_twice(
    versions: tuple[int, ...], story: list[tuple[bytes, tuple[typing.Any, ...], int]]
) -> None:
    gateway = make_gateway(versions)
    now = 0.0
    for data, source, pause in story:
        now += pause
        claimed = gateway.receive_datagram(data, typing.cast("Address", source), now)
        datagrams, events = drain(gateway)
        assert len(datagrams) <= 1
        assert all(is_response(datagram) for datagram in datagrams)
        assert claimed or not (datagrams or events)
        deadline = gateway.next_timeout()
        assert deadline is None or deadline > now or gateway.mappings
        gateway.handle_timeout(now)
        drain(gateway)
        deadline = gateway.next_timeout()
        assert deadline is None or deadline > now


@given(st.binary(min_size=2, max_size=100), st.booleans())
def test_two_gateways_never_answer_each_other(data: bytes, dual: bool) -> None:
    one = make_gateway((2, 0) if dual else (2,))
    two = make_gateway((0,))
    one.receive_datagram(data, HOST, 0.0)
    for reply in drain(one)[0]:
        assert two.receive_datagram(reply, SERVER, 0.0) is False
    two.receive_datagram(data, HOST, 0.0)
    for reply in drain(two)[0]:
        assert one.receive_datagram(reply, SERVER, 0.0) is False


@given(
    st.lists(
        st.tuples(
            st.sampled_from([HOST, OTHER, V6_HOST]),
            st.sampled_from([TCP, UDP]),
            st.integers(2000, 2002),
            st.integers(2000, 2002),
            st.sampled_from([0, 60, 300]),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_no_external_port_is_ever_given_to_two_hosts(
    story: list[tuple[Address, Protocol, int, int, int, bool]],
) -> None:
    gateway = Gateway(EXTERNAL, address=SERVER, config=GatewayConfig(first_port=2000, last_port=2002), rng=Middle())
    now = 0.0
    for source, protocol, port, suggested, lifetime, by_pcp in story:
        now += 50.0
        gateway.handle_timeout(now)
        drain(gateway)
        if by_pcp:
            pcp_map(gateway, protocol, port, suggested, lifetime, now=now, source=source)
        else:
            natpmp_map(gateway, protocol, port, suggested, lifetime, now=now, source=source)
        owners: dict[tuple[int, int], str] = {}
        for mapping in gateway.mappings:
            if mapping.internal.address is not None and mapping.internal.address.version == 4:
                assert (mapping.protocol, mapping.external.port) not in owners
                owners[mapping.protocol, mapping.external.port] = str(mapping.internal.address)
        for protocol_and_port, owner in owners.items():
            for other in (TCP, UDP):
                assert owners.get((other, protocol_and_port[1]), owner) == owner
