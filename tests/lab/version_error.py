"""Answers PCP requests on lan0 as a gateway does that knows NAT-PMP only (RFC 6886 section 3.5).

Run on the gateway beside miniupnpd, whose PCP side the firewall hides: a packet socket sees what comes before the
firewall does.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

_SERVER_PORT, _ETH_P_IP = 5351, 0x0800
_UNSUPPORTED_VERSION = 1


def version_error(request: bytes, epoch: int) -> bytes | None:
    """The error in NAT-PMP's form, for a request in another version."""
    if len(request) < 2 or request[0] == 0 or request[1] & 0x80:
        return None
    return struct.pack("!BBHI", 0, 0x80, _UNSUPPORTED_VERSION, epoch)


def serve(booted: float) -> None:
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as sniffer,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as replies,
    ):
        sniffer.bind(("lan0", _ETH_P_IP))
        while True:
            packet, origin = sniffer.recvfrom(2048)
            if origin[2] != socket.PACKET_HOST or packet[9] != socket.IPPROTO_UDP:
                continue
            udp = packet[(packet[0] & 0x0F) * 4 :]
            source_port, port, length = struct.unpack_from("!HHH", udp)
            answer = version_error(udp[8:length], int(time.monotonic() - booted))
            if port != _SERVER_PORT or source_port == _SERVER_PORT or answer is None:
                continue
            # A checksum of 0 means that there is none.
            header = struct.pack("!HHHH", _SERVER_PORT, source_port, 8 + len(answer), 0)
            replies.sendto(header + answer, (socket.inet_ntoa(packet[12:16]), 0))


if __name__ == "__main__":
    serve(float(sys.argv[1]))  # as counted by time.monotonic()
