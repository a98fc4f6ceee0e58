"""Gold answers are checked as predictions before any model is loaded, by every command that trains or scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.errors import DataError
from plr.tasks import Example, tasks
from plr.tasks.gold import judge_gold, require_gold

SQL = tasks.get("sql_create_context")
MATH = tasks.get("gsm8k")


def math_rows(*answers: str) -> list[Example]:
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    return [Example(f"test-{i}", row, MATH.prompt(row), MATH.target(row)) for i, row in enumerate(rows)]


def test_wrong_gold_is_named_with_its_row_and_the_reason() -> None:
    rows = math_rows("#### 4", "#### 3/4", "#### 12 apples", "#### 2^5")
    gold = judge_gold(MATH, rows)
    assert (gold.total, len(gold.wrong), gold.unscored) == (4, 2, [])
    with pytest.raises(DataError, match=r"2 of 4 gold answers of gsm8k .* test-1 .*gold '3/4'"):
        require_gold(MATH, rows)
    require_gold(MATH, math_rows("#### 4", "#### 12 apples"))


def test_gold_that_runs_on_is_cut() -> None:
    row = {"question": "?", "context": "CREATE TABLE t (a INT)", "answer": "SELECT a FROM t; SELECT 2"}
    gold = judge_gold(SQL, [Example("test-0", row, SQL.prompt(row), SQL.target(row))])
    assert (len(gold.wrong), gold.cut) == (1, 1)


def test_gold_that_cannot_be_scored_at_all_is_refused(tmp_path: Path) -> None:
    from plr.tasks import find_task

    (tmp_path / "own.yaml").write_text("prompt: 'Q: {q} A:'\ntarget: ' {a}'\nmetric: numeric_match\n")
    task = find_task(str(tmp_path / "own.yaml"))
    with pytest.raises(DataError, match=r"2 of 2 gold answers .* cannot be scored by numeric_match"):
        require_gold(task, [Example(f"test-{i}", {"q": "?", "a": "many"}, "Q: ? A:", " many") for i in range(2)])


@pytest.mark.parametrize("command", ["train", "eval", "score", "grid"])
def test_commands_refuse_it_before_work(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLR_HOME", str(tmp_path / "store"))
    data = tmp_path / "data"
    data.mkdir()
    for split, start in {"train": 0, "validation": 40, "test": 60}.items():
        rows: list[dict[str, Any]] = [{"question": f"{start + i}?", "answer": f"so\n#### {i}/7"} for i in range(20)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "predictions.jsonl").write_text(json.dumps({"doc_id": 0, "response": "#### 0/7"}) + "\n")
    study = {
        "preset": "tiny",
        "train_bits": [16],
        "restore_bits": [16],
        "tasks": [{"name": "gsm8k", "data": str(data)}],
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    words = {
        "train": ["train", "--bits", "4", "--task", "gsm8k", "--data", str(data)],
        "eval": ["eval", "--task", "gsm8k", "--data", str(data)],
        "score": ["score", "gsm8k", "predictions.jsonl", "--data", str(data)],
        "grid": ["grid", "study.yaml"],
    }
    if command == "eval":
        assert run(monkeypatch, capsys, "quantize", "--bits", "8", "--method", "rtn")[0] == 0
    made = len(list((tmp_path / "store").glob("*/*/manifest.json")))
    code, out, err = run(monkeypatch, capsys, *words[command])
    assert code == 2, out + err
    assert "gold answers of gsm8k are not right by exact_match,first-answer" in err
    assert len(list((tmp_path / "store").glob("*/*/manifest.json"))) == made
