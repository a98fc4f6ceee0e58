"""Prompts, metrics and data of the arithmetic suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_data import both

from plr.errors import DataError
from plr.tasks import Example, Response, TaskData, tasks

SIZES = {
    "multiarith": ("MultiArith", 600),
    "gsm8k_arithmetic": ("gsm8k", 1319),
    "addsub": ("AddSub", 395),
    "aqua": ("AQuA", 254),
    "singleeq": ("SingleEq", 508),
    "svamp": ("SVAMP", 1000),
    "mawps": ("mawps", 238),
}
NUMBER = {"instruction": " How many? ", "input": "", "output": "wrong", "answer": "18.0"}
OPTION = {"instruction": "Which? Answer Choices: (A) 1 (B) 2", "answer": "B"}


def _values(name: str, row: dict[str, Any], text: str, ended: bool = True) -> dict[str, float | None]:
    task = tasks.get(name)
    scores = task.score(Example("test-0", row, task.prompt(row), task.target(row)), Response(text, ended))
    assert tuple(scores) == task.metrics
    return {metric.removeprefix("exact_match,"): score.value for metric, score in scores.items()}


def test_one_template_for_training_and_tests() -> None:
    expected = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHow many?\n\n### Response:\n"
    )
    assert tasks.get("math10k").prompt(NUMBER) == tasks.get("svamp").prompt(NUMBER) == expected
    assert "### Input:\nof these\n\n### Response:\n" in tasks.get("math10k").prompt(NUMBER | {"input": "of these"})


def test_targets() -> None:
    assert (
        tasks.get("math10k").target({**NUMBER, "output": "\n6*3 = 18\nThe answer is 18."})
        == "6*3 = 18\nThe answer is 18."
    )
    assert tasks.get("svamp").target(NUMBER) == "The answer is 18."
    assert tasks.get("aqua").target(OPTION) == "The answer is B."


@pytest.mark.parametrize("name", ["svamp", "math10k"])
@pytest.mark.parametrize(
    ("text", "ended", "first", "suite", "strict"),
    [
        ("6*3 = 18. The answer is 18.", True, 1, 1, 1),
        ("6*3 = 18. The answer is 18.\n", True, 1, 1, 1),
        ("The answer is 18 dollars.", True, 1, 1, 1),
        ("6*3 = 18", True, 1, 1, 1),
        ("The answer is 18.", False, 1, 1, 0),
        ("The answer is 18.\n\n### Instruction:\nWhat is 7?", True, 1, 0, 0),
        ("The answer is 18.\n\n### Response:\nThe answer is 7.", True, 1, 1, 0),
        ("The answer is 18. The answer is 19.", True, 1, 0, 0),
        ("The answer is 17. The answer is 18.", True, 0, 1, 0),
        ("nothing", True, 0, 0, 0),
    ],
)
def test_metrics_of_a_number(name: str, text: str, ended: bool, first: int, suite: int, strict: int) -> None:
    found = _values(name, NUMBER, text, ended)
    assert [found[key] for key in ("first-answer", "llm-adapters", "strict")] == [first, suite, strict]


@pytest.mark.parametrize(
    ("text", "ended", "fixed", "suite", "strict"),
    [
        ("2 fits. The answer is B.", True, 1, 1, 1),
        ("Answer is (B)", True, 1, 0, 1),
        ("Below 2. The answer is B", False, 1, 1, 0),
        ("The answer is B.\n\n### Instruction:\nThe answer is A.", True, 1, 1, 0),
        ("The answer is B. The answer is A.", True, 0, 1, 0),
        ("The answer is C", True, 0, 0, 0),
    ],
)
def test_metrics_of_an_option(text: str, ended: bool, fixed: int, suite: int, strict: int) -> None:
    found = _values("aqua", OPTION, text, ended)
    assert [found[key] for key in ("fixed", "llm-adapters", "strict")] == [fixed, suite, strict]
    assert _values("math10k", {**OPTION, "output": "o"}, text, ended)["llm-adapters"] == suite


@pytest.mark.parametrize("name", [*SIZES, "math10k"])
def test_stopping_at_the_stop_string_changes_no_score(name: str) -> None:
    row = (OPTION if name == "aqua" else NUMBER) | {"output": "o"}
    for start in ("The answer is 18.", "18 or B", "A"):
        full = f"{start}\n\n### Response:\nThe answer is B 7."
        cut = full.index("### Response:") + len("### Response:")
        assert _values(name, row, full[:cut], False) == _values(name, row, full, True)


def test_rows_that_are_not_of_the_task(tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    for name, answer, message in (
        ("svamp", "B", "is no number"),
        ("aqua", "5", "none of A, B, C, D, E"),
        ("math10k", "x", "neither"),
    ):
        file.write_text(json.dumps([{**NUMBER, "answer": answer}]))
        with pytest.raises(DataError, match=message):
            tasks.get(name).load("test", TaskData(path=str(tmp_path)))


def test_without_data_the_message_says_where_it_is() -> None:
    with pytest.raises(DataError, match=r"dataset/AQuA/test\.json") as caught:
        tasks.get("aqua").load("test")
    assert "--data" in str(caught.value)


def test_math10k_gives_a_validation_cut(tmp_path: Path) -> None:
    rows = [{**NUMBER, "instruction": f"What is {i}?", "answer": str(i)} for i in range(40)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    task, data = tasks.get("math10k"), TaskData(path=str(tmp_path))
    assert task.splits(data) == ("train", "validation")
    train, validation = ({e.id for e in task.load(split, data).examples} for split in ("train", "validation"))
    assert (len(train), len(validation), train & validation) == (36, 4, set())


@pytest.mark.parametrize(
    ("folder", "name", "size"),
    [
        case
        for name, (folder, size) in SIZES.items()
        for case in both(
            f"llm_adapters/test/{folder}", samples=(name, 40 if name == "aqua" else 30), sets=(name, size), label=name
        )
    ],
)
def test_gold_is_right_on_every_row(folder: Path, name: str, size: int) -> None:
    task = tasks.get(name)
    split = task.load("test", TaskData(path=str(folder)))
    assert split.report.kept == size
    wrong = [e.id for e in split.examples if task.score(e, Response(e.target, True))[task.strict].value != 1.0]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "least", "right"),
    both("llm_adapters/train/math10k_proxy.json", samples=(48, 1.0), sets=(6001, 0.998)),
)
def test_training_targets_score_as_right(file: Path, least: int, right: float) -> None:
    task = tasks.get("math10k")
    split = task.load("train", TaskData(path=str(file)))
    assert len(split.examples) >= least
    values = [task.score(e, Response(e.target, True))[task.strict].value for e in split.examples]
    assert sum(v == 1.0 for v in values) >= right * len(values)
