"""The client role: what a caller can say to it and ask of it. What it then does by itself is in `keeper.py`."""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence

import attrs

from ..config import Config
from ..core.socket_address import bind_address, checked_addresses, checked_local
from ..errors import LocalProtocolError
from ..events import Address, MappingFailed, MappingId, Reason
from ..stats import Rejected, Stats
from ..wire import pcp
from ..wire.fields import Endpoint, IPAddress, Protocol, Value, to_address
from .keeper import Keeper
from .lifecycle import ClientMapping, Exchange, Mapping, MappingState, Pair, Purpose, Timer
from .probe import Probe
from .session import GatewaySession
from .snapshot import Saved, read_snapshot, write_snapshot
from .spec import MappingParameters, MappingSpec, Target, require_no_overlap


@attrs.frozen(kw_only=True, eq=False, repr=False)
class TimerInfo(Value):
    """One entry of `Client.timers()`."""

    deadline: float
    reason: Timer
    mapping: MappingId | None


class Client(Keeper):
    """Keeps mappings at one gateway.

    `gateway` is where requests go, or a list of the several addresses of one PCP server, the best first (RFC 7488);
    events carry the one in use. `local_address` is the address that requests come from (it stands in PCP requests, and
    is compared there with the real source). `rng` draws, in this order: the nonce of each mapping when it is asked
    for, and the jitter of each wait when it begins. It must be unpredictable, as the default is; tests hand in a seeded
    one.

    Nothing happens before the first command. Every method that takes `now` (seconds, monotonic) may produce
    output: drain `outputs()` and re-read `next_timeout()` afterwards. Not thread-safe.

    Raises:
        LocalProtocolError: an address is none, or the configuration leaves no protocol for its family.
    """

    @classmethod
    def restore(
        cls,
        snapshot: Dictionary[str, typing.Any],
        now: float,
        *,
        elapsed: float,
        local_address: str | IPAddress | None = None,
        config: Config | None = None,
        rng: random.Random | None = None,
    ) -> typing.Self:
        """The client of a `snapshot` that was taken `elapsed` seconds ago, with the same mappings, ids and nonces.

        Every mapping is asked for at once, with the endpoint that it had. `local_address` is this host's address where
        it is another than then.

        Emits: as for `map_port`, for each mapping.
        Raises: LocalProtocolError: the snapshot is damaged or something else, or `elapsed` is no number of seconds.
        """
        gateways, local, last_id, saved = read_snapshot(snapshot)
        if not isinstance(elapsed, int | float) or not 0 <= elapsed < _NEVER:
            raise LocalProtocolError(f"elapsed must be a number of seconds, not {elapsed!r}")
        client = cls(gateways, local_address=local_address or local, config=config, rng=rng)
        client._resume(saved, last_id, float(elapsed), to_address(local), client._advance(now))
        return client

    # --- what there is

    @property
    def gateways(self) -> tuple[Address, ...]:
        """Every address of the gateway."""
        return self._session.servers.addresses

    @property
    def bind_address(self) -> Address:
        """The local address of the socket: requests must come from it; any port will do."""
        return bind_address(self._session.local, self.gateway)

    @property
    def version(self) -> int | None:
        """What the gateway speaks: 2 is PCP, 0 is NAT-PMP; None until it has answered."""
        return self._session.versions.reported_version

    @property
    def external_address(self) -> IPAddress | None:
        """The gateway's external address, as last told by it."""
        return self._session.external.address

    @property
    def prefixes(self) -> tuple[pcp.Prefix64, ...]:
        """The prefixes of the gateway's NAT64, as last told; ask with a `pcp.Prefix64` option (RFC 7225)."""
        return self._session.external.prefixes

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """Every mapping that is not finished, in the order of asking."""
        return tuple(mapping.view() for mapping in self._mappings.values() if not mapping.is_address_probe)

    def mapping(self, mapping: MappingId) -> Mapping | None:
        """One mapping, or None once it is finished."""
        found = self._mappings.get(mapping)
        return found.view() if found and not found.is_address_probe else None

    @property
    def stats(self) -> Stats:
        """What was rejected and what was put up with, so far."""
        overflow = {Rejected.OVERFLOW: self._queue.overflowed} if self._queue.overflowed else {}
        return Stats(
            rejected=dict(self._rejected) | overflow,
            tolerated=dict(self._tolerated),
            clock_backwards=self._backwards,
        )

    def timers(self) -> list[TimerInfo]:
        """Every deadline and its reason, the earliest first."""
        infos = []
        for deadline, key in self._timers.items():
            reason, mapping = (Timer.RETRANSMIT, key.mapping) if isinstance(key, Exchange) else key
            infos.append(TimerInfo(deadline=deadline, reason=reason, mapping=mapping.id if mapping else None))
        return infos

    def snapshot(self, now: float) -> dict[str, typing.Any]:
        """All that `restore` needs to keep the mappings in another process: plain values, for `json.dumps`, say.

        It holds the nonces, with which anybody could change the mappings: keep it private. What is being released is
        not in it. Emits nothing.
        """
        now = self._advance(now)
        kept = [
            mapping
            for mapping in self._mappings.values()
            if mapping.state is not MappingState.RELEASING and not mapping.is_address_probe
        ]
        return write_snapshot(self._session.servers.addresses, self._session.local, kept, self._last_id, now)

    def __repr__(self) -> str:
        return f"<Client of {self.gateway[0]} version={self.version} mappings={len(self._mappings)}>"

    # --- commands

    def map_port(
        self,
        protocol: Protocol | int,
        internal_port: int,
        now: float,
        *,
        external_port: int = 0,
        external_address: str | IPAddress | None = None,
        lifetime: int = 7200,
        until: float | None = None,
        options: tuple[pcp.Option, ...] = (),
    ) -> MappingId:
        """Ask for a mapping, and keep it until `unmap`, `close`, or the time `until` (s, on the clock of `now`).

        `internal_port` is 1 to 65535, or 0 for all ports of the protocol (PCP; but see `Config.any_internal_port`).
        `external_port` and `external_address` are suggestions that the gateway need not follow; 0 and None leave the
        choice to it. An all-zeros `external_address` asks for an address of its family, through a NAT64 or NAT46.
        `lifetime` (1 to 2**32-1 s) is what each request asks for; renewals follow the granted one. Mandatory
        `options` and other protocols than TCP and UDP need PCP.

        Emits: MappingGranted, MappingRefused or MappingFailed, then as `events` says.
        Raises: LocalProtocolError, before anything has changed: the same protocol and internal port is wanted
        already, a value is out of range, or the client is closed.
        RFC: 6886 section 3.3, 6887 section 11.2.
        """
        spec = MappingSpec.from_parameters(
            self._session.local,
            protocol,
            internal_port,
            external_port=external_port,
            external_address=external_address,
            lifetime=lifetime,
            until=until,
            options=options,
        )
        (mapping,) = self._want([spec], now)
        self._send_requests(self._now)
        return mapping.id

    def map_peer(
        self,
        protocol: Protocol | int,
        internal_port: int,
        remote: tuple[str | IPAddress, int],
        now: float,
        **parameters: typing.Unpack[MappingParameters],
    ) -> MappingId:
        """Learn of, and keep alive, the mapping of one flow from `internal_port` to the `remote` address and port.

        For a connection of one's own that shall outlive its silence without keepalives, or a restart of the NAT: then
        the endpoint that it had is suggested again. Needs PCP. The arguments are `map_port`'s; no port may be 0.
        PEER cannot end a mapping: `unmap` sends nothing, and it lasts until its lease is over.

        Emits, raises: as `map_port`.
        RFC: 6887 section 12.
        """
        try:
            host, port = remote
        except (TypeError, ValueError):
            raise LocalProtocolError(f"remote must be an address and a port, not {remote!r}") from None
        peer = Endpoint(to_address(host), port)
        (mapping,) = self._want(
            [MappingSpec.from_parameters(self._session.local, protocol, internal_port, remote=peer, **parameters)], now
        )
        self._send_requests(self._now)
        return mapping.id

    def map_pair(
        self, internal_port: int, now: float, **parameters: typing.Unpack[MappingParameters]
    ) -> tuple[MappingId, MappingId]:
        """Ask for TCP and UDP of one port, to be kept on one external port, as a unit. The arguments are `map_port`'s.

        UDP goes first and TCP asks for the port that UDP got. While they differ, one is deleted and asked for again
        with the other's port, a few times; if the gateway gives no equal ports, PairSplit says so and each keeps its
        own. Nothing is granted or changed, as the events tell it, before both have been answered.
        To `unmap` one of them leaves the other alone.

        Emits: as `map_port`, for each of both; PairSplit.
        Raises: LocalProtocolError, as `map_port`.
        """
        both = [
            MappingSpec.from_parameters(self._session.local, each, internal_port, **parameters)
            for each in (Protocol.UDP, Protocol.TCP)
        ]
        udp, tcp = self._want(both, now)
        udp.pair = tcp.pair = Pair(udp, tcp)
        self._send_requests(self._now)
        return tcp.id, udp.id

    def unmap(self, mapping: MappingId, now: float) -> bool:
        """Give a mapping up and delete it at the gateway. False: it is finished, or on its way out, already.

        Emits: MappingReleased, in bounded time.
        RFC: 6886 section 3.4, 6887 section 15.1.
        """
        found = self._mappings.get(mapping) if isinstance(mapping, int) else None
        now = self._advance(now)
        if found is None or found.state is MappingState.RELEASING:
            return False
        self._begin_delete(found, None)
        self._send_requests(now)
        return True

    def request_external_address(self, now: float) -> None:
        """Ask for the gateway's external address.

        NAT-PMP has a question for it. PCP has not: a mapping that is held is renewed, and where there is none, UDP
        port 9 (discard) is mapped for a moment (RFC 6887 section 11.6); `probe` leaves nothing behind.

        Emits: ExternalAddressLearned, even if it is known already, or ExternalAddressChanged; nothing if the gateway
        does not tell.
        Raises: LocalProtocolError: the client is closed.
        RFC: 6886 section 3.2.
        """
        self._require_open()
        now = self._advance(now)
        self._address_requested = True
        self._session.versions.expire(
            now
        )  # before it is asked who can tell: `_send_requests` would forget that, and ask nobody
        if self._session.versions.address_teller is not None:
            self._address_wanted = True
        elif (held := next((each for each in self._mappings.values() if each.is_held), None)) is not None:
            self._renew_now(held, now)
        elif not any(each.is_address_probe for each in self._mappings.values()):
            self._map_discard_port()
        self._send_requests(now)

    def probe(self, now: float) -> None:
        """Find out what the gateway speaks, and why it may not work, without any effect there.

        PCP is asked with ANNOUNCE and NAT-PMP for the external address, each a few times. A second call while a probe
        is under way is answered by the same event.

        Emits: ProbeCompleted, within ten seconds of when there is room for its two requests among those under way.
        Raises: LocalProtocolError: the client is closed.
        RFC: 6886 section 3.2, 6887 section 14.1.2.
        """
        self._require_open()
        now = self._advance(now)
        self._probe = self._probe or Probe(self._session.versions.dialects.values())
        self._send_requests(now)

    def close(self, now: float) -> None:
        """Release every mapping; Closed follows when they are gone. A second call does nothing.

        If the gateway does not answer a delete, the others are given up as well: it takes as long as one.
        """
        now = self._advance(now)
        if self._closing:
            return
        self._closing = True
        self._probe = None
        for mapping in list(self._mappings.values()):
            if mapping.state is not MappingState.RELEASING:
                self._begin_delete(mapping, None)
        self._send_requests(now)

    def abandon(self, now: float) -> None:
        """Close, and wait no longer for the gateway: leases that it did not hear of run out by themselves.

        Emits: MappingReleased for what is left, then Closed, at once.
        """
        self.close(now)
        for mapping in list(self._mappings.values()):
            self._finish_delete(mapping, confirmed=False)
        self._send_requests(self._now)

    def gateway_unreachable(self, now: float) -> None:
        """ICMP told us that nothing listens there: what is under way ends at once (RFC 6886 section 3.1).

        A server with several addresses is asked at the next one (RFC 7488 section 3).

        Emits: GatewayUnreachable, and MappingRefused for what was being asked for.
        """
        now = self._advance(now)
        if self._in_flight:
            self._on_address_failed(Reason.UNREACHABLE, now)
            self._send_requests(now)

    def network_changed(
        self,
        now: float,
        local_address: str | IPAddress | None = None,
        gateway: Address | Sequence[Address] | None = None,
    ) -> None:
        """This host woke from sleep, came back to its network, or has another address or gateway now.

        Whatever was learnt of the gateway is doubted: every mapping is asked for at once, and what was refused before
        too. At another gateway, or with another `local_address`, mappings are new: each is held for 30 s more, to be
        moved. What is left behind is deleted where the old gateway may still hear it, with one datagram each, which
        comes out before the new requests: if `local_address` is another, `SendDatagram.source` is the old one in them.

        Emits: MappingRenewed or MappingChanged for what is confirmed or has moved, MappingLost for what has not;
        MappingFailed for what is the same as another mapping there, because it differed in the family outside alone.
        Raises: LocalProtocolError, before anything has changed: an address is none.
        """
        session = GatewaySession(
            self.gateways if gateway is None else checked_addresses(gateway),
            self._session.local if local_address is None else checked_local(local_address),
            self._config,
            rng=self._rng,
            jitter=self._jitter,
        )
        now = self._advance(now)
        if self._closing:
            return
        for timer in (Timer.FALLBACK, Timer.RECOVER, Timer.HOLD):
            self._timers.cancel((timer, None))
        if session.is_same_place(self._session):
            self._session.doubt()
        else:
            self._leave(session, now)
        self._ask_for_everything(now)
        self._send_requests(now)

    # --- specs

    def _want(self, specs: list[MappingSpec], now: float) -> list[ClientMapping]:
        """New mappings, once every check has passed."""
        self._require_open()
        for spec in specs:
            if spec.target in self._wanted:
                raise LocalProtocolError(f"there is a mapping for {spec.protocol!r} port {spec.internal_port} already")
            others = self._mappings if len(spec.ports) > 1 else self._port_sets
            require_no_overlap(spec, [other.spec for other in others.values()])
            if spec.until is not None and not max(self._checked(now), self._now) < spec.until < _NEVER:
                raise LocalProtocolError(f"until must be finite and later than now ({now!r}), not {spec.until!r}")
        now = self._advance(now)
        tracked = []
        for spec in specs:
            self._last_id += 1
            spec = attrs.evolve(spec, nonce=self._rng.randbytes(12))
            tracked.append(self._track(ClientMapping(id=MappingId(self._last_id), spec=spec)))
        return tracked

    def _track(self, mapping: ClientMapping) -> ClientMapping:
        self._mappings[mapping.id] = self._by_nonce[mapping.spec.nonce] = mapping
        if mapping.is_address_probe:
            self._releasing.setdefault(mapping.spec.target, mapping)
        else:
            self._wanted[mapping.spec.target] = mapping
        if any(isinstance(option, pcp.PortSet) for option in mapping.spec.options):
            self._port_sets[mapping.id] = mapping
        if mapping.spec.until is not None:
            self._timers.set((Timer.DEADLINE, mapping), mapping.spec.until)
        self._ready.append((Purpose.CREATE, mapping))
        return mapping

    def _map_discard_port(self) -> None:
        """Map the discard port for a moment, to learn the external address from the answer."""
        spec = MappingSpec.from_parameters(
            self._session.local, Protocol.UDP, _DISCARD_PORT, lifetime=_DISCARD_PORT_LIFETIME
        )
        self._last_id += 1
        spec = attrs.evolve(spec, nonce=self._rng.randbytes(12))
        self._track(ClientMapping(id=MappingId(self._last_id), spec=spec, is_address_probe=True))

    def _resume(self, saved: list[Saved], last_id: int, elapsed: float, local: IPAddress, now: float) -> None:
        """Take up the mappings of a snapshot, which were granted to `local`."""
        is_here, targets = local == self._session.local, set[Target]()
        for each in saved:
            spec = MappingSpec.from_parameters(
                self._session.local,
                each.protocol,
                each.internal_port,
                remote=each.remote,
                external_port=each.external.port,
                external_address=each.external.address,
                lifetime=each.lifetime,
                until=None if each.until is None else now + max(0.0, each.until - elapsed),
                options=each.options,
            )
            spec = attrs.evolve(spec, nonce=each.nonce, family=each.family)
            if spec.target in targets or each.nonce in self._by_nonce:
                raise LocalProtocolError(f"a damaged snapshot: mapping {each.id} is there twice")
            targets.add(spec.target)
            if not is_here:
                spec = spec.elsewhere(local.version == self._session.local.version)
            mapping = ClientMapping(id=MappingId(each.id), spec=spec)
            if is_here and each.remaining is not None and each.remaining > elapsed:
                mapping.may_exist_at_gateway = True
                mapping.dialect = (
                    self._session.versions.dialects.get(each.version) if each.version is not None else None
                )
            self._track(mapping)
        for each in saved:
            mapping = self._mappings[MappingId(each.id)]
            if each.twin is not None and mapping.spec.protocol == Protocol.UDP:
                twin = self._mappings[MappingId(each.twin)]
                mapping.pair = twin.pair = Pair(mapping, twin)
        self._last_id = last_id
        self._end_doubles()
        self._send_requests(now)

    def _require_open(self) -> None:
        if self._closing:
            raise LocalProtocolError("the client is closed")

    # --- another network

    def _leave(self, session: GatewaySession, now: float) -> None:
        """Another gateway or local address: delete what may be deleted from here, and carry nothing over but specs."""
        local, old_local = session.local, self._session.local
        has_moved, is_here = local != old_local, session.servers.peers == self._session.servers.peers
        for mapping in list(self._mappings.values()):
            old = mapping.dialect
            is_anothers = is_here and mapping.spec.is_for_another_host  # then it is as good as before
            # Without a nonce, a delete that leaves from the new address would be obeyed there.
            data = old.delete_request(mapping.granted) if old and (old.has_nonce or not has_moved) else None
            if data is not None and mapping.may_exist_at_gateway and not is_anothers:
                self._queue.send(data, self.gateway, mapping, old_local if has_moved else None)
            if mapping.state is MappingState.RELEASING:
                self._finish_delete(mapping, confirmed=False)
            elif mapping.is_address_probe:
                self._remove(mapping)
            else:
                self._carry_over(mapping, local, mapping.spec.nonce if is_anothers else self._rng.randbytes(12), now)
        self._session = session
        self._end_doubles()

    def _end_doubles(self) -> None:
        """Where the other family is the usual one, mappings of both families outside are the same: the first stays."""
        self._wanted = {}
        for mapping in list(self._mappings.values()):
            if self._wanted.setdefault(mapping.spec.target, mapping) is not mapping:
                about = mapping.about(self.gateway)
                self._begin_delete(mapping, MappingFailed(**about, reason=Reason.NETWORK_CHANGED, result_code=None))

    def _carry_over(self, mapping: ClientMapping, local: IPAddress, nonce: bytes, now: float) -> None:
        """Ask for it from the new place. The nonce is another: each server has its own (RFC 6887 section 11.2), and the
        delete at the old place may still be answered."""
        self._by_nonce.pop(mapping.spec.nonce, None)
        mapping.spec = attrs.evolve(mapping.spec.elsewhere(local.version == self._session.local.version), nonce=nonce)
        self._by_nonce[nonce] = mapping
        mapping.dialect, mapping.may_exist_at_gateway = None, False
        mapping.loss_count = -1  # before any loss that the new gateway may have
        if mapping.is_held:
            self._cancel_lease(mapping)
            mapping.follows_gateway = mapping.is_renewal_open = False
            mapping.hold_until = mapping.no_renewal_before = -math.inf
            mapping.expires_at = min(mapping.expires_at, now + _MOVE_GRACE)
            self._arm(mapping)

    def _ask_for_everything(self, now: float) -> None:
        """Start anew with every mapping, in the order of asking."""
        for exchange in list(self._in_flight):
            self._end_exchange(exchange)
        if self._probe is not None:
            self._probe = Probe(self._session.versions.dialects.values())
        self._ready.clear()
        self._blocked.clear()
        self._session.restarts.confirm_now(now)
        for mapping in self._mappings.values():
            mapping.is_renewal_queued = False
            if mapping.pair is not None:
                mapping.pair.rounds, mapping.pair.is_following = 0, False
            match mapping.state:
                case MappingState.RELEASING:
                    self._ready.append((Purpose.DELETE, mapping))
                case MappingState.HELD:
                    self._ready.append((Purpose.CONFIRM, mapping))
                case MappingState.REFUSED:
                    self._retry(mapping)
                case _:
                    self._ready.append((Purpose.CREATE, mapping))


_NEVER = 2.0**1000  # s; an integer may be more than any float without being infinite
_MOVE_GRACE = 30.0  # s for which a mapping counts as held after the network has changed
_DISCARD_PORT, _DISCARD_PORT_LIFETIME = 9, 120  # RFC 6887 sections 11.6 and 15
