"""What can go wrong before anything is on the wire: our caller's mistakes, bad octets, no gateway to ask."""

from __future__ import annotations


class NatPmpError(Exception):
    """Base of every error that this package raises."""


class LocalProtocolError(NatPmpError, ValueError):
    """Wrong use by the caller. Raised before anything has changed."""


class DecodeError(NatPmpError, ValueError):
    """Octets that are no message of either protocol. The only thing that `decode` raises.

    `reason` says what is wrong, `offset` at which octet (counted from 0).
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason, offset)
        self.reason = reason
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.reason} (at octet {self.offset})"


class DiscoveryError(NatPmpError):
    """This host names no default gateway, or cannot be asked. The text says what to do."""
