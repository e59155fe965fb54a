"""Every socket option and address look-up there is: opening, binding, groups, ICMP."""

from __future__ import annotations

import socket
import struct
import sys
import typing

from ..errors import LocalProtocolError
from ..events import Address
from ..wire.fields import CLIENT_PORT, MULTICAST_V4, MULTICAST_V6, SERVER_PORT

_MAX_DATAGRAM = 65535


def gateway_address(host: str, port: int = SERVER_PORT) -> Address:
    """The socket address of a gateway, from its numeric address; `fe80::1%eth0` names an interface.

    Raises:
        LocalProtocolError: it is no numeric address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        raise LocalProtocolError(f"{host!r} is not an IP address; name the gateway as 192.168.1.1, say") from None
    return typing.cast("Address", found[0][4])


def family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def source_address(gateway: Address) -> str:
    """The local address that datagrams to `gateway` leave from (RFC 6887 section 16.4). Sends nothing.

    Raises:
        OSError: there is no route.
    """
    with socket.socket(family(gateway), socket.SOCK_DGRAM) as probe:
        probe.connect(gateway)
        return str(probe.getsockname()[0])


def open_request_socket(bind: Address, gateway: Address | None = None) -> socket.socket:
    """A non-blocking UDP socket on `bind`. Connected to `gateway`, it also hears of ICMP errors.

    Raises:
        OSError: the address is not ours, or not free.
    """
    sock = socket.socket(family(bind), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(bind)
        if gateway is not None:
            sock.connect(gateway)
        elif sock.family == socket.AF_INET:  # announcements leave by the interface that requests come in by
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(bind[0]))
        elif len(bind) == 4:
            interface = _LOOPBACK_INTERFACE if bind[0] == "::1" else bind[3]
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
    except BaseException:
        sock.close()
        raise
    return sock


def open_announcement_socket(local: Address) -> socket.socket:
    """A non-blocking UDP socket that hears the announcements on the network of `local`, shared with other programs.

    Bound to the group and not to the wildcard address (RFC 6886 section 3.2.1, RFC 6887 section 14.1.3). A connected
    socket would not hear the group, hence a second one.

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
        if len(local) == 4:
            sock.bind((anywhere, CLIENT_PORT, 0, local[3]))
            membership = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", local[3])
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        else:
            sock.bind((anywhere, CLIENT_PORT))
            membership = socket.inet_aton(group) + socket.inet_aton(local[0])
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket) -> tuple[bytes, Address] | None:
    """The next datagram, or None when there is none now.

    Raises:
        OSError: an ICMP error came instead (refused, unreachable, prohibited); there may be datagrams behind it.
    """
    try:
        return sock.recvfrom(_MAX_DATAGRAM)
    except (BlockingIOError, InterruptedError):
        return None


def send(sock: socket.socket, data: bytes, address: Address, connected: Address | None) -> None:
    """Send to `address`; a connected socket takes no address on some systems.

    Raises:
        ConnectionError: an ICMP error came in answer to something sent before.
        OSError: it could not be sent.
    """
    if address == connected:
        sock.send(data)
    else:
        sock.sendto(data, address)


_LOOPBACK_INTERFACE = 1  # its number on Linux, macOS and Windows alike
