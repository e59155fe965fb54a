"""Sockets on loopback and in namespaces of their own: whose ICMP error it is, which address is asked from."""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaces import run_alone
from natpmp_sansio import Address
from natpmp_sansio.adapters import _sockets

needs_error_queue = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose an ICMP error is")
needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="IPv6 is switched off here")


@pytest.fixture
def client(closed: Address, silent: Address) -> Iterator[socket.socket]:
    """A client's own socket, with two gateways to ask."""
    with _sockets.open_request_socket(("127.0.0.1", 0), closed, silent) as sock:
        yield sock


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 5.0)[0])


# --- ICMP


@needs_error_queue
def test_an_icmp_error_is_that_of_the_gateway_with_the_closed_port(
    client: socket.socket, closed: Address, silent: Address
) -> None:
    for address in (silent, closed, silent):
        assert _sockets.send(client, b"?", address)
    assert readable(client)
    assert _sockets.receive(client) == (None, closed)
    assert _sockets.receive(client) is None


@needs_error_queue
@needs_ipv6
def test_an_icmpv6_error_is_attributed_too() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        closed = sock.getsockname()
    with _sockets.open_request_socket(("::1", 0), closed) as client:
        assert _sockets.send(client, b"?", closed)
        assert readable(client)
        assert _sockets.receive(client) == (None, closed)
        assert _sockets.receive(client) is None


@needs_error_queue
def test_an_error_neither_hides_the_answer_of_another_nor_keeps_the_next_request_back(
    client: socket.socket, closed: Address
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gateway:
        gateway.bind(("127.0.0.1", 0))
        gateway.settimeout(5.0)
        _sockets.send(client, b"?", closed)
        assert _sockets.send(client, b"?", gateway.getsockname())
        gateway.sendto(b"!", gateway.recvfrom(100)[1])
        _sockets.send(client, b"?", closed)
        received = [_sockets.receive(client) for _ in range(4)]
        assert sorted(received[:3], key=str) == [(None, closed), (None, closed), (b"!", gateway.getsockname())]
        assert received[3] is None
        assert not select.select([client], [], [], 0)[0]  # or its reader would spin


@needs_error_queue
def test_a_datagram_that_was_too_long_says_nothing_about_the_gateway(client: socket.socket, silent: Address) -> None:
    assert _sockets.send(client, bytes(65520), silent)
    assert _sockets.receive(client) is None
    assert not select.select([client], [], [], 0)[0]


def test_where_no_route_leads_is_no_error_either() -> None:
    with _sockets.open_request_socket(("127.0.0.1", 0), ("127.0.0.1", 5351)) as client:
        assert _sockets.send(client, b"?", ("203.0.113.1", 5351))  # from loopback nothing gets there
        assert _sockets.receive(client) is None


def test_a_shared_socket_hears_of_no_error(closed: Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        assert _sockets.send(sock, b"?", closed)
        assert _sockets.send(sock, b"?", closed)
        assert _sockets.receive(sock) is None


def test_a_closed_socket_ends_no_reader(closed: Address) -> None:
    sock = _sockets.open_request_socket(("127.0.0.1", 0), closed)
    sock.close()
    assert _sockets.receive(sock) is None
    assert _sockets.send(sock, b"?", closed)


def test_without_an_error_queue_a_single_gateway_is_connected_to_and_answers_for_the_errors(
    closed: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with _sockets.open_request_socket(("127.0.0.1", 0), closed) as client:
        assert client.getpeername() == closed
        assert _sockets.send(client, b"?", closed)
        assert readable(client)
        assert _sockets.receive(client) == (None, closed)
        assert _sockets.receive(client) is None
        assert _sockets.send(client, b"?", closed)
        assert not _sockets.send(client, b"?", closed)  # what came back for the one before


def test_without_an_error_queue_several_gateways_are_not_connected_to(
    closed: Address, silent: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with _sockets.open_request_socket(("127.0.0.1", 0), closed, silent) as client:
        with pytest.raises(OSError):
            client.getpeername()
        assert _sockets.send(client, b"?", closed)


class Scripted:
    """A socket that answers as other systems do: with an error now and then, and with what is behind it."""

    def __init__(self, *receives: tuple[bytes, Address] | OSError, peer: Address | None = None) -> None:
        self.receives = list(receives)
        self.peer = peer

    def recvfrom(self, _: int) -> tuple[bytes, Address]:
        following = self.receives.pop(0) if self.receives else BlockingIOError(errno.EWOULDBLOCK, "nothing")
        if isinstance(following, OSError):
            raise following
        return following

    def getpeername(self) -> Address:
        if self.peer is None:
            raise OSError(errno.ENOTCONN, "not connected")
        return self.peer


def test_an_error_that_names_nobody_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    reset = ConnectionResetError(errno.ECONNRESET, "forcibly closed")
    sock = typing.cast("socket.socket", Scripted(reset, reset, (b"!", ("192.0.2.1", 5351))))
    assert _sockets.receive(sock) == (b"!", ("192.0.2.1", 5351))
    assert _sockets.receive(sock) is None


def test_of_the_errors_of_a_connected_socket_only_some_mean_that_the_gateway_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    gateway = ("192.0.2.1", 5351)
    too_long, prohibited = OSError(errno.EMSGSIZE, "too long"), PermissionError(errno.EACCES, "prohibited")
    sock = typing.cast("socket.socket", Scripted(too_long, prohibited, peer=gateway))
    assert _sockets.receive(sock) == (None, gateway)
    assert _sockets.receive(sock) is None


def test_a_reader_takes_a_rest_from_errors_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    errors = [OSError(errno.EIO, "broken") for _ in range(1000)]
    sock = typing.cast("socket.socket", Scripted(*errors))
    assert _sockets.receive(sock) is None


# --- which address is asked from


def source(plan: str, gateway: str = "fe80::9%eth0") -> str:
    return run_alone(
        plan,
        f"""
from natpmp_sansio.adapters._sockets import gateway_address, source_address
print(source_address(gateway_address({gateway!r})))
""",
    )


LINK_LOCAL = "addr add fe80::7/64 dev eth0 nodad\n"
ULA = "addr add fd00:1::2/64 dev eth0 nodad\n"
GLOBAL = "addr add 2001:db8:1::2/64 dev eth0 nodad\n"
ELSEWHERE = "addr add 2001:db8:5::2/64 dev eth1 nodad\n"
DEPRECATED = "addr add 2001:db8:1::3/64 dev eth0 nodad preferred_lft 0\n"
PASSING = "addr add 2001:db8:1::4/64 dev eth0 nodad valid_lft 3600 preferred_lft 1800\n"


@pytest.mark.requirement("PCP-8.4-01")
def test_a_link_local_gateway_is_asked_from_an_address_that_the_world_can_reach() -> None:
    assert source(LINK_LOCAL + ULA + GLOBAL + ELSEWHERE) == "2001:db8:1::2"
    assert source(LINK_LOCAL + ULA + ELSEWHERE) == "fd00:1::2"


def test_of_several_addresses_the_one_that_stays_is_asked_from() -> None:
    assert source(DEPRECATED + PASSING + GLOBAL) == "2001:db8:1::2"
    assert source(DEPRECATED + PASSING) == "2001:db8:1::4"
    assert source(DEPRECATED + LINK_LOCAL) == "2001:db8:1::3"


def test_an_address_made_for_privacy_is_not_asked_from_while_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = """\
20010db800010000000000000000000a 04 40 00 01     eth0
20010db800010000000000000000000b 04 40 00 00     eth0
20010db800010000000000000000000c 05 40 00 00     eth1
"""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda _: listing)
    assert _sockets.source_address(("fe80::9", 5351, 0, 4)) == "2001:db8:1::b"


def test_an_address_that_is_being_checked_is_not_asked_from() -> None:
    assert source(ULA + GLOBAL.replace(" nodad", "")) == "fd00:1::2"


def test_without_another_address_a_link_local_gateway_is_asked_from_the_link_local_one() -> None:
    assert source(LINK_LOCAL.replace("eth0", "eth1") + ELSEWHERE, "fe80::9%eth1") != "2001:db8:1::2"
    assert source("addr flush dev eth0 scope link\n" + LINK_LOCAL + ELSEWHERE) == "fe80::7"


def test_other_gateways_are_asked_from_the_address_that_the_routes_choose() -> None:
    assert source("", "192.168.5.1") == "192.168.5.2"
    assert source(GLOBAL + ULA, "fd00:1::9") == "fd00:1::2"
    assert _sockets.source_address(("127.0.0.9", 5351)) == "127.0.0.1"


def test_elsewhere_the_system_says_what_it_would_send_from(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["2001:db8::2", "fe80::7"]
    asked: list[tuple[object, ...]] = []

    class Probe:
        def __init__(self, family: socket.AddressFamily, kind: object) -> None:
            self.family = family

        def __enter__(self) -> typing.Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def setsockopt(self, *option: int) -> None:
            asked.append(option)

        def connect(self, address: Address) -> None:
            asked.append(address)

        def getsockname(self) -> tuple[str, int]:
            return (chosen[0], 1)

    monkeypatch.setattr(socket, "socket", Probe)
    monkeypatch.setattr(sys, "platform", "darwin")
    gateway = ("fe80::1", 5351, 0, 4)
    assert _sockets.source_address(gateway) == "2001:db8::2"
    assert asked == [(socket.IPPROTO_IPV6, 125, 4), ("2001:1::1", 5351, 0, 0)]
    chosen.pop(0)
    assert _sockets.source_address(gateway) == "fe80::7"
    assert asked[-1] == gateway
    asked.clear()
    assert _sockets.source_address(("192.168.1.1", 5351), "lo") == "fe80::7"
    monkeypatch.setattr(sys, "platform", "win32")
    _sockets.source_address(("192.168.1.1", 5351), "lo")
    index = socket.if_nametoindex("lo")
    assert asked[::2] == [(socket.IPPROTO_IP, 25, index), (socket.IPPROTO_IP, 31, socket.htonl(index))]


# --- announcements


def test_two_listeners_hear_an_ipv6_announcement_on_the_interface_of_their_address_and_on_no_other() -> None:
    heard = run_alone(
        GLOBAL + ELSEWHERE + LINK_LOCAL.replace("eth0", "eth1"),
        """
import contextlib, select, socket
from natpmp_sansio.adapters import _sockets
listeners = [_sockets.open_announcement_socket(("2001:db8:5::2", 0)) for _ in range(2)]
on_eth0 = _sockets.open_announcement_socket(("2001:db8:1::2", 0, 0, 0))
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as gateway:
    for _ in range(50):  # the link is up in a moment
        with contextlib.suppress(OSError):
            gateway.sendto(b"hello", ("ff02::1", 5350, 0, socket.if_nametoindex("eth1")))
        if select.select([listeners[0]], [], [], 0.1)[0]:
            break
for listener in (*listeners, on_eth0):
    datagram = _sockets.receive(listener)
    print(datagram and datagram[0])
    listener.close()
""",
    )
    assert heard.splitlines() == ["b'hello'", "b'hello'", "None"]


@pytest.mark.parametrize("option", [name for name in ("SO_REUSEADDR", "SO_REUSEPORT") if hasattr(socket, name)])
def test_the_announcement_port_is_shared_with_programs_that_share_it_in_either_way(option: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        other.bind(("224.0.0.1", 5350))
        _sockets.open_announcement_socket(("127.0.0.1", 0)).close()


@needs_ipv6
def test_on_loopback_announcements_are_listened_for_on_the_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_list(_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no such file")

    monkeypatch.setattr(Path, "read_text", no_list)
    with _sockets.open_announcement_socket(("::1", 0)) as listener:
        assert listener.getsockname() == ("ff02::1", 5350, 0, 1)


# --- changes


def test_a_new_address_route_or_interface_makes_the_route_socket_readable() -> None:
    told = run_alone(
        "",
        """
import select, socket, struct, subprocess
from natpmp_sansio.adapters._sockets import drain, open_route_socket
ADDRESS, ROUTE, LINK = 20, 24, 16
with open_route_socket() as changes:
    for command, *kind in (
        ("addr add 192.168.1.3/24 dev eth0", ADDRESS, socket.AF_INET),
        ("route add default via 192.168.1.1", ROUTE, socket.AF_INET),
        ("addr add 2001:db8::2/64 dev eth0 nodad", ADDRESS, socket.AF_INET6),
        ("route add ::/0 via 2001:db8::1", ROUTE, socket.AF_INET6),
        ("link set eth0 mtu 1400", LINK, socket.AF_UNSPEC),
    ):
        drain(changes)
        subprocess.run(["ip", *command.split()], check=True)
        told = None
        while told != kind and select.select([changes], [], [], 5.0)[0]:
            told = list(struct.unpack_from("=4xH10xB", changes.recv(65535)))
        print(told == kind)
""",
    )
    assert told.splitlines() == ["True"] * 5


def test_more_changes_than_the_route_socket_can_hold_are_no_error() -> None:
    class Overrun:
        steps = iter([errno.ENOBUFS, 0, errno.EAGAIN])

        def recv(self, _: int) -> bytes:
            if code := next(self.steps):
                raise OSError(code, "no message")
            return b"..."

    _sockets.drain(typing.cast("socket.socket", Overrun()))
    assert list(Overrun.steps) == []


def test_where_nothing_tells_of_changes_there_is_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise PermissionError(errno.EPERM, "not in this sandbox")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert _sockets.open_route_socket() is None
    monkeypatch.setattr(socket, "socket", refuse)
    assert _sockets.open_route_socket() is None


def test_the_time_asleep_is_what_one_clock_counts_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _sockets.time_asleep() >= 0.0
    names = {"CLOCK_BOOTTIME": 7, "CLOCK_MONOTONIC": 1, "CLOCK_MONOTONIC_RAW": 4, "CLOCK_UPTIME_RAW": 8}
    for name in names:
        monkeypatch.delattr(time, name, raising=False)
    assert _sockets.time_asleep() == 0.0
    for both, awake in (("CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW"), ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC")):
        readings = {names[both]: 3700.0, names[awake]: 100.0}
        with monkeypatch.context() as patch:
            for name in (both, awake):
                patch.setattr(time, name, names[name], raising=False)
            patch.setattr(time, "clock_gettime", readings.__getitem__, raising=False)
            assert _sockets.time_asleep() == 3600.0
