"""Every socket option and address look-up there is: opening, binding, groups, ICMP, and what tells of changes."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import struct
import sys
import time
import typing
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from ..core.socket_address import scope_of
from ..errors import LocalProtocolError
from ..events import Address
from ..wire.fields import CLIENT_PORT, MULTICAST_V4, MULTICAST_V6, SERVER_PORT
from ..wire.pcp import ANYCAST_V6


def gateway_address(host: str, port: int = SERVER_PORT) -> Address:
    """The socket address of a gateway, from its numeric address; `fe80::1%eth0` names an interface. Another port than
    `port` may follow: `192.168.1.1:5351`, `[fe80::1%eth0]:5351`.

    Raises:
        LocalProtocolError: it is no numeric address.
    """
    with_port = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):(\d{1,5})", host)
    if with_port:
        host, port = with_port[1] or with_port[2], int(with_port[3])
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        raise LocalProtocolError(f"{host!r} is not an IP address; name the gateway as 192.168.1.1, say") from None
    return typing.cast("Address", found[0][4])


def family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def source_address(gateway: Address, interface: str | None = None) -> str:
    """The local address to ask `gateway` from, which is the one it maps (RFC 6887 section 16.4). Sends nothing.

    That is the one that the system would take, by that interface if one is named; but to a link-local gateway a global
    address of the same interface, if it has one: nobody outside could reach what is mapped for a link-local address.

    Raises:
        OSError: there is no route.
    """
    if len(gateway) == 4 and IPv6Address(gateway[0]).is_link_local:
        found = _global_address(gateway[3])
        if found is not None:
            return found
    return _probe(gateway, None if interface is None else interface_index(interface))


def interface_index(name: str) -> int:
    """The number of an interface.

    Raises:
        LocalProtocolError: there is none of that name.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise LocalProtocolError(f"{name!r} is neither an address nor an interface of this host") from None


def open_request_socket(bind: Address, *gateways: Address) -> socket.socket:
    """A non-blocking UDP socket on `bind`: a client's if it has `gateways` to ask, a server's if not.

    A client's socket hears of ICMP errors, and `receive` returns them. Linux tells whose they are. Elsewhere they come
    to connected sockets only, so that they are heard where there is one gateway alone.

    Raises:
        OSError: the address is not ours, or not free.
    """
    sock = socket.socket(family(bind), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(bind)
        if gateways:
            if sys.platform == "linux":
                sock.setsockopt(*_ERROR_QUEUES[sock.family], 1)
            elif len(gateways) == 1:
                sock.connect(gateways[0])
        elif sock.family == socket.AF_INET:  # announcements leave by the interface that requests come in by
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(bind[0]))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, _interface_of(bind))
    except BaseException:
        sock.close()
        raise
    return sock


def open_announcement_socket(local: Address) -> socket.socket:
    """A non-blocking UDP socket that hears the announcements on the network of `local`, shared with other programs.

    Bound to the group and not to the wildcard address (RFC 6886 section 3.2.1, RFC 6887 section 14.1.3). An IPv6
    `local` names the interface by its scope id; with 0 it is the interface that has the address, as far as the system
    tells (Linux).

    Raises:
        OSError: somebody who does not share holds the port, or there is no multicast here.
    """
    sock = socket.socket(family(local), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        group = MULTICAST_V4 if sock.family == socket.AF_INET else MULTICAST_V6
        anywhere = "" if sys.platform == "win32" else group  # Windows binds no group
        if sock.family == socket.AF_INET6:
            interface = _interface_of(local)
            sock.bind((anywhere, CLIENT_PORT, 0, interface))
            membership = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", interface)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        else:
            sock.bind((anywhere, CLIENT_PORT))
            membership = socket.inet_aton(group) + socket.inet_aton(local[0])
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, *, errors: bool = True) -> tuple[bytes | None, Address] | None:
    """The next datagram and its sender, or None when there is none now. Works on every socket, and never raises.

    `(None, address)` is an ICMP error: what was sent to `address` has not arrived. Errors that name nobody are left
    out: on a socket that others use too they may be anybody's. Without `errors` they are not looked for where nothing
    else is there: they keep the socket readable until the next time.
    """
    for _ in range(_ERRORS_IN_A_ROW):
        try:
            return sock.recvfrom(_MAX_DATAGRAM)
        except OSError as error:
            code = error.errno
        if code in _NOTHING and not errors:
            return None
        unreachable = _read_error_queue(sock) or (_peer(sock) if code in _UNREACHABLE else None)
        if unreachable is not None:
            return None, unreachable
        if code in _NOTHING:
            return None
    return None


def send(sock: socket.socket, data: bytes, address: Address) -> bool:
    """Send to `address`; never raises. False: ICMP says on a connected socket that it cannot be reached.

    What does not go out for another reason is as good as lost: the protocol sends again.
    """
    if sys.platform != "linux" and _same(_peer(sock), address):
        return _send_connected(sock, data)
    for _ in range(2):  # the first try may come back with the error of an earlier datagram
        try:
            sock.sendto(data, address)
        except OSError as error:
            _log.debug("not sent to %s: %s", address[0], error)
        else:
            break
    return True


def time_asleep() -> float:
    """Seconds that this system has been suspended since it started, give or take some microseconds.

    0.0 where no clock tells.
    """
    for both, awake in (("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"), ("CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW")):
        if hasattr(time, both) and hasattr(time, awake):  # Linux, macOS
            return max(0.0, time.clock_gettime(getattr(time, both)) - time.clock_gettime(getattr(time, awake)))
    return 0.0


def open_route_socket() -> socket.socket | None:
    """A non-blocking socket that is readable once an address, a route or an interface has changed; `drain` it then.

    None where there is no such thing: look every so often. macOS has one, but it also tells of every question, so
    that whoever looks because of it would wake himself up.
    """
    if sys.platform != "linux":
        return None
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError:
        return None  # not allowed here
    try:
        sock.setblocking(False)
        sock.bind((0, _ROUTE_GROUPS))
    except OSError:
        sock.close()
        return None
    return sock


def drain(sock: socket.socket) -> None:
    """Read all that has come to a route socket, and forget it. Never raises."""
    while True:
        try:
            sock.recv(_MAX_DATAGRAM)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more has happened than there was room for
                return


_log = logging.getLogger("natpmp_sansio.datagrams")

_MAX_DATAGRAM = 65535
_ERRORS_IN_A_ROW = 64  # that name nobody; whatever is behind them keeps the socket readable

_IP_RECVERR, _IPV6_RECVERR = 11, 25  # of Linux; `socket` does not name them in every Python
_ERROR_QUEUES = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_RECVERR),
}
_ERROR = struct.Struct("@I")  # a sock_extended_err begins with the errno
_NOTHING = {errno.EAGAIN, errno.EWOULDBLOCK}
_UNREACHABLE = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,  # Windows calls it so
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EACCES,  # prohibited
    getattr(errno, "ENONET", errno.ENETUNREACH),
}

_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
_ROUTE_GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE

_LOOPBACK_INTERFACE = 1  # its number on Linux, macOS and Windows alike
_BOUND_INTERFACE = {"darwin": 25, "win32": 31}  # IP_BOUND_IF, IP_UNICAST_IF
_BOUND_IPV6_INTERFACE = {"darwin": 125, "win32": 31}  # IPV6_BOUND_IF, IPV6_UNICAST_IF
_ULA = IPv6Network("fc00::/7")  # routed inside a site only
_TEMPORARY, _DAD_FAILED, _DEPRECATED, _TENTATIVE, _PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80


class _OwnAddress(typing.NamedTuple):
    address: IPv6Address
    interface: int
    flags: int


def _read_error_queue(sock: socket.socket) -> Address | None:
    """The next address that the queue calls unreachable; None: the queue is empty, or there is no such thing."""
    if sys.platform != "linux":
        return None
    while True:
        try:
            _, ancillary, _, address = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) in _ERROR_QUEUES.values():
                (code,) = _ERROR.unpack_from(data)
                if code in _UNREACHABLE:
                    return typing.cast("Address", address)


def _send_connected(sock: socket.socket, data: bytes) -> bool:
    """The same where a connected socket takes no address, and is told of errors."""
    try:
        sock.send(data)
    except OSError as error:
        _log.debug("not sent: %s", error)
        return error.errno not in _UNREACHABLE
    return True


def _peer(sock: socket.socket) -> Address | None:
    """Whom the socket is connected to."""
    try:
        return typing.cast("Address", sock.getpeername())
    except OSError:
        return None


def _same(peer: Address | None, address: Address) -> bool:
    return peer is not None and peer[:2] == address[:2] and peer[3:] == address[3:]


def _probe(target: Address, interface: int | None = None) -> str:
    with socket.socket(family(target), socket.SOCK_DGRAM) as probe:
        if interface is not None:
            _take_interface(probe, interface)
        probe.connect(target)
        return str(probe.getsockname()[0])


def _take_interface(sock: socket.socket, interface: int) -> None:
    """Whatever is sent leaves by that interface."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, socket.if_indextoname(interface).encode())
    elif sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _BOUND_IPV6_INTERFACE[sys.platform], interface)
    else:
        number = socket.htonl(interface) if sys.platform == "win32" else interface  # as Windows has it
        sock.setsockopt(socket.IPPROTO_IP, _BOUND_INTERFACE[sys.platform], number)


def _global_address(interface: int) -> str | None:
    """An address of the interface that others can reach. Of several, the one that will be there longest."""
    if sys.platform == "linux":
        usable = [own for own in _own_addresses() if own.interface == interface and not own.address.is_link_local]
        best = min(usable, key=_how_passing, default=None)
        return str(best.address) if best else None
    with contextlib.suppress(OSError, KeyError):
        found = _probe((ANYCAST_V6, SERVER_PORT, 0, 0), interface)
        return None if IPv6Address(found).is_link_local else found
    return None


def _how_passing(own: _OwnAddress) -> tuple[bool, ...]:
    flags = own.flags
    return bool(flags & _DEPRECATED), own.address in _ULA, bool(flags & _TEMPORARY), not flags & _PERMANENT


def _interface_of(local: Address) -> int:
    """The number of the interface with this IPv6 address; 0: the system may choose."""
    if scope_of(local):
        return scope_of(local)
    address = IPv6Address(local[0])
    if address.is_loopback:
        return _LOOPBACK_INTERFACE
    return next((own.interface for own in _own_addresses() if own.address == address), 0)


def _own_addresses() -> Iterator[_OwnAddress]:
    """The IPv6 addresses of this host that may be used. Nothing, where the system has no such list."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
            digits, interface, _, _, flags, _ = line.split()
            if not int(flags, 16) & (_TENTATIVE | _DAD_FAILED):
                yield _OwnAddress(IPv6Address(int(digits, 16)), int(interface, 16), int(flags, 16))
