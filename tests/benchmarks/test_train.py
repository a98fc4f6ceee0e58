"""The benchmark of training: its verdicts, its refusals, and a quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.train import apart

ROOT = Path(__file__).parents[2]


def test_the_farthest_loss_counts() -> None:
    assert apart([[2.0, 1.0], [3.0, 1.0]], [[2.0, 1.25], [3.0, 1.0]]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peers", "trl"], "--peers trl: some of transformers, gptqmodel, nf4"),
        (["--peers", "gptqmodel"], "it runs on a base below 16 bits"),
        (["--batch", "8", "--micro", "3"], "--micro 3 does not divide --batch 8"),
        (["--model", "nowhere"], "--model nowhere: there is no config.json in it"),
    ],
)
def test_a_comparison_that_is_none_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_quick_run_on_the_embedded_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "train", "--quick", "--json", "--steps", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["quality_ok"]
    assert line["peers"]["transformers"]["apart"] < 1e-4
    assert 0 < line["floor_share"] <= 1
    assert {
        "ratio",
        "lo",
        "hi",
        "n",
        "interval",
        "load",
        "cpu",
        "threads",
        "versions",
        "commit",
        "settings",
    } <= line.keys()
