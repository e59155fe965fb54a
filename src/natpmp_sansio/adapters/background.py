"""For scripts that have something else to do: a blocking client, and a thread of its own that pumps it."""

from __future__ import annotations

import contextlib
import math
import queue
import socket
import threading
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager

from ..client import Client
from ..events import Event
from ._driver import Wait
from ._station import ClientStation
from .blocking import BlockingClient, ClientCalls, open_client

T = typing.TypeVar("T")


class BackgroundClient(ClientCalls):
    """A client that is pumped in the background: `with BackgroundClient() as client:`.

    The arguments are those of `open_client`, and so is what entering the block raises. Every method may be called from
    any thread; `unclaimed` is called in the client's own.
    """

    def __init__(self, *args: typing.Any, **options: typing.Any) -> None:
        self._open: Callable[[], AbstractContextManager[BlockingClient]] = lambda: open_client(*args, **options)
        self._errands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bell, self._bell_rope = socket.socketpair()
        self._started: Future[BlockingClient] = Future()
        self._is_ending = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="natpmp_sansio", daemon=True)

    def __enter__(self) -> typing.Self:
        self._thread.start()
        self._client = self._started.result()
        self.core = typing.cast("Client", _Elsewhere(self._client.core, self._do))
        self._station = typing.cast("ClientStation", _Elsewhere(self._client._station, self._do))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> BackgroundEvents:
        """What happens from now on; ends when the client is closed. Who does not keep up with a thousand events loses
        the oldest."""
        return self._do(lambda: BackgroundEvents(self._client))

    def close(self) -> None:
        """Release every mapping, in five seconds at most, and end the thread. A second call does nothing."""
        self._is_ending = True
        self._ring()
        self._thread.join()

    def _wait(self, wait: Wait[T], timeout: float) -> T:
        is_over = threading.Event()

        def begin() -> None:
            wait.wake = is_over.set
            if wait.is_over:
                is_over.set()
            self._client._station.pump()

        try:
            self._do(begin)
            is_over.wait(None if timeout == math.inf else timeout)
            return self._do(lambda: wait.result_within(timeout))
        finally:
            self._do(lambda: self._client._station.forget(wait))

    # --- the thread

    def _run(self) -> None:
        try:
            with self._open() as client:
                client._selector.on_readable(self._bell, self._hear)
                self._started.set_result(client)
                while not self._is_ending and not client._station.driver.closed:
                    client.wait()
                    self._run_errands()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            with self._lock:
                self._is_over = True
            self._run_errands()
            self._bell.close()
            self._bell_rope.close()

    def _hear(self, bell: socket.socket) -> None:
        bell.recv(1000)

    def _run_errands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._errands.get_nowait()()

    def _do(self, what: Callable[[], T]) -> T:
        """Have something done in the thread, and wait for it."""
        done: Future[T] = Future()

        def errand() -> None:
            try:
                done.set_result(what())
            except Exception as error:
                done.set_exception(error)

        with self._lock:
            is_over = self._is_over
            if not is_over:
                self._errands.put(errand)
                self._ring()
        if is_over:  # nobody else is there
            errand()
        return done.result()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it is over
            self._bell_rope.send(b"!")


class BackgroundEvents:
    """An endless iterator of events, to be read in one thread. See `BackgroundClient.events`."""

    def __init__(self, client: BlockingClient) -> None:
        self._driver = client._station.driver
        self._subscription = self._driver.subscribe()
        self._bell = threading.Event()
        self._subscription.wake = self._bell.set

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._subscription.queue:
            if self._driver.closed:
                raise StopIteration
            self._bell.wait()
            self._bell.clear()
        return self._subscription.queue.popleft()

    def pending(self) -> list[Event]:
        """What has happened already and was not taken; waits for nothing."""
        return self._subscription.pending()


class _Elsewhere:
    """Something that belongs to another thread: all that is done to it is done there."""

    def __init__(self, it: object, do: Callable[[Callable[[], typing.Any]], typing.Any]) -> None:
        self._it = it
        self._do = do

    def __getattr__(self, name: str) -> typing.Any:
        found = self._do(lambda: getattr(self._it, name))
        if not callable(found):
            return found
        return lambda *args, **options: self._do(lambda: found(*args, **options))
