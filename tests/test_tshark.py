"""tshark, whose dissectors share no line with ours, reads what we encode and sees the same in every field."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest

from natpmp_sansio import Protocol, natpmp, pcp
from natpmp_sansio.wire import Message

TSHARK = shutil.which("tshark")
pytestmark = pytest.mark.skipif(TSHARK is None, reason="needs tshark (Debian: apt-get install tshark)")

V4, V6, REMOTE_V4, REMOTE_V6 = "192.168.1.7", "2001:db8::7", "198.51.100.23", "2001:db8:2::99"
NONCE = bytes(range(0xA0, 0xAC))
TCP, UDP = Protocol.TCP, Protocol.UDP
TOP = 2**32 - 1


def map_request(*options: pcp.Option, client: str = V4) -> pcp.MapRequest:
    return pcp.MapRequest(client, NONCE, TCP, 8080, 50000, "203.0.113.5", 3600, options)


def map_response(*options: pcp.Option, code: int = 0) -> pcp.MapResponse:
    return pcp.MapResponse(pcp.ResultCode(code), 1800, 1234, NONCE, UDP, 8080, 50000, "203.0.113.5", options)


def peer_request(*options: pcp.Option) -> pcp.PeerRequest:
    return pcp.PeerRequest(V4, NONCE, TCP, 8080, 443, REMOTE_V4, 50000, "203.0.113.5", 3600, options)


def peer_response(*options: pcp.Option, code: int = 0) -> pcp.PeerResponse:
    ends = (8080, 50000, "203.0.113.5", 443, REMOTE_V4)
    return pcp.PeerResponse(pcp.ResultCode(code), 1800, 1234, NONCE, UDP, *ends, options)


NATPMP_CODES = (0, 2, 3, 4)  # 1 and 5 are ErrorResponses: see FLAWS
PCP_CODES = range(14)
MESSAGES: tuple[Message, ...] = (
    natpmp.ExternalAddressRequest(),
    *[natpmp.ExternalAddressResponse(natpmp.ResultCode(code), 1234, "203.0.113.5") for code in NATPMP_CODES],
    natpmp.MapRequest(UDP, 5000),
    natpmp.MapRequest(TCP, 80, 8080, 3600),
    natpmp.MapRequest(UDP, 65535, 65535, TOP),
    natpmp.MapRequest(UDP, 5000, 0, 0),
    natpmp.MapRequest(TCP, 0, 0, 0),
    *[natpmp.MapResponse(UDP, natpmp.ResultCode(code), 1234, 5000, 5001, 7200) for code in NATPMP_CODES],
    *[natpmp.MapResponse(TCP, natpmp.ResultCode(code), TOP, 80, 65535, TOP) for code in NATPMP_CODES],
    pcp.AnnounceRequest(V4),
    pcp.AnnounceRequest(V6),
    *[pcp.AnnounceResponse(pcp.ResultCode(code), 30, 1234) for code in PCP_CODES],
    pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, 1, [pcp.Prefix64("64:ff9b::/96")]),
    pcp.MapRequest(V4, NONCE, TCP, 80),
    pcp.MapRequest(V6, NONCE, UDP, 65535, 1, REMOTE_V6, TOP),
    pcp.MapRequest(V4, NONCE, Protocol.ALL, 0),
    pcp.MapRequest(V4, NONCE, 132, 0, lifetime=0),
    map_request(pcp.ThirdParty("192.168.1.20")),
    map_request(pcp.ThirdParty(REMOTE_V6), client=V6),
    map_request(pcp.PreferFailure()),
    map_request(pcp.Filter(128, 53, REMOTE_V4)),
    map_request(pcp.Filter(48, 0, "2001:db8:2::"), client=V6),
    map_request(pcp.Filter(), pcp.Filter(120, 65535, "198.51.100.0"), pcp.Filter(97, 0, "128.0.0.0")),
    map_request(pcp.ThirdParty("192.168.1.20"), pcp.PreferFailure(), pcp.Filter(96, 1, "0.0.0.0")),
    map_request(pcp.Description("")),
    map_request(pcp.Description("four")),
    map_request(pcp.Description("a printer, élan 日本")),
    map_request(pcp.PreferFailure(), pcp.Description("five5")),
    map_request(pcp.Description("x" * 1016)),
    map_request(pcp.Prefix64()),
    *[map_response(code=code) for code in PCP_CODES],
    *[map_response(pcp.Prefix64(f"2001:db8::/{bits}")) for bits in (32, 40, 48, 56, 64, 96)],
    map_response(pcp.Prefix64("2001:db8::/40", bytes(range(1, 8)), ["10.0.0.0/8", "198.51.100.23/32"])),
    map_response(pcp.PreferFailure(), pcp.ThirdParty(V6), code=pcp.ResultCode.CANNOT_PROVIDE_EXTERNAL),
    pcp.PeerRequest(V6, NONCE, 132, 1, 65535, REMOTE_V6, lifetime=TOP),
    peer_request(),
    peer_request(pcp.ThirdParty("192.168.1.20"), pcp.Description("peers")),
    *[peer_response(code=code) for code in PCP_CODES],
    peer_response(pcp.ThirdParty("192.168.1.20")),
)

MALFORMED = "_ws.malformed"
UNKNOWN_CODE = "unknown result code"


@attrs.frozen
class Flaw:
    """What tshark gets wrong, where it is written, and by which sign in its output that is seen."""

    what: str
    section: str
    sign: str
    messages: tuple[Message, ...]


# As of tshark 4.0.17.
FLAWS = (
    Flaw(
        "wants the opcode's whole layout in a version error",
        "RFC 6886 section 3.5",
        MALFORMED,
        tuple(natpmp.ErrorResponse(opcode, natpmp.ResultCode.UNSUPPORTED_VERSION, 1234) for opcode in (0, 1, 2)),
    ),
    Flaw(
        "shows no result code with an unsupported opcode",
        "RFC 6886 section 3.5",
        "nat-pmp.opcode.unknown",
        (natpmp.ErrorResponse(99, natpmp.ResultCode.UNSUPPORTED_OPCODE),),
    ),
    Flaw(
        "wants a whole header, and the opcode's whole layout, in a version error",
        "RFC 6887 sections 8.3 and 9",
        MALFORMED,
        (
            pcp.ErrorResponse(0, pcp.ResultCode.UNSUPP_VERSION),
            pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 1800),
            pcp.ErrorResponse(1, pcp.ResultCode.UNSUPP_VERSION, 1800, 1234),
        ),
    ),
    Flaw(
        "takes the padding of one option for that of the next one too",
        "RFC 6887 section 7.3",
        MALFORMED,
        (
            map_request(pcp.Description("abc"), pcp.PreferFailure()),
            map_request(pcp.Description("ab"), pcp.Filter(128, 53, REMOTE_V4)),
            peer_request(pcp.Description("a"), pcp.ThirdParty("192.168.1.20")),
        ),
    ),
    Flaw(
        "calls the first internal port of a PORT_SET the suggested external one",
        "RFC 7753 section 4",
        "portcontrol.option.portset.req_sug_first_external_port",
        (map_request(pcp.PortSet(16, 8080)), map_request(pcp.PortSet(65535, 8080, True))),
    ),
    Flaw(
        "calls the first internal port of a PORT_SET the assigned external one",
        "RFC 7753 section 4",
        "portcontrol.option.portset.rsp_assigned_first_external_port",
        (map_response(pcp.PortSet(8, 8080, True)),),
    ),
    Flaw(
        "does not know opcode 3, AUTHENTICATION",
        "RFC 7652 section 5",
        "portcontrol.opcode.unknown",
        (
            pcp.AuthenticationRequest(V4, pcp.ResultCode.INITIATION, 0, 0, [pcp.Nonce(7)]),
            pcp.AuthenticationResponse(pcp.ResultCode.SUCCESS, 1234, 5, 6, [pcp.ReceivedPak(1)]),
        ),
    ),
    Flaw(
        "does not know options 4 to 12 (an error copies whatever was asked)",
        "RFC 7652 sections 5.3 to 5.11",
        "portcontrol.option.unknown",
        tuple(
            map_response(option, code=pcp.ResultCode.MALFORMED_OPTION)
            for option in (
                pcp.Nonce(1),
                pcp.AuthenticationTag(1, 2, 3, b"tags"),
                pcp.PaAuthenticationTag(1, b"tag"),
                pcp.EapPayload(b"hello"),
                pcp.Prf(2),
                pcp.MacAlgorithm(2),
                pcp.SessionLifetime(60),
                pcp.ReceivedPak(1),
                pcp.IdIndicator("who"),
            )
        ),
    ),
    Flaw(
        "does not know option 13, THIRD_PARTY_ID",
        "RFC 7843 section 4",
        "portcontrol.option.unknown",
        (map_request(pcp.ThirdParty("192.168.1.20"), pcp.ThirdPartyId(b"line 7")),),
    ),
    Flaw(
        "does not know result codes 14 to 23",
        "RFC 7652 section 7",
        UNKNOWN_CODE,
        tuple(map_response(code=code) for code in range(14, 24)),
    ),
    Flaw(
        "does not know result codes 24 to 26",
        "RFC 7843 section 4.1",
        UNKNOWN_CODE,
        tuple(map_response(code=code) for code in range(24, 27)),
    ),
)

Shown = list[tuple[str, str]]


def shown(prefix: str, **values: object) -> Shown:
    """Fields as tshark names and writes them; __ stands for a dot in a name."""

    def text(value: object) -> str:
        if isinstance(value, bytes):
            return value.hex(":")
        return f"::ffff:{value}" if isinstance(value, IPv4Address) else str(value)

    return [(f"{prefix}.{name.replace('__', '.')}", text(value)) for name, value in values.items()]


def natpmp_fields(message: natpmp.Message) -> Shown:
    """Every field of a message in the order of RFC 6886."""
    match message:
        case natpmp.MapRequest() as m:
            ports: dict[str, object] = {"internal_port": m.internal_port, "external_port": m.suggested_external_port}
            body = {"opcode": {UDP: 1, TCP: 2}[m.protocol], "reserved": 0} | ports | {"pml": m.lifetime}
        case natpmp.MapResponse() as m:
            ports = {"internal_port": m.internal_port, "external_port": m.external_port}
            code = {"result_code": m.result_code.value, "sssoe": m.epoch}
            body = {"opcode": {UDP: 129, TCP: 130}[m.protocol]} | code | ports | {"pml": m.lifetime}
        case natpmp.ExternalAddressResponse() as m:
            code = {"result_code": m.result_code.value, "sssoe": m.epoch}
            body = {"opcode": 128} | code | {"external_ip": str(m.external_address)}
        case natpmp.ErrorResponse() as m:
            body = {"opcode": 128 + m.opcode, "result_code": m.result_code.value, "sssoe": m.epoch}
        case _:
            body = {"opcode": message.encode()[1]}
    return shown("nat-pmp", version=0, **body)


def pcp_fields(message: pcp.Message) -> Shown:
    """Every field of a message in the order of RFC 6887 that tshark has a name for."""
    fields = request_header(message) if isinstance(message, pcp.Request) else response_header(message)
    match message:
        case pcp.MapRequest() | pcp.MapResponse() as m:
            fields += shown("portcontrol.map", nonce=m.nonce, protocol=int(m.protocol), reserved=0) + ends(m, "map")
        case pcp.PeerRequest() | pcp.PeerResponse() as m:
            reserved = bytes(3)
            fields += shown("portcontrol.peer", nonce=m.nonce, protocol=int(m.protocol), reserved=reserved)
            fields += ends(m, "peer") + shown("portcontrol.peer", remote_peer_port=m.remote_port, reserved=bytes(2))
            fields += shown("portcontrol.peer", remote_peer_ip=m.remote_address)
    for option in getattr(message, "options", ()):
        if not isinstance(message, pcp.AuthenticationRequest | pcp.AuthenticationResponse):
            fields += option_fields(option, is_request=isinstance(message, pcp.Request))
    return fields


def request_header(message: pcp.Request) -> Shown:
    # In a PA request the second of the reserved octets is a result code, for which tshark has no name.
    reserved = message.result_code.value if isinstance(message, pcp.AuthenticationRequest) else 0
    lifetime = getattr(message, "lifetime", 0)
    start = shown("portcontrol", version=2, r=0, opcode=message.opcode, reserved=reserved)
    return start + shown("portcontrol", lifetime_req=lifetime, client_ip=message.client_address)


def response_header(message: pcp.Response) -> Shown:
    start = shown("portcontrol", version=2, r=1, opcode=message.opcode, reserved=0)
    lifetime = getattr(message, "lifetime", 0)
    start += shown("portcontrol", result_code=message.result_code.value, lifetime_rsp=lifetime)
    return start + shown("portcontrol", epoch_time=message.epoch, rsp_reserved=bytes(12))


def ends(message: pcp.MapRequest | pcp.MapResponse | pcp.PeerRequest | pcp.PeerResponse, body: str) -> Shown:
    """The internal port, and the external port and address."""
    prefix = f"portcontrol.{body}"
    port = shown(prefix, internal_port=message.internal_port)
    if isinstance(message, pcp.MapRequest | pcp.PeerRequest):
        port += shown(prefix, req_sug_external_port=message.suggested_external_port)
        return port + shown(prefix, req_sug_external_ip=message.suggested_external_address)
    port += shown(prefix, rsp_assigned_external_port=message.external_port)
    return port + shown(prefix, rsp_assigned_ext_ip=message.external_address)


def option_fields(option: pcp.Option, *, is_request: bool) -> Shown:
    prefix = "portcontrol.option"
    length = len(option.data)
    contents: Shown = []
    match option:
        case pcp.ThirdParty() as o:
            length, contents = 16, shown(prefix, third_party__internal_ip=o.address)
        case pcp.PreferFailure():
            length = 0
        case pcp.Filter() as o:
            length, contents = 20, shown(f"{prefix}.filter", reserved=0, prefix_length=o.prefix_length)
            contents += shown(f"{prefix}.filter", remote_peer_port=o.remote_port, remote_peer_ip=o.remote_address)
        case pcp.Description() as o:
            length = len(o.text.encode())
            contents = shown(prefix, description=o.text) if o.text else []  # tshark shows no empty text
        case pcp.Prefix64() as o:
            length, contents = prefix64_fields(o)
        case pcp.PortSet() as o:
            label = "req_sug" if is_request else "rsp_assigned"  # so tshark thinks: see FLAWS
            port = {f"portset__{label}_first_external_port": o.first_internal_port}
            length, contents = 5, shown(prefix, portset__size=o.size, **port)
            contents += shown(prefix, portset__reserved="0x00", portset__parity=int(o.parity))
    start = shown(prefix, code=option.code, reserved=0, length=length)
    return start + contents + (shown(prefix, padding=bytes(-length % 4)) if length % 4 else [])


def prefix64_fields(option: pcp.Prefix64) -> tuple[int, Shown]:
    name = "portcontrol.option.p64"
    octets = option.prefix.prefixlen // 8
    packed = option.prefix.network_address.packed[:octets]
    fields = shown(name, length=octets, prefix64=packed, suffix=option.suffix)
    if option.ipv4_prefixes is None:
        return 14, fields
    fields += shown(name, ipv4_prefix_count=len(option.ipv4_prefixes))
    for network in option.ipv4_prefixes:
        fields += shown(name, ipv4_prefix_length=network.prefixlen, ipv4_address=str(network.network_address))
    return 16 + 6 * len(option.ipv4_prefixes), fields


def fields_of(message: Message) -> Shown:
    return natpmp_fields(message) if isinstance(message, natpmp.Message) else pcp_fields(message)


@attrs.frozen
class Dissection:
    """What tshark saw in one packet: the fields with a value, and signs that it could not go on."""

    fields: Shown
    signs: frozenset[str]


NO_FIELDS = {  # containers, and tshark's second and third opinion about the R bit
    "portcontrol.options",
    "portcontrol.option",
    "portcontrol.request",
    "portcontrol.response",
}
SIGNS = {flaw.sign for flaw in FLAWS} - {MALFORMED, UNKNOWN_CODE}


def read_packet(packet: ElementTree.Element) -> Dissection:
    fields, signs = [], {proto.get("name", "") for proto in packet} & {MALFORMED}
    for field in packet.iterfind("./proto//field"):
        name, value = field.get("name", ""), field.get("show", "")
        if name in SIGNS:
            signs.add(name)
        if name.endswith(".result_code") and "Unknown (" in field.get("showname", ""):
            signs.add(UNKNOWN_CODE)
        if name.startswith(("nat-pmp.", "portcontrol.")) and name not in NO_FIELDS and not name.endswith(".unknown"):
            fields.append((name, {"True": "1", "False": "0"}.get(value, value)))  # newer ones write booleans so
    return Dissection(fields, frozenset(signs))


def to_packet(message: Message) -> bytes:
    """A raw IPv4 packet between the ports that the message travels between."""
    data = message.encode()
    is_response = data[1] & 0x80
    ports = (5351, 40000) if is_response else (40000, 5351)
    segment = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    addresses = IPv4Address("192.168.1.1").packed + IPv4Address(V4).packed
    return struct.pack("!BBHIBBH", 0x45, 0, 20 + len(segment), 0, 64, 17, 0) + addresses + segment


Seen = dict[bytes, Dissection]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What tshark sees in every message of this module, by the octets."""
    assert TSHARK is not None
    messages = [*MESSAGES, *[message for flaw in FLAWS for message in flaw.messages]]
    folder: Path = tmp_path_factory.mktemp("tshark")
    capture = struct.pack("!IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    for packet in map(to_packet, messages):
        capture += struct.pack("!IIII", 0, 0, len(packet), len(packet)) + packet
    (folder / "messages.pcap").write_bytes(capture)
    # Nobody's own settings, and no look-up of names.
    settings = {**os.environ, "WIRESHARK_CONFIG_DIR": str(folder), "LC_ALL": "C.UTF-8"}
    command = [TSHARK, "-n", "-r", str(folder / "messages.pcap"), "-T", "pdml"]
    output = subprocess.run(command, env=settings, capture_output=True, check=True).stdout
    packets = ElementTree.fromstring(output).findall("packet")
    return {message.encode(): read_packet(packet) for message, packet in zip(messages, packets, strict=True)}


def name_of(message: Message) -> str:
    return f"{type(message).__module__.rpartition('.')[2]}.{type(message).__name__}"


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_tshark_agrees_on_every_field(message: Message, seen: Seen) -> None:
    assert seen[message.encode()] == Dissection(fields_of(message), frozenset())


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: f"{flaw.what} ({flaw.section})")
def test_what_tshark_gets_wrong_is_known_and_up_to_there_it_agrees(flaw: Flaw, seen: Seen) -> None:
    for message in flaw.messages:
        found = seen[message.encode()]
        repaired = f"this tshark no longer {flaw.what}: move {message!r} from FLAWS to MESSAGES"
        assert flaw.sign in found.signs, repaired
        assert found.signs == {flaw.sign}
        assert found.fields == fields_of(message)[: len(found.fields)]
        assert len(found.fields) >= 2


def test_enough_was_compared(seen: Seen) -> None:
    assert len({message.encode() for message in MESSAGES}) == len(MESSAGES) >= 60
    assert sum(len(seen[message.encode()].fields) for message in MESSAGES) >= 1000
    kinds = {type(message) for message in MESSAGES}
    assert kinds == {
        natpmp.ExternalAddressRequest,
        natpmp.ExternalAddressResponse,
        natpmp.MapRequest,
        natpmp.MapResponse,
        pcp.AnnounceRequest,
        pcp.AnnounceResponse,
        pcp.MapRequest,
        pcp.MapResponse,
        pcp.PeerRequest,
        pcp.PeerResponse,
    }
