"""A home network with a real gateway: miniupnpd and nftables in network namespaces of their own.

    host 192.168.77.2    -- 192.168.77.1 gw 11.22.33.44      -- 11.22.33.9      wan
         2001:db8:77::2  -- fe80::1         2001:db8:88::44  -- 2001:db8:88::9

Nothing links the three to the machine's own network, so nothing leaves it. The external address is one that
miniupnpd takes for public; it maps nothing on a private or documentation address.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path

GATEWAY, EXTERNAL = "192.168.77.1", "11.22.33.44"
HOST = "192.168.77.2"
GATEWAY_V6, HOST_V6 = "fe80::1%lan0", "2001:db8:77::2"
ALLOW = "allow 1024-65535 192.168.77.0/24 1024-65535"

_PACKAGES = {"ip": "iproute2", "nft": "nftables", "miniupnpd": "miniupnpd-nftables"}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in everybody's PATH
_CLONE_NEWNET = 0x40000000
_NAT_PMP_ASKS, _PCP_ASKS = bytes(2), b"\x02" + bytes(23)  # for the external address; a PCP ANNOUNCE
_NOTICEABLE = 4  # s of epoch. Clients forgive a clock that is two seconds off, so a younger gateway restarts unnoticed

_ADDRESSES = {
    "host": """
        addr add 192.168.77.2/24 dev lan0
        link set lan0 up
        route add default via 192.168.77.1""",
    "gw": """
        addr add 192.168.77.1/24 dev lan0
        addr add 11.22.33.44/24 dev wan0
        link set lan0 up
        link set wan0 up""",
    "wan": """
        addr add 11.22.33.9/24 dev wan0
        link set wan0 up""",
}
_ADDRESSES_V6 = {
    "host": """
        addr add 2001:db8:77::2/64 dev lan0 nodad
        route add ::/0 via fe80::1 dev lan0""",
    "gw": """
        addr flush dev lan0 scope link
        addr add fe80::1/64 dev lan0 nodad
        addr add 2001:db8:77::1/64 dev lan0 nodad
        addr add 2001:db8:88::44/64 dev wan0 nodad
        route add multicast ff02::1 dev lan0 table local""",  # miniupnpd itself names no interface for this group
    "wan": """
        addr add 2001:db8:88::9/64 dev wan0 nodad
        route add 2001:db8:77::/64 via 2001:db8:88::44""",
}
# The table and the chains are where miniupnpd wants to put its rules; the hooks are the firewall's business.
_FIREWALL = """
table inet miniupnpd {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname lan0 accept
        jump miniupnpd
    }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        jump postrouting_miniupnpd
        ip saddr 192.168.77.0/24 oifname wan0 masquerade
    }
}
"""
_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_PROTOCOL_V4, _PROTOCOL_V6, _DESTINATION_V6 = 72, 48, 192  # bits into the header

_FLUSH = "".join(f"flush chain inet miniupnpd {hook}miniupnpd\n" for hook in ("", "prerouting_", "postrouting_"))
_MODE = """
table inet mode
delete table inet mode
table inet mode {{
    chain input {{
        type filter hook input priority filter - 1;
        udp dport 5351 {requests}
    }}
    chain output {{
        type filter hook output priority filter - 1;
        udp sport 5351 {answers}
    }}
}}
"""
# Many kernels have no netem. What comes in is lost, what goes out is doubled: a sender would notice the loss.
_WEATHER = """
table ip weather
delete table ip weather
table ip weather {{
    chain input {{
        type filter hook input priority filter;
        {lost}
    }}
    chain twice {{
        dup to {neighbour} device lan0
    }}
    chain output {{
        type filter hook output priority filter;
        {doubled}
    }}
}}
"""
_COUNTER = """
table inet count {
    chain output {
        type filter hook output priority filter;
        udp dport 5351 counter
    }
}
"""
_CONFIGURATION = """\
ext_ifname=wan0
listening_ip=lan0
enable_natpmp=yes
enable_upnp=no
secure_mode=yes
system_uptime={system_uptime}
min_lifetime={lifetimes[0]}
max_lifetime={lifetimes[1]}
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
{rules}
deny 0-65535 0.0.0.0/0 0-65535
"""
# What it logs goes to the system's log, or else to the console, which is slow. The mounts are its own.
_QUIET = 'for log in /dev/log /dev/console; do mount --bind /dev/null $log; done 2>&-; exec "$0" "$@"'


class Mode(enum.Enum):
    """What the gateway answers: the verdicts on requests and on answers, and whether PCP gets the version error.

    miniupnpd cannot switch PCP off alone. The first octet of the UDP payload is the version.
    """

    BOTH = ("accept", "accept", False)
    NAT_PMP = ("@th,64,8 != 0 drop", "@th,64,8 != 0 drop", True)
    PCP_SILENT = ("@th,64,8 != 0 drop", "@th,64,8 != 0 drop", False)
    SILENT = ("drop", "drop", False)
    CLOSED = ("reject with icmpx type port-unreachable", "drop", False)


class Rule(typing.NamedTuple):
    """One port forwarding, as the kernel has it."""

    protocol: str
    external_port: int
    internal_address: str
    internal_port: int


class Lab:
    """The three namespaces, with the gateway running; gone again after the block.

    `lifetimes` are the shortest and the longest that PCP grants. With `system_uptime` a restart leaves the epoch alone.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mode: Mode = Mode.BOTH,
        rules: str = ALLOW,
        lifetimes: tuple[int, int] = (1, 86400),
        system_uptime: bool = False,
    ) -> None:
        self._directory = directory
        self._mode = mode
        uptime = "yes" if system_uptime else "no"
        self._configuration = _CONFIGURATION.format(rules=rules, lifetimes=lifetimes, system_uptime=uptime)
        self._external = EXTERNAL
        self.booted = 0.0  # when the gateway was started last, on the monotonic clock
        token = secrets.token_hex(3)  # labs of their own, several at once
        self._names = {name: f"natpmp-{token}-{name}" for name in ("host", "gw", "wan")}
        self._namespaces: list[str] = []
        self._gateway: list[subprocess.Popen[bytes]] = []
        self._programs: list[subprocess.Popen[str]] = []

    def __enter__(self) -> typing.Self:
        try:
            self._build()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """The gateway boots, and answers."""
        files = ("-f", str(self._directory / "miniupnpd.conf"), "-P", str(self._pid_file))
        self.booted = time.monotonic()
        self.run("gw", "sh", "-c", _QUIET, _tool("miniupnpd"), *files)
        eventually(lambda: len(self._ask(_NAT_PMP_ASKS)) == 12, "miniupnpd answers")
        self.switch(self._mode)

    def stop(self) -> None:
        """Power off: no farewell, and the rules are lost."""
        self._end_programs_of_gateway()
        self.run("gw", "nft", "-f", "-", text=_FLUSH)

    def restart(self) -> None:
        """Power off and on, once clients can notice."""
        self.grow_up()
        self.stop()
        assert not self.rules()
        self.start()

    def grow_up(self) -> None:
        """Wait until the gateway has been up long enough for its clients to notice by its epoch when that restarts."""
        eventually(lambda: time.monotonic() - self.booted >= _NOTICEABLE, "the epoch runs")

    def switch(self, mode: Mode) -> None:
        """Answer otherwise from now on; mappings stay."""
        requests, answers, has_version_error = mode.value
        self._mode = mode
        self.run("gw", "nft", "-f", "-", text=_MODE.format(requests=requests, answers=answers))
        self._end_helpers()
        if has_version_error:
            self._run_on_gateway(sys.executable, str(Path(__file__).with_name("version_error.py")), str(self.booted))
            eventually(lambda: len(self._ask(_PCP_ASKS)) == 8, "PCP gets the version error", self._log)

    def readdress(self, address: str, *, is_noticed: bool = True) -> None:
        """Another external address; miniupnpd has to be told, as a DHCP client's hook does."""
        self.run("gw", "ip", "addr", "del", f"{self._external}/24", "dev", "wan0")
        self.run("gw", "ip", "addr", "add", f"{address}/24", "dev", "wan0")
        self._external = address
        if is_noticed:
            os.kill(typing.cast("int", self._daemon()), signal.SIGUSR1)

    def weather(self, *, lost: int = 0, doubled: int = 0, seed: int = 1) -> None:
        """Of the IPv4 datagrams between host and gateway, lose and double so many percent each way."""
        dice = random.Random(seed)

        def some(percent: int, match: str, verdict: str) -> str:
            chosen = ", ".join(f"{n} : {verdict}" for n in dice.sample(range(100), percent))
            return f"{match} numgen inc mod 100 vmap {{ {chosen} }}" if chosen else ""

        for name, neighbour, going, coming in (
            ("host", GATEWAY, "udp dport 5351", "udp sport 5351"),
            ("gw", "192.168.77.2", "udp sport 5351", "udp dport 5351"),
        ):
            rules = {"lost": some(lost, coming, "drop"), "doubled": some(doubled, going, "jump twice")}
            self.run(name, "nft", "-f", "-", text=_WEATHER.format(neighbour=neighbour, **rules))

    def requests(self) -> int:
        """How many datagrams the host has sent to port 5351."""
        listing = json.loads(self.run("host", "nft", "-j", "list", "chain", "inet", "count", "output"))
        (rule,) = (item["rule"]["expr"] for item in listing["nftables"] if "rule" in item)
        return int(rule[-1]["counter"]["packets"])

    def rules(self) -> list[Rule]:
        """The port forwardings in nftables, and the holes in the IPv6 firewall; TCP first."""
        listing = json.loads(self.run("gw", "nft", "-j", "list", "table", "inet", "miniupnpd"))
        rules = (item["rule"] for item in listing["nftables"] if "rule" in item)
        ours = [rule["expr"] for rule in rules if rule["chain"] in ("prerouting_miniupnpd", "miniupnpd")]
        return sorted(rule for expressions in ours if (rule := _read_rule(expressions)))

    def send(self, rule: Rule, payload: bytes, timeout: float = 5.0) -> bytes:
        """Send from outside to the external port; what arrives inside at the internal one.

        Raises:
            OSError: nothing does.
        """
        kind = socket.SOCK_STREAM if rule.protocol == "tcp" else socket.SOCK_DGRAM
        family = _family(rule)
        with self._socket("host", kind, family) as inside, self._socket("wan", kind, family) as outside:
            inside.settimeout(timeout)
            outside.settimeout(timeout)
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            inside.bind((rule.internal_address, rule.internal_port))
            if kind == socket.SOCK_STREAM:
                inside.listen()
            outside.connect(self._outside(rule))
            outside.send(payload)
            if kind == socket.SOCK_DGRAM:
                return inside.recv(2048)
            with inside.accept()[0] as connection:
                connection.settimeout(timeout)
                return connection.recv(2048)

    def call(self, rule: Rule, payload: bytes, timeout: float = 2.0) -> bytes:
        """Send from outside to the external port; what the program inside answers, or nothing."""
        with self._socket("wan", socket.SOCK_DGRAM, _family(rule)) as outside:
            outside.settimeout(timeout)
            outside.connect(self._outside(rule))
            outside.send(payload)
            with contextlib.suppress(OSError):
                return outside.recv(2048)
        return b""

    def popen(self, *argv: str, output: typing.IO[str] | None = None) -> subprocess.Popen[str]:
        """A program on the host; it is ended with the lab at the latest. Without `output` it writes to two pipes."""
        end = output or subprocess.PIPE
        command = self._in("host", *argv)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=end, stderr=end, text=True)
        self._programs.append(process)
        return process

    def run(self, name: str, tool: str, *arguments: str, text: str = "") -> str:
        """A tool in one of the namespaces, with `text` to read; what it prints."""
        return _run(*self._in(name, _tool(tool), *arguments), text=text)

    def close(self) -> None:
        """End what was started and remove what was made here, and nothing else."""
        for process in self._programs:
            process.kill()
            print(*filter(None, process.communicate()), sep="\n")  # shown when the test has failed
        self._end_programs_of_gateway()
        while self._namespaces:
            _run(_tool("ip"), "netns", "del", self._namespaces.pop())

    def _build(self) -> None:
        for name in self._names.values():
            _run(_tool("ip"), "netns", "add", name)
            self._namespaces.append(name)
        for device, end in (("lan0", "host"), ("wan0", "wan")):
            peer = f"peer name {device} netns {self._names[end]}"
            self.run("gw", "ip", "link", "add", device, "type", "veth", *peer.split())
        has_v6 = Path("/proc/sys/net/ipv6").exists()
        for plan in (_ADDRESSES, _ADDRESSES_V6)[: 1 + has_v6]:
            for name, addresses in plan.items():
                self.run(name, "ip", "-batch", "-", text=f"link set lo up\n{addresses}\n")
        with self._inside("gw"):
            for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")[: 1 + has_v6]:
                Path("/proc/sys/net", switch).write_text("1")
        self.run("gw", "nft", "-f", "-", text=_FIREWALL)
        self.run("host", "nft", "-f", "-", text=_COUNTER)
        (self._directory / "miniupnpd.conf").write_text(self._configuration)

    def _outside(self, rule: Rule) -> tuple[str, int]:
        """Where it can be reached from outside; IPv6 has pinholes."""
        return rule.internal_address if ":" in rule.internal_address else self._external, rule.external_port

    @property
    def _pid_file(self) -> Path:
        return self._directory / "miniupnpd.pid"

    def _daemon(self) -> int | None:
        """The process id of our miniupnpd, while it runs."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if str(self._pid_file) in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        return None

    def _end_programs_of_gateway(self) -> None:
        self._end_helpers()
        if pid := self._daemon():
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: self._daemon() is None, "miniupnpd ends")
        self._pid_file.unlink(missing_ok=True)  # or the next one thinks that it runs already

    def _end_helpers(self) -> None:
        for process in self._gateway:
            process.kill()
            process.wait()
        self._gateway.clear()

    def _in(self, name: str, *argv: str) -> list[str]:
        return [_tool("ip"), "netns", "exec", self._names[name], *argv]

    def _run_on_gateway(self, *argv: str) -> None:
        with (self._directory / "gateway.log").open("ab") as log:
            process = subprocess.Popen(self._in("gw", *argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._gateway.append(process)

    def _log(self) -> str:
        return (self._directory / "gateway.log").read_text(errors="replace")

    def _ask(self, request: bytes) -> bytes:
        """What the gateway answers; nothing while it is not up."""
        with self._socket("host", socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect((GATEWAY, 5351))
            try:
                sock.send(request)
                return sock.recv(2048)
            except OSError:
                return b""

    def _socket(self, name: str, kind: socket.SocketKind, family: int = socket.AF_INET) -> socket.socket:
        """A socket belongs to the namespace it was made in, whoever uses it."""
        with self._inside(name):
            return socket.socket(family, kind)

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        """This thread in another namespace for a moment (`os.setns` came with Python 3.12)."""
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{self._names[name]}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())


def eventually(
    condition: Callable[[], object], what: str, explain: Callable[[], object] = str, within: float = 20.0
) -> None:
    """Wait until it is so, `within` seconds at most."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}\n{explain()}"
        time.sleep(0.1)


def why_not(*, weather: bool = False) -> str | None:
    """What this machine lacks for a lab, if anything."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root, for its network namespaces"
    if missing := [package for tool, package in _PACKAGES.items() if not _find(tool)]:
        return f"the lab needs the packages {', '.join(missing)}"
    probe = f"natpmp-probe-{os.getpid()}"
    storm = _WEATHER.format(neighbour=GATEWAY, lost="numgen inc mod 2 vmap { 1 : drop }", doubled="")
    rules = storm.replace("lan0", "lo") if weather else "add table inet probe"
    try:
        _run(_tool("ip"), "netns", "add", probe)
        try:
            _run(_tool("ip"), "netns", "exec", probe, _tool("nft"), "-f", "-", text=rules)
        finally:
            _run(_tool("ip"), "netns", "del", probe)
    except RuntimeError as error:
        return f"no network namespace with nftables can be made here: {error}"
    return None


def _family(rule: Rule) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in rule.internal_address else socket.AF_INET


def _read_rule(expressions: list[dict[str, typing.Any]]) -> Rule | None:
    """miniupnpd compares raw octets of the IP headers. None: what only lets a forwarding through the firewall."""
    port, target = 0, None
    octets: dict[int, int] = {}  # by their offset in bits
    for expression in expressions:
        target = expression.get("dnat", target)
        left, right = (expression.get("match", {}).get(side) for side in ("left", "right"))
        payload = left.get("payload", {}) if isinstance(left, dict) else {}
        if payload.get("field") == "dport":
            port = right
        elif payload.get("base") == "nh":
            octets[payload["offset"]] = int(str(right), 0)
    if target:
        return Rule(_PROTOCOLS[octets[_PROTOCOL_V4]], port, target["addr"], target["port"])
    if _DESTINATION_V6 in octets:
        return Rule(_PROTOCOLS[octets[_PROTOCOL_V6]], port, str(IPv6Address(octets[_DESTINATION_V6])), port)
    return None


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot change the network namespace")


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *_SBIN)))


def _tool(tool: str) -> str:
    return _find(tool) or tool


def _run(*argv: str, text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
