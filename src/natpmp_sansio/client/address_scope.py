"""What an external address says about the world behind the gateway."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from ..wire.fields import IPAddress

PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""The addresses that NAT-PMP is for (RFC 6886 section 3)."""
SHARED = (IPv4Network("100.64.0.0/10"), IPv4Network("192.0.0.0/29"))
"""Between a provider and its customers: carrier-grade NAT (RFC 6598) and DS-Lite (RFC 6333)."""
_LOCAL = (*PRIVATE, IPv4Network("127.0.0.0/8"), IPv4Network("169.254.0.0/16"))


def is_private(address: IPAddress) -> bool:
    """Whether it is one of the three private ranges."""
    return _is_in(address, PRIVATE)


def is_shared(address: IPAddress) -> bool:
    """Whether a gateway with this address outside has a carrier-grade NAT behind it."""
    return _is_in(address, SHARED)


def is_behind_nat(address: IPAddress) -> bool:
    """Whether a gateway with this address outside has another NAT behind it."""
    return _is_in(address, _LOCAL)


def _is_in(address: IPAddress, networks: tuple[IPv4Network, ...]) -> bool:
    return isinstance(address, IPv4Address) and any(address in network for network in networks)
