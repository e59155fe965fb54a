"""How fast the simulation is, and how its cost grows: python benchmarks/simulation.py [--hours H] [--growth-hours H]

A simulated day of 100 clients with 10 mappings each, at one gateway that reboots every hour, with 1 % loss: what is
simulated in a second. Then a shorter span with 10, 100 and 1,000 clients: what a delivered datagram costs, and the
ratio to the line before. A ratio of 1.00 is growth that is linear in the number of datagrams. The sizes take turns,
and the best of their rounds counts.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time

import attrs

from natpmp_sansio import Client, Gateway, Protocol
from natpmp_sansio.testing import Simulation

MAPPINGS = 10
HOUR = 3600.0


@attrs.frozen
class Run:
    """What was simulated, and how many seconds it took."""

    span: float
    seconds: float
    datagrams: int
    events: int
    held: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="how long the day is")
    parser.add_argument("--growth-hours", type=float, default=2.0, help="how long the shorter span is")
    parser.add_argument("--growth", type=int, nargs="*", default=[10, 100, 1000], help="how many clients, line by line")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of them runs")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}")
    day = simulate(100, options.hours * HOUR)
    print(
        f"{options.hours:g} hours of 100 clients, {day.held} mappings held: {day.span / day.seconds:,.0f} simulated"
        f" seconds, {day.datagrams / day.seconds:,.0f} datagrams and {day.events / day.seconds:,.0f} events a second"
        f" ({day.datagrams:,} datagrams, {day.events:,} events, {day.seconds:.1f} s)"
    )
    rounds = [[simulate(count, options.growth_hours * HOUR) for count in options.growth] for _ in range(options.rounds)]
    before = None
    for count, runs in zip(options.growth, zip(*rounds, strict=True), strict=True):
        cost = min(run.seconds / run.datagrams for run in runs)
        ratio = "" if before is None else f", {cost / before:.2f} x the line before"
        print(f"{count:5} clients: {runs[0].datagrams:8,} datagrams, {cost * 1e6:5.1f} us each{ratio}")
        before = cost


def simulate(count: int, span: float) -> Run:
    """So many clients, and a reboot at every full hour. The time is the processor's: others may use the machine."""
    gateway = Gateway("203.0.113.5", address=("10.0.0.1", 5351), rng=random.Random(0))
    clients = [
        Client(
            ("10.0.0.1", 5351), local_address=f"10.0.{number // 250 + 1}.{number % 250 + 1}", rng=random.Random(number)
        )
        for number in range(count)
    ]
    sim = Simulation(gateway, *clients, latency=0.01, loss=0.01, seed=1, record=False)
    for client in clients:
        for port in range(MAPPINGS):
            client.map_port(Protocol.TCP, 8000 + port, sim.now)
    for hour in range(1, math.ceil(span / HOUR)):
        sim.at(hour * HOUR, gateway.reboot)
    begun = time.process_time()
    sim.run_until(span)
    return Run(span, time.process_time() - begun, sim.delivered, len(sim.events), len(gateway.mappings))


if __name__ == "__main__":
    main()
