"""The three adapters at miniupnpd, side by side in one network: what they find, hear and follow by themselves."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.gateway import GATEWAY, HOST, HOST_V6, Lab, Rule, eventually, why_not
from lab.stories import PATIENCE, Program, story

FACES = ("blocking", "asyncio", "trio")
OTHER_HOST, OTHER_HOST_V6 = "192.168.77.3", "2001:db8:77::3"
LEASE = 12  # s
NAT_PMP = '{"versions": [0], "min_hold": 2}'


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    pytest.importorskip("pyroute2", reason="the lab needs pyroute2, to look the gateway up")
    pytest.importorskip("trio", reason="the extra `trio` is not installed")
    if reason := why_not():
        pytest.skip(reason)


class Keeper(Program):
    """A program that keeps a port open and answers there. Nobody has told it where the gateway is."""

    def __init__(self, lab: Lab, directory: Path, name: str, port: int, address: str, **options: typing.Any) -> None:
        super().__init__(lab, directory, f"echo:{port}", "--datagrams", **options)
        self.lab, self.name, self.port, self.address = lab, name, port, address

    def external_port(self, rules: list[Rule], address: str) -> int | None:
        """What leads to its port at this address."""
        return next((rule.external_port for rule in rules if rule[2:] == (address, self.port)), None)

    def answers(self) -> bool:
        """Whether what is sent to it from outside is answered."""
        payload, port = f"to {self.name}".encode(), self.external_port(self.lab.rules(), self.address)
        return self.lab.call(Rule("udp", port or 0, self.address, self.port), payload) == payload

    def when(self, since: float, *names: str) -> tuple[float, str]:
        """After how many seconds one of these events came, and the last word of the gateway before."""
        said = [each for each in self.events("Datagram", *names) if each["at"] > since]
        index = next(i for i, each in enumerate(said) if each["event"] in names)
        words = [each["text"] for each in said[:index] if not each["text"].startswith("to ")]
        return said[index]["at"] - since, words[-1] if words else ""


def start(
    lab: Lab, directory: Path, name: str, first_port: int, address: str = HOST, **options: typing.Any
) -> list[Keeper]:
    """A program with each adapter."""
    return [
        Keeper(lab, directory, f"{name}, {face}", first_port + i, address, face=face, **options)
        for i, face in enumerate(FACES)
    ]


def await_rules(
    keepers: list[Keeper], are_right: Callable[[Keeper, list[Rule]], bool], since: float = 0.0
) -> list[float]:
    """Until the rules are right for each of them; after how many seconds they were."""
    seconds: dict[Keeper, float] = {}

    def is_over() -> bool:
        rules, now = keepers[0].lab.rules(), time.monotonic()
        for keeper in keepers:
            if keeper not in seconds and are_right(keeper, rules):
                seconds[keeper] = now - since
        return len(seconds) == len(keepers)

    eventually(is_over, "so for all", lambda: [each.said() for each in keepers if each not in seconds], PATIENCE)
    return [seconds[keeper] for keeper in keepers]


def await_open(keepers: list[Keeper], since: float = 0.0) -> list[float]:
    """Until each has its rule, and is reached through it; after how many seconds the rule was there."""
    opened = await_rules(keepers, lambda each, rules: each.external_port(rules, each.address) is not None, since)
    assert [keeper.name for keeper in keepers if not keeper.answers()] == []
    return opened


def found(keepers: list[Keeper]) -> set[tuple[str, str]]:
    """Which gateway they ask, and from which address."""
    opened = [keeper.await_event("Opened") for keeper in keepers]
    return {(event["gateway"][0], event["local"][0]) for event in opened}


def stop(keepers: list[Keeper]) -> None:
    """They release what they have, and the lease ends of what they could not."""
    for keeper in keepers:
        keeper.stop()
    eventually(lambda: keepers[0].lab.rules() == [], "all is closed", keepers[0].lab.rules, 2 * LEASE)


def restart(keepers: list[Keeper]) -> list[str]:
    """The gateway restarts. It announces that in PCP alone; in NAT-PMP the answer to the next renewal shows it."""
    lab = keepers[0].lab
    lab.restart()
    opened = await_open(keepers, lab.booted)
    figures = []
    for keeper, seconds in zip(keepers, opened, strict=True):
        # Who asks while it is down is told so, and then that it is up.
        after, word = keeper.when(lab.booted, "GatewayRestarted", "GatewayRecovered")
        assert ("PCP ANNOUNCE" in word) is keeper.name.startswith("PCP"), keeper.said()
        how = "an announcement" if "ANNOUNCE" in word else "the epoch"
        figures.append(f"{keeper.name}: restart noticed after {after:.1f} s by {how}, open again after {seconds:.1f} s")
    return figures


def move(keepers: list[Keeper], address: str, leave: str, arrive: str) -> list[str]:
    """The host loses its address, and a moment later has another one; what becomes of the new rules and the old."""
    lab, old = keepers[0].lab, keepers[0].address
    before = lab.rules()
    lab.run("host", "ip", "-batch", "-", text=leave)
    time.sleep(1.0)  # as DHCP may take
    begin = time.monotonic()
    lab.run("host", "ip", "-batch", "-", text=arrive)
    for keeper in keepers:
        keeper.address = address
    opened = await_open(keepers, begin)
    after = lab.rules()
    left = await_rules(keepers, lambda each, rules: each.external_port(rules, old) is None, begin)
    return [
        f"{keeper.name}: moved after {new:.1f} s, port {keeper.external_port(before, old)} to"
        f" {keeper.external_port(after, address)}, old rule gone after {end:.1f} s"
        for keeper, new, end in zip(keepers, opened, left, strict=True)
    ]


@story
def test_a_restart_is_noticed_and_the_ports_are_open_again(directory: Path) -> str:
    with Lab(directory) as lab:
        keepers = start(lab, directory, "PCP", 9000)
        keepers += start(lab, directory, "NAT-PMP", 9010, config=NAT_PMP, lifetime=LEASE)
        await_open(keepers)
        assert found(keepers) == {(GATEWAY, HOST)}
        figures = restart(keepers)
        stop(keepers)
    return "\n".join(figures)


@story
def test_over_ipv6_a_restart_is_noticed_and_the_pinholes_are_open_again(directory: Path) -> str:
    with Lab(directory) as lab:
        lab.run("host", "ip", "-4", "route", "del", "default")
        keepers = start(lab, directory, "PCP over IPv6", 9000, HOST_V6)
        await_open(keepers)
        assert found(keepers) == {("fe80::1", HOST_V6)}
        figures = restart(keepers)
        stop(keepers)
    return "\n".join(figures)


@story
def test_another_address_of_the_host_is_followed(directory: Path) -> str:
    with Lab(directory) as lab:
        keepers = start(lab, directory, "PCP", 9000, lifetime=LEASE, bind="lan0")
        keepers += start(lab, directory, "NAT-PMP", 9010, config=NAT_PMP, lifetime=LEASE, bind="lan0")
        await_open(keepers)
        assert found(keepers) == {(GATEWAY, HOST)}
        figures = move(
            keepers,
            OTHER_HOST,
            f"addr del {HOST}/24 dev lan0",  # the default route goes with it
            f"addr add {OTHER_HOST}/24 dev lan0\nroute add default via {GATEWAY}",
        )
        figures += restart(keepers)
        stop(keepers)
    return "\n".join(figures)


@story
def test_another_ipv6_address_of_the_host_is_followed(directory: Path) -> str:
    with Lab(directory) as lab:
        lab.run("host", "ip", "-4", "route", "del", "default")
        keepers = start(lab, directory, "PCP over IPv6", 9000, HOST_V6, lifetime=LEASE)
        await_open(keepers)
        figures = move(
            keepers,
            OTHER_HOST_V6,
            f"addr del {HOST_V6}/64 dev lan0",
            f"addr add {OTHER_HOST_V6}/64 dev lan0 nodad",
        )
        figures += restart(keepers)
        stop(keepers)
    return "\n".join(figures)


@story
def test_a_closed_port_is_told_at_once_and_the_mappings_are_back_when_it_opens(directory: Path) -> str:
    with Lab(directory) as lab:
        keepers = start(lab, directory, "PCP", 9000, lifetime=LEASE)
        keepers += start(lab, directory, "NAT-PMP", 9010, config=NAT_PMP, lifetime=LEASE)
        keepers += start(lab, directory, "PCP over IPv6", 9020, HOST_V6, lifetime=LEASE, bind=HOST_V6)
        await_open(keepers)
        lab.stop()
        told = [keeper.await_event("GatewayUnreachable", reason="Reason.UNREACHABLE")["at"] for keeper in keepers]
        lab.start()
        opened = await_open(keepers, lab.booted)
        stop(keepers)
    figures = []
    for keeper, at, seconds in zip(keepers, told, opened, strict=True):
        sent = [each["at"] for each in keeper.events("Datagram") if each["text"].startswith("to ") and each["at"] < at]
        after = 1000 * (at - sent[-1])
        figures.append(f"{keeper.name}: told {after:.1f} ms after asking, open {seconds:.1f} s after the start")
    return "\n".join(figures)
