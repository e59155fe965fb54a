"""Has the gateway lost its mappings? The two rules, which differ: RFC 6886 section 3.6 and RFC 6887 section 8.5."""

from __future__ import annotations

import math
import typing


class EpochCheck(typing.Protocol):
    """Remembers the last epoch of one gateway."""

    def observe(self, epoch: int, now: float) -> bool:
        """Take in the epoch (s) of a datagram that came at `now` (s). True: the gateway has lost its state."""
        ...


class NatPmpEpoch:
    """One-sided: the epoch may run too fast, but no more than 1/8 and 2 s too slow (RFC 6886 section 3.6)."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        last, self._last = self._last, (epoch, now)
        return last is not None and last[0] + (now - last[1]) * 7 / 8 - epoch > 2


class PcpEpoch:
    """Two-sided: client and server time may drift apart by 1/16 and 2 s, and the server step back by 1 s
    (RFC 6887 section 8.5). Whole seconds; the differences are signed, or the permitted step back would always fail."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        second = math.floor(now)
        last, self._last = self._last, (epoch, second)
        if last is None:
            return False
        server, client = epoch - last[0], second - last[1]
        return server < -1 or client + 2 < server - server // 16 or server + 2 < client - client // 16
