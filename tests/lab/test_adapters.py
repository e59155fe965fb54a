"""The three adapters at miniupnpd, side by side in one network: what they find, notice and follow by themselves."""

from __future__ import annotations

import time
import typing
from pathlib import Path

import pytest

from lab.gateway import EXTERNAL, GATEWAY, HOST, HOST_V6, Lab, Rule, eventually, why_not
from lab.stories import PATIENCE, Event, Program, story

FACES = ("blocking", "asyncio", "trio")
LEASE = 12  # s; miniupnpd does not announce itself in NAT-PMP, so that the renewal at half of that shows a restart
SETTINGS: dict[str, dict[str, typing.Any]] = {"PCP": {}, "NAT-PMP": {"config": '{"versions": [0]}', "lifetime": LEASE}}


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    pytest.importorskip("pyroute2", reason="the lab needs pyroute2, to look the gateway up")
    pytest.importorskip("trio", reason="the extra `trio` is not installed")
    if reason := why_not():
        pytest.skip(reason)


class Keeper(Program):
    """A program that keeps one port open and answers there."""

    def __init__(self, lab: Lab, directory: Path, face: str, protocol: str, port: int, **options: typing.Any) -> None:
        self.lab, self.name, self.port = lab, f"{face}, {protocol}", port
        super().__init__(lab, directory, f"echo:{port}", "--datagrams", face=face, **options)

    def rule(self, address: str) -> Rule | None:
        """The rule of the gateway that leads to its port."""
        return next((rule for rule in self.lab.rules() if rule[2:] == (address, self.port)), None)

    def answers(self, address: str) -> bool:
        """Whether what is sent outside is answered inside."""
        rule = self.rule(address)
        payload = f"to {self.name}".encode()
        return rule is not None and self.lab.call(rule, payload) == payload


def seconds_until(keepers: list[Keeper], address: str, since: float) -> dict[str, float]:
    """When each of the rules was there, and then its payload."""
    came: dict[str, float] = {}

    def have_all() -> bool:
        rules = {(rule.internal_address, rule.internal_port) for rule in keepers[0].lab.rules()}
        now = time.monotonic()
        for keeper in keepers:
            if (address, keeper.port) in rules:
                came.setdefault(keeper.name, now - since)
        return len(came) == len(keepers)

    eventually(have_all, "rules for all", lambda: [each.said() for each in keepers if each.name not in came], PATIENCE)
    assert [each.name for each in keepers if not each.answers(address)] == []
    return came


def open_ports(lab: Lab, directory: Path, *protocols: str, **options: typing.Any) -> list[Keeper]:
    """A program for each protocol and face; nobody tells them where the gateway is."""
    return [
        Keeper(lab, directory, face, protocol, 9000 + 10 * i + j, **SETTINGS[protocol], **options)
        for i, protocol in enumerate(protocols)
        for j, face in enumerate(FACES)
    ]


def close_ports(keepers: list[Keeper]) -> None:
    for keeper in keepers:
        keeper.stop()
    assert keepers[0].lab.rules() == []


# --- restarts


def how_noticed(keeper: Keeper, since: float) -> str:
    """What had come from the gateway last when the program took it for restarted, and when that was."""
    said = [each for each in keeper.events("Datagram", "GatewayRestarted") if each["at"] > since]
    (at,) = (i for i, each in enumerate(said) if each["event"] == "GatewayRestarted")
    last = [each for each in said[:at] if each["text"].startswith("from")][-1]
    how = "announcement" if "ANNOUNCE" in last["text"] else "epoch"
    return f"{how} after {said[at]['at'] - since:.1f} s"


def restart(lab: Lab, keepers: list[Keeper], address: str) -> str:
    seconds_until(keepers, address, 0.0)
    lab.restart()
    came = seconds_until(keepers, address, lab.booted)
    lines = [f"{each.name}: {how_noticed(each, lab.booted)}, rule after {came[each.name]:.1f} s" for each in keepers]
    close_ports(keepers)
    return "\n".join(lines)


@story
def test_a_restart_is_noticed_over_ipv4(directory: Path) -> str:
    with Lab(directory) as lab:
        keepers = open_ports(lab, directory, "PCP", "NAT-PMP")
        return restart(lab, keepers, HOST)


@story
def test_a_restart_is_noticed_over_ipv6(directory: Path) -> str:
    with Lab(directory) as lab:
        lab.run("host", "ip", "-4", "route", "del", "default")
        return restart(lab, open_ports(lab, directory, "PCP"), HOST_V6)


# --- another network


@story
def test_move(directory: Path) -> str:
    with Lab(directory) as lab:
        keepers = open_ports(lab, directory, "PCP", "NAT-PMP", bind="lan0")
        seconds_until(keepers, HOST, 0.0)
        begin = time.monotonic()
        lab.run("host", "ip", "-batch", "-", text=f"""
            addr del {HOST}/24 dev lan0
            addr add 192.168.77.3/24 dev lan0
            route add default via 192.168.77.1
            """)
        came = seconds_until(keepers, "192.168.77.3", begin)
        out = [str(came)]
        for _ in range(20):
            out.append(f"{time.monotonic()-begin:.1f} {lab.rules()}")
            time.sleep(1.5)
        for k in keepers: k.stop()
        out.append(f"{time.monotonic()-begin:.1f} {lab.rules()}")
        out += [k.said() for k in keepers]
        Path("/tmp/lab/move.txt").write_text("\n".join(out))
        return str(came)


@story
def test_closed(directory: Path) -> str:
    with Lab(directory) as lab:
        lab.stop()
        keepers = open_ports(lab, directory, "PCP", "NAT-PMP")
        for k in keepers: k.await_event("GatewayUnreachable")
        time.sleep(3)
        lab.start()
        came = seconds_until(keepers, HOST, lab.booted)
        for k in keepers: k.stop()
        Path("/tmp/lab/closed.txt").write_text("\n".join([k.said() for k in keepers]))
        return str(came)
