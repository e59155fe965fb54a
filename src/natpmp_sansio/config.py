"""What can be set. Frozen: make another with `attrs.evolve`. All times are seconds."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable

import attrs

from .errors import LocalProtocolError
from .wire.fields import Value


def _check(condition: typing.Callable[[typing.Any], bool], text: str) -> typing.Any:
    def validate(instance: object, attribute: attrs.Attribute[typing.Any], value: typing.Any) -> None:
        if not condition(value):
            raise LocalProtocolError(f"{type(instance).__name__}.{attribute.name} must be {text}, not {value!r}")

    return validate


def _to_versions(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


_SECONDS = _check(lambda v: isinstance(v, int | float) and math.isfinite(v) and v >= 0, "a number of seconds")
_FALLBACK = _check(lambda v: isinstance(v, int | float) and 0 <= v <= 2.5, "from 0 to 2.5 seconds")
_COUNT = _check(lambda v: isinstance(v, int) and v >= 1, "a positive integer")
_VERSIONS = _check(lambda v: v in [(2,), (0,), (2, 0), (0, 2)], "2 (PCP), 0 (NAT-PMP) or both")
_LIFETIME = _check(lambda v: isinstance(v, int) and 1 <= v < 2**32, "a lifetime from 1 to 4294967295")
_PORT = _check(lambda v: isinstance(v, int) and 1 <= v <= 65535, "a port from 1 to 65535")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Config(Value):
    """The client role.

    versions: the protocols to speak, the preferred one first: 2 is PCP, 0 is NAT-PMP.
    strict: go over to NAT-PMP only where the RFCs allow it, that is after a version error, never after silence.
    window: how many PCP requests may wait for their answers at once. In NAT-PMP it is always one.
    fallback_delay: how long a gateway may be silent to PCP before it is asked in NAT-PMP as well. At most 2.5 s: a PCP
        renewal is a single packet, whose answer is waited for hardly longer.
    version_memory: how long a gateway is taken for NAT-PMP only; then PCP is tried first again.
    delete_attempts: how often an unanswered delete is sent.
    min_hold, max_hold: the bounds of the wait after a refusal or silence, whatever the gateway asks for.
    max_lifetime: the longest lease that is believed.
    recovery_interval: the shortest time between two recoveries of one gateway, however often it seems to restart.
    """

    versions: tuple[int, ...] = attrs.field(default=(2, 0), converter=_to_versions, validator=_VERSIONS)
    strict: bool = False
    window: int = attrs.field(default=16, validator=_COUNT)
    fallback_delay: float = attrs.field(default=1.0, validator=_FALLBACK)
    version_memory: float = attrs.field(default=300.0, validator=_SECONDS)
    delete_attempts: int = attrs.field(default=3, validator=_COUNT)
    min_hold: float = attrs.field(default=30.0, validator=_SECONDS)
    max_hold: float = attrs.field(default=1800.0, validator=_SECONDS)
    max_lifetime: int = attrs.field(default=86400, validator=_COUNT)
    recovery_interval: float = attrs.field(default=30.0, validator=_SECONDS)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayConfig(Value):
    """The server role.

    versions: the protocols to answer.
    min_lifetime, max_lifetime: bounds of a granted PCP lifetime (RFC 6887 section 15). NAT-PMP has the upper one only.
    first_port, last_port: the external ports that are given out.
    max_mappings_per_host: more are refused (RFC 6887 section 17.2).
    """

    versions: tuple[int, ...] = attrs.field(default=(2, 0), converter=_to_versions, validator=_VERSIONS)
    min_lifetime: int = attrs.field(default=120, validator=_LIFETIME)
    max_lifetime: int = attrs.field(default=86400, validator=_LIFETIME)
    first_port: int = attrs.field(default=1024, validator=_PORT)
    last_port: int = attrs.field(default=65535, validator=_PORT)
    max_mappings_per_host: int = attrs.field(default=1024, validator=_COUNT)

    def __attrs_post_init__(self) -> None:
        if self.first_port > self.last_port:
            raise LocalProtocolError("GatewayConfig.first_port must not be above last_port")
        if self.min_lifetime > self.max_lifetime:
            raise LocalProtocolError("GatewayConfig.min_lifetime must not be above max_lifetime")
