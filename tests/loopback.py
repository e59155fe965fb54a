"""A gateway on loopback for those who want to test real sockets."""

from __future__ import annotations

import threading
import time
import typing
from collections import deque
from collections.abc import Callable

from natpmp_sansio import Event, Gateway, GatewayConfig
from natpmp_sansio.adapters import _sockets
from natpmp_sansio.adapters.blocking import drive

Address = tuple[str, int]


class Server:
    """A gateway that a thread serves until `close`. `events` is what it had to say by then."""

    def __init__(self, at: Address = ("127.0.0.1", 0), **config: typing.Any) -> None:
        self.events: list[Event] = []
        self._commands: deque[Callable[[Gateway, float], object]] = deque()
        self._sock = _sockets.open_request_socket(at)
        self.address: Address = self._sock.getsockname()
        settings = GatewayConfig(**({"min_lifetime": 1} | config))
        self._gateway = Gateway("203.0.113.5", address=self.address, config=settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, command: Callable[[Gateway, float], object]) -> None:
        """Have the thread give a command to the gateway."""
        self._commands.append(command)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        with drive(self._gateway, sock=self._sock) as driven:
            events = driven.events()
            while not self._stop.is_set():
                while self._commands:
                    self._commands.popleft()(self._gateway, time.monotonic())
                driven.wait(0.02)
                self.events += events.pending()
