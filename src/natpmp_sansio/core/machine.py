"""What the roles share: the clock that never runs back, the timers, and the output queue."""

from __future__ import annotations

import math
import typing
from collections import deque
from collections.abc import Hashable, Iterator

from ..errors import LocalProtocolError
from ..events import Address, Event, Output, SendDatagram
from ..wire.fields import IPAddress
from .timers import TimerQueue

K = typing.TypeVar("K", bound=Hashable)

_MAX_QUEUE = 1024  # outputs that may wait before datagrams are dropped: memory is bounded under any flood


class OutputQueue:
    """Datagrams and events in the order in which they happened, until they are taken."""

    def __init__(self) -> None:
        self.overflowed = 0  # datagrams that were dropped because too much waited
        self._items: deque[tuple[Output, object]] = deque()
        self._waiting: set[object] = set()

    def __len__(self) -> int:
        return len(self._items)

    def emit(self, event: Event) -> None:
        self._items.append((event, None))

    def send(self, data: bytes, addr: Address, sender: object, source: IPAddress | None = None) -> bool:
        """Queue a datagram, unless its twin of the same `sender` still waits. False: it does."""
        if sender in self._waiting:
            return False
        self._waiting.add(sender)
        self._items.append((SendDatagram(data=data, addr=addr, source=source), sender))
        return True

    def withdraw(self, sender: object) -> None:
        """Take back a datagram that still waits, because it is no longer true."""
        if sender in self._waiting:
            self._waiting.discard(sender)
            self._items = deque(each for each in self._items if each[1] != sender)

    def pop(self) -> Output | None:
        """The next output, or None."""
        if not self._items:
            return None
        output, sender = self._items.popleft()
        self._waiting.discard(sender)
        return output

    def overflows(self) -> bool:
        """Count a datagram that has to be dropped, as a full socket would drop it. False: there is space for it."""
        if len(self._items) < _MAX_QUEUE:
            return False
        self.overflowed += 1
        return True


class Machine(typing.Generic[K]):
    """What the roles share: the clock that only goes forward, the timers, the output queue."""

    def __init__(self) -> None:
        self._now = -math.inf
        self._backwards = 0
        self._timers: TimerQueue[K] = TimerQueue()
        self._queue = OutputQueue()

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None. Now, while there is output to take. Pure."""
        return self._now if self._queue else self._timers.next()

    def poll(self) -> Output | None:
        """The next output, or None. Takes it from the queue and does nothing else."""
        return self._queue.pop()

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more. Breaking off, or giving commands meanwhile, loses nothing."""
        while (output := self.poll()) is not None:
            yield output

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
