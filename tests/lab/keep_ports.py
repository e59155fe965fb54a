"""What a program with the blocking adapter does: TCP 8080 and UDP 8081 stay open until it is told to stop."""

from __future__ import annotations

import json
import signal
import sys

import attrs

from natpmp_sansio import Event, Protocol
from natpmp_sansio.adapters.blocking import open_client


def show(event: Event) -> None:
    print(json.dumps({"event": type(event).__name__} | attrs.asdict(event), default=str), flush=True)


def keep_ports(lifetime: int) -> None:
    with open_client() as client:
        events = client.events()
        try:
            client.map_port(Protocol.TCP, 8080, lifetime=lifetime)
            client.map_port(Protocol.UDP, 8081, lifetime=lifetime)
            for event in events:
                show(event)
        except KeyboardInterrupt:
            pass
    for event in events.pending():  # of the release, too
        show(event)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_ports(int(sys.argv[1]))
