"""For programs without an event loop. No hidden thread: mappings are renewed only while somebody pumps, that is
during `map_port`, while `events()` is read, or whenever `process()` is called.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
import typing
from collections.abc import Iterator

from ..client import Client
from ..config import Config
from ..core import Core, HostCore
from ..errors import LocalProtocolError
from ..events import Address, AnnouncementsUnavailable, Event, MappingError, MappingGranted, MappingId
from ..gateway import Gateway
from ..lifecycle import Mapping
from ..wire.fields import IPAddress, Protocol
from ..wishes import Wishes
from . import _sockets
from ._driver import Driver, Unclaimed, datagrams_log
from .discovery import default_gateways

C = typing.TypeVar("C", bound=Core)

_LINGER = 5.0  # s that closing may take: a release that nobody confirms is given up then
_READS = 256  # datagrams taken from one socket before the clock is looked at again


class Driven(typing.Generic[C]):
    """A core on its sockets. One thread only: the one that opened it.

    For a loop of your own: wait until `fileno()` is readable or `next_timeout()` (on `time.monotonic()`) has come,
    then call `process()`.
    """

    def __init__(self, core: C, sock: socket.socket, *, unclaimed: Unclaimed | None, connected: Address | None) -> None:
        self.core = core
        self._driver = Driver(core, unclaimed)
        self._sock = sock
        self._connected = connected
        self._owner = threading.get_ident()
        self._announcements: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)

    def process(self) -> None:
        """Do all that is due, without waiting: read, keep time, send."""
        if threading.get_ident() != self._owner:
            raise LocalProtocolError("this belongs to the thread that opened it")
        self._read(self._sock)
        if self._announcements is not None:
            self._read(self._announcements)
        self._driver.wake(time.monotonic())
        self._send()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until something is to be done, `timeout` seconds at most, and do it."""
        self._send()
        deadline = self._driver.deadline()
        if deadline is not None:
            until_deadline = max(0.0, deadline - time.monotonic())
            timeout = until_deadline if timeout is None else min(timeout, until_deadline)
        self._selector.select(timeout)
        self.process()

    def next_timeout(self) -> float | None:
        """By when `process` wants to be called (`time.monotonic()`); None: only when there is something to read."""
        return self._driver.deadline()

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to process (where the system has such a thing)."""
        return self._selector.fileno()

    def events(self) -> Events:
        """What happens from now on. Reading waits, and pumps; it ends when the core is closed."""
        return Events(self)

    def run(self) -> None:
        """Pump until the core is closed."""
        while not self._driver.closed:
            self.wait()

    def listen_for_announcements(self, local: Address, gateway: Address) -> None:
        """Hear the gateway's announcements on a second socket; where that cannot be, say so with an event."""
        try:
            sock = _sockets.open_announcement_socket(local)
        except OSError as error:
            self._driver.publish_standing(AnnouncementsUnavailable(gateway=gateway, reason=str(error)))
        else:
            self._announcements = sock
            self._selector.register(sock, selectors.EVENT_READ)

    def close(self) -> None:
        """Close what was opened here. Nothing is sent any more. A second call does nothing."""
        self._driver.closed = True
        if self._announcements is not None:
            self._announcements.close()
        self._selector.close()

    def _read(self, sock: socket.socket) -> None:
        for _ in range(_READS):
            try:
                datagram = _sockets.receive(sock)
            except OSError:
                self._driver.unreachable(time.monotonic())
                continue
            if datagram is None:
                return
            # What else is said to the announcement group was never the caller's business.
            self._driver.receive(*datagram, time.monotonic(), is_shared=sock is self._sock)

    def _send(self) -> None:
        for datagram in self._driver.take_sends():
            try:
                _sockets.send(self._sock, datagram.data, datagram.addr, self._connected)
            except ConnectionError:
                self._driver.unreachable(time.monotonic())
            except OSError as error:
                datagrams_log.debug(
                    "not sent to %s: %s", datagram.addr[0], error
                )  # as good as lost; the core sends again


class Events:
    """An endless iterator of events, each waited for. See `Driven.events`."""

    def __init__(self, driven: Driven[typing.Any]) -> None:
        self._driven = driven
        self._subscription = driven._driver.subscribe()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        while not self._subscription.queue:
            if self._driven._driver.closed:
                raise StopIteration
            self._driven.wait()
        return self._subscription.queue.popleft()

    def pending(self) -> list[Event]:
        """What has happened already, without waiting."""
        happened = list(self._subscription.queue)
        self._subscription.queue.clear()
        return happened


class BlockingClient(Driven[Client]):
    """A `Client` on its sockets: see `open_client`."""

    _lingers_until: float | None = None

    def map_port(
        self, protocol: Protocol | int, internal_port: int, *, timeout: float = 30.0, **wishes: typing.Unpack[Wishes]
    ) -> Mapping:
        """Ask for a mapping and wait until it holds, `timeout` seconds at most. The arguments are `Client.map_port`'s.

        Raises:
            MappingError: the gateway refuses, or cannot be reached; its event says why.
            TimeoutError: no answer so far.
            LocalProtocolError: wrong use.
        In each case the mapping is given up again.
        """
        mapping = self.keep_port(protocol, internal_port, **wishes)
        waiter = self._driver.wait_for(mapping)
        give_up_at = time.monotonic() + timeout
        try:
            while waiter.outcome is None:
                remaining = give_up_at - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(f"{self.core.gateway[0]} has not answered within {timeout:g} s")
                self.wait(remaining)
            granted = self.core.mapping(mapping)
            if isinstance(waiter.outcome, MappingGranted) and granted is not None:
                return granted
            raise MappingError(typing.cast("typing.Any", waiter.outcome))
        except BaseException:
            self.unmap(mapping)
            raise
        finally:
            self._driver.forget(waiter)

    def keep_port(self, protocol: Protocol | int, internal_port: int, **wishes: typing.Unpack[Wishes]) -> MappingId:
        """Ask for a mapping and do not wait; `events()` tells what comes of it."""
        return self.core.map_port(protocol, internal_port, time.monotonic(), **wishes)

    def unmap(self, mapping: MappingId) -> bool:
        """Give a mapping up. False: it is finished already."""
        released = self.core.unmap(mapping, time.monotonic())
        self._send()
        return released

    def mapping(self, mapping: MappingId) -> Mapping | None:
        """One mapping, or None once it is finished."""
        return self.core.mapping(mapping)

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return self.core.mappings

    @property
    def external_address(self) -> IPAddress | None:
        return self.core.external_address

    @property
    def version(self) -> int | None:
        return self.core.version

    def release(self) -> None:
        """Release every mapping and wait for the gateway to confirm, a few seconds at most. Once."""
        if self._lingers_until is None:
            self._lingers_until = time.monotonic() + _LINGER
            self.core.close(time.monotonic())
            self._send()
        while not self._driver.closed and (remaining := self._lingers_until - time.monotonic()) > 0:
            self.wait(remaining)

    def close(self) -> None:
        """Release every mapping as far as that has not been done, and close the sockets."""
        if not self._driver.closed:
            self.release()
        super().close()

    def abandon(self) -> None:
        """Wait no longer for what `release` waits for: leases that were not released run out by themselves."""
        self._lingers_until = -math.inf


@contextlib.contextmanager
def open_client(
    gateway: str | Address | None = None,
    *,
    config: Config | None = None,
    bind: str | None = None,
    sock: socket.socket | None = None,
    unclaimed: Unclaimed | None = None,
) -> Iterator[BlockingClient]:
    """A client of `gateway`; leaving the block releases its mappings.

    `gateway` is an address, a socket address, or None for this host's default gateway. `bind` is the local address to
    use, where the routes would choose another. `sock` is a bound UDP socket of yours to share, and is made
    non-blocking: what arrives there and is not the client's goes to `unclaimed(data, addr)`.

    Raises:
        DiscoveryError: no gateway was named and none can be found.
        OSError: there is no route to the gateway, or `bind` is not an address of this host.
        LocalProtocolError: `gateway` is no address.
    """
    if gateway is None:
        gateway = default_gateways()[0].address
    elif isinstance(gateway, str):
        gateway = _sockets.gateway_address(gateway)
    bound = sock.getsockname()[0] if sock is not None else None
    if bound in (None, "", "0.0.0.0", "::"):
        bound = _sockets.source_address(gateway)
    local = bind or bound
    core = Client(gateway, local_address=local, config=config)
    with contextlib.ExitStack() as stack:
        connected = None
        if sock is None:
            connected = gateway
            sock = stack.enter_context(_sockets.open_request_socket(core.bind_address, gateway))
        sock.setblocking(False)
        client = BlockingClient(core, sock, unclaimed=unclaimed, connected=connected)
        stack.callback(client.close)
        client.listen_for_announcements(core.bind_address, gateway)
        yield client


@contextlib.contextmanager
def open_gateway(gateway: Gateway, *, unclaimed: Unclaimed | None = None) -> Iterator[Driven[Gateway]]:
    """Serve a `Gateway` on its own address: call `run()`, or read `events()`. It announces itself first.

    Raises:
        OSError: the address is not ours, or not free.
    """
    with drive(gateway, unclaimed=unclaimed) as driven:
        gateway.reboot(time.monotonic())
        yield driven


@contextlib.contextmanager
def drive(core: C, *, sock: socket.socket | None = None, unclaimed: Unclaimed | None = None) -> Iterator[Driven[C]]:
    """Drive any core, on `sock` or on a socket at its `bind_address`.

    Raises:
        LocalProtocolError: there is no socket, and the core does not say where it wants to live.
        OSError: the address is not ours, or not free.
    """
    with contextlib.ExitStack() as stack:
        if sock is None:
            if not hasattr(core, "bind_address"):
                raise LocalProtocolError("this core has no address of its own: hand in a socket")
            host = typing.cast("HostCore", core)
            sock = stack.enter_context(_sockets.open_request_socket(host.bind_address))
        sock.setblocking(False)
        driven = Driven(core, sock, unclaimed=unclaimed, connected=None)
        stack.callback(driven.close)
        yield driven
