"""A TCP echo server that can be reached from outside, on uvloop.

python examples/uvloop_keep.py 192.168.1.1
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop

from natpmp_sansio import Protocol
from natpmp_sansio.adapters.asyncio import open_client


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while data := await reader.read(2048):
            writer.write(data)
            await writer.drain()


async def main(gateway: str) -> None:
    async with await asyncio.start_server(echo, "0.0.0.0") as server, open_client(gateway) as client:
        _, port = server.sockets[0].getsockname()
        await client.keep_port(Protocol.TCP, port)
        async for event in client.events():
            print(event.describe())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(sys.argv[1]))
