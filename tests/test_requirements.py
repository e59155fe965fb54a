"""The requirement tables and the tests: what has to be shown is shown, or it is written down why not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conformance import EXCUSES, PAGE, REASONS, ROWS, SCOPE, TESTS, Shown, page, uncovered, unknown


def run_conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TESTS / "conformance.py"), "-qq", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shown_by(path: Path) -> Shown:
    """In a process of its own, because the one that runs may have been asked for a part of the suite only."""
    done = run_conformance("--collect-only", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    shown: Shown = json.loads(done.stdout.splitlines()[-1])
    return shown


@pytest.fixture(scope="module")
def shown() -> Shown:
    return shown_by(TESTS)


def test_every_row_has_an_id_of_its_own() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_every_mark_names_a_row(shown: Shown) -> None:
    assert unknown(shown) == []


def test_every_row_in_scope_is_shown_by_a_test_or_has_a_reason_why_not(shown: Shown) -> None:
    assert uncovered(shown) == []


def test_no_row_is_both_shown_and_excused(shown: Shown) -> None:
    assert shown.keys() & REASONS.keys() == set()


def test_only_rows_in_scope_are_excused_each_once_and_with_a_sentence() -> None:
    assert len(REASONS) == len(EXCUSES)
    assert REASONS.keys() - set(SCOPE) == set()
    assert [row for row in EXCUSES if len(row["reason"].split()) <= 5 or not row["reason"].endswith(".")] == []


def test_the_page_says_what_the_tests_show(shown: Shown) -> None:
    """`python tests/conformance.py -q --ignore=tests/lab` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page(shown)


def test_the_page_has_every_row_with_its_tests_or_the_reason_or_why_nothing_is_asked() -> None:
    lines = page({"NP-1.1-01": ["test_a.py::test_one", "test_b.py::test_two"]}).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    assert {row["id"] for row in ROWS} <= rows.keys()
    assert rows["NP-1.1-01"].endswith(" | `test_a.py::test_one`<br>`test_b.py::test_two` |")
    assert rows["NP-3.5-11"].endswith(f" | {REASONS['NP-3.5-11']} |")
    assert rows["NP-3.8-05"].endswith(" | (not asked yet) |")
    assert rows["PCP-13.2-02"].endswith(" | (permission) |")
    assert rows["6886 NAT-PMP"].startswith("| 6886 NAT-PMP | 150 | 1 | ")


@pytest.mark.parametrize(
    "row", ["PCP-7.3-04", "EXT7723-4.1-01", "NP-3.8-02", "EXT7753-4.2-05", "NP-3.4-16", "EXT7488-3-04"]
)
def test_a_row_that_loses_its_test_is_noticed(row: str) -> None:
    everything = set(SCOPE)
    assert uncovered(everything, set()) == []
    assert uncovered(everything - {row}, set()) == [row]
    assert uncovered(everything - {row}, {row}) == []


SOME_TESTS = """
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
"""


def test_a_mark_on_a_test_that_need_not_run_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(textwrap.dedent(SOME_TESTS))
    assert shown_by(tmp_path).keys() == {"ONE", "TWO"}


def test_a_run_that_leaves_rows_uncovered_says_which_and_writes_no_page(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        textwrap.dedent("""
            import pytest

            @pytest.fixture
            def late():
                pytest.skip("found out too late")

            @pytest.mark.requirement("NP-3.2-02")
            def test_that_passes(): ...

            @pytest.mark.requirement("NP-3.2-04")
            def test_that_turns_out_not_to_run(late): ...

            @pytest.mark.requirement("NP-9.9-99")
            def test_of_nothing_known(): ...
        """)
    )
    before = PAGE.stat().st_mtime_ns
    done = run_conformance(str(tmp_path))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "NP-9.9-99: a test shows it, no table has it" in lines
    assert "NP-3.2-04: neither a test nor a reason" in lines
    assert not [line for line in lines if line.startswith("NP-3.2-02")]
    assert PAGE.stat().st_mtime_ns == before


def test_a_run_in_which_a_test_fails_writes_no_page(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_that_fails():\n    assert False\n")
    before = PAGE.stat().st_mtime_ns
    assert run_conformance(str(tmp_path)).returncode == 1
    assert PAGE.stat().st_mtime_ns == before
