"""What many mappings cost, counted and not timed: benchmarks/client.py prints the times."""

from __future__ import annotations

import random
import sys
import tracemalloc
import types

import pytest

from helpers import LOCAL, SERVER, answer
from natpmp_sansio import Client, Config, Protocol, SendDatagram

LIFETIME = 86400


def loaded(size: int) -> Client:
    """A client with so many mappings that are held, their renewals spread over time."""
    client = Client(SERVER, local_address=LOCAL, config=Config(versions=(2,)), rng=random.Random(1))
    for number in range(size):
        now = number * 20_000 / size
        client.map_port(Protocol.TCP, 1 + number, now, lifetime=LIFETIME)
        serve(client, now)
    return client


def serve(client: Client, now: float) -> None:
    for output in client.outputs():
        if isinstance(output, SendDatagram):
            client.receive_datagram(answer(output.data, epoch=1000 + int(now)), SERVER, now)


def calls_of_renewals(client: Client, count: int) -> int:
    """How many functions are called for so many renewals."""
    calls = 0

    def see(frame: types.FrameType, what: str, _: object) -> None:
        nonlocal calls
        calls += what == "call"

    sys.setprofile(see)
    try:
        for _ in range(count):
            now = client.next_timeout() or 0.0
            client.handle_timeout(now)
            serve(client, now)
    finally:
        sys.setprofile(None)
    return calls


def test_a_renewal_calls_as_many_functions_among_ten_mappings_as_among_two_thousand() -> None:
    few, many = (calls_of_renewals(loaded(size), 100) for size in (10, 2000))
    assert many == pytest.approx(few, rel=0.05)


def test_a_renewal_calls_no_more_functions_than_it_has_to() -> None:
    """What makes the answer here is among them. They were twice as many once, for half the round trips in a second."""
    assert calls_of_renewals(loaded(10), 100) / 100 < 175


def test_a_mapping_takes_no_more_than_one_and_a_half_kilobytes() -> None:
    size = 2000
    loaded(10)  # what is made once
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    client = loaded(size)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(client.mappings) == size
    assert (after - before) / size < 1500
