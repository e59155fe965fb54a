"""The shape of the house, read from its source: imports point down, and below the adapters nothing does I/O."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import natpmp_sansio

HOUSE = Path(natpmp_sansio.__file__).parent
FLOORS = {
    "cli": 6,
    "__main__": 6,
    "adapters": 5,
    "client": 4,
    "gateway": 4,
    "testing": 4,
    "core": 3,
    "diagnosis": 3,
    "keeper": 3,
    "lifecycle": 3,
    "snapshots": 3,
    "speech": 3,
    "drawing": 3,
    "records": 3,
    "table": 3,
    "quirks": 2,
    "dialects": 2,
    "events": 2,
    "addresses": 1,
    "stats": 1,
    "wishes": 1,
    "retransmission": 1,
    "epoch": 1,
    "timers": 1,
    "wire": 1,
    "config": 1,
    "errors": 1,
}
ROLES = {"client", "gateway", "testing"}
PURE = {
    "__future__",
    "attrs",
    "collections",
    "copy",
    "enum",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "random",
    "struct",
    "typing",
}
MODULES = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Every import of a module, relative ones made absolute; also those inside functions."""
    package = ["natpmp_sansio", *path.relative_to(HOUSE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [*base, *(node.module or "").split(".")]
            module = ".".join(name for name in names if name)
            yield from ([f"{module}.{alias.name}" for alias in node.names] if not node.module else [module])


def is_public_face(path: Path) -> bool:
    return path == HOUSE / "__init__.py"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_every_room_has_a_floor_and_imports_only_from_below(path: Path) -> None:
    if is_public_face(path):
        assert not any(name.startswith("natpmp_sansio.adapters") for name in imports_of(path))
        return
    room = room_of(path)
    for name in imports_of(path):
        if not name.startswith("natpmp_sansio"):
            continue
        other = name.split(".")[1]
        if other == room:
            continue
        assert FLOORS[other] <= FLOORS[room], f"{path.name} imports {name}, from a floor above"
        assert not (other in ROLES and room in ROLES), f"{path.name} imports {name}, another role"


BELOW_THE_ADAPTERS = [path for path in MODULES if is_public_face(path) or FLOORS[room_of(path)] < 5]


@pytest.mark.parametrize("path", BELOW_THE_ADAPTERS, ids=lambda path: str(path.relative_to(HOUSE)))
def test_below_the_adapters_nothing_can_do_io_read_a_clock_or_throw_a_hidden_dice(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports_of(path)} - {"natpmp_sansio"}
    assert foreign <= PURE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr in ("Random", "SystemRandom"), f"{path.name} uses random.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "exec", "eval", "__import__"), path.name


def test_importing_the_package_needs_attrs_alone_and_loads_no_adapter() -> None:
    code = (
        "import sys, natpmp_sansio\n"
        "loaded = set(sys.modules)\n"
        "assert not loaded & {'click', 'rich', 'trio', 'pyroute2', 'asyncio', 'selectors'}, loaded\n"
        "assert not [name for name in loaded if name.startswith('natpmp_sansio.adapters')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_package_exports_is_there_and_sorted() -> None:
    assert natpmp_sansio.__all__ == sorted(natpmp_sansio.__all__)
    assert all(hasattr(natpmp_sansio, name) for name in natpmp_sansio.__all__)


def test_no_module_is_longer_than_one_sitting() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 1200} == {}


ADAPTERS = sorted((HOUSE / "adapters").glob("*.py"))


def test_no_adapter_knows_a_number_or_an_address_of_the_protocols() -> None:
    """Their ports, groups and versions stand in wire/ alone."""
    for path in ADAPTERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in (5350, 5351, "224.0.0.1", "ff02::1", "192.0.0.9", "2001:1::1"), path.name
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("VERSION", "ResultCode"), path.name


def test_no_two_adapters_say_the_same_at_length() -> None:
    """Eleven lines in a row that are alike, whatever names and values stand in them."""
    runs: dict[tuple[str, ...], str] = {}
    for path in ADAPTERS:
        code = [line.strip() for line in path.read_text().splitlines()]
        shapes = [re.sub(r"\w+", "x", line) for line in code if line and not line.startswith(("import ", "from "))]
        for start in range(len(shapes) - 10):
            run = tuple(shapes[start : start + 11])
            assert runs.setdefault(run, path.name) == path.name, f"{path.name} has lines of {runs[run]}: {run}"


def test_each_face_fits_on_a_few_screens() -> None:
    faces = [path for path in ADAPTERS if path.name in ("blocking.py", "asyncio.py", "trio.py", "background.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in faces}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
