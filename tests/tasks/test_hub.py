"""Data sets by name, through datasets.load_dataset itself: a data set on disk, and a hub that cannot be reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plr.errors import DataError
from plr.tasks import HubData, TaskData, tasks
from plr.tasks.gsm8k import Gsm8k
from plr.tasks.sql_create_context import SqlCreateContext

datasets = pytest.importorskip("datasets")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies in a hub repository, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split, count in (("train", 50), ("test", 10)):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_splits_come_from_load_dataset_and_validation_from_train(dataset: Path) -> None:
    class OnDisk(Gsm8k):
        hub = HubData(str(dataset), splits={"train": "train", "test": "test"})

    task = OnDisk()
    loaded = {split: task.load(split) for split in ("train", "validation", "test")}
    assert {split: part.report.kept for split, part in loaded.items()} == {"train": 45, "validation": 5, "test": 10}
    assert loaded["test"].examples[3].id == "test-3"
    assert loaded["test"].examples[3].prompt == "Question: test 3?\nAnswer:"


def test_the_only_split_of_a_data_set_is_divided(dataset: Path) -> None:
    rows = [{"question": f"q{i}?", "context": f"CREATE TABLE t{i} (a INT)", "answer": "SELECT 1"} for i in range(50)]
    (dataset / "test.jsonl").unlink()
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    class OnDisk(SqlCreateContext):
        hub = HubData(str(dataset), splits={"all": "train"})

    task = OnDisk()
    ids = {split: {e.id for e in task.load(split).examples} for split in ("train", "validation", "test")}
    assert {split: len(names) for split, names in ids.items()} == {"train": 40, "validation": 5, "test": 5}
    assert set.union(*ids.values()) == {f"all-{i}" for i in range(50)}


def test_a_split_or_configuration_that_the_data_set_lacks(dataset: Path) -> None:
    class NoSplit(Gsm8k):
        hub = HubData(str(dataset), splits={"test": "nope"})

    class NoConfig(Gsm8k):
        hub = HubData(str(dataset), config="other", splits={"test": "test"})

    with pytest.raises(DataError, match=r'the nope split of .* cannot be loaded: Unknown split "nope"'):
        NoSplit().load("test")
    with pytest.raises(DataError, match="cannot be loaded: BuilderConfig 'other' not found"):
        NoConfig().load("test")


def test_a_row_of_a_data_set_is_named_by_its_number(dataset: Path) -> None:
    (dataset / "test.jsonl").write_text(
        '{"question": "q", "answer": "#### 1"}\n{"question": "q", "answer": ""}\n', encoding="utf-8"
    )

    class OnDisk(Gsm8k):
        hub = HubData(str(dataset), splits={"train": "train", "test": "test"})

    with pytest.raises(DataError, match="test row 1: the field 'answer' is empty"):
        OnDisk().load("test")


@pytest.mark.parametrize(
    ("name", "revision", "fetch"),
    [
        ("gsm8k", None, "hf download --repo-type dataset openai/gsm8k;"),
        ("sql_create_context", "abc123", "hf download --repo-type dataset b-mc2/sql-create-context --revision abc123;"),
    ],
)
def test_offline_names_the_command_and_the_alternative(
    name: str, revision: str | None, fetch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be loaded") as raised:
        tasks.get(name).load("test", TaskData(revision=revision))
    assert fetch in str(raised.value)
    assert f"--data FOLDER with rows of {name}" in str(raised.value)
