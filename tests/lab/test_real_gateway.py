"""The blocking adapter and the command against miniupnpd and nftables, in network namespaces."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.gateway import Lab, Mode, eventually, why_not
from lab.stories import KEEP_PORTS

WANTED = [("tcp", "192.168.77.2", 8080), ("udp", "192.168.77.2", 8081)]
NATPMP = (sys.executable, "-m", "natpmp_sansio")

Programs = list[subprocess.Popen[str]]


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    pytest.importorskip("pyroute2", reason="the lab needs pyroute2, to look the gateway up")
    pytest.importorskip("click", reason="the lab needs click, for the command")
    if reason := why_not():
        pytest.skip(reason)


def blocking_adapter(lab: Lab, lifetime: int) -> Programs:
    return [lab.popen(*KEEP_PORTS, "tcp:8080", "udp:8081", "--lifetime", str(lifetime))]


def command(lab: Lab, lifetime: int) -> Programs:
    return [
        lab.popen(*NATPMP, "map", protocol, str(port), "--json", "--lifetime", str(lifetime))
        for protocol, _, port in WANTED
    ]


def stop(programs: Programs) -> list[dict[str, typing.Any]]:
    """Tell them to end, which they do without complaint; the events they have seen."""
    events = []
    for program in programs:
        program.terminate()
        output, errors = program.communicate(timeout=15)
        assert (program.returncode, errors) == (0, "")
        events += [json.loads(line) for line in output.splitlines()]
    return events


def endpoints(lab: Lab) -> list[tuple[str, str, int]]:
    return [(rule.protocol, rule.internal_address, rule.internal_port) for rule in lab.rules()]


# A PCP client hears the gateway's announcement. miniupnpd does not announce itself in NAT-PMP: there the next renewal
# shows the restart, so leases have to be short.
@pytest.mark.parametrize(("version", "lifetime"), [(2, 7200), (0, 12)], ids=["PCP", "NAT-PMP only"])
@pytest.mark.parametrize("start", [blocking_adapter, command])
def test_ports_are_open_survive_a_gateway_restart_and_are_closed_after_release(
    start: Callable[[Lab, int], Programs], version: int, lifetime: int, tmp_path: Path
) -> None:
    with Lab(tmp_path, mode=Mode.BOTH if version else Mode.NAT_PMP) as lab:
        programs = start(lab, lifetime)
        eventually(lambda: endpoints(lab) == WANTED, "both ports are open", lab.rules)
        rules = lab.rules()
        assert [lab.send(rule, f"{rule}".encode()) for rule in rules] == [f"{rule}".encode() for rule in rules]

        lab.restart()
        eventually(lambda: lab.rules() == rules, "both ports are open again", lab.rules)
        assert [lab.send(rule, b"still there") for rule in rules] == [b"still there"] * 2

        events = stop(programs)
        assert lab.rules() == []
        with pytest.raises(ConnectionRefusedError):
            lab.send(rules[0], b"too late")

    def seen(name: str) -> list[dict[str, typing.Any]]:
        return [event for event in events if event["event"] == name]

    assert {event["version"] for event in seen("VersionNegotiated")} == {version}
    assert [event["external"] for event in seen("MappingGranted")] == [
        {"address": "11.22.33.44", "port": rule.external_port} for rule in rules
    ]
    assert len(seen("GatewayRestarted")) == len(programs)
    assert [event["confirmed"] for event in seen("MappingReleased")] == [True, True]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Its gateway allows nothing."""
    with Lab(tmp_path, rules="") as lab:
        yield lab


def complaint(lab: Lab) -> str:
    """What `natpmp map` says, in one line, when it fails."""
    program = lab.popen(*NATPMP, "map", "tcp", "8080")
    output, errors = program.communicate(timeout=30)
    assert (program.returncode, output, errors.count("\n")) == (1, "", 1)
    return errors


def test_a_refusal_ends_the_command_with_its_reason(lab: Lab) -> None:
    assert "the gateway does not allow it" in complaint(lab)
    assert lab.rules() == []


def test_a_gateway_without_the_service_ends_the_command_with_its_reason(lab: Lab) -> None:
    lab.stop()
    assert "the gateway's port is closed" in complaint(lab)


def test_a_host_without_a_default_route_ends_the_command_with_its_reason(lab: Lab) -> None:
    for family in ("-4", "-6"):
        lab.run("host", "ip", family, "route", "flush", "default")
    assert "this host has no default gateway" in complaint(lab)


def gateways_of(lab: Lab) -> list[tuple[object, str]]:
    """What discovery finds in the host's namespace."""
    code = (
        "from natpmp_sansio.adapters.discovery import *; print([(g.address, g.interface) for g in default_gateways()])"
    )
    output, errors = lab.popen(sys.executable, "-c", code).communicate(timeout=30)
    assert errors == ""
    found: list[tuple[object, str]] = ast.literal_eval(output)
    return found


def test_the_default_gateways_of_both_families_are_found(lab: Lab) -> None:
    index = int(lab.run("host", "cat", "/sys/class/net/lan0/ifindex"))  # a link-local address needs its interface
    ipv4, ipv6 = (("192.168.77.1", 5351), "lan0"), (("fe80::1", 5351, 0, index), "lan0")
    assert gateways_of(lab) == [ipv4, ipv6]
    lab.run("host", "ip", "-4", "route", "flush", "default")
    assert gateways_of(lab) == [ipv6]


def test_half_default_routes_count_and_a_tunnel_has_no_gateway_to_name(lab: Lab) -> None:
    lab.run("host", "ip", "-6", "route", "flush", "default")
    lab.run("host", "ip", "route", "add", "128.0.0.0/1", "via", "192.168.77.9")  # half of all, as VPNs do
    assert gateways_of(lab) == [(("192.168.77.9", 5351), "lan0")]
    lab.run("host", "ip", "route", "replace", "128.0.0.0/1", "dev", "lan0")
    assert "the default route through lan0 names no gateway, as is usual for a tunnel" in complaint(lab)
