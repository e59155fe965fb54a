"""Octets and messages: golden datagrams, round trips, and what is refused."""

from __future__ import annotations

import json
import pathlib
import typing
from ipaddress import IPv4Address, IPv6Address

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natpmp_sansio import DecodeError, Endpoint, LocalProtocolError, NatPmpError, Protocol, decode, natpmp, pcp
from natpmp_sansio.wire import describe, fields, is_response
from natpmp_sansio.wire.options import RawOption, decode_options, encode_options

Fields = dict[str, typing.Any]

VECTORS: dict[str, Fields] = {
    vector["id"]: vector
    for vector in json.loads((pathlib.Path(__file__).parent / "requirements" / "vectors.json").read_text())["vectors"]
}
NONCE = bytes(range(12))
V4 = IPv4Address("192.168.1.10")
V6 = IPv6Address("2001:db8:1::10")

# Refused by the decoder. Every other vector is either good, or bad only for whom it reaches (a response at a server,
# an address that is not the source, an option that makes no sense there): that is not the decoder's business.
REFUSED = {
    "NP-EXT-RSP-TRUNC",
    "NP-MAP-RSP-TRUNC",
    "NP-MAP-REQ-TRUNC",
    "NP-ONE-OCTET",
    "PCP-MAP-REQ-V3",
    "PCP-V1-REQ",
    "PCP-ONE-OCTET",
    "PCP-TWO-OCTETS",
    "PCP-ANN-REQ-LEN23",
    "PCP-V3-RSP-AT-SERVER",
    "PCP-MAP-REQ-LEN40",
    "PCP-MAP-REQ-LEN61",
    "PCP-MAP-REQ-LEN1104",
    "PCP-MAP-REQ-OPT-OVERRUN",
    "PCP-MAP-REQ-OPT-OVERRUN-OPTIONAL",
    "PCP-RSP-LEN3",
    "PCP-RSP-LEN20",
    "PCP-RSP-LEN62",
    "PCP-MAP-RSP-LEN56",
    "PCP-MAP-RSP-OPT-OVERRUN",
    "PCP-RSP-V3-SUCCESS",
}
# Good messages that no encoder may produce like this: reserved bits, fields that have to be zero, octets behind the
# message, version errors that are shorter than a header.
NOT_CANONICAL = {
    "NP-MAP-UDP-RESERVED-REQ",
    "NP-EXT-REQ-TRAILING",
    "NP-UNSUPPVER-RSP-PRINTED",
    "PCP-ANN-REQ-LIFE",
    "PCP-MAP-REQ-RESERVED",
    "PCP-MAP-REQ-OPT-RESERVED",
    "PCP-MAP-RSP-RESERVED",
    "PCP-ERR-01-UNSUPP-VERSION",
    "PCP-ERR-03-MALFORMED-REQUEST",
    "PCP-UNSUPPVER-FOR-NATPMP-MAP12",
    "PCP-UNSUPPVER-RSP-V3",
}
# Their fields are listed in part only; each has a test of its own below.
BY_HAND = {
    "NP-EXT-REQ-TRAILING",
    "NP-UNSUPPVER-RSP-PRINTED",
    "PCP-ERR-03-MALFORMED-REQUEST",
    "PCP-MAP-REQ-PF-LEN4",
    "PCP-MAP-REQ-THIRDPARTY-LEN4",
    "PCP-RSP-R-CLEAR",
    "PCP-UNSUPPVER-FOR-NATPMP-4",
    "PCP-UNSUPPVER-FOR-NATPMP-MAP12",
    "PCP-UNSUPPVER-RSP-V3",
}


def octets_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def fields_of(name: str) -> Fields:
    return typing.cast("Fields", VECTORS[name]["fields"])


def opcode_of(name: str) -> int:
    return int.from_bytes(octets_of(name)[1:2]) & 0x7F


def is_typed(name: str) -> bool:
    """Whether the datagram has an opcode that the package has message classes for."""
    return opcode_of(name) <= (2 if VECTORS[name]["protocol"] == "nat-pmp" else pcp.MAP)


def raw_options(listed: list[Fields]) -> tuple[RawOption, ...]:
    return tuple(RawOption(option["code"], bytes.fromhex(option["data"])) for option in listed)


def expected_natpmp(listed: Fields) -> natpmp.Message:
    """The message that the table's fields describe."""
    protocol = {1: Protocol.UDP, 2: Protocol.TCP}.get(listed["opcode"])
    if listed.get("result") == 1:
        return natpmp.ErrorResponse(listed["opcode"], natpmp.ResultCode.UNSUPPORTED_VERSION, listed["epoch"])
    if listed["response"] and protocol:
        return natpmp.MapResponse(
            protocol,
            natpmp.ResultCode(listed["result"]),
            listed["epoch"],
            listed["internal_port"],
            listed["external_port"],
            listed["lifetime"],
        )
    if listed["response"]:
        result_code = natpmp.ResultCode(listed["result"])
        return natpmp.ExternalAddressResponse(result_code, listed["epoch"], IPv4Address(listed["external_ip"]))
    if protocol:
        port, suggested = listed["internal_port"], listed["suggested_external_port"]
        return natpmp.MapRequest(protocol, port, suggested, listed["lifetime"])
    return natpmp.ExternalAddressRequest()


def expected_pcp(listed: Fields) -> pcp.Message:
    """The message that the table's fields describe."""
    options = raw_options(listed["options"])
    body = listed["body"]
    if listed["response"]:
        result_code = pcp.ResultCode(listed["result"])
        if body is None:
            return pcp.AnnounceResponse(result_code, listed["lifetime"], listed["epoch"], options)
        return pcp.MapResponse(
            result_code,
            listed["lifetime"],
            listed["epoch"],
            bytes.fromhex(body["nonce"]),
            body["protocol"],
            body["internal_port"],
            body["external_port"],
            fields.to_address(body["external_ip"]),
            options,
        )
    client = fields.to_address(listed["client_ip"])
    if body is None:
        return pcp.AnnounceRequest(client, options)
    return pcp.MapRequest(
        client,
        bytes.fromhex(body["nonce"]),
        body["protocol"],
        body["internal_port"],
        body["external_port"],
        fields.to_address(body["external_ip"]),
        listed["lifetime"],
        options,
    )


def is_listed_in_full(name: str) -> bool:
    return bool(VECTORS[name]["struct_check"] == "full")


NATPMP_FULL = [
    name
    for name, vector in VECTORS.items()
    if vector["protocol"] == "nat-pmp" and is_typed(name) and is_listed_in_full(name)
]
PCP_FULL = [
    name
    for name, vector in VECTORS.items()
    if vector["protocol"] == "pcp" and name not in REFUSED and is_typed(name) and is_listed_in_full(name)
]
READABLE = [name for name in VECTORS if name not in REFUSED and is_typed(name)]
UNTYPED = [name for name in VECTORS if name not in REFUSED and not is_typed(name)]


# --- golden datagrams


@pytest.mark.requirement("NP-3.2-03")
@pytest.mark.requirement("NP-3.3-01")
@pytest.mark.requirement("NP-3.3-04")
@pytest.mark.requirement("NP-3.3-11")
@pytest.mark.requirement("NP-3-06")
@pytest.mark.parametrize("name", NATPMP_FULL)
def test_a_nat_pmp_datagram_decodes_to_the_fields_of_the_table(name: str) -> None:
    assert decode(octets_of(name)) == expected_natpmp(fields_of(name))


@pytest.mark.requirement("PCP-7.1-01")
@pytest.mark.requirement("PCP-7.2-01")
@pytest.mark.requirement("PCP-7.3-01")
@pytest.mark.requirement("PCP-7.3-05")
@pytest.mark.requirement("PCP-11.1-01")
@pytest.mark.requirement("PCP-11.1-12")
@pytest.mark.requirement("PCP-14.1.1-01")
@pytest.mark.requirement("PCP-14.1.1-02")
@pytest.mark.parametrize("name", PCP_FULL)
def test_a_pcp_datagram_decodes_to_the_fields_of_the_table(name: str) -> None:
    assert decode(octets_of(name)) == expected_pcp(fields_of(name))


@pytest.mark.requirement("PCP-19.2-01")
@pytest.mark.parametrize("name", UNTYPED)
def test_an_opcode_without_a_class_of_its_own_keeps_all_its_octets(name: str) -> None:
    data = octets_of(name)
    message = decode(data)
    if VECTORS[name]["protocol"] == "nat-pmp":
        assert isinstance(message, natpmp.UnknownRequest | natpmp.ErrorResponse)
        assert message.opcode == opcode_of(name)
        assert message.encode() == data
        return
    assert isinstance(message, pcp.UnknownRequest | pcp.UnknownResponse | pcp.ErrorResponse)
    assert message.opcode == opcode_of(name)
    assert message.lifetime == int.from_bytes(data[4:8])
    assert message.payload == data[24:]


def test_no_golden_datagram_is_left_out() -> None:
    assert sorted([*NATPMP_FULL, *PCP_FULL, *UNTYPED, *REFUSED, *BY_HAND]) == sorted(VECTORS)
    assert set(READABLE) >= NOT_CANONICAL


@pytest.mark.requirement("NP-3.5-02")
def test_the_version_error_as_rfc_6886_prints_it_is_one_though_its_response_bit_is_clear() -> None:
    message = natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 1234)
    assert decode(octets_of("NP-UNSUPPVER-RSP-PRINTED")) == message
    assert decode(octets_of("NP-UNSUPPVER-RSP-ERRATUM")) == message
    assert message.encode() == octets_of("NP-UNSUPPVER-RSP-ERRATUM")


def test_what_follows_an_external_address_request_is_ignored() -> None:
    assert decode(octets_of("NP-EXT-REQ-TRAILING")) == natpmp.ExternalAddressRequest()


def test_an_error_too_short_for_its_opcode_keeps_what_there_is() -> None:
    assert decode(octets_of("PCP-ERR-03-MALFORMED-REQUEST")) == pcp.ErrorResponse(
        1, pcp.ResultCode.MALFORMED_REQUEST, 1800, 1234, octets_of("PCP-ERR-03-MALFORMED-REQUEST")[24:]
    )


@pytest.mark.parametrize(("name", "code"), [("PCP-MAP-REQ-THIRDPARTY-LEN4", 1), ("PCP-MAP-REQ-PF-LEN4", 2)])
def test_the_length_of_an_option_is_not_the_business_of_the_datagram(name: str, code: int) -> None:
    message = decode(octets_of(name))
    assert isinstance(message, pcp.MapRequest)
    assert message.options == (RawOption(code, octets_of(name)[64:]),)


def test_a_version_error_with_a_copy_of_its_request_offers_the_version_in_its_first_octet() -> None:
    data = octets_of("PCP-UNSUPPVER-RSP-V3")
    assert decode(data) == pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 7200, 1234, data[24:], version=3)


def test_a_response_whose_response_bit_was_lost_is_read_as_the_request_that_it_looks_like() -> None:
    message = decode(octets_of("PCP-RSP-R-CLEAR"))
    assert isinstance(message, pcp.MapRequest)
    assert message.client_address == IPv6Address("0:4d2::")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PCP-UNSUPPVER-FOR-NATPMP-24", pcp.AnnounceResponse(pcp.ResultCode.UNSUPP_VERSION, 1800, 1234)),
        ("PCP-UNSUPPVER-FOR-NATPMP-4", pcp.ErrorResponse(0, pcp.ResultCode.UNSUPP_VERSION)),
        ("PCP-UNSUPPVER-FOR-NATPMP-MAP12", pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 1800, 1234)),
    ],
)
@pytest.mark.requirement("PCP-A-03")
def test_a_pcp_servers_answer_to_nat_pmp_is_a_version_error_at_every_length(name: str, message: pcp.Message) -> None:
    assert decode(octets_of(name)) == message


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_datagram_that_is_no_message_is_refused(name: str) -> None:
    data = octets_of(name)
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.reason
    assert 0 <= caught.value.offset <= len(data)


@pytest.mark.requirement("NP-3.3-03")
@pytest.mark.requirement("PCP-7.1-02")
@pytest.mark.requirement("PCP-7.2-02")
@pytest.mark.requirement("PCP-7.3-03")
@pytest.mark.requirement("PCP-7.3-06")
@pytest.mark.parametrize("name", [name for name in READABLE if name not in NOT_CANONICAL])
def test_a_canonical_datagram_comes_back_octet_for_octet(name: str) -> None:
    assert decode(octets_of(name)).encode() == octets_of(name)


@pytest.mark.parametrize("name", sorted(NOT_CANONICAL))
def test_a_datagram_that_breaks_the_zero_rules_is_read_and_not_imitated(name: str) -> None:
    message = decode(octets_of(name))
    assert message.encode() != octets_of(name)
    assert decode(message.encode()) == message


@pytest.mark.requirement("PCP-7.3-04")
def test_the_reserved_octet_of_an_option_is_ignored() -> None:
    message = decode(octets_of("PCP-MAP-REQ-OPT-RESERVED"))
    assert octets_of("PCP-MAP-REQ-OPT-RESERVED")[60:] == b"\x02\xff\0\0"
    assert isinstance(message, pcp.MapRequest)
    assert message.options == (RawOption(2),)


# --- layouts, field by field


@pytest.mark.requirement("NP-3-01")
@pytest.mark.requirement("NP-3.2-01")
def test_the_external_address_request_is_two_octets() -> None:
    assert natpmp.ExternalAddressRequest().encode() == b"\0\0"


@pytest.mark.requirement("NP-3.3-02")
@pytest.mark.requirement("NP-3-02")
@pytest.mark.requirement("NP-3.3-09")
def test_nat_pmp_maps_udp_with_opcode_1_and_tcp_with_opcode_2() -> None:
    assert natpmp.MapRequest(Protocol.UDP, 5000).encode() == bytes.fromhex("0001 0000 1388 0000 00001c20")
    assert natpmp.MapRequest(Protocol.TCP, 80, 8080, 60).encode() == bytes.fromhex("0002 0000 0050 1f90 0000003c")


@pytest.mark.requirement("NP-3-05")
@pytest.mark.requirement("NP-3.3-12")
def test_a_nat_pmp_response_has_the_opcode_of_its_request_plus_128() -> None:
    for protocol in (Protocol.UDP, Protocol.TCP):
        request = natpmp.MapRequest(protocol, 80)
        response = natpmp.MapResponse(protocol, natpmp.ResultCode.SUCCESS, 0, 80)
        assert response.encode()[1] == request.encode()[1] + 128


@pytest.mark.requirement("NP-3-03")
def test_the_external_address_is_copied_in_natural_order() -> None:
    response = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1234, IPv4Address("203.0.113.7"))
    assert response.encode() == bytes.fromhex("0080 0000 000004d2 cb007107")


@pytest.mark.requirement("NP-3-07")
@pytest.mark.requirement("NP-3.3-25")
@pytest.mark.requirement("PCP-7.1-06")
def test_epochs_and_lifetimes_are_unsigned() -> None:
    response = decode(bytes.fromhex("0081 0000 ffffffff 1388 9c40 ffffffff"))
    assert isinstance(response, natpmp.MapResponse)
    assert (response.epoch, response.lifetime) == (4294967295, 4294967295)
    request = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, lifetime=4294967295)
    assert request.encode()[4:8] == b"\xff\xff\xff\xff"
    assert decode(request.encode()) == request


@pytest.mark.requirement("NP-9.3-01")
def test_no_nat_pmp_message_is_longer_than_16_octets() -> None:
    sizes = {
        len(message.encode())
        for message in (
            natpmp.ExternalAddressRequest(),
            natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 0),
            natpmp.MapRequest(Protocol.TCP, 80),
            natpmp.MapResponse(Protocol.TCP, natpmp.ResultCode.SUCCESS, 0, 80),
            natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 0),
        )
    }
    assert sizes == {2, 8, 12, 16}


@pytest.mark.requirement("PCP-11.1-04")
@pytest.mark.requirement("PCP-7.1-03")
@pytest.mark.requirement("PCP-7-02")
def test_pcp_maps_with_one_opcode_and_the_ip_protocol_number() -> None:
    for protocol, number in ((Protocol.ALL, 0), (Protocol.TCP, 6), (Protocol.UDP, 17), (132, 132)):
        data = pcp.MapRequest(V4, NONCE, protocol, 0).encode()
        assert (data[0], data[1], data[36]) == (2, 1, number)
        decoded = decode(data)
        assert isinstance(decoded, pcp.MapRequest)
        assert decoded.protocol == number
    assert pcp.MapRequest(V4, NONCE, 6, 0).protocol is Protocol.TCP


@pytest.mark.requirement("PCP-5-01")
@pytest.mark.requirement("PCP-5-02")
@pytest.mark.requirement("PCP-5-03")
@pytest.mark.requirement("PCP-5-05")
@pytest.mark.requirement("PCP-5-06")
@pytest.mark.parametrize(
    ("address", "octets"),
    [
        (V4, "00000000000000000000ffffc0a8010a"),
        (IPv4Address(0), "00000000000000000000ffff00000000"),
        (IPv6Address("2001:db8::1"), "20010db8000000000000000000000001"),
        (IPv6Address(0), "00000000000000000000000000000000"),
    ],
)
def test_every_address_of_pcp_has_16_octets(address: fields.IPAddress, octets: str) -> None:
    assert fields.pack_address(address) == bytes.fromhex(octets)
    assert fields.unpack_address(bytes.fromhex(octets)) == address


@pytest.mark.requirement("PCP-5-04")
@pytest.mark.parametrize(
    "octets",
    ["01000000000000000000ffffc0a8010a", "00000000000000000000fffec0a8010a", "000000000000000000000000c0a8010a"],
)
def test_an_address_is_ipv4_only_if_all_96_leading_bits_say_so(octets: str) -> None:
    assert fields.unpack_address(bytes.fromhex(octets)).version == 6


def test_no_suggestion_is_the_all_zeros_address_of_the_clients_family() -> None:
    assert pcp.MapRequest(V4, NONCE, Protocol.TCP, 80).suggested_external_address == IPv4Address(0)
    assert pcp.MapRequest(V6, NONCE, Protocol.TCP, 80).suggested_external_address == IPv6Address(0)


@pytest.mark.requirement("PCP-10-05")
def test_the_external_address_may_be_of_another_family() -> None:
    for name in ("PCP-MAP-REQ-NAT64", "PCP-MAP-REQ-NAT46"):
        message = decode(octets_of(name))
        assert isinstance(message, pcp.MapRequest)
        assert {message.client_address.version, message.suggested_external_address.version} == {4, 6}


def test_addresses_may_be_given_as_text_with_a_scope_or_ipv4_mapped() -> None:
    assert fields.to_address("fe80::1%eth0") == IPv6Address("fe80::1")
    assert fields.to_address("::ffff:192.168.1.10") == V4
    assert fields.to_address(IPv6Address("::ffff:192.168.1.10")) == V4
    assert fields.to_address(V6) == V6


def test_an_endpoint_is_written_as_people_write_it() -> None:
    assert str(Endpoint(V4, 80)) == "192.168.1.10:80"
    assert str(Endpoint(V6, 80)) == "[2001:db8:1::10]:80"
    assert str(Endpoint(None, 80)) == "?:80"


@pytest.mark.requirement("NP-6-01")
@pytest.mark.requirement("PCP-19.1-01")
def test_the_ports_and_groups_are_those_of_both_rfcs() -> None:
    assert (fields.CLIENT_PORT, fields.SERVER_PORT) == (5350, 5351)
    assert (fields.MULTICAST_V4, fields.MULTICAST_V6) == ("224.0.0.1", "ff02::1")


# --- result codes


@pytest.mark.requirement("NP-3.5-01")
def test_the_result_codes_of_nat_pmp_are_those_of_rfc_6886() -> None:
    assert {code.value: code.name for code in natpmp.ResultCode} == {
        0: "SUCCESS",
        1: "UNSUPPORTED_VERSION",
        2: "NOT_AUTHORIZED",
        3: "NETWORK_FAILURE",
        4: "OUT_OF_RESOURCES",
        5: "UNSUPPORTED_OPCODE",
    }


def test_the_result_codes_of_pcp_are_those_of_rfc_6887() -> None:
    assert {code.value: code.name for code in pcp.ResultCode} == {
        0: "SUCCESS",
        1: "UNSUPP_VERSION",
        2: "NOT_AUTHORIZED",
        3: "MALFORMED_REQUEST",
        4: "UNSUPP_OPCODE",
        5: "UNSUPP_OPTION",
        6: "MALFORMED_OPTION",
        7: "NETWORK_FAILURE",
        8: "NO_RESOURCES",
        9: "UNSUPP_PROTOCOL",
        10: "USER_EX_QUOTA",
        11: "CANNOT_PROVIDE_EXTERNAL",
        12: "ADDRESS_MISMATCH",
        13: "EXCESSIVE_REMOTE_PEERS",
    }


def test_every_result_code_says_in_words_what_it_means() -> None:
    for codes in (natpmp.ResultCode, pcp.ResultCode):
        assert len({code.meaning for code in codes}) == len(codes)
    assert natpmp.ResultCode(3).meaning == "the gateway itself has no usable external address now"
    assert pcp.ResultCode(3).meaning == "the gateway could not read the request"
    assert natpmp.ResultCode(77).meaning == "result code 77, which RFC 6886 does not define"
    assert pcp.ResultCode(77).meaning == "result code 77, which RFC 6887 does not define"


@pytest.mark.requirement("NP-3.5-13")
def test_an_unknown_nat_pmp_result_code_is_kept() -> None:
    message = decode(octets_of("NP-MAP-RSP-CODE77"))
    assert isinstance(message, natpmp.MapResponse)
    assert (message.result_code, message.result_code.name) == (77, "UNKNOWN_77")
    assert message == natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode(77), 1234, 5000)


@pytest.mark.requirement("PCP-19.3-01")
@given(st.integers(14, 255))
def test_an_unknown_pcp_result_code_is_kept(code: int) -> None:
    message = decode(pcp.AnnounceResponse(pcp.ResultCode(code), 30, 9).encode())
    assert isinstance(message, pcp.AnnounceResponse)
    assert (message.result_code, message.result_code.name) == (code, f"UNKNOWN_{code}")


@pytest.mark.parametrize("value", [-1, 65536, 1.5, "SUCCESS"])
def test_what_no_result_field_can_hold_is_no_result_code(value: typing.Any) -> None:
    with pytest.raises(ValueError, match="is not a valid ResultCode"):
        natpmp.ResultCode(value)


# --- version errors


@pytest.mark.parametrize("size", [4, 8, 24])
@pytest.mark.parametrize("opcode", [0x00, 0x80])
def test_a_nat_pmp_version_error_has_any_length_and_its_response_bit_or_not(opcode: int, size: int) -> None:
    data = (bytes((0, opcode, 0, 1)) + (1234).to_bytes(4) + bytes(range(16)))[:size]
    epoch = 1234 if size >= 8 else None
    message = natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, epoch, payload=data[8:])
    assert decode(data) == message
    assert is_response(data)


def test_a_nat_pmp_version_error_that_ends_inside_its_epoch_has_none() -> None:
    message = natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, payload=b"\0\0\4")
    assert decode(bytes.fromhex("00800001000004")) == message


@pytest.mark.parametrize(
    ("size", "lifetime", "epoch"),
    [(4, None, None), (7, None, None), (8, 1800, None), (12, 1800, 1234), (20, 1800, 1234), (24, 1800, 1234)],
)
@pytest.mark.parametrize("version", [1, 3, 255])
def test_a_pcp_version_error_offers_another_version_and_may_be_short(
    version: int, size: int, lifetime: int | None, epoch: int | None
) -> None:
    data = (bytes((version, 0x81, 0, 1)) + (1800).to_bytes(4) + (1234).to_bytes(4) + bytes(12))[:size]
    message = pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, lifetime, epoch, version=version)
    assert decode(data) == message
    assert is_response(data)


@pytest.mark.parametrize("version", [1, 3, 255])
@pytest.mark.parametrize("size", [4, 8, 24])
def test_with_the_response_bit_clear_another_version_is_no_version_error(version: int, size: int) -> None:
    data = (bytes((version, 1, 0, 1)) + bytes(20))[:size]
    assert not is_response(data)
    with pytest.raises(DecodeError, match=f"version {version} is neither NAT-PMP nor PCP"):
        decode(data)


def test_a_router_in_the_field_answers_nat_pmp_with_short_pcp_like_errors() -> None:
    """A public bug report shows `02 81 00 02` in 12 octets: no version error, and read all the same."""
    data = bytes.fromhex("02810002a2a900000004f8d2")
    assert decode(data) == pcp.ErrorResponse(1, pcp.ResultCode.NOT_AUTHORIZED, 0xA2A90000, 0x0004F8D2)


# --- errors without a layout of their own


@pytest.mark.requirement("NP-3.5-04")
def test_the_echo_of_an_unknown_opcode_has_no_epoch() -> None:
    message = decode(octets_of("NP-OPCODE7-RSP"))
    payload = octets_of("NP-OPCODE7-RSP")[4:]
    assert message == natpmp.ErrorResponse(7, natpmp.ResultCode.UNSUPPORTED_OPCODE, None, payload=payload)


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        ("00810002", natpmp.ErrorResponse(1, natpmp.ResultCode.NOT_AUTHORIZED)),
        ("0081000200000009", natpmp.ErrorResponse(1, natpmp.ResultCode.NOT_AUTHORIZED, 9)),
        ("0080000300000009", natpmp.ErrorResponse(0, natpmp.ResultCode.NETWORK_FAILURE, 9)),
        ("0090000200000009ab", natpmp.ErrorResponse(16, natpmp.ResultCode.NOT_AUTHORIZED, 9, payload=b"\xab")),
    ],
)
def test_a_nat_pmp_error_shorter_than_its_response_is_an_error_still(octets: str, message: natpmp.Message) -> None:
    assert decode(bytes.fromhex(octets)) == message


def test_an_error_keeps_the_octets_of_the_broken_options_that_it_copies() -> None:
    """RFC 6887 section 8.2: an error is a copy of its request, faults and all."""
    broken = bytes.fromhex("020001f4")
    request = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80).encode() + broken
    data = bytes.fromhex("02810006 00000708 000004d2") + bytes(12) + request[24:]
    message = decode(data)
    assert isinstance(message, pcp.MapResponse)
    assert (message.options, message.trailing) == ((), broken)
    assert message.encode() == data


def test_the_error_to_an_announce_request_with_broken_options_keeps_its_octets() -> None:
    data = bytes.fromhex("02800006 00000708 000004d2") + bytes(12) + bytes.fromhex("020001f4")
    payload = bytes.fromhex("020001f4")
    assert decode(data) == pcp.ErrorResponse(0, pcp.ResultCode.MALFORMED_OPTION, 1800, 1234, payload)


@pytest.mark.parametrize("octets", ["0280000000000000000004d2", "0281000000000708000004d2"])
def test_a_success_whose_options_cannot_be_parsed_is_refused(octets: str) -> None:
    body = bytes(36) if octets[3] == "1" else b""
    with pytest.raises(DecodeError, match="runs past the datagram"):
        decode(bytes.fromhex(octets) + bytes(12) + body + bytes.fromhex("c80001f4"))


# --- what is refused


@pytest.mark.parametrize(
    ("octets", "reason", "offset"),
    [
        ("", "empty datagram", 0),
        ("00", "too short for a NAT-PMP header", 1),
        ("0081", "truncated NAT-PMP response", 2),
        ("0080000000000009", "truncated NAT-PMP response", 4),
        ("00820000000000090050", "truncated NAT-PMP response", 4),
        ("009000000000000900500050", "response to unknown opcode 16", 4),
        ("000100001388", "truncated NAT-PMP map request", 6),
        ("02", "too short for a PCP header", 1),
        ("0281", "truncated PCP response", 2),
        ("0381000000000000", "version 3 is neither NAT-PMP nor PCP", 0),
        ("0301", "version 3 is neither NAT-PMP nor PCP", 0),
        ("0201" + "00" * 14, "too short for a PCP header", 16),
        ("0201" + "00" * 24, "26 octets are no multiple of 4", 26),
        ("0201" + "00" * 1102, "1104 octets; PCP's limit is 1100", 1100),
        ("0201" + "00" * 38, "truncated PCP MAP request", 40),
        ("0281" + "00" * 38, "truncated PCP MAP response", 40),
        ("0280" + "00" * 22 + "80000005", "option 128 with 5 octets runs past the datagram", 24),
    ],
)
def test_a_refusal_says_why_and_where(octets: str, reason: str, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(bytes.fromhex(octets))
    assert (caught.value.reason, caught.value.offset) == (reason, offset)
    assert str(caught.value) == f"{reason} (at octet {offset})"
    assert isinstance(caught.value, NatPmpError)


def test_the_nat_pmp_decoder_alone_refuses_other_versions() -> None:
    with pytest.raises(DecodeError, match="version 2 is not NAT-PMP"):
        natpmp.decode(b"\2\0")


@pytest.mark.requirement("PCP-7-01")
def test_a_datagram_of_1100_octets_is_read_and_one_of_1104_is_not() -> None:
    message = decode(octets_of("PCP-MAP-REQ-LEN1100"))
    assert isinstance(message, pcp.MapRequest)
    assert [len(option.data) for option in message.options] == [1036]
    with pytest.raises(DecodeError, match="1104 octets"):
        decode(octets_of("PCP-MAP-REQ-LEN1104"))


# --- options


@pytest.mark.requirement("PCP-7.3-06")
@pytest.mark.parametrize(
    ("option", "octets"),
    [
        (RawOption(2), "02000000"),
        (RawOption(130, b"\0\x64\xc3\x50\0"), "82000005 0064c35000 000000"),
        (RawOption(128, b"abc"), "80000003 616263 00"),
        (RawOption(128, b"abcd"), "80000004 61626364"),
    ],
)
def test_an_option_is_padded_to_a_multiple_of_four(option: RawOption, octets: str) -> None:
    assert option.encode() == bytes.fromhex(octets)
    assert decode_options(bytes.fromhex(octets), 0) == (option,)


@pytest.mark.requirement("PCP-7.3-08")
def test_options_keep_their_order_and_their_padding_to_themselves() -> None:
    options = (RawOption(200, b"\1"), RawOption(1, bytes(16)), RawOption(128, b"NAS-1"), RawOption(200, b"\1"))
    request = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=options)
    decoded = decode(request.encode())
    assert isinstance(decoded, pcp.MapRequest)
    assert decoded.options == options


@pytest.mark.requirement("PCP-7.3-02")
@pytest.mark.requirement("PCP-19.4-01")
def test_options_below_128_are_mandatory() -> None:
    assert [code for code in range(256) if RawOption(code).mandatory] == list(range(128))


def test_padding_that_is_not_there_ends_the_options_all_the_same() -> None:
    assert decode_options(b"\x80\0\0\1a", 0) == (RawOption(128, b"a"),)


def test_an_option_header_that_is_cut_off_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"truncated option header \(at octet 4\)"):
        decode_options(b"\x80\0\0\0\x80", 4)


# --- is this an answer?


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        ("", False),
        ("00", False),
        ("02", False),
        ("0000", False),  # an external address request
        ("00000001", True),  # a version error as printed in RFC 6886
        ("0000000100000001", True),
        ("00010001", False),  # a map request whose reserved bits are set
        ("00000002", False),
        ("0080", True),
        ("00ff0000", True),
        ("0280", True),
        ("0281000000000000", True),
        ("0200000000000000", False),
        ("02000001", False),  # a clear response bit makes it a request in PCP, whatever follows
        ("01800001", True),  # a version error that offers version 1
        ("03810001", True),
        ("03810100", False),
        ("0381ff01", True),  # octet 2 is reserved
        ("03810002", False),
        ("0381", False),
        ("038100", False),
        ("ff800001", True),
    ],
)
def test_an_answer_is_told_by_its_version_and_response_bit(octets: str, answer: bool) -> None:
    assert is_response(bytes.fromhex(octets)) is answer


@pytest.mark.requirement("NP-1.1-01")
def test_the_first_octet_tells_the_protocols_apart() -> None:
    assert isinstance(decode(octets_of("NP-ANNOUNCE-BOOT")), natpmp.ExternalAddressResponse)
    assert isinstance(decode(octets_of("PCP-ANN-UNSOLICITED")), pcp.AnnounceResponse)


@pytest.mark.parametrize("name", [name for name in READABLE if name != "PCP-RSP-R-CLEAR"])
def test_every_golden_datagram_is_an_answer_or_none(name: str) -> None:
    responds = VECTORS[name]["fields"]["response"] or name == "NP-UNSUPPVER-RSP-PRINTED"
    assert is_response(octets_of(name)) is responds


# --- messages as values


MESSAGES: list[natpmp.Message | pcp.Message] = [
    natpmp.ExternalAddressRequest(),
    natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1, IPv4Address("203.0.113.7")),
    natpmp.MapRequest(Protocol.TCP, 80),
    natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode.SUCCESS, 1, 80, 8080, 7200),
    natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 1),
    natpmp.UnknownRequest(9, b"abc"),
    pcp.AnnounceRequest(V4),
    pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1),
    pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=(RawOption(128, b"abc"),)),
    pcp.MapResponse(pcp.ResultCode.SUCCESS, 7200, 1, NONCE, Protocol.TCP, 80, 8080, IPv4Address("203.0.113.7")),
    pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 1800, 1, version=3),
    pcp.UnknownRequest(9, 7200, V4, b"abcd"),
    pcp.UnknownResponse(9, pcp.ResultCode.SUCCESS, 7200, 1, b"abcd"),
]
IDS = [f"{type(message).__module__.rpartition('.')[2]}.{type(message).__name__}" for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_a_message_equals_its_decoded_twin_in_every_way(message: natpmp.Message | pcp.Message) -> None:
    decoded = decode(message.encode())
    assert type(decoded) is type(message)
    assert decoded == message
    assert message == decoded
    assert hash(decoded) == hash(message)
    assert repr(decoded) == repr(message)
    assert len({decoded, message}) == 1


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_no_message_can_be_changed_neither_a_made_nor_a_decoded_one(message: natpmp.Message | pcp.Message) -> None:
    for each in (message, decode(message.encode())):
        for name in [field.name for field in attrs.fields(type(each))] or ["anything"]:
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(each, name, 1)
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                delattr(each, name)
        assert each == message


def test_messages_of_different_classes_differ() -> None:
    assert len(set(MESSAGES)) == len(MESSAGES)
    assert all(a != b for a in MESSAGES for b in MESSAGES if a is not b)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: natpmp.MapRequest(Protocol.TCP, 65536),
            "MapRequest.internal_port must be an integer from 0 to 65535, not 65536",
        ),
        (
            lambda: natpmp.MapRequest(Protocol.TCP, 80, -1),
            "MapRequest.suggested_external_port must be an integer from 0 to 65535, not -1",
        ),
        (
            lambda: natpmp.MapRequest(Protocol.TCP, 80, 0, 2**32),
            "MapRequest.lifetime must be an integer from 0 to 4294967295, not 4294967296",
        ),
        (lambda: natpmp.MapRequest(typing.cast("Protocol", 132), 80), "NAT-PMP maps TCP and UDP, not 132"),
        (
            lambda: natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, typing.cast("int", 1.5)),
            "ExternalAddressResponse.epoch must be an integer from 0 to 4294967295, not 1.5",
        ),
        (
            lambda: natpmp.ExternalAddressResponse(
                natpmp.ResultCode.SUCCESS, 0, typing.cast("IPv4Address", "2001:db8::1")
            ),
            "NAT-PMP knows IPv4 addresses, not '2001:db8::1'",
        ),
        (
            lambda: natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 0, typing.cast("IPv4Address", "gateway")),
            "not an IP address: 'gateway'",
        ),
        (
            lambda: natpmp.UnknownRequest(128),
            "UnknownRequest.opcode must be an integer from 0 to 127, not 128",
        ),
        (
            lambda: natpmp.UnknownRequest(9, typing.cast("bytes", "abc")),
            "UnknownRequest.payload must be bytes, not 'abc'",
        ),
        (
            lambda: pcp.MapRequest(V4, b"short", Protocol.TCP, 80),
            "MapRequest.nonce must be 12 bytes, not b'short'",
        ),
        (
            lambda: pcp.MapRequest(V4, NONCE, 256, 80),
            "MapRequest.protocol must be an integer from 0 to 255, not 256",
        ),
        (lambda: pcp.AnnounceRequest(typing.cast("IPv4Address", 7)), "not an IP address: 7"),
        (
            lambda: pcp.AnnounceRequest(V4, typing.cast("tuple[RawOption]", (7,))),
            "AnnounceRequest.options must be options, not (7,)",
        ),
        (lambda: RawOption(256), "RawOption.code must be an integer from 0 to 255, not 256"),
        (
            lambda: pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, version=256),
            "ErrorResponse.version must be an integer from 0 to 255, not 256",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_range(make: typing.Callable[[], object], text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.requirement("PCP-7-01")
def test_no_message_of_more_than_1100_octets_can_be_made() -> None:
    assert len(pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=(RawOption(200, bytes(1036)),)).encode()) == 1100
    assert len(pcp.AnnounceRequest(V4, (RawOption(200, bytes(1072)),)).encode()) == 1100
    with pytest.raises(LocalProtocolError, match="MapRequest would have 1104 octets; PCP's limit is 1100"):
        pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=(RawOption(200, bytes(1037)),))
    with pytest.raises(LocalProtocolError, match="AnnounceRequest would have 1104 octets; PCP's limit is 1100"):
        pcp.AnnounceRequest(V4, (RawOption(200, bytes(1073)),))


# --- one line for people


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (MESSAGES[0], "NAT-PMP external address request"),
        (MESSAGES[1], "NAT-PMP external address response: 203.0.113.7, epoch 1 s"),
        (
            natpmp.ExternalAddressResponse(natpmp.ResultCode.NETWORK_FAILURE, 1),
            (
                "NAT-PMP external address response: "
                "NETWORK_FAILURE (the gateway itself has no usable external address now), epoch 1 s"
            ),
        ),
        (MESSAGES[2], "NAT-PMP map request: TCP 80, suggests port 0, for 7200 s"),
        (natpmp.MapRequest(Protocol.TCP, 80, 0, 0), "NAT-PMP delete request: TCP 80"),
        (natpmp.MapRequest(Protocol.UDP, 0, 0, 0), "NAT-PMP delete request: UDP all ports"),
        (MESSAGES[3], "NAT-PMP map response: UDP 80: external port 8080, for 7200 s, epoch 1 s"),
        (
            natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode.SUCCESS, 1, 0),
            "NAT-PMP map response: UDP all ports: deleted, epoch 1 s",
        ),
        (
            natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode(77), 1, 80),
            "NAT-PMP map response: UDP 80: UNKNOWN_77 (result code 77, which RFC 6886 does not define), epoch 1 s",
        ),
        (
            MESSAGES[4],
            (
                "NAT-PMP error response to opcode 0: "
                "UNSUPPORTED_VERSION (the gateway does not speak this version), epoch 1 s"
            ),
        ),
        (
            natpmp.ErrorResponse(9, natpmp.ResultCode.UNSUPPORTED_OPCODE),
            "NAT-PMP error response to opcode 9: UNSUPPORTED_OPCODE (the gateway does not know this request)",
        ),
        (natpmp.ErrorResponse(9, natpmp.ResultCode.SUCCESS), "NAT-PMP error response to opcode 9: SUCCESS"),
        (MESSAGES[5], "NAT-PMP request with unknown opcode 9, 3 octets"),
        (MESSAGES[6], "PCP ANNOUNCE request from 192.168.1.10"),
        (MESSAGES[7], "PCP ANNOUNCE response: SUCCESS, epoch 1 s"),
        (
            pcp.AnnounceResponse(pcp.ResultCode.ADDRESS_MISMATCH, 1800, 1),
            (
                "PCP ANNOUNCE response: ADDRESS_MISMATCH (the gateway sees another source address: "
                "there is another NAT in between), for 1800 s, epoch 1 s"
            ),
        ),
        (
            MESSAGES[8],
            "PCP MAP request: TCP 80 of 192.168.1.10: suggests 0.0.0.0 port 0, for 7200 s, option 128 (3 octets)",
        ),
        (
            pcp.MapRequest(V6, NONCE, 132, 0, lifetime=0),
            "PCP MAP request: protocol 132 all ports of 2001:db8:1::10: delete",
        ),
        (MESSAGES[9], "PCP MAP response: TCP 80: external 203.0.113.7 port 8080, for 7200 s, epoch 1 s"),
        (
            pcp.MapResponse(pcp.ResultCode.SUCCESS, 0, 1, NONCE, Protocol.ALL, 0, 0, V4),
            "PCP MAP response: ALL all ports: deleted, epoch 1 s",
        ),
        (
            pcp.MapResponse(pcp.ResultCode.NO_RESOURCES, 30, 1, NONCE, Protocol.TCP, 80, 0, V4),
            (
                "PCP MAP response: TCP 80: "
                "NO_RESOURCES (the gateway has no room for another mapping now), for 30 s, epoch 1 s"
            ),
        ),
        (
            MESSAGES[10],
            (
                "PCP error response to opcode 1: UNSUPP_VERSION (the gateway does not speak this version), "
                "for 1800 s, offers version 3"
            ),
        ),
        (
            pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION),
            "PCP error response to opcode 1: UNSUPP_VERSION (the gateway does not speak this version)",
        ),
        (pcp.ErrorResponse(1, pcp.ResultCode.SUCCESS), "PCP error response to opcode 1: SUCCESS"),
        (MESSAGES[11], "PCP request with opcode 9 from 192.168.1.10, 4 octets"),
        (MESSAGES[12], "PCP response to opcode 9, 4 octets, epoch 1 s"),
    ],
)
def test_a_message_describes_itself_in_one_line(message: natpmp.Message | pcp.Message, line: str) -> None:
    assert message.describe() == line


def test_a_datagram_is_described_even_if_it_says_nothing() -> None:
    assert describe(b"\0\0") == "NAT-PMP external address request"
    assert describe(b"") == "0 octets, no message: empty datagram (at octet 0)"
    assert describe(b"\7\7\7") == "3 octets, no message: version 7 is neither NAT-PMP nor PCP (at octet 0)"


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_every_golden_datagram_has_a_description_of_one_line(name: str) -> None:
    assert len(describe(octets_of(name)).splitlines()) == 1


# --- round trips


u7 = st.integers(0, 127)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
ipv4 = st.ip_addresses(v=4)
# IPv4-mapped addresses are IPv4 on the wire, so they are no IPv6 addresses of their own.
addresses = st.one_of(ipv4, st.ip_addresses(v=6)).map(fields.to_address)
nonces = st.binary(min_size=12, max_size=12)
transport = st.sampled_from([Protocol.TCP, Protocol.UDP])
protocols = st.integers(0, 255).map(fields.to_protocol)
natpmp_codes = u16.map(natpmp.ResultCode)
mapped_codes = natpmp_codes.filter(lambda code: code not in (1, 5))  # these two have no body
pcp_codes = st.integers(0, 255).map(pcp.ResultCode)
pcp_failures = st.integers(1, 255).map(pcp.ResultCode)
options = st.lists(st.builds(RawOption, st.integers(0, 255), st.binary(max_size=40)), max_size=4).map(tuple)
words = st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4])
overrun = st.builds(lambda code, rest: bytes((code, 0, 0xFF, 0xFF)) + rest, st.integers(0, 255), words)


def short_natpmp_errors() -> st.SearchStrategy[natpmp.ErrorResponse]:
    """Errors without a body of their own, in every form that the wire has for them."""
    version_error = st.just(natpmp.ResultCode.UNSUPPORTED_VERSION)
    opcode_error = st.just(natpmp.ResultCode.UNSUPPORTED_OPCODE)
    others = st.integers(2, 2**16 - 1).filter(lambda code: code != 5).map(natpmp.ResultCode)
    return st.one_of(
        st.builds(natpmp.ErrorResponse, u7, version_error, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, u7, version_error, u32, payload=st.binary()),
        st.builds(natpmp.ErrorResponse, u7, opcode_error, payload=st.binary()),
        st.builds(natpmp.ErrorResponse, u7, others, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, st.just(0), others, u32, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, st.integers(1, 2), others, u32, payload=st.binary(max_size=7)),
        st.builds(natpmp.ErrorResponse, st.integers(3, 127), others, u32, payload=st.binary()),
    )


def pcp_errors() -> st.SearchStrategy[pcp.ErrorResponse]:
    version_error = st.just(pcp.ResultCode.UNSUPP_VERSION)
    offered = st.integers(1, 255).filter(lambda version: version != 2)
    return st.one_of(
        st.builds(pcp.ErrorResponse, u7, pcp_failures),
        st.builds(pcp.ErrorResponse, u7, pcp_failures, u32),
        st.builds(pcp.ErrorResponse, st.integers(2, 127), pcp_failures, u32, u32, words),
        st.builds(pcp.ErrorResponse, st.just(1), pcp_failures, u32, u32, words.map(lambda data: data[:32])),
        st.builds(pcp.ErrorResponse, st.just(0), pcp_failures, u32, u32, overrun),
        st.builds(pcp.ErrorResponse, u7, version_error, version=offered),
        st.builds(pcp.ErrorResponse, u7, version_error, u32, version=offered),
        st.builds(pcp.ErrorResponse, u7, version_error, u32, u32, st.binary(), version=offered),
    )


def pcp_map_responses() -> st.SearchStrategy[pcp.MapResponse]:
    mapped = (u32, u32, nonces, protocols, u16, u16, addresses)
    return st.one_of(
        st.builds(pcp.MapResponse, pcp_codes, *mapped, options),
        st.builds(pcp.MapResponse, pcp_failures, *mapped, trailing=overrun),
    )


ROUND_TRIPS: dict[str, st.SearchStrategy[natpmp.Message | pcp.Message]] = {
    "natpmp.ExternalAddressRequest": st.builds(natpmp.ExternalAddressRequest),
    "natpmp.ExternalAddressResponse": st.builds(natpmp.ExternalAddressResponse, mapped_codes, u32, ipv4),
    "natpmp.MapRequest": st.builds(natpmp.MapRequest, transport, u16, u16, u32),
    "natpmp.MapResponse": st.builds(natpmp.MapResponse, transport, mapped_codes, u32, u16, u16, u32),
    "natpmp.ErrorResponse": short_natpmp_errors(),
    "natpmp.UnknownRequest": st.builds(natpmp.UnknownRequest, st.integers(3, 127), st.binary()),
    "pcp.AnnounceRequest": st.builds(pcp.AnnounceRequest, addresses, options),
    "pcp.AnnounceResponse": st.builds(pcp.AnnounceResponse, pcp_codes, u32, u32, options),
    "pcp.MapRequest": st.builds(pcp.MapRequest, addresses, nonces, protocols, u16, u16, addresses, u32, options),
    "pcp.MapResponse": pcp_map_responses(),
    "pcp.ErrorResponse": pcp_errors(),
    "pcp.UnknownRequest": st.builds(pcp.UnknownRequest, st.integers(2, 127), u32, addresses, words),
    "pcp.UnknownResponse": st.builds(
        pcp.UnknownResponse, st.integers(2, 127), st.just(pcp.ResultCode.SUCCESS), u32, u32, words
    ),
}


def test_every_message_class_has_a_round_trip() -> None:
    assert sorted(ROUND_TRIPS) == sorted(IDS)
    classes = {*typing.get_args(natpmp.Message), *typing.get_args(pcp.Message)}
    assert {type(message) for message in MESSAGES} == classes


@pytest.mark.parametrize("name", ROUND_TRIPS)
@given(st.data())
def test_a_message_survives_the_wire(name: str, data: st.DataObject) -> None:
    message = data.draw(ROUND_TRIPS[name])
    encoded = message.encode()
    decoded = decode(encoded)
    assert decoded == message
    assert type(decoded) is type(message)
    assert hash(decoded) == hash(message)
    assert decoded.encode() == encoded
    assert len(message.describe().splitlines()) == 1


@given(options)
def test_options_survive_the_wire(listed: tuple[RawOption, ...]) -> None:
    assert decode_options(encode_options(listed), 0) == listed


# Octets that look like something, so that more than the version check is met.
NAT_PMP_STARTS = ["", "00", "0000", "0001", "00800000", "00810000", "00820002", "00810001", "00890005"]
PCP_STARTS = ["02", "0200", "0201", "0202", "02800000", "02810000", "02810006", "02800006", "03810001"]
starts = st.sampled_from([bytes.fromhex(start) for start in (*NAT_PMP_STARTS, *PCP_STARTS)])
garbage = st.one_of(st.binary(max_size=1200), st.builds(lambda start, rest: start + rest, starts, st.binary()))


@given(garbage)
def test_any_octets_are_a_message_or_a_decode_error_and_nothing_else(data: bytes) -> None:
    try:
        message = decode(data)
    except DecodeError as error:
        assert error.reason  # noqa: PT017 - the success is as good
        assert 0 <= error.offset <= len(data)  # noqa: PT017
    else:
        assert decode(message.encode()).encode() == message.encode()
    assert len(describe(data).splitlines()) == 1
    assert is_response(data) in (True, False)


@given(st.sampled_from(READABLE), st.data())
def test_one_changed_octet_is_a_message_or_a_decode_error_and_nothing_else(name: str, data: st.DataObject) -> None:
    octets = bytearray(octets_of(name))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(bytes(octets))
    except DecodeError as error:
        assert 0 <= error.offset <= len(octets)  # noqa: PT017
    else:
        assert decode(message.encode()).encode() == message.encode()
