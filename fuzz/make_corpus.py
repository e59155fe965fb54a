"""Writes corpus/: what the targets start from, and what the tests replay.

    python fuzz/make_corpus.py

The datagrams are the golden ones of tests/requirements/vectors.json. For the targets that read recipes there is a
recipe for each kind of message and option, and lives that are made of golden datagrams.
"""

from __future__ import annotations

import json
import random
import typing
from collections.abc import Iterator
from pathlib import Path

from properties import TARGETS, Recipe, build, life

from natpmp_sansio import LocalProtocolError, pcp, wire
from natpmp_sansio.wire.options import KINDS

HERE = Path(__file__).parent
VECTORS = HERE.parent / "tests" / "requirements" / "vectors.json"
CORPUS = HERE / "corpus"


def corpus() -> dict[str, dict[str, bytes]]:
    """Target, file name, contents."""
    vectors = json.loads(VECTORS.read_text())["vectors"]
    golden = {vector["id"]: bytes.fromhex(vector["hex"]) for vector in vectors}
    made = {
        "decode_is_total": golden,
        "round_trip": _recipes(),
        "client_survives": dict(_lives(vectors, golden, to_server=False)),
        "gateway_survives": dict(_lives(vectors, golden, to_server=True)),
    }
    assert made.keys() == TARGETS.keys()
    return made


def write(directory: Path) -> None:
    for target, files in corpus().items():
        (directory / target).mkdir(parents=True, exist_ok=True)
        for old in (directory / target).iterdir():
            old.unlink()
        for name, data in files.items():
            (directory / target / name).write_bytes(data)


def _recipes() -> dict[str, bytes]:
    """A recipe for every kind of message, and for a message with every kind of option: drawn until all are there."""
    rng = random.Random(1)
    wanted = {kind.__name__ for kind in KINDS.values()} | {"RawOption"}
    wanted |= {_kind(message) for message in typing.get_args(wire.Message)}
    found: dict[str, bytes] = {}
    while wanted - found.keys():
        recipe = rng.randbytes(rng.randrange(400))
        try:
            message = build(Recipe(recipe))
        except LocalProtocolError:
            continue
        options: tuple[pcp.Option, ...] = getattr(message, "options", ())
        for name in (_kind(type(message)), *(type(option).__name__ for option in options)):
            found.setdefault(name, recipe)
    return found


def _kind(message: type) -> str:
    return f"{message.__module__.rpartition('.')[2]}.{message.__name__}"


def _lives(
    vectors: list[dict[str, typing.Any]], golden: dict[str, bytes], *, to_server: bool
) -> Iterator[tuple[str, bytes]]:
    """Eight at a time of the datagrams that one side may get, named by the first of them."""
    chosen = [vector["id"] for vector in vectors if (vector["kind"] == "request") == to_server]
    for number in range(0, len(chosen), 8):
        ids = chosen[number : number + 8]
        versions = (0,) if ids[-1].startswith("NP") else (2, 0)
        yield ids[0], life(versions, [golden[each] for each in ids], to_server=to_server)


if __name__ == "__main__":
    write(CORPUS)
