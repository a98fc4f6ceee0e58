"""JNLI and JCommonsenseQA: the paper's formats and counts, out-of-label answers wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_data import both

from plr.tasks import HubData, Response, TaskData, tasks
from plr.tasks.data.loading import row_problem
from plr.tasks.data.sources import Row
from plr.tasks.library.jglue import Jnli

NLI = {"sentence1": "犬がいる。", "sentence2": "猫がいる。", "label": "contradiction"}
QA = {"question": "春は？", **{f"choice{i}": word for i, word in enumerate("割安明暖丸")}, "label": 3}


def score(name: str, row: dict[str, object], text: str, ended: bool = True) -> list[float | None]:
    from plr.tasks import Example

    task = tasks.get(name)
    return [
        s.value
        for s in task.score(Example("test-0", row, task.prompt(row), task.target(row)), Response(text, ended)).values()
    ]


def test_formats_are_those_of_table_1() -> None:
    jnli, qa = tasks.get("jnli"), tasks.get("jcommonsenseqa")
    assert jnli.prompt(NLI) + jnli.target(NLI) == "犬がいる。[SEP]猫がいる。[SEP]矛盾"
    assert qa.prompt(QA) + qa.target(QA) == "春は？[SEP]割[SEP]安[SEP]明[SEP]暖[SEP]丸[SEP]暖"


@pytest.mark.parametrize(
    ("text", "ended", "wanted"),
    [
        ("矛盾", True, [1, 1, 1, 1]),
        (" 矛盾\n", True, [1, 1, 1, 1]),
        ("矛盾[SEP]続き", False, [1, 1, 0, 0]),
        ("中立", True, [0, 1, 0, 1]),
        ("中意", True, [0, 0, 0, 1]),
        ("", True, [0, 0, 0, 1]),
        ("矛盾です", True, [0, 0, 0, 1]),
    ],
)
def test_answers_outside_the_labels_are_wrong(text: str, ended: bool, wanted: list[int]) -> None:
    """中意 is what the paper's own LoRA wrote."""
    assert score("jnli", NLI, text, ended) == wanted


def test_a_choice_counts_by_its_text() -> None:
    assert [score("jcommonsenseqa", QA, text)[:2] for text in ("暖", "丸", "3", "森")] == [
        [1, 1],
        [0, 1],
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize("label", [5, -1, None, "", "34"])
def test_a_label_that_is_no_choice(label: object) -> None:
    assert "not 0 to 4" in str(tasks.get("jcommonsenseqa").problem({**QA, "label": label}))


def test_validation_is_halved_by_seed_and_pairs_stay_together(tmp_path: Path) -> None:
    rows = [{**NLI, "sentence1": f"文{i}", "sentence2": f"句{i}"} for i in range(50)]
    rows += [{**row, "sentence1": row["sentence2"], "sentence2": row["sentence1"]} for row in rows[:20]]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "jnli-valid-v1.3.json").write_text(text, encoding="utf-8")
    task = tasks.get("jnli")
    assert task.splits(TaskData(str(tmp_path))) == ("validation", "test")
    halves = [[e.id for e in task.load(split, TaskData(str(tmp_path))).examples] for split in ("validation", "test")]
    assert sorted(halves[0] + halves[1]) == sorted(f"validation-{i}" for i in range(70))
    assert len(halves[0]) == len(halves[1]) == 35
    assert all((f"validation-{i}" in halves[0]) == (f"validation-{50 + i}" in halves[0]) for i in range(20))
    other = task.load("test", TaskData(str(tmp_path), split_seed=1))
    assert [e.id for e in other.examples] != halves[1]
    assert "one half of the 70 rows" in str(other.report.cut)


@pytest.mark.parametrize(
    ("folder", "name", "validation", "test"),
    [
        *both("jglue", samples=("jnli", 41, 40), sets=("jnli", 1217, 1217), label="jnli"),
        *both("jglue", samples=("jcommonsenseqa", 21, 20), sets=("jcommonsenseqa", 560, 559), label="jcommonsenseqa"),
    ],
)
def test_rows_are_halved_and_their_gold_is_right(folder: Path, name: str, validation: int, test: int) -> None:
    """The counts of the real sets are those of the paper."""
    task, data = tasks.get(name), TaskData(str(folder))
    splits = {split: task.load(split, data).examples for split in ("validation", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"validation": validation, "test": test}
    for rows in splits.values():
        assert all(task.score(row, Response(row.target, True))[task.primary].value == 1.0 for row in rows)


def test_rows_of_the_hub_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's copy calls JGLUE's validation ``test``, the sentences premise and hypothesis, and counts its labels."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    files, hub = tmp_path / "files", tmp_path / "hub"
    names = ("entailment", "neutral", "contradiction")
    rows = [(f"文{i}", f"句{i}", i % 3) for i in range(30)]
    theirs = [{"sentence1": a, "sentence2": b, "label": names[c]} for a, b, c in rows]
    ours = [{"premise": a, "hypothesis": b, "label": c} for a, b, c in rows]
    for folder, name, listed in ((files, "jnli-valid-v1.3", theirs), (hub, "test", ours)):
        folder.mkdir()
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        (folder / f"{name}.json{'l' if name == 'test' else ''}").write_text(text, encoding="utf-8")

    class OnHub(Jnli):
        hub = HubData(str(tmp_path / "hub"), splits={"validation": "test"})

    for split in ("validation", "test"):
        here, there = OnHub().load(split), tasks.get("jnli").load(split, TaskData(str(files)))
        assert [(e.id, e.prompt, e.target) for e in here.examples] == [
            (e.id, e.prompt, e.target) for e in there.examples
        ]


@pytest.mark.parametrize("label", [3, -1, True, None, "neutral"])
def test_a_label_of_the_hub_that_is_none(label: object) -> None:
    task = tasks.get("jnli")
    row = task.adopt([Row("validation", 0, {"premise": "a", "hypothesis": "b", "label": label}, "row 0")])[0]
    assert task.problem(row.values) == (
        None if label == "neutral" else f"the label is {str(label)!r}, not one of entailment, neutral, contradiction"
    )


def test_a_row_of_the_hub_without_a_sentence_is_named() -> None:
    rows = [Row("validation", i, {"premise": "a", "hypothesis": "b", "label": 1}, f"row {i}") for i in range(2)]
    del rows[1].values["hypothesis"]  # type: ignore[attr-defined]
    task = tasks.get("jnli")
    found = row_problem(task, task.adopt(rows)[1])
    assert found is not None
    assert "the field 'sentence2' is missing" in found[0]
