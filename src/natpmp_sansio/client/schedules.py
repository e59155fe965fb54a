"""When to send again: both RFCs' schedules as pure functions. All times are seconds.

Every random draw comes from the `rng` that is handed in, one draw a call.
"""

from __future__ import annotations

import random

NAT_PMP_ATTEMPTS = 9
"""After the ninth and a last wait of 64 s the gateway is taken not to speak NAT-PMP (RFC 6886 section 3.1)."""
PCP_MULTI_ADDRESS_ATTEMPTS = 4
"""After so many a silent server address is given up where there is another (RFC 7488 section 3); here: reported."""
MIN_RENEWAL_GAP = 4.0
"""Two renewals of one mapping are never closer (RFC 6887 section 11.2.1)."""

_IRT = 3.0  # initial and maximum retransmission time: RFC 6887 section 8.1.1
_MRT = 1024.0
_RAND = 0.1


def nat_pmp_wait(attempt: int) -> float:
    """How long to wait for an answer to the attempt-th transmission, counted from 1 (RFC 6886 section 3.1)."""
    return 0.25 * 2.0 ** (attempt - 1)


def pcp_wait(previous: float | None, rng: random.Random) -> float:
    """RT: how long to wait after a transmission, from the RT before it (RFC 6887 section 8.1.1).

    The cap comes before the jitter, and the jitter of the previous RT is doubled with it.
    """
    nominal = _IRT if previous is None else min(2.0 * previous, _MRT)
    return (1.0 + rng.uniform(-_RAND, _RAND)) * nominal


def nat_pmp_renewal(attempt: int, lifetime: float) -> float:
    """When the attempt-th try to renew begins, counted from the grant: at half the lease (RFC 6886 section 3.3).

    What follows a try that nobody answered is left open there; it is the half of what then remains.
    """
    return float(lifetime * (1.0 - 0.5**attempt))


def pcp_renewal(attempt: int, lifetime: float, rng: random.Random) -> float:
    """When the attempt-th renewal is sent, counted from the grant: at 1/2 to 5/8 of the lease, then at
    3/4 to 3/4 + 1/16, and so on (RFC 6887 section 11.2.1)."""
    return nat_pmp_renewal(attempt, lifetime) + rng.uniform(0.0, lifetime * 0.5 ** (attempt + 2))


def recovery_delay(rng: random.Random) -> float:
    """How long to wait before recovering from a gateway's loss of state (RFC 6886 section 3.7, 6887 14.1.3)."""
    return rng.uniform(0.0, 5.0)
