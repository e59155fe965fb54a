"""What must be true of a client's requests and events: the model that test_client_machine.py holds clients against.

`Burst` knows the schedules, `Known` what must be true of one mapping. It is strict while nothing happens, and coarse
while something does.
"""

from __future__ import annotations

import math
import typing

import attrs

from natpmp_sansio import (
    Endpoint,
    MappingChanged,
    MappingFailed,
    MappingGranted,
    MappingId,
    MappingLost,
    MappingRefused,
    MappingReleased,
    MappingRenewed,
    Protocol,
    Reason,
)
from natpmp_sansio.wire.fields import IPAddress

TCP, UDP = Protocol.TCP, Protocol.UDP
ROUNDING = 1e-6  # s: times are floats
PATIENCE = 4  # how often a request is sent in PCP before others may have its place, or a recovery begins anew

Target = tuple[typing.Any, ...]  # protocol, internal port, and the peer of an outbound mapping
Holding = MappingGranted | MappingRenewed | MappingChanged


def waits(version: int, count: int, before: float) -> tuple[float, float]:
    """How long to wait after the count-th transmission, at least and at most (RFC 6886 3.1, RFC 6887 8.1.1)."""
    if version == 0:
        return (0.25 * 2.0 ** (count - 1),) * 2
    nominal = 3.0 if count == 1 else min(2.0 * before, 1024.0)
    return 0.9 * nominal, 1.1 * nominal


def has_lost_state(version: int, then: tuple[int, float] | None, epoch: int, now: float) -> bool:
    """RFC 6886 section 3.6, RFC 6887 section 8.5."""
    if then is None:
        return False
    if version == 0:
        return epoch < then[0] + (now - then[1]) * 0.875 - 2
    server, client = epoch - then[0], int(now - then[1])
    return server + 1 < 0 or client + 2 < server - server // 16 or server + 2 < client - client // 16


@attrs.define(eq=False)
class Burst:
    """One request: the same datagram again and again, until it is answered, given up or overtaken."""

    data: bytes
    is_delete: bool
    limits: tuple[float, float]  # sent so often at least, if nothing happens, and at most
    due: float  # when it is to be sent again, or given up
    wait: float
    count: int = 1
    copies: int = 0  # successes that may be answers to an earlier delete

    @property
    def version(self) -> int:
        return self.data[0]

    @property
    def is_tired(self) -> bool:
        """Whether it may give its place up to others that wait, and begin anew."""
        return self.version == 2 and self.count > PATIENCE

    def goes_on(self, data: bytes, now: float, due: float, *, is_over: bool = False) -> bool:
        """Whether a transmission is the next one of it. `is_over`: it has ended in the same instant."""
        least, most = waits(self.version, self.count + 1, self.wait)
        is_next = data == self.data and now >= self.due and self.count < self.limits[1]
        if not is_next or not (is_over or least - ROUNDING <= due - now <= most + ROUNDING):
            return False
        self.count, self.due, self.wait = self.count + 1, due, due - now
        return True


@attrs.frozen
class Promise:
    """What a grant says."""

    at: float
    lifetime: float
    port: int
    address: IPAddress | None  # NAT-PMP does not tell
    version: int

    @property
    def ends(self) -> float:
        return self.at + self.lifetime


@attrs.define(eq=False)
class Known:
    """One mapping: what was promised, told and asked. Times are on the client's clock.

    It is quiet while nothing has happened, since it was granted or refused last, that could be a reason to ask for it
    out of turn. While it is quiet, the schedules hold to the letter; else only so many requests for each reason.
    """

    id: MappingId
    target: Target
    until: float | None
    twin: Known | None = None
    is_wanted: bool = True
    is_finished: bool = False
    nonce: bytes | None = None
    burst: Burst | None = None  # that is under way
    asked: float = -math.inf  # or refused without
    reasons: int = 0  # to ask out of turn
    extra: int = 0  # how often that was done
    retry_at: float = -math.inf  # not held: not to be asked for before
    busy: int = 0  # the port that is taken
    codes: set[int | None] = attrs.field(
        factory=lambda: {None, 1}
    )  # of all answers; 1 is another version, None silence
    refused: tuple[int, float] | None = None  # by the datagram that is being taken in: the code, and until when
    offer: Promise | None = None  # in the datagram that is being taken in
    heard: bytes = b""  # the last grant
    held: Promise | None = None
    ends: float = math.inf  # of what is held: a move ends it sooner
    version: int | None = None  # in which it was granted last
    is_there: bool = False  # the gateway that is asked now has granted it
    told: Endpoint | None = None
    tries: int = 0  # to renew, since the grant
    renewed: float = -math.inf
    hold: float = -math.inf  # held: not to be renewed before
    deletes: int = 0
    is_confirmed: bool = False
    is_split: bool = False
    lost: float = math.inf  # since when the gateway has lost it, or, doubted: may have (clock of the simulation)
    doubted: float = math.inf
    calm: float = math.inf  # since when all was well, as it was granted (clock of the simulation)
    lead: float = -math.inf  # when UDP of the pair was granted last: TCP is to follow

    def begin(self, version: int, now: float) -> bool:
        """A new request. True: it is due by itself; what is not needs a reason."""
        self.asked, is_renewal = now, self.is_wanted and self.held is not None
        if self.held is not None and self.is_wanted:
            assert now < self.ends, "renewed after it has expired"
            is_due = now >= self.held.at + self.held.lifetime * (1 - 0.5 ** (self.tries + 1)) - ROUNDING
            is_due &= now >= self.hold - ROUNDING
            self.tries += is_due
        else:
            is_due, self.retry_at = now >= self.retry_at - ROUNDING, math.inf
        if self.twin is not None:
            self.twin.reasons += 1
        if is_renewal and self.reasons == 0:
            assert self.until is None or self.ends < self.until, "renewed though it lasts as long as it is wanted"
            assert version == 0 or now >= self.renewed + 4.0 - ROUNDING, "renewed twice within 4 s"
            self.renewed = now if version == 2 else self.renewed
        self.extra += not is_due
        assert self.extra <= 3 * self.reasons, "asked before it is due, and for no reason"
        return is_due

    def grant(self, promise: Promise, calm: float, *, is_sure: bool) -> None:
        """`is_sure`: it is no late copy from before the loss of state that it seems to show."""
        self.held, self.ends, self.is_there, self.calm = promise, promise.ends, True, calm
        self.tries, self.hold, self.retry_at, self.version = 0, -math.inf, math.inf, promise.version
        if is_sure:
            self.lost = self.doubted = math.inf
        if self.twin is not None:
            self.twin.reasons += 1
            self.twin.lead = promise.at if self.target[0] == UDP else self.twin.lead

    def rest(self) -> None:
        """It is granted or refused: all that was before is done with. Of a pair, each is asked for the other's sake."""
        self.reasons, self.extra = int(self.twin is not None), 0

    def forget(self) -> None:
        """It is held no more."""
        self.held, self.ends, self.lost, self.doubted = None, math.inf, math.inf, math.inf
        self.is_there = False

    def tell(self, told: Holding, address: IPAddress | None) -> None:
        """A grant, renewal or change: it follows what was told before, and says what was promised."""
        assert self.is_wanted
        external = told.new if isinstance(told, MappingChanged) else told.external
        before = told.old if isinstance(told, MappingChanged) else external
        assert self.told == (None if isinstance(told, MappingGranted) else before)
        assert not isinstance(told, MappingChanged) or told.old != told.new
        assert self.held is not None
        assert self.is_there, "told before it was granted here"
        assert self.twin is None or self.twin.asked > -math.inf, "one of a pair is told before the other is asked for"
        promised = (self.ends, self.held.lifetime, self.held.port)
        assert promised == (told.expires_at, told.lifetime, external.port), "nobody promised that"
        assert external.address == (self.held.address or address)
        self.told = external

    def miss(self, told: MappingLost | MappingRefused, now: float, *, is_over: bool) -> None:
        """`is_over`: else the request goes on."""
        assert isinstance(told, MappingLost) is (self.told is not None), "what was told is lost, and nothing else"
        code, hold = self.refused or (None, now)
        assert told.result_code in self.codes, "nobody said so"
        if told.reason is Reason.EXPIRED or told.reason is Reason.NETWORK_CHANGED:
            assert now >= self.ends - ROUNDING, "expired too early"
        assert told.retry_at >= (hold if told.result_code == code else now) - ROUNDING, "the hold time is ignored"
        self.is_there &= not told.result_code
        if isinstance(told, MappingLost):
            self.forget()
        self.told, self.asked, self.retry_at = None, now, told.retry_at if is_over else math.inf
        self.rest()
        if self.twin is not None:
            self.twin.reasons += 1

    def end(self, told: MappingFailed | MappingReleased, now: float, *, is_hopeless: bool) -> None:
        """`is_hopeless`: there is no way to delete it, or no use."""
        assert not self.is_finished, "two ends"
        self.is_finished = True
        if isinstance(told, MappingReleased):
            assert not self.is_wanted
            assert not told.confirmed or self.is_confirmed or not self.deletes, "nobody confirmed it"
        elif told.reason is Reason.DEADLINE:
            assert self.until is not None
            assert not self.is_wanted
            assert self.until <= now
        elif told.reason is Reason.NEEDS_PCP:
            assert self.needs_pcp
            assert self.is_wanted
        else:
            assert told.reason in (Reason.UNSUPPORTED_PROTOCOL, Reason.UNSUPPORTED_OPTION, Reason.THIRD_PARTY_ID)
            assert told.result_code in self.codes
        assert not self.is_there or self.deletes or is_hopeless, "given up, but not deleted"

    @property
    def needs_pcp(self) -> bool:
        return self.target[0] not in (TCP, UDP) or len(self.target) > 2
