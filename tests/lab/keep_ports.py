"""What a program with an adapter does: ports such as tcp:8080 stay open until it is told to stop, and every event is
printed, one a line. pair:8080 is one external port for both protocols; echo:8080 is a UDP port that answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import threading
import time
import typing

import attrs

import faces
from natpmp_sansio import Config, Event, Protocol


def say(event: str, **about: object) -> None:
    print(json.dumps({"event": event, "at": time.monotonic()} | about, default=str), flush=True)


def show(event: Event) -> None:
    say(type(event).__name__, **attrs.asdict(event))


class Datagrams(logging.Handler):
    """Says what is sent and what arrives."""

    def emit(self, record: logging.LogRecord) -> None:
        say("Datagram", text=record.getMessage())


def serve_echo(port: int) -> None:
    """Send back what comes to any address of this host, also to one that it gets later."""
    is_dual = socket.has_dualstack_ipv6()
    sock = socket.socket(socket.AF_INET6 if is_dual else socket.AF_INET, socket.SOCK_DGRAM)
    if is_dual:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", port))

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError):  # the network may be away for a moment
                sock.sendto(*sock.recvfrom(2048))

    threading.Thread(target=serve, daemon=True).start()


async def keep_ports(face: typing.Any, wanted: argparse.Namespace) -> None:
    async with face.open_client(wanted.gateway, bind=wanted.bind, config=Config(**wanted.config)) as client:
        events = client.events()
        say("Opened", gateway=client.core.gateway, local=client.core.bind_address)
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):  # asyncio makes the one into the other
            for port in wanted.ports:
                kind, number = port.split(":")
                if kind == "pair":
                    client.core.map_pair(int(number), client.now(), lifetime=wanted.lifetime)
                    client.process()
                    continue
                if kind == "echo":
                    serve_echo(int(number))
                protocol = Protocol.TCP if kind == "tcp" else Protocol.UDP
                await client.keep_port(protocol, int(number), lifetime=wanted.lifetime)
            async for event in events:
                show(event)
    for event in events.pending():  # of the release, too
        show(event)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background programs lack
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # a loop knows how to take that
    logging.getLogger("natpmp_sansio.datagrams").addHandler(Datagrams())
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", nargs="+")
    parser.add_argument("--face", default="blocking")
    parser.add_argument("--lifetime", type=int, default=7200)
    parser.add_argument("--gateway")
    parser.add_argument("--bind")
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--datagrams", action="store_const", const=logging.DEBUG, default=logging.WARNING)
    arguments = parser.parse_args()
    logging.getLogger("natpmp_sansio.datagrams").setLevel(arguments.datagrams)
    faces.LONGEST = 600.0  # s; this is no short story
    face = faces.make_face(arguments.face)
    face.run(keep_ports, face, arguments)
