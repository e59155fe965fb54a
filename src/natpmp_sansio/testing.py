"""Time travel: cores of any kind on a simulated network, in virtual time, without a socket or a sleep.

The simulation moves exactly to the next delivery or deadline and never otherwise, so a deadline that a core forgets
to announce is a test that fails, not a wait that a kind harness papers over.
"""

from __future__ import annotations

import heapq
import random

import attrs

from .core import HostCore, PeerKey, peer_key
from .events import Address, Event, SendDatagram
from .wire import describe
from .wire.fields import MULTICAST_V4, MULTICAST_V6


@attrs.frozen(kw_only=True)
class Link:
    """How datagrams travel from one host to another: `latency` (s), and `loss` from 0.0 to 1.0."""

    latency: float = 0.0
    loss: float = 0.0


@attrs.frozen(kw_only=True)
class Sent:
    """A datagram that a host sent at `at` (s); `lost` on its way, or to nobody."""

    at: float
    source: Address
    target: Address
    data: bytes = attrs.field(repr=bytes.hex)
    lost: bool


class Simulation:
    """Hosts on one network. Each lives at its core's `bind_address`; port 0 is given one of its own.

    `latency` (s) and `loss` (0.0 to 1.0) hold for every link that `connect` does not set; `seed` decides what is
    lost. Commands go to the cores directly, with `sim.now`; what they put out is taken up by the next run.
    With `record=False` nothing is kept for `sent` and `transcript`.
    """

    def __init__(
        self, *cores: HostCore, latency: float = 0.0, loss: float = 0.0, seed: int = 0, record: bool = True
    ) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Event]] = []
        self.sent: list[Sent] = []
        self._default = Link(latency=latency, loss=loss)
        self._links: dict[tuple[Address, Address], Link] = {}
        self._rng = random.Random(seed)
        self._record = record
        self._lines: list[str] = []
        self._hosts: dict[PeerKey, tuple[Address, HostCore]] = {}
        self._flying: list[tuple[float, int, HostCore, bytes, Address]] = []
        self._serial = 0
        for number, core in enumerate(cores):
            address = core.bind_address
            if address[1] == 0:
                address = (address[0], 49152 + number, *address[2:])
            key = peer_key(address)
            assert key is not None
            self._hosts[key] = (address, core)

    def address_of(self, core: HostCore) -> Address:
        """Where a core lives."""
        return next(address for address, other in self._hosts.values() if other is core)

    def connect(self, source: HostCore, target: HostCore, link: Link) -> None:
        """Set how datagrams travel from `source` to `target`, from now on."""
        self._links[self.address_of(source), self.address_of(target)] = link

    def inject(self, target: HostCore, data: bytes, source: Address) -> bool:
        """Deliver a datagram at once, from anywhere; True: the core claims it."""
        return target.receive_datagram(data, source, self.now)

    def run_until(self, end: float) -> None:
        """Let time pass until `end` (s), with all that happens on the way, up to and including that instant."""
        self._drain()
        while (at := self._next()) is not None and at <= end:
            self.now = max(self.now, at)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, core, data, source = heapq.heappop(self._flying)
                core.receive_datagram(data, source, self.now)
            for _, core in self._hosts.values():
                deadline = core.next_timeout()
                if deadline is not None and deadline <= self.now:
                    core.handle_timeout(self.now)
            self._drain()
            self._check_deadlines()
        self.now = max(self.now, end)

    def transcript(self) -> str:
        """All that was sent and that happened, a line each; the same for the same seeds and commands."""
        return "\n".join(self._lines)

    def _next(self) -> float | None:
        times = [deadline for _, core in self._hosts.values() if (deadline := core.next_timeout()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def _drain(self) -> None:
        for address, core in self._hosts.values():
            for output in core.outputs():
                if isinstance(output, SendDatagram):
                    self._post(address, core, output)
                else:
                    self.events.append((self.now, output))
                    self._note(f"{address[0]}: {output.describe()}")

    def _post(self, source: Address, sender: HostCore, datagram: SendDatagram) -> None:
        receivers = []
        if datagram.addr[0] in (MULTICAST_V4, MULTICAST_V6):
            receivers = [host for host in self._hosts.values() if host[1] is not sender and len(host[0]) == len(source)]
        elif (key := peer_key(datagram.addr)) in self._hosts:
            receivers = [self._hosts[key]]
        arrived = False
        for address, core in receivers:
            link = self._links.get((source, address), self._default)
            if self._rng.random() >= link.loss:
                arrived = True
                self._serial += 1
                heapq.heappush(self._flying, (self.now + link.latency, self._serial, core, datagram.data, source))
        if self._record:
            lost = not arrived
            self.sent.append(Sent(at=self.now, source=source, target=datagram.addr, data=datagram.data, lost=lost))
            text = f"{_show(source)} > {_show(datagram.addr)} {describe(datagram.data)}"
            self._note(text + (" (lost)" if lost else ""))

    def _note(self, text: str) -> None:
        if self._record:
            self._lines.append(f"{self.now:12.6f} {text}")

    def _check_deadlines(self) -> None:
        """The promise that no core may break: once asked and drained, it wants to be woken later, or not at all."""
        flying = self._flying[0][0] if self._flying else None
        for _, core in self._hosts.values():
            deadline = core.next_timeout()
            if deadline is not None and deadline <= self.now and flying != self.now:
                raise AssertionError(f"{core!r} at {self.now} still wants to be woken at {deadline}")


def _show(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
