"""libtorrent at `natpmp gateway`: it asks in PCP, and goes over to NAT-PMP when PCP gets the version error.

It asks port 5351 of the default gateway, so it needs a network of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from lab.gateway import GATEWAY, Lab, eventually, why_not

PYTHON = "/usr/bin/python3"
SESSION = Path(__file__).with_name("torrent_session.py")
TCP, UDP = (f"{protocol} 203.0.113.5:6881 > 192.168.77.2:6881" for protocol in ("TCP", "UDP"))

Alerts = list[tuple[str, str]]


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    pytest.importorskip("click", reason="the command needs its extra")
    if reason := why_not():
        pytest.skip(reason)
    try:
        subprocess.run([PYTHON, "-c", "import libtorrent"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{PYTHON} has no libtorrent; it is in the package python3-libtorrent")


class CommandLab(Lab):
    """The same network, with `natpmp gateway` on the gateway."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        self._options = options

    def start(self) -> None:
        command = (sys.executable, "-m", "natpmp_sansio", "gateway", "--address", GATEWAY, "--json", "-v")
        self._run_on_gateway(*command, *self._options)
        eventually(lambda: "GatewayReady" in self.said(), "natpmp gateway is ready", self.said)

    def said(self) -> str:
        """Everything that the command has printed so far, events and datagrams."""
        return self._log()

    def programmed(self) -> list[tuple[str, str]]:
        """What it would have done so far."""
        events = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [(event["event"], _rule(event)) for event in events if "mapping" in event]


def _rule(event: dict[str, typing.Any]) -> str:
    outside, inside = ("{address}:{port}".format(**event[side]) for side in ("external", "internal"))
    return f"{event['protocol']} {outside} > {inside}"


def run_session(lab: Lab, results: int) -> Alerts:
    """The alerts of a session that ends after so many results."""
    output, errors = lab.popen(PYTHON, str(SESSION), str(results)).communicate(timeout=30)
    assert errors == ""
    return [tuple(json.loads(line)) for line in output.splitlines()]


def messages(alerts: Alerts, kind: str) -> list[str]:
    return [message for name, message in alerts if name == kind]


def asked(alerts: Alerts) -> list[tuple[str, str]]:
    """In which protocol mappings were asked for, and what for, each once."""
    found = re.findall(
        r"==> port map .* transport: (\S+) proto: (\S+)", "\n".join(messages(alerts, "portmap_log_alert"))
    )
    return list(dict.fromkeys(found))


PCP = [("PCP", "TCP"), ("PCP", "UDP")]
NAT_PMP = [("PCP", "TCP"), ("NAT-PMP", "TCP"), ("NAT-PMP", "UDP")]


@pytest.mark.parametrize(
    ("options", "requests", "learnt"),
    [
        ((), PCP, "PCP MAP request: TCP 6881 of 192.168.77.2: suggests 203.0.113.5 port 6881, for 3600 s"),
        (("--only", "nat-pmp"), NAT_PMP, "<== public IP address [ 203.0.113.5 ]"),
    ],
    ids=["PCP", "NAT-PMP"],
)
def test_libtorrent_learns_the_address_and_maps_renews_and_deletes(
    options: tuple[str, ...], requests: list[tuple[str, str]], learnt: str, tmp_path: Path
) -> None:
    with CommandLab(tmp_path, "--max-lifetime", "6", *options) as lab:  # renewed after three quarters of that
        alerts = run_session(lab, results=4)
        eventually(lambda: len(lab.programmed()) == 6, "both mappings are deleted again", lab.said)
    assert lab.programmed() == [
        (event, rule) for event in ("MappingCreated", "MappingRefreshed", "MappingDeleted") for rule in (TCP, UDP)
    ]
    success = "successfully mapped port using NAT-PMP. local: 192.168.77.2 external port: {}/6881"
    assert messages(alerts, "portmap_alert") == [success.format("TCP"), success.format("UDP")] * 2
    assert messages(alerts, "portmap_error_alert") == []
    assert asked(alerts) == requests
    assert learnt in lab.said() + "\n".join(messages(alerts, "portmap_log_alert"))


@pytest.mark.parametrize(("options", "requests"), [((), PCP), (("--only", "nat-pmp"), NAT_PMP)], ids=["PCP", "NAT-PMP"])
def test_libtorrent_is_refused(options: tuple[str, ...], requests: list[tuple[str, str]], tmp_path: Path) -> None:
    with CommandLab(tmp_path, "--quirk", "switched-off", *options) as lab:
        alerts = run_session(lab, results=2)
    assert lab.programmed() == []
    refusal = "could not map port using NAT-PMP[192.168.77.2]: not authorized"
    assert messages(alerts, "portmap_error_alert") == [refusal] * 2
    assert messages(alerts, "portmap_alert") == []
    assert asked(alerts) == requests


@pytest.mark.parametrize("form", ["printed", "echoes-opcode", "in-4-octets", "in-full"])
def test_libtorrent_understands_every_form_of_the_version_error(form: str, tmp_path: Path) -> None:
    with CommandLab(tmp_path, "--quirk", f"version-error-{form}") as lab:
        alerts = run_session(lab, results=2)
    assert len(messages(alerts, "portmap_alert")) == 2
    assert asked(alerts) == NAT_PMP
