"""What is the same in all three adapters: each story is told to each of them, on real sockets, on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import typing
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from faces import Asyncio, make_face, until
from loopback import Server
from natpmp_sansio import (
    Address,
    AnnouncementsUnavailable,
    Client,
    Closed,
    Config,
    DiscoveryError,
    Endpoint,
    Gateway,
    GatewayConfig,
    GatewayRestarted,
    LocalProtocolError,
    MappingChanged,
    MappingCreated,
    MappingDeleted,
    MappingError,
    MappingFailed,
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    Multiplexer,
    Protocol,
    Reason,
    VersionNegotiated,
    pcp,
)
from natpmp_sansio.adapters import _driver, _sockets, _station, discovery
from natpmp_sansio.adapters.discovery import DefaultGateway

TCP, UDP = Protocol.TCP, Protocol.UDP
STUN = bytes.fromhex("010100002112a442") + bytes(12)
STRAY = b"\x40\x80 an answer of no version"
NAT_PMP = Config(versions=(0,))

Face = typing.Any


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture(params=["asyncio", "trio"])
def async_face(request: pytest.FixtureRequest) -> Face:
    return make_face(request.param)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing takes half a second at most."""
    monkeypatch.setattr(_driver, "LINGER", 0.5)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """The caller's own socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


# --- mappings


def test_a_mapping_holds_until_the_end_of_the_block(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            mapping = await client.map_port(TCP, 8080, external_port=8080)
            assert mapping.external == Endpoint(IPv4Address("203.0.113.5"), 8080)
            assert client.mappings == (mapping,)
            assert client.mapping(mapping.id) == mapping
            assert client.version == 2

    face.run(story)
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated, MappingDeleted]


def test_a_mapping_is_renewed_in_time(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            events = client.events()
            mapping = await client.keep_port(TCP, 8080, lifetime=1)
            granted = await until(events, MappingGranted)
            renewed = await until(events, MappingRenewed)
            assert renewed.mapping == granted.mapping == mapping
            assert 0.5 <= renewed.expires_at - granted.expires_at < 1.0

    face.run(story)


def test_a_gateway_that_speaks_nat_pmp_only_is_found_out(face: Face) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            events = client.events()
            assert (await client.map_port(UDP, 5000, external_port=5000)).external.port == 5000
            assert client.version == 0
            assert VersionNegotiated(gateway=server.address, version=0) in events.pending()

    with Server(versions=(0,)) as server:
        face.run(story)


def test_an_ipv6_gateway_maps_too(face: Face) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            assert (await client.map_port(TCP, 8080)).external is not None

    with Server(host="::1") as server:
        face.run(story)


def test_30_percent_loss_each_way_costs_time_and_nothing_else(face: Face) -> None:
    async def story() -> None:
        async with face.open_client(server.address, config=NAT_PMP) as client:
            for port in range(8080, 8085):
                assert (await client.map_port(TCP, port)).external is not None
            assert len(client.mappings) == 5

    with Server(loss=0.3, versions=(0,)) as server:
        face.run(story)
        server.close()
        assert {type(event) for event in server.events} >= {MappingCreated, MappingDeleted}


def test_tcp_and_udp_are_had_as_a_pair(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            tcp, udp = await client.map_pair(8080)
            assert (tcp.protocol, udp.protocol) == (TCP, UDP)
            assert tcp.external == udp.external

    face.run(story)


def test_a_flow_of_ones_own_is_had_by_its_peer(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            flow = await client.map_peer(UDP, 5000, ("198.51.100.7", 443))
            assert flow.remote == Endpoint(IPv4Address("198.51.100.7"), 443)

    face.run(story)


def test_unmap_gives_one_up_and_leaves_the_others(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            one, other = await client.map_port(TCP, 1001), await client.map_port(TCP, 1002)
            events = client.events()
            assert await client.unmap(one)
            assert (await until(events, MappingReleased)).mapping == one.id
            assert not await client.unmap(one.id)
            assert client.mappings == (other,)

    face.run(story)


def test_a_probe_tells_what_the_gateway_speaks_and_leaves_nothing(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            probe = await client.probe()
            assert (probe.versions, probe.reason, str(probe.external_address)) == ((2, 0), None, "203.0.113.5")

    face.run(story)
    server.close()
    assert server.events == []


@pytest.mark.parametrize("version", [0, 2])
def test_the_external_address_is_asked_for(face: Face, server: Server, version: int) -> None:
    async def story() -> None:
        async with face.open_client(server.address, config=Config(versions=(version,))) as client:
            if version == 0:
                await client.map_port(TCP, 8080)  # until then nobody knows who can be asked
            assert str(await client.external_address()) == "203.0.113.5"

    face.run(story)


# --- what goes wrong


def test_a_refusal_is_an_error_that_carries_its_event(face: Face) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            with pytest.raises(MappingError, match="used up its share") as raised:
                await client.map_port(TCP, 8081)
            assert isinstance(raised.value.event, MappingRefused)
            assert raised.value.event.reason is Reason.QUOTA
            with pytest.raises(MappingError):
                await client.map_pair(8082)
            assert [each.internal_port for each in client.mappings if each.state.name != "RELEASING"] == [8080]

    with Server(max_mappings_per_host=1) as server:
        face.run(story)


def test_what_can_never_work_fails_at_once(face: Face) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            with pytest.raises(MappingError, match="needs PCP") as raised:
                await client.map_port(TCP, 8080, options=(pcp.ThirdParty("127.0.0.2"),))
            assert isinstance(raised.value.event, MappingFailed)

    with Server(versions=(0,)) as server:
        face.run(story)


@pytest.mark.usefixtures("hurry")
def test_silence_is_a_timeout_and_what_was_asked_for_is_given_up(face: Face, silent: Address) -> None:
    async def story() -> None:
        async with face.open_client(silent) as client:
            asks: list[typing.Any] = [
                lambda: client.map_port(TCP, 8080, timeout=0.1),
                lambda: client.map_pair(8081, timeout=0.1),
                lambda: client.probe(timeout=0.1),
                lambda: client.external_address(timeout=0.1),
            ]
            for ask in asks:
                with pytest.raises(TimeoutError, match=r"127.0.0.1 has not answered within 0.1 s"):
                    await ask()
            assert {mapping.state.name for mapping in client.mappings} <= {"RELEASING"}

    face.run(story)


@pytest.mark.usefixtures("hurry")
def test_a_dead_gateway_does_not_keep_anybody_from_closing(face: Face, silent: Address) -> None:
    async def story() -> list[type]:
        async with face.open_client(silent) as client:
            events = client.events()
            for port in range(1, 100):
                await client.keep_port(TCP, port)
        return [type(event) for event in events.pending()]

    start = time.monotonic()
    told = face.run(story)
    assert time.monotonic() - start < 5.0
    assert told.count(MappingReleased) == 99
    assert told[-1] is Closed


@pytest.mark.requirement("NP-3.1-09")
def test_a_closed_port_is_noticed_by_its_icmp_error(face: Face, closed: Address) -> None:
    async def story() -> None:
        async with face.open_client(closed) as client:
            with pytest.raises(MappingError) as raised:
                await client.map_port(TCP, 8080)
            assert isinstance(raised.value.event, MappingRefused)
            assert raised.value.event.reason is Reason.UNREACHABLE

    face.run(story)


@pytest.mark.usefixtures("hurry")
def test_an_icmp_error_on_a_shared_socket_is_nobodys_and_ends_nothing(
    face: Face, server: Server, closed: Address, sock: socket.socket
) -> None:
    async def story() -> None:
        async with face.open_client(server.address, sock=sock) as client:
            sock.sendto(b"anybody?", closed)
            assert (await client.map_port(TCP, 8080)).external is not None

    face.run(story)


def test_what_is_raised_in_the_block_leaves_it_as_it_is(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        face.run(story)
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated, MappingDeleted]


# --- wrong use


def test_a_closed_client_says_so(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            await client.close()
            asks: list[typing.Any] = [
                lambda: client.map_port(TCP, 8080),
                lambda: client.keep_port(TCP, 8080),
                lambda: client.probe(),
                lambda: client.unmap(1),
            ]
            for ask in asks:
                with pytest.raises(LocalProtocolError, match="this is closed"):
                    await ask()
            await client.close()

    face.run(story)


def test_a_second_client_on_one_socket_is_refused(face: Face, server: Server, sock: socket.socket) -> None:
    async def story() -> None:
        async with face.open_client(server.address, sock=sock) as client:
            with pytest.raises(LocalProtocolError, match="share one through a Multiplexer"):
                async with face.open_client(server.address, sock=sock):
                    pass
            assert (await client.map_port(TCP, 8080)).external is not None
        async with face.open_client(server.address, sock=sock) as client:  # it is free again
            assert (await client.map_port(TCP, 8080)).external is not None

    face.run(story)


def test_another_thread_is_turned_away(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            raised: list[str] = []

            def intrude() -> None:
                try:
                    client.snapshot()
                except LocalProtocolError as error:
                    raised.append(str(error))

            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
            assert raised == ["this belongs to the thread and process that opened it"]
            assert client.mappings == ()

    face.run(story)


def test_wrong_arguments_are_refused_before_anything_is_asked(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            asks: list[typing.Any] = [
                lambda: client.map_port(TCP, 8080),
                lambda: client.map_port(TCP, 70000),
                lambda: client.map_pair(8080),
                lambda: client.map_peer(TCP, 8081, "nobody"),
            ]
            for ask in asks:
                with pytest.raises(LocalProtocolError):
                    await ask()
            assert len(client.mappings) == 1

    face.run(story)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "3", None])
def test_a_timeout_is_a_number_of_seconds(face: Face, server: Server, timeout: typing.Any) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            with pytest.raises(LocalProtocolError, match="timeout must be a number of seconds"):
                await client.map_port(TCP, 8080, timeout=timeout)
            assert client.mappings == ()
            assert (await client.map_port(TCP, 8080, timeout=float("inf"))).external is not None

    face.run(story)


def test_a_forked_child_has_no_part_in_it(face: Face, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            monkeypatch.setattr("os.getpid", lambda: 1)
            with pytest.raises(LocalProtocolError, match="the thread and process that opened it"):
                client.snapshot()
            monkeypatch.undo()

    face.run(story)


# --- one socket, several protocols


def test_what_is_not_ours_goes_to_the_caller_who_sends_on_the_same_socket(
    face: Face, server: Server, sock: socket.socket
) -> None:
    strays: list[tuple[bytes, Address]] = []

    async def story() -> None:
        async with face.open_client(
            server.address, sock=sock, unclaimed=lambda data, addr: strays.append((data, addr))
        ) as client:
            await client.map_port(TCP, 8080)
            sock.sendto(b"hello", friend.getsockname())
            assert friend.recvfrom(100) == (b"hello", sock.getsockname())
            friend.sendto(STUN, sock.getsockname())
            await client.map_port(TCP, 8081)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as friend:
        friend.bind(("127.0.0.1", 0))
        face.run(story)
        assert strays == [(STUN, friend.getsockname())]
    assert sock.fileno() != -1  # it stays open


def test_an_ipv4_gateway_is_asked_on_a_dual_stack_socket(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address, sock=dual) as client:
            assert (await client.map_port(TCP, 8080)).external is not None

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as dual:
        dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        dual.bind(("::", 0))
        face.run(story)


@pytest.mark.requirement("PCP-8.4-03")
def test_a_socket_on_a_chosen_address_says_where_requests_come_from(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address, sock=there) as client:
            assert (await client.map_port(TCP, 8080)).external is not None  # else: ADDRESS_MISMATCH

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.2", 0))
        face.run(story)


def test_two_clients_live_in_one_process(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as one, face.open_client(server.address) as other:
            first, second = await one.map_port(TCP, 8080), await other.map_port(TCP, 8081)
            assert first.external != second.external
            assert (len(one.mappings), len(other.mappings)) == (1, 1)

    face.run(story)


def test_a_multiplexer_is_driven_on_one_socket(face: Face, server: Server, sock: socket.socket) -> None:
    async def story() -> None:
        one = Client(server.address, local_address="127.0.0.1")
        other = Client(second.address, local_address="127.0.0.1")
        async with face.drive(Multiplexer(one, other), sock=sock) as driven:
            events = driven.events()
            for client in (one, other):
                client.map_port(TCP, 8080, driven.now())
            driven.process()
            gateways = {(await until(events, MappingGranted)).gateway for _ in range(2)}
            assert gateways == {server.address, second.address}
        with pytest.raises(LocalProtocolError, match="hand in a socket"):
            async with face.drive(Multiplexer(one)):
                pass

    with Server() as second:
        face.run(story)


def test_of_two_clients_on_one_socket_each_is_closed_by_itself(face: Face, server: Server, sock: socket.socket) -> None:
    async def story() -> None:
        one = Client(server.address, local_address="127.0.0.1")
        other = Client(second.address, local_address="127.0.0.1")
        async with face.drive(Multiplexer(one, other), sock=sock) as driven:
            events = driven.events()
            other.map_port(TCP, 8080, driven.now())
            driven.process()
            await until(events, MappingGranted)
            for client in (one, other):
                client.close(driven.now())
                driven.process()
                assert (await until(events, Closed)).gateway == client.gateway

    with Server() as second:
        face.run(story)
        second.close()
        assert [type(event) for event in second.events] == [MappingCreated, MappingDeleted]


def test_a_gateway_is_served(face: Face) -> None:
    """By an asynchronous face in the background; by the blocking one while somebody pumps."""

    async def story() -> None:
        gateway = Gateway("203.0.113.5", address=free, config=GatewayConfig())
        async with face.open_gateway(gateway) as served:
            events = served.events()
            client = Client(free, local_address="127.0.0.1")
            async with face.drive(client) as driven:
                client.map_port(TCP, 8080, driven.now())
                driven.process()
                assert (await until(events, MappingCreated)).internal.port == 8080

    with _sockets.open_request_socket(("127.0.0.1", 0)) as sock:
        free: Address = sock.getsockname()
    face.run(story)


def test_what_unclaimed_raises_is_logged_and_ends_nothing(
    face: Face, sock: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    def unclaimed(data: bytes, addr: Address) -> None:
        raise KeyError("a mistake of the caller's")

    async def story() -> None:
        gateway = Gateway("203.0.113.5", address=sock.getsockname())
        async with face.drive(gateway, sock=sock, unclaimed=unclaimed) as driven:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
                host.bind(("127.0.0.1", 0))
                host.setblocking(False)
                for data in (STRAY, b"\0\0", STRAY):
                    host.sendto(data, sock.getsockname())
                await face.pass_time(0.2, driven)
                assert host.recv(100)[:2] == b"\0\x80"

    face.run(story)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_unclaimed_may_do_what_its_caller_may(face: Face, server: Server, sock: socket.socket) -> None:
    saved: list[object] = []

    async def story() -> None:
        client: typing.Any
        async with face.open_client(
            server.address, sock=sock, unclaimed=lambda *_: saved.append(client.detach())
        ) as client:
            await client.map_port(TCP, 8080)
            for _ in range(3):
                sock.sendto(STUN, sock.getsockname())
            await face.pass_time(0.1, client) if face.__class__.__name__ != "Blocking" else client.process()
            assert len(saved) == 1
        assert sock.recv(100) == STUN  # what came after the end is somebody else's

    face.run(story)


def test_a_shared_socket_is_handed_over_within_its_block(face: Face, server: Server, sock: socket.socket) -> None:
    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with face.open_client(server.address, sock=sock) as old:
                before = await old.map_port(TCP, 8080)
                new = await stack.enter_async_context(
                    face.open_client(server.address, sock=sock, snapshot=old.detach())
                )
            events = new.events()
            assert (await until(events, MappingGranted)).external == before.external
            assert (await new.map_port(TCP, 8081, timeout=5.0)).external is not None
            with pytest.raises(LocalProtocolError, match="share one through a Multiplexer"):
                async with face.open_client(server.address, sock=sock):
                    pass

    face.run(story)


@pytest.mark.usefixtures("hurry")
def test_a_shared_socket_that_its_owner_closes_takes_nothing_down(face: Face, server: Server) -> None:
    """Nor does what happens to it afterwards: the client has a descriptor of its own."""

    async def story() -> None:
        mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        mine.bind(("127.0.0.1", 0))
        async with face.open_client(server.address, sock=mine) as client:
            await client.map_port(TCP, 8080)
            mine.close()
            assert (await client.map_port(TCP, 8081)).external is not None

    face.run(story)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM), "must be a UDP socket"),
        (lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0], "must be a UDP socket"),
        (lambda: 17, "must be a UDP socket"),
        (lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), "of the other family"),
    ],
    ids=["TCP", "unix", "number", "IPv6"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_socket_of_no_use_is_refused(face: Face, make: typing.Any, why: str) -> None:
    async def story() -> None:
        unfit = make()
        if isinstance(unfit, socket.socket) and unfit.family == socket.AF_INET6:
            unfit.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with pytest.raises(LocalProtocolError, match=why):
            async with face.open_client("127.0.0.1", sock=unfit):
                pass
        if isinstance(unfit, socket.socket):
            unfit.close()

    face.run(story)


def test_a_connected_or_closed_socket_is_refused(face: Face, server: Server, sock: socket.socket) -> None:
    async def story() -> None:
        with pytest.raises(LocalProtocolError, match=r"is connected to 127\.0\.0\.1"):
            async with face.open_client(server.address, sock=sock):
                pass
        sock.close()
        with pytest.raises(LocalProtocolError, match="this socket is closed"):
            async with face.open_client(server.address, sock=sock):
                pass

    sock.connect(server.address)
    face.run(story)


def test_what_to_bind_to_has_to_be_there_and_of_the_gateways_family(face: Face, server: Server) -> None:
    async def story() -> None:
        for bind, why in (("nosuch0", "neither an address nor an interface"), ("::1", "of the other family")):
            with pytest.raises(LocalProtocolError, match=why):
                async with face.open_client(server.address, bind=bind):
                    pass
        async with face.open_client(server.address, bind="lo") as client:
            assert (await client.map_port(TCP, 8080)).external is not None

    face.run(story)


# --- announcements


def test_a_restart_is_heard_and_the_mapping_is_back(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            mapping = await client.map_port(TCP, 8080)
            await face.pass_time(3.5, client)  # an epoch of less than that could be a step back of the clock
            events = client.events()
            server.do(lambda gateway, now: gateway.reboot(now))
            await until(events, GatewayRestarted)
            assert (await until(events, MappingRenewed)).mapping == mapping.id
            assert len(server.gateway.mappings) == 1

    face.run(story)


def test_a_new_external_address_is_heard(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address, config=NAT_PMP) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            server.do(lambda gateway, now: gateway.set_external_address("203.0.113.6", now))
            changed = await until(events, MappingChanged)
            assert (str(changed.old.address), str(changed.new.address)) == ("203.0.113.5", "203.0.113.6")

    face.run(story)


def test_without_the_announcement_port_all_else_works_and_it_is_said_once(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            (event,) = client.events().pending()
            assert isinstance(event, AnnouncementsUnavailable)
            assert "Address already in use" in event.describe()
            assert (await client.map_port(TCP, 8080)).external is not None

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
        greedy.bind(("", 0))  # not 5350, which other tests may share at this moment
        monkeypatch.setattr(_sockets, "CLIENT_PORT", greedy.getsockname()[1])
        face.run(story)


def test_announcements_can_be_done_without(face: Face, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise AssertionError("nobody wants it")

    async def story() -> None:
        async with face.open_client(server.address, announcements=False) as client:
            assert client.events().pending() == []
            assert (await client.map_port(TCP, 8080)).external is not None

    monkeypatch.setattr(_sockets, "open_announcement_socket", refuse)
    face.run(story)


# --- another process, another network


def test_what_is_detached_is_taken_up_by_another_client(face: Face, server: Server) -> None:
    async def story() -> None:
        async with face.open_client(server.address) as client:
            before = await client.map_port(TCP, 8080)
            snapshot = client.detach()
        async with face.open_client(server.address, snapshot=snapshot) as client:
            events = client.events()
            granted = await until(events, MappingGranted)
            assert (granted.mapping, granted.external) == (before.id, before.external)
        with pytest.raises(LocalProtocolError, match="no snapshot that an adapter has made"):
            async with face.open_client(server.address, snapshot={}):
                pass

    face.run(story)
    server.close()
    assert [type(event) for event in server.events][-1] is MappingDeleted
    assert MappingDeleted not in [type(event) for event in server.events][:-1]


def test_after_a_sleep_every_mapping_is_asked_for_again(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = 100.0
    monkeypatch.setattr(_station, "_LOOK", 0.1)
    monkeypatch.setattr(_sockets, "time_asleep", lambda: asleep)

    async def story() -> None:
        nonlocal asleep
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            asleep += 1.0  # a nap
            await face.pass_time(0.3, client)
            assert events.pending() == []
            asleep += 3600.0
            await until(events, MappingRenewed)

    face.run(story)


def test_at_another_address_the_mapping_is_another_and_the_old_one_is_deleted(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "127.0.0.1"
    monkeypatch.setattr(_sockets, "source_address", lambda *_: here)

    async def story() -> None:
        nonlocal here
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            here = "127.0.0.2"
            await client.network_changed()
            await until(events, MappingChanged, MappingRenewed)
            assert [str(each.internal.address) for each in server.gateway.mappings] == ["127.0.0.2"]
            assert client.core.bind_address == ("127.0.0.2", 0)

    face.run(story)


def test_without_a_network_nothing_is_asked_until_there_is_one(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_offline = False

    def source_address(*_: object) -> str:
        if is_offline:
            raise OSError(101, "Network is unreachable")
        return "127.0.0.1"

    monkeypatch.setattr(_station, "_LOOK", 0.1)
    monkeypatch.setattr(_sockets, "source_address", source_address)
    monkeypatch.setattr(_sockets, "open_route_socket", lambda: None)

    async def story() -> None:
        nonlocal is_offline
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            is_offline = True
            await face.pass_time(0.3, client)
            assert events.pending() == []
            is_offline = False
            await until(events, MappingRenewed)

    face.run(story)


def test_nat_pmp_alone_takes_no_ipv6_gateway_and_waits_for_another(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = DefaultGateway(server.address, "eth0"), DefaultGateway(("fe80::1", 5351, 0, 1), "eth0")
    found = [old]
    monkeypatch.setattr(_station, "_LOOK", 0.1)
    monkeypatch.setattr(discovery, "default_gateways", lambda bind: found)

    async def story() -> None:
        async with face.open_client(config=NAT_PMP) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            found[:] = [new]
            await client.network_changed()
            await face.pass_time(0.3, client)
            assert events.pending() == []
            found[:] = [old]
            await until(events, MappingRenewed)
        found[:] = [new]
        with pytest.raises(DiscoveryError, match="no default gateway for IPv4"):
            async with face.open_client(config=NAT_PMP):
                """Not reached."""

    face.run(story)


def test_an_address_that_cannot_be_bound_yet_is_tried_again(
    face: Face, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, refusals, open_socket = "127.0.0.1", 0, _sockets.open_request_socket

    def open_request_socket(bind: Address, *gateways: Address) -> socket.socket:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(99, "Cannot assign requested address")
        return open_socket(bind, *gateways)

    monkeypatch.setattr(_station, "_SETTLE", 0.05)
    monkeypatch.setattr(_sockets, "source_address", lambda *_: here)
    monkeypatch.setattr(_sockets, "open_request_socket", open_request_socket)

    async def story() -> None:
        nonlocal here, refusals
        async with face.open_client(server.address) as client:
            await client.map_port(TCP, 8080)
            events = client.events()
            here, refusals = "127.0.0.2", 1
            await client.network_changed()
            told = await until(events, MappingChanged, MappingRenewed, MappingLost)
            assert refusals == 0
            assert not isinstance(told, MappingLost)
            assert "127.0.0.2" in {str(each.internal.address) for each in server.gateway.mappings}

    face.run(story)


# --- cancellation


def test_whoever_waits_when_the_client_is_detached_is_told(async_face: Face, silent: Address) -> None:
    async def story() -> None:
        raised: list[str] = []

        async def wait() -> None:
            try:
                await client.map_port(TCP, 8080)
            except LocalProtocolError as error:
                raised.append(str(error))

        async with async_face.open_client(silent) as client:
            await async_face.together(wait, lambda: async_face.soon(client.detach))
        assert raised == ["the client was closed meanwhile"]

    async_face.run(story)


def test_two_readers_of_the_same_events_come_to_their_end(async_face: Face, server: Server) -> None:
    async def story() -> None:
        ends: list[int] = []

        async def read() -> None:
            count = 0
            async for _ in events:
                count += 1
            ends.append(count)

        async with async_face.open_client(server.address) as client:
            events = client.events()
            await client.keep_port(TCP, 8080)
            await async_face.together(read, read, lambda: async_face.soon(client.close, 0.2))
        assert len(ends) == 2
        assert sum(ends) >= 4

    async_face.run(story)


def test_whoever_is_cancelled_before_the_grant_has_asked_for_nothing(async_face: Face, silent: Address) -> None:
    async def story() -> None:
        async with async_face.open_client(silent) as client:
            asks: list[typing.Any] = [
                lambda: client.map_port(TCP, 8080),
                lambda: client.map_pair(8081),
                lambda: client.map_peer(TCP, 8082, ("198.51.100.7", 443)),
                client.probe,
                client.external_address,
                client.events().__anext__,
            ]
            for ask in asks:
                await async_face.cancelled_after(3, ask)
            assert {mapping.state.name for mapping in client.mappings} <= {"RELEASING"}
            client.detach()

    async_face.run(story)


@pytest.mark.parametrize("steps", range(40))
def test_wherever_a_story_is_cancelled_nothing_stays_behind(async_face: Face, server: Server, steps: int) -> None:
    clients: list[typing.Any] = []

    async def tale() -> None:
        async with async_face.open_client(server.address) as client:
            clients.append(client)
            events = client.events()
            await client.map_port(TCP, 8080)
            await client.map_pair(8081)
            await client.probe()
            await client.unmap(1)
            await until(events, MappingReleased)

    async def story() -> None:
        await async_face.cancelled_after(steps, tale)

    async_face.run(story)
    for client in clients:
        assert client._station.driver.closed
        assert client._station._sock.fileno() == -1
    server.close()
    kinds = [type(event) for event in server.events]
    assert kinds.count(MappingCreated) == kinds.count(MappingDeleted)
    assert server.gateway.mappings == ()


@pytest.mark.usefixtures("hurry")
def test_closing_goes_on_though_it_is_cancelled(async_face: Face, silent: Address) -> None:
    told: list[type] = []

    async def tale() -> None:
        async with async_face.open_client(silent) as client:
            events = client.events()
            await client.keep_port(TCP, 8080)
            try:
                await client.close()
            finally:
                told.extend(type(event) for event in events.pending())

    async_face.run(lambda: async_face.cancelled_after(3, tale))
    assert told[-1] is Closed


# --- asyncio alone: a transport that is there already


def test_a_transport_is_shared_with_its_own_protocol(server: Server) -> None:
    import asyncio

    class Echo(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.heard: list[bytes] = []

        def datagram_received(self, data: bytes, addr: typing.Any) -> None:
            self.heard.append(data)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        face = Asyncio()
        async with face.open_client(server.address, sock=transport) as client:
            with pytest.raises(LocalProtocolError, match="share one through a Multiplexer"):
                async with face.open_client(server.address, sock=transport):
                    pass
            friend.sendto(STUN, transport.get_extra_info("sockname"))
            assert (await client.map_port(TCP, 8080)).external is not None
            transport.sendto(b"hello", friend.getsockname())
            assert friend.recvfrom(100)[0] == b"hello"
        friend.sendto(b"after", transport.get_extra_info("sockname"))
        while len(echo.heard) < 2:
            await asyncio.sleep(0.01)
        assert echo.heard == [STUN, b"after"]
        transport.close()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as friend:
        friend.bind(("127.0.0.1", 0))
        Asyncio().run(story)


def test_who_closes_the_transport_ends_what_is_on_it(server: Server) -> None:
    import asyncio

    class Owner(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.lost = asyncio.Event()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        transport, owner = await loop.create_datagram_endpoint(Owner, local_addr=("127.0.0.1", 0))
        begun = loop.time()
        async with Asyncio().open_client(server.address, sock=transport) as client:
            events = client.events()
            await client.map_port(TCP, 8080)
            transport.close()
            client.core.map_port(TCP, 8081, client.now())
            client.process()  # it cannot be sent, and does no harm
            await owner.lost.wait()
            assert [event async for event in events]  # it comes to an end
            with pytest.raises(LocalProtocolError, match="closed"):
                await client.map_port(TCP, 8082)
        assert loop.time() - begun < _driver.LINGER, "it waited for what could not come"

    Asyncio().run(story)


def test_a_loop_that_watches_no_sockets_is_asked_for_datagrams(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows' usual loop is."""
    import asyncio

    def refuse(*_: object) -> None:
        raise NotImplementedError

    async def story() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_reader", refuse)
        async with Asyncio().open_client(server.address) as client:
            assert (await client.map_port(TCP, 8080)).external is not None

    Asyncio().run(story)
