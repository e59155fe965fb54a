"""The client's rows of the requirement tables that the other files do not show, in the order of the RFCs.

Answers are put together octet by octet here, so that what the client reads was not written by its own codec.
"""

from __future__ import annotations

import random
import socket
import struct
import typing
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Network

import pytest

from helpers import (
    EXTERNAL,
    LOCAL,
    SERVER,
    STRANGER,
    V6_SERVER,
    Middle,
    drain,
    endpoint,
    events_of,
    externals,
    make_client,
    make_gateway,
    sends_of,
    times_of,
)
from loopback import Server
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Config,
    Event,
    ExternalAddressLearned,
    Finding,
    Gateway,
    GatewayConfig,
    GatewayRestarted,
    GatewayUnreachable,
    LocalProtocolError,
    MappingChanged,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    MappingState,
    Multiplexer,
    ProbeCompleted,
    Protocol,
    Reason,
    Rejected,
    VersionNegotiated,
    natpmp,
    pcp,
)
from natpmp_sansio.adapters import _driver, _sockets, blocking, discovery
from natpmp_sansio.adapters.blocking import open_client
from natpmp_sansio.adapters.discovery import DefaultGateway
from natpmp_sansio.testing import Link, Simulation
from natpmp_sansio.wire import fields

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, 132
V6 = "2001:db8:1::7"
REMOTE = ("198.51.100.23", 443)
ANY_V4 = bytes(10) + b"\xff\xff" + bytes(4)
ANY_V6 = bytes(16)
ZEROS = {4: ANY_V4, 6: ANY_V6}
THOSE: Address = ("192.168.1.2", 5351)  # another address of the same server, or another server


def octets(address: str) -> bytes:
    """The sixteen octets of an address in PCP."""
    return fields.pack_address(fields.to_address(address))


def grant(
    request: bytes,
    *,
    code: int = 0,
    lifetime: int | None = None,
    epoch: int = 1000,
    port: int = 40000,
    address: str = EXTERNAL,
    options: Sequence[pcp.Option] = (),
) -> bytes:
    """The answer of a PCP server to a MAP or PEER request."""
    seconds = int.from_bytes(request[4:8]) if lifetime is None else lifetime
    head = struct.pack("!BBBBII12x", 2, 0x80 | request[1], 0, code, seconds, epoch)
    external = port.to_bytes(2) + octets(address)
    return head + request[24:42] + external + request[60:80] * (request[1] == 2) + b"".join(o.encode() for o in options)


def natpmp_grant(
    request: bytes, *, code: int = 0, lifetime: int | None = None, epoch: int = 1000, port: int = 40000
) -> bytes:
    """The answer of a NAT-PMP gateway to a mapping request."""
    seconds = int.from_bytes(request[8:12]) if lifetime is None else lifetime
    return struct.pack("!BBHI", 0, 0x80 | request[1], code, epoch) + request[4:6] + struct.pack("!HI", port, seconds)


def natpmp_address(epoch: int, address: str = EXTERNAL) -> bytes:
    """The external address, in answer to the question for it or as an announcement."""
    return struct.pack("!BBHI", 0, 0x80, 0, epoch) + fields.to_address(address).packed


def announce(epoch: int, *options: pcp.Option) -> bytes:
    """An ANNOUNCE response, solicited or not."""
    return struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, epoch) + b"".join(option.encode() for option in options)


def asked(client: Client) -> bytes:
    """The one request that waits to be sent."""
    (request,), _ = drain(client)
    return request


def want(client: Client, opcode: int, external_port: int = 0) -> MappingId:
    """Ask for TCP port 8080, or for a flow from there."""
    if opcode == pcp.MAP:
        return client.map_port(TCP, 8080, 0.0, external_port=external_port)
    return client.map_peer(TCP, 8080, REMOTE, 0.0, external_port=external_port)


def hear(client: Client, data: bytes, now: float) -> list[Event]:
    """What comes of a datagram from the gateway."""
    assert client.receive_datagram(data, SERVER, now)
    return drain(client)[1]


# --- RFC 6886: whether to speak NAT-PMP, and to whom


@pytest.mark.requirement("NP-3-08")
@pytest.mark.parametrize(
    ("local", "is_private"),
    [
        ("10.0.0.2", True),
        ("172.15.255.2", False),
        ("172.16.0.2", True),
        ("172.31.255.2", True),
        ("172.32.0.2", False),
        ("192.168.255.2", True),
        ("192.169.0.2", False),
        ("8.8.4.4", False),
    ],
)
def test_strictly_nat_pmp_is_spoken_from_a_private_address_only_unless_nothing_else_may_be(
    local: str, is_private: bool
) -> None:
    client = Client(SERVER, local_address=local, config=Config(strict=True), rng=Middle(1))
    client.map_port(TCP, 8080, 0.0)
    assert asked(client)[0] == 2
    client.receive_datagram(bytes.fromhex("00800001000004d2"), SERVER, 0.0)
    datagrams, events = drain(client)
    if is_private:
        assert datagrams == [natpmp.MapRequest(TCP, 8080).encode()]
    else:
        assert datagrams == []
        assert [event.reason for event in events if isinstance(event, MappingRefused)] == [Reason.UNSUPPORTED_VERSION]
    forced = Client(SERVER, local_address=local, config=Config(versions=(0,), strict=True), rng=Middle(1))
    forced.map_port(TCP, 8080, 0.0)
    assert asked(forced) == natpmp.MapRequest(TCP, 8080).encode()


@pytest.mark.requirement("NP-3-09")
@pytest.mark.requirement("EXT7723-1-01")
@pytest.mark.parametrize("versions", [(2,), (0,)])
@pytest.mark.parametrize("server", [SERVER, (pcp.ANYCAST_V4, 5351)])
def test_whatever_a_client_sends_goes_to_the_gateway_that_it_was_given_and_nowhere_else(
    server: Address, versions: tuple[int, ...]
) -> None:
    client = Client(server, local_address=LOCAL, config=Config(versions=versions), rng=Middle(1))
    gateway = Gateway(EXTERNAL, address=server, config=GatewayConfig(versions=versions), rng=Middle(2))
    bystander = Gateway(EXTERNAL, address=("192.0.0.9" if server == SERVER else "192.168.1.1", 5351), rng=Middle(3))
    sim = Simulation(client, gateway, bystander)
    client.probe(sim.now)
    mapping = client.map_port(TCP, 8080, sim.now)
    client.map_pair(9000, sim.now)
    sim.run_until(5000.0)
    gateway.reboot(sim.now)
    client.request_external_address(sim.now)
    sim.run_until(5100.0)
    client.unmap(mapping, sim.now)
    client.network_changed(sim.now)
    sim.run_until(5200.0)
    client.close(sim.now)
    sim.run_until(5300.0)
    assert isinstance(sim.events[-1][1], Closed)
    sent = [each for each in sim.sent if each.source[0] == LOCAL]
    assert len(sent) > 10
    assert {each.target for each in sent} == {server}


@pytest.mark.requirement("NP-3.8-03")
@pytest.mark.parametrize("versions", [(2, 0), (0,)])
def test_a_private_address_and_silence_are_no_sign_of_a_nat_but_of_a_gateway_without_support(
    versions: tuple[int, ...],
) -> None:
    client = make_client(versions)
    sim = Simulation(client)
    client.probe(sim.now)
    client.map_port(TCP, 8080, sim.now)
    sim.run_until(140.0)
    assert events_of(sim, ProbeCompleted) == [
        ProbeCompleted(
            gateway=SERVER,
            findings=tuple(Finding(version=version, reason=Reason.NO_ANSWER) for version in versions),
            external_address=None,
            reason=Reason.NO_ANSWER,
        )
    ]
    assert [event.reason for event in events_of(sim, MappingRefused)] == [Reason.NO_ANSWER]
    assert {type(event) for _, event in sim.events} == {ProbeCompleted, GatewayUnreachable, MappingRefused}


# --- RFC 6886: announcements


@pytest.mark.requirement("NP-3.2.1-08")
def test_nat_pmp_announcements_go_to_port_5350_and_that_is_where_clients_listen() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    gateway.reboot(sim.now)
    sim.run_until(200.0)
    sent = [(each.source, each.target) for each in sim.sent]
    assert sent == [(SERVER, ("224.0.0.1", 5350))] * 10
    with _sockets.open_announcement_socket(("127.0.0.1", 0)) as listener:
        assert listener.getsockname()[1] == 5350


# --- RFC 6886: requests


@pytest.mark.requirement("NP-3.3-05")
@pytest.mark.requirement("NP-3.3-06")
@pytest.mark.requirement("NP-3.3-08")
@pytest.mark.parametrize(("wanted", "suggested"), [(0, "0000"), (80, "0050")])
def test_a_nat_pmp_renewal_is_the_first_request_with_the_assigned_port(wanted: int, suggested: str) -> None:
    client = make_client((0,))
    client.map_port(TCP, 8080, 0.0, external_port=wanted)
    request = asked(client)
    assert request.hex() == "000200001f90" + suggested + "00001c20"
    client.receive_datagram(natpmp_grant(request, port=40000), SERVER, 0.0)
    client.receive_datagram(natpmp_address(1000), SERVER, 0.0)
    drain(client)
    client.handle_timeout(3600.0)
    assert asked(client).hex() == "000200001f909c4000001c20"


@pytest.mark.requirement("NP-3.4-13")
def test_the_lifetime_in_a_refused_delete_means_nothing() -> None:
    client = make_client((0,))
    going = client.map_port(TCP, 8080, 0.0)
    client.receive_datagram(natpmp_grant(asked(client)), SERVER, 0.0)
    client.receive_datagram(natpmp_address(1000), SERVER, 0.0)
    client.map_port(UDP, 8081, 0.0)
    drain(client)
    client.unmap(going, 0.5)
    client.receive_datagram(natpmp_grant(b"\0\1\0\0\x1f\x91" + bytes(6), lifetime=7200), SERVER, 1.0)
    before = [info for info in client.timers() if info.mapping != going]
    (released,) = hear(client, natpmp_grant(asked(client), code=2, port=0, lifetime=9999, epoch=1001), 1.0)
    assert released == MappingReleased(gateway=SERVER, mapping=going, protocol=TCP, internal_port=8080, confirmed=False)
    assert client.timers() == before
    client.map_port(TCP, 8080, 1.0)
    assert len(asked(client)) == 12  # and it may be asked for again at once


@pytest.mark.requirement("NP-3.4-16")
def test_a_delete_all_is_a_delete_of_port_zero_and_no_client_sends_one_by_accident() -> None:
    for opcode, protocol in ((1, UDP), (2, TCP)):
        delete_all = bytes((0, opcode)) + bytes(10)
        assert natpmp.MapRequest(protocol, 0, 0, 0).encode() == delete_all
        gateway = make_gateway((0,))
        sim = Simulation(client := make_client((0,)), gateway)
        for port in (5000, 5001):
            client.map_port(protocol, port, sim.now)
        sim.run_until(1.0)
        assert len(gateway.mappings) == 2
        client.close(sim.now)
        sim.inject(gateway, delete_all, (LOCAL, 49152))
        assert externals(gateway) == []
        sim.run_until(2.0)
        assert delete_all not in [data for _, data in sends_of(sim)]
        assert [event.confirmed for event in events_of(sim, MappingReleased)] == [True, True]


# --- RFC 6886: state that the gateway has lost


@pytest.mark.requirement("NP-3.7-03")
@pytest.mark.parametrize("seed", range(8))
def test_an_epoch_that_goes_back_renews_within_five_seconds_and_not_on_schedule(seed: int) -> None:
    client = make_client((0,), rng=random.Random(seed))
    client.map_port(TCP, 8080, 0.0)
    request = asked(client)
    client.receive_datagram(natpmp_grant(request), SERVER, 0.0)
    hear(client, natpmp_address(1000), 0.0)
    assert client.mappings[0].renew_at == 3600.0
    (restarted,) = hear(client, natpmp_address(900), 100.0)
    assert isinstance(restarted, GatewayRestarted)
    assert 100.0 <= restarted.recovery_at <= 105.0
    client.handle_timeout(restarted.recovery_at)
    assert asked(client) == request[:6] + b"\x9c\x40" + request[8:]


@pytest.mark.requirement("NP-3.7-08")
def test_the_port_of_an_outbound_connection_can_be_mapped_to_outlive_a_restart_of_the_gateway() -> None:
    client, gateway = make_client((0,)), make_gateway((0,))
    sim = Simulation(client, gateway)
    client.map_port(TCP, 51234, sim.now)
    sim.run_until(100.0)
    before = externals(gateway)
    gateway.reboot(sim.now)
    assert externals(gateway) == []
    sim.run_until(110.0)
    assert externals(gateway) == before
    (granted,) = events_of(sim, MappingGranted)
    assert [str(granted.external)] == before
    assert [event.external for event in events_of(sim, MappingRenewed)] == [granted.external]
    assert sends_of(sim)[-1][1][6:8] == granted.external.port.to_bytes(2)


# --- RFC 6887: which server, from where


@pytest.mark.requirement("PCP-2.3-01")
@pytest.mark.requirement("PCP-8.1-02")
@pytest.mark.requirement("PCP-11.2-07")
@pytest.mark.requirement("PCP-12.2-02")
@pytest.mark.requirement("EXT7488-4-01")
def test_each_server_is_asked_from_one_address_of_its_own_family_and_with_a_nonce_of_its_own() -> None:
    rng = Middle(1)
    places: list[tuple[Address, str]] = [(SERVER, LOCAL), (THOSE, LOCAL), (V6_SERVER, V6)]
    clients = [Client(server, local_address=local, rng=rng) for server, local in places]
    one = Multiplexer(*clients)
    for client, (_, local) in zip(clients, places, strict=True):
        client.map_port(TCP, 8080, 0.0)
        client.map_peer(TCP, 8081, ("2001:db8::9" if ":" in local else "198.51.100.23", 443), 0.0)
    sent = [output for output in one.outputs() if not isinstance(output, Event)]
    assert [each.addr for each in sent] == [server for server, _ in places for _ in range(2)]
    assert [each.data[8:24] for each in sent] == [octets(local) for _, local in places for _ in range(2)]
    assert len({each.data[24:36] for each in sent}) == 6


@pytest.mark.requirement("PCP-8.1-01")
def test_a_server_that_is_named_is_asked_and_else_the_default_router(
    server: Server, silent: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "default_gateways", lambda **_: [DefaultGateway(server.address, "lo")])
    monkeypatch.setattr(_driver, "LINGER", 0.0)
    with open_client(silent) as client:
        assert client.core.gateways == (silent,)
    with open_client() as client:
        assert client.core.gateways == (server.address,)
        assert client.map_port(TCP, 8080).state is MappingState.HELD


@pytest.mark.requirement("PCP-8.1-03")
@pytest.mark.requirement("PCP-8.4-03")
@pytest.mark.requirement("PCP-11.5-01")
@pytest.mark.requirement("PCP-14.1.3-06")
def test_one_socket_on_a_chosen_address_sends_it_all_and_announcements_are_heard_on_the_same_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_driver, "LINGER", 0.0)
    binds, joins = [], []
    bind, setsockopt = socket.socket.bind, socket.socket.setsockopt

    def watch_bind(sock: socket.socket, address: typing.Any) -> None:
        binds.append(address)
        bind(sock, address)

    def watch_options(sock: socket.socket, level: int, name: int, value: typing.Any) -> None:
        if (level, name) == (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP):
            joins.append(value)
        setsockopt(sock, level, name, value)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gateway:
        gateway.bind(("127.0.0.1", 0))
        gateway.settimeout(5.0)
        monkeypatch.setattr(socket.socket, "bind", watch_bind)
        monkeypatch.setattr(socket.socket, "setsockopt", watch_options)
        with open_client(gateway.getsockname(), bind="127.0.0.2") as client:
            client.keep_port(TCP, 8080, lifetime=1)
            client.process()
            request, source = gateway.recvfrom(2000)
            gateway.sendto(grant(request), source)
            while (again := gateway_hears(client, gateway)) is None:
                client.wait()
    assert again == (request[:42] + b"\x9c\x40" + octets(EXTERNAL), source)
    assert (source[0], request[8:24]) == ("127.0.0.2", octets("127.0.0.2"))
    assert binds[0] == ("127.0.0.2", 0)
    assert joins == [socket.inet_aton("224.0.0.1") + socket.inet_aton("127.0.0.2")]


def gateway_hears(client: blocking.BlockingClient, gateway: socket.socket) -> tuple[bytes, Address] | None:
    gateway.setblocking(False)
    try:
        return gateway.recvfrom(2000)
    except BlockingIOError:
        return None


@pytest.mark.requirement("PCP-11.5-01")
def test_renewals_go_over_the_interface_of_the_first_request() -> None:
    client = Client(V6_SERVER, local_address="fe80::7", rng=Middle(1))
    sim = Simulation(client, Gateway(None, address=V6_SERVER))
    client.map_port(TCP, 8080, sim.now)
    sim.run_until(10000.0)
    assert [(each.at, each.source[-1], each.target) for each in sim.sent if each.source[0] == "fe80::7"] == [
        (at, 2, ("fe80::1", 5351, 0, 2)) for at in (0.0, 4050.0, 8100.0)
    ]


@pytest.mark.requirement("PCP-8.4-04")
@pytest.mark.requirement("PCP-11.5-03")
def test_another_address_of_this_host_needs_new_mappings_and_those_of_the_old_one_are_deleted() -> None:
    client = Client(V6_SERVER, local_address=V6, rng=Middle(1))
    client.map_port(TCP, 8080, 0.0)
    request = asked(client)
    client.receive_datagram(grant(request, address=V6, port=8080), V6_SERVER, 0.0)
    drain(client)
    client.network_changed(100.0, local_address="2001:db8:1::77")
    assert client.bind_address[0] == "2001:db8:1::77"
    (delete, new), _ = drain(client)
    assert delete == request[:4] + bytes(4) + request[8:42] + bytes(2) + ANY_V6
    assert new[:24] == request[:8] + octets("2001:db8:1::77")
    assert new[36:] == request[36:42] + (8080).to_bytes(2) + ANY_V6
    # an answer about the old one says nothing of the new one
    client.receive_datagram(grant(delete, lifetime=0, port=0), V6_SERVER, 100.25)
    assert drain(client) == ([], [])
    # the old port is probably not granted
    client.receive_datagram(grant(new, address="2001:db8:1::77", port=8081), V6_SERVER, 100.5)
    (changed,) = [event for event in drain(client)[1] if isinstance(event, MappingChanged)]
    assert (changed.old, changed.new) == (endpoint(V6, 8080), endpoint("2001:db8:1::77", 8081))


@pytest.mark.requirement("PCP-3-03")
@pytest.mark.parametrize("versions", [(2,), (0,)])
def test_what_answers_another_client_of_this_host_disturbs_nobody(versions: tuple[int, ...]) -> None:
    one = make_client(versions, rng=random.Random(1))
    other = make_client(versions, rng=random.Random(2))
    one.map_port(TCP, 8080, 0.0)
    other.map_port(TCP, 8080 if versions == (2,) else 8081, 0.0)
    answers = []
    for client, port in ((one, 40000), (other, 40001)):
        request = asked(client)
        answers.append(grant(request, port=port) if request[0] else natpmp_grant(request, port=port))
    for client, strange in ((one, answers[1]), (other, answers[0])):
        before = client.timers()
        assert hear(client, strange, 0.5) == []
        assert client.timers() == before
        assert client.mappings[0].state is MappingState.REQUESTING
        assert client.stats.rejected == {Rejected.UNASKED: 1}
    for client, own, port in ((one, answers[0], 40000), (other, answers[1], 40001)):
        hear(client, own, 1.0)
        if versions == (0,):
            hear(client, natpmp_address(1000), 1.0)
        assert [mapping.external for mapping in client.mappings] == [endpoint(EXTERNAL, port)]


@pytest.mark.requirement("PCP-4-01")
@pytest.mark.parametrize(
    ("server", "local"), [(SERVER, LOCAL), (("203.0.113.1", 5351), "203.0.113.77"), (V6_SERVER, V6)]
)
def test_an_inbound_port_is_always_asked_for_however_public_the_address_of_this_host(
    server: Address, local: str
) -> None:
    client = Client(server, local_address=local, rng=Middle(1))
    client.map_port(TCP, 8080, 0.0)
    assert asked(client)[:2] == b"\2\1"


@pytest.mark.requirement("PCP-6-03")
def test_an_answer_about_a_mapping_that_nobody_wants_asks_for_nothing() -> None:
    client = make_client((2,))
    mapping = client.map_port(TCP, 8080, 0.0)
    request = asked(client)
    hear(client, grant(request), 0.0)
    before = (client.mappings, client.timers())
    for stray in (
        request[:40] + (8081).to_bytes(2) + request[42:],  # with a nonce of ours
        request[:24] + bytes(range(12)) + request[36:40] + (8081).to_bytes(2) + request[42:],
    ):
        assert hear(client, grant(stray, epoch=5), 100.0) == []
    assert (client.mappings, client.timers()) == before
    client.unmap(mapping, 200.0)
    hear(client, grant(asked(client), lifetime=0, port=0, epoch=1200), 200.0)
    assert hear(client, grant(request, epoch=1300), 300.0) == []  # a late Mapping Update
    assert (client.mappings, client.timers()) == ((), [])
    assert client.stats.rejected == {Rejected.UNASKED: 3}


# --- RFC 6887: sending again, and ends of it


def silence(client: Client, end: float) -> tuple[list[tuple[float, Address]], list[tuple[float, Event]]]:
    """What a client sends, and where to, and says while nobody answers until `end`."""
    sim = Simulation(client)
    sim.run_until(end)
    return [(each.at, each.target) for each in sim.sent], sim.events


@pytest.mark.requirement("PCP-8.1.1-08")
def test_no_two_runs_of_a_client_wait_alike() -> None:
    runs = []
    for _ in range(2):
        client = Client(SERVER, local_address=LOCAL, config=Config(versions=(2,)))
        client.map_port(TCP, 8080, 0.0)
        runs.append([at for at, _ in silence(client, 100.0)[0]])
    assert len(runs[0]) > 4
    assert set(runs[0]) & set(runs[1]) == {0.0}


@pytest.mark.requirement("PCP-8.1.1-14")
@pytest.mark.parametrize("end", ["unmap", "close"])
def test_a_request_for_what_is_wanted_no_more_is_not_sent_again(end: str) -> None:
    client = make_client((2,))
    sim = Simulation(client)
    mapping = client.map_port(TCP, 8080, sim.now)
    sim.run_until(10.0)
    if end == "close":
        client.close(sim.now)
    else:
        client.unmap(mapping, sim.now)
    sim.run_until(1000.0)
    # one delete, in case that an answer was lost
    assert [(at, data[4:8]) for at, data in sends_of(sim)] == [
        *((at, (7200).to_bytes(4)) for at in (0.0, 3.0, 9.0)),
        (10.0, bytes(4)),
    ]
    assert client.next_timeout() is None


# --- RFC 6887: errors, versions and the epoch


@pytest.mark.requirement("PCP-8.3-11")
def test_a_nat_on_the_way_to_the_server_has_an_error_of_its_own() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    sim.connect(client, gateway, Link(source=("192.168.1.66", 61000)))
    mapping = client.map_port(TCP, 8080, sim.now)
    sim.run_until(0.0)
    assert events_of(sim, MappingRefused) == [
        MappingRefused(
            gateway=SERVER,
            mapping=mapping,
            protocol=TCP,
            internal_port=8080,
            reason=Reason.ADDRESS_MISMATCH,
            result_code=12,
            retry_at=1800.0,
        )
    ]
    assert "another NAT" in Reason.ADDRESS_MISMATCH.value


@pytest.mark.requirement("PCP-9-01")
def test_every_kind_of_pcp_request_is_of_version_2() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    client.probe(sim.now)
    mapping = client.map_port(TCP, 8080, sim.now)
    client.map_peer(TCP, 8081, REMOTE, sim.now)
    sim.run_until(5000.0)
    client.unmap(mapping, sim.now)
    sim.run_until(5000.0)
    sent = [data for _, data in sends_of(sim)]
    assert [data[1] for data in sent] == [0, 1, 2, 1, 2, 1]  # ANNOUNCE, MAP and PEER, their renewals, a delete
    assert {data[0] for data in sent} == {2}


@pytest.mark.requirement("PCP-9-07")
def test_where_a_newer_version_is_offered_there_is_none_below_2_to_try() -> None:
    client = make_client()
    client.map_port(TCP, 8080, 0.0)
    request = asked(client)
    (refused,) = hear(client, bytes.fromhex("0381000100000258000004d2"), 0.0)
    assert isinstance(refused, MappingRefused)
    assert (refused.reason, refused.retry_at) == (Reason.UNSUPPORTED_VERSION, 600.0)
    assert drain(client)[0] == []
    client.handle_timeout(600.0)
    assert asked(client) == request


@pytest.mark.requirement("PCP-16.3.2-02")
def test_one_answer_is_enough_to_learn_that_ten_mappings_are_gone() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    for port in range(8000, 8010):
        client.map_port(TCP, port, sim.now)
    sim.run_until(1000.0)
    sim.connect(gateway, client, Link(loss=1.0))
    gateway.reboot(sim.now)
    sim.run_until(1500.0)
    sim.connect(gateway, client, Link())
    client.probe(sim.now)
    sim.run_until(1502.0)
    assert len(sends_of(sim)) == 11  # ten requests to begin with, and the probe
    assert times_of(sim, GatewayRestarted) == [1500.0]
    sim.run_until(1502.5)
    assert len(gateway.mappings) == len(events_of(sim, MappingRenewed)) == 10


# --- RFC 6887: MAP requests


@pytest.mark.requirement("PCP-10-01")
@pytest.mark.requirement("PCP-11.1-11")
@pytest.mark.parametrize(("server", "local"), [(SERVER, LOCAL), (V6_SERVER, V6)])
def test_listening_on_both_families_is_two_requests_each_with_the_zeros_of_the_family_that_it_wants(
    server: Address, local: str
) -> None:
    client = Client(server, local_address=local, config=Config(versions=(2,)), rng=Middle(1))
    client.map_port(TCP, 8080, 0.0, external_address="::")
    client.map_port(TCP, 8080, 0.0, external_address="0.0.0.0")
    client.map_port(TCP, 8081, 0.0)
    sent, _ = drain(client)
    assert [data[40:60] for data in sent] == [
        (8080).to_bytes(2) + bytes(2) + ANY_V6,
        (8080).to_bytes(2) + bytes(2) + ANY_V4,
        (8081).to_bytes(2) + bytes(2) + (ANY_V6 if ":" in local else ANY_V4),
    ]


@pytest.mark.requirement("PCP-10.1-01")
@pytest.mark.parametrize("opcode", [pcp.MAP, pcp.PEER])
def test_all_four_reasons_to_ask_use_one_request_with_what_is_known_by_then(opcode: int) -> None:
    client = make_client((2,))
    want(client, opcode, external_port=80)
    first = asked(client)
    assert first[1] == opcode
    assert first[42:60] == (80).to_bytes(2) + ANY_V4
    client.handle_timeout(3.0)
    assert asked(client) == first
    hear(client, grant(first, port=40000, epoch=1003), 3.0)
    client.handle_timeout(4053.0)
    renewal = first[:42] + (40000).to_bytes(2) + octets(EXTERNAL) + first[60:]
    assert asked(client) == renewal
    hear(client, grant(renewal, port=40001, epoch=5053), 4053.0)
    hear(client, announce(0), 5000.0)
    client.handle_timeout(5002.5)
    assert asked(client) == first[:42] + (40001).to_bytes(2) + octets(EXTERNAL) + first[60:]


@pytest.mark.requirement("PCP-11.1-07")
@pytest.mark.requirement("PCP-11.2-04")
@pytest.mark.requirement("PCP-11.2-05")
@pytest.mark.parametrize(
    ("protocol", "port", "field"),
    [(Protocol.ALL, 0, "000000000000"), (TCP, 0, "060000000000"), (47, 0, "2f0000000000"), (TCP, 80, "060000000050")],
)
def test_internal_port_zero_is_for_all_ports_for_all_protocols_and_for_those_without_ports(
    protocol: int, port: int, field: str
) -> None:
    client = make_client((2,))
    mapping = client.map_port(protocol, port, 0.0)
    request = asked(client)
    assert request[36:44].hex() == field + "0000"
    hear(client, grant(request, port=40000 if port else 0), 0.0)
    client.handle_timeout(4050.0)
    assert asked(client)[36:44].hex() == field + ("9c40" if port else "0000")
    client.unmap(mapping, 4051.0)
    assert asked(client)[36:44].hex() == field + "0000"


@pytest.mark.requirement("PCP-11.1-07")
@pytest.mark.requirement("PCP-11.2-04")
def test_there_are_no_ports_where_a_protocol_has_none_and_no_flow_without_them() -> None:
    client = make_client((2,))
    for protocol in (47, Protocol.ALL):
        for internal, external in ((80, 0), (0, 80)):
            with pytest.raises(LocalProtocolError, match="port"):
                client.map_port(protocol, internal, 0.0, external_port=external)
    with pytest.raises(LocalProtocolError, match="port"):
        client.map_peer(TCP, 0, REMOTE, 0.0)
    assert drain(client) == ([], [])
    # and a gateway that tells one is not taken at its word
    client.map_port(47, 0, 0.0)
    hear(client, grant(asked(client), port=7), 0.0)
    assert client.mappings[0].external == endpoint(EXTERNAL, 7)
    client.handle_timeout(4050.0)
    assert asked(client)[40:44] == bytes(4)


@pytest.mark.requirement("PCP-11.2-02")
@pytest.mark.requirement("PCP-11.2-03")
def test_another_port_than_the_suggested_one_is_as_good_at_any_time() -> None:
    client, gateway = make_client((2,)), make_gateway((2,))
    gateway.add_static(TCP, endpoint("192.168.1.8", 80), 8080, 0.0)
    sim = Simulation(client, gateway)
    client.map_port(TCP, 8080, sim.now, external_port=8080)
    sim.run_until(10.0)
    (granted,) = events_of(sim, MappingGranted)
    assert granted.external.port != 8080
    gateway.reboot(sim.now)
    gateway.add_static(TCP, endpoint("192.168.1.8", 81), granted.external.port, sim.now)  # somebody was faster
    sim.run_until(20.0)
    (changed,) = events_of(sim, MappingChanged)
    assert changed.old == granted.external != changed.new
    assert client.mappings[0].external == changed.new
    assert [event for _, event in sim.events if isinstance(event, MappingRefused | MappingLost | MappingFailed)] == []


@pytest.mark.requirement("PCP-11.2-06")
def test_nonces_are_drawn_by_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.SystemRandom, "randbytes", lambda self, n: b"\x5a" * n)
    client = Client(SERVER, local_address=LOCAL)
    client.map_port(TCP, 8080, 0.0)
    assert asked(client)[24:36] == b"\x5a" * 12


@pytest.mark.requirement("PCP-11.2-07")
@pytest.mark.requirement("PCP-11.2-08")
@pytest.mark.requirement("PCP-12.2-02")
@pytest.mark.requirement("PCP-12.2-03")
@pytest.mark.parametrize("opcode", [pcp.MAP, pcp.PEER])
@pytest.mark.parametrize("rng", [None, Middle(7)])
def test_nonces_are_new_for_each_client_and_for_each_server_that_a_client_moves_to(
    rng: random.Random | None, opcode: int
) -> None:
    nonces = []
    for _ in range(2):
        client = Client(SERVER, local_address=LOCAL, rng=rng)
        want(client, opcode)
        nonces.append(asked(client)[24:36])
        client.network_changed(1.0, gateway=THOSE)
        (*_, request), _ = drain(client)
        assert request[1:2] + request[4:8] == bytes((opcode,)) + (7200).to_bytes(4)
        nonces.append(request[24:36])
    assert len(set(nonces)) == 4


@pytest.mark.requirement("PCP-11.6-01")
def test_the_external_address_is_learnt_from_a_short_mapping_of_the_discard_port() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway)
    client.request_external_address(sim.now)
    sim.run_until(10.0)
    (_, request), (_, delete) = sends_of(sim)
    assert request[:8] == bytes.fromhex("0201000000000078")
    assert request[36:] == bytes.fromhex("1100000000090000") + ANY_V4
    assert delete == request[:4] + bytes(4) + request[8:]
    assert events_of(sim, ExternalAddressLearned) == [
        ExternalAddressLearned(gateway=SERVER, address=IPv4Address(EXTERNAL))
    ]
    assert (gateway.mappings, client.mappings) == ((), ())


@pytest.mark.requirement("PCP-15-06")
@pytest.mark.requirement("PCP-15-07")
def test_renewals_follow_the_granted_lifetime_whatever_was_asked_for_and_however_much_is_sent() -> None:
    client, gateway = make_client((2,)), make_gateway((2,), max_lifetime=120, tcp_idle=60)
    sim = Simulation(client, gateway)
    client.map_port(TCP, 8080, sim.now, lifetime=7200)
    client.map_peer(TCP, 8081, REMOTE, sim.now, lifetime=7200)
    for second in range(0, 300, 10):
        for port in (8080, 8081):
            sim.at(float(second), gateway.outbound, TCP, endpoint(LOCAL, port), endpoint(*REMOTE))
    sim.run_until(300.0)
    assert [(at, data[1]) for at, data in sends_of(sim)] == [
        (at, opcode) for at in (0.0, 67.5, 135.0, 202.5, 270.0) for opcode in (pcp.MAP, pcp.PEER)
    ]
    assert times_of(sim, MappingRenewed) == [at for at in (67.5, 135.0, 202.5, 270.0) for _ in range(2)]


@pytest.mark.requirement("PCP-16.3.3-01")
@pytest.mark.requirement("PCP-16.3.3-02")
@pytest.mark.requirement("PCP-16.3.3-03")
def test_sctp_is_asked_for_as_tcp_is_and_keeps_what_it_was_given() -> None:
    requests = []
    for protocol in (TCP, SCTP):
        client = make_client((2,))
        client.map_port(protocol, 5000, 0.0)
        first = asked(client)
        assert first[42:] == bytes(2) + ANY_V4  # and no PREFER_FAILURE behind it
        hear(client, grant(first, port=5000, address="203.0.113.9"), 0.0)
        client.handle_timeout(4050.0)
        renewal = asked(client)
        assert renewal[42:] == (5000).to_bytes(2) + octets("203.0.113.9")
        requests += [first, renewal]
    assert requests[2:] == [data[:36] + bytes((SCTP,)) + data[37:] for data in requests[:2]]


# --- RFC 6887: PEER requests


@pytest.mark.requirement("PCP-10.3-01")
@pytest.mark.requirement("PCP-12.1-08")
@pytest.mark.parametrize(
    ("server", "local", "remote", "wanted", "family"),
    [
        (SERVER, LOCAL, "198.51.100.23", None, 4),
        (V6_SERVER, V6, "2001:db8:9::9", None, 6),
        (SERVER, LOCAL, "198.51.100.23", "::", 6),
        (V6_SERVER, V6, "2001:db8:9::9", "0.0.0.0", 4),
    ],
)
def test_a_flow_is_kept_alive_by_a_peer_request_with_its_five_tuple(
    server: Address, local: str, remote: str, wanted: str | None, family: int
) -> None:
    client = Client(server, local_address=local, config=Config(versions=(2,)), rng=Middle(1))
    client.map_peer(TCP, 51234, (remote, 443), 0.0, external_address=wanted)
    request = asked(client)
    assert request[:2] == b"\2\2"
    assert request[8:24] == octets(local)
    assert request[36:44] == bytes.fromhex("06000000c8220000")
    assert request[44:60] == ZEROS[family]
    assert request[60:] == bytes.fromhex("01bb0000") + octets(remote)


@pytest.mark.requirement("PCP-10.4-01")
def test_the_state_of_a_flow_that_the_gateway_lost_is_rebuilt_as_it_was() -> None:
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway)
    outside = gateway.outbound(TCP, endpoint(LOCAL, 51234), endpoint(*REMOTE), sim.now)
    client.map_peer(TCP, 51234, REMOTE, sim.now)
    sim.run_until(100.0)
    (granted,) = events_of(sim, MappingGranted)
    assert granted.external == outside
    gateway.reboot(sim.now)
    assert externals(gateway) == []
    sim.run_until(110.0)
    first, again = [data for _, data in sends_of(sim)]
    assert outside is not None
    assert again == first[:42] + outside.port.to_bytes(2) + octets(EXTERNAL) + first[60:]
    assert [(each.external, each.remote) for each in gateway.mappings] == [(outside, endpoint(*REMOTE))]


@pytest.mark.requirement("PCP-12.3-09")
def test_a_peer_request_with_a_very_short_lifetime_tells_how_long_a_flow_has() -> None:
    client, gateway = make_client((2,)), make_gateway((2,), tcp_idle=1000)
    sim = Simulation(client, gateway)
    outside = gateway.outbound(TCP, endpoint(LOCAL, 51234), endpoint(*REMOTE), sim.now)
    sim.run_until(300.0)
    client.map_peer(TCP, 51234, REMOTE, sim.now, lifetime=1)
    sim.run_until(300.0)
    (granted,) = events_of(sim, MappingGranted)
    assert (granted.external, granted.lifetime, granted.expires_at) == (outside, 700.0, 1000.0)


@pytest.mark.requirement("PCP-12.4-01")
def test_the_answer_about_another_flow_is_not_the_answer() -> None:
    client = make_client((2,))
    client.map_peer(TCP, 51234, REMOTE, 0.0)
    request = asked(client)
    right = grant(request)
    fields_of_it = {"nonce": 24, "protocol": 36, "internal port": 41, "remote port": 61, "remote address": 79}
    for at in fields_of_it.values():
        wrong = right[:at] + bytes((right[at] ^ 1,)) + right[at + 1 :]
        assert hear(client, wrong, 0.5) == []
    as_map = b"\2\x81" + right[2:60]
    assert hear(client, as_map, 0.5) == []
    assert client.receive_datagram(right, STRANGER, 0.5) is False
    assert client.stats.rejected == {Rejected.UNASKED: len(fields_of_it) + 1}
    assert client.mappings[0].state is MappingState.REQUESTING
    assert isinstance(hear(client, right, 1.0)[-1], MappingGranted)


@pytest.mark.requirement("PCP-12.4-02")
def test_no_resources_for_one_flow_holds_back_requests_for_others() -> None:
    client = make_client((2,))
    client.map_peer(TCP, 51234, REMOTE, 0.0)
    hear(client, grant(asked(client), code=8, lifetime=30), 0.0)
    client.map_peer(TCP, 51235, REMOTE, 1.0)
    client.map_port(TCP, 8080, 1.0)
    client.handle_timeout(29.875)
    assert drain(client)[0] == []
    client.handle_timeout(30.0)
    assert sorted(data[40:42] for data in drain(client)[0]) == [port.to_bytes(2) for port in (8080, 51234, 51235)]


@pytest.mark.requirement("PCP-12.4-05")
def test_a_flow_to_an_ipv6_peer_may_have_an_ipv4_address_outside() -> None:
    client = Client(V6_SERVER, local_address=V6, rng=Middle(1))
    client.map_peer(TCP, 51234, ("64:ff9b::c633:6417", 443), 0.0)
    request = asked(client)
    client.receive_datagram(grant(request, address=EXTERNAL), V6_SERVER, 0.0)
    (granted,) = [event for event in drain(client)[1] if isinstance(event, MappingGranted)]
    assert granted.external == endpoint(EXTERNAL, 40000)


# --- RFC 6887: ANNOUNCE, PREFER_FAILURE


@pytest.mark.requirement("PCP-14.1.2-02")
@pytest.mark.requirement("PCP-14.1.2-04")
def test_a_probe_is_an_announce_that_tells_that_the_server_is_there_and_its_epoch_and_changes_nothing() -> None:
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway, latency=0.25)
    gateway.reboot(sim.now)
    sim.run_until(1000.0)
    client.probe(sim.now)
    sim.run_until(1001.0)
    assert [data for _, data in sends_of(sim)] == [b"\2\0" + bytes(6) + octets(LOCAL)]
    assert [event.findings for event in events_of(sim, ProbeCompleted)] == [
        (Finding(version=2, result_code=0, epoch=1000, round_trip=0.5),)
    ]
    assert events_of(sim, ProbeCompleted)[0].versions == (2,)
    assert (gateway.mappings, client.mappings, client.timers()) == ((), (), [])


@pytest.mark.requirement("PCP-13.2-07")
def test_a_success_with_another_endpoint_than_the_only_one_that_was_wanted_is_no_answer() -> None:
    client = make_client((2,))
    mapping = client.map_port(
        TCP, 8080, 0.0, external_port=40000, external_address=EXTERNAL, options=(pcp.PreferFailure(),)
    )
    request = asked(client)
    right = grant(request, options=(pcp.PreferFailure(),))
    assert hear(client, grant(request, port=40001), 0.5) == [VersionNegotiated(gateway=SERVER, version=2)]
    assert client.stats.rejected == {Rejected.OTHER_ENDPOINT: 1}
    for at in (24, 36):  # another nonce or protocol is not even that
        assert hear(client, right[:at] + bytes((right[at] ^ 1,)) + right[at + 1 :], 0.5) == []
    assert client.stats.rejected == {Rejected.OTHER_ENDPOINT: 1, Rejected.UNASKED: 2}
    look = client.mapping(mapping)
    assert look is not None
    assert look.state is MappingState.REQUESTING
    client.handle_timeout(3.0)
    assert asked(client) == request
    assert isinstance(hear(client, right, 3.25)[-1], MappingGranted)
    assert hear(client, grant(request, address="203.0.113.9", epoch=1004), 4.0) == []  # nor is it a change of it
    assert client.mappings[0].external == endpoint(EXTERNAL, 40000)


# --- RFC 7220, 7225, 7753 and 7843: options


@pytest.mark.requirement("EXT7220-3-03")
@pytest.mark.parametrize("granted", [(), (pcp.Description("Camera"),), (pcp.Description("Cam"),)])
def test_an_answer_tells_which_options_were_processed(granted: tuple[pcp.Option, ...]) -> None:
    client = make_client((2,))
    client.map_port(TCP, 8080, 0.0, options=(pcp.Description("Camera"),))
    hear(client, grant(asked(client), options=granted), 0.0)
    assert client.mappings[0].granted_options == granted  # none of it, all of it, or as much as was kept
    client.handle_timeout(4050.0)
    hear(client, grant(asked(client), epoch=5050), 4050.0)
    assert client.mappings[0].granted_options == ()  # the last answer counts
    assert client.mappings[0].options == (pcp.Description("Camera"),)


@pytest.mark.requirement("EXT7220-4-02")
@pytest.mark.parametrize("opcode", [pcp.MAP, pcp.PEER])
def test_a_mapping_is_described_only_by_who_asks_for_it(opcode: int) -> None:
    client = make_client((2,))
    want(client, opcode)
    assert len(asked(client)) == pcp.SIZES[opcode]  # there is no option at all


NAT64, OTHER_NAT64 = (pcp.Prefix64(IPv6Network(text)) for text in ("2001:db8:64::/56", "2001:db8:6400::/48"))


def told_of(client: Client, prefix: pcp.Prefix64, source: Address = SERVER) -> Client:
    """A client that asked for prefixes, and was granted a mapping with this one."""
    client.map_port(TCP, 8080, 0.0, options=(pcp.Prefix64(),))
    assert client.receive_datagram(grant(asked(client), options=(prefix,)), source, 0.0)
    assert list(client.prefixes) == [prefix]
    drain(client)
    return client


@pytest.mark.requirement("EXT7225-4.3-03")
def test_the_prefixes_of_one_server_are_not_those_of_another() -> None:
    one = told_of(make_client((2,)), NAT64)
    other = told_of(Client(THOSE, local_address=LOCAL, rng=Middle(2)), OTHER_NAT64, THOSE)
    both = Multiplexer(one, other)
    assert both.receive_datagram(announce(1001, NAT64, OTHER_NAT64), THOSE, 1.0)
    assert (one.prefixes, other.prefixes) == ((NAT64,), (NAT64, OTHER_NAT64))
    one.network_changed(2.0, gateway=THOSE)
    assert one.prefixes == ()


@pytest.mark.requirement("EXT7225-4.3-04")
@pytest.mark.parametrize("failure", ["silence", "closed port"])
def test_the_prefixes_of_a_server_that_cannot_be_reached_are_forgotten(failure: str) -> None:
    client = told_of(make_client((2,)), NAT64)
    client.map_port(TCP, 8081, 0.0)
    if failure == "silence":
        sim = Simulation(client)
        sim.run_until(44.0)
        assert list(client.prefixes) == [NAT64]
        sim.run_until(45.0)
        assert times_of(sim, GatewayUnreachable) == [45.0]
    else:
        client.gateway_unreachable(1.0)
        assert isinstance(drain(client)[1][0], GatewayUnreachable)
    assert list(client.prefixes) == []


@pytest.mark.requirement("EXT7225-4.3-06")
def test_new_prefixes_replace_all_that_were_known_also_those_of_an_announcement() -> None:
    client = told_of(make_client((2,)), NAT64)
    hear(client, announce(1001, OTHER_NAT64), 1.0)
    assert list(client.prefixes) == [OTHER_NAT64]
    hear(client, announce(1002), 2.0)  # which says nothing of them
    assert list(client.prefixes) == [OTHER_NAT64]
    hear(client, announce(1003, NAT64, OTHER_NAT64), 3.0)
    assert list(client.prefixes) == [NAT64, OTHER_NAT64]


@pytest.mark.requirement("EXT7225-7-01")
def test_prefixes_that_are_forged_are_not_believed() -> None:
    client = make_client((2,))
    client.map_port(TCP, 8080, 0.0, options=(pcp.Prefix64(),))
    request = asked(client)
    right = grant(request, options=(NAT64,))
    for source in (STRANGER, ("192.168.1.1", 5350)):
        assert client.receive_datagram(right, source, 0.5) is False
        assert client.receive_datagram(announce(1000, NAT64), source, 0.5) is False
    for at in (24, 36, 41):  # nonce, protocol, port
        assert hear(client, right[:at] + bytes((right[at] ^ 1,)) + right[at + 1 :], 0.5) == []
    assert list(client.prefixes) == []
    hear(client, right, 1.0)
    assert list(client.prefixes) == [NAT64]


@pytest.mark.requirement("EXT7753-4.4-02")
def test_a_port_set_is_renewed_recovered_and_deleted_as_one() -> None:
    port_set = pcp.PortSet(10, 5000).encode()
    client, gateway = make_client((2,)), make_gateway((2,))
    sim = Simulation(client, gateway)
    mapping = client.map_port(UDP, 5000, sim.now, options=(pcp.PortSet(10, 5000),))
    sim.run_until(5000.0)
    gateway.reboot(sim.now)
    sim.run_until(5010.0)
    client.unmap(mapping, sim.now)
    sim.run_until(5010.0)
    assert [(at, data[4:8].hex(), data[60:]) for at, data in sends_of(sim)] == [
        (0.0, "00001c20", port_set),
        (4050.0, "00001c20", port_set),
        (5002.5, "00001c20", port_set),
        (5010.0, "00000000", port_set),
    ]
    assert gateway.mappings == ()


@pytest.mark.requirement("EXT7753-6.3-01")
def test_port_sets_do_not_overlap_by_accident() -> None:
    client = make_client((2,))
    whole = client.map_port(UDP, 1, 0.0, options=(pcp.PortSet(10, 1),))
    sent = asked(client)
    for first, options in ((5, (pcp.PortSet(10, 5),)), (10, (pcp.PortSet(1, 10),)), (10, ()), (5, ())):
        with pytest.raises(LocalProtocolError, match=r"overlap with a mapping of 1 to 10"):
            client.map_port(UDP, first, 0.0, options=options)
    client.map_port(UDP, 20, 0.0)
    with pytest.raises(LocalProtocolError, match="overlap with a mapping of 20 to 20"):
        client.map_port(UDP, 11, 0.0, options=(pcp.PortSet(10, 11),))
    # the next ports, another protocol, one flow from a port of the set, another family outside, another host's ports
    client.map_port(UDP, 11, 0.0, options=(pcp.PortSet(9, 11),))
    client.map_port(TCP, 5, 0.0, options=(pcp.PortSet(10, 5),))
    client.map_peer(UDP, 5, REMOTE, 0.0)
    client.map_port(UDP, 1, 0.0, external_address="::", options=(pcp.PortSet(10, 1),))
    client.map_port(UDP, 1, 0.0, options=(pcp.ThirdParty("192.168.1.20"), pcp.PortSet(10, 1)))
    assert len(drain(client)[0]) == 6
    client.unmap(whole, 1.0)
    hear(client, grant(asked(client), lifetime=0, port=0), 1.0)
    client.map_port(UDP, 5, 2.0, options=(pcp.PortSet(6, 5),))
    assert asked(client)[24:36] != sent[24:36]


@pytest.mark.requirement("EXT7843-5.3-01")
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (24, "THIRD_PARTY_ID_UNKNOWN"),
        (25, "THIRD_PARTY_MISSING_OPTION"),
        (26, "UNSUPP_THIRD_PARTY_ID_LENGTH"),
    ],
)
def test_a_third_party_id_that_the_server_does_not_take_is_a_failure(code: int, name: str) -> None:
    client = make_client((2,))
    options = (pcp.ThirdParty("192.168.1.20"), pcp.ThirdPartyId(b"\0\0\xab\xcd"))
    mapping = client.map_port(TCP, 8080, 0.0, options=options)
    events = hear(client, grant(asked(client), code=code, lifetime=1800, options=options), 0.0)
    (failed,) = [event for event in events if isinstance(event, MappingFailed)]
    assert (failed.mapping, failed.reason, failed.result_code) == (mapping, Reason.THIRD_PARTY_ID, code)
    assert pcp.ResultCode(code).name == name
    assert (
        f"THIRD_PARTY_ID, or not without THIRD_PARTY, or not in this length (result code {code})" in failed.describe()
    )


# --- RFC 7488: a server with several addresses. RFC 7723: one address with several servers


def several(*addresses: Address, **config: typing.Any) -> Client:
    return Client(addresses, local_address=LOCAL, config=Config(versions=(2,), **config), rng=Middle(1))


@pytest.mark.requirement("PCP-8.1.1-12")
@pytest.mark.requirement("EXT7488-3-01")
@pytest.mark.requirement("EXT7488-3-02")
@pytest.mark.requirement("EXT7488-3-05")
@pytest.mark.requirement("EXT7488-3-07")
@pytest.mark.parametrize("opcode", [pcp.MAP, pcp.PEER])
def test_each_address_of_a_silent_server_is_asked_four_times_and_all_of_them_every_quarter_of_an_hour(
    opcode: int,
) -> None:
    client = several(SERVER, THOSE)
    mapping = want(client, opcode)
    sim = Simulation(client)
    sim.run_until(1100.0)
    once = [(at, SERVER) for at in (0.0, 3.0, 9.0, 21.0)] + [(at, THOSE) for at in (45.0, 48.0, 54.0, 66.0)]
    again = [(990.0 + at, address) for at, address in once]
    assert [(each.at, each.target) for each in sim.sent] == once + again
    assert len({each.data for each in sim.sent}) == 1  # and with it the nonce
    assert [(at, event) for at, event in sim.events if isinstance(event, GatewayUnreachable)] == [
        (90.0, GatewayUnreachable(gateway=SERVER, reason=Reason.NO_ANSWER))
    ]
    refused = [(at, event.mapping, event.retry_at) for at, event in sim.events if isinstance(event, MappingRefused)]
    assert refused == [(90.0, mapping, 990.0), (1080.0, mapping, 1980.0)]


@pytest.mark.requirement("EXT7488-3-03")
def test_an_answer_from_an_address_that_was_given_up_comes_too_late() -> None:
    client = several(SERVER, THOSE)
    client.map_port(TCP, 8080, 0.0)
    request = asked(client)
    sim = Simulation(client)
    sim.run_until(50.0)
    assert sim.inject(client, grant(request), SERVER)
    sim.run_until(60.0)
    assert client.stats.rejected == {Rejected.GIVEN_UP: 1}
    assert sim.events == []
    assert [(each.at, each.target) for each in sim.sent[3:]] == [(45.0, THOSE), (48.0, THOSE), (54.0, THOSE)]
    assert sim.inject(client, grant(request), THOSE)
    sim.run_until(60.0)
    assert [event.gateway for event in events_of(sim, MappingGranted)] == [THOSE]


@pytest.mark.requirement("EXT7488-3-01")
@pytest.mark.requirement("EXT7488-3-04")
def test_a_closed_port_leads_to_the_next_address_at_once() -> None:
    third: Address = ("192.168.1.3", 5351)
    client = several(SERVER, THOSE, third)
    sim = Simulation(client)
    client.map_port(TCP, 8080, sim.now)
    for at in (0.125, 0.25, 0.375):
        sim.at(at, client.gateway_unreachable)
    sim.run_until(0.5)
    assert [(each.at, each.target) for each in sim.sent] == [(0.0, SERVER), (0.125, THOSE), (0.25, third)]
    assert [(at, event.retry_at) for at, event in sim.events if isinstance(event, MappingRefused)] == [(0.375, 900.375)]


@pytest.mark.requirement("EXT7488-3-06")
def test_an_address_that_answered_is_kept_until_it_falls_silent_and_then_the_other_one_saves_the_lease() -> None:
    client = several(SERVER, THOSE)
    sim = Simulation(client, second := Gateway(EXTERNAL, address=THOSE, rng=Middle(3)))
    client.map_port(TCP, 8080, sim.now, lifetime=960)
    sim.run_until(46.0)
    sim.add(Gateway(EXTERNAL, address=SERVER, rng=Middle(4)))
    sim.connect(client, second, Link(loss=1.0))
    sim.run_until(800.0)
    sim.connect(client, second, Link())
    sim.run_until(900.0)
    sim.connect(client, second, Link(loss=1.0))
    sim.run_until(1900.0)
    # two renewals are not answered, the third is, and then four are not: as many as a request is sent
    silent = [900.0 + at for at in (540.0, 750.0, 855.0, 907.5)]
    saved = silent[-1] + 4.0
    sent = [(each.at, each.target) for each in sim.sent if each.source[0] == LOCAL]
    assert sent[4:] == [*((at, THOSE) for at in (45.0, 585.0, 795.0, 900.0, *silent)), (saved, SERVER)]
    (granted,) = events_of(sim, MappingGranted)
    assert [(at, event) for at, event in sim.events if isinstance(event, MappingRenewed)][1:] == [
        (
            saved,
            MappingRenewed(
                gateway=SERVER,
                mapping=granted.mapping,
                protocol=TCP,
                internal_port=8080,
                external=granted.external,
                lifetime=960.0,
                expires_at=saved + 960.0,
            ),
        )
    ]
    assert events_of(sim, GatewayUnreachable) == []


@pytest.mark.requirement("EXT7488-3-06")
def test_a_lease_that_no_address_renews_has_met_with_silence_everywhere_and_is_lost() -> None:
    client = several(SERVER, THOSE)
    client.map_port(TCP, 8080, 0.0, lifetime=86400)
    client.receive_datagram(grant(asked(client)), SERVER, 0.0)
    sim = Simulation(client)
    sim.run_until(86400.0)
    assert [(each.at, each.target) for each in sim.sent[:8]] == [
        *((at, SERVER) for at in (48600.0, 67500.0, 76950.0, 81675.0)),
        *((at, THOSE) for at in (81679.0, 84037.5, 85218.75, 85809.375)),
    ]
    assert times_of(sim, GatewayUnreachable) == [85812.375]
    assert times_of(sim, MappingLost) == [86400.0]


@pytest.mark.requirement("EXT7723-3-01")
def test_a_route_to_another_anycast_server_looks_like_a_restart() -> None:
    anycast: Address = (pcp.ANYCAST_V4, 5351)
    client = Client(anycast, local_address=LOCAL, config=Config(versions=(2,)), rng=Middle(1))
    for port in (8080, 8081):
        client.map_port(TCP, port, 0.0)
    requests, _ = drain(client)
    for request in requests:
        client.receive_datagram(grant(request, epoch=5000), anycast, 0.0)
    drain(client)
    client.handle_timeout(4050.0)
    client.receive_datagram(grant(drain(client)[0][0], epoch=77), anycast, 4050.0)
    assert GatewayRestarted(gateway=anycast, recovery_at=4052.5) in drain(client)[1]
    client.handle_timeout(4052.5)
    assert sorted(data[40:42] for data in drain(client)[0]) == [port.to_bytes(2) for port in (8081,)]
