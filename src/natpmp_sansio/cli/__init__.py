"""The command `natpmp`. Results go to standard output; what explains them, and errors, to standard error."""

from __future__ import annotations

import enum
import errno
import itertools
import json
import logging
import re
import signal
import socket
import sys
import threading
import time
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import attrs
import click
from rich.console import Console
from rich.text import Text

from .. import wire
from ..adapters import _sockets
from ..adapters.blocking import BlockingClient, drive, open_client
from ..config import GatewayConfig
from ..errors import DecodeError, LocalProtocolError, NatPmpError
from ..events import (
    Address,
    Closed,
    Event,
    MappingCreated,
    MappingDeleted,
    MappingError,
    MappingEvent,
    MappingExpired,
    MappingFailed,
    MappingGranted,
    MappingLost,
    MappingRefreshed,
    MappingRefused,
    MappingRenewed,
    Reason,
)
from ..gateway.gateway import Gateway
from ..gateway.quirks import Quirk
from ..wire import natpmp as nat_pmp
from ..wire import pcp
from ..wire.fields import CLIENT_PORT, MAX_LIFETIME, SERVER_PORT, Endpoint, IPAddress, Protocol
from ..wire.options import Option

_USUAL = GatewayConfig()
_VERSIONS = {"pcp": (pcp.VERSION,), "nat-pmp": (nat_pmp.VERSION,)}
_QUIRKS = {quirk.name.lower().replace("_", "-"): quirk for quirk in Quirk}

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


def run(arguments: list[str]) -> int:
    """The exit status: 0 done, 1 it did not work, 2 wrong use. Errors are one sentence, never a traceback."""
    try:
        status = natpmp.main(arguments, prog_name="natpmp", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        _err.print(error.format_message())
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "natpmp"
        return _complain(f"{error.format_message().rstrip('.')} (see {command} --help)", 2)
    except MappingError as error:
        reason = getattr(error.event, "reason", Reason.OTHER)
        return _complain(f"{error}; {_ADVICE.get(reason, _ADVICE[Reason.OTHER])}.", 1)
    except TimeoutError as error:
        return _complain(f"{error}; {_ADVICE[Reason.NO_ANSWER]}.", 1)
    except LocalProtocolError as error:
        return _complain(f"{error}.", 2)
    except NatPmpError as error:
        return _complain(f"{error}.", 1)
    except OSError as error:
        reason = error.strerror or str(error)
        return _complain(f"cannot reach the gateway: {reason}; check its address and this host's network.", 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    return status if isinstance(status, int) else 0


class _Protocol(click.ParamType[Protocol]):
    name = "protocol"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Protocol:
        if isinstance(value, str) and value.upper() in ("TCP", "UDP"):
            return Protocol[value.upper()]
        raise click.BadParameter(f"{value!r} is no protocol that can be mapped; it is tcp or udp", ctx, param)


class _Number(click.ParamType[int]):
    """A whole number in a range, with a sentence for what is none."""

    name = "number"

    def __init__(self, what: str, low: int, high: int) -> None:
        self.what, self.low, self.high = what, low, high

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isascii() and text.isdigit() and self.low <= int(text) <= self.high:
            return int(text)
        text = f"{text!r} is no {self.what}; it is a number from {self.low} to {self.high}"
        raise click.BadParameter(text, ctx, param)


class _ExternalAddress(click.ParamType[IPAddress | None]):
    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> IPAddress | None:
        try:
            return None if value == "none" else ip_address(str(value))
        except ValueError:
            text = f"{value!r} is no external address; it is an IP address, or none"
            raise click.BadParameter(text, ctx, param) from None


class _Quirk(click.ParamType[Quirk]):
    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Quirk:
        if isinstance(value, str) and value in _QUIRKS:
            return _QUIRKS[value]
        raise click.BadParameter(f"{value!r} is no quirk; --list-quirks names them all", ctx, param)


def _to_octets(text: str) -> bytes:
    """A datagram from its hex as people copy it: with spaces, colons or 0x in between, or without."""
    try:
        return bytes.fromhex(re.sub("0[xX]|:", " ", text))
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise click.BadParameter(f"{shown!r} is no datagram in hex; one is 00:00") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="natpmp-sansio")
def natpmp() -> None:
    """Open ports on the router with NAT-PMP (RFC 6886) and PCP (RFC 6887)."""


@natpmp.command("map")
@click.argument("protocol", type=_Protocol(), metavar="PROTOCOL")
@click.argument("port", type=_Number("port", 1, 65535), metavar="PORT")
@click.option("--external-port", type=_Number("port", 1, 65535), help="Suggest this external port.")
@click.option(
    "--lifetime",
    type=_Number("lifetime in seconds", 1, MAX_LIFETIME),
    default=7200,
    show_default=True,
    help="Ask for leases of so many seconds; they are renewed in time.",
)
@click.option("--gateway", help="Ask this gateway, instead of the default one.", metavar="ADDRESS")
@click.option(
    "--timeout",
    type=_Number("number of seconds", 1, 3600),
    default=20,
    show_default=True,
    help="Give up when nobody has answered after so many seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one a line.")
@click.option("-v", "--verbose", is_flag=True, help="Show every datagram, decoded, on standard error.")
def map_command(
    protocol: Protocol,
    port: int,
    external_port: int | None,
    lifetime: int,
    gateway: str | None,
    timeout: int,
    *,
    as_json: bool,
    verbose: bool,
) -> int:
    """Open PORT (PROTOCOL is tcp or udp), keep it open until Ctrl-C, then close it again."""
    show = _show_json if as_json else _show_text
    with _termination_as_interrupt(), _datagrams_shown(_err if verbose else None), open_client(gateway) as client:
        events = client.events()
        status = 130  # until it has been open
        try:
            client.map_port(protocol, port, timeout=float(timeout), external_port=external_port or 0, lifetime=lifetime)
            status = 0
            for event in itertools.chain(events.pending(), _hint_then(events, as_json=as_json)):
                show(event)
                if isinstance(event, MappingFailed):
                    raise MappingError(event)
        except KeyboardInterrupt:
            _release(client)
            for event in events.pending():
                show(event)
        except (MappingError, TimeoutError):
            for event in events.pending() if as_json else ():
                show(event)
            raise
    return status


@natpmp.command()
@click.option("-q", "--quiet", is_flag=True, help="Show events only, not every datagram.")
def demo(*, quiet: bool) -> int:
    """Open, keep and close a port at the built-in gateway, on loopback: needs no network and no router."""
    with _sockets.open_request_socket(("127.0.0.1", 0)) as sock:
        host, port = sock.getsockname()
        gateway = Gateway("203.0.113.5", address=(host, port), config=GatewayConfig(min_lifetime=1))
        _out.print(f"A gateway on {host} port {port}, with the external address 203.0.113.5, and a client of it:")

        def serve() -> None:
            with drive(gateway, sock=sock) as driven:
                while not stopping.is_set():
                    driven.wait(0.05)

        stopping = threading.Event()
        server = threading.Thread(target=serve)
        server.start()
        try:
            with _datagrams_shown(None if quiet else _out), open_client((host, port)) as client:
                events = client.events()
                client.map_port(Protocol.TCP, 8080, timeout=5.0, lifetime=4)
                for event in events:
                    _show_text(event)
                    if isinstance(event, MappingRenewed):
                        break
                client.release()
                for event in events.pending():
                    _show_text(event)
        finally:
            stopping.set()
            server.join()
    _out.print("It was opened, kept open beyond half its lease, and closed again.")
    return 0


@natpmp.command("gateway")
@click.option("--address", default="127.0.0.1", show_default=True, help="Serve on this address.", metavar="ADDRESS")
@click.option(
    "--port",
    type=_Number("port", 0, 65535),
    default=SERVER_PORT,
    show_default=True,
    help="Serve on this port; 0 is any free one.",
)
@click.option(
    "--external-address",
    "external_addresses",
    type=_ExternalAddress(),
    multiple=True,
    default=["203.0.113.5"],
    show_default=True,
    help="Map to this address: several are a pool, none is a router that is offline.",
)
@click.option("--only", type=click.Choice(list(_VERSIONS)), help="Speak one protocol instead of both.")
@click.option(
    "--max-lifetime",
    type=_Number("lifetime in seconds", 1, MAX_LIFETIME),
    default=_USUAL.max_lifetime,
    show_default=True,
    help="Grant leases of so many seconds at most.",
)
@click.option("--quirk", "quirks", type=_Quirk(), multiple=True, help="Break a rule as a real router does; repeatable.")
@click.option("--list-quirks", is_flag=True, help="Show the quirks and where they come from.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one a line.")
@click.option("-v", "--verbose", is_flag=True, help="Show every datagram, decoded, on standard error.")
def gateway_command(
    address: str,
    port: int,
    external_addresses: tuple[IPAddress | None, ...],
    only: str | None,
    max_lifetime: int,
    quirks: tuple[Quirk, ...],
    *,
    list_quirks: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Be a router for tests: answer as one would, and print what it would forward, until Ctrl-C."""
    if list_quirks:
        width = max(map(len, _QUIRKS))
        for name, quirk in _QUIRKS.items():
            _out.print(Text(f"{name:{width}}  {quirk.value}"))
        return
    pool = [each for each in external_addresses if each is not None]
    if len(external_addresses) > 1 and len(pool) < len(external_addresses):
        raise click.UsageError("With --external-address none there can be no other")
    config = GatewayConfig(
        versions=_VERSIONS[only] if only else _USUAL.versions,
        min_lifetime=min(_USUAL.min_lifetime, max_lifetime),
        max_lifetime=max_lifetime,
    )
    show = _show_json if as_json else _show_text
    with (
        suppress(KeyboardInterrupt),
        _termination_as_interrupt(),
        _datagrams_shown(_err if verbose else None),
        _open_server_socket(address, port) as sock,
    ):
        where = sock.getsockname()
        gateway = Gateway(pool or None, address=where, config=config, quirks=quirks)
        with drive(gateway, sock=sock) as driven:
            events = driven.events()
            gateway.reboot(time.monotonic())  # it has just been switched on, and announces that
            _show_ready(where, pool, as_json=as_json)
            try:
                for event in events:
                    show(event)
            finally:  # what has come by now was served, too
                driven.process()
                for event in events.pending():
                    show(event)


def _open_server_socket(host: str, port: int) -> socket.socket:
    """The socket that requests come to.

    Raises:
        LocalProtocolError: it is no address.
        NatPmpError: the address is not ours, or not free.
    """
    address = _sockets.gateway_address(host, port)
    try:
        return _sockets.open_request_socket(address)
    except OSError as error:
        advice = _SERVING_ADVICE.get(error.errno or 0, f"{error.strerror or error}; check --address and --port")
        raise NatPmpError(f"cannot serve on {host} port {port}: {advice}") from None


def _show_ready(where: Address, pool: list[IPAddress], *, as_json: bool) -> None:
    """What is served and where. Whoever started it may wait for this line."""
    addresses = [str(address) for address in pool]
    if as_json:
        _print_json({"event": "GatewayReady", "gateway": where[0], "port": where[1], "external_addresses": addresses})
    else:
        outside = f"the external address {' or '.join(addresses)}" if pool else "no external address"
        _out.print(f"A gateway on {where[0]} port {where[1]}, with {outside}:")
        _err.print("Ctrl-C ends it.")


@attrs.frozen
class _Seen:
    """A datagram, and of a capture also `time`, `source` and `destination`."""

    data: bytes
    place: dict[str, typing.Any] = attrs.field(factory=dict)


@natpmp.command("decode")
@click.argument("datagrams", nargs=-1, type=_to_octets, metavar="[HEX]...")
@click.option("--pcap", "capture", type=click.File("rb"), metavar="FILE", help="Read a capture; - is standard input.")
@click.option("--strict", is_flag=True, help="Refuse what a conforming sender would not send.")
@click.option("--json", "as_json", is_flag=True, help="Print datagrams as JSON, one a line.")
def decode_command(
    datagrams: tuple[bytes, ...], capture: typing.BinaryIO | None, *, strict: bool, as_json: bool
) -> int:
    """Say what datagrams mean: each HEX, or else each line of standard input, or those in a capture."""
    if capture is not None and datagrams:
        raise click.UsageError("Datagrams come as HEX or from --pcap, not both")
    found: Iterable[_Seen] = [_Seen(data) for data in datagrams] or _read_lines()
    if capture is not None:
        found = _read_capture(capture)
    status = 0
    for seen in found:
        outcome = _decode(seen.data, strict=strict)
        if isinstance(outcome, DecodeError):
            status = 1
        if as_json:
            _print_json(seen.place | _describe_in_full(outcome) | {"hex": seen.data.hex()})
        else:
            _out.print(Text(_describe_place(seen) + _describe(seen.data, outcome)))
    return status


def _read_lines() -> Iterator[_Seen]:
    """The lines of standard input; # starts a comment."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        text = line.decode("ascii", "replace").partition("#")[0].strip()
        try:
            if text:
                yield _Seen(_to_octets(text))
        except click.BadParameter as error:
            raise click.UsageError(f"Line {number}: {error.message}") from None


def _read_capture(file: typing.BinaryIO) -> Iterator[_Seen]:
    """The datagrams from or to a port of ours in a pcap or pcapng file."""
    try:
        from scapy.error import Scapy_Exception
        from scapy.layers.inet import IP, UDP
        from scapy.layers.inet6 import IPv6
        from scapy.utils import PcapReader
    except ModuleNotFoundError:
        raise NatPmpError("captures are read with scapy, which is not here; install natpmp-sansio[pcap]") from None
    try:
        packets: Iterable[typing.Any] = PcapReader(typing.cast("typing.Any", file))
        for packet in packets:
            ip = udp = packet.getlayer(UDP)
            while ip and not isinstance(ip, IP | IPv6):  # the innermost, if there is a tunnel
                ip = ip.underlayer
            if ip and {udp.sport, udp.dport} & {CLIENT_PORT, SERVER_PORT}:
                source = Endpoint(ip_address(ip.src), udp.sport)
                destination = Endpoint(ip_address(ip.dst), udp.dport)
                place = {"time": float(packet.time), "source": source, "destination": destination}
                yield _Seen(udp.original[8 : udp.len], place)
    except Scapy_Exception:
        raise NatPmpError(f"{file.name} is no pcap or pcapng file") from None


def _decode(data: bytes, *, strict: bool) -> wire.Message | DecodeError:
    try:
        return wire.decode(data, strict=strict)
    except DecodeError as error:
        return error


def _describe(data: bytes, outcome: wire.Message | DecodeError) -> str:
    """In one line; an error may be one of strictness, of which `wire.describe` knows nothing."""
    return f"{len(data)} octets, no message: {outcome}" if isinstance(outcome, DecodeError) else wire.describe(data)


def _describe_in_full(outcome: wire.Message | DecodeError) -> dict[str, object]:
    if isinstance(outcome, DecodeError):
        return {"error": outcome.reason, "offset": outcome.offset}
    kind = type(outcome)
    name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    return {"message": name} | _fields(outcome) | {"irregular": outcome.received is not None}


def _describe_place(seen: _Seen) -> str:
    if not seen.place:
        return ""
    try:
        time_of_day = datetime.fromtimestamp(seen.place["time"], UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError):  # a broken capture may claim any
        time_of_day = "at no time"
    return f"{time_of_day}  {seen.place['source']} > {seen.place['destination']}  "


def _hint_then(events: Iterator[Event], *, as_json: bool) -> Iterator[Event]:
    if not as_json:
        _err.print("Ctrl-C closes it.")
    yield from events


def _release(client: BlockingClient) -> None:
    """Tell the gateway; a second Ctrl-C cuts that short."""
    try:
        client.release()
    except KeyboardInterrupt:
        client.abandon()
        _err.print("not released: its lease runs out by itself")


def _show_text(event: Event) -> None:
    if isinstance(event, MappingGranted | MappingCreated):
        _out.print(Text(event.describe(), style="bold green"))
    elif isinstance(event, MappingRefused | MappingLost | MappingFailed):
        _err.print(Text(event.describe(), style="bold red"))
    elif isinstance(event, MappingEvent | MappingRefreshed | MappingExpired | MappingDeleted):
        _out.print(Text(event.describe()))
    elif not isinstance(event, Closed):
        _out.print(Text(event.describe(), style="dim"))


def _show_json(event: Event) -> None:
    """One object a line. Times are seconds since 1970."""
    fields = attrs.asdict(event, recurse=False)
    for name in ("expires_at", "retry_at", "recovery_at"):
        if name in fields:
            fields[name] = round(fields[name] - time.monotonic() + time.time(), 3)
    if isinstance(fields.get("protocol"), Protocol):
        fields["protocol"] = fields["protocol"].name
    fields["gateway"] = event.gateway[0]
    _print_json({"event": type(event).__name__} | fields)


def _print_json(fields: dict[str, typing.Any]) -> None:
    print(json.dumps(fields, default=_to_json), flush=True)  # noqa: T201


def _fields(thing: typing.Any) -> dict[str, object]:
    """The fields of a message or an option, with enums by name: json takes an IntEnum for its number."""
    values = attrs.asdict(thing, recurse=False, filter=lambda field, value: field.name != "received")
    return {name: value.name if isinstance(value, enum.Enum) else value for name, value in values.items()}


def _to_json(value: object) -> object:
    if isinstance(value, Endpoint):
        return {"address": value.address and str(value.address), "port": value.port}
    if isinstance(value, Option):
        return {"option": type(value).__name__} | _fields(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    raise TypeError(f"no JSON for {value!r}")


class _DatagramHandler(logging.Handler):
    """Prints this thread's datagrams with the time since the start."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._start = time.time()
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            at = Text(f"{record.created - self._start:9.3f} s  ", style="dim")
            self._console.print(at + Text(record.getMessage(), style="cyan"))


@contextmanager
def _datagrams_shown(console: Console | None) -> Iterator[None]:
    if console is None:
        yield
        return
    log = logging.getLogger("natpmp_sansio.datagrams")
    handler = _DatagramHandler(console)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, or that the terminal is closed, ends the command as Ctrl-C does, so that the mapping is released."""

    def interrupt(*_: object) -> typing.NoReturn:
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]  # nohup goes on
    before = [signal.signal(each, interrupt) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _complain(text: str, status: int) -> int:
    _err.print(Text(f"natpmp: {text}"))
    return status


_ADVICE = {
    Reason.NOT_AUTHORIZED: (
        "allow port mapping for this host in the router's settings; or an earlier run that was killed still holds the "
        "port, until its lease is over"
    ),
    Reason.NETWORK_FAILURE: "check the router's own connection; behind another router, that one must forward too",
    Reason.NO_RESOURCES: "try again later, or with another port",
    Reason.NO_ANSWER: "check its address, and that NAT-PMP or PCP is switched on in its settings",
    Reason.UNREACHABLE: "switch NAT-PMP or PCP on in its settings, or name another one with --gateway",
    Reason.ADDRESS_MISMATCH: "run it on a host that is directly behind the gateway",
    Reason.OTHER: "run it with -v to see what was sent and answered",
}

_SERVING_ADVICE = {
    errno.EADDRINUSE: "the port is in use; end what serves there, or name another with --port",
    errno.EACCES: "the port is for root only; name one above 1023 with --port",
    errno.EADDRNOTAVAIL: "it is no address of this host; name one that is with --address",
    errno.EINVAL: "the address needs its interface, as in fe80::1%eth0",
}
