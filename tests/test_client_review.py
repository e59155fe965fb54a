"""What a second reading of the client has found, each as short as it could be made."""

from __future__ import annotations

import copy
import tracemalloc
import typing
from collections import Counter
from itertools import pairwise

import pytest

from helpers import (
    EXTERNAL,
    LOCAL,
    SERVER,
    Middle,
    answer,
    drain,
    endpoint,
    held,
    make_client,
    natpmp_answer,
)
from natpmp_sansio import (
    Address,
    Client,
    Config,
    Event,
    ExternalAddressChanged,
    ExternalAddressLearned,
    GatewayRecovered,
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
    SendDatagram,
    decode,
    natpmp,
    pcp,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
THERE: Address = ("192.168.1.2", 5351)
V6_LOCAL = "2001:db8::7"
NAT_PMP_ONLY = bytes.fromhex("0081000100000009")  # version 0, "unsupported version"


def announcement(epoch: int = 2000) -> bytes:
    return pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, epoch).encode()


def refusal(request: bytes, lifetime: int = 30, **changes: object) -> bytes:
    return answer(request, result_code=pcp.ResultCode.NOT_AUTHORIZED, lifetime=lifetime, **changes)


def silence(client: Client, end: float) -> tuple[list[tuple[float, bytes]], list[tuple[float, Event]]]:
    """What a client sends and tells by itself until `end`, while nobody answers."""
    sent, told, now = [], [], 0.0
    while True:
        datagrams, events = drain(client)
        sent += [(now, data) for data in datagrams]
        told += [(now, event) for event in events]
        deadline = client.next_timeout()
        if deadline is None or deadline > end:
            return sent, told
        now = deadline
        client.handle_timeout(now)


def kinds(events: typing.Iterable[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


def state_of(client: Client, mapping: MappingId) -> MappingState:
    found = client.mapping(mapping)
    assert found is not None
    return found.state


def held_in_natpmp(lifetime: int = 7200, versions: tuple[int, ...] = (0,)) -> tuple[Client, MappingId]:
    """A mapping that a NAT-PMP gateway granted at 0 s, and told its external address."""
    client = make_client(versions)
    mapping = client.map_port(TCP, 80, 0.0, lifetime=lifetime)
    for _ in range(3 if 2 in versions else 2):
        (request,), _ = drain(client)
        client.receive_datagram(natpmp_answer(request) if request[0] == 0 else NAT_PMP_ONLY, SERVER, 0.0)
    assert kinds(drain(client)[1])[-1] is MappingGranted
    return client, mapping


# --- what has moved


def test_what_has_moved_has_no_renewal_left_to_be_put_off() -> None:
    """1. Its renewal had met with silence at the old gateway: a sign of life of the new one raised AssertionError."""
    client = make_client((2,))
    mapping = held(client, 600)
    silence(client, 400.0)
    client.network_changed(400.0, gateway=THERE)
    client.gateway_unreachable(400.0)
    drain(client)
    client.receive_datagram(announcement(), THERE, 400.0)
    assert kinds(drain(client)[1]) == [GatewayRecovered]
    assert state_of(client, mapping) is MappingState.HELD


def test_a_late_refusal_of_what_has_moved_is_the_end_of_what_was_held_elsewhere() -> None:
    """1. The same, by a refusal that nobody waits for any more."""
    client = make_client((2,))
    held(client, 600)
    silence(client, 400.0)
    client.network_changed(400.0, gateway=THERE)
    *_, request = drain(client)[0]
    client.gateway_unreachable(400.0)
    drain(client)
    client.receive_datagram(refusal(request), THERE, 400.0)
    _, told = drain(client)
    (lost,) = [event for event in told if isinstance(event, MappingLost)]
    assert (lost.reason, lost.retry_at) == (Reason.NOT_AUTHORIZED, 430.0)


def test_the_external_address_of_the_new_gateway_is_not_yet_that_of_what_it_has_not_granted() -> None:
    """1. It was told as MappingChanged."""
    client, _ = held_in_natpmp()
    client.network_changed(10.0, gateway=THERE)
    drain(client)
    reply = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 5, "198.51.100.9")
    client.receive_datagram(reply.encode(), THERE, 10.0)
    assert kinds(drain(client)[1]) == [ExternalAddressLearned]


def test_a_move_in_nat_pmp_is_told_once_with_its_new_address() -> None:
    """It was told first without one."""
    client, mapping = held_in_natpmp()
    client.network_changed(10.0, gateway=THERE)
    told: list[Event] = []
    for _ in range(3):
        requests, events = drain(client)
        told += events
        for request in requests:
            if decode(request) != natpmp.MapRequest(TCP, 80, 0, 0):
                client.receive_datagram(natpmp_answer(request, 5), THERE, 10.0)
    (moved,) = [event for event in told if isinstance(event, MappingRenewed)]
    assert (moved.mapping, client.external_address) == (mapping, moved.external.address)
    assert MappingChanged not in kinds(told)


def test_what_the_old_gateway_asked_to_wait_does_not_hold_at_the_new_one() -> None:
    """1. It was asked for again when the old gateway's 1800 s were over."""
    client = make_client((2,))
    held(client)
    sent, _ = silence(client, 4100.0)
    client.receive_datagram(refusal(sent[-1][1], 1800, epoch=5100), SERVER, 4100.0)
    client.network_changed(4101.0, gateway=THERE)
    _, told = silence(client, 4132.0)
    ((at, lost),) = [(at, event) for at, event in told if isinstance(event, MappingLost)]
    assert (at, lost.reason, lost.retry_at) == (4131.0, Reason.NETWORK_CHANGED, 4131.0)


def test_a_grant_that_waits_for_the_external_address_of_the_old_gateway_is_not_told_as_one_of_the_new() -> None:
    """1. It was, after the two seconds for which a grant waits."""
    client = make_client((0,))
    client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(natpmp_answer(request), SERVER, 0.0)
    client.network_changed(0.5, gateway=THERE)
    drain(client)
    assert silence(client, 3.0)[1] == []


def test_a_peer_mapping_held_elsewhere_fails_where_only_nat_pmp_is_spoken() -> None:
    """2. The step was not in the table: KeyError."""
    client = make_client()
    mapping = client.map_peer(UDP, 5000, ("198.51.100.7", 443), 0.0)
    (request,), _ = drain(client)
    asked = decode(request)
    assert isinstance(asked, pcp.PeerRequest)
    grant = pcp.PeerResponse(
        pcp.ResultCode.SUCCESS, 600, 1000, asked.nonce, UDP, 5000, 40000, EXTERNAL, 443, "198.51.100.7"
    )
    client.receive_datagram(grant.encode(), SERVER, 0.0)
    client.network_changed(1.0, gateway=THERE)
    drain(client)
    client.receive_datagram(NAT_PMP_ONLY, THERE, 1.0)
    (failed,) = [event for event in drain(client)[1] if isinstance(event, MappingFailed)]
    assert (failed.mapping, failed.reason) == (mapping, Reason.NEEDS_PCP)
    assert client.mappings == ()


def test_the_second_address_of_a_nat_pmp_gateway_is_asked_when_the_first_is_silent() -> None:
    """3. The client fell asleep for ever."""
    client = Client([SERVER, THERE], local_address=LOCAL, config=Config(versions=(0,)), rng=Middle(1))
    client.map_port(TCP, 80, 0.0)
    sent, told = silence(client, 255.5)
    assert len(sent) == 18
    assert sent[9][0] == 127.75
    assert [(at, type(event)) for at, event in told] == [(255.5, GatewayUnreachable), (255.5, MappingRefused)]


# --- silence


def test_what_is_sent_for_ever_makes_room_for_a_delete_and_for_a_probe() -> None:
    """4. With a window of one, neither ended."""
    client = make_client((2,), window=1)
    mapping = held(client)
    client.map_port(UDP, 81, 1.0)
    client.unmap(mapping, 2.0)
    client.probe(2.0)
    _, told = silence(client, 120.0)
    assert [(at, type(event)) for at, event in told] == [
        (46.0, GatewayUnreachable),
        (46.0, MappingRefused),
        (55.0, ProbeCompleted),
        (76.0, MappingReleased),
    ]


def test_requests_that_a_gateway_ignores_do_not_keep_a_renewal_from_being_sent() -> None:
    """4. Sixteen of them filled the window: the lease ran out."""
    client = make_client((2,))
    held(client, 600)
    for port in range(16):
        client.map_port(132, 1000 + port, 1.0)
    sent, _ = silence(client, 340.0)
    renewals = [at for at, data in sent if data[36] == TCP]
    assert renewals == [337.5]


def test_whatever_finds_no_room_is_refused_as_well_when_nobody_answers() -> None:
    """4. Of the seventeenth, nothing was told in a day."""
    client = make_client((2,))
    last = [client.map_port(UDP, 100 + n, 0.0) for n in range(17)][-1]
    _, told = silence(client, 200.0)
    assert [at for at, event in told if isinstance(event, MappingRefused) and event.mapping == last] == [
        90.0,
        135.0,
        180.0,
    ]


def test_what_was_never_told_as_granted_is_refused_and_not_lost() -> None:
    """5. UDP of a pair waits for TCP, which is never answered."""
    client = make_client((2,))
    _, udp = client.map_pair(80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, lifetime=20), SERVER, 0.0)
    _, told = silence(client, 30.0)
    ((at, refused),) = [(at, event) for at, event in told if isinstance(event, MappingRefused | MappingLost)]
    assert (at, type(refused), refused.mapping, refused.reason) == (20.0, MappingRefused, udp, Reason.EXPIRED)


# --- pairs


def half_granted() -> tuple[Client, MappingId, MappingId, bytes]:
    """A pair of which UDP is granted, and the request for TCP is under way."""
    client = make_client((2,))
    tcp, udp = client.map_pair(80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request), SERVER, 0.0)
    (request,), _ = drain(client)
    return client, tcp, udp, request


def test_silence_to_one_of_a_pair_does_not_refuse_the_other_that_is_held() -> None:
    """6. MappingRefused was told of UDP, too, which stayed held."""
    client, tcp, udp, request = half_granted()
    client.receive_datagram(refusal(request), SERVER, 0.0)
    assert [(type(event), getattr(event, "mapping", None)) for event in drain(client)[1]] == [
        (MappingRefused, tcp),
        (MappingGranted, udp),
    ]
    _, told = silence(client, 200.0)
    assert [(at, type(event), getattr(event, "mapping", None)) for at, event in told] == [
        (75.0, GatewayUnreachable, None),
        (75.0, MappingRefused, tcp),
    ]


def test_one_of_a_pair_is_told_as_granted_when_the_port_of_the_gateway_closes_to_the_other() -> None:
    """6. UDP was held, and nobody said so."""
    client, tcp, udp, _ = half_granted()
    client.gateway_unreachable(0.1)
    _, told = drain(client)
    assert kinds(told) == [GatewayUnreachable, MappingRefused, MappingGranted]
    look = client.mapping(udp)
    assert look is not None
    assert look.external == endpoint(EXTERNAL, 40000)
    assert state_of(client, tcp) is MappingState.REFUSED


def test_one_of_a_pair_that_is_vacated_and_then_met_with_silence_is_lost_if_it_was_told_as_granted() -> None:
    """10. MappingRefused was told of both."""
    client = make_client((2,))
    tcp, udp = client.map_pair(80, 0.0, lifetime=600)
    for _ in range(2):
        (request,), _ = drain(client)
        client.receive_datagram(answer(request, external_port=4000), SERVER, 0.0)
    drain(client)
    told: list[tuple[float, MappingId, type[Event]]] = []
    now, is_vacated = 0.0, False
    while now < 400.0:
        deadline = client.next_timeout()
        assert deadline is not None
        now = deadline
        client.handle_timeout(now)
        while True:
            datagrams, events = drain(client)
            told += [(now, event.mapping, type(event)) for event in events if hasattr(event, "mapping")]
            if not datagrams:
                break
            for data in datagrams:
                asked = decode(data)
                assert isinstance(asked, pcp.MapRequest)
                is_vacated = is_vacated or asked.lifetime == 0
                if asked.protocol == TCP and asked.lifetime and is_vacated:
                    continue
                port = 0 if asked.lifetime == 0 else 5000 if asked.protocol == UDP else 4000
                client.receive_datagram(answer(data, external_port=port, epoch=1000 + int(now)), SERVER, now)
    assert told == [(389.5, tcp, MappingLost), (389.5, udp, MappingChanged)]


# --- signs of life


def test_unreachable_is_one_gateway_and_not_the_next() -> None:
    """9. It was not told of the new one, and then that it had recovered."""
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0)
    drain(client)
    client.gateway_unreachable(0.0)
    client.network_changed(1.0, gateway=THERE)
    drain(client)
    client.gateway_unreachable(1.0)
    (first, _) = drain(client)[1]
    assert first == GatewayUnreachable(gateway=THERE, reason=Reason.UNREACHABLE)


def test_a_gateway_that_was_unreachable_has_not_recovered_when_another_answers() -> None:
    """9. The other side of it."""
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0)
    drain(client)
    client.gateway_unreachable(0.0)
    client.network_changed(1.0, gateway=THERE)
    drain(client)
    client.receive_datagram(announcement(), THERE, 1.0)
    assert drain(client)[1] == []


def test_forged_signs_of_life_start_no_more_requests_than_a_recovery_may() -> None:
    """11. Sixteen mappings at a closed port: each of a hundred announcements drew sixteen datagrams."""
    client = make_client((2,))
    for port in range(16):
        client.map_port(TCP, 100 + port, 0.0)
    drain(client)
    client.gateway_unreachable(0.0)
    drain(client)
    datagrams, events = [], []
    for n in range(100):
        now = 1.0 + n / 10
        client.receive_datagram(announcement(), SERVER, now)
        client.handle_timeout(now)
        sent, told = drain(client)
        client.gateway_unreachable(now)
        more_sent, more_told = drain(client)
        datagrams += sent + more_sent
        events += told + more_told
    assert len(datagrams) == 16
    assert len(events) == 19


# --- renewals


def test_renewals_in_nat_pmp_are_four_seconds_apart_although_icmp_answers_each_at_once() -> None:
    """12. There were 46 in the last ten seconds of the lease."""
    client, _ = held_in_natpmp(600)
    times = []
    while (deadline := client.next_timeout()) is not None and deadline < 600.0:
        client.handle_timeout(deadline)
        if drain(client)[0]:
            times.append(deadline)
            client.gateway_unreachable(deadline)
            drain(client)
    assert len(times) == 8
    assert min(after - before for before, after in pairwise(times)) == 4.1015625


def test_nothing_is_renewed_after_the_end_of_its_lease() -> None:
    """17. An answer that is read late makes room for a renewal of what is over."""
    client, mapping = held_in_natpmp(8)
    client.map_port(UDP, 81, 3.9)
    (request,), _ = drain(client)
    client.handle_timeout(4.0)
    client.receive_datagram(natpmp_answer(request, 1009), SERVER, 9.0)
    assert drain(client)[0] == []
    client.handle_timeout(9.0)
    (lost,) = [event for event in drain(client)[1] if isinstance(event, MappingLost)]
    assert (lost.mapping, lost.reason) == (mapping, Reason.EXPIRED)


def test_a_renewal_out_of_turn_takes_the_place_of_none_in_turn() -> None:
    """18. The one at 4050 s was left out."""
    client = make_client((2,))
    held(client)
    client.request_external_address(10.0)
    sent, _ = silence(client, 5000.0)
    assert [at for at, _ in sent][1:] == [4050.0]


def test_what_is_asked_again_and_again_while_there_is_no_room_is_queued_once() -> None:
    """19. Each call made the queue longer."""
    client = make_client((2,), window=1)
    held(client)
    client.map_port(UDP, 81, 1.0)
    drain(client)
    client.request_external_address(1.0)
    tracemalloc.start()
    try:
        for _ in range(5000):
            client.request_external_address(1.0)
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


def test_what_waits_to_be_confirmed_while_recoveries_meet_with_silence_is_queued_once() -> None:
    """Each recovery made the queue longer."""
    client = make_client((2,), window=1)
    for port in range(80, 90):
        client.map_port(TCP, port, 0.0, lifetime=86400)
        (request,), _ = drain(client)
        client.receive_datagram(answer(request, external_port=port), SERVER, 0.0)
        drain(client)
    client.receive_datagram(announcement(1), SERVER, 10.0)
    silence(client, 500.0)
    asked: Counter[int] = Counter()
    tracemalloc.start()
    try:
        for end in range(1000, 40_000, 500):
            asked.update(data[41] for _, data in silence(client, float(end))[0])  # the internal port
        assert tracemalloc.get_traced_memory()[0] < 30_000
    finally:
        tracemalloc.stop()
    assert sorted(asked) == list(range(80, 90))
    assert min(asked.values()) > 0.9 * max(asked.values())


def test_a_probe_that_takes_the_place_of_a_request_asks_both_questions_at_once() -> None:
    """The second was asked when the next datagram came, whatever it was."""
    client = make_client(window=1)
    client.map_port(TCP, 80, 0.0)
    silence(client, 90.0)
    client.probe(90.0)
    assert [data[:2] for data in drain(client)[0]] == [b"\2\0", b"\0\0"]


def test_what_is_granted_after_a_refusal_without_being_asked_for_is_deleted_in_the_end() -> None:
    """A Mapping Update after NETWORK_FAILURE: the mapping was left behind at the gateway."""
    client = make_client((2,))
    mapping = client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(refusal(request), SERVER, 0.0)
    client.receive_datagram(answer(request), SERVER, 1.0)
    assert state_of(client, mapping) is MappingState.HELD
    drain(client)
    client.unmap(mapping, 2.0)
    (delete,), told = drain(client)
    assert decode(delete).lifetime == 0  # type: ignore[union-attr]
    assert told == []


# --- what a caller says


@pytest.mark.parametrize("nowhere", ["0.0.0.0", "::", "here"])
def test_a_local_address_is_one_that_requests_can_come_from(nowhere: str) -> None:
    with pytest.raises(LocalProtocolError):
        Client(SERVER, local_address=nowhere)
    client = make_client()
    with pytest.raises(LocalProtocolError):
        client.network_changed(0.0, nowhere)
    assert client.bind_address == (LOCAL, 0)


def test_an_end_in_the_past_of_the_clients_clock_is_refused() -> None:
    """13. It was compared with a `now` that ran backwards."""
    client = make_client()
    client.map_port(TCP, 80, 100.0)
    with pytest.raises(LocalProtocolError, match="until must be finite and later than now"):
        client.map_port(TCP, 81, 5.0, until=10.0)
    assert len(client.mappings) == 1


@pytest.mark.parametrize(
    ("now", "parameters", "complaint"),
    [
        ("x", {"until": 5.0}, "now must be a finite number of seconds, not 'x'"),
        (10**400, {}, "now must be a finite number of seconds, not 1000"),
        (1.0, {"until": "5"}, "until must be a number of seconds, not '5'"),
        (1.0, {"until": 10**400}, "until must be finite"),
        (1.0, {"options": None}, "options must be PCP options, not None"),
    ],
)
def test_what_is_of_a_wrong_type_is_a_mistake_of_the_callers(
    now: typing.Any, parameters: dict[str, typing.Any], complaint: str
) -> None:
    """13. TypeError and OverflowError."""
    client = make_client()
    with pytest.raises(LocalProtocolError, match=complaint):
        client.map_port(TCP, 80, now, **parameters)
    assert client.mappings == ()


def test_to_unmap_what_is_no_id_is_false() -> None:
    """13. A list raised TypeError."""
    wrong: typing.Any = []
    assert make_client().unmap(wrong, 0.0) is False


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("last_id",), 10**400),
        (("mappings", 0, "remote"), [None, 443]),
        (("mappings", 0, "remaining"), 10**400),
        (("mappings", 0, "until"), 10**400),
        (("mappings", 0, "twin"), 1),
        (("mappings", 0, "family"), 5),
    ],
    ids=str,
)
def test_a_damaged_snapshot_is_refused_whatever_is_wrong_with_it(path: tuple[str | int, ...], value: object) -> None:
    """13. OverflowError, AssertionError, and a mapping that was its own twin."""
    client = make_client((2,))
    held(client)
    damaged = copy.deepcopy(client.snapshot(1.0))
    *way, last = path
    place: typing.Any = damaged
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(LocalProtocolError):
        Client.restore(damaged, 0.0, elapsed=1.0)


def test_a_snapshot_of_both_families_outside_can_be_restored() -> None:
    """15. What was granted in the other family than it was asked for passed for the same mapping as the next."""
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_address="2001:db8::5"), SERVER, 0.0)
    client.map_port(TCP, 80, 1.0, external_address="::")
    again = Client.restore(client.snapshot(2.0), 2.0, elapsed=0.0)
    assert [mapping.id for mapping in again.mappings] == [1, 2]


def test_what_is_restored_at_an_address_of_another_family_is_asked_for_as_after_a_move() -> None:
    """15. It was asked for through a NAT64, with the external address that it had had."""
    client = make_client((2,))
    held(client)
    moved = Client.restore(client.snapshot(1.0), 0.0, elapsed=5.0, local_address=V6_LOCAL, rng=Middle(1))
    (request,), _ = drain(moved)
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    assert (str(asked.client_address), str(asked.suggested_external_address)) == (V6_LOCAL, "::")
    assert asked.suggested_external_port == 40000


def test_the_external_address_does_not_flap_where_there_is_one_of_each_family() -> None:
    """16. Each renewal told the address of its own family as the new one."""
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0, lifetime=600)
    client.map_port(TCP, 81, 0.0, lifetime=600, external_address="::")
    now, told = 0.0, []
    while now < 1200.0:
        datagrams, events = drain(client)
        told += events
        for data in datagrams:
            asked = decode(data)
            assert isinstance(asked, pcp.MapRequest)
            address = EXTERNAL if asked.internal_port == 80 else "2001:db8::5"
            client.receive_datagram(answer(data, epoch=1000 + int(now), external_address=address), SERVER, now)
        deadline = client.next_timeout()
        assert deadline is not None
        now = deadline
        client.handle_timeout(now)
    assert sum(isinstance(event, MappingRenewed) for event in told) > 4
    assert [event for event in told if isinstance(event, ExternalAddressChanged)] == []
    assert str(client.external_address) == EXTERNAL


# --- the memory of a version


def test_who_asks_for_the_address_after_the_version_is_forgotten_asks_as_at_first() -> None:
    """24. The question in NAT-PMP was sent for 300 s and ever after, or not at all."""
    client, mapping = held_in_natpmp(versions=(2, 0))
    client.unmap(mapping, 1.0)
    (delete,), _ = drain(client)
    client.receive_datagram(natpmp_answer(delete), SERVER, 1.0)
    drain(client)
    client.request_external_address(299.0)
    assert drain(client)[0] == [natpmp.ExternalAddressRequest().encode()]
    silence(client, 303.0)
    client.request_external_address(304.0)
    (request,), _ = drain(client)
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    assert (asked.protocol, asked.internal_port) == (UDP, 9)


# --- what the repairs themselves had left open


def test_tcp_of_a_pair_is_asked_for_when_the_answer_to_udp_comes_while_its_request_had_made_room() -> None:
    """4. Nothing woke it: it waited for an exchange that was over."""
    client = make_client((2,), window=1)
    client.map_pair(82, 0.0)
    (first,), _ = drain(client)
    client.probe(1.0)
    sent, _ = silence(client, 46.0)
    assert isinstance(decode(sent[-1][1]), pcp.AnnounceRequest)
    client.receive_datagram(answer(first, epoch=1047), SERVER, 47.0)
    client.receive_datagram(announcement(1047), SERVER, 47.0)
    (request,) = drain(client)[0]
    asked = decode(request)
    assert isinstance(asked, pcp.MapRequest)
    assert (asked.protocol, asked.suggested_external_port) == (TCP, 40000)


def both_families() -> Client:
    client = make_client((2,))
    client.map_port(TCP, 80, 0.0)
    client.map_port(TCP, 80, 0.0, external_address="::")
    return client


def the_second_has_failed(client: Client) -> bool:
    failed = [event for event in drain(client)[1] if isinstance(event, MappingFailed)]
    return [(event.mapping, event.reason) for event in failed] == [(2, Reason.NETWORK_CHANGED)]


def test_both_families_outside_are_one_where_the_other_is_the_usual_one() -> None:
    """15. They were two of one target, and the next snapshot passed for a damaged one."""
    client = both_families()
    client.network_changed(1.0, local_address=V6_LOCAL)
    assert the_second_has_failed(client)
    assert [mapping.id for mapping in client.mappings] == [1]
    again = Client.restore(client.snapshot(2.0), 2.0, elapsed=0.0)
    assert [mapping.id for mapping in again.mappings] == [1]


def test_both_families_outside_can_be_restored_at_an_address_of_the_other_family() -> None:
    """15. It passed for a damaged snapshot."""
    moved = Client.restore(both_families().snapshot(2.0), 2.0, elapsed=0.0, local_address=V6_LOCAL)
    assert the_second_has_failed(moved)
    assert [mapping.id for mapping in moved.mappings] == [1]


def test_a_snapshot_with_one_nonce_twice_is_damaged() -> None:
    client = make_client((2,))
    held(client)
    twice = client.snapshot(1.0)
    twice["mappings"].append({**twice["mappings"][0], "id": 2, "internal_port": 8081})
    twice["last_id"] = 2
    with pytest.raises(LocalProtocolError, match="mapping 2 is there twice"):
        Client.restore(twice, 0.0, elapsed=1.0)


@pytest.mark.parametrize("elapsed", [10**400, -1, "1", float("nan")], ids=["int", "negative", "str", "nan"])
def test_a_snapshot_is_as_old_as_a_number_can_say(elapsed: typing.Any) -> None:
    with pytest.raises(LocalProtocolError, match="elapsed must be a number of seconds"):
        Client.restore(make_client().snapshot(0.0), 0.0, elapsed=elapsed)


# --- what no other story comes by


def test_nothing_is_asked_to_recover_while_the_gateway_has_no_resources() -> None:
    """RFC 6887 section 11.4: the refusal of the delete holds for every request."""
    client = make_client((2,))
    first = held(client)
    client.map_port(UDP, 81, 0.0)
    (request,), _ = drain(client)
    client.receive_datagram(answer(request, external_port=40001), SERVER, 0.0)
    client.unmap(first, 10.0)
    (delete,), _ = drain(client)
    no_resources = pcp.ResultCode.NO_RESOURCES
    client.receive_datagram(answer(delete, result_code=no_resources, lifetime=60, epoch=1010), SERVER, 10.0)
    client.receive_datagram(announcement(1), SERVER, 11.0)
    sent, _ = silence(client, 75.0)
    assert [at for at, _ in sent] == [70.0, 73.0]


def test_two_clients_on_one_socket_wake_up_for_the_earlier_and_speak_in_turn() -> None:
    here, there = make_client((2,)), Client(THERE, local_address=LOCAL, config=Config(versions=(2,)), rng=Middle(1))
    both = Multiplexer(here, there)
    assert both.next_timeout() is None
    assert both.poll() is None
    there.map_port(TCP, 80, 1.0)
    here.map_port(TCP, 80, 2.0)
    assert both.next_timeout() == 1.0
    assert [output.addr for output in both.outputs() if isinstance(output, SendDatagram)] == [SERVER, THERE]
    both.handle_timeout(4.5)
    assert [output.addr for output in both.outputs() if isinstance(output, SendDatagram)] == [THERE]
