"""The default gateways of this host, as the kernel would use them now. Needs the extra `discovery`."""

from __future__ import annotations

import socket
import sys

import attrs

from ..errors import DiscoveryError
from ..events import Address
from ..wire.fields import SERVER_PORT

_ADVICE = "name the gateway yourself: --gateway at the shell, gateway=... in a program"
# Looked up, never sent to: PCP's anycast addresses (RFC 7723), which only a default route leads to.
_DESTINATIONS = ((socket.AF_INET, "192.0.0.9"), (socket.AF_INET6, "2001:1::1"))


@attrs.frozen
class DefaultGateway:
    """Where the default route of one address family leads."""

    address: Address
    interface: str


def default_gateways() -> list[DefaultGateway]:
    """The default gateway for IPv4 and the one for IPv6, as far as there are any; at least one.

    The kernel is asked which way it would send, so that several tables, metrics and half-default routes of a VPN
    count as they do for real traffic.

    Raises:
        DiscoveryError: there is none, or the kernel cannot be asked; the text says what to do.
    """
    if sys.platform != "linux":
        raise DiscoveryError(f"the default gateway can be looked up on Linux only so far; {_ADVICE}")
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise DiscoveryError(f"to look the gateway up, install natpmp-sansio[discovery]; or {_ADVICE}") from None
    found, gatewayless = [], []
    with IPRoute() as routes:
        for family, destination in _DESTINATIONS:
            try:
                answer = next(iter(routes.route("get", dst=destination, family=family)))
            except (NetlinkError, OSError):
                continue  # no route at all in this family
            index = answer.get_attr("RTA_OIF")
            interface = _interface_name(index)
            gateway = answer.get_attr("RTA_GATEWAY")
            if gateway is None:
                gatewayless.append(interface)
                continue
            address: Address = (gateway, SERVER_PORT)
            if family == socket.AF_INET6:
                address = (gateway, SERVER_PORT, 0, index if gateway.startswith("fe80") else 0)
            found.append(DefaultGateway(address, interface))
    if found:
        return found
    if gatewayless:
        tunnel = gatewayless[0]
        raise DiscoveryError(
            f"the default route through {tunnel} names no gateway, as is usual for a tunnel; {_ADVICE}"
        )
    raise DiscoveryError(f"this host has no default gateway: it may be offline; else {_ADVICE}")


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"
