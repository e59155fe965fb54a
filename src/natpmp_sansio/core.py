"""What every role is: bytes, time and commands in; one ordered queue of datagrams and events out."""

from __future__ import annotations

import math
import typing
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from ipaddress import ip_address

from .errors import LocalProtocolError
from .events import Address, Event, Output, SendDatagram
from .timers import TimerQueue
from .wire.fields import IPAddress, pack_address, to_address, unpack_address


class Core(typing.Protocol):
    """The five methods of every role. `now` is seconds on the caller's monotonic clock."""

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram. True: it was ours. False: it was not, and nothing has changed."""
        ...

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early does nothing; one call catches up however late it comes."""
        ...

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next; None: not before something else happens. Pure."""
        ...

    def poll(self) -> Output | None:
        """The next output, or None."""
        ...

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more. Breaking off loses nothing."""
        ...


class HostCore(Core, typing.Protocol):
    """A core that also says where it wants to live; what the drivers and the simulation take."""

    @property
    def bind_address(self) -> Address:
        """The local address of its socket; port 0 means any."""
        ...


PeerKey = tuple[bytes, int, int]


def peer_key(addr: object) -> PeerKey | None:
    """What makes two socket addresses the same peer: packed IP, port, scope id; None for what is no such address.

    `('::ffff:192.168.1.1', 5351, 0, 0)` and `('192.168.1.1', 5351)` are the same.
    """
    match addr:
        case (str(host), int(port)):
            scope = 0
        case (str(host), int(port), _, int(scope)):
            pass
        case _:
            return None
    try:
        return (pack_address(ip_address(host.partition("%")[0])), port, scope)
    except ValueError:
        return None


def checked_peer(addr: Address, what: str) -> PeerKey:
    """The key of an address that our caller gave.

    Raises:
        LocalProtocolError: it is none.
    """
    key = peer_key(addr)
    if key is None or not 0 < key[1] <= 65535:
        raise LocalProtocolError(f"{what} must be a socket address such as ('192.168.1.1', 5351), not {addr!r}")
    return key


def checked_addresses(gateway: Address | Sequence[Address]) -> tuple[Address, ...]:
    """The addresses of a gateway, which our caller gave as one or as several.

    Raises:
        LocalProtocolError: one of them is none.
    """
    is_several = isinstance(gateway, list | tuple) and bool(gateway) and not isinstance(gateway[0], str)
    addresses = typing.cast("tuple[Address, ...]", tuple(gateway) if is_several else (gateway,))
    for address in addresses:
        peer = checked_peer(address, "gateway")
        if unpack_address(peer[0]).is_link_local and len(address) == 2 and ":" in address[0]:
            raise LocalProtocolError(
                f"a link-local gateway needs its scope id: ({address[0]!r}, {address[1]}, 0, 2), say"
            )
    return addresses


def peers_of(addresses: tuple[Address, ...]) -> tuple[PeerKey, ...]:
    return tuple(checked_peer(address, "gateway") for address in addresses)


def checked_local(local: str | IPAddress) -> IPAddress:
    """The local address that our caller gave.

    Raises:
        LocalProtocolError: it is none.
    """
    address = to_address(local)
    if address.is_unspecified:
        raise LocalProtocolError(f"local_address must be the one that requests come from, not {local!s}")
    return address


def bind_address(local: IPAddress, gateway: Address) -> Address:
    """Where the socket is to be that asks `gateway` from there: on any port, and on the gateway's interface."""
    return (str(local), 0) if local.version == 4 else (str(local), 0, 0, (*gateway, 0, 0)[3])


def same_host(a: PeerKey, b: PeerKey) -> bool:
    return a[0] == b[0] and a[2] == b[2]


K = typing.TypeVar("K", bound=Hashable)


_MAX_QUEUE = 1024  # outputs that may wait before datagrams are dropped: memory is bounded under any flood


class Machine(typing.Generic[K]):
    """What the roles share: the clock that only goes forward, the timers, the output queue."""

    def __init__(self) -> None:
        self._now = -math.inf
        self._backwards = 0
        self._overflowed = 0
        self._timers: TimerQueue[K] = TimerQueue()
        self._queue: deque[tuple[Output, object]] = deque()
        self._waiting: set[object] = set()

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None. Now, while there is output to take. Pure."""
        return self._now if self._queue else self._timers.next()

    def poll(self) -> Output | None:
        """The next output, or None. Takes it from the queue and does nothing else."""
        if not self._queue:
            return None
        output, sender = self._queue.popleft()
        self._waiting.discard(sender)
        return output

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more. Breaking off, or giving commands meanwhile, loses nothing."""
        while (output := self.poll()) is not None:
            yield output

    def _overflows(self) -> bool:
        """Whether so much waits to be drained that a datagram has to be dropped, as a full socket would drop it."""
        if len(self._queue) < _MAX_QUEUE:
            return False
        self._overflowed += 1
        return True

    def _advance(self, now: float) -> float:
        """The clock reading to work with: time that runs backwards stands still.

        Raises:
            LocalProtocolError: it is no finite number.
        """
        if type(now) is float and self._now <= now < math.inf:  # as it nearly always is
            self._now = now
            return now
        now = self._checked(now)
        if now < self._now:
            self._backwards += 1
        else:
            self._now = now
        return self._now

    @staticmethod
    def _checked(now: float) -> float:
        try:
            checked = float(now) if isinstance(now, int | float) else math.nan
        except OverflowError:
            checked = math.inf
        if not math.isfinite(checked):
            raise LocalProtocolError(f"now must be a finite number of seconds, not {now!r}")
        return checked

    def _emit(self, event: Event) -> None:
        self._queue.append((event, None))

    def _send(self, data: bytes, addr: Address, sender: object, source: IPAddress | None = None) -> bool:
        """Queue a datagram, unless its twin of the same `sender` still waits. False: it does."""
        if sender in self._waiting:
            return False
        self._waiting.add(sender)
        self._queue.append((SendDatagram(data=data, addr=addr, source=source), sender))
        return True

    def _withdraw(self, sender: object) -> None:
        """Take back a datagram that still waits, because it is not true any more."""
        if sender in self._waiting:
            self._waiting.discard(sender)
            self._queue = deque(each for each in self._queue if each[1] != sender)


class Multiplexer:
    """Several cores on one socket, itself a core. Each sees every datagram; any may claim it. It keeps no state.

    Raises:
        LocalProtocolError: two clients for one gateway, which would answer for each other.
    """

    def __init__(self, *cores: Core) -> None:
        peers = [key for core in cores for each in getattr(core, "gateways", ()) if (key := peer_key(each))]
        if len(set(peers)) < len(peers):
            raise LocalProtocolError("two clients for the same gateway cannot share a socket")
        self._cores = cores

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Show a datagram to every core. True: at least one of them claims it."""
        claims = [core.receive_datagram(data, addr, now) for core in self._cores]  # all of them: no `or`
        return any(claims)

    def handle_timeout(self, now: float) -> None:
        """Pass the time on to every core."""
        for core in self._cores:
            core.handle_timeout(now)

    def next_timeout(self) -> float | None:
        """The earliest of the cores' deadlines, or None. Pure."""
        deadlines = [deadline for core in self._cores if (deadline := core.next_timeout()) is not None]
        return min(deadlines, default=None)

    def poll(self) -> Output | None:
        """The next output, or None: the cores' in their order, each core's own in the order it happened."""
        for core in self._cores:
            if (output := core.poll()) is not None:
                return output
        return None

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more."""
        while (output := self.poll()) is not None:
            yield output
