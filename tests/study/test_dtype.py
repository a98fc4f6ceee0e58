"""The dtype of a study: one for all that it computes, resolved when it is planned, and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plr.cli.root import app
from plr.core import precision
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Train
from plr.engines import closure
from plr.study import Study, study_config

STUDY = {"name": "s", "preset": "tiny", "train_bits": [16, 4], "restore_bits": [16], "baselines": True}


def study(**runtime: Any) -> Study:
    return Study(study_config({**STUDY, "runtime": {"device": "cpu", **runtime}}))


def dtypes(of: Study) -> set[str | None]:
    steps = closure([cell.step for cell in of.cells])
    return {step.dtype for step in steps if isinstance(step, Train | Evaluate)}


@pytest.mark.parametrize(("has", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_resolved_once_for_the_whole_study(has: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has)
    planned = study()
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: not has)
    assert planned.dtype == dtype
    assert dtypes(planned) == {dtype}


def test_a_dtype_that_is_named_is_taken() -> None:
    assert dtypes(study(dtype="float16")) == {"float16"}
    config = study(dtype="float16").config
    assert dtypes(Study(config, runtime=Runtime(dtype="float32"))) == {"float32"}


def test_the_dtype_alone_of_how_a_study_is_run_makes_other_cells() -> None:
    def fingerprints(**runtime: Any) -> set[str]:
        return {cell.step.fingerprint for cell in study(**runtime).cells}

    same, other = fingerprints(dtype="float32", workers=2, slots=3, threads=1), fingerprints(dtype="bfloat16")
    assert same == fingerprints(dtype="float32")
    assert same.isdisjoint(other)


def test_a_dry_run_says_which(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps({**STUDY, "runtime": {"dtype": "float16"}}))
    settings = {"PLR_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    plan = json.loads(CliRunner().invoke(app, ["grid", str(file), "--dry-run", "--json"], env=settings).stdout)
    assert plan["dtype"] == "float16"
    for step in plan["steps"]:
        assert step["dtype"] == (None if step["kind"] == "base" else "float16")
    shown = CliRunner().invoke(app, ["grid", str(file), "--dry-run"], env=settings).stdout
    assert "evaluations to run in float16" in shown
