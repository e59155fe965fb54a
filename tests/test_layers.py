"""The structure, read from the source: imports point down, nothing below the adapters does I/O, and no class grows
beyond what one reader can hold.

Public is what `natpmp_sansio`, `wire`, `core`, `testing` and `adapters` export in `__all__`. All other names may
change.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import natpmp_sansio

PACKAGE = Path(natpmp_sansio.__file__).parent
LAYERS = (
    {"errors"},
    {"wire"},
    {"events", "config", "stats"},
    {"core"},
    {"client", "gateway", "prober"},
    {"testing"},
    {"adapters"},
    {"cli", "__main__"},
)
"""Each may import from those before it. Modules of one layer may import each other, except the roles."""
ROLES = {"client", "gateway", "prober"}
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
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
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`natpmp_sansio.core.timers` for its file."""
    return ".".join(("natpmp_sansio", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def part_of(path: Path) -> str:
    """The package or module at the top level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Every import of a module, relative ones made absolute; also those inside functions."""
    package = ["natpmp_sansio", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join(name for name in (*base, node.module) if name)
            # What is imported may be a module itself.
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from [name if name in NAMES else module for name in names]


NAMES = {dotted(path): path for path in MODULES}


def is_front(path: Path) -> bool:
    return path == PACKAGE / "__init__.py"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_imports_only_from_its_own_layer_and_those_below(path: Path) -> None:
    own = part_of(path)
    for name in imports_of(path):
        if not name.startswith("natpmp_sansio"):
            continue
        other = name.split(".")[1]
        if is_front(path):
            assert LEVELS[other] <= LEVELS["client"], f"importing the package imports {name}"
        elif other != own:
            assert LEVELS[other] < LEVELS[own] or (LEVELS[other] == LEVELS[own] and not {other, own} & ROLES), (
                f"{path.name} imports {name}, which is above it or another role"
            )


def test_no_imports_go_in_a_circle() -> None:
    graph = {name: {each for each in imports_of(path) if each in NAMES} for name, path in NAMES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way, name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


BELOW_THE_ADAPTERS = [path for path in MODULES if is_front(path) or LEVELS[part_of(path)] < LEVELS["adapters"]]


@pytest.mark.parametrize("path", BELOW_THE_ADAPTERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_below_the_adapters_nothing_can_do_io_read_a_clock_or_throw_a_hidden_dice(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports_of(path)} - {"natpmp_sansio"}
    assert foreign <= PURE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr in ("Random", "SystemRandom"), f"{path.name} uses random.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "exec", "eval", "__import__"), path.name


@pytest.mark.parametrize("name", ["natpmp_sansio", "natpmp_sansio.testing"])
def test_importing_the_package_needs_attrs_alone_and_loads_no_adapter(name: str) -> None:
    code = (
        f"import sys, {name}\n"
        "loaded = set(sys.modules)\n"
        "assert not loaded & {'click', 'rich', 'trio', 'pyroute2', 'asyncio', 'selectors', 'pytest'}, loaded\n"
        "assert not [name for name in loaded if name.startswith('natpmp_sansio.adapters')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_package_exports_is_there_and_sorted() -> None:
    assert natpmp_sansio.__all__ == sorted(natpmp_sansio.__all__)
    assert all(hasattr(natpmp_sansio, name) for name in natpmp_sansio.__all__)


TREES = {path: ast.parse(path.read_text()) for path in MODULES}
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
MAX_ATTRIBUTES, MAX_PRIVATE_METHODS, MAX_LINES_OF_A_FUNCTION = 15, 40, 60
MORE_ATTRIBUTES = {"Lease": 18}  # a grant has as many facts
TO_BE_CUT = {"Client", "ClientMapping", "ClientStation", "Gateway", "Keeper", "Simulation"}


def bases_of(node: ast.ClassDef) -> list[ast.ClassDef]:
    """A class and its bases in this package, the class first."""
    return [node, *(each for name in names_of_bases(node) if name in CLASSES for each in bases_of(CLASSES[name]))]


def attributes_of(node: ast.ClassDef) -> set[str]:
    """The names that a class assigns on `self`, and the fields of an attrs class; none where it is frozen."""
    decorators = [ast.unparse(each) for each in node.decorator_list]
    if any(each.startswith("attrs.frozen") for each in decorators):
        return set()
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            found.add(each.attr)
    if any(each.startswith("attrs.define") for each in decorators):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each)]
        found |= {ast.unparse(each.target) for each in fields}
    return found


def names_of_bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


SUBCLASSES = Counter(name for node in CLASSES.values() for name in names_of_bases(node))
WITH_STATE = [node for node in CLASSES.values() if "Protocol" not in names_of_bases(node)]


@pytest.mark.parametrize(
    "node",
    [pytest.param(node, id=node.name, marks=[pytest.mark.xfail] * (node.name in TO_BE_CUT)) for node in WITH_STATE],
)
def test_no_class_has_more_attributes_or_private_methods_than_a_reader_can_hold(node: ast.ClassDef) -> None:
    family = bases_of(node)
    attributes = set[str]().union(*map(attributes_of, family))
    assert len(attributes) <= MORE_ATTRIBUTES.get(node.name, MAX_ATTRIBUTES), sorted(attributes)
    own = [each for each in family if each is node or SUBCLASSES[each.name] == 1]
    functions = [each for cls in own for each in cls.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    private = [each.name for each in functions if re.match("_[^_]", each.name)]
    assert len(private) <= MAX_PRIVATE_METHODS, f"{len(private)} private methods: {sorted(private)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_LINES_OF_A_FUNCTION, f"{path.name}: {node.name} has {length} lines"


ADAPTERS = sorted((PACKAGE / "adapters").glob("*.py"))


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


def test_each_public_adapter_fits_on_a_few_screens() -> None:
    adapters = [path for path in ADAPTERS if path.name in ("blocking.py", "asyncio.py", "trio.py", "background.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in adapters}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
