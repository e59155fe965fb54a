"""For asyncio, and loops that behave as it does, such as uvloop. Mappings are kept while the block is open."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..core import Core
from ..errors import LocalProtocolError
from ..events import Address
from ..gateway.gateway import Gateway
from . import _async
from ._async import AsyncClient, Driven, Events, Signal
from ._driver import Unclaimed
from ._place import Where
from ._station import ClientOptions, Station

__all__ = ["AsyncClient", "Driven", "Events", "drive", "open_client", "open_gateway"]

C = typing.TypeVar("C", bound=Core)

Lent = socket.socket | asyncio.DatagramTransport | None


@asynccontextmanager
async def open_client(
    gateway: Where = None,
    *,
    sock: Lent = None,
    unclaimed: Unclaimed | None = None,
    **options: typing.Unpack[ClientOptions],
) -> AsyncIterator[AsyncClient]:
    """The arguments and errors are those of the blocking `open_client`. `sock` may also be a datagram transport: what
    is not the client's goes on to its own protocol, or to `unclaimed` if that is given."""
    async with _async.open_client(_Asyncio(), gateway, *_shared(sock, unclaimed), **options) as client:
        yield client


@asynccontextmanager
async def open_gateway(gateway: Gateway, *, unclaimed: Unclaimed | None = None) -> AsyncIterator[Driven[Gateway]]:
    """Serve a `Gateway` on its own address while the block is open. It announces itself first."""
    async with _async.open_gateway(_Asyncio(), gateway, unclaimed) as served:
        yield served


@asynccontextmanager
async def drive(core: C, *, sock: Lent = None, unclaimed: Unclaimed | None = None) -> AsyncIterator[Driven[C]]:
    """Drive any core, a `Multiplexer` too, on `sock` or on a socket at its `bind_address`."""
    async with _async.drive(_Asyncio(), core, *_shared(sock, unclaimed)) as driven:
        yield driven


class _Asyncio:
    """Callbacks of the running loop."""

    signal = staticmethod(asyncio.Event)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = -math.inf
        self._deadline = math.inf
        self._readers: dict[socket.socket, asyncio.Task[None]] = {}
        self.now = self._loop.time

    def watch(self, station: Station[typing.Any], sock: socket.socket) -> None:
        if isinstance(sock, _Shared):
            sock.watch(station)
            return
        try:
            self._loop.add_reader(sock, station.read, sock)
        except NotImplementedError:  # Windows' usual loop
            self._readers[sock] = self._loop.create_task(self._read(station, sock))

    def unwatch(self, sock: socket.socket) -> None:
        if isinstance(sock, _Shared):
            sock.unwatch()
        elif sock in self._readers:
            self._readers.pop(sock).cancel()
        else:
            self._loop.remove_reader(sock)

    def rearm(self, station: Station[typing.Any], deadline: float | None) -> None:
        if self._alarm is not None:
            if deadline is not None and self._rings_at <= deadline:
                self._deadline = deadline
                return  # it is set anew when it rings: with each answer would take longer than to read one
            self._alarm.cancel()
            self._alarm = None
        if deadline is not None:
            self._rings_at = self._deadline = deadline
            self._alarm = self._loop.call_at(deadline, self._ring, station)

    def _ring(self, station: Station[typing.Any]) -> None:
        self._alarm = None
        if self._rings_at < self._deadline:
            self.rearm(station, self._deadline)
        else:
            station.alarm()

    @staticmethod
    async def wait(signal: Signal, timeout: float) -> None:
        if timeout == math.inf:
            await signal.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await signal.wait()

    @staticmethod
    async def wait_anyhow(signal: Signal, timeout: float) -> None:
        cancelled = None
        end = asyncio.get_running_loop().call_later(timeout, signal.set)
        while not signal.is_set():
            try:
                await signal.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        end.cancel()
        if cancelled is not None:
            raise cancelled

    @staticmethod
    async def checkpoint() -> None:
        await asyncio.sleep(0)

    async def _read(self, station: Station[typing.Any], sock: socket.socket) -> None:
        while True:
            with contextlib.suppress(ConnectionError):  # ICMP, which Windows tells so; it ends nothing
                data, addr = await self._loop.sock_recvfrom(sock, 65535)
                station.receive(data, addr, sock)
                station.pump()


def _shared(sock: Lent, unclaimed: Unclaimed | None) -> tuple[socket.socket | None, Unclaimed | None]:
    """What a station can use of a transport."""
    if sock is None or isinstance(sock, socket.socket):
        return sock, unclaimed
    if not hasattr(sock, "set_protocol"):
        raise LocalProtocolError(f"sock must be a UDP socket or a datagram transport, not {sock!r}")
    shared = _Shared(sock)
    return typing.cast("socket.socket", shared), unclaimed or shared.protocol.datagram_received


class _Shared(asyncio.DatagramProtocol):
    """Somebody's transport: to the station it looks like a socket, and to the transport like its protocol."""

    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        self.protocol = typing.cast("asyncio.DatagramProtocol", transport.get_protocol())
        it = transport.get_extra_info("socket")
        self.family, self.type, self.fileno, self.getsockopt = it.family, it.type, it.fileno, it.getsockopt
        self.getsockname, self.getpeername = it.getsockname, it.getpeername
        self._transport = transport

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shared) and other._transport is self._transport

    def __hash__(self) -> int:
        return hash(self._transport)

    # --- a socket

    def dup(self) -> typing.Self:
        return self

    def setblocking(self, flag: bool) -> None:
        """It does not block already."""

    def close(self) -> None:
        """It is its owner's."""

    def sendto(self, data: bytes, addr: Address) -> None:
        if not self._transport.is_closing():  # asyncio's raises what no socket raises when it is closed
            self._transport.sendto(data, addr)

    def watch(self, station: Station[typing.Any]) -> None:
        self._station = station
        self._transport.set_protocol(self)

    def unwatch(self) -> None:
        if self._transport.get_protocol() is self:  # else its owner has taken it back
            self._transport.set_protocol(self.protocol)

    # --- a protocol

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._station.receive(data, addr, typing.cast("socket.socket", self))
        self._station.pump()

    def error_received(self, exc: Exception) -> None:
        self.protocol.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._station.shut()  # without its socket nobody can release anything
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()
