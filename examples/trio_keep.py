"""Three lines open a port, keep it, and say when it moves; leaving the block closes it.

python examples/trio_keep.py 192.168.1.1 8080
"""

from __future__ import annotations

import contextlib
import sys

import trio

from natpmp_sansio import Protocol
from natpmp_sansio.adapters.trio import open_client


async def main(gateway: str, port: int) -> None:
    async with open_client(gateway) as client:
        await client.keep_port(Protocol.TCP, port)
        async for event in client.events():
            print(event.describe())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, sys.argv[1], int(sys.argv[2]))
