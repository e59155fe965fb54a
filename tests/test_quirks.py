"""Gateways that break the rules on demand: what each quirk puts on the wire, or does to the table."""

from __future__ import annotations

import random
import typing
from collections.abc import Callable
from functools import partial

import pytest

from helpers import EXTERNAL, LOCAL, SERVER, Middle, endpoint, pcp_peer
from natpmp_sansio import (
    Address,
    Gateway,
    GatewayConfig,
    LocalProtocolError,
    Protocol,
    Quirk,
    SendDatagram,
    decode,
    natpmp,
    pcp,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
HOST: Address = (LOCAL, 40001)
OTHER: Address = ("192.168.1.8", 40002)
NONCE = bytes(range(12))
OTHER_NONCE = bytes(range(12, 24))
NP, Code = natpmp.ResultCode, pcp.ResultCode
ASK_ADDRESS = natpmp.ExternalAddressRequest().encode()


class Box:
    """A gateway with quirks, whose epoch is 0 at time 0, and what it answers."""

    def __init__(self, *quirks: Quirk, external: str | None = EXTERNAL, config: GatewayConfig | None = None) -> None:
        self.gateway = Gateway(external, address=SERVER, config=config, quirks=quirks, rng=Middle(2))
        self.gateway.reboot(0.0)
        list(self.gateway.outputs())

    def ask(self, data: bytes, now: float = 0.0, source: Address = HOST) -> bytes | None:
        assert self.gateway.receive_datagram(data, source, now) is True
        answers = [
            each.data for each in self.gateway.outputs() if isinstance(each, SendDatagram) and each.addr == source
        ]
        assert len(answers) <= 1
        return answers[0] if answers else None

    def natpmp(
        self, protocol: Protocol, port: int, suggested: int = 0, lifetime: int = 7200, now: float = 0.0
    ) -> tuple[int, ...]:
        """Result code, internal port, external port and lifetime."""
        answer = self.ask(natpmp.MapRequest(protocol, port, suggested, lifetime).encode(), now)
        assert answer is not None
        message = decode(answer)
        assert isinstance(message, natpmp.MapResponse)
        return (message.result_code, message.internal_port, message.external_port, message.lifetime)

    def pcp(
        self,
        protocol: Protocol,
        port: int,
        suggested: int = 0,
        lifetime: int = 7200,
        now: float = 0.0,
        *,
        nonce: bytes = NONCE,
        options: tuple[pcp.Option, ...] = (),
        source: Address = HOST,
    ) -> tuple[int, int, int]:
        """Result code, external port and lifetime."""
        request = pcp.MapRequest(source[0], nonce, protocol, port, suggested, lifetime=lifetime, options=options)
        answer = self.ask(request.encode(), now, source)
        assert answer is not None
        message = decode(answer)
        assert isinstance(message, pcp.MapResponse)
        return (message.result_code, message.external_port, message.lifetime)

    def ports(self) -> list[tuple[int, int]]:
        """Protocol and external port of all mappings."""
        return [(mapping.protocol, mapping.external.port) for mapping in self.gateway.mappings]

    def readdress(self, now: float) -> None:
        """Give it another external address, long after its first announcements."""
        self.gateway.handle_timeout(now)
        list(self.gateway.outputs())
        self.gateway.set_external_address("203.0.113.9", now)

    def announced(self) -> list[str]:
        groups = [
            each.data
            for each in self.gateway.outputs()
            if isinstance(each, SendDatagram) and each.addr[0] == "224.0.0.1"
        ]
        return [data.hex() for data in groups]


ASK_MAP = pcp.MapRequest(LOCAL, NONCE, TCP, 80).encode()
ASK_ANNOUNCE = pcp.AnnounceRequest(LOCAL).encode()

Story = Callable[[], None]
STORIES: dict[Quirk, Story] = {}


def story(quirk: Quirk) -> Callable[[Story], Story]:
    def keep(function: Story) -> Story:
        STORIES[quirk] = function
        return function

    return keep


@pytest.mark.parametrize("quirk", Quirk, ids=lambda quirk: quirk.name.lower())
def test_a_quirk_does_what_it_says(quirk: Quirk) -> None:
    STORIES[quirk]()


def test_every_quirk_says_what_it_does_and_where_it_was_seen() -> None:
    for quirk in Quirk:
        what, separator, where = quirk.value.rpartition("; " if ";" in quirk.value else " (")
        assert separator, quirk
        assert len(what.split()) > 3, quirk
        assert where, quirk


def test_without_quirks_a_gateway_keeps_the_rules() -> None:
    assert Box().natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 7200)
    assert Box().pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


# --- other answers to what is not spoken


@story(Quirk.SILENT_TO_PCP)
def _silent_to_pcp() -> None:
    box = Box(Quirk.SILENT_TO_PCP)
    assert box.ask(ASK_MAP) is None
    assert box.natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 7200)


@story(Quirk.SILENT_TO_NAT_PMP)
def _silent_to_natpmp() -> None:
    box = Box(Quirk.SILENT_TO_NAT_PMP)
    assert box.ask(ASK_ADDRESS) is None
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


@story(Quirk.SWITCHED_OFF)
def _switched_off() -> None:
    box = Box(Quirk.SWITCHED_OFF)
    assert box.ask(ASK_ADDRESS) == natpmp.ExternalAddressResponse(NP.NOT_AUTHORIZED, 0).encode()
    assert box.natpmp(TCP, 80) == (NP.NOT_AUTHORIZED, 80, 0, 0)
    assert box.pcp(TCP, 80) == (Code.NOT_AUTHORIZED, 0, 1800)
    assert box.ask(ASK_ANNOUNCE) == pcp.AnnounceResponse(Code.NOT_AUTHORIZED, 1800, 0).encode()


def _refuses_pcp(quirk: Quirk, to_map: str, to_announce: str) -> None:
    box = Box(quirk)
    assert box.ask(ASK_MAP, 9.0) == bytes.fromhex(to_map)
    assert box.ask(ASK_ANNOUNCE, 9.0) == bytes.fromhex(to_announce)
    assert box.natpmp(TCP, 80, 8080, now=9.0) == (NP.SUCCESS, 80, 8080, 7200)


for _quirk, _to_map, _to_announce in (
    (Quirk.VERSION_ERROR_PRINTED, "0000000100000009", "0000000100000009"),
    (Quirk.VERSION_ERROR_ECHOES_OPCODE, "0081000100000009", "0080000100000009"),
    (Quirk.VERSION_ERROR_IN_4_OCTETS, "00800001", "00800001"),
    (Quirk.VERSION_ERROR_IN_FULL, "0080000100000009" + "00" * 52, "0080000100000009" + "00" * 16),
):
    STORIES[_quirk] = partial(_refuses_pcp, _quirk, _to_map, _to_announce)


@story(Quirk.VERSION_ERROR_LITERAL_COPY)
def _version_error_literal_copy() -> None:
    box = Box(Quirk.VERSION_ERROR_LITERAL_COPY)
    assert box.ask(ASK_ADDRESS) == bytes.fromhex("02800001")
    assert box.ask(natpmp.MapRequest(UDP, 80).encode(), 9.0) == bytes.fromhex("028100010000070800000009")
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


@story(Quirk.PCP_ONLY_TRUNCATED)
def _pcp_only_truncated() -> None:
    box = Box(Quirk.PCP_ONLY_TRUNCATED)
    assert box.ask(ASK_ADDRESS) == bytes.fromhex("0280")
    assert box.ask(natpmp.MapRequest(UDP, 80).encode(), 9.0) == bytes.fromhex("028100020050000000000009")
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


@story(Quirk.ANNOUNCE_ANSWERED_IN_NAT_PMP)
def _announce_answered_in_natpmp() -> None:
    box = Box(Quirk.ANNOUNCE_ANSWERED_IN_NAT_PMP)
    assert box.ask(ASK_ANNOUNCE, 9.0) == bytes.fromhex("0080000100000009")
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


@story(Quirk.SHORT_PCP_IN_VERSION_0)
def _short_pcp_in_version_0() -> None:
    box = Box(Quirk.SHORT_PCP_IN_VERSION_0)
    assert box.ask(ASK_MAP[:3]) == bytes.fromhex("00800003") + bytes(20)
    assert box.ask(ASK_MAP + b"\1", 9.0) == bytes.fromhex("008000030000000000000009") + ASK_MAP[12:] + b"\1\0\0\0"
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


# --- other answers to what is spoken


@story(Quirk.ERRORS_IN_8_OCTETS)
def _errors_in_8_octets() -> None:
    box = Box(Quirk.ERRORS_IN_8_OCTETS, external=None)
    assert box.ask(ASK_ADDRESS, 9.0) == bytes.fromhex("0080000300000009")
    assert box.ask(natpmp.MapRequest(TCP, 80).encode(), 9.0) == bytes.fromhex("0082000300000009")
    assert len(Box(Quirk.ERRORS_IN_8_OCTETS).ask(ASK_ADDRESS) or b"") == 12


@story(Quirk.ERRORS_WITH_LIVE_FIELDS)
def _errors_with_live_fields() -> None:
    box = Box(Quirk.ERRORS_WITH_LIVE_FIELDS, external=None)
    assert box.natpmp(TCP, 80, 8080) == (NP.NETWORK_FAILURE, 80, 8080, 7200)
    assert box.natpmp(TCP, 80) == (NP.NETWORK_FAILURE, 80, 80, 7200)
    assert box.ask(ASK_ADDRESS) == natpmp.ExternalAddressResponse(NP.NETWORK_FAILURE, 0).encode()


@story(Quirk.ERRORS_WITHOUT_PORT)
def _errors_without_port() -> None:
    assert Box(Quirk.ERRORS_WITHOUT_PORT, external=None).natpmp(TCP, 80) == (NP.NETWORK_FAILURE, 0, 0, 0)
    assert Box(Quirk.ERRORS_WITHOUT_PORT).natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 7200)


@story(Quirk.ERRORS_LAST_0_SECONDS)
def _errors_last_0_seconds() -> None:
    box = Box(Quirk.ERRORS_LAST_0_SECONDS, config=GatewayConfig(allow_map=False))
    assert box.pcp(TCP, 80) == (Code.NOT_AUTHORIZED, 0, 0)
    assert Box(Quirk.ERRORS_LAST_0_SECONDS, external=None).pcp(TCP, 80) == (Code.NETWORK_FAILURE, 0, 30)
    assert Box(Quirk.ERRORS_LAST_0_SECONDS, external=None).natpmp(TCP, 80)[0] == NP.NETWORK_FAILURE


@story(Quirk.UNKNOWN_RESULT_CODES)
def _unknown_result_codes() -> None:
    box = Box(Quirk.UNKNOWN_RESULT_CODES, external=None)
    assert box.pcp(TCP, 80)[0] == 66
    assert box.natpmp(TCP, 80)[0] == 66
    assert Box(Quirk.UNKNOWN_RESULT_CODES).pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)
    assert (box.ask(b"\3" + ASK_MAP[1:]) or b"")[3] == Code.UNSUPP_VERSION


@story(Quirk.RESPONSE_BIT_MISSING)
def _response_bit_missing() -> None:
    box = Box(Quirk.RESPONSE_BIT_MISSING)
    assert (box.ask(ASK_ADDRESS) or b"")[:4] == bytes(4)
    assert box.pcp(TCP, 80, 8080) == (Code.SUCCESS, 8080, 7200)


@story(Quirk.TRAILING_OCTETS)
def _trailing_octets() -> None:
    assert len(Box(Quirk.TRAILING_OCTETS).ask(ASK_ADDRESS) or b"") == 16


@story(Quirk.OPTIONS_ECHOED)
def _options_echoed() -> None:
    box = Box(Quirk.OPTIONS_ECHOED, config=GatewayConfig(max_port_set=1))
    unknown = pcp.RawOption(200, b"what?")
    request = pcp.MapRequest(LOCAL, NONCE, TCP, 80, options=(pcp.PortSet(9, 80), unknown)).encode()
    assert (box.ask(request) or b"")[60:] == request[60:]
    assert len(box.ask(ASK_ADDRESS) or b"") == 12


@story(Quirk.PORTS_CUT_TO_8_BITS)
def _ports_cut_to_8_bits() -> None:
    box = Box(Quirk.PORTS_CUT_TO_8_BITS)
    assert box.natpmp(TCP, 0x1234, 0x5678) == (NP.SUCCESS, 0x34, 0x78, 7200)
    assert box.ports() == [(TCP, 0x5678)]
    assert len(box.ask(ASK_ADDRESS) or b"") == 12


@story(Quirk.ZERO_LIFETIME_GRANTED)
def _zero_lifetime_granted() -> None:
    box = Box(Quirk.ZERO_LIFETIME_GRANTED)
    assert box.natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 0)
    assert box.pcp(UDP, 80, 8080) == (Code.SUCCESS, 8080, 0)
    assert box.pcp(UDP, 80, lifetime=0) == (Code.SUCCESS, 0, 0)


@story(Quirk.ZERO_PORT_GRANTED)
def _zero_port_granted() -> None:
    box = Box(Quirk.ZERO_PORT_GRANTED)
    assert box.natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 0, 7200)
    assert box.pcp(UDP, 80, 8080) == (Code.SUCCESS, 0, 7200)


@story(Quirk.DELETE_ECHOES_EXTERNAL_PORT)
def _delete_echoes_external_port() -> None:
    box = Box(Quirk.DELETE_ECHOES_EXTERNAL_PORT)
    box.natpmp(TCP, 80, 8080)
    assert box.natpmp(TCP, 80, 8080, 0) == (NP.SUCCESS, 80, 8080, 0)


def test_unknown_opcodes_are_refused_in_8_octets_as_well() -> None:
    box = Box(Quirk.ERRORS_IN_8_OCTETS)
    assert box.ask(b"\0\7" + bytes(20), 9.0) == bytes.fromhex("0087000500000009")
    assert box.ask(ASK_ADDRESS, 9.0) == bytes.fromhex("0080000000000009cb007105")


def test_a_short_pcp_request_is_answered_in_version_0_from_its_third_octet_to_1100() -> None:
    box = Box(Quirk.SHORT_PCP_IN_VERSION_0)
    assert box.ask(ASK_MAP[:2]) is None
    assert box.ask(ASK_MAP.ljust(1501, b"\1"), 9.0) == (
        bytes.fromhex("008000030000000000000009") + ASK_MAP[12:].ljust(1088, b"\1")
    )
    assert len(box.ask(ASK_ADDRESS) or b"") == 12


def test_a_delete_all_or_of_nothing_has_no_external_port_to_echo() -> None:
    box = Box(Quirk.DELETE_ECHOES_EXTERNAL_PORT)
    box.natpmp(TCP, 80, 8080)
    assert box.natpmp(TCP, 81, 9090, 0) == (NP.SUCCESS, 81, 0, 0)
    assert box.natpmp(TCP, 80, 9090, 0) == (NP.SUCCESS, 80, 8080, 0)  # its own, not the one in the request
    assert box.natpmp(TCP, 0, 9090, 0) == (NP.SUCCESS, 0, 0, 0)


# --- epochs and announcements


@story(Quirk.EPOCH_ALWAYS_0)
def _epoch_always_0() -> None:
    assert Box(Quirk.EPOCH_ALWAYS_0).ask(ASK_ANNOUNCE, 99.0) == pcp.AnnounceResponse(Code.SUCCESS, 0, 0).encode()


@story(Quirk.EPOCH_IN_UNIX_TIME)
def _epoch_in_unix_time() -> None:
    expected = pcp.AnnounceResponse(Code.SUCCESS, 0, 1_700_000_099).encode()
    assert Box(Quirk.EPOCH_IN_UNIX_TIME).ask(ASK_ANNOUNCE, 99.0) == expected


@story(Quirk.EPOCH_SURVIVES_REBOOT)
def _epoch_survives_reboot() -> None:
    box = Box(Quirk.EPOCH_SURVIVES_REBOOT)
    box.natpmp(TCP, 80)
    box.gateway.reboot(50.0)
    assert box.announced()[-1] == pcp.AnnounceResponse(Code.SUCCESS, 0, 50).encode().hex()
    assert box.ports() == []


@story(Quirk.ANNOUNCES_THE_OLD_EPOCH)
def _announces_the_old_epoch() -> None:
    box = Box(Quirk.ANNOUNCES_THE_OLD_EPOCH)
    box.readdress(50.0)
    assert box.announced() == ["0080000000000032cb007109", "028000000000000000000032" + "00" * 12]
    assert box.ask(ASK_ADDRESS, 51.0) == bytes.fromhex("0080000000000001cb007109")


@story(Quirk.NEVER_ANNOUNCES)
def _never_announces() -> None:
    box = Box(Quirk.NEVER_ANNOUNCES)
    box.gateway.reboot(50.0)
    box.gateway.set_external_address("203.0.113.9", 60.0)
    assert box.announced() == []
    assert box.gateway.next_timeout() is None


@story(Quirk.ADDRESS_CHANGE_KEEPS_EPOCH)
def _address_change_keeps_epoch() -> None:
    box = Box(Quirk.ADDRESS_CHANGE_KEEPS_EPOCH)
    box.readdress(50.0)
    assert box.announced()[0] == "0080000000000032cb007109"


@pytest.mark.parametrize(
    ("quirk", "openings"),
    [
        (Quirk.SILENT_TO_PCP, {"0080"}),
        (Quirk.VERSION_ERROR_PRINTED, {"0080"}),
        (Quirk.VERSION_ERROR_ECHOES_OPCODE, {"0080"}),
        (Quirk.VERSION_ERROR_IN_4_OCTETS, {"0080"}),
        (Quirk.VERSION_ERROR_IN_FULL, {"0080"}),
        (Quirk.SILENT_TO_NAT_PMP, {"0280"}),
        (Quirk.VERSION_ERROR_LITERAL_COPY, {"0280"}),
        (Quirk.PCP_ONLY_TRUNCATED, {"0280"}),
        (Quirk.SWITCHED_OFF, {"0080", "0280"}),
    ],
    ids=lambda each: each.name.lower() if isinstance(each, Quirk) else "",
)
def test_who_does_not_speak_a_version_does_not_announce_itself_in_it(quirk: Quirk, openings: set[str]) -> None:
    box = Box(quirk)
    box.gateway.reboot(50.0)
    assert {data[:4] for data in box.announced()} == openings


def test_who_does_not_speak_pcp_starts_no_epoch_anew_for_another_address() -> None:
    box = Box(Quirk.SILENT_TO_PCP)
    box.readdress(50.0)
    assert box.announced() == ["0080000000000032cb007109"]


def test_what_is_no_quirk_is_the_callers_mistake() -> None:
    with pytest.raises(LocalProtocolError, match=r"quirks must be members of Quirk, not \['silent-to-pcp'\]"):
        Gateway(EXTERNAL, address=SERVER, quirks=typing.cast("list[Quirk]", ["silent-to-pcp"]))


# --- another table


@story(Quirk.LIFETIME_60)
def _lifetime_60() -> None:
    box = Box(Quirk.LIFETIME_60)
    assert box.natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 60)
    assert box.pcp(UDP, 80, 8080) == (Code.SUCCESS, 8080, 60)
    assert [mapping.expires_at for mapping in box.gateway.mappings] == [60.0, 60.0]


@story(Quirk.INTERNAL_PORT_0)
def _internal_port_0() -> None:
    box = Box(Quirk.INTERNAL_PORT_0)
    code, internal, external, lifetime = box.natpmp(UDP, 0, 1, 60)
    assert (code, internal, lifetime) == (NP.SUCCESS, 0, 60)
    assert external >= 1024
    assert box.natpmp(TCP, 0, 1, 60, 1.0) == (NP.SUCCESS, 0, external, 60)
    assert box.natpmp(UDP, 0, 1, 60, 45.0) == (NP.SUCCESS, 0, external, 60)
    assert [(mapping.internal.port, mapping.external.port) for mapping in box.gateway.mappings] == [
        (external, external)
    ] * 2
    assert box.natpmp(UDP, 0, 0, 0, 50.0) == (NP.SUCCESS, 0, 0, 0)  # with lifetime 0 it is a delete-all as ever
    assert box.ports() == [(TCP, external)]
    assert box.natpmp(UDP, 80, 8080) == (NP.SUCCESS, 80, 8080, 7200)
    full = Box(Quirk.INTERNAL_PORT_0, config=GatewayConfig(first_port=5351, last_port=5351))
    assert full.natpmp(UDP, 0, 1, 60) == (NP.NOT_AUTHORIZED, 0, 0, 0)


def test_any_port_is_one_that_is_not_mapped_otherwise() -> None:
    box = Box(Quirk.INTERNAL_PORT_0)
    box.natpmp(UDP, 1, 8080)
    external = box.natpmp(UDP, 0, 1, 60)[2]
    assert [(each.internal.port, each.external.port) for each in box.gateway.mappings] == [
        (1, 8080),
        (external, external),
    ]


@story(Quirk.INTERNAL_PORT_0_ASSIGNED)
def _internal_port_0_assigned() -> None:
    code, internal, external, _ = Box(Quirk.INTERNAL_PORT_0_ASSIGNED).natpmp(UDP, 0, 1, 60)
    assert code == NP.SUCCESS
    assert internal == external >= 1024


@story(Quirk.ROTATES_PORTS)
def _rotates_ports() -> None:
    box = Box(Quirk.ROTATES_PORTS)
    assert box.natpmp(TCP, 80, 8080) == (NP.SUCCESS, 80, 8080, 7200)
    assert box.natpmp(TCP, 80, 8080, now=1.0) == (NP.SUCCESS, 80, 8081, 7200)
    assert box.natpmp(TCP, 80, 8080, now=2.0) == (NP.SUCCESS, 80, 8082, 7200)
    assert box.ports() == [(TCP, 8082)]
    lone = Box(Quirk.ROTATES_PORTS, config=GatewayConfig(first_port=9000, last_port=9000))
    assert [lone.natpmp(TCP, 80, now=at)[2] for at in (0.0, 1.0)] == [9000, 9000]


@story(Quirk.IGNORES_SUGGESTIONS)
def _ignores_suggestions() -> None:
    box = Box(Quirk.IGNORES_SUGGESTIONS)
    assert box.natpmp(TCP, 80, 8080)[2] != 8080
    assert box.pcp(UDP, 81, 8080)[1] != 8080


@story(Quirk.COUNTS_PORTS_UP)
def _counts_ports_up() -> None:
    box = Box(Quirk.COUNTS_PORTS_UP)
    assert box.natpmp(TCP, 5000) == (NP.SUCCESS, 5000, 5000, 7200)
    assert box.pcp(TCP, 5000, source=OTHER) == (Code.SUCCESS, 5001, 7200)
    assert box.natpmp(UDP, 80) == (NP.SUCCESS, 80, 1024, 7200)


@story(Quirk.BUSY_PORT_IS_AN_ERROR)
def _busy_port_is_an_error() -> None:
    box = Box(Quirk.BUSY_PORT_IS_AN_ERROR)
    assert box.pcp(TCP, 80, 8080, source=OTHER) == (Code.SUCCESS, 8080, 7200)
    assert box.natpmp(TCP, 80, 8080) == (NP.OUT_OF_RESOURCES, 80, 0, 0)
    assert box.pcp(TCP, 80, 8080) == (Code.NO_RESOURCES, 8080, 30)
    assert box.pcp(TCP, 80)[0] == Code.SUCCESS


@story(Quirk.PREFER_FAILURE_IGNORED)
def _prefer_failure_ignored() -> None:
    box = Box(Quirk.PREFER_FAILURE_IGNORED)
    box.pcp(TCP, 80, 8080, source=OTHER)
    code, port, _ = box.pcp(TCP, 80, 8080, options=(pcp.PreferFailure(),))
    assert (code, port != 8080) == (Code.SUCCESS, True)


@story(Quirk.NONCE_UNCHECKED)
def _nonce_unchecked() -> None:
    box = Box(Quirk.NONCE_UNCHECKED)
    box.pcp(TCP, 80, 8080)
    assert box.pcp(TCP, 80, nonce=OTHER_NONCE) == (Code.SUCCESS, 8080, 7200)
    assert box.pcp(TCP, 80, lifetime=0)[0] == Code.NOT_AUTHORIZED
    assert box.pcp(TCP, 80, lifetime=0, nonce=OTHER_NONCE)[0] == Code.SUCCESS


@story(Quirk.MISSING_DELETE_FAILS)
def _missing_delete_fails() -> None:
    box = Box(Quirk.MISSING_DELETE_FAILS)
    box.pcp(TCP, 80, 8080)
    assert box.pcp(TCP, 80, lifetime=0) == (Code.SUCCESS, 0, 0)
    assert box.pcp(TCP, 80, lifetime=0) == (Code.NO_RESOURCES, 0, 30)


@story(Quirk.DELETE_ALL_TAKES_BOTH)
def _delete_all_takes_both() -> None:
    box = Box(Quirk.DELETE_ALL_TAKES_BOTH)
    box.natpmp(TCP, 80, 8080)
    box.natpmp(UDP, 81, 8081)
    box.natpmp(UDP, 0, 0, 0)
    assert box.ports() == []


@story(Quirk.RENEWAL_DOES_NOT_EXTEND)
def _renewal_does_not_extend() -> None:
    box = Box(Quirk.RENEWAL_DOES_NOT_EXTEND)
    box.natpmp(TCP, 80, 8080, 600)
    assert box.natpmp(TCP, 80, 8080, 600, 300.0) == (NP.SUCCESS, 80, 8080, 600)
    assert [mapping.expires_at for mapping in box.gateway.mappings] == [600.0]


@story(Quirk.RENEWAL_DELETES)
def _renewal_deletes() -> None:
    box = Box(Quirk.RENEWAL_DELETES)
    box.pcp(TCP, 80, 8080)
    assert box.pcp(TCP, 80, 8080, now=1.0) == (Code.SUCCESS, 8080, 7200)
    assert box.ports() == []


@story(Quirk.PINHOLE_NOT_RENEWABLE)
def _pinhole_not_renewable() -> None:
    source: Address = ("2001:db8:1::10", 40003, 0, 0)
    gateway = Gateway(None, address=("fe80::1", 5351, 0, 2), quirks=[Quirk.PINHOLE_NOT_RENEWABLE])
    box = Box()
    box.gateway = gateway
    assert box.pcp(TCP, 80, source=source) == (Code.SUCCESS, 80, 7200)
    assert box.pcp(TCP, 80, now=1.0, source=source) == (Code.NO_RESOURCES, 0, 30)


@story(Quirk.UDP_RENEWAL_DROPS_TCP)
def _udp_renewal_drops_tcp() -> None:
    box = Box(Quirk.UDP_RENEWAL_DROPS_TCP)
    box.pcp(UDP, 80, 8080)
    box.pcp(TCP, 80, 8080)
    box.pcp(UDP, 80, 8080, now=1.0)
    assert box.ports() == [(UDP, 8080)]
    assert box.pcp(TCP, 80, 8080, now=2.0) == (Code.SUCCESS, 8080, 7200)
    box.pcp(UDP, 80, lifetime=0, now=3.0)
    assert box.ports() == []
    box.natpmp(TCP, 81, 8081)
    box.natpmp(UDP, 81, 8081)
    box.natpmp(UDP, 81, 0, 0)
    assert box.ports() == []
    assert box.natpmp(UDP, 81, 8081)[0] == NP.SUCCESS
    assert box.natpmp(UDP, 81, 8081)[0] == NP.SUCCESS


def test_two_ways_to_lose_a_mapping_do_not_meet() -> None:
    box = Box(Quirk.DELETE_ALL_TAKES_BOTH, Quirk.UDP_RENEWAL_DROPS_TCP)
    box.natpmp(UDP, 80, 8080)
    box.natpmp(TCP, 80, 8080)
    assert box.natpmp(UDP, 0, 0, 0) == (NP.SUCCESS, 0, 0, 0)
    assert box.ports() == []


def test_what_is_configured_is_not_dropped_with_its_twin() -> None:
    box = Box(Quirk.UDP_RENEWAL_DROPS_TCP)
    box.gateway.add_static(TCP, endpoint(LOCAL, 80), 8080, 0.0)
    for lifetime in (7200, 7200, 0):
        assert box.natpmp(UDP, 80, 8080, lifetime)[0] == NP.SUCCESS
    assert box.ports() == [(TCP, 8080)]


def test_peer_has_no_preference_to_ignore() -> None:
    box = Box(Quirk.PREFER_FAILURE_IGNORED)
    box.pcp(TCP, 80, 8080, source=OTHER)
    reply = pcp_peer(box.gateway, TCP, 80, endpoint("198.51.100.7", 443), 8080)
    assert reply.result_code == Code.CANNOT_PROVIDE_EXTERNAL


def test_any_port_is_the_same_inside_and_outside_whatever_the_dice_say() -> None:
    box = Box(Quirk.INTERNAL_PORT_0_ASSIGNED)
    box.gateway = Gateway(EXTERNAL, address=SERVER, quirks=[Quirk.INTERNAL_PORT_0_ASSIGNED], rng=random.Random(5))
    box.natpmp(TCP, 80, 8080)  # which is not the same
    code, internal, external, lifetime = box.natpmp(UDP, 0, 1, 60)
    assert (code, internal, lifetime) == (NP.SUCCESS, external, 60)
    for protocol, now in ((TCP, 1.0), (UDP, 45.0), (TCP, 46.0)):
        assert box.natpmp(protocol, 0, 1, 60, now) == (NP.SUCCESS, external, external, 60)
    assert box.ports() == [(TCP, 8080), (UDP, external), (TCP, external)]


def test_a_set_that_finds_no_other_ports_stays_where_it_is() -> None:
    """The search for a set is bounded, and all that it sees here are 255 in a row."""
    box = Box(Quirk.ROTATES_PORTS, config=GatewayConfig(first_port=10000, last_port=29999))
    asked = (pcp.PortSet(256, 5),)
    assert box.pcp(TCP, 5, 19500, options=asked) == (Code.SUCCESS, 19500, 7200)
    for port in (19499, 19756, *range(10000, 30000, 255)):
        box.pcp(TCP, port, port, source=OTHER)
    assert box.pcp(TCP, 5, options=asked, now=1.0) == (Code.SUCCESS, 19500, 7200)
    assert box.pcp(TCP, 5, lifetime=0, options=asked, now=2.0) == (Code.SUCCESS, 0, 0)
    assert (TCP, 19500) not in box.ports()
