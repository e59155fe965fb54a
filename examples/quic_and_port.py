"""A QUIC echo server that keeps its own port open: aioquic and the mapping share one UDP socket.

python examples/quic_and_port.py 192.168.1.1 certificate.pem key.pem
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

from natpmp_sansio import Protocol
from natpmp_sansio.adapters.asyncio import open_client


class Echo(QuicConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)


async def main(gateway: str, certificate: str, key: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    configuration.load_cert_chain(certificate, key)
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=Echo), local_addr=("0.0.0.0", 0)
    )
    _, port = transport.get_extra_info("sockname")
    with contextlib.closing(server):
        async with open_client(gateway, sock=transport) as client:  # what is not the client's goes on to QuicServer
            await client.keep_port(Protocol.UDP, port)
            async for event in client.events():
                print(event.describe())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
