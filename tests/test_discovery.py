"""Which gateway the system would use: on Linux on real routes, on macOS and Windows by what they would say."""

from __future__ import annotations

import ast
import socket
import struct
import subprocess
import sys
import types
import typing
from collections.abc import Callable

import pytest

from faces import make_face
from namespaces import run_alone
from natpmp_sansio import DiscoveryError
from natpmp_sansio.adapters.discovery import DefaultGateway, anycast_servers, default_gateways

IPV6 = """
addr add 2001:db8:1::2/64 dev eth0 nodad
addr add 2001:db8:5::2/64 dev eth1 nodad
"""
DEFAULT_VIA_ETH0 = "route add default via 192.168.1.1"


def gateways(plan: str, bind: str | None = None) -> list[tuple[object, ...]]:
    """Where the default routes lead there; a complaint instead is the only element."""
    code = f"""
from natpmp_sansio.adapters.discovery import *
try:
    print([(*gateway.address, gateway.interface) for gateway in default_gateways(bind={bind!r})])
except DiscoveryError as error:
    print([(str(error),)])
"""
    found: list[tuple[object, ...]] = ast.literal_eval(run_alone(plan, code))
    return found


# --- Linux


def test_the_route_of_least_metric_counts_and_bind_names_another() -> None:
    plan = DEFAULT_VIA_ETH0 + " metric 100\nroute add default via 192.168.5.1 metric 200"
    eth0, eth1 = ("192.168.1.1", 5351, "eth0"), ("192.168.5.1", 5351, "eth1")
    assert gateways(plan) == [eth0]
    assert gateways(plan, "eth0") == gateways(plan, "192.168.1.2") == [eth0]
    assert gateways(plan, "eth1") == gateways(plan, "192.168.5.2") == [eth1]


@pytest.mark.parametrize("name", ["blocking", "asyncio", "trio"])
def test_every_adapter_finds_the_default_gateway(name: str) -> None:
    make_face(name)  # or skip
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from faces import make_face
face = make_face({name!r})
async def story():
    async with face.open_client() as client:
        print(client.core.gateway, client.core.bind_address)
face.run(story)
"""
    assert run_alone(DEFAULT_VIA_ETH0, code) == "('192.168.1.1', 5351) ('192.168.1.2', 0)"


def test_an_interface_with_a_table_of_its_own_has_its_own_gateway() -> None:
    plan = f"""{DEFAULT_VIA_ETH0}
        route add default via 192.168.5.1 table 5
        rule add from 192.168.5.2 table 5"""
    assert gateways(plan) == [("192.168.1.1", 5351, "eth0")]
    assert gateways(plan, "eth1") == gateways(plan, "192.168.5.2") == [("192.168.5.1", 5351, "eth1")]


def test_a_rule_for_an_address_does_not_count_for_its_interface() -> None:
    plan = """
        route add default via 192.168.5.9
        route add default via 192.168.5.1 table 5
        rule add from 192.168.5.2 table 5"""
    assert gateways(plan, "eth1") == [("192.168.5.9", 5351, "eth1")]
    assert gateways(plan, "192.168.5.2") == [("192.168.5.1", 5351, "eth1")]


def test_half_default_routes_of_an_interface_count_before_its_default_route() -> None:
    plan = """
        route add default via 192.168.5.1
        route add 128.0.0.0/1 via 192.168.5.9 metric 20
        route add 128.0.0.0/1 via 192.168.1.9 metric 10"""
    assert gateways(plan) == [("192.168.1.9", 5351, "eth0")]
    assert gateways(plan, "eth1") == [("192.168.5.9", 5351, "eth1")]


def test_of_an_interfaces_own_tables_the_least_metric_counts() -> None:
    plan = """
        route add default via 192.168.5.9 table 4 metric 20
        route add default via 192.168.5.1 table 5 metric 10
        rule add fwmark 5 table 5"""
    assert gateways(plan, "eth1") == [("192.168.5.1", 5351, "eth1")]


def test_a_default_route_over_two_interfaces_has_a_gateway_on_each() -> None:
    plan = "route add default table 5 nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.5.1 dev eth1"
    assert gateways(plan, "eth0") == [("192.168.1.1", 5351, "eth0")]
    assert gateways(plan, "eth1") == [("192.168.5.1", 5351, "eth1")]


def test_an_address_that_no_link_has_is_served_by_the_gateway_of_the_host() -> None:
    plan = f"{DEFAULT_VIA_ETH0}\naddr add 192.0.2.1/32 dev lo"
    assert gateways(plan, "192.0.2.1") == [("192.168.1.1", 5351, "eth0")]


def test_a_link_local_gateway_carries_the_scope_of_its_interface_and_others_none() -> None:
    plan = f"""{IPV6}
        route add ::/0 via fe80::1 dev eth0 metric 100
        route add ::/0 via 2001:db8:5::1 dev eth1 metric 200"""
    (link_local,) = gateways(plan)
    assert link_local[:3] == ("fe80::1", 5351, 0)
    assert link_local[3] != 0
    assert link_local[4] == "eth0"
    assert gateways(plan, "eth1") == gateways(plan, "2001:db8:5::2") == [("2001:db8:5::1", 5351, 0, 0, "eth1")]


def test_both_families_are_found_and_a_local_address_asks_for_its_own() -> None:
    plan = f"{IPV6}{DEFAULT_VIA_ETH0}\nroute add ::/0 via 2001:db8:1::1"
    ipv4, ipv6 = ("192.168.1.1", 5351, "eth0"), ("2001:db8:1::1", 5351, 0, 0, "eth0")
    assert gateways(plan) == gateways(plan, "eth0") == [ipv4, ipv6]
    assert gateways(plan, "192.168.1.2") == [ipv4]
    assert gateways(plan, "2001:db8:1::2") == [ipv6]


def test_a_link_local_address_belongs_to_the_interface_of_its_zone() -> None:
    plan = f"""
        addr add fe80::7/64 dev eth0 nodad
        addr add fe80::7/64 dev eth1 nodad
        {IPV6}
        route add ::/0 via 2001:db8:1::1 metric 100
        route add ::/0 via 2001:db8:5::1 metric 200"""
    assert gateways(plan, "fe80::7%eth1") == [("2001:db8:5::1", 5351, 0, 0, "eth1")]


def test_the_gateway_of_a_point_to_point_link_is_its_other_end() -> None:
    plan = """
        addr add 10.9.0.1 peer 10.9.0.2 dev eth1
        addr add fd01::1 peer fd01::2 dev eth1 nodad
        route add default dev eth1
        route add ::/0 dev eth1"""
    peers = [("10.9.0.2", 5351, "eth1"), ("fd01::2", 5351, 0, 0, "eth1")]
    assert gateways(plan) == gateways(plan, "eth1") == peers
    assert gateways(plan, "10.9.0.1") == peers[:1]
    assert gateways(f"{DEFAULT_VIA_ETH0}\naddr add 10.9.0.1 peer 10.9.0.2 dev eth1", "10.9.0.1") == peers[:1]


def test_a_tunnel_without_another_end_leaves_it_to_the_caller() -> None:
    ((complaint,),) = gateways(f"{IPV6}route add default dev eth1\nroute add ::/0 dev eth1")
    assert complaint == (
        "the default route through eth1 names no gateway, as is usual for a tunnel; "
        "name the gateway yourself: --gateway at the shell, gateway=... in a program"
    )


@pytest.mark.parametrize(
    ("plan", "bind", "complaint"),
    [
        ("", None, "this host has no default gateway: it may be offline; else name the gateway yourself"),
        (DEFAULT_VIA_ETH0, "eth1", "no default route leads from eth1 to a gateway; name the gateway yourself"),
        (DEFAULT_VIA_ETH0, "192.168.5.2", "no default route leads from 192.168.5.2 to a gateway; name the gateway"),
        (IPV6, "2001:db8:1::2", "no default route leads from 2001:db8:1::2 to a gateway; name the gateway"),
        (DEFAULT_VIA_ETH0, "eth7", "this host has no interface and no address eth7; choose one that it has, or name"),
        (DEFAULT_VIA_ETH0, "192.168.1.9", "this host has no interface and no address 192.168.1.9; choose one"),
    ],
)
def test_who_finds_nothing_is_told_what_to_do(plan: str, bind: str | None, complaint: str) -> None:
    ((text,),) = gateways(plan, bind)
    assert str(text).startswith(complaint)


def test_without_the_extra_linux_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(DiscoveryError, match=r"install natpmp-sansio\[discovery\]; or name the gateway yourself"):
        default_gateways()


def test_what_changes_while_it_is_read_is_told_as_one_of_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    pyroute2 = pytest.importorskip("pyroute2")

    def interrupt() -> typing.NoReturn:
        raise pyroute2.NetlinkDumpInterrupted

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pyroute2, "IPRoute", interrupt)
    with pytest.raises(DiscoveryError, match=r"does not tell its routes \(.*dump interrupted"):
        default_gateways()


def test_another_system_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(DiscoveryError, match="on Linux, macOS and Windows only; name the gateway yourself"):
        default_gateways()


def test_the_anycast_addresses_are_there_for_those_who_ask() -> None:
    assert anycast_servers() == [("192.0.0.9", 5351), ("2001:1::1", 5351, 0, 0)]


# --- macOS

MAC_IPV4 = """\
   route to: 192.0.0.9
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
 recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire
       0         0         0         0         0         0      1500         0
"""
MAC_IPV6 = MAC_IPV4.replace("192.168.1.1", "fe80::1%en0").replace("192.0.0.9", "2001:1::1")
MAC_TUNNEL = MAC_IPV4.replace("192.168.1.1", "link#5").replace("en0", "utun3")
MAC_INDEXES = {"en0": 4, "utun3": 9}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A Mac that answers the questions about routes as told; what it was asked is in the list."""

    def answer(**answers: str) -> list[str]:
        asked: list[str] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            asked.append(" ".join(command))
            return subprocess.CompletedProcess(command, 0, answers.get(command[3].strip("-"), ""), "")

        monkeypatch.setattr(subprocess, "run", run)
        return asked

    def if_nametoindex(name: str) -> int:
        if name not in MAC_INDEXES:
            raise OSError("no interface with this name")
        return MAC_INDEXES[name]

    def own(address: str, ptp: str | None = None) -> types.SimpleNamespace:
        return types.SimpleNamespace(address=address, ptp=ptp)

    interfaces = {
        "en0": [own("3c:22:fb:00:00:01"), own("192.168.1.2"), own("fe80::7%en0")],
        "utun0": [own("10.8.0.1", "10.8.0.2")],
        "utun3": [own("fe80::8%utun3"), own("10.9.0.1", "10.9.0.2")],
    }
    psutil = types.SimpleNamespace(net_if_addrs=lambda: interfaces)
    monkeypatch.setitem(sys.modules, "psutil", typing.cast("types.ModuleType", psutil))
    monkeypatch.setattr(socket, "if_nametoindex", if_nametoindex)
    monkeypatch.setattr(sys, "platform", "darwin")
    return answer


def test_a_mac_is_asked_for_both_families(mac: Callable[..., list[str]]) -> None:
    asked = mac(inet=MAC_IPV4, inet6=MAC_IPV6)
    assert default_gateways() == [
        DefaultGateway(("192.168.1.1", 5351), "en0"),
        DefaultGateway(("fe80::1", 5351, 0, 4), "en0"),
    ]
    assert asked == ["/sbin/route -n get -inet 192.0.0.9", "/sbin/route -n get -inet6 2001:1::1"]


def test_a_mac_is_asked_within_the_interface_of_bind(mac: Callable[..., list[str]]) -> None:
    asked = mac(inet=MAC_IPV4, inet6=MAC_IPV6)
    default_gateways(bind="en0")
    default_gateways(bind="192.168.1.2")
    default_gateways(bind="fe80::7%en0")
    ipv4, ipv6 = (
        f"/sbin/route -n get {rest}" for rest in ("-inet -ifscope en0 192.0.0.9", "-inet6 -ifscope en0 2001:1::1")
    )
    assert asked == [ipv4, ipv6, ipv4, ipv6]
    with pytest.raises(DiscoveryError, match="no interface and no address en7"):
        default_gateways(bind="en7")


def test_a_macs_tunnel_leads_to_its_other_end(mac: Callable[..., list[str]]) -> None:
    mac(inet=MAC_TUNNEL)
    assert default_gateways() == [DefaultGateway(("10.9.0.2", 5351), "utun3")]
    mac(inet6=MAC_TUNNEL)
    with pytest.raises(DiscoveryError, match="through utun3 names no gateway"):
        default_gateways()


def test_a_mac_needs_the_extra_for_a_local_address_only(
    mac: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    mac(inet=MAC_IPV4)
    assert default_gateways() == default_gateways(bind="en0") == [DefaultGateway(("192.168.1.1", 5351), "en0")]
    with pytest.raises(DiscoveryError, match=r"install natpmp-sansio\[discovery\]"):
        default_gateways(bind="192.168.1.2")


def test_a_mac_without_its_tool_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> object:
        raise FileNotFoundError(2, "No such file or directory", "/sbin/route")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DiscoveryError, match=r"this system does not tell its routes .*; name the gateway yourself"):
        default_gateways()


# --- Windows


class IpHelper:
    """What Windows' IP Helper says of two interfaces, which it knows by a LUID, by a number and by an alias."""

    ALIASES: typing.ClassVar = {6: "Ethernet", 71: "Wi-Fi"}
    NUMBERS: typing.ClassVar = {6: 12, 71: 5}

    def __init__(self, next_hops: dict[tuple[int, int], str]) -> None:
        self.next_hops = next_hops  # by LUID and family
        self.sources: list[bytes | None] = []

    def ConvertInterfaceAliasToLuid(self, alias: str, luid: typing.Any) -> int:  # noqa: N802
        for number, name in self.ALIASES.items():
            if name == alias:
                luid.raw = struct.pack("<Q", number)
                return 0
        return 87

    def ConvertInterfaceLuidToAlias(self, luid: typing.Any, name: typing.Any, size: typing.Any) -> int:  # noqa: N802
        assert size.value == len(name)
        name.value = self.ALIASES[struct.unpack("<Q", luid.raw[:8])[0]]
        return 0

    def GetBestRoute2(  # noqa: N802
        self,
        luid: typing.Any,
        index: int,
        source: bytes | None,
        destination: bytes,
        options: int,
        route: typing.Any,
        best_source: typing.Any,
    ) -> int:
        self.sources.append(source)
        (family,) = struct.unpack_from("<H", destination)
        wanted = struct.unpack("<Q", luid.raw[:8])[0] if luid is not None else 6
        next_hop = self.next_hops.get((wanted, family))
        if next_hop is None:
            return 1231  # the network is unreachable
        packed = socket.inet_pton(family, next_hop)
        hop = struct.pack("<HH", family, 0) + (packed if family == socket.AF_INET else bytes(4) + packed)
        prefix = struct.pack("<H", family).ljust(28, b"\0") + bytes(4)
        route.raw = (struct.pack("<QI", wanted, self.NUMBERS[wanted]) + prefix + hop).ljust(len(route.raw), b"\0")
        return 0


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[int, int], str]], IpHelper]:
    def build(next_hops: dict[tuple[int, int], str]) -> IpHelper:
        helper = IpHelper(next_hops)
        monkeypatch.setattr("ctypes.WinDLL", lambda name: helper, raising=False)
        return helper

    monkeypatch.setattr(sys, "platform", "win32")
    return build


def test_windows_is_asked_for_both_families(windows: Callable[..., IpHelper]) -> None:
    windows({(6, socket.AF_INET): "192.168.1.1", (6, socket.AF_INET6): "fe80::1"})
    assert default_gateways() == [
        DefaultGateway(("192.168.1.1", 5351), "Ethernet"),
        DefaultGateway(("fe80::1", 5351, 0, 12), "Ethernet"),
    ]


def test_windows_is_asked_within_the_interface_or_from_the_address_of_bind(windows: Callable[..., IpHelper]) -> None:
    helper = windows({(6, socket.AF_INET): "192.168.1.1", (71, socket.AF_INET): "192.168.5.1"})
    assert default_gateways(bind="Wi-Fi") == [DefaultGateway(("192.168.5.1", 5351), "Wi-Fi")]
    default_gateways(bind="192.168.1.2")
    assert helper.sources == [None, None, struct.pack("<HH", socket.AF_INET, 0) + bytes([192, 168, 1, 2]) + bytes(20)]
    with pytest.raises(DiscoveryError, match="no default route leads from fe80::7%12"):
        default_gateways(bind="fe80::7%12")
    assert helper.sources[-1] == struct.pack("<HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(
        socket.AF_INET6, "fe80::7"
    ) + struct.pack("<I", 12)
    with pytest.raises(DiscoveryError, match="no interface and no address Ethernet 2"):
        default_gateways(bind="Ethernet 2")


def test_windows_names_no_gateway_of_a_tunnel(windows: Callable[..., IpHelper]) -> None:
    windows({(6, socket.AF_INET): "0.0.0.0"})
    with pytest.raises(DiscoveryError, match="through Ethernet names no gateway"):
        default_gateways()
    windows({})
    with pytest.raises(DiscoveryError, match="no default gateway: it may be offline"):
        default_gateways()
