"""Draws the table of `lifecycle.py`: python docs/draw_lifecycle.py writes docs/lifecycle.md."""

from __future__ import annotations

from pathlib import Path

from natpmp_sansio.client.lifecycle import TRANSITIONS, Input, MappingState

PAGE = Path(__file__).with_name("lifecycle.md")

HEAD = """\
# The life of a mapping

Written by `python docs/draw_lifecycle.py` from the table `TRANSITIONS` of `lifecycle.py`; not to be edited. What is not
drawn cannot happen: the client never looks it up.
"""


def page() -> str:
    return f"{HEAD}\n{diagram()}\n{table('state', MappingState)}\n{table('input', Input)}"


def diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> REQUESTING: map_port, map_peer, map_pair"]
    for (state, what), target in TRANSITIONS.items():
        lines.append(f"    {state.name} --> {target.name if target else '[*]'}: {what.name}")
    return "\n".join([*lines, "```", ""])


def table(title: str, kind: type[MappingState | Input]) -> str:
    rows = [f"| {each.name} | {each.value} |" for each in kind]
    return "\n".join([f"| {title} | meaning |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
