"""What pumps a core for all adapters, without sockets, loop or clock."""

from __future__ import annotations

import logging
import math

import pytest

from helpers import SERVER, STRANGER, answer, make_client, natpmp_answer
from natpmp_sansio import (
    AnnouncementsUnavailable,
    Client,
    Closed,
    Endpoint,
    Event,
    ExternalAddressLearned,
    GatewayUnreachable,
    LocalProtocolError,
    MappingError,
    MappingGranted,
    MappingReleased,
    Protocol,
)
from natpmp_sansio.adapters import _driver
from natpmp_sansio.adapters._driver import Answer, Driver, Grant, pick_address
from natpmp_sansio.wire.fields import IPAddress, to_address

TCP, UDP = Protocol.TCP, Protocol.UDP


def sends(driver: Driver[Client]) -> list[bytes]:
    return [datagram.data for datagram in driver.take_sends()]


def granted(port: int = 40000) -> tuple[Driver[Client], Grant]:
    """A mapping that somebody waits for and that has just been granted."""
    client = make_client((2,))
    driver = Driver(client)
    grant = Grant(client, client.map_port(TCP, 8080, 0.0))
    driver.begin(grant)
    (request,) = sends(driver)
    driver.receive(answer(request, external_port=port), SERVER, 0.0, is_shared=True)
    assert sends(driver) == []
    return driver, grant


def test_sends_come_out_and_events_go_to_their_subscribers() -> None:
    client = make_client((2,))
    driver = Driver(client)
    client.map_port(TCP, 8080, 0.0)
    (request,) = sends(driver)
    subscription = driver.subscribe()
    woken: list[int] = []
    subscription.readers.append(lambda: woken.append(len(subscription.queue)))
    driver.receive(answer(request), SERVER, 0.0, is_shared=True)
    assert sends(driver) == []
    assert MappingGranted in [type(event) for event in subscription.pending()]
    assert woken == [1]  # who wants to be woken again says so again
    assert subscription.pending() == []


def test_without_a_subscriber_there_is_no_queue() -> None:
    driver, _ = granted()
    assert driver.subscribe().pending() == []


def test_a_subscriber_who_does_not_read_loses_the_oldest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_driver, "_MAX_EVENTS", 3)
    driver = Driver(make_client())
    subscription = driver.subscribe()
    events: list[Event] = [
        ExternalAddressLearned(gateway=SERVER, address=to_address(f"203.0.113.{number}")) for number in range(5)
    ]
    with caplog.at_level(logging.WARNING, "natpmp_sansio.events"):
        for event in events:
            driver.publish(event)
    assert subscription.pending() == events[2:]
    assert len(caplog.records) == 1


def test_an_event_that_goes_on_being_true_is_told_to_who_comes_later() -> None:
    driver = Driver(make_client())
    event = AnnouncementsUnavailable(gateway=SERVER, reason="somebody holds the port")
    driver.publish_standing(event)
    assert driver.subscribe().pending() == [event]


def test_who_waits_is_woken_once_with_what_was_granted() -> None:
    driver, grant = granted(40001)
    assert grant.is_over
    (mapping,) = grant.result_within(1.0)
    assert mapping.external == Endpoint(to_address("203.0.113.5"), 40001)
    driver.forget(grant)
    grant.withdraw(1.0)  # after the grant it does nothing
    assert sends(driver) == []


def test_who_gives_up_before_the_grant_unmaps() -> None:
    client = make_client((2,))
    driver = Driver(client)
    grant = Grant(client, *client.map_pair(8080, 0.0))
    driver.begin(grant)
    sends(driver)
    with pytest.raises(TimeoutError, match=r"192.168.1.1 has not answered within 2.5 s"):
        grant.result_within(2.5)
    driver.forget(grant)
    grant.withdraw(2.5)
    sends(driver)
    assert {mapping.state.name for mapping in client.mappings} == {"RELEASING"}


def test_a_mapping_that_somebody_else_gives_up_is_an_error_for_who_waits() -> None:
    client = make_client((2,))
    driver = Driver(client)
    mapping = client.map_port(TCP, 8080, 0.0)
    grant = Grant(client, mapping)
    driver.begin(grant)
    client.unmap(mapping, 0.0)
    client.abandon(0.0)
    sends(driver)
    with pytest.raises(MappingError):
        grant.result()


def test_the_end_of_the_client_is_an_answer_to_every_question() -> None:
    client = make_client((0,))
    driver = Driver(client)
    question: Answer[IPAddress] = Answer(client, pick_address)
    driver.begin(question)
    ended: list[str] = []
    driver.on_end(lambda: ended.append("before"))
    driver.end()
    driver.on_end(lambda: ended.append("after"))
    assert ended == ["before", "after"]
    with pytest.raises(LocalProtocolError, match="the client was closed meanwhile"):
        question.result()


def test_an_address_is_picked_from_the_events() -> None:
    client = make_client((0,))
    driver = Driver(client)
    client.map_port(TCP, 8080, 0.0)
    question = driver.begin(Answer(client, pick_address))
    for _ in range(2):  # the mapping, then the address
        for request in sends(driver):
            driver.receive(natpmp_answer(request), SERVER, 0.0, is_shared=True)
    sends(driver)
    assert str(question.result()) == "203.0.113.5"


def test_an_icmp_error_counts_when_it_is_about_the_gateway() -> None:
    client = make_client((2,))
    driver = Driver(client)
    subscription = driver.subscribe()
    client.map_port(TCP, 8080, 0.0)
    sends(driver)
    driver.unreachable(STRANGER, 0.0)
    driver.unreachable((SERVER[0], 5352), 0.0)
    sends(driver)
    assert subscription.pending() == []
    driver.unreachable(("::ffff:192.168.1.1", 5351, 0, 0), 0.0)
    sends(driver)
    assert GatewayUnreachable in [type(event) for event in subscription.pending()]


def test_what_nobody_claims_goes_on_if_the_socket_is_shared() -> None:
    strays: list[bytes] = []
    driver = Driver(make_client(), lambda data, addr: strays.append(data))
    driver.receive(b"stun", STRANGER, 0.0, is_shared=True)
    driver.receive(b"upnp", STRANGER, 0.0, is_shared=False)
    assert strays == [b"stun"]


def test_closing_takes_five_seconds_at_most_and_ends_with_closed() -> None:
    driver, _ = granted()
    subscription = driver.subscribe()
    driver.close(10.0)
    assert len(sends(driver)) == 1
    while (deadline := driver.deadline()) is not None:
        driver.wake(deadline)
        sends(driver)
        now = deadline
    assert now == 15.0
    assert [type(event) for event in subscription.pending()] == [MappingReleased, Closed]
    assert driver.closed


def test_who_does_not_want_to_wait_even_that_long_abandons_it() -> None:
    driver, _ = granted()
    driver.close(10.0)
    sends(driver)
    driver.abandon()
    assert driver.deadline() == -math.inf
    driver.wake(10.5)
    sends(driver)
    assert driver.closed
    assert driver.deadline() is None


def test_datagrams_and_events_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "natpmp_sansio"):
        driver, _ = granted()
        driver.receive(b"\0\0\0", STRANGER, 0.0, is_shared=True)
        driver.unreachable(SERVER, 0.0)
    text = caplog.text
    for part in (
        "to 192.168.1.1: PCP MAP request",
        "from 192.168.1.1: PCP MAP response",
        "not ours, from",
        "MappingGranted",
    ):
        assert part in text
