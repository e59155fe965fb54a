"""What a client counts: the datagrams that it did not act on, and the faults of gateways that it tolerated."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from .wire.fields import Value


class Rejected(enum.Enum):
    """Why a datagram from the gateway changed nothing."""

    MALFORMED = "it is no message of either protocol"
    UNKNOWN = "it is a message that a client has no use for"
    UNASKED = "it answers nothing that was asked, or was not asked of this client"
    OLD = "it is a copy of an answer that came before"
    VERSION_ERROR = "it refuses a version that is known to be spoken, or that nothing is asked in"
    OTHER_ENDPOINT = "it grants another endpoint than the only one that was wanted (RFC 6887 section 13.2)"
    GIVEN_UP = "it comes from an address of the server that was given up (RFC 7488 section 3)"
    OVERFLOW = "more than a thousand outputs wait to be taken"


class Tolerated(enum.Enum):
    """What the gateway did that no RFC allows, or that needs care, and that the client put up with.

    With `Config(strict=True)` it does not put up with those that are marked so.
    """

    IRREGULAR = "a message in other octets than a conforming sender would write"
    RESPONSE_BIT_MISSING = "a NAT-PMP answer without the response bit (not if strict)"
    FRAGMENT = "octets that are no message, and yet a sign that the gateway speaks PCP (not if strict)"
    UNKNOWN_RESULT = "a result code that no RFC defines"
    SHORT_ERROR = "an error that is over sooner than a client may ask again: it waits longer"
    LONG_LIFETIME = "a lifetime longer than is believed: it is renewed sooner"
    UNUSABLE_GRANT = "a success with a lifetime or port of zero"
    PORT_CUT = "an answer with the last 8 bits of the port only (not if strict)"
    PORT_MOVED = "another external port for a mapping that was held"
    PORT_BUSY = "no resources for the suggested port: another one will do (not if strict)"
    OPTIONS_REFUSED = "optional options that the gateway stumbles over: they are left out (not if strict)"
    PREFERENCE_IGNORED = "another endpoint than the only one that was wanted, twice: it is deleted (not if strict)"
    DELETE_REFUSED = "a delete that was refused: what cannot be deleted is taken to be gone"
    QUIET_ANNOUNCEMENT = "an announcement that shows no loss of state: every mapping is confirmed (not if strict)"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Stats(Value):
    """How often what happened; what is not there has not. `clock_backwards` counts readings before the last one."""

    rejected: Mapping[Rejected, int]
    tolerated: Mapping[Tolerated, int]
    clock_backwards: int
