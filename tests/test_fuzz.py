"""The fuzz targets of fuzz/, shown their corpus, past findings, and what Hypothesis and blind mutation come up with."""

from __future__ import annotations

import importlib
import random
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natpmp_sansio import wire
from strategies import datagrams

FUZZ = Path(__file__).parent.parent / "fuzz"
sys.path.append(str(FUZZ))  # scripts that import each other
properties, run, make_corpus = (importlib.import_module(name) for name in ("properties", "run", "make_corpus"))
each_target = pytest.mark.parametrize("target", properties.TARGETS)


@each_target
def test_the_corpus_and_every_past_finding_keep_the_properties(target: str) -> None:
    inputs = run.kept(run.CORPUS / target) + run.kept(run.FINDINGS / target)
    assert inputs
    for path in inputs:
        try:
            properties.TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(FUZZ)}: {error!r}") from error


@each_target
@given(data=st.binary(max_size=400) | datagrams())
def test_any_octets_keep_the_properties(target: str, data: bytes) -> None:
    properties.TARGETS[target](data)


@each_target
def test_changed_seeds_keep_the_properties(target: str) -> None:
    seeds = [path.read_bytes() for path in run.kept(run.CORPUS / target)]
    executions, failing = run.mutate(properties.TARGETS[target], seeds, 0.1, random.Random(1))
    assert executions > 0
    assert failing is None


@each_target
def test_the_committed_corpus_is_what_the_golden_datagrams_make(target: str) -> None:
    committed = {path.name: path.read_bytes() for path in run.kept(run.CORPUS / target)}
    assert committed == make_corpus.corpus()[target]


@each_target
def test_a_broken_decoder_is_noticed(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(data: bytes, *, strict: bool = False) -> typing.NoReturn:
        raise IndexError("index out of range")

    monkeypatch.setattr(wire, "decode", broken)
    seeds = [path.read_bytes() for path in run.kept(run.CORPUS / target)]
    _, failing = run.mutate(properties.TARGETS[target], seeds, 10.0, random.Random(1))
    assert failing is not None
    assert "IndexError: index out of range" in capsys.readouterr().err
    with pytest.raises(IndexError):
        properties.TARGETS[target](failing)


def test_a_finding_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def easily_upset(data: bytes) -> None:
        assert data == b""

    monkeypatch.setitem(run.TARGETS, "decode_is_total", easily_upset)
    monkeypatch.setattr(run, "FINDINGS", tmp_path)
    monkeypatch.setattr(run, "coverage_of", lambda name, scratch: "0.0 %")  # takes a process and a second
    assert run.main(["--dumb", "--seconds", "5", "decode_is_total"]) == 1
    [finding] = run.kept(tmp_path / "decode_is_total")
    assert finding.read_bytes() != b""
    assert f"1 finding: {finding.name}" in capsys.readouterr().out
