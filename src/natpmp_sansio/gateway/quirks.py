"""How real gateways break the rules, to be switched on one by one: `Gateway(..., quirks=[Quirk.SILENT_TO_PCP])`.

Those that only change what is on the wire are written here, between a request and its answer; those that change the
mapping table are asked for where the gateway does what they concern.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection

from ..wire import natpmp, pcp


class Quirk(enum.Enum):
    """What it does, and which device or report it comes from. A report is named by its repository and number."""

    SILENT_TO_PCP = "PCP requests are not answered at all; gateways older than PCP (nDPI's captures)"
    SILENT_TO_NAT_PMP = "NAT-PMP requests are not answered at all; a gateway with PCP alone"
    SWITCHED_OFF = "everything is NOT_AUTHORIZED until the owner allows it; FRITZ!Box (tailscale 1525, bitcoin 34114)"
    VERSION_ERROR_PRINTED = "PCP is refused as RFC 6886 section 3.5 prints it, R bit clear; before erratum 3618"
    VERSION_ERROR_ECHOES_OPCODE = "PCP is refused with 128 plus the PCP opcode, in 8 octets; miniupnpd without PCP"
    VERSION_ERROR_IN_4_OCTETS = "PCP is refused in 4 octets, without an epoch; what inetaf and crab_nat expect"
    VERSION_ERROR_IN_FULL = "PCP is refused in version 0, padded to the request's length; crab_nat and libplum"
    VERSION_ERROR_LITERAL_COPY = (
        "NAT-PMP is refused in PCP as short as it came, 4 or 12 octets; RFC 6887 8.2 read literally"
    )
    PCP_ONLY_TRUNCATED = "NAT-PMP is answered by PCP of 2 and of 12 octets (tailscale 2563)"
    ANNOUNCE_ANSWERED_IN_NAT_PMP = "PCP ANNOUNCE gets a NAT-PMP answer; Apple's routers (offbynull's notes)"
    SHORT_PCP_IN_VERSION_0 = (
        "a PCP request too short or no multiple of 4 gets version 0, opcode 128, result 3, like a NAT-PMP "
        "'network failure'; miniupnpd 2.3.1"
    )
    ERRORS_IN_8_OCTETS = "NAT-PMP errors end after the epoch; miniupnpd for unsupported opcodes"
    ERRORS_WITH_LIVE_FIELDS = "NAT-PMP errors repeat lifetime and port as if granted; miniupnpd 2.3.1"
    ERRORS_WITHOUT_PORT = "NAT-PMP errors have internal port 0; vendors in libtorrent's tests"
    ERRORS_LAST_0_SECONDS = "PCP's long errors have lifetime 0; miniupnpd 2.3.1"
    UNKNOWN_RESULT_CODES = "refusals have result code 66, which no RFC defines; vendors in metasploit's tests"
    RESPONSE_BIT_MISSING = "NAT-PMP answers lack the response bit; what libpcpnatpmp's parser provides for"
    TRAILING_OCTETS = "answers are longer than their fields; Ethernet padding"
    OPTIONS_ECHOED = "PCP successes carry all options of the request, processed or not; miniupnpd 2.3.1"
    PORTS_CUT_TO_8_BITS = "NAT-PMP answers keep only 8 bits of the ports; miniupnpd of Ubuntu 16.04 (miniupnp 89, 196)"
    ZERO_LIFETIME_GRANTED = "mappings are granted with lifetime 0; libtorrent's fuzzing seeds"
    ZERO_PORT_GRANTED = "mappings are granted with external port 0; libtorrent's fuzzing seeds"
    DELETE_ECHOES_EXTERNAL_PORT = "a NAT-PMP delete is confirmed with the external port instead of 0 (erlang-nat 22)"
    EPOCH_ALWAYS_0 = "the epoch stands still at 0; mocks"
    EPOCH_IN_UNIX_TIME = "the epoch is of the size of Unix time; bitcoin's and Allied Telesis' tests"
    EPOCH_SURVIVES_REBOOT = "after a reboot the epoch goes on; miniupnpd with system_uptime (tailscale 10597)"
    ANNOUNCES_THE_OLD_EPOCH = "an address change is announced with the epoch from before it; miniupnpd 2.3.1"
    NEVER_ANNOUNCES = "neither a reboot nor an address change is announced; miniupnpd with UPnP off"
    ADDRESS_CHANGE_KEEPS_EPOCH = "the epoch goes on when the external address changes; old miniupnpd (miniupnp 254)"
    LIFETIME_60 = "no lease is longer than 60 s, whatever is asked; ProtonVPN"
    INTERNAL_PORT_0 = "internal port 0 means any port, the same inside and outside; ProtonVPN (gluetun 2051)"
    INTERNAL_PORT_0_ASSIGNED = "the same, and the answer names the assigned port as internal; ProtonVPN (natmap 16)"
    ROTATES_PORTS = "every renewal gets another external port; ProtonVPN (gluetun 3408, 3469)"
    IGNORES_SUGGESTIONS = "the external port is never the suggested one; ProtonVPN (py-natpmp 12)"
    COUNTS_PORTS_UP = "without a suggestion the internal port's number is tried, then the next ones; miniupnpd 2.3.1"
    BUSY_PORT_IS_AN_ERROR = "a taken suggestion is NO_RESOURCES; Ruijie and old miniupnpd (tailscale 13687)"
    PREFER_FAILURE_IGNORED = "PREFER_FAILURE gets another port with SUCCESS when its own is taken; miniupnpd 2.3.1"
    NONCE_UNCHECKED = "a renewal with another nonce takes the mapping over; miniupnpd 2.3.1"
    MISSING_DELETE_FAILS = (
        "deleting what is not there is NO_RESOURCES, so a repeated delete fails after it worked; miniupnpd (PCP)"
    )
    DELETE_ALL_TAKES_BOTH = "a NAT-PMP delete-all takes TCP and UDP alike; miniupnpd"
    RENEWAL_DOES_NOT_EXTEND = "a renewal succeeds, and the mapping ends when it would have; Tomato (miniupnp 131)"
    RENEWAL_DELETES = "a second request for a mapping deletes it, and says SUCCESS; old miniupnpd (miniupnp PR 42)"
    PINHOLE_NOT_RENEWABLE = "renewing an IPv6 pinhole is NO_RESOURCES; pf-based routers (opnsense plugins 4010)"
    UDP_RENEWAL_DROPS_TCP = "renewing or deleting UDP silently ends TCP of the same internal port; miniupnpd 2.3.1"


def spoken(quirks: Collection[Quirk], versions: tuple[int, ...]) -> tuple[int, ...]:
    """The versions that are really spoken, and so announced."""
    mute = {version for version, those in _MUTE.items() if not those.isdisjoint(quirks)}
    return tuple(version for version in versions if version not in mute)


def preempt(quirks: Collection[Quirk], request: bytes, epoch: int) -> bytes | None:
    """What is answered before the request is even looked at; `b""` is silence, None nothing unusual."""
    for quirk, answer in _PREEMPTIONS.items() if quirks else ():
        if quirk in quirks and (reply := answer(request, epoch.to_bytes(4))) is not None:
            return reply
    return None


def distort(quirks: Collection[Quirk], request: bytes, reply: bytes) -> bytes:
    """What becomes of a proper answer."""
    for quirk, change in _DISTORTIONS.items() if quirks else ():
        if quirk in quirks:
            reply = change(request, reply)
    return reply


def _is_pcp(request: bytes) -> bool:
    return request[0] != natpmp.VERSION


def _version_error(form: Callable[[bytes, bytes], bytes]) -> Callable[[bytes, bytes], bytes | None]:
    """PCP is refused by a gateway with NAT-PMP alone, in one of many forms."""
    return lambda request, epoch: form(request, epoch) if _is_pcp(request) else None


def _short_pcp(request: bytes, epoch: bytes) -> bytes | None:
    if not _is_pcp(request) or (len(request) >= pcp.HEADER_SIZE and len(request) % 4 == 0):
        return None
    if len(request) < 3:
        return b""
    size = min(max(len(request) + -len(request) % 4, pcp.HEADER_SIZE), pcp.MAX_SIZE)
    return (b"\0\x80\0\3" + bytes(4) + epoch + request[12:size]).ljust(size, b"\0")


def _truncated_pcp(request: bytes, epoch: bytes) -> bytes | None:
    if _is_pcp(request):
        return None
    if request[1] == 0:
        return b"\2\x80"
    return bytes((2, 0x80 | request[1], 0, 2)) + request[4:8].ljust(4, b"\0") + epoch


def _literal_copy(request: bytes, epoch: bytes) -> bytes | None:
    if _is_pcp(request):
        return None
    size = len(request) + -len(request) % 4
    return pcp.error_reply(request, pcp.ResultCode.UNSUPP_VERSION, 1800, int.from_bytes(epoch))[:size]


def _announce_in_natpmp(request: bytes, epoch: bytes) -> bytes | None:
    if not _is_pcp(request) or request[1] != pcp.ANNOUNCE:
        return None
    return b"\0\x80\0\1" + epoch


def _unknown_opcode_in_8_octets(request: bytes, epoch: bytes) -> bytes | None:
    if _is_pcp(request) or request[1] <= 2:
        return None
    return bytes((0, 0x80 | request[1], 0, 5)) + epoch


_MUTE = {
    pcp.VERSION: {
        Quirk.SILENT_TO_PCP,
        Quirk.VERSION_ERROR_PRINTED,
        Quirk.VERSION_ERROR_ECHOES_OPCODE,
        Quirk.VERSION_ERROR_IN_4_OCTETS,
        Quirk.VERSION_ERROR_IN_FULL,
    },
    natpmp.VERSION: {Quirk.SILENT_TO_NAT_PMP, Quirk.VERSION_ERROR_LITERAL_COPY, Quirk.PCP_ONLY_TRUNCATED},
}
_PREEMPTIONS: dict[Quirk, Callable[[bytes, bytes], bytes | None]] = {
    Quirk.SILENT_TO_PCP: lambda request, epoch: b"" if _is_pcp(request) else None,
    Quirk.SILENT_TO_NAT_PMP: lambda request, epoch: None if _is_pcp(request) else b"",
    Quirk.VERSION_ERROR_PRINTED: _version_error(lambda request, epoch: b"\0\0\0\1" + epoch),
    Quirk.VERSION_ERROR_ECHOES_OPCODE: _version_error(
        lambda request, epoch: bytes((0, 0x80 | request[1], 0, 1)) + epoch
    ),
    Quirk.VERSION_ERROR_IN_4_OCTETS: _version_error(lambda request, epoch: b"\0\x80\0\1"),
    Quirk.VERSION_ERROR_IN_FULL: _version_error(
        lambda request, epoch: (b"\0\x80\0\1" + epoch).ljust(len(request), b"\0")
    ),
    Quirk.VERSION_ERROR_LITERAL_COPY: _literal_copy,
    Quirk.PCP_ONLY_TRUNCATED: _truncated_pcp,
    Quirk.ANNOUNCE_ANSWERED_IN_NAT_PMP: _announce_in_natpmp,
    Quirk.SHORT_PCP_IN_VERSION_0: _short_pcp,
    Quirk.ERRORS_IN_8_OCTETS: _unknown_opcode_in_8_octets,
}


def _is_natpmp_error(reply: bytes) -> bool:
    return reply[0] == natpmp.VERSION and reply[2:4] != b"\0\0"


def _is_map(version: int, reply: bytes, *, is_error: bool) -> bool:
    """Whether it is the answer to a request for a mapping."""
    if reply[0] != version:
        return False
    opcodes = (0x81,) if version == pcp.VERSION else (0x81, 0x82)
    code = reply[3] if version == pcp.VERSION else int.from_bytes(reply[2:4])
    return reply[1] in opcodes and (code != 0) == is_error and len(reply) >= (60 if version == pcp.VERSION else 16)


def _live_fields(request: bytes, reply: bytes) -> bytes:
    if not _is_map(natpmp.VERSION, reply, is_error=True):
        return reply
    return reply[:10] + (request[6:8] if request[6:8] != b"\0\0" else request[4:6]) + request[8:12]


def _without_port(request: bytes, reply: bytes) -> bytes:
    return reply[:8] + bytes(2) + reply[10:] if _is_map(natpmp.VERSION, reply, is_error=True) else reply


def _zero_lifetime(request: bytes, reply: bytes) -> bytes:
    if reply[0] != pcp.VERSION or not (pcp.ResultCode(reply[3]).lifetime or 0) > 30:
        return reply
    return reply[:4] + bytes(4) + reply[8:]


def _unknown_code(request: bytes, reply: bytes) -> bytes:
    is_refusal = reply[3] != 0 and reply[3] != natpmp.ResultCode.UNSUPPORTED_VERSION
    return reply[:3] + b"\x42" + reply[4:] if is_refusal else reply


def _options_echoed(request: bytes, reply: bytes) -> bytes:
    """The options of the request instead of the processed ones."""
    if reply[0] != pcp.VERSION or reply[3] != 0 or request[1] not in pcp.SIZES:
        return reply
    size = pcp.SIZES[request[1]]
    return reply[:size] + request[size:]


def _cut_ports(request: bytes, reply: bytes) -> bytes:
    if not _is_map(natpmp.VERSION, reply, is_error=False):
        return reply
    return reply[:8] + b"\0" + reply[9:10] + b"\0" + reply[11:]


def _zero_grant(offsets: dict[int, slice]) -> Callable[[bytes, bytes], bytes]:
    """A grant with zeros in one field; deletes are left as they are."""

    def change(request: bytes, reply: bytes) -> bytes:
        for version, field in offsets.items():
            lifetime = reply[4:8] if version == pcp.VERSION else reply[12:16]
            if _is_map(version, reply, is_error=False) and lifetime != bytes(4):
                return reply[: field.start] + bytes(field.stop - field.start) + reply[field.stop :]
        return reply

    return change


_DISTORTIONS: dict[Quirk, Callable[[bytes, bytes], bytes]] = {
    Quirk.ERRORS_WITH_LIVE_FIELDS: _live_fields,
    Quirk.ERRORS_WITHOUT_PORT: _without_port,
    Quirk.ERRORS_LAST_0_SECONDS: _zero_lifetime,
    Quirk.UNKNOWN_RESULT_CODES: _unknown_code,
    Quirk.OPTIONS_ECHOED: _options_echoed,
    Quirk.PORTS_CUT_TO_8_BITS: _cut_ports,
    Quirk.ZERO_LIFETIME_GRANTED: _zero_grant({pcp.VERSION: slice(4, 8), natpmp.VERSION: slice(12, 16)}),
    Quirk.ZERO_PORT_GRANTED: _zero_grant({pcp.VERSION: slice(42, 44), natpmp.VERSION: slice(10, 12)}),
    Quirk.ERRORS_IN_8_OCTETS: lambda request, reply: reply[:8] if _is_natpmp_error(reply) else reply,
    Quirk.RESPONSE_BIT_MISSING: lambda request, reply: (
        bytes((0, reply[1] & 0x7F)) + reply[2:] if reply[0] == natpmp.VERSION else reply
    ),
    Quirk.TRAILING_OCTETS: lambda request, reply: reply + bytes(4),
}
