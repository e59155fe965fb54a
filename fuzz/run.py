"""Runs the fuzz targets: python fuzz/run.py [--seconds N] [TARGET...]

With Atheris (`pip install natpmp-sansio[fuzz]`) each target runs in a process of its own, guided by what its octets
reach; without it, octets of the corpus are changed at random. An input that breaks a property ends its target, is
kept in findings/TARGET/, where the tests replay it from then on, and makes the exit status 1. New inputs of the
corpus are measured and thrown away; keep those worth keeping by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from properties import TARGETS

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FINDINGS = HERE / "findings"
MAX_SIZE = 4096
EXEC_TIMEOUT = 100  # s for one input, by the wall clock: a busy machine may stand still for a while


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target; 60 by default")
    parser.add_argument("--dumb", action="store_true", help="do without Atheris, even if it is there")
    options = parser.parse_args(argv)
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    is_guided = not options.dumb and importlib.util.find_spec("atheris") is not None
    run = run_atheris if is_guided else run_dumb
    findings = 0
    for name in options.targets or list(TARGETS):
        (FINDINGS / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            told, finding = run(name, options.seconds, Path(scratch))
            corpus = f"corpus {len(kept(CORPUS / name))} + {len(kept(Path(scratch)))}"
            found = f"1 finding: {finding}" if finding else "no finding"
            print(f"{name}: {told}, {corpus}, {coverage_of(name, scratch)} of the lines of wire, {found}", flush=True)
        findings += finding is not None
    return 1 if findings else 0


def kept(directory: Path) -> list[Path]:
    """The inputs in a directory of corpus/ or findings/."""
    return sorted(path for path in directory.glob("*") if path.is_file() and not path.name.startswith("."))


# --- with Atheris


def run_atheris(name: str, seconds: float, scratch: Path) -> tuple[str, str | None]:
    """What libFuzzer did, and the finding. Its own log goes on to stderr where there is one."""
    arguments = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-timeout={EXEC_TIMEOUT}",
        f"-max_len={MAX_SIZE}",
        f"-artifact_prefix={FINDINGS / name}/",
        "-print_final_stats=1",
        str(scratch),  # the first directory takes the new inputs
        str(CORPUS / name),
    ]
    child = [sys.executable, str(HERE / "run_one.py"), name, *arguments]
    done = subprocess.run(child, capture_output=True, text=True, errors="replace", check=False)
    log = done.stdout + done.stderr
    if done.returncode:
        print(log, file=sys.stderr)
    executions, per_second = (
        re.findall(rf"{stat}: +(\d+)", log) for stat in ("number_of_executed_units", "average_exec_per_sec")
    )
    reached = re.findall(r"cov: (\d+) ft: (\d+)", log)
    written = re.search(r"Test unit written to .*/(.+)", log)
    if not (executions and reached) or (done.returncode and not written):
        sys.exit(f"{name} did not run as it should; status {done.returncode}")
    told = f"{executions[0]} runs, {per_second[0]}/s, cov {reached[-1][0]}, ft {reached[-1][1]}"
    return told, written[1] if written else None


# --- without


def run_dumb(name: str, seconds: float, scratch: Path) -> tuple[str, str | None]:
    seeds = [path.read_bytes() for path in kept(CORPUS / name)]
    start = time.monotonic()
    executions, failing = mutate(TARGETS[name], seeds, seconds, random.Random())
    told = f"{executions} runs, {executions / (time.monotonic() - start):.0f}/s, not guided"
    if failing is None:
        return told, None
    finding = f"crash-{hashlib.sha1(failing).hexdigest()}"  # as libFuzzer calls it
    (FINDINGS / name / finding).write_bytes(failing)
    return told, finding


def mutate(
    target: Callable[[bytes], None], seeds: Sequence[bytes], seconds: float, rng: random.Random
) -> tuple[int, bytes | None]:
    """Show the target changed seeds for so long, or until one breaks it. How many they were, and that one."""
    end, executions = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = _changed(seeds, rng)
        executions += 1
        try:
            target(data)
        except Exception:
            traceback.print_exc()
            return executions, data
    return executions, None


def _changed(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"))
            case _:
                other = rng.choice(seeds)
                data[at:] = other[min(at, len(other)) :]
    return bytes(data[:MAX_SIZE])


# --- how far it came


def coverage_of(name: str, scratch: str) -> str:
    """The share of the lines of natpmp_sansio.wire that the whole corpus runs through; '?' without coverage.py."""
    if importlib.util.find_spec("coverage") is None:
        return "?"
    child = [sys.executable, str(HERE / "run_one.py"), name, "--coverage", str(CORPUS / name), scratch]
    return subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "?"


if __name__ == "__main__":
    sys.exit(main())
