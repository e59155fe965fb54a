"""A gateway under a flood from spoofed clients: its memory stays under a bound that its configuration gives, honest
clients are served, and no answer is larger than it has to be."""

from __future__ import annotations

import gc
import random
import tracemalloc
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

import pytest

from helpers import (
    EXTERNAL,
    HOST,
    NONCE,
    OTHER,
    SERVER,
    V6_HOST,
    V6_SERVER,
    ask,
    endpoint,
    exchange,
    pcp_map,
    pcp_peer,
)
from natpmp_sansio import Address, Gateway, GatewayConfig, Protocol, SendDatagram, natpmp, pcp, wire
from natpmp_sansio.wire.options import RawOption

TCP, UDP = Protocol.TCP, Protocol.UDP
Code = pcp.ResultCode
Flood = Iterable[tuple[bytes, Address]]


def make_gateway(external: str | None = EXTERNAL, address: Address = SERVER, **config: typing.Any) -> Gateway:
    """One with an epoch that starts at 0.0, and a dice of its own: where the flood's ports lie is of no importance."""
    gateway = Gateway(external, address=address, config=GatewayConfig(**config), rng=random.Random(1))
    gateway.handle_timeout(0.0)
    return gateway


def spoofed(request: wire.Message, count: int, first: int = 0) -> Iterator[tuple[bytes, Address]]:
    """The same request from so many IPv4 clients, 10.0.0.0 and up, with nonces of their own where there is one."""
    octets = request.encode()
    for number in range(first, first + count):
        client = 0x0A000000 + number
        data = octets
        if octets[0] == pcp.VERSION:
            data = octets[:20] + client.to_bytes(4) + (number.to_bytes(12) + octets[36:] if octets[1] else b"")
        yield data, (str(IPv4Address(client)), 40000)


def mapping_request(client: str = "10.0.0.0", lifetime: int = 7200, *options: pcp.Option) -> pcp.MapRequest:
    return pcp.MapRequest(client, NONCE, TCP, 8080, lifetime=lifetime, options=options)


def pour(gateway: Gateway, flood: Flood, now: float) -> Counter[int]:
    """Take it all in at once, drained as it comes. How often it was answered with which result code."""
    codes: Counter[int] = Counter()
    for data, source in flood:
        gateway.receive_datagram(data, source, now)
        for output in gateway.outputs():
            if isinstance(output, SendDatagram):
                assert output.addr == source
                codes[output.data[3]] += 1
    return codes


def let_pass(gateway: Gateway, end: float) -> None:
    """Time, with all that is due on the way."""
    while (deadline := gateway.next_timeout()) is not None and deadline <= end:
        gateway.handle_timeout(deadline)
        for _ in gateway.outputs():
            pass


# --- service


def test_100_000_spoofed_clients_fill_the_table_and_honest_ones_are_still_served() -> None:
    gateway = make_gateway()
    most = GatewayConfig().max_mappings
    before = pcp_map(gateway, TCP, 80)
    codes = pour(gateway, spoofed(mapping_request(), 17_000), 10.0)
    assert codes == {Code.SUCCESS: most - 1, Code.NO_RESOURCES: 17_000 - (most - 1)}
    peer = pcp.PeerRequest("10.0.0.0", NONCE, UDP, 5000, 443, "198.51.100.7")
    nat_pmp_map = natpmp.MapRequest(UDP, 5000, 0, 3600)
    assert pour(gateway, spoofed(peer, 3_000, first=17_000), 10.0) == {Code.NO_RESOURCES: 3_000}
    full = natpmp.ResultCode.OUT_OF_RESOURCES
    assert pour(gateway, spoofed(nat_pmp_map, 20_000, first=20_000), 10.0) == {full: 20_000}
    for first, question in ((40_000, pcp.AnnounceRequest("10.0.0.0")), (70_000, natpmp.ExternalAddressRequest())):
        assert pour(gateway, spoofed(question, 30_000, first=first), 10.0) == {Code.SUCCESS: 30_000}
    assert len(gateway.mappings) == most

    # who was there before goes on as if nothing were
    renewed = pcp_map(gateway, TCP, 80, now=20.0)
    assert (renewed.result_code, renewed.external_port) == (Code.SUCCESS, before.external_port)
    assert renewed.lifetime == 7200
    assert ask(gateway, pcp.AnnounceRequest(HOST[0]), 20.0) == pcp.AnnounceResponse(Code.SUCCESS, 0, 20)
    address = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 20, EXTERNAL)
    assert ask(gateway, natpmp.ExternalAddressRequest(), 20.0) == address

    # who is new has to wait until the short leases of the flood's second half are over
    refused = pcp_map(gateway, TCP, 80, now=20.0, source=OTHER)
    assert (refused.result_code, refused.lifetime) == (Code.NO_RESOURCES, 30)
    assert natpmp_code(gateway, 20.0) is natpmp.ResultCode.OUT_OF_RESOURCES
    let_pass(gateway, 130.0)
    assert len(gateway.mappings) == most // 2
    granted = pcp_map(gateway, TCP, 80, now=130.0, source=OTHER)
    assert (granted.result_code, granted.lifetime) == (Code.SUCCESS, 120)
    assert pcp_map(gateway, TCP, 80, now=190.0, source=OTHER).lifetime == 7200  # it has come back: no spoof
    assert natpmp_code(gateway, 190.0) is natpmp.ResultCode.SUCCESS


def natpmp_code(gateway: Gateway, now: float) -> natpmp.ResultCode:
    reply = ask(gateway, natpmp.MapRequest(UDP, 9000, 0, 3600), now, ("192.168.1.9", 40003))
    assert isinstance(reply, natpmp.MapResponse)
    return reply.result_code


def test_a_flood_that_never_ends_leaves_ports_for_the_honest() -> None:
    gateway = make_gateway(max_mappings=100, first_port=2000, last_port=2299)
    granted = 0
    for minute in range(0, 120, 2):
        now = minute * 60.0
        let_pass(gateway, now)
        granted += pcp_map(gateway, TCP, 80, now=now, lifetime=7200).result_code == Code.SUCCESS
        pour(gateway, spoofed(mapping_request(), 150, first=minute * 150), now)
    assert granted == 60


def test_a_host_takes_no_more_than_its_quota_whatever_it_asks_for() -> None:
    gateway = make_gateway(max_mappings_per_host=10, max_port_set=4)
    for port in range(1000, 2000, 10):
        pcp_map(gateway, TCP, port, options=(pcp.PortSet(4, port),))
        pcp_peer(gateway, UDP, port, endpoint("198.51.100.1", 443))
        ask(gateway, natpmp.MapRequest(UDP, port + 5, 0, 3600))
    assert sum(mapping.size for mapping in gateway.mappings) == 10
    assert pcp_map(gateway, TCP, 80).result_code is Code.USER_EX_QUOTA
    assert pcp_map(gateway, TCP, 80, source=OTHER).result_code is Code.SUCCESS


def test_spoofed_clients_of_other_networks_are_not_even_heard() -> None:
    gateway = make_gateway(networks=("192.168.1.0/24",))
    assert pour(gateway, spoofed(mapping_request(), 10_000), 0.0) == {}
    assert gateway.mappings == ()
    assert gateway.next_timeout() is None
    assert pcp_map(gateway, TCP, 80).lifetime == 7200


def test_a_flood_of_pinholes_is_bounded_as_well() -> None:
    gateway = make_gateway(None, V6_SERVER, max_mappings=100)
    for round_number in range(5):
        now = round_number * 200.0
        let_pass(gateway, now)
        for number in range(1000):
            client = f"2001:db8:ffff::{round_number:x}:{number:x}"
            gateway.receive_datagram(mapping_request(client).encode(), (client, 40000, 0, 0), now)
            for _ in gateway.outputs():
                pass
        assert len(gateway.mappings) == 100
    let_pass(gateway, 1000.0)
    assert pcp_map(gateway, TCP, 80, now=1000.0, source=V6_HOST).result_code is Code.SUCCESS


# --- memory

DESCRIBED = pcp.Description("d" * 127 + "\N{SNOWMAN}")  # most room for its octets: four for every character
FILTERS = tuple(pcp.Filter(128, port, f"198.51.100.{port}") for port in range(1, 17))


def bound(config: GatewayConfig) -> int:
    """How many octets the state of a gateway may take up.

    3 KiB for each port that is mapped and each that is kept from others after that, and what a mapping may carry; in
    practice a good half of it. The default configuration's bound is 120 MiB.
    """
    carried = 256 * config.max_filters + 4 * config.max_description
    return 256 * 1024 + config.max_mappings * (3 * 1024 + carried)


def memory_after(gateway: Gateway, floods: Iterable[Flood]) -> tuple[list[int], int]:
    """By how many octets there is more in use after each flood than before, and at most. They are 200 s apart."""
    gc.collect()
    tracemalloc.start()
    start, _ = tracemalloc.get_traced_memory()
    in_use = []
    for number, flood in enumerate(floods):
        let_pass(gateway, 200.0 * number)
        pour(gateway, flood, 200.0 * number)
        in_use.append(tracemalloc.get_traced_memory()[0] - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return in_use, peak - start


@pytest.mark.parametrize(
    "options", [(), (DESCRIBED, *FILTERS), (pcp.PortSet(4, 8080),)], ids=["plain", "filters", "set"]
)
def test_memory_under_a_flood_stays_below_what_the_configuration_allows(options: tuple[pcp.Option, ...]) -> None:
    config = GatewayConfig(max_mappings=80)
    gateway = make_gateway(max_mappings=config.max_mappings)
    request = mapping_request("10.0.0.0", 7200, *options)
    _, peak = memory_after(gateway, [spoofed(request, 120, first=120 * number) for number in range(3)])
    assert sum(mapping.size for mapping in gateway.mappings) == config.max_mappings
    assert peak <= bound(config)


def test_a_second_flood_needs_no_more_memory_than_the_first() -> None:
    gateway = make_gateway(max_mappings=100, first_port=2000, last_port=2999)
    in_use, _ = memory_after(gateway, [spoofed(mapping_request(), 300, first=300 * number) for number in range(24)])
    assert max(in_use[8:]) <= 1.25 * max(in_use[:8])  # 64 octets kept of each mapping would double it


def test_what_waits_to_be_drained_is_bounded() -> None:
    gateway = make_gateway(max_mappings=1000)
    for number, (data, source) in enumerate(spoofed(mapping_request(), 20_000)):
        gateway.receive_datagram(data, source, number / 10)  # the short leases end meanwhile
    assert len(list(gateway.outputs())) <= 1024 + 1000


# --- answers

JUNK = tuple(RawOption(200 + number, bytes(200)) for number in range(5))  # optional, and unknown
ALL: dict[str, typing.Any] = {"allow_third_party": True, "third_party_ids": (b"door",)}


def mapped(*options: pcp.Option) -> tuple[pcp.MapRequest, pcp.MapResponse]:
    """A request for TCP 80 as 8080, and its answer without options."""
    request = pcp.MapRequest(HOST[0], NONCE, TCP, 80, 8080, lifetime=600, options=options)
    return request, pcp.MapResponse(Code.SUCCESS, 600, 0, NONCE, TCP, 80, 8080, EXTERNAL)


def refused(request: pcp.Request | bytes, code: pcp.ResultCode) -> tuple[bytes, bytes]:
    data = request if isinstance(request, bytes) else request.encode()
    return data, pcp.error_reply(data, code, code.lifetime or 0, 0)


PEERED = pcp.PeerRequest(HOST[0], NONCE, TCP, 80, 443, "198.51.100.7", 8080, EXTERNAL, 600, (JUNK[0],))
ANSWERS: dict[str, tuple[wire.Message | bytes, wire.Message | bytes]] = {
    "NAT-PMP address": (
        natpmp.ExternalAddressRequest(),
        natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 0, EXTERNAL),
    ),
    "NAT-PMP address, asked for at length": (
        natpmp.ExternalAddressRequest().encode() + bytes(1000),
        natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 0, EXTERNAL),
    ),
    "NAT-PMP map": (
        natpmp.MapRequest(TCP, 80, 8080, 600),
        natpmp.MapResponse(TCP, natpmp.ResultCode.SUCCESS, 0, 80, 8080, 600),
    ),
    "NAT-PMP delete": (
        natpmp.MapRequest(TCP, 80, 0, 0).encode() + bytes(1000),
        natpmp.MapResponse(TCP, natpmp.ResultCode.SUCCESS, 0, 80, 0, 0),
    ),
    "NAT-PMP refusal": (
        natpmp.MapRequest(TCP, 0, 0, 600),
        natpmp.MapResponse(TCP, natpmp.ResultCode.NOT_AUTHORIZED, 0, 0, 0, 0),
    ),
    "NAT-PMP unknown opcode": (
        natpmp.UnknownRequest(7, b"as it came"),
        natpmp.ErrorResponse(7, natpmp.ResultCode.UNSUPPORTED_OPCODE, payload=b" it came"),
    ),
    "ANNOUNCE": (pcp.AnnounceRequest(HOST[0]), pcp.AnnounceResponse(Code.SUCCESS)),
    "ANNOUNCE with junk": (pcp.AnnounceRequest(HOST[0], JUNK), pcp.AnnounceResponse(Code.SUCCESS)),
    "MAP": mapped(),
    "MAP with junk": mapped(*JUNK),
    "MAP of a set of one": mapped(pcp.PortSet(1, 80)),
    "MAP with PREFIX64 where there is none": mapped(pcp.Prefix64()),
    "PEER with junk": (
        PEERED,
        pcp.PeerResponse(Code.SUCCESS, 600, 0, NONCE, TCP, 80, 8080, EXTERNAL, 443, "198.51.100.7"),
    ),
    "another version": refused(b"\1" + mapped(*JUNK)[0].encode()[1:], Code.UNSUPP_VERSION),
    "two octets of another version": refused(b"\1\0", Code.UNSUPP_VERSION),
    "another opcode": refused(pcp.UnknownRequest(96, 0, HOST[0], bytes(1000)), Code.UNSUPP_OPCODE),
    "too short": refused(mapped()[0].encode()[:40], Code.MALFORMED_REQUEST),
    "too long": refused(mapped()[0].encode() + bytes(5000), Code.MALFORMED_REQUEST),
    "no multiple of 4": refused(mapped()[0].encode() + b"!", Code.MALFORMED_REQUEST),
    "an unknown mandatory option": refused(mapped(RawOption(100))[0], Code.UNSUPP_OPTION),
    "an option that runs out": refused(mapped()[0].encode() + b"\xc8\0\xff\xff", Code.MALFORMED_OPTION),
}


@pytest.mark.parametrize(("request_", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_no_answer_is_larger_than_needed(request_: wire.Message | bytes, answer: wire.Message | bytes) -> None:
    data, expected = (each if isinstance(each, bytes) else each.encode() for each in (request_, answer))
    assert len(expected) <= pcp.MAX_SIZE
    [reply], _ = exchange(make_gateway(**ALL), data)
    assert reply == expected


@pytest.mark.parametrize("request_", [request for request, _ in ANSWERS.values()], ids=ANSWERS)
def test_a_response_is_never_answered(request_: wire.Message | bytes) -> None:
    data = request_ if isinstance(request_, bytes) else request_.encode()
    gateway = make_gateway(**ALL)
    assert gateway.receive_datagram(data[:1] + bytes((data[1] | 0x80,)) + data[2:], HOST, 1.0) is False
    assert gateway.next_timeout() is None
    assert gateway.poll() is None


@pytest.mark.parametrize("size", [1101, 1500, 9000, 65507])
@pytest.mark.parametrize("start", [b"\0\x07", b"\0\0", b"\1\1", b"\2\0", b"\2\1", b"\2\x63", b"\3\0"])
def test_no_answer_has_more_than_1100_octets(start: bytes, size: int) -> None:
    [reply], _ = exchange(make_gateway(), start + bytes(size - 2))
    assert len(reply) <= pcp.MAX_SIZE


def test_options_come_back_as_processed_and_nothing_else_does() -> None:
    """Expected octets: the header and body of 60, and each processed option with its own 4."""
    asked = (pcp.Description("a web server"), pcp.Filter(128, 0, "198.51.100.7"), *JUNK[:2])
    reply = pcp_map(make_gateway(), TCP, 80, options=asked)
    assert len(reply.encode()) == 60 + 16 + 24
