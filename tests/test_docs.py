"""Every Python block of the documentation runs, against a gateway on loopback, and prints what stands below it."""

from __future__ import annotations

import re
import runpy
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback import Server
from natpmp_sansio import Event, MappingEvent
from natpmp_sansio.adapters import _async, blocking, discovery
from natpmp_sansio.adapters.discovery import DefaultGateway

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            yield f"{page.name}-{number}", block


def outputs() -> dict[str, str]:
    """What a Python block prints, by the block, if a block of text follows."""
    pattern = r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```"
    return {block: text for page in PAGES for block, text in re.findall(pattern, page.read_text(), re.DOTALL)}


class Once(blocking.Events):
    """Endless programs end here."""

    _is_over = False

    def __next__(self) -> Event:
        if self._is_over:
            raise StopIteration
        self._is_over = True
        return super().__next__()


class OnceAsync(_async.Events):
    _is_over = False

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        self._is_over = True
        return await super().__anext__()


@pytest.mark.parametrize("block", [block for _, block in blocks("python")], ids=[name for name, _ in blocks("python")])
def test_a_python_block_runs(
    block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = outputs().get(block)
    if "scapy" in block:
        pytest.importorskip("scapy", reason="captures are read with the extra pcap")
    monkeypatch.chdir(tmp_path)
    with Server(max_lifetime=1) as server:  # leases so short that something happens soon
        host, port, *_ = server.address
        monkeypatch.setattr(discovery, "default_gateways", lambda **_: [DefaultGateway(server.address, "lo")])
        monkeypatch.setattr(blocking.Driven, "events", lambda client: Once(client))
        monkeypatch.setattr(_async.Driven, "events", lambda client: OnceAsync(client._station, client._runtime))
        if "import select, socket" in block:  # a home network is not at hand, but loopback is
            block = block.replace('"192.168.1.1", 5351', f'"{host}", {port}').replace("192.168.1.7", host)
        names: dict[str, object] = {}
        try:
            exec(compile(block, "documentation", "exec"), names)
            for name, test in names.items():
                if name.startswith("test_") and callable(test):
                    test()
        finally:
            for value in names.values():
                if isinstance(value, socket.socket):
                    value.close()
    if expected is not None:
        assert capsys.readouterr().out.rstrip() == expected.rstrip()


def test_the_life_of_a_mapping_is_drawn_from_the_table_of_now() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "draw_lifecycle.py"))
    assert script["PAGE"].read_text() == script["page"]()


def test_the_two_commands_of_the_readme_are_one_line_each() -> None:
    commands = [block.strip() for name, block in blocks("sh") if name.startswith("README")]
    assert len(commands) == 2
    assert all("\n" not in command and shlex.split(command)[:3] == ["python3", "-m", "venv"] for command in commands)
    assert commands[0].endswith(".venv/bin/natpmp demo")
    assert commands[1].endswith(".venv/bin/python -m pytest")


def test_every_event_of_a_mapping_is_explained_in_words() -> None:
    for kind in MappingEvent.__args__:
        assert len(kind.__doc__.split()) > 3
