"""Every fault that the check names is put into data once, and found; sound data has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plr.tasks import TaskData, find_task
from plr.tasks.check import Report, check_task

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Report]:
    def run(rows: Rows, *, max_length: int | None = None, **task: Any) -> Report:
        for split, values in rows.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
        file = tmp_path / "own.yaml"
        keys = {"prompt": "Q: {q}\nA:", "target": " {a}", **task}
        file.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return check_task(find_task(str(file)), TaskData(path=str(tmp_path)), max_length=max_length)

    return run


def sound() -> Rows:
    """30 rows a split, each question once, three answers in turn."""
    starts = {"train": 0, "validation": 100, "test": 200}
    return {split: [{"q": f"question {s + i}", "a": "xyz"[i % 3]} for i in range(30)] for split, s in starts.items()}


def errors(report: Report, about: str) -> list[str]:
    return [finding.text for finding in report.findings if finding.level == "error" and finding.about == about]


def test_sound_data_has_no_errors(check: Callable[..., Report]) -> None:
    report = check(sound(), max_length=40)
    assert report.errors == 0
    assert report.splits == {"train": 30, "validation": 30, "test": 30}
    assert report.labels["test"] == {"x": 10, "y": 10, "z": 10}
    assert not [finding for finding in report.findings if finding.level == "remark"]


def test_leakage_between_splits(check: Callable[..., Report]) -> None:
    rows = sound()
    rows["test"][3] = dict(rows["train"][5], q="QUESTION   5")
    assert errors(check(rows), "leakage") == ["1 rows of test have a prompt that stands in train: train-5 = test-3"]


def test_repeats_and_contradictions_within_a_split_are_remarks(check: Callable[..., Report]) -> None:
    rows = sound()
    rows["train"][1] = {"q": "question 0", "a": "y"}
    report = check(rows)
    remarks = [finding.text for finding in report.findings if finding.level == "remark"]
    assert remarks == [
        "1 rows of train repeat a prompt of the same split",
        "1 rows have the prompt of another row and another target: train-0 and train-1",
    ]


def test_rows_without_a_target_are_counted_and_end_the_check(check: Callable[..., Report]) -> None:
    rows = sound()
    for i in (2, 4, 6):
        rows["train"][i]["a"] = " "
    report = check(rows)
    (text,) = errors(report, "rows")
    assert text.startswith("3 of 30 rows of train cannot be used: ")
    assert "line 3: the field 'a' is empty" in text
    assert report.splits == {}


def test_gold_that_its_own_boundary_cuts(check: Callable[..., Report]) -> None:
    rows = sound()
    rows["test"][0]["a"] = "first\nsecond"
    assert errors(check(rows), "targets")[0].startswith(
        "1 of 90 gold answers are not right by exact_match,first-answer"
    )
    assert "1 of them go on behind the place where an answer ends" in errors(check(rows), "targets")[0]
    assert errors(check(rows, boundary="text"), "targets") == []


@pytest.mark.parametrize("braces", ["{{q}}", "{{ q }}"])
def test_a_field_in_the_braces_of_another_language(check: Callable[..., Report], braces: str) -> None:
    remarks = [f.text for f in check(sound(), prompt=f"{{a}}? {braces}").findings if f.about == "prompt"]
    assert remarks == ["every row holds {q} as text: a field stands in single braces"]


def test_gold_that_the_metric_cannot_score(check: Callable[..., Report]) -> None:
    rows = sound()
    text = "90 of 90 gold answers cannot be scored by numeric_match,first-answer: train-0 (the gold answer holds no number)"
    assert errors(check(rows, metric="numeric_match"), "targets")[0].startswith(text)
    for row in rows["train"]:
        row["a"] = "5"
    (remark,) = [
        f for f in check(rows, metric="numeric_match").findings if f.about == "targets" and f.level == "remark"
    ]
    assert remark.text.startswith("60 of 90 gold answers cannot be scored")


def test_labels_that_the_metric_cannot_measure(check: Callable[..., Report]) -> None:
    head = {"kind": "classification", "texts": "{q}", "label": "a", "prompt": None, "target": None}
    assert check(sound(), **head, metric="acc").errors == 0
    rows = sound()
    rows["train"] = [{"q": f"train {i}", "a": f"label {i}"} for i in range(30)]
    assert errors(check(rows, **head), "labels")[1].startswith("30 rows of test have a label that no row of train has")
    assert "f1 is of two labels" in errors(check(sound(), **head, metric="f1"), "labels")[0]


def test_labels_unknown_to_train_and_skewed(check: Callable[..., Report]) -> None:
    rows = sound()
    rows["test"][0]["a"] = "w"
    report = check(rows)
    assert errors(report, "labels") == ["test: no row of train has the label 'w'"]
    rows = sound()
    for row in rows["train"][:29]:
        row["a"] = "x"
    skew = [f for f in check(rows).findings if f.about == "labels" and f.level == "remark"]
    assert "always answering 'x' scores 96.7 %" in skew[0].text


def test_free_answers_have_no_labels(check: Callable[..., Report]) -> None:
    rows = sound()
    for split in rows.values():
        for row in split:
            row["a"] = f"answer to {row['q']}"
    assert check(rows).labels == {}


def test_truncation_is_counted(check: Callable[..., Report]) -> None:
    rows = sound()
    rows["train"][7]["q"] = "long " * 30
    report = check(rows, max_length=40)
    assert errors(report, "length")[0].startswith("1 of 30 rows of train have more than 40 characters: train-7 (1")
    assert report.longest["test"] == len("Q: question 200\nA: x")


def test_a_missing_split_is_a_remark(check: Callable[..., Report]) -> None:
    rows = sound()
    del rows["test"]
    assert ("remark", "splits", "there is no test split") in check(rows).findings


def test_equal_rows_of_official_splits_are_a_remark(
    check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plr.tasks.file.from_file.FileGeneration.official_splits", True)
    rows = sound()
    rows["test"][3] = rows["train"][5]
    report = check(rows)
    assert report.errors == 0
    assert any(f.level == "remark" and f.about == "leakage" for f in report.findings)
