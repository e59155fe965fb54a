"""What a gateway speaks: the dialects that there are, which one is for the next request, and what proves it."""

from __future__ import annotations

import math
import random
from collections import Counter

from ..config import Config
from ..wire.fields import IPAddress
from .dialects import Dialect, make_dialects
from .spec import MappingSpec


class VersionNegotiation:
    """The dialects that can be spoken from `local`, by version, the preferred one first, and what is known of them.

    Raises:
        LocalProtocolError: the configuration leaves none for that address.
    """

    def __init__(self, local: IPAddress, config: Config, rng: random.Random) -> None:
        self.dialects = make_dialects(local, config, rng)
        self.preferred = next(iter(self.dialects.values()))
        self.can_fall_back = len(self.dialects) > 1 and not config.strict
        self.current: Dialect | None = None  # what the gateway was last found to speak
        self.is_certain = False  # whether the gateway itself said so, or was only silent to the other version
        self.reported_version: int | None = None
        self.refused_versions: set[int] = set()
        self._memory = config.version_memory
        self._current_until = -math.inf
        self._leases: Counter[int] = Counter()  # how many mappings the gateway has of us, by version

    def for_spec(self, spec: MappingSpec) -> Dialect:
        """The dialect for the next request."""
        if self.current is None:
            return self.preferred
        if not self.is_certain and not self.current.supports(spec):
            return self.preferred  # it was silent, which proves nothing; what needs PCP is worth a wait
        return self.current

    def expire(self, now: float) -> None:
        """A lesser dialect is soon forgotten again (RFC 6886 section 1.1)."""
        if now >= self._current_until:
            self.current = None

    def adopt(self, dialect: Dialect, now: float, *, is_certain: bool) -> None:
        """The gateway speaks this; `is_certain`: and said so itself that it speaks no other."""
        self.current = dialect
        self.is_certain = is_certain or dialect is self.preferred
        self._current_until = math.inf if dialect is self.preferred else now + self._memory

    def on_response(self, dialect: Dialect, now: float) -> None:
        """An authentic response came in this dialect: the next request tries the preferred one if this is it."""
        if self.current is not None and dialect is self.preferred and self.current is not dialect:
            self._current_until = now

    def doubt(self) -> None:
        """Forget which dialect is spoken; the leases remain."""
        self.current, self.is_certain = None, False
        self.refused_versions.clear()

    def count_lease(self, dialect: Dialect, change: int) -> None:
        self._leases[dialect.version] += change

    @property
    def has_leases(self) -> bool:
        return self._leases.total() > 0

    def is_proven_other_than(self, dialect: Dialect | None) -> bool:
        """Whether a lease in force was granted with a nonce in another dialect, which no forger could have done."""
        return any(
            self._leases[each.version] and each.has_nonce and each is not dialect for each in self.dialects.values()
        )

    @property
    def address_teller(self) -> Dialect | None:
        """The dialect in which the gateway can be asked for its address alone, if it speaks that."""
        for dialect in self.dialects.values():
            if dialect.tells_address and (dialect is self.current or self._leases[dialect.version]):
                return dialect
        return None
