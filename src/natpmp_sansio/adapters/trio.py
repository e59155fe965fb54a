"""For trio. Needs the extra `trio`. Mappings are kept while the block is open, by tasks of trio's own nursery, so that
what leaves the block is what was raised in it.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import socket
import typing
from contextlib import AbstractAsyncContextManager

import trio

from ..core import Core
from ..gateway.gateway import Gateway
from . import _async
from ._async import AsyncClient, Driven, Events, Signal
from ._driver import Unclaimed, datagrams_log
from ._place import Where
from ._station import ClientOptions, Station

__all__ = ["AsyncClient", "Driven", "Events", "drive", "open_client", "open_gateway"]

C = typing.TypeVar("C", bound=Core)


def open_client(
    gateway: Where = None,
    *,
    sock: socket.socket | None = None,
    unclaimed: Unclaimed | None = None,
    **options: typing.Unpack[ClientOptions],
) -> AbstractAsyncContextManager[AsyncClient]:
    """The arguments and errors are those of the blocking `open_client`. `sock` is none of trio's own: those cannot be
    shared."""
    return _async.open_client(_Trio(), gateway, sock, unclaimed, **options)


def open_gateway(
    gateway: Gateway, *, unclaimed: Unclaimed | None = None
) -> AbstractAsyncContextManager[Driven[Gateway]]:
    """Serve a `Gateway` on its own address while the block is open. It announces itself first."""
    return _async.open_gateway(_Trio(), gateway, unclaimed)


def drive(
    core: C, *, sock: socket.socket | None = None, unclaimed: Unclaimed | None = None
) -> AbstractAsyncContextManager[Driven[C]]:
    """Drive any core, a `Multiplexer` too, on `sock` or on a socket at its `bind_address`."""
    return _async.drive(_Trio(), core, sock, unclaimed)


class _Trio:
    """Tasks of trio's own, so that there is no nursery around the block."""

    now = staticmethod(trio.current_time)
    signal = staticmethod(trio.Event)
    checkpoint = staticmethod(trio.lowlevel.checkpoint)

    def __init__(self) -> None:
        self._watched: set[socket.socket] = set()
        self._deadline = math.inf
        self._scope: trio.CancelScope | None = None
        self._has_task = False

    def watch(self, station: Station[typing.Any], sock: socket.socket) -> None:
        async def read() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                while sock in self._watched:
                    await trio.lowlevel.wait_readable(sock)
                    with _logged():
                        station.read(sock)

        self._watched.add(sock)
        trio.lowlevel.spawn_system_task(read, context=contextvars.copy_context())  # for `unclaimed`

    def unwatch(self, sock: socket.socket) -> None:
        self._watched.discard(sock)
        trio.lowlevel.notify_closing(sock)

    def rearm(self, station: Station[typing.Any], deadline: float | None) -> None:
        async def ring() -> None:
            while self._deadline < math.inf:
                with trio.CancelScope(deadline=self._deadline) as self._scope:
                    await trio.sleep_forever()
                if trio.current_time() >= self._deadline:
                    self._deadline = math.inf
                    with _logged():
                        station.alarm()
            self._scope, self._has_task = None, False

        self._deadline = math.inf if deadline is None else deadline
        if self._scope is not None:
            self._scope.deadline = -math.inf if deadline is None else deadline
        if deadline is not None and not self._has_task:
            self._has_task = True
            trio.lowlevel.spawn_system_task(ring)

    @staticmethod
    async def wait(signal: Signal, timeout: float) -> None:
        with trio.move_on_after(timeout):
            await signal.wait()

    @staticmethod
    async def wait_anyhow(signal: Signal, timeout: float) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(timeout):
            await signal.wait()


@contextlib.contextmanager
def _logged() -> typing.Iterator[None]:
    """What is raised must not end trio, as it would from a task of trio's own."""
    try:
        yield
    except Exception:
        datagrams_log.exception("while a datagram was handled")
