"""A gateway on loopback for those who want to test real sockets."""

from __future__ import annotations

import queue
import random
import threading
import time
import typing
from collections.abc import Callable, Iterator

from natpmp_sansio import Address, Event, Gateway, GatewayConfig, Output, SendDatagram
from natpmp_sansio.adapters import _sockets
from natpmp_sansio.adapters.blocking import drive


class Lossy:
    """A gateway at the end of a bad link: so much of what it should hear and say is lost."""

    def __init__(self, gateway: Gateway, loss: float) -> None:
        self._gateway = gateway
        self._loss = loss
        self._dice = random.Random(1)
        self.next_timeout = gateway.next_timeout
        self.handle_timeout = gateway.handle_timeout

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        return self._dice.random() < self._loss or self._gateway.receive_datagram(data, addr, now)

    def poll(self) -> Output | None:
        while isinstance(output := self._gateway.poll(), SendDatagram) and self._dice.random() < self._loss:
            pass
        return output

    def outputs(self) -> Iterator[Output]:
        while (output := self.poll()) is not None:
            yield output


class Server:
    """A gateway that a thread serves until `close`. `events` is what it had to say by then."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, loss: float = 0.0, **config: typing.Any) -> None:
        self.events: list[Event] = []
        self._sock = _sockets.open_request_socket(_sockets.gateway_address(host, port))
        self.address: Address = self._sock.getsockname()
        settings = GatewayConfig(**({"min_lifetime": 1} | config))
        external = None if ":" in host else "203.0.113.5"
        self.gateway = Gateway(external, address=self.address, config=settings)
        self._core = Lossy(self.gateway, loss)
        self._errands: queue.SimpleQueue[Callable[[Gateway, float], object]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, errand: Callable[[Gateway, float], object]) -> None:
        """Have something done to the gateway, soon."""
        self._errands.put(errand)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        with drive(self._core, sock=self._sock) as driven:
            events = driven.events()
            while not self._stop.is_set():
                while not self._errands.empty():
                    self._errands.get()(self.gateway, time.monotonic())
                driven.wait(0.02)
                self.events += events.pending()
