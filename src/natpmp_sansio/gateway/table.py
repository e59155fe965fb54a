"""The mapping table of a gateway: who holds which external port, who may have which, and how many.

It knows neither datagrams nor events. What ends when is the gateway's business; the table is told.
"""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Iterator

import attrs

from ..config import GatewayConfig
from ..events import Address, MappingId, MappingKind
from ..wire.fields import CLIENT_PORT, SERVER_PORT, Endpoint, IPAddress, Protocol
from ..wire.options import Filter

SCTP = 132


class Internal(typing.NamedTuple):
    """An internal endpoint, and the family of its external one: what a mapping is looked up by.

    `realm` tells hosts apart that have the same address (RFC 7843 section 5.2). Port 0 is all ports of the protocol,
    protocol 0 as well is everything (RFC 6887 section 11.3).
    """

    realm: bytes
    address: IPAddress
    protocol: int
    port: int
    family: int

    @property
    def host(self) -> Host:
        return self.realm, self.address

    @property
    def is_translated(self) -> bool:
        """Whether the external endpoint is another; else it is a pinhole in a firewall."""
        return self.address.version == 4 or self.family == 4


Host = tuple[bytes, "IPAddress"]


@attrs.define(kw_only=True, eq=False, repr=False)
class Entry:
    """One mapping. `expires_at` is the end of its lease, `idle_at` the end of what outbound traffic gives it (s)."""

    id: MappingId
    kind: MappingKind
    internal: Internal
    external: Endpoint
    size: int = 1
    remote: Endpoint | None = None
    nonce: bytes | None = None  # None: made by NAT-PMP, by traffic, or configured
    expires_at: float = -math.inf  # until it is granted for the first time
    granted: int = 0  # the last lifetime
    idle_at: float = -math.inf
    filters: tuple[Filter, ...] = ()
    description: str = ""
    is_third_party: bool = False
    prefers_failure: bool = False
    reply_to: Address | None = None  # where its last PCP response went

    @property
    def internals(self) -> Iterator[Internal]:
        """Each of its internal endpoints."""
        return (self.internal._replace(port=self.internal.port + step) for step in range(self.size))

    @property
    def is_natpmp(self) -> bool:
        """Whether NAT-PMP made it, which knows of one external address only (RFC 6886 section 4.3.2)."""
        return self.kind is MappingKind.MAP and self.nonce is None

    @property
    def is_new(self) -> bool:
        """Whether it has not been granted yet."""
        return self.expires_at == -math.inf

    def external_at(self, port: int) -> Endpoint:
        """The external endpoint of one of its internal ports."""
        return Endpoint(self.external.address, self.external.port + port - self.internal.port)

    @property
    def ends_at(self) -> float:
        return max(self.expires_at, self.idle_at)


@attrs.define
class _Binding:
    """Which external endpoint an internal one has, how many entries hold it, and whether one was asked for, and with
    which nonce."""

    external: Endpoint
    holders: int = 0
    was_asked_for: bool = False
    nonce: bytes | None = None


@attrs.define
class _Home:
    """Which external address a host was given last, and how many ports it has (RFC 6887 section 10)."""

    address: IPAddress
    ports: int = 0


@attrs.frozen(kw_only=True)
class Wanted:
    """What external endpoint a new entry should have. `exact`: just the suggestion, as far as it says anything."""

    internal: Internal
    suggested: Endpoint
    size: int = 1
    nonce: bytes | None = None
    parity: bool = False
    exact: bool = False
    counts_up: bool = False
    only: IPAddress | None = None  # the one external address there is

    def is_met_by(self, external: Endpoint) -> bool:
        """Whether an endpoint that cannot be chosen is good enough."""
        if self.only not in (None, external.address):
            return False
        if not self.exact:
            return True
        is_address = not is_concrete(self.suggested.address) or self.suggested.address == external.address
        return is_address and self.suggested.port in (0, external.port)


class MappingTable:
    """The entries, in the order of creation, and the external ports of every external address.

    Mapping is endpoint-independent: all entries of one internal endpoint share its external one (RFC 4787). `rng`
    picks ports where nothing was suggested.
    """

    def __init__(self, config: GatewayConfig, rng: random.Random) -> None:
        self.entries: dict[MappingId, Entry] = {}
        self.addresses: tuple[IPAddress, ...] = ()
        self.used = 0  # ports, by what was asked for
        self._implicit = 0  # entries, by traffic
        self._config = config
        self._rng = rng
        self._used_by: dict[Host, int] = {}
        self._last_id = 0
        self._inbound: dict[Internal, Entry] = {}
        self._outbound: dict[Internal, dict[Endpoint, Entry]] = {}
        self._bindings: dict[Internal, _Binding] = {}
        self._homes: dict[Host, _Home] = {}
        self._ports: dict[tuple[int, IPAddress], dict[int, Internal]] = {}
        self._freed: dict[int, dict[tuple[IPAddress, int], tuple[float, Internal, bytes | None]]] = {}

    # --- looking up

    def family(self, host: IPAddress, suggested: IPAddress | None) -> int:
        """The family of the external address that is meant: the suggested one, if it can be had (erratum 3621)."""
        versions = {address.version for address in self.addresses}
        return suggested.version if suggested is not None and suggested.version in versions else host.version

    def inbound(self, internal: Internal) -> Entry | None:
        """The static or MAP entry of an internal endpoint."""
        return self._inbound.get(internal)

    def touching(self, internal: Internal, size: int) -> list[Entry]:
        """The inbound entries that have one of `size` internal ports (RFC 7753 section 4.4.1)."""
        found: dict[MappingId, Entry] = {}
        for port in range(internal.port, internal.port + size):
            entry = self._inbound.get(internal._replace(port=port))
            if entry is not None:
                found[entry.id] = entry
        return list(found.values())

    def outbound(self, internal: Internal, remote: Endpoint) -> Entry | None:
        """The PEER or implicit entry of a five-tuple."""
        return self._outbound.get(internal, {}).get(remote)

    def outbounds(self, internal: Internal) -> list[Entry]:
        return list(self._outbound.get(internal, {}).values())

    def idle_at(self, entry: Entry) -> float:
        """Until when outbound traffic would keep the mapping of these internal ports alive (RFC 6887 section 15)."""
        times = [each.idle_at for internal in entry.internals for each in self.outbounds(internal)]
        return max(times, default=-math.inf)

    def external_of(self, internal: Internal) -> Endpoint | None:
        """Which external endpoint an internal one has already."""
        binding = self._bindings.get(internal)
        return binding.external if binding else None

    def holders(self, protocol: int, external: Endpoint) -> list[Entry]:
        """The entries that hold an external endpoint."""
        internal = self._ports.get((protocol, external.address), {}).get(external.port) if external.address else None
        if internal is None:
            return []
        inbound = self._inbound.get(internal)
        return self.outbounds(internal) + ([inbound] if inbound else [])

    def of_host(self, address: IPAddress) -> list[Entry]:
        """The entries that can end, of a host."""
        entries = self.entries.values()
        return [e for e in entries if e.internal.address == address and e.kind is not MappingKind.STATIC]

    def room_for(self, host: Host) -> int:
        """How many ports a host may still have."""
        return self._config.max_mappings_per_host - self._used_by.get(host, 0)

    @property
    def room(self) -> int:
        """How many ports are left in all for those who ask."""
        return self._config.max_mappings - self.used

    @property
    def has_room_for_traffic(self) -> bool:
        """Whether there may be another implicit entry. They are counted apart, so that no host's traffic keeps others
        from asking."""
        return self._implicit < self._config.max_mappings

    @property
    def is_under_pressure(self) -> bool:
        return self.used * 2 > self._config.max_mappings

    # --- finding an external endpoint

    def find(self, wanted: Wanted, now: float) -> tuple[Endpoint, int] | None:
        """An external endpoint for it, and how many ports in a row, at most what is wanted. None: there is none."""
        internal = wanted.internal
        bound = self.external_of(internal)
        if bound is not None:
            return (bound, 1) if wanted.is_met_by(bound) else None
        size = self._unbound(internal, wanted.size)
        if not internal.is_translated:
            own = Endpoint(internal.address, internal.port)
            return (own, size) if wanted.is_met_by(own) and not _is_reserved(internal.protocol, own.port) else None
        best = self._longest(wanted, size, now)
        if best is None and wanted.parity:  # better another port than none (RFC 7753 section 4.2)
            best = self._longest(attrs.evolve(wanted, parity=False), size, now)
        return best

    def _longest(self, wanted: Wanted, size: int, now: float) -> tuple[Endpoint, int] | None:
        """The first run of `size` free ports, or the longest of those that were looked at: of a set not all are."""
        best: tuple[Endpoint, int] | None = None
        looked_at = 0
        for address in self._addresses_for(wanted):
            for port, last in self._starts(wanted, address):
                while port <= last and (size == 1 or looked_at < _MOST_LOOKED_AT):
                    run = self._run(wanted, address, port, size, now)
                    if run > (best[1] if best else 0):
                        best = Endpoint(address, port), run
                        if run == size:
                            return best
                    port += run + 1  # the one behind the run is taken
                    looked_at += run + 1
        return best

    def admits(self, internal: Internal, external: Endpoint) -> bool:
        """Whether an internal endpoint can have just this external one, also outside the ports that are given out."""
        bound, address = self.external_of(internal), external.address
        if bound is not None or not internal.is_translated:
            is_own = external == (bound or Endpoint(internal.address, internal.port))
            return is_own and not _is_reserved(internal.protocol, external.port)
        is_port = external.port == 0 if internal.port == 0 else 0 < external.port <= 65535
        if address is None or address not in self.addresses or not is_port:
            return False
        if internal.port == 0:
            return self._is_all_free(internal, address)
        return not self._is_taken(internal, address, external.port)

    def _unbound(self, internal: Internal, size: int) -> int:
        """How many internal ports in a row have no external one yet; the first has none."""
        for step in range(1, size):
            if internal._replace(port=internal.port + step) in self._bindings:
                return step
        return size

    def _addresses_for(self, wanted: Wanted) -> list[IPAddress]:
        """The external addresses to try: the suggested one, then the one that the host has (RFC 6887 section 10)."""
        internal, suggested = wanted.internal, wanted.suggested.address
        only = suggested if wanted.exact and is_concrete(suggested) else wanted.only
        usable = [each for each in self.addresses if each.version == internal.family and only in (None, each)]
        home = self._homes.get(internal.host)
        first = (suggested, home.address if home else None)
        return sorted(usable, key=lambda address: first.index(address) if address in first else len(first))

    def _starts(self, wanted: Wanted, address: IPAddress) -> Iterator[tuple[int, int]]:
        """The external ports to begin at, from one to another: the suggested one, then all from a random one on."""
        internal, suggested, config = wanted.internal, wanted.suggested.port, self._config
        first, last = config.first_port, config.last_port
        if internal.port == 0 or internal.protocol == SCTP:  # a wildcard, or what cannot be rewritten (section 16.3.3)
            is_given_out = internal.port == 0 or first <= internal.port <= last
            if is_given_out and not (wanted.exact and suggested not in (0, internal.port)):
                yield internal.port, internal.port
            return
        if first <= suggested <= last:
            yield suggested, suggested
        if wanted.exact and suggested:
            return
        count = last - first + 1
        if len(self._ports.get((internal.protocol, address), ())) >= count:
            return
        start = min(max(internal.port, first), last)
        if not wanted.counts_up:
            for _ in range(_RANDOM_STARTS):
                start = first + self._rng.randrange(count)
                yield start, start
        yield start, last
        yield first, start - 1

    def _run(self, wanted: Wanted, address: IPAddress, port: int, size: int, now: float) -> int:
        """How many external ports from `port` on can be had, at most `size`."""
        if wanted.parity and (port ^ wanted.internal.port) & 1:  # RFC 7753 section 4.2
            return 0
        if wanted.internal.port == 0:
            return int(self._is_all_free(wanted.internal, address))
        last = max(self._config.last_port, port)
        for step in range(min(size, last - port + 1)):
            if not self._is_free(wanted, address, port + step, step, now):
                return step
        return min(size, last - port + 1)

    def _is_free(self, wanted: Wanted, address: IPAddress, port: int, step: int, now: float) -> bool:
        internal = wanted.internal
        if self._is_taken(internal, address, port):
            return False
        freed = self._freed.get(internal.protocol, {}).get((address, port))
        if freed is None or freed[0] <= now:
            return True
        return freed[1:] == (internal._replace(port=internal.port + step), wanted.nonce)  # section 15

    def _is_taken(self, internal: Internal, address: IPAddress, port: int) -> bool:
        """Whether an external port is the gateway's or somebody's, or kept for somebody."""
        if _is_reserved(internal.protocol, port) or port in self._ports.get((internal.protocol, address), ()):
            return True
        companion = _COMPANIONS.get(internal.protocol, -1)  # reserved for the same host (RFC 6886 section 3.3)
        for protocol, number in ((companion, port), (internal.protocol, 0), (Protocol.ALL, 0)):
            other = self._ports.get((protocol, address), {}).get(number)
            if other is not None and other.host != internal.host:
                return True
        return False

    def _is_all_free(self, internal: Internal, address: IPAddress) -> bool:
        """Whether nobody else has a port of the protocol, or of any."""
        for (protocol, other), ports in self._ports.items():
            concerns = protocol in (internal.protocol, Protocol.ALL) or internal.protocol == Protocol.ALL
            if other == address and concerns and any(holder.host != internal.host for holder in ports.values()):
                return False
        return True

    # --- changing

    def add(self, kind: MappingKind, internal: Internal, external: Endpoint, **details: typing.Any) -> Entry:
        """A new entry at an endpoint that `find` gave."""
        self._last_id += 1
        entry = Entry(id=MappingId(self._last_id), kind=kind, internal=internal, external=external, **details)
        self.entries[entry.id] = entry
        if entry.remote is None:
            self._inbound.update((each, entry) for each in entry.internals)
        else:
            self._outbound.setdefault(internal, {})[entry.remote] = entry
        self._count(entry, 1)
        self._bind(entry)
        return entry

    def remove(self, entry: Entry, now: float) -> None:
        """Take an entry out. A port that nobody holds any more is kept from others for a while (section 15)."""
        self._take_out(entry)
        self._unbind(entry, now)

    def change_kind(self, entry: Entry, kind: MappingKind) -> None:
        """An outbound entry becomes managed by PEER, or is so no more."""
        self._count(entry, -1)
        entry.kind = kind
        self._count(entry, 1)

    def readdress(self, now: float) -> tuple[list[Entry], list[Entry]]:
        """Move what is on an address that is none of `addresses` any more, to the same port if that is possible.

        Returns what has moved, and what had to go: there is no room, or it wants no other endpoint.
        """
        homeless = [
            entry
            for entry in self.entries.values()
            if entry.internal.is_translated
            and entry.external.address not in (self.addresses[:1] if entry.is_natpmp else self.addresses)
        ]
        homeless.sort(key=lambda entry: entry.kind is not MappingKind.STATIC)  # what is configured comes first
        for entry in homeless:
            self._unbind(entry, now)
        moved, gone = [], []
        for entry in homeless:
            if not entry.prefers_failure and self._rehouse(entry, entry.external.port, now):
                moved.append(entry)
            else:
                self._take_out(entry)
                gone.append(entry)
        return moved, gone

    def rotate(self, entry: Entry, now: float) -> None:
        """Move an entry to another external port, if there is one."""
        self._unbind(entry, now)
        if not self._rehouse(entry, entry.external.port % 65535 + 1, now):
            self._bind(entry)

    def clear(self, now: float) -> list[Entry]:
        """Forget every entry but the static ones, and whose ports they were. Returns what has gone."""
        doomed = [entry for entry in self.entries.values() if entry.kind is not MappingKind.STATIC]
        for entry in doomed:
            self.remove(entry, now)
        self._freed.clear()
        return doomed

    def _rehouse(self, entry: Entry, suggested_port: int, now: float) -> bool:
        """Find another external endpoint for an entry that has none; what is configured keeps its port if it can."""
        if entry.kind is MappingKind.STATIC:
            for address in self.addresses:
                external = Endpoint(address, entry.external.port)
                if address.version == entry.internal.family and self.admits(entry.internal, external):
                    entry.external = external
                    self._bind(entry)
                    return True
        suggested = Endpoint(None, suggested_port)
        wanted = Wanted(
            internal=entry.internal,
            suggested=suggested,
            size=entry.size,
            nonce=entry.nonce,
            only=self.addresses[0] if entry.is_natpmp else None,
        )
        found = self.find(wanted, now)
        if found is None or found[1] < entry.size:
            return False
        entry.external = found[0]
        self._bind(entry)
        return True

    def _take_out(self, entry: Entry) -> None:
        del self.entries[entry.id]
        if entry.remote is None:
            for each in entry.internals:
                del self._inbound[each]
        else:
            peers = self._outbound[entry.internal]
            del peers[entry.remote]
            if not peers:
                del self._outbound[entry.internal]
        self._count(entry, -1)

    def _count(self, entry: Entry, sign: int) -> None:
        """What is configured counts for nothing."""
        if entry.kind is MappingKind.IMPLICIT:
            self._implicit += sign
        elif entry.kind is not MappingKind.STATIC:
            host = entry.internal.host
            self.used += sign * entry.size
            self._used_by[host] = self._used_by.get(host, 0) + sign * entry.size
            if not self._used_by[host]:
                del self._used_by[host]

    def _bind(self, entry: Entry) -> None:
        address = entry.external.address
        assert address is not None
        for step, internal in enumerate(entry.internals):
            binding = self._bindings.get(internal)
            if binding is None:
                external = Endpoint(address, entry.external.port + step)
                binding = self._bindings[internal] = _Binding(external)
                if internal.is_translated:
                    self._ports.setdefault((internal.protocol, address), {})[external.port] = internal
                    home = self._homes.setdefault(internal.host, _Home(address))
                    home.address = address
                    home.ports += 1
            binding.holders += 1

    def _unbind(self, entry: Entry, now: float) -> None:
        for internal in entry.internals:
            binding = self._bindings[internal]
            binding.was_asked_for |= entry.kind in (MappingKind.MAP, MappingKind.PEER)
            binding.nonce = entry.nonce or binding.nonce
            binding.holders -= 1
            if binding.holders:
                continue
            del self._bindings[internal]
            if internal.is_translated:
                address, port = binding.external.address, binding.external.port
                assert address is not None
                ports = self._ports[internal.protocol, address]
                del ports[port]
                if not ports:
                    del self._ports[internal.protocol, address]
                home = self._homes[internal.host]
                home.ports -= 1
                if not home.ports:
                    del self._homes[internal.host]
                if binding.was_asked_for:
                    self._keep_from_others(internal, binding.nonce, address, port, now)

    def _keep_from_others(
        self, internal: Internal, nonce: bytes | None, address: IPAddress, port: int, now: float
    ) -> None:
        """For as long as an idle mapping would live, but no more ports than there may be mappings, and than half of
        all: the oldest are given free, so that nobody can use up the ports by mapping and deleting."""
        most = min(self._config.max_mappings, (self._config.last_port - self._config.first_port) // 2 + 1)
        freed = self._freed.setdefault(internal.protocol, {})
        freed.pop((address, port), None)
        freed[address, port] = (now + self.idle_time(internal.protocol), internal, nonce)
        while freed and (len(freed) > most or next(iter(freed.values()))[0] <= now):
            del freed[next(iter(freed))]

    def idle_time(self, protocol: int) -> float:
        """How long an outbound mapping lives without traffic (s)."""
        return self._config.tcp_idle if protocol == Protocol.TCP else self._config.udp_idle


def is_concrete(address: IPAddress | None) -> bool:
    return address is not None and not address.is_unspecified


def _is_reserved(protocol: int, port: int) -> bool:
    """UDP 5350 and 5351 are never mapped (RFC 6887 section 11.3)."""
    return protocol == Protocol.UDP and port in (CLIENT_PORT, SERVER_PORT)


_RANDOM_STARTS = 16  # before the ports are walked through one by one
_MOST_LOOKED_AT = 4096  # ports, for one set: what a request costs is bounded
_COMPANIONS: dict[int, int] = {Protocol.TCP: Protocol.UDP, Protocol.UDP: Protocol.TCP}
