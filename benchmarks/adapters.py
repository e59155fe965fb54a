"""What the adapters cost, as ratios to a bare ping-pong.

    python benchmarks/adapters.py [--size 1000] [--rounds 9] [--adapters blocking asyncio trio] [--patient]

An open client has so many mappings, and is told that its network has changed: it asks for all of them again at once.
Its rate is how many MappingRenewed a subscriber of `events()` counts in a second. The bare ping-pong sends the same
datagrams on the same kind of socket, waits for each answer in the same loop, and looks at nothing. Both take turns, and
the median of the rounds counts. The gateway is another process that turns octets into octets; it and the client share
one core where the system can be told so, so that no round depends on where they happen to run.

PCP keeps 16 requests under way, as is the default: that saves wake-ups, which the bare ping-pong cannot. What is left
without that is shown as well: a window of 1, and NAT-PMP, which has never more than one.

On one core the gateway breaks in on the client whenever a request arrives, and then the client goes on with cold
caches. A gateway elsewhere does not: with --patient it waits until the client does (SCHED_BATCH, Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

from natpmp_sansio import Config, Event, MappingGranted, MappingRenewed, Protocol, natpmp, pcp
from natpmp_sansio.adapters import blocking
from natpmp_sansio.adapters.asyncio import AsyncClient
from natpmp_sansio.adapters.asyncio import open_client as open_asyncio_client

HOST = "127.0.0.1"
EXTERNAL = bytes(10) + b"\xff\xff" + bytes((203, 0, 113, 5))
CONFIGS = {
    "PCP": Config(),
    "PCP, window 1": Config(window=1),
    "NAT-PMP": Config(versions=(0,)),
}

Rates = tuple[float, float]  # round trips in a second, bare and of the client
Sizes = tuple[int, int]  # mappings, rounds


# --- the gateway


def respond(*, is_patient: bool) -> None:
    """Grant whatever is asked for, on a port of its own, until the process is ended."""
    if is_patient:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    print(sock.getsockname()[1], flush=True)
    while True:
        data, addr = sock.recvfrom(2048)
        epoch = int(time.monotonic()).to_bytes(4)
        if data[0] == 2:
            answer = b"\2\x81\0\0" + data[4:8] + epoch + bytes(12) + data[24:42] + data[40:42] + EXTERNAL
        elif data[1] == 0:
            answer = b"\0\x80\0\0" + epoch + EXTERNAL[-4:]
        else:
            answer = bytes((0, 0x80 | data[1], 0, 0)) + epoch + data[4:6] + data[4:6] + data[8:12]
        sock.sendto(answer, addr)


@contextlib.contextmanager
def responder(*, is_patient: bool = False) -> Iterator[tuple[str, int]]:
    command = [sys.executable, __file__, "--respond", *(["--patient"] if is_patient else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield HOST, int(process.stdout.readline())
        finally:
            process.terminate()


# --- the bare ping-pong


def requests_of(config: Config, size: int) -> list[bytes]:
    """What the client sends to renew."""
    ports = range(1, size + 1)
    if config.versions == (0,):
        return [natpmp.MapRequest(Protocol.UDP, port, port).encode() for port in ports]
    nonce = bytes(range(12))
    return [pcp.MapRequest(HOST, nonce, Protocol.UDP, port, port, "203.0.113.5").encode() for port in ports]


@contextlib.contextmanager
def bare_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((HOST, 0))
        yield sock


def blocking_ping_pong(requests: list[bytes], gateway: tuple[str, int]) -> None:
    with bare_socket() as sock, selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        for request in requests:
            sock.sendto(request, gateway)
            selector.select()
            sock.recvfrom(65535)


async def asyncio_ping_pong(requests: list[bytes], gateway: tuple[str, int]) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left = iter(requests)

    def send() -> None:
        request = next(left, None)
        if request is None:
            over.set_result(None)
        else:
            sock.sendto(request, gateway)

    def read() -> None:
        sock.recvfrom(65535)
        send()

    with bare_socket() as sock:
        loop.add_reader(sock, read)
        send()
        await over
        loop.remove_reader(sock)


async def trio_ping_pong(requests: list[bytes], gateway: tuple[str, int]) -> None:
    import trio

    with bare_socket() as sock:
        for request in requests:
            sock.sendto(request, gateway)
            await trio.lowlevel.wait_readable(sock)
            sock.recvfrom(65535)


# --- the clients


def measure_blocking(config: Config, sizes: Sizes, gateway: tuple[str, int]) -> list[Rates]:
    size, rounds = sizes
    requests = requests_of(config, size)
    rates = []
    with blocking.open_client(gateway, bind=HOST, config=config, announcements=False) as client:
        events = client.events()

        def count(kind: type[Event]) -> None:
            counted = 0
            while counted < size:
                counted += isinstance(next(events), kind)

        for port in range(1, size + 1):
            client.keep_port(Protocol.UDP, port)
        count(MappingGranted)
        for _ in range(rounds):
            start = time.perf_counter()
            blocking_ping_pong(requests, gateway)
            between = time.perf_counter()
            client.network_changed()
            count(MappingRenewed)
            rates.append((size / (between - start), size / (time.perf_counter() - between)))
        client.detach()
    return rates


async def measure_async(
    open_client: Callable[..., contextlib.AbstractAsyncContextManager[AsyncClient]],
    ping_pong: Callable[[list[bytes], tuple[str, int]], Awaitable[None]],
    config: Config,
    sizes: Sizes,
    gateway: tuple[str, int],
) -> list[Rates]:
    size, rounds = sizes
    requests = requests_of(config, size)
    rates = []
    async with open_client(gateway, bind=HOST, config=config, announcements=False) as client:
        events = client.events()

        async def count(kind: type[Event]) -> None:
            counted = 0
            while counted < size:
                counted += isinstance(await anext(events), kind)

        for port in range(1, size + 1):
            await client.keep_port(Protocol.UDP, port)
        await count(MappingGranted)
        for _ in range(rounds):
            start = time.perf_counter()
            await ping_pong(requests, gateway)
            between = time.perf_counter()
            await client.network_changed()
            await count(MappingRenewed)
            rates.append((size / (between - start), size / (time.perf_counter() - between)))
        client.detach()
    return rates


def measure_asyncio(config: Config, sizes: Sizes, gateway: tuple[str, int]) -> list[Rates]:
    return asyncio.run(measure_async(open_asyncio_client, asyncio_ping_pong, config, sizes, gateway))


def measure_trio(config: Config, sizes: Sizes, gateway: tuple[str, int]) -> list[Rates]:
    import trio

    from natpmp_sansio.adapters.trio import open_client

    return trio.run(measure_async, open_client, trio_ping_pong, config, sizes, gateway)


ADAPTERS = {"blocking": measure_blocking, "asyncio": measure_asyncio, "trio": measure_trio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="mappings")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--patient", action="store_true", help="a gateway that answers while the client waits")
    parser.add_argument("--respond", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.respond:
        respond(is_patient=arguments.patient)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'':9} {'':14} {'bare':>9} {'client':>9} {'ratio':>6}")
    with responder(is_patient=arguments.patient) as gateway:
        for adapter in arguments.adapters:
            for name, config in CONFIGS.items():
                try:
                    rates = ADAPTERS[adapter](config, (arguments.size, arguments.rounds), gateway)
                except ImportError:
                    print(f"{adapter:9} is not installed")
                    break
                bare, ours = (statistics.median(each) for each in zip(*rates, strict=True))
                ratio = statistics.median(client / ping_pong for ping_pong, client in rates)
                print(f"{adapter:9} {name:14} {bare:>7.0f}/s {ours:>7.0f}/s {ratio:>6.2f}")


if __name__ == "__main__":
    main()
