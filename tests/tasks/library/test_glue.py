"""GLUE: labels, splits and checks, on rows in the hub's form and on the real ones where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_data import both

from plr.errors import DataError, LeakageError
from plr.tasks import Classification, HeadSpec, Response, TaskData, tasks
from plr.tasks.data.hub import HubSource
from plr.tasks.data.rows import guarded_train, head_of, load_split, resolve_task, seen_in_train
from plr.tasks.library.glue import GLUE

REAL_ROWS = {  # train, scored, labels
    "cola": (8551, 1043, 2),
    "mrpc": (3668, 408, 2),
    "rte": (2490, 277, 2),
    "stsb": (5749, 1500, 1),
    "qnli": (9999, 5463, 2),
    "sst2": (67349, 872, 2),
}


def write(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> TaskData:
    for name, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return TaskData(path=str(folder))


def sentences(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"sentence": f"Sentence number {i} stands here.", "label": i % 2, "idx": i} for i in range(start, stop)]


def test_the_eight_tasks_and_mismatched_mnli() -> None:
    assert {name.removeprefix("glue_") for name in GLUE} == {
        "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "mnli_mismatched", "qnli", "rte",
    }  # fmt: skip
    assert {name: task.primary for name, task in GLUE.items() if task.primary != "acc"} == {
        "glue_cola": "mcc",
        "glue_stsb": "pearson",
    }
    for task in GLUE.values():
        assert task.hub is not None
        assert task.hub.id == "nyu-mll/glue"
        assert task.hub.config == task.name.removeprefix("glue_").removesuffix("_mismatched")


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("glue_cola", "validation"),
        ("glue_mnli", "validation_matched"),
        ("glue_mnli_mismatched", "validation_mismatched"),
    ],
)
def test_the_official_validation_split_is_the_test(
    name: str, theirs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load_dataset(*where: Any, split: str, **_: Any) -> list[dict[str, Any]]:
        asked.append((*where, split))
        return []

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(HubSource, "fetch", lambda self, *, offline: self.hub.id)
    hub = GLUE[name].hub
    assert hub is not None
    HubSource(name, hub, None).read("test")
    assert asked == [("nyu-mll/glue", hub.config, theirs)]
    rows = [{"sentence": f"a {i}", "premise": f"a {i}", "hypothesis": "b", "label": 1} for i in range(20)]
    data = write(tmp_path, {"train": rows, theirs: rows[:3], "test": [rows[0] | {"label": -1}]})
    assert tasks.get(name).splits(data) == ("train", "validation", "test")
    assert len(tasks.get(name).load("test", data).examples) == 3


def test_validation_is_cut_out_of_train_and_shares_no_text_with_it(tmp_path: Path) -> None:
    rows = sentences(0, 200)
    data = write(tmp_path, {"train": rows + rows[:20], "validation": sentences(200, 240)})
    task = GLUE["glue_cola"]
    train, validation = (task.load(split, data) for split in ("train", "validation"))
    assert len(train.examples) + len(validation.examples) == 220  # repeated rows of an official split are kept
    assert 0 < len(validation.examples) <= 22
    assert "taken as validation" in (validation.report.cut or "")
    assert not {row.prompt for row in train.examples} & {row.prompt for row in validation.examples}


def test_rows_in_both_official_splits_are_kept_and_counted(tmp_path: Path) -> None:
    write(tmp_path, {"train": sentences(0, 100), "validation": sentences(98, 110)})
    spec = resolve_task("glue_sst2", data=str(tmp_path))
    in_train = {row.row["idx"] for row in load_split(spec, "train").examples}
    guarded_train(spec)
    assert len(seen_in_train(spec, "test")) == len(in_train & {98, 99})
    assert seen_in_train(spec, "train") == frozenset()


def test_a_guard_still_refuses_what_no_task_published(tmp_path: Path) -> None:
    write(tmp_path, {"train": [{"text": f"row {i}", "label": str(i % 2)} for i in range(100)]})
    write(tmp_path, {"test": [{"text": "row 7", "label": "1"}], "validation": [{"text": "new", "label": "1"}]})
    with pytest.raises(LeakageError, match="1 of 100 rows"):
        guarded_train(resolve_task("text_classification", data=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("glue_cola", -1, "not published"),
        ("glue_cola", 2, "not one of 0 to 1"),
        ("glue_cola", 0.5, "not one of 0 to 1"),
        ("glue_cola", None, "the label is None"),
        ("glue_stsb", 10**400, "the label is 1000"),
        ("glue_stsb", 5.5, "not a number from 0 to 5"),
        ("glue_stsb", float("nan"), "not a number from 0 to 5"),
    ],
)
def test_labels_that_are_none(name: str, label: Any, message: str, tmp_path: Path) -> None:
    row = {"sentence": "a", "sentence1": "a", "sentence2": "b", "label": label}
    data = write(tmp_path, {"validation": [row | {"label": 1}, row]})
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        GLUE[name].load("test", data)


def test_a_label_of_a_table_may_be_written_as_a_fraction() -> None:
    """pandas writes whole numbers so where a column once had a gap."""
    task = tasks.get("glue_cola")
    assert task.problem({"sentence": "a", "label": "1.0"}) is None
    assert task.target({"label": "1.0"}) == "acceptable"
    assert task.label({"label": "1.0"}) == 1  # type: ignore[attr-defined]


def test_texts_labels_and_heads() -> None:
    mnli, stsb, cola = (GLUE[f"glue_{name}"] for name in ("mnli", "stsb", "cola"))
    row = {"premise": "Rain fell.", "hypothesis": "It was dry.", "label": 2}
    assert mnli.texts(row) == ("Rain fell.", "It was dry.")
    assert (mnli.prompt(row), mnli.target(row), mnli.label(row)) == ("Rain fell.\nIt was dry.", "contradiction", 2)
    assert cola.texts({"sentence": "A."}) == ("A.", None)
    assert (stsb.target({"label": 3.8}), stsb.label({"label": 3.8}), stsb.head()) == ("3.8", 3.8, HeadSpec(()))
    assert (mnli.head().num_labels, mnli.head().regression) == (3, False)
    assert (stsb.head().num_labels, stsb.head().regression) == (1, True)


def test_a_prediction_is_the_name_of_a_label(tmp_path: Path) -> None:
    cola = GLUE["glue_cola"]
    example = cola.load("test", write(tmp_path, {"validation": sentences(1, 2)})).examples[0]
    for text, value in (("acceptable", 1.0), (" acceptable\n", 1.0), ("unacceptable", 0.0), ("1", 0.0), ("", 0.0)):
        assert cola.score(example, Response(text, True))["acc"].value == value
    assert GLUE["glue_stsb"].score(example, Response("3", True)) == {}


@pytest.mark.parametrize(
    ("folder", "name", "train", "scored", "outputs"),
    [
        case
        for name, (train, scored, outputs) in REAL_ROWS.items()
        for case in both(
            f"glue_std/{name}", samples=(name, 60, 42, outputs), sets=(name, train, scored, outputs), label=name
        )
    ],
)
def test_rows_splits_and_labels(folder: Path, name: str, train: int, scored: int, outputs: int) -> None:
    spec = resolve_task(f"glue_{name}", data=str(folder))
    task = tasks.get(spec.name)
    assert isinstance(task, Classification)
    head = head_of(spec)
    assert head is not None
    assert head.num_labels == outputs
    test = load_split(spec, "test").examples
    assert len(test) == scored
    assert len(load_split(spec, "train").examples) + len(load_split(spec, "validation").examples) == train
    guarded_train(spec)
    labels = {task.label(row.row, head) for row in test}
    assert labels == {0, 1} if outputs == 2 else min(labels) == 0 and max(labels) == 5


@pytest.mark.parametrize(
    ("folder", "held_out", "trained"),
    [
        case
        for name in ("mnli", "qqp")
        for case in both(f"glue_std/{name}", samples=(42, 120 - 12), sets=(1000, 8999 - 500), label=name)
    ],
)
def test_held_out_rows_under_the_name_of_the_scored_split(
    folder: Path, held_out: int, trained: int, tmp_path: Path
) -> None:
    """Where the official split is not at hand, another stands in for it by its name."""
    (tmp_path / "train.jsonl").symlink_to(folder / "train.jsonl")
    (tmp_path / "validation.jsonl").symlink_to(folder / "heldout_from_train.jsonl")
    spec = resolve_task(f"glue_{folder.name}", data=str(tmp_path))
    assert len(load_split(spec, "test").examples) == held_out
    assert len(guarded_train(spec)) == trained
