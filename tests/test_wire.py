"""Octets and messages: golden datagrams, round trips, and what is refused."""

from __future__ import annotations

import json
import pathlib
import typing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import drain, make_gateway
from natpmp_sansio import DecodeError, Endpoint, LocalProtocolError, NatPmpError, Protocol, decode, natpmp, pcp
from natpmp_sansio.wire import Message, describe, fields, is_response
from natpmp_sansio.wire.options import KINDS, Option, RawOption, decode_options, encode_options
from strategies import MESSAGES as STRATEGIES
from strategies import OPTIONS, datagrams, options

Fields = dict[str, typing.Any]

_FILE = json.loads((pathlib.Path(__file__).parent / "requirements" / "vectors.json").read_text())
VECTORS: dict[str, Fields] = {vector["id"]: vector for vector in _FILE["vectors"]}
PAIRS: list[tuple[str, str]] = [(pair["request"], pair["response"]) for pair in _FILE["pairs"]]
NONCE = bytes(range(12))
V4 = IPv4Address("192.168.1.10")
V6 = IPv6Address("2001:db8:1::10")
Code = pcp.ResultCode

# Refused by every decoder: reason and offset.
REFUSED: dict[str, tuple[str, int]] = {
    "NP-EXT-RSP-TRUNC": ("truncated NAT-PMP response", 4),
    "NP-MAP-RSP-TRUNC": ("truncated NAT-PMP response", 4),
    "NP-MAP-REQ-TRUNC": ("truncated NAT-PMP map request", 6),
    "NP-ONE-OCTET": ("too short for a NAT-PMP header", 1),
    "PCP-MAP-REQ-V3": ("version 3 is not PCP", 0),
    "PCP-V1-REQ": ("version 1 is not PCP", 0),
    "PCP-ONE-OCTET": ("too short for a PCP header", 1),
    "PCP-TWO-OCTETS": ("too short for a PCP header", 2),
    "PCP-ANN-REQ-LEN23": ("too short for a PCP header", 23),
    "PCP-V3-RSP-AT-SERVER": ("version 3 is not PCP", 0),
    "PCP-MAP-REQ-LEN40": ("truncated PCP MAP request", 40),
    "PCP-MAP-REQ-LEN61": ("61 octets are no multiple of 4", 61),
    "PCP-MAP-REQ-LEN1104": ("1104 octets; PCP's limit is 1100", 1100),
    "PCP-MAP-REQ-OPT-OVERRUN": ("option 1 with 400 octets runs past the datagram", 60),
    "PCP-MAP-REQ-OPT-OVERRUN-OPTIONAL": ("option 200 with 400 octets runs past the datagram", 60),
    "PCP-PEER-REQ-LEN60": ("truncated PCP PEER request", 60),
    "PCP-RSP-LEN3": ("truncated PCP response", 3),
    "PCP-RSP-LEN20": ("too short for a PCP header", 20),
    "PCP-RSP-LEN62": ("62 octets are no multiple of 4", 62),
    "PCP-MAP-RSP-LEN56": ("truncated PCP MAP response", 56),
    "PCP-MAP-RSP-OPT-OVERRUN": ("option 77 with 400 octets runs past the datagram", 60),
    "PCP-RSP-V3-SUCCESS": ("version 3 is not PCP", 0),
}
# Requests that break a rule: what strict decoding says, at which octet, and what a server that knows the rule answers.
FAULTY: dict[str, tuple[str, int, pcp.ResultCode]] = {
    "PCP-MAP-REQ-THIRDPARTY-LEN4": ("malformed option 1", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PF-TWICE": ("PREFER_FAILURE stands twice", 64, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PF-PORT0": ("PREFER_FAILURE needs a suggested_external_port", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PF-LEN4": ("malformed option 2", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-DEL-PF": ("PREFER_FAILURE makes no sense in a delete", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-DEL-FILTER": ("FILTER makes no sense in a delete", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-FILTER-PFX24": ("malformed option 3", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-FILTER-PFX129": ("malformed option 3", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-FILTER-GOOD-BAD": ("malformed option 3", 84, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PROTO0-PORT80": ("protocol 0 goes with internal_port 0 only", 40, Code.MALFORMED_REQUEST),
    "PCP-MAP-DEL-PROTO0-PORT80": ("protocol 0 goes with internal_port 0 only", 40, Code.MALFORMED_REQUEST),
    "PCP-MAP-REQ-THIRDPARTY-SELF": ("THIRD_PARTY names the sender itself", 60, Code.MALFORMED_REQUEST),
    "PCP-PEER-REQ-PF": ("PREFER_FAILURE does not go with PEER", 80, Code.MALFORMED_REQUEST),
    "PCP-PEER-REQ-PROTO0": ("protocol of a PEER request must not be 0", 36, Code.MALFORMED_REQUEST),
    "PCP-PEER-REQ-IPORT0": ("internal_port of a PEER request must not be 0", 40, Code.MALFORMED_REQUEST),
    "PCP-PEER-REQ-RPORT0": ("remote_port of a PEER request must not be 0", 60, Code.MALFORMED_REQUEST),
    "PCP-MAP-REQ-PORTSET-ZERO": ("PORT_SET of no port", 60, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PORTSET-PF": ("PREFER_FAILURE and PORT_SET do not go together", 72, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-PORTSET-TWICE": ("PORT_SET stands twice", 72, Code.MALFORMED_OPTION),
    "PCP-MAP-REQ-TPID-ALONE": ("THIRD_PARTY_ID needs THIRD_PARTY", 60, Code.THIRD_PARTY_MISSING_OPTION),
}
# No server minds it, so it is no fault; but no conforming client sends it.
IGNORED = {"PCP-MAP-REQ-DESC-BADUTF8"}
# Bad only for whom they reach, which no decoder knows: what a gateway answers to 192.168.1.10; None: nothing at all.
REFUSED_BY_A_GATEWAY: dict[str, int | None] = {
    "NP-OPCODE7-REQ": natpmp.ResultCode.UNSUPPORTED_OPCODE,
    "NP-RSP-AT-SERVER": None,
    "PCP-RSP-AT-SERVER": None,
    "PCP-MAP-REQ-OPT100": Code.UNSUPP_OPTION,
    "PCP-MAP-REQ-ADDR-MISMATCH": Code.ADDRESS_MISMATCH,
    "PCP-ANN-REQ-ADDR-MISMATCH": Code.ADDRESS_MISMATCH,
    "PCP-MAP-REQ-ADDR-COMPAT": Code.ADDRESS_MISMATCH,
    "PCP-OPCODE96-REQ": Code.UNSUPP_OPCODE,
}
# A response whose bit was lost is a request to every decoder; a client takes no requests.
REFUSED_BY_A_CLIENT = {"PCP-RSP-R-CLEAR"}
# Good messages that no conforming sender writes like this: the first octet that it would write otherwise.
IRREGULAR: dict[str, int] = {
    "NP-MAP-UDP-RESERVED-REQ": 2,
    "NP-EXT-REQ-TRAILING": 2,
    "NP-UNSUPPVER-RSP-PRINTED": 1,
    "PCP-ANN-REQ-LIFE": 6,
    "PCP-MAP-REQ-RESERVED": 2,
    "PCP-PEER-REQ-RESERVED": 37,
    "PCP-MAP-REQ-OPT-RESERVED": 61,
    "PCP-MAP-RSP-RESERVED": 2,
}
# Errors that copy the client's address of a request nobody could read, or that end with the request's own length.
# `encode` writes them otherwise, but a conforming sender may.
COPIED = {
    "PCP-ERR-01-UNSUPP-VERSION",
    "PCP-ERR-03-MALFORMED-REQUEST",
    "PCP-UNSUPPVER-FOR-NATPMP-MAP12",
    "PCP-UNSUPPVER-RSP-V3",
}
# The options whose contents make no sense: which of the request's.
MALFORMED = {
    "PCP-MAP-REQ-DESC-BADUTF8": 0,
    "PCP-MAP-REQ-FILTER-PFX24": 0,
    "PCP-MAP-REQ-FILTER-PFX129": 0,
    "PCP-MAP-REQ-FILTER-GOOD-BAD": 1,
}


def octets_of(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def fields_of(name: str) -> Fields:
    return typing.cast("Fields", VECTORS[name]["fields"])


def rest_of(name: str, start: int) -> bytes:
    return octets_of(name)[start:]


# The messages of which the table lists the header only.
BY_HAND: dict[str, Message] = {
    "NP-OPCODE7-REQ": natpmp.UnknownRequest(7, rest_of("NP-OPCODE7-REQ", 2)),
    "NP-EXT-REQ-TRAILING": natpmp.ExternalAddressRequest(),
    "NP-OPCODE7-RSP": natpmp.ErrorResponse(
        7, natpmp.ResultCode.UNSUPPORTED_OPCODE, None, payload=rest_of("NP-OPCODE7-RSP", 4)
    ),
    "NP-UNSUPPVER-RSP-PRINTED": natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 1234),
    "PCP-ERR-03-MALFORMED-REQUEST": pcp.ErrorResponse(
        1, Code.MALFORMED_REQUEST, 1800, 1234, rest_of("PCP-ERR-03-MALFORMED-REQUEST", 24)
    ),
    "PCP-ERR-04-UNSUPP-OPCODE": pcp.ErrorResponse(
        96, Code.UNSUPP_OPCODE, 1800, 1234, rest_of("PCP-ERR-04-UNSUPP-OPCODE", 24)
    ),
    "PCP-UNSUPPVER-FOR-NATPMP-4": pcp.ErrorResponse(0, Code.UNSUPP_VERSION),
    "PCP-UNSUPPVER-FOR-NATPMP-MAP12": pcp.ErrorResponse(1, Code.UNSUPP_VERSION, 1800, 1234),
    "PCP-OPCODE96-REQ": pcp.UnknownRequest(96, 0, V4, rest_of("PCP-OPCODE96-REQ", 24)),
    "PCP-UNSUPPVER-RSP-V3": pcp.ErrorResponse(
        1, Code.UNSUPP_VERSION, 7200, 1234, rest_of("PCP-UNSUPPVER-RSP-V3", 24), version=3
    ),
}
# Of these the table lists the header only as well, and their constructors refuse them; each has a test of its own.
BY_FIELD = {"PCP-MAP-REQ-THIRDPARTY-LEN4", "PCP-MAP-REQ-PF-LEN4", "PCP-RSP-R-CLEAR"}
READABLE = [name for name in VECTORS if name not in REFUSED]
FULL = [name for name in READABLE if VECTORS[name]["struct_check"] == "full"]

# How each option's fields are called in the table.
_TYPED: dict[int, typing.Callable[[Fields], Option]] = {
    1: lambda o: pcp.ThirdParty(fields.to_address(o["internal_ip"])),
    2: lambda o: pcp.PreferFailure(),
    3: lambda o: pcp.Filter(o["prefix_length"], o["remote_port"], fields.to_address(o["remote_ip"])),
    4: lambda o: pcp.Nonce(o["nonce"]),
    5: lambda o: pcp.AuthenticationTag(o["session_id"], o["sequence"], o["key_id"], bytes.fromhex(o["data"])[12:]),
    6: lambda o: pcp.PaAuthenticationTag(o["key_id"], bytes.fromhex(o["data"])[4:]),
    7: lambda o: pcp.EapPayload(bytes.fromhex(o["data"])),
    8: lambda o: pcp.Prf(o["prf"]),
    9: lambda o: pcp.MacAlgorithm(o["mac"]),
    10: lambda o: pcp.SessionLifetime(o["seconds"]),
    11: lambda o: pcp.ReceivedPak(o["sequence"]),
    12: lambda o: pcp.IdIndicator(o["text"]),
    13: lambda o: pcp.ThirdPartyId(bytes.fromhex(o["data"])),
    128: lambda o: pcp.Description(o["text"]),
    129: lambda o: pcp.Prefix64(o["prefix"], bytes.fromhex(o["suffix"]), o["ipv4_prefixes"]),
    130: lambda o: pcp.PortSet(o["size"], o["first_internal_port"], o["parity"]),
}


def expected_options(name: str) -> tuple[Option, ...]:
    """The options that the table describes, with its name for each."""
    found: list[Option] = []
    for number, listed in enumerate(fields_of(name)["options"]):
        raw = listed["name"] == "?" or MALFORMED.get(name) == number
        option = RawOption(listed["code"], bytes.fromhex(listed["data"])) if raw else _TYPED[listed["code"]](listed)
        assert (option.code, option.data) == (listed["code"], bytes.fromhex(listed["data"]))
        assert raw or listed["name"] == option.NAME
        found.append(option)
    return tuple(found)


def seen_in_natpmp(message: Message) -> Fields:
    """What the table lists of a NAT-PMP message, as we decoded it."""
    match message:
        case natpmp.ExternalAddressRequest():
            return {"opcode": 0, "response": False}
        case natpmp.ExternalAddressResponse():
            seen: Fields = {"opcode": 0, "response": True, "external_ip": str(message.external_address)}
        case natpmp.MapRequest() | natpmp.MapResponse():
            seen = {"opcode": 1 if message.protocol is Protocol.UDP else 2, "internal_port": message.internal_port}
            seen |= {"response": isinstance(message, natpmp.MapResponse), "lifetime": message.lifetime}
            if isinstance(message, natpmp.MapRequest):
                return seen | {"suggested_external_port": message.suggested_external_port}
            seen |= {"external_port": message.external_port}
        case _:
            assert isinstance(message, natpmp.ErrorResponse)
            seen = {"opcode": message.opcode, "response": True}
    return seen | {"result": int(message.result_code), "epoch": message.epoch}


def seen_in_pcp(message: Message) -> Fields:
    """What the table lists of a PCP message, as we decoded it."""
    names = ["lifetime", "result_code", "epoch", "client_address"]
    assert isinstance(message, pcp.KnownRequest | pcp.KnownResponse)
    seen = {name: getattr(message, name) for name in names if hasattr(message, name)}
    seen |= {"opcode": message.opcode, "response": isinstance(message, pcp.KnownResponse), "options": message.options}
    for ours, listed in (
        ("external_address", "external_ip"),
        ("suggested_external_address", "external_ip"),
        ("external_port", "external_port"),
        ("suggested_external_port", "external_port"),
        ("remote_address", "remote_ip"),
        *((name, name) for name in ("nonce", "protocol", "internal_port", "remote_port", "session_id", "sequence")),
    ):
        if hasattr(message, ours):
            seen.setdefault("body", {})[listed] = getattr(message, ours)
    return seen


def listed_in_pcp(name: str) -> Fields:
    """The table's own words, with addresses and octets as what they are, and without what every receiver ignores."""
    listed = fields_of(name) | {"options": expected_options(name)}
    listed = {{"client_ip": "client_address", "result": "result_code"}.get(k, k): v for k, v in listed.items()}
    listed = {k: v for k, v in listed.items() if not k.startswith("reserved") and k != "version"}
    if "client_address" in listed:
        listed["client_address"] = fields.to_address(listed["client_address"])
    body = {k: v for k, v in (listed.pop("body") or {}).items() if not k.startswith("reserved")}
    for key, value in body.items():
        body[key] = (
            fields.to_address(value) if key.endswith("_ip") else bytes.fromhex(value) if key == "nonce" else value
        )
    # An ANNOUNCE request and every PA message have no lifetime of their own.
    if listed["opcode"] == pcp.AUTHENTICATION or (listed["opcode"] == pcp.ANNOUNCE and not listed["response"]):
        listed.pop("lifetime")
    return listed | ({"body": body} if body else {})


# --- golden datagrams


@pytest.mark.requirement("NP-3.2-03")
@pytest.mark.requirement("NP-3.3-01")
@pytest.mark.requirement("NP-3.3-04")
@pytest.mark.requirement("NP-3.3-11")
@pytest.mark.requirement("NP-3-06")
@pytest.mark.parametrize("name", [name for name in FULL if VECTORS[name]["protocol"] == "nat-pmp"])
def test_a_nat_pmp_datagram_decodes_to_the_fields_of_the_table(name: str) -> None:
    listed = {k: v for k, v in fields_of(name).items() if k not in ("version", "reserved")}
    assert seen_in_natpmp(decode(octets_of(name))) == listed


@pytest.mark.requirement("PCP-7.1-01")
@pytest.mark.requirement("PCP-7.2-01")
@pytest.mark.requirement("PCP-7.2-06")
@pytest.mark.requirement("PCP-7.2-10")
@pytest.mark.requirement("PCP-7.3-01")
@pytest.mark.requirement("PCP-7.3-05")
@pytest.mark.requirement("PCP-11.1-01")
@pytest.mark.requirement("PCP-11.1-12")
@pytest.mark.requirement("PCP-12.1-01")
@pytest.mark.requirement("PCP-12.1-05")
@pytest.mark.requirement("PCP-12.1-11")
@pytest.mark.requirement("PCP-13.1-02")
@pytest.mark.requirement("PCP-13.2-01")
@pytest.mark.requirement("PCP-13.3-01")
@pytest.mark.requirement("PCP-14.1.1-01")
@pytest.mark.requirement("PCP-14.1.1-02")
@pytest.mark.requirement("EXT7220-2-01")
@pytest.mark.requirement("EXT7225-4.1-02")
@pytest.mark.requirement("EXT7225-4.1-08")
@pytest.mark.requirement("EXT7652-5.1-03")
@pytest.mark.requirement("EXT7652-5.2-01")
@pytest.mark.requirement("EXT7652-5.4-01")
@pytest.mark.requirement("EXT7652-5.5-01")
@pytest.mark.requirement("EXT7753-4-01")
@pytest.mark.requirement("EXT7843-4-01")
@pytest.mark.parametrize("name", [name for name in FULL if VECTORS[name]["protocol"] == "pcp"])
def test_a_pcp_datagram_decodes_to_the_fields_of_the_table(name: str) -> None:
    assert seen_in_pcp(decode(octets_of(name))) == listed_in_pcp(name)


@pytest.mark.requirement("NP-3.5-02")
@pytest.mark.requirement("NP-3.5-04")
@pytest.mark.requirement("PCP-19.2-01")
@pytest.mark.requirement("PCP-A-03")
@pytest.mark.parametrize("name", BY_HAND)
def test_a_datagram_of_which_the_table_lists_the_header_decodes_to_what_follows_from_its_octets(name: str) -> None:
    message = decode(octets_of(name))
    assert message == BY_HAND[name]
    assert type(message) is type(BY_HAND[name])


@pytest.mark.parametrize(("name", "code"), [("PCP-MAP-REQ-THIRDPARTY-LEN4", 1), ("PCP-MAP-REQ-PF-LEN4", 2)])
def test_the_length_of_an_option_is_not_the_business_of_the_datagram(name: str, code: int) -> None:
    message = decode(octets_of(name))
    assert isinstance(message, pcp.MapRequest)
    assert message.options == (RawOption(code, octets_of(name)[64:]),)


def test_a_response_whose_response_bit_was_lost_is_read_as_the_request_that_it_looks_like() -> None:
    message = decode(octets_of("PCP-RSP-R-CLEAR"))
    assert isinstance(message, pcp.MapRequest)
    assert message.client_address == IPv6Address("0:4d2::")


def test_no_golden_datagram_is_left_out() -> None:
    assert len(VECTORS) == 186
    assert sorted([*FULL, *BY_HAND, *BY_FIELD, *REFUSED]) == sorted(VECTORS)
    invalid = {name for name, vector in VECTORS.items() if not vector["valid"]}
    assert {*REFUSED, *FAULTY, *IGNORED, *REFUSED_BY_A_GATEWAY, *REFUSED_BY_A_CLIENT} == invalid
    assert len(invalid) == 52
    checked = [name for name, vector in VECTORS.items() if vector["struct_check"] == "full"]
    assert len(checked) == 152
    assert set(checked) - set(FULL) == {"PCP-MAP-REQ-V3"}  # another version: PCP's layout is not known to hold


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_a_datagram_that_is_no_message_is_refused(name: str, strict: bool) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(octets_of(name), strict=strict)
    assert (caught.value.reason, caught.value.offset) == REFUSED[name]


@pytest.mark.requirement("PCP-12.1-03")
@pytest.mark.requirement("PCP-12.1-06")
@pytest.mark.requirement("PCP-12.1-09")
@pytest.mark.requirement("EXT7843-5.2-04")
@pytest.mark.parametrize("name", FAULTY)
def test_a_golden_request_that_breaks_a_rule_is_refused_by_strict_decoding_only(name: str) -> None:
    reason, offset, code = FAULTY[name]
    with pytest.raises(DecodeError) as caught:
        decode(octets_of(name), strict=True)
    assert (caught.value.reason, caught.value.offset) == (reason, offset)
    request = decode(octets_of(name))
    assert isinstance(request, pcp.KnownRequest)
    assert pcp.find_fault(request) == pcp.Fault(reason, offset, code)


@pytest.mark.requirement("EXT7220-3-08")
@pytest.mark.requirement("EXT7220-3-09")
def test_a_description_that_is_no_text_is_refused_by_strict_decoding_and_ignored_by_a_server() -> None:
    data = octets_of("PCP-MAP-REQ-DESC-BADUTF8")
    with pytest.raises(DecodeError) as caught:
        decode(data, strict=True)
    assert (caught.value.reason, caught.value.offset) == ("malformed option 128", 60)
    request = decode(data)
    assert isinstance(request, pcp.MapRequest)
    assert pcp.find_fault(request) is None
    gateway = make_gateway()
    gateway.receive_datagram(data, (str(V4), 40000), 0.0)
    (reply,) = [decode(each) for each in drain(gateway)[0]]
    assert isinstance(reply, pcp.MapResponse)
    assert (reply.result_code, reply.options) == (Code.SUCCESS, ())


@pytest.mark.parametrize("name", REFUSED_BY_A_GATEWAY)
def test_a_golden_datagram_that_is_bad_for_a_server_only_is_refused_by_the_gateway(name: str) -> None:
    gateway = make_gateway()
    expected = REFUSED_BY_A_GATEWAY[name]
    assert gateway.receive_datagram(octets_of(name), (str(V4), 40000), 0.0) is (expected is not None)
    assert [reply[3] for reply in drain(gateway)[0]] == ([] if expected is None else [expected])
    decode(octets_of(name), strict=True)  # nothing in it is wrong


@pytest.mark.parametrize("name", sorted(REFUSED_BY_A_CLIENT))
def test_a_golden_response_without_its_response_bit_is_no_answer(name: str) -> None:
    assert not is_response(octets_of(name))


@pytest.mark.parametrize("name", [name for name in READABLE if name not in {*FAULTY, *IGNORED, *IRREGULAR}])
def test_a_golden_datagram_that_a_conforming_sender_may_send_passes_strict_decoding(name: str) -> None:
    assert decode(octets_of(name), strict=True) == decode(octets_of(name))


@pytest.mark.parametrize("name", IRREGULAR)
def test_a_golden_datagram_that_breaks_the_zero_rules_is_read_but_not_strictly(name: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(octets_of(name), strict=True)
    assert caught.value.reason == "octets that a conforming sender would not send"
    assert caught.value.offset == IRREGULAR[name]


@pytest.mark.requirement("NP-3.3-03")
@pytest.mark.requirement("PCP-7.1-02")
@pytest.mark.requirement("PCP-7.2-02")
@pytest.mark.requirement("PCP-7.3-03")
@pytest.mark.requirement("PCP-7.3-06")
@pytest.mark.requirement("PCP-11.1-05")
@pytest.mark.requirement("PCP-12.1-04")
@pytest.mark.requirement("PCP-12.1-10")
@pytest.mark.parametrize("name", READABLE)
def test_a_golden_datagram_comes_back_octet_for_octet(name: str) -> None:
    message = decode(octets_of(name))
    assert message.encode() == octets_of(name)
    if name in IRREGULAR or name in COPIED:
        assert message.received == octets_of(name)
        regular = BY_HAND.get(name) or attrs.evolve(message)
        assert (regular.received, regular == message) == (None, True)
        assert regular.encode() != octets_of(name)
    else:
        assert message.received is None


def test_the_octets_of_what_was_received_are_kept_but_make_no_difference() -> None:
    message = decode(octets_of("PCP-MAP-REQ-RESERVED"))
    twin = attrs.evolve(message)
    assert (message == twin, hash(message) == hash(twin), repr(message) == repr(twin)) == (True, True, True)
    assert describe(octets_of("PCP-MAP-REQ-RESERVED")) == twin.describe() + ", not as the RFC has it"


# The pairs whose reply is a copy of its request, of ours; a server may also answer NAT-PMP in its request's length.
COPIES = [
    (request, response)
    for request, response in PAIRS
    if octets_of(response)[:1] == b"\2"
    and Code(octets_of(response)[3]).is_error
    and len(octets_of(response)) >= pcp.HEADER_SIZE
]


@pytest.mark.requirement("PCP-12.3-02")
@pytest.mark.parametrize(("request_name", "response_name"), COPIES)
def test_an_error_reply_is_the_golden_copy_of_its_request(request_name: str, response_name: str) -> None:
    expected = octets_of(response_name)
    code, lifetime, epoch = Code(expected[3]), int.from_bytes(expected[4:8]), int.from_bytes(expected[8:12])
    assert pcp.error_reply(octets_of(request_name), code, lifetime, epoch) == expected


def test_every_golden_copy_is_checked() -> None:
    assert len(COPIES) == 16


@pytest.mark.parametrize(
    ("regular", "irregular"),
    [
        ("0000", "0000 00"),
        ("0080 0000 00000009 cb007107", "0080 0000 00000009 cb007107 aa"),
        ("0001 0000 1388 0000 00001c20", "0001 00ff 1388 0000 00001c20"),
        ("0082 0000 00000009 1388 9c40 00001c20", "0082 0000 00000009 1388 9c40 00001c20 00"),
        ("0080 0001", "0000 0001"),
        *(
            (f"02{opcode}00" + tail, f"02{opcode}ff" + tail)
            for opcode, tail in (
                ("00", "00" * 21),
                ("01", "00" * 57),
                ("02", pcp.PeerRequest(V4, NONCE, 6, 80, 443, V4).encode()[3:].hex()),
                ("03", "0e" + "00" * 28),
                ("09", "00" * 21),
                ("80", "00" * 21),
                ("81", "00" * 57),
                ("82", "00" * 77),
                ("83", "00" * 29),
                ("89", "00" * 21),
                ("89", "08" + "00" * 20),
            )
        ),
    ],
)
def test_every_class_ignores_reserved_octets_and_those_behind_the_end_and_gives_them_back(
    regular: str, irregular: str
) -> None:
    message, twin = decode(bytes.fromhex(irregular)), decode(bytes.fromhex(regular))
    assert (message, message.received, twin.received) == (twin, bytes.fromhex(irregular), None)
    assert (message.encode(), twin.encode()) == (bytes.fromhex(irregular), bytes.fromhex(regular))
    with pytest.raises(DecodeError, match="octets that a conforming sender would not send"):
        decode(bytes.fromhex(irregular), strict=True)


@pytest.mark.requirement("PCP-7.3-04")
def test_the_reserved_octet_of_an_option_is_ignored() -> None:
    message = decode(octets_of("PCP-MAP-REQ-OPT-RESERVED"))
    assert octets_of("PCP-MAP-REQ-OPT-RESERVED")[60:] == b"\x02\xff\0\0"
    assert isinstance(message, pcp.MapRequest)
    assert message.options == (pcp.PreferFailure(),)


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


def test_an_address_is_read_once_and_no_flood_of_them_is_kept() -> None:
    packed = [fields.pack_address(IPv6Address(number)) for number in range(1, 1000)]
    assert [fields.unpack_address(octets) for octets in packed] == [IPv6Address(number) for number in range(1, 1000)]
    assert fields.unpack_address(packed[-1]) is fields.unpack_address(packed[-1])
    assert len(fields._unpacked) <= 64


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


@pytest.mark.requirement("EXT7652-7-01")
@pytest.mark.requirement("EXT7652-3.4-07")
@pytest.mark.requirement("EXT7843-4.1-01")
def test_the_result_codes_of_pcp_are_those_of_rfc_6887_and_its_extensions() -> None:
    assert [code.name for code in Code] == [
        "SUCCESS",
        "UNSUPP_VERSION",
        "NOT_AUTHORIZED",
        "MALFORMED_REQUEST",
        "UNSUPP_OPCODE",
        "UNSUPP_OPTION",
        "MALFORMED_OPTION",
        "NETWORK_FAILURE",
        "NO_RESOURCES",
        "UNSUPP_PROTOCOL",
        "USER_EX_QUOTA",
        "CANNOT_PROVIDE_EXTERNAL",
        "ADDRESS_MISMATCH",
        "EXCESSIVE_REMOTE_PEERS",
        "INITIATION",
        "AUTHENTICATION_REQUIRED",
        "AUTHENTICATION_FAILED",
        "AUTHENTICATION_SUCCEEDED",
        "AUTHORIZATION_FAILED",
        "SESSION_TERMINATED",
        "UNKNOWN_SESSION_ID",
        "DOWNGRADE_ATTACK_DETECTED",
        "AUTHENTICATION_REQUEST",
        "AUTHENTICATION_REPLY",
        "THIRD_PARTY_ID_UNKNOWN",
        "THIRD_PARTY_MISSING_OPTION",
        "UNSUPP_THIRD_PARTY_ID_LENGTH",
    ]
    assert [code.value for code in Code] == list(range(27))


def test_every_result_code_says_in_words_what_it_means() -> None:
    for codes in (natpmp.ResultCode, Code):
        assert len({code.meaning for code in codes}) == len(codes)
    assert natpmp.ResultCode(3).meaning == "the gateway itself has no usable external address now"
    assert Code(3).meaning == "the gateway could not read the request"
    assert natpmp.ResultCode(77).meaning == "result code 77, which RFC 6886 does not define"
    assert Code(77).meaning == "result code 77, which no RFC defines"


@pytest.mark.requirement("PCP-7.4-01")
@pytest.mark.requirement("EXT7652-7-01")
def test_which_result_codes_say_no() -> None:
    assert [code.value for code in natpmp.ResultCode if not code.is_error] == [0]
    assert [code.value for code in Code if not code.is_error] == [0, 14, 17, 19, 22, 23]
    assert natpmp.ResultCode(77).is_error
    assert Code(77).is_error


@pytest.mark.requirement("PCP-7.4-04")
@pytest.mark.requirement("EXT7843-4.1-01")
def test_how_long_an_error_lasts_is_30_or_1800_seconds_or_depends() -> None:
    assert [code.value for code in Code if code.lifetime == 1800] == [1, 2, 3, 4, 5, 6, 9, 12, 13, 24, 25, 26]
    assert [code.value for code in Code if code.lifetime == 30] == [7, 8, 10]
    assert {code.lifetime for code in Code} == {30, 1800, None}
    assert [code.lifetime for code in natpmp.ResultCode] == [None, 1800, 1800, 30, 30, 1800]
    assert (Code(77).lifetime, natpmp.ResultCode(77).lifetime) == (None, None)


@pytest.mark.requirement("NP-3.5-13")
def test_an_unknown_nat_pmp_result_code_is_kept() -> None:
    message = decode(octets_of("NP-MAP-RSP-CODE77"))
    assert isinstance(message, natpmp.MapResponse)
    assert (message.result_code, message.result_code.name) == (77, "UNKNOWN_77")
    assert message == natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode(77), 1234, 5000)


@pytest.mark.requirement("PCP-19.3-01")
@given(st.integers(27, 255))
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
    with pytest.raises(DecodeError, match=f"version {version} is not PCP"):
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


@pytest.mark.parametrize(
    ("request_octets", "kind"),
    [
        (pcp.AnnounceRequest(V4).encode(), pcp.AnnounceResponse),
        (pcp.MapRequest(V4, NONCE, Protocol.TCP, 80).encode(), pcp.MapResponse),
        (pcp.PeerRequest(V4, NONCE, Protocol.TCP, 80, 443, V4).encode(), pcp.PeerResponse),
    ],
)
def test_an_error_keeps_the_octets_of_the_broken_options_that_it_copies(
    request_octets: bytes, kind: type[pcp.MapResponse]
) -> None:
    """RFC 6887 section 8.2: an error is a copy of its request, faults and all."""
    data = pcp.error_reply(request_octets + bytes.fromhex("020001f4"), Code.MALFORMED_OPTION, 1800, 1234)
    message = decode(data)
    assert isinstance(message, kind)
    assert (message.result_code, message.options, message.received) == (Code.MALFORMED_OPTION, (), data)
    assert message.encode() == data


@pytest.mark.parametrize("octets", ["0280000000000000000004d2", "0281000000000708000004d2", "0282000000000708000004d2"])
def test_a_success_whose_options_cannot_be_parsed_is_refused(octets: str) -> None:
    body = bytes(pcp.SIZES[int(octets[3])] - 24)
    with pytest.raises(DecodeError, match="runs past the datagram"):
        decode(bytes.fromhex(octets) + bytes(12) + body + bytes.fromhex("c80001f4"))


# --- what is refused


@pytest.mark.parametrize(
    ("octets", "reason", "offset"),
    [
        ("", "too short for a PCP header", 0),
        ("00", "too short for a NAT-PMP header", 1),
        ("0081", "truncated NAT-PMP response", 2),
        ("0080000000000009", "truncated NAT-PMP response", 4),
        ("00820000000000090050", "truncated NAT-PMP response", 4),
        ("009000000000000900500050", "response to unknown opcode 16", 4),
        ("000100001388", "truncated NAT-PMP map request", 6),
        ("02", "too short for a PCP header", 1),
        ("0281", "truncated PCP response", 2),
        ("0381000000000000", "version 3 is not PCP", 0),
        ("0301", "version 3 is not PCP", 0),
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
        (pcp.PreferFailure(), "02000000"),
        (pcp.PortSet(100, 50000), "82000005 0064c35000 000000"),
        (RawOption(200, b"abc"), "c8000003 616263 00"),
        (RawOption(200, b"abcd"), "c8000004 61626364"),
    ],
)
def test_an_option_is_padded_to_a_multiple_of_four(option: Option, octets: str) -> None:
    assert option.encode() == bytes.fromhex(octets)
    assert decode_options(bytes.fromhex(octets), 0) == (option,)


@pytest.mark.requirement("PCP-7.3-08")
def test_options_keep_their_order_and_their_padding_to_themselves() -> None:
    options = (RawOption(200, b"\1"), pcp.ThirdParty(V6), pcp.Description("NAS-1"), RawOption(200, b"\1"))
    request = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=options)
    decoded = decode(request.encode())
    assert isinstance(decoded, pcp.MapRequest)
    assert decoded.options == options


@pytest.mark.requirement("PCP-7.3-02")
@pytest.mark.requirement("PCP-19.4-01")
def test_options_below_128_are_mandatory() -> None:
    free = [code for code in range(256) if code not in KINDS]
    assert [code for code in free if RawOption(code).mandatory] == [code for code in free if code < 128]
    assert (pcp.ThirdPartyId(b"").mandatory, pcp.Description("").mandatory) == (True, False)


def test_padding_that_is_not_there_ends_the_options_all_the_same() -> None:
    assert decode_options(b"\xc8\0\0\1a", 0) == (RawOption(200, b"a"),)


def test_an_option_header_that_is_cut_off_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"truncated option header \(at octet 4\)"):
        decode_options(b"\xc8\0\0\0\x80", 4)


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


@pytest.mark.parametrize("name", [name for name in READABLE if name not in REFUSED_BY_A_CLIENT])
def test_every_golden_datagram_is_an_answer_or_none(name: str) -> None:
    responds = VECTORS[name]["fields"]["response"] or name == "NP-UNSUPPVER-RSP-PRINTED"
    assert is_response(octets_of(name)) is responds


# --- messages as values


MESSAGES: list[Message] = [
    natpmp.ExternalAddressRequest(),
    natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1, IPv4Address("203.0.113.7")),
    natpmp.MapRequest(Protocol.TCP, 80),
    natpmp.MapResponse(Protocol.UDP, natpmp.ResultCode.SUCCESS, 1, 80, 8080, 7200),
    natpmp.ErrorResponse(0, natpmp.ResultCode.UNSUPPORTED_VERSION, 1),
    natpmp.UnknownRequest(9, b"abc"),
    pcp.AnnounceRequest(V4),
    pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1),
    pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, options=(pcp.Description("abc"), RawOption(200, b"abc"))),
    pcp.MapResponse(pcp.ResultCode.SUCCESS, 7200, 1, NONCE, Protocol.TCP, 80, 8080, IPv4Address("203.0.113.7")),
    pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 1800, 1, version=3),
    pcp.UnknownRequest(9, 7200, V4, b"abcd"),
    pcp.UnknownResponse(9, pcp.ResultCode.SUCCESS, 7200, 1, b"abcd"),
    pcp.PeerRequest(V4, NONCE, Protocol.TCP, 80, 443, IPv4Address("198.51.100.23")),
    pcp.PeerResponse(Code.SUCCESS, 60, 1, NONCE, Protocol.TCP, 80, 8080, V4, 443, IPv4Address("198.51.100.23")),
    pcp.AuthenticationRequest(V4, Code.INITIATION, 0, 0, (pcp.Nonce(7),)),
    pcp.AuthenticationResponse(Code.AUTHENTICATION_REQUEST, 1, 5, 0, (pcp.IdIndicator("ca1"),)),
]
IDS = [f"{type(message).__module__.rpartition('.')[2]}.{type(message).__name__}" for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_a_message_equals_its_decoded_twin_in_every_way(message: Message) -> None:
    decoded = decode(message.encode())
    assert type(decoded) is type(message)
    assert decoded == message
    assert message == decoded
    assert hash(decoded) == hash(message)
    assert repr(decoded) == repr(message)
    assert len({decoded, message}) == 1


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_no_message_can_be_changed_neither_a_made_nor_a_decoded_one(message: Message) -> None:
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
            "options must be PCP options, not (7,)",
        ),
        (lambda: pcp.AnnounceRequest(V4, typing.cast("tuple[RawOption]", 7)), "options must be PCP options, not 7"),
        (
            lambda: natpmp.ExternalAddressResponse(natpmp.ResultCode(65535), 0, typing.cast("IPv4Address", None)),
            "not an IP address: None",
        ),
        (
            lambda: natpmp.ExternalAddressResponse(typing.cast("natpmp.ResultCode", 65536), 0),
            "result_code must be an integer from 0 to 65535, not 65536",
        ),
        (
            lambda: pcp.AnnounceResponse(Code(256)),
            "result_code must be an integer from 0 to 255, not <ResultCode.UNKNOWN_256: 256>",
        ),
        (
            lambda: pcp.AuthenticationResponse(typing.cast("pcp.ResultCode", -1), 0, 0, 0),
            "result_code must be an integer from 0 to 255, not -1",
        ),
        (
            lambda: pcp.AuthenticationRequest(V4, typing.cast("pcp.ResultCode", "INITIATION"), 0, 0),
            "result_code must be an integer from 0 to 255, not 'INITIATION'",
        ),
        (
            lambda: pcp.AuthenticationRequest(V4, Code.INITIATION, 2**32, 0),
            "AuthenticationRequest.session_id must be an integer from 0 to 4294967295, not 4294967296",
        ),
        (
            lambda: pcp.PeerRequest(V4, NONCE, Protocol.TCP, 80, 65536, V4),
            "PeerRequest.remote_port must be an integer from 0 to 65535, not 65536",
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


# --- the rules between the fields and options of one request


MAP = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, 8080)
DELETE = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80, 8080, lifetime=0)
ANYWHERE = pcp.MapRequest(V4, NONCE, Protocol.TCP, 80)
PEER = pcp.PeerRequest(V4, NONCE, Protocol.TCP, 80, 443, IPv4Address("198.51.100.23"))
ANNOUNCE = pcp.AnnounceRequest(V4)
PA = pcp.AuthenticationRequest(V4, Code.INITIATION, 0, 0)
TAG = pcp.AuthenticationTag(1, 2, 3, bytes(16))
PA_TAG = pcp.PaAuthenticationTag(1, bytes(16))


def patched(message: pcp.Request, offset: int, octets: bytes) -> bytes:
    data = message.encode()
    return data[:offset] + octets + data[offset + len(octets) :]


def with_options(message: pcp.Request, *listed: Option) -> bytes:
    return message.encode() + encode_options(listed)


FAULTS: list[tuple[bytes, str, int, pcp.ResultCode]] = [
    (patched(MAP, 36, b"\0"), "protocol 0 goes with internal_port 0 only", 40, Code.MALFORMED_REQUEST),
    (patched(PEER, 36, b"\0"), "protocol of a PEER request must not be 0", 36, Code.MALFORMED_REQUEST),
    (patched(PEER, 40, b"\0\0"), "internal_port of a PEER request must not be 0", 40, Code.MALFORMED_REQUEST),
    (patched(PEER, 60, b"\0\0"), "remote_port of a PEER request must not be 0", 60, Code.MALFORMED_REQUEST),
    (with_options(MAP, RawOption(1, bytes(4))), "malformed option 1", 60, Code.MALFORMED_OPTION),
    (with_options(PEER, RawOption(1)), "malformed option 1", 80, Code.MALFORMED_OPTION),
    (with_options(PA, pcp.Prf(5), RawOption(9)), "malformed option 9", 40, Code.MALFORMED_OPTION),
    (with_options(PEER, pcp.PreferFailure()), "PREFER_FAILURE does not go with PEER", 80, Code.MALFORMED_REQUEST),
    (with_options(PEER, pcp.Filter()), "FILTER does not go with PEER", 80, Code.MALFORMED_OPTION),
    (with_options(ANNOUNCE, pcp.ThirdParty(V6)), "THIRD_PARTY does not go with ANNOUNCE", 24, Code.MALFORMED_OPTION),
    (with_options(PA, TAG), "AUTHENTICATION_TAG does not go with AUTHENTICATION", 32, Code.MALFORMED_OPTION),
    (with_options(MAP, pcp.Nonce(7)), "NONCE does not go with MAP", 60, Code.MALFORMED_OPTION),
    (with_options(MAP, pcp.ThirdParty(V6), pcp.ThirdParty(V6)), "THIRD_PARTY stands twice", 80, Code.MALFORMED_OPTION),
    (
        with_options(MAP, pcp.Description("ab"), RawOption(200), pcp.Description("c")),
        "DESCRIPTION stands twice",
        72,
        Code.MALFORMED_OPTION,
    ),
    (with_options(ANNOUNCE, pcp.Prefix64(), pcp.Prefix64()), "PREFIX64 stands twice", 44, Code.MALFORMED_OPTION),
    (with_options(PEER, TAG, TAG), "AUTHENTICATION_TAG stands twice", 112, Code.MALFORMED_OPTION),
    (
        with_options(MAP, TAG, pcp.Description("a")),
        "an option stands behind the authentication tag",
        92,
        Code.MALFORMED_OPTION,
    ),
    (
        with_options(PA, PA_TAG, pcp.EapPayload(b"a")),
        "an option stands behind the authentication tag",
        56,
        Code.MALFORMED_OPTION,
    ),
    (with_options(PEER, pcp.ThirdParty(V4)), "THIRD_PARTY names the sender itself", 80, Code.MALFORMED_REQUEST),
    (
        with_options(PEER, pcp.ThirdPartyId(b"\1")),
        "THIRD_PARTY_ID needs THIRD_PARTY",
        80,
        Code.THIRD_PARTY_MISSING_OPTION,
    ),
    (with_options(PA, pcp.SessionLifetime(60)), "SESSION_LIFETIME is for responses", 32, Code.MALFORMED_OPTION),
    (with_options(PA, pcp.IdIndicator("ca1")), "ID_INDICATOR is for responses", 32, Code.MALFORMED_OPTION),
    (
        with_options(ANNOUNCE, pcp.Prefix64("64:ff9b::/96")),
        "PREFIX64 in a request must be ::/96, without a list",
        24,
        Code.MALFORMED_OPTION,
    ),
    (
        with_options(MAP, pcp.Prefix64(ipv4_prefixes=["192.0.2.0/24"])),
        "PREFIX64 in a request must be ::/96, without a list",
        60,
        Code.MALFORMED_OPTION,
    ),
    (
        with_options(DELETE, pcp.PreferFailure()),
        "PREFER_FAILURE makes no sense in a delete",
        60,
        Code.MALFORMED_OPTION,
    ),
    (with_options(DELETE, pcp.Filter()), "FILTER makes no sense in a delete", 60, Code.MALFORMED_OPTION),
    (
        with_options(ANYWHERE, pcp.PreferFailure()),
        "PREFER_FAILURE needs a suggested_external_port",
        60,
        Code.MALFORMED_OPTION,
    ),
    (
        with_options(MAP, pcp.PreferFailure(), pcp.PortSet(2, 80)),
        "PREFER_FAILURE and PORT_SET do not go together",
        64,
        Code.MALFORMED_OPTION,
    ),
    (
        with_options(MAP, pcp.PortSet(2, 80), pcp.PreferFailure()),
        "PREFER_FAILURE and PORT_SET do not go together",
        72,
        Code.MALFORMED_OPTION,
    ),
    (with_options(MAP, pcp.PortSet(0, 80)), "PORT_SET of no port", 60, Code.MALFORMED_OPTION),
    (
        with_options(MAP, pcp.PortSet(2, 81)),
        "PORT_SET.first_internal_port must be the internal_port of the request",
        60,
        Code.MALFORMED_OPTION,
    ),
]


@pytest.mark.requirement("PCP-11.1-08")
@pytest.mark.requirement("PCP-12.1-03")
@pytest.mark.requirement("PCP-12.1-06")
@pytest.mark.requirement("PCP-12.1-09")
@pytest.mark.requirement("EXT7225-4.1-06")
@pytest.mark.requirement("EXT7225-4.3-01")
@pytest.mark.requirement("EXT7753-4-02")
@pytest.mark.requirement("EXT7753-4-04")
@pytest.mark.requirement("EXT7753-4-05")
@pytest.mark.requirement("EXT7753-4.1-02")
@pytest.mark.requirement("EXT7753-4.1-07")
@pytest.mark.requirement("EXT7843-5.1-02")
@pytest.mark.parametrize(("data", "reason", "offset", "code"), FAULTS)
def test_a_request_that_breaks_a_rule_cannot_be_made_nor_strictly_decoded_and_says_what_to_answer(
    data: bytes, reason: str, offset: int, code: pcp.ResultCode
) -> None:
    request = decode(data)
    assert isinstance(request, pcp.KnownRequest)
    assert pcp.find_fault(request) == pcp.Fault(reason, offset, code)
    with pytest.raises(DecodeError) as refused:
        decode(data, strict=True)
    assert (refused.value.reason, refused.value.offset) == (reason, offset)
    with pytest.raises(LocalProtocolError) as caught:
        attrs.evolve(request)
    assert str(caught.value) == f"{type(request).__name__}: {reason}"


@pytest.mark.parametrize("name", STRATEGIES)
@given(st.data())
def test_no_request_that_can_be_made_has_a_fault(name: type[Message], data: st.DataObject) -> None:
    message = data.draw(STRATEGIES[name])
    if isinstance(message, pcp.Request):
        assert pcp.find_fault(message) is None


SAMPLES: dict[int, Option] = {
    1: pcp.ThirdParty(V6),
    2: pcp.PreferFailure(),
    3: pcp.Filter(),
    4: pcp.Nonce(7),
    5: TAG,
    6: PA_TAG,
    7: pcp.EapPayload(b"a"),
    8: pcp.Prf(5),
    9: pcp.MacAlgorithm(12),
    10: pcp.SessionLifetime(60),
    11: pcp.ReceivedPak(7),
    12: pcp.IdIndicator("ca1"),
    13: pcp.ThirdPartyId(b"\1"),
    128: pcp.Description("a"),
    129: pcp.Prefix64(),
    130: pcp.PortSet(2, 80),
}


@pytest.mark.requirement("PCP-7.1-08")
@pytest.mark.requirement("PCP-7.3-22")
@pytest.mark.requirement("PCP-13-01")
@pytest.mark.requirement("EXT7225-4.1-01")
@pytest.mark.requirement("EXT7843-5.1-01")
@pytest.mark.parametrize(
    ("request_", "response", "codes"),
    [
        (ANNOUNCE, pcp.AnnounceResponse(Code.SUCCESS), {5, 129}),
        (MAP, pcp.MapResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4), {1, 2, 3, 5, 13, 128, 129, 130}),
        (PEER, pcp.PeerResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4, 443, V4), {1, 5, 13, 128}),
        (PA, pcp.AuthenticationResponse(Code.SUCCESS, 0, 0, 0), {4, 6, 7, 8, 9, 10, 11, 12}),
    ],
)
def test_which_options_go_with_which_opcode(
    request_: pcp.KnownRequest, response: pcp.KnownResponse, codes: set[int]
) -> None:
    assert sorted(SAMPLES) == sorted(KINDS)
    for code, option in SAMPLES.items():
        companions = (pcp.ThirdParty(V6),) if code == 13 else ()
        for message, allowed in ((request_, codes - {10, 12}), (response, codes)):
            if code in allowed:
                assert decode(attrs.evolve(message, options=(*companions, option)).encode()).received is None
            else:
                with pytest.raises(LocalProtocolError):
                    attrs.evolve(message, options=(option,))
        error = attrs.evolve(response, result_code=Code.MALFORMED_OPTION, options=(option,))
        assert decode(error.encode()) == error  # it repeats whatever was asked


@pytest.mark.requirement("PCP-7.3-12")
@pytest.mark.requirement("EXT7652-5.7-01")
@pytest.mark.requirement("EXT7652-5.8-01")
def test_options_that_may_stand_twice_may_and_a_response_may_have_any_twice() -> None:
    assert len(attrs.evolve(MAP, options=(pcp.Filter(), pcp.Filter(), RawOption(200), RawOption(200))).options) == 4
    assert (
        len(attrs.evolve(PA, options=(pcp.Prf(5), pcp.Prf(6), pcp.MacAlgorithm(1), pcp.MacAlgorithm(1))).options) == 4
    )
    two = (pcp.Prefix64("64:ff9b::/96"), pcp.Prefix64("2001:db8::/32"))
    assert pcp.AnnounceResponse(Code.SUCCESS, options=two).options == two


def test_a_request_with_an_unknown_opcode_breaks_no_rule() -> None:
    assert pcp.find_fault(pcp.UnknownRequest(9, 0, V4)) is None


@pytest.mark.requirement("PCP-7-01")
@pytest.mark.requirement("PCP-7.3-09")
@pytest.mark.parametrize(
    ("message", "room"),
    [
        (MAP, 1036),
        (PEER, 1016),
        (ANNOUNCE, 1072),
        (PA, 1064),
        (pcp.AnnounceResponse(Code.SUCCESS), 1072),
        (pcp.MapResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4), 1036),
        (pcp.PeerResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4, 443, V4), 1016),
        (pcp.AuthenticationResponse(Code.SUCCESS, 0, 0, 0), 1064),
    ],
)
def test_no_message_of_more_than_1100_octets_can_be_made(
    message: pcp.KnownRequest | pcp.KnownResponse, room: int
) -> None:
    longest = attrs.evolve(message, options=(RawOption(200, bytes(room)),))
    assert len(longest.encode()) == 1100
    assert decode(longest.encode()) == longest
    with pytest.raises(LocalProtocolError) as caught:
        attrs.evolve(message, options=(RawOption(200, bytes(room + 1)),))
    assert str(caught.value) == f"{type(message).__name__} would have 1104 octets; PCP's limit is 1100"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: natpmp.UnknownRequest(1), "UnknownRequest: truncated NAT-PMP map request"),
        (
            lambda: natpmp.UnknownRequest(2, bytes(10)),
            "UnknownRequest cannot say that; there may be a class for its opcode",
        ),
        (
            lambda: natpmp.ErrorResponse(0, natpmp.ResultCode.SUCCESS),
            "ErrorResponse: truncated NAT-PMP response",
        ),
        (
            lambda: natpmp.ErrorResponse(1, natpmp.ResultCode.NOT_AUTHORIZED, 0, payload=bytes(8)),
            "ErrorResponse cannot say that; there may be a class for its opcode",
        ),
        (
            lambda: natpmp.ErrorResponse(7, natpmp.ResultCode.UNSUPPORTED_OPCODE, 0),
            "ErrorResponse cannot say that; there may be a class for its opcode",
        ),
        (
            lambda: pcp.UnknownRequest(1, 0, V4, bytes(36)),
            "UnknownRequest cannot say that; there may be a class for its opcode",
        ),
        (lambda: pcp.UnknownRequest(2, 0, V4), "UnknownRequest: truncated PCP PEER request"),
        (lambda: pcp.UnknownRequest(9, 0, V4, b"abc"), "UnknownRequest: 27 octets are no multiple of 4"),
        (lambda: pcp.UnknownRequest(9, 0, V4, bytes(1080)), "UnknownRequest: 1104 octets; PCP's limit is 1100"),
        (lambda: pcp.UnknownResponse(1, Code.SUCCESS, 0, 0), "UnknownResponse: truncated PCP MAP response"),
        (
            lambda: pcp.UnknownResponse(9, Code.NOT_AUTHORIZED, 0, 0),
            "UnknownResponse cannot say that; there may be a class for its opcode",
        ),
        (lambda: pcp.UnknownResponse(9, Code.SUCCESS, 0, 0, b"a"), "UnknownResponse: 25 octets are no multiple of 4"),
        (lambda: pcp.ErrorResponse(1, Code.SUCCESS), "ErrorResponse: too short for a PCP header"),
        (
            lambda: pcp.ErrorResponse(1, Code.NOT_AUTHORIZED, 0, 0, bytes(36)),
            "ErrorResponse cannot say that; there may be a class for its opcode",
        ),
        (
            lambda: pcp.ErrorResponse(9, Code.UNSUPP_OPCODE, None, None, b"abcd"),
            "ErrorResponse cannot say that; there may be a class for its opcode",
        ),
        (
            lambda: pcp.ErrorResponse(9, Code.UNSUPP_OPCODE, version=3),
            "ErrorResponse: version 3 is not PCP",
        ),
        (
            lambda: pcp.PeerResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4, 443, V4, options=(pcp.PreferFailure(),)),
            "PeerResponse: PREFER_FAILURE does not go with PEER",
        ),
    ],
)
def test_a_message_that_its_octets_would_not_say_cannot_be_made(make: typing.Callable[[], object], text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()
    assert str(caught.value) == text


# --- the contents of options


FILTER_LENGTH = "Filter.prefix_length must be 0 or"


@pytest.mark.requirement("EXT7220-2-03")
@pytest.mark.requirement("EXT7225-4.1-03")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: pcp.ThirdParty(typing.cast("IPv4Address", "gateway")), "not an IP address: 'gateway'"),
        (lambda: pcp.Filter(24, 0, V4), f"{FILTER_LENGTH} 96 to 128 for IPv4, not 24"),
        (lambda: pcp.Filter(129, 0, V4), f"{FILTER_LENGTH} 96 to 128 for IPv4, not 129"),
        (lambda: pcp.Filter(129, 0, V6), f"{FILTER_LENGTH} 1 to 128 for IPv6, not 129"),
        (lambda: pcp.Filter(0, 80), "Filter.prefix_length 0 goes with port 0 and address :: only"),
        (lambda: pcp.Filter(0, 0, V4), "Filter.prefix_length 0 goes with port 0 and address :: only"),
        (lambda: pcp.Nonce(2**32), "Nonce.nonce must be an integer from 0 to 4294967295, not 4294967296"),
        (
            lambda: pcp.EapPayload(typing.cast("bytes", "abc")),
            "EapPayload.message must be bytes, not 'abc'",
        ),
        (lambda: pcp.Description("a" * 1017), "Description.text must have at most 1016 octets in UTF-8, and no NUL"),
        (lambda: pcp.Description("ü" * 509), "Description.text must have at most 1016 octets in UTF-8, and no NUL"),
        (lambda: pcp.Description("a\0"), "Description.text must have at most 1016 octets in UTF-8, and no NUL"),
        (lambda: pcp.Description("\udc80"), "Description.text must be text that UTF-8 can encode"),
        (lambda: pcp.IdIndicator(typing.cast("str", 7)), "IdIndicator.text must be text that UTF-8 can encode"),
        (lambda: pcp.ThirdPartyId(bytes(1017)), "ThirdPartyId.identifier must have at most 1016 octets"),
        (
            lambda: pcp.ThirdPartyId(typing.cast("bytes", "abc")),
            "ThirdPartyId.identifier must be bytes, not 'abc'",
        ),
        (
            lambda: pcp.Prefix64("2001:db8::/36"),
            "Prefix64.prefix must have 32, 40, 48, 56, 64 or 96 bits, not 2001:db8::/36",
        ),
        (
            lambda: pcp.Prefix64("2001:db8::1/32"),
            "Prefix64.prefix must be an IPv6 prefix: 2001:db8::1/32 has host bits set",
        ),
        (lambda: pcp.Prefix64("2001:db8::/32", bytes(4)), "Prefix64.suffix must have 8 octets"),
        (
            lambda: pcp.Prefix64(ipv4_prefixes=["192.0.2.1/24"]),
            "Prefix64.ipv4_prefixes must be IPv4 prefixes: 192.0.2.1/24 has host bits set",
        ),
        (lambda: pcp.PortSet(65536, 80), "PortSet.size must be an integer from 0 to 65535, not 65536"),
        (lambda: RawOption(1, bytes(16)), "RawOption(1, ...) is ThirdParty in full"),
        (lambda: RawOption(2), "RawOption(2, ...) is PreferFailure in full"),
        (lambda: RawOption(128), "RawOption(128, ...) is Description in full"),
        (lambda: RawOption(200, bytes(65536)), "RawOption.data must have at most 65535 octets, not 65536"),
        (lambda: RawOption(-1), "RawOption.code must be an integer from 0 to 255, not -1"),
    ],
)
def test_contents_that_an_option_cannot_have_are_refused(make: typing.Callable[[], object], text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.requirement("EXT7652-5.3-04")
@pytest.mark.requirement("EXT7753-4-08")
@pytest.mark.requirement("EXT7753-4-09")
@pytest.mark.requirement("PCP-13.3-04")
@pytest.mark.parametrize(
    ("octets", "option"),
    [
        ("04ff0004 11223344", pcp.Nonce(0x11223344)),
        ("82000005 0064c350 fe000000", pcp.PortSet(100, 50000)),
        ("82000005 0064c350 ff000000", pcp.PortSet(100, 50000, parity=True)),
        ("03000014 ff780000 00000000000000000000ffffc6336400", pcp.Filter(120, 0, IPv4Address("198.51.100.0"))),
        ("03000014 00000050 00000000000000000000ffffc6336400", pcp.Filter()),  # 0 removes all, whatever else is there
        ("80000001 61ffffff", pcp.Description("a")),
        # an entry of the list that is no prefix is left out (RFC 7225 section 4.3), one with host bits is not
        (
            "8100001c 000c 0064ff9b0000000000000000 0002 0021c0000200 0018c0000207",
            pcp.Prefix64("64:ff9b::/96", b"", ["192.0.2.0/24"]),
        ),
    ],
)
def test_what_has_no_meaning_inside_an_option_is_ignored_and_given_back(octets: str, option: Option) -> None:
    data = bytes.fromhex(octets)
    assert decode_options(data, 0) == (option,)
    assert option.encode() != data
    error = pcp.AnnounceResponse(Code.NO_RESOURCES).encode() + data
    assert decode(error).encode() == error


@pytest.mark.requirement("EXT7225-4.1-03")
@pytest.mark.requirement("EXT7220-2-05")
@pytest.mark.parametrize(
    "octets",
    [
        "01000004 c0a80114",
        "02000001 00000000",
        "03000013 0078000000000000000000000000ffffc63364 00",
        "04000003 11223300",
        "0500000b 0000000100000002000000 00",
        "06000003 00000000",
        "08000005 0000000500000000",
        "0a000000",
        "0c000001 ff000000",
        "80000002 6100 0000",  # a NUL: Length counts, and no text has one
        "81000001 00000000",
        "8100000e 0009 000000000000000000000000 0000",  # 72 bits
        "8100000d 000c 0000000000000000000000 000000",
        "8100000f 000c 000000000000000000000000 00 00",
        "81000010 000c 000000000000000000000000 0001",  # a list shorter than its count
        "82000004 0064c350",
    ],
)
def test_an_option_whose_contents_make_no_sense_stays_raw(octets: str) -> None:
    data = bytes.fromhex(octets)
    length = int.from_bytes(data[2:4])
    (option,) = decode_options(data, 0)
    assert option == RawOption(data[0], data[4 : 4 + length])
    assert option.encode() == data
    assert option.describe() == f"option {data[0]} ({length} octets, malformed)"


@pytest.mark.requirement("EXT7220-2-04")
@pytest.mark.requirement("EXT7220-2-06")
@pytest.mark.requirement("EXT7652-5.11-04")
@pytest.mark.requirement("EXT7652-5.11-06")
@pytest.mark.requirement("EXT7652-5.6-04")
@pytest.mark.requirement("EXT7652-5.4-04")
@pytest.mark.requirement("EXT7652-5.5-04")
@pytest.mark.requirement("EXT7843-4-02")
@pytest.mark.requirement("EXT7225-4.1-05")
@pytest.mark.parametrize(
    ("option", "octets"),
    [
        (pcp.Description("é"), "80000002 c3a90000"),
        (pcp.Description(""), "80000000"),
        (pcp.IdIndicator("ca1"), "0c000003 63613100"),
        (pcp.EapPayload(bytes.fromhex("0101000501")), "07000005 01010005 01000000"),
        (pcp.AuthenticationTag(1, 2, 3, b"\xaa"), "0500000d 00000001 00000002 00000003 aa000000"),
        (pcp.PaAuthenticationTag(3, b"\xaa\xbb"), "06000006 00000003 aabb0000"),
        (pcp.Prf(5), "08000004 00000005"),
        (pcp.MacAlgorithm(12), "09000004 0000000c"),
        (pcp.SessionLifetime(3600), "0a000004 00000e10"),
        (pcp.ReceivedPak(7), "0b000004 00000007"),
        (pcp.ThirdPartyId(bytes.fromhex("abcde0")), "0d000003 abcde000"),
        (pcp.Prefix64(), "8100000e 000c 000000000000000000000000 0000"),
        (pcp.Prefix64("2001:db8::/32", ipv4_prefixes=()), "81000010 0004 20010db8 0000000000000000 0000"),
    ],
)
def test_the_octets_of_an_option(option: Option, octets: str) -> None:
    assert option.encode() == bytes.fromhex(octets)
    assert decode_options(bytes.fromhex(octets), 0) == (option,)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (pcp.PreferFailure(), "PREFER_FAILURE"),
        (
            pcp.Filter(120, 443, IPv4Address("198.51.100.0")),
            "FILTER (prefix_length 120, remote_port 443, remote_address 198.51.100.0)",
        ),
        (pcp.AuthenticationTag(1, 2, 3, b"secret"), "AUTHENTICATION_TAG (session 1, sequence 2, key 3)"),
        (pcp.PaAuthenticationTag(3, b"secret"), "PA_AUTHENTICATION_TAG (key 3)"),
        (pcp.EapPayload(b"secret"), "EAP_PAYLOAD (6 octets)"),
        (pcp.ThirdPartyId(b"\xab\xcd"), "THIRD_PARTY_ID (abcd)"),
        (pcp.Description("two\nlines"), "DESCRIPTION ('two\\nlines')"),
        (pcp.Prefix64(), "PREFIX64 (::/96)"),
        (
            pcp.Prefix64("2001:db8::/32", ipv4_prefixes=["192.0.2.0/24", "198.51.100.0/24"]),
            "PREFIX64 (2001:db8::/32 for 192.0.2.0/24, 198.51.100.0/24)",
        ),
        (pcp.PortSet(2, 80), "PORT_SET (size 2, first_internal_port 80, parity False)"),
        (RawOption(200, b"abc"), "option 200 (3 octets)"),
        (RawOption(128, b"\xff"), "option 128 (1 octets, malformed)"),
    ],
)
def test_an_option_describes_itself_in_a_few_words(option: Option, text: str) -> None:
    assert option.describe() == text


def test_the_base_of_options_is_no_option() -> None:
    with pytest.raises(NotImplementedError):
        Option().data  # noqa: B018


@pytest.mark.requirement("EXT7225-4.1-04")
@pytest.mark.parametrize(
    ("prefix", "address"),
    [  # RFC 6052 section 2.4, for 192.0.2.33
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
        ("64:ff9b::/96", "64:ff9b::c000:221"),
    ],
)
def test_a_nat64_prefix_and_an_ipv4_address_make_an_ipv6_address(prefix: str, address: str) -> None:
    option = pcp.Prefix64(prefix)
    assert option.prefix == IPv6Network(prefix)
    assert option.synthesize("192.0.2.33") == IPv6Address(address)
    assert option.synthesize(IPv4Address("192.0.2.33")) == IPv6Address(address)


def test_the_suffix_fills_what_prefix_and_address_leave_but_for_octet_8() -> None:
    suffix = bytes.fromhex("ff01020304050607")
    assert pcp.Prefix64("2001:db8::/32", suffix).synthesize("192.0.2.33") == IPv6Address(
        "2001:db8:c000:221:1:203:405:607"
    )
    assert pcp.Prefix64("2001:db8::/64", suffix[:4]).synthesize("192.0.2.33") == IPv6Address("2001:db8::c0:2:2101:203")


@pytest.mark.requirement("EXT7225-4.1-09")
@pytest.mark.requirement("EXT7225-4.2-07")
@pytest.mark.requirement("EXT7225-4.3-02")
@pytest.mark.parametrize(
    ("address", "chosen"),
    [
        ("192.0.2.33", 1),
        ("192.0.9.1", 0),
        ("198.51.100.1", 0),
        ("203.0.113.1", 2),
        (IPv4Address("8.8.8.8"), 2),
    ],
)
def test_the_prefix_with_the_most_specific_list_entry_is_for_an_address(
    address: IPv4Address | str, chosen: int
) -> None:
    listed = (
        pcp.Prefix64("2001:db8:1::/96", ipv4_prefixes=["192.0.0.0/16", "198.51.100.0/24"]),
        pcp.Prefix64("2001:db8:2::/96", ipv4_prefixes=[IPv4Network("192.0.2.0/24")]),
        pcp.Prefix64("2001:db8:3::/96"),
        pcp.Prefix64("2001:db8:4::/96", ipv4_prefixes=["0.0.0.0/0"]),
    )
    assert pcp.select_prefix64((RawOption(200), *listed), address) is listed[chosen]


def test_without_a_prefix_for_an_address_none_is_chosen() -> None:
    assert pcp.select_prefix64((), "192.0.2.33") is None
    assert pcp.select_prefix64([pcp.Prefix64(ipv4_prefixes=["192.0.2.0/24"])], "8.8.8.8") is None


@pytest.mark.requirement("EXT7723-4.1-01")
@pytest.mark.requirement("EXT7723-4.2-01")
def test_the_anycast_addresses_are_those_of_rfc_7723() -> None:
    assert (pcp.ANYCAST_V4, pcp.ANYCAST_V6) == ("192.0.0.9", "2001:1::1")


# --- the stages of a server


@pytest.mark.requirement("PCP-8.2-05")
def test_a_server_reads_the_header_first_and_the_request_then() -> None:
    data = MAP.encode()
    assert pcp.decode_header(data) == pcp.Header(pcp.MAP, 7200, V4)
    assert pcp.decode_request(data) == MAP
    unknown = pcp.UnknownRequest(9, 60, V6, bytes(4))
    assert pcp.decode_header(unknown.encode()) == pcp.Header(9, 60, V6)
    assert pcp.decode_request(unknown.encode()) == unknown


@pytest.mark.parametrize(
    ("octets", "reason", "offset"),
    [
        ("02", "too short for a PCP header", 1),
        ("0281" + "00" * 58, "a response, not a request", 1),
        ("0301" + "00" * 58, "version 3 is not PCP", 0),
        ("0001" + "00" * 22, "version 0 is not PCP", 0),
        ("0201" + "00" * 21, "too short for a PCP header", 23),
        ("0201" + "00" * 23, "25 octets are no multiple of 4", 25),
        ("0201" + "00" * 1102, "1104 octets; PCP's limit is 1100", 1100),
    ],
)
def test_a_header_is_refused_with_reason_and_offset(octets: str, reason: str, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        pcp.decode_header(bytes.fromhex(octets))
    assert (caught.value.reason, caught.value.offset) == (reason, offset)


@pytest.mark.parametrize(
    ("data", "size"), [(b"", 24), (b"\3", 24), (b"\3\1" + bytes(24), 28), (MAP.encode() + bytes(1041), 1100)]
)
def test_an_error_reply_has_a_header_whole_words_and_at_most_1100_octets(data: bytes, size: int) -> None:
    reply = pcp.error_reply(data, Code.UNSUPP_VERSION, 1800, 9)
    assert len(reply) == size
    assert reply[:12] == bytes((2, 0x80 | data[1] if len(data) > 1 else 0x80, 0, 1)) + b"\0\0\7\x08" + b"\0\0\0\x09"
    assert reply[12:] == (data + bytes(24))[12:size]


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
            (
                "PCP MAP request: TCP 80 of 192.168.1.10: suggests 0.0.0.0 port 0, for 7200 s, "
                "DESCRIPTION ('abc'), option 200 (3 octets)"
            ),
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
        (MESSAGES[11], "PCP request with opcode 9 from 192.168.1.10, 4 octets"),
        (MESSAGES[12], "PCP response to opcode 9, 4 octets, epoch 1 s"),
        (
            MESSAGES[13],
            (
                "PCP PEER request: TCP 80 of 192.168.1.10 with 198.51.100.23 port 443: "
                "suggests 0.0.0.0 port 0, for 7200 s"
            ),
        ),
        (
            MESSAGES[14],
            (
                "PCP PEER response: TCP 80 with 198.51.100.23 port 443: "
                "external 192.168.1.10 port 8080, for 60 s, epoch 1 s"
            ),
        ),
        (
            pcp.PeerResponse(Code.CANNOT_PROVIDE_EXTERNAL, 30, 1, NONCE, Protocol.TCP, 80, 0, V4, 443, V4),
            (
                "PCP PEER response: TCP 80 with 192.168.1.10 port 443: CANNOT_PROVIDE_EXTERNAL "
                "(the gateway cannot give just this external address and port), for 30 s, epoch 1 s"
            ),
        ),
        (MESSAGES[15], "PCP PA request: INITIATION, session 0, sequence 0, NONCE (nonce 7)"),
        (
            MESSAGES[16],
            "PCP PA response: AUTHENTICATION_REQUEST, session 5, sequence 0, epoch 1 s, ID_INDICATOR ('ca1')",
        ),
    ],
)
def test_a_message_describes_itself_in_one_line(message: Message, line: str) -> None:
    assert message.describe() == line


def test_a_datagram_is_described_even_if_it_says_nothing() -> None:
    assert describe(b"\0\0") == "NAT-PMP external address request"
    assert describe(b"") == "0 octets, no message: too short for a PCP header (at octet 0)"
    assert describe(b"\7\7\7") == "3 octets, no message: version 7 is not PCP (at octet 0)"


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_every_golden_datagram_has_a_description_of_one_line(name: str) -> None:
    assert len(describe(octets_of(name)).splitlines()) == 1


# --- round trips


def test_every_class_of_message_and_option_has_a_round_trip() -> None:
    classes = {*typing.get_args(natpmp.Message), *typing.get_args(pcp.Message)}
    assert {type(message) for message in MESSAGES} == classes
    assert set(STRATEGIES) == classes
    assert set(OPTIONS) == {*KINDS.values(), RawOption}


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
@given(st.data())
def test_a_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(STRATEGIES[kind])
    encoded = message.encode()
    decoded = decode(encoded)
    assert decoded == message
    assert type(decoded) is type(message) is kind
    assert hash(decoded) == hash(message)
    assert (message.received, decoded.received) == (None, None)
    assert decoded.encode() == encoded
    if not any(isinstance(option, RawOption) and option.code in KINDS for option in getattr(message, "options", ())):
        assert decode(encoded, strict=True) == message
    assert len(message.describe().splitlines()) == 1


@given(st.lists(options(), max_size=6).map(tuple))
def test_options_survive_the_wire(listed: tuple[Option, ...]) -> None:
    encoded = encode_options(listed)
    assert decode_options(encoded, 0) == listed
    assert len(encoded) % 4 == 0
    assert all(len(option.describe().splitlines()) == 1 for option in listed)


@given(datagrams())
def test_any_octets_are_a_message_that_gives_them_back_or_a_decode_error_and_nothing_else(data: bytes) -> None:
    try:
        message = decode(data)
    except DecodeError as error:
        assert error.reason  # noqa: PT017 - the success is as good
        assert 0 <= error.offset <= len(data)  # noqa: PT017
    else:
        assert message.encode() == data
        assert message.received in (None, data)
        assert decode(message.encode()) == message
    assert len(describe(data).splitlines()) == 1
    assert is_response(data) in (True, False)


# A version error of 12 octets, and a SUCCESS with an option that does not belong there, whose reserved octet is set.
SHORT_ERROR = bytes.fromhex("0280000100000708000004d2")
MISPLACED = pcp.PeerResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4, 443, V4).encode() + bytes.fromhex("02ff0000")


@example(SHORT_ERROR)
@example(MISPLACED)
@given(datagrams())
def test_strict_decoding_takes_a_part_of_what_the_tolerant_takes_and_reads_it_alike(data: bytes) -> None:
    try:
        strict = decode(data, strict=True)
    except DecodeError as error:
        assert 0 <= error.offset <= len(data)  # noqa: PT017
    else:
        assert decode(data) == strict


@given(datagrams())
def test_what_a_server_cannot_read_it_can_answer(data: bytes) -> None:
    """Whatever came, an error reply to it is an error of PCP, which repeats its opcode."""
    reply = pcp.error_reply(data, Code.MALFORMED_REQUEST, 1800, 9)
    message = decode(reply)
    assert isinstance(message, pcp.Response)
    assert message.result_code == Code.MALFORMED_REQUEST
    assert message.encode() == reply
    assert reply[1] & 0x7F == (data[1] & 0x7F if len(data) > 1 else 0)


@pytest.mark.parametrize(
    "options_octets",
    [
        "020001f4",
        "02ff0000",
        "8100001c 000c 0064ff9b0000000000000000 0002 0021c0000200 0018c0000207",
        "01000004 c0a80114",
    ],
)
def test_an_error_that_copies_a_faulty_request_is_what_a_conforming_server_sends(options_octets: str) -> None:
    """RFC 6887 section 8.2: the reply is a copy of the request, whatever was wrong with it."""
    data = MAP.encode() + bytes.fromhex(options_octets)
    reply = pcp.error_reply(data, Code.MALFORMED_OPTION, 1800, 9)
    assert decode(reply, strict=True) == decode(reply)


def test_a_success_with_an_option_that_makes_no_sense_is_not_decoded_strictly() -> None:
    data = pcp.MapResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4).encode() + RawOption(1).encode()
    assert isinstance(decode(data), pcp.MapResponse)
    with pytest.raises(DecodeError, match=r"malformed option 1 \(at octet 60\)"):
        decode(data, strict=True)


def test_a_success_with_an_option_of_another_opcode_is_not_decoded_strictly() -> None:
    data = pcp.MapResponse(Code.SUCCESS, 0, 0, NONCE, 6, 80, 80, V4).encode() + pcp.Nonce(7).encode()
    assert isinstance(decode(data), pcp.MapResponse)
    with pytest.raises(DecodeError):
        decode(data, strict=True)


def test_an_unknown_option_behind_the_authentication_tag_is_a_fault() -> None:
    with pytest.raises(LocalProtocolError):
        attrs.evolve(MAP, options=(TAG, RawOption(200)))


@pytest.mark.parametrize(
    "option",
    [
        lambda: pcp.EapPayload(bytes(65536)),
        lambda: pcp.AuthenticationTag(1, 2, 3, bytes(65525)),
        lambda: pcp.PaAuthenticationTag(3, bytes(65533)),
        lambda: pcp.Prefix64(ipv4_prefixes=["192.0.2.0/24"] * 11000),
    ],
)
def test_an_option_too_long_for_its_length_field_cannot_be_made(option: typing.Callable[[], Option]) -> None:
    with pytest.raises(LocalProtocolError):
        pcp.AnnounceResponse(Code.NO_RESOURCES, options=(option(),))


def test_no_pcp_message_offers_version_0_which_is_nat_pmp() -> None:
    with pytest.raises(LocalProtocolError):
        pcp.ErrorResponse(1, Code.UNSUPP_VERSION, version=0)


@given(st.sampled_from(READABLE), st.data())
def test_one_changed_octet_is_a_message_or_a_decode_error_and_nothing_else(name: str, data: st.DataObject) -> None:
    octets = bytearray(octets_of(name))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(bytes(octets))
    except DecodeError as error:
        assert 0 <= error.offset <= len(octets)  # noqa: PT017
    else:
        assert message.encode() == octets


@pytest.mark.parametrize("code", [1, 5])
def test_a_result_that_has_no_body_is_not_put_into_one(code: int) -> None:
    with pytest.raises(LocalProtocolError, match="ErrorResponse is for that"):
        natpmp.MapResponse(Protocol.TCP, natpmp.ResultCode(code), 0, 80)
    with pytest.raises(LocalProtocolError, match="ErrorResponse is for that"):
        natpmp.ExternalAddressResponse(natpmp.ResultCode(code), 0)


def test_an_error_reply_has_times_that_fit() -> None:
    for lifetime, epoch in ((2**32, 0), (0, -1)):
        with pytest.raises(LocalProtocolError, match="lifetime and epoch must be from 0"):
            pcp.error_reply(b"\2\1", pcp.ResultCode.MALFORMED_REQUEST, lifetime, epoch)


def test_only_ipv4_addresses_are_synthesized() -> None:
    with pytest.raises(LocalProtocolError, match="not an IPv4 address"):
        pcp.Prefix64().synthesize("2001:db8::1")


def test_a_fault_behind_an_option_that_was_shortened_is_reported_where_it_stands() -> None:
    request = pcp.MapRequest("192.168.1.10", bytes(12), Protocol.TCP, 80).encode()
    invalid_entry = bytes.fromhex("81000016 000c 000000000000000000000000 0001 0021c0000200 0000")
    data = request[:60] + invalid_entry + pcp.PreferFailure().encode()
    fault = pcp.find_fault(pcp.decode_request(data))
    assert fault is not None
    assert (fault.reason, fault.offset) == ("PREFER_FAILURE needs a suggested_external_port", 88)
