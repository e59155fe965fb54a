"""For programs without an event loop. No hidden thread: mappings are renewed only while somebody pumps, that is during
the calls that wait, while `events()` is read, or whenever `process()` is called. `background` has a client with a
thread.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import sys
import time
import typing
from collections.abc import Callable, Iterator

from ..client.client import Client
from ..client.lifecycle import Mapping
from ..client.spec import MappingParameters
from ..core import Core
from ..events import Event, MappingId, ProbeCompleted
from ..gateway.gateway import Gateway
from ..wire.fields import IPAddress, Protocol
from ._driver import Unclaimed, Wait, check_timeout
from ._place import Where
from ._station import ClientOptions, ClientStation, ClientView, Station

C = typing.TypeVar("C", bound=Core)
T = typing.TypeVar("T")


class Driven(typing.Generic[C]):
    """A core on its sockets. One thread only: the one that opened it.

    For a loop of your own: wait until `fileno()` is readable or `timeout()` seconds have passed, then call `process()`.
    """

    def __init__(self, station: Station[C], selector: _Selector) -> None:
        self.core = station.core
        self._station = station
        self._selector = selector

    def now(self) -> float:
        """The clock of `until` and `expires_at`: `time.monotonic()`."""
        return self._station.now()

    def process(self) -> None:
        """Do all that is due, without waiting: read, keep time, send."""
        self._station.now()
        self._selector.select(0.0)
        self._station.pump()

    def wait(self, timeout: float = math.inf) -> None:
        """Wait until something is to be done, `timeout` seconds at most, and do it."""
        self._station.now()
        remaining = self._until_deadline()
        if remaining <= 0 or not self._selector.select(min(timeout, remaining)):  # what is read is pumped already
            self._station.pump()

    def timeout(self) -> float | None:
        """Seconds until `process` wants to be called; None: only when there is something to read."""
        remaining = self._until_deadline()
        return None if remaining == math.inf else remaining

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to process."""
        self._station.now()
        return self._selector.fileno()

    def events(self) -> Events:
        """What happens from now on. Reading waits, and pumps; it ends when the core is closed. Who does not keep up
        with a thousand events loses the oldest."""
        return Events(self)

    def run(self) -> None:
        """Pump until the core is closed."""
        while not self._station.driver.closed:
            self.wait()

    def _until_deadline(self) -> float:
        deadline = self._station.deadline()
        return math.inf if deadline is None else max(0.0, deadline - time.monotonic())


class Events:
    """An endless iterator of events, each waited for. See `Driven.events`."""

    def __init__(self, driven: Driven[typing.Any]) -> None:
        self._driven = driven
        self._subscription = driven._station.driver.subscribe()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._subscription.queue:
            if self._driven._station.driver.closed:
                raise StopIteration
            self._driven.wait()
        return self._subscription.queue.popleft()

    def pending(self) -> list[Event]:
        """What has happened already and was not taken; waits for nothing."""
        return self._subscription.pending()


class ClientCalls(ClientView):
    """What a client can be asked to do. Times are seconds.

    What waits does so for `timeout` seconds at most, and raises:
        MappingError: the gateway refuses, or cannot be reached; its event says why.
        TimeoutError: no answer so far.
        LocalProtocolError: wrong use, before anything has changed.
    In each case what was asked for is given up again. The arguments are those of `Client`'s methods.
    """

    def map_port(
        self,
        protocol: Protocol | int,
        internal_port: int,
        *,
        timeout: float = 30.0,
        **parameters: typing.Unpack[MappingParameters],
    ) -> Mapping:
        """Ask for a mapping and wait until it holds. It is kept until `unmap`, or the end of the block."""
        return self._wait(lambda: self._station.map_port(protocol, internal_port, parameters), timeout)[0]

    def keep_port(
        self, protocol: Protocol | int, internal_port: int, **parameters: typing.Unpack[MappingParameters]
    ) -> MappingId:
        """Ask for a mapping and do not wait; `events()` tells what comes of it."""
        return self._station.keep_port(protocol, internal_port, parameters)

    def map_pair(
        self, internal_port: int, *, timeout: float = 30.0, **parameters: typing.Unpack[MappingParameters]
    ) -> tuple[Mapping, Mapping]:
        """Ask for TCP and UDP on one external port, and wait for both."""
        tcp, udp = self._wait(lambda: self._station.map_pair(internal_port, parameters), timeout)
        return tcp, udp

    def map_peer(
        self,
        protocol: Protocol | int,
        internal_port: int,
        remote: tuple[str | IPAddress, int],
        *,
        timeout: float = 30.0,
        **parameters: typing.Unpack[MappingParameters],
    ) -> Mapping:
        """Learn of, and keep alive, the mapping of one flow, and wait until it holds (PCP)."""
        return self._wait(lambda: self._station.map_peer(protocol, internal_port, remote, parameters), timeout)[0]

    def unmap(self, mapping: Mapping | MappingId) -> bool:
        """Give a mapping up. False: it is finished already."""
        return self._station.unmap(mapping)

    def probe(self, *, timeout: float = 30.0) -> ProbeCompleted:
        """Find out what the gateway speaks, and why it may not work, without any effect there."""
        return self._wait(self._station.probe, timeout)

    def external_address(self, *, timeout: float = 30.0) -> IPAddress:
        """Ask for the gateway's external address."""
        return self._wait(self._station.external_address, timeout)

    def network_changed(self) -> None:
        """Ask for every mapping again, now. Other networks and sleep are noticed without it, within seconds."""
        self._station.network_changed()

    def _wait(self, begin: Callable[[], Wait[T]], timeout: float) -> T:
        raise NotImplementedError


class BlockingClient(Driven[Client], ClientCalls):
    """A `Client` on its sockets: see `open_client`."""

    _station: ClientStation

    def release(self) -> None:
        """Release every mapping and wait for the gateway to confirm, a few seconds at most."""
        self._station.check_thread()
        if not self._station.driver.closed:
            self._station.close()
        self.run()

    def close(self) -> None:
        """Release every mapping as far as that has not been done, and close the sockets."""
        self._station.check_thread()
        try:
            self.release()
        finally:
            self._station.shut()

    def abandon(self) -> None:
        """Wait no longer for what `release` waits for: leases that were not released run out by themselves."""
        self._station.driver.abandon()

    def _wait(self, begin: Callable[[], Wait[T]], timeout: float) -> T:
        check_timeout(timeout)
        wait, give_up_at = begin(), time.monotonic() + timeout
        try:
            self._station.pump()
            while not wait.is_over and (remaining := give_up_at - time.monotonic()) > 0:
                self.wait(remaining)
            return wait.result_within(timeout)
        finally:
            self._station.forget(wait)


@contextlib.contextmanager
def open_client(
    gateway: Where = None,
    *,
    sock: socket.socket | None = None,
    unclaimed: Unclaimed | None = None,
    **options: typing.Unpack[ClientOptions],
) -> Iterator[BlockingClient]:
    """A client of `gateway`; leaving the block releases its mappings, within a few seconds.

    `gateway` is an address, a socket address, a list of the several addresses of one server, or None for this host's
    default gateway, which is followed when it changes. `sock` is a bound UDP socket of yours to share, and is made
    non-blocking: what arrives there and is not the client's goes to `unclaimed(data, addr)`. The other options are
    those of `ClientOptions`: `config`, `bind`, `snapshot`, `announcements`.

    Raises:
        DiscoveryError: no gateway was named and none can be found.
        OSError: there is no route to the gateway, or `bind` is not an address of this host.
        LocalProtocolError: `gateway` is no address, the snapshot is none, or the socket has a core already.
    """
    selector = _Selector()
    with contextlib.closing(selector):
        station = ClientStation(selector, gateway, sock=sock, unclaimed=unclaimed, **options)
        with contextlib.closing(BlockingClient(station, selector)) as client:
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
    """Drive any core, a `Multiplexer` too, on `sock` or on a socket at its `bind_address`. Commands to it take
    `time.monotonic()`; `process()` sends what comes of them.

    Raises:
        LocalProtocolError: there is no socket, and the core does not say where it wants to live.
        OSError: the address is not ours, or not free.
    """
    selector = _Selector()
    with contextlib.closing(selector):
        station = Station(core, selector, sock=sock, unclaimed=unclaimed)
        try:
            yield Driven(station, selector)
        finally:
            station.shut()


class _Selector:
    """The runtime of those who have none."""

    now = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, station: Station[typing.Any], sock: socket.socket) -> None:
        self.on_readable(sock, station.read)

    def on_readable(self, sock: socket.socket, read: Callable[[typing.Any], object]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, read)

    def unwatch(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def rearm(self, station: Station[typing.Any], deadline: float | None) -> None:
        """Whoever waits asks for the deadline each time."""

    def select(self, timeout: float) -> bool:
        """Wait for something to read, have it read, and have done what follows. False: there was nothing."""
        ready = self._selector.select(None if timeout == math.inf else timeout)
        for key, _ in ready:
            key.data(key.fileobj)
        return bool(ready)

    def fileno(self) -> int:
        if sys.platform == "win32":
            (key, *_) = self._selector.get_map().values()
            return key.fd
        return typing.cast("typing.Any", self._selector).fileno()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._selector.close()
