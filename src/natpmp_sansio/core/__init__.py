"""What every role is: bytes, time and commands in; one ordered queue of datagrams and events out."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from ..errors import LocalProtocolError
from ..events import Address, Output
from .socket_address import peer_key

__all__ = ["Core", "HostCore", "Multiplexer"]


class Core(typing.Protocol):
    """The five methods of every role. `now` is seconds on the caller's monotonic clock."""

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram. True: it was ours. False: it was not, and nothing has changed."""
        ...

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early does nothing; one call catches up however late it comes."""
        ...

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next; None: not before something else happens. Pure."""
        ...

    def poll(self) -> Output | None:
        """The next output, or None."""
        ...

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more. Breaking off loses nothing."""
        ...


class HostCore(Core, typing.Protocol):
    """A core that also says where it wants to live; what the drivers and the simulation take."""

    @property
    def bind_address(self) -> Address:
        """The local address of its socket; port 0 means any."""
        ...


class Multiplexer:
    """Several cores on one socket, itself a core. Each sees every datagram; any may claim it. It keeps no state.

    Raises:
        LocalProtocolError: two clients for one gateway, which would answer for each other.
    """

    def __init__(self, *cores: Core) -> None:
        peers = [key for core in cores for each in getattr(core, "gateways", ()) if (key := peer_key(each))]
        if len(set(peers)) < len(peers):
            raise LocalProtocolError("two clients for the same gateway cannot share a socket")
        self._cores = cores

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Show a datagram to every core. True: at least one of them claims it."""
        claims = [core.receive_datagram(data, addr, now) for core in self._cores]  # all of them: no `or`
        return any(claims)

    def handle_timeout(self, now: float) -> None:
        """Pass the time on to every core."""
        for core in self._cores:
            core.handle_timeout(now)

    def next_timeout(self) -> float | None:
        """The earliest of the cores' deadlines, or None. Pure."""
        deadlines = [deadline for core in self._cores if (deadline := core.next_timeout()) is not None]
        return min(deadlines, default=None)

    def poll(self) -> Output | None:
        """The next output, or None: the cores' in their order, each core's own in the order it happened."""
        for core in self._cores:
            if (output := core.poll()) is not None:
                return output
        return None

    def outputs(self) -> Iterator[Output]:
        """`poll()` until there is no more."""
        while (output := self.poll()) is not None:
            yield output
