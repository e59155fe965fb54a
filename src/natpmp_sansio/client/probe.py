"""What a probe has found out so far, and what it comes to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..events import Address, Finding, ProbeCompleted, Reason
from ..wire.fields import IPAddress
from .address_scope import is_behind_nat, is_shared
from .dialects import Dialect


def reason_of(address: IPAddress) -> Reason | None:
    """Why a gateway with this external address may not reach the internet; None: nothing speaks against it."""
    return Reason.CGNAT if is_shared(address) else Reason.DOUBLE_NAT if is_behind_nat(address) else None


class Probe:
    """One finding for each dialect; those in `waiting` have not been asked yet."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self.waiting = deque(dialects)
        self._findings: dict[int, Finding | None] = {dialect.version: None for dialect in self.waiting}

    def add(self, finding: Finding) -> None:
        self._findings[finding.version] = finding

    @property
    def is_complete(self) -> bool:
        return all(self._findings.values())

    def result(self, gateway: Address, external_address: IPAddress | None) -> ProbeCompleted:
        """What all findings together say."""
        findings = tuple(finding for finding in self._findings.values() if finding is not None)
        reasons = [finding.reason for finding in findings]
        decisive = [each for each in _DECISIVE if each in reasons]
        if decisive:
            reason: Reason | None = decisive[0]
        elif None in reasons:
            reason = None if external_address is None else reason_of(external_address)
        else:
            # The answer of who speaks the protocol says more than the silence of who does not.
            reason = min(reasons, key=lambda each: _VAGUE.index(each) if each in _VAGUE else -1)
        return ProbeCompleted(gateway=gateway, findings=findings, external_address=external_address, reason=reason)


_DECISIVE = [Reason.ADDRESS_MISMATCH, Reason.NETWORK_FAILURE]  # even if the other protocol does not notice
_VAGUE = [Reason.UNREACHABLE, Reason.NO_ANSWER, Reason.UNSUPPORTED_VERSION]
