"""A home network with a real gateway: miniupnpd and nftables in network namespaces of their own.

    host 192.168.77.2 -- 192.168.77.1 gw 11.22.33.44 -- 11.22.33.9 wan

Nothing links the three to the machine's own network, so nothing leaves it. The external address is one that
miniupnpd takes for public; it maps nothing on a private or documentation address.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

GATEWAY, EXTERNAL = "192.168.77.1", "11.22.33.44"
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
_FLUSH = "".join(f"flush chain inet miniupnpd {hook}miniupnpd\n" for hook in ("", "prerouting_", "postrouting_"))
# miniupnpd cannot switch PCP off alone. The first octet of the UDP payload is the version.
_NO_PCP = """
table inet no_pcp {
    chain input {
        type filter hook input priority filter;
        udp dport 5351 @th,64,8 != 0 drop
    }
    chain output {
        type filter hook output priority filter;
        udp sport 5351 @th,64,8 != 0 drop
    }
}
"""
_CONFIGURATION = """\
ext_ifname=wan0
listening_ip=lan0
enable_natpmp=yes
enable_upnp=no
secure_mode=yes
system_uptime=no
min_lifetime=1
max_lifetime=86400
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
{rules}
deny 0-65535 0.0.0.0/0 0-65535
"""
# What goes to its log goes to the system's too, or else to the console, which is slow. The mounts are its own.
_QUIET = 'for log in /dev/log /dev/console; do mount --bind /dev/null $log; done 2>&-; exec "$0" "$@"'


class Rule(typing.NamedTuple):
    """One port forwarding, as the kernel has it."""

    protocol: str
    external_port: int
    internal_address: str
    internal_port: int


class Lab:
    """The three namespaces, with the gateway running; gone again after the block."""

    def __init__(self, directory: Path, *, nat_pmp_only: bool = False, rules: str = ALLOW) -> None:
        self._directory = directory
        self._nat_pmp_only = nat_pmp_only
        self._rules = rules
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
        program = [_tool("miniupnpd"), "-d", "-f", str(self._directory / "miniupnpd.conf")]
        self._run_on_gateway("sh", "-c", _QUIET, *program, "-P", str(self._directory / "miniupnpd.pid"))
        if self._nat_pmp_only:
            self._run_on_gateway(sys.executable, str(Path(__file__).with_name("version_error.py")))
        eventually(lambda: len(self._ask(_NAT_PMP_ASKS)) == 12, "miniupnpd answers; see its log", self._log)
        if self._nat_pmp_only:
            eventually(lambda: len(self._ask(_PCP_ASKS)) == 8, "PCP gets the version error", self._log)

    def stop(self) -> None:
        """Power off: no farewell, and the rules are lost."""
        for process in self._gateway:
            process.kill()
            process.wait()
        self._gateway.clear()
        (self._directory / "miniupnpd.pid").unlink(missing_ok=True)  # or the next one thinks that it runs already
        self.run("gw", "nft", "-f", "-", text=_FLUSH)

    def restart(self) -> None:
        """Power off and on, once the gateway has been up long enough for its clients to notice by its epoch."""
        eventually(lambda: int.from_bytes(self._ask(_NAT_PMP_ASKS)[4:8]) >= _NOTICEABLE, "the epoch runs", self._log)
        self.stop()
        assert not self.rules()
        self.start()

    def rules(self) -> list[Rule]:
        """The port forwardings in nftables, TCP first."""
        listing = json.loads(self.run("gw", "nft", "-j", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"))
        return sorted(_read_rule(item["rule"]["expr"]) for item in listing["nftables"] if "rule" in item)

    def send(self, rule: Rule, payload: bytes) -> bytes:
        """Send from outside to the external port; what arrives inside at the internal one.

        Raises:
            OSError: nothing does.
        """
        kind = socket.SOCK_STREAM if rule.protocol == "tcp" else socket.SOCK_DGRAM
        with self._socket("host", kind) as inside, self._socket("wan", kind) as outside:
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            inside.bind((rule.internal_address, rule.internal_port))
            if kind == socket.SOCK_STREAM:
                inside.listen()
            outside.connect((EXTERNAL, rule.external_port))
            outside.send(payload)
            if kind == socket.SOCK_DGRAM:
                return inside.recv(2048)
            with inside.accept()[0] as connection:
                return connection.recv(2048)

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """A program on the host; it is ended with the lab at the latest."""
        pipe = subprocess.PIPE
        command = self._in("host", *argv)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        self._programs.append(process)
        return process

    def run(self, name: str, tool: str, *arguments: str, text: str = "") -> str:
        """A tool in one of the namespaces, with `text` to read; what it prints."""
        return _run(*self._in(name, _tool(tool), *arguments), text=text)

    def close(self) -> None:
        """End what was started and remove what was made here, and nothing else."""
        for process in self._programs:
            process.kill()
            print(*process.communicate(), sep="\n")  # shown when the test has failed
        for daemon in self._gateway:
            daemon.kill()
            daemon.wait()
        while self._namespaces:
            _run(_tool("ip"), "netns", "del", self._namespaces.pop())

    def _build(self) -> None:
        for name in self._names.values():
            _run(_tool("ip"), "netns", "add", name)
            self._namespaces.append(name)
        for device, end in (("lan0", "host"), ("wan0", "wan")):
            peer = f"peer name {device} netns {self._names[end]}"
            self.run("gw", "ip", "link", "add", device, "type", "veth", *peer.split())
        for name, addresses in _ADDRESSES.items():
            self.run(name, "ip", "-batch", "-", text=f"link set lo up\n{addresses}\n")
        if Path("/proc/sys/net/ipv6").exists():  # two default routes are what a host usually has
            self.run("gw", "ip", "addr", "add", "fe80::1/64", "dev", "lan0", "nodad")
            self.run("host", "ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "lan0")
        with self._inside("gw"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.run("gw", "nft", "-f", "-", text=_FIREWALL + (_NO_PCP if self._nat_pmp_only else ""))
        (self._directory / "miniupnpd.conf").write_text(_CONFIGURATION.format(rules=self._rules))

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

    def _socket(self, name: str, kind: socket.SocketKind) -> socket.socket:
        """A socket belongs to the namespace it was made in, whoever uses it."""
        with self._inside(name):
            sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(5.0)
        return sock

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        """This thread in another namespace for a moment (`os.setns` came with Python 3.12)."""
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{self._names[name]}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())


def eventually(condition: Callable[[], object], what: str, explain: Callable[[], object] = str) -> None:
    """Wait until it is so, 20 s at most."""
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}\n{explain()}"
        time.sleep(0.05)


def why_not() -> str | None:
    """What this machine lacks for a lab, if anything."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root, for its network namespaces"
    if missing := [package for tool, package in _PACKAGES.items() if not _find(tool)]:
        return f"the lab needs the packages {', '.join(missing)}"
    probe = f"natpmp-probe-{os.getpid()}"
    try:
        _run(_tool("ip"), "netns", "add", probe)
        try:
            _run(_tool("ip"), "netns", "exec", probe, _tool("nft"), "add", "table", "inet", "probe")
        finally:
            _run(_tool("ip"), "netns", "del", probe)
    except RuntimeError as error:
        return f"no network namespace with nftables can be made here: {error}"
    return None


def _read_rule(expressions: list[dict[str, typing.Any]]) -> Rule:
    """miniupnpd compares raw octets: those at 72 bits into the IPv4 header are the protocol."""
    protocol, external_port = 0, 0
    target: dict[str, typing.Any] = {}
    for expression in expressions:
        target = expression.get("dnat", target)
        left, right = (expression.get("match", {}).get(side) for side in ("left", "right"))
        payload = left.get("payload", {}) if isinstance(left, dict) else {}
        if payload.get("field") == "dport":
            external_port = right
        elif (payload.get("base"), payload.get("offset")) == ("nh", 72):
            protocol = int(str(right), 0)
    return Rule({6: "tcp", 17: "udp"}[protocol], external_port, target["addr"], target["port"])


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
