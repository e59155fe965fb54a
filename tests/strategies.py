"""Every message, every option, and datagrams that come near them, for Hypothesis. Shared with fuzz/."""

from __future__ import annotations

import typing
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import attrs
from hypothesis import strategies as st

from natpmp_sansio import Protocol, natpmp, pcp
from natpmp_sansio.wire import Message, fields
from natpmp_sansio.wire.options import Option, RawOption

u7 = st.integers(0, 127)
u8 = st.integers(0, 255)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
positive16 = st.integers(1, 2**16 - 1)
ipv4 = st.ip_addresses(v=4)
# IPv4-mapped addresses are IPv4 on the wire.
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda address: address.ipv4_mapped is None)
addresses: st.SearchStrategy[fields.IPAddress] = st.one_of(ipv4, ipv6)
nonces = st.binary(min_size=12, max_size=12)
digests = st.binary(max_size=40)


def words_up_to(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=size).map(lambda data: data[: len(data) // 4 * 4])


words = words_up_to(40)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
protocols = u8.map(fields.to_protocol)
lifetimes = st.just(0) | u32
always = st.just(True)
pcp_codes = u8.map(pcp.ResultCode)
pcp_failures = pcp_codes.filter(lambda code: code.is_error)


# --- options

NAT64_OCTETS = (4, 5, 6, 7, 8, 12)
networks4 = st.builds(lambda host, bits: IPv4Network((host, bits), strict=False), u32, st.integers(0, 32))


@st.composite
def prefixes64(draw: st.DrawFn) -> pcp.Prefix64:
    length = draw(st.sampled_from(NAT64_OCTETS))
    prefix = draw(st.binary(min_size=length, max_size=length)) + bytes(16 - length)
    suffix = draw(st.binary(min_size=12 - length, max_size=12 - length))
    networks = draw(st.none() | st.lists(networks4, max_size=4).map(tuple))
    return pcp.Prefix64(IPv6Network((IPv6Address(prefix), length * 8)), suffix, networks)


unknown_options = st.builds(
    RawOption, st.one_of(st.integers(14, 127), st.integers(131, 255), st.just(0)), st.binary(max_size=40)
)
malformed_options = st.one_of(
    # no option with contents of its own is so short, and PREFER_FAILURE has none
    st.builds(
        RawOption, st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 129, 130]), st.binary(min_size=1, max_size=3)
    ),
    st.builds(RawOption, st.sampled_from([12, 128]), digests.map(lambda data: data + b"\xff")),  # never UTF-8
)
OPTIONS: dict[type[Option], st.SearchStrategy[Option]] = {
    pcp.ThirdParty: st.builds(pcp.ThirdParty, addresses),
    pcp.PreferFailure: st.builds(pcp.PreferFailure),
    pcp.Filter: st.one_of(
        st.builds(pcp.Filter),
        st.builds(pcp.Filter, st.integers(96, 128), u16, ipv4),
        st.builds(pcp.Filter, st.integers(1, 128), u16, ipv6),
    ),
    pcp.Nonce: st.builds(pcp.Nonce, u32),
    pcp.AuthenticationTag: st.builds(pcp.AuthenticationTag, u32, u32, u32, digests),
    pcp.PaAuthenticationTag: st.builds(pcp.PaAuthenticationTag, u32, digests),
    pcp.EapPayload: st.builds(pcp.EapPayload, digests),
    pcp.Prf: st.builds(pcp.Prf, u32),
    pcp.MacAlgorithm: st.builds(pcp.MacAlgorithm, u32),
    pcp.SessionLifetime: st.builds(pcp.SessionLifetime, u32),
    pcp.ReceivedPak: st.builds(pcp.ReceivedPak, u32),
    pcp.IdIndicator: st.builds(pcp.IdIndicator, texts),
    pcp.ThirdPartyId: st.builds(pcp.ThirdPartyId, digests),
    pcp.Description: st.builds(pcp.Description, texts),
    pcp.Prefix64: prefixes64(),
    pcp.PortSet: st.builds(pcp.PortSet, u16, u16, st.booleans()),
    RawOption: unknown_options | malformed_options,
}
# What may stand in which successful response; errors repeat whatever was asked.
PA_OPTIONS: tuple[type[Option], ...] = (
    pcp.Nonce,
    pcp.PaAuthenticationTag,
    pcp.EapPayload,
    pcp.Prf,
    pcp.MacAlgorithm,
    pcp.SessionLifetime,
    pcp.ReceivedPak,
    pcp.IdIndicator,
)
PEER_OPTIONS: tuple[type[Option], ...] = (pcp.ThirdParty, pcp.AuthenticationTag, pcp.ThirdPartyId, pcp.Description)
ALLOWED: dict[int, tuple[type[Option], ...]] = {
    pcp.ANNOUNCE: (pcp.AuthenticationTag, pcp.Prefix64),
    pcp.MAP: (*PEER_OPTIONS, pcp.PreferFailure, pcp.Filter, pcp.Prefix64, pcp.PortSet),
    pcp.PEER: PEER_OPTIONS,
    pcp.AUTHENTICATION: PA_OPTIONS,
}


def options() -> st.SearchStrategy[Option]:
    """Any option, also one with a code that nobody knows or with contents that make no sense."""
    return st.one_of(*OPTIONS.values())


def _in_any_order(
    draw: st.DrawFn, chosen: list[Option], unknown: st.SearchStrategy[Option] = unknown_options
) -> tuple[Option, ...]:
    """With unknown options in between."""
    return tuple(draw(st.permutations([*chosen, *draw(st.lists(unknown, max_size=2))])))


def _some(draw: st.DrawFn, *kinds: type[Option]) -> list[Option]:
    """None or one of each kind."""
    return [draw(OPTIONS[kind]) for kind in kinds if draw(st.booleans())]


def _tag(draw: st.DrawFn, kind: type[Option]) -> tuple[Option, ...]:
    """An authentication tag is the last option."""
    return tuple(_some(draw, kind))


@attrs.frozen(kw_only=True)
class Scope:
    """What the fields of a MAP or PEER request are drawn from: by default all that the wire can say.

    `options`: whether there are any. `unknown`: those that this package does not know. `tagged`: whether an
    authentication tag may be the last.
    """

    clients: st.SearchStrategy[fields.IPAddress] = addresses
    nonces: st.SearchStrategy[bytes] = nonces
    protocols: st.SearchStrategy[Protocol | int] = protocols
    ports: st.SearchStrategy[int] = u16
    suggested_ports: st.SearchStrategy[int] = u16
    externals: st.SearchStrategy[fields.IPAddress] = addresses
    remotes: st.SearchStrategy[fields.IPAddress] = addresses
    lifetimes: st.SearchStrategy[int] = lifetimes
    options: st.SearchStrategy[bool] = always
    third_parties: st.SearchStrategy[fields.IPAddress] = addresses
    third_party_ids: st.SearchStrategy[bytes] = digests
    set_sizes: st.SearchStrategy[int] = positive16
    unknown: st.SearchStrategy[Option] = unknown_options
    tagged: bool = True


def _third_party(draw: st.DrawFn, client: fields.IPAddress, scope: Scope) -> list[Option]:
    if draw(st.booleans()):
        return []
    third_party = pcp.ThirdParty(draw(scope.third_parties.filter(lambda address: address != client)))
    return [third_party, *([pcp.ThirdPartyId(draw(scope.third_party_ids))] if draw(st.booleans()) else [])]


def _listed(draw: st.DrawFn, chosen: list[Option], scope: Scope) -> tuple[Option, ...]:
    return _in_any_order(draw, chosen, scope.unknown) + (_tag(draw, pcp.AuthenticationTag) if scope.tagged else ())


# --- messages: valid by construction, so that nothing is filtered away


def _natpmp_errors() -> st.SearchStrategy[natpmp.ErrorResponse]:
    """Errors without a body of their own, in every form that the wire has for them."""
    version_error = st.just(natpmp.ResultCode.UNSUPPORTED_VERSION)
    opcode_error = st.just(natpmp.ResultCode.UNSUPPORTED_OPCODE)
    others = st.integers(2, 2**16 - 1).filter(lambda code: code != 5).map(natpmp.ResultCode)
    return st.one_of(
        st.builds(natpmp.ErrorResponse, u7, version_error, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, u7, version_error, u32, payload=st.binary()),
        st.builds(natpmp.ErrorResponse, u7, opcode_error, payload=st.binary()),
        st.builds(natpmp.ErrorResponse, u7, others, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, st.just(0), others, u32, payload=st.binary(max_size=3)),
        st.builds(natpmp.ErrorResponse, st.integers(1, 2), others, u32, payload=st.binary(max_size=7)),
        st.builds(natpmp.ErrorResponse, st.integers(3, 127), others, u32, payload=st.binary()),
    )


@st.composite
def _announce_requests(draw: st.DrawFn) -> pcp.AnnounceRequest:
    asks = [pcp.Prefix64()] if draw(st.booleans()) else []
    return pcp.AnnounceRequest(draw(addresses), _in_any_order(draw, [*asks]) + _tag(draw, pcp.AuthenticationTag))


@st.composite
def map_requests(draw: st.DrawFn, scope: Scope) -> pcp.MapRequest:
    client, protocol = draw(scope.clients), draw(scope.protocols)
    internal = draw(scope.ports) if protocol else 0
    suggested, lifetime = draw(scope.suggested_ports), draw(scope.lifetimes)
    listed: tuple[Option, ...] = ()
    if draw(scope.options):
        chosen: list[Option] = [*_third_party(draw, client, scope), *_some(draw, pcp.Description)]
        if draw(st.booleans()):
            chosen.append(pcp.Prefix64())
        if lifetime:
            chosen += draw(st.lists(OPTIONS[pcp.Filter], max_size=3))
        if draw(st.booleans()):
            chosen.append(pcp.PortSet(draw(scope.set_sizes), internal, draw(st.booleans())))
        elif lifetime and suggested:
            chosen += _some(draw, pcp.PreferFailure)
        listed = _listed(draw, chosen, scope)
    return pcp.MapRequest(
        client, draw(scope.nonces), protocol, internal, suggested, draw(scope.externals), lifetime, listed
    )


@st.composite
def peer_requests(draw: st.DrawFn, scope: Scope) -> pcp.PeerRequest:
    client, protocol = draw(scope.clients), draw(scope.protocols.filter(bool))
    internal, remote = draw(scope.ports.filter(bool)), draw(positive16)
    listed: tuple[Option, ...] = ()
    if draw(scope.options):
        listed = _listed(draw, [*_third_party(draw, client, scope), *_some(draw, pcp.Description)], scope)
    flow = (draw(scope.nonces), protocol, internal, remote, draw(scope.remotes))
    suggested = (draw(scope.suggested_ports), draw(scope.externals))
    return pcp.PeerRequest(client, *flow, *suggested, draw(scope.lifetimes), listed)


@st.composite
def _pa_requests(draw: st.DrawFn) -> pcp.AuthenticationRequest:
    chosen = _some(draw, pcp.Nonce, pcp.EapPayload, pcp.ReceivedPak)
    chosen += draw(st.lists(OPTIONS[pcp.Prf] | OPTIONS[pcp.MacAlgorithm], max_size=4))
    listed = _in_any_order(draw, chosen) + _tag(draw, pcp.PaAuthenticationTag)
    return pcp.AuthenticationRequest(draw(addresses), draw(pcp_codes), draw(u32), draw(u32), listed)


R = typing.TypeVar("R", pcp.AnnounceResponse, pcp.MapResponse, pcp.PeerResponse, pcp.AuthenticationResponse)


def _responses(kind: type[R], *body: st.SearchStrategy[typing.Any]) -> st.SearchStrategy[R]:
    allowed = st.one_of(unknown_options, *(OPTIONS[option] for option in ALLOWED[kind.opcode]))
    good = st.sampled_from([code for code in pcp.ResultCode if not code.is_error])
    return st.one_of(
        st.builds(kind, good, *body, st.lists(allowed, max_size=5).map(tuple)),
        st.builds(kind, pcp_failures, *body, st.lists(options(), max_size=5).map(tuple)),
    )


def _pcp_errors() -> st.SearchStrategy[pcp.ErrorResponse]:
    """Errors that are shorter than their opcode's response, and version errors that offer another version."""
    version_error = st.just(pcp.ResultCode.UNSUPP_VERSION)
    offered = st.integers(1, 255).filter(lambda version: version != pcp.VERSION)
    bodies = [
        st.builds(pcp.ErrorResponse, st.just(opcode), pcp_failures, u32, u32, words_up_to(room))
        for opcode, room in ((pcp.MAP, 32), (pcp.PEER, 52), (pcp.AUTHENTICATION, 4))
    ]
    return st.one_of(
        st.builds(pcp.ErrorResponse, u7, pcp_failures),
        st.builds(pcp.ErrorResponse, u7, pcp_failures, u32),
        *bodies,
        st.builds(pcp.ErrorResponse, st.integers(4, 127), pcp_failures, u32, u32, words),
        st.builds(pcp.ErrorResponse, u7, version_error, version=offered),
        st.builds(pcp.ErrorResponse, u7, version_error, u32, version=offered),
        st.builds(pcp.ErrorResponse, u7, version_error, u32, u32, st.binary(), version=offered),
    )


_transport = st.sampled_from([Protocol.TCP, Protocol.UDP])
_natpmp_codes = u16.filter(lambda code: code not in (1, 5)).map(natpmp.ResultCode)  # these two have no body
_mapped = (u32, u32, nonces, protocols, u16, u16, addresses)
_other_opcodes = st.integers(4, 127)
MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    natpmp.ExternalAddressRequest: st.builds(natpmp.ExternalAddressRequest),
    natpmp.ExternalAddressResponse: st.builds(natpmp.ExternalAddressResponse, _natpmp_codes, u32, ipv4),
    natpmp.MapRequest: st.builds(natpmp.MapRequest, _transport, u16, u16, u32),
    natpmp.MapResponse: st.builds(natpmp.MapResponse, _transport, _natpmp_codes, u32, u16, u16, u32),
    natpmp.ErrorResponse: _natpmp_errors(),
    natpmp.UnknownRequest: st.builds(natpmp.UnknownRequest, st.integers(3, 127), st.binary()),
    pcp.AnnounceRequest: _announce_requests(),
    pcp.AnnounceResponse: _responses(pcp.AnnounceResponse, u32, u32),
    pcp.MapRequest: map_requests(Scope()),
    pcp.MapResponse: _responses(pcp.MapResponse, *_mapped),
    pcp.PeerRequest: peer_requests(Scope()),
    pcp.PeerResponse: _responses(pcp.PeerResponse, *_mapped, u16, addresses),
    pcp.AuthenticationRequest: _pa_requests(),
    pcp.AuthenticationResponse: _responses(pcp.AuthenticationResponse, u32, u32, u32),
    pcp.ErrorResponse: _pcp_errors(),
    pcp.UnknownRequest: st.builds(pcp.UnknownRequest, _other_opcodes, u32, addresses, words),
    pcp.UnknownResponse: st.builds(
        pcp.UnknownResponse, _other_opcodes, st.just(pcp.ResultCode.SUCCESS), u32, u32, words
    ),
}


def messages() -> st.SearchStrategy[Message]:
    """Any message that may be sent."""
    return st.one_of(*MESSAGES.values())


# --- datagrams


@st.composite
def damaged(draw: st.DrawFn, sound: st.SearchStrategy[bytes]) -> bytes:
    """A message with octets changed, cut off or added: most are messages still, but none that anybody would send."""
    data = bytearray(draw(sound))
    for _ in range(draw(st.integers(0, 3 if data else 0))):
        data[draw(st.integers(0, len(data) - 1))] = draw(u8)
    data = data[: draw(st.just(len(data)) | st.integers(0, len(data)))]
    return bytes(data) + draw(st.just(b"") | words | st.binary(max_size=8))


# Octets that look like something, so that more than the version check is met.
_NAT_PMP_STARTS = ["00", "0000", "0001", "00800000", "00810000", "00820002", "00810001", "00890005"]
_PCP_STARTS = [
    "02",
    "0200",
    "0201",
    "0202",
    "0203",
    "02800000",
    "02810000",
    "02810006",
    "02820000",
    "02830000",
    "03810001",
]


def datagrams() -> st.SearchStrategy[bytes]:
    """Octets of every kind: messages, damaged messages, mere beginnings, noise."""
    starts = st.sampled_from([bytes.fromhex(start) for start in (*_NAT_PMP_STARTS, *_PCP_STARTS)])
    encoded = messages().map(lambda message: message.encode())
    return st.one_of(
        encoded,
        damaged(encoded),
        st.builds(lambda start, rest: start + rest, starts, st.binary(max_size=120)),
        st.binary(max_size=1200),
    )
