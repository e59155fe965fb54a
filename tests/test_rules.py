"""The rules without a machine around them: schedules, epochs, deadlines, configuration."""

from __future__ import annotations

import random
import typing

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from helpers import Middle
from natpmp_sansio import Config, GatewayConfig, LocalProtocolError, Protocol, pcp
from natpmp_sansio.client.dialects import NatPmpDialect, read_version_error
from natpmp_sansio.client.epoch import NatPmpEpoch, PcpEpoch
from natpmp_sansio.client.lifecycle import Exchange, InFlight, Purpose
from natpmp_sansio.client.schedules import (
    MIN_RENEWAL_GAP,
    NAT_PMP_ATTEMPTS,
    PCP_MULTI_ADDRESS_ATTEMPTS,
    nat_pmp_renewal,
    nat_pmp_wait,
    pcp_renewal,
    pcp_wait,
    recovery_delay,
)
from natpmp_sansio.core.timers import TimerQueue
from natpmp_sansio.gateway.notices import announcement_times


class Lowest(random.Random):
    """Every draw from a range gives its lower end."""

    def random(self) -> float:
        return 0.0


class Highest(random.Random):
    """Every draw from a range gives its upper end."""

    def random(self) -> float:
        return 1.0


class Counting(random.Random):
    """Counts the draws."""

    draws = 0

    def random(self) -> float:
        self.draws += 1
        return 0.5


def running_total(gaps: typing.Iterable[float]) -> list[float]:
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times


def pcp_waits(count: int, rng: random.Random) -> list[float]:
    waits: list[float] = []
    for _ in range(count):
        waits.append(pcp_wait(waits[-1] if waits else None, rng))
    return waits


# --- when to send again


@pytest.mark.requirement("NP-3.1-05")
@pytest.mark.requirement("NP-3.1-06")
@pytest.mark.requirement("NP-3.1-07")
def test_nat_pmp_waits_a_quarter_of_a_second_and_doubles_it_up_to_64_seconds() -> None:
    waits = [nat_pmp_wait(attempt) for attempt in range(1, NAT_PMP_ATTEMPTS + 1)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert running_total(waits) == [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75]


@pytest.mark.requirement("PCP-8.1.1-03")
@pytest.mark.requirement("PCP-8.1.1-04")
@pytest.mark.requirement("PCP-8.1.1-05")
def test_pcp_waits_3_seconds_and_doubles_them_up_to_1024_for_ever() -> None:
    waits = pcp_waits(100, Middle())
    assert waits[:10] == [3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 192.0, 384.0, 768.0, 1024.0]
    assert waits[10:] == [1024.0] * 90
    assert running_total(waits[:10]) == [0, 3, 9, 21, 45, 93, 189, 381, 765, 1533, 2557]


@pytest.mark.requirement("PCP-8.1.1-09")
@pytest.mark.requirement("PCP-8.1.1-10")
@pytest.mark.requirement("PCP-8.1.1-11")
def test_the_jitter_of_pcp_is_a_tenth_and_doubles_with_the_wait_but_the_cap_comes_first() -> None:
    assert pcp_wait(None, Highest()) == 1.1 * 3.0
    assert pcp_wait(None, Lowest()) == 0.9 * 3.0
    assert pcp_wait(3.3, Lowest()) == 0.9 * 6.6
    assert pcp_wait(1024.0, Highest()) == 1.1 * 1024.0
    assert pcp_wait(1024.0, Lowest()) == 0.9 * 1024.0
    assert max(pcp_waits(50, Highest())) == 1.1 * 1024.0
    assert round(1.1 * 1024.0, 9) == 1126.4


@pytest.mark.requirement("PCP-8.1.1-07")
@given(st.integers(), st.none() | st.floats(2.7, 1126.4))
def test_every_wait_of_pcp_is_drawn_anew_and_within_a_tenth_of_its_nominal_value(
    seed: int, previous: float | None
) -> None:
    rng = random.Random(seed)
    nominal = 3.0 if previous is None else min(2.0 * previous, 1024.0)
    first, second = pcp_wait(previous, rng), pcp_wait(previous, rng)
    assert 0.9 * nominal <= first <= 1.1 * nominal
    assert first != second


def test_a_silent_address_of_a_server_with_several_is_given_up_after_4_attempts_and_45_seconds() -> None:
    """RFC 7488 section 3."""
    assert sum(pcp_waits(PCP_MULTI_ADDRESS_ATTEMPTS, Middle())) == 45.0


# --- when to renew


@pytest.mark.requirement("NP-3.3-29")
def test_nat_pmp_renews_at_half_the_lease_and_then_at_half_of_what_is_left() -> None:
    assert [nat_pmp_renewal(attempt, 7200) for attempt in range(1, 6)] == [3600.0, 5400.0, 6300.0, 6750.0, 6975.0]


@pytest.mark.requirement("PCP-11.2.1-05")
@pytest.mark.requirement("PCP-11.2.1-06")
def test_pcp_renews_within_windows_that_shrink_towards_the_end_of_the_lease() -> None:
    windows = [(pcp_renewal(k, 960, Lowest()), pcp_renewal(k, 960, Highest())) for k in range(1, 6)]
    assert windows == [(480, 600), (720, 780), (840, 870), (900, 915), (930, 937.5)]


@pytest.mark.requirement("PCP-8.1.1-15")
@pytest.mark.requirement("PCP-11.2.1-04")
@given(st.integers(), st.integers(1, 20), st.integers(1, 2**32 - 1))
def test_a_renewal_of_pcp_falls_into_its_window_and_before_the_end(seed: int, attempt: int, lifetime: int) -> None:
    at = pcp_renewal(attempt, lifetime, random.Random(seed))
    begin = lifetime * (1 - 0.5**attempt)
    assert begin <= at <= begin + lifetime * 0.5 ** (attempt + 2)
    assert at < lifetime
    assert at != pcp_renewal(attempt, lifetime, random.Random(seed + 1))


@pytest.mark.requirement("PCP-11.2.1-07")
def test_two_renewals_of_one_mapping_are_4_seconds_apart_at_least() -> None:
    assert MIN_RENEWAL_GAP == 4.0


# --- when to recover, when to announce


@pytest.mark.requirement("NP-3.7-05")
@pytest.mark.requirement("PCP-14.1.3-11")
def test_recovery_waits_0_to_5_seconds() -> None:
    assert [recovery_delay(rng) for rng in (Lowest(), Middle(), Highest())] == [0.0, 2.5, 5.0]


@pytest.mark.requirement("NP-3.2.1-02")
@pytest.mark.requirement("NP-3.2.1-03")
@pytest.mark.requirement("NP-3.2.1-04")
@pytest.mark.requirement("PCP-14.1.3-05")
def test_an_announcement_goes_out_ten_times_within_127_seconds_and_three_quarters() -> None:
    assert announcement_times() == (0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75)


def test_each_random_decision_takes_one_draw() -> None:
    """So that a seed means the same story, whichever of the rules is asked in between."""
    rng = Counting()
    pcp_wait(None, rng)
    pcp_wait(3.0, rng)
    pcp_renewal(1, 7200, rng)
    recovery_delay(rng)
    assert rng.draws == 4


# --- has the gateway lost its state?


@pytest.mark.requirement("NP-3.6-03")
@pytest.mark.requirement("NP-3.6-04")
@pytest.mark.requirement("NP-3.6-05")
@pytest.mark.parametrize(
    ("elapsed", "epoch", "lost"),
    [
        (80, 1080, False),
        (80, 1070, False),  # 7/8 of 80 s
        (80, 1068, False),  # the estimate less 2 s
        (80, 1067, True),
        (80, 0, True),
        (0, 1000, False),
        (0, 998, False),
        (0, 997, True),
        (16, 1012, False),
        (16, 1011, True),
        (8, 50000, False),  # too fast is fine
        (7200, 1000 + 6300 - 2, False),
        (7200, 1000 + 6300 - 3, True),
    ],
)
def test_a_nat_pmp_epoch_may_run_an_eighth_and_2_seconds_slow(elapsed: int, epoch: int, lost: bool) -> None:
    check = NatPmpEpoch()
    check.observe(1000, 500.0)
    assert check.observe(epoch, 500.0 + elapsed) is lost


def test_a_nat_pmp_epoch_is_measured_from_the_last_datagram_and_not_from_the_first() -> None:
    check = NatPmpEpoch()
    assert [check.observe(epoch, now) for epoch, now in [(0, 0.0), (100, 100.0), (114, 116.0), (126, 132.0)]] == [
        False,
        False,
        False,
        False,
    ]
    assert check.observe(135, 148.0) is True  # 126 + 14 - 2 would have been fine


@pytest.mark.parametrize("make", [NatPmpEpoch, PcpEpoch])
@pytest.mark.requirement("PCP-8.5-06")
def test_the_first_epoch_is_believed_whatever_it_is(make: type[NatPmpEpoch | PcpEpoch]) -> None:
    assert make().observe(5, 1e6) is False
    assert make().observe(2**32 - 1, 0.0) is False


@pytest.mark.requirement("PCP-8.5-07")
@pytest.mark.requirement("PCP-8.5-08")
@pytest.mark.requirement("PCP-8.5-09")
@pytest.mark.requirement("PCP-8.5-13")
@pytest.mark.parametrize(
    ("client", "server", "lost"),
    [
        (160, 160, False),
        (160, 148, False),  # 150 < 150 is false
        (160, 147, True),  # 149 < 150
        (10, 12, False),
        (10, 13, True),  # 12 < 13 - 0
        (10, 15, True),
        (148, 160, False),  # 150 < 160 - 10 is false
        (147, 160, True),
        (0, 0, False),
        (0, 2, False),
        (0, 3, True),
        (2, 0, False),
        (3, 0, True),
        (0, -1, False),  # overtaken by another response
        (1, -1, False),
        (2, -1, True),
        (0, -2, True),
        (1, -2, True),
        (1000, -500, True),
        (3600, 3600, False),
        (3600, 3600 - 225 - 2, False),
        (3600, 3600 - 225 - 3, True),
    ],
)
def test_a_pcp_epoch_may_drift_a_sixteenth_and_2_seconds_either_way(client: int, server: int, lost: bool) -> None:
    check = PcpEpoch()
    check.observe(1000, 500.0)
    assert check.observe(1000 + server, 500.0 + client) is lost


@pytest.mark.requirement("PCP-8.5-10")
@pytest.mark.parametrize("make", [NatPmpEpoch, PcpEpoch])
def test_one_jump_of_the_epoch_is_one_loss(make: type[NatPmpEpoch | PcpEpoch]) -> None:
    check = make()
    story = [(1000, 0.0), (2, 10.0), (12, 20.0), (22, 30.0)]
    assert [check.observe(epoch, now) for epoch, now in story] == [False, True, False, False]


def test_pcp_counts_whole_seconds() -> None:
    """RFC 6887 section 8.5 calculates in integers: 3.9 s and 0.9 s are 3 s apart, as are 3.0 s and 0.0 s."""
    early, late = PcpEpoch(), PcpEpoch()
    early.observe(10, 0.0)
    late.observe(10, 0.99)
    assert early.observe(10, 2.99) is False
    assert late.observe(10, 2.99) is False
    early, late = PcpEpoch(), PcpEpoch()
    early.observe(10, 0.99)
    late.observe(10, 0.0)
    assert early.observe(10, 3.0) is True
    assert late.observe(10, 3.0) is True


@given(st.integers(0, 2**31), st.floats(0, 1e6), st.lists(st.integers(0, 10**6), max_size=20))
def test_a_gateway_whose_clock_is_right_never_loses_its_state(start: int, now: float, pauses: list[int]) -> None:
    for check in (NatPmpEpoch(), PcpEpoch()):
        elapsed = 0
        for pause in pauses:
            elapsed += pause
            assert check.observe(start + elapsed, float(int(now)) + elapsed) is False


# --- the queue of deadlines

keys = st.sampled_from("abcdefgh")
deadlines = st.integers(0, 20).map(float)


class QueueAgainstDict(RuleBasedStateMachine):
    """A timer queue does what a dict of deadlines in the order of setting would do."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: TimerQueue[str] = TimerQueue()
        self.model: dict[str, float] = {}

    def due(self) -> str | None:
        """The earliest of the model, of equals the one that was set first."""
        return min(self.model, key=lambda key: self.model[key], default=None)

    @rule(key=keys, deadline=deadlines)
    def set(self, key: str, deadline: float) -> None:
        self.queue.set(key, deadline)
        self.model.pop(key, None)  # moving goes to the end of its equals
        self.model[key] = deadline

    @rule(key=keys)
    def cancel(self, key: str) -> None:
        self.queue.cancel(key)
        self.model.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.model.clear()

    @rule(now=deadlines)
    def pop_one(self, now: float) -> None:
        due = self.due()
        if due is not None and self.model[due] > now:
            due = None
        assert self.queue.pop_due(now) == due
        if due is not None:
            del self.model[due]

    @rule(now=deadlines)
    def pop_all(self, now: float) -> None:
        while (due := self.due()) is not None and self.model[due] <= now:
            assert self.queue.pop_due(now) == due
            del self.model[due]
        assert self.queue.pop_due(now) is None

    @rule(key=keys, deadline=deadlines, times=st.integers(1, 200))
    def move_often(self, key: str, deadline: float, times: int) -> None:
        for step in range(times):
            self.queue.set(key, deadline + times - step)
        self.set(key, deadline)

    @invariant()
    def agrees(self) -> None:
        assert self.queue.next() == min(self.model.values(), default=None)
        assert self.queue.next() == min(self.model.values(), default=None)  # asking changes nothing
        assert self.queue.items() == [
            (deadline, key) for key, deadline in sorted(self.model.items(), key=lambda item: item[1])
        ]
        for key in "abcdefgh":
            assert self.queue.deadline(key) == self.model.get(key)


TestQueueAgainstDict = QueueAgainstDict.TestCase


def test_deadlines_come_in_order_and_equals_in_the_order_of_setting() -> None:
    queue: TimerQueue[str] = TimerQueue()
    for key, deadline in (("late", 3.0), ("first", 1.0), ("second", 1.0), ("moved", 1.0), ("third", 1.0)):
        queue.set(key, deadline)
    queue.set("moved", 1.0)
    order = []
    while (due := queue.pop_due(2.0)) is not None:
        order.append(due)
    assert order == ["first", "second", "third", "moved"]
    assert queue.next() == 3.0


def test_keys_need_not_be_comparable() -> None:
    queue: TimerQueue[object] = TimerQueue()
    one, other = object(), object()
    queue.set(one, 1.0)
    queue.set(other, 1.0)
    assert queue.items() == [(1.0, one), (1.0, other)]


def test_a_queue_does_not_grow_with_every_move_of_a_deadline() -> None:
    """What was moved away is forgotten: counted by the objects that are kept alive, which is what grows."""
    alive = 0

    class Key:
        """Equal to all its like, so that every set moves the same deadline."""

        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key)

        def __hash__(self) -> int:
            return 1

    queue: TimerQueue[object] = TimerQueue()
    queue.set("earlier", 0.0)  # what is moved away lies behind it and does not come up by itself
    most = 0
    for step in range(10_000):
        queue.set(Key(), float(1 + step))
        most = max(most, alive)
    assert most < 100
    assert queue.items() == [(0.0, "earlier"), (10_000.0, Key())]
    queue.clear()
    assert alive == 0


# --- configuration


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert attrs.asdict(Config()) == {
        "versions": (2, 0),
        "strict": False,
        "window": 16,
        "fallback_delay": 1.0,
        "version_memory": 300.0,
        "delete_attempts": 3,
        "min_hold": 30.0,
        "max_hold": 1800.0,
        "max_lifetime": 86400,
        "recovery_interval": 30.0,
        "any_internal_port": False,
    }


@pytest.mark.requirement("PCP-15-03")
@pytest.mark.requirement("PCP-15-04")
def test_a_gateway_grants_from_2_minutes_to_a_day_by_default() -> None:
    assert attrs.asdict(GatewayConfig()) == {
        "enabled": True,
        "versions": (2, 0),
        "networks": (),
        "allow_map": True,
        "allow_peer": True,
        "allow_third_party": False,
        "third_party_ids": (),
        "allow_wildcards": False,
        "protocols": (6, 17),
        "min_lifetime": 120,
        "max_lifetime": 86400,
        "first_port": 1024,
        "last_port": 65535,
        "max_mappings": 16384,
        "max_mappings_per_host": 1024,
        "max_filters": 16,
        "max_description": 128,
        "max_port_set": 256,
        "tcp_idle": 7440.0,
        "udp_idle": 120.0,
    }


@pytest.mark.parametrize("versions", [(2,), (0,), (2, 0), (0, 2)])
def test_the_versions_are_pcp_or_nat_pmp_or_both_in_either_order(versions: tuple[int, ...]) -> None:
    assert Config(versions=versions).versions == versions
    assert GatewayConfig(versions=versions).versions == versions


def test_the_versions_may_be_any_iterable() -> None:
    assert Config(versions=typing.cast("tuple[int, ...]", [2, 0])) == Config()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Config(versions=(1,)), "Config.versions must be 2 (PCP), 0 (NAT-PMP) or both, not (1,)"),
        (lambda: Config(versions=()), "Config.versions must be 2 (PCP), 0 (NAT-PMP) or both, not ()"),
        (lambda: Config(versions=(2, 2)), "Config.versions must be 2 (PCP), 0 (NAT-PMP) or both, not (2, 2)"),
        (lambda: Config(window=0), "Config.window must be a positive integer, not 0"),
        (lambda: Config(window=typing.cast("int", 1.5)), "Config.window must be a positive integer, not 1.5"),
        (lambda: Config(delete_attempts=0), "Config.delete_attempts must be a positive integer, not 0"),
        (lambda: Config(max_lifetime=0), "Config.max_lifetime must be a positive integer, not 0"),
        (lambda: Config(fallback_delay=-1.0), "Config.fallback_delay must be from 0 to 2.5 seconds, not -1.0"),
        (
            lambda: Config(version_memory=float("inf")),
            "Config.version_memory must be a number of seconds, not inf",
        ),
        (lambda: Config(min_hold=float("nan")), "Config.min_hold must be a number of seconds, not nan"),
        (
            lambda: Config(max_hold=typing.cast("float", "30")),
            "Config.max_hold must be a number of seconds, not '30'",
        ),
        (lambda: Config(recovery_interval=-0.5), "Config.recovery_interval must be a number of seconds, not -0.5"),
        (
            lambda: GatewayConfig(versions=(0, 1)),
            "GatewayConfig.versions must be 2 (PCP), 0 (NAT-PMP) or both, not (0, 1)",
        ),
        (lambda: GatewayConfig(first_port=0), "GatewayConfig.first_port must be a port from 1 to 65535, not 0"),
        (lambda: GatewayConfig(last_port=65536), "GatewayConfig.last_port must be a port from 1 to 65535, not 65536"),
        (
            lambda: GatewayConfig(last_port=typing.cast("int", "80")),
            "GatewayConfig.last_port must be a port from 1 to 65535, not '80'",
        ),
        (
            lambda: GatewayConfig(min_lifetime=0),
            "GatewayConfig.min_lifetime must be a lifetime from 1 to 4294967295, not 0",
        ),
        (
            lambda: GatewayConfig(max_lifetime=2**32),
            "GatewayConfig.max_lifetime must be a lifetime from 1 to 4294967295, not 4294967296",
        ),
        (
            lambda: GatewayConfig(min_lifetime=2**32, max_lifetime=2**32),
            "GatewayConfig.min_lifetime must be a lifetime from 1 to 4294967295, not 4294967296",
        ),
        (
            lambda: GatewayConfig(versions=typing.cast("tuple[int, ...]", None)),
            "GatewayConfig.versions must be 2 (PCP), 0 (NAT-PMP) or both, not (None,)",
        ),
        (
            lambda: GatewayConfig(max_mappings_per_host=0),
            "GatewayConfig.max_mappings_per_host must be a positive integer, not 0",
        ),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_what_it_has_to_be(
    make: typing.Callable[[], object], text: str
) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()
    assert str(caught.value) == text


def test_a_configuration_does_not_change_behind_the_back_of_who_uses_it() -> None:
    config = Config()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.window = 1  # type: ignore[misc]
    assert attrs.evolve(config, window=1).window == 1
    assert config.window == 16


def test_a_setting_that_may_be_zero_may_be_zero() -> None:
    assert Config(fallback_delay=0).fallback_delay == 0
    assert Config(min_hold=0).min_hold == 0


def test_ports_that_run_from_high_to_low_are_refused() -> None:
    """Else the first request for a mapping would raise, and that in `receive_datagram`."""
    with pytest.raises(LocalProtocolError):
        GatewayConfig(first_port=2000, last_port=1000)
    with pytest.raises(LocalProtocolError):
        GatewayConfig(min_lifetime=100, max_lifetime=99)


# --- requests under way


def test_what_is_under_way_is_counted_once_however_often_it_ends() -> None:
    dialect, under_way = NatPmpDialect(), InFlight()
    question = Exchange(purpose=Purpose.FALLBACK, mapping=None, dialect=dialect, data=b"", limit=None)
    under_way.begin(question)
    assert (list(under_way), under_way.questions, under_way.unlimited) == ([question], 1, 1)
    assert under_way.in_version == {0: 1}
    under_way.end(question)
    under_way.end(question)
    assert (list(under_way), under_way.questions, under_way.unlimited) == ([], 0, 0)
    assert under_way.in_version == {0: 0}


def test_an_answer_to_peer_offers_no_version() -> None:
    code = pcp.ResultCode.UNSUPP_VERSION
    response = pcp.PeerResponse(code, 30, 1, bytes(12), Protocol.TCP, 80, 80, "203.0.113.5", 443, "198.51.100.1")
    assert read_version_error(response) is None
