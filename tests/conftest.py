from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import settings

from loopback import Server
from natpmp_sansio import Address

settings.register_profile("ci", derandomize=True)  # what lands is decided by the same examples every time
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def server() -> Iterator[Server]:
    """A gateway on loopback that speaks both protocols."""
    with Server() as running:
        yield running


@pytest.fixture
def silent() -> Iterator[Address]:
    """The address of a socket that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@pytest.fixture
def closed() -> Address:
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address: Address = sock.getsockname()
    return address
