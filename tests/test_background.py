"""The client that has a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from loopback import Server
from natpmp_sansio import (
    Address,
    Closed,
    LocalProtocolError,
    MappingCreated,
    MappingDeleted,
    MappingGranted,
    MappingReleased,
    MappingRenewed,
    Protocol,
)
from natpmp_sansio.adapters import _driver
from natpmp_sansio.adapters.background import BackgroundClient

TCP = Protocol.TCP


def test_a_mapping_is_renewed_while_the_script_does_something_else(server: Server) -> None:
    with BackgroundClient(server.address) as client:
        events = client.events()
        mapping = client.map_port(TCP, 8080, lifetime=1)
        time.sleep(0.8)  # something else
        kinds = [type(event) for event in events.pending()]
        assert kinds.index(MappingRenewed) > kinds.index(MappingGranted)
        renewed = client.mapping(mapping.id)
        assert renewed is not None
        assert renewed.external == mapping.external
        assert client.core.stats.clock_backwards == 0
    assert client.mappings == ()
    assert [type(event) for event in events][-2:] == [MappingReleased, Closed]
    server.close()
    assert {type(event) for event in server.events} >= {MappingCreated, MappingDeleted}


def test_any_thread_may_ask(server: Server) -> None:
    with BackgroundClient(server.address) as client, ThreadPoolExecutor(8) as pool:
        mappings = list(pool.map(lambda port: client.map_port(TCP, port), range(1000, 1050)))
        assert {mapping.id for mapping in client.mappings} == {mapping.id for mapping in mappings}
        assert len(mappings) == 50
        assert all(pool.map(client.unmap, mappings))
        assert client.probe().versions == (2, 0)


def test_a_reader_of_events_wakes_up_and_comes_to_an_end(server: Server) -> None:
    told: list[type] = []
    with BackgroundClient(server.address) as client:
        events = client.events()
        reader = threading.Thread(target=lambda: told.extend(type(event) for event in events))
        reader.start()
        client.keep_port(TCP, 8080)
        client.map_pair(8081)
    reader.join(10.0)
    assert told.count(MappingGranted) == 3
    assert told[-1] is Closed


def test_who_waits_too_long_gives_up(silent: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_driver, "LINGER", 0.2)
    with BackgroundClient(silent) as client:
        with pytest.raises(TimeoutError, match=r"127.0.0.1 has not answered within 0.1 s"):
            client.map_port(TCP, 8080, timeout=0.1)
        assert [mapping.state.name for mapping in client.mappings] == ["RELEASING"]


def test_wrong_use_is_told_to_whoever_is_wrong(server: Server) -> None:
    with pytest.raises(LocalProtocolError, match="'router' is not an IP address"), BackgroundClient("router"):
        pass
    with BackgroundClient(server.address) as client:
        client.map_port(TCP, 8080)
        with pytest.raises(LocalProtocolError, match="already"):
            client.map_port(TCP, 8080)
        client.close()
        with pytest.raises(LocalProtocolError, match="this is closed"):
            client.map_port(TCP, 8081)
        client.close()


def test_what_is_detached_is_not_released(server: Server) -> None:
    with BackgroundClient(server.address) as client:
        client.map_port(TCP, 8080)
        assert client.detach()["client"]
    server.close()
    assert [type(event) for event in server.events] == [MappingCreated]


def test_unclaimed_may_ask_the_client_but_not_wait_for_it(server: Server) -> None:
    seen: list[object] = []

    def unclaimed(data: bytes, addr: Address) -> None:
        seen.append(len(client.mappings))
        try:
            client.map_port(TCP, 8081)
        except LocalProtocolError as error:
            seen.append(str(error))
        client.keep_port(TCP, 8082)
        client.close()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with BackgroundClient(server.address, sock=sock, unclaimed=unclaimed) as client:
            events = client.events()
            client.map_port(TCP, 8080)
            sock.sendto(b"hello", sock.getsockname())
            assert [type(event) for event in events][-1] is Closed
    assert seen == [1, "the client's own thread cannot wait for it: keep_port does not"]


def test_outside_its_block_it_says_so(server: Server) -> None:
    client = BackgroundClient(server.address)
    for ask in (lambda: client.map_port(TCP, 8080), client.events, lambda: client.mappings):
        with pytest.raises(LocalProtocolError, match="not open yet"):
            ask()
    with client:
        pass
    with pytest.raises(LocalProtocolError, match="opened before"), client:
        pass
