"""What a program with the blocking adapter does: ports such as tcp:8080 stay open until it is told to stop, and every
event is printed, one a line. pair:8080 is one external port for both protocols.
"""

from __future__ import annotations

import argparse
import json
import signal
import time

import attrs

from natpmp_sansio import Config, Event, Protocol
from natpmp_sansio.adapters.blocking import open_client


def show(event: Event) -> None:
    about = {"event": type(event).__name__, "at": time.monotonic()}
    print(json.dumps(about | attrs.asdict(event), default=str), flush=True)


def keep_ports(wanted: argparse.Namespace) -> None:
    config = Config(**wanted.config)
    with open_client(wanted.gateway, config=config) as client:
        events = client.events()
        try:
            for port in wanted.ports:
                kind, number = port.split(":")
                if kind == "pair":
                    client.core.map_pair(int(number), time.monotonic(), lifetime=wanted.lifetime)
                else:
                    client.keep_port(Protocol[kind.upper()], int(number), lifetime=wanted.lifetime)
            for event in events:
                show(event)
        except KeyboardInterrupt:
            pass
    for event in events.pending():  # of the release, too
        show(event)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", nargs="+")
    parser.add_argument("--lifetime", type=int, default=7200)
    parser.add_argument("--gateway")
    parser.add_argument("--config", type=json.loads, default={})
    keep_ports(parser.parse_args())
