"""What a simulation leaves behind: every datagram and event with its instant, as a transcript or as lives of mappings.

Times are seconds of the simulation, not of any host's own clock.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from ..core.socket_address import parse_socket_address, show_address
from ..errors import LocalProtocolError
from ..events import (
    Address,
    Event,
    MappingChanged,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefreshed,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
)
from ..wire import describe
from ..wire.fields import Endpoint


@attrs.frozen(kw_only=True)
class Sent:
    """A datagram that a host sent at `at` (s); `lost` on its way, or to nobody."""

    at: float
    source: Address
    target: Address
    data: bytes = attrs.field(repr=bytes.hex)
    lost: bool


@attrs.frozen(kw_only=True)
class Received:
    """A datagram that reached the host at `target` at `at` (s), as it arrived; not `heard` if the host slept.

    `source` is where it seemed to come from. `sent` tells how it began, if it did so on this network.
    """

    at: float
    source: Address
    target: Address
    data: bytes = attrs.field(repr=bytes.hex)
    heard: bool
    sent: Sent | None


@attrs.frozen(kw_only=True)
class Told:
    """An event that the host at `host` told at `at` (s), or in words what was done to it."""

    at: float
    host: Address
    what: Event | str

    def describe(self) -> str:
        return one_line(self.what if isinstance(self.what, str) else self.what.describe())


@attrs.frozen(kw_only=True)
class Moved(Told):
    """The host at `old` lives at `host` from now on."""

    old: Address


Record = Sent | Received | Told
Packet = tuple[float, Address, Address, bytes]
"""When, from where, to where, and what."""

REPLACED = "is replaced"


def show_time(at: float) -> str:
    """With six digits where they say all, with all digits where they do not."""
    text = f"{at:.6f}"
    return text if float(text) == at else repr(at)


def show_time_shortly(at: float) -> str:
    """To the microsecond, for people."""
    return f"{at:.6f}".rstrip("0").rstrip(".")


def one_line(text: str) -> str:
    """Text without what would break a line, or a drawing."""
    return text if text.isprintable() else repr(text)[1:-1]


# --- the transcript


def write_transcript(records: Iterable[Record], host: Address | None) -> str:
    """A line for each record; those that `host` knows of, as far as it knows, if there is one."""
    return "\n".join(line for record in records if (line := _line(record, host)) is not None)


def _line(record: Record, host: Address | None) -> str | None:
    """The signs: > sends, x sends but it is lost, < hears, z sleeps while it arrives, * tells."""
    time = f"{show_time(record.at):>12}"
    match record:
        case Told():
            is_known = record.host == host and not isinstance(record.what, str)
            line = f"{time} {show_address(record.host)} * {record.describe()}"
        case Sent():
            is_known = record.source == host
            sign = "x" if record.lost and host is None else ">"
            line = f"{time} {show_address(record.source)} {sign} {show_address(record.target)} {_show(record.data)}"
        case _:
            is_known = record.target == host and record.heard
            sign = "<" if record.heard else "z"
            line = f"{time} {show_address(record.target)} {sign} {show_address(record.source)} {_show(record.data)}"
    return line if host is None or is_known else None


def _show(data: bytes) -> str:
    return f"{data.hex() or '-'} {describe(data)}"


def read_transcript(text: str) -> list[Packet]:
    """What every host heard, with the host as the target.

    Raises:
        LocalProtocolError: it is no transcript.
    """
    heard = []
    for line in text.split("\n") if text else ():
        try:
            time, host, sign, rest = line.split(maxsplit=3)
            at = float(time)
            if sign == "<":
                there, octets, *_ = rest.split(maxsplit=2)
                data = b"" if octets == "-" else bytes.fromhex(octets)
                heard.append((at, parse_socket_address(there), parse_socket_address(host), data))
        except ValueError:
            raise LocalProtocolError(f"no line of a transcript: {line!r}") from None
    return heard


# --- the lives of mappings


@attrs.frozen(kw_only=True)
class Span:
    """What was true of a mapping from `start` to `end` (s; None: it still is), since `event` told it.

    `external` is where it could be reached, if it could. The last span of a life that is over has no length.
    """

    start: float
    end: float | None
    event: Event
    external: Endpoint | None
    renewals: int = 0

    def describe(self) -> str:
        span = show_time_shortly(self.start)
        if self.end not in (None, self.start):
            span += f" to {show_time_shortly(self.end)}"
        times = {0: "", 1: ", renewed once"}.get(self.renewals, f", renewed {self.renewals} times")
        return f"{span} s: {self.event.describe()}{times}"


@attrs.frozen(kw_only=True)
class Life:
    """The life of one mapping, as the host told it that was at `host` when it began: a client, or the gateway."""

    host: Address
    gateway: Address
    mapping: MappingId
    spans: tuple[Span, ...]

    def describe(self) -> str:
        """A line for the mapping, and one for each span."""
        title = f"{show_address(self.host)}: mapping {self.mapping}"
        if self.host != self.gateway:
            title += f" at {show_address(self.gateway)}"
        return "\n".join([title, *(f"    {span.describe()}" for span in self.spans)])


_Beginning = MappingGranted | MappingChanged | MappingRefused | MappingLost | MappingCreated
_Going = MappingRenewed | MappingRefreshed
_Ending = MappingFailed | MappingReleased | MappingExpired | MappingDeleted


def lives_of(records: Iterable[Record]) -> tuple[Life, ...]:
    """The lives that the events tell, in the order in which they begin."""
    lives: list[tuple[_Key, list[Span]]] = []
    current: dict[_Key, list[Span]] = {}
    for record in records:
        if not isinstance(record, Told):
            continue
        if record.what == REPLACED:
            for key in [key for key in current if key[0] == record.host]:
                _close(current.pop(key), record.at)
        if isinstance(record, Moved):
            for key in [key for key in current if key[0] == record.old]:
                current[record.host, *key[1:]] = current.pop(key)
        if not isinstance(record.what, _Beginning | _Going | _Ending):
            continue
        key = (record.host, record.what.gateway, record.what.mapping)
        if key not in current:
            current[key] = []
            lives.append((key, current[key]))
        _tell(current[key], record.at, record.what)
        if isinstance(record.what, _Ending):
            del current[key]
    return tuple(Life(host=key[0], gateway=key[1], mapping=key[2], spans=tuple(spans)) for key, spans in lives)


_Key = tuple[Address, Address, MappingId]


def _tell(spans: list[Span], at: float, event: _Beginning | _Going | _Ending) -> None:
    external: Endpoint | None = None
    match event:
        case MappingChanged():
            external = event.new
        case MappingGranted() | MappingRenewed() | MappingCreated() | MappingRefreshed():
            external = event.external
    if isinstance(event, _Going) and spans and spans[-1].external == external:
        spans[-1] = attrs.evolve(spans[-1], renewals=spans[-1].renewals + 1)
        return
    _close(spans, at)
    end = at if isinstance(event, _Ending) else None
    spans.append(Span(start=at, end=end, event=event, external=external))


def _close(spans: list[Span], at: float) -> None:
    if spans:
        spans[-1] = attrs.evolve(spans[-1], end=at)
