"""The examples do what they say. Those that are whole programs run as their users start them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from loopback import Server
from natpmp_sansio import Address, MappingCreated, MappingDeleted
from natpmp_sansio.adapters.blocking import open_client
from natpmp_sansio.wire.fields import SERVER_PORT
from program import Program

EXAMPLES = Path(__file__).parent.parent / "examples"
STUN_ANSWER = bytes.fromhex("0101000c2112a442") + bytes(range(12)) + bytes.fromhex("002000080001d5a7ea12d547")
FORGED = bytes.fromhex("0080000000000000cb007163")  # an external address, from somebody who is not the gateway


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network_check() -> types.ModuleType:
    return load("network_check")


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


# --- programs


@pytest.fixture
def router() -> Iterator[Server]:
    """A gateway on the port that all gateways have, at an address of loopback that nobody else has."""
    host = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
    with Server(host=host, port=SERVER_PORT) as running:
        yield running


def start(example: str, *arguments: object) -> Program:
    return Program("-u", str(EXAMPLES / example), *map(str, arguments))


def ports_opened(program: Program) -> tuple[int, int]:
    """It says that a port is open: the internal one, and the external one."""
    found = re.search(r"port (\d+) is open at 203\.0\.113\.5:(\d+)", line_with(" is open at ", program))
    assert found
    return int(found[1]), int(found[2])


def line_with(text: str, program: Program) -> str:
    """The next line that has this in it."""
    while text not in (line := program.line()):
        assert line, f"it has ended, and never printed {text!r}: {program.end()}"
    return line


def it_keeps_its_port_and_closes_it(program: Program, router: Server, external: int) -> None:
    """What every example does: it says when the port moves, and closes it at the end."""
    router.do(lambda gateway, now: gateway.set_external_address("203.0.113.6", now))
    assert line_with(f"moved from 203.0.113.5:{external} to 203.0.113.6:{external}", program)
    status, _, errors = program.end(signal.SIGINT)
    assert (status, errors) == (0, "")
    it_has_opened_and_closed_one_port(router)


def it_has_opened_and_closed_one_port(router: Server) -> None:
    router.close()
    changes = [type(event) for event in router.events if isinstance(event, MappingCreated | MappingDeleted)]
    assert changes == [MappingCreated, MappingDeleted]


def echoed(port: int) -> bytes:
    """What a UDP server answers to a greeting."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10.0)
        sock.sendto(b"hello", ("127.0.0.1", port))
        return sock.recv(100)


@pytest.mark.parametrize("example", ["selectors_loop.py", "twisted_reactor.py"])
def test_an_echo_server_without_an_adapter_keeps_the_port_of_its_one_socket(example: str, router: Server) -> None:
    if "twisted" in example:
        pytest.importorskip("twisted", reason="Twisted comes with the extra examples")
    with start(example, router.address[0], "127.0.0.1") as program:
        port, external = ports_opened(program)
        assert echoed(port) == b"hello"
        it_keeps_its_port_and_closes_it(program, router, external)


def test_an_echo_server_on_uvloop_keeps_its_port(router: Server) -> None:
    pytest.importorskip("uvloop", reason="uvloop comes with the extra examples")
    with start("uvloop_keep.py", router.address[0]) as program:
        port, external = ports_opened(program)
        with socket.create_connection(("127.0.0.1", port), timeout=10.0) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"
        it_keeps_its_port_and_closes_it(program, router, external)


def test_three_lines_keep_a_port_with_trio(router: Server) -> None:
    pytest.importorskip("trio", reason="trio comes with the extra trio")
    with start("trio_keep.py", router.address[0], 8080) as program:
        port, external = ports_opened(program)
        assert port == 8080
        it_keeps_its_port_and_closes_it(program, router, external)


def test_what_the_gateway_has_opened_and_what_stun_sees_are_told_together(router: Server) -> None:
    stun = pytest.importorskip("aioice.stun", reason="aioice comes with the extra examples")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10.0)
        with start("stun_and_port.py", router.address[0], *server.getsockname()) as program:
            data, addr = server.recvfrom(2048)
            answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, stun.parse_message(data).transaction_id)
            answer.attributes["XOR-MAPPED-ADDRESS"] = ("198.51.100.9", 7777)
            server.sendto(bytes(answer), addr)
            told = re.match(
                r"the gateway has opened 203.0.113.5:(\d+), and STUN sees 198.51.100.9:7777", program.line()
            )
            assert told
            it_keeps_its_port_and_closes_it(program, router, int(told[1]))
    assert [event.internal.port for event in router.events if isinstance(event, MappingCreated)] == [addr[1]]


def test_a_quic_echo_server_keeps_its_own_port(router: Server, tmp_path: Path) -> None:
    pytest.importorskip("aioquic", reason="aioquic comes with the extra examples")
    from certificates import self_signed

    certificate, key = self_signed("localhost", tmp_path)
    with start("quic_and_port.py", router.address[0], certificate, key) as program:
        port, external = ports_opened(program)
        assert asyncio.run(quic_echo(port, certificate, b"hello" * 1000)) == b"hello" * 1000
        it_keeps_its_port_and_closes_it(program, router, external)


async def quic_echo(port: int, certificate: Path, data: bytes) -> bytes:
    from aioquic.asyncio.client import connect
    from aioquic.quic.configuration import QuicConfiguration

    configuration = QuicConfiguration(alpn_protocols=["echo"], cafile=str(certificate), server_name="localhost")
    async with asyncio.timeout(10.0), connect("127.0.0.1", port, configuration=configuration) as connection:
        reader, writer = await connection.create_stream()
        writer.write(data)
        writer.write_eof()
        return await reader.read()


# --- a window


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """The name of a screen that nobody sees."""
    if shutil.which("Xvfb") is None:
        pytest.skip("there is no Xvfb, on whose screen the window would be")
    reads, writes = os.pipe()
    command = ["Xvfb", "-displayfd", str(writes), "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writes], stderr=subprocess.DEVNULL) as screen:
        os.close(writes)
        try:
            with open(reads) as tells:
                yield f":{tells.readline().strip()}"
        finally:
            screen.terminate()


def test_the_window_says_where_the_port_is_and_closing_it_closes_the_port(
    router: Server, display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tkinter", reason="this Python has no tkinter, and so no windows")
    monkeypatch.setenv("DISPLAY", display)
    with open_client(router.address[0]) as client:
        window = load("tk_window").PortWindow(client, 8080)
        (label,) = window.winfo_children()

        def look() -> None:
            if " is open at 203.0.113.5:" in label["text"]:
                router.do(lambda gateway, now: gateway.set_external_address("203.0.113.6", now))
            elif " moved from 203.0.113.5:" in label["text"]:
                moved.append(label["text"])
                window.destroy()

        moved: list[str] = []
        window.after(10_000, window.destroy)
        window.text.trace_add("write", lambda *_: window.after_idle(look))  # the label shows it a little later
        look()
        window.mainloop()
    assert moved
    it_has_opened_and_closed_one_port(router)
