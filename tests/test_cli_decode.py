"""`natpmp decode`: datagrams in words and as JSON, from the command line, standard input and captures."""

from __future__ import annotations

import io
import json
import struct
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from natpmp_sansio import Protocol, natpmp, pcp

cli = pytest.importorskip("natpmp_sansio.cli", reason="the command needs its extra")

ASK = "0000"
ASK_IN_WORDS = "NAT-PMP external address request"
TOLD = natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, 1234, "203.0.113.5").encode()
CUT_IN_WORDS = "2 octets, no message: truncated PCP response (at octet 2)"
TOLD_IN_WORDS = "NAT-PMP external address response: 203.0.113.5, epoch 1234 s"

Output = pytest.CaptureFixture[str]


def decode(capsys: Output, *arguments: str, status: int = 0) -> list[str]:
    """The lines that the command prints."""
    assert cli.run(["decode", *arguments]) == status
    output, errors = capsys.readouterr()
    assert errors == ""
    return str(output).splitlines()


def complaint(capsys: Output, *arguments: str, status: int) -> str:
    assert cli.run(["decode", *arguments]) == status
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("natpmp: ")
    assert errors.count("\n") == 1
    return str(errors)


def decode_json(capsys: Output, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in decode(capsys, "--json", *arguments, status=status)]


def type_in(monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(octets)))


# --- hex


@pytest.mark.parametrize("text", ["0000", "00 00", "00:00", "0x0000", "0x00 0x00", "0X00:00", " 0000\t"])
def test_hex_is_taken_as_people_copy_it(text: str, capsys: Output) -> None:
    assert decode(capsys, text) == [ASK_IN_WORDS]


def test_each_argument_is_a_datagram(capsys: Output) -> None:
    assert decode(capsys, ASK, TOLD.hex(":")) == [ASK_IN_WORDS, TOLD_IN_WORDS]


def test_without_arguments_each_line_of_standard_input_is_a_datagram(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, f"# asked\n{ASK}\n\n   \n{TOLD.hex(' ')}  # and told\r\n".encode())
    assert decode(capsys) == [ASK_IN_WORDS, TOLD_IN_WORDS]


def test_without_any_datagram_it_says_nothing(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, b"")
    assert decode(capsys) == []


@pytest.mark.parametrize("text", ["0", "000", "zz", "0 0", "0:0", "0x0 0x0", "00-00"])
def test_wrong_hex_gets_one_sentence_and_status_2_and_nothing_is_decoded(text: str, capsys: Output) -> None:
    assert f"{text!r} is no datagram in hex; one is 00:00" in complaint(capsys, ASK, text, status=2)


def test_wrong_hex_is_not_repeated_at_length(capsys: Output) -> None:
    assert f"'{'z' * 40}...' is no" in complaint(capsys, "z" * 1000, status=2)


def test_wrong_hex_in_standard_input_is_named_by_its_line(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, b"# hello\n0g\n")
    assert "Line 2: '0g' is no datagram in hex" in complaint(capsys, status=2)


def test_octets_instead_of_hex_in_standard_input_get_a_sentence_too(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"\x00\x80\xff")
    assert "Line 1: " in complaint(capsys, status=2)


# --- what is said


def test_what_is_no_message_is_said_with_its_octet_and_the_rest_is_still_decoded(capsys: Output) -> None:
    assert decode(capsys, "0201", ASK, status=1) == [
        "2 octets, no message: too short for a PCP header (at octet 2)",
        ASK_IN_WORDS,
    ]


def test_an_irregular_datagram_is_said_to_be_irregular(capsys: Output) -> None:
    assert decode(capsys, ASK + "00") == [f"{ASK_IN_WORDS}, not as the RFC has it"]


def test_strict_refuses_the_irregular_and_the_rule_breakers(capsys: Output) -> None:
    unguessable = bytes(range(12))
    request = pcp.MapRequest("192.0.2.1", unguessable, Protocol.TCP, 80)
    no_port_but_all_protocols = request.encode()[:36] + b"\0" + request.encode()[37:]
    arguments = (ASK + "00", no_port_but_all_protocols.hex(), request.encode().hex())
    assert decode(capsys, "--strict", *arguments, status=1) == [
        "3 octets, no message: octets that a conforming sender would not send (at octet 2)",
        "60 octets, no message: protocol 0 goes with internal_port 0 only (at octet 40)",
        request.describe(),
    ]


# --- JSON


def test_json_has_every_field_of_a_message_and_its_octets(capsys: Output) -> None:
    message = pcp.MapResponse(
        pcp.ResultCode.NO_RESOURCES, 30, 1234, bytes(range(12)), Protocol.UDP, 5000, 6000, "203.0.113.5"
    )
    assert decode_json(capsys, message.encode().hex(), ASK) == [
        {
            "message": "pcp.MapResponse",
            "result_code": "NO_RESOURCES",
            "lifetime": 30,
            "epoch": 1234,
            "nonce": "000102030405060708090a0b",
            "protocol": "UDP",
            "internal_port": 5000,
            "external_port": 6000,
            "external_address": "203.0.113.5",
            "options": [],
            "irregular": False,
            "hex": message.encode().hex(),
        },
        {"message": "natpmp.ExternalAddressRequest", "irregular": False, "hex": ASK},
    ]


def test_json_has_options_as_objects(capsys: Output) -> None:
    options = [
        pcp.Filter(120, 53, "198.51.100.0"),
        pcp.Prefix64(),
        pcp.Description("a printer"),
        pcp.RawOption(200, b"\x01"),
        pcp.AuthenticationTag(1, 2, 3, b"\xca\xfe"),
    ]
    request = pcp.MapRequest("2001:db8::7", bytes(12), 132, 80, options=options)
    (shown,) = decode_json(capsys, request.encode().hex())
    assert (shown["client_address"], shown["protocol"]) == ("2001:db8::7", 132)
    assert shown["options"] == [
        {"option": "Filter", "prefix_length": 120, "remote_port": 53, "remote_address": "198.51.100.0"},
        {"option": "Prefix64", "prefix": "::/96", "suffix": "", "ipv4_prefixes": None},
        {"option": "Description", "text": "a printer"},
        {"option": "RawOption", "code": 200, "data": "01"},
        {"option": "AuthenticationTag", "session_id": 1, "sequence": 2, "key_id": 3, "authentication_data": "cafe"},
    ]


def test_json_says_what_is_irregular_and_names_numbers_without_a_name(capsys: Output) -> None:
    (shown,) = decode_json(capsys, "00800063000004d2cb007105ff")
    assert shown == {
        "message": "natpmp.ExternalAddressResponse",
        "result_code": "UNKNOWN_99",
        "epoch": 1234,
        "external_address": "203.0.113.5",
        "irregular": True,
        "hex": "00800063000004d2cb007105ff",
    }


def test_json_has_errors_as_objects(capsys: Output) -> None:
    assert decode_json(capsys, "0201", status=1) == [
        {"error": "too short for a PCP header", "offset": 2, "hex": "0201"}
    ]


def test_every_golden_datagram_is_one_line_in_words_and_one_in_json(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = json.loads((Path(__file__).parent / "requirements" / "vectors.json").read_text())["vectors"]
    lines = "".join(f"{vector['hex']}\n" for vector in vectors if vector["hex"])
    type_in(monkeypatch, lines.encode())
    assert len(decode(capsys, status=1)) == len(lines.splitlines())
    type_in(monkeypatch, lines.encode())
    assert [shown["hex"] for shown in decode_json(capsys, status=1)] == lines.splitlines()


# --- captures

AT = 1_700_000_000.125


def udp(source: tuple[str, int], destination: tuple[str, int], data: bytes) -> bytes:
    """An IPv4 or IPv6 packet, without checksums."""
    ours, theirs = ip_address(source[0]), ip_address(destination[0])
    segment = struct.pack("!HHHH", source[1], destination[1], 8 + len(data), 0) + data
    if ours.version == 4:
        header = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(segment), 0, 64, 17, 0)
    else:
        header = struct.pack("!IHBB", 0x60000000, len(segment), 17, 64)
    return header + ours.packed + theirs.packed + segment


def pcap(*packets: bytes) -> bytes:
    """A capture of raw IP packets, a second apart."""
    header = struct.pack("!IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    seconds, fraction = int(AT), int(AT % 1 * 1_000_000)
    records = [
        struct.pack("!IIII", seconds + number, fraction, len(packet), len(packet)) + packet
        for number, packet in enumerate(packets)
    ]
    return header + b"".join(records)


def pcapng(*packets: bytes, at: float = AT) -> bytes:
    """The same, in the newer format."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("!II", kind, 12 + len(body)) + body + struct.pack("!I", 12 + len(body))

    blocks = [block(0x0A0D0D0A, struct.pack("!IHHq", 0x1A2B3C4D, 1, 0, -1)), block(1, struct.pack("!HHI", 101, 0, 0))]
    for number, packet in enumerate(packets):
        high, low = divmod(int((at + number) * 1_000_000), 2**32)
        blocks.append(block(6, struct.pack("!IIIII", 0, high, low, len(packet), len(packet)) + packet))
    return b"".join(blocks)


HERE, GATEWAY = ("192.168.1.7", 40000), ("192.168.1.1", 5351)
PACKETS = (
    udp(HERE, GATEWAY, bytes.fromhex(ASK)),
    udp(HERE, ("192.168.1.1", 53), b"a question about names"),
    udp(GATEWAY, HERE, TOLD),
    udp(("fe80::1", 5351), ("ff02::1", 5350), pcp.AnnounceResponse(0, epoch=3).encode()),
    udp(("fe80::1", 5351), ("fe80::7", 40000), b"\x02\x81"),
)


@pytest.fixture
def needs_scapy() -> None:
    pytest.importorskip("scapy", reason="captures are read with the extra pcap")


@pytest.mark.usefixtures("needs_scapy")
@pytest.mark.parametrize("form", [pcap, pcapng])
def test_a_capture_is_read_for_what_has_a_port_of_ours(form: Any, capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(form(*PACKETS))
    assert decode(capsys, "--pcap", str(file), status=1) == [
        f"2023-11-14T22:13:20.125+00:00  192.168.1.7:40000 > 192.168.1.1:5351  {ASK_IN_WORDS}",
        f"2023-11-14T22:13:22.125+00:00  192.168.1.1:5351 > 192.168.1.7:40000  {TOLD_IN_WORDS}",
        "2023-11-14T22:13:23.125+00:00  [fe80::1]:5351 > [ff02::1]:5350  PCP ANNOUNCE response: SUCCESS, epoch 3 s",
        f"2023-11-14T22:13:24.125+00:00  [fe80::1]:5351 > [fe80::7]:40000  {CUT_IN_WORDS}",
    ]


@pytest.mark.usefixtures("needs_scapy")
def test_a_capture_in_json_has_seconds_since_1970_and_both_ends(capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(pcap(*PACKETS))
    first, *_, last = decode_json(capsys, "--pcap", str(file), status=1)
    assert first == {
        "time": AT,
        "source": {"address": "192.168.1.7", "port": 40000},
        "destination": {"address": "192.168.1.1", "port": 5351},
        "message": "natpmp.ExternalAddressRequest",
        "irregular": False,
        "hex": ASK,
    }
    assert last == {
        "time": AT + 4,
        "source": {"address": "fe80::1", "port": 5351},
        "destination": {"address": "fe80::7", "port": 40000},
        "error": "truncated PCP response",
        "offset": 2,
        "hex": "0281",
    }


@pytest.mark.usefixtures("needs_scapy")
def test_a_capture_with_a_time_beyond_all_calendars_is_read_all_the_same(capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(pcapng(PACKETS[0], at=1e13))
    assert decode(capsys, "--pcap", str(file)) == [
        f"at no time  192.168.1.7:40000 > 192.168.1.1:5351  {ASK_IN_WORDS}",
    ]


@pytest.mark.usefixtures("needs_scapy")
def test_of_a_tunnel_the_innermost_addresses_are_shown_and_a_quoted_datagram_is_none(
    capsys: Output, tmp_path: Path
) -> None:
    def wrap(protocol: int, contents: bytes) -> bytes:
        header = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(contents), 0, 64, protocol, 0)
        return header + bytes((192, 0, 2, 1, 192, 0, 2, 2)) + contents

    file = tmp_path / "capture"
    file.write_bytes(pcap(wrap(41, PACKETS[4]), wrap(1, b"\3\3" + bytes(6) + PACKETS[0])))
    (shown,) = decode_json(capsys, "--pcap", str(file), status=1)
    assert (shown["source"]["address"], shown["destination"]["address"]) == ("fe80::1", "fe80::7")


@pytest.mark.usefixtures("needs_scapy")
def test_a_capture_may_come_from_standard_input_and_end_in_the_middle_of_a_record(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, pcap(PACKETS[0], PACKETS[2])[: -len(PACKETS[2]) - 5])
    (line,) = decode(capsys, "--pcap", "-")
    assert line.endswith(ASK_IN_WORDS)


@pytest.mark.usefixtures("needs_scapy")
@pytest.mark.parametrize("octets", [b"", b"GIF89a" * 10])
def test_a_file_that_is_no_capture_gets_one_sentence_and_status_1(
    octets: bytes, capsys: Output, tmp_path: Path
) -> None:
    file = tmp_path / "capture"
    file.write_bytes(octets)
    assert complaint(capsys, "--pcap", str(file), status=1) == f"natpmp: {file} is no pcap or pcapng file.\n"


def test_no_file_gets_one_sentence_and_status_2(capsys: Output, tmp_path: Path) -> None:
    assert "No such file or directory" in complaint(capsys, "--pcap", str(tmp_path / "nothing"), status=2)


def test_hex_and_a_capture_do_not_go_together(capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(pcap())
    assert "as HEX or from --pcap, not both" in complaint(capsys, ASK, "--pcap", str(file), status=2)


def test_without_scapy_a_sentence_names_the_extra(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("scapy.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scapy", None)
    file = tmp_path / "capture"
    file.write_bytes(pcap())
    assert complaint(capsys, "--pcap", str(file), status=1) == (
        "natpmp: captures are read with scapy, which is not here; install natpmp-sansio[pcap].\n"
    )
