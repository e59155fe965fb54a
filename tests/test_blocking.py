"""What is the blocking adapter's alone; test_adapters.py tells what it has in common with the others."""

from __future__ import annotations

import contextlib
import select
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from loopback import Server
from natpmp_sansio import (
    Client,
    Closed,
    DiscoveryError,
    Event,
    LocalProtocolError,
    MappingCreated,
    MappingDeleted,
    MappingGranted,
    MappingReleased,
    MappingRenewed,
    Protocol,
)
from natpmp_sansio.adapters import _sockets, discovery
from natpmp_sansio.adapters.blocking import drive, open_client


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


def test_closing_by_hand_releases_too_and_may_be_done_twice(server: Server) -> None:
    with open_client(server.address) as client:
        events = client.events()
        client.map_port(Protocol.TCP, 8080)
        client.close()
        client.close()
        assert [type(event) for event in events][-2:] == [MappingReleased, Closed]
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated, MappingDeleted]


@pytest.mark.requirement("NP-3.2.1-09")
@pytest.mark.requirement("NP-3.2.1-10")
@pytest.mark.requirement("PCP-14.1.3-08")
@pytest.mark.requirement("PCP-14.1.3-09")
def test_two_programs_can_listen_for_announcements_on_one_host() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_sockets.open_announcement_socket(("127.0.0.1", 0))) for _ in range(2)]
        assert [listener.getsockname() for listener in listeners] == [("224.0.0.1", 5350)] * 2
        sender = stack.enter_context(_sockets.open_request_socket(("127.0.0.1", 0)))
        sender.sendto(b"hello", ("224.0.0.1", 5350))
        for listener in listeners:
            assert select.select([listener], [], [], 5.0)[0]
            assert listener.recvfrom(100)[0] == b"hello"


def test_what_happens_at_once_is_not_waited_for() -> None:
    with drive(Client(("127.0.0.1", 5351), local_address="127.0.0.1")) as driven:
        events = driven.events()
        driven.core.close(time.monotonic())
        driven.run()
        assert [type(event) for event in events] == [Closed]


def test_addresses_are_numeric() -> None:
    assert _sockets.gateway_address("192.168.1.1") == ("192.168.1.1", 5351)
    assert _sockets.gateway_address("fe80::1%lo") == ("fe80::1", 5351, 0, 1)
    assert _sockets.gateway_address("192.168.1.1:4000") == ("192.168.1.1", 4000)
    assert _sockets.gateway_address("[fe80::1%lo]:4000") == ("fe80::1", 4000, 0, 1)
    assert _sockets.gateway_address("fe80::1") == ("fe80::1", 5351, 0, 0)
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


def test_after_the_end_a_loop_of_ones_own_is_told_so(server: Server) -> None:
    with open_client(server.address) as client:
        client.map_port(Protocol.TCP, 8080)
        client.detach()
        assert client.timeout() is None
        for call in (client.process, client.wait, client.fileno):
            with pytest.raises(LocalProtocolError, match="this is closed"):
                call()
        assert list(client.events()) == []


def test_another_thread_cannot_close_it_either(server: Server) -> None:
    with open_client(server.address) as client:
        client.map_port(Protocol.TCP, 8080)
        with ThreadPoolExecutor(1) as pool, pytest.raises(LocalProtocolError, match="the thread and process"):
            pool.submit(client.close).result()
        assert client.map_port(Protocol.TCP, 8081).external is not None
