"""What a mapping costs a client that has many of them.

    python benchmarks/client.py [--sizes 10 100 1000 20000 100000] [--rounds 5]

For each number of PCP mappings on one client: what one of them takes in memory, and what a renewal costs (waking up,
the request, its answer, the event, the next deadline), and to ask for the next deadline and the next output. The sizes
take turns, and the median of the rounds counts; `growth` is how many times the cost at the size before.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import tracemalloc

from natpmp_sansio import Client, Config, Protocol, SendDatagram

SERVER = ("192.168.1.1", 5351)
LIFETIME = 86400
RENEWALS = 400  # measured in a round, at each size
QUERIES = 20_000


class Loaded:
    """A client with so many mappings that are held, whose gateway answers at once."""

    def __init__(self, size: int) -> None:
        config = Config(versions=(2,), window=64)
        self.client = Client(SERVER, local_address="192.168.1.7", config=config, rng=random.Random(1))
        self.now = 0.0
        self.renewed = 0
        for number in range(size):
            protocol = Protocol.TCP if number % 2 else Protocol.UDP
            self.client.map_port(protocol, 1 + number // 2 % 65535, self.now, lifetime=LIFETIME)
            self.serve()
            self.now += LIFETIME / 4 / size  # spread, as they would be in life

    def serve(self) -> None:
        for output in self.client.outputs():
            if isinstance(output, SendDatagram):
                self.client.receive_datagram(self.answer(output.data), SERVER, self.now)
                self.renewed += 1

    def answer(self, request: bytes) -> bytes:
        epoch = 1000 + int(self.now)
        head = b"\2\x81\0\0" + LIFETIME.to_bytes(4) + epoch.to_bytes(4) + bytes(12)
        external = request[40:42] + bytes(10) + b"\xff\xff" + bytes((203, 0, 113, 5))
        return head + request[24:42] + external

    def renewal(self) -> float:
        """Seconds that a renewal takes."""
        self.renewed = 0
        start = time.perf_counter()
        while self.renewed < RENEWALS:
            self.now = max(self.now, self.client.next_timeout() or 0.0)
            self.client.handle_timeout(self.now)
            self.serve()
        return (time.perf_counter() - start) / self.renewed

    def query(self) -> float:
        """Seconds that it takes to ask for the next deadline and the next output."""
        start = time.perf_counter()
        for _ in range(QUERIES):
            self.client.next_timeout()
            self.client.poll()
        return (time.perf_counter() - start) / QUERIES


def memory(size: int) -> float:
    """Octets per mapping."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loaded = Loaded(size)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(loaded.client.mappings) == size
    return (after - before) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 20_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    clients = {size: Loaded(size) for size in arguments.sizes}
    renewals: dict[int, list[float]] = {size: [] for size in clients}
    queries: dict[int, list[float]] = {size: [] for size in clients}
    for _ in range(arguments.rounds):
        for size, loaded in clients.items():
            renewals[size].append(loaded.renewal())
            queries[size].append(loaded.query())
    print(f"{'mappings':>9} {'renewal':>10} {'growth':>7} {'next_timeout + poll':>20} {'growth':>7}")
    before: tuple[float, float] | None = None
    for size in clients:
        cost = statistics.median(renewals[size]), statistics.median(queries[size])
        growth = [f"{now / then:.2f}" for now, then in zip(cost, before, strict=True)] if before else ["", ""]
        print(f"{size:>9} {cost[0] * 1e6:>7.1f} us {growth[0]:>7} {cost[1] * 1e9:>17.0f} ns {growth[1]:>7}")
        before = cost
    most = min(10_000, max(arguments.sizes))
    print(f"memory at {most} mappings: {memory(most):.0f} octets each")


if __name__ == "__main__":
    main()
