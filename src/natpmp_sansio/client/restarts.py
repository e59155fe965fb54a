"""Restarts of the gateway: has it lost its mappings, and when is everything asked for again?

The epoch shows a loss of state (RFC 6886 section 3.6, RFC 6887 section 8.5). Recoveries begin after a random delay
(RFC 6886 section 3.7, RFC 6887 section 14.1.3). They are paced, so that a forged announcement cannot multiply traffic.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import attrs

from ..wire.fields import Value
from .dialects import Dialect
from .schedules import recovery_delay

_BURST = 75.0  # s within which announcements are copies of one: the longest gap is 64 s (RFC 6886 section 3.2.1)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StateLoss(Value):
    """The gateway has certainly lost its state. `is_first`: no recovery is pending from an earlier loss."""

    recovery_at: float
    is_first: bool


class RestartDetector:
    """Counts the losses of state of one gateway, the certain and the possible ones, and paces the recoveries.

    `loss_count` counts both kinds. A mapping that was granted when the count was lower has to be confirmed.
    `due` is the time (s) of the next recovery; None: there is no reason for one.
    """

    def __init__(self, dialects: Iterable[Dialect], recovery_interval: float, rng: random.Random) -> None:
        self._dialects = tuple(dialects)
        self._interval = recovery_interval
        self._rng = rng
        self.loss_count = 0
        self.last_certain_loss = 0  # the count at the last loss that an epoch has shown
        self.due: float | None = None
        self._is_certain = False  # whether the recovery that is due follows a certain loss
        self._last_recovery = -math.inf  # from a certain loss
        self._last_confirmation = -math.inf  # from any loss
        self._last_announcement = -math.inf
        self.forget_epochs()

    def observe(self, dialect: Dialect, epoch: int | None, now: float) -> StateLoss | None:
        """Take in the epoch (s) of an authentic response. Returns the loss of state that it shows, if any."""
        if epoch is None or not self._epochs[dialect.version].observe(epoch, now):
            return None
        self.loss_count += 1
        self.last_certain_loss = self.loss_count
        recovery_at = self._schedule(self._last_recovery, now)
        is_first, self._is_certain = not self._is_certain, True
        return StateLoss(recovery_at=recovery_at, is_first=is_first)

    def suspect(self, now: float) -> None:
        """The gateway may have lost its state, though its epoch does not show it: confirm every mapping soon."""
        if self.due is None:
            self.loss_count += 1
            self._schedule(max(self._last_recovery, self._last_confirmation), now)

    def on_announcement(self, now: float) -> bool:
        """Note an announcement. True: it is not a copy of one before."""
        is_new = now - self._last_announcement > _BURST
        self._last_announcement = now
        return is_new

    def begin_recovery(self, now: float) -> bool:
        """Everything is asked for now. True: because of a certain loss."""
        is_certain, self._is_certain = self._is_certain, False
        self.due = None
        self._last_confirmation = now
        if is_certain:
            self._last_recovery = now
        return is_certain

    def postpone(self, until: float) -> None:
        """Nothing may be asked before `until`."""
        self.due = until

    def retry(self, at: float) -> float:
        """A confirmation met with silence: recover at `at`, or sooner if that is due. Returns the time."""
        self.due = at if self.due is None else min(self.due, at)
        return self.due

    def confirm_now(self, now: float) -> None:
        """Every mapping is asked for now, for another reason than a recovery."""
        self.loss_count += 1
        self._last_confirmation = now

    def forget_epochs(self) -> None:
        """Another server may answer from now on: its first epoch proves nothing."""
        self._epochs = {dialect.version: dialect.new_epoch() for dialect in self._dialects}

    def doubt(self) -> None:
        """Forget what was heard. The pace of the recoveries stays."""
        self.forget_epochs()
        self._last_announcement = -math.inf
        self._is_certain = False
        self.due = None

    def _schedule(self, last: float, now: float) -> float:
        """Recover after a random delay, but no sooner after the `last` time than configured."""
        at = max(now + recovery_delay(self._rng), last + self._interval)
        if self.due is None or at < self.due:
            self.due = at
        return self.due
