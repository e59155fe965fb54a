"""A PCP client under the fire of an attacker who knows everything but its nonces, while a real gateway serves it.

For a longer look: ATTACK_DATAGRAMS=1000000 python -m pytest -s tests/test_attack.py
"""

from __future__ import annotations

import gc
import os
import random
import tracemalloc
import typing
from collections import Counter

from forgery import KINDS, forged
from helpers import EXTERNAL, LOCAL, SERVER, STRANGER, endpoint
from natpmp_sansio import (
    Address,
    Client,
    Config,
    Event,
    Gateway,
    GatewayRestarted,
    MappingGranted,
    MappingRenewed,
    Protocol,
)
from natpmp_sansio.testing import Simulation
from natpmp_sansio.wire.fields import to_address

DATAGRAMS = int(os.environ.get("ATTACK_DATAGRAMS", "50000"))
HOURS = 4.0
LEASE = 7200
SOURCES: tuple[Address, ...] = (SERVER, SERVER, SERVER, STRANGER, ("192.168.1.1", 5352), (LOCAL, 5351))


class Counting(Gateway):
    """It counts what it is asked, by version."""

    def __init__(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: Counter[int] = Counter()

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        self.asked[data[0]] += 1
        return super().receive_datagram(data, addr, now)


class Siege:
    """A client with three mappings, its gateway, and the attacker."""

    def __init__(self) -> None:
        self.client = Client(SERVER, local_address=LOCAL, config=Config(), rng=random.Random(1))
        self.gateway = Counting(EXTERNAL, address=SERVER, rng=random.Random(2))
        self.sim = Simulation(self.client, self.gateway, latency=0.02, record=False)
        self.dice = random.Random(3)
        self.told: Counter[type[Event]] = Counter()
        self.ids = [
            self.client.map_port(protocol, port, self.sim.now, external_port=port, lifetime=LEASE)
            for protocol, port in ((Protocol.TCP, 8080), (Protocol.TCP, 8081), (Protocol.UDP, 8080))
        ]
        self.run(1.0)
        self.targets = [(int(m.protocol), m.internal_port, m.external) for m in self.client.mappings]

    def run(self, seconds: float) -> None:
        self.sim.run_until(self.sim.now + seconds)
        self.told.update(type(event) for _, event in self.sim.events if event.gateway == SERVER)
        self.sim.events.clear()

    def attack(self, number: int, pause: float) -> None:
        """So many datagrams, at random times with this pause on average."""
        for _ in range(number):
            kind = self.dice.choice(KINDS)
            epoch = int(self.sim.now)
            data = forged(kind, self.dice, LOCAL, self.targets, epoch, to_address(EXTERNAL))
            self.sim.inject(self.client, data, self.dice.choice(SOURCES))
            self.run(self.dice.uniform(0.0, 2 * pause))


def test_an_attacker_without_the_nonces_changes_no_mapping_and_multiplies_no_traffic() -> None:
    siege = Siege()
    client, gateway = siege.client, siege.gateway
    table = [(entry.id, entry.protocol, entry.internal, entry.external) for entry in gateway.mappings]
    held = [(mapping.id, mapping.state, mapping.external) for mapping in client.mappings]
    assert [external for *_, external in held] == [endpoint(EXTERNAL, port) for port in (8080, 8081, 8080)]
    before = gateway.asked.copy()
    siege.attack(DATAGRAMS, HOURS * 3600 / DATAGRAMS)

    assert [(entry.id, entry.protocol, entry.internal, entry.external) for entry in gateway.mappings] == table
    assert [(mapping.id, mapping.state, mapping.external) for mapping in client.mappings] == held
    told = {kind.__name__: count for kind, count in siege.told.items()}
    assert siege.told[MappingGranted] == 3
    assert client.version == 2
    asked = gateway.asked - before
    duration = siege.sim.now
    recoveries = duration / Config().recovery_interval + 2  # the first at once, the last begun
    renewals = duration / (LEASE / 2) + 1
    assert siege.told[GatewayRestarted] <= recoveries
    assert siege.told[GatewayRestarted] > recoveries / 2, "the attacker has not tried"
    assert asked[2] <= 3 * (recoveries + renewals)
    assert asked[0] == 0
    print(f"{DATAGRAMS} forged datagrams in {duration / 3600:.1f} h: {dict(asked)} requests, {told}")


def test_what_the_attacker_sends_leaves_nothing_behind() -> None:
    siege = Siege()
    siege.attack(2_000, 0.3)
    gc.collect()
    tracemalloc.start()
    try:
        siege.attack(3_000, 0.3)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        siege.attack(3_000, 0.3)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert siege.told.keys() >= {GatewayRestarted, MappingRenewed}
