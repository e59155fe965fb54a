"""What every adapter needs and none should write again: pump a core, split sends from events, wake who waits.

Without I/O: an adapter hands in datagrams and clock readings, sends what `take_sends` gives, and sleeps until
`deadline`.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import attrs

from ..client import Client
from ..core import Core
from ..events import (
    Address,
    Closed,
    Event,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    SendDatagram,
)
from ..wire import describe

events_log = logging.getLogger("natpmp_sansio.events")
datagrams_log = logging.getLogger("natpmp_sansio.datagrams")

Unclaimed = Callable[[bytes, Address], None]

Outcome = MappingGranted | MappingRefused | MappingLost | MappingFailed | MappingReleased


@attrs.define(eq=False)
class Waiter:
    """Somebody who waits for a mapping; `outcome` is the first event that settles it."""

    mapping: MappingId
    outcome: Outcome | None = None


@attrs.define(eq=False)
class Subscription:
    """Somebody's queue of events, from now on. Forgotten when nobody holds it."""

    queue: deque[Event] = attrs.field(factory=deque)


class Driver:
    """Pumps one core. `unclaimed` gets the datagrams that are none of its."""

    def __init__(self, core: Core, unclaimed: Unclaimed | None = None) -> None:
        self.core = core
        self.closed = False
        self._unclaimed = unclaimed
        self._sends: deque[SendDatagram] = deque()
        self._waiters: list[Waiter] = []
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._standing: list[Event] = []

    def receive(self, data: bytes, addr: Address, now: float, *, is_shared: bool) -> None:
        """A datagram has come in. `is_shared`: on the socket that others may use, so that it may be for them."""
        claimed = self.core.receive_datagram(data, addr, now)
        if datagrams_log.isEnabledFor(logging.DEBUG):
            datagrams_log.debug("%s %s: %s", "from" if claimed else "not ours, from", addr[0], describe(data))
        if not claimed and is_shared and self._unclaimed is not None:
            self._unclaimed(data, addr)

    def unreachable(self, now: float) -> None:
        """The socket reported an ICMP error (RFC 6886 section 3.1)."""
        datagrams_log.debug("the gateway's port is closed (ICMP)")
        if isinstance(self.core, Client):
            self.core.gateway_unreachable(now)

    def wake(self, now: float) -> None:
        """Do what is due by `now`."""
        deadline = self.core.next_timeout()
        if deadline is not None and deadline <= now:
            self.core.handle_timeout(now)

    def deadline(self) -> float | None:
        """When to wake up; what is already split off has been sent by then."""
        return self.core.next_timeout()

    def take_sends(self) -> Iterator[SendDatagram]:
        """What is to be sent now, one by one. Events go to their subscribers on the way."""
        while True:
            for output in self.core.outputs():
                if isinstance(output, SendDatagram):
                    self._sends.append(output)
                else:
                    self.publish(output)
            if not self._sends:
                return
            datagram = self._sends.popleft()
            if datagrams_log.isEnabledFor(logging.DEBUG):
                datagrams_log.debug("to %s: %s", datagram.addr[0], describe(datagram.data))
            yield datagram

    def publish(self, event: Event) -> None:
        """Hand an event to everybody who wants it."""
        events_log.debug("%r", event)
        if isinstance(event, Closed):
            self.closed = True
        if isinstance(event, Outcome):
            for waiter in self._waiters:
                if waiter.mapping == event.mapping and waiter.outcome is None:
                    waiter.outcome = event
        for subscription in self._subscriptions:
            subscription.queue.append(event)

    def publish_standing(self, event: Event) -> None:
        """Hand on an event that goes on being true: whoever subscribes later gets it first."""
        self._standing.append(event)
        self.publish(event)

    def subscribe(self) -> Subscription:
        subscription = Subscription(deque(self._standing))
        self._subscriptions.add(subscription)
        return subscription

    def wait_for(self, mapping: MappingId) -> Waiter:
        """To be given back with `forget`. Ask before the core is pumped, or the outcome may be missed."""
        waiter = Waiter(mapping)
        self._waiters.append(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
