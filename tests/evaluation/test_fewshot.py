"""Few-shot prompts and the protocol of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plr import Lab
from plr.core.specs import Evaluate
from plr.errors import ConfigError, UsageError
from plr.evaluation.cell import open_cell
from plr.study.file import study_config
from plr.tasks import task_of, tasks
from plr.tasks.data.rows import load_split


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


def step_of(lab: Lab, task: str = "tiny_math", **settings: Any) -> Evaluate:
    return lab.result(lab.base(bits=16), task, limit=4, max_new_tokens=12, **settings)


def test_first_rows_of_train_stand_before_the_question(lab: Lab) -> None:
    step = step_of(lab, num_fewshot=2)
    first, second = load_split(step.task, "train").examples[:2]
    shots = open_cell(step).shots
    assert shots.ids == [first.id, second.id] == ["train-0", "train-1"]
    assert shots.context == f"{first.prompt}{first.target}\n\n{second.prompt}{second.target}\n\n"


def test_a_seed_draws_them_and_a_larger_number_draws_more_of_the_same(lab: Lab) -> None:
    few, more = (set(open_cell(step_of(lab, num_fewshot=n, fewshot_seed=3)).shots.ids) for n in (3, 6))
    assert len(few) == 3
    assert few < more
    assert few != set(open_cell(step_of(lab, num_fewshot=3, fewshot_seed=4)).shots.ids)


def test_a_row_that_is_scored_is_no_example(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits that were published as they are may share rows: such a row of train is passed over."""
    monkeypatch.setattr(type(tasks.get("gsm8k")), "official_splits", True)
    rows = [{"question": f"How much is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(30)]
    for name, part in (("train", rows[:20]), ("test", [rows[0], *rows[20:]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    step = step_of(lab, "gsm8k", data=str(tmp_path), num_fewshot=3)
    assert "train-0" not in open_cell(step).shots.ids
    assert len(open_cell(step).shots.ids) == 3


def test_a_train_split_too_small_to_cut_validation_from_gives_its_rows(lab: Lab, tmp_path: Path) -> None:
    for split, numbers in (("train", range(3)), ("test", range(10, 12))):
        rows = [{"question": f"How much is {i} and {i}?", "answer": f"{2 * i}\n#### {2 * i}"} for i in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_cell(step_of(lab, "gsm8k", data=str(tmp_path), num_fewshot=3)).shots.ids == [
        "train-0",
        "train-1",
        "train-2",
    ]
    with pytest.raises(UsageError, match="num_fewshot is 4, and the train split of gsm8k has 3 rows"):
        open_cell(step_of(lab, "gsm8k", data=str(tmp_path), num_fewshot=4))


def test_too_many_examples_and_none_to_take(lab: Lab, tmp_path: Path) -> None:
    row = {"question": "How much is 1 and 1?", "answer": "2\n#### 2"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match="has no train split"):
        open_cell(step_of(lab, "gsm8k", data=str(tmp_path), num_fewshot=1))
    with pytest.raises(UsageError, match="rows to take"):
        open_cell(step_of(lab, num_fewshot=10**6))


def test_a_head_takes_no_examples(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"word {i}\t{i % 2}\n" for i in range(40)))
    with pytest.raises(UsageError, match="answered by a classification head"):
        step_of(lab, "text_classification", data=str(tmp_path), num_fewshot=1)


def test_settings_that_exclude_each_other_are_a_message(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="num_fewshot is 0"):
        step_of(lab, fewshot_seed=1)
    config = study_config({"name": "s", "train_bits": [16], "restore_bits": [16], "evaluate": {"fewshot_seed": 1}})
    with pytest.raises(ConfigError, match="num_fewshot is 0"):
        lab.grid(config)


def test_protocol_tells_another_how_to_ask_the_same(lab: Lab) -> None:
    result = lab.make(step_of(lab, num_fewshot=2))
    protocol = result.metrics["protocol"]
    document = json.loads(next(result.path.glob("results_*.json")).read_text())
    assert document["protocol"] == protocol
    assert document["n-shot"] == {"tiny_math": 2}
    assert document["configs"]["tiny_math"]["num_fewshot"] == 2
    samples = [json.loads(line) for line in next(result.path.glob("samples_*.jsonl")).read_text().splitlines()]
    prompts = [sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples]
    context = open_cell(result.step).shots.context
    assert all(prompt.startswith(context) and len(prompt) > len(context) for prompt in prompts)
    assert protocol["first_prompt"] == prompts[0]
    assert protocol["prompts_sha256"] == hashlib.sha256("\x00".join(prompts).encode()).hexdigest()
    assert samples[0]["prompt_hash"] == hashlib.sha256(prompts[0].encode()).hexdigest()
    assert protocol["fewshot"]["ids"] == ["train-0", "train-1"]
    assert protocol["generation"] == {
        "until": list(task_of(result.step.task).stop),
        "do_sample": False,
        "max_gen_toks": 12,
    }
    assert protocol["engine"] == {"name": "hf", "dtype": "float32"}
    ended = sum(sample["ended"] for sample in samples)
    stopped = sum(sample["stopped"] is not None for sample in samples)
    assert protocol["answers_cut"] == len(samples) - ended - stopped
    assert protocol["answers_stopped"] == stopped
    assert protocol["answer_tokens"] == sum(sample["tokens"] for sample in samples)
    assert protocol["prompts_cut"] == 0


def test_examples_change_the_answers_loss(lab: Lab) -> None:
    """The loss is measured behind the same examples that the answers are written behind."""
    bare, shown = (lab.make(step_of(lab, num_fewshot=n)).metrics["metrics"]["answer_loss"]["value"] for n in (0, 4))
    assert shown != pytest.approx(bare, rel=0.02)
