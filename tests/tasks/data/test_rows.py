"""What is known of rows before they are used: their identity, and what calibration text must not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plr.core.specs import CalibrationKnobs
from plr.errors import LeakageError
from plr.tasks.data.rows import calibration_text, resolve_file, resolve_task


@pytest.mark.parametrize("name", ["train.csv", "train.CSV", "Train.TSV"])
def test_every_file_that_is_read_counts(name: str, tmp_path: Path) -> None:
    between = "\t" if name.lower().endswith("tsv") else ","
    rows = [f"text {i}{between}{i % 2}" for i in range(40)]
    found = []
    for last in (rows[-1], f"another{between}1"):
        (tmp_path / name).write_text("\n".join([f"text{between}label", *rows[:-1], last]) + "\n")
        found.append(resolve_task("text_classification", data=str(tmp_path)).identity())
    assert found[0] != found[1]


def test_calibration_text_is_searched_for_what_the_task_calls_a_question(tmp_path: Path) -> None:
    """Of an arithmetic row that is its instruction, without the words around it."""
    asked = "Ann has 3 red apples and buys 4 green ones at the market: how many has she?"
    (tmp_path / "test.json").write_text(
        json.dumps([{"instruction": asked, "input": "", "output": "7", "answer": "7.0"}])
    )
    (tmp_path / "texts.txt").write_text(f"A story.\n\nOnce upon a time. {asked} Seven.\n\nAnother story.\n")
    guard = resolve_task("svamp", data=str(tmp_path / "test.json"))
    with pytest.raises(LeakageError, match="1 of 3 calibration texts"):
        calibration_text(resolve_file(str(tmp_path / "texts.txt"), CalibrationKnobs(samples=3), guard=guard))
