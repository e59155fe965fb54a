"""The command, as somebody at a shell meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopback import Server
from natpmp_sansio import Address, DiscoveryError
from natpmp_sansio.adapters import _driver, blocking, discovery
from natpmp_sansio.adapters.discovery import DefaultGateway

cli = pytest.importorskip("natpmp_sansio.cli", reason="the command needs its extra")


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "natpmp_sansio", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


Use = Callable[[Address], None]


@pytest.fixture
def at_gateway(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes an address the default gateway."""

    def use(address: Address) -> None:
        monkeypatch.setattr(discovery, "default_gateways", lambda **_: [DefaultGateway(address, "lo")])

    return use


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("map tcp 70000", "'70000' is no port; it is a number from 1 to 65535"),
        ("map tcp 0", "'0' is no port; it is a number from 1 to 65535"),
        ("map tcp http", "'http' is no port; it is a number from 1 to 65535"),
        ("map foo 1", "'foo' is no protocol that can be mapped; it is tcp or udp"),
        ("map tcp 80 --lifetime 0", "'0' is no lifetime in seconds; it is a number from 1 to 4294967295"),
        ("map tcp 80 --external-port x", "'x' is no port"),
        ("map tcp", "Missing argument 'PORT'"),
        ("map tcp 80 --nonsense", "No such option"),
        ("mapp tcp 80", "No such command 'mapp'"),
        ("map tcp 80 --gateway router", "'router' is not an IP address; name the gateway as 192.168.1.1, say"),
    ],
)
def test_wrong_use_gets_one_sentence_and_status_2(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments.split()) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("natpmp: ")
    assert sentence in errors
    assert errors.count("\n") == 1


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(["map", "tcp", "8080", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    return str(errors)


def test_a_closed_port_gets_one_sentence_and_status_1(
    closed: Address, at_gateway: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    at_gateway(closed)
    assert failure(capsys) == (
        "natpmp: TCP port 8080 was refused: the gateway's port is closed: it does not speak NAT-PMP or PCP, has it "
        "switched off for us, or is not up yet; switch NAT-PMP or PCP on in its settings, or name another one with "
        "--gateway.\n"
    )


def test_a_silent_gateway_gets_one_sentence_and_status_1(
    silent: Address, at_gateway: Use, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "LINGER", 0.05)
    at_gateway(silent)
    assert failure(capsys, "--timeout", "1") == (
        "natpmp: 127.0.0.1 has not answered within 1 s; check its address, and that NAT-PMP or PCP is switched on in "
        "its settings.\n"
    )


def test_a_refusal_gets_one_sentence_and_status_1(at_gateway: Use, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(first_port=5350, last_port=5350) as server:
        at_gateway(server.address)
        cli.run(["map", "udp", "8080"])
        errors = capsys.readouterr().err
    assert errors == (
        "natpmp: UDP port 8080 was refused: the gateway has no room for another mapping now (result code 8); "
        "try again later, or with another port.\n"
    )


def test_a_refusal_is_an_event_for_those_who_read_events(
    closed: Address, at_gateway: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    at_gateway(closed)
    assert cli.run(["map", "tcp", "8080", "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events][:2] == ["GatewayUnreachable", "MappingRefused"]
    assert events[1]["reason"] == "UNREACHABLE"


def test_giving_up_before_it_was_open_is_no_success(
    silent: Address, at_gateway: Use, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    at_gateway(silent)
    monkeypatch.setattr(blocking.Driven, "wait", interrupt)
    assert cli.run(["map", "tcp", "8080"]) == 130
    assert "not released" in capsys.readouterr().err


def test_no_gateway_gets_one_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(**_: object) -> object:
        raise DiscoveryError("this host has no default gateway: it may be offline")

    monkeypatch.setattr(discovery, "default_gateways", nothing)
    assert failure(capsys) == "natpmp: this host has no default gateway: it may be offline.\n"


def test_no_route_gets_one_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_route(*_: object) -> str:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("natpmp_sansio.adapters._sockets.source_address", no_route)
    assert failure(capsys, "--gateway", "192.0.2.1") == (
        "natpmp: cannot reach the gateway: Network is unreachable; check its address and this host's network.\n"
    )


def test_without_arguments_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    errors = capsys.readouterr().err
    assert "Open PORT" in errors
    assert cli.run(["map", "--help"]) == 0
    assert "--external-port" in capsys.readouterr().out


def test_the_demo_shows_every_datagram_and_ends_by_itself() -> None:
    begun = time.monotonic()
    with start("demo") as demo:
        output, errors = demo.communicate(timeout=30)
    assert (demo.returncode, errors) == (0, "")
    assert time.monotonic() - begun < 15.0
    for part in (
        "to 127.0.0.1: PCP MAP request: TCP 8080 of 127.0.0.1",
        "from 127.0.0.1: PCP MAP response: TCP 8080: external 203.0.113.5",
        "TCP port 8080 is open at 203.0.113.5:",
        "TCP port 8080 stays open at 203.0.113.5:",
        ": delete",
        "TCP port 8080 was released",
    ):
        assert part in output


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_map_keeps_a_port_open_until_it_is_told_to_stop(ending: signal.Signals) -> None:
    # In a process of its own, with a gateway of its own as the default one.
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it as ignored\n"
        "from natpmp_sansio import cli\n"
        "from natpmp_sansio.adapters import blocking, discovery\n"
        "from loopback import Server\n"
        "with Server() as server:\n"
        "    discovery.default_gateways = lambda **_: [discovery.DefaultGateway(server.address, 'lo')]\n"
        "    status = cli.run(['map', 'tcp', '8080', '--json', '-v', '--external-port', '8080'])\n"
        "print(*[type(event).__name__ for event in server.events])\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", script]
    paths = {"PYTHONPATH": str(Path(__file__).parent)}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=paths)
    try:
        assert program.stdout is not None
        events: list[dict[str, Any]] = []
        while not events or events[-1]["event"] != "MappingGranted":
            events.append(json.loads(program.stdout.readline()))
        program.send_signal(ending)
        output, errors = program.communicate(timeout=15)
    finally:
        program.kill()
        program.communicate()
    granted = events[-1]
    assert granted["external"] == {"address": "203.0.113.5", "port": 8080}
    assert (granted["protocol"], granted["internal_port"], granted["lifetime"]) == ("TCP", 8080, 7200.0)
    assert abs(granted["expires_at"] - time.time() - 7200.0) < 30.0
    *rest, created_and_deleted = output.splitlines()
    assert [json.loads(line)["event"] for line in rest] == ["MappingReleased", "Closed"]
    assert created_and_deleted == "MappingCreated MappingDeleted"
    assert program.returncode == 0
    assert "PCP MAP request: TCP 8080 of 127.0.0.1: delete" in errors
    assert "Traceback" not in errors
