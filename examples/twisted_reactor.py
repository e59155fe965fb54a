"""An echo server that keeps its own port open: Twisted's reactor drives the bare `Client`, without an adapter.

python examples/twisted_reactor.py 192.168.1.1 192.168.1.7
"""

from __future__ import annotations

import sys
import time

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from natpmp_sansio import Client, Closed, Protocol, SendDatagram
from natpmp_sansio.wire.fields import SERVER_PORT


class Echo(DatagramProtocol):
    def __init__(self, client: Client) -> None:
        self.client = client
        self.closed: Deferred[None] = Deferred()
        self.alarm: IDelayedCall | None = None

    def startProtocol(self) -> None:
        self.client.map_port(Protocol.UDP, self.transport.getHost().port, time.monotonic())
        self.pump()

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        if not self.client.receive_datagram(datagram, addr, time.monotonic()):
            self.transport.write(datagram, addr)
        self.pump()

    def pump(self) -> None:
        """After whatever has happened: send, tell, and set the alarm."""
        self.client.handle_timeout(time.monotonic())
        for output in self.client.outputs():
            if isinstance(output, SendDatagram):
                self.transport.write(output.data, output.addr)
            elif isinstance(output, Closed):
                self.closed.callback(None)
            else:
                print(output.describe())
        if self.alarm is not None and self.alarm.active():
            self.alarm.cancel()
        deadline = self.client.next_timeout()
        if deadline is not None:
            self.alarm = reactor.callLater(max(0.0, deadline - time.monotonic()), self.pump)

    def close(self) -> Deferred[None]:
        """The reactor stops once this is done: when the gateway has closed the port."""
        self.client.close(time.monotonic())
        self.pump()
        return self.closed


def main(gateway: str, own_address: str) -> None:
    server = Echo(Client((gateway, SERVER_PORT), local_address=own_address))
    reactor.listenUDP(0, server, interface=own_address)
    reactor.addSystemEventTrigger("before", "shutdown", server.close)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
