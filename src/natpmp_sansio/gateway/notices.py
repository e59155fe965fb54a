"""When a gateway repeats what it announces. All times are seconds."""

from __future__ import annotations


def announcement_times() -> tuple[float, ...]:
    """When a gateway repeats an announcement, counted from the first (RFC 6886 section 3.2.1, 6887 14.1.3)."""
    return tuple(0.25 * (2**n - 1) for n in range(10))
