"""Does the state machine of the clients find what it is there for? Faults are planted, one at a time.

    python tests/plant_faults.py [examples [name ...]]

Each fault is put into a copy of the sources, and `test_client_machine.py` alone is run against it.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

SOURCES = pathlib.Path(__file__).parent.parent / "src"
CLIENT, DIALECTS, EPOCH, SCHEDULE = "client.py", "dialects.py", "epoch.py", "retransmission.py"

Fault = tuple[str, str, str, str]
# name, file, what is there, what is wrong instead
FAULTS: tuple[Fault, ...] = (
    ("NAT-PMP epoch inequality", EPOCH, "- epoch > 2\n", "- epoch > 3\n"),
    ("PCP epoch inequality", EPOCH, "server < -1 or", "server < 0 or"),
    ("PCP epoch too slow", EPOCH, "or server + 2 < client - client // 16", ""),
    (
        "renewal after expiry",
        CLIENT,
        "            case Timer.EXPIRE:\n",
        (
            "            case Timer.EXPIRE if mapping.is_renewal_open:\n"
            "                return\n            case Timer.EXPIRE:\n"
        ),
    ),
    (
        "forgotten nonce",
        CLIENT,
        "            data = dialect.map_request(wish)\n",
        (
            "            wish = mapping.wish = attrs.evolve(wish, nonce=self._rng.randbytes(12))\n"
            "            data = dialect.map_request(wish)\n"
        ),
    ),
    (
        "lost delete",
        CLIENT,
        "        if mapping.maybe_there:\n            self._releasing",
        "        if mapping.maybe_there and not self._exchanges:\n            self._releasing",
    ),
    (
        "stale deadline",
        "timers.py",
        "        if self._entries.pop(key, None):\n            self._discard_stale()\n",
        "        self._entries.pop(key, None)\n",
    ),
    (
        "deadline of what is over",
        CLIENT,
        "        self._exchanges.pop(exchange, None)\n        self._timers.cancel((Timer.RETRANSMIT, exchange))\n",
        "        self._exchanges.pop(exchange, None)\n",
    ),
    ("late retransmission", SCHEDULE, "return 0.25 * 2.0 ** (attempt - 1)", "return 0.5 * 2.0 ** (attempt - 1)"),
    (
        "retransmission too early",
        SCHEDULE,
        "nominal = _IRT if previous is None else min(2.0 * previous, _MRT)",
        "nominal = _IRT if previous is None else min(1.5 * previous, _MRT)",
    ),
    ("no retransmission", CLIENT, "exchange.attempts < exchange.limit:\n", "exchange.attempts < 2:\n"),
    ("retransmission without a cap", SCHEDULE, "min(2.0 * previous, _MRT)", "2.0 * previous"),
    ("window ignored", CLIENT, "(1 if dialect.serial else self._config.window)", "(1 if dialect.serial else 99)"),
    ("two requests in NAT-PMP", CLIENT, "(1 if dialect.serial else", "(2 if dialect.serial else"),
    (
        "recovery not paced",
        CLIENT,
        "max(now + recovery_delay(self._rng), self._last_recovery + self._config.recovery_interval)",
        "now + recovery_delay(self._rng)",
    ),
    (
        "no recovery",
        CLIENT,
        "mapping.generation < self._generation:\n                self._end",
        "False:\n                self._end",
    ),
    (
        "delete with port",
        DIALECTS,
        "attrs.evolve(wish, options=kept), 0, None",
        "attrs.evolve(wish, options=kept), wish.external.port, None",
    ),
    (
        "nonce not compared",
        DIALECTS,
        "(answer.nonce, answer.protocol, answer.internal_port) == (wish.nonce, wish.protocol, wish.internal_port)",
        "(answer.protocol, answer.internal_port) == (wish.protocol, wish.internal_port)",
    ),
    (
        "grant not told",
        CLIENT,
        "        else:\n            self._emit(MappingRenewed(**about, external=external))",
        "        elif mapping.renewals < 2:\n            self._emit(MappingRenewed(**about, external=external))",
    ),
    (
        "lease believed too long",
        CLIENT,
        "float(min(answer.lifetime, self._config.max_lifetime))",
        "float(max(answer.lifetime, mapping.wish.lifetime))",
    ),
    ("version error believed always", CLIENT, "if self._is_proven_other_than(offered) or (", "if ("),
    (
        "two ends",
        CLIENT,
        "        self._emit(event)\n\n    # --- exchanges",
        (
            "        self._emit(event)\n        if event.internal_port == 81:\n"
            "            self._emit(event)\n\n    # --- exchanges"
        ),
    ),
    (
        "task order",
        CLIENT,
        "self._tasks.append((_Purpose.CREATE, mapping))\n        self._pump",
        "self._tasks.appendleft((_Purpose.CREATE, mapping))\n        self._pump",
    ),
    (
        "hold time ignored",
        CLIENT,
        "self._refuse(mapping, reason, code, now + hold)",
        "self._refuse(mapping, reason, code, now + hold / 2)",
    ),
    ("full server asked again", CLIENT, "return now < self._hold_new_until or", "return"),
    ("renewals too close", DIALECTS, "renewal_gap = retransmission.MIN_RENEWAL_GAP", "renewal_gap = 0.0"),
    ("renewal too early", SCHEDULE, "lifetime * (1.0 - 0.5**attempt)", "lifetime * (1.0 - 0.6**attempt)"),
    (
        "nothing told of the address",
        CLIENT,
        "if mapping.state is MappingState.HELD and mapping.follows_gateway:",
        "if False:",
    ),
    (
        "a copy of a delete's answer",
        CLIENT,
        "and answer.is_deletion:\n            self._unmatched",
        "and False:\n            self._unmatched",
    ),
    (
        "early wake-up does something",
        CLIENT,
        "        if due:\n            self._pump(now)",
        "        if due or self._tasks:\n            self._hold_new_until = 0.0\n            self._pump(now)",
    ),
    (
        "closed too early",
        CLIENT,
        "if self._closing and not self._mappings and not self._closed:",
        "if self._closing and not self._exchanges and not self._closed:",
    ),
    (
        "until ignored",
        CLIENT,
        "            self._timers.set((Timer.DEADLINE, mapping), until)",
        "            self._timers.set((Timer.DEADLINE, mapping), until + 1.0)",
    ),
)


def plant(fault: Fault, sources: pathlib.Path) -> None:
    """Into a copy of the sources."""
    name, file, old, new = fault
    path = sources / "natpmp_sansio" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{name}: what it replaces is there {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))


def search(fault: Fault | None, examples: int) -> str | None:
    """What the state machine has against the sources with this fault."""
    tests = pathlib.Path(__file__).parent
    with tempfile.TemporaryDirectory() as place:
        sources = pathlib.Path(place) / "src"
        shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
        if fault:
            plant(fault, sources)
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"import test_client_machine as machine; machine.search({examples})"],
                env={**os.environ, "PYTHONPATH": f"{sources}{os.pathsep}{tests}", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60.0 + examples,
            )
        except subprocess.TimeoutExpired:
            return "it never comes to an end"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines()]
    last = max((number for number, line in enumerate(lines) if line.startswith("File ")), default=0)
    return " ".join(line for line in lines[last + 1 : last + 2]) or "it could not run"


def main(examples: int = 1000, *names: str) -> None:
    """The sources as they are must be without fault, and each fault must be found."""
    wrong = []
    for fault in (None, *FAULTS):
        name = fault[0] if fault else "no fault"
        if names and name not in names:
            continue
        start = time.monotonic()
        found = search(fault, examples)
        print(f"{name:32}{time.monotonic() - start:7.1f} s  {found or 'not found'}", flush=True)
        if (found is None) is (fault is not None):
            wrong.append(name)
    print(f"wrong: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, *sys.argv[2:])
