"""An echo server that keeps its own port open: one UDP socket, a loop of its own, the bare `Client`, and no adapter.

python examples/selectors_loop.py 192.168.1.1 192.168.1.7
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

from natpmp_sansio import Client, Closed, Protocol, SendDatagram
from natpmp_sansio.wire.fields import SERVER_PORT


def run(client: Client, sock: socket.socket) -> None:
    """Serve until the client is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while True:
            client.handle_timeout(time.monotonic())  # too early does no harm
            for output in client.outputs():
                if isinstance(output, SendDatagram):
                    sock.sendto(output.data, output.addr)
                elif isinstance(output, Closed):
                    return
                else:
                    print(output.describe())
            deadline = client.next_timeout()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for _ in selector.select(left):
                data, addr = sock.recvfrom(2048)
                if not client.receive_datagram(data, addr, time.monotonic()):
                    sock.sendto(data, addr)  # not the gateway's: an echo, which is what this server is for


def main(gateway: str, own_address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((own_address, 0))
        client = Client((gateway, SERVER_PORT), local_address=own_address)
        client.map_port(Protocol.UDP, sock.getsockname()[1], time.monotonic())
        try:
            run(client, sock)
        except KeyboardInterrupt:
            client.close(time.monotonic())
            run(client, sock)  # a little longer: to close the port takes an answer, too


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
