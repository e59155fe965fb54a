"""What asyncio's and trio's users see, which is the same. Nothing here knows more of a loop than its `Runtime`."""

from __future__ import annotations

import contextlib
import math
import socket
import typing
from collections.abc import AsyncIterator, Callable, Coroutine

from ..client.client import Client
from ..client.lifecycle import Mapping
from ..client.spec import MappingParameters
from ..core import Core
from ..events import Event, MappingId, ProbeCompleted
from ..gateway.gateway import Gateway
from ..wire.fields import IPAddress, Protocol
from . import _station
from ._driver import LINGER, Unclaimed, Wait, check_timeout
from ._place import Where
from ._station import ClientOptions, ClientStation, ClientView, Station

C = typing.TypeVar("C", bound=Core)
T = typing.TypeVar("T")


class Signal(typing.Protocol):
    """The part of `asyncio.Event` and `trio.Event` that is the same."""

    def set(self) -> object: ...
    def is_set(self) -> bool: ...
    def wait(self) -> Coroutine[typing.Any, typing.Any, object]: ...


class Runtime(_station.Runtime, typing.Protocol):
    """What an event loop has to offer on top."""

    def signal(self) -> Signal: ...
    async def wait(self, signal: Signal, timeout: float) -> None:
        """Wait for a signal, so many seconds at most."""
        ...

    async def wait_anyhow(self, signal: Signal, timeout: float) -> None:
        """The same; who is cancelled meanwhile hears of it afterwards."""
        ...

    async def checkpoint(self) -> None:
        """Let others go on, or be cancelled."""
        ...


class Driven(typing.Generic[C]):
    """A core on its sockets, which lives while its block is open. Commands to `core` itself take `now()`; then call
    `process()`."""

    def __init__(self, station: Station[C], runtime: Runtime) -> None:
        self.core = station.core
        self._station = station
        self._runtime = runtime

    def now(self) -> float:
        """The loop's clock, which is that of `until` and `expires_at`."""
        return self._station.now()

    def process(self) -> None:
        """Do what is due, and send what waits."""
        self._station.check_thread()
        self._station.pump()

    def events(self) -> Events:
        """What happens from now on; ends when the core is closed. Who does not keep up with a thousand events loses
        the oldest."""
        return Events(self._station, self._runtime)


class Events:
    """An endless asynchronous iterator of events. See `Driven.events`."""

    def __init__(self, station: Station[typing.Any], runtime: Runtime) -> None:
        self._driver = station.driver
        self._runtime = runtime
        self._subscription = station.driver.subscribe()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._subscription.queue:
            if self._driver.closed:
                raise StopAsyncIteration
            signal = self._runtime.signal()
            self._subscription.readers.append(signal.set)
            await self._runtime.wait(signal, math.inf)
        return self._subscription.queue.popleft()

    def pending(self) -> list[Event]:
        """What has happened already and was not taken; waits for nothing."""
        return self._subscription.pending()


class AsyncClient(Driven[Client], ClientView):
    """A `Client` on its sockets: see `open_client`. Times are seconds.

    Whoever waits does so for `timeout` seconds at most. Raised are MappingError (the gateway refuses, or cannot be
    reached: its event says why), TimeoutError (no answer so far) and LocalProtocolError (wrong use, before anything has
    changed). In each case, and if it is cancelled before the answer, what was asked for is given up again.
    """

    _station: ClientStation

    async def map_port(
        self,
        protocol: Protocol | int,
        internal_port: int,
        *,
        timeout: float = 30.0,
        **parameters: typing.Unpack[MappingParameters],
    ) -> Mapping:
        """A mapping that holds, and is kept until `unmap` or the end of the block. See `Client.map_port`."""
        return (await self._wait(lambda: self._station.map_port(protocol, internal_port, parameters), timeout))[0]

    async def keep_port(
        self, protocol: Protocol | int, internal_port: int, **parameters: typing.Unpack[MappingParameters]
    ) -> MappingId:
        """The same without waiting; `events()` tells what comes of it."""
        await self._runtime.checkpoint()
        return self._station.keep_port(protocol, internal_port, parameters)

    async def map_peer(
        self,
        protocol: Protocol | int,
        internal_port: int,
        remote: tuple[str | IPAddress, int],
        *,
        timeout: float = 30.0,
        **parameters: typing.Unpack[MappingParameters],
    ) -> Mapping:
        """The mapping of one flow, kept alive (PCP). See `Client.map_peer`."""
        return (await self._wait(lambda: self._station.map_peer(protocol, internal_port, remote, parameters), timeout))[
            0
        ]

    async def map_pair(
        self, internal_port: int, *, timeout: float = 30.0, **parameters: typing.Unpack[MappingParameters]
    ) -> tuple[Mapping, Mapping]:
        """TCP and UDP, on one external port if the gateway can. See `Client.map_pair`."""
        tcp, udp = await self._wait(lambda: self._station.map_pair(internal_port, parameters), timeout)
        return tcp, udp

    async def unmap(self, mapping: Mapping | MappingId) -> bool:
        """Give a mapping up; MappingReleased follows. False: it is finished already."""
        await self._runtime.checkpoint()
        return self._station.unmap(mapping)

    async def probe(self, *, timeout: float = 30.0) -> ProbeCompleted:
        """What the gateway speaks, and why it may not work. It has no effect there."""
        return await self._wait(self._station.probe, timeout)

    async def external_address(self, *, timeout: float = 30.0) -> IPAddress:
        """The gateway's external address, asked for now. See `Client.request_external_address`."""
        return await self._wait(self._station.external_address, timeout)

    async def network_changed(self) -> None:
        """Ask for every mapping again. Sleep and other networks are noticed without it, within seconds."""
        await self._runtime.checkpoint()
        self._station.network_changed()

    async def close(self) -> None:
        """Release every mapping, in five seconds at most, and close the sockets. A second call does nothing."""
        self._station.check_thread()
        driver = self._station.driver
        signal = self._runtime.signal()
        driver.on_end(signal.set)
        try:
            if not driver.closed:
                self._station.close()
            await self._runtime.wait_anyhow(signal, LINGER + 1.0)
        finally:
            self._station.shut()

    async def _wait(self, begin: Callable[[], Wait[T]], timeout: float) -> T:
        check_timeout(timeout)
        wait, signal = begin(), self._runtime.signal()
        wait.wake = signal.set
        try:
            self._station.pump()
            await self._runtime.wait(signal, timeout)
            return wait.result_within(timeout)
        finally:
            self._station.forget(wait)


@contextlib.asynccontextmanager
async def open_client(
    runtime: Runtime,
    gateway: Where,
    sock: socket.socket | None,
    unclaimed: Unclaimed | None,
    **options: typing.Unpack[ClientOptions],
) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(ClientStation(runtime, gateway, sock=sock, unclaimed=unclaimed, **options), runtime)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def open_gateway(
    runtime: Runtime, gateway: Gateway, unclaimed: Unclaimed | None
) -> AsyncIterator[Driven[Gateway]]:
    async with drive(runtime, gateway, None, unclaimed) as driven:
        gateway.reboot(driven.now())
        driven.process()
        yield driven


@contextlib.asynccontextmanager
async def drive(
    runtime: Runtime, core: C, sock: socket.socket | None, unclaimed: Unclaimed | None
) -> AsyncIterator[Driven[C]]:
    station = Station(core, runtime, sock=sock, unclaimed=unclaimed)
    try:
        station.pump()
        yield Driven(station, runtime)
    finally:
        station.shut()
