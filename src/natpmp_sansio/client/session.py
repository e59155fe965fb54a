"""All that is known of the gateway that is asked now.

A session is replaced when the gateway or the local address changes. Every fact about a gateway is in here, so nothing
of one gateway survives in the session of another.
"""

from __future__ import annotations

import enum
import math
import random

from ..config import Config
from ..core.socket_address import PeerKey, peers_of, same_host
from ..events import Address, Reason
from ..wire import pcp
from ..wire.fields import IPAddress, any_address
from .restarts import RestartDetector
from .versions import VersionNegotiation


class GatewaySession:
    """What is known of one gateway, asked from one local address.

    Raises:
        LocalProtocolError: the configuration leaves no protocol for that address.
    """

    def __init__(
        self,
        addresses: tuple[Address, ...],
        local: IPAddress,
        config: Config,
        *,
        rng: random.Random,
        jitter: random.Random,
    ) -> None:
        self.local = local
        self.servers = ServerList(addresses)
        self.versions = VersionNegotiation(local, config, jitter)
        self.restarts = RestartDetector(self.versions.dialects.values(), config.recovery_interval, rng)
        self.reachability = Reachability(config)
        self.external = ExternalAddress()

    def is_same_place(self, other: GatewaySession) -> bool:
        """Whether the other session is with the same gateway and from the same local address."""
        return self.local == other.local and self.servers.peers == other.servers.peers

    def doubt(self) -> None:
        """The host slept, or its network was away: what was heard may no longer be true."""
        self.servers.begin_round()
        self.versions.doubt()
        self.restarts.doubt()
        self.reachability.doubt()


class ServerList:
    """The addresses of one PCP server (RFC 7488): which one is in use, and which were tried since the last response."""

    def __init__(self, addresses: tuple[Address, ...]) -> None:
        self.addresses = addresses
        self.peers = peers_of(addresses)
        self._index = 0
        self._tried = 1
        self._unanswered = 0
        self.current, self.current_peer = addresses[0], self.peers[0]

    @property
    def is_single(self) -> bool:
        return len(self.addresses) == 1

    @property
    def is_mid_round(self) -> bool:
        """Whether an address was given up since the last response, and another is being tried."""
        return self._tried > 1

    def owns(self, peer: PeerKey) -> bool:
        """Whether a datagram from there may be the server's, if only an announcement from another port."""
        return peer in self.peers or any(same_host(peer, known) for known in self.peers)

    def is_given_up(self, peer: PeerKey) -> bool:
        """Whether the datagram comes from an address of the server that is not in use."""
        return peer != self.current_peer and (peer in self.peers or not same_host(peer, self.current_peer))

    def on_response(self) -> None:
        """An answer ends the round."""
        self._tried, self._unanswered = 1, 0

    def on_unanswered(self, transmissions: int) -> int:
        """A renewal met with silence. Returns the count of such transmissions in a row at this address."""
        self._unanswered += transmissions
        return self._unanswered

    def on_failure(self) -> Address | None:
        """The address in use does not answer. Returns the next one to try; None: every one was tried in this round."""
        self._unanswered = 0
        is_exhausted = self._tried == len(self.addresses)
        self._tried = 1 if is_exhausted else self._tried + 1
        self._index = (self._index + 1) % len(self.addresses)
        self.current, self.current_peer = self.addresses[self._index], self.peers[self._index]
        return None if is_exhausted else self.current

    def begin_round(self) -> None:
        """Every address may be tried again."""
        self._tried, self._unanswered = 1, 0


class Reachability:
    """Whether the gateway answers at all, and how long it is left alone after silence or errors.

    Times are seconds on the caller's clock.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._failures = 0  # silences in a row
        self.silent_reason = Reason.NO_ANSWER
        self.silent_until = -math.inf
        self._is_unreachable = False
        self._hold_new_until = -math.inf  # RFC 6887 section 11.4
        self.hold_all_until = -math.inf
        self._last_comeback = -math.inf

    def on_response(self, now: float) -> float | None:
        """The gateway answers. Returns, if it was unreachable, when to ask again for what met with silence.

        A sign of life may be forged, so comebacks are paced.
        """
        self._failures = 0
        self.silent_until = -math.inf
        if not self._is_unreachable:
            return None
        self._is_unreachable = False
        self._last_comeback = max(now, self._last_comeback + self._config.recovery_interval)
        return self._last_comeback

    def on_silence(self, reason: Reason, now: float, *, is_single: bool) -> float:
        """No address answers. Returns when to try again: later each time, or after 15 minutes where there are several
        addresses (RFC 7488 section 3)."""
        hold = self.growing_hold(self._failures) if is_single else _ALL_ADDRESSES_HOLD
        self._failures += 1
        self.silent_reason, self.silent_until = reason, now + hold
        return self.silent_until

    def mark_unreachable(self) -> bool:
        """Note that the gateway does not answer. True: it did until now."""
        was_reachable, self._is_unreachable = not self._is_unreachable, True
        return was_reachable

    def may_create(self, now: float) -> bool:
        """Whether new mappings may be asked for (RFC 6887 section 11.4)."""
        return now >= self._hold_new_until

    def hold_new(self, until: float) -> None:
        """The server has no resources for new mappings before `until`."""
        self._hold_new_until = until

    def hold_all(self, until: float) -> None:
        """The server has no resources for any request before `until`."""
        self.hold_all_until = until

    def next_hold_end(self, now: float) -> float | None:
        """When the next hold ends; None: there is none."""
        return min((each for each in (self._hold_new_until, self.hold_all_until) if each > now), default=None)

    def growing_hold(self, failures: int) -> float:
        """How long (s) to wait after so many failures before, where the gateway does not say how long."""
        return min(self._config.min_hold * 2.0 ** min(max(failures, 0), 16), self._config.max_hold)

    def doubt(self) -> None:
        """Ask at once, whatever met with silence or errors before."""
        self._failures = 0
        self.silent_until = self._hold_new_until = self.hold_all_until = -math.inf


class AddressChange(enum.Enum):
    """What the gateway's external address is, compared with the one known before."""

    SAME = enum.auto()
    LEARNED = enum.auto()
    CHANGED = enum.auto()


class ExternalAddress:
    """The gateway's external address and the prefixes of its NAT64, as last told by it."""

    def __init__(self) -> None:
        self.address: IPAddress | None = None
        self.prefixes: tuple[pcp.Prefix64, ...] = ()
        self._learned_at = -math.inf

    def learn(self, address: IPAddress | None, now: float) -> AddressChange | None:
        """Note the address that a response tells. None: it tells no address, because all zeros are none."""
        old = self.address
        if address is None or (address is not old and address == any_address(address)):
            return None
        self._learned_at = now
        self.address = address
        if old is None:
            return AddressChange.LEARNED
        return AddressChange.SAME if address is old or address == old else AddressChange.CHANGED

    def learn_prefixes(self, options: tuple[pcp.Option, ...]) -> None:
        """New prefixes replace all older ones (RFC 7225 section 4.3)."""
        if options and (prefixes := tuple(option for option in options if isinstance(option, pcp.Prefix64))):
            self.prefixes = prefixes

    def forget_prefixes(self) -> None:
        """The gateway does not answer any more (RFC 7225 section 4.3)."""
        self.prefixes = ()

    def is_fresh(self, now: float) -> bool:
        """Whether the address was told so recently that it need not be asked for."""
        return now - self._learned_at < _ADDRESS_FRESH


_ALL_ADDRESSES_HOLD = 900.0  # s until a server is tried again of which no address answers (RFC 7488 section 3)
_ADDRESS_FRESH = 60.0  # s for which a NAT-PMP gateway is not asked for its address again
