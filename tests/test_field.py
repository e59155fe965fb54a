"""What a client does with the routers that there are: a story for each row of tests/requirements/field.csv, or the
reason why there is none.

    python tests/test_field.py

writes docs/field.md from the rows and the names of these stories.
"""

from __future__ import annotations

import contextlib
import csv
import typing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import (
    EXTERNAL,
    LOCAL,
    OTHER,
    SERVER,
    STRANGER,
    V6_SERVER,
    Middle,
    answer,
    drain,
    endpoint,
    events_of,
    externals,
    held,
    make_client,
    natpmp_answer,
    sends_of,
    times_of,
)
from natpmp_sansio import (
    Address,
    Client,
    Config,
    DoubleNatSuspected,
    Gateway,
    GatewayConfig,
    GatewayRestarted,
    GatewayUnreachable,
    LocalProtocolError,
    MappingChanged,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingRefreshed,
    MappingRenewed,
    PairSplit,
    ProbeCompleted,
    Protocol,
    Quirk,
    Reason,
    Rejected,
    SendDatagram,
    Tolerated,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Link, Simulation
from natpmp_sansio.wire import describe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "field.md"
with (ROOT / "tests" / "requirements" / "field.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))

TCP, UDP = Protocol.TCP, Protocol.UDP
V6_LOCAL = "2001:db8:1::7"
PEER = ("198.51.100.7", 80)
NOT_AUTHORIZED = pcp.ResultCode.NOT_AUTHORIZED
MOVED = "203.0.113.9"

# What the usual story begins with, at a gateway that grants port 2048.
NAT_PMP = (0.0, "the gateway speaks NAT-PMP")
PCP = (0.0, "the gateway speaks PCP")
ADDRESS = (0.0, f"the external address is {EXTERNAL}")
GRANT = (0.0, f"TCP port 8080 is open at {EXTERNAL}:2048 for 7200 s")
ASK_ADDRESS = (0.0, "NAT-PMP external address request")
DELETE = "NAT-PMP delete request: TCP 8080"
PCP_DELETE = f"PCP MAP request: TCP 8080 of {LOCAL}: delete"


def ask(suggested: int = 0, lifetime: int = 7200, what: str = "TCP 8080") -> str:
    return f"NAT-PMP map request: {what}, suggests port {suggested}, for {lifetime} s"


def ask_pcp(suggested: str = "0.0.0.0 port 0", lifetime: int = 7200, what: str = "TCP 8080", more: str = "") -> str:
    return f"PCP MAP request: {what} of {LOCAL}: suggests {suggested}, for {lifetime} s{more}"


def refused(reason: Reason, code: int | None = None, what: str = "TCP port 8080 was refused") -> str:
    return f"{what}: {reason.value}" + ("" if code is None else f" (result code {code})")


class Story:
    """A client, and a gateway with quirks, from 0.0 on. `of_gateway` is what else its configuration says."""

    def __init__(
        self,
        *quirks: Quirk,
        versions: tuple[int, ...] = (2, 0),
        external: str | None = EXTERNAL,
        of_gateway: dict[str, typing.Any] | None = None,
        latency: float = 0.0,
        **config: typing.Any,
    ) -> None:
        self.client = make_client(versions, **config)
        settings = GatewayConfig(**of_gateway or {})
        self.gateway = Gateway(external, address=SERVER, config=settings, quirks=quirks, rng=Middle(2))
        self.sim = Simulation(self.client, self.gateway, latency=latency)

    def until(self, end: float) -> Story:
        self.sim.run_until(end)
        return self

    @property
    def now(self) -> float:
        return self.sim.now

    @property
    def told(self) -> list[tuple[float, str]]:
        """What the client has told, in words."""
        of_the_table = (MappingCreated, MappingRefreshed, MappingExpired, MappingDeleted)
        return [(at, event.describe()) for at, event in self.sim.events if not isinstance(event, of_the_table)]

    @property
    def sent(self) -> list[tuple[float, str]]:
        """What it has sent."""
        return [(at, describe(data)) for at, data in sends_of(self.sim)]

    @property
    def tolerated(self) -> dict[Tolerated, int]:
        return dict(self.client.stats.tolerated)

    @property
    def rejected(self) -> dict[Rejected, int]:
        return dict(self.client.stats.rejected)

    @property
    def retry_at(self) -> float | None:
        """Of the first mapping."""
        return self.client.mappings[0].retry_at


def heard(client: Client, *datagrams: bytes, now: float = 0.0, source: Address = SERVER) -> list[str]:
    """What a client says and sends when it is given these."""
    for data in datagrams:
        assert client.receive_datagram(data, source, now) is True
    sent, events = drain(client)
    return [event.describe() for event in events] + [describe(data) for data in sent]


def asked(client: Client, **parameters: typing.Any) -> bytes:
    """The request for TCP 8080."""
    client.map_port(TCP, 8080, 0.0, **parameters)
    (request,), _ = drain(client)
    return request


# --- versions


@pytest.mark.field("FQ-01")
@pytest.mark.parametrize("error", ["00000001", "00010001", "00600001", "00800001", "00810001"])
@pytest.mark.parametrize("rest", ["", "00000009", "00000009" + "00" * 52])
def test_any_version_error_of_nat_pmp_leads_to_nat_pmp_at_once(error: str, rest: str) -> None:
    client = make_client()
    asked(client)
    assert heard(client, bytes.fromhex(error + rest)) == [NAT_PMP[1], ask()]
    is_short_of_a_bit = error in ("00010001", "00600001")
    assert client.stats.tolerated.get(Tolerated.RESPONSE_BIT_MISSING, 0) == is_short_of_a_bit


@pytest.mark.field("FQ-01")
def test_a_version_error_of_another_opcode_without_the_response_bit_is_nothing_if_strict_or_if_nobody_asked() -> None:
    error = bytes.fromhex("0001000100000009")
    client = make_client(strict=True)
    asked(client)
    assert client.receive_datagram(error, SERVER, 0.0) is False
    assert make_client().receive_datagram(error, SERVER, 0.0) is False


@pytest.mark.field("FQ-02")
@pytest.mark.parametrize(
    ("quirk", "tolerated"),
    [
        (Quirk.PCP_ONLY_TRUNCATED, {Tolerated.FRAGMENT: 1, Tolerated.IRREGULAR: 1}),
        (Quirk.VERSION_ERROR_LITERAL_COPY, {Tolerated.IRREGULAR: 1}),
    ],
)
def test_octets_of_pcp_in_answer_to_nat_pmp_lead_to_pcp(quirk: Quirk, tolerated: dict[Tolerated, int]) -> None:
    story = Story(quirk, versions=(0, 2))
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(60.0).told == [PCP, ADDRESS, GRANT]
    assert story.sent == [(0.0, ask()), (0.0, ask_pcp())]
    assert (story.tolerated, story.rejected) == (tolerated, {})


@pytest.mark.field("FQ-02")
def test_two_octets_of_pcp_in_answer_to_a_question_show_that_it_is_spoken() -> None:
    story = Story(Quirk.PCP_ONLY_TRUNCATED, versions=(0, 2))
    story.client.probe(0.0)
    (completed,) = events_of(story.until(10.0).sim, ProbeCompleted)
    assert completed.versions == (2,)
    assert story.tolerated == {Tolerated.FRAGMENT: 1}


@pytest.mark.field("FQ-02")
def test_strictly_a_fragment_of_pcp_is_no_answer() -> None:
    story = Story(Quirk.PCP_ONLY_TRUNCATED, versions=(0, 2), strict=True)
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(128.0).told[-1] == (127.75, refused(Reason.NO_ANSWER))
    assert {data[:7] for _, data in story.sent} == {"NAT-PMP"}
    assert story.rejected == {Rejected.UNKNOWN: 9}


@pytest.mark.field("FQ-03")
def test_a_probe_of_pcp_that_is_answered_in_nat_pmp_goes_on_in_nat_pmp() -> None:
    story = Story(Quirk.ANNOUNCE_ANSWERED_IN_NAT_PMP)
    story.client.probe(0.0)
    (completed,) = events_of(story.until(10.0).sim, ProbeCompleted)
    assert [(finding.version, finding.reason) for finding in completed.findings] == [
        (2, Reason.UNSUPPORTED_VERSION),
        (0, None),
    ]
    assert (completed.versions, completed.reason, story.rejected) == ((0,), None, {})


@pytest.mark.field("FQ-03", "FQ-39", "MU-55")
def test_a_reboot_that_is_announced_ten_times_in_both_protocols_is_one_restart() -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(100.0, story.gateway.reboot)
    assert story.until(400.0).told == [
        PCP,
        ADDRESS,
        GRANT,
        (100.0, "the gateway seems to have restarted: all mappings are asked for again"),
        (102.5, f"TCP port 8080 stays open at {EXTERNAL}:2048 for 7200 s"),
    ]
    assert sum(sent.target[1] == 5350 for sent in story.sim.sent) == 20
    assert story.sent[1:] == [(102.5, ask_pcp(f"{EXTERNAL} port 2048"))]


@pytest.mark.field("FQ-04", "MU-02")
@pytest.mark.parametrize("versions", [(2,), (2, 0), (0,)])
def test_a_network_failure_that_nobody_asked_about_is_dropped_with_its_epoch(versions: tuple[int, ...]) -> None:
    story = Story(versions=versions)
    story.client.map_port(TCP, 8080, 0.0)
    before = story.until(60.0).told
    for size in (24, 60):
        assert story.sim.inject(story.client, bytes.fromhex("0080000300000000").ljust(size, b"\0"), SERVER)
    assert story.until(100.0).told == before
    assert story.rejected == {Rejected.UNASKED if 0 in versions else Rejected.UNKNOWN: 2}


@pytest.mark.field("MU-03")
def test_who_speaks_what_is_asked_with_24_octets_of_pcp_and_2_of_nat_pmp() -> None:
    client = make_client()
    client.probe(0.0)
    assert [(data[0], len(data)) for data in drain(client)[0]] == [(2, 24), (0, 2)]


@pytest.mark.field("MU-03")
def test_a_version_error_needs_no_ports() -> None:
    client = make_client((0, 2))
    asked(client)
    error = pcp.MapResponse(pcp.ResultCode.UNSUPP_VERSION, 0, 9, bytes(12), TCP, 0, 0, "0.0.0.0").encode()
    assert heard(client, error) == [PCP[1], ask_pcp()]


@pytest.mark.field("MU-15")
def test_a_gateway_without_a_version_error_is_asked_in_pcp_first_and_that_is_all() -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(3600.0).sent == [(0.0, ask_pcp())]


@pytest.mark.field("FQ-41", "MU-39")
@pytest.mark.parametrize("versions", [(2, 0), (0, 2), (2,), (0,)])
def test_version_1_is_never_sent_not_even_if_it_is_offered(versions: tuple[int, ...]) -> None:
    story = Story(versions=versions, of_gateway={"enabled": False})
    story.client.map_port(TCP, 8080, 0.0)
    story.client.probe(0.0)
    for at in (0.0, 1.5, 40.0, 2000.0):
        story.until(at).sim.inject(story.client, bytes.fromhex("0181000100000000" + "00" * 52), SERVER)
    story.until(4000.0)
    assert {data[0] for _, data in sends_of(story.sim)} == set(versions)


# --- errors


@pytest.mark.field("FQ-05")
def test_an_error_of_8_octets_is_a_refusal() -> None:
    story = Story(Quirk.ERRORS_IN_8_OCTETS, versions=(0,), external=None)
    story.client.map_port(TCP, 8080, 0.0)
    no = refused(Reason.NETWORK_FAILURE, 3)
    assert story.until(31.0).told == [NAT_PMP, (0.0, no), (30.0, no)]


@pytest.mark.field("MU-14")
def test_an_unsupported_opcode_is_a_refusal_for_half_an_hour_without_an_epoch() -> None:
    client = make_client((0,))
    asked(client)
    assert heard(client, bytes.fromhex("0082000500000064")) == [NAT_PMP[1], refused(Reason.UNSUPPORTED_OPCODE, 5)]
    assert client.mappings[0].retry_at == 1800.0
    restarted = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 3, IPv4Address(EXTERNAL)).encode()
    assert heard(client, restarted, now=1.0) == [ADDRESS[1]]  # 3 s after 100 would be a restart


@pytest.mark.field("FQ-06")
def test_answers_without_the_response_bit_are_accepted_while_they_are_awaited() -> None:
    story = Story(Quirk.RESPONSE_BIT_MISSING, versions=(0,))
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(1.0).told == [NAT_PMP, ADDRESS, GRANT]
    assert story.tolerated == {Tolerated.RESPONSE_BIT_MISSING: 2}
    unasked = b"\0\0" + natpmp_answer(b"\0\0")[2:]
    assert story.sim.inject(story.client, unasked, SERVER) is False


@pytest.mark.field("FQ-06")
def test_strictly_an_answer_without_the_response_bit_is_none() -> None:
    story = Story(Quirk.RESPONSE_BIT_MISSING, versions=(0,), strict=True)
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(128.0).told[-1] == (127.75, refused(Reason.NO_ANSWER))
    assert (story.tolerated, story.rejected) == ({}, {})


@pytest.mark.field("FQ-07")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_an_unknown_result_code_is_a_refusal_and_keeps_its_number(versions: tuple[int, ...]) -> None:
    story = Story(Quirk.UNKNOWN_RESULT_CODES, versions=versions, of_gateway={"allow_map": False})
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(1.0).told[1:] == [(0.0, refused(Reason.OTHER, 66))]
    assert (story.retry_at, story.tolerated) == (1800.0, {Tolerated.UNKNOWN_RESULT: 1})


@pytest.mark.field("FQ-08", "MU-09", "MU-37")
@pytest.mark.parametrize("quirk", [Quirk.ERRORS_WITH_LIVE_FIELDS, Quirk.ERRORS_WITHOUT_PORT])
def test_an_error_is_judged_by_its_result(quirk: Quirk) -> None:
    story = Story(quirk, versions=(0,), of_gateway={"allow_map": False})
    story.client.map_port(TCP, 8080, 0.0, external_port=5000)
    assert story.until(1.0).told == [NAT_PMP, (0.0, refused(Reason.NOT_AUTHORIZED, 2))]
    assert (story.retry_at, story.tolerated, story.rejected) == (1800.0, {}, {})


@pytest.mark.field("MU-37")
def test_an_error_of_pcp_may_name_any_external_endpoint() -> None:
    client = make_client()
    error = answer(asked(client), result_code=NOT_AUTHORIZED, lifetime=0, external_port=65535)
    assert heard(client, error) == [PCP[1], refused(Reason.NOT_AUTHORIZED, 2)]


@pytest.mark.field("FQ-32", "MU-04")
@pytest.mark.parametrize(("lifetime", "retries"), [(0, [0.0, 30.0, 60.0]), (30, [0.0, 30.0, 60.0]), (86400, [0.0])])
def test_an_error_lasts_30_seconds_at_least_and_half_an_hour_at_most(lifetime: int, retries: list[float]) -> None:
    client = make_client()
    sim = Simulation(client)
    client.map_port(TCP, 8080, 0.0)
    for at in (0.0, 30.0, 60.0):
        sim.run_until(at)
        for sent_at, request in sends_of(sim)[-1:]:
            if sent_at == at:
                refusal = answer(request, result_code=NOT_AUTHORIZED, lifetime=lifetime, epoch=1000 + int(at))
                client.receive_datagram(refusal, SERVER, at)
    sim.run_until(61.0)
    assert [at for at, _ in sends_of(sim)] == retries
    assert client.stats.tolerated == ({Tolerated.SHORT_ERROR: 3} if lifetime == 0 else {})
    if lifetime == 86400:
        assert client.mappings[0].retry_at == 1800.0


@pytest.mark.field("FQ-17")
def test_a_gateway_with_port_mapping_switched_off_is_asked_every_half_hour_and_says_so_of_both_protocols() -> None:
    story = Story(Quirk.SWITCHED_OFF)
    story.client.map_port(TCP, 8080, 0.0)
    no = refused(Reason.NOT_AUTHORIZED, 2)
    assert story.until(3700.0).told == [PCP, (0.0, no), (1800.0, no), (3600.0, no)]
    assert len(story.sent) == 3
    story.client.probe(3700.0)
    (completed,) = events_of(story.until(3701.0).sim, ProbeCompleted)
    assert (completed.versions, completed.reason) == ((2, 0), Reason.NOT_AUTHORIZED)


@pytest.mark.field("FQ-21")
def test_another_nat_in_between_is_explained_and_not_gone_round() -> None:
    story = Story()
    story.sim.connect(story.client, story.gateway, Link(source=("192.168.1.66", 61000)))
    story.client.map_port(TCP, 8080, 0.0)
    no = refused(Reason.ADDRESS_MISMATCH, 12)
    assert story.until(1801.0).told == [PCP, (0.0, no), (1800.0, no)]
    assert story.sent == [(0.0, ask_pcp()), (1800.0, ask_pcp())]
    story.client.probe(1801.0)
    (completed,) = events_of(story.until(1802.0).sim, ProbeCompleted)
    assert (completed.versions, completed.reason) == ((2, 0), Reason.ADDRESS_MISMATCH)


@pytest.mark.field("MU-25")
def test_a_probe_that_succeeds_proves_no_mapping() -> None:
    client = make_client((2,))
    client.probe(0.0)
    drain(client)
    announcement = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 9).encode()
    assert heard(client, announcement) == ["the gateway speaks PCP"]
    mismatch = answer(asked(client), result_code=pcp.ResultCode.ADDRESS_MISMATCH, lifetime=0, epoch=9)
    assert heard(client, mismatch) == [PCP[1], refused(Reason.ADDRESS_MISMATCH, 12)]


@pytest.mark.field("FQ-47")
def test_a_network_failure_names_both_causes_and_is_over_as_soon_as_the_gateway_says_so() -> None:
    story = Story(external=None)
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(40.0, story.gateway.set_external_address, EXTERNAL)
    no = refused(Reason.NETWORK_FAILURE, 7)
    assert "external address" in no
    assert "firewall" in no
    assert story.until(60.0).told == [
        PCP,
        (0.0, no),
        (30.0, no),
        (40.0, ADDRESS[1]),
        (40.0, "the gateway seems to have restarted: all mappings are asked for again"),
        (42.5, GRANT[1]),
    ]


@pytest.mark.field("MU-29")
def test_all_ports_of_all_protocols_that_the_gateway_calls_malformed_are_refused_for_a_while() -> None:
    client = make_client((2,))
    client.map_port(Protocol.ALL, 0, 0.0)
    (request,), _ = drain(client)
    malformed = answer(request, result_code=pcp.ResultCode.MALFORMED_REQUEST, lifetime=0)
    assert heard(client, malformed)[1:] == [refused(Reason.MALFORMED, 3, "ALL port 0 was refused")]
    assert client.mappings[0].retry_at == 30.0


# --- grants that are none


@pytest.mark.field("FQ-09")
def test_of_a_port_that_was_cut_nothing_is_told_and_the_mapping_is_deleted_in_the_end() -> None:
    story = Story(Quirk.PORTS_CUT_TO_8_BITS, versions=(0,))
    mapping = story.client.map_port(TCP, 8080, 0.0)
    no = refused(Reason.UNUSABLE_GRANT, 0)
    assert story.until(100.0).told == [(0.0, no), (30.0, no), (90.0, no)]
    assert (story.retry_at, story.tolerated) == (210.0, {Tolerated.PORT_CUT: 3})
    assert externals(story.gateway) == [f"{EXTERNAL}:2048"]
    story.client.unmap(mapping, 100.0)
    assert story.until(101.0).sent[-1] == (100.0, DELETE)
    assert externals(story.gateway) == []


@pytest.mark.field("FQ-09")
def test_strictly_a_port_that_was_cut_answers_nothing() -> None:
    story = Story(Quirk.PORTS_CUT_TO_8_BITS, versions=(0,), strict=True)
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(128.0).told[-1] == (127.75, refused(Reason.NO_ANSWER))
    assert (story.tolerated, story.rejected) == ({}, {Rejected.UNASKED: 9})


@pytest.mark.field("FQ-33")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("quirk", "versions", "refusals"),
    [
        (Quirk.ZERO_LIFETIME_GRANTED, (2,), [0.0, 30.0, 90.0]),
        (Quirk.ZERO_PORT_GRANTED, (2,), [0.0, 30.0, 90.0]),
        (Quirk.ZERO_PORT_GRANTED, (0,), [0.0, 30.0, 90.0]),
        # It could be the answer to an earlier delete of the port: only what comes more often is believed.
        (Quirk.ZERO_LIFETIME_GRANTED, (0,), [1.75, 33.5, 95.25]),
    ],
)
def test_a_success_that_cannot_be_used_is_asked_for_ever_more_rarely_and_deleted_in_the_end(
    quirk: Quirk, versions: tuple[int, ...], refusals: list[float], strict: bool
) -> None:
    story = Story(quirk, versions=versions, strict=strict)
    mapping = story.client.map_port(TCP, 8080, 0.0)
    told = story.until(100.0).told
    assert [line for line in told if line[1].startswith("TCP")] == [
        (at, refused(Reason.UNUSABLE_GRANT, 0)) for at in refusals
    ]
    assert story.retry_at == refusals[-1] + 120.0
    assert story.tolerated == {Tolerated.UNUSABLE_GRANT: 3}
    story.client.unmap(mapping, 100.0)
    assert story.until(101.0).told[-1] == (100.0, "TCP port 8080 was released")
    assert externals(story.gateway) == []


@pytest.mark.field("FQ-33")
def test_the_wait_after_useless_grants_ends_at_half_an_hour_and_begins_anew_after_a_good_one() -> None:
    client = make_client((2,))
    request = asked(client)
    waits, now = [], 0.0
    for _ in range(8):
        heard(client, answer(request, external_port=0), now=now)
        retry_at = client.mappings[0].retry_at
        assert retry_at is not None
        waits.append(retry_at - now)
        now = retry_at
        client.handle_timeout(now)
        (request,), _ = drain(client)
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0]
    heard(client, answer(request, lifetime=600), now=now)
    heard(client, answer(request, lifetime=0), now=now + 1.0)  # the gateway ends it
    assert client.mappings[0].retry_at == now + 31.0


@pytest.mark.field("FQ-31", "MU-11")
@pytest.mark.parametrize("lifetime", [2**31, 2**32 - 11, 2**32 - 1])
def test_a_lease_of_years_is_believed_for_a_day_and_renewed_after_half_of_it(lifetime: int) -> None:
    story = Story(versions=(0,), of_gateway={"max_lifetime": 2**32 - 1})
    story.client.map_port(TCP, 8080, 0.0, lifetime=lifetime)
    assert story.until(1.0).told[-1] == (0.0, f"TCP port 8080 is open at {EXTERNAL}:2048 for 86400 s")
    story.gateway.revoke(story.gateway.mappings[0].id, 1.0)  # over at once: the daemon's clock has overflowed
    story.until(43200.0)
    assert next(line for line in story.sent if line[0] > 1.0) == (43200.0, ask(2048, lifetime))
    assert externals(story.gateway) == [f"{EXTERNAL}:2048"]
    assert story.tolerated == {Tolerated.LONG_LIFETIME: 2}


@pytest.mark.field("MU-42")
@pytest.mark.parametrize(("asked_for", "granted", "renewal"), [(2**32 - 1, 86400, 48600.0), (10, 120, 67.5)])
def test_a_lease_is_renewed_by_what_was_granted(asked_for: int, granted: int, renewal: float) -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0, lifetime=asked_for)
    assert story.until(1.0).told[-1] == (0.0, f"TCP port 8080 is open at {EXTERNAL}:2048 for {granted} s")
    assert (story.client.mappings[0].renew_at, story.tolerated) == (renewal, {})


@pytest.mark.field("FQ-11")
def test_a_lease_of_60_seconds_leaves_room_for_seven_tries() -> None:
    story = Story(Quirk.LIFETIME_60, versions=(0,))
    story.client.map_port(TCP, 8080, 0.0)
    story.until(1.0).sim.partition(story.client)
    assert story.until(59.0).sent == [(0.0, ask()), ASK_ADDRESS] + [
        (at, ask(2048)) for at in (30.0, 30.25, 30.75, 31.75, 33.75, 37.75, 45.75)
    ]
    story.sim.heal()
    assert story.until(61.0).told[-2:] == [
        (60.0, refused(Reason.EXPIRED, what="TCP port 8080 was lost")),
        (60.0, f"TCP port 8080 is open at {EXTERNAL}:2048 for 60 s"),
    ]


@pytest.mark.field("FQ-34")
@pytest.mark.parametrize("strict", [False, True])
def test_octets_behind_an_answer_of_nat_pmp_are_counted_and_passed_over(strict: bool) -> None:
    story = Story(Quirk.TRAILING_OCTETS, versions=(0,), strict=strict)
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(1.0).told == [NAT_PMP, ADDRESS, GRANT]
    assert (story.tolerated, story.rejected) == ({Tolerated.IRREGULAR: 2}, {})


@pytest.mark.field("FQ-34", "FQ-35", "MU-32")
def test_options_of_a_grant_are_kept_as_they_come_which_proves_nothing_where_all_are_copied() -> None:
    a_filter = pcp.Filter(128, 0, "198.51.100.7")
    story = Story(Quirk.TRAILING_OCTETS, Quirk.OPTIONS_ECHOED)
    mapping = story.client.map_port(TCP, 8080, 0.0, options=(a_filter, pcp.RawOption(200, b"abcd")))
    story.until(1.0)
    look = story.client.mapping(mapping)
    assert look is not None
    assert look.granted_options == (a_filter, pcp.RawOption(200, b"abcd"), pcp.RawOption(0, b""))
    assert (story.tolerated, story.rejected) == ({}, {})


@pytest.mark.field("MU-26")
def test_reserved_octets_that_come_back_are_counted_and_passed_over() -> None:
    client = make_client()
    grant = bytearray(answer(asked(client)))
    grant[37:40] = b"abc"  # behind the protocol
    assert heard(client, bytes(grant))[-1] == f"TCP port 8080 is open at {EXTERNAL}:40000 for 7200 s"
    assert client.stats.tolerated == {Tolerated.IRREGULAR: 1}


# --- any port, as some VPNs understand it


@pytest.mark.field("FQ-10")
@pytest.mark.parametrize("quirk", [Quirk.INTERNAL_PORT_0, Quirk.INTERNAL_PORT_0_ASSIGNED])
def test_any_port_is_asked_for_with_internal_port_0_and_deleted_by_the_port_that_was_granted(quirk: Quirk) -> None:
    story = Story(quirk, Quirk.LIFETIME_60, versions=(0,), any_internal_port=True)
    mapping = story.client.map_port(TCP, 0, 0.0, external_port=1, lifetime=60)
    assert story.until(40.0).told == [
        NAT_PMP,
        ADDRESS,
        (0.0, f"TCP port 0 is open at {EXTERNAL}:2048 for 60 s"),
        (30.0, f"TCP port 0 stays open at {EXTERNAL}:2048 for 60 s"),
    ]
    story.client.unmap(mapping, 40.0)
    assert story.until(41.0).told[-1] == (40.0, "TCP port 0 was released")
    assert story.sent == [
        (0.0, ask(1, 60, "TCP all ports")),
        ASK_ADDRESS,
        (30.0, ask(2048, 60, "TCP all ports")),
        (40.0, "NAT-PMP delete request: TCP 2048"),
    ]
    assert externals(story.gateway) == []


@pytest.mark.field("FQ-10")
def test_without_that_mode_internal_port_0_is_no_wish_for_nat_pmp() -> None:
    story = Story(Quirk.INTERNAL_PORT_0, versions=(0,))
    story.client.map_port(TCP, 0, 0.0)
    assert story.until(10.0).told == [(0.0, refused(Reason.NEEDS_PCP, what="TCP port 0 has failed"))]
    assert story.sent == []
    with pytest.raises(LocalProtocolError, match=r"versions=\(0,\)"):
        Config(any_internal_port=True)


@pytest.mark.field("MU-18")
def test_a_gateway_that_knows_nothing_of_any_port_refuses_it() -> None:
    story = Story(versions=(0,), any_internal_port=True)
    story.client.map_port(TCP, 0, 0.0)
    no = refused(Reason.NOT_AUTHORIZED, 2, "TCP port 0 was refused")
    assert story.until(10.0).told == [NAT_PMP, (0.0, no)]


@pytest.mark.field("FQ-10", "FQ-49")
def test_a_late_answer_for_another_port_is_none_for_any_port() -> None:
    client = make_client((0,), any_internal_port=True)
    early = natpmp_answer(asked(client), external_port=8080)
    heard(client, early, natpmp_answer(b"\0\0"))
    client.map_port(TCP, 0, 1.0)
    (request,), _ = drain(client)
    assert heard(client, early, now=1.0) == []
    assert client.stats.rejected == {Rejected.OLD: 1}
    assert heard(client, natpmp_answer(request), now=1.0) == [f"TCP port 0 is open at {EXTERNAL}:40000 for 7200 s"]


@pytest.mark.field("FQ-10", "FQ-14")
def test_of_a_pair_of_any_port_each_is_deleted_by_its_own_port() -> None:
    client = make_client((0,), any_internal_port=True)
    _, udp = client.map_pair(0, 0.0, lifetime=60)
    sent = []
    for now in (0.0, 10.0):
        while datagrams := drain(client)[0]:
            (request,) = datagrams
            sent.append(describe(request))
            port = 40000 if request[1] == 1 else 40001
            heard_port = {} if len(request) == 2 or request[8:] == bytes(4) else {"external_port": port}
            client.receive_datagram(natpmp_answer(request, **heard_port), SERVER, now)
        client.unmap(udp, 10.0)
    deletes = {line for line in sent if "delete" in line}
    assert deletes == {"NAT-PMP delete request: UDP 40000", "NAT-PMP delete request: TCP 40001"}


def is_delete_all(data: bytes) -> bool:
    return data[0] == 0 and data[1] in (1, 2) and data[4:6] == bytes(2) and data[8:12] == bytes(4)


def reply_to(request: bytes, how: str, port: int, now: float) -> bytes | None:
    """What a VPN's gateway might answer."""
    if how == "silence":
        return None
    if len(request) == 2:
        return natpmp_answer(request, int(now))
    asked_for = decode(request)
    assert isinstance(asked_for, natpmp.MapRequest)
    if how == "refusal":
        return natpmp.MapResponse(asked_for.protocol, natpmp.ResultCode.OUT_OF_RESOURCES, int(now), 0).encode()
    return natpmp_answer(
        request,
        int(now),
        internal_port={"assigned": port, "stump": port & 0xFF}.get(how, asked_for.internal_port),
        external_port=0 if how in ("useless", "deleted") else port,
        lifetime=0 if how == "deleted" else min(asked_for.lifetime, 60),
    )


class Vpn:
    """A client of a VPN's gateway that answers in any way, and all that the client has sent."""

    def __init__(self) -> None:
        self.config = Config(versions=(0,), any_internal_port=True)
        self.client = Client(SERVER, local_address=LOCAL, config=self.config, rng=Middle(1))
        self.sent: list[bytes] = []
        self.now = 0.0

    def map(self, port: int) -> None:
        self.client.map_port((TCP, UDP)[port % 2], 0, self.now, external_port=port, lifetime=60)

    def map_pair(self, port: int) -> None:
        self.client.map_pair(0, self.now, external_port=port, lifetime=60)

    def unmap(self, port: int) -> None:
        for mapping in self.client.mappings[port % 2 : port % 2 + 1]:
            self.client.unmap(mapping.id, self.now)

    def close(self, port: int) -> None:
        self.client.close(self.now)

    def nothing(self, port: int) -> None:
        pass

    def move(self, port: int) -> None:
        self.client.network_changed(self.now, f"192.168.1.{1 + port % 250}", (f"192.168.1.{1 + port % 2}", 5351))

    def wake(self, port: int) -> None:
        self.client.network_changed(self.now)

    def find_closed(self, port: int) -> None:
        self.client.gateway_unreachable(self.now)

    def hear_announcement(self, port: int) -> None:
        self.client.receive_datagram(natpmp_answer(b"\0\0", port), self.client.gateway, self.now)

    def restart(self, port: int) -> None:
        snapshot = self.client.snapshot(self.now)
        self.sent += drain(self.client)[0]
        self.client = Client.restore(snapshot, self.now, elapsed=1.0, config=self.config, rng=Middle(3))

    def settle(self, how: str, port: int) -> None:
        for _ in range(12):
            for each in [each for each in self.client.outputs() if isinstance(each, SendDatagram)]:
                self.sent.append(each.data)
                reply = reply_to(each.data, how, port, self.now)
                if reply is not None:
                    self.client.receive_datagram(reply, each.addr, self.now)

    def wait(self, seconds: float, how: str, port: int) -> None:
        end = self.now + seconds
        while (deadline := self.client.next_timeout()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.client.handle_timeout(self.now)
            self.settle(how, port)
        self.now = end


ACTIONS = [
    Vpn.map,
    Vpn.map_pair,
    Vpn.unmap,
    Vpn.close,
    Vpn.nothing,
    Vpn.move,
    Vpn.wake,
    Vpn.find_closed,
    Vpn.hear_announcement,
    Vpn.restart,
]
ANSWERS = ["as asked", "assigned", "refusal", "silence", "useless", "deleted", "stump"]
STEP = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from(ANSWERS),
    st.sampled_from([0, 1, 80, 40000, 40001, 65535]),
    st.sampled_from([0.0, 0.25, 20.0, 61.0]),
)


@pytest.mark.field("FQ-10", "FQ-30", "MU-10")
@given(st.lists(STEP, max_size=24))
def test_whatever_happens_no_datagram_is_ever_a_delete_all(
    steps: list[tuple[typing.Callable[[Vpn, int], None], str, int, float]],
) -> None:
    vpn = Vpn()
    for action, how, port, pause in [*steps, (Vpn.close, "silence", 0, 61.0)]:
        with contextlib.suppress(LocalProtocolError):  # it is wanted already, or the client is closed
            action(vpn, port)
        vpn.settle(how, port)
        vpn.wait(pause, how, port)
    assert [data.hex() for data in vpn.sent if is_delete_all(data)] == []


# --- external ports


@pytest.mark.field("FQ-12", "MU-19")
@pytest.mark.parametrize(
    ("quirk", "suggested", "assigned"),
    [
        (Quirk.IGNORES_SUGGESTIONS, 7000, 2048),
        (Quirk.COUNTS_PORTS_UP, 0, 8080),
    ],
)
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_the_assigned_port_is_told_whatever_was_suggested(
    quirk: Quirk, suggested: int, assigned: int, versions: tuple[int, ...]
) -> None:
    story = Story(quirk, versions=versions)
    story.client.map_port(TCP, 8080, 0.0, external_port=suggested)
    assert story.until(1.0).told[-1] == (0.0, f"TCP port 8080 is open at {EXTERNAL}:{assigned} for 7200 s")


@pytest.mark.field("MU-20")
@pytest.mark.parametrize(
    ("suggested", "grant", "assigned"),
    [(80, "00820000000000641f90040000001c20", 1024), (6000, "00820000000000641f90177100001c20", 6001)],
)
def test_the_next_port_upwards_is_told(suggested: int, grant: str, assigned: int) -> None:
    client = make_client((0,))
    asked(client, external_port=suggested)
    assert heard(client, bytes.fromhex(grant)) == [NAT_PMP[1], ASK_ADDRESS[1]]
    granted = f"TCP port 8080 is open at {EXTERNAL}:{assigned} for 7200 s"
    assert heard(client, natpmp_answer(b"\0\0", 100)) == [ADDRESS[1], granted]


@pytest.mark.field("FQ-12", "MU-05", "MU-47")
@pytest.mark.parametrize("quirk", [Quirk.IGNORES_SUGGESTIONS, Quirk.PREFER_FAILURE_IGNORED])
def test_another_port_than_the_only_one_that_was_wanted_is_given_back(quirk: Quirk) -> None:
    story = Story(quirk)
    story.gateway.add_static(TCP, endpoint("192.168.1.9", 80), 7000, 0.0)
    story.client.map_port(TCP, 8080, 0.0, external_port=7000, options=(pcp.PreferFailure(),))
    assert story.until(60.0).told == [PCP, (3.0, refused(Reason.CANNOT_PROVIDE_EXTERNAL, 0))]
    request = ask_pcp("0.0.0.0 port 7000", more=", PREFER_FAILURE")
    assert story.sent == [(0.0, request), (3.0, request), (3.0, PCP_DELETE)]
    assert externals(story.gateway) == [f"{EXTERNAL}:7000"]
    assert (story.retry_at, story.tolerated) == (1803.0, {Tolerated.PREFERENCE_IGNORED: 1})
    assert story.rejected == {Rejected.OTHER_ENDPOINT: 2}


@pytest.mark.field("MU-05")
def test_strictly_another_port_than_the_only_one_that_was_wanted_is_no_answer() -> None:
    story = Story(Quirk.PREFER_FAILURE_IGNORED, strict=True)
    story.gateway.add_static(TCP, endpoint("192.168.1.9", 80), 7000, 0.0)
    story.client.map_port(TCP, 8080, 0.0, external_port=7000, options=(pcp.PreferFailure(),))
    assert story.until(10.0).told == [PCP]
    assert [at for at, _ in story.sent] == [0.0, 3.0, 9.0]
    assert (story.tolerated, story.rejected) == ({}, {Rejected.OTHER_ENDPOINT: 3})


@pytest.mark.field("FQ-13")
def test_each_move_of_a_port_is_told_with_both_ports_and_counted() -> None:
    story = Story(Quirk.ROTATES_PORTS, Quirk.LIFETIME_60, versions=(0,))
    story.client.map_port(TCP, 8080, 0.0)
    moves = events_of(story.until(100.0).sim, MappingChanged)
    assert times_of(story.sim, MappingChanged) == [30.0, 60.0, 90.0]
    assert [(move.old.port, move.new.port) for move in moves] == [(2048, 2049), (2049, 2050), (2050, 2051)]
    assert story.tolerated == {Tolerated.PORT_MOVED: 3}


@pytest.mark.field("FQ-14", "MU-16")
def test_a_pair_moves_to_a_port_that_both_can_have() -> None:
    story = Story(Quirk.COUNTS_PORTS_UP, versions=(0,))
    other = Client(SERVER, local_address=OTHER[0], config=Config(versions=(0,)), rng=Middle(4))
    story.sim.add(other)
    other.map_port(TCP, 5200, 0.0, external_port=5200)
    story.until(1.0)
    story.client.map_pair(5200, 1.0, external_port=5200)
    told = [line for line in story.until(5.0).told if "port 5200" in line[1]]
    (tcp, udp) = told[1:]
    assert tcp[1].startswith("TCP")
    assert tcp[1][3:] == udp[1][3:]
    assert times_of(story.sim, PairSplit) == []


@pytest.mark.field("FQ-14")
def test_a_pair_that_the_gateway_keeps_apart_is_told_to_be_so_and_each_has_its_own_port() -> None:
    client = make_client((0,))
    client.map_pair(8080, 0.0)
    events, now = [], 0.0
    while now < 60.0:
        sent, new = drain(client)
        events += [event.describe() for event in new]
        for request in sent:
            changes = {} if len(request) == 2 or request[8:] == bytes(4) else {"external_port": 40000 + request[1]}
            client.receive_datagram(natpmp_answer(request, 1000 + int(now), **changes), SERVER, now)
        now = max(now, client.next_timeout() or now)
        client.handle_timeout(min(now, 60.0))
    assert events[-3:] == [
        "the gateway gives TCP and UDP different external ports",
        f"TCP port 8080 is open at {EXTERNAL}:40002 for 7200 s",
        f"UDP port 8080 is open at {EXTERNAL}:40001 for 7200 s",
    ]
    client.handle_timeout(3700.0)
    (renewal,), _ = drain(client)
    assert decode(renewal) == natpmp.MapRequest(UDP, 8080, 40001)  # its own; another one would be mapped besides


@pytest.mark.field("FQ-36")
def test_who_insists_on_a_port_is_not_held_to_an_address_that_has_changed() -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0, external_port=7000, options=(pcp.PreferFailure(),))
    story.sim.at(100.0, story.gateway.set_external_address, MOVED)
    told = story.until(103.0).told
    assert told[-1] == (102.5, f"TCP port 8080 is open at {MOVED}:7000 for 7200 s")
    insists = ", PREFER_FAILURE"
    assert story.sent == [(at, ask_pcp("0.0.0.0 port 7000", more=insists)) for at in (0.0, 102.5)]
    assert story.until(4200.0).sent[2:] == [(4152.5, ask_pcp(f"{MOVED} port 7000", more=insists))]


@pytest.mark.field("FQ-36", "MU-35")
def test_ipv4_addresses_are_written_in_16_octets_with_ffff() -> None:
    request = asked(make_client())
    assert request[8:24].hex() == "00000000000000000000ffffc0a80107"
    assert request[44:60].hex() == "00000000000000000000ffff00000000"


@pytest.mark.field("FQ-44", "FQ-28")
def test_no_port_is_suggested_that_the_caller_did_not_name() -> None:
    for versions, at in (((2,), 42), ((0,), 6)):
        assert asked(make_client(versions))[at : at + 2] == b"\0\0"
        assert asked(make_client(versions), external_port=8080)[at : at + 2] == b"\x1f\x90"


@pytest.mark.field("FQ-46")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_a_busy_port_is_asked_for_without_a_port_at_once(versions: tuple[int, ...]) -> None:
    story = Story(Quirk.BUSY_PORT_IS_AN_ERROR, versions=versions)
    story.gateway.add_static(TCP, endpoint("192.168.1.9", 80), 7000, 0.0)
    story.client.map_port(TCP, 8080, 0.0, external_port=7000)
    requests = [ask(7000), ask()] if 0 in versions else [ask_pcp("0.0.0.0 port 7000"), ask_pcp()]
    assert story.until(1.0).sent[:2] == [(0.0, request) for request in requests]
    assert (story.told[-1], story.tolerated) == (GRANT, {Tolerated.PORT_BUSY: 1})


@pytest.mark.field("FQ-46")
@pytest.mark.parametrize(("versions", "code"), [((2,), 8), ((0,), 4)])
def test_strictly_a_busy_port_is_a_refusal(versions: tuple[int, ...], code: int) -> None:
    story = Story(Quirk.BUSY_PORT_IS_AN_ERROR, versions=versions, strict=True)
    story.gateway.add_static(TCP, endpoint("192.168.1.9", 80), 7000, 0.0)
    story.client.map_port(TCP, 8080, 0.0, external_port=7000)
    assert story.until(1.0).told[1:] == [(0.0, refused(Reason.NO_RESOURCES, code))]
    assert (story.retry_at, story.tolerated) == (30.0, {})


@pytest.mark.field("FQ-50")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_a_mapping_that_was_given_up_is_deleted_before_the_next_one_is_asked_for(versions: tuple[int, ...]) -> None:
    story = Story(versions=versions)
    mapping = story.client.map_port(TCP, 8080, 0.0, external_port=7000)
    story.until(10.0)
    story.client.unmap(mapping, 10.0)
    story.client.map_port(TCP, 8081, 10.0, external_port=7000)
    last = story.until(11.0).sent[-2:]
    assert [("8080" in line, "8081" in line) for _, line in last] == [(True, False), (False, True)]
    assert "delete" in last[0][1]
    assert story.until(12.0).client.mappings[0].external is not None


# --- options


@pytest.mark.field("FQ-35", "MU-33", "MU-28")
@pytest.mark.parametrize(
    ("options", "external_address"),
    [
        ((pcp.PreferFailure(),), None),
        ((pcp.PreferFailure(),), EXTERNAL),
        ((pcp.ThirdParty(LOCAL),), None),
        ((pcp.Filter(128, 0, "198.51.100.7"),) * 44, None),
    ],
)
def test_what_can_only_be_malformed_is_refused_at_home(
    options: tuple[pcp.Option, ...], external_address: str | None
) -> None:
    client = make_client()
    with pytest.raises(LocalProtocolError):
        client.map_port(TCP, 8080, 0.0, options=options, external_address=external_address)
    assert drain(client) == ([], [])


@pytest.mark.field("FQ-35", "MU-34")
def test_that_an_option_is_not_supported_is_a_failure_that_says_so() -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0, options=(pcp.ThirdParty("192.168.1.9"),))
    no = refused(Reason.UNSUPPORTED_OPTION, 5, "TCP port 8080 has failed")
    assert story.until(10.0).told == [PCP, (0.0, no)]


@pytest.mark.field("FQ-35", "MU-38")
def test_that_peer_is_an_unknown_opcode_is_a_refusal_for_half_an_hour() -> None:
    client = make_client()
    client.map_peer(TCP, 8080, PEER, 0.0)
    (request,), _ = drain(client)
    unknown = pcp.error_reply(request, pcp.ResultCode.UNSUPP_OPCODE, 1800, 9)
    assert heard(client, unknown) == [PCP[1], refused(Reason.UNSUPPORTED_OPCODE, 4)]
    assert client.mappings[0].retry_at == 1800.0


@pytest.mark.field("MU-38")
def test_a_peer_mapping_is_given_up_without_a_datagram_and_without_a_confirmation() -> None:
    story = Story()
    mapping = story.client.map_peer(TCP, 8080, PEER, 0.0)
    story.until(10.0)
    story.client.unmap(mapping, 10.0)
    unsure = "TCP port 8080 was released, though the gateway did not confirm it"
    assert story.until(11.0).told[-1] == (10.0, unsure)
    assert [at for at, _ in story.sent] == [0.0]


@pytest.mark.field("MU-27")
def test_optional_options_that_a_gateway_stumbles_over_are_left_out_at_once() -> None:
    client = make_client()
    request = asked(client, options=(pcp.Description("abc"),))
    malformed = answer(request, result_code=pcp.ResultCode.MALFORMED_OPTION, lifetime=0)
    assert heard(client, malformed) == [PCP[1], ask_pcp()]
    assert client.stats.tolerated == {Tolerated.OPTIONS_REFUSED: 1}


@pytest.mark.field("MU-27")
def test_strictly_a_malformed_option_is_a_refusal() -> None:
    client = make_client(strict=True)
    request = asked(client, options=(pcp.Description("abc"),))
    malformed = answer(request, result_code=pcp.ResultCode.MALFORMED_OPTION, lifetime=0)
    assert heard(client, malformed) == [PCP[1], refused(Reason.MALFORMED, 6)]


# --- silence and closed ports


@pytest.mark.field("FQ-15")
def test_a_closed_port_is_told_once_and_asked_again_after_growing_waits() -> None:
    client = make_client((0,))
    sim = Simulation(client)
    client.map_port(TCP, 8080, 0.0)
    for at in (1.0, 31.5, 92.0):
        sim.at(at, client.gateway_unreachable)
    sim.run_until(211.0)
    assert times_of(sim, GatewayUnreachable) == [1.0]
    sends = [0.0, 0.25, 0.75, 31.0, 31.25, 91.5, 91.75]
    assert [at for at, _ in sends_of(sim)] == sends
    assert client.mappings[0].retry_at == 212.0
    assert "not up yet" in Reason.UNREACHABLE.value


@pytest.mark.field("FQ-15", "FQ-49")
def test_a_pcp_answer_counts_however_late_it_comes() -> None:
    client = make_client((2,))
    request = asked(client)
    client.gateway_unreachable(0.1)
    drain(client)
    assert heard(client, answer(request), now=5.0) == [
        "the gateway answers again",
        PCP[1],
        ADDRESS[1],
        f"TCP port 8080 is open at {EXTERNAL}:40000 for 7200 s",
    ]


@pytest.mark.field("FQ-49")
def test_a_late_copy_in_nat_pmp_is_dropped_and_the_answer_in_between_goes_to_its_own_question() -> None:
    client = make_client((0,))
    grant = natpmp_answer(asked(client))
    heard(client, grant)
    client.map_port(UDP, 9, 0.0)
    assert heard(client, grant) == []
    assert heard(client, natpmp_answer(b"\0\0"))[:2] == [
        ADDRESS[1],
        f"TCP port 8080 is open at {EXTERNAL}:40000 for 7200 s",
    ]
    assert client.stats.rejected == {Rejected.OLD: 1}


@pytest.mark.field("FQ-16", "FQ-43")
def test_silence_ends_after_the_schedule_and_a_change_of_the_network_asks_at_once() -> None:
    story = Story(of_gateway={"networks": ("10.0.0.0/8",)})
    story.client.map_port(TCP, 8080, 0.0)
    told = story.until(400.0).told
    assert told == [
        (128.75, Reason.NO_ANSWER.value),
        (128.75, refused(Reason.NO_ANSWER)),
        (287.5, refused(Reason.NO_ANSWER)),
    ]
    assert "not serve this network" in told[0][1]
    starts = [at for (at, line), (before, _) in zip(story.sent[1:], story.sent, strict=False) if at - before > 60.0]
    assert starts == [158.75, 347.5]
    story.client.network_changed(400.0)
    assert story.until(400.5).sent[-1] == (400.0, ask_pcp())


@pytest.mark.field("MU-12", "MU-13")
def test_late_copies_of_a_slow_gateways_answers_are_neither_grants_nor_announcements() -> None:
    story = Story(versions=(0,), latency=0.5)
    story.client.map_port(TCP, 8080, 0.0)
    story.client.map_port(UDP, 9, 0.0)
    assert story.until(60.0).told == [
        (1.0, NAT_PMP[1]),
        (2.0, ADDRESS[1]),
        (2.0, GRANT[1]),
        (3.0, f"UDP port 9 is open at {EXTERNAL}:2048 for 7200 s"),
    ]
    assert (len(story.sent), story.tolerated) == (9, {})


# --- addresses


@pytest.mark.field("FQ-18")
@pytest.mark.parametrize(
    ("external", "reason"),
    [
        ("192.168.178.2", Reason.DOUBLE_NAT),
        ("10.201.213.174", Reason.DOUBLE_NAT),
        ("100.64.0.9", Reason.CGNAT),
        ("192.0.0.2", Reason.CGNAT),
        ("198.51.100.7", None),
    ],
)
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_an_address_that_the_internet_cannot_reach_is_told_and_mapped(
    external: str, reason: Reason | None, versions: tuple[int, ...]
) -> None:
    story = Story(versions=versions, external=external)
    story.client.map_port(TCP, 8080, 0.0)
    assert story.until(1.0).told[-1] == (0.0, f"TCP port 8080 is open at {external}:2048 for 7200 s")
    assert [event.reason for event in events_of(story.sim, DoubleNatSuspected)] == ([reason] if reason else [])


@pytest.mark.field("FQ-18", "MU-22")
@pytest.mark.parametrize("no_address", ["008000030000000500000000", "008000000000000500000000", "0080000300000005"])
def test_a_grant_without_an_address_is_told_as_soon_as_the_gateway_says_that_it_has_none(no_address: str) -> None:
    client = make_client((0,))
    assert heard(client, natpmp_answer(asked(client), 5)) == [NAT_PMP[1], ASK_ADDRESS[1]]
    assert heard(client, bytes.fromhex(no_address)) == ["TCP port 8080 is open at ?:40000 for 7200 s"]
    client.handle_timeout(3600.0)
    drain(client)
    refusal = bytes.fromhex("0082000300000e151f90000000000000")
    assert heard(client, refusal, now=3600.0) == []
    assert client.mappings[0].renew_at == 5400.0  # the lease stands


@pytest.mark.field("FQ-20")
def test_a_grant_waits_two_seconds_for_the_address_which_moves_it_when_it_comes_later() -> None:
    client = make_client((0,))
    heard(client, natpmp_answer(asked(client), 5))
    told = []
    for now in (0.25, 0.75, 1.75, 2.0):
        assert client.next_timeout() == now
        client.handle_timeout(now)
        told += [(now, event.describe()) for event in drain(client)[1]]
    assert told == [(2.0, "TCP port 8080 is open at ?:40000 for 7200 s")]
    assert heard(client, natpmp_answer(b"\0\0", 8), now=3.0) == [
        ADDRESS[1],
        f"TCP port 8080 moved from ?:40000 to {EXTERNAL}:40000",
    ]


@pytest.mark.field("FQ-22")
@pytest.mark.parametrize(
    ("server", "local"), [(SERVER, LOCAL), (V6_SERVER, V6_LOCAL), (V6_SERVER, "fe80::7"), (SERVER, "10.0.0.7")]
)
def test_the_address_in_the_requests_is_the_one_to_bind_to(server: Address, local: str) -> None:
    client = Client(server, local_address=local, rng=Middle(1))
    request = decode(asked(client))
    assert isinstance(request, pcp.MapRequest)
    assert (str(request.client_address), client.bind_address[0]) == (local, local)


@pytest.mark.field("FQ-37", "MU-54", "MU-58")
@pytest.mark.parametrize(("versions", "at"), [((2,), 67.5), ((0,), 60.0)])
def test_a_new_address_that_nobody_announced_is_told_at_the_next_renewal(versions: tuple[int, ...], at: float) -> None:
    client, told = make_client(versions), []
    client.map_port(TCP, 8080, 0.0, lifetime=120)
    for now, address in ((0.0, EXTERNAL), (at, MOVED)):
        client.handle_timeout(now)
        while client.next_timeout() == now:
            sent, events = drain(client)
            told += [(now, event.describe()) for event in events]
            for request in sent:
                client.receive_datagram(answer_from(address, request, int(now)), SERVER, now)
    assert told[-2:] == [
        (at, f"the external address changed from {EXTERNAL} to {MOVED}"),
        (at, f"TCP port 8080 moved from {EXTERNAL}:40000 to {MOVED}:40000"),
    ]


def answer_from(address: str, request: bytes, epoch: int) -> bytes:
    """The answer of a gateway that has this address."""
    if request[0] == 2:
        return answer(request, epoch=epoch, external_address=address)
    if len(request) == 2:
        return natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, epoch, address).encode()
    return natpmp_answer(request, epoch)


@pytest.mark.field("FQ-37", "MU-52")
@pytest.mark.parametrize(
    ("quirk", "restarts"), [(Quirk.ADDRESS_CHANGE_KEEPS_EPOCH, []), (Quirk.ANNOUNCES_THE_OLD_EPOCH, [100.25])]
)
def test_a_new_address_that_is_announced_moves_every_mapping_at_once_and_confirms_it_once(
    quirk: Quirk, restarts: list[float]
) -> None:
    story = Story(quirk, versions=(0,))
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(100.0, story.gateway.set_external_address, MOVED)
    told = story.until(400.0).told[3:]
    assert told[:2] == [
        (100.0, f"the external address changed from {EXTERNAL} to {MOVED}"),
        (100.0, f"TCP port 8080 moved from {EXTERNAL}:2048 to {MOVED}:2048"),
    ]
    assert told[-1] == (102.5, f"TCP port 8080 stays open at {MOVED}:2048 for 7200 s")
    assert times_of(story.sim, GatewayRestarted) == restarts
    assert (len(story.sent), story.tolerated) == (3, {Tolerated.QUIET_ANNOUNCEMENT: 1})


@pytest.mark.field("FQ-42", "MU-43")
@pytest.mark.parametrize("source", [STRANGER, (SERVER[0], 5350), ("fe80::1", 5351, 0, 2)])
def test_an_answer_from_elsewhere_is_not_ours(source: Address) -> None:
    client = make_client()
    grant = answer(asked(client))
    assert client.receive_datagram(grant, source, 0.0) is False
    assert (drain(client), client.stats.rejected) == (([], []), {})
    assert heard(client, grant)[-1].startswith("TCP port 8080 is open")


@pytest.mark.field("MU-50")
@pytest.mark.parametrize("versions", [(2, 0), (0, 2)])
def test_an_ipv6_gateway_is_never_asked_in_nat_pmp(versions: tuple[int, ...]) -> None:
    client = Client(V6_SERVER, local_address=V6_LOCAL, config=Config(versions=versions), rng=Middle(1))
    sim = Simulation(client)
    client.map_port(TCP, 8080, 0.0)
    client.probe(0.0)
    sim.run_until(600.0)
    assert {sent.data[0] for sent in sim.sent} == {2}


# --- epochs and announcements


@pytest.mark.field("FQ-38")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_an_epoch_of_the_size_of_unix_time_is_an_epoch(versions: tuple[int, ...]) -> None:
    story = Story(Quirk.EPOCH_IN_UNIX_TIME, versions=versions)
    story.client.map_port(TCP, 8080, 0.0)
    story.until(86400.0)
    assert times_of(story.sim, GatewayRestarted) == []
    assert len(times_of(story.sim, MappingRenewed)) > 10


@pytest.mark.field("FQ-38")
@pytest.mark.parametrize(("versions", "at"), [((2,), 337.5), ((0,), 300.0)])
def test_an_epoch_that_stands_still_is_a_restart_at_each_renewal_and_no_flood(
    versions: tuple[int, ...], at: float
) -> None:
    story = Story(Quirk.EPOCH_ALWAYS_0, versions=versions)
    story.client.map_port(TCP, 8080, 0.0, lifetime=600)
    story.until(2.5 * at)
    assert times_of(story.sim, GatewayRestarted) == [at, 2 * at]
    assert times_of(story.sim, MappingRenewed) == [at, 2 * at]
    assert [when for when, line in story.sent if "map request" in line or "MAP" in line] == [0.0, at, 2 * at]


@pytest.mark.field("FQ-39")
def test_announcements_are_taken_from_the_gateway_alone() -> None:
    client = make_client()
    held(client)
    in_pcp = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1).encode()
    in_nat_pmp = natpmp_answer(b"\0\0", 1)
    for data, source in ((in_pcp, STRANGER), (in_nat_pmp, STRANGER), (in_pcp, (SERVER[0], 5350))):
        assert client.receive_datagram(data, source, 10.0) is False
    assert heard(client, in_nat_pmp, now=10.0, source=(SERVER[0], 5350)) == []
    assert client.stats.tolerated == {Tolerated.QUIET_ANNOUNCEMENT: 1}
    assert heard(client, in_pcp, now=10.0) == ["the gateway seems to have restarted: all mappings are asked for again"]
    assert client.next_timeout() == 12.5


@pytest.mark.field("FQ-45")
def test_a_host_that_wakes_up_has_everything_confirmed_at_once() -> None:
    story = Story(Quirk.EPOCH_SURVIVES_REBOOT, Quirk.NEVER_ANNOUNCES)
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(100.0, story.gateway.reboot)
    story.until(200.0)
    assert (externals(story.gateway), len(story.sent)) == ([], 1)
    story.client.network_changed(200.0)
    assert story.until(200.0).told[-1] == (200.0, f"TCP port 8080 stays open at {EXTERNAL}:2048 for 7200 s")
    assert externals(story.gateway) == [f"{EXTERNAL}:2048"]


@pytest.mark.field("FQ-45", "MU-56")
def test_an_announcement_for_no_visible_reason_confirms_every_mapping() -> None:
    story = Story(Quirk.EPOCH_SURVIVES_REBOOT)
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(1000.0, story.gateway.reboot)
    told = story.until(1300.0).told
    assert told[3:] == [(1002.5, f"TCP port 8080 stays open at {EXTERNAL}:2048 for 7200 s")]
    assert story.tolerated == {Tolerated.QUIET_ANNOUNCEMENT: 1}
    assert externals(story.gateway) == [f"{EXTERNAL}:2048"]


@pytest.mark.field("MU-56")
def test_strictly_an_announcement_with_a_good_epoch_means_nothing() -> None:
    story = Story(Quirk.EPOCH_SURVIVES_REBOOT, strict=True)
    story.client.map_port(TCP, 8080, 0.0)
    story.sim.at(1000.0, story.gateway.reboot)
    assert story.until(1300.0).sent == [(0.0, ask_pcp())]
    assert (story.tolerated, externals(story.gateway)) == ({}, [])


@pytest.mark.field("MU-51")
def test_a_start_that_is_announced_in_pcp_alone_recovers_what_nat_pmp_has_granted() -> None:
    client = make_client()
    asked(client)
    assert heard(client, bytes.fromhex("0081000100000064")) == [NAT_PMP[1], ask()]
    grant = natpmp_answer(natpmp.MapRequest(TCP, 8080).encode(), 100)
    heard(client, grant, natpmp_answer(b"\0\0", 100))
    assert client.version == 0
    assert heard(client, pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), now=10.0) == []
    client.handle_timeout(12.5)
    assert [describe(data) for data in drain(client)[0]] == [ask_pcp(f"{EXTERNAL} port 40000")]


@pytest.mark.field("MU-51")
def test_who_speaks_nat_pmp_alone_sees_a_restart_that_pcp_announced_at_the_next_renewal() -> None:
    client = make_client((0,))
    heard(client, natpmp_answer(asked(client), 5000), natpmp_answer(b"\0\0", 5000))
    assert heard(client, pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode(), now=10.0) == []
    assert client.stats.rejected == {Rejected.UNKNOWN: 1}
    client.handle_timeout(3600.0)
    (renewal,), _ = drain(client)
    assert heard(client, natpmp_answer(renewal, 3590), now=3600.0)[0].startswith("the gateway seems to have restarted")


@pytest.mark.field("MU-53")
def test_a_lost_address_that_pcp_announced_loses_what_is_refused_then_and_asks_for_it_again() -> None:
    story = Story()
    story.client.map_port(TCP, 8080, 0.0)
    story.until(99.0).gateway.reboot(100.0)
    list(story.gateway.outputs())
    story.gateway.set_external_address(None, 100.0)
    told = story.until(140.0).told[3:]
    lost = refused(Reason.NETWORK_FAILURE, 7, "TCP port 8080 was lost")
    assert told == [
        (99.0, "the gateway seems to have restarted: all mappings are asked for again"),
        (101.5, lost),
        (131.5, refused(Reason.NETWORK_FAILURE, 7)),
    ]


@pytest.mark.field("MU-57")
def test_one_second_less_is_no_restart_in_pcp() -> None:
    client = make_client((2,))
    mapping = client.map_port(TCP, 8080, 0.0)
    (request,), _ = drain(client)
    heard(client, answer(request, epoch=1))
    assert heard(client, pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0).encode()) == []
    assert heard(client, pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1).encode()) == []
    assert client.mapping(mapping) is not None


# --- renewal


@pytest.mark.field("FQ-23")
def test_a_pinhole_that_cannot_be_renewed_is_asked_for_anew_when_it_is_over_with_the_same_nonce() -> None:
    client = Client(V6_SERVER, local_address=V6_LOCAL, rng=Middle(1))
    gateway = Gateway(EXTERNAL, address=V6_SERVER, quirks=[Quirk.PINHOLE_NOT_RENEWABLE], rng=Middle(2))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 8080, 0.0, lifetime=600)
    sim.run_until(1200.0)
    pinhole = f"TCP port 8080 is open at [{V6_LOCAL}]:8080 for 600 s"
    own = [(at, event.describe()) for at, event in sim.events if event.describe().startswith("TCP port")]
    # The last refusal came at 597.95 s, and is respected for its 30 s (RFC 6887 section 8.3).
    assert own == [
        (0.0, pinhole),
        (600.0, refused(Reason.EXPIRED, what="TCP port 8080 was lost")),
        (627.94921875, pinhole),
    ]
    sends = sends_of(sim, V6_LOCAL)
    assert [at for at, _ in sends][:7] == [0.0, 337.5, 468.75, 534.375, 567.1875, 597.94921875, 627.94921875]
    assert len({data[24:36] for _, data in sends}) == 1


@pytest.mark.field("FQ-24", "FQ-25")
@pytest.mark.parametrize("quirk", [Quirk.RENEWAL_DOES_NOT_EXTEND, Quirk.RENEWAL_DELETES])
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_a_renewal_that_succeeds_and_does_not_is_not_seen_and_unmap_and_map_repairs_it(
    quirk: Quirk, versions: tuple[int, ...]
) -> None:
    story = Story(quirk, versions=versions)
    mapping = story.client.map_port(TCP, 8080, 0.0, lifetime=600)
    assert story.until(650.0).told[-1][1].startswith(f"TCP port 8080 stays open at {EXTERNAL}:2048")
    story.client.unmap(mapping, 650.0)
    story.client.map_port(TCP, 8080, 650.0, lifetime=600)
    told = story.until(651.0).told[-2:]
    assert [at for at, _ in told] == [650.0, 650.0]
    assert told[0][1].startswith("TCP port 8080 was released")
    assert told[1][1].startswith("TCP port 8080 is open at")
    assert [entry.expires_at for entry in story.gateway.mappings] == [1250.0]


@pytest.mark.field("FQ-26", "MU-06")
def test_a_mapping_has_one_nonce_through_renewal_snapshot_and_delete() -> None:
    story = Story()
    mapping = story.client.map_port(TCP, 8080, 0.0, lifetime=600)
    snapshot = story.until(400.0).client.snapshot(400.0)
    heir = Client.restore(snapshot, 0.0, elapsed=1.0, rng=Middle(9))
    heir.unmap(mapping, 0.0)
    requests = [data for _, data in sends_of(story.sim)] + drain(heir)[0]
    assert len(requests) >= 3
    assert len({data[24:36] for data in requests}) == 1


@pytest.mark.field("MU-06")
def test_what_another_program_took_over_is_let_go_unconfirmed() -> None:
    story = Story(Quirk.NONCE_UNCHECKED)
    mapping = story.client.map_port(TCP, 8080, 0.0)
    other = Client(SERVER, local_address=LOCAL, rng=Middle(7))
    story.until(1.0).sim.add(other)
    other.map_port(TCP, 8080, 1.0)
    story.until(2.0).client.unmap(mapping, 2.0)
    unsure = "TCP port 8080 was released, though the gateway did not confirm it"
    assert story.until(60.0).told[-1] == (2.0, unsure)
    assert (story.tolerated, externals(story.gateway)) == ({Tolerated.DELETE_REFUSED: 1}, [f"{EXTERNAL}:2048"])


@pytest.mark.field("MU-07", "MU-44")
@pytest.mark.parametrize(("server", "local"), [(SERVER, LOCAL), (V6_SERVER, V6_LOCAL)])
def test_a_renewal_suggests_what_was_assigned_and_so_nothing_moves(server: Address, local: str) -> None:
    client = Client(server, local_address=local, rng=Middle(1))
    external = EXTERNAL if server == SERVER else local
    first = answer(asked(client, external_port=7000), external_address=external, external_port=8080)
    assert heard(client, first, source=server)[-1].endswith(":8080 for 7200 s")
    client.handle_timeout(4050.0)
    (renewal,), _ = drain(client)
    request = decode(renewal)
    assert isinstance(request, pcp.MapRequest)
    assert (str(request.suggested_external_address), request.suggested_external_port) == (external, 8080)
    port = request.suggested_external_port  # which is what the answer has
    renewed = answer(renewal, epoch=5050, external_address=external, external_port=port)
    assert "stays open" in heard(client, renewed, now=4050.0, source=server)[-1]


@pytest.mark.field("MU-01")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_of_a_pair_tcp_is_renewed_right_behind_udp_and_when_udp_is_deleted(versions: tuple[int, ...]) -> None:
    story = Story(Quirk.UDP_RENEWAL_DROPS_TCP, versions=versions)
    _, udp = story.client.map_pair(8080, 0.0, lifetime=600)
    story.until(400.0)
    assert [entry.protocol for entry in story.gateway.mappings] == [UDP, TCP]
    story.client.unmap(udp, 400.0)
    story.until(410.0)
    assert [entry.protocol for entry in story.gateway.mappings] == [TCP]


@pytest.mark.field("MU-01")
def test_two_mappings_of_one_port_that_are_no_pair_do_not_know_of_each_other() -> None:
    story = Story(Quirk.UDP_RENEWAL_DROPS_TCP)
    story.client.map_port(UDP, 8080, 0.0, lifetime=600)
    story.client.map_port(TCP, 8080, 0.0, lifetime=1200)
    story.until(400.0)
    assert [entry.protocol for entry in story.gateway.mappings] == [UDP]


# --- deletes


@pytest.mark.field("FQ-27", "MU-08")
def test_a_repeated_delete_that_fails_is_done_and_nothing_is_asked_for_30_seconds() -> None:
    story = Story(Quirk.MISSING_DELETE_FAILS)
    mapping = story.client.map_port(TCP, 8080, 0.0)
    story.until(1.0).sim.connect(story.gateway, story.client, Link(loss=1.0))
    story.client.unmap(mapping, 1.0)
    story.until(2.0).sim.connect(story.gateway, story.client, Link())
    story.until(5.0).client.map_port(UDP, 9, 5.0)
    unsure = "TCP port 8080 was released, though the gateway did not confirm it"
    assert story.until(60.0).told[3:] == [(4.0, unsure), (34.0, f"UDP port 9 is open at {EXTERNAL}:2048 for 7200 s")]
    assert story.sent[1:] == [(1.0, PCP_DELETE), (4.0, PCP_DELETE), (34.0, ask_pcp(what="UDP 9"))]
    assert story.tolerated == {Tolerated.DELETE_REFUSED: 1}


@pytest.mark.field("FQ-29", "MU-23")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_delete_that_echoes_the_port_or_finds_nothing_is_confirmed(is_there: bool) -> None:
    story = Story(Quirk.DELETE_ECHOES_EXTERNAL_PORT, versions=(0,))
    mapping = story.client.map_port(TCP, 8080, 0.0)
    story.until(1.0)
    if not is_there:
        story.gateway.revoke(story.gateway.mappings[0].id, 1.0)
    story.client.unmap(mapping, 1.0)
    assert story.until(2.0).told[-1] == (1.0, "TCP port 8080 was released")
    assert story.sent[-1] == (1.0, DELETE)


@pytest.mark.field("MU-36")
def test_a_delete_that_is_answered_with_the_real_endpoint_is_confirmed() -> None:
    client = make_client()
    client.unmap(held(client), 1.0)
    (request,), _ = drain(client)
    assert heard(client, answer(request, external_port=40000), now=1.0) == ["TCP port 8080 was released"]


@pytest.mark.field("FQ-28", "FQ-30")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_closing_deletes_each_mapping_by_itself(versions: tuple[int, ...]) -> None:
    story = Story(Quirk.DELETE_ALL_TAKES_BOTH, versions=versions)
    for port in (80, 81):
        story.client.map_port(TCP, port, 0.0)
    neighbour = natpmp.MapRequest(UDP, 99).encode()
    story.gateway.receive_datagram(neighbour, (LOCAL, 40001), 0.0)  # another program of this host
    story.until(1.0).client.close(1.0)
    deletes = [line.partition("request: ")[2].split(" of ")[0] for at, line in story.until(2.0).sent if at == 1.0]
    assert deletes == ["TCP 80", "TCP 81"]
    assert [entry.internal.port for entry in story.gateway.mappings] == [99]


@pytest.mark.field("MU-33")
def test_a_delete_leaves_prefer_failure_out() -> None:
    story = Story()
    mapping = story.client.map_port(TCP, 8080, 0.0, external_port=7000, options=(pcp.PreferFailure(),))
    story.until(1.0).client.unmap(mapping, 1.0)
    assert story.until(2.0).sent[-1] == (1.0, PCP_DELETE)


@pytest.mark.field("MU-41")
def test_a_mapping_is_deleted_in_the_protocol_that_granted_it() -> None:
    client = make_client()
    asked(client)
    heard(client, bytes.fromhex("0081000100000064"))
    grant = natpmp_answer(natpmp.MapRequest(TCP, 8080).encode(), 100)
    heard(client, grant, natpmp_answer(b"\0\0", 100))
    heard(client, pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 100).encode())
    client.map_port(UDP, 9, 0.0)
    (in_pcp,), _ = drain(client)
    heard(client, answer(in_pcp, epoch=100))
    assert client.version == 2
    client.unmap(client.mappings[0].id, 1.0)
    assert [describe(data) for data in drain(client)[0]] == [DELETE]


@pytest.mark.field("MU-41", "MU-45")
def test_a_delete_that_is_not_authorized_lets_the_mapping_go_unconfirmed() -> None:
    client = make_client()
    client.unmap(held(client), 1.0)
    (request,), _ = drain(client)
    refusal = answer(request, result_code=NOT_AUTHORIZED, lifetime=0)
    unsure = "TCP port 8080 was released, though the gateway did not confirm it"
    assert heard(client, refusal, now=1.0) == [unsure]
    assert client.stats.tolerated == {Tolerated.DELETE_REFUSED: 1}
    assert client.next_timeout() is None


# --- the rows and the page


def shown() -> dict[str, list[str]]:
    """The stories of each row."""
    found: dict[str, list[str]] = {}
    for name, function in list(globals().items()):
        for mark in getattr(function, "pytestmark", []) if name.startswith("test_") else []:
            for row in mark.args if mark.name == "field" else ():
                if name not in found.setdefault(row, []):
                    found[row].append(name)
    return found


def page() -> str:
    stories, lines = shown(), []
    for row in ROWS:
        tests = "<br>".join(f"`{name}`" for name in stories.get(row["id"], []))
        lines.append(f"| {row['id']} | {row['seen']} | {row['does'] or row['reason']} | {tests} |\n")
    return HEAD + "".join(lines)


HEAD = """\
# What routers do, and what a client does then

Written by `python tests/test_field.py` from tests/requirements/field.csv and the stories of tests/test_field.py; not to
be edited. FQ are things seen at gateways of many makers, MU what miniupnpd 2.3.1 does. Where there is no story, the
third column says whose the matter is. `Tolerated` says what of it is counted and what `Config(strict=True)` turns off.

| row | seen | what the client does | shown by |
| --- | --- | --- | --- |
"""


def test_every_row_has_a_story_or_a_reason_and_not_both() -> None:
    stories = shown()
    ids = [row["id"] for row in ROWS]
    assert len(set(ids)) == len(ids)
    assert set(stories) - set(ids) == set()
    assert [row["id"] for row in ROWS if (row["id"] in stories) == bool(row["reason"])] == []
    assert [row["id"] for row in ROWS if bool(row["does"]) == bool(row["reason"])] == []
    whose = ("The adapter's", "The person's", "The gateway's alone")
    assert [row["id"] for row in ROWS if row["reason"] and not row["reason"].startswith(whose)] == []


def test_the_page_says_what_the_stories_show() -> None:
    """`python tests/test_field.py` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
