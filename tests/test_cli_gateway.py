"""`natpmp gateway`, the router for other people's tests, as somebody at a shell meets it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
import typing
from collections.abc import Iterator

import pytest

from gateway_command import GatewayCommand
from natpmp_sansio import MappingError, MappingRefused, Protocol, Quirk, Reason, decode, natpmp, pcp
from natpmp_sansio.adapters.blocking import open_client

cli = pytest.importorskip("natpmp_sansio.cli", reason="the command needs its extra")

ASK_NAT_PMP = natpmp.ExternalAddressRequest().encode()
ASK_PCP = pcp.AnnounceRequest("127.0.0.1").encode()


def ask(port: int, *requests: bytes) -> typing.Any:
    """The first answer to any of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5.0)
        for request in requests:
            sock.sendto(request, ("127.0.0.1", port))
        return decode(sock.recv(2048))


def test_it_says_where_it_is_and_what_it_would_forward() -> None:
    with GatewayCommand("--port", "0") as command:
        first = command.line()
        head, _, tail = first.partition(", ")
        assert head.startswith("A gateway on 127.0.0.1 port ")
        assert tail == "with the external address 203.0.113.5:"
        with open_client(("127.0.0.1", int(head.rpartition(" ")[2]))) as client:
            client.map_port(Protocol.TCP, 8080, external_port=18080)
            assert command.line() == "TCP 203.0.113.5:18080 is forwarded to 127.0.0.1:8080"
        assert command.line() == "TCP 203.0.113.5:18080 was deleted"
        assert command.end() == (0, "", "Ctrl-C ends it.\n")


def test_it_prints_json_for_programs() -> None:
    with GatewayCommand("--port", "0", "--json") as command:
        ready = command.event()
        port = ready.pop("port")
        assert ready == {"event": "GatewayReady", "gateway": "127.0.0.1", "external_addresses": ["203.0.113.5"]}
        with open_client(("127.0.0.1", port)) as client:
            client.map_port(Protocol.UDP, 5000, external_port=15000, lifetime=600)
            created = command.event()
            assert abs(created.pop("expires_at") - time.time() - 600) < 30
        about = {
            "gateway": "127.0.0.1",
            "mapping": 1,
            "kind": "MAP",
            "protocol": "UDP",
            "internal": {"address": "127.0.0.1", "port": 5000},
            "external": {"address": "203.0.113.5", "port": 15000},
            "remote": None,
            "size": 1,
            "filters": [],
            "description": "",
            "third_party_id": "",
        }
        assert created == {"event": "MappingCreated"} | about
        assert command.event() == {"event": "MappingDeleted"} | about
        assert command.end() == (0, "", "")


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """A background job, as we may be one, ignores interrupts, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_it_is_told_to(ending: signal.Signals) -> None:
    with GatewayCommand("--port", "0", "--json") as command:
        assert command.event()["event"] == "GatewayReady"
        assert command.end(ending) == (0, "", "")


def test_who_wants_it_sees_every_datagram() -> None:
    with GatewayCommand("--port", "0", "--json", "-v") as command:
        ask(command.event()["port"], ASK_NAT_PMP)
        status, _, errors = command.end()
    shown = [line.split(" s  ", 1)[1] for line in errors.splitlines()]
    assert status == 0
    # Switched on, it announces itself, on loopback.
    assert shown[:2] == [
        "to 224.0.0.1: NAT-PMP external address response: 203.0.113.5, epoch 0 s",
        "to 224.0.0.1: PCP ANNOUNCE response: SUCCESS, epoch 0 s",
    ]
    assert "from 127.0.0.1: NAT-PMP external address request" in shown


@pytest.mark.parametrize(("only", "answer"), [("nat-pmp", natpmp.ErrorResponse), ("pcp", pcp.AnnounceResponse)])
def test_it_can_speak_one_protocol_only(only: str, answer: type[object]) -> None:
    with GatewayCommand("--port", "0", "--json", "--only", only) as command:
        assert isinstance(ask(command.event()["port"], ASK_PCP), answer)


def test_it_can_break_the_rules_as_real_routers_do() -> None:
    with GatewayCommand(
        "--port", "0", "--json", "--quirk", "silent-to-pcp", "--quirk", "epoch-in-unix-time"
    ) as command:
        answer = ask(command.event()["port"], ASK_PCP, ASK_NAT_PMP)
    assert isinstance(answer, natpmp.ExternalAddressResponse)
    assert answer.epoch > 10**9


def test_every_quirk_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["gateway", "--list-quirks"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [[quirk.name.lower().replace("_", "-"), quirk.value] for quirk in Quirk]


def test_its_leases_can_be_short() -> None:
    with (
        GatewayCommand("--port", "0", "--json", "--max-lifetime", "5") as command,
        open_client(("127.0.0.1", command.event()["port"])) as client,
    ):
        assert client.map_port(Protocol.TCP, 8080).lifetime == 5


def test_it_can_have_a_pool_of_external_addresses() -> None:
    pool = ["198.51.100.1", "198.51.100.2"]
    with GatewayCommand("--port", "0", "--external-address", pool[0], "--external-address", pool[1]) as command:
        assert command.line().endswith(", with the external address 198.51.100.1 or 198.51.100.2:")
    with GatewayCommand("--port", "0", "--json", *(f"--external-address={each}" for each in pool)) as command:
        ready = command.event()
        assert ready["external_addresses"] == pool
        assert str(ask(ready["port"], ASK_NAT_PMP).external_address) == pool[0]


def test_it_can_be_offline() -> None:
    with GatewayCommand("--port", "0", "--external-address", "none") as command:
        assert command.line().endswith(", with no external address:")
    with GatewayCommand("--port", "0", "--json", "--external-address", "none") as command:
        ready = command.event()
        assert ready["external_addresses"] == []
        with open_client(("127.0.0.1", ready["port"])) as client, pytest.raises(MappingError) as caught:
            client.map_port(Protocol.TCP, 8080)
    assert isinstance(caught.value.event, MappingRefused)
    assert caught.value.event.reason is Reason.NETWORK_FAILURE


def test_it_serves_ipv6_and_its_announcements_stay_on_this_host() -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error}")
    with GatewayCommand("--address", "::1", "--port", "0", "--json", "-v") as command:
        ready = command.event()
        assert ready["gateway"] == "::1"
        with open_client(("::1", ready["port"])) as client:
            client.map_port(Protocol.TCP, 8080)
            assert command.event()["external"] == {"address": "::1", "port": 8080}
        assert "not sent to ff02::1: " in command.end()[2]


def refuse_sockets(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(bind: object) -> typing.NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("natpmp_sansio.adapters._sockets.open_request_socket", refuse)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--port 65536", "Invalid value for '--port': '65536' is no port; it is a number from 0 to 65535"),
        ("--quirk rude", "Invalid value for '--quirk': 'rude' is no quirk; --list-quirks names them all"),
        (
            "--external-address wan",
            "Invalid value for '--external-address': 'wan' is no external address; it is an IP address, or none",
        ),
        (
            "--external-address none --external-address 203.0.113.5",
            "With --external-address none there can be no other",
        ),
        ("--only upnp", "Invalid value for '--only': 'upnp' is not one of 'pcp', 'nat-pmp'"),
        (
            "--max-lifetime 0",
            "Invalid value for '--max-lifetime': '0' is no lifetime in seconds; it is a number from 1 to 4294967295",
        ),
    ],
)
def test_wrong_use_gets_one_sentence_and_status_2(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_sockets(monkeypatch, errno.EADDRINUSE)  # it must not come so far
    assert cli.run(["gateway", *arguments.split()]) == 2
    assert capsys.readouterr() == ("", f"natpmp: {sentence} (see natpmp gateway --help)\n")


def test_an_address_that_is_none_gets_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["gateway", "--address", "router"]) == 2
    sentence = "natpmp: 'router' is not an IP address; name the gateway as 192.168.1.1, say.\n"
    assert capsys.readouterr() == ("", sentence)


def test_a_port_in_use_gets_one_sentence_and_status_1(
    silent: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    port = silent[1]
    assert cli.run(["gateway", "--port", str(port)]) == 1
    where = f"127.0.0.1 port {port}"
    sentence = f"cannot serve on {where}: the port is in use; end what serves there, or name another with --port"
    assert capsys.readouterr() == ("", f"natpmp: {sentence}.\n")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EACCES, "the port is for root only; name one above 1023 with --port"),
        (errno.EADDRNOTAVAIL, "it is no address of this host; name one that is with --address"),
        (errno.EINVAL, "the address needs its interface, as in fe80::1%eth0"),
        (errno.EAFNOSUPPORT, f"{os.strerror(errno.EAFNOSUPPORT)}; check --address and --port"),
    ],
)
def test_an_address_that_cannot_be_served_gets_one_sentence_and_status_1(
    code: int, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_sockets(monkeypatch, code)
    assert cli.run(["gateway", "--address", "192.0.2.1", "--port", "80"]) == 1
    assert capsys.readouterr() == ("", f"natpmp: cannot serve on 192.0.2.1 port 80: {sentence}.\n")
