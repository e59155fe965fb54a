"""Does the state machine of the clients find what it is there for? Faults are planted, one at a time.

    python tests/plant_faults.py [examples [name ...]]

Each fault is put into a copy of the sources, and `test_client_machine.py` alone is run against it.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

SOURCES = pathlib.Path(__file__).parent.parent / "src"
CLIENT, KEEPER, LIFECYCLE = "client/client.py", "client/keeper.py", "client/lifecycle.py"
DIALECTS, EPOCH = "client/dialects.py", "client/epoch.py"
RESTARTS, SCHEDULE, VERSIONS = "client/restarts.py", "client/schedules.py", "client/versions.py"

Fault = tuple[str, str, str, str]
# name, file, what is there, what is wrong instead
FAULTS: tuple[Fault, ...] = (
    ("NAT-PMP epoch inequality", EPOCH, "- epoch > 2\n", "- epoch > 3\n"),
    ("PCP epoch inequality", EPOCH, "server < -1 or", "server < 0 or"),
    ("PCP epoch too slow", EPOCH, "or server + 2 < client - client // 16", ""),
    (
        "renewal after expiry",
        KEEPER,
        "            case Timer.RENEW | Timer.EXPIRE:\n",
        (
            "            case Timer.EXPIRE if mapping.is_renewal_open:\n"
            "                return\n            case Timer.RENEW | Timer.EXPIRE:\n"
        ),
    ),
    ("renewal at expiry", SCHEDULE, "float(lifetime * (1.0 - 0.5**attempt))", "float(lifetime)"),
    (
        "forgotten nonce",
        KEEPER,
        "            mapping.may_exist_at_gateway = True\n            if purpose",
        (
            "            mapping.may_exist_at_gateway = True\n"
            "            spec = mapping.spec = attrs.evolve(spec, nonce=self._rng.randbytes(12))\n"
            "            if purpose"
        ),
    ),
    (
        "lost delete",
        KEEPER,
        "        if mapping.may_exist_at_gateway:\n            self._releasing",
        "        if mapping.may_exist_at_gateway and not self._in_flight:\n            self._releasing",
    ),
    (
        "stale deadline",
        "core/timers.py",
        "        if is_moved:\n            self._discard_stale()\n",
        "",
    ),
    (
        "deadline of what is over",
        KEEPER,
        "        self._in_flight.end(exchange)\n        self._timers.cancel(exchange)\n",
        "        self._in_flight.end(exchange)\n",
    ),
    ("late retransmission", SCHEDULE, "return 0.25 * 2.0 ** (attempt - 1)", "return 0.5 * 2.0 ** (attempt - 1)"),
    (
        "retransmission too early",
        SCHEDULE,
        "nominal = _IRT if previous is None else min(2.0 * previous, _MRT)",
        "nominal = _IRT if previous is None else min(1.5 * previous, _MRT)",
    ),
    ("no retransmission", KEEPER, "exchange.attempts >= exchange.limit:\n", "exchange.attempts >= 2:\n"),
    ("retransmission without a cap", SCHEDULE, "min(2.0 * previous, _MRT)", "2.0 * previous"),
    ("renewal sent twice", DIALECTS, "renewal_attempts = 1  #", "renewal_attempts = 2  #"),
    ("window ignored", KEEPER, "(1 if dialect.serial else self._config.window)", "(1 if dialect.serial else 99)"),
    ("two requests in NAT-PMP", KEEPER, "(1 if dialect.serial else", "(2 if dialect.serial else"),
    (
        "recovery not paced",
        RESTARTS,
        "max(now + recovery_delay(self._rng), last + self._interval)",
        "now + recovery_delay(self._rng)",
    ),
    (
        "no recovery",
        KEEPER,
        "            if mapping.is_held and mapping.loss_count < restarts.loss_count:\n                self._end_exchange",
        "            if False:\n                self._end_exchange",
    ),
    (
        "a recovery that is not taken up again",
        KEEPER,
        "        else:\n            self._timers.set((Timer.RECOVER, None), self._session.restarts.retry(recover_at))\n",
        "",
    ),
    ("no confirmation", KEEPER, "        if is_new and not has_lost and", "        if False and"),
    (
        "another address that is not doubted",
        KEEPER,
        "        elif outcome.address != self._session.external.address:\n",
        "        elif outcome.address is None:\n",
    ),
    ("a copy of a grant renews", LIFECYCLE, "return is_same and now", "return False and now"),
    (
        "delete with port",
        DIALECTS,
        "attrs.evolve(spec, options=kept), 0, zeros",
        "attrs.evolve(spec, options=kept), spec.external.port, zeros",
    ),
    (
        "nonce not compared",
        KEEPER,
        "found = self._by_nonce.get(answer.nonce)\n",
        (
            "found = next((m for m in self._wanted.values() if m.spec.internal_port == answer.internal_port), None)\n"
            "            answer = attrs.evolve(answer, nonce=found.spec.nonce if found else b'')\n"
        ),
    ),
    (
        "grant not told",
        KEEPER,
        "            self._queue.emit(mapping.take_event(self.gateway))\n",
        (
            "            is_renewal = mapping.reported_external == mapping.external\n"
            "            event = mapping.take_event(self.gateway)\n"
            "            if mapping.spec.internal_port != 81 or not is_renewal:\n"
            "                self._queue.emit(event)\n"
        ),
    ),
    (
        "lease believed too long",
        KEEPER,
        "float(min(answer.lifetime, self._config.max_lifetime))",
        "float(max(answer.lifetime, mapping.spec.lifetime))",
    ),
    (
        "version error believed always",
        KEEPER,
        "            self._session.versions.is_proven_other_than(offered)\n            or (",
        "            (",
    ),
    (
        "two ends",
        KEEPER,
        "            self._report_about(MappingReleased, mapping, confirmed=confirmed)\n",
        (
            "            self._report_about(MappingReleased, mapping, confirmed=confirmed)\n"
            "            if mapping.spec.internal_port == 81:\n"
            "                self._report_about(MappingReleased, mapping, confirmed=confirmed)\n"
        ),
    ),
    (
        "task order",
        CLIENT,
        "        self._ready.append((Purpose.CREATE, mapping))\n        return mapping",
        "        self._ready.appendleft((Purpose.CREATE, mapping))\n        return mapping",
    ),
    (
        "hold time ignored",
        KEEPER,
        "self._refuse(mapping, reason, code, now + hold)",
        "self._refuse(mapping, reason, code, now + hold / 2)",
    ),
    (
        "full server asked again",
        KEEPER,
        "is_taken or not self._session.reachability.may_create(now)",
        "is_taken",
    ),
    ("a port that is taken asked for again", KEEPER, "mapping.suggest(spec.external.address, 0)", "pass"),
    ("renewals too close", DIALECTS, "renewal_gap = schedules.MIN_RENEWAL_GAP", "renewal_gap = 0.0"),
    ("renewal too early", SCHEDULE, "lifetime * (1.0 - 0.5**attempt)", "lifetime * (1.0 - 0.6**attempt)"),
    (
        "nothing told of the address",
        KEEPER,
        "if mapping.is_held and mapping.follows_gateway and mapping.external is not None:",
        "if False:",
    ),
    (
        "another gateway's address with the old port",
        CLIENT,
        "mapping.follows_gateway = mapping.is_renewal_open = False",
        "mapping.is_renewal_open = False",
    ),
    (
        "a move that is not told",
        CLIENT,
        "            mapping.expires_at = min(mapping.expires_at, now + _MOVE_GRACE)\n",
        "",
    ),
    ("the old nonce elsewhere", CLIENT, "self._session.local.version), nonce=nonce", "self._session.local.version)"),
    ("a restart with other nonces", CLIENT, "nonce=each.nonce, family=each.family", "family=each.family"),
    (
        "a restart that forgets what is there",
        CLIENT,
        "                mapping.may_exist_at_gateway = True\n",
        "                pass\n",
    ),
    (
        "TCP does not follow",
        KEEPER,
        "            pair.is_following = self._renew_now(pair.tcp, now)\n",
        "            pair.is_following = False\n",
    ),
    ("a pair that stays apart", KEEPER, "            if pair.rounds < pair.MAX_ROUNDS:\n", "            if False:\n"),
    ("a pair told too early", KEEPER, "if mapping.pair is None or mapping.pair.agrees:", "if True:"),
    (
        "a copy of a delete's answer",
        KEEPER,
        "            if exchange.mismatches <= self._config.delete_attempts:\n",
        "            if False:\n",
    ),
    (
        "early wake-up does something",
        KEEPER,
        "        if due:\n            self._send_requests(now)",
        "        if due or self._ready:\n            self._session.reachability.hold_new(0.0)\n            self._send_requests(now)",
    ),
    (
        "closed too early",
        KEEPER,
        "if self._closing and not self._mappings and not self._closed:",
        "if self._closing and len(self._mappings) < 2 and not self._closed:",
    ),
    (
        "until ignored",
        CLIENT,
        "            self._timers.set((Timer.DEADLINE, mapping), mapping.spec.until)",
        "            self._timers.set((Timer.DEADLINE, mapping), mapping.spec.until + 1.0)",
    ),
    (
        "a request that is doubled when the version changes",
        KEEPER,
        "                stays = exchange.dialect is self._dialect_for(exchange.purpose, mapping)\n",
        "                stays = False\n",
    ),
)


SEARCH = """
import test_client_machine as machine
try:
    machine.search({examples})
finally:
    print(machine.Life.begun)
"""


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
                [sys.executable, "-c", SEARCH.format(examples=examples)],
                env={**os.environ, "PYTHONPATH": f"{sources}{os.pathsep}{tests}", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60.0 + examples / 4,
            )
        except subprocess.TimeoutExpired:
            return "it never comes to an end"
    if done.returncode == 0:
        return None
    lines = (line.lstrip(" |+-") for line in done.stderr.splitlines())
    # The first of them: what follows happened while it was handled.
    what = next((line for line in lines if re.match(r"\w+(Error|Exception)\b", line)), "it could not run")
    return f"{done.stdout.strip():>4} examples: {what}"


def main(examples: int = 1000, *names: str) -> None:
    """The sources as they are must be without fault, and each fault must be found."""
    wrong = []
    for fault in (None, *FAULTS):
        name = fault[0] if fault else "no fault"
        if names and name not in names:
            continue
        start = time.monotonic()
        found = search(fault, examples)
        print(f"{name:52}{time.monotonic() - start:7.1f} s  {found or 'not found'}", flush=True)
        if (found is None) is (fault is not None):
            wrong.append(name)
    print(f"wrong: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, *sys.argv[2:])
