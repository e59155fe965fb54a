"""The default gateways of this host, as the system would use them now.

On Linux this needs the extra `discovery`; on macOS only a `bind` that is an address, or a tunnel, does. What is for
macOS and Windows is untested: no test has asked a real one.
"""

from __future__ import annotations

import ctypes
import re
import socket
import struct
import subprocess
import sys
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs

from ..errors import DiscoveryError
from ..events import Address
from ..wire.fields import SERVER_PORT, IPAddress
from ..wire.pcp import ANYCAST_V4, ANYCAST_V6


@attrs.frozen
class DefaultGateway:
    """Where the default route of one address family leads, by the interface of that name."""

    address: Address
    interface: str


def default_gateways(*, bind: str | None = None) -> list[DefaultGateway]:
    """The default gateway for IPv4 and the one for IPv6, as far as there are any; at least one.

    The system is asked which way it would send, so that several tables, metrics and half-default routes of a VPN
    count as they do for real traffic. `bind` is the name of an interface (`eth0`) or a local address: then the gateway
    of that interface is meant, also when other traffic leaves by another one. Where a route names no gateway, the
    other end of a point-to-point link is it.

    Raises:
        DiscoveryError: there is none, or the system cannot be asked; the text says what to do.
    """
    look_up = {"linux": _on_linux, "darwin": _on_macos, "win32": _on_windows}.get(sys.platform)
    if look_up is None:
        raise DiscoveryError(f"the default gateway can be looked up on Linux, macOS and Windows only; {_ADVICE}")
    source = _to_address(bind or "")
    # Looked up, never sent to: only a default route leads to PCP's anycast addresses.
    destinations = [text for text in (ANYCAST_V4, ANYCAST_V6) if not source or (":" in text) == (source.version == 6)]
    try:
        hops = list(look_up(destinations, bind, source))
    except (OSError, subprocess.SubprocessError) as error:
        raise DiscoveryError(f"this system does not tell its routes ({error}); {_ADVICE}") from None
    found = [hop.found() for hop in hops if hop.gateway]
    if found:
        return found
    if bind:
        raise DiscoveryError(f"no default route leads from {bind} to a gateway; {_ADVICE}")
    if hops:
        tunnel = hops[0].interface
        raise DiscoveryError(
            f"the default route through {tunnel} names no gateway, as is usual for a tunnel; {_ADVICE}"
        )
    raise DiscoveryError(f"this host has no default gateway: it may be offline; else {_ADVICE}")


def anycast_servers() -> list[Address]:
    """PCP's anycast addresses (RFC 7723 section 4): whichever server is nearest, for callers who ask for them."""
    return [(ANYCAST_V4, SERVER_PORT), (ANYCAST_V6, SERVER_PORT, 0, 0)]


_ADVICE = "name the gateway yourself: --gateway at the shell, gateway=... in a program"
_LOOPBACK = 1  # the number of this interface
_EXTRA = f"to look the gateway up, install natpmp-sansio[discovery]; or {_ADVICE}"


@attrs.frozen
class _Hop:
    """Where a route leads: to the `gateway`, or without one to whoever is on the link."""

    interface: str
    index: int
    gateway: IPAddress | None

    def found(self) -> DefaultGateway:
        address: Address = (str(self.gateway), SERVER_PORT)
        if isinstance(self.gateway, IPv6Address):
            address = (str(self.gateway), SERVER_PORT, 0, self.index if self.gateway.is_link_local else 0)
        return DefaultGateway(address, self.interface)


def _to_address(text: str) -> IPAddress | None:
    """None: it is no address. An IPv6 address keeps its zone."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _unknown(bind: str) -> DiscoveryError:
    return DiscoveryError(f"this host has no interface and no address {bind}; choose one that it has, or {_ADVICE}")


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"


# --- Linux: pyroute2 speaks netlink


def _on_linux(destinations: list[str], bind: str | None, source: IPAddress | None) -> list[_Hop]:
    """In a thread of its own: pyroute2 has a loop of asyncio's inside, and a thread runs no more than one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: list(_through_pyroute2(destinations, bind, source))).result()


def _through_pyroute2(destinations: list[str], bind: str | None, source: IPAddress | None) -> Iterator[_Hop]:
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise DiscoveryError(_EXTRA) from None
    try:
        with IPRoute() as kernel:
            yield from _hops_on_linux(kernel, destinations, bind, source)
    except NetlinkError as error:  # before 0.9 it minds what changes while it reads
        raise OSError(str(error)) from None


def _hops_on_linux(
    kernel: typing.Any, destinations: list[str], bind: str | None, source: IPAddress | None
) -> Iterator[_Hop]:
    addresses = list(kernel.get_addr())
    index = _index_on_linux(addresses, bind, source) if bind else None
    for destination in destinations:
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        hop = None
        for leads, gateway in _ways_on_linux(kernel, destination, family, index, source):
            gateway = gateway or _peer_on_linux(addresses, family, leads)
            hop = _Hop(_interface_name(leads), leads, ip_address(gateway) if gateway else None)
            if gateway:
                break
        if hop:
            yield hop


def _ways_on_linux(
    kernel: typing.Any, destination: str, family: int, index: int | None, source: IPAddress | None
) -> Iterator[tuple[int, str | None]]:
    """The interfaces and gateways that come into question, the best first."""
    origin = {"src": str(source).partition("%")[0]} if source else {}
    if index is None:
        yield from _ask_linux(kernel, destination, family)
        return
    # IPv6 takes the interface for a hint, and IPv4 believes that without a route all the world is on the link.
    yield from (way for way in _ask_linux(kernel, destination, family, oif=index, **origin) if way[0] == index)
    # Rules may send to the interface's own table only what comes from its address, or has a mark.
    routes = kernel.get_default_routes(family=family, table=None)
    for route in sorted(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0):
        for hop in (route, *(route.get_attr("RTA_MULTIPATH") or ())):
            if (hop.get_attr("RTA_OIF") or hop.get("oif")) == index:
                yield index, hop.get_attr("RTA_GATEWAY")
    if origin and index == _LOOPBACK:  # an address of the whole host, as routers have them
        yield from _ask_linux(kernel, destination, family, **origin)


def _ask_linux(
    kernel: typing.Any, destination: str, family: int, **origin: typing.Any
) -> Iterator[tuple[int, str | None]]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        answers = list(kernel.route("get", dst=destination, family=family, **origin))
    except (NetlinkError, OSError):
        return  # no route at all
    for answer in answers:
        yield answer.get_attr("RTA_OIF"), answer.get_attr("RTA_GATEWAY")


def _index_on_linux(addresses: list[typing.Any], bind: str, source: IPAddress | None) -> int:
    plain, _, zone = str(source).partition("%")
    for entry in addresses if source else ():
        index = int(entry["index"])
        own = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        if own == plain and zone in ("", str(index), _interface_name(index)):
            return index
    try:
        return socket.if_nametoindex(bind)
    except OSError:
        raise _unknown(bind) from None


def _peer_on_linux(addresses: list[typing.Any], family: int, index: int) -> str | None:
    for entry in addresses:
        own, other = entry.get_attr("IFA_LOCAL"), entry.get_attr("IFA_ADDRESS")
        if (entry["family"], entry["index"]) == (family, index) and own not in (None, other):
            return str(other)
    return None


# --- macOS: its own `route`; netifaces is kept by nobody, and netifaces2 knows gateways on Linux only


def _on_macos(destinations: list[str], bind: str | None, source: IPAddress | None) -> Iterator[_Hop]:
    origin = []
    if bind:
        origin = ["-ifscope", _interface_on_macos(bind, source)]
    for destination in destinations:
        family = "-inet6" if ":" in destination else "-inet"
        command = ["/sbin/route", "-n", "get", family, *origin, destination]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=False)
        answer = dict(re.findall(r"^ *(\w+): (\S+)$", done.stdout, re.MULTILINE))
        interface = answer.get("interface")
        if interface:
            gateway = _to_address(answer.get("gateway", "").partition("%")[0])  # `link#5` is none
            gateway = gateway or _peer_on_macos(interface, family)
            yield _Hop(interface, socket.if_nametoindex(interface), gateway)


def _interface_on_macos(bind: str, source: IPAddress | None) -> str:
    for interface, entry in _addresses_on_macos() if source else ():
        if _to_address(entry.address) == source:
            return interface
    try:
        socket.if_nametoindex(bind)
    except OSError:
        raise _unknown(bind) from None
    return bind


def _peer_on_macos(interface: str, family: str) -> IPAddress | None:
    for name, entry in _addresses_on_macos():
        peer = _to_address((entry.ptp or "").partition("%")[0])
        if name == interface and peer and (peer.version == 6) == (family == "-inet6"):
            return peer
    return None


def _addresses_on_macos() -> Iterator[tuple[str, typing.Any]]:
    try:
        import psutil
    except ImportError:
        raise DiscoveryError(_EXTRA) from None
    for interface, entries in psutil.net_if_addrs().items():
        yield from ((interface, entry) for entry in entries)


# --- Windows: its IP Helper


def _on_windows(destinations: list[str], bind: str | None, source: IPAddress | None) -> Iterator[_Hop]:
    helper = typing.cast("typing.Any", ctypes).WinDLL("iphlpapi")
    luid = None
    if bind and not source:
        luid = ctypes.create_string_buffer(8)
        if helper.ConvertInterfaceAliasToLuid(bind, luid):
            raise _unknown(bind)
    for destination in destinations:
        route, best_source = ctypes.create_string_buffer(_ROUTE_SIZE), ctypes.create_string_buffer(_SOCKADDR.size)
        origin, target = (_to_sockaddr(address) for address in (source, ip_address(destination)))
        if helper.GetBestRoute2(luid, 0, origin, target, 0, route, best_source):
            continue  # no route, or the address is not ours
        name = ctypes.create_unicode_buffer(_NAME_SIZE)
        helper.ConvertInterfaceLuidToAlias(
            ctypes.create_string_buffer(route.raw[:8]), name, ctypes.c_size_t(_NAME_SIZE)
        )
        (index,) = struct.unpack_from("=I", route.raw, _INDEX_OFFSET)
        gateway = _from_sockaddr(route.raw[_NEXT_HOP_OFFSET:])
        yield _Hop(name.value or _interface_name(index), index, None if gateway.is_unspecified else gateway)


# A MIB_IPFORWARD_ROW2: the LUID, the index, two prefixes and addresses, and what does not matter here.
_ROUTE_SIZE, _INDEX_OFFSET, _NEXT_HOP_OFFSET = 104, 8, 44
_SOCKADDR = struct.Struct("=HH4s16sI")  # a SOCKADDR_INET: family, port, IPv4 address or flow, IPv6 address, scope
_NAME_SIZE = 257


def _to_sockaddr(address: IPAddress | None) -> bytes | None:
    if address is None:
        return None
    if isinstance(address, IPv4Address):
        return _SOCKADDR.pack(socket.AF_INET, 0, address.packed, b"", 0)
    zone = address.scope_id or ""
    return _SOCKADDR.pack(socket.AF_INET6, 0, b"", address.packed, int(zone) if zone.isdecimal() else 0)


def _from_sockaddr(octets: bytes) -> IPAddress:
    family, _, ipv4, ipv6, _ = _SOCKADDR.unpack_from(octets)
    return IPv6Address(ipv6) if family == socket.AF_INET6 else IPv4Address(ipv4)
