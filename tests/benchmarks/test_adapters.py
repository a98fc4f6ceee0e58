"""The benchmark of adapters: its verdicts, its naive peer, and a quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import adapters
from bench.__main__ import main

ROOT = Path(__file__).parents[2]


def steps(sparse: float, lora: float, dense_loss: float) -> dict[str, Any]:
    wall = {"sparse": [sparse] * 6, "lora": [lora] * 6, "dense": [3.0] * 6}
    return {"wall": wall, "cpu": wall, "losses": {"sparse": [2.0, 1.0], "lora": [9.0, 9.0], "dense": [2.0, dense_loss]}}


MEMORY = {"sparse": {"saved": 90, "lift": 40}, "lora": {"saved": 100, "lift": 50}, "dense": {"saved": 180, "lift": 80}}


def test_ratios_are_theirs_over_ours_and_memory_is_ours_over_theirs() -> None:
    found = adapters._compare(steps(2.0, 2.2, 1.0), MEMORY)
    assert found["quality_ok"]
    assert found["ratio"]["ratio"] == pytest.approx(1.1)
    assert found["dense_ratio"]["ratio"] == pytest.approx(1.5)
    assert (found["kept_over_lora"], found["lift_over_lora"], found["kept_over_dense"]) == (0.9, 0.8, 0.5)


def test_no_ratio_where_the_losses_are_not_those_of_the_dense_update() -> None:
    found = adapters._compare(steps(2.0, 2.2, 1.01), MEMORY)
    assert not found["quality_ok"]
    assert found["ratio"] is found["dense_ratio"] is None
    assert found["apart"] == pytest.approx(0.01 / 1.01)


def test_an_unknown_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "--models", "gpt9", "--out", str(tmp_path)]) == 1
    assert "--models gpt9: one of smollm2, minilm, roberta" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_run_on_the_smallest_model(tmp_path: Path) -> None:
    options = ["--models", "minilm", "--layers", "1", "--rounds", "2", "--tokens", "2x32", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench", "adapters", "--quick", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["quality_ok"]
    assert line["models"]["minilm"]["kept_over_lora"] < 1
    assert {"lo", "hi", "n", "interval", "load", "cpu", "threads", "versions", "commit", "settings"} <= line.keys()
