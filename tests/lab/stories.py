"""What the stories of the lab share: programs on the host, and what can be seen of them.

What a story does most is wait, so those that are asked for run all at once, each in a lab of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import typing
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from lab.gateway import Lab, Rule, eventually
from natpmp_sansio import Protocol

TESTS = Path(__file__).parents[1]
KEEP_PORTS = ("env", f"PYTHONPATH={TESTS}", sys.executable, "-m", "lab.keep_ports")
PATIENCE = 60.0  # s; the machine may be busy
GRANTS = ("MappingGranted", "MappingRenewed")

Story = Callable[[Path], str | None]
Event = dict[str, typing.Any]


def story(told: Story) -> Callable[..., None]:
    """A test that waits for a story, and shows the figures that it ends with."""

    def test(
        request: pytest.FixtureRequest, stories: dict[str, Future[str | None]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        if figures := stories[request.node.name].result():
            with capsys.disabled():
                print(f"\n{figures}")

    test.told = told  # type: ignore[attr-defined]
    return test


class Program:
    """A client on the host, and what it has said so far."""

    def __init__(self, lab: Lab, directory: Path, *ports: str, lifetime: int = 7200, **options: str) -> None:
        self._file = directory / f"{'-'.join(ports)}.json"
        arguments = [f"--{name}={value}" for name, value in options.items()]
        command = (*KEEP_PORTS, *ports, f"--lifetime={lifetime}", *arguments)
        with self._file.open("w") as output:
            self._process = lab.popen(*command, output=output)

    def said(self) -> str:
        return self._file.read_text()

    def events(self, *names: str) -> list[Event]:
        lines = self.said().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [event for event in events if event["event"] in names]

    def await_grants(self, rules: list[Rule], since: float = 0.0) -> None:
        """Until each of them has been granted or renewed, after `since` on the monotonic clock."""
        wanted = {(rule.protocol, rule.internal_port) for rule in rules}
        eventually(
            lambda: wanted <= {_target(event) for event in self.events(*GRANTS) if event["at"] > since},
            f"granted: {wanted}",
            self.said,
            PATIENCE,
        )

    def held(self) -> list[tuple[str, int]]:
        """Protocol and port of what it takes for open now."""
        latest = {_target(event): event["event"] for event in self.events(*GRANTS, "MappingLost")}
        return sorted(target for target, name in latest.items() if name in GRANTS)

    def await_event(self, name: str, count: int = 1, **fields: object) -> Event:
        """The event of that name that has these fields, once it has come; the `count`-th of them."""

        def found() -> list[Event]:
            return [event for event in self.events(name) if fields.items() <= event.items()]

        eventually(lambda: len(found()) >= count, f"{name} {fields}", self.said, PATIENCE)
        return found()[count - 1]

    def stop(self) -> None:
        """It ends without complaint."""
        self._process.terminate()
        assert self._process.wait(PATIENCE) == 0, self.said()


def _target(event: Event) -> tuple[str, int]:
    return Protocol(event["protocol"]).name.lower(), event["internal_port"]


def await_rules(lab: Lab, rules: list[Rule], program: Program) -> None:
    eventually(lambda: lab.rules() == rules, f"these rules: {rules}", lambda: (lab.rules(), program.said()), PATIENCE)


def arrives(lab: Lab, rule: Rule) -> bool:
    """Whether what is sent outside arrives inside, in the third try at last: a datagram may be lost, and a machine
    busy. Nothing else may arrive."""
    payload = f"{rule}".encode()
    for _ in range(3):
        with contextlib.suppress(OSError):
            assert lab.send(rule, payload, timeout=2.0) == payload
            return True
    return False
