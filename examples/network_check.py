"""Which of the two protocols does the gateway speak, and what is its external address? With the messages alone.

    python examples/network_check.py 192.168.1.1

The socket is the caller's own, and other protocols (STUN, say) may use it at the same time.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from natpmp_sansio import DecodeError, decode, natpmp, pcp
from natpmp_sansio.wire import is_response
from natpmp_sansio.wire.fields import SERVER_PORT


@dataclass
class Result:
    speaks: set[str] = field(default_factory=set)
    external_address: IPv4Address | None = None  # which only NAT-PMP tells without making a mapping
    others: list[tuple[bytes, tuple[str, int]]] = field(default_factory=list)  # datagrams for whoever shares the socket


def check(sock: socket.socket, gateway: tuple[str, int], deadline: float) -> Result:
    """Ask in both protocols, once each, and listen until both questions are answered or time.monotonic() says so."""
    with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        probe.connect(gateway)  # sends nothing, but picks this host's address towards the gateway
        sock.sendto(pcp.AnnounceRequest(probe.getsockname()[0]).encode(), gateway)
    sock.sendto(natpmp.ExternalAddressRequest().encode(), gateway)
    result, open_questions = Result(), {"PCP", "NAT-PMP"}
    while open_questions and (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
        data, source = sock.recvfrom(2048)
        if source != gateway or not is_response(data):
            result.others.append((data, source))
            continue
        try:
            message = decode(data)
        except DecodeError:
            continue
        assert isinstance(message, natpmp.Response | pcp.Response)  # as is_response has said
        spoken, other = ("PCP", "NAT-PMP") if isinstance(message, pcp.Response) else ("NAT-PMP", "PCP")
        result.speaks.add(spoken)
        # Who knows only one of the two refuses the other's question in its own: "unsupported version", 1 in both.
        open_questions.discard(other if message.result_code == 1 else spoken)
        if isinstance(message, natpmp.ExternalAddressResponse) and not message.result_code.is_error:
            result.external_address = message.external_address
    return result


if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        found = check(own, (sys.argv[1], SERVER_PORT), time.monotonic() + 2.0)
    print(f"speaks {' and '.join(sorted(found.speaks)) or 'neither PCP nor NAT-PMP'}")
    print(f"external address: {found.external_address or 'not told'}")
