"""What every adapter needs and none should write again: pump a core, split sends from events, wake who waits, close.

Without I/O: an adapter hands in datagrams and clock readings, sends what `take_sends` gives, and sleeps until
`deadline`.
"""

from __future__ import annotations

import logging
import math
import typing
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from ..client.client import Client
from ..client.lifecycle import Mapping
from ..core import Core
from ..core.socket_address import peer_key
from ..errors import LocalProtocolError
from ..events import (
    Address,
    Closed,
    Event,
    ExternalAddressChanged,
    ExternalAddressLearned,
    MappingError,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    ProbeCompleted,
    SendDatagram,
)
from ..wire import describe
from ..wire.fields import IPAddress

events_log = logging.getLogger("natpmp_sansio.events")
datagrams_log = logging.getLogger("natpmp_sansio.datagrams")

Unclaimed = Callable[[bytes, Address], None]

C = typing.TypeVar("C", bound=Core)
T = typing.TypeVar("T")

LINGER = 5.0  # s that closing may take: a release that nobody confirms is given up then
_MAX_EVENTS = 1000  # that wait for a subscriber; then the oldest are forgotten


class Driver(typing.Generic[C]):
    """Pumps one core. `unclaimed` gets the datagrams that are none of its; what it raises is logged."""

    def __init__(self, core: C, unclaimed: Unclaimed | None = None) -> None:
        self.core = core
        self.closed = False
        self._unclaimed = unclaimed
        self._waits: dict[Wait[typing.Any], None] = {}
        # No WeakSet: to go through one takes longer than to hand on an event.
        self._subscriptions: list[weakref.ref[Subscription]] = []
        self.standing: list[Event] = []
        self._ends: list[Callable[[], object]] = []
        self._lingers_until = math.inf

    # --- in

    def receive(self, data: bytes, addr: Address, now: float, *, is_shared: bool) -> None:
        """A datagram has come in. `is_shared`: on the socket that others may use, so that it may be for them."""
        claimed = self.core.receive_datagram(data, addr, now)
        if datagrams_log.isEnabledFor(logging.DEBUG):
            datagrams_log.debug("%s %s: %s", "from" if claimed else "not ours, from", addr[0], describe(data))
        if not claimed and is_shared and self._unclaimed is not None:
            try:
                self._unclaimed(data, addr)
            except Exception:  # the caller's mistake is no reason to let mappings go
                datagrams_log.exception("unclaimed(%r, %r) has raised", data, addr)

    def unreachable(self, addr: Address, now: float) -> None:
        """ICMP said of something that was sent to `addr` that nobody is there (RFC 6886 section 3.1)."""
        if isinstance(self.core, Client) and peer_key(addr) == peer_key(self.core.gateway):
            datagrams_log.debug("%s: the port is closed (ICMP)", addr[0])
            self.core.gateway_unreachable(now)

    def wake(self, now: float) -> None:
        """Do what is due by `now`."""
        deadline = self.core.next_timeout()
        if deadline is not None and deadline <= now:
            self.core.handle_timeout(now)
        if now >= self._lingers_until and isinstance(self.core, Client):
            self.core.abandon(now)

    def deadline(self) -> float | None:
        """When to wake up, if what was given out to be sent has been."""
        deadline = self.core.next_timeout()
        if self._lingers_until == math.inf or self.closed:
            return deadline
        return self._lingers_until if deadline is None else min(deadline, self._lingers_until)

    def close(self, now: float) -> None:
        """Release every mapping: Closed follows, `LINGER` seconds later at most. A core that is no client just ends."""
        if isinstance(self.core, Client):
            self._lingers_until = min(self._lingers_until, now + LINGER)
            self.core.close(now)
        else:
            self.end()

    def abandon(self) -> None:
        """Wait no longer for what closing waits for: leases that were not released run out by themselves."""
        self._lingers_until = -math.inf

    # --- out

    def take_sends(self) -> Iterator[SendDatagram]:
        """What is to be sent now, one by one. Events go to their subscribers on the way."""
        is_logged = datagrams_log.isEnabledFor(logging.DEBUG)
        while (output := self.core.poll()) is not None:
            if isinstance(output, SendDatagram):
                if is_logged:
                    datagrams_log.debug("to %s: %s", output.addr[0], describe(output.data))
                yield output
            else:
                self.publish(output)

    def publish(self, event: Event) -> None:
        """Hand an event to everybody who wants it."""
        if events_log.isEnabledFor(logging.DEBUG):
            events_log.debug("%r", event)
        if self._waits:
            for wait in list(self._waits):
                if wait.see(event):
                    self._finish(wait)
        for reference in tuple(self._subscriptions):
            if (subscription := reference()) is not None:
                subscription.add(event)
        if isinstance(event, Closed) and isinstance(self.core, Client):  # the others of a Multiplexer go on
            self.end()

    def publish_standing(self, event: Event) -> None:
        """Hand on an event that goes on being true: whoever subscribes later gets it first."""
        self.standing.append(event)
        self.publish(event)

    def on_end(self, tell: Callable[[], object]) -> None:
        """Call this once nothing more will happen, which may be now."""
        if self.closed:
            tell()
        else:
            self._ends.append(tell)

    def end(self) -> None:
        """Nothing more will happen. Who waits is told so."""
        self.closed = True
        while self._ends:
            self._ends.pop()()
        for wait in list(self._waits):
            self._finish(wait)
        for reference in list(self._subscriptions):
            subscription = reference()
            if subscription is not None:
                subscription.wake()

    # --- those who wait

    def subscribe(self) -> Subscription:
        """Somebody's queue of events, from now on. Forgotten when nobody holds it."""
        subscription = Subscription(self.standing)
        self._subscriptions.append(weakref.ref(subscription, self._subscriptions.remove))
        return subscription

    def begin(self, wait: Wait[T]) -> Wait[T]:
        """To be given back with `forget`. Begin before the core is pumped, or what is waited for may be missed."""
        self._waits[wait] = None
        return wait

    def forget(self, wait: Wait[typing.Any]) -> None:
        self._waits.pop(wait, None)

    def _finish(self, wait: Wait[typing.Any]) -> None:
        del self._waits[wait]
        wait.is_over = True
        wait.wake()


class Subscription:
    """Somebody's queue of events. `readers` are called when there is something in it, or never will be again."""

    def __init__(self, standing: list[Event]) -> None:
        self.queue = deque(standing, _MAX_EVENTS)
        self.readers: list[Callable[[], object]] = []
        self._is_overflowing = False

    def add(self, event: Event) -> None:
        if len(self.queue) < _MAX_EVENTS:
            self._is_overflowing = False
        elif not self._is_overflowing:
            self._is_overflowing = True
            events_log.warning("events are not read in time, and are forgotten from %r on", self.queue[0])
        self.queue.append(event)
        if self.readers:
            self.wake()

    def wake(self) -> None:
        """Each reader once; who waits on says so again."""
        readers, self.readers = self.readers, []
        for reader in readers:
            reader()

    def pending(self) -> list[Event]:
        """Everything in it, taken out."""
        return [self.queue.popleft() for _ in range(len(self.queue))]


def check_timeout(timeout: float) -> None:
    """
    Raises:
        LocalProtocolError: it is no number of seconds that one can wait; `math.inf` is for ever.
    """
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise LocalProtocolError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")


class Wait(typing.Generic[T]):
    """What somebody waits for. `wake` is called once it is over."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.is_over = False
        self.wake: Callable[[], object] = _nobody

    def see(self, event: Event) -> bool:
        """Take in an event. True: it is over now."""
        raise NotImplementedError

    def result(self) -> T:
        """What was waited for.

        Raises:
            LocalProtocolError: the client was closed meanwhile.
        """
        raise LocalProtocolError("the client was closed meanwhile")

    def result_within(self, timeout: float) -> T:
        """The same, after so many seconds of waiting.

        Raises:
            TimeoutError: it is not over.
        """
        if not self.is_over:
            raise TimeoutError(f"{self.client.gateway[0]} has not answered within {timeout:g} s")
        return self.result()

    def withdraw(self, now: float) -> None:
        """Nobody waits any more. A question that was asked does no harm."""


class Grant(Wait[tuple[Mapping, ...]]):
    """For mappings that were asked for, which are given up again if they do not all come about."""

    def __init__(self, client: Client, *mappings: MappingId) -> None:
        super().__init__(client)
        self._mappings = mappings
        self._missing = set(mappings)
        self._failure: MappingRefused | MappingLost | MappingFailed | MappingReleased | None = None

    def see(self, event: Event) -> bool:
        match event:
            case MappingGranted():
                self._missing.discard(event.mapping)
            case MappingRefused() | MappingLost() | MappingFailed() | MappingReleased():
                if event.mapping in self._mappings:
                    self._failure = event
        return self._failure is not None or not self._missing

    def result(self) -> tuple[Mapping, ...]:
        """The mappings.

        Raises:
            MappingError: one of them was refused, or given up by somebody else.
        """
        if self._failure is not None:
            raise MappingError(self._failure)
        if self._missing:
            return super().result()
        granted = tuple(found for each in self._mappings if (found := self.client.mapping(each)) is not None)
        return granted if len(granted) == len(self._mappings) else super().result()

    def withdraw(self, now: float) -> None:
        if self._missing or self._failure is not None:
            for mapping in self._mappings:
                self.client.unmap(mapping, now)


class Answer(Wait[T]):
    """For an event of which `pick` makes something."""

    def __init__(self, client: Client, pick: Callable[[Event], T | None]) -> None:
        super().__init__(client)
        self._pick = pick
        self._found: T | None = None

    def see(self, event: Event) -> bool:
        self._found = self._pick(event)
        return self._found is not None

    def result(self) -> T:
        return super().result() if self._found is None else self._found


def pick_probe(event: Event) -> ProbeCompleted | None:
    return event if isinstance(event, ProbeCompleted) else None


def pick_address(event: Event) -> IPAddress | None:
    match event:
        case ExternalAddressLearned(address=address) | ExternalAddressChanged(new=address):
            return address
        case _:
            return None


def _nobody() -> None:
    """Nobody is to be woken."""
