"""A core on its sockets, whatever waits for them. A face brings a `Runtime`: the four things that loops differ in."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import typing
import weakref

from ..client.client import Client
from ..client.lifecycle import Mapping
from ..client.spec import MappingParameters
from ..config import Config
from ..core import Core, HostCore
from ..core.socket_address import ip_of, peers_of
from ..errors import LocalProtocolError
from ..events import Address, AnnouncementsUnavailable, MappingId, ProbeCompleted
from ..wire.fields import IPAddress, Protocol
from . import _sockets
from ._driver import Answer, Driver, Grant, Unclaimed, Wait, datagrams_log, pick_address, pick_probe
from ._place import Place, Where

C = typing.TypeVar("C", bound=Core)


class ClientOptions(typing.TypedDict, total=False):
    """How a client is to be opened.

    config: what the `Client` is told.
    bind: the local address or the interface to use, where the routes would choose another.
    snapshot: what another client's `snapshot` or `detach` has left; its mappings are confirmed at once.
    announcements: whether to hear the gateway's, on port 5350. True unless it is said.
    """

    config: Config | None
    bind: str | None
    snapshot: dict[str, typing.Any] | None
    announcements: bool


_READS = 256  # datagrams taken from one socket before the clock is looked at again
_LOOK = 15.0  # s from one look around to the next: has this system slept, or moved?
_SETTLE = 0.5  # s after the system has said that a route has changed; more will follow
_PAUSE = 1.0  # s until what has raised is tried again


class Runtime(typing.Protocol):
    """What a loop has to offer."""

    def now(self) -> float:
        """Seconds, monotonic."""
        ...

    def watch(self, station: Station[typing.Any], sock: socket.socket) -> None:
        """Call `station.read(sock)` whenever there is something to read."""
        ...

    def unwatch(self, sock: socket.socket) -> None: ...
    def rearm(self, station: Station[typing.Any], deadline: float | None) -> None:
        """Call `station.alarm()` then, instead of when was said before; None: not at all."""
        ...


class Station(typing.Generic[C]):
    """Moves bytes, time and events between a core, its sockets and a runtime. For one thread, the one that made it.

    `sock` is somebody else's socket, which stays open; without it there is one at the core's `bind_address`.

    Raises:
        LocalProtocolError: there is no socket, and the core does not say where it wants to live; or the socket has a
        core already.
        OSError: the address is not ours, or not free.
    """

    def __init__(
        self, core: C, runtime: Runtime, *, sock: socket.socket | None = None, unclaimed: Unclaimed | None = None
    ) -> None:
        if sock is not None:
            _check_lent(sock)
        elif not hasattr(core, "bind_address"):
            raise LocalProtocolError("this core has no address of its own: hand in a socket")
        self.core = core
        self.runtime = runtime
        self.driver = Driver(core, unclaimed)
        self._owner = _who()
        self._lent = sock
        self._is_ipv6 = sock is not None and sock.family == socket.AF_INET6
        # A descriptor of our own, so that nothing which is done to it concerns the caller's.
        self._sock = self._open_socket() if sock is None else sock.dup()
        self._look_at = math.inf
        self._alarm_at: float | None = None
        self._is_shut = False
        try:
            self._sock.setblocking(False)
            runtime.watch(self, self._sock)
        except BaseException:
            self._sock.close()
            raise
        if sock is not None:
            _lent.add(sock)

    def now(self) -> float:
        """The time, for a command.

        Raises:
            LocalProtocolError: it comes too late, or from another thread or process.
        """
        if self.driver.closed:
            raise LocalProtocolError("this is closed")
        self.check_thread()
        return self.runtime.now()

    def check_thread(self) -> None:
        if _who() != self._owner:
            raise LocalProtocolError("this belongs to the thread and process that opened it")

    def deadline(self) -> float | None:
        """When `pump` is to be called."""
        if self.driver.closed:
            return None
        deadline = self.driver.deadline()
        if deadline is None or self._look_at < deadline:
            return None if self._look_at == math.inf else self._look_at
        return deadline

    def read(self, sock: socket.socket) -> None:
        """Take in what has arrived on a socket, and do what follows."""
        arrived: tuple[bytes | None, Address] | None = None
        is_shared = sock is self._sock
        for _ in range(_READS):
            # The errors, if it is nothing else that has come: to look for them takes as long as to read a datagram.
            arrived = None if self._is_shut else _sockets.receive(sock, errors=arrived is None)
            if arrived is None:
                break
            data, addr = arrived
            if data is None:
                self.driver.unreachable(addr, self.runtime.now())
            else:
                self.driver.receive(data, addr, self.runtime.now(), is_shared=is_shared)
        self.pump()

    def receive(self, data: bytes, addr: Address, sock: socket.socket) -> None:
        """Take in a datagram. What else is said to the announcement group was never the caller's business."""
        self.driver.receive(data, addr, self.runtime.now(), is_shared=sock is self._sock)

    def alarm(self) -> None:
        """The time has come for which the alarm was set, even if the clock is not quite there."""
        now, self._alarm_at = -math.inf if self._alarm_at is None else self._alarm_at, None
        self.pump(now)

    def pump(self, now: float = -math.inf) -> None:
        """Do what is due, send, and set the alarm."""
        if self.driver.closed:
            return
        now = max(now, self.runtime.now())
        again = now + _PAUSE  # if something is raised, which nothing should
        try:
            if now >= self._look_at:
                self._look_around(now)
            self.driver.wake(now)
            self._send(self._sock)
            again = -math.inf
        finally:
            deadline = self.deadline()
            deadline = None if deadline is None else max(deadline, again)
            if deadline != self._alarm_at:
                self._alarm_at = deadline
                self.runtime.rearm(self, deadline)

    def shut(self) -> None:
        """Close what was opened here. Nothing is sent any more. A second call does nothing."""
        self.driver.end()
        if self._is_shut:
            return
        self._is_shut = True
        self.runtime.rearm(self, None)
        self._close(self._sock)
        if self._lent is not None:
            _lent.discard(self._lent)

    def _look_around(self, now: float) -> None:
        """Only a client cares."""

    def _open_socket(self) -> socket.socket:
        return _sockets.open_request_socket(typing.cast("HostCore", self.core).bind_address)

    def _send(self, sock: socket.socket, old: socket.socket | None = None) -> None:
        """Send what waits. `old` is where the client was before."""
        for datagram in self.driver.take_sends():
            by = sock if datagram.source is None or old is None else old
            addr = datagram.addr
            if self._is_ipv6 and ":" not in addr[0]:
                addr = (f"::ffff:{addr[0]}", addr[1], 0, 0)
            if not _sockets.send(by, datagram.data, addr):
                self.driver.unreachable(datagram.addr, self.runtime.now())

    def _close(self, sock: socket.socket) -> None:
        self.runtime.unwatch(sock)
        sock.close()


class ClientStation(Station[Client]):
    """The same for a client, which hears announcements, and is told when this system sleeps or moves."""

    def __init__(
        self,
        runtime: Runtime,
        gateway: Where,
        *,
        sock: socket.socket | None,
        unclaimed: Unclaimed | None,
        config: Config | None = None,
        bind: str | None = None,
        snapshot: dict[str, typing.Any] | None = None,
        announcements: bool = True,
    ) -> None:
        if sock is not None:
            _check_lent(sock)
        if gateway is None and snapshot is not None:
            gateway = _saved(snapshot, "gateway")  # if one was named then
        self._place = place = Place(gateway, bind, sock, (config or Config()).versions)
        _check_families(place, sock)
        now = runtime.now()
        if snapshot is None:
            core = Client(place.gateways, local_address=place.local, config=config)
        else:
            core = _restore(snapshot, place, config, now)
        self._announcements: socket.socket | None = None
        self._routes: socket.socket | None = None
        self._home = (place.bind_address, place.gateways)  # what the sockets are for
        super().__init__(core, runtime, sock=sock, unclaimed=unclaimed)
        self._hears_announcements = announcements
        self._has_news = False  # some route has changed
        self._look_at = now + _LOOK
        try:
            self._routes = _sockets.open_route_socket()
            if self._routes is not None:
                runtime.watch(self, self._routes)
            self._listen()
            self.pump()
        except BaseException:
            self.shut()
            raise

    # --- commands

    def keep_port(self, protocol: Protocol | int, internal_port: int, parameters: MappingParameters) -> MappingId:
        mapping = self.core.map_port(protocol, internal_port, self.now(), **parameters)
        self.pump()
        return mapping

    def map_port(
        self, protocol: Protocol | int, internal_port: int, parameters: MappingParameters
    ) -> Wait[tuple[Mapping, ...]]:
        return self._grant(self.core.map_port(protocol, internal_port, self.now(), **parameters))

    def map_peer(
        self,
        protocol: Protocol | int,
        internal_port: int,
        remote: tuple[str | IPAddress, int],
        parameters: MappingParameters,
    ) -> Wait[tuple[Mapping, ...]]:
        return self._grant(self.core.map_peer(protocol, internal_port, remote, self.now(), **parameters))

    def map_pair(self, internal_port: int, parameters: MappingParameters) -> Wait[tuple[Mapping, ...]]:
        return self._grant(*self.core.map_pair(internal_port, self.now(), **parameters))

    def unmap(self, mapping: MappingId | Mapping) -> bool:
        released = self.core.unmap(mapping.id if isinstance(mapping, Mapping) else mapping, self.now())
        self.pump()
        return released

    def probe(self) -> Wait[ProbeCompleted]:
        self.core.probe(self.now())
        return self.driver.begin(Answer(self.core, pick_probe))

    def external_address(self) -> Wait[IPAddress]:
        self.core.request_external_address(self.now())
        return self.driver.begin(Answer(self.core, pick_address))

    def network_changed(self) -> None:
        self._place.doubt()
        self._look_at = self.now()
        self.pump()

    def snapshot(self) -> dict[str, typing.Any]:
        named = [list(each) for each in self._place.named] or None
        return {"taken_at": time.time(), "gateway": named, "client": self.core.snapshot(self.now())}

    def close(self) -> None:
        """Begin to release everything. `driver.closed` says when that is over."""
        self.check_thread()
        self.driver.close(self.runtime.now())
        self.pump()

    def forget(self, wait: Wait[typing.Any]) -> None:
        """Nobody waits any more: what has not come is given up."""
        self.driver.forget(wait)
        wait.withdraw(self.runtime.now())
        self.pump()

    def _grant(self, *mappings: MappingId) -> Wait[tuple[Mapping, ...]]:
        return self.driver.begin(Grant(self.core, *mappings))

    # --- sockets

    def read(self, sock: socket.socket) -> None:
        if sock is not self._routes:
            super().read(sock)
            return
        _sockets.drain(sock)
        self._has_news = True
        self._look_at = min(self._look_at, self.runtime.now() + _SETTLE)
        self.pump()

    def shut(self) -> None:
        super().shut()
        for sock in (self._announcements, self._routes):
            if sock is not None:
                self._close(sock)
        self._announcements = self._routes = None

    def _open_socket(self) -> socket.socket:
        return _sockets.open_request_socket(self._place.bind_address, *self._place.gateways)

    def _listen(self) -> None:
        """Hear the gateway's announcements on a second socket; where that cannot be, say so with an event, once."""
        if self._announcements is not None:
            self._close(self._announcements)
            self._announcements = None
        if not self._hears_announcements:
            return
        try:
            self._announcements = _sockets.open_announcement_socket(self.core.bind_address)
        except OSError as error:
            if not self.driver.standing:
                event = AnnouncementsUnavailable(gateway=self.core.gateway, reason=str(error))
                self.driver.publish_standing(event)
        else:
            self.runtime.watch(self, self._announcements)

    def _look_around(self, now: float) -> None:
        self._look_at = now + _LOOK
        if self._place.has_slept():
            self._place.doubt()
        is_worth_it = self._has_news or self._place.is_doubtful or self._routes is None
        self._has_news = False
        if is_worth_it and self._place.has_changed(now):
            try:
                self._move(now)
            except (OSError, LocalProtocolError) as error:
                # The address is not usable yet, or no more; or that is no place for what the caller has configured.
                datagrams_log.debug("at %s, but not yet: %s", self._place.local, error)
                self._place.doubt()
                self._look_at = now + _SETTLE

    def _move(self, now: float) -> None:
        """The core is told when there is a socket to ask from."""
        place, old = self._place, self._sock
        is_elsewhere = (place.bind_address, place.gateways) != self._home
        new = self._open_socket() if is_elsewhere and self._lent is None else old
        try:
            self.core.network_changed(now, place.local, place.gateways)
        except LocalProtocolError:
            if new is not old:
                new.close()
            raise
        if not is_elsewhere:
            return
        self._home, self._sock = (place.bind_address, place.gateways), new
        self._send(new, old)
        if new is not old:
            self.runtime.watch(self, new)
            self._close(old)
        self._listen()


class ClientView:
    """What the faces of a client have in common, because it neither waits nor sends."""

    core: Client
    _station: ClientStation

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """Every mapping that is not finished, in the order of asking."""
        return self.core.mappings

    def mapping(self, mapping: MappingId) -> Mapping | None:
        """One mapping, or None once it is finished."""
        return self.core.mapping(mapping)

    @property
    def version(self) -> int | None:
        """What the gateway speaks: 2 is PCP, 0 is NAT-PMP; None until it has answered."""
        return self.core.version

    def snapshot(self) -> dict[str, typing.Any]:
        """Plain values with which another process can take over: `open_client(snapshot=...)`. Keep them private."""
        return self._station.snapshot()

    def detach(self) -> dict[str, typing.Any]:
        """A snapshot, and the end: whoever takes it up has the mappings from now on, if it comes before their leases
        are over. Nothing is released."""
        saved = self._station.snapshot()
        self._station.shut()
        return saved


def _check_lent(sock: socket.socket) -> None:
    """That a socket of the caller's is one that a core can share.

    Raises:
        LocalProtocolError: it is not.
    """
    is_alike = all(hasattr(sock, name) for name in ("dup", "sendto", "family", "type"))
    if not is_alike or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_DGRAM:
        raise LocalProtocolError(f"sock must be a UDP socket of the module socket's, not {sock!r}")
    if sock.fileno() == -1:
        raise LocalProtocolError("this socket is closed")
    if sock in _lent:
        raise LocalProtocolError("this socket has its core already; several share one through a Multiplexer")
    with contextlib.suppress(OSError):
        peer = sock.getpeername()
        raise LocalProtocolError(f"this socket is connected to {peer[0]}, and hears nobody else")


def _check_families(place: Place, sock: socket.socket | None) -> None:
    """That the gateway can be reached from there.

    Raises:
        LocalProtocolError: it cannot.
    """
    version = ip_of(place.gateways[0]).version
    if ip_of(place.local).version != version:
        raise LocalProtocolError(f"{place.gateways[0][0]} cannot be reached from {place.local}, of the other family")
    is_ipv4_only = sock is not None and sock.family == socket.AF_INET
    is_ipv6_only = sock is not None and not is_ipv4_only and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    if (version == 6 and is_ipv4_only) or (version == 4 and is_ipv6_only):
        raise LocalProtocolError(f"{place.gateways[0][0]} cannot be reached on this socket, of the other family")


def _who() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _restore(snapshot: dict[str, typing.Any], place: Place, config: Config | None, now: float) -> Client:
    # No other clock goes on from one process to the next.
    taken_at = _saved(snapshot, "taken_at")
    elapsed = max(0.0, time.time() - taken_at) if isinstance(taken_at, int | float) else math.nan
    client = Client.restore(_saved(snapshot, "client"), now, elapsed=elapsed, local_address=place.local, config=config)
    if peers_of(client.gateways) != peers_of(place.gateways):
        for _ in client.outputs():
            pass  # nothing is asked of the old one; what may still be there is deleted
        client.network_changed(now, place.local, place.gateways)
    return client


def _saved(snapshot: dict[str, typing.Any], key: str) -> typing.Any:
    try:
        return snapshot[key]
    except (KeyError, TypeError):
        raise LocalProtocolError("this is no snapshot that an adapter has made") from None


_lent: weakref.WeakSet[typing.Any] = weakref.WeakSet()  # the sockets of others that are in use
