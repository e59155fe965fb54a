"""What the stories share: the hosts of one small network, and a random generator without surprises."""

from __future__ import annotations

import random
import typing
from ipaddress import IPv4Address

from natpmp_sansio import (
    Address,
    Client,
    Config,
    Endpoint,
    Event,
    Gateway,
    GatewayConfig,
    MappingId,
    Protocol,
    SendDatagram,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Simulation
from natpmp_sansio.wire.fields import IPAddress, any_address, to_address

SERVER = ("192.168.1.1", 5351)
LOCAL = "192.168.1.7"
EXTERNAL = "203.0.113.5"
STRANGER = ("192.168.1.66", 5351)
V6_SERVER: Address = ("fe80::1", 5351, 0, 2)

# Where the requests of the gateway's stories come from, and the nonces that they carry.
HOST: Address = (LOCAL, 40001)
OTHER: Address = ("192.168.1.8", 40002)
V6_HOST: Address = ("2001:db8:1::10", 40003, 0, 0)
NONCE = bytes(range(12))
OTHER_NONCE = bytes(range(12, 24))

E = typing.TypeVar("E")


class Middle(random.Random):
    """Every draw from a range gives its middle, so that schedules are exact; nonces still differ."""

    def random(self) -> float:
        return 0.5


def make_client(
    versions: tuple[int, ...] = (2, 0), *, rng: random.Random | None = None, **config: typing.Any
) -> Client:
    return Client(SERVER, local_address=LOCAL, config=Config(versions=versions, **config), rng=rng or Middle(1))


def make_gateway(
    versions: tuple[int, ...] = (2, 0), *, external: str | None = EXTERNAL, **config: typing.Any
) -> Gateway:
    return Gateway(external, address=SERVER, config=GatewayConfig(versions=versions, **config), rng=Middle(2))


def events_of(sim: Simulation, kind: type[E]) -> list[E]:
    """The events of one kind, in order."""
    return [event for _, event in sim.events if isinstance(event, kind)]


def times_of(sim: Simulation, kind: type[Event]) -> list[float]:
    return [at for at, event in sim.events if isinstance(event, kind)]


def sends_of(sim: Simulation, source: str = LOCAL) -> list[tuple[float, bytes]]:
    """What one host sent, and when."""
    return [(sent.at, sent.data) for sent in sim.sent if sent.source[0] == source]


def drain(core: Client | Gateway) -> tuple[list[bytes], list[Event]]:
    """Everything that waits, as datagrams and events."""
    datagrams, events = [], []
    for output in core.outputs():
        if isinstance(output, SendDatagram):
            datagrams.append(output.data)
        else:
            events.append(output)
    return datagrams, events


Message = natpmp.Message | pcp.Message


def exchange(
    gateway: Gateway, data: bytes, now: float = 0.0, source: Address = HOST
) -> tuple[list[bytes], list[Event]]:
    """What a request is answered, to its source alone, and what else happened."""
    assert gateway.receive_datagram(data, source, now) is True
    outputs = list(gateway.outputs())
    answers = [each.data for each in outputs if isinstance(each, SendDatagram) and each.addr == source]
    return answers, [each for each in outputs if not isinstance(each, SendDatagram)]


def ask(gateway: Gateway, request: Message | bytes, now: float = 0.0, source: Address = HOST) -> Message:
    """The one answer to a request."""
    (answer,), _ = exchange(gateway, request if isinstance(request, bytes) else request.encode(), now, source)
    return decode(answer)


def pcp_map(
    gateway: Gateway,
    protocol: int,
    port: int,
    suggested: int = 0,
    lifetime: int = 7200,
    *,
    address: str | None = None,
    nonce: bytes = NONCE,
    options: tuple[pcp.Option, ...] = (),
    now: float = 0.0,
    source: Address = HOST,
) -> pcp.MapResponse:
    """The answer; what has to be echoed is checked here. `address` is suggested, by default all zeros."""
    client = to_address(source[0])
    request = pcp.MapRequest(
        client,
        nonce,
        protocol,
        port,
        suggested,
        any_address(client) if address is None else to_address(address),
        lifetime,
        options,
    )
    reply = ask(gateway, request, now, source)
    assert isinstance(reply, pcp.MapResponse)
    assert (reply.nonce, reply.protocol, reply.internal_port) == (nonce, protocol, port)
    return reply


def pcp_peer(
    gateway: Gateway,
    protocol: int,
    port: int,
    remote: Endpoint,
    suggested: int = 0,
    lifetime: int = 7200,
    *,
    address: str | None = None,
    nonce: bytes = NONCE,
    options: tuple[pcp.Option, ...] = (),
    now: float = 0.0,
    source: Address = HOST,
) -> pcp.PeerResponse:
    """The answer; what has to be echoed is checked here. `address` is suggested, by default all zeros."""
    assert remote.address is not None
    client = to_address(source[0])
    request = pcp.PeerRequest(
        client,
        nonce,
        protocol,
        port,
        remote.port,
        remote.address,
        suggested,
        any_address(client) if address is None else to_address(address),
        lifetime,
        options,
    )
    reply = ask(gateway, request, now, source)
    assert isinstance(reply, pcp.PeerResponse)
    assert (reply.nonce, reply.protocol, reply.internal_port) == (nonce, protocol, port)
    assert (reply.remote_address, reply.remote_port) == (remote.address, remote.port)
    return reply


def endpoint(address: str | IPAddress, port: int) -> Endpoint:
    return Endpoint(to_address(address), port)


def externals(gateway: Gateway) -> list[str]:
    """The external endpoints of the mapping table."""
    return [str(mapping.external) for mapping in gateway.mappings]


def sent_until(gateway: Gateway, now: float, end: float) -> list[tuple[float, Address, Message]]:
    """What a gateway says by itself from `now` to `end`: when, to whom and what."""
    sent = []
    while True:
        sent += [(now, each.addr, decode(each.data)) for each in gateway.outputs() if isinstance(each, SendDatagram)]
        deadline = gateway.next_timeout()
        if deadline is None or deadline > end:
            return sent
        now = deadline
        gateway.handle_timeout(now)


# --- a gateway of few words


def answer(request: bytes, **changes: object) -> bytes:
    """The successful answer of a PCP server to a MAP request, with some fields changed."""
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    fields: dict[str, object] = {
        "result_code": pcp.ResultCode.SUCCESS,
        "lifetime": asked.lifetime,
        "epoch": 1000,
        "nonce": asked.nonce,
        "protocol": asked.protocol,
        "internal_port": asked.internal_port,
        "external_port": 40000 if asked.lifetime else 0,
        "external_address": EXTERNAL,
    }
    return pcp.MapResponse(**{**fields, **changes}).encode()  # type: ignore[arg-type]


def natpmp_answer(request: bytes, epoch: int = 1000, **changes: object) -> bytes:
    """The same for NAT-PMP."""
    asked = decode(request)
    if isinstance(asked, natpmp.ExternalAddressRequest):
        return natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, epoch, IPv4Address(EXTERNAL)).encode()
    assert isinstance(asked, natpmp.MapRequest)
    fields: dict[str, object] = {
        "result_code": natpmp.ResultCode.SUCCESS,
        "internal_port": asked.internal_port,
        "external_port": 40000 if asked.lifetime else 0,
        "lifetime": asked.lifetime,
    }
    return natpmp.MapResponse(asked.protocol, epoch=epoch, **{**fields, **changes}).encode()  # type: ignore[arg-type]


def held(client: Client, lifetime: int = 7200, now: float = 0.0) -> MappingId:
    """A mapping that a PCP gateway granted at once."""
    mapping = client.map_port(Protocol.TCP, 8080, now, lifetime=lifetime)
    (request,), _ = drain(client)
    assert client.receive_datagram(answer(request), SERVER, now)
    drain(client)
    return mapping
