"""Time travel: cores of any kind on a simulated network, in virtual time, without a socket or a sleep.

The simulation moves exactly to the next delivery, deadline or call and never otherwise, so a deadline that a core
forgets to announce is a test that fails, not a wait that a kind harness papers over.
"""

from __future__ import annotations

import heapq
import math
import random
import typing
from collections.abc import Callable, Iterable

import attrs

from ..core import Core, HostCore
from ..core.socket_address import PeerKey, checked_peer, peer_key, show_address, with_port
from ..core.timers import TimerQueue
from ..errors import LocalProtocolError
from ..events import Address, Event, SendDatagram
from ..wire.fields import MULTICAST_V4, MULTICAST_V6
from .diagram import Diagram
from .trace import (
    REPLACED,
    Life,
    Moved,
    Packet,
    Received,
    Record,
    Sent,
    Told,
    lives_of,
    read_transcript,
    write_transcript,
)


@attrs.frozen(kw_only=True)
class Link:
    """How datagrams travel from one host to another. Times are seconds, the others chances from 0.0 to 1.0.

    latency, jitter: each takes `latency`, and up to `jitter` more; their order is kept.
    loss: it does not arrive.
    duplicate: it arrives twice, the second time up to `jitter` after the first.
    reorder, hold: it is held back for up to `hold`, and later ones overtake it.
    corrupt: one bit of it is another when it arrives.
    source: the address that it seems to come from, instead of the sender's own, as behind a NAT. What is sent there
        reaches whoever sent last over such a link.

    Raises:
        LocalProtocolError: a value is out of range.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    hold: float = 1.0
    corrupt: float = 0.0
    source: Address | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("latency", "jitter", "hold"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise LocalProtocolError(f"Link.{name} must be a number of seconds, not {value!r}")
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise LocalProtocolError(f"Link.{name} must be a chance from 0.0 to 1.0, not {value!r}")
        if self.source is not None:
            checked_peer(self.source, "Link.source")


@attrs.frozen(kw_only=True)
class Clock:
    """A host's own clock: it shows `offset` (s) at instant 0.0, and runs `rate` times as fast as the simulation's.

    `stops` is what it does while the host sleeps, as the monotonic clock of Linux does; that of others runs on.

    Raises:
        LocalProtocolError: a value is no finite number, or the clock stands still or runs backwards.
    """

    offset: float = 0.0
    rate: float = 1.0
    stops: bool = True

    def __attrs_post_init__(self) -> None:
        if not _is_number(self.offset):
            raise LocalProtocolError(f"Clock.offset must be a number of seconds, not {self.offset!r}")
        if not _is_number(self.rate) or self.rate <= 0:
            raise LocalProtocolError(f"Clock.rate must be a positive number, not {self.rate!r}")


class Simulation:
    """Hosts on one network, each living at its core's `bind_address`; port 0 is given one of its own.

    `latency` (s) and `loss` (0.0 to 1.0) make the `link` between all that `connect` does not connect; it may be
    replaced. `seed` decides all that is left to chance: each pair of hosts has a luck of its own, so that the n-th
    datagram from one to the other meets the same one whatever links are set to and whoever else is there.

    Commands go to the cores directly between runs, with `sim.now` (or `sim.now_of(core)`, if its clock is its own),
    and with `at` at any instant. What they put out is taken up by the next run. `now` is in seconds from 0.0,
    `events` are the events so far with their instants, `sent` the datagrams, `delivered` the number of those that
    arrived. With `record=False` nothing is kept for `sent`, `transcript`, `sequence_diagram` and `timeline`.

    Raises:
        LocalProtocolError: here and in every method, for wrong use, before anything has changed.
    """

    def __init__(
        self, *cores: HostCore, latency: float = 0.0, loss: float = 0.0, seed: int = 0, record: bool = True
    ) -> None:
        self.now = 0.0
        self.link = Link(latency=latency, loss=loss)
        self.events: list[tuple[float, Event]] = []
        self.sent: list[Sent] = []
        self.delivered = 0
        self._records: list[Record] | None = [] if record else None
        self._seed = seed
        self._serial = 0
        self._hosts: dict[PeerKey, _Host] = {}
        self._host_by_core: dict[int, _Host] = {}
        self._host_by_address: dict[Address, _Host] = {}  # by each way in which an address was written so far
        self._host_by_source: dict[PeerKey, _Host] = {}  # who sent last from an address that a link lends
        self._paths: dict[tuple[_Host | Address, _Host], _Path] = {}
        self._flying: list[tuple[float, int, _Host, bytes, Address, Sent | None]] = []
        self._calls: list[tuple[float, int, Callable[..., object], tuple[object, ...], dict[str, object]]] = []
        self._timers: TimerQueue[_Host] = TimerQueue()
        for core in cores:
            self.add(core)

    # --- hosts and what lies between them

    def add(self, core: Core, *, address: Address | None = None, clock: Clock | None = None) -> None:
        """One more host, from now on; at another address than its core says, if there is a reason."""
        if id(core) in self._host_by_core:
            raise LocalProtocolError(f"{core!r} is in this simulation already")
        if address is None and not hasattr(core, "bind_address"):
            raise LocalProtocolError("this core has no address of its own: add(core, address=...)")
        where = address or typing.cast("HostCore", core).bind_address
        if where[1] == 0:
            ports = (49152 + (len(self._hosts) + step) % 16384 for step in range(16384))
            free = (here for port in ports if peer_key(here := with_port(where, port)) not in self._hosts)
            where = next(free, where)
        host = _Host(core=core, address=where, key=checked_peer(where, "bind_address"), clock=clock or Clock())
        if host.key in self._hosts:
            raise LocalProtocolError(f"somebody lives at {show_address(where)} already")
        self._hosts[host.key] = self._host_by_core[id(core)] = host

    def replace(self, old: HostCore, new: HostCore) -> None:
        """Another box stands where `old` stood, with its address, links and clock."""
        host = self._host_of(old)
        where = with_port(new.bind_address, host.address[1])
        if id(new) in self._host_by_core or peer_key(where) != host.key:
            raise LocalProtocolError(f"{new!r} cannot live at {show_address(host.address)}")
        host.core = new
        self._host_by_core[id(new)] = self._host_by_core.pop(id(old))
        self._tell(host, REPLACED)

    def move(self, core: HostCore) -> None:
        """A host is at its core's `bind_address` of now, which was another before: it has roamed, or got a new lease.

        Its clock, its luck and its links go with it. What is under way to where it was before is lost.
        """
        host = self._host_of(core)
        old, new = host.address, with_port(core.bind_address, host.address[1])
        key = checked_peer(new, "bind_address")
        if self._hosts.get(key, host) is not host:
            raise LocalProtocolError(f"somebody lives at {show_address(new)} already")
        self._flying = [each for each in self._flying if each[2] is not host]
        heapq.heapify(self._flying)
        self._hosts = {key if each is host else where: each for where, each in self._hosts.items()}
        self._host_by_address = {where: each for where, each in self._host_by_address.items() if each is not host}
        host.address, host.key = new, key
        if self._records is not None:
            self._records.append(Moved(at=self.now, host=new, what=f"was {show_address(old)}", old=old))
            host.homes.append((len(self._records), new))

    def address_of(self, core: Core) -> Address:
        """Where a core lives."""
        return self._host_of(core).address

    def now_of(self, core: Core) -> float:
        """What a host's own clock shows now."""
        return self._host_of(core).read(self.now)

    def connect(self, source: Core, target: Core, link: Link) -> None:
        """Set how datagrams travel from `source` to `target`, from now on. What is under way is not concerned."""
        path = self._path(self._host_of(source), self._host_of(target))
        path.link = link
        path.latest = 0.0

    def partition(self, *cores: Core) -> None:
        """Cut these hosts off: they reach each other, but nobody else. What is under way arrives."""
        side = object()
        for host in [self._host_of(core) for core in cores]:
            host.side = side

    def heal(self) -> None:
        """Undo every `partition`."""
        for host in self._hosts.values():
            host.side = None

    def sleep(self, core: Core, start: float, end: float) -> None:
        """Let a host sleep from `start` to `end` (s): no timer of it fires, and what arrives is lost."""
        host = self._host_of(core)
        if not self.now <= start < end < math.inf:
            raise LocalProtocolError(
                f"a sleep must begin not before now ({self.now!r}) and end later: {start!r}, {end!r}"
            )
        self._schedule(start, self._fall_asleep, host, end)
        self._schedule(end, self._wake_up, host)

    # --- what happens

    def at(self, time: float, call: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call `call(*args, now, **kwargs)` at an instant, after all else that happens in it.

        So `sim.at(7200.0, gateway.reboot)` is what `gateway.reboot(sim.now)` is after `sim.run_until(7200.0)`. `now` is
        what the clock of the host shows whose core's method it is, and `sim.now` for any other callable. A host that
        sleeps does it when it wakes up.
        """
        if not self.now <= time < math.inf:
            raise LocalProtocolError(f"time must be finite and not before now ({self.now!r}), not {time!r}")
        self._schedule(time, call, *args, **kwargs)

    def inject(self, target: Core, data: bytes, source: Address) -> bool:
        """Deliver a datagram at once, from anywhere; True: the core claims it."""
        return self._deliver(self._host_of(target), data, source, None)

    def send(self, data: bytes, source: Address, target: Address) -> None:
        """Put a datagram on the wire that claims to come from `source`, as attackers do.

        It takes the simulation's `link`, with a luck of its own, and no partition stops it.
        """
        self._post(source, source, SendDatagram(data=data, addr=target))

    def play(self, packets: Iterable[Packet]) -> None:
        """Let what was captured elsewhere arrive again: `(time, source, target, data)` each, at just that time.

        Packets to an address where nobody lives are passed over.
        """
        packets = list(packets)
        for at, *_ in packets:
            if not self.now <= at < math.inf:
                raise LocalProtocolError(f"a packet cannot arrive at {at!r}: now is {self.now!r}")
        for at, source, target, data in packets:
            for host in self._receivers(target, None):
                self._fly(at, host, data, source, None)

    def replay(self, transcript: str) -> None:
        """Let the hosts that live here hear what those at their addresses heard in another simulation.

        A core made in the same way, and given the same commands at the same times, answers to the last octet what it
        answered there: `transcript(core)` shows it. Only where a link takes no time at all may the order within an
        instant be another.
        """
        self.play(read_transcript(transcript))

    def run_until(self, end: float) -> None:
        """Let time pass until `end` (s), with all that happens on the way, up to and including that instant."""
        if not _is_number(end):
            raise LocalProtocolError(f"end must be a finite number of seconds, not {end!r}")
        self._attend(*self._hosts.values())
        while True:
            deadline = self._timers.next()
            event = min(math.inf if deadline is None else deadline, self._flying[0][0] if self._flying else math.inf)
            call = self._calls[0][0] if self._calls else math.inf
            if min(event, call) > end:
                break
            self.now = max(self.now, min(event, call))
            if event <= call:
                self._step()
            else:
                self._call()
        self.now = max(self.now, end)

    # --- what has happened

    def transcript(self, core: Core | None = None) -> str:
        """All that was sent, arrived and happened, a line each: `>` sends, `<` hears, `*` tells; `x` is lost on
        its way, `z` because the host sleeps. Every datagram is there with its octets; equal seeds and commands give
        an equal text. For one core: what it knows itself, so that `replay` gives it again.
        """
        records = self._records or []
        if core is None:
            return write_transcript(records, None)
        homes = self._host_of(core).homes
        ends = [start for start, _ in homes[1:]] + [len(records)]
        parts = [write_transcript(records[start:end], home) for (start, home), end in zip(homes, ends, strict=True)]
        return "\n".join(part for part in parts if part)

    def sequence_diagram(self, start: float = 0.0, end: float = math.inf) -> Diagram:
        """What happened from `start` to `end` (s) as a drawing: `.mermaid` and `.svg`."""
        records = tuple(record for record in self._records or () if start <= record.at <= end)
        return Diagram(records, tuple(host.address for host in self._hosts.values()))

    def timeline(self) -> tuple[Life, ...]:
        """The life of every mapping, as clients and gateways tell it; `describe()` says it in words."""
        return lives_of(self._records or ())

    # --- an instant

    def _step(self) -> None:
        """Deliver what arrives now, then wake whoever wants to be woken now, each once."""
        while self._flying and self._flying[0][0] <= self.now:
            _, _, host, data, source, sent = heapq.heappop(self._flying)
            self._deliver(host, data, source, sent)
            self._attend(host)
        due = []
        while (host_due := self._timers.pop_due(self.now)) is not None:
            due.append(host_due)
        for host in due:
            host.core.handle_timeout(host.read(self.now, host.deadline))
            self._attend(host)
        self._check_promise()

    def _call(self) -> None:
        _, _, call, args, kwargs = heapq.heappop(self._calls)
        owner = self._host_by_core.get(id(getattr(call, "__self__", None)))
        if owner is None:
            call(*args, self.now, **kwargs)
            self._attend(*self._hosts.values())  # it may have touched any
        elif owner.wakes_at is not None:
            self._schedule(owner.wakes_at, call, *args, **kwargs)
        else:
            call(*args, owner.read(self.now), **kwargs)
            self._attend(owner)

    def _attend(self, *hosts: _Host) -> None:
        """Do for hosts what a driver does after each input: take the outputs, and note when to come again."""
        for host in hosts:
            if host.wakes_at is not None:
                continue
            for output in host.core.outputs():
                if isinstance(output, SendDatagram):
                    self._post(host, host.address, output)
                else:
                    self.events.append((self.now, output))
                    self._tell(host, output)
            deadline = host.core.next_timeout()
            if deadline is None:
                self._timers.cancel(host)
            elif deadline != host.deadline or self._timers.deadline(host) is None:
                host.deadline = deadline
                self._timers.set(host, host.instant_of(deadline))

    def _check_promise(self) -> None:
        """The promise that no core may break: once asked and drained, it wants to be woken later, or not at all. While
        something else arrives in this instant, it may wait for that."""
        instant = self._timers.next()
        if instant is None or instant > self.now or (self._flying and self._flying[0][0] <= self.now):
            return
        host = self._timers.pop_due(self.now)
        assert host is not None
        if host.deadline <= host.read(self.now):
            raise AssertionError(f"{host.core!r} at {host.read(self.now)} still wants to be woken at {host.deadline}")
        self._timers.set(host, instant)  # a hair later on its own clock, which the simulation's cannot tell apart

    def _schedule(self, time: float, call: Callable[..., object], *args: object, **kwargs: object) -> None:
        self._serial += 1
        heapq.heappush(self._calls, (time, self._serial, call, args, kwargs))

    def _fall_asleep(self, host: _Host, end: float, now: float) -> None:
        if host.wakes_at is None:
            host.stop_clock(now)
            self._timers.cancel(host)
            self._tell(host, "falls asleep")
        host.wakes_at = max(host.wakes_at or end, end)

    def _wake_up(self, host: _Host, now: float) -> None:
        if host.wakes_at == now:
            host.start_clock(now)
            host.wakes_at = None
            self._tell(host, "wakes up")

    # --- datagrams

    def _post(self, sender: _Host | Address, source: Address, datagram: SendDatagram) -> None:
        copies = []
        for host in self._receivers(datagram.addr, sender):
            path = self._path(sender, host)
            link = path.link or self.link
            arrivals = path.carry(link, datagram.data, self.now)
            if isinstance(sender, _Host):
                if sender.side is not host.side:
                    continue
                if link.source is not None:
                    self._host_by_source[checked_peer(link.source, "Link.source")] = sender
            copies += [(at, host, data, link.source or source) for at, data in arrivals]
        sent = None
        if self._records is not None:
            sent = Sent(at=self.now, source=source, target=datagram.addr, data=datagram.data, lost=not copies)
            self.sent.append(sent)
            self._records.append(sent)
        for at, host, data, seeming in copies:
            self._fly(at, host, data, seeming, sent)

    def _receivers(self, target: Address, sender: object) -> list[_Host]:
        host = self._host_by_address.get(target)
        if host is not None:
            return [host]
        if target[0] in (MULTICAST_V4, MULTICAST_V6):
            is_v6 = ":" in target[0]
            return [host for host in self._hosts.values() if host is not sender and (":" in host.address[0]) is is_v6]
        key = peer_key(target)
        if key is None:
            return []
        if key in self._hosts:
            self._host_by_address[target] = self._hosts[key]
            return [self._hosts[key]]
        return [self._host_by_source[key]] if key in self._host_by_source else []

    def _fly(self, at: float, host: _Host, data: bytes, source: Address, sent: Sent | None) -> None:
        self._serial += 1
        heapq.heappush(self._flying, (at, self._serial, host, data, source, sent))

    def _deliver(self, host: _Host, data: bytes, source: Address, sent: Sent | None) -> bool:
        self.delivered += 1
        heard = host.wakes_at is None
        if self._records is not None:
            self._records.append(
                Received(at=self.now, source=source, target=host.address, data=data, heard=heard, sent=sent)
            )
        return heard and host.core.receive_datagram(data, source, host.read(self.now))

    def _path(self, sender: _Host | Address, host: _Host) -> _Path:
        path = self._paths.get((sender, host))
        if path is None:
            origin = show_address(sender.address) if isinstance(sender, _Host) else f"forged {show_address(sender)}"
            rng = random.Random(f"{self._seed} {origin} {show_address(host.address)}")
            path = self._paths[sender, host] = _Path(draw=rng.random)
        return path

    def _tell(self, host: _Host, what: Event | str) -> None:
        if self._records is not None:
            self._records.append(Told(at=self.now, host=host.address, what=what))

    def _host_of(self, core: Core) -> _Host:
        host = self._host_by_core.get(id(core))
        if host is None:
            raise LocalProtocolError(f"{core!r} is not in this simulation")
        return host


@attrs.define(kw_only=True, eq=False)
class _Host:
    """A core with its place on the network and its clock, which shows `_base` at the simulation's `_since`."""

    core: Core
    address: Address
    key: PeerKey
    clock: Clock
    side: object = None
    wakes_at: float | None = None  # if it sleeps
    deadline: float = math.inf  # on its own clock
    homes: list[tuple[int, Address]] = attrs.field(factory=list)  # from which record on it lived where
    _base: float = attrs.field(init=False)
    _since: float = 0.0
    _told: float = -math.inf

    def __attrs_post_init__(self) -> None:
        self._base = self.clock.offset
        self.homes.append((0, self.address))

    def read(self, now: float, at_least: float = -math.inf) -> float:
        """What its clock shows at an instant. It never goes back, not even by a rounding error."""
        stopped = self.wakes_at is not None and self.clock.stops
        shown = self._base if stopped else self._base + self.clock.rate * (now - self._since)
        self._told = max(self._told, shown, at_least)
        return self._told

    def instant_of(self, deadline: float) -> float:
        """When its clock will show `deadline`, or a hair less: the reader rounds up."""
        return self._since + (deadline - self._base) / self.clock.rate

    def stop_clock(self, now: float) -> None:
        if self.clock.stops:
            self._base = self.read(now)

    def start_clock(self, now: float) -> None:
        if self.clock.stops:
            self._since = now


@attrs.define(kw_only=True, eq=False)
class _Path:
    """The way from one host to another: its luck, its link if it has one of its own, its latest arrival."""

    draw: Callable[[], float]
    link: Link | None = None
    latest: float = 0.0

    def carry(self, link: Link, data: bytes, now: float) -> list[tuple[float, bytes]]:
        """When each copy of a datagram arrives, and with which octets.

        There are always as many draws, so that no setting changes the luck of the next datagram. A draw below its
        chance also says where in the range it fell, and with that which bit, or how long.
        """
        loss, duplicate, corrupt, reorder, jitter, lag = [self.draw() for _ in range(6)]
        if loss < link.loss:
            return []
        if corrupt < link.corrupt and data:
            bit = int(corrupt / link.corrupt * 8 * len(data))
            data = (int.from_bytes(data) ^ 1 << bit).to_bytes(len(data))
        at = now + link.latency + jitter * link.jitter
        if reorder < link.reorder:
            at += reorder / link.reorder * link.hold
        else:
            at = self.latest = max(self.latest, at)
        return [(at, data), (at + lag * link.jitter, data)] if duplicate < link.duplicate else [(at, data)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
