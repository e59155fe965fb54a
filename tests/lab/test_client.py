"""Stories of a client and miniupnpd, in real time: bad weather, restarts, other addresses, other protocols, refusals.

What a story does most is wait, so those that are asked for run all at once, each in a lab of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lab.gateway import ALLOW, EXTERNAL, GATEWAY_V6, HOST, HOST_V6, Lab, Mode, Rule, eventually, why_not
from lab.stories import GRANTS, PATIENCE, Program, arrives, await_rules, story

OTHER_EXTERNAL = "11.22.33.55"
TCP, UDP = Rule("tcp", 8080, HOST, 8080), Rule("udp", 8081, HOST, 8081)
BOTH, PORTS = [TCP, UDP], ("tcp:8080", "udp:8081")


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    pytest.importorskip("pyroute2", reason="the lab needs pyroute2, to look the gateway up")
    if reason := why_not(weather=True):
        pytest.skip(reason)


# --- loss and copies


def lose_thirty_percent(directory: Path, mode: Mode, **options: str) -> str:
    """Ports open, and what the client says of them is what the kernel has, though leases are lost now and then."""
    rules = [
        Rule(name, port, HOST, port) for name, port in (("tcp", 9001), ("tcp", 9002), ("udp", 9003), ("udp", 9004))
    ]
    with Lab(directory, mode=mode) as lab:
        lab.weather(lost=30, seed=3)  # in PCP the third try opens the last of them
        begin = time.monotonic()
        ports = [f"{rule.protocol}:{rule.internal_port}" for rule in rules]
        program = Program(lab, directory, *ports, lifetime=20, **options)
        await_rules(lab, rules, program)
        opened = time.monotonic() - begin
        assert [rule for rule in rules if not arrives(lab, rule)] == []
        eventually(lambda: len(program.events(*GRANTS)) >= 12, "grants and renewals", program.said, PATIENCE)
        eventually(
            lambda: program.held() == [(r.protocol, r.internal_port) for r in lab.rules()], "the same", program.said
        )
        sent, lost = lab.requests(), len(program.events("MappingLost"))
        program.stop()
        await_rules(lab, [], program)  # those whose deletion was lost as well end with their lease
    return f"30 % loss: {len(rules)} ports open after {opened:.1f} s, {lost} leases lost, {sent} requests"


@story
def test_pcp_gets_through_thirty_percent_loss(directory: Path) -> str:
    return "PCP, " + lose_thirty_percent(directory, Mode.BOTH, config='{"versions": [2]}')


@story
def test_nat_pmp_gets_through_thirty_percent_loss(directory: Path) -> str:
    return "NAT-PMP, " + lose_thirty_percent(directory, Mode.NAT_PMP)


def double_everything(directory: Path, mode: Mode) -> None:
    """A copy of a request, an answer or an announcement changes nothing."""
    with Lab(directory, mode=mode) as lab:
        lab.weather(doubled=100)
        program = Program(lab, directory, *PORTS, lifetime=10)
        await_rules(lab, BOTH, program)
        program.await_grants(BOTH, since=time.monotonic() + 1.0)  # by then all copies of the first answers have come
        lab.restart()
        await_rules(lab, BOTH, program)
        assert [arrives(lab, rule) for rule in BOTH] == [True, True]
        program.stop()
        assert lab.rules() == []
    assert [event["mapping"] for event in program.events("MappingGranted")] == [1, 2]
    assert len(program.events("GatewayRestarted")) == 1
    assert program.events("MappingLost", "MappingChanged", "MappingRefused", "GatewayUnreachable") == []
    assert [event["confirmed"] for event in program.events("MappingReleased")] == [True, True]


@story
def test_copies_of_pcp_datagrams_change_nothing(directory: Path) -> None:
    double_everything(directory, Mode.BOTH)


@story
def test_copies_of_nat_pmp_datagrams_change_nothing(directory: Path) -> None:
    double_everything(directory, Mode.NAT_PMP)


# --- restarts


def restart(lab: Lab, program: Program, rules: list[Rule]) -> str:
    """The rules are back without anyone asking, and packets arrive; how long that took."""
    await_rules(lab, rules, program)
    lab.restart()
    begin = time.monotonic()
    await_rules(lab, rules, program)
    seconds = time.monotonic() - begin
    assert [arrives(lab, rule) for rule in rules] == [True] * len(rules)
    program.stop()
    assert lab.rules() == []
    return f"restart: rules are back after {seconds:.1f} s"


@story
def test_after_a_restart_the_rules_are_back_in_pcp(directory: Path) -> str:
    with Lab(directory) as lab:
        return "PCP, " + restart(lab, Program(lab, directory, *PORTS), BOTH)


@story
def test_after_a_restart_the_rules_are_back_in_nat_pmp(directory: Path) -> str:
    # miniupnpd does not announce itself in NAT-PMP: the next renewal shows the restart.
    with Lab(directory, mode=Mode.NAT_PMP) as lab:
        return "NAT-PMP, " + restart(lab, Program(lab, directory, *PORTS, lifetime=12), BOTH)


@story
def test_after_a_restart_that_the_epoch_hides_the_announcement_brings_the_rules_back(directory: Path) -> str:
    with Lab(directory, system_uptime=True) as lab:
        program = Program(lab, directory, *PORTS)
        figure = restart(lab, program, BOTH)
    assert program.events("GatewayRestarted") == []
    return "PCP, epoch goes on, " + figure


@story
def test_after_a_restart_the_pinholes_are_back(directory: Path) -> str:
    with Lab(directory) as lab:
        return "IPv6, " + restart(lab, open_pinholes(lab, directory), PINHOLES)


# --- other addresses


def readdress(directory: Path, mode: Mode, *, is_noticed: bool, lifetime: int) -> None:
    """The client tells its new external address, and packets arrive there."""
    with Lab(directory, mode=mode) as lab:
        program = Program(lab, directory, *PORTS, lifetime=lifetime)
        await_rules(lab, BOTH, program)
        assert program.await_event("ExternalAddressLearned")["address"] == EXTERNAL
        lab.grow_up()  # miniupnpd sets its epoch back
        lab.readdress(OTHER_EXTERNAL, is_noticed=is_noticed)
        program.await_event("ExternalAddressChanged", old=EXTERNAL, new=OTHER_EXTERNAL)
        for number, rule in enumerate(BOTH, 1):
            old, new = ({"address": a, "port": rule.external_port} for a in (EXTERNAL, OTHER_EXTERNAL))
            program.await_event("MappingChanged", mapping=number, old=old, new=new)
        assert [arrives(lab, rule) for rule in BOTH] == [True, True]
        program.stop()
        assert lab.rules() == []
    assert program.events("MappingLost") == []


@story
def test_another_external_address_is_told_at_once_in_pcp(directory: Path) -> None:
    readdress(directory, Mode.BOTH, is_noticed=True, lifetime=7200)


@story
def test_another_external_address_is_told_at_once_in_nat_pmp(directory: Path) -> None:
    readdress(directory, Mode.NAT_PMP, is_noticed=True, lifetime=7200)


@story
def test_another_external_address_that_is_not_announced_is_told_at_the_next_renewal(directory: Path) -> None:
    readdress(directory, Mode.BOTH, is_noticed=False, lifetime=12)


# --- other protocols


@story
def test_a_gateway_that_speaks_less_and_then_more_is_followed_in_both_directions(directory: Path) -> None:
    with Lab(directory) as lab:
        program = Program(lab, directory, *PORTS, lifetime=8, config='{"version_memory": 4}')
        for count, (mode, version) in enumerate(
            [(Mode.BOTH, 2), (Mode.NAT_PMP, 0), (Mode.BOTH, 2), (Mode.PCP_SILENT, 0), (Mode.BOTH, 2)]
        ):
            lab.switch(mode)
            program.await_event("VersionNegotiated", count=count // 2 + 1, version=version)
            await_rules(lab, BOTH, program)
            assert [arrives(lab, rule) for rule in BOTH] == [True, True]
        program.stop()
        await_rules(lab, [], program)
    assert [event["version"] for event in program.events("VersionNegotiated")] == [2, 0, 2, 0, 2]


@story
def test_a_gateway_that_falls_silent_or_closes_its_port_gets_everything_back_when_it_answers(directory: Path) -> None:
    with Lab(directory) as lab:
        program = Program(lab, directory, *PORTS, lifetime=8, config='{"min_hold": 2}')
        await_rules(lab, BOTH, program)
        lab.switch(Mode.SILENT)
        program.await_event("MappingLost", count=2, reason="Reason.EXPIRED")
        await_rules(lab, [], program)
        lab.switch(Mode.BOTH)
        await_rules(lab, BOTH, program)
        program.await_event("MappingGranted", count=4)

        lab.switch(Mode.CLOSED)
        program.await_event("GatewayUnreachable", reason="Reason.UNREACHABLE")
        lab.switch(Mode.BOTH)
        program.await_grants(BOTH, since=program.await_event("GatewayRecovered")["at"])
        assert [arrives(lab, rule) for rule in BOTH] == [True, True]
        program.stop()
        assert lab.rules() == []


# --- refusals and bounds


def refuse(directory: Path, mode: Mode, requests: int) -> None:
    """One port is denied: it is not asked for again soon, and the others are none the worse."""
    with Lab(directory, mode=mode, rules=f"deny 0-65535 192.168.77.0/24 8081\n{ALLOW}") as lab:
        before = lab.requests()
        refused = Program(lab, directory, "udp:8081")
        refusal = refused.await_event("MappingRefused")
        assert refusal["reason"] == "Reason.NOT_AUTHORIZED"
        assert refusal["retry_at"] - refusal["at"] >= 29.0
        time.sleep(5.0)  # that nothing happens takes time to see
        assert lab.requests() - before == requests
        allowed = Program(lab, directory, "tcp:8080")
        await_rules(lab, [TCP], allowed)
        assert arrives(lab, TCP)
        assert not arrives(lab, UDP)
        refused.stop()
        assert lab.rules() == [TCP]
    assert len(refused.events("MappingRefused")) == 1


@story
def test_a_denied_port_costs_one_datagram_in_pcp(directory: Path) -> None:
    refuse(directory, Mode.BOTH, requests=1)


@story
def test_a_denied_port_costs_one_datagram_in_each_protocol(directory: Path) -> None:
    refuse(directory, Mode.NAT_PMP, requests=2)


@story
def test_what_the_gateway_makes_of_a_lifetime_is_told_and_renewals_follow_it(directory: Path) -> None:
    with Lab(directory, lifetimes=(10, 16)) as lab:
        for port, asked, granted in (("tcp:8080", 1, 10), ("udp:8081", 7200, 16)):
            program = Program(lab, directory, port, lifetime=asked)
            grant = program.await_event("MappingGranted")
            renewal = program.await_event("MappingRenewed")
            program.stop()
            assert (grant["lifetime"], renewal["lifetime"]) == (granted, granted)
            assert granted / 2 <= renewal["at"] - grant["at"] < granted
            assert program.events("MappingLost") == []
        assert lab.rules() == []


# --- IPv6

PINHOLES = [Rule("tcp", 8080, HOST_V6, 8080), Rule("udp", 8081, HOST_V6, 8081)]


def open_pinholes(lab: Lab, directory: Path) -> Program:
    return Program(lab, directory, *PORTS, gateway=GATEWAY_V6)


@story
def test_pinholes_of_the_ipv6_firewall_let_packets_through_until_they_are_released(directory: Path) -> None:
    # After its first renewal miniupnpd deletes no pinhole any more; leases are long enough here.
    with Lab(directory) as lab:
        assert [arrives(lab, rule) for rule in PINHOLES] == [False, False]
        program = open_pinholes(lab, directory)
        await_rules(lab, PINHOLES, program)
        assert [arrives(lab, rule) for rule in PINHOLES] == [True, True]
        program.stop()
        assert lab.rules() == []
        assert [arrives(lab, rule) for rule in PINHOLES] == [False, False]
    assert [event["external"] for event in program.events("MappingGranted")] == [
        {"address": HOST_V6, "port": rule.external_port} for rule in PINHOLES
    ]
    assert [event["confirmed"] for event in program.events("MappingReleased")] == [True, True]


# --- pairs


def keep_pair(directory: Path, mode: Mode, lifetime: int) -> None:
    """miniupnpd takes TCP's filter rule away with each renewal of its UDP twin. A renewal of TCP puts it back."""
    tcp, udp = Rule("tcp", 9000, HOST, 9000), Rule("udp", 9000, HOST, 9000)
    with Lab(directory, mode=mode) as lab:
        program = Program(lab, directory, "pair:9000", lifetime=lifetime)
        since = 0.0
        for _ in range(4):
            program.await_grants([tcp, udp], since)
            since = time.monotonic()
            assert lab.rules() == [tcp, udp]
            assert [arrives(lab, rule) for rule in (tcp, udp)] == [True, True]
        program.stop()
        assert lab.rules() == []
    assert program.events("PairSplit", "MappingLost", "MappingChanged") == []


@story
def test_tcp_arrives_after_every_renewal_of_its_twin_in_pcp(directory: Path) -> None:
    keep_pair(directory, Mode.BOTH, lifetime=9)


@story
def test_tcp_arrives_after_every_renewal_of_its_twin_in_nat_pmp(directory: Path) -> None:
    keep_pair(directory, Mode.NAT_PMP, lifetime=4)
