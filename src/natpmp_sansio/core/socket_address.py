"""Socket addresses as `recvfrom` returns them: compared, checked, printed and parsed here alone.

Two addresses are the same peer if their packed IP address, port and scope id are equal, however they are written.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from ipaddress import ip_address

from ..errors import LocalProtocolError
from ..events import Address
from ..wire.fields import IPAddress, pack_address, to_address, unpack_address

PeerKey = tuple[bytes, int, int]


def peer_key(addr: object) -> PeerKey | None:
    """What makes two socket addresses the same peer: packed IP, port, scope id; None for what is no such address.

    `('::ffff:192.168.1.1', 5351, 0, 0)` and `('192.168.1.1', 5351)` are the same.
    """
    match addr:
        case (str(host), int(port)):
            scope = 0
        case (str(host), int(port), _, int(scope)):
            pass
        case _:
            return None
    try:
        return (pack_address(ip_address(host.partition("%")[0])), port, scope)
    except ValueError:
        return None


def checked_peer(addr: Address, what: str) -> PeerKey:
    """The key of an address that our caller gave.

    Raises:
        LocalProtocolError: it is none.
    """
    key = peer_key(addr)
    if key is None or not 0 < key[1] <= 65535:
        raise LocalProtocolError(f"{what} must be a socket address such as ('192.168.1.1', 5351), not {addr!r}")
    return key


def checked_addresses(gateway: Address | Sequence[Address]) -> tuple[Address, ...]:
    """The addresses of a gateway, which our caller gave as one or as several.

    Raises:
        LocalProtocolError: one of them is none.
    """
    is_several = isinstance(gateway, list | tuple) and bool(gateway) and not isinstance(gateway[0], str)
    addresses = typing.cast("tuple[Address, ...]", tuple(gateway) if is_several else (gateway,))
    for address in addresses:
        peer = checked_peer(address, "gateway")
        if unpack_address(peer[0]).is_link_local and len(address) == 2 and ":" in address[0]:
            raise LocalProtocolError(
                f"a link-local gateway needs its scope id: ({address[0]!r}, {address[1]}, 0, 2), say"
            )
    return addresses


def peers_of(addresses: tuple[Address, ...]) -> tuple[PeerKey, ...]:
    """The keys of the addresses of a gateway.

    Raises:
        LocalProtocolError: one of them is none.
    """
    return tuple(checked_peer(address, "gateway") for address in addresses)


def checked_local(local: str | IPAddress) -> IPAddress:
    """The local address that our caller gave.

    Raises:
        LocalProtocolError: it is none.
    """
    address = to_address(local)
    if address.is_unspecified:
        raise LocalProtocolError(f"local_address must be the one that requests come from, not {local!s}")
    return address


def ip_of(address: Address | str) -> IPAddress:
    """The IP address of a socket address, or of a host as text, without its scope.

    Raises:
        LocalProtocolError: it is none.
    """
    host = address if isinstance(address, str) else address[0]
    return to_address(host.partition("%")[0])


def scope_of(address: Address) -> int:
    """The number of the interface that an IPv6 address belongs to; 0: none is named."""
    return address[3] if len(address) == 4 else 0


def bind_address(local: IPAddress, gateway: Address) -> Address:
    """Where the socket is to be that asks `gateway` from there: on any port, and on the gateway's interface."""
    return (str(local), 0) if local.version == 4 else (str(local), 0, 0, scope_of(gateway))


def same_host(a: PeerKey, b: PeerKey) -> bool:
    """Whether two peers differ in their port alone."""
    return a[0] == b[0] and a[2] == b[2]


def with_port(address: Address, port: int) -> Address:
    """The address, with that port if it has none."""
    return address if address[1] else (address[0], port, *address[2:])


def show_address(address: Address) -> str:
    """`192.168.1.1:5351` or `[fe80::1%2]:5351`."""
    if ":" not in address[0]:
        return f"{address[0]}:{address[1]}"
    scope = f"%{scope_of(address)}" if scope_of(address) else ""
    return f"[{address[0]}{scope}]:{address[1]}"


def parse_socket_address(text: str) -> Address:
    """What `show_address` wrote.

    Raises:
        ValueError: the port or the scope is no number.
    """
    host, _, port = text.rpartition(":")
    if not host.startswith("["):
        return (host, int(port))
    host, _, scope = host.strip("[]").partition("%")
    return (host, int(port), 0, int(scope or 0))
