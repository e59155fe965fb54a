"""What can be set. Frozen: make another with `attrs.evolve`. All times are seconds."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

import attrs

from .errors import LocalProtocolError
from .wire.fields import Value

IPNetwork = IPv4Network | IPv6Network


def _check(condition: typing.Callable[[typing.Any], bool], text: str) -> typing.Any:
    def validate(instance: object, attribute: attrs.Attribute[typing.Any], value: typing.Any) -> None:
        if not condition(value):
            raise LocalProtocolError(f"{type(instance).__name__}.{attribute.name} must be {text}, not {value!r}")

    return validate


def _to_versions(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


_SECONDS = _check(lambda v: isinstance(v, int | float) and math.isfinite(v) and v >= 0, "a number of seconds")
_FALLBACK = _check(lambda v: isinstance(v, int | float) and 0 <= v <= 2.5, "from 0 to 2.5 seconds")
_IDLE = _check(lambda v: isinstance(v, int | float) and 0 <= v < 2**32, "from 0 to 4294967295 seconds")
_COUNT = _check(lambda v: isinstance(v, int) and v >= 1, "a positive integer")
_VERSIONS = _check(lambda v: v in [(2,), (0,), (2, 0), (0, 2)], "2 (PCP), 0 (NAT-PMP) or both")
_LIFETIME = _check(lambda v: isinstance(v, int) and 1 <= v < 2**32, "a lifetime from 1 to 4294967295")
_PORT = _check(lambda v: isinstance(v, int) and 1 <= v <= 65535, "a port from 1 to 65535")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Config(Value):
    """The client role.

    versions: the protocols to speak, the preferred one first: 2 is PCP, 0 is NAT-PMP.
    strict: go by the letter of the RFCs. NAT-PMP is spoken after a version error only, never after silence, and from
        private addresses only; `Tolerated` says what else is not put up with.
    window: how many PCP requests may wait for their answers at once. In NAT-PMP it is always one.
    fallback_delay: how long a gateway may be silent to PCP before it is asked in NAT-PMP as well. At most 2.5 s: a PCP
        renewal is a single packet, whose answer is waited for hardly longer.
    version_memory: how long a gateway is taken for NAT-PMP only; then PCP is tried first again.
    delete_attempts: how often an unanswered delete is sent.
    min_hold, max_hold: the bounds of the wait after a refusal or silence, whatever the gateway asks for.
    max_lifetime: the longest lease that is believed.
    recovery_interval: the shortest time between two recoveries of one gateway, however often it seems to restart or to
        come back. What meets with silence then is tried again after min_hold.
    any_internal_port: internal port 0 asks for any port, the same inside and outside, as some VPNs understand it. It
        is no part of NAT-PMP, so it goes with `versions=(0,)` alone; in PCP port 0 means all ports.
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
    any_internal_port: bool = False

    def __attrs_post_init__(self) -> None:
        if self.any_internal_port and self.versions != (0,):
            raise LocalProtocolError("Config.any_internal_port is for NAT-PMP alone: set versions=(0,) as well")


_TUPLE_OF_PROTOCOLS = _check(
    lambda v: all(isinstance(each, int) and 1 <= each <= 255 for each in v), "IP protocol numbers from 1 to 255"
)
_IDENTIFIERS = _check(lambda v: all(isinstance(each, bytes) for each in v), "octet strings")


def _to_networks(values: Iterable[IPNetwork | str]) -> tuple[IPNetwork, ...]:
    try:
        return tuple(ip_network(value) for value in values)
    except (ValueError, TypeError) as error:
        raise LocalProtocolError(f"GatewayConfig.networks must be IP networks: {error}") from None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayConfig(Value):
    """The server role.

    enabled: False is silence, for a device that is no NAT now, or has this switched off (RFC 6886 sections 3.8 and 5).
    versions: the protocols to answer.
    networks: where requests may come from; others are ignored. Empty is anywhere.
    allow_map, allow_peer: False refuses as NOT_AUTHORIZED (RFC 6887 sections 11 and 12).
    allow_third_party: take THIRD_PARTY, from whom the policy lets (section 13.1). For trusted networks only.
    third_party_ids: the THIRD_PARTY_IDs that exist (RFC 7843); empty leaves the option unsupported.
    allow_wildcards: map all ports of a protocol, and everything (RFC 6887 section 11.3), where nobody else has any.
    protocols: what can be mapped by port. SCTP (132) keeps its port numbers (section 16.3.3).
    min_lifetime, max_lifetime: bounds of a granted PCP lifetime (section 15). NAT-PMP has the upper one only.
    first_port, last_port: the external ports that are given out.
    max_mappings, max_mappings_per_host: more ports than these are refused (section 17.2). While more than half of
        max_mappings is used, a new mapping gets no more than min_lifetime until it is renewed: a flood passes soon.
        As many again may be made by traffic.
    max_filters: FILTERs of one mapping.
    max_description: octets that are kept of a DESCRIPTION (RFC 7220 section 4).
    max_port_set: ports of one PORT_SET, as many as possible at once (RFC 7753 section 6.1); 1 leaves it unsupported.
    tcp_idle, udp_idle: how long an outbound mapping lives without traffic, and how long a freed external port is kept
        from others (RFC 6887 section 15). What is neither has udp_idle.
    """

    enabled: bool = True
    versions: tuple[int, ...] = attrs.field(default=(2, 0), converter=_to_versions, validator=_VERSIONS)
    networks: tuple[IPNetwork, ...] = attrs.field(default=(), converter=_to_networks)
    allow_map: bool = True
    allow_peer: bool = True
    allow_third_party: bool = False
    third_party_ids: tuple[bytes, ...] = attrs.field(default=(), converter=tuple, validator=_IDENTIFIERS)
    allow_wildcards: bool = False
    protocols: tuple[int, ...] = attrs.field(default=(6, 17), converter=tuple, validator=_TUPLE_OF_PROTOCOLS)
    min_lifetime: int = attrs.field(default=120, validator=_LIFETIME)
    max_lifetime: int = attrs.field(default=86400, validator=_LIFETIME)
    first_port: int = attrs.field(default=1024, validator=_PORT)
    last_port: int = attrs.field(default=65535, validator=_PORT)
    max_mappings: int = attrs.field(default=16384, validator=_COUNT)
    max_mappings_per_host: int = attrs.field(default=1024, validator=_COUNT)
    max_filters: int = attrs.field(default=16, validator=_COUNT)
    max_description: int = attrs.field(default=128, validator=_COUNT)
    max_port_set: int = attrs.field(default=256, validator=_COUNT)
    tcp_idle: float = attrs.field(default=7440.0, validator=_IDLE)
    udp_idle: float = attrs.field(default=120.0, validator=_IDLE)

    def __attrs_post_init__(self) -> None:
        if self.first_port > self.last_port:
            raise LocalProtocolError("GatewayConfig.first_port must not be above last_port")
        if self.min_lifetime > self.max_lifetime:
            raise LocalProtocolError("GatewayConfig.min_lifetime must not be above max_lifetime")
