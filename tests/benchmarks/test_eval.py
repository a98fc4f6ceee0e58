"""The benchmark of greedy answers: its verdicts, its check of answers that differ, and a quick run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import eval as bench_eval
from bench.__main__ import main

ROOT = Path(__file__).parents[2]


def measured(different: int = 0) -> dict[str, Any]:
    seconds = {"ours": [1.0, 2.0, 1.0], "16": [5.0], "64": [4.0, 8.0, 5.0]}
    return {
        "wall": seconds,
        "cpu": seconds,
        "docs": 10,
        "answers": {"equal": 10 - different, "near_ties": 0, "different": different},
        "tokens": {"generated": 500},
        "floor": {"seconds": 0.5},
    }


def test_the_peer_is_the_batch_that_ran_all_rounds_and_the_ratio_is_paired() -> None:
    found = bench_eval.compare(measured(), 4.0)
    assert found["peer"] == "64"
    assert (found["ratio"]["ratio"], found["ratio"]["lo"], found["ratio"]["hi"]) == (4.0, 4.0, 5.0)
    assert found["goal_met"]
    assert (found["tokens_per_second"], found["peer_tokens_per_second"], found["floor_share"]) == (500, 100, 0.5)


def test_a_goal_is_missed_below_it_and_no_setting_without_a_goal_meets_one() -> None:
    assert not bench_eval.compare(measured(), 4.5)["goal_met"]
    assert not bench_eval.compare(measured(), None)["goal_met"]


def test_no_ratio_where_answers_differ_without_a_near_tie() -> None:
    found = bench_eval.compare(measured(different=1), 4.0)
    assert not found["quality_ok"]
    assert not found["goal_met"]
    assert found["ratio"] is found["cpu_ratio"] is None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bench/peers/run_eval.py`, which runs `main` when it is executed, as a module."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "peers"))
    monkeypatch.setattr(sys, "argv", ["run_eval.py"])
    return importlib.import_module("run_eval")


class Logits:
    """A model that gives the last token of every text the same logits, and counts its calls."""

    def __init__(self, logits: list[float]) -> None:
        self.logits, self.texts = torch.tensor([[logits]]), []

    def __call__(self, input_ids: torch.Tensor) -> Any:
        self.texts.append(input_ids.tolist()[0])
        return SimpleNamespace(logits=self.logits)


def answers(texts: list[str], ids: list[list[int]]) -> Any:
    return SimpleNamespace(texts=texts, ids=ids, prompts=[(7, 8)] * len(texts))


@pytest.mark.parametrize(
    ("logits", "near_ties", "gap"),
    [([0.0, 1.0, 0.996], 1, 0.004), ([0.0, 1.0, 0.9], 0, 0.1), ([1.5, 1.0, 1.0], 0, 0.5)],
)
def test_a_difference_is_allowed_where_the_model_itself_nearly_ties(
    script: Any, logits: list[float], near_ties: int, gap: float
) -> None:
    model = Logits(logits)
    found = script.compare(
        model,
        0.005,
        answers(["same", "a b", "c"], [[1], [0, 1], [1]]),
        answers(["same", "a c", "c"], [[1], [0, 2], [2]]),
    )
    assert model.texts == [[7, 8, 0]], "asked once, at the first token that differs"
    assert (found["equal"], found["near_ties"], found["different"]) == (2, near_ties, 1 - near_ties)
    assert found["gaps"] == [pytest.approx(gap, abs=1e-6)]
    assert [e["doc"] for e in found["examples"]] == [1] * (1 - near_ties)


def test_equal_tokens_cut_to_different_texts_are_different(script: Any) -> None:
    model = Logits([0.0, 1.0])
    found = script.compare(model, 0.005, answers(["a"], [[1]]), answers(["ab"], [[1, 1]]))
    assert (found["near_ties"], found["different"], model.texts) == (0, 1, [])


def test_shared_tokens_leave_every_prompt_its_last(script: Any) -> None:
    assert script.shared([(1, 2, 3), (1, 2, 4)]) == 2
    assert script.shared([(1, 2), (1, 2, 4)]) == 1
    assert script.shared([(1, 2, 3)]) == 0


def test_wrong_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert main(["eval", "--model", str(tmp_path)]) == 1
    assert "there is no config.json in it" in capsys.readouterr().err
    assert main(["eval", "--shots", "none"]) == 1
    assert "name one number at least" in capsys.readouterr().err
    monkeypatch.setattr(bench_eval.importlib.util, "find_spec", lambda name: None)
    assert main(["eval"]) == 1
    assert "pip install -c constraints.txt lm_eval" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_run_on_the_embedded_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    options = ["--docs", "6", "--max-new-tokens", "12", "--shots", "0,2", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench", "eval", "--quick", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["quality_ok"]
    assert list(line["by_shots"]) == ["0", "2"]
    assert line["by_shots"]["2"]["answers"]["different"] == 0
    assert line["by_shots"]["2"]["tokens"]["shared"] > line["by_shots"]["0"]["tokens"]["shared"]
    assert {"ratio", "lo", "hi", "n", "interval", "floor_share", "goals_met", "load", "cpu", "threads"} <= line.keys()
    assert "lm_eval" in line["versions"]
