"""The documentation's programs are typed as their readers would have it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKERS = {
    "mypy": ["--strict", "--no-incremental", "--cache-dir", "/dev/null"],
    "pyright": ["--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_what_the_documentation_does_with_the_adapters(checker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    for page in (ROOT / "README.md", ROOT / "docs" / "adapters.md"):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(block for block in blocks if "natpmp_sansio.adapters" in block):
            (tmp_path / f"{page.stem}_{number}.py").write_text(block)
    programs = sorted(str(path) for path in tmp_path.iterdir())
    assert len(programs) >= 6
    checked = subprocess.run(
        [sys.executable, "-m", checker, *CHECKERS[checker], *programs],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
