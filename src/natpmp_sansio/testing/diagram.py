"""Sequence diagrams of what a simulation leaves behind, in Mermaid and as SVG."""

from __future__ import annotations

import attrs

from ..core.socket_address import show_address
from ..events import Address
from ..wire import describe
from .trace import Received, Record, Sent, Told, show_time_shortly


@attrs.frozen
class Diagram:
    """Who sent what to whom, and what came of it, from top to bottom. `str` gives the Mermaid text.

    `records` are in the order of time. `hosts` stand from left to right, then whoever else there is; only those who
    have something to do with it.
    """

    records: tuple[Record, ...]
    hosts: tuple[Address, ...]

    def __str__(self) -> str:
        return self.mermaid

    @property
    def mermaid(self) -> str:
        """For Markdown pages. Datagrams stand in the order of sending."""
        columns = self._columns()
        lines = ["sequenceDiagram"]
        lines += [f"    participant h{number} as {_for_mermaid(name)}" for name, number in columns.items()]
        places = {id(record): place for place, record in enumerate(self.records)}
        for record in sorted(self.records, key=lambda record: places.get(id(_beginning(record)), places[id(record)])):
            ends = [f"h{columns[name]}" for name in _ends(record)]
            if isinstance(record, Sent) and not record.lost:
                continue  # it is drawn where it arrives
            if isinstance(record, Told):
                step = f"Note over {ends[0]}"
            else:
                is_lost = isinstance(record, Sent) or not record.heard
                step = f"{ends[0]}{'-x' if is_lost else '->>'}{ends[1]}"
            lines.append(f"    {step}: {show_time_shortly(_beginning(record).at)} s {_for_mermaid(_text(record))}")
        return "\n".join(lines) + "\n"

    @property
    def svg(self) -> str:
        """For a browser. Lines slope while a datagram is under way; a cross ends what is lost.

        Each step has a row of its own, so that a long wait takes no room. Pointing at a line shows the octets.
        """
        columns = self._columns()
        longest = max((len(text) for text in [*map(_label, self.records), *columns]), default=0)
        gap = (longest + 4) * _CHARACTER
        picture = _Picture({name: _MARGIN + gap * (number + 0.5) for name, number in columns.items()})
        for record in self.records:
            picture.add(record)
        return picture.finish(_MARGIN + gap * len(columns))

    def _columns(self) -> dict[str, int]:
        """Everybody who stands in the diagram, and at which place."""
        seen = dict.fromkeys(name for record in self.records for name in _ends(record))
        hosts = [name for name in map(show_address, self.hosts) if name in seen]
        return {name: number for number, name in enumerate(dict.fromkeys([*hosts, *seen]))}


def _beginning(record: Record) -> Record:
    return record.sent if isinstance(record, Received) and record.sent else record


def _ends(record: Record) -> list[str]:
    match record:
        case Told():
            ends = [record.host]
        case Sent():
            ends = [record.source, record.target] if record.lost else [record.source]  # else it may be a group's
        case _:
            ends = [record.sent.source if record.sent else record.source, record.target]
    return [show_address(address) for address in ends]


def _text(record: Record) -> str:
    if isinstance(record, Told):
        return record.describe()
    text = describe(record.data)
    if isinstance(record, Received) and record.sent:
        if record.source != record.sent.source:
            text += f" (as from {show_address(record.source)})"
        if record.data != record.sent.data:
            text += " (corrupted)"
    return text


def _for_mermaid(text: str) -> str:
    """Without the characters that mean something there."""
    return "".join(f"#{ord(character)};" if character in "#;<>&%{}" else character for character in text)


_CHARACTER = 6.7  # the width of one, in a monospace font of 11 px
_MARGIN = 130  # at the left, for the times
_TOP = 40
_ROW = 28
_STEP = 12  # the height of an arrival, which has no text of its own
_MOST_CHARACTERS = 90
_STYLE = (
    "text{font:11px monospace;fill:#222;stroke:#fff;stroke-width:3px;paint-order:stroke;text-anchor:middle}"
    "text.left,text.time{text-anchor:start}text.right{text-anchor:end}text.time{fill:#777}"
    "line,path{stroke:#357;fill:none}line.life{stroke:#ccc}rect{fill:#fff}rect.note{fill:#ffd;stroke:#bb8}"
)


class _Picture:
    """An SVG while it is drawn, record by record; `places` are the lifelines, by name."""

    def __init__(self, places: dict[str, float]) -> None:
        self._places = places
        self._lines: list[str] = []
        self._texts: list[str] = []  # over the lines
        self._y = _TOP
        self._time = ""
        self._begun: dict[int, int] = {}  # where a Sent stands, by its identity
        self._labelled: set[int] = set()

    def add(self, record: Record) -> None:
        is_arrival = isinstance(record, Received) and id(record.sent) in self._begun
        self._y += _STEP if is_arrival else _ROW
        if (time := show_time_shortly(record.at)) != self._time:
            self._time = time
            self._write(10, self._y, f"{time} s", "time")
        ends = [self._places[name] for name in _ends(record)]
        match record:
            case Told():
                self._note(ends[0], _label(record))
            case Sent():
                self._begun[id(record)] = self._y
                if record.lost:
                    self._arrow(record, ends[0], self._y, (ends[0] + ends[1]) / 2, self._y, is_lost=True)
            case _:
                start = self._begun.get(id(record.sent), self._y)
                self._arrow(record, ends[0], start, ends[1], self._y, is_lost=not record.heard)

    def finish(self, width: float) -> str:
        bottom = self._y + _ROW
        for name, x in self._places.items():
            self._lines.insert(0, f'<line class="life" x1="{x:.1f}" y1="{_TOP - 10}" x2="{x:.1f}" y2="{bottom}"/>')
            self._write(x, _TOP - 16, name, "host")
        tip = '<marker id="tip" orient="auto" refX="9" refY="4" markerWidth="10" markerHeight="8">'
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{bottom + 10}">',
            f'<style>{_STYLE}</style><rect width="100%" height="100%"/>',
            f'<defs>{tip}<path d="M1,1 9,4 1,7"/></marker></defs>',
        ]
        return "\n".join([*head, *self._lines, *self._texts, "</svg>\n"])

    def _arrow(self, record: Sent | Received, x1: float, y1: int, x2: float, y2: int, *, is_lost: bool) -> None:
        ends = f'x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}"'
        tip = "" if is_lost else ' marker-end="url(#tip)"'
        self._lines.append(f"<line {ends}{tip}><title>{record.data.hex()}</title></line>")
        if is_lost:
            self._lines.append(f'<path d="M{x2 - 4:.1f},{y2 - 4} l8,8 m0,-8 l-8,8"/>')
        if y1 not in self._labelled:  # once, if many hear it
            self._labelled.add(y1)
            side, x = ("left", x1 + 6) if x2 >= x1 else ("right", x1 - 6)
            self._write(x, y1 - 5, _label(record), side)

    def _note(self, x: float, text: str) -> None:
        width = (len(text) + 2) * _CHARACTER
        place = f'x="{x - width / 2:.1f}" y="{self._y - 13}" width="{width:.1f}" height="18"'
        self._texts.append(f'<rect class="note" {place}/>')
        self._write(x, self._y, text, "host")

    def _write(self, x: float, y: int, text: str, kind: str) -> None:
        for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(character, entity)
        self._texts.append(f'<text class="{kind}" x="{x:.1f}" y="{y}">{text}</text>')


def _label(record: Record) -> str:
    text = _text(record)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
