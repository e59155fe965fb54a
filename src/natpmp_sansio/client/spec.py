"""What a caller wants of a gateway, checked."""

from __future__ import annotations

import typing
from collections.abc import Iterable

import attrs

from ..errors import LocalProtocolError
from ..wire import pcp
from ..wire.fields import MAX_LIFETIME, Endpoint, IPAddress, Protocol, Value, any_address, to_address, to_protocol
from ..wire.natpmp import DEFAULT_LIFETIME

Target = tuple[typing.Any, ...]


class MappingParameters(typing.TypedDict, total=False):
    """The keyword arguments of `Client.map_port`, for those who pass them on."""

    external_port: int
    external_address: str | IPAddress | None
    lifetime: int
    until: float | None
    options: tuple[pcp.Option, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MappingSpec(Value):
    """What a mapping request is about. `external` is what to suggest; its parts may be None and 0.

    `remote` is the one peer of an outbound mapping, None for an inbound one; `family` is the IP version outside where
    it is another than inside. At `until` (s, on the caller's clock) it is wanted no more.
    """

    protocol: Protocol | int
    internal_port: int
    external: Endpoint
    lifetime: int
    nonce: bytes
    options: tuple[pcp.Option, ...] = ()
    remote: Endpoint | None = None
    family: int | None = None
    until: float | None = None

    @classmethod
    def from_parameters(
        cls,
        local: IPAddress,
        protocol: Protocol | int,
        internal_port: int,
        *,
        remote: Endpoint | None = None,
        external_port: int = 0,
        external_address: str | IPAddress | None = None,
        lifetime: int = DEFAULT_LIFETIME,
        until: float | None = None,
        options: tuple[pcp.Option, ...] = (),
    ) -> typing.Self:
        """A spec from what a caller said.

        Raises:
            LocalProtocolError: no message could carry it, or it makes no sense.
        """
        address = None if external_address is None else to_address(external_address)
        suggested = any_address(local) if address is None else address
        head = (local, bytes(12), protocol, internal_port)
        tail = (external_port, suggested, lifetime, options)
        request: pcp.MapRequest | pcp.PeerRequest
        if remote is None:
            request = pcp.MapRequest(*head, *tail)
        else:
            assert remote.address is not None
            request = pcp.PeerRequest(*head, remote.port, remote.address, *tail)
        if until is not None and not isinstance(until, int | float):
            raise LocalProtocolError(f"until must be a number of seconds, not {until!r}")
        if lifetime == 0:
            raise LocalProtocolError(f"lifetime must be from 1 to {MAX_LIFETIME} s; to delete a mapping, unmap it")
        if (internal_port or external_port) and request.protocol not in _WITH_PORTS:
            raise LocalProtocolError(f"protocol {protocol} has no ports: both ports must be 0 (RFC 6887 section 11.2)")
        return cls(
            protocol=to_protocol(protocol),
            internal_port=internal_port,
            external=Endpoint(address, external_port),
            lifetime=lifetime,
            nonce=request.nonce,
            options=request.options,
            remote=remote,
            family=None if suggested.version == local.version else suggested.version,
            until=until,
        )

    @property
    def target(self) -> Target:
        """What two mappings cannot have in common (RFC 6887 section 11.3): protocol, internal port, and where there
        are any, the remote peer, whose address it is if not ours, and the family outside if not the usual one."""
        if not self.options and self.remote is None and self.family is None:
            return (self.protocol, self.internal_port)
        whose = tuple(o for o in self.options if isinstance(o, pcp.ThirdParty | pcp.ThirdPartyId))
        extra = (self.remote, whose, self.family)
        return (self.protocol, self.internal_port, *(extra if any(extra) else ()))

    @property
    def has_ports(self) -> bool:
        """Whether its protocol has port numbers; else a request has zeros for both (RFC 6887 section 11.2)."""
        return self.protocol in _WITH_PORTS

    @property
    def is_for_another_host(self) -> bool:
        """Whether the ports are another host's (RFC 6887 section 13.1)."""
        return any(isinstance(option, pcp.ThirdParty) for option in self.options)

    @property
    def prefers_failure(self) -> bool:
        """Whether only just the suggested endpoint will do (RFC 6887 section 13.2)."""
        return bool(self.options) and any(isinstance(option, pcp.PreferFailure) for option in self.options)

    def is_met_by(self, external: Endpoint) -> bool:
        """Whether an assigned endpoint is one that was asked for."""
        address = self.external.address
        is_free = address is None or address == any_address(address)
        return external.port == self.external.port and (is_free or external.address == address)

    def elsewhere(self, is_same_family: bool) -> MappingSpec:
        """What to ask for at another gateway, or from another address, perhaps of another family."""
        address = self.external.address if is_same_family else None
        external = Endpoint(None if address is None else any_address(address), self.external.port)
        if self.remote is not None:
            external = Endpoint(None, 0)  # for PEER, a suggestion is a condition (RFC 6887 section 12.3)
        return attrs.evolve(self, external=external, family=self.family if is_same_family else None)

    @property
    def ports(self) -> range:
        """The internal ports that it is about, of a port set all (RFC 7753)."""
        sizes = [option.size for option in self.options if isinstance(option, pcp.PortSet)]
        return range(self.internal_port, self.internal_port + max(sizes, default=1))


def require_no_overlap(spec: MappingSpec, others: Iterable[MappingSpec]) -> None:
    """Port sets must not overlap by accident (RFC 7753 section 6.3).

    Raises:
        LocalProtocolError: one does.
    """
    new = spec.ports
    for other in others:
        old = other.ports
        # Whose ports they are, the remote peer and the family outside make another mapping of the same ports.
        is_alike = (other.protocol, other.target[2:]) == (spec.protocol, spec.target[2:])
        if is_alike and new.start < old.stop and old.start < new.stop:
            raise LocalProtocolError(
                f"{spec.protocol!r} ports {new.start} to {new.stop - 1} overlap with a mapping of {old.start} to "
                f"{old.stop - 1}"
            )


_WITH_PORTS = (Protocol.TCP, Protocol.UDP, 33, 132, 136, 253, 254)  # DCCP, SCTP, UDP-Lite, and for experiments
