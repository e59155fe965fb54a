"""STUN, QUIC, NAT-PMP and PCP on one UDP socket: each gets what is its own, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from natpmp_sansio import Address, Client, Config, Gateway, GatewayConfig, MappingRenewed, Multiplexer, Protocol
from natpmp_sansio.adapters import _sockets
from natpmp_sansio.adapters._driver import Unclaimed
from natpmp_sansio.adapters.asyncio import Events, drive

pytest.importorskip("aioice", reason="aioice comes with the extra examples")
pytest.importorskip("aioquic", reason="aioquic comes with the extra examples")

from certificates import self_signed
from neighbours import Counted, StunPeer, StunServer, quic_connection, quic_server

P = typing.TypeVar("P", bound=asyncio.DatagramProtocol)

IN_FLIGHT = 16  # of each kind: loopback loses only what finds a socket's buffer full
PORTS = 200  # of each client
LIFETIME = 8  # s: each is renewed after 4 s or 5 s, which PCP allows no sooner (RFC 6887 section 11.2.1)
LONGEST = 90.0  # s


@pytest.mark.parametrize(("kind", "exchanges"), [("asyncio", 10_000), ("uvloop", 1_000)])
def test_stun_and_quic_and_renewals_in_both_protocols_share_a_socket_and_lose_nothing(
    kind: str, exchanges: int, tmp_path: Path
) -> None:
    begun = time.monotonic()
    with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
        exchanged = runner.run(exchange(exchanges, exchanges // 50, tmp_path))
    print(f"\n{kind}: {exchanged}, none lost, in {time.monotonic() - begun:.1f} s")


async def exchange(questions: int, renewals: int, tmp_path: Path) -> str:
    """Ask so many questions in STUN, and as many in QUIC, while mappings are renewed, in each protocol so often."""
    certificate, key = self_signed("localhost", tmp_path)

    def sort(data: bytes, addr: typing.Any) -> None:
        """What is no gateway's: STUN begins with two zero bits, and QUIC does not (RFC 9443)."""
        if data[0] >> 6:
            quic.datagram_received(data, addr)
        else:
            stun.receive(data)

    async with (
        asyncio.timeout(LONGEST),
        endpoint(StunServer) as (stun_transport, _),
        endpoint(lambda: quic_server(certificate, key)) as (shared, quic),
        keep_mappings(shared, sort) as kept,
    ):
        stun = StunPeer(shared, stun_transport.get_extra_info("sockname"))
        async with quic_connection(shared.get_extra_info("sockname")[1], certificate) as peer:
            await asyncio.gather(repeat(stun.ask, questions), repeat(peer.ask, questions), kept.see_renewals(renewals))
        await kept.arrive()
        for asked in (stun.questions, peer.questions):
            assert (asked.asked, asked.answered) == (questions, questions)
        pcp, natpmp = (gateway.sent for gateway in kept.gateways)
        return f"{questions} STUN, {questions} QUIC, {pcp} PCP and {natpmp} NAT-PMP exchanges"


class Kept:
    """The mappings of two clients on one socket, one for each protocol, and their gateways."""

    def __init__(self, clients: list[Client], both: Counted, gateways: list[Counted], events: Events) -> None:
        self.clients = clients
        self.both = both
        self.gateways = gateways
        self.events = events

    async def see_renewals(self, number: int) -> None:
        """So many in each protocol."""
        seen = Counter[Address]()
        while min(seen[client.gateway] for client in self.clients) < number:
            event = await anext(self.events)
            if isinstance(event, MappingRenewed):
                seen[event.gateway] += 1

    async def arrive(self) -> None:
        """Nothing is on its way any more, in either direction, and nothing was lost there."""
        give_up_at = time.monotonic() + 10.0
        while self._sent() != self._arrived() and time.monotonic() < give_up_at:
            await asyncio.sleep(0)
        assert self._sent() == self._arrived()

    def _sent(self) -> tuple[int, int]:
        return self.both.sent, sum(gateway.sent for gateway in self.gateways)

    def _arrived(self) -> tuple[int, int]:
        return sum(gateway.received for gateway in self.gateways), self.both.received


@contextlib.asynccontextmanager
async def keep_mappings(sock: asyncio.DatagramTransport, unclaimed: Unclaimed) -> AsyncIterator[Kept]:
    async with contextlib.AsyncExitStack() as stack:
        clients, gateways = [], []
        for version in (2, 0):
            own = stack.enter_context(_sockets.open_request_socket(("127.0.0.1", 0)))
            address = own.getsockname()
            config = GatewayConfig(versions=(version,), min_lifetime=1)
            gateways.append(Counted(Gateway("203.0.113.5", address=address, config=config)))
            await stack.enter_async_context(drive(gateways[-1], sock=own))
            clients.append(Client(address, local_address="127.0.0.1", config=Config(versions=(version,))))
        both = Counted(Multiplexer(*clients))
        driven = await stack.enter_async_context(drive(both, sock=sock, unclaimed=unclaimed))
        kept = Kept(clients, both, gateways, driven.events())
        for client in clients:
            for port in range(1, 1 + PORTS):
                client.map_port(Protocol.UDP, port, driven.now(), lifetime=LIFETIME)
        driven.process()
        yield kept


@contextlib.asynccontextmanager
async def endpoint(protocol: Callable[[], P]) -> AsyncIterator[tuple[asyncio.DatagramTransport, P]]:
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(protocol, local_addr=("127.0.0.1", 0))
    with contextlib.closing(transport):
        yield transport, made


async def repeat(ask: Callable[[int], Awaitable[None]], times: int) -> None:
    """With a bounded number in flight."""
    numbers = iter(range(times))

    async def one_after_another() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))


def new_loop(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "asyncio":
        return asyncio.new_event_loop
    uvloop = pytest.importorskip("uvloop", reason="uvloop comes with the extra examples")
    return typing.cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
