"""Unit and direction go from the task into its results, so that a store is reported rightly where the task is not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.evaluation.predictions import read_predictions
from plr.evaluation.rescore import rescore
from plr.lab import Lab
from plr.report import table_md
from plr.scoring import Metric, Score
from plr.stats import mean_interval
from plr.study.cells import Cell, cell_result
from plr.tasks import Example, Response, tasks
from plr.tasks.data.rows import resolve_task
from plr.tasks.library.tiny import TinyMath


class Timed(TinyMath):
    """A task as somebody else might write it: two metrics declared, one forgotten."""

    name = "timed"
    metrics = ("bleu", "latency_seconds,cpu", "oddity", "exact_match,first-answer", "ended")
    primary, strict = "bleu", "exact_match,strict"
    declared = (Metric("bleu", digits=2), Metric("latency_seconds", "seconds", higher_is_better=False))

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        right = super().scores(example, response)["exact_match,first-answer"]
        return {
            "bleu": Score(40.0, "", "of 100"),
            "latency_seconds,cpu": Score(1.0, "", "a second"),
            "oddity": Score(0.5, "", "odd"),
            "exact_match,first-answer": right,
        }

    def prompt(self, row: Mapping[str, Any]) -> str:
        return "timed " + super().prompt(row)


@pytest.fixture
def timed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Timed:
    task = Timed()
    monkeypatch.setitem(tasks._items, "timed", task)
    return task


def test_a_report_needs_no_task(timed: Timed, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(home)
    step = lab.result(lab.base(bits=16), "timed", limit=3, max_new_tokens=4)
    artifact = lab.make(step)
    document = json.loads(next(artifact.path.glob("results_*.json")).read_text())
    assert document["higher_is_better"]["timed"] == {
        "bleu": True, "latency_seconds": False, "oddity": True, "exact_match": True, "ended": True, "answer_loss": False,
        "p_gold": True,
    }  # fmt: skip
    monkeypatch.delitem(tasks._items, "timed")
    text = table_md([cell_result(Cell("tiny", "timed", "none", 16, 16, "keep", 0, step), artifact, {})])
    assert "### `bleu`, the primary metric\n" in text
    assert "| timed | tiny | 40.00 |" in text
    assert "### `latency_seconds,cpu`, in seconds (lower is better)" in text
    assert "| timed | tiny | 1.0000 |" in text
    assert "### `oddity`, a plain number: its task declares no unit" in text
    assert "### `exact_match,first-answer`, in percent" in text
    assert "### `answer_loss`, nats per token (lower is better)" in text


def test_scored_predictions_carry_the_unit(timed: Timed, tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({"doc_id": i, "response": "#### 1", "ended": True}) + "\n" for i in range(3)))
    scored = rescore(resolve_task("timed"), "test", read_predictions(file)).metrics
    assert (scored["latency_seconds,cpu"]["unit"], scored["latency_seconds,cpu"]["higher_is_better"]) == (
        "seconds",
        False,
    )
    assert "unit" not in scored["oddity"]
    # seconds that are all 1 are no shares of right answers
    assert (scored["latency_seconds,cpu"]["low"], scored["latency_seconds,cpu"]["high"]) == mean_interval([1.0] * 3)


def test_the_commands_name_the_unit(
    timed: Timed, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "tasks", "show", "timed")
    assert code == 0, err
    shown = " ".join(out.split())
    assert (
        "latency_seconds,cpu, in seconds (lower is better); oddity, a plain number: its task declares no unit" in shown
    )
    base = str(Lab(home).quantize(bits=8, overrides=["quantize.method=rtn"]).path)
    code, out, err = run(monkeypatch, capsys, "eval", base, "--task", "timed", "--limit", "2", "--max-new-tokens", "4")
    assert code == 0, err
    shown = " ".join(out.split())
    assert "(n = 2), in seconds (lower is better)" in shown
