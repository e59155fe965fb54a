"""The three adapters behind one face, so that one story can be told to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import pytest

from natpmp_sansio import Event
from natpmp_sansio.adapters import asyncio as on_asyncio
from natpmp_sansio.adapters import blocking

E = typing.TypeVar("E", bound=Event)
T = typing.TypeVar("T")

Story = Callable[..., Coroutine[typing.Any, typing.Any, T]]

LONGEST = 30.0  # s that a story may take


class Blocking:
    """A blocking client never suspends whoever awaits it, so that a story runs through in one step."""

    def run(self, story: Story[T], *args: object) -> T:
        try:
            story(*args).send(None)
        except StopIteration as end:
            return typing.cast("T", end.value)
        raise AssertionError("a blocking story was suspended")

    @contextlib.asynccontextmanager
    async def open_client(self, *args: typing.Any, **options: typing.Any) -> AsyncIterator[typing.Any]:
        with blocking.open_client(*args, **options) as client:
            yield _Awaited(client)

    @contextlib.asynccontextmanager
    async def open_gateway(self, *args: typing.Any, **options: typing.Any) -> AsyncIterator[typing.Any]:
        with blocking.open_gateway(*args, **options) as served:
            yield _Awaited(served)

    @contextlib.asynccontextmanager
    async def drive(self, *args: typing.Any, **options: typing.Any) -> AsyncIterator[typing.Any]:
        with blocking.drive(*args, **options) as driven:
            yield _Awaited(driven)

    async def pass_time(self, seconds: float, client: _Awaited) -> None:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            client.it.wait(remaining)


class _Awaited:
    """A blocking client whose methods can be awaited."""

    _PLAIN = frozenset(["core", "mapping", "mappings", "version", "snapshot", "detach", "process", "_station"])

    def __init__(self, it: typing.Any) -> None:
        self.it = it

    def __getattr__(self, name: str) -> typing.Any:
        found = getattr(self.it, name)
        if name in self._PLAIN:
            return found

        async def call(*args: typing.Any, **options: typing.Any) -> typing.Any:
            return found(*args, **options)

        return call

    def now(self) -> float:
        return time.monotonic()

    def events(self) -> _AwaitedEvents:
        return _AwaitedEvents(self.it.events())


class _AwaitedEvents:
    def __init__(self, it: blocking.Events) -> None:
        self.pending = it.pending
        self._it = it

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            return next(self._it)
        except StopIteration:
            raise StopAsyncIteration from None


class Asyncio:
    open_client = staticmethod(on_asyncio.open_client)
    open_gateway = staticmethod(on_asyncio.open_gateway)
    drive = staticmethod(on_asyncio.drive)

    def run(self, story: Story[T], *args: object) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(LONGEST):
                return await story(*args)

        return asyncio.run(bounded())

    async def pass_time(self, seconds: float, client: object) -> None:
        await asyncio.sleep(seconds)

    async def cancelled_after(self, steps: int, work: Callable[[], Awaitable[object]]) -> None:
        """Let some work go on for so many steps of the loop, then cancel it, and wait for its end."""
        task = asyncio.ensure_future(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def together(self, *works: Callable[[], Awaitable[object]]) -> None:
        await asyncio.gather(*(work() for work in works))

    async def soon(self, act: Callable[[], typing.Any], seconds: float = 0.05) -> None:
        await asyncio.sleep(seconds)
        found = act()
        if isinstance(found, Awaitable):
            await found


class Trio:
    def __init__(self) -> None:
        from natpmp_sansio.adapters import trio as on_trio

        self.open_client = on_trio.open_client
        self.open_gateway = on_trio.open_gateway
        self.drive = on_trio.drive

    def run(self, story: Story[T], *args: object) -> T:
        import trio

        async def bounded() -> T:
            with trio.fail_after(LONGEST):
                return await story(*args)

        return trio.run(bounded)

    async def pass_time(self, seconds: float, client: object) -> None:
        import trio

        await trio.sleep(seconds)

    async def cancelled_after(self, steps: int, work: Callable[[], Awaitable[object]]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def together(self, *works: Callable[[], Awaitable[object]]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)

    async def soon(self, act: Callable[[], typing.Any], seconds: float = 0.05) -> None:
        import trio

        await trio.sleep(seconds)
        found = act()
        if isinstance(found, Awaitable):
            await found


def make_face(name: str) -> typing.Any:
    if name == "trio":
        pytest.importorskip("trio", reason="the extra `trio` is not installed")
        return Trio()
    return {"blocking": Blocking, "asyncio": Asyncio}[name]()


async def until(events: typing.Any, *kinds: type[E]) -> E:
    """The next event of one of these kinds."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError(f"closed before {kinds}")
