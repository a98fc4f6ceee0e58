"""The benchmark of scoring: what it scores, what it counts, and the line it ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import __main__ as program
from bench.harness import BenchError
from bench.scoring import answers
from bench.scoring_parts import PARTS
from plr.tasks import Example, TaskData, tasks


def test_a_quick_run_on_the_embedded_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    words = ["scoring", "--quick", "--task-rows", "40", "--threads", "1", "--json", "--out", str(tmp_path)]
    assert program.main(words) == 0
    assert os.sched_getaffinity(0) == cores
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["name"] == "scoring"
    assert line["quality_ok"] is True
    assert line["lo"] <= line["ratio"] <= line["hi"]
    assert line["floor_share"] > 0
    gold, shuffled, corrupted = (line["sets"][name] for name in ("gold", "shuffled", "corrupted"))
    assert (gold["n"], gold["exec_match"], gold["normalized"], gold["differ"]) == (40, 1.0, 1.0, 0)
    assert shuffled["exec_match"] < 0.1
    assert shuffled["normalized"] <= corrupted["normalized"] < 1
    for one in (gold, shuffled, corrupted):
        assert set(one["parts_ms"]) == set(PARTS)
        assert min(one["parts_ms"].values()) >= 0
        assert one["per_second"] > 0
    assert (tmp_path / "scoring.md").is_file()


def test_answers_are_gold_the_gold_of_another_row_and_broken_gold() -> None:
    examples = tasks.get("tiny_sql").load("test", TaskData(limit=60)).examples
    found = answers(examples)
    assert found == answers(examples)
    targets = [example.target for example in examples]
    assert found["gold"] == targets
    for name in ("shuffled", "corrupted"):
        assert sum(a != b for a, b in zip(found[name], targets, strict=True)) >= 0.8 * len(targets)
    with pytest.raises(BenchError, match="all rows have one answer"):
        answers([Example("test-0", {}, "p", " SELECT 1")] * 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "/no/such/folder"], "there is no data at"),
        (["--threads", "4096"], "this process may use"),
        (["--task-rows", "3", "--rounds", "9"], "cannot be cut into 9 rounds"),
    ],
)
def test_what_cannot_be_run_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["scoring", *words]) == 1
    assert said in capsys.readouterr().err
