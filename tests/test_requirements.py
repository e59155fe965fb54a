"""The requirement tables and the tests: what has to be shown on the wire is shown, or it is written down why not.

Run as a program it prints the rows that the tests of a path show, as the suite collects them.
"""

from __future__ import annotations

import csv
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLES = [TESTS / "requirements" / f"{name}.csv" for name in ("rfc6886", "rfc6887", "extensions")]
NOT_SHOWN = TESTS / "requirements" / "not_shown.csv"

Row = dict[str, str]


def read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS = [row for table in TABLES for row in read_csv(table)]
EXCUSES = read_csv(NOT_SHOWN)
EXCUSED = {row["id"] for row in EXCUSES}


def is_in_scope(row: Row) -> bool:
    on_the_wire = row["role"] == "codec" or row["topic"] in ("header", "option", "wire format")
    return on_the_wire and row["level"] in ("FACT", "MUST", "SHOULD")


SCOPE = [row["id"] for row in ROWS if is_in_scope(row)]


def neglected(scope: Iterable[str], shown: set[str], excused: set[str]) -> list[str]:
    """The rows that no test shows and that nobody has written a word about."""
    return [row for row in scope if row not in shown and row not in excused]


def runs_everywhere(item: pytest.Item) -> bool:
    """Whether a test is sure to run and to count: it is not skipped, expected to fail, or for the lab alone."""
    if TESTS / "lab" in item.path.parents:
        return False
    if any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail")):
        return False
    code = inspect.unwrap(item.function).__code__  # type: ignore[attr-defined]
    return not {"skip", "xfail", "importorskip"} & set(code.co_names)


class Collector:
    """A plugin that looks at what was collected."""

    def __init__(self) -> None:
        self.shown: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in filter(runs_everywhere, session.items):
            self.shown.update(mark.args[0] for mark in item.iter_markers("requirement"))


def rows_shown_by(path: Path) -> set[str]:
    """In a process of its own, because the one that runs may have been asked for a part of the suite only."""
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def shown() -> set[str]:
    return rows_shown_by(TESTS)


def test_every_row_has_an_id_of_its_own() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_every_mark_names_a_row(shown: set[str]) -> None:
    assert shown - {row["id"] for row in ROWS} == set()


def test_every_row_about_the_wire_is_shown_by_a_test_or_has_a_reason_why_not(shown: set[str]) -> None:
    print(f"{len(SCOPE)} rows in scope, {len(shown.intersection(SCOPE))} shown, {len(EXCUSED)} not shown")
    assert neglected(SCOPE, shown, EXCUSED) == []


def test_no_row_is_both_shown_and_excused(shown: set[str]) -> None:
    assert shown & EXCUSED == set()


def test_only_rows_in_scope_are_excused_each_once_and_with_a_sentence() -> None:
    assert len(EXCUSED) == len(EXCUSES)
    assert EXCUSED - set(SCOPE) == set()
    assert [row for row in EXCUSES if len(row["reason"].split()) <= 5 or not row["reason"].endswith(".")] == []


@pytest.mark.parametrize("row", ["PCP-7.3-04", "EXT7723-4.1-01"])
def test_a_row_that_loses_its_test_is_noticed(row: str) -> None:
    everything = set(SCOPE)
    assert neglected(SCOPE, everything, set()) == []
    assert neglected(SCOPE, everything - {row}, set()) == [row]
    assert neglected(SCOPE, everything - {row}, {row}) == []


def test_a_mark_on_a_test_that_need_not_run_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        textwrap.dedent("""
            import pytest

            @pytest.mark.requirement("ONE")
            def test_plain(): ...

            @pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.requirement("TWO")), 2])
            def test_one_of_several(n): ...

            @pytest.mark.skip
            @pytest.mark.requirement("SKIPPED")
            def test_skipped(): ...

            @pytest.mark.xfail
            @pytest.mark.requirement("FAILING")
            def test_failing(): ...

            @pytest.mark.requirement("SKIPS ITSELF")
            def test_that_skips_itself():
                pytest.skip("not today")

            @pytest.mark.requirement("OF NOTHING")
            @pytest.mark.parametrize("n", [])
            def test_of_nothing(n): ...

            @pytest.mark.requirement("NO TEST")
            def helper(): ...
        """)
    )
    assert rows_shown_by(tmp_path) == {"ONE", "TWO"}


if __name__ == "__main__":
    collector = Collector()
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider", "--collect-only", "-qq"]
    status = pytest.main([*settings, *sys.argv[1:]], plugins=[collector])
    if status:
        sys.exit(status)
    print(json.dumps(sorted(collector.shown)))
