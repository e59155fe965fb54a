"""The server role: the LAN side of one gateway. It answers requests and keeps the mapping table; what a NAT engine
has to program comes out as events."""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

import attrs

from ..config import GatewayConfig
from ..core.machine import Machine
from ..core.socket_address import checked_peer, peer_key
from ..errors import DecodeError, LocalProtocolError
from ..events import (
    Address,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingId,
    MappingKind,
    MappingRefreshed,
)
from ..wire import is_response, natpmp, pcp
from ..wire.fields import (
    CLIENT_PORT,
    MAX_LIFETIME,
    MULTICAST_V4,
    MULTICAST_V6,
    PROTOCOLS,
    Endpoint,
    IPAddress,
    Protocol,
    Value,
    to_address,
    unpack_address,
)
from .notices import announcement_times
from .quirks import Quirk, distort, preempt, spoken
from .table import SCTP, Entry, Internal, MappingTable, Wanted, is_concrete

PolicyRequest = (
    natpmp.ExternalAddressRequest | natpmp.MapRequest | pcp.AnnounceRequest | pcp.MapRequest | pcp.PeerRequest
)
Policy = Callable[[PolicyRequest, Address], pcp.ResultCode | None]
"""May this request, from this source, be granted? None: yes. A result code says why not; NAT-PMP is told 2, 3 or 4,
and whoever may not use THIRD_PARTY is told UNSUPP_OPTION (RFC 6887 section 13.1). It must decide by what it is given
alone, or two runs will differ."""
Authenticator = Callable[[pcp.AuthenticationRequest, Address, int], pcp.AuthenticationResponse | None]
"""The answer to a PA message (RFC 7652) from this source at this epoch; None: silence."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayMapping(Value):
    """A look at one entry of the mapping table; the fields are those of MappingCreated. `expires_at` is in seconds on
    the caller's clock, infinite for what is configured."""

    id: MappingId
    kind: MappingKind
    protocol: Protocol | int
    internal: Endpoint
    external: Endpoint
    remote: Endpoint | None
    size: int
    filters: tuple[pcp.Filter, ...]
    description: str
    third_party_id: bytes = attrs.field(repr=bytes.hex)
    expires_at: float


class Gateway(Machine["_TimerKey"]):
    """Answers NAT-PMP and PCP requests on `address`, mapping to ports of `external_address`.

    That is one address, or several, of which NAT-PMP knows the first, or None while there is none. IPv6 clients get
    pinholes, their own address and port; with an IPv4 `external_address` also the endpoints of a NAT64, if they
    suggest an IPv4 address. The epoch starts with the first `now` it sees; `reboot` starts the service with the
    announcements that belong to it. `policy` may refuse what the configuration allows. `authenticator` answers PA
    messages, which are an unsupported opcode without it. `quirks` break the rules. `rng` picks ports where nothing was
    suggested. Every method that takes `now` (seconds, monotonic) may produce output: drain `outputs()` and re-read
    `next_timeout()` afterwards. Not thread-safe.

    Raises:
        LocalProtocolError: an address is none, or a quirk.
    """

    def __init__(
        self,
        external_address: ExternalAddress,
        *,
        address: Address,
        config: GatewayConfig | None = None,
        policy: Policy | None = None,
        authenticator: Authenticator | None = None,
        quirks: Iterable[Quirk] = (),
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._address = address
        packed, _, self._scope = checked_peer(address, "address")
        self._ipv6 = unpack_address(packed).version == 6
        self._config = config or GatewayConfig()
        self._policy = policy
        self._authenticator = authenticator
        self._quirks = frozenset(quirks)
        if not all(isinstance(quirk, Quirk) for quirk in self._quirks):
            raise LocalProtocolError(f"quirks must be members of Quirk, not {quirks!r}")
        self._spoken = spoken(self._quirks, self._config.versions)
        self._table = MappingTable(self._config, rng or random.SystemRandom())
        self._table.addresses = self._addresses = _to_addresses(external_address)
        self._prefixes: tuple[pcp.Prefix64, ...] = ()
        self._implemented = self._options_processed()
        self._leases: dict[IPAddress, float] = {}
        self._updates: dict[_Target, _Update] = {}
        self._epoch_start: float | None = None
        self._announcements: dict[int, _Announcement] = {}

    @property
    def address(self) -> Address:
        return self._address

    @property
    def bind_address(self) -> Address:
        """The address of the socket that requests come to."""
        return self._address

    @property
    def external_address(self) -> IPAddress | None:
        """The one that NAT-PMP knows of."""
        return self._addresses[0] if self._addresses else None

    @property
    def external_addresses(self) -> tuple[IPAddress, ...]:
        return self._addresses

    @property
    def mappings(self) -> tuple[GatewayMapping, ...]:
        """The mapping table, in the order of creation."""
        entries = self._table.entries.values()
        return tuple(GatewayMapping(id=e.id, **_about(e), expires_at=e.ends_at) for e in entries)

    def __repr__(self) -> str:
        return f"<Gateway {self._address[0]} external={self.external_address} mappings={len(self._table.entries)}>"

    # --- commands

    def reboot(self, now: float) -> None:
        """Forget every mapping but the static ones and start the epoch anew, as after a power cut; or start at all.

        Emits: MappingDeleted for each mapping, and ten announcements (RFC 6886 section 3.2.1, 6887 14.1.3).
        """
        now = self._catch_up(now)
        for entry in self._table.clear(now):
            self._forget(entry, MappingDeleted)
        self._stop_updates()
        if Quirk.EPOCH_SURVIVES_REBOOT not in self._quirks:
            self._epoch_start = now
        self._start_announcing(now)

    def set_external_address(self, address: ExternalAddress, now: float) -> None:
        """The outside has another address now, several, or none. Mappings move to it, on the same port if possible.

        With None they stay as they are until there is an address again. PCP clients are told by a Mapping Update for
        each of their mappings, three times (RFC 6887 section 14.2). Where PCP is spoken the epoch starts anew (8.5).

        Emits: MappingRefreshed for each mapping that moves, MappingDeleted for one that has nowhere to go or was asked
        for with PREFER_FAILURE, and ten announcements.
        """
        addresses = _to_addresses(address)
        now = self._catch_up(now)
        if addresses == self._addresses:
            return
        self._addresses = addresses
        if Quirk.ANNOUNCES_THE_OLD_EPOCH in self._quirks:
            self._start_announcing(now)
        if pcp.VERSION in self._spoken and Quirk.ADDRESS_CHANGE_KEEPS_EPOCH not in self._quirks:
            self._epoch_start = now
        if addresses:
            self._table.addresses = addresses
            moved, gone = self._table.readdress(now)
            for entry in moved:
                self._tell(MappingRefreshed, entry)
                self._start_update(entry, pcp.ResultCode.SUCCESS, now)
            for entry in gone:
                self._forget(entry, MappingDeleted)
                self._start_update(entry, pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL, now)
        if Quirk.ANNOUNCES_THE_OLD_EPOCH not in self._quirks:
            self._start_announcing(now)

    def set_prefix64(self, prefixes: Iterable[pcp.Prefix64], now: float) -> None:
        """The prefixes of the NAT64, for those who ask with PREFIX64 (RFC 7225). Announced ten times, in PCP.

        Raises:
            LocalProtocolError: they do not fit into one datagram.
        """
        prefixes = tuple(prefixes)
        pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 0, prefixes)
        now = self._catch_up(now)
        if prefixes != self._prefixes:
            self._prefixes = prefixes
            self._implemented = self._options_processed()
            self._start_announcing(now, pcp.VERSION)

    def add_static(
        self,
        protocol: Protocol | int,
        internal: Endpoint,
        external_port: int,
        now: float,
        *,
        external_address: str | IPAddress | None = None,
    ) -> MappingId:
        """Configure a mapping that never ends and no request can change. Emits: MappingCreated.

        Raises:
            LocalProtocolError: the internal or external endpoint has a mapping already, or cannot have one.
        """
        host = _checked_host(protocol, internal, 0)
        now = self._catch_up(now)
        address = None if external_address is None else to_address(external_address)
        target = Internal(b"", host, protocol, internal.port, self._table.family(host, address))
        if address is None:
            address = self._usable_address(target) if target.is_translated else target.address
        external = Endpoint(address, external_port)
        if self._table.inbound(target) or not self._table.admits(target, external):
            raise LocalProtocolError(f"{internal} cannot be mapped to {external}: one of them is taken, or no endpoint")
        entry = self._table.add(MappingKind.STATIC, target, external, expires_at=math.inf)
        self._tell(MappingCreated, entry)
        return entry.id

    def revoke(self, mapping: MappingId, now: float) -> bool:
        """End a mapping from this side. False: there is no such mapping.

        Its owner is told NOT_AUTHORIZED, three times, if it speaks PCP. Emits: MappingDeleted.
        """
        now = self._catch_up(now)
        entry = self._table.entries.get(mapping)
        if entry is None:
            return False
        self._remove(entry, now)
        self._start_update(entry, pcp.ResultCode.NOT_AUTHORIZED, now)
        return True

    def outbound(self, protocol: Protocol | int, internal: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """The NAT has seen a packet from `internal` to `remote`: there is an implicit mapping for the idle time, or
        the one that is there lasts as long (RFC 6887 section 15).

        Returns its external endpoint, the same for all remotes; None: there is no room. Emits nothing.

        Raises:
            LocalProtocolError: an endpoint has no address or no port, or the protocol is no number of one.
        """
        host, peer = _checked_host(protocol, internal, 1), _checked_host(protocol, remote, 1)
        now = self._catch_up(now)
        family = 4 if self._is_behind_nat64(peer) else host.version
        target = Internal(b"", host, protocol, internal.port, family)
        entry = self._table.outbound(target, remote)
        if entry is None:
            wanted = Wanted(internal=target, suggested=Endpoint(None, 0))
            is_connected = not target.is_translated or self._usable_address(target)
            is_possible = is_connected and self._table.has_room_for_traffic
            found = self._table.find(wanted, now) if is_possible else None
            if found is None:
                return None
            entry = self._table.add(MappingKind.IMPLICIT, target, found[0], remote=remote)
        entry.idle_at = now + self._table.idle_time(protocol)
        if entry.kind is MappingKind.IMPLICIT:
            self._timers.set(entry, entry.idle_at)
        return entry.external

    def address_leased(self, host: str | IPAddress, expires_at: float, now: float) -> None:
        """The DHCP server has leased an address until `expires_at`: no mapping of it lasts longer (RFC 6887
        section 15).

        Emits: MappingRefreshed for each mapping that would have, and at the end MappingDeleted for each that is left.

        Raises:
            LocalProtocolError: `expires_at` is no finite number.
        """
        host = to_address(host)
        if not isinstance(expires_at, int | float) or not math.isfinite(expires_at):
            raise LocalProtocolError(f"expires_at must be a finite number of seconds, not {expires_at!r}")
        self._catch_up(now)
        self._leases[host] = expires_at
        self._timers.set(host, expires_at)
        for entry in self._table.of_host(host):
            if entry.expires_at > expires_at:
                entry.expires_at = expires_at
                self._timers.set(entry, expires_at)
                self._tell(MappingRefreshed, entry)

    def address_released(self, host: str | IPAddress, now: float) -> None:
        """An address belongs to nobody any more. Emits: MappingDeleted for each of its mappings."""
        host = to_address(host)
        self._end_lease(host, self._catch_up(now))

    # --- bytes and time in

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram from the LAN. True: it was a request, answered unless it is hopeless. False: it was a
        response, from elsewhere, or nothing at all, and nothing has changed (RFC 6886 section 3.5, RFC 6887 8.2).

        Emits: MappingCreated, MappingRefreshed, MappingDeleted, and what `handle_timeout` does.
        """
        peer = peer_key(addr)
        if peer is None or len(data) < 2 or data[1] & 0x80 or is_response(data) or not self._config.enabled:
            return False
        source = unpack_address(peer[0])
        networks = self._config.networks
        if source in self._addresses or (networks and not any(source in network for network in networks)):
            return False  # from outside (RFC 6886 section 3.3, RFC 6887 section 8.2)
        if _is_nobody(source):
            return False
        now = self._advance(now)
        if self._queue.overflows():
            return True
        self.handle_timeout(now)  # what has expired by now is gone
        data = bytes(data)
        reply = preempt(self._quirks, data, self._epoch(now))
        if reply is not None:
            replies = [reply] if reply else []
        else:
            replies = [distort(self._quirks, data, each) for each in self._answer(data, source, addr, now)]
        for each in replies:
            self._queue.send(each, addr, object())
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due: end mappings, repeat announcements and Mapping Updates.

        Emits: MappingExpired, and MappingDeleted where a host's address lease is over.
        """
        now = self._advance(now)
        while (due := self._timers.pop_due(now)) is not None:
            match due:
                case Entry():
                    self._expire(due, now)
                case _Update():
                    self._send_update(due, now)
                case _Announcement():
                    self._announce(due, now)
                case IPv4Address() | IPv6Address():
                    self._end_lease(due, now)
                case _:
                    typing.assert_never(due)

    def _answer(self, data: bytes, source: IPAddress, addr: Address, now: float) -> list[bytes]:
        versions = self._config.versions
        if data[0] == natpmp.VERSION and natpmp.VERSION in versions:
            reply = self._answer_natpmp(data, source, addr, now)
            return [] if reply is None else [reply]
        if pcp.VERSION in versions:
            return self._answer_pcp(data, source, addr, now)
        unsupported = natpmp.ResultCode.UNSUPPORTED_VERSION
        return [natpmp.ErrorResponse(0, unsupported, self._epoch(now)).encode()]  # erratum 3618

    # --- NAT-PMP

    def _answer_natpmp(self, data: bytes, source: IPAddress, addr: Address, now: float) -> bytes | None:
        if data[1] > 2:  # an opcode we do not know: the whole request back (RFC 6886 section 3.5), if it is one
            unsupported = natpmp.ResultCode.UNSUPPORTED_OPCODE
            return natpmp.ErrorResponse(data[1], unsupported, payload=data[4 : pcp.MAX_SIZE]).encode()
        try:
            message = natpmp.decode(data)
        except DecodeError:
            return None
        assert isinstance(message, natpmp.MapRequest | natpmp.ExternalAddressRequest)
        refusal = self._refusal_of(message, addr)
        code = None if refusal is None else _NATPMP_CODES.get(refusal, natpmp.ResultCode.NOT_AUTHORIZED)
        if isinstance(message, natpmp.ExternalAddressRequest):
            return self._natpmp_address(now, code)
        return self._map_natpmp(message, source, code, now).encode()

    def _natpmp_address(self, now: float, code: natpmp.ResultCode | None = None) -> bytes:
        address = self.external_address
        if code is None and isinstance(address, IPv4Address):
            return natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, self._epoch(now), address).encode()
        code = code or natpmp.ResultCode.NETWORK_FAILURE
        return natpmp.ExternalAddressResponse(code, self._epoch(now)).encode()

    def _map_natpmp(
        self, request: natpmp.MapRequest, source: IPAddress, code: natpmp.ResultCode | None, now: float
    ) -> natpmp.MapResponse:
        """RFC 6886 sections 3.3 and 3.4."""
        internal = Internal(b"", source, request.protocol, request.internal_port, 4)
        port = lifetime = 0
        if code is None and request.lifetime == 0:
            entry = self._table.inbound(internal)
            if entry is not None and Quirk.DELETE_ECHOES_EXTERNAL_PORT in self._quirks:
                port = entry.external.port
            code = self._delete_natpmp(internal, now)
        elif code is None:
            suggested = request.suggested_external_port
            if internal.port == 0 and self._quirks & {Quirk.INTERNAL_PORT_0, Quirk.INTERNAL_PORT_0_ASSIGNED}:
                suggested = self._any_port(internal, now)
                internal = internal._replace(port=suggested)
            code, port, lifetime = self._grant_natpmp(internal, suggested, request.lifetime, now)
        shown = internal.port if Quirk.INTERNAL_PORT_0_ASSIGNED in self._quirks else request.internal_port
        return natpmp.MapResponse(request.protocol, code, self._epoch(now), shown, port, lifetime)

    def _delete_natpmp(self, internal: Internal, now: float) -> natpmp.ResultCode:
        """Delete one mapping, or with internal port 0 all of this host and protocol, as far as that is allowed."""
        entry = self._table.inbound(internal)
        doomed = [entry] if entry else []
        if internal.port == 0:
            protocols = (6, 17) if Quirk.DELETE_ALL_TAKES_BOTH in self._quirks else (internal.protocol,)
            doomed = [
                each
                for each in self._table.entries.values()
                if each.internal.host == internal.host and each.internal.protocol in protocols and each.remote is None
            ]
        code = natpmp.ResultCode.SUCCESS
        for each in doomed:
            if not each.is_natpmp:
                code = natpmp.ResultCode.NOT_AUTHORIZED
            elif each.id in self._table.entries:  # a quirk may have been quicker
                self._remove(each, now)
                self._drop_tcp_twin(each, now)
        return code

    def _grant_natpmp(
        self, internal: Internal, suggested_port: int, lifetime: int, now: float
    ) -> tuple[natpmp.ResultCode, int, int]:
        """Result code, external port and lifetime. What another way has made is told and not touched (section 3.3)."""
        code = natpmp.ResultCode
        if internal.port == 0 or internal.address.version == 6 or internal.protocol not in self._config.protocols:
            return code.NOT_AUTHORIZED, 0, 0
        if not isinstance(self.external_address, IPv4Address):
            return code.NETWORK_FAILURE, 0, 0
        entry = self._table.inbound(internal)
        if entry is not None and entry.external.address != self.external_address:
            return code.OUT_OF_RESOURCES, 0, 0  # section 4.3.2: there is but one address
        if entry is not None and not entry.is_natpmp:
            rest = min(lifetime, max(1, _seconds(math.floor, entry.ends_at - now)))
            return code.SUCCESS, entry.external_at(internal.port).port, rest
        if entry is None:
            wanted = self._wanted(internal, Endpoint(None, suggested_port), only=self.external_address)
            room = min(self._table.room, self._table.room_for(internal.host))
            found = self._table.find(wanted, now) if room > 0 else None
            if found is None or self._is_busy(wanted, found[0]):
                return code.OUT_OF_RESOURCES, 0, 0
            entry = self._table.add(MappingKind.MAP, internal, found[0])
        self._stop_update(entry)
        self._extend(entry, self._lifetime(entry, lifetime, now), now)
        return code.SUCCESS, entry.external.port, entry.granted

    # --- PCP

    def _answer_pcp(self, data: bytes, source: IPAddress, addr: Address, now: float) -> list[bytes]:
        if data[0] == pcp.VERSION and len(data) < pcp.HEADER_SIZE:
            return []
        try:
            request = self._read_pcp(data, source)
            if isinstance(request, pcp.AuthenticationRequest):
                assert self._authenticator is not None
                answer = self._authenticator(request, addr, self._epoch(now))
                return [] if answer is None else [answer.encode()]
            self._check_options(request)
            refusal = self._refusal_of(request, addr)
            if refusal is not None:
                raise _RefusedError(refusal)
            if isinstance(request, pcp.MapRequest):
                return self._map(request, addr, now)
            if isinstance(request, pcp.PeerRequest):
                return [self._peer(request, addr, now)]
            success = pcp.ResultCode.SUCCESS
            return [pcp.AnnounceResponse(success, 0, self._epoch(now), self._processed(request)).encode()]
        except _RefusedError as refused:
            lifetime = refused.lifetime
            if lifetime is None:
                lifetime = refused.code.lifetime or 30  # section 7.4 leaves it open for code 11
            return [pcp.error_reply(data, refused.code, min(lifetime, MAX_LIFETIME), self._epoch(now))]

    def _read_pcp(self, data: bytes, source: IPAddress) -> pcp.AuthenticationRequest | pcp.AnnounceRequest | _Mapping:
        """The checks of RFC 6887 section 8.2, in its order."""
        code = pcp.ResultCode
        if data[0] != pcp.VERSION:
            raise _RefusedError(code.UNSUPP_VERSION)
        try:
            header = pcp.decode_header(data)
        except DecodeError:
            raise _RefusedError(code.MALFORMED_REQUEST) from None
        if header.opcode not in pcp.SIZES or (header.opcode == pcp.AUTHENTICATION and not self._authenticator):
            raise _RefusedError(code.UNSUPP_OPCODE)
        if len(data) < pcp.SIZES[header.opcode]:
            raise _RefusedError(code.MALFORMED_REQUEST)
        if header.client_address != source:
            raise _RefusedError(code.ADDRESS_MISMATCH)
        try:
            request = pcp.decode_request(data)
        except DecodeError:
            raise _RefusedError(code.MALFORMED_OPTION) from None
        assert not isinstance(request, pcp.UnknownRequest)
        implemented = None if isinstance(request, pcp.AuthenticationRequest) else self._implemented
        fault = pcp.find_fault(request, implemented)
        if fault is not None:
            raise _RefusedError(fault.result_code)
        return request

    def _options_processed(self) -> frozenset[int]:
        """The codes of the options that are processed here. Of others the optional ones are ignored."""
        config = self._config
        return frozenset(
            {
                pcp.PreferFailure.CODE,
                pcp.Filter.CODE,
                pcp.Description.CODE,
                *([pcp.ThirdParty.CODE] if config.allow_third_party else []),
                *([pcp.ThirdPartyId.CODE] if config.third_party_ids else []),
                *([pcp.PortSet.CODE] if config.max_port_set > 1 else []),
                *([pcp.Prefix64.CODE] if self._prefixes else []),
            }
        )

    def _check_options(self, request: pcp.AnnounceRequest | _Mapping) -> None:
        """What the rules of the options alone do not tell."""
        known = self._config.third_party_ids
        for option in request.options:
            if isinstance(option, pcp.ThirdParty) and _is_nobody(option.address):
                raise _RefusedError(pcp.ResultCode.MALFORMED_REQUEST)
            if isinstance(option, pcp.ThirdPartyId) and option.identifier not in known:  # RFC 7843 section 5.2
                is_length = any(len(option.identifier) == len(each) for each in known)
                code = pcp.ResultCode
                raise _RefusedError(code.THIRD_PARTY_ID_UNKNOWN if is_length else code.UNSUPP_THIRD_PARTY_ID_LENGTH)
        answer = sum(len(option.encode()) for option in self._processed(request))
        if pcp.SIZES[request.opcode] + answer > pcp.MAX_SIZE:
            raise _RefusedError(pcp.ResultCode.MALFORMED_REQUEST)  # section 7.3

    def _processed(self, request: pcp.AnnounceRequest | _Mapping, entry: Entry | None = None) -> tuple[pcp.Option, ...]:
        """The options of a success: those of the request that were processed, with what became of them."""
        options: list[pcp.Option] = []
        for option in request.options:
            if option.code not in self._implemented:
                continue
            match option:
                case pcp.RawOption():  # a DESCRIPTION that is no UTF-8 (RFC 7220 section 3)
                    pass
                case pcp.Prefix64():
                    options += self._prefixes
                case pcp.Description() if entry:
                    options.append(pcp.Description(entry.description))
                case pcp.PortSet() if entry:
                    if entry.size > 1:  # RFC 7753 section 4.2
                        options.append(pcp.PortSet(entry.size, entry.internal.port, option.parity))
                case _:
                    options.append(option)
        return tuple(options)

    def _map(self, request: pcp.MapRequest, addr: Address, now: float) -> list[bytes]:
        """RFC 6887 sections 11.3 and 15.1, in their order. One answer for each mapping that the request touches."""
        code = pcp.ResultCode
        internal = self._internal(request)
        if request.lifetime and not self._can_map(internal):
            raise _RefusedError(code.UNSUPP_PROTOCOL)
        port_set = _first(request, pcp.PortSet)
        most = min(self._config.max_port_set, 65536 - internal.port) if internal.port else 1
        wanted = self._wanted(
            internal,
            Endpoint(request.suggested_external_address, request.suggested_external_port),
            size=min(port_set.size, most) if port_set else 1,
            nonce=request.nonce,
            parity=port_set is not None and port_set.parity,
            exact=_first(request, pcp.PreferFailure) is not None and Quirk.PREFER_FAILURE_IGNORED not in self._quirks,
        )
        touched = self._touched(request, wanted, now)
        if request.lifetime == 0:
            return self._delete(request, internal, touched, now)
        self._check_network(internal)
        if touched and not internal.is_translated and Quirk.PINHOLE_NOT_RENEWABLE in self._quirks:
            raise _RefusedError(code.NO_RESOURCES)
        if any(entry.kind is MappingKind.STATIC for entry in touched) and _first(request, pcp.Filter):
            raise _RefusedError(code.UNSUPP_OPTION)  # it is not for a request to change
        if not all(wanted.is_met_by(_view(entry, request).external) for entry in touched):
            raise _RefusedError(code.CANNOT_PROVIDE_EXTERNAL, self._wait_for(wanted, now))
        filters = [self._filters(request, before) for before in [each.filters for each in touched] or [()]]
        if not touched:
            touched = [self._create(MappingKind.MAP, wanted, now)]
        for entry, its_filters in zip(touched, filters, strict=True):
            if entry.kind is MappingKind.STATIC:
                continue
            entry.nonce = request.nonce
            entry.filters = its_filters
            entry.prefers_failure = wanted.exact
            self._describe(entry, request)
            lifetime = self._lifetime(entry, max(request.lifetime, self._config.min_lifetime), now)
            self._extend(entry, lifetime, now, at_least=self._table.idle_at(entry))
        return [self._success(entry, request, addr, now) for entry in touched]

    def _touched(self, request: pcp.MapRequest, wanted: Wanted, now: float) -> list[Entry]:
        """The mappings that a request is about (RFC 7753 section 4.4.1), and that the nonce is theirs (11.3). If one is
        another's all are refused, because an error changes nothing (7.3)."""
        touched = self._table.touching(wanted.internal, wanted.size)
        for entry in touched:
            is_ours = entry.nonce in (None, request.nonce)
            if not is_ours and not (request.lifetime and Quirk.NONCE_UNCHECKED in self._quirks):
                raise _RefusedError(pcp.ResultCode.NOT_AUTHORIZED, _seconds(math.ceil, entry.expires_at - now))
        return touched

    def _delete(self, request: pcp.MapRequest, internal: Internal, touched: list[Entry], now: float) -> list[bytes]:
        """Section 15.1. What outbound traffic keeps alive lasts as long as it would without the request."""
        code = pcp.ResultCode
        if not touched and self._table.outbounds(internal):
            raise _RefusedError(code.NOT_AUTHORIZED)
        if not touched and Quirk.MISSING_DELETE_FAILS in self._quirks:
            raise _RefusedError(code.NO_RESOURCES)
        if any(entry.kind is MappingKind.STATIC for entry in touched):
            raise _RefusedError(code.NOT_AUTHORIZED)
        external = Endpoint(request.suggested_external_address, request.suggested_external_port)
        if not touched:
            nothing = Entry(id=MappingId(0), kind=MappingKind.MAP, internal=internal, external=external)
            return [self._response(nothing, request.nonce, code.SUCCESS, 0, self._processed(request), now)]
        answers = []
        for entry in touched:
            idle_at = self._table.idle_at(entry)
            if idle_at > now:
                self._extend(entry, 0, now, at_least=idle_at)
            else:
                entry.granted = 0
                self._remove(entry, now)
                self._drop_tcp_twin(entry, now)
            shown = attrs.evolve(_view(entry, request), external=external)  # what was asked is what is told
            options = self._processed(request, entry)
            answers.append(self._response(shown, request.nonce, code.SUCCESS, entry.granted, options, now))
        return answers

    def _peer(self, request: pcp.PeerRequest, addr: Address, now: float) -> bytes:
        """RFC 6887 section 12.3, in its order."""
        code = pcp.ResultCode
        remote = Endpoint(request.remote_address, request.remote_port)
        if _is_nobody(request.remote_address) or request.remote_address.is_loopback:
            raise _RefusedError(code.MALFORMED_REQUEST)
        internal = self._internal(request)
        if not self._can_map(internal):
            raise _RefusedError(code.UNSUPP_PROTOCOL)
        self._check_network(internal)
        entry = self._table.outbound(internal, remote)
        if entry is None:
            suggested = Endpoint(request.suggested_external_address, request.suggested_external_port)
            wanted = self._wanted(internal, suggested, nonce=request.nonce, exact=True)
            entry = self._create(MappingKind.PEER, wanted, now, remote)
        elif entry.kind is MappingKind.IMPLICIT:
            self._check_quota(internal)
            self._table.change_kind(entry, MappingKind.PEER)
        elif entry.nonce != request.nonce:
            raise _RefusedError(code.NOT_AUTHORIZED, _seconds(math.ceil, entry.ends_at - now))
        entry.nonce = request.nonce
        self._describe(entry, request)
        lifetime = self._lifetime(entry, max(request.lifetime, self._config.min_lifetime), now)
        self._extend(entry, lifetime, now, at_least=entry.ends_at)  # never shortened (section 12.1)
        return self._success(entry, request, addr, now)

    def _internal(self, request: _Mapping) -> Internal:
        """Whose mapping it is: the sender's, unless THIRD_PARTY names another host (section 13.1)."""
        third, realm = _first(request, pcp.ThirdParty), _first(request, pcp.ThirdPartyId)
        address = third.address if third else request.client_address
        family = self._table.family(address, request.suggested_external_address)
        if isinstance(request, pcp.PeerRequest) and self._is_behind_nat64(request.remote_address):
            family = 4
        internal = Internal(
            realm.identifier if realm else b"", address, request.protocol, request.internal_port, family
        )
        is_delete = isinstance(request, pcp.MapRequest) and request.lifetime == 0
        if is_delete and self._table.inbound(internal) is None:
            return internal._replace(family=address.version)  # a delete that knows of no families (erratum 3621)
        return internal

    def _is_behind_nat64(self, remote: IPAddress) -> bool:
        return any(remote in prefix.prefix for prefix in self._prefixes)

    def _can_map(self, internal: Internal) -> bool:
        """Whether this kind of traffic can be mapped at all (sections 2.2 and 11.3)."""
        if internal.port:
            return internal.protocol in self._config.protocols
        is_known = internal.protocol in (Protocol.ALL, *self._config.protocols)
        return self._config.allow_wildcards and (is_known or not internal.is_translated)

    def _usable_address(self, internal: Internal) -> IPAddress | None:
        """The first external address of the family that is meant."""
        return next((each for each in self._addresses if each.version == internal.family), None)

    def _check_network(self, internal: Internal) -> None:
        if internal.is_translated and self._usable_address(internal) is None:
            raise _RefusedError(pcp.ResultCode.NETWORK_FAILURE)

    def _filters(self, request: pcp.MapRequest, filters: tuple[pcp.Filter, ...]) -> tuple[pcp.Filter, ...]:
        """The filters after the request, whose options are taken in their order (section 13.3)."""
        found = list(filters)
        for option in request.options:
            if isinstance(option, pcp.Filter):
                if option.prefix_length == 0:
                    found = []
                elif option not in found:
                    found.append(option)
        if len(found) > self._config.max_filters:
            raise _RefusedError(pcp.ResultCode.EXCESSIVE_REMOTE_PEERS)
        return tuple(found)

    def _describe(self, entry: Entry, request: _Mapping) -> None:
        """Keep what fits of a DESCRIPTION, cut at a character (RFC 7220 section 3)."""
        description = _first(request, pcp.Description)
        if description is not None:
            kept = description.text.encode()[: self._config.max_description]
            entry.description = kept.decode(errors="ignore")

    def _create(self, kind: MappingKind, wanted: Wanted, now: float, remote: Endpoint | None = None) -> Entry:
        code, internal, table = pcp.ResultCode, wanted.internal, self._table
        found = table.find(wanted, now)
        is_choosy = internal.protocol == SCTP or (wanted.exact and not wanted.is_met_by(_NOWHERE))
        if found is None and is_choosy:
            raise _RefusedError(code.CANNOT_PROVIDE_EXTERNAL, None if remote else self._wait_for(wanted, now))
        self._check_quota(internal)
        if found is None and internal.port == 0:
            raise _RefusedError(code.UNSUPP_PROTOCOL)
        if found is None or self._is_busy(wanted, found[0]):
            raise _RefusedError(code.NO_RESOURCES)
        size = min(found[1], table.room, table.room_for(internal.host))
        return table.add(kind, internal, found[0], size=size, remote=remote)

    def _check_quota(self, internal: Internal) -> None:
        if self._table.room_for(internal.host) <= 0:
            raise _RefusedError(pcp.ResultCode.USER_EX_QUOTA)
        if self._table.room <= 0:
            raise _RefusedError(pcp.ResultCode.NO_RESOURCES)

    def _wait_for(self, wanted: Wanted, now: float) -> int | None:
        """How long until the suggested endpoint can be had: the rest of the mapping that is in the way, and what TCP
        may still have under way then (section 13.2)."""
        suggested, internal = wanted.suggested, wanted.internal
        address = suggested.address if is_concrete(suggested.address) else self._usable_address(internal)
        own = self._table.inbound(internal)
        in_the_way = self._table.holders(internal.protocol, Endpoint(address, suggested.port))
        in_the_way += self._table.outbounds(internal) + ([own] if own else [])
        end = max((entry.ends_at for entry in in_the_way), default=math.inf)
        return None if end == math.inf else _seconds(math.ceil, end - now) + _TIME_WAIT

    def _success(self, entry: Entry, request: _Mapping, addr: Address, now: float) -> bytes:
        entry.reply_to = addr
        entry.is_third_party = _first(request, pcp.ThirdParty) is not None
        self._stop_update(entry)
        lifetime = MAX_LIFETIME if entry.kind is MappingKind.STATIC else entry.granted
        options = self._processed(request, entry)
        view = _view(entry, request)
        return self._response(view, request.nonce, pcp.ResultCode.SUCCESS, lifetime, options, now)

    def _response(
        self,
        entry: Entry,
        nonce: bytes,
        code: pcp.ResultCode,
        lifetime: int,
        options: tuple[pcp.Option, ...],
        now: float,
    ) -> bytes:
        external = entry.external
        assert external.address is not None
        head = (code, lifetime, self._epoch(now), nonce, entry.internal.protocol, entry.internal.port)
        if entry.remote is None:
            return pcp.MapResponse(*head, external.port, external.address, options).encode()
        assert entry.remote.address is not None
        remote = (entry.remote.port, entry.remote.address)
        return pcp.PeerResponse(*head, external.port, external.address, *remote, options).encode()

    # --- what both protocols do to the table

    def _catch_up(self, now: float) -> float:
        """What has ended by now is gone before anything else happens."""
        self.handle_timeout(now)
        return self._now

    def _advance(self, now: float) -> float:
        now = super()._advance(now)
        if self._epoch_start is None:
            self._epoch_start = now
        return now

    def _refusal_of(self, message: PolicyRequest, addr: Address) -> pcp.ResultCode | None:
        config = self._config
        is_map = isinstance(message, natpmp.MapRequest | pcp.MapRequest)
        is_barred = (is_map and not config.allow_map) or (
            isinstance(message, pcp.PeerRequest) and not config.allow_peer
        )
        if is_barred or Quirk.SWITCHED_OFF in self._quirks:
            return pcp.ResultCode.NOT_AUTHORIZED
        code = self._policy(message, addr) if self._policy else None
        if not code:
            return None
        is_for_another = any(isinstance(option, pcp.ThirdParty) for option in getattr(message, "options", ()))
        return pcp.ResultCode.UNSUPP_OPTION if is_for_another else code

    def _wanted(self, internal: Internal, suggested: Endpoint, **details: typing.Any) -> Wanted:
        if Quirk.IGNORES_SUGGESTIONS in self._quirks:
            suggested = _NOWHERE
        counts_up = Quirk.COUNTS_PORTS_UP in self._quirks
        return Wanted(internal=internal, suggested=suggested, counts_up=counts_up, **details)

    def _is_busy(self, wanted: Wanted, found: Endpoint) -> bool:
        is_other = wanted.suggested.port not in (0, found.port)
        return is_other and Quirk.BUSY_PORT_IS_AN_ERROR in self._quirks

    def _lifetime(self, entry: Entry, lifetime: int, now: float) -> int:
        """What is granted of a lifetime."""
        lifetime = min(lifetime, self._config.max_lifetime)
        if entry.is_new and self._table.is_under_pressure:
            lifetime = min(lifetime, self._config.min_lifetime)
        if Quirk.LIFETIME_60 in self._quirks:
            lifetime = min(lifetime, 60)
        lease = self._leases.get(entry.internal.address, math.inf)
        return min(lifetime, max(1, _seconds(math.floor, lease - now)))

    def _extend(self, entry: Entry, lifetime: int, now: float, *, at_least: float = -math.inf) -> None:
        """Grant a lifetime, for the first time or again; the mapping does not end before `at_least`."""
        is_new, expires_at = entry.is_new, now + lifetime
        at_least = min(at_least, self._leases.get(entry.internal.address, math.inf))
        if expires_at < at_least:
            expires_at, lifetime = at_least, _seconds(math.floor, at_least - now)  # no promise beyond the end
        entry.granted = lifetime
        if not is_new and Quirk.RENEWAL_DELETES in self._quirks:
            self._remove(entry, now)
            return
        if not is_new and Quirk.RENEWAL_DOES_NOT_EXTEND in self._quirks:
            return
        if not is_new and Quirk.ROTATES_PORTS in self._quirks:
            self._table.rotate(entry, now)
        entry.expires_at = expires_at
        self._timers.set(entry, expires_at)
        self._tell(MappingCreated if is_new else MappingRefreshed, entry)
        if not is_new:
            self._drop_tcp_twin(entry, now)

    def _drop_tcp_twin(self, entry: Entry, now: float) -> None:
        if Quirk.UDP_RENEWAL_DROPS_TCP in self._quirks and entry.internal.protocol == Protocol.UDP:
            twin = self._table.inbound(entry.internal._replace(protocol=Protocol.TCP))
            if twin is not None and twin.kind is not MappingKind.STATIC:
                self._remove(twin, now)

    def _any_port(self, internal: Internal, now: float) -> int:
        """ProtonVPN's internal port 0: any port, the same inside and outside, the same for TCP and UDP. 0: none."""
        for each in self._table.of_host(internal.address):
            if each.internal.port == each.external.port != 0:
                return each.internal.port
        candidates = (internal._replace(port=port) for port in range(1, 65536))
        unbound = next(each for each in candidates if self._table.external_of(each) is None)
        found = self._table.find(Wanted(internal=unbound, suggested=_NOWHERE), now)
        return found[0].port if found else 0

    def _expire(self, entry: Entry, now: float) -> None:
        """A lease is over. What PEER managed goes back to what the NAT does by itself (section 12.3)."""
        if entry.kind is MappingKind.PEER and entry.idle_at > now:
            self._stop_update(entry)
            self._tell(MappingExpired, entry)
            self._table.change_kind(entry, MappingKind.IMPLICIT)
            entry.expires_at, entry.nonce = -math.inf, None
            self._timers.set(entry, entry.idle_at)
        else:
            self._table.remove(entry, now)
            self._forget(entry, MappingExpired)

    def _remove(self, entry: Entry, now: float) -> None:
        self._table.remove(entry, now)
        self._forget(entry, MappingDeleted)

    def _forget(self, entry: Entry, event: type[MappingExpired | MappingDeleted]) -> None:
        self._timers.cancel(entry)
        self._stop_update(entry)
        self._tell(event, entry)

    def _end_lease(self, host: IPAddress, now: float) -> None:
        self._leases.pop(host, None)
        self._timers.cancel(host)
        for entry in self._table.of_host(host):
            self._remove(entry, now)

    def _tell(self, event: type[_TableEvent], entry: Entry) -> None:
        """What a NAT engine has to do; implicit mappings it makes itself."""
        if entry.kind is MappingKind.IMPLICIT:
            return
        about = {"gateway": self._address, "mapping": entry.id, **_about(entry)}
        if issubclass(event, MappingCreated | MappingRefreshed):
            about["expires_at"] = entry.expires_at
        self._queue.emit(event(**about))

    # --- epoch, announcements and Mapping Updates

    def _epoch(self, now: float) -> int:
        assert self._epoch_start is not None
        start = now if Quirk.EPOCH_ALWAYS_0 in self._quirks else self._epoch_start
        if Quirk.EPOCH_IN_UNIX_TIME in self._quirks:
            start -= 1_700_000_000
        return int(now - start) & 0xFFFFFFFF

    def _start_announcing(self, now: float, *versions: int) -> None:
        """The first of ten announcements in each version, by default in all (RFC 6886 section 3.2.1, 6887 14.1.3)."""
        if not self._config.enabled or Quirk.NEVER_ANNOUNCES in self._quirks:
            return
        for version in versions or (natpmp.VERSION, pcp.VERSION):
            is_known = not self._ipv6 or version != natpmp.VERSION
            if version in self._spoken and is_known:
                if version in self._announcements:
                    self._timers.cancel(self._announcements[version])
                    self._queue.withdraw(self._announcements[version])
                self._announcements[version] = _Announcement(version=version)
                self._announce(self._announcements[version], now)

    def _announce(self, announcement: _Announcement, now: float) -> None:
        """One of the ten, with the epoch of its own time."""
        group: Address = (MULTICAST_V4, CLIENT_PORT)
        if self._ipv6:
            group = (MULTICAST_V6, CLIENT_PORT, 0, self._scope)
        if announcement.version == natpmp.VERSION:
            data = self._natpmp_address(now)
        else:
            data = pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, self._epoch(now), self._prefixes).encode()
        self._queue.send(data, group, announcement)
        self._repeat(announcement, announcement_times(), now)

    def _repeat(self, notice: _Announcement | _Update, times: tuple[float, ...], now: float) -> bool:
        """Send it again as much later as its schedule says, also if this time it was late. False: that was the last."""
        notice.sent += 1
        if notice.sent == len(times):
            return False
        self._timers.set(notice, now + times[notice.sent] - times[notice.sent - 1])
        return True

    def _start_update(self, entry: Entry, code: pcp.ResultCode, now: float) -> None:
        """Tell the owner of a PCP mapping what became of it, where its last response went (section 14.2)."""
        self._stop_update(entry)
        if entry.reply_to is not None and entry.nonce is not None:
            update = self._updates[entry.internal, entry.remote] = _Update(entry=entry, code=code)
            self._send_update(update, now)

    def _send_update(self, update: _Update, now: float) -> None:
        """Mandatory options are repeated, others are not."""
        entry, code = update.entry, update.code
        if not code and entry.ends_at <= now:
            self._stop_update(entry)
            return
        assert entry.reply_to is not None
        assert entry.nonce is not None
        options: list[pcp.Option] = []
        if entry.is_third_party:
            options.append(pcp.ThirdParty(entry.internal.address))
        if entry.internal.realm:
            options.append(pcp.ThirdPartyId(entry.internal.realm))
        options += entry.filters
        lifetime = code.lifetime or 30 if code else _seconds(math.floor, entry.ends_at - now)
        response = self._response(entry, entry.nonce, code, lifetime, tuple(options), now)
        target = (entry.internal, entry.remote)
        self._queue.send(response, entry.reply_to, target)
        if not self._repeat(update, _UPDATE_TIMES, now):
            del self._updates[target]

    def _stop_update(self, entry: Entry) -> None:
        """Its owner has been heard of, or it is over."""
        target = (entry.internal, entry.remote)
        self._queue.withdraw(target)  # the last copy may still wait when the update itself is done
        update = self._updates.pop(target, None)
        if update is not None:
            self._timers.cancel(update)

    def _stop_updates(self) -> None:
        for update in list(self._updates.values()):
            self._stop_update(update.entry)


@attrs.define(kw_only=True, eq=False)
class _Announcement:
    """An announcement that is being repeated."""

    version: int
    sent: int = 0


@attrs.define(kw_only=True, eq=False)
class _Update:
    """A Mapping Update that is being repeated."""

    entry: Entry
    code: pcp.ResultCode
    sent: int = 0


class _RefusedError(Exception):
    """A PCP request gets an error, and nothing has changed."""

    def __init__(self, code: pcp.ResultCode, lifetime: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.lifetime = lifetime


ExternalAddress = str | IPAddress | Iterable[str | IPAddress] | None
_Mapping = pcp.MapRequest | pcp.PeerRequest
_TableEvent = MappingCreated | MappingRefreshed | MappingExpired | MappingDeleted
_Target = tuple[Internal, Endpoint | None]
_TimerKey = Entry | _Update | _Announcement | IPAddress
"""What is due at some time: the end of a mapping, a notice to repeat, the end of a host's address lease."""

_O = typing.TypeVar("_O", bound=pcp.Option)


def _checked_host(protocol: int, endpoint: Endpoint, lowest_port: int) -> IPAddress:
    is_port = lowest_port <= endpoint.port <= 65535 and (protocol or endpoint.port == 0)
    if protocol not in PROTOCOLS or endpoint.address is None or not is_port:
        raise LocalProtocolError(f"a mapping needs a protocol from 0 to 255, an address and a port, not {endpoint!r}")
    return endpoint.address


def _first(request: _Mapping, kind: type[_O]) -> _O | None:
    """The option of that kind, if there is one."""
    return next((option for option in request.options if isinstance(option, kind)), None)


def _to_addresses(value: ExternalAddress) -> tuple[IPAddress, ...]:
    if value is None:
        return ()
    if isinstance(value, str | IPv4Address | IPv6Address):
        return (to_address(value),)
    return tuple(to_address(each) for each in value)


def _seconds(rounded: Callable[[float], int], difference: float) -> int:
    """A time that is left, in whole seconds as a lifetime can tell."""
    return rounded(min(max(difference, 0.0), float(MAX_LIFETIME)))


def _view(entry: Entry, request: _Mapping) -> Entry:
    """A mapping as it is seen from the internal port of a request, which its answer has to have: of a set that may be
    one in the middle (RFC 7753 section 6.3)."""
    port = request.internal_port
    if not entry.internal.port < port < entry.internal.port + entry.size:
        return entry
    external = entry.external if _first(request, pcp.PortSet) else entry.external_at(port)
    return attrs.evolve(entry, internal=entry.internal._replace(port=port), external=external)


def _is_nobody(address: IPAddress) -> bool:
    """Whether no host can have that address."""
    return address.is_multicast or address.is_unspecified or address == _BROADCAST


def _about(entry: Entry) -> dict[str, typing.Any]:
    internal = entry.internal
    return {
        "kind": entry.kind,
        "protocol": PROTOCOLS[internal.protocol],
        "internal": Endpoint(internal.address, internal.port),
        "external": entry.external,
        "remote": entry.remote,
        "size": entry.size,
        "filters": entry.filters,
        "description": entry.description,
        "third_party_id": internal.realm,
    }


_NATPMP_CODES = {
    pcp.ResultCode.NETWORK_FAILURE: natpmp.ResultCode.NETWORK_FAILURE,
    pcp.ResultCode.NO_RESOURCES: natpmp.ResultCode.OUT_OF_RESOURCES,
    pcp.ResultCode.USER_EX_QUOTA: natpmp.ResultCode.OUT_OF_RESOURCES,
}
_NOWHERE = Endpoint(None, 0)
_BROADCAST = IPv4Address("255.255.255.255")
_TIME_WAIT = 240  # s: twice the segment lifetime of RFC 793
_UPDATE_TIMES = (0.0, 0.25, 0.75)  # section 14.2
