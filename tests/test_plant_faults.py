"""The faults that `plant_faults.py` plants can still be planted."""

from __future__ import annotations

import pytest

from plant_faults import FAULTS, SOURCES, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_what_a_fault_replaces_is_there_just_once(fault: Fault) -> None:
    _, file, old, new = fault
    assert (SOURCES / "natpmp_sansio" / file).read_text().count(old) == 1
    assert old != new
