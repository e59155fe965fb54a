"""What the requirement tables ask for, the tests that show it, and the page that says so.

    python tests/conformance.py -q --ignore=tests/lab

runs the suite with these arguments of pytest and writes docs/conformance.md from the tests that passed. It fails, and
writes nothing, if a test fails, a mark names no row, or a row is neither shown nor excused. With --collect-only it
prints what the collected tests would show.
"""

from __future__ import annotations

import csv
import inspect
import itertools
import json
import sys
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "conformance.md"
# The one test that has to fail before the page is written anew.
FRESHNESS = "tests/test_requirements.py::test_the_page_says_what_the_tests_show"

Row = dict[str, str]
Shown = Mapping[str, list[str]]  # the id of a row -> the tests that show it, in order


def read_csv(name: str) -> list[Row]:
    with (TESTS / "requirements" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS = [row for table in ("rfc6886", "rfc6887", "extensions") for row in read_csv(table)]
EXCUSES = read_csv("not_shown")
REASONS = {row["id"]: row["reason"] for row in EXCUSES}
RFCS = {
    "6886": "NAT-PMP",
    "6887": "PCP",
    "6970": "UPnP IGD interworking",
    "7220": "DESCRIPTION",
    "7225": "PREFIX64",
    "7291": "DHCP options",
    "7488": "server selection",
    "7648": "proxies",
    "7652": "authentication",
    "7723": "anycast addresses",
    "7753": "PORT_SET",
    "7843": "THIRD_PARTY_ID",
}
SERVED = ("6886", "6887", "7220", "7225", "7753", "7843")
KEPT_TO = (*SERVED, "7488", "7723")  # by a client
ASKED = {"client": KEPT_TO, "server": SERVED, "both": KEPT_TO}


def is_in_scope(row: Row) -> bool:
    """Whether a row has to be shown: what is on the wire, and what a client and a server do."""
    if row["level"] == "MAY":
        return False
    on_the_wire = row["role"] == "codec" or row["topic"] in ("header", "option", "wire format")
    return on_the_wire or row["rfc"] in ASKED.get(row["role"], ())


SCOPE = [row["id"] for row in ROWS if is_in_scope(row)]


def unknown(shown: Iterable[str]) -> list[str]:
    return sorted(set(shown) - {row["id"] for row in ROWS})


def uncovered(shown: Container[str], excused: Container[str] = REASONS) -> list[str]:
    """The rows in scope that no test shows and that nobody has written a word about."""
    return [row for row in SCOPE if row not in shown and row not in excused]


# --- the tests


def runs_everywhere(item: pytest.Item) -> bool:
    """Whether a test is sure to run and to count: it is not skipped, expected to fail, or for the lab alone."""
    if TESTS / "lab" in item.path.parents:
        return False
    if any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail")):
        return False
    code = inspect.unwrap(item.function).__code__  # type: ignore[attr-defined]
    return not {"skip", "xfail", "importorskip"} & set(code.co_names)


class Witness:
    """A plugin that sees which tests were collected, which of them passed, and which rows they show."""

    def __init__(self) -> None:
        self.collected: dict[str, list[str]] = {}  # the id of a test -> rows
        self.passed: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in filter(runs_everywhere, session.items):
            self.collected[item.nodeid] = [mark.args[0] for mark in item.iter_markers("requirement")]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def shown_by(self, tests: Container[str]) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for test, rows in self.collected.items():
            if test in tests:
                name = test.partition("[")[0].removeprefix("tests/")
                for row in rows:
                    found.setdefault(row, set()).add(name)
        return {row: sorted(names) for row, names in sorted(found.items())}


# --- the page

HEAD = """\
# What the RFCs ask for, and what shows it

Written by `python tests/conformance.py -q --ignore=tests/lab` from the tests that passed; not to be edited. A row of
`tests/requirements/` is shown by a test that carries its id, or there is a reason why it cannot be. What is on the
wire, and what clients and servers do, is asked for in full; of the rows for hosts and adapters, and of RFCs that are
only touched on here, some are not asked for yet. A permission (MAY) asks nothing.

"""


def standing(row: Row, shown: Shown) -> str:
    """Where a row stands, in the words of the summary."""
    if row["id"] in shown:
        return "shown"
    if row["id"] in REASONS:
        return "with a reason"
    return "permission" if row["level"] == "MAY" else "not asked yet"


def evidence(row: Row, shown: Shown) -> str:
    tests = "<br>".join(f"`{test}`" for test in shown.get(row["id"], []))
    return tests or REASONS.get(row["id"]) or f"({standing(row, shown)})"


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *escaped))


def page(shown: Shown) -> str:
    standings = ("shown", "with a reason", "not asked yet", "permission")
    counts, sections = [], []
    for rfc, rows in itertools.groupby(ROWS, key=lambda row: row["rfc"]):
        of_rfc = list(rows)
        tally = [standing(row, shown) for row in of_rfc]
        counts.append([f"{rfc} {RFCS[rfc]}", str(len(tally)), *(str(tally.count(each)) for each in standings)])
        sections.append(f"\n## RFC {rfc}: {RFCS[rfc]}\n")
        for section, rows_of_section in itertools.groupby(of_rfc, key=lambda row: row["section"]):
            lines = [
                [row["id"], f"{row['level']} {row['role']}", row["requirement"], evidence(row, shown)]
                for row in rows_of_section
            ]
            sections.append(f"\n### RFC {rfc} section {section}\n\n")
            sections.append(table(("row", "asks", "requirement", "shown by"), lines))
    return HEAD + table(("RFC", "rows", *standings), counts) + "".join(sections)


def main(arguments: list[str]) -> int:
    witness = Witness()
    status = pytest.main(["-c", str(TESTS.parent / "pyproject.toml"), *arguments], plugins=[witness])
    if status:
        return status
    if "--collect-only" in arguments:
        print(json.dumps(witness.shown_by(witness.collected)))
        return 0
    shown = witness.shown_by(witness.passed)
    faults = [f"{row}: a test shows it, no table has it" for row in unknown(shown)]
    faults += [f"{row}: neither a test nor a reason" for row in uncovered(shown)]
    if faults:
        print(*faults, sep="\n")
        return 1
    PAGE.write_text(page(shown), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(TESTS.parent)}: {len(SCOPE)} rows in scope, {len(shown)} rows shown")
    return 0


if __name__ == "__main__":
    sys.exit(main([f"--deselect={FRESHNESS}", *sys.argv[1:]]))
