"""A table of one's own: columns, labels, heads and no head."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.errors import DataError
from plr.tasks import HeadSpec, TaskData
from plr.tasks.data.rows import head_of, load_split, resolve_task
from plr.tasks.data.tsv import TEXT_CLASSIFICATION as TASK

ROWS = [("shall i compare thee", "old"), ('a "quoted", line', "new"), ("rose is a rose", "new"), ("ozymandias", "old")]
EXPECTED = [(text, label) for text, label in ROWS]


def read(path: Path) -> list[tuple[str, str]]:
    source = TASK.load("train", TaskData(path=str(path)))
    return [(row.prompt, row.target) for row in source.examples]


@pytest.mark.parametrize("head", ["text\tlabel", "poem\tlabel", "poem\tauthor", None], ids=str)
def test_columns_by_name_or_by_place(head: str | None, tmp_path: Path) -> None:
    """A validation file beside it, so that nothing is cut out of train."""
    lines = ["\t".join([f'"{t.replace(chr(34), chr(34) * 2)}"', label]) for t, label in ROWS]
    (tmp_path / "train.tsv").write_text("\n".join([head, *lines] if head else lines) + "\n", encoding="utf-8")
    (tmp_path / "valid.tsv").write_text("text\tlabel\nsonnet\told\n", encoding="utf-8")
    assert read(tmp_path) == EXPECTED


def test_the_label_first_if_it_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("label,line\n" + "".join(f"{b},{a}\n" for a, b in ROWS[2:]), encoding="utf-8")
    (tmp_path / "valid.csv").write_text("text,label\nsonnet,old\n", encoding="utf-8")
    assert read(tmp_path) == EXPECTED[2:]


def test_more_columns_go_by_name_alone(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("id\ttext\tlabel\n1\ta line\told\n", encoding="utf-8")
    (row,) = TASK.load("test", TaskData(path=str(tmp_path))).examples
    assert (row.prompt, row.target) == ("a line", "old")
    (tmp_path / "test.tsv").write_text("id\tpoem\tauthor\n1\ta line\told\n", encoding="utf-8")
    with pytest.raises(DataError, match="the field 'text' is missing; given are id, poem, author"):
        TASK.load("test", TaskData(path=str(tmp_path)))


def test_labels_are_those_of_train_sorted(tmp_path: Path) -> None:
    rows = "".join(f"text {i}\t{i % 3}\n" for i in range(40))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
    (tmp_path / "test.tsv").write_text("text\tlabel\nanother\t2\nunknown\t7\n", encoding="utf-8")
    spec = resolve_task("text_classification", data=str(tmp_path))
    head = head_of(spec)
    assert head == HeadSpec(("0", "1", "2"))
    known, unknown = load_split(spec, "test").examples
    assert TASK.label(known.row, head) == 2
    with pytest.raises(DataError, match="'7' stands in no row of the train split"):
        TASK.label(unknown.row, head)


def test_json_lines_may_give_numbers(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "text {i}", "label": {i % 2}}}\n' for i in range(20))
    (tmp_path / "train.jsonl").write_text(rows, encoding="utf-8")
    assert TASK.labels(TaskData(path=str(tmp_path))) == ("0", "1")


def test_a_label_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"poem": "a", "author": ["old"]}\n')
    with pytest.raises(DataError, match=r"the field 'label' is \['old'\]"):
        TASK.load("test", TaskData(path=str(tmp_path)))


def test_one_file_is_divided_into_three(tmp_path: Path) -> None:
    path = tmp_path / "poems.tsv"
    path.write_text("poem\tlabel\n" + "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(100)), encoding="utf-8")
    counts = {
        split: len(TASK.load(split, TaskData(path=str(path))).examples) for split in ("train", "validation", "test")
    }
    assert counts == {"train": 80, "validation": 10, "test": 10}


def test_one_label_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(
        "text\tlabel\n" + "".join(f"t {i}\tsame\n" for i in range(30)), encoding="utf-8"
    )
    with pytest.raises(DataError, match="one label, 'same'"):
        TASK.labels(TaskData(path=str(tmp_path)))
