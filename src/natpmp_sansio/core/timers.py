"""One queue of deadlines for every role: set, move, cancel, and ask for the earliest."""

from __future__ import annotations

import heapq
import typing
from collections.abc import Hashable

K = typing.TypeVar("K", bound=Hashable)


class TimerQueue(typing.Generic[K]):
    """At most one deadline for each key. Deadlines are absolute, in seconds; ties keep the order of setting."""

    def __init__(self) -> None:
        self._entries: dict[K, tuple[float, int, K]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def set(self, key: K, deadline: float) -> None:
        """Set or move the deadline of `key`."""
        self._serial += 1
        entry = (deadline, self._serial, key)
        is_moved = key in self._entries
        self._entries[key] = entry
        heapq.heappush(self._heap, entry)
        if is_moved:
            self._discard_stale()

    def cancel(self, key: K) -> None:
        """Forget `key`, whether it was set or not."""
        entry = self._entries.pop(key, None)
        if entry is not None and (entry is self._heap[0] or len(self._heap) > 2 * len(self._entries) + 64):
            self._discard_stale()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._heap.clear()

    def deadline(self, key: K) -> float | None:
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def next(self) -> float | None:
        """The earliest deadline, or None. Changes nothing."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> K | None:
        """Take the earliest key whose deadline is not after `now`."""
        if not self._heap or self._heap[0][0] > now:
            return None
        key = self._heap[0][2]
        self.cancel(key)
        return key

    def items(self) -> list[tuple[float, K]]:
        """Every deadline and its key, the earliest first."""
        return [(deadline, key) for deadline, _, key in sorted(self._entries.values(), key=lambda entry: entry[:2])]

    def _discard_stale(self) -> None:
        """Keep the head of the heap live, and the heap in proportion to what is live."""
        heap, entries = self._heap, self._entries
        if len(heap) > 2 * len(entries) + 64:
            heap[:] = entries.values()
            heapq.heapify(heap)
        while heap:
            head = heap[0]
            if entries.get(head[2]) is head:
                break
            heapq.heappop(heap)
