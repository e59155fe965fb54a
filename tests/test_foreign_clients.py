"""Other people's NAT-PMP clients at `natpmp gateway`: Debian's natpmpc, and the package NAT-PMP.

Both know port 5351 only, so the gateway has a loopback address of its own here. libtorrent, which speaks PCP as well
and picks its gateway itself, has its test in the lab.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from gateway_command import GatewayCommand

pytest.importorskip("click", reason="the command needs its extra")

# All of 127.0.0.0/8 is this host, on Linux: one address for each process that runs these tests.
ADDRESS = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"

Serve = Callable[..., GatewayCommand]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts the gateway with these options where the clients look for it."""
    if sys.platform != "linux":
        pytest.skip("loopback has one address here, and port 5351 of that may be in use")
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> GatewayCommand:
            gateway = stack.enter_context(GatewayCommand("--address", ADDRESS, "--json", *options))
            assert gateway.event()["event"] == "GatewayReady"
            return gateway

        yield start


def run(*command: str) -> tuple[int, list[str]]:
    """The exit status, and the lines that it says, or complains in."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, (done.stderr if done.returncode else done.stdout).splitlines()


def natpmpc(*arguments: str) -> tuple[int, str]:
    """Its status, and the answer or the error. It asks for the address before it does anything else."""
    program = shutil.which("natpmpc")
    if program is None:
        pytest.skip("natpmpc is not here; it is in the package natpmpc")
    status, lines = run(program, "-g", ADDRESS, *arguments)
    return status, next(line for line in reversed(lines) if line.startswith(("Public", "Mapped", "readnatpmp")))


def nat_pmp(*arguments: str) -> tuple[int, str]:
    """Its status, and the answer or the error, without the object that the error carries."""
    if importlib.util.find_spec("natpmp") is None:
        pytest.skip("the package NAT-PMP is not here; it is in the extra bench")
    status, lines = run(sys.executable, *arguments)
    return status, lines[-1].partition(", <")[0]


ASK = ("-c", f"import natpmp; print(natpmp.get_public_address({ADDRESS!r}))")
MAP = ("-m", "natpmp", "--gateway", ADDRESS)


def programmed(gateway: GatewayCommand) -> tuple[object, ...]:
    """What the gateway says next that it would do."""
    event = gateway.event()
    assert (event["internal"]["address"], event["external"]["address"]) == ("127.0.0.1", "203.0.113.5")
    return event["event"], event["protocol"], event["external"]["port"], event["internal"]["port"]


def test_natpmpc_learns_the_address_and_maps_renews_and_deletes(serve: Serve) -> None:
    gateway = serve()
    assert natpmpc() == (0, "Public IP address : 203.0.113.5")

    mapped = "Mapped public port 1234 protocol TCP to local port 8080 liftime "
    assert natpmpc("-a", "1234", "8080", "tcp", "600") == (0, f"{mapped}600")
    assert programmed(gateway) == ("MappingCreated", "TCP", 1234, 8080)
    assert natpmpc("-a", "1234", "8080", "udp", "60") == (
        0,
        "Mapped public port 1234 protocol UDP to local port 8080 liftime 60",
    )
    assert programmed(gateway) == ("MappingCreated", "UDP", 1234, 8080)

    assert natpmpc("-a", "0", "8080", "tcp", "1200") == (0, f"{mapped}1200")
    assert programmed(gateway) == ("MappingRefreshed", "TCP", 1234, 8080)

    deleted = "Mapped public port 0 protocol {} to local port {} liftime 0"
    assert natpmpc("-a", "0", "8080", "tcp", "0") == (0, deleted.format("TCP", 8080))
    assert programmed(gateway) == ("MappingDeleted", "TCP", 1234, 8080)
    assert natpmpc("-a", "0", "0", "udp", "0") == (0, deleted.format("UDP", 0))  # all of the host's
    assert programmed(gateway) == ("MappingDeleted", "UDP", 1234, 8080)
    assert gateway.end() == (0, "", "")


def test_natpmpc_is_refused(serve: Serve) -> None:
    gateway = serve("--quirk", "switched-off")
    assert natpmpc("-a", "1234", "8080", "tcp", "600") == (1, "readnatpmpresponseorretry() failed : not authorized")
    assert gateway.end() == (0, "", "")


def test_natpmpc_is_refused_a_port_that_is_taken(serve: Serve) -> None:
    gateway = serve("--quirk", "busy-port-is-an-error")
    natpmpc("-a", "1234", "8080", "tcp", "600")
    assert programmed(gateway) == ("MappingCreated", "TCP", 1234, 8080)
    refusal = "readnatpmpresponseorretry() failed : nat-pmp server out of resources"
    assert natpmpc("-a", "1234", "8081", "tcp", "600") == (1, refusal)
    assert gateway.end() == (0, "", "")


def test_nat_pmp_learns_the_address_and_maps_renews_and_deletes(serve: Serve) -> None:
    gateway = serve()
    assert nat_pmp(*ASK) == (0, "203.0.113.5")

    def answered(*arguments: str) -> str:
        status, line = nat_pmp(*MAP, *arguments)
        assert status == 0
        return line.partition("private_port ")[2]

    assert answered("1234", "8080", "--lifetime", "600") == "8080, public port 1234, lifetime 600"
    assert programmed(gateway) == ("MappingCreated", "TCP", 1234, 8080)
    assert answered("1234", "8080", "--udp", "--lifetime", "60") == "8080, public port 1234, lifetime 60"
    assert programmed(gateway) == ("MappingCreated", "UDP", 1234, 8080)

    assert answered("0", "8080", "--lifetime", "1200") == "8080, public port 1234, lifetime 1200"
    assert programmed(gateway) == ("MappingRefreshed", "TCP", 1234, 8080)

    assert answered("0", "8080", "--lifetime", "0") == "8080, public port 0, lifetime 0"
    assert programmed(gateway) == ("MappingDeleted", "TCP", 1234, 8080)
    assert answered("0", "0", "--udp", "--lifetime", "0") == "0, public port 0, lifetime 0"
    assert programmed(gateway) == ("MappingDeleted", "UDP", 1234, 8080)
    assert gateway.end() == (0, "", "")


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ("--quirk switched-off", "2, 'The operation was refused. NAT-PMP may be turned off on gateway.'"),
        ("--external-address none", "3, 'There was a network failure. The gateway may not have an IP address.'"),
    ],
)
def test_nat_pmp_is_refused(options: str, refusal: str, serve: Serve) -> None:
    gateway = serve(*options.split())
    for request in (ASK, (*MAP, "1234", "8080")):
        assert nat_pmp(*request) == (1, f"natpmp.NATPMPResultError: ({refusal}")
    assert gateway.end() == (0, "", "")
