"""Where a client is: which gateway it asks, and from which address; and whether that has changed."""

from __future__ import annotations

import math
import socket
import typing
from collections.abc import Sequence
from ipaddress import ip_address

from ..core.socket_address import bind_address, checked_addresses, ip_of
from ..errors import DiscoveryError
from ..events import Address
from . import _sockets, discovery

Where = str | Address | Sequence[str | Address] | None


class Place:
    """Where a client is: which gateway it asks, and from which address.

    `gateway` and `bind` are as in `open_client`; `sock` is a socket that is to be used. NAT-PMP is for IPv4, so where
    it is spoken alone an IPv6 gateway is none.

    Raises:
        DiscoveryError: no gateway was named, and none that fits can be found.
        OSError: there is no route to it.
        LocalProtocolError: `gateway` is no address.
    """

    def __init__(self, gateway: Where, bind: str | None, sock: socket.socket | None, versions: tuple[int, ...]) -> None:
        self.named = () if gateway is None else _to_addresses(gateway)
        self._bind = bind
        self._given = _given_address(bind, sock)
        self._family = ip_of(self._given).version if self._given else 4 if versions == (0,) else None
        self._asleep = _sockets.time_asleep()
        self.is_doubtful = False
        self._other_since = math.inf  # the time from which on only the other family has had a network
        self.gateways, self.local = self._find()

    def doubt(self) -> None:
        """Take it for changed, whatever will be found."""
        self.is_doubtful = True

    def has_slept(self) -> bool:
        """Whether this system has slept since that was asked last."""
        asleep, self._asleep = self._asleep, _sockets.time_asleep()
        return self._asleep - asleep > _NAP

    @property
    def bind_address(self) -> Address:
        """Where the client's socket is to be."""
        return bind_address(ip_of(self.local), self.gateways[0])

    def has_changed(self, now: float) -> bool:
        """Whether it is another place, or was doubted. Without a network nothing has changed, until there is one; and
        while only the other family has one, that of the gateway may soon come back."""
        try:
            found = self._find()
        except (OSError, DiscoveryError):
            self.is_doubtful = True
            return False
        if (":" in found[1]) == (":" in self.local):
            self._other_since = math.inf
        else:
            self._other_since = min(self._other_since, now)
            if now < self._other_since + _FAITH:
                self.is_doubtful = True
                return False
        has_changed, self.is_doubtful = self.is_doubtful or found != (self.gateways, self.local), False
        self.gateways, self.local = found
        return has_changed

    def _find(self) -> tuple[tuple[Address, ...], str]:
        gateways = self.named or self._default()
        local = self._given or _sockets.source_address(gateways[0], self._bind)
        if not self._given and ip_of(local).is_link_local and ":" in local:
            raise DiscoveryError(
                f"this host has no address but {local}, which nobody outside can reach; to map it, name it in bind"
            )
        return gateways, local

    def _default(self) -> tuple[Address, ...]:
        found = [each.address for each in discovery.default_gateways(bind=self._bind)]
        fitting = [each for each in found if self._family in (None, ip_of(each).version)]
        if not fitting:
            raise DiscoveryError(f"this host has no default gateway for IPv{self._family}; name the gateway yourself")
        return tuple(fitting[:1])


def _to_addresses(gateway: str | Address | Sequence[str | Address]) -> tuple[Address, ...]:
    match gateway:
        case str() | (str(), int(), *_):
            several: typing.Any = [gateway]
        case _:
            several = gateway
    addresses = [_sockets.gateway_address(each) if isinstance(each, str) else tuple(each) for each in several]
    return checked_addresses(typing.cast("list[Address]", addresses))


def _given_address(bind: str | None, sock: socket.socket | None) -> str | None:
    """The local address, as far as it is settled; the routes may choose another one for an interface."""
    if bind is not None and _is_address(bind):
        return bind
    if bind is not None:
        _sockets.interface_index(bind)
        return None
    host: str = "" if sock is None else sock.getsockname()[0]
    return None if host in ("", "0.0.0.0", "::") else host


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


_NAP = 2.0  # s of sleep that are no matter
_FAITH = 10.0  # s for which the gateway's family may be without a network while the other one has one
