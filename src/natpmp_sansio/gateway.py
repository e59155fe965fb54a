"""The server role: the LAN side of one gateway. It answers requests and keeps the mapping table; what a NAT engine
has to program comes out as events."""

from __future__ import annotations

import enum
import math
import random
import typing
from ipaddress import IPv4Address

import attrs

from .config import GatewayConfig
from .core import Machine, checked_peer, peer_key
from .errors import DecodeError
from .events import (
    Address,
    MappingCreated,
    MappingDeleted,
    MappingExpired,
    MappingId,
    MappingRefreshed,
)
from .retransmission import announcement_times
from .wire import is_response, natpmp, pcp
from .wire.fields import (
    CLIENT_PORT,
    MULTICAST_V4,
    MULTICAST_V6,
    SERVER_PORT,
    Endpoint,
    IPAddress,
    Protocol,
    Value,
    to_address,
    unpack_address,
)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GatewayMapping(Value):
    """A look at one entry of the mapping table. `expires_at` is in seconds on the caller's clock."""

    id: MappingId
    protocol: Protocol
    internal: Endpoint
    external: Endpoint
    expires_at: float


class Gateway(Machine["_TimerKey"]):
    """Answers NAT-PMP and PCP requests on `address`, mapping to ports of `external_address` (None: there is none now).

    The epoch starts with the first `now` it sees. IPv6 clients get pinholes: their own address and port. `rng` picks
    ports where nothing was suggested. Every method that takes `now` (seconds, monotonic) may produce output: drain
    `outputs()` and re-read `next_timeout()` afterwards. Not thread-safe.

    Raises:
        LocalProtocolError: an address is none.
    """

    def __init__(
        self,
        external_address: str | IPAddress | None,
        *,
        address: Address,
        config: GatewayConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._external_address = None if external_address is None else to_address(external_address)
        self._address = address
        packed, _, self._scope = checked_peer(address, "address")
        self._ipv6 = unpack_address(packed).version == 6
        self._config = config or GatewayConfig()
        self._rng = rng or random.SystemRandom()
        self._epoch_start: float | None = None
        self._entries: dict[_Target, _Entry] = {}
        self._ports: dict[tuple[Protocol, int], _Entry] = {}
        self._last_id = 0
        self._announced_at = 0.0
        self._announcements = 0

    @property
    def address(self) -> Address:
        return self._address

    @property
    def bind_address(self) -> Address:
        """The address of the socket that requests come to."""
        return self._address

    @property
    def external_address(self) -> IPAddress | None:
        return self._external_address

    @property
    def mappings(self) -> tuple[GatewayMapping, ...]:
        """The mapping table, in the order of creation."""
        return tuple(entry.look() for entry in self._entries.values())

    def __repr__(self) -> str:
        return f"<Gateway {self._address[0]} external={self._external_address} mappings={len(self._entries)}>"

    # --- commands

    def reboot(self, now: float) -> None:
        """Forget every mapping and start the epoch anew, as after a power cut.

        Emits: MappingDeleted for each mapping, and ten announcements (RFC 6886 section 3.2.1, 6887 14.1.3).
        """
        now = self._advance(now)
        for entry in list(self._entries.values()):
            self._delete(entry)
        self._restart_epoch(now)

    def set_external_address(self, address: str | IPAddress | None, now: float) -> None:
        """The outside has another address now, or none. Mappings stay, on the new address.

        Emits: MappingRefreshed for each mapping, and ten announcements; the epoch starts anew (RFC 6887 section 8.5).
        """
        new = None if address is None else to_address(address)
        now = self._advance(now)
        self._external_address = new
        for entry in self._entries.values():
            if new is not None and entry.internal.address != entry.external.address:
                entry.external = Endpoint(new, entry.external.port)
                self._emit(MappingRefreshed(**entry.about(self._address), expires_at=entry.expires_at))
        self._restart_epoch(now)

    def revoke(self, mapping: MappingId, now: float) -> bool:
        """End a mapping from this side. False: there is no such mapping. Emits: MappingDeleted."""
        self._advance(now)
        for entry in self._entries.values():
            if entry.id == mapping:
                self._delete(entry)
                return True
        return False

    # --- bytes and time in

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> bool:
        """Take in a datagram from the LAN. True: it was a request, answered unless it is hopeless. False: it was a
        response, or nothing at all, and nothing has changed (RFC 6886 section 3.5, RFC 6887 section 8.2)."""
        peer = peer_key(addr)
        if peer is None or len(data) < 2 or data[1] & 0x80 or is_response(data):
            return False
        now = self._advance(now)
        if self._overflows():
            return True
        if self._epoch_start is None:
            self._epoch_start = now
        self.handle_timeout(now)  # what has expired by now is gone
        source = unpack_address(peer[0])
        versions = self._config.versions
        if data[0] == natpmp.VERSION and natpmp.VERSION in versions:
            reply = self._answer_natpmp(data, source, now)
        elif pcp.VERSION in versions:
            reply = self._answer_pcp(bytes(data), source, now)
        else:
            unsupported = natpmp.ResultCode.UNSUPPORTED_VERSION
            reply = natpmp.ErrorResponse(0, unsupported, self._epoch(now)).encode()  # erratum 3618
        if reply is not None:
            self._send(reply, addr, object())
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due: expire mappings, repeat announcements."""
        now = self._advance(now)
        while (key := self._timers.pop_due(now)) is not None:
            entry = key[1]
            if entry is None:
                self._announce(now)
            else:
                self._remove(entry)
                self._emit(MappingExpired(**entry.about(self._address)))

    # --- NAT-PMP

    def _answer_natpmp(self, data: bytes, source: IPAddress, now: float) -> bytes | None:
        if data[1] > 2:  # an opcode we do not know: the whole request back (RFC 6886 section 3.5)
            unsupported = natpmp.ResultCode.UNSUPPORTED_OPCODE
            return natpmp.ErrorResponse(data[1], unsupported, payload=bytes(data[4:])).encode()
        try:
            message = natpmp.decode(data)
        except DecodeError:
            return None
        if isinstance(message, natpmp.MapRequest):
            return self._map_natpmp(message, source, now).encode()
        return self._natpmp_address(now)

    def _natpmp_address(self, now: float) -> bytes:
        if not isinstance(self._external_address, IPv4Address):
            failure = natpmp.ResultCode.NETWORK_FAILURE
            return natpmp.ExternalAddressResponse(failure, self._epoch(now)).encode()
        success = natpmp.ResultCode.SUCCESS
        return natpmp.ExternalAddressResponse(success, self._epoch(now), self._external_address).encode()

    def _map_natpmp(self, request: natpmp.MapRequest, source: IPAddress, now: float) -> natpmp.MapResponse:
        code, port, lifetime = natpmp.ResultCode.SUCCESS, 0, 0
        target = (request.protocol, source, request.internal_port)
        entry = self._entries.get(target)
        if request.lifetime == 0:
            doomed = [entry] if entry else []
            if request.internal_port == 0:  # every mapping of this client and protocol (section 3.4)
                doomed = [e for e in self._entries.values() if e.target[:2] == target[:2]]
            for each in doomed:
                if each.nonce is None:
                    self._delete(each)
                else:
                    code = natpmp.ResultCode.NOT_AUTHORIZED
        elif request.internal_port == 0 or (entry and entry.nonce is not None) or source.version == 6:
            code = natpmp.ResultCode.NOT_AUTHORIZED
        elif not isinstance(self._external_address, IPv4Address):
            code = natpmp.ResultCode.NETWORK_FAILURE
        else:
            lifetime = min(request.lifetime, self._config.max_lifetime)  # never more than asked (section 3.3)
            if entry is None and not self._is_quota_used_up(source):
                entry = self._create(target, request.suggested_external_port, None)
            if entry is None:
                code, lifetime = natpmp.ResultCode.OUT_OF_RESOURCES, 0
            else:
                port = entry.external.port
                self._extend(entry, lifetime, now)
        return natpmp.MapResponse(request.protocol, code, self._epoch(now), request.internal_port, port, lifetime)

    # --- PCP

    def _answer_pcp(self, data: bytes, source: IPAddress, now: float) -> bytes | None:
        """RFC 6887 section 8.2, in its order."""
        code = pcp.ResultCode
        if data[0] != pcp.VERSION:
            return self._pcp_error(data, code.UNSUPP_VERSION, now)
        if len(data) < pcp.HEADER_SIZE:
            return None
        try:
            header = pcp.decode_header(data)
        except DecodeError:
            return self._pcp_error(data, code.MALFORMED_REQUEST, now)
        if header.opcode not in (pcp.ANNOUNCE, pcp.MAP):
            return self._pcp_error(data, code.UNSUPP_OPCODE, now)
        if len(data) < pcp.SIZES[header.opcode]:
            return self._pcp_error(data, code.MALFORMED_REQUEST, now)
        if header.client_address != source:
            return self._pcp_error(data, code.ADDRESS_MISMATCH, now)
        try:
            request = pcp.decode_request(data)
        except DecodeError:
            return self._pcp_error(data, code.MALFORMED_OPTION, now)
        assert isinstance(request, pcp.AnnounceRequest | pcp.MapRequest)
        if any(option.mandatory for option in request.options):
            return self._pcp_error(data, code.UNSUPP_OPTION, now)
        if isinstance(request, pcp.AnnounceRequest):
            return pcp.AnnounceResponse(code.SUCCESS, 0, self._epoch(now)).encode()
        return self._map_pcp(request, data, now)

    def _map_pcp(self, request: pcp.MapRequest, data: bytes, now: float) -> bytes:
        """RFC 6887 sections 11.3 and 15.1, in their order."""
        code = pcp.ResultCode
        if request.protocol == Protocol.ALL and request.internal_port:
            return self._pcp_error(data, code.MALFORMED_REQUEST, now)
        mappable = request.protocol in (Protocol.TCP, Protocol.UDP) and request.internal_port != 0
        if request.lifetime and not mappable:
            return self._pcp_error(data, code.UNSUPP_PROTOCOL, now)
        target = (typing.cast("Protocol", request.protocol), request.client_address, request.internal_port)
        entry = self._entries.get(target)
        if entry and entry.nonce not in (None, request.nonce):
            remaining = math.ceil(entry.expires_at - now)
            return self._pcp_error(data, code.NOT_AUTHORIZED, now, remaining)
        if request.lifetime == 0:
            if entry:
                self._delete(entry)
            external = Endpoint(request.suggested_external_address, request.suggested_external_port)
            return self._map_success(request, external, 0, now)
        if self._external_address is None and request.client_address.version == 4:
            return self._pcp_error(data, code.NETWORK_FAILURE, now)
        if entry is None:
            if self._is_quota_used_up(request.client_address):
                return self._pcp_error(data, code.USER_EX_QUOTA, now)
            entry = self._create(target, request.suggested_external_port, request.nonce)
            if entry is None:
                return self._pcp_error(data, code.NO_RESOURCES, now)
        entry.nonce = request.nonce
        lifetime = min(max(request.lifetime, self._config.min_lifetime), self._config.max_lifetime)
        self._extend(entry, lifetime, now)
        return self._map_success(request, entry.external, lifetime, now)

    def _map_success(self, request: pcp.MapRequest, external: Endpoint, lifetime: int, now: float) -> bytes:
        assert external.address is not None
        return pcp.MapResponse(
            pcp.ResultCode.SUCCESS,
            lifetime,
            self._epoch(now),
            request.nonce,
            request.protocol,
            request.internal_port,
            external.port,
            external.address,
        ).encode()

    def _pcp_error(self, data: bytes, code: pcp.ResultCode, now: float, lifetime: int | None = None) -> bytes:
        if lifetime is None:
            lifetime = code.lifetime or 0
        return pcp.error_reply(data, code, lifetime, self._epoch(now))

    # --- the table

    def _is_quota_used_up(self, host: IPAddress) -> bool:
        owned = sum(entry.internal.address == host for entry in self._entries.values())
        return owned >= self._config.max_mappings_per_host

    def _create(self, target: _Target, suggested_port: int, nonce: bytes | None) -> _Entry | None:
        """A new entry, on the suggested port if that can be. None: no port is free."""
        protocol, host, internal_port = target
        if host.version == 6:
            external = Endpoint(host, internal_port)  # a pinhole in a firewall, not a translation
        else:
            port = self._free_port(protocol, host, suggested_port)
            if port is None:
                return None
            external = Endpoint(self._external_address, port)
        self._last_id += 1
        entry = _Entry(
            id=MappingId(self._last_id),
            protocol=protocol,
            internal=Endpoint(host, internal_port),
            external=external,
            nonce=nonce,
        )
        self._entries[target] = entry
        if host.version == 4:
            self._ports[protocol, external.port] = entry
        return entry

    def _free_port(self, protocol: Protocol, host: IPAddress, suggested: int) -> int | None:
        first, last = self._config.first_port, self._config.last_port
        if first <= suggested <= last and self._is_free(protocol, host, suggested):
            return suggested
        count = last - first + 1
        start = self._rng.randrange(count)
        for step in range(count):
            port = first + (start + step) % count
            if self._is_free(protocol, host, port):
                return port
        return None

    def _is_free(self, protocol: Protocol, host: IPAddress, port: int) -> bool:
        if protocol is Protocol.UDP and port in (CLIENT_PORT, SERVER_PORT):
            return False  # RFC 6887 section 11.3
        companion = self._ports.get((Protocol.TCP if protocol is Protocol.UDP else Protocol.UDP, port))
        if companion is not None and companion.internal.address != host:
            return False  # reserved for the other protocol's owner (RFC 6886 section 3.3)
        return (protocol, port) not in self._ports

    def _extend(self, entry: _Entry, lifetime: int, now: float) -> None:
        is_new, entry.expires_at = entry.expires_at == math.inf, now + lifetime
        self._timers.set((_Timer.EXPIRE, entry), entry.expires_at)
        event = MappingCreated if is_new else MappingRefreshed
        self._emit(event(**entry.about(self._address), expires_at=entry.expires_at))

    def _delete(self, entry: _Entry) -> None:
        self._remove(entry)
        self._emit(MappingDeleted(**entry.about(self._address)))

    def _remove(self, entry: _Entry) -> None:
        self._timers.cancel((_Timer.EXPIRE, entry))
        del self._entries[entry.target]
        port = (entry.protocol, entry.external.port)
        if self._ports.get(port) is entry:  # a pinhole has none
            del self._ports[port]

    # --- epoch and announcements

    def _epoch(self, now: float) -> int:
        return int(now - (now if self._epoch_start is None else self._epoch_start)) & 0xFFFFFFFF

    def _restart_epoch(self, now: float) -> None:
        self._epoch_start = self._announced_at = now
        self._announcements = 0
        self._announce(now)

    def _announce(self, now: float) -> None:
        """One round of the ten, with the epoch of its own time; the next one is due later by the schedule."""
        group: Address = (MULTICAST_V4, CLIENT_PORT)
        if self._ipv6:
            group = (MULTICAST_V6, CLIENT_PORT, 0, self._scope)
        if natpmp.VERSION in self._config.versions and not self._ipv6:
            self._send(self._natpmp_address(now), group, natpmp)
        if pcp.VERSION in self._config.versions:
            self._send(pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, self._epoch(now)).encode(), group, pcp)
        times = announcement_times()
        self._announcements += 1
        if self._announcements < len(times):
            self._timers.set((_Timer.ANNOUNCE, None), self._announced_at + times[self._announcements])


class _Timer(enum.Enum):
    EXPIRE = "a mapping's lifetime is over"
    ANNOUNCE = "an announcement is to be repeated"


_Target = tuple[Protocol, IPAddress, int]


@attrs.define(kw_only=True, eq=False, repr=False)
class _Entry:
    id: MappingId
    protocol: Protocol
    internal: Endpoint
    external: Endpoint
    nonce: bytes | None  # None: made by NAT-PMP
    expires_at: float = math.inf  # until it is granted for the first time

    @property
    def target(self) -> _Target:
        return (self.protocol, typing.cast("IPAddress", self.internal.address), self.internal.port)

    def about(self, gateway: Address) -> dict[str, typing.Any]:
        return {
            "gateway": gateway,
            "mapping": self.id,
            "protocol": self.protocol,
            "internal": self.internal,
            "external": self.external,
        }

    def look(self) -> GatewayMapping:
        return GatewayMapping(
            id=self.id,
            protocol=self.protocol,
            internal=self.internal,
            external=self.external,
            expires_at=self.expires_at,
        )


_TimerKey = tuple[_Timer, "_Entry | None"]
