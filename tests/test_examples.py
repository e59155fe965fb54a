"""The examples do what they say."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
import types
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from loopback import Server
from natpmp_sansio import Address

EXAMPLES = Path(__file__).parent.parent / "examples"
STUN_ANSWER = bytes.fromhex("0101000c2112a442") + bytes(range(12)) + bytes.fromhex("002000080001d5a7ea12d547")
FORGED = bytes.fromhex("0080000000000000cb007163")  # an external address, from somebody who is not the gateway


@pytest.fixture(scope="module")
def network_check() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("network_check", EXAMPLES / "network_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["network_check"] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """The caller's own socket; on it wait already a STUN answer and a forgery from a stranger."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        own.bind(("127.0.0.1", 0))
        for data in (STUN_ANSWER, FORGED):
            stranger.sendto(data, own.getsockname())
        yield own


@pytest.mark.parametrize(
    ("versions", "speaks", "external"),
    [
        ((2, 0), {"PCP", "NAT-PMP"}, IPv4Address("203.0.113.5")),
        ((0,), {"NAT-PMP"}, IPv4Address("203.0.113.5")),
        ((2,), {"PCP"}, None),
    ],
    ids=["both", "NAT-PMP only", "PCP only"],
)
def test_the_network_check_tells_what_the_gateway_speaks_on_a_socket_it_shares(
    versions: tuple[int, ...],
    speaks: set[str],
    external: IPv4Address | None,
    network_check: types.ModuleType,
    sock: socket.socket,
) -> None:
    with Server(versions=versions) as server:
        begun = time.monotonic()
        result = network_check.check(sock, server.address, begun + 10.0)
    assert (result.speaks, result.external_address) == (speaks, external)
    assert [data for data, _ in result.others] == [STUN_ANSWER, FORGED]
    assert time.monotonic() - begun < 5.0, "it waited although both questions were answered"


def test_the_network_check_ends_at_its_deadline_when_nobody_answers(
    silent: Address, network_check: types.ModuleType, sock: socket.socket
) -> None:
    deadline = time.monotonic() + 0.2
    result = network_check.check(sock, silent, deadline)
    assert 0.0 <= time.monotonic() - deadline < 5.0
    assert (result.speaks, result.external_address) == (set(), None)
    assert [data for data, _ in result.others] == [STUN_ANSWER, FORGED]


def test_the_network_check_takes_no_other_protocol_for_an_answer_though_the_gateway_sends_it(
    network_check: types.ModuleType, sock: socket.socket
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gateway:
        gateway.bind(("127.0.0.1", 0))
        address = gateway.getsockname()
        for data in (STUN_ANSWER, bytes.fromhex("0280")):  # the second one is ours, and broken
            gateway.sendto(data, sock.getsockname())
        result = network_check.check(sock, address, time.monotonic() + 0.1)
    assert result.speaks == set()
    assert [data for data, source in result.others if source == address] == [STUN_ANSWER]
