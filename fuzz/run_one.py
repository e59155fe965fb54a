"""One target in a process of its own, for run.py: under libFuzzer, or replaying directories under coverage.py."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path


def fuzz(name: str, arguments: list[str]) -> None:
    atheris = importlib.import_module("atheris")  # not there everywhere, and without types
    with atheris.instrument_imports(include=["natpmp_sansio"]):
        from properties import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def cover(name: str, directories: list[str]) -> None:
    import coverage

    measured = coverage.Coverage(source_pkgs=["natpmp_sansio.wire"], data_file=None, config_file=False)
    with measured.collect():
        from properties import TARGETS

        for directory in directories:
            for path in Path(directory).iterdir():
                TARGETS[name](path.read_bytes())
    print(f"{measured.report(file=io.StringIO()):.1f} %")


if __name__ == "__main__":
    if sys.argv[2] == "--coverage":
        cover(sys.argv[1], sys.argv[3:])
    else:
        fuzz(sys.argv[1], sys.argv[2:])
