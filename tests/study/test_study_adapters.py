"""How a study resolves adapters: their learning rates, their bases, and what they are scored on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plr.adapters import adapters
from plr.core.specs import Restore
from plr.errors import ConfigError, LeakageError
from plr.study import Study, study_config
from plr.tasks.data.rows import guard_other, load_split, resolve_task


def study(**settings: Any) -> Study:
    value = {"name": "s", "preset": "tiny", "train_bits": [4], "restore_bits": [4, 16], **settings}
    return Study(study_config(value))


def rates(work: Study) -> dict[str, float]:
    return {cell.adapter: target(cell).adapter.train.learning_rate for cell in work.cells}


def target(cell: Any) -> Restore:
    assert isinstance(cell.step.target, Restore)
    return cell.step.target


def test_a_rate_of_the_preset_is_loras_and_a_method_has_its_factor() -> None:
    factor = adapters.get("ia3").properties.learning_rate
    assert factor != 1
    assert rates(study(adapters=["lora", "ia3"])) == {"lora": 6e-3, "ia3": pytest.approx(6e-3 * factor, rel=1e-5)}


@pytest.mark.parametrize("how", ["file", "option"])
def test_a_rate_that_is_named_is_taken_as_it_is(how: str) -> None:
    value = {"name": "s", "preset": "tiny", "adapters": ["lora", "ia3"]}
    if how == "file":
        config = study_config({**value, "train": {"learning_rate": 1e-3}})
    else:
        config = study_config(value, overrides=("train.learning_rate=1e-3",))
    assert rates(Study(config)) == {"lora": 1e-3, "ia3": 1e-3}


def test_an_adapter_has_its_own_training_and_bases() -> None:
    work = study(adapters=["lora", {"method": "ia3", "train": {"learning_rate": 0.5, "epochs": 3}, "train_bits": [16]}])
    cells = {(cell.adapter, cell.train_bits, cell.restore_bits) for cell in work.cells}
    assert cells == {("lora", 4, 4), ("lora", 4, 16), ("ia3", 16, 16)}
    trained = target(work.cells[-1]).adapter.train
    assert (trained.learning_rate, trained.epochs, trained.batch_size) == (0.5, 3, 16)


def test_one_training_is_scored_on_several_tasks() -> None:
    work = study(tasks=[{"name": "tiny_math", "tests": ["tiny_sql", {"name": "tiny_math", "evaluate": {"limit": 7}}]}])
    assert [cell.task for cell in work.cells] == ["tiny_sql", "tiny_math"] * 2
    assert len({target(cell).adapter.fingerprint for cell in work.cells}) == 1
    assert {cell.task: cell.step.limit for cell in work.cells} == {"tiny_sql": 300, "tiny_math": 7}
    assert {cell.step.task.name for cell in work.cells if cell.task == "tiny_sql"} == {"tiny_sql"}


def test_results_of_two_trainings_must_not_share_a_name() -> None:
    with pytest.raises(ConfigError, match="tiny_sql is scored twice"):
        study(tasks=[{"name": "tiny_math", "tests": ["tiny_sql"]}, "tiny_sql"])


def test_rows_that_another_task_was_trained_on_are_refused(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"What is {i} and {i}?", "output": f"It is {2 * i}.", "answer": str(2 * i)} for i in range(9)
    ]
    for name, part in {"train": rows[:6], "other": rows[5:]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ("train.json" if name == "train" else "test.json")).write_text(json.dumps(part))
    trained = resolve_task("math10k", data=str(tmp_path / "train"))
    scored = resolve_task("addsub", data=str(tmp_path / "other"))
    found = load_split(scored, "test").examples
    with pytest.raises(LeakageError, match="1 of"):
        guard_other(trained, scored, found)
    guard_other(trained, scored, found[1:])
