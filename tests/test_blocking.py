"""The blocking adapter against the built-in gateway, on loopback: few tests, no sleeps."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from ipaddress import IPv4Address

import pytest

from loopback import Server
from natpmp_sansio import (
    Address,
    AnnouncementsUnavailable,
    Client,
    Closed,
    Config,
    DiscoveryError,
    Endpoint,
    Event,
    Gateway,
    LocalProtocolError,
    MappingChanged,
    MappingCreated,
    MappingDeleted,
    MappingError,
    MappingFailed,
    MappingGranted,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    Multiplexer,
    Protocol,
    Reason,
    VersionNegotiated,
    pcp,
)
from natpmp_sansio.adapters import _driver, _sockets, discovery
from natpmp_sansio.adapters.blocking import Driven, drive, open_client, open_gateway


def test_three_lines_open_a_port_and_leaving_the_block_closes_it(server: Server) -> None:
    with open_client(server.address) as client:
        mapping = client.map_port(Protocol.TCP, 8080, external_port=8080)
        assert mapping.external == Endpoint(IPv4Address("203.0.113.5"), 8080)
        assert client.mappings == (mapping,)
        assert client.mapping(mapping.id) == mapping
        assert (client.version, client.core.external_address) == (2, IPv4Address("203.0.113.5"))
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated, MappingDeleted]


def test_a_gateway_that_speaks_nat_pmp_only_is_found_out() -> None:
    with Server(versions=(0,)) as server, open_client(server.address) as client:
        events = client.events()
        assert client.map_port(Protocol.UDP, 5000).external is not None
        assert client.version == 0
        assert VersionNegotiated(gateway=server.address, version=0) in events.pending()


def test_reading_the_events_keeps_the_port_open(server: Server) -> None:
    with open_client(server.address) as client:
        events = client.events()
        mapping = client.keep_port(Protocol.TCP, 8080, lifetime=1)
        kinds = []
        for event in events:
            kinds.append(type(event))
            if isinstance(event, MappingRenewed):
                break
        assert client.unmap(mapping)
        assert not client.unmap(mapping)
        for event in events:
            kinds.append(type(event))
            if isinstance(event, MappingReleased):
                break
        client.release()
        kinds += [type(event) for event in events]
    assert [kind for kind in kinds if "Mapping" in kind.__name__ or kind is Closed] == [
        MappingGranted,
        MappingRenewed,
        MappingReleased,
        Closed,
    ]


def test_a_refusal_is_an_error_that_carries_its_event() -> None:
    with Server(max_mappings_per_host=1) as server, open_client(server.address) as client:
        client.map_port(Protocol.TCP, 8080)
        with pytest.raises(MappingError, match="used up its share") as raised:
            client.map_port(Protocol.TCP, 8081)
        assert isinstance(raised.value.event, MappingRefused)
        assert raised.value.event.reason is Reason.QUOTA
        assert len(client.mappings) == 1


def test_a_failure_is_an_error_too() -> None:
    with (
        Server(versions=(0,)) as server,
        open_client(server.address) as client,
        pytest.raises(MappingError, match="needs PCP") as raised,
    ):
        client.map_port(Protocol.TCP, 8080, options=(pcp.ThirdParty("127.0.0.2"),))
    assert isinstance(raised.value.event, MappingFailed)


def test_silence_is_a_timeout_and_the_wish_is_withdrawn(silent: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_driver, "LINGER", 0.05)
    with open_client(silent) as client:
        with pytest.raises(TimeoutError, match=r"127.0.0.1 has not answered within 0.1 s"):
            client.map_port(Protocol.TCP, 8080, timeout=0.1)
        assert [mapping.state.name for mapping in client.mappings] == ["RELEASING"]


@pytest.mark.requirement("NP-3.1-09")
def test_a_closed_port_is_noticed_by_its_icmp_error(closed: Address) -> None:
    with open_client(closed) as client, pytest.raises(MappingError) as raised:
        client.map_port(Protocol.TCP, 8080)
    assert isinstance(raised.value.event, MappingRefused)
    assert raised.value.event.reason is Reason.UNREACHABLE


def test_a_loop_of_ones_own_needs_a_descriptor_a_deadline_and_one_call(server: Server) -> None:
    with open_client(server.address) as client:
        events = client.events()
        client.keep_port(Protocol.TCP, 8080)
        happened: list[Event] = []
        give_up_at = time.monotonic() + 10.0
        while not any(isinstance(event, MappingGranted) for event in happened):
            assert time.monotonic() < give_up_at
            select.select([client], [], [], client.timeout())
            client.process()
            happened += events.pending()


def test_another_thread_is_turned_away(server: Server) -> None:
    with open_client(server.address) as client:
        raised: list[BaseException] = []

        def intrude() -> None:
            try:
                client.process()
            except LocalProtocolError as error:
                raised.append(error)

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert [str(error) for error in raised] == ["this belongs to the thread that opened it"]


def test_a_shared_socket_hands_on_what_is_not_ours(server: Server) -> None:
    foreign: list[tuple[bytes, object]] = []
    stun = bytes.fromhex("010100002112a442") + bytes(12)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        sock.bind(("127.0.0.1", 0))
        other.sendto(stun, sock.getsockname())
        with open_client(
            server.address, sock=sock, unclaimed=lambda data, addr: foreign.append((data, addr))
        ) as client:
            assert client.map_port(Protocol.TCP, 8080).external is not None
        assert sock.fileno() != -1  # it stays open: it is ours
        assert [data for data, _ in foreign] == [stun]


def test_a_gateway_announces_its_new_address_and_the_client_hears_it_on_its_second_socket() -> None:
    with _sockets.open_request_socket(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    gateway = Gateway("203.0.113.5", address=address)
    ready, moved, stop = threading.Event(), threading.Event(), threading.Event()

    def serve() -> None:
        with open_gateway(gateway) as served:
            ready.set()
            while not stop.is_set():
                served.wait(0.02)
                if moved.is_set() and str(gateway.external_address) == "203.0.113.5":
                    gateway.set_external_address("203.0.113.6", time.monotonic())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(5.0)
        with open_client(address, config=Config(versions=(0,))) as client:
            events = client.events()
            client.map_port(Protocol.TCP, 8080)
            moved.set()
            changed = next(event for event in events if isinstance(event, MappingChanged))
            assert (str(changed.old.address), str(changed.new.address)) == ("203.0.113.5", "203.0.113.6")
    finally:
        stop.set()
        thread.join()


def test_without_the_announcement_port_the_client_works_and_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(local: object) -> socket.socket:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(_sockets, "open_announcement_socket", refuse)
    with open_client(server.address) as client:
        (event,) = client.events().pending()
        assert isinstance(event, AnnouncementsUnavailable)
        assert "Address already in use" in event.describe()
        assert client.map_port(Protocol.TCP, 8080).external is not None


@pytest.mark.requirement("NP-3.2.1-09")
@pytest.mark.requirement("NP-3.2.1-10")
@pytest.mark.requirement("PCP-14.1.3-08")
@pytest.mark.requirement("PCP-14.1.3-09")
def test_closing_by_hand_releases_too_and_may_be_done_twice(server: Server) -> None:
    with open_client(server.address) as client:
        events = client.events()
        client.map_port(Protocol.TCP, 8080)
        client.close()
        client.close()
        assert [type(event) for event in events][-2:] == [MappingReleased, Closed]
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated, MappingDeleted]


def test_a_shared_socket_says_itself_where_requests_come_from(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.2", 0))
        with open_client(server.address, sock=sock) as client:
            assert client.map_port(Protocol.TCP, 8080).external is not None  # else: ADDRESS_MISMATCH


def test_two_programs_can_listen_for_announcements_on_one_host() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_sockets.open_announcement_socket(("127.0.0.1", 0))) for _ in range(2)]
        assert [listener.getsockname() for listener in listeners] == [("224.0.0.1", 5350)] * 2
        sender = stack.enter_context(_sockets.open_request_socket(("127.0.0.1", 0)))
        sender.sendto(b"hello", ("224.0.0.1", 5350))
        for listener in listeners:
            assert select.select([listener], [], [], 5.0)[0]
            assert listener.recvfrom(100)[0] == b"hello"


def test_a_multiplexer_can_be_driven_on_one_socket(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        client = Client(server.address, local_address="127.0.0.1")
        with drive(Multiplexer(client), sock=sock) as driven:
            assert isinstance(driven, Driven)
            events = driven.events()
            client.map_port(Protocol.TCP, 8080, time.monotonic())
            assert any(isinstance(event, MappingGranted) for event in events)
        with pytest.raises(LocalProtocolError, match="hand in a socket"), drive(Multiplexer(client)):
            pass


def test_of_two_clients_on_one_socket_each_is_closed_by_itself(server: Server) -> None:
    with Server() as second, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        one, other = (Client(each.address, local_address="127.0.0.1") for each in (server, second))
        with drive(Multiplexer(one, other), sock=sock) as driven:
            events = driven.events()
            other.map_port(Protocol.TCP, 8080, time.monotonic())
            assert any(isinstance(event, MappingGranted) for event in events)
            for client in (one, other):
                client.close(time.monotonic())
                assert any(isinstance(event, Closed) and event.gateway == client.gateway for event in events)
    second.close()
    assert [type(event) for event in second.events] == [MappingCreated, MappingDeleted]


def test_what_happens_at_once_is_not_waited_for() -> None:
    with drive(Client(("127.0.0.1", 5351), local_address="127.0.0.1")) as driven:
        events = driven.events()
        driven.core.close(time.monotonic())
        driven.run()
        assert [type(event) for event in events] == [Closed]


def test_addresses_are_numeric() -> None:
    assert _sockets.gateway_address("192.168.1.1") == ("192.168.1.1", 5351)
    assert _sockets.gateway_address("fe80::1%lo") == ("fe80::1", 5351, 0, 1)
    with pytest.raises(LocalProtocolError, match="'router' is not an IP address"), open_client("router"):
        pass


def test_an_address_that_is_not_ours_cannot_be_bound(server: Server) -> None:
    with pytest.raises(OSError), open_client(server.address, bind="203.0.113.9"):
        pass


def test_a_host_without_a_gateway_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**_: object) -> list[discovery.DefaultGateway]:
        raise DiscoveryError("this host has no default gateway")

    monkeypatch.setattr(discovery, "default_gateways", nothing)
    with pytest.raises(DiscoveryError, match="no default gateway"), open_client():
        pass
