"""A network of its own for a program, with routes as the test wants them: nothing there reaches the real one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

# Two wires that end here. `nodad`, because an address that is being checked for duplicates cannot be used yet.
PLAN = """
link set lo up
link add name eth0 type veth peer name far0
link add name eth1 type veth peer name far1
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
addr add 192.168.1.2/24 dev eth0
addr add 192.168.5.2/24 dev eth1
"""


def run_alone(plan: str, code: str) -> str:
    """What a Python program prints in a namespace with `PLAN` and the further commands of `plan` (those of `ip`)."""
    if reason := _why_not():
        pytest.skip(reason)
    script = 'ip -batch - && exec "$@"'
    done = _run("sh", "-ec", script, "sh", sys.executable, "-W", "error", "-c", code, text=PLAN + plan)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _run(*argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), *argv]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PATH": path}
    )


@functools.cache
def _why_not() -> str | None:
    if sys.platform != "linux":
        return "network namespaces need Linux"
    try:
        done = _run("ip", "-batch", "-", text=PLAN + "addr add fd00::1/64 dev eth0")
    except OSError as error:
        return f"network namespaces need unshare (util-linux): {error}"
    return f"no network namespace with IPv6 can be made here: {done.stderr.strip()}" if done.returncode else None
