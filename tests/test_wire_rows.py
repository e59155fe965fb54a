"""The wire rows of the requirement tables that the other files do not show: layouts, reserved bits, who may say what.

A parameter's `marks=shows(...)` names the rows that this one case shows.
"""

from __future__ import annotations

import json
import socket
import typing
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import attrs
import pytest

from helpers import EXTERNAL, LOCAL, SERVER, Middle, drain, make_client, make_gateway
from natpmp_sansio import (
    Address,
    Client,
    Config,
    DecodeError,
    Endpoint,
    Gateway,
    LocalProtocolError,
    MappingGranted,
    MappingRefused,
    Protocol,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.adapters import _driver
from natpmp_sansio.adapters.blocking import open_client
from natpmp_sansio.testing import Simulation
from natpmp_sansio.wire import fields

Code = pcp.ResultCode
Options = tuple[pcp.Option, ...]

TCP, UDP = Protocol.TCP, Protocol.UDP
HOST: Address = (LOCAL, 40001)
NONCE = bytes(range(12))
V6 = "2001:db8:1::10"
VECTORS = {
    vector["id"]: vector
    for vector in json.loads((Path(__file__).parent / "requirements" / "vectors.json").read_text())["vectors"]
}


def octets_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def shows(*rows: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.requirement(row) for row in rows]


def spoilt(data: bytes, start: int, end: int, octet: int = 0xFF) -> bytes:
    """The same with other octets from `start` to `end`."""
    return data[:start] + bytes([octet]) * (end - start) + data[end:]


# --- who may say what: one message of each kind, to put options into

MAKERS: dict[str, Callable[[Options], pcp.Message]] = {
    "ANNOUNCE request": lambda options: pcp.AnnounceRequest(LOCAL, options),
    "ANNOUNCE response": lambda options: pcp.AnnounceResponse(Code.SUCCESS, 0, 9, options),
    "MAP request": lambda options: pcp.MapRequest(LOCAL, NONCE, TCP, 80, 40000, options=options),
    "MAP response": lambda options: pcp.MapResponse(Code.SUCCESS, 60, 9, NONCE, TCP, 80, 40000, EXTERNAL, options),
    "PEER request": lambda options: pcp.PeerRequest(LOCAL, NONCE, TCP, 80, 443, "198.51.100.23", options=options),
    "PEER response": lambda options: pcp.PeerResponse(
        Code.SUCCESS, 60, 9, NONCE, TCP, 80, 40000, EXTERNAL, 443, "198.51.100.23", options
    ),
    "PA request": lambda options: pcp.AuthenticationRequest(LOCAL, Code.AUTHENTICATION_REPLY, 7, 1, options),
    "PA response": lambda options: pcp.AuthenticationResponse(Code.SUCCESS, 9, 7, 1, options),
}
MAP_AND_PEER = {"MAP request", "MAP response", "PEER request", "PEER response"}
MAP_ONLY = {"MAP request", "MAP response"}
PA = {"PA request", "PA response"}
ANNOUNCE = {"ANNOUNCE request", "ANNOUNCE response"}

NEIGHBOUR = pcp.ThirdParty("192.168.1.20")
TAG = pcp.AuthenticationTag(0x5A5A0001, 3, 1, bytes(range(0xA0, 0xB0)))
PA_TAG = pcp.PaAuthenticationTag(1, bytes(range(0xA0, 0xB0)))

# Each option, where it may stand, and its rows: for these places, for sending zero and for ignoring what comes.
PLACES: list[tuple[pcp.Option, set[str], tuple[str, ...], tuple[str, ...]]] = [
    (NEIGHBOUR, MAP_AND_PEER, ("PCP-13.1-02",), ()),
    (pcp.PreferFailure(), MAP_ONLY, ("PCP-13.2-01",), ()),
    (pcp.Filter(120, 0, "198.51.100.0"), MAP_ONLY, ("PCP-13.3-01",), ()),
    (pcp.Nonce(0x11223344), PA, ("EXT7652-5.3-01",), ("EXT7652-5.3-03", "EXT7652-5.3-04")),
    (TAG, MAP_AND_PEER | ANNOUNCE, ("EXT7652-5.4-01",), ("EXT7652-5.4-02", "EXT7652-5.4-03")),
    (PA_TAG, PA, ("EXT7652-5.5-01",), ("EXT7652-5.5-02", "EXT7652-5.5-03")),
    (pcp.EapPayload(b"\1\1\0\5\1"), PA, ("EXT7652-5.6-01",), ("EXT7652-5.6-02", "EXT7652-5.6-03")),
    (pcp.Prf(5), PA, ("EXT7652-5.7-01",), ("EXT7652-5.7-02", "EXT7652-5.7-03")),
    (pcp.MacAlgorithm(12), PA, ("EXT7652-5.8-01",), ("EXT7652-5.8-02", "EXT7652-5.8-03")),
    (pcp.SessionLifetime(3600), {"PA response"}, ("EXT7652-5.9-01",), ("EXT7652-5.9-02", "EXT7652-5.9-03")),
    (pcp.ReceivedPak(7), PA, ("EXT7652-5.10-01",), ("EXT7652-5.10-02", "EXT7652-5.10-03")),
    (pcp.IdIndicator("ca1"), {"PA response"}, ("EXT7652-5.11-01",), ("EXT7652-5.11-02", "EXT7652-5.11-03")),
    (pcp.ThirdPartyId(b"\0\0\xab\xcd"), MAP_AND_PEER, ("EXT7843-4-01",), ()),
    (pcp.Description("Camera"), MAP_AND_PEER, ("EXT7220-2-01",), ()),
    (pcp.Prefix64(), MAP_ONLY | ANNOUNCE, ("EXT7225-4.1-01",), ()),
    (pcp.PortSet(100, 80), MAP_ONLY, ("EXT7753-4-01",), ()),
]


def bearers(option: pcp.Option) -> dict[str, pcp.Message]:
    """The messages that can be made with an option (and with its companion, if it needs one)."""
    options = (NEIGHBOUR, option) if isinstance(option, pcp.ThirdPartyId) else (option,)
    made = {}
    for name, make in MAKERS.items():
        try:
            made[name] = make(options)
        except LocalProtocolError:
            continue
    return made


def test_every_option_with_a_class_has_its_places() -> None:
    classes = {kind for kind in vars(pcp).values() if isinstance(kind, type) and issubclass(kind, pcp.Option)}
    assert {type(option) for option, *_ in PLACES} == classes - {pcp.Option, pcp.RawOption}


@pytest.mark.requirement("PCP-7.1-08")
@pytest.mark.requirement("PCP-7.3-22")
@pytest.mark.requirement("PCP-13-01")
@pytest.mark.parametrize(
    ("option", "places"),
    [pytest.param(option, places, marks=shows(*rows), id=option.NAME) for option, places, rows, _ in PLACES],
)
def test_an_option_can_be_put_where_its_rfc_lists_it_and_nowhere_else(option: pcp.Option, places: set[str]) -> None:
    made = bearers(option)
    assert set(made) == places
    assert all(decode(message.encode(), strict=True) == message for message in made.values())
    for name in set(MAKERS) - places:
        data = MAKERS[name](()).encode() + option.encode()
        if name.endswith("request"):  # and a server, which gets it all the same, does not take it
            assert pcp.find_fault(pcp.decode_request(data)) is not None


@pytest.mark.parametrize(
    "option", [pytest.param(option, marks=shows(*rows), id=option.NAME) for option, _, _, rows in PLACES]
)
def test_the_reserved_octet_of_an_option_is_zero_and_whatever_comes_there_is_ignored(option: pcp.Option) -> None:
    assert option.encode()[1] == 0
    for message in bearers(option).values():
        data = message.encode()
        start = len(data) - len(option.encode())
        assert data[start] == option.code
        assert decode(spoilt(data, start + 1, start + 2)) == message


# --- options, octet by octet

PREFIX = "2001:db8:122:300::/56"


@pytest.mark.parametrize(
    ("option", "octets"),
    [
        pytest.param(NEIGHBOUR, "01000010 00000000000000000000ffffc0a80114", marks=shows("PCP-13.1-02")),
        pytest.param(pcp.PreferFailure(), "02000000", marks=shows("PCP-13.2-01")),
        pytest.param(
            pcp.Filter(120, 0, "198.51.100.0"),
            "03000014 00 78 0000 00000000000000000000ffffc6336400",
            marks=shows("PCP-13.3-01", "PCP-13.3-03"),
        ),
        pytest.param(
            pcp.Filter(48, 443, "2001:db8:2::"),
            "03000014 00 30 01bb 20010db8000200000000000000000000",
            marks=shows("PCP-13.3-01", "PCP-13.3-03"),
        ),
        pytest.param(pcp.Nonce(0x11223344), "04000004 11223344", marks=shows("EXT7652-5.3-01")),
        pytest.param(
            TAG,
            "0500001c 5a5a0001 00000003 00000001 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
            marks=shows("EXT7652-5.4-01"),
        ),
        pytest.param(
            pcp.AuthenticationTag(1, 2, 3, b"\xff" * 10),
            "05000016 00000001 00000002 00000003 ffffffffffffffffffff 0000",
            marks=shows("EXT7652-5.4-04"),
        ),
        pytest.param(PA_TAG, "06000014 00000001 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", marks=shows("EXT7652-5.5-01")),
        pytest.param(
            pcp.PaAuthenticationTag(1, b"\xff" * 10),
            "0600000e 00000001 ffffffffffffffffffff 0000",
            marks=shows("EXT7652-5.5-04"),
        ),
        pytest.param(
            pcp.EapPayload(b"\1\1\0\5\1"),
            "07000005 0101000501 000000",
            marks=shows("EXT7652-5.6-01", "EXT7652-5.6-04"),
        ),
        pytest.param(pcp.Prf(5), "08000004 00000005", marks=shows("EXT7652-5.7-01")),
        pytest.param(pcp.MacAlgorithm(12), "09000004 0000000c", marks=shows("EXT7652-5.8-01")),
        pytest.param(pcp.SessionLifetime(3600), "0a000004 00000e10", marks=shows("EXT7652-5.9-01")),
        pytest.param(pcp.ReceivedPak(7), "0b000004 00000007", marks=shows("EXT7652-5.10-01")),
        pytest.param(
            pcp.IdIndicator("ca1"),
            "0c000003 636131 00",
            marks=shows("EXT7652-5.11-01", "EXT7652-5.11-04", "EXT7652-5.11-05", "EXT7652-5.11-06"),
        ),
        pytest.param(pcp.ThirdPartyId(b"\0\0\xab\xcd"), "0d000004 0000abcd", marks=shows("EXT7843-4-01")),
        # A label of 20 bits, abcde: its caller fills the octet with zero bits, and the option fills the word.
        pytest.param(pcp.ThirdPartyId(b"\xab\xcd\xe0"), "0d000003 abcde0 00", marks=shows("EXT7843-4-02")),
        pytest.param(pcp.Description("Camera"), "80000006 43616d657261 0000", marks=shows("EXT7220-2-01")),
        pytest.param(pcp.Description("abc"), "80000003 616263 00", marks=shows("EXT7220-2-04")),
        pytest.param(pcp.Description("é"), "80000002 c3a9 0000", marks=shows("EXT7220-2-06")),
        pytest.param(pcp.Description("Küche"), "80000006 4bc3bc636865 0000", marks=shows("EXT7220-2-03")),
        pytest.param(pcp.Description(""), "80000000", marks=shows("EXT7220-2-01")),
        pytest.param(
            pcp.Prefix64(),
            "8100000e 000c 000000000000000000000000 0000",
            marks=shows("EXT7225-4.3-01", "EXT7225-4.1-02", "EXT7225-4.1-05", "EXT7225-4.1-06"),
        ),
        pytest.param(
            pcp.Prefix64("64:ff9b::/96"),
            "8100000e 000c 0064ff9b0000000000000000 0000",
            marks=shows("EXT7225-4.1-02", "EXT7225-4.1-05"),
        ),
        pytest.param(
            pcp.Prefix64(PREFIX),
            "8100000e 0007 20010db8012203 0000000000 0000",
            marks=shows("EXT7225-4.1-02", "EXT7225-4.2-02"),
        ),
        pytest.param(
            pcp.Prefix64(PREFIX, b"\0\1\2\3\4", ["192.0.2.0/24"]),
            "81000016 0007 20010db8012203 0001020304 0001 0018c0000200 0000",
            marks=shows("EXT7225-4.1-02", "EXT7225-4.1-08"),
        ),
        pytest.param(
            pcp.Prefix64(PREFIX, ipv4_prefixes=["192.0.2.0/24", "198.51.100.0/25"]),
            "8100001c 0007 20010db8012203 0000000000 0002 0018c0000200 0019c6336400",
            marks=shows("EXT7225-4.1-07", "EXT7225-4.1-08"),
        ),
        pytest.param(
            pcp.PortSet(100, 50000), "82000005 0064 c350 00 000000", marks=shows("EXT7753-4-01", "EXT7753-4-07")
        ),
        pytest.param(
            pcp.PortSet(2, 50000, parity=True),
            "82000005 0002 c350 01 000000",
            marks=shows("EXT7753-4-07", "EXT7753-4-09", "EXT7753-4.1-01"),
        ),
    ],
)
def test_an_option_is_these_octets(option: pcp.Option, octets: str) -> None:
    assert option.encode().hex() == octets.replace(" ", "")
    assert pcp.decode_options(bytes.fromhex(octets), 0) == (option,)


@pytest.mark.requirement("EXT7753-4-08")
@pytest.mark.requirement("EXT7753-4-09")
def test_only_the_last_bit_of_a_port_set_says_something_about_parity() -> None:
    for octet, parity in (("ff", True), ("fe", False), ("01", True), ("00", False)):
        data = bytes.fromhex("82000005 0064 c350") + bytes.fromhex(octet) + bytes(3)
        assert pcp.decode_options(data, 0) == (pcp.PortSet(100, 50000, parity),)


@pytest.mark.requirement("PCP-13.3-04")
def test_the_reserved_octet_inside_a_filter_is_ignored() -> None:
    data = octets_of("PCP-MAP-REQ-FILTER24")
    request = decode(spoilt(data, 64, 65))
    assert data[60:66].hex() == "030000140078"
    assert request == decode(data)
    assert isinstance(request, pcp.MapRequest)
    assert pcp.find_fault(request) is None


@pytest.mark.requirement("EXT7220-2-01")
@pytest.mark.requirement("EXT7843-4-01")
def test_a_description_or_identifier_has_at_most_1016_octets() -> None:
    for longest, too_long in (
        (lambda: pcp.Description("é" * 508), lambda: pcp.Description("é" * 508 + "e")),
        (lambda: pcp.ThirdPartyId(bytes(1016)), lambda: pcp.ThirdPartyId(bytes(1017))),
    ):
        assert len(longest().encode()) == 1020
        with pytest.raises(LocalProtocolError, match="at most 1016 octets"):
            too_long()


@pytest.mark.requirement("EXT7220-2-03")
@pytest.mark.requirement("EXT7220-2-04")
@pytest.mark.parametrize("text", ["\ud800", "abc\0"])
def test_a_description_is_text_that_utf_8_can_say_and_has_no_nul(text: str) -> None:
    with pytest.raises(LocalProtocolError, match=r"Description\.text must"):
        pcp.Description(text)


@pytest.mark.requirement("EXT7220-2-05")
def test_the_length_alone_says_where_a_description_ends() -> None:
    data = bytes.fromhex("80000005 6100620000 000000 80000000")
    assert [option.data for option in pcp.decode_options(data, 0)] == [b"a\0b\0\0", b""]


# --- PREFIX64


@pytest.mark.requirement("EXT7225-4.1-04")
@pytest.mark.requirement("EXT7225-4.1-03")
@pytest.mark.parametrize(
    ("prefix", "address"),
    [  # the examples of RFC 6052 section 2.4
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ],
)
def test_an_ipv4_address_is_synthesized_as_rfc_6052_says(prefix: str, address: str) -> None:
    option = pcp.Prefix64(prefix)
    assert pcp.decode_options(option.encode(), 0) == (option,)
    assert option.synthesize("192.0.2.33") == IPv6Address(address)
    if option.prefix.prefixlen < 96:
        filled = pcp.Prefix64(prefix, b"\xff" * len(option.suffix)).synthesize("192.0.2.33")
        assert filled.packed[8] == 0  # bits 64 to 71


@pytest.mark.requirement("EXT7225-4.1-03")
def test_a_prefix_of_another_length_is_none() -> None:
    data = {length: bytes.fromhex("8100000e 00") + bytes([length]) + bytes(14) for length in range(256)}
    options = {length: pcp.decode_options(octets, 0)[0] for length, octets in data.items()}
    assert [length for length in options if isinstance(options[length], pcp.Prefix64)] == [4, 5, 6, 7, 8, 12]
    assert pcp.select_prefix64([options[9]], "192.0.2.33") is None
    with pytest.raises(LocalProtocolError, match="32, 40, 48, 56, 64 or 96 bits"):
        pcp.Prefix64("2001:db8::/72")


@pytest.mark.requirement("EXT7225-4.1-09")
def test_a_prefix_without_a_list_is_for_every_destination() -> None:
    silent, explicit = pcp.Prefix64(PREFIX), pcp.Prefix64(PREFIX, ipv4_prefixes=["0.0.0.0/0"])
    for address in ("0.0.0.0", "192.0.2.33", "255.255.255.255"):
        assert pcp.select_prefix64([silent], address) == silent
        assert pcp.select_prefix64([explicit], address) == explicit


@pytest.mark.requirement("EXT7225-4.1-01")
@pytest.mark.requirement("EXT7225-4.3-02")
@pytest.mark.requirement("EXT7225-4.3-07")
@pytest.mark.requirement("EXT7225-4.3-08")
@pytest.mark.requirement("PCP-7.3-21")
def test_of_several_prefixes_in_a_response_the_destination_chooses() -> None:
    response = decode(octets_of("PCP-MAP-RSP-PREFIX64-TWO"), strict=True)
    assert isinstance(response, pcp.MapResponse)
    first = pcp.Prefix64(PREFIX, ipv4_prefixes=["192.0.2.0/24"])
    second = pcp.Prefix64("2001:db8:122::/48", ipv4_prefixes=["198.51.100.0/24"])
    assert response.options == (first, second)
    assert pcp.select_prefix64(response.options, "192.0.2.33") == first
    assert pcp.select_prefix64(response.options, "198.51.100.1") == second
    assert second.synthesize("198.51.100.1") == IPv6Address("2001:db8:122:c633:64:100::")
    assert pcp.select_prefix64(response.options, "203.0.113.1") is None


@pytest.mark.requirement("EXT7225-4.1-01")
@pytest.mark.requirement("EXT7225-4.1-06")
@pytest.mark.requirement("EXT7225-4.3-01")
@pytest.mark.parametrize(
    "options",
    [
        (pcp.Prefix64(), pcp.Prefix64()),
        (pcp.Prefix64(PREFIX),),
        (pcp.Prefix64(ipv4_prefixes=["192.0.2.0/24"]),),
    ],
)
@pytest.mark.parametrize("name", ["MAP request", "ANNOUNCE request"])
def test_a_request_asks_for_prefixes_once_and_names_none(name: str, options: Options) -> None:
    with pytest.raises(LocalProtocolError, match="PREFIX64"):
        MAKERS[name](options)
    count_of_zero = octets_of("PCP-ANN-REQ-PREFIX64")
    assert decode(count_of_zero, strict=True) == pcp.AnnounceRequest(V6, (pcp.Prefix64(ipv4_prefixes=()),))


@pytest.mark.requirement("EXT7225-4.3-05")
def test_an_ipv4_prefix_that_is_none_is_skipped_and_the_rest_is_used() -> None:
    listed = bytes.fromhex("8100001c 0007 20010db8012203 0000000000 0002 0028c0000200 0018c6336400")
    assert pcp.decode_options(listed, 0) == (pcp.Prefix64(PREFIX, ipv4_prefixes=["198.51.100.0/24"]),)


@pytest.mark.requirement("PCP-7.3-21")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PCP-MAP-RSP-DESC", (pcp.Description("Cam"),)),
        ("PCP-MAP-RSP-PORTSET", (pcp.PortSet(32, 50000),)),
        ("PCP-ANN-RSP-PREFIX64-96", (pcp.Prefix64("64:ff9b::/96"),)),
        ("PCP-MAP-RSP-THIRDPARTY-FILTER", (NEIGHBOUR, pcp.Filter(120, 0, "198.51.100.0"))),
    ],
)
def test_what_a_response_says_in_its_options_can_be_read(name: str, options: Options) -> None:
    response = decode(octets_of(name), strict=True)
    assert isinstance(response, pcp.MapResponse | pcp.AnnounceResponse)
    assert response.options == options


@pytest.mark.requirement("EXT7753-4-06")
def test_the_set_of_a_response_may_begin_at_another_port_than_the_mapping() -> None:
    response = decode(octets_of("PCP-MAP-RSP-PORTSET-OVERLAP"), strict=True)
    assert isinstance(response, pcp.MapResponse)
    assert (response.internal_port, response.options) == (5, (pcp.PortSet(10, 1),))


# --- what a client may not ask for


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda: pcp.MapRequest(LOCAL, NONCE, Protocol.ALL, 80),
            "protocol 0 goes with internal_port 0 only",
            marks=shows("PCP-11.1-08"),
        ),
        pytest.param(
            lambda: pcp.PeerRequest(LOCAL, NONCE, 0, 80, 443, "198.51.100.23"),
            "protocol of a PEER request must not be 0",
            marks=shows("PCP-12.1-03"),
        ),
        pytest.param(
            lambda: pcp.PeerRequest(LOCAL, NONCE, 6, 0, 443, "198.51.100.23"),
            "internal_port of a PEER request must not be 0",
            marks=shows("PCP-12.1-06"),
        ),
        pytest.param(
            lambda: pcp.PeerRequest(LOCAL, NONCE, 6, 80, 0, "198.51.100.23"),
            "remote_port of a PEER request must not be 0",
            marks=shows("PCP-12.1-09"),
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.ThirdParty(LOCAL),)),
            "THIRD_PARTY names the sender itself",
            marks=shows("PCP-13.1-04"),
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.ThirdPartyId(b"\1"),)),
            "THIRD_PARTY_ID needs THIRD_PARTY",
            marks=shows("EXT7843-5.1-02"),
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.PortSet(0, 80),)), "PORT_SET of no port", marks=shows("EXT7753-4-04")
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.PortSet(2, 81),)),
            "PORT_SET.first_internal_port must be the internal_port of the request",
            marks=shows("EXT7753-4-05"),
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.PortSet(2, 80), pcp.PortSet(3, 80))),
            "PORT_SET stands twice",
            marks=shows("EXT7753-4-02", "EXT7753-4.1-02", "EXT7753-4.1-03"),
        ),
        pytest.param(
            lambda: MAKERS["MAP request"]((pcp.PortSet(2, 80), pcp.PreferFailure())),
            "PREFER_FAILURE and PORT_SET do not go together",
            marks=shows("EXT7753-4.1-07"),
        ),
    ],
)
def test_a_request_that_breaks_a_rule_cannot_be_made(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()
    assert str(caught.value).endswith(reason)


# --- what a server answers that knows every option: decode, look for a fault, answer with a copy


def twice(name: str, start: int) -> bytes:
    """A golden request whose options, which begin at `start`, are there twice."""
    return octets_of(name) + octets_of(name)[start:]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(octets_of("PCP-MAP-REQ-PF-TWICE"), 6, marks=shows("PCP-7.3-13", "PCP-13.2-01")),
        pytest.param(octets_of("PCP-MAP-REQ-PF-LEN4"), 6, marks=shows("PCP-13.2-01")),
        pytest.param(octets_of("PCP-MAP-REQ-PF-PORT0"), 6, marks=shows("PCP-13.2-05")),
        pytest.param(octets_of("PCP-MAP-DEL-PF"), 6, marks=shows("PCP-11.3-11")),
        pytest.param(octets_of("PCP-MAP-DEL-FILTER"), 6, marks=shows("PCP-11.3-11", "PCP-13.3-09")),
        pytest.param(octets_of("PCP-MAP-REQ-THIRDPARTY-LEN4"), 6, marks=shows("PCP-13.1-02")),
        pytest.param(twice("PCP-MAP-REQ-THIRDPARTY", 60), 6, marks=shows("PCP-7.3-13", "PCP-13.1-02")),
        pytest.param(twice("PCP-PEER-REQ-THIRDPARTY", 80), 6, marks=shows("PCP-7.3-13", "PCP-13.1-02")),
        pytest.param(octets_of("PCP-MAP-REQ-THIRDPARTY-SELF"), 3, marks=shows("PCP-13.1-05")),
        pytest.param(octets_of("PCP-MAP-REQ-FILTER-PFX24"), 6, marks=shows("PCP-13.3-06")),
        pytest.param(octets_of("PCP-MAP-REQ-FILTER-PFX129"), 6, marks=shows("PCP-13.3-06")),
        pytest.param(octets_of("PCP-MAP-REQ-PROTO0-PORT80"), 3, marks=shows("PCP-11.1-08")),
        pytest.param(octets_of("PCP-PEER-REQ-PF"), 3, marks=shows("PCP-13-01")),
        pytest.param(octets_of("PCP-PEER-REQ-PROTO0"), 3, marks=shows("PCP-12.1-03")),
        pytest.param(octets_of("PCP-PEER-REQ-IPORT0"), 3, marks=shows("PCP-12.1-06")),
        pytest.param(octets_of("PCP-PEER-REQ-RPORT0"), 3, marks=shows("PCP-12.1-09")),
        pytest.param(octets_of("PCP-MAP-REQ-PORTSET-ZERO"), 6, marks=shows("EXT7753-4-04")),
        pytest.param(octets_of("PCP-MAP-REQ-PORTSET-TWICE"), 6, marks=shows("EXT7753-4-02")),
        pytest.param(octets_of("PCP-MAP-REQ-PORTSET-PF"), 6, marks=shows("EXT7753-4.1-07")),
        pytest.param(octets_of("PCP-MAP-REQ-TPID-ALONE"), 25, marks=shows("EXT7843-5.1-02")),
        pytest.param(twice("PCP-MAP-REQ-TPID", 60), 6, marks=shows("EXT7843-4-01")),
        pytest.param(twice("PCP-MAP-REQ-DESC", 60), 6, marks=shows("EXT7220-2-01")),
        pytest.param(twice("PCP-MAP-REQ-PREFIX64", 60), 6, marks=shows("EXT7225-4.1-01")),
        pytest.param(twice("PCP-MAP-REQ-AUTHTAG", 60), 6, marks=shows("EXT7652-5.4-01")),
    ],
)
def test_a_request_that_breaks_a_rule_gets_the_result_code_of_the_rule(data: bytes, code: int) -> None:
    assert pcp.decode_header(data).opcode == data[1]
    fault = pcp.find_fault(pcp.decode_request(data))
    assert fault is not None
    assert fault.result_code == code
    reply = pcp.error_reply(data, fault.result_code, 1800, 1234)
    assert reply[:12] == bytes((2, 0x80 | data[1], 0, code)) + (1800).to_bytes(4) + (1234).to_bytes(4)
    assert reply[24:] == data[24:]
    with pytest.raises(DecodeError):
        decode(data, strict=True)


@pytest.mark.requirement("PCP-13.2-01")
@pytest.mark.requirement("PCP-7.3-13")
def test_the_answer_to_an_option_that_may_stand_once_and_stands_twice_is_the_golden_one() -> None:
    reply = pcp.error_reply(octets_of("PCP-MAP-REQ-PF-TWICE"), Code.MALFORMED_OPTION, 1800, 1234)
    assert reply == octets_of("PCP-ERR-06-MALFORMED-OPTION")


@pytest.mark.requirement("PCP-13.3-01")
@pytest.mark.requirement("PCP-13.3-06")
@pytest.mark.parametrize(
    ("address", "lengths"), [("198.51.100.23", range(96, 129)), (V6, range(1, 129)), ("::", range(129))]
)
def test_a_filter_counts_its_prefix_over_128_bits_and_may_be_repeated(address: str, lengths: range) -> None:
    possible = []
    for length in range(256):
        contents = bytes((0, length, 0, 0)) + fields.pack_address(fields.to_address(address))
        request = decode(MAKERS["MAP request"](()).encode() + 2 * (bytes.fromhex("03000014") + contents))
        assert isinstance(request, pcp.MapRequest)
        fault = pcp.find_fault(request)
        if fault is None:
            possible.append(length)
        else:
            assert fault.result_code == Code.MALFORMED_OPTION
    removal = [] if 0 in lengths else [0]  # with whatever address, 0 removes all filters
    assert possible == [*removal, *lengths]


@pytest.mark.requirement("PCP-8.2-05")
@pytest.mark.requirement("PCP-13.2-01")
def test_a_request_is_a_header_the_data_of_its_opcode_and_any_number_of_options() -> None:
    plain = octets_of("PCP-MAP-REQ-PREFERFAIL")[:60]
    for options in ((), (pcp.PreferFailure(),), (pcp.PreferFailure(), pcp.Description("Camera"))):
        data = plain + b"".join(option.encode() for option in options)
        assert pcp.decode_header(data) == pcp.Header(pcp.MAP, 3600, IPv4Address("192.168.1.10"))
        request = pcp.decode_request(data)
        assert isinstance(request, pcp.MapRequest)
        assert (request.internal_port, request.options) == (80, options)
        assert pcp.find_fault(request) is None
    with pytest.raises(DecodeError, match="truncated PCP MAP request"):
        pcp.decode_request(plain[:56])


# --- headers: reserved bits, epochs, result codes


@pytest.mark.requirement("NP-3.6-01")
def test_every_datagram_of_a_nat_pmp_gateway_carries_its_epoch() -> None:
    gateway = make_gateway((0,))
    gateway.reboot(0.0)
    drain(gateway)
    for data in (
        natpmp.ExternalAddressRequest().encode(),
        natpmp.MapRequest(UDP, 80).encode(),
        natpmp.MapRequest(TCP, 80).encode(),
        natpmp.MapRequest(TCP, 80, 0, 0).encode(),
        natpmp.MapRequest(TCP, 0).encode(),  # is refused
        octets_of("PCP-MAP-REQ-TCP"),  # a version error
    ):
        (reply,) = ask(gateway, data, 77.0)
        message = decode(reply)
        assert isinstance(message, natpmp.ExternalAddressResponse | natpmp.MapResponse | natpmp.ErrorResponse)
        assert (message.epoch, reply[4:8]) == (77, (77).to_bytes(4))
    gateway.set_external_address("203.0.113.9", 80.0)  # its mappings live on, so the epoch does
    assert decode(drain(gateway)[0][0]) == natpmp.ExternalAddressResponse(
        natpmp.ResultCode.SUCCESS, 80, IPv4Address("203.0.113.9")
    )


def ask(gateway: Gateway, data: bytes, now: float = 0.0, source: Address = HOST) -> list[bytes]:
    """What a gateway sends for a request; what has been repeated meanwhile is left out."""
    gateway.handle_timeout(now)
    drain(gateway)
    assert gateway.receive_datagram(data, source, now)
    return drain(gateway)[0]


def test_and_the_copy_of_a_request_that_is_not_understood_is_the_exception() -> None:
    """RFC 6886 section 3.5: the result code and the opcode bit change, and nothing else."""
    assert ask(make_gateway((0,)), bytes.fromhex("0007000011223344"), 77.0) == [bytes.fromhex("0087000511223344")]


@pytest.mark.requirement("PCP-7.1-04")
@pytest.mark.parametrize("name", ["ANNOUNCE request", "MAP request", "PEER request"])
def test_the_reserved_bits_of_a_request_header_are_zero(name: str) -> None:
    assert MAKERS[name](()).encode()[2:4] == b"\0\0"


@pytest.mark.requirement("PCP-7.1-04")
@pytest.mark.requirement("PCP-11.1-05")
@pytest.mark.requirement("PCP-11.1-10")
@pytest.mark.requirement("PCP-13.2-03")
@pytest.mark.requirement("EXT7753-4.1-06")
def test_a_client_sends_zeros_where_it_has_nothing_to_say() -> None:
    client = make_client((2,))
    mapping = client.map_port(TCP, 80, 0.0)
    (request,) = drain(client)[0]
    assert len(request) == 60  # and no option
    assert (request[2:4], request[37:40], request[42:44]) == (bytes(2), bytes(3), bytes(2))
    client.receive_datagram(grant(request), SERVER, 0.0)
    client.unmap(mapping, 0.0)
    (delete,) = drain(client)[0]
    assert (len(delete), delete[2:4], delete[37:40]) == (60, bytes(2), bytes(3))


@pytest.mark.requirement("PCP-12.1-04")
@pytest.mark.requirement("PCP-12.1-07")
@pytest.mark.requirement("PCP-12.1-10")
def test_a_peer_request_has_zeros_where_it_has_nothing_to_say() -> None:
    data = pcp.PeerRequest("192.168.1.10", NONCE, TCP, 50000, 443, "198.51.100.23", lifetime=3600).encode()
    assert (data[2:4], data[37:40], data[42:44], data[62:64]) == (bytes(2), bytes(3), bytes(2), bytes(2))
    assert data == octets_of("PCP-PEER-REQ")


@pytest.mark.requirement("PCP-12.1-01")
@pytest.mark.requirement("PCP-12.1-12")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "PCP-PEER-REQ-RECREATE",
            pcp.PeerRequest(
                "192.168.1.10", NONCE, TCP, 50000, 443, "198.51.100.23", 50001, "203.0.113.7", lifetime=3600
            ),
        ),
        ("PCP-PEER-REQ-V6", pcp.PeerRequest(V6, NONCE, UDP, 50000, 5000, "2001:db8:2::99", lifetime=3600)),
        # Behind a NAT64 the client sees its peer in IPv6, and its own external address is IPv4.
        (
            "PCP-PEER-REQ-NAT64",
            pcp.PeerRequest(V6, NONCE, TCP, 50000, 443, "64:ff9b::c633:6417", 0, "0.0.0.0", lifetime=3600),
        ),
        (
            "PCP-PEER-RSP-OK",
            pcp.PeerResponse(Code.SUCCESS, 3600, 1234, NONCE, TCP, 50000, 50001, "203.0.113.7", 443, "198.51.100.23"),
        ),
        (
            "PCP-PEER-RSP-NAT64",
            pcp.PeerResponse(
                Code.SUCCESS, 3600, 1234, NONCE, TCP, 50000, 50001, "203.0.113.7", 443, "64:ff9b::c633:6417"
            ),
        ),
    ],
)
def test_a_peer_message_is_these_octets(name: str, message: pcp.Message) -> None:
    assert message.encode() == octets_of(name)
    assert decode(octets_of(name), strict=True) == message
    assert len(octets_of(name)) == 24 + 56


@pytest.mark.requirement("PCP-12.1-05")
@pytest.mark.requirement("PCP-12.1-11")
@pytest.mark.requirement("PCP-12.1-15")
@pytest.mark.requirement("PCP-12.1-17")
def test_reserved_bits_in_a_peer_request_are_ignored_and_do_not_get_into_its_response() -> None:
    data = octets_of("PCP-PEER-REQ-RESERVED")
    assert (data[37:40], data[62:64]) == (b"\xff\xff\xff", b"\xff\xff")
    request = pcp.decode_request(data)
    assert request == decode(octets_of("PCP-PEER-REQ"))
    assert pcp.find_fault(request) is None
    assert isinstance(request, pcp.PeerRequest)
    response = pcp.PeerResponse(
        Code.SUCCESS,
        3600,
        1234,
        request.nonce,
        request.protocol,
        request.internal_port,
        50001,
        "203.0.113.7",
        request.remote_port,
        request.remote_address,
    ).encode()
    assert (response[37:40], response[62:64]) == (bytes(3), bytes(2))
    assert response == octets_of("PCP-PEER-RSP-OK")


@pytest.mark.requirement("PCP-12.3-02")
def test_a_peer_response_has_what_it_repeats_where_its_request_has_it() -> None:
    request, success = octets_of("PCP-PEER-REQ"), octets_of("PCP-PEER-RSP-OK")
    failure = pcp.error_reply(request, Code.CANNOT_PROVIDE_EXTERNAL, 30, 1234)
    for response in (success, failure):
        assert (response[24:42], response[60:80]) == (request[24:42], request[60:80])
        asked, answered = decode(request, strict=True), decode(response, strict=True)
        assert isinstance(asked, pcp.PeerRequest)
        assert isinstance(answered, pcp.PeerResponse)
        for name in ("nonce", "protocol", "internal_port", "remote_port", "remote_address"):
            assert getattr(answered, name) == getattr(asked, name)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(37, 40, marks=shows("PCP-12.1-16")),
        pytest.param(62, 64, marks=shows("PCP-12.1-18")),
    ],
)
def test_reserved_bits_in_a_peer_response_are_ignored(start: int, end: int) -> None:
    data = octets_of("PCP-PEER-RSP-OK")
    assert decode(spoilt(data, start, end)) == decode(data)


@pytest.mark.requirement("PCP-7.4-01")
@pytest.mark.requirement("EXT7652-7-01")
@pytest.mark.requirement("EXT7652-3.4-07")
def test_only_zero_and_five_codes_of_a_pa_session_are_no_errors() -> None:
    assert [code for code in range(256) if not Code(code).is_error] == [0, 14, 17, 19, 22, 23]
    assert {code.value: code.name for code in Code if 14 <= code <= 23} == {
        14: "INITIATION",
        15: "AUTHENTICATION_REQUIRED",
        16: "AUTHENTICATION_FAILED",
        17: "AUTHENTICATION_SUCCEEDED",
        18: "AUTHORIZATION_FAILED",
        19: "SESSION_TERMINATED",
        20: "UNKNOWN_SESSION_ID",
        21: "DOWNGRADE_ATTACK_DETECTED",
        22: "AUTHENTICATION_REQUEST",
        23: "AUTHENTICATION_REPLY",
    }
    assert not [name for name in Code.__members__ if name.startswith("RE")]


@pytest.mark.parametrize("code", [2, 14, 17, 19, 22, 23, 200])
@pytest.mark.requirement("PCP-7.4-01")
def test_to_a_client_that_asks_for_a_mapping_every_code_but_zero_is_a_no(code: int) -> None:
    client, request = asking()
    client.receive_datagram(grant(request, result_code=code), SERVER, 0.0)
    assert [event.result_code for event in drain(client)[1] if isinstance(event, MappingRefused)] == [code]


@pytest.mark.requirement("PCP-7.4-04")
@pytest.mark.requirement("EXT7652-7-01")
@pytest.mark.requirement("EXT7843-4.1-01")
def test_an_error_lasts_30_or_1800_seconds_or_as_long_as_its_cause() -> None:
    lasting = {lifetime: [code for code in range(256) if Code(code).lifetime == lifetime] for lifetime in (30, 1800)}
    assert lasting == {30: [7, 8, 10], 1800: [1, 2, 3, 4, 5, 6, 9, 12, 13, 24, 25, 26]}
    assert {Code(code).lifetime for code in (0, 11, *range(14, 24), 27, 255)} == {None}
    assert [Code(code).name for code in (24, 25, 26)] == [
        "THIRD_PARTY_ID_UNKNOWN",
        "THIRD_PARTY_MISSING_OPTION",
        "UNSUPP_THIRD_PARTY_ID_LENGTH",
    ]


@pytest.mark.requirement("EXT7723-4.1-01")
@pytest.mark.requirement("EXT7723-4.2-01")
def test_the_anycast_addresses_are_those_of_rfc_7723() -> None:
    assert (pcp.ANYCAST_V4, pcp.ANYCAST_V6) == ("192.0.0.9", "2001:1::1")


# --- PA messages


@pytest.mark.requirement("EXT7652-5.1-03")
@pytest.mark.requirement("EXT7652-5.2-01")
@pytest.mark.requirement("EXT7652-5.3-01")
@pytest.mark.requirement("EXT7652-5.6-01")
@pytest.mark.requirement("EXT7652-5.7-01")
@pytest.mark.requirement("EXT7652-5.8-01")
@pytest.mark.requirement("EXT7652-5.9-01")
@pytest.mark.requirement("EXT7652-5.10-01")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "PCP-AUTH-INIT",
            pcp.AuthenticationRequest("192.168.1.10", Code.INITIATION, 0, 0, (pcp.Nonce(0x11223344),)),
        ),
        (
            "PCP-AUTH-EAP-REQ",
            pcp.AuthenticationResponse(
                Code.AUTHENTICATION_REQUEST,
                1234,
                0x5A5A0001,
                0,
                (
                    pcp.Nonce(0x11223344),
                    pcp.Prf(5),
                    pcp.MacAlgorithm(12),
                    pcp.IdIndicator("ca1"),
                    pcp.EapPayload(b"\1\1\0\5\1"),
                ),
            ),
        ),
        (
            "PCP-AUTH-ACK",
            pcp.AuthenticationRequest("192.168.1.10", Code.SUCCESS, 0x5A5A0001, 1, (pcp.ReceivedPak(0),)),
        ),
        (
            "PCP-AUTH-SUCCESS",
            pcp.AuthenticationResponse(
                Code.AUTHENTICATION_SUCCEEDED, 1234, 0x5A5A0001, 4, (pcp.SessionLifetime(3600), PA_TAG)
            ),
        ),
        ("PCP-AUTH-19-TERMINATED", pcp.AuthenticationResponse(Code.SESSION_TERMINATED, 1234, 0x5A5A0001, 4)),
    ],
)
def test_a_pa_message_is_these_octets(name: str, message: pcp.Message) -> None:
    assert message.encode().hex() == octets_of(name).hex()
    assert decode(octets_of(name), strict=True) == message


@pytest.mark.requirement("EXT7652-5.1-03")
@pytest.mark.requirement("EXT7652-5.1-04")
@pytest.mark.requirement("EXT7652-5.2-01")
@pytest.mark.parametrize(("name", "start"), [("PA request", b"\2\3\0\x17"), ("PA response", b"\2\x83\0\0")])
def test_a_pa_message_has_its_code_in_octet_3_no_lifetime_and_32_octets_at_least(name: str, start: bytes) -> None:
    message = MAKERS[name](())
    data = message.encode()
    assert (len(data), data[:8], data[24:]) == (32, start + bytes(4), bytes.fromhex("0000000700000001"))
    assert decode(spoilt(data, 2, 3)) == message  # reserved
    assert decode(spoilt(data, 4, 8)) == message  # the lifetime
    if name == "PA request":
        with pytest.raises(DecodeError, match="truncated PCP AUTHENTICATION request"):
            decode(data[:28])


@pytest.mark.requirement("EXT7652-5.4-01")
@pytest.mark.requirement("EXT7652-5.5-01")
@pytest.mark.requirement("EXT7652-5.6-01")
@pytest.mark.requirement("EXT7652-5.7-01")
@pytest.mark.requirement("EXT7652-5.8-01")
@pytest.mark.parametrize(
    ("name", "option", "often"),
    [
        ("MAP request", TAG, False),
        ("PA request", PA_TAG, False),
        ("PA request", pcp.EapPayload(b"\2\1\0\4"), False),
        ("PA request", pcp.Prf(5), True),
        ("PA request", pcp.MacAlgorithm(12), True),
    ],
)
def test_algorithms_may_be_listed_and_the_rest_of_a_pa_message_stands_once(
    name: str, option: pcp.Option, often: bool
) -> None:
    if often:
        message = MAKERS[name]((option, option))
        assert decode(message.encode(), strict=True) == message
        return
    with pytest.raises(LocalProtocolError, match=f"{option.NAME} stands twice"):
        MAKERS[name]((option, option))


# --- the client


def grant(request: bytes, **changes: object) -> bytes:
    """The answer of a PCP server to a MAP request, by default a success."""
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    values: dict[str, typing.Any] = {
        "result_code": Code.SUCCESS,
        "lifetime": asked.lifetime,
        "epoch": 1000,
        "nonce": asked.nonce,
        "protocol": asked.protocol,
        "internal_port": asked.internal_port,
        "external_port": 40000,
        "external_address": EXTERNAL,
    }
    return pcp.MapResponse(**{**values, **changes}).encode()


def asking(options: Options = ()) -> tuple[Client, bytes]:
    """A client that waits for an answer, and its request."""
    client = make_client((2,))
    client.map_port(UDP, 50000, 0.0, options=options)
    (request,) = drain(client)[0]
    return client, request


def granted(client: Client) -> list[tuple[Endpoint, float]]:
    return [(event.external, event.expires_at) for event in drain(client)[1] if isinstance(event, MappingGranted)]


OPEN = [(Endpoint(IPv4Address(EXTERNAL), 40000), 7200.0)]


@pytest.mark.parametrize(
    ("start", "end", "octet"),
    [
        pytest.param(2, 3, 0xFF, marks=shows("PCP-7.2-06")),
        pytest.param(12, 24, 0xFF, marks=shows("PCP-7.2-10")),
        pytest.param(12, 24, 0x5A, marks=shows("PCP-7.2-10")),
        pytest.param(37, 40, 0xFF, marks=shows("PCP-11.1-15")),
    ],
)
def test_a_client_ignores_the_reserved_bits_of_its_answer(start: int, end: int, octet: int) -> None:
    client, request = asking()
    assert client.receive_datagram(spoilt(grant(request), start, end, octet), SERVER, 0.0)
    assert granted(client) == OPEN


@pytest.mark.requirement("PCP-7.3-20")
def test_a_client_ignores_options_that_it_does_not_know_even_mandatory_ones() -> None:
    client, request = asking()
    answer = grant(request, options=(pcp.RawOption(77, b"what?"), pcp.RawOption(200)))
    assert client.receive_datagram(answer, SERVER, 0.0)
    assert granted(client) == OPEN


@pytest.mark.requirement("PCP-7.2-07")
def test_the_lifetime_of_an_answer_is_that_of_the_mapping_or_of_the_error() -> None:
    client, request = asking()
    client.receive_datagram(grant(request, lifetime=600), SERVER, 10.0)
    assert granted(client) == [(Endpoint(IPv4Address(EXTERNAL), 40000), 610.0)]
    client, request = asking()
    client.receive_datagram(grant(request, lifetime=600, result_code=Code.NO_RESOURCES), SERVER, 10.0)
    assert [event.retry_at for event in drain(client)[1] if isinstance(event, MappingRefused)] == [610.0]
    client, request = asking()
    error = decode(grant(request, lifetime=600, result_code=8))
    assert isinstance(error, pcp.MapResponse)
    assert (error.result_code.is_error, error.lifetime) == (True, 600)


@pytest.mark.requirement("PCP-7.1-07")
@pytest.mark.requirement("PCP-8.1-05")
@pytest.mark.parametrize(
    ("gateway", "local", "octets"),
    [
        (SERVER, LOCAL, "00000000000000000000ffffc0a80107"),
        (("fe80::1", 5351, 0, 2), V6, "20010db8000100000000000000000010"),
    ],
)
def test_a_request_names_the_address_that_it_comes_from(gateway: Address, local: str, octets: str) -> None:
    client = Client(gateway, local_address=local, config=Config(versions=(2,)), rng=Middle(1))
    client.map_port(TCP, 80, 0.0)
    (request,) = drain(client)[0]
    assert client.bind_address[0] == local
    assert request[8:24].hex() == octets


@pytest.mark.requirement("PCP-11.1-08")
def test_a_client_does_not_ask_for_one_port_of_all_protocols() -> None:
    with pytest.raises(LocalProtocolError, match="protocol 0 goes with internal_port 0"):
        make_client((2,)).map_port(Protocol.ALL, 80, 0.0)


@pytest.mark.requirement("EXT7753-4.1-03")
@pytest.mark.requirement("EXT7753-4.1-04")
def test_two_port_sets_are_two_requests_with_internal_ports_of_their_own() -> None:
    client = make_client((2,))
    sets = [pcp.PortSet(10, 50000), pcp.PortSet(10, 50010)]
    for wanted in sets:
        client.map_port(UDP, wanted.first_internal_port, 0.0, options=(wanted,))
    requests = [decode(data) for data in drain(client)[0]]
    assert [r.options for r in requests if isinstance(r, pcp.MapRequest)] == [(wanted,) for wanted in sets]
    with pytest.raises(LocalProtocolError, match="port 50000 already"):
        client.map_port(UDP, 50000, 0.0, options=(pcp.PortSet(5, 50000),))


@pytest.mark.requirement("EXT7753-4.3-01")
def test_an_answer_without_a_port_set_is_one_port_and_proves_nothing() -> None:
    wanted = (pcp.PortSet(100, 50000),)
    client, request = asking(wanted)
    client.receive_datagram(grant(request), SERVER, 0.0)
    assert granted(client) == OPEN
    while not (renewal := drain(client)[0]):
        deadline = client.next_timeout()
        assert deadline is not None
        client.handle_timeout(deadline)
    again = decode(renewal[0])
    assert isinstance(again, pcp.MapRequest)
    assert again.options == wanted  # it goes on asking


# --- the gateway


ANSWERED = [
    name
    for name, vector in VECTORS.items()
    if vector["protocol"] == "pcp" and vector["kind"] == "request" and vector["length"] >= 24
    if octets_of(name)[1] < 0x80  # a response is none of a server's business
]


@pytest.mark.requirement("PCP-8-02")
@pytest.mark.parametrize("name", ANSWERED)
def test_every_request_that_has_a_header_gets_one_answer(name: str) -> None:
    data = octets_of(name)
    source: Address = ("192.168.1.10", 50000) if data[8:20] == bytes(10) + b"\xff\xff" else (V6, 50000, 0, 0)
    (reply,) = ask(make_gateway(), data, source=source)
    assert reply[:2] == bytes((2, 0x80 | data[1]))


@pytest.mark.requirement("PCP-11.1-13")
def test_nonce_protocol_and_internal_port_come_back_in_a_success_and_in_an_error() -> None:
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80).encode()
    (success,) = ask(make_gateway(), request)
    (failure,) = ask(make_gateway(external=None), request)
    assert (success[3], failure[3]) == (0, Code.NETWORK_FAILURE)
    assert success[24:42] == failure[24:42] == request[24:42]


@pytest.mark.requirement("PCP-13.1-03")
@pytest.mark.requirement("EXT7220-2-02")
@pytest.mark.requirement("EXT7220-3-04")
@pytest.mark.requirement("EXT7225-4.2-03")
@pytest.mark.requirement("EXT7843-4-01")
def test_an_answer_has_no_option_that_nobody_asked_about() -> None:
    gateway = make_gateway()
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80)
    for lifetime in (7200, 7200, 0):  # made, renewed, deleted
        (reply,) = ask(gateway, attrs.evolve(request, lifetime=lifetime).encode())
        assert (len(reply), reply[3]) == (60, 0)
    (reply,) = ask(gateway, attrs.evolve(request, options=(pcp.Prefix64(),)).encode())
    assert (len(reply), reply[3]) == (60, 0)  # there is no prefix to tell


@pytest.mark.requirement("PCP-13.1-10")
def test_a_host_that_nobody_has_authorised_may_not_map_for_others() -> None:
    gateway = make_gateway()
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(NEIGHBOUR,)).encode()
    (reply,) = ask(gateway, request)
    assert (reply[3], reply[24:]) == (Code.UNSUPP_OPTION, request[24:])
    assert gateway.mappings == ()


@pytest.mark.requirement("EXT7220-3-08")
@pytest.mark.requirement("EXT7220-3-09")
def test_a_description_that_is_no_text_does_not_keep_the_mapping_from_being_made() -> None:
    gateway = make_gateway()
    data = octets_of("PCP-MAP-REQ-DESC-BADUTF8")
    assert data[60:].hex() == "80000002fffe0000"
    (reply,) = ask(gateway, data, source=("192.168.1.10", 50000))
    assert (reply[3], len(reply)) == (Code.SUCCESS, 60)
    assert len(gateway.mappings) == 1


@pytest.mark.requirement("EXT7753-4-03")
@pytest.mark.requirement("EXT7753-4.2-03")
@pytest.mark.requirement("EXT7753-4.2-04")
@pytest.mark.requirement("EXT7753-4.2-06")
@pytest.mark.requirement("EXT7753-4.2-07")
@pytest.mark.parametrize(("last_port", "most"), [(40000, 256), (50000, 1)])
def test_who_asks_for_a_set_of_ports_gets_at_least_one(last_port: int, most: int) -> None:
    gateway = make_gateway(first_port=40000, last_port=last_port, max_port_set=most)
    (reply,) = ask(gateway, pcp.MapRequest(LOCAL, NONCE, UDP, 5, options=(pcp.PortSet(10, 5),)).encode())
    response = decode(reply)
    assert isinstance(response, pcp.MapResponse)
    assert (response.result_code, response.internal_port, response.options) == (Code.SUCCESS, 5, ())
    assert [mapping.internal.port for mapping in gateway.mappings] == [5]


# --- UDP, ports and sockets


@pytest.mark.requirement("PCP-14.1.1-05")
@pytest.mark.parametrize(
    ("server", "local", "group"),
    [(SERVER, LOCAL, "224.0.0.1"), (("fe80::1", 5351, 0, 2), "fe80::7", "ff02::1")],
)
def test_requests_go_to_port_5351_and_announcements_from_there_to_port_5350(
    server: Address, local: str, group: str
) -> None:
    client = Client(server, local_address=local, config=Config(versions=(2,)), rng=Middle(1))
    gateway = Gateway(EXTERNAL, address=server, rng=Middle(2))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 80, sim.now)
    sim.run_until(1.0)
    gateway.reboot(sim.now)
    sim.run_until(1.0)
    requests = {(sent.source[0], sent.target[1]) for sent in sim.sent if sent.data[:2] == b"\2\1"}
    announcements = {(sent.source[1], sent.target[:2]) for sent in sim.sent if sent.data[:2] == b"\2\x80"}
    assert requests == {(local, 5351)}
    assert announcements == {(5351, (group, 5350))}


@pytest.mark.requirement("PCP-14.1.1-05")
def test_a_gateway_that_is_named_by_its_address_alone_is_asked_at_port_5351() -> None:
    with open_client("127.0.0.1") as client:
        assert client.core.gateway == ("127.0.0.1", 5351)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> typing.Iterator[socket.socket]:
    """A UDP socket on loopback that answers nothing, and nobody waits for it."""
    monkeypatch.setattr(_driver, "LINGER", 0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5.0)
        yield sock


@pytest.mark.requirement("PCP-8-01")
@pytest.mark.requirement("PCP-8.1-04")
@pytest.mark.requirement("PCP-8.1-05")
@pytest.mark.requirement("PCP-16.4-01")
def test_each_client_asks_over_udp_from_a_port_of_its_own_and_names_the_address_of_its_socket(
    listener: socket.socket,
) -> None:
    gateway = listener.getsockname()
    strays: list[bytes] = []
    unclaimed = lambda data, addr: strays.append(data)  # noqa: E731
    with open_client(gateway, unclaimed=unclaimed) as one, open_client(gateway) as other:
        sources = []
        for client in (one, other):
            client.keep_port(TCP, 8080)
            client.process()
            request, source = listener.recvfrom(2000)
            assert isinstance(decode(request), pcp.MapRequest)
            assert request[8:24] == fields.pack_address(IPv4Address(source[0]))
            sources.append(source)
        assert sources[0] != sources[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"stranger", sources[0])
        listener.sendto(b"gateway", sources[0])
        one.process()
    assert strays == [b"stranger", b"gateway"]


@pytest.mark.requirement("PCP-8.1-06")
def test_a_host_behind_a_nat_of_its_own_may_name_the_outer_address(listener: socket.socket) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine,
        open_client(listener.getsockname(), bind="100.64.0.9", sock=mine) as client,
    ):
        client.keep_port(TCP, 8080)
        client.process()
        request, source = listener.recvfrom(2000)
    assert source[0] == "127.0.0.1"
    assert request[8:24].hex() == "00000000000000000000ffff64400009"
