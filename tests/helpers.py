"""What the stories share: the hosts of one small network, and a random generator without surprises."""

from __future__ import annotations

import random
import typing

from natpmp_sansio import Client, Config, Event, Gateway, GatewayConfig, SendDatagram
from natpmp_sansio.testing import Simulation

SERVER = ("192.168.1.1", 5351)
LOCAL = "192.168.1.7"
EXTERNAL = "203.0.113.5"
STRANGER = ("192.168.1.66", 5351)

E = typing.TypeVar("E")


class Middle(random.Random):
    """Every draw from a range gives its middle, so that schedules are exact; nonces still differ."""

    def random(self) -> float:
        return 0.5


def make_client(
    versions: tuple[int, ...] = (2, 0), *, rng: random.Random | None = None, **config: typing.Any
) -> Client:
    return Client(SERVER, local_address=LOCAL, config=Config(versions=versions, **config), rng=rng or Middle(1))


def make_gateway(
    versions: tuple[int, ...] = (2, 0), *, external: str | None = EXTERNAL, **config: typing.Any
) -> Gateway:
    return Gateway(external, address=SERVER, config=GatewayConfig(versions=versions, **config), rng=Middle(2))


def events_of(sim: Simulation, kind: type[E]) -> list[E]:
    """The events of one kind, in order."""
    return [event for _, event in sim.events if isinstance(event, kind)]


def times_of(sim: Simulation, kind: type[Event]) -> list[float]:
    return [at for at, event in sim.events if isinstance(event, kind)]


def sends_of(sim: Simulation, source: str = LOCAL) -> list[tuple[float, bytes]]:
    """What one host sent, and when."""
    return [(sent.at, sent.data) for sent in sim.sent if sent.source[0] == source]


def drain(core: Client | Gateway) -> tuple[list[bytes], list[Event]]:
    """Everything that waits, as datagrams and events."""
    datagrams, events = [], []
    for output in core.outputs():
        if isinstance(output, SendDatagram):
            datagrams.append(output.data)
        else:
            events.append(output)
    return datagrams, events
