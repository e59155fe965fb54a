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

from ..client.client import Client
from ..errors import LocalProtocolError
from ..events import Event
from ._driver import Unclaimed, Wait, check_timeout
from ._place import Where
from ._station import ClientOptions, ClientStation
from .blocking import BlockingClient, ClientCalls, open_client

T = typing.TypeVar("T")


class BackgroundClient(ClientCalls):
    """A client that is pumped in the background: `with BackgroundClient() as client:`.

    The arguments are those of `open_client`, and so is what entering the block raises. Every method may be called from
    any thread. `unclaimed` is called in the client's own, where nobody can wait for an answer. If the program ends
    without leaving the block nothing is released.
    """

    def __init__(
        self,
        gateway: Where = None,
        *,
        sock: socket.socket | None = None,
        unclaimed: Unclaimed | None = None,
        **options: typing.Unpack[ClientOptions],
    ) -> None:
        self._open: Callable[[], AbstractContextManager[BlockingClient]] = lambda: open_client(
            gateway, sock=sock, unclaimed=unclaimed, **options
        )
        self._started: Future[BlockingClient] = Future()
        self._errands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_ending = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="natpmp_sansio", daemon=True)
        self.core = typing.cast("Client", _Elsewhere(lambda: self._client.core, self._do))
        self._station = typing.cast("ClientStation", _Elsewhere(lambda: self._client._station, self._do))

    def __enter__(self) -> typing.Self:
        if self._thread.ident is not None:
            raise LocalProtocolError("this client has been opened before: make another")
        self._bell, self._rope = socket.socketpair()
        self._thread.start()
        self._started.result()
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
        if self._is_elsewhere:
            self._thread.join()

    def _wait(self, begin: Callable[[], Wait[T]], timeout: float) -> T:
        check_timeout(timeout)
        if not self._is_elsewhere:
            raise LocalProtocolError("the client's own thread cannot wait for it: keep_port does not")
        is_over = threading.Event()

        def begin_there() -> Wait[T]:
            wait = begin()
            wait.wake = is_over.set
            if wait.is_over:
                is_over.set()
            self._client._station.pump()
            return wait

        wait = self._do(begin_there)
        try:
            is_over.wait(None if timeout == math.inf else timeout)
            return self._do(lambda: wait.result_within(timeout))
        finally:
            self._do(lambda: self._client._station.forget(wait))

    # --- the thread

    @property
    def _client(self) -> BlockingClient:
        return self._started.result()

    @property
    def _is_elsewhere(self) -> bool:
        return threading.current_thread() is not self._thread

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
            self._rope.close()

    def _hear(self, bell: socket.socket) -> None:
        bell.recv(1000)

    def _run_errands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._errands.get_nowait()()

    def _do(self, what: Callable[[], T]) -> T:
        """Have something done in the thread, and wait for it."""
        if self._thread.ident is None:
            raise LocalProtocolError("this client is not open yet: enter its block")
        done: Future[T] = Future()

        def errand() -> None:
            try:
                done.set_result(what())
            except Exception as error:
                done.set_exception(error)

        with self._lock:
            is_mine = self._is_over or not self._is_elsewhere
            if not is_mine:
                self._errands.put(errand)
                self._ring()
        if is_mine:
            errand()
        return done.result()

    def _ring(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it is over, or was never opened
            self._rope.send(b"!")


class BackgroundEvents:
    """An endless iterator of events. See `BackgroundClient.events`."""

    def __init__(self, client: BlockingClient) -> None:
        self._driver = client._station.driver
        self._subscription = self._driver.subscribe()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        queue = self._subscription.queue
        while not queue:
            bell = threading.Event()
            self._subscription.readers.append(bell.set)
            is_last = self._driver.closed  # first of all, because Closed comes before it
            if queue:
                break
            if is_last:
                raise StopIteration
            bell.wait()
        return queue.popleft()

    def pending(self) -> list[Event]:
        """What has happened already and was not taken; waits for nothing."""
        return self._subscription.pending()


class _Elsewhere:
    """Something that belongs to another thread: all that is done to it is done there."""

    def __init__(self, find: Callable[[], object], do: Callable[[Callable[[], typing.Any]], typing.Any]) -> None:
        self._find = find
        self._do = do

    def __getattr__(self, name: str) -> typing.Any:
        found = self._do(lambda: getattr(self._find(), name))
        if not callable(found):
            return found
        return lambda *args, **options: self._do(lambda: found(*args, **options))
