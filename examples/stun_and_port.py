"""STUN and the mapping on one UDP socket: what the internet sees of it, and what the gateway has opened for it.

    python examples/stun_and_port.py 192.168.1.1 198.51.100.7 3478

If the two addresses differ, there is another NAT behind the gateway, and what it opens does not reach the internet.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import typing

from aioice import stun

from natpmp_sansio import Protocol
from natpmp_sansio.adapters.asyncio import open_client


class Stun(asyncio.DatagramProtocol):
    """Asks STUN servers, and knows nothing of gateways."""

    def __init__(self) -> None:
        self.open: dict[bytes, stun.Transaction] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = typing.cast("asyncio.DatagramTransport", transport)

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        self.transport.sendto(bytes(message), addr)

    def datagram_received(self, data: bytes, addr: tuple[str | typing.Any, int]) -> None:
        with contextlib.suppress(ValueError):  # it is no STUN
            message = stun.parse_message(data)
            if message.transaction_id in self.open:
                self.open[message.transaction_id].response_received(message, addr)

    async def ask(self, server: tuple[str, int]) -> tuple[str, int]:
        """The address and port that the server sees this socket at."""
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        transaction = self.open[request.transaction_id] = stun.Transaction(request, server, self)
        try:
            answer, _ = await transaction.run()
        finally:
            del self.open[request.transaction_id]
        seen: tuple[str, int] = answer.attributes["XOR-MAPPED-ADDRESS"]
        return seen


async def main(gateway: str, server: tuple[str, int]) -> None:
    loop = asyncio.get_running_loop()
    transport, asker = await loop.create_datagram_endpoint(Stun, local_addr=("0.0.0.0", 0))
    _, port = transport.get_extra_info("sockname")
    async with open_client(gateway, sock=transport) as client:  # what is not the client's goes on to Stun
        mapping = await client.map_port(Protocol.UDP, port)
        address, port = await asker.ask(server)
        print(f"the gateway has opened {mapping.external}, and STUN sees {address}:{port}")
        async for event in client.events():
            print(event.describe())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], (sys.argv[2], int(sys.argv[3]))))
