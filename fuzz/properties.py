"""What must hold whatever the octets: plain functions, driven by run.py and by tests/test_fuzz.py alike.

Each says its invariant in its first line, and raises AssertionError, or whatever the package raised, where it fails.
"""

from __future__ import annotations

import contextlib
import random
import typing
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from natpmp_sansio import (
    Address,
    Client,
    Config,
    DecodeError,
    Endpoint,
    Gateway,
    GatewayConfig,
    LocalProtocolError,
    MappingId,
    MappingKind,
    Protocol,
    Quirk,
    SendDatagram,
    natpmp,
    pcp,
    wire,
)
from natpmp_sansio.gateway.gateway import Authenticator, Policy
from natpmp_sansio.wire.fields import IPAddress

T = typing.TypeVar("T")


# --- octets and messages


def decode_is_total(data: bytes) -> None:
    """decode raises only DecodeError, at an octet of the datagram; what it gives encodes to the same octets."""
    assert wire.describe(data).isprintable(), "describe() is not one plain line"
    try:
        message = wire.decode(data)
    except DecodeError as error:
        _check_offset(error.offset, data)
        return
    assert message.encode() == data
    assert wire.decode(message.encode()) == message
    assert message.describe().isprintable()
    assert wire.is_response(data) == isinstance(message, natpmp.Response | pcp.Response)
    try:
        assert wire.decode(data, strict=True) == message
    except DecodeError as error:
        _check_offset(error.offset, data)
    if isinstance(message, pcp.Request) and (fault := pcp.find_fault(message)) is not None:
        _check_offset(fault.offset, data)


def round_trip(data: bytes) -> None:
    """Whatever the constructors accept comes back equal from its octets, and a strict decoder accepts it as well."""
    try:
        message = build(Recipe(data))
    except LocalProtocolError:
        return
    decoded = wire.decode(message.encode())
    assert decoded == message
    assert decoded.received is None
    assert wire.decode(message.encode(), strict=True) == message


def _check_offset(offset: int, data: bytes) -> None:
    assert 0 <= offset <= len(data), f"octet {offset} of {len(data)}"


# --- datagrams and time


def client_survives(data: bytes) -> None:
    """No datagram, time or command makes a client raise, forget its deadline, or put out without bound."""
    recipe = Recipe(data)
    client = _busy_client(recipe.pick(_VERSIONS))
    commands: list[Command] = [
        lambda recipe, now: client.map_port(recipe.pick(_PROTOCOLS), recipe.number(1) % 4, now, lifetime=600),
        lambda recipe, now: client.unmap(MappingId(recipe.number(1) % 8), now),
        lambda recipe, now: client.gateway_unreachable(now),
        lambda recipe, now: client.close(now),
        lambda recipe, now: client.map_pair(recipe.number(1) % 4, now, lifetime=600),
        lambda recipe, now: client.map_peer(Protocol.UDP, 5000, ("198.51.100.7", 443), now),
        lambda recipe, now: client.probe(now),
        lambda recipe, now: client.request_external_address(now),
        lambda recipe, now: client.network_changed(now, recipe.pick(_LOCALS), recipe.pick(_GATEWAYS)),
        lambda recipe, now: Client.restore(client.snapshot(now), now, elapsed=float(recipe.number(1))),
    ]

    def look() -> object:
        return (client.mappings, client.timers(), client.next_timeout(), client.version, client.external_address)

    _survive(client, recipe, commands, look)


def gateway_survives(data: bytes) -> None:
    """No datagram, time or command makes a gateway raise, forget its deadline, put out or keep without bound, or answer
    a response; without quirks all that it sends is well-formed."""
    recipe = Recipe(data)
    versions, pool, features = recipe.pick(_VERSIONS), recipe.pick(_POOLS), recipe.pick(_FEATURES)
    server, policy, authenticator = recipe.pick(_SERVERS), recipe.pick(_POLICIES), recipe.pick(_AUTHENTICATORS)
    quirks = {recipe.pick(list(Quirk)) for _ in range(recipe.number(1) % 4)}
    config = GatewayConfig(versions=versions, **_LIMITS, **features)
    gateway = Gateway(
        pool,
        address=server,
        config=config,
        policy=policy,
        authenticator=authenticator,
        quirks=quirks,
        rng=random.Random(1),
    )
    commands: list[Command] = [
        lambda recipe, now: gateway.reboot(now),
        lambda recipe, now: gateway.set_external_address(recipe.pick(_POOLS), now),
        lambda recipe, now: gateway.revoke(MappingId(recipe.number(1) % 8), now),
        lambda recipe, now: gateway.add_static(
            recipe.pick(_PROTOCOLS), _host(recipe), 40000 + recipe.number(1) % 8, now
        ),
        lambda recipe, now: gateway.outbound(recipe.pick(_PROTOCOLS), _host(recipe), _host(recipe), now),
        lambda recipe, now: gateway.address_leased(recipe.pick(_HOSTS), now + recipe.pick(_WAITS), now),
        lambda recipe, now: gateway.address_released(recipe.pick(_HOSTS), now),
        lambda recipe, now: gateway.set_prefix64(recipe.pick(((), (pcp.Prefix64("64:ff9b::/96"),))), now),
    ]

    def look() -> object:
        assert sum(mapping.size for mapping in gateway.mappings if mapping.kind is not MappingKind.STATIC) <= 8
        return (gateway.mappings, gateway.next_timeout(), gateway.external_addresses)

    _survive(gateway, recipe, commands, look, is_well_behaved=not quirks)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (decode_is_total, round_trip, client_survives, gateway_survives)
}


# --- recipes: octets as a list of choices


class Recipe:
    """Reads choices from octets. Once these are used up, every choice is 0."""

    def __init__(self, octets: bytes) -> None:
        self._left = octets

    @property
    def is_over(self) -> bool:
        return not self._left

    def take(self, count: int) -> bytes:
        taken, self._left = self._left[:count], self._left[count:]
        return taken + bytes(count - len(taken))

    def number(self, octets: int) -> int:
        return int.from_bytes(self.take(octets))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number(1) % len(choices)]

    def some(self) -> bytes:
        return self.take(self.number(1))

    def text(self) -> str:
        return self.some().decode(errors="surrogateescape")  # a surrogate is what the constructors have to refuse

    def address(self) -> IPAddress:
        kind = self.number(1) % 4
        octets = self.take(4 if kind == 0 else 16) if kind < 2 else bytes(4 if kind == 2 else 16)
        return IPv4Address(octets) if len(octets) == 4 else IPv6Address(octets)

    def ipv4(self) -> IPv4Address:
        return IPv4Address(self.take(4))

    def networks4(self) -> tuple[IPv4Network, ...] | None:
        count = self.number(1) % 4
        return None if count == 3 else tuple(self._network4() for _ in range(count))

    def _network4(self) -> IPv4Network:
        return IPv4Network((self.take(4), self.number(1) % 33), strict=False)

    def network6(self) -> IPv6Network:
        return IPv6Network((self.take(16), self.number(1) % 129), strict=False)

    def options(self) -> tuple[pcp.Option, ...]:
        return tuple(self.pick(_OPTIONS)(self) for _ in range(self.number(1) % 8))


def life(versions: tuple[int, ...], datagrams: Sequence[bytes], *, to_server: bool) -> bytes:
    """A recipe for `gateway_survives` or `client_survives`: datagrams from the right host, and the deadline after each.

    A gateway has the first of all other choices. A step is a wait and what then happens; see `_survive`.
    """
    choices = bytes(6 if to_server else 0)
    steps = [bytes((0, 0, 0)) + len(data).to_bytes(2) + data + bytes((1, 2)) for data in datagrams]
    return bytes((_VERSIONS.index(versions),)) + choices + b"".join(steps)


def build(recipe: Recipe) -> wire.Message:
    """The message of a recipe.

    Raises:
        LocalProtocolError: the constructors refuse it.
    """
    return recipe.pick(_MESSAGES)(recipe)


_OPTIONS: list[Callable[[Recipe], pcp.Option]] = [
    lambda r: pcp.ThirdParty(r.address()),
    lambda r: pcp.PreferFailure(),
    lambda r: pcp.Filter(r.number(1), r.number(2), r.address()),
    lambda r: pcp.Nonce(r.number(4)),
    lambda r: pcp.AuthenticationTag(r.number(4), r.number(4), r.number(4), r.some()),
    lambda r: pcp.PaAuthenticationTag(r.number(4), r.some()),
    lambda r: pcp.EapPayload(r.some()),
    lambda r: pcp.Prf(r.number(4)),
    lambda r: pcp.MacAlgorithm(r.number(4)),
    lambda r: pcp.SessionLifetime(r.number(4)),
    lambda r: pcp.ReceivedPak(r.number(4)),
    lambda r: pcp.IdIndicator(r.text()),
    lambda r: pcp.ThirdPartyId(r.some()),
    lambda r: pcp.Description(r.text()),
    lambda r: pcp.Prefix64(),
    lambda r: pcp.Prefix64(r.network6(), r.some(), r.networks4()),
    lambda r: pcp.PortSet(r.number(2), r.number(2), bool(r.number(1) & 1)),
    lambda r: pcp.RawOption(r.number(1), r.some()),
]
# Fields in the order of the constructors' parameters. Whatever the octets say: most combinations are refused.
_MESSAGES: list[Callable[[Recipe], wire.Message]] = [
    lambda r: natpmp.ExternalAddressRequest(),
    lambda r: natpmp.ExternalAddressResponse(r.number(2), r.number(4), r.ipv4()),
    lambda r: natpmp.MapRequest(r.pick(_PROTOCOLS), r.number(2), r.number(2), r.number(4)),
    lambda r: natpmp.MapResponse(r.pick(_PROTOCOLS), r.number(2), r.number(4), r.number(2), r.number(2), r.number(4)),
    lambda r: natpmp.ErrorResponse(r.number(1), r.number(2), r.pick((None, r.number(4))), payload=r.some()),
    lambda r: natpmp.UnknownRequest(r.number(1), r.some()),
    lambda r: pcp.AnnounceRequest(r.address(), r.options()),
    lambda r: pcp.AnnounceResponse(r.number(1), r.number(4), r.number(4), r.options()),
    lambda r: pcp.MapRequest(
        r.address(), r.take(12), r.number(1), r.number(2), r.number(2), r.address(), r.number(4), r.options()
    ),
    lambda r: pcp.MapResponse(
        r.number(1),
        r.number(4),
        r.number(4),
        r.take(12),
        r.number(1),
        r.number(2),
        r.number(2),
        r.address(),
        r.options(),
    ),
    lambda r: pcp.PeerRequest(
        r.address(),
        r.take(12),
        r.number(1),
        r.number(2),
        r.number(2),
        r.address(),
        r.number(2),
        r.address(),
        r.number(4),
        r.options(),
    ),
    lambda r: pcp.PeerResponse(
        r.number(1),
        r.number(4),
        r.number(4),
        r.take(12),
        r.number(1),
        r.number(2),
        r.number(2),
        r.address(),
        r.number(2),
        r.address(),
        r.options(),
    ),
    lambda r: pcp.AuthenticationRequest(r.address(), r.number(1), r.number(4), r.number(4), r.options()),
    lambda r: pcp.AuthenticationResponse(r.number(1), r.number(4), r.number(4), r.number(4), r.options()),
    lambda r: pcp.ErrorResponse(
        r.number(1),
        r.number(1),
        r.pick((None, r.number(4))),
        r.pick((None, r.number(4))),
        r.some(),
        version=r.pick((pcp.VERSION, r.number(1))),
    ),
    lambda r: pcp.UnknownRequest(r.number(1), r.number(4), r.address(), r.some()),
    lambda r: pcp.UnknownResponse(r.number(1), r.number(1), r.number(4), r.number(4), r.some()),
]


# --- lives: a core, and a recipe of what happens to it

Command = Callable[[Recipe, float], object]

# The network of the golden datagrams, so that these are answers and requests that fit.
_GATEWAY = ("192.168.1.1", 5351)
_CLIENT = ("192.168.1.10", 49152)
_SENDERS: dict[type, tuple[typing.Any, ...]] = {
    Client: (_GATEWAY, ("192.168.1.1", 5350), ("::ffff:192.168.1.1", 5351, 0, 0), ("192.168.1.66", 5351), ("", 0), ()),
    Gateway: (_CLIENT, ("192.168.1.20", 49152), ("2001:db8:1::10", 49152, 0, 0), ("", 0), ()),
}
_VERSIONS = ((2, 0), (0, 2), (2,), (0,))
_PROTOCOLS: tuple[Protocol | int, ...] = (Protocol.TCP, Protocol.UDP, 132)
_HOSTS = ("192.168.1.10", "192.168.1.20", "2001:db8:1::10", "203.0.113.7")
_PORTS = (40000, 80, 5351, 0)

# What a gateway can be like; the first choices are those of the corpus.
_LIMITS: dict[str, typing.Any] = {
    "first_port": 40000,
    "last_port": 40004,
    "max_mappings": 8,
    "max_mappings_per_host": 3,
    "max_filters": 2,
    "max_description": 7,
}
_POOLS = ("203.0.113.7", None, ("203.0.113.7", "198.51.100.1"), "2001:db8::1", ("2001:db8::1", "198.51.100.1"))
_SERVERS: tuple[Address, ...] = (_GATEWAY, ("fe80::1", 5351, 0, 2))
_FEATURES: tuple[dict[str, typing.Any], ...] = (
    {"allow_third_party": True, "third_party_ids": (b"door",), "allow_wildcards": True, "protocols": (6, 17, 132, 47)},
    {},
    {"allow_map": False},
    {"allow_peer": False},
    {"enabled": False},
    {"networks": ("192.168.1.0/28",)},
    {"max_port_set": 1, "tcp_idle": 0.0, "udp_idle": 0.0},
)
_POLICIES: tuple[Policy | None, ...] = (
    None,
    lambda message, source: pcp.ResultCode.USER_EX_QUOTA if isinstance(message, pcp.MapRequest) else None,
    lambda message, source: pcp.ResultCode.NOT_AUTHORIZED,
)
_AUTHENTICATORS: tuple[Authenticator | None, ...] = (
    None,
    lambda message, source, epoch: None,
    lambda message, source, epoch: pcp.AuthenticationResponse(
        pcp.ResultCode.AUTHENTICATION_REQUEST, epoch, message.session_id, message.sequence
    ),
)

_UNTIL_DEADLINE = -1.0
_WAITS = (0.0, _UNTIL_DEADLINE, 0.25, 2.0, 60.0, 3600.0, 1e6, -5.0)
_OUTPUTS_PER_MAPPING = 8


_LOCALS = (None, _CLIENT[0], "192.168.1.99", "2001:db8::7")
_GATEWAYS = (None, _GATEWAY, [_GATEWAY, ("192.168.1.2", 5351)], ("fe80::1", 5351, 0, 2))


class _GoldenRandom(random.Random):
    """Its nonces are those of the golden datagrams."""

    def randbytes(self, n: int) -> bytes:
        return bytes(range(n))


def _busy_client(versions: tuple[int, ...]) -> Client:
    """A client that holds TCP 80 and waits for the answer about UDP 5000."""
    config = Config(versions=versions)
    client = Client(_GATEWAY, local_address=_CLIENT[0], config=config, rng=_GoldenRandom(1))
    gateway = Gateway("203.0.113.7", address=_GATEWAY, rng=random.Random(1))
    client.map_port(Protocol.TCP, 80, 0.0)
    while requests := _datagrams_of(client):
        for request in requests:
            gateway.receive_datagram(request, _CLIENT, 0.0)
        for reply in _datagrams_of(gateway):
            client.receive_datagram(reply, _GATEWAY, 0.0)
    client.map_port(Protocol.UDP, 5000, 0.0)
    list(client.outputs())
    return client


def _datagrams_of(core: Client | Gateway) -> list[bytes]:
    return [output.data for output in core.outputs() if isinstance(output, SendDatagram)]


def _host(recipe: Recipe) -> Endpoint:
    return Endpoint(ip_address(recipe.pick(_HOSTS)), recipe.pick(_PORTS))


def _survive(
    core: Client | Gateway,
    recipe: Recipe,
    commands: list[Command],
    look: Callable[[], object],
    *,
    is_well_behaved: bool = True,
) -> None:
    latest = 0.0
    while not recipe.is_over:
        before, deadline = look(), core.next_timeout()
        limit = _OUTPUTS_PER_MAPPING * (len(core.mappings) + 1)
        wait = recipe.pick(_WAITS)
        now = max(latest, deadline or 0.0) if wait == _UNTIL_DEADLINE else latest + wait
        step = recipe.number(1) % 4
        if step < 2:
            sender = recipe.pick(_SENDERS[type(core)])
            data = recipe.take(recipe.number(2) % 1200)
            is_ours = core.receive_datagram(data, sender, now)
            if not is_ours:
                assert look() == before, "a datagram that is not ours has changed something"
            assert not (is_ours and isinstance(core, Gateway) and data[1] & 0x80), "a response to a response"
        elif step == 2:
            core.handle_timeout(now)
            if deadline is None or deadline > max(latest, now):
                assert look() == before, "handle_timeout before its time has changed something"
        else:
            with contextlib.suppress(LocalProtocolError):  # wanted already, or closed: for the caller to know
                recipe.pick(commands)(recipe, now)
        outputs = list(core.outputs())
        assert len(outputs) <= limit, f"{len(outputs)} outputs at once"
        for output in outputs:
            if isinstance(output, SendDatagram) and is_well_behaved:
                wire.decode(output.data)
                assert len(output.data) <= pcp.MAX_SIZE
        again = core.next_timeout()
        if step == 2:
            assert again is None or again > now, "handled and drained, and due again at once"
        latest = max(latest, now)
