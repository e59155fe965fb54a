"""What the codec costs, as ratios: python benchmarks/codec.py [--rounds N]

The floor of each line unpacks (or packs) the same octets with `struct.Struct` and builds the same address object; it
checks nothing and names nothing. All candidates of a line take turns in short rounds, so that whatever else the
machine does hits them alike, and each ratio is the median over the rounds. The package NAT-PMP, where it is installed
(`pip install natpmp-sansio[bench]`), parses without checks. The last line compares importing with importing attrs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from natpmp_sansio import Protocol, decode, natpmp, pcp

LOOPS = 2000
IMPORTS = 20
NONCE = bytes(range(12))

MAPPED = natpmp.MapResponse(Protocol.TCP, natpmp.ResultCode.SUCCESS, 1234, 8080, 40000, 7200)
GRANTED = pcp.MapResponse(
    pcp.ResultCode.SUCCESS, 7200, 1234, NONCE, Protocol.TCP, 8080, 40000, IPv4Address("203.0.113.5")
)
ASK_NATPMP = natpmp.MapRequest(Protocol.TCP, 8080)
ASK_PCP = pcp.MapRequest("192.168.1.7", NONCE, Protocol.TCP, 8080)

Step = Callable[[], object]


def natpmp_decoding() -> dict[str, Step]:
    data, layout = MAPPED.encode(), struct.Struct("!BBHIHHI")
    steps: dict[str, Step] = {"floor": lambda: layout.unpack(data), "decode": lambda: decode(data)}
    peer = _peer()
    if peer is not None:
        steps["NAT-PMP, unchecked"] = lambda: peer(data)
    return steps


def pcp_decoding() -> dict[str, Step]:
    data, layout = GRANTED.encode(), struct.Struct("!BBBBII12s12sB3sHH12s4s")

    def floor() -> object:
        fields = layout.unpack(data)
        return fields, IPv4Address(fields[-1])

    return {"floor": floor, "decode": lambda: decode(data)}


def natpmp_encoding() -> dict[str, Step]:
    layout = struct.Struct("!BBHHHI")
    return {"floor": lambda: layout.pack(0, 2, 0, 8080, 0, 7200), "encode": ASK_NATPMP.encode}


def pcp_encoding() -> dict[str, Step]:
    layout, client = struct.Struct("!BBHI16s12sB3sHH16s"), bytes(16)
    return {
        "floor": lambda: layout.pack(2, 1, 0, 7200, client, NONCE, 6, b"\0\0\0", 8080, 0, client),
        "encode": ASK_PCP.encode,
    }


LINES = {
    "NAT-PMP map response": natpmp_decoding,
    "PCP MAP response": pcp_decoding,
    "NAT-PMP map request": natpmp_encoding,
    "PCP MAP request": pcp_encoding,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    print(f"Python {sys.version.split()[0]}, {rounds} rounds of {LOOPS}")
    for name, make in LINES.items():
        steps = make()
        cost = _idle()
        times: dict[str, list[float]] = {step: [] for step in steps}
        for _ in range(rounds):
            for step, call in steps.items():
                times[step].append(max(_time(call) - cost, 1e-9))
        floor = times.pop("floor")
        for step, taken in times.items():
            ratio = statistics.median(t / f for t, f in zip(taken, floor, strict=True))
            print(f"{name:22} {step:20} {ratio:5.2f} x the floor of {statistics.median(floor) / LOOPS * 1e9:.0f} ns")
    attrs, ours = _importing()
    print(f"{'import':22} {'natpmp_sansio':20} {ours / attrs:5.2f} x attrs, which takes {attrs * 1e3:.0f} ms")


def _time(call: Step) -> float:
    begun = time.perf_counter()
    for _ in range(LOOPS):
        call()
    return time.perf_counter() - begun


def _idle() -> float:
    """What the loop and an empty call cost."""
    return min(_time(lambda: None) for _ in range(50))


def _importing() -> tuple[float, float]:
    """Medians of 20 processes each, side by side."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    taken: dict[str, list[float]] = {"attrs": [], "natpmp_sansio": []}
    for _ in range(IMPORTS + 1):
        for module, times in taken.items():
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            done = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=compiled
            )
            times.append(float(done.stdout))
    first, second = (statistics.median(times[1:]) for times in taken.values())  # the first one may have to compile
    return first, second


def _peer() -> Callable[[bytes], object] | None:
    try:
        peer: Callable[[bytes], object] = importlib.import_module("natpmp").PortMapResponse
    except ImportError:
        return None
    return peer


if __name__ == "__main__":
    main()
