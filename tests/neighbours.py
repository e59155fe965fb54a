"""Who else lives on a client's UDP socket, and what is counted there."""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from aioice import stun
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived, QuicEvent

from natpmp_sansio import Address, Core, Output, SendDatagram

_LONGEST = 1000  # octets of a QUIC datagram
_PATIENCE = 20.0  # s: then it is lost


class Counted:
    """A core whose datagrams are counted."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.sent = self.received = 0
        self.next_timeout = core.next_timeout
        self.handle_timeout = core.handle_timeout

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        is_its_own = self.core.receive_datagram(data, addr, now)
        self.received += is_its_own
        return is_its_own

    def poll(self) -> Output | None:
        output = self.core.poll()
        self.sent += isinstance(output, SendDatagram)
        return output

    def outputs(self) -> Iterator[Output]:
        while (output := self.poll()) is not None:
            yield output


class Questions:
    """Each is asked once, so that what is lost stays lost."""

    def __init__(self) -> None:
        self.asked = self.answered = 0
        self._open: dict[bytes, asyncio.Future[None]] = {}

    async def ask(self, key: bytes, send: Callable[[], object]) -> None:
        future = self._open[key] = asyncio.get_running_loop().create_future()
        self.asked += 1
        send()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(future, _PATIENCE)

    def answer(self, key: bytes) -> None:
        self.answered += 1
        self._open.pop(key).set_result(None)


class StunServer(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = typing.cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: typing.Any) -> None:
        answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, stun.parse_message(data).transaction_id)
        answer.attributes["XOR-MAPPED-ADDRESS"] = addr
        self.transport.sendto(bytes(answer), addr)


class StunPeer:
    """Asks a server where it is seen, on a socket that others use too."""

    def __init__(self, transport: asyncio.DatagramTransport, server: Address) -> None:
        self.questions = Questions()
        self._transport = transport
        self._server = server

    async def ask(self, _: int) -> None:
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        await self.questions.ask(request.transaction_id, lambda: self._transport.sendto(bytes(request), self._server))

    def receive(self, data: bytes) -> None:
        answer = stun.parse_message(data)
        assert answer.attributes["XOR-MAPPED-ADDRESS"] == self._transport.get_extra_info("sockname")
        self.questions.answer(answer.transaction_id)


class QuicEcho(QuicConnectionProtocol):
    """Of QUIC's own datagrams, which are not sent again when they are lost."""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)


class QuicPeer(QuicConnectionProtocol):
    def __init__(self, *args: typing.Any, **options: typing.Any) -> None:
        super().__init__(*args, **options)
        self.questions = Questions()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self.questions.answer(event.data)

    async def ask(self, number: int) -> None:
        data = number.to_bytes(4, "big")
        await self.questions.ask(data, lambda: self._say(data))

    def _say(self, data: bytes) -> None:
        self._quic.send_datagram_frame(data)
        self.transmit()


def quic_server(certificate: Path, key: Path) -> QuicServer:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"], max_datagram_frame_size=_LONGEST)
    configuration.load_cert_chain(certificate, key)
    return QuicServer(configuration=configuration, create_protocol=QuicEcho)


@contextlib.asynccontextmanager
async def quic_connection(port: int, certificate: Path) -> AsyncIterator[QuicPeer]:
    configuration = QuicConfiguration(
        alpn_protocols=["echo"], max_datagram_frame_size=_LONGEST, cafile=str(certificate), server_name="localhost"
    )
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=QuicPeer) as peer:
        yield typing.cast("QuicPeer", peer)
