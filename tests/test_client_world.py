"""What happens around a client: other networks, several addresses, restarts of its own program, and questions."""

from __future__ import annotations

import json
import typing
from ipaddress import ip_address

import pytest

from helpers import (
    EXTERNAL,
    LOCAL,
    SERVER,
    V6_SERVER,
    Middle,
    answer,
    drain,
    endpoint,
    events_of,
    held,
    make_client,
    make_gateway,
    natpmp_answer,
    sends_of,
)
from natpmp_sansio import (
    Address,
    Client,
    Closed,
    Config,
    DoubleNatSuspected,
    ExternalAddressChanged,
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
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    MappingState,
    Multiplexer,
    ProbeCompleted,
    Protocol,
    Quirk,
    Reason,
    Rejected,
    Timer,
    Tolerated,
    VersionNegotiated,
    decode,
    natpmp,
    pcp,
)
from natpmp_sansio.testing import Link, Simulation

TCP, UDP = Protocol.TCP, Protocol.UDP
A: Address = ("10.0.0.1", 5351)
B: Address = ("10.0.0.2", 5351)


def world(
    versions: tuple[int, ...] = (2, 0),
    quirks: tuple[Quirk, ...] = (),
    external: str | None = EXTERNAL,
    **config: typing.Any,
) -> tuple[Client, Gateway, Simulation]:
    """A client that speaks both, and a gateway that speaks `versions`."""
    client = make_client(**config)
    gateway = Gateway(external, address=SERVER, config=GatewayConfig(versions=versions), rng=Middle(2), quirks=quirks)
    return client, gateway, Simulation(client, gateway, latency=0.125)


def asked(sim: Simulation, since: float) -> list[str]:
    """What the client sent from an instant on, in words."""
    return [f"{at:g} {decode(data).describe()}" for at, data in sends_of(sim) if at >= since]


# --- another network


@pytest.mark.parametrize("versions", [(2,), (0,)], ids=["PCP", "NAT-PMP"])
def test_a_host_that_woke_up_confirms_every_mapping_at_once(versions: tuple[int, ...]) -> None:
    client, gateway, sim = world(versions)
    mappings = [client.map_port(TCP, port, sim.now) for port in (80, 81, 82)]
    sim.run_until(100.0)
    before = gateway.mappings
    sim.at(100.0, client.network_changed)
    sim.run_until(105.0)
    renewed = events_of(sim, MappingRenewed)
    assert [event.mapping for event in renewed] == mappings
    assert [mapping.external for mapping in gateway.mappings] == [mapping.external for mapping in before]
    assert min(at for at, _ in sends_of(sim) if at > 50.0) == 100.0


def test_a_host_that_woke_up_where_the_gateway_had_lost_its_table_has_it_back_at_once() -> None:
    """Neither an epoch nor an announcement tells: the gateway counts on."""
    client, gateway, sim = world((2,), (Quirk.EPOCH_SURVIVES_REBOOT, Quirk.NEVER_ANNOUNCES))
    client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    gateway.reboot(sim.now)
    assert gateway.mappings == ()
    client.network_changed(sim.now)
    sim.run_until(101.0)
    assert len(gateway.mappings) == 1


def test_what_was_refused_or_held_back_is_asked_for_again_after_a_change_of_network() -> None:
    client = make_client((2,))
    refused = client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=pcp.ResultCode.NO_RESOURCES, lifetime=600), SERVER, 0.0)
    held_back = client.map_port(UDP, 80, 1.0)
    datagrams, events = drain(client)
    assert datagrams == []
    assert [type(event) for event in events] == [VersionNegotiated, MappingRefused]
    client.network_changed(2.0)
    datagrams, events = drain(client)
    assert [decode(data).protocol for data in datagrams] == [TCP, UDP]  # type: ignore[union-attr]
    assert events == []
    assert [mapping.id for mapping in client.mappings] == [refused, held_back]


def test_what_is_under_way_starts_anew_after_a_change_of_network() -> None:
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0)
    drain(client)
    client.network_changed(2.5)
    datagrams, _ = drain(client)
    assert len(datagrams) == 1
    assert [(info.deadline, info.reason) for info in client.timers()] == [(5.5, Timer.RETRANSMIT)]


def test_that_the_gateway_speaks_nat_pmp_only_is_forgotten_when_the_network_changes() -> None:
    client, gateway, sim = world((0,))
    client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    client.network_changed(sim.now)
    datagrams, _ = drain(client)
    assert [data[0] for data in datagrams] == [2]
    assert gateway.mappings != ()


@pytest.mark.requirement("PCP-8.4-04")
@pytest.mark.requirement("PCP-11.5-03")
def test_at_another_local_address_pcp_mappings_are_deleted_at_the_old_one_and_asked_for_at_the_new() -> None:
    client, gateway, sim = world((2,))
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    client.network_changed(sim.now, local_address="192.168.1.99")
    assert client.bind_address == ("192.168.1.99", 0)
    (deletion, request), events = drain(client)
    assert events == []
    assert decode(deletion).describe() == "PCP MAP request: TCP 80 of 192.168.1.7: delete"
    new = decode(request)
    assert isinstance(new, pcp.MapRequest)
    assert (new.client_address, new.suggested_external_port) == (ip_address("192.168.1.99"), 2048)
    assert new.nonce != decode(deletion).nonce  # type: ignore[union-attr]
    # The old mapping counts until the new one is there, though not for long.
    look = client.mapping(mapping)
    assert look is not None
    assert (look.state, look.expires_at, look.renew_at) == (MappingState.HELD, 130.0, None)
    gateway.receive_datagram(deletion, (LOCAL, 49152), 100.0)
    gateway.receive_datagram(request, ("192.168.1.99", 49152), 100.0)
    for data in drain(gateway)[0]:
        client.receive_datagram(data, SERVER, 100.0)
    assert [str(entry.internal) for entry in gateway.mappings] == ["192.168.1.99:80"]
    _, events = drain(client)
    assert [type(event) for event in events][-1] is MappingChanged


def test_what_is_mapped_for_another_host_stays_what_it_is_at_another_local_address() -> None:
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0, options=(pcp.ThirdParty("192.168.1.50"),))
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, options=(pcp.ThirdParty("192.168.1.50"),)), SERVER, 0.0)
    drain(client)
    client.network_changed(10.0, local_address="192.168.1.99")
    (again,), _ = drain(client)
    assert decode(again).lifetime == 7200  # type: ignore[union-attr]
    assert decode(again).nonce == decode(request).nonce  # type: ignore[union-attr]
    client.network_changed(20.0, gateway=A)
    (elsewhere,), _ = drain(client)
    assert decode(elsewhere).nonce != decode(request).nonce  # type: ignore[union-attr]


def test_at_another_local_address_nothing_is_deleted_in_nat_pmp_as_it_would_be_the_new_hosts() -> None:
    client = make_client((0,))
    client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
    drain(client)
    client.network_changed(10.0, local_address="192.168.1.99")
    datagrams, _ = drain(client)
    assert [decode(data).lifetime for data in datagrams] == [7200]  # type: ignore[union-attr]


def test_at_another_gateway_mappings_move_there_with_new_nonces_and_the_old_ones_are_deleted() -> None:
    old = Gateway(EXTERNAL, address=SERVER, rng=Middle(2))
    new = Gateway("198.51.100.9", address=A, rng=Middle(3))
    client = make_client()
    sim = Simulation(client, old, new, latency=0.125)
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    first = decode(sends_of(sim)[0][1])
    sim.at(100.0, client.network_changed, gateway=A)
    sim.run_until(110.0)
    assert old.mappings == ()
    assert [str(entry.external) for entry in new.mappings] == ["198.51.100.9:2048"]
    (changed,) = events_of(sim, MappingChanged)
    assert (changed.gateway, changed.mapping) == (A, mapping)
    assert (changed.old, changed.new) == (endpoint(EXTERNAL, 2048), endpoint("198.51.100.9", 2048))
    nonces = [decode(data).nonce for at, data in sends_of(sim)]  # type: ignore[union-attr]
    assert nonces[:2] == [first.nonce] * 2  # type: ignore[union-attr]
    assert nonces[2] != nonces[0]
    assert client.external_address == ip_address("198.51.100.9")
    assert client.gateway == A


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "refusing"])
def test_what_cannot_be_had_at_another_gateway_is_lost_there(is_silent: bool) -> None:
    client, _, sim = world((2,), strict=True)
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    if not is_silent:
        sim.add(Gateway(EXTERNAL, address=A, config=GatewayConfig(allow_map=False)))
    sim.at(100.0, client.network_changed, gateway=A)
    sim.run_until(135.0)
    (lost,) = [(at, event) for at, event in sim.events if isinstance(event, MappingLost)]
    reason = Reason.NETWORK_CHANGED if is_silent else Reason.NOT_AUTHORIZED
    assert (lost[0], lost[1].reason, lost[1].mapping) == (130.0 if is_silent else 100.25, reason, mapping)


def test_from_an_ipv4_to_an_ipv6_network_and_back() -> None:
    client = make_client()
    held(client)
    client.network_changed(10.0, local_address="2001:db8:1::10", gateway=V6_SERVER)
    assert client.bind_address == ("2001:db8:1::10", 0, 0, 2)
    deletion, request = (decode(data) for data in drain(client)[0])
    assert deletion.describe() == "PCP MAP request: TCP 8080 of 192.168.1.7: delete"
    assert isinstance(request, pcp.MapRequest)
    assert request.suggested_external_address == ip_address("::")
    client.network_changed(20.0, local_address=LOCAL, gateway=SERVER)
    assert client.gateway == SERVER


def test_what_was_being_released_is_not_waited_for_when_the_gateway_is_another() -> None:
    client = make_client((2,))
    mapping = held(client)
    client.unmap(mapping, 1.0)
    drain(client)
    client.network_changed(2.0, gateway=A)
    _, events = drain(client)
    assert [(type(event), getattr(event, "confirmed", None)) for event in events] == [(MappingReleased, False)]


def test_what_is_being_released_is_deleted_anew_when_the_host_woke_up() -> None:
    client = make_client((2,))
    mapping = held(client)
    client.unmap(mapping, 1.0)
    (deletion,), _ = drain(client)
    client.network_changed(2.0)
    assert drain(client)[0] == [deletion]


def test_an_errand_is_left_behind_at_the_old_gateway() -> None:
    client = make_client((2,))
    client.request_external_address(0.0)
    drain(client)
    client.network_changed(1.0, gateway=A)
    assert drain(client) == ([], [])
    assert client.timers() == []


def test_a_closed_client_does_not_care_about_networks() -> None:
    client = make_client()
    held(client)
    client.close(1.0)
    drain(client)
    timers = client.timers()
    client.network_changed(2.0, gateway=A)
    assert client.timers() == timers
    assert drain(client) == ([], [])


def test_a_network_that_cannot_be_is_refused_before_anything_changes() -> None:
    client = make_client((0,))
    before = (client.mappings, client.timers(), client.bind_address, client.gateway)
    wrongs: list[dict[str, typing.Any]] = [
        {"local_address": "nowhere"},
        {"gateway": ("nowhere", 5351)},
        {"gateway": []},
        {"local_address": "2001:db8::1"},  # NAT-PMP is for IPv4
    ]
    for wrong in wrongs:
        with pytest.raises(LocalProtocolError):
            client.network_changed(1.0, **wrong)
    assert (client.mappings, client.timers(), client.bind_address, client.gateway) == before


# --- several addresses of one server


@pytest.mark.requirement("EXT7488-3-01")
@pytest.mark.requirement("EXT7488-3-02")
@pytest.mark.requirement("EXT7488-3-05")
@pytest.mark.requirement("EXT7488-3-07")
@pytest.mark.requirement("PCP-8.1.1-12")
def test_each_address_of_a_server_is_asked_four_times_in_their_order_and_all_again_after_15_minutes() -> None:
    client = Client([A, B], local_address=LOCAL, config=Config(versions=(2,)), rng=Middle(1))
    assert (client.gateway, client.gateways) == (A, (A, B))
    sim = Simulation(client)
    client.map_port(TCP, 80, sim.now)
    sim.run_until(1050.0)
    sent = [(each.at, each.target) for each in sim.sent]
    times = [0.0, 3.0, 9.0, 21.0]
    second = [(45.0 + at, B) for at in times]
    again = [(990.0 + at, A) for at in times] + [(1035.0 + at, B) for at in times[:3]]
    assert sent == [*((at, A) for at in times), *second, *again]
    assert len({each.data for each in sim.sent}) == 1  # the nonce as well
    assert [(at, type(event)) for at, event in sim.events] == [(90.0, GatewayUnreachable), (90.0, MappingRefused)]


def test_the_question_for_the_other_version_is_asked_anew_at_the_next_address() -> None:
    client = Client([A, B], local_address=LOCAL, rng=Middle(1))
    sim = Simulation(client)
    client.map_port(TCP, 80, sim.now)
    sim.run_until(50.0)
    sent = [(each.at, each.target, each.data[0]) for each in sim.sent if each.at > 40.0]
    assert sent == [
        (45.0, B, 2),
        (46.0, B, 2),
        (46.0, B, 0),
        (46.25, B, 0),
        (46.75, B, 0),
        (47.75, B, 0),
        (48.0, B, 2),
        (49.75, B, 0),
    ]


@pytest.mark.requirement("EXT7488-3-03")
def test_an_answer_from_an_address_that_was_given_up_is_ignored() -> None:
    client = Client([A, B], local_address=LOCAL, config=Config(versions=(2,)), rng=Middle(1))
    client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    while client.gateway == A:
        client.handle_timeout(client.next_timeout() or 0.0)
        drain(client)
    assert client.receive_datagram(answer(request), A, 50.0) is True
    assert drain(client) == ([], [])
    assert client.stats.rejected == {Rejected.GIVEN_UP: 1}
    assert client.receive_datagram(answer(request), B, 50.0)
    assert [type(event) for event in drain(client)[1]][-1] is MappingGranted


@pytest.mark.requirement("EXT7488-3-04")
def test_a_hard_error_leads_to_the_next_address_at_once() -> None:
    client = Client([A, B], local_address=LOCAL, rng=Middle(1))
    client.map_port(TCP, 80, 0.0)
    drain(client)
    client.gateway_unreachable(0.125)
    assert [output.addr for output in client.outputs()] == [B]  # type: ignore[union-attr]
    client.gateway_unreachable(0.25)
    assert [type(output) for output in client.outputs()] == [GatewayUnreachable, MappingRefused]
    assert (client.gateway, client.mappings[0].retry_at) == (A, 900.25)


@pytest.mark.requirement("EXT7488-3-06")
def test_after_a_success_a_client_stays_with_that_address_until_it_falls_silent() -> None:
    second = Gateway(EXTERNAL, address=B, rng=Middle(2))
    client = Client([A, B], local_address=LOCAL, config=Config(versions=(2,)), rng=Middle(1))
    sim = Simulation(client, second, latency=0.125)
    client.map_port(TCP, 80, sim.now, lifetime=600)
    sim.run_until(2000.0)
    targets = [each.target for each in sim.sent if each.source[0] == LOCAL]
    assert targets[:4] == [A] * 4
    assert set(targets[4:]) == {B}
    assert len(events_of(sim, MappingRenewed)) == 5
    sim.partition(second)
    first = Gateway("198.51.100.9", address=A, rng=Middle(3))
    sim.add(first)
    sim.run_until(3000.0)
    assert client.gateway == A
    assert len(first.mappings) == 1


def test_a_probe_goes_on_at_the_next_address() -> None:
    client = Client([A, B], local_address=LOCAL, rng=Middle(1))
    client.probe(0.0)
    assert {output.addr for output in client.outputs()} == {A}  # type: ignore[union-attr]
    client.gateway_unreachable(0.125)
    assert [output.addr for output in client.outputs()] == [B, B]  # type: ignore[union-attr]
    client.gateway_unreachable(0.25)
    (unreachable, completed) = client.outputs()
    assert isinstance(unreachable, GatewayUnreachable)
    assert isinstance(completed, ProbeCompleted)
    assert completed.reason is Reason.UNREACHABLE


def test_clients_of_one_server_cannot_share_a_socket_whichever_address_they_use() -> None:
    with pytest.raises(LocalProtocolError, match="same gateway"):
        Multiplexer(Client([A, B], local_address=LOCAL), Client(B, local_address=LOCAL))


# --- another process


def saved(client: Client, now: float) -> dict[str, typing.Any]:
    """A snapshot as it comes back from a file."""
    snapshot: dict[str, typing.Any] = json.loads(json.dumps(client.snapshot(now)))
    return snapshot


def test_a_restored_client_confirms_everything_at_once_with_the_same_nonces_ids_and_endpoints() -> None:
    client, gateway, sim = world((2,))
    client.map_port(TCP, 80, sim.now, external_port=6000)
    client.map_peer(UDP, 5000, ("198.51.100.7", 443), sim.now)
    client.map_pair(7000, sim.now, options=(pcp.Description("a game"),))
    client.map_port(TCP, 81, sim.now, until=5000.0)
    sim.run_until(100.0)
    before, table = client.mappings, [entry.external for entry in gateway.mappings]
    first = {decode(data).nonce for _, data in sends_of(sim)}  # type: ignore[union-attr]
    snapshot = saved(client, sim.now)
    restored = Client.restore(snapshot, 7.0, elapsed=33.0, rng=Middle(9))
    assert [mapping.id for mapping in restored.mappings] == [mapping.id for mapping in before]
    second = Simulation(restored, gateway, latency=0.125)
    second.run_until(20.0)
    assert [entry.external for entry in gateway.mappings] == table
    assert {decode(data).nonce for _, data in sends_of(second)} == first  # type: ignore[union-attr]
    assert {data[4:8] for at, data in sends_of(second)} >= {(4867).to_bytes(4)}  # the deadline is nearer now
    assert [(mapping.id, mapping.external, mapping.options) for mapping in restored.mappings] == [
        (mapping.id, mapping.external, mapping.options) for mapping in before
    ]
    assert restored.map_port(TCP, 90, 20.0) > max(mapping.id for mapping in before)


def test_a_restored_mapping_is_released_with_as_many_deletes_as_one_that_was_granted() -> None:
    client = make_client((2,))
    mapping = held(client)
    restored = Client.restore(saved(client, 10.0), 0.0, elapsed=0.0, config=Config(versions=(2,)), rng=Middle(1))
    drain(restored)
    restored.unmap(mapping, 1.0)
    sim = Simulation(restored)
    sim.run_until(60.0)
    assert len(sends_of(sim)) == 3


def test_an_expired_lease_is_asked_for_afresh_and_a_deadline_that_passed_is_kept() -> None:
    client = make_client((2,))
    held(client, lifetime=600)
    ended = client.map_port(UDP, 81, 0.0, until=50.0)
    drain(client)
    restored = Client.restore(saved(client, 10.0), 0.0, elapsed=1000.0, rng=Middle(1))
    datagrams, _ = drain(restored)
    assert [decode(data).lifetime for data in datagrams] == [600, 1]  # type: ignore[union-attr]
    restored.handle_timeout(restored.next_timeout() or 0.0)
    assert restored.mapping(ended) is not None
    (mapping,) = [each for each in restored.mappings if each.id == ended]
    assert mapping.state is MappingState.RELEASING


def test_a_restored_pair_is_still_a_pair() -> None:
    client, gateway, sim = world((2,))
    tcp, udp = client.map_pair(5000, sim.now)
    sim.run_until(10.0)
    restored = Client.restore(saved(client, 10.0), 0.0, elapsed=0.0, rng=Middle(1))
    again = Simulation(restored, gateway, latency=0.125)
    again.run_until(10.0)
    assert [decode(data).protocol for _, data in sends_of(again)] == [UDP, TCP]  # type: ignore[union-attr]
    assert [event.mapping for event in events_of(again, MappingGranted)] == [tcp, udp]


def test_at_another_address_a_restored_client_asks_for_new_mappings() -> None:
    client = make_client((2,))
    held(client)
    restored = Client.restore(saved(client, 1.0), 0.0, elapsed=0.0, local_address="192.168.1.99", rng=Middle(1))
    (request,), _ = drain(restored)
    assert decode(request).client_address == ip_address("192.168.1.99")  # type: ignore[union-attr]


def test_what_is_being_released_and_errands_are_not_in_a_snapshot() -> None:
    client = make_client((2,))
    client.unmap(held(client), 1.0)
    client.request_external_address(1.0)
    drain(client)
    assert client.snapshot(1.0)["mappings"] == []
    assert client.mappings[0].state is MappingState.RELEASING
    assert client.mapping(typing.cast("typing.Any", 2)) is None


def damage(path: str, value: object) -> typing.Any:
    return pytest.param(path, value, id=f"{path}={value!r}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        damage("form", "something else"),
        damage("gateways", []),
        damage("gateways", 7),
        damage("gateways", [["nowhere", 5351]]),
        damage("local_address", "nowhere"),
        damage("last_id", "many"),
        damage("last_id", 0),
        damage("mappings", None),
        damage("mappings.0", {}),
        damage("mappings.0.id", True),
        damage("mappings.0.id", 2),
        damage("mappings.0.nonce", "00"),
        damage("mappings.0.nonce", "not hex"),
        damage("mappings.0.external", None),
        damage("mappings.0.external", [None]),
        damage("mappings.0.options", "ff"),
        damage("mappings.0.lifetime", 0),
        damage("mappings.0.until", float("nan")),
        damage("mappings.0.protocol", 300),
        damage("mappings.0.twin", 7),
        damage("mappings.1.internal_port", 8080),
    ],
)
def test_a_damaged_snapshot_is_refused_with_a_sentence(path: str, value: object) -> None:
    client = make_client((2,))
    held(client)
    client.map_port(TCP, 8081, 1.0)
    snapshot = saved(client, 1.0)
    target: typing.Any = snapshot
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        target = target[part]
    target[last] = value
    with pytest.raises(LocalProtocolError, match=r"\w+ \w+"):
        Client.restore(snapshot, 0.0, elapsed=0.0)


@pytest.mark.parametrize("foreign", [None, [], {}, {"form": 1}, "text"])
def test_what_is_no_snapshot_is_refused(foreign: typing.Any) -> None:
    with pytest.raises(LocalProtocolError, match="not a snapshot"):
        Client.restore(foreign, 0.0, elapsed=0.0)


@pytest.mark.parametrize("elapsed", [-1.0, float("inf"), float("nan"), "1", None])
def test_elapsed_is_a_number_of_seconds(elapsed: typing.Any) -> None:
    with pytest.raises(LocalProtocolError, match="elapsed"):
        Client.restore(make_client().snapshot(0.0), 0.0, elapsed=elapsed)


# --- questions


def probe(client: Client, *cores: Gateway, end: float = 20.0) -> tuple[Simulation, ProbeCompleted]:
    sim = Simulation(client, *cores, latency=0.125)
    client.probe(sim.now)
    sim.run_until(end)
    (completed,) = events_of(sim, ProbeCompleted)
    return sim, completed


def finding(version: int, reason: Reason | None = None, code: int | None = 0, **more: typing.Any) -> Finding:
    return Finding(version=version, reason=reason, result_code=code, round_trip=0.25, **{"epoch": 0, **more})


UNKNOWN_VERSION: dict[str, typing.Any] = {"reason": Reason.UNSUPPORTED_VERSION, "code": 1, "epoch": None}


@pytest.mark.requirement("PCP-14.1.2-02")
@pytest.mark.requirement("PCP-14.1.2-04")
@pytest.mark.parametrize(
    ("versions", "findings", "spoken"),
    [
        ((2, 0), (finding(2), finding(0)), (2, 0)),
        ((0,), (finding(2, **UNKNOWN_VERSION), finding(0)), (0,)),
        ((2,), (finding(2), finding(0, **UNKNOWN_VERSION)), (2,)),
    ],
)
def test_a_probe_says_what_the_gateway_speaks_and_changes_nothing_there(
    versions: tuple[int, ...], findings: tuple[Finding, ...], spoken: tuple[int, ...]
) -> None:
    client, gateway = make_client(), make_gateway(versions)
    sim, completed = probe(client, gateway)
    assert (completed.findings, completed.versions, completed.reason) == (findings, spoken, None)
    assert gateway.mappings == ()
    assert [data for _, data in sends_of(sim)] == [
        pcp.AnnounceRequest(ip_address(LOCAL)).encode(),
        natpmp.ExternalAddressRequest().encode(),
    ]
    assert completed.external_address == (ip_address(EXTERNAL) if 0 in spoken else None)
    assert client.timers() == []


@pytest.mark.parametrize(
    ("quirks", "external", "reason"),
    [
        ((Quirk.SWITCHED_OFF,), EXTERNAL, Reason.NOT_AUTHORIZED),
        ((), None, Reason.NETWORK_FAILURE),
        ((), "192.168.178.2", Reason.DOUBLE_NAT),
        ((), "100.64.3.4", Reason.CGNAT),
        ((), "192.0.0.2", Reason.CGNAT),
        ((Quirk.ANNOUNCE_ANSWERED_IN_NAT_PMP,), EXTERNAL, None),
        ((Quirk.PCP_ONLY_TRUNCATED,), EXTERNAL, None),
    ],
)
def test_a_probe_says_why_mappings_would_not_work(
    quirks: tuple[Quirk, ...], external: str | None, reason: Reason | None
) -> None:
    gateway = Gateway(external, address=SERVER, rng=Middle(2), quirks=quirks)
    _, completed = probe(make_client(), gateway)
    assert completed.reason is reason
    assert completed.describe()


def test_a_probe_of_nobody_takes_nine_seconds() -> None:
    sim, completed = probe(make_client())
    assert [at for at, _ in sends_of(sim)] == [0.0, 0.0, 0.25, 0.75, 1.75, 3.0]
    assert [(at, event) for at, event in sim.events] == [(9.0, completed)]
    silence = tuple(Finding(version=version, reason=Reason.NO_ANSWER) for version in (2, 0))
    assert (completed.findings, completed.versions, completed.reason) == (silence, (), Reason.NO_ANSWER)


def test_a_probe_behind_another_nat_says_so() -> None:
    client, gateway = make_client(), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    sim.connect(client, gateway, Link(latency=0.125, source=("192.168.1.200", 50000)))
    mapping = client.map_port(TCP, 80, sim.now)
    sim.run_until(10.0)
    (refused,) = events_of(sim, MappingRefused)
    assert (refused.mapping, refused.reason) == (mapping, Reason.ADDRESS_MISMATCH)
    client.probe(sim.now)
    sim.run_until(20.0)
    (completed,) = events_of(sim, ProbeCompleted)
    assert [each.reason for each in completed.findings] == [Reason.ADDRESS_MISMATCH, None]


def test_a_probe_waits_for_its_turn_and_disturbs_nobody() -> None:
    """In NAT-PMP one request at a time is under way: the mapping's comes first."""
    client, gateway = make_client((0,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    client.map_port(TCP, 80, sim.now)
    client.probe(sim.now)
    client.probe(sim.now)
    sim.run_until(10.0)
    assert asked(sim, 0.0) == [
        "0 NAT-PMP map request: TCP 80, suggests port 0, for 7200 s",
        "0.25 NAT-PMP external address request",
        "0.5 NAT-PMP external address request",
    ]
    assert len(events_of(sim, ProbeCompleted)) == 1


def test_a_probe_starts_anew_in_another_network_and_ends_with_the_client() -> None:
    client = make_client()
    client.probe(0.0)
    drain(client)
    client.network_changed(1.0, gateway=A)
    assert len(drain(client)[0]) == 2
    client.close(2.0)
    assert [type(event) for event in drain(client)[1]] == [Closed]
    for command in (client.probe, client.request_external_address):
        with pytest.raises(LocalProtocolError, match="closed"):
            command(3.0)


def test_a_version_error_to_a_probe_says_nothing_about_the_mapping_that_is_held() -> None:
    client = make_client()
    mapping = held(client)
    client.probe(1.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("0080000100000001"), SERVER, 1.0)
    assert client.stats.rejected == {Rejected.VERSION_ERROR: 1}
    look = client.mapping(mapping)
    assert look is not None
    assert look.state is MappingState.HELD


def test_a_version_error_of_the_same_version_ends_a_probe() -> None:
    client = make_client((2,))
    client.probe(0.0)
    drain(client)
    client.receive_datagram(bytes.fromhex("02800001 00000708 00000001".replace(" ", "")).ljust(24, b"\0"), SERVER, 0.5)
    (completed,) = drain(client)[1]
    assert isinstance(completed, ProbeCompleted)
    assert (completed.versions, completed.reason) == ((), Reason.UNSUPPORTED_VERSION)


@pytest.mark.requirement("PCP-11.6-01")
def test_in_pcp_the_external_address_is_asked_for_with_a_mapping_of_the_discard_port() -> None:
    client, gateway, sim = world((2,))
    client.request_external_address(sim.now)
    client.request_external_address(sim.now)
    sim.run_until(10.0)
    assert asked(sim, 0.0) == [
        "0 PCP MAP request: UDP 9 of 192.168.1.7: suggests 0.0.0.0 port 0, for 120 s",
        "0.25 PCP MAP request: UDP 9 of 192.168.1.7: delete",
    ]
    mine = [event for _, event in sim.events if isinstance(event, VersionNegotiated | ExternalAddressLearned)]
    assert mine == [
        VersionNegotiated(gateway=SERVER, version=2),
        ExternalAddressLearned(gateway=SERVER, address=ip_address(EXTERNAL)),
    ]
    assert (client.mappings, gateway.mappings, client.timers()) == ((), (), [])


def test_the_external_address_is_asked_for_with_a_renewal_where_a_mapping_is_held() -> None:
    client, _, sim = world((2,))
    client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    client.request_external_address(sim.now)
    sim.run_until(101.0)
    assert asked(sim, 1.0) == ["100 PCP MAP request: TCP 80 of 192.168.1.7: suggests 203.0.113.5 port 2048, for 7200 s"]
    assert [at for at, event in sim.events if isinstance(event, ExternalAddressLearned)] == [0.25, 100.25]


@pytest.mark.parametrize("versions", [(2, 0), (0,)], ids=["PCP first", "NAT-PMP alone"])
def test_in_nat_pmp_there_is_a_question_for_the_external_address(versions: tuple[int, ...]) -> None:
    client, gateway = make_client(versions), make_gateway((0,))
    sim = Simulation(client, gateway, latency=0.125)
    client.request_external_address(sim.now)
    sim.run_until(10.0)
    client.request_external_address(sim.now)
    sim.run_until(20.0)
    questions = [at for at, data in sends_of(sim) if data == b"\0\0"]
    assert questions == ([0.25, 10.0] if versions == (2, 0) else [0.0, 10.0])
    assert len(events_of(sim, ExternalAddressLearned)) == 2
    assert gateway.mappings == ()


def test_a_port_that_an_errand_uses_is_mapped_when_the_errand_is_done() -> None:
    client, gateway, sim = world((2,))
    client.request_external_address(sim.now)
    mapping = client.map_port(UDP, 9, sim.now)
    sim.run_until(10.0)
    assert [event.mapping for event in events_of(sim, MappingGranted)] == [mapping]
    assert len(gateway.mappings) == 1


@pytest.mark.parametrize("code", [pcp.ResultCode.NOT_AUTHORIZED, pcp.ResultCode.UNSUPP_PROTOCOL])
def test_an_errand_that_is_refused_is_forgotten(code: pcp.ResultCode) -> None:
    client = make_client((2,))
    client.request_external_address(0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, result_code=code, lifetime=60), SERVER, 0.0)
    _, events = drain(client)
    assert [type(event) for event in events] == [VersionNegotiated]
    assert client.timers() == []


def test_a_changed_external_address_is_told_as_changed_when_asked_for() -> None:
    client, gateway, sim = world((0,), (Quirk.NEVER_ANNOUNCES,))
    client.map_port(TCP, 80, sim.now)
    sim.run_until(100.0)
    gateway.set_external_address("192.168.5.5", sim.now)
    client.request_external_address(sim.now)
    sim.run_until(101.0)
    changed = [event for at, event in sim.events if at > 100.0]
    old, new = ip_address(EXTERNAL), ip_address("192.168.5.5")
    assert changed[:2] == [
        ExternalAddressChanged(gateway=SERVER, old=old, new=new),
        DoubleNatSuspected(gateway=SERVER, address=new, reason=Reason.DOUBLE_NAT),
    ]
    assert isinstance(changed[2], MappingChanged)
    assert all(event.describe() for event in changed)


# --- silence


def test_a_renewal_that_meets_with_silence_in_pcp_is_one_packet_all_the_same() -> None:
    """RFC 6887 section 11.2.1. The gateway was found to speak NAT-PMP, which was to be forgotten by now."""
    client, _, sim = world((0,), (Quirk.SILENT_TO_PCP,))
    client.map_port(TCP, 80, sim.now)
    sim.run_until(3610.0)
    assert asked(sim, 100.0) == [
        "3601.5 PCP MAP request: TCP 80 of 192.168.1.7: suggests 203.0.113.5 port 2048, for 7200 s",
        "3602.5 NAT-PMP external address request",
        "3602.75 NAT-PMP map request: TCP 80, suggests port 2048, for 7200 s",
    ]


# --- announcements


def test_an_announcement_that_shows_no_loss_is_confirmed_once_for_all_its_copies() -> None:
    client, gateway, sim = world((2,), (Quirk.EPOCH_SURVIVES_REBOOT,))
    client.map_port(TCP, 80, sim.now)
    client.map_port(UDP, 81, sim.now)
    sim.run_until(1000.0)
    gateway.reboot(sim.now)
    sim.run_until(1300.0)
    assert len([at for at, _ in sends_of(sim) if at > 1000.0]) == 2
    assert len(gateway.mappings) == 2
    assert events_of(sim, GatewayRestarted) == []
    assert client.stats.tolerated == {Tolerated.QUIET_ANNOUNCEMENT: 1}
    assert [at for at, event in sim.events if isinstance(event, MappingRenewed)] == [1002.875, 1002.875]


def test_strictly_by_the_rfcs_an_announcement_that_shows_no_loss_means_nothing() -> None:
    client, gateway, sim = world((2,), (Quirk.EPOCH_SURVIVES_REBOOT,), strict=True)
    client.map_port(TCP, 80, sim.now)
    sim.run_until(1000.0)
    gateway.reboot(sim.now)
    sim.run_until(1300.0)
    assert len(sends_of(sim)) == 1


def test_a_confirmation_that_is_refused_leaves_the_lease_alone() -> None:
    client = make_client((2,))
    mapping = held(client)
    client.receive_datagram(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1100).encode(), SERVER, 100.0)
    client.handle_timeout(102.5)
    (request,), events = drain(client)
    assert events == []
    refusal = answer(request, result_code=pcp.ResultCode.NO_RESOURCES, lifetime=30, epoch=1103)
    client.receive_datagram(refusal, SERVER, 102.5)
    assert drain(client) == ([], [])
    look = client.mapping(mapping)
    assert look is not None
    assert (look.state, look.renew_at) == (MappingState.HELD, 4050.0)


def test_an_address_that_somebody_announces_in_nat_pmp_is_not_believed_while_pcp_holds_but_looked_into() -> None:
    client = make_client()
    mapping = held(client)
    forged = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 5, ip_address("6.6.6.6"))  # type: ignore[arg-type]
    client.receive_datagram(forged.encode(), SERVER, 100.0)
    assert drain(client) == ([], [])
    assert client.external_address == ip_address(EXTERNAL)
    client.handle_timeout(102.5)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_address="198.51.100.9", epoch=1103), SERVER, 102.5)
    _, events = drain(client)
    assert [type(event) for event in events] == [ExternalAddressChanged, MappingChanged]
    assert client.mapping(mapping) is not None


def test_prefixes_of_a_nat64_are_kept_until_contact_is_lost() -> None:
    client = make_client((2,))
    prefix = pcp.Prefix64("2001:db8:122:300::/56")
    other = pcp.Prefix64("2001:db8:122::/48")
    client.map_port(TCP, 80, 0.0, options=(pcp.Prefix64("::/96"),))
    (request,), _ = drain(client)
    assert list(client.prefixes) == []
    client.receive_datagram(answer(request, options=(prefix,)), SERVER, 0.0)
    drain(client)
    assert list(client.prefixes) == [prefix]
    announced = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1001, (other,)).encode()
    client.receive_datagram(announced, ("192.168.1.66", 5351), 1.0)
    assert list(client.prefixes) == [prefix]
    client.receive_datagram(announced, SERVER, 1.0)
    assert list(client.prefixes) == [other]
    client.map_port(TCP, 81, 2.0)
    client.gateway_unreachable(2.0)
    assert list(client.prefixes) == []


# --- peers


def test_a_peer_mapping_is_asked_for_renewed_and_recovered_with_peer_and_never_deleted() -> None:
    client, gateway = make_client((2,)), make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    mapping = client.map_peer(UDP, 5000, ("198.51.100.7", 443), sim.now, lifetime=600)
    sim.run_until(400.0)
    look = client.mapping(mapping)
    assert look is not None
    assert (look.remote, look.external) == (endpoint("198.51.100.7", 443), endpoint(EXTERNAL, 2048))
    gateway.reboot(sim.now)
    sim.run_until(410.0)
    client.unmap(mapping, sim.now)
    sim.run_until(420.0)
    requests = [decode(data) for _, data in sends_of(sim)]
    assert [type(request) for request in requests] == [pcp.PeerRequest] * 3
    assert [request.suggested_external_port for request in requests] == [0, 2048, 2048]  # type: ignore[union-attr]
    (released,) = events_of(sim, MappingReleased)
    assert released.confirmed is False
    assert client.mappings == ()


def test_an_inbound_and_several_outbound_mappings_of_one_port_go_together() -> None:
    client = make_client((2,))
    ids = [
        client.map_port(UDP, 5000, 0.0),
        client.map_peer(UDP, 5000, ("198.51.100.7", 443), 0.0),
        client.map_peer(UDP, 5000, ("198.51.100.8", 443), 0.0),
    ]
    assert len(set(ids)) == 3
    with pytest.raises(LocalProtocolError, match="already"):
        client.map_peer(UDP, 5000, ("198.51.100.8", 443), 0.0)


@pytest.mark.parametrize("remote", [None, ("198.51.100.7",), ("nowhere", 443), ("198.51.100.7", 0), "198.51.100.7"])
def test_a_peer_that_is_none_is_refused(remote: typing.Any) -> None:
    client = make_client()
    with pytest.raises(LocalProtocolError):
        client.map_peer(UDP, 5000, remote, 0.0)
    assert client.mappings == ()


def test_a_peer_mapping_needs_pcp() -> None:
    client, gateway, sim = world((0,))
    client.map_peer(UDP, 5000, ("198.51.100.7", 443), sim.now)
    sim.run_until(10.0)
    (failed,) = events_of(sim, MappingFailed)
    assert failed.reason is Reason.NEEDS_PCP
    assert gateway.mappings == ()


def test_both_families_outside_go_together_through_a_nat64() -> None:
    client = Client(V6_SERVER, local_address="2001:db8:1::10", rng=Middle(1))
    client.map_port(TCP, 80, 0.0)
    client.map_port(TCP, 80, 0.0, external_address="0.0.0.0")
    suggested = [decode(data).suggested_external_address for data in drain(client)[0]]  # type: ignore[union-attr]
    assert suggested == [ip_address("::"), ip_address("0.0.0.0")]
    with pytest.raises(LocalProtocolError, match="already"):
        client.map_port(TCP, 80, 0.0, external_address="203.0.113.5")


def test_port_sets_do_not_overlap_by_accident() -> None:
    client = make_client((2,))
    client.map_port(TCP, 100, 0.0, options=(pcp.PortSet(10, 100),))
    client.map_port(UDP, 105, 0.0)
    for port, options in ((105, ()), (95, (pcp.PortSet(6, 95),))):
        with pytest.raises(LocalProtocolError, match="overlap"):
            client.map_port(TCP, port, 0.0, options=options)
    client.map_port(TCP, 110, 0.0)
    with pytest.raises(LocalProtocolError, match="overlap"):
        client.map_port(TCP, 109 - 8, 0.0, options=(pcp.PortSet(2, 101),))


@pytest.mark.parametrize(("protocol", "port"), [(47, 80), (50, 1), (1, 7)])
def test_a_protocol_without_ports_has_no_port(protocol: int, port: int) -> None:
    client = make_client((2,))
    with pytest.raises(LocalProtocolError, match="has no ports"):
        client.map_port(protocol, port, 0.0)
    client.map_port(protocol, 0, 0.0)


def test_closing_takes_as_long_as_one_delete_however_many_there_are() -> None:
    client = make_client((0,))
    gateway = make_gateway()
    sim = Simulation(client, gateway, latency=0.125)
    for port in range(1000, 1050):
        client.map_port(TCP, port, sim.now)
    sim.run_until(60.0)
    sim.partition(gateway)
    client.close(sim.now)
    sim.run_until(120.0)
    assert [at for at, event in sim.events if isinstance(event, Closed)] == [61.75]
    assert len(events_of(sim, MappingReleased)) == 50


def test_two_clients_on_one_host_have_nonces_of_their_own() -> None:
    clients = [Client(SERVER, local_address=LOCAL) for _ in range(2)]
    nonces = set()
    for client in clients:
        client.map_port(TCP, 80, 0.0)
        (request,), _ = drain(client)
        nonces.add(decode(request).nonce)  # type: ignore[union-attr]
    assert len(nonces) == 2
