"""The server role against tests/requirements/vectors.json: every pair of request and response, octet for octet."""

from __future__ import annotations

import json
import pathlib
import typing

import pytest

from helpers import OTHER, OTHER_NONCE, SERVER, V6_SERVER, Middle, drain, endpoint, exchange, pcp_map
from natpmp_sansio import Address, Gateway, GatewayConfig, Protocol, Quirk, pcp

CONTENTS = json.loads((pathlib.Path(__file__).parent / "requirements" / "vectors.json").read_text())
OCTETS = {vector["id"]: bytes.fromhex(vector["hex"]) for vector in CONTENTS["vectors"]}
CONTEXT = CONTENTS["context"]

CLIENT: Address = (CONTEXT["client_ipv4"], 50000)
V6_CLIENT: Address = (CONTEXT["client_ipv6"], 50000, 0, 0)
NOW = float(CONTEXT["epoch"])
TCP = Protocol.TCP
Code = pcp.ResultCode


def make(
    external: str | None = CONTEXT["external_ipv4"], *, address: Address = SERVER, **settings: typing.Any
) -> Gateway:
    """A gateway whose epoch is that of the vectors at `NOW`. `settings` are the gateway's, or its configuration's."""
    own = {name: settings.pop(name) for name in ("policy", "authenticator", "quirks") if name in settings}
    gateway = Gateway(external, address=address, config=GatewayConfig(**settings), rng=Middle(2), **own)
    gateway.reboot(0.0)
    drain(gateway)
    return gateway


def assigning(port: int, **settings: typing.Any) -> Gateway:
    """A gateway that has one port to give."""
    return make(first_port=port, last_port=port, **settings)


def taken(port: int, lifetime: int = 86400, **settings: typing.Any) -> Gateway:
    """A gateway whose port another host has already."""
    gateway = make(**settings)
    assert pcp_map(gateway, TCP, 80, port, lifetime, source=OTHER).external_port == port
    return gateway


def refusing(**settings: typing.Any) -> Gateway:
    return make(policy=lambda message, source: Code.NOT_AUTHORIZED, **settings)


def with_static_mapping() -> Gateway:
    gateway = make()
    gateway.add_static(TCP, endpoint(CLIENT[0], 80), 80, 0.0)
    return gateway


def with_outbound_traffic() -> Gateway:
    """The traffic keeps the client's mapping for 100 s from now on."""
    gateway = make(tcp_idle=100.0)
    pcp_map(gateway, TCP, 80, source=CLIENT)
    gateway.outbound(TCP, endpoint(CLIENT[0], 80), endpoint(CONTEXT["remote_ipv4"], 443), NOW)
    return gateway


def with_another_nonce() -> Gateway:
    gateway = make()
    pcp_map(gateway, TCP, 80, lifetime=1334, nonce=OTHER_NONCE, source=CLIENT)
    return gateway


def with_quota_used_up() -> Gateway:
    gateway = make(max_mappings_per_host=1)
    pcp_map(gateway, TCP, 8080, source=CLIENT)
    return gateway


def with_third_party_ids() -> Gateway:
    return make(allow_third_party=True, third_party_ids=[bytes.fromhex("00001234")])


def start_of_eap(message: pcp.AuthenticationRequest, source: Address, epoch: int) -> pcp.AuthenticationResponse:
    """RFC 7652 section 3.1.1: a session, what it may use, and the question who is there."""
    assert (message.result_code, message.session_id, message.sequence, source) == (Code.INITIATION, 0, 0, CLIENT)
    return pcp.AuthenticationResponse(
        Code.AUTHENTICATION_REQUEST,
        epoch,
        0x5A5A0001,
        0,
        (
            *message.options,
            pcp.Prf(5),
            pcp.MacAlgorithm(12),
            pcp.IdIndicator("ca1"),
            pcp.EapPayload(bytes.fromhex("0101000501")),
        ),
    )


PRINTED, ECHO, COPY = (
    Quirk.VERSION_ERROR_PRINTED,
    Quirk.VERSION_ERROR_ECHOES_OPCODE,
    Quirk.VERSION_ERROR_LITERAL_COPY,
)

# What each pair says about its server, as a gateway in that state.
SERVERS: dict[tuple[str, str], typing.Callable[[], Gateway]] = {
    ("NP-EXT-REQ", "NP-EXT-RSP-OK"): make,
    ("NP-EXT-REQ", "NP-EXT-RSP-NETFAIL"): lambda: make(None),
    ("NP-EXT-REQ", "NP-EXT-RSP-NOTAUTH"): refusing,
    ("NP-MAP-UDP-REQ", "NP-MAP-UDP-RSP-OK"): lambda: assigning(40000),
    ("NP-MAP-TCP-REQ", "NP-MAP-TCP-RSP-OK"): lambda: make(max_lifetime=3600),
    ("NP-MAP-TCP-REQ", "NP-MAP-RSP-NOTAUTH"): refusing,
    ("NP-MAP-UDP-REQ", "NP-MAP-RSP-NETFAIL"): lambda: make(None),
    ("NP-MAP-UDP-REQ", "NP-MAP-RSP-NORES"): lambda: assigning(5351),  # never given out for UDP
    ("NP-MAP-UDP-RESERVED-REQ", "NP-MAP-UDP-RSP-OK"): lambda: assigning(40000),
    ("NP-DEL-UDP-REQ", "NP-DEL-UDP-RSP-OK"): make,
    ("NP-DELALL-TCP-REQ", "NP-DELALL-TCP-RSP-OK"): make,
    ("NP-OPCODE7-REQ", "NP-OPCODE7-RSP"): make,
    ("PCP-MAP-REQ-TCP", "NP-UNSUPPVER-RSP-ERRATUM"): lambda: make(versions=(0,)),
    ("PCP-MAP-REQ-TCP", "NP-UNSUPPVER-RSP-PRINTED"): lambda: make(versions=(0,), quirks=[PRINTED]),
    ("PCP-MAP-REQ-TCP", "NP-UNSUPPVER-RSP-OPECHO"): lambda: make(versions=(0,), quirks=[ECHO]),
    ("NP-EXT-REQ", "PCP-UNSUPPVER-FOR-NATPMP-24"): lambda: make(versions=(2,)),
    ("NP-EXT-REQ", "PCP-UNSUPPVER-FOR-NATPMP-4"): lambda: make(versions=(2,), quirks=[COPY]),
    ("NP-MAP-UDP-REQ", "PCP-UNSUPPVER-FOR-NATPMP-MAP12"): lambda: make(versions=(2,), quirks=[COPY]),
    ("PCP-ANN-REQ-V4", "PCP-ANN-RSP"): make,
    ("PCP-ANN-REQ-LIFE", "PCP-ANN-RSP"): make,
    ("PCP-MAP-REQ-TCP", "PCP-MAP-RSP-OK"): lambda: assigning(40000),
    ("PCP-MAP-REQ-TCP", "PCP-MAP-RSP-STATIC"): with_static_mapping,
    ("PCP-MAP-REQ-V6-FW", "PCP-MAP-RSP-V6-OK"): lambda: make(None, address=V6_SERVER),
    ("PCP-MAP-DEL-REQ", "PCP-MAP-DEL-RSP"): make,
    ("PCP-MAP-DEL-REQ", "PCP-MAP-DEL-RSP-IDLE"): with_outbound_traffic,
    ("PCP-PEER-REQ", "PCP-PEER-RSP-OK"): lambda: assigning(50001),
    ("PCP-PEER-REQ-NAT64", "PCP-PEER-RSP-NAT64"): lambda: assigning(50001, address=V6_SERVER),
    ("PCP-MAP-REQ-PREFERFAIL", "PCP-MAP-RSP-PREFERFAIL"): make,
    ("PCP-MAP-REQ-PREFERFAIL", "PCP-ERR-11-CANNOT-PROVIDE"): lambda: taken(40000, 1334),
    ("PCP-MAP-REQ-DESC", "PCP-MAP-RSP-DESC"): lambda: assigning(40000, max_description=3),
    ("PCP-MAP-REQ-PORTSET", "PCP-MAP-RSP-PORTSET"): lambda: make(first_port=37056, last_port=37087, max_port_set=32),
    ("PCP-MAP-REQ-V3", "PCP-ERR-01-UNSUPP-VERSION"): make,
    ("PCP-MAP-REQ-TCP", "PCP-ERR-02-NOT-AUTHORIZED"): with_another_nonce,
    ("PCP-MAP-REQ-LEN40", "PCP-ERR-03-MALFORMED-REQUEST"): make,
    ("PCP-OPCODE96-REQ", "PCP-ERR-04-UNSUPP-OPCODE"): make,
    ("PCP-MAP-REQ-OPT100", "PCP-ERR-05-UNSUPP-OPTION"): make,
    ("PCP-MAP-REQ-PF-TWICE", "PCP-ERR-06-MALFORMED-OPTION"): make,
    ("PCP-MAP-REQ-TCP", "PCP-ERR-07-NETWORK-FAILURE"): lambda: make(None),
    ("PCP-MAP-REQ-TCP", "PCP-ERR-08-NO-RESOURCES"): lambda: taken(40000, first_port=40000, last_port=40000),
    ("PCP-MAP-REQ-SCTP", "PCP-ERR-09-UNSUPP-PROTOCOL"): make,
    ("PCP-MAP-REQ-TCP", "PCP-ERR-10-USER-EX-QUOTA"): with_quota_used_up,
    ("PCP-PEER-REQ-RECREATE", "PCP-ERR-11-PEER"): lambda: taken(50001),
    ("PCP-MAP-REQ-TPID", "PCP-ERR-24-TPID-UNKNOWN"): with_third_party_ids,
    ("PCP-MAP-REQ-TPID-ALONE", "PCP-ERR-25-TP-MISSING"): with_third_party_ids,
    ("PCP-MAP-REQ-TPID-20BIT", "PCP-ERR-26-TPID-LENGTH"): with_third_party_ids,
    ("PCP-AUTH-INIT", "PCP-AUTH-EAP-REQ"): lambda: make(authenticator=start_of_eap),
    # and three that are not in the list of pairs
    ("NP-EXT-REQ-TRAILING", "NP-EXT-RSP-OK"): make,
    ("PCP-MAP-REQ-RESERVED", "PCP-MAP-RSP-OK"): lambda: assigning(40000),
    ("PCP-MAP-REQ-ADDR-MISMATCH", "PCP-ERR-12-ADDRESS-MISMATCH"): make,
}
FROM_V6 = ("PCP-MAP-REQ-V6-FW", "PCP-PEER-REQ-NAT64")


def test_all_46_pairs_are_asked_here() -> None:
    pairs = {(pair["request"], pair["response"]) for pair in CONTENTS["pairs"]}
    assert len(pairs) == 46
    assert pairs <= SERVERS.keys()


@pytest.mark.requirement("NP-3.2-02")
@pytest.mark.requirement("NP-3.2-04")
@pytest.mark.requirement("NP-3.3-04")
@pytest.mark.requirement("NP-3.4-07")
@pytest.mark.requirement("NP-3.4-08")
@pytest.mark.requirement("NP-3.4-19")
@pytest.mark.requirement("NP-3.5-04")
@pytest.mark.requirement("PCP-7.1-05")
@pytest.mark.requirement("PCP-7.2-05")
@pytest.mark.requirement("PCP-7.2-09")
@pytest.mark.requirement("PCP-7.2-11")
@pytest.mark.requirement("PCP-7.4-03")
@pytest.mark.requirement("PCP-7.4-05")
@pytest.mark.requirement("PCP-7.4-07")
@pytest.mark.requirement("PCP-7.4-08")
@pytest.mark.requirement("PCP-7.4-10")
@pytest.mark.requirement("PCP-7.4-12")
@pytest.mark.requirement("PCP-7.4-15")
@pytest.mark.requirement("PCP-8.2-09")
@pytest.mark.requirement("PCP-11.1-06")
@pytest.mark.requirement("PCP-11.1-14")
@pytest.mark.requirement("PCP-15.1-07")
@pytest.mark.requirement("PCP-A-02")
@pytest.mark.requirement("PCP-A-03")
@pytest.mark.parametrize(("request_name", "response_name"), SERVERS)
def test_a_golden_request_gets_its_golden_answer(request_name: str, response_name: str) -> None:
    gateway = SERVERS[request_name, response_name]()
    answers, _ = exchange(gateway, OCTETS[request_name], NOW, V6_CLIENT if request_name in FROM_V6 else CLIENT)
    assert [answer.hex() for answer in answers] == [OCTETS[response_name].hex()]
