"""Splits, counts and filters, and every message about data that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_data import both

from plr.errors import DataError
from plr.tasks import TaskData, tasks
from plr.tasks.data.rows import load_split, resolve_task

GSM8K = tasks.get("gsm8k")
SQL = tasks.get("sql_create_context")


def _rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {i}?" + " x" * (i % 5), "answer": f"It is {i}.\n#### {i}"}
        for i in range(start, start + count)
    ]


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_validation_is_cut_from_train_and_disjoint(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", _rows(100))
    data = TaskData(path=str(tmp_path))
    train, validation = GSM8K.load("train", data), GSM8K.load("validation", data)
    ids = [{example.id for example in split.examples} for split in (train, validation)]
    assert (len(ids[0]), len(ids[1]), ids[0] & ids[1]) == (90, 10, set())
    assert ids[0] | ids[1] == {f"train-{i}" for i in range(100)}
    assert train.report.cut == validation.report.cut == "10 of the 100 rows of train are taken as validation, seed 0"
    assert GSM8K.load("validation", TaskData(path=str(tmp_path), split_seed=1)).digest != validation.digest


def test_equal_questions_never_stand_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", [row for row in _rows(60) for _ in range(2)])
    data = TaskData(path=str(tmp_path))
    prompts = [{e.prompt for e in GSM8K.load(split, data).examples} for split in ("train", "validation")]
    assert prompts[1]
    assert not prompts[0] & prompts[1]


def test_a_given_validation_split_is_used_as_it_is(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", _rows(20))
    _write(tmp_path / "dev.jsonl", _rows(5, 100))
    data = TaskData(path=str(tmp_path))
    assert [e.id for e in GSM8K.load("validation", data).examples] == [f"validation-{i}" for i in range(5)]
    report = GSM8K.load("train", data).report
    assert (report.kept, report.cut) == (20, None)


def test_a_file_named_for_a_split_is_that_split_alone(tmp_path: Path) -> None:
    path = str(_write(tmp_path / "test.jsonl", _rows(7)))
    assert len(GSM8K.load("test", TaskData(path=path)).examples) == 7
    assert GSM8K.splits(TaskData(path=path)) == ("test",)
    with pytest.raises(DataError, match=r"test\.jsonl has no train split, only test"):
        GSM8K.load("train", TaskData(path=path))


def test_splits_that_can_be_given(tmp_path: Path) -> None:
    path = str(_write(tmp_path / "train.jsonl", _rows(20)))
    assert GSM8K.splits(TaskData(path=path)) == ("train", "validation")
    other = str(_write(tmp_path / "rows.jsonl", _rows(20)))
    assert GSM8K.splits(TaskData(path=other)) == SQL.splits() == ("train", "validation", "test")
    assert tasks.get("tiny_math").splits() == GSM8K.splits() == ("train", "validation", "test")


def test_counts_of_the_report_add_up(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", _rows(50))
    longest = len(GSM8K.prompt(_rows(50)[14])) - 1  # "What is 14?" has the longest tail of x
    split = GSM8K.load("test", TaskData(path=str(tmp_path), max_prompt_chars=longest, limit=30))
    report = split.report
    assert (report.rows, report.too_long, report.not_drawn, report.kept) == (50, 8, 12, 30)
    assert report.rows == report.duplicates + report.too_long + report.not_drawn + report.kept
    assert all(len(example.prompt) <= longest for example in split.examples)


def test_limit_draws_a_seeded_subset_in_order_and_a_larger_one_contains_it(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", _rows(200))

    def ids(limit: int, seed: int) -> list[int]:
        data = TaskData(path=str(tmp_path), limit=limit, limit_seed=seed)
        return [int(example.id.removeprefix("test-")) for example in GSM8K.load("test", data).examples]

    assert ids(20, 0) == sorted(ids(20, 0)) != list(range(20))
    assert ids(20, 0) != ids(20, 1)
    assert set(ids(20, 0)) < set(ids(60, 0))
    assert ids(500, 0) == list(range(200))


def test_digest_tells_other_questions_apart(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", _rows(5))
    before = GSM8K.load("test", TaskData(path=str(tmp_path))).digest
    assert GSM8K.load("test", TaskData(path=str(tmp_path))).digest == before
    _write(tmp_path / "test.jsonl", [*_rows(4), {"question": "What is 4? x x x x", "answer": "It is 4.\n#### 5"}])
    assert GSM8K.load("test", TaskData(path=str(tmp_path))).digest != before


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv"])
def test_the_other_file_forms_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    import csv

    rows = [*_rows(3), {"question": 'A "quoted", \nbroken\tline?', "answer": "é\n#### 5"}]
    expected = GSM8K.load("test", TaskData(path=str(_write(tmp_path / "test.jsonl", rows)))).digest
    path = tmp_path / f"test{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8-sig")
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "answer"], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert GSM8K.load("test", TaskData(path=str(path))).digest == expected


def test_a_cell_may_be_as_long_as_an_article(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    (tmp_path / "test.csv").write_text("question,answer\n" + "word " * 40_000 + ",#### 1\n")
    (row,) = GSM8K.load("test", TaskData(path=str(tmp_path))).examples
    assert len(row.row["question"]) == 200_000
    assert csv.field_size_limit() == before


def test_columns_without_a_name_are_no_columns(tmp_path: Path) -> None:
    """As a spreadsheet writes them behind the last."""
    (tmp_path / "test.csv").write_text("question,answer,,\nq,#### 1,,\n\nr,#### 2,,\n")
    rows = GSM8K.load("test", TaskData(path=str(tmp_path))).examples
    assert [row.row["answer"] for row in rows] == ["#### 1", "#### 2"]


GOOD = '{"question": "q", "answer": "#### 1"}\n'

BAD_FILES = {
    "missing field": (
        "test.jsonl",
        GOOD + '{"question": "q", "text": "t"}\n',
        r"line 2: the field 'answer' is missing; given are question, text",
    ),
    "null field": ("test.jsonl", '{"question": null, "answer": "#### 1"}', r"line 1: the field 'question' is missing"),
    "empty target": ("test.jsonl", GOOD + '\n{"question": "q", "answer": " "}', r"line 3: the field 'answer' is empty"),
    "number for text": (
        "test.jsonl",
        '{"question": "q", "answer": 5}',
        r"the field 'answer' is 5\n  expected: text, not int",
    ),
    "no mark": ("test.jsonl", '{"question": "q", "answer": "5"}', r"line 1: the answer has no '#### <number>'"),
    "broken line": (
        "test.jsonl",
        GOOD + '{"question": "q"',
        r"line 2: not JSON .*\n  expected: one JSON object a line",
    ),
    "not an object": ("test.jsonl", "[1, 2]\n", r"line 1: a JSON list\n  expected: a JSON object"),
    "deep nesting": ("test.jsonl", "[" * 100_000, r"line 1: not JSON"),
    "empty file": ("test.jsonl", "\n\n", r"holds no rows\n  expected: at least one"),
    "lines in .json": ("test.json", GOOD + GOOD, r"not JSON .*\n.*\n  next: name the file \.jsonl"),
    "object in .json": ("test.json", GOOD, r"holds one dict\n  expected: a list of objects"),
    "ragged csv": ("test.csv", "question,answer\na,#### 1\nb,#### 1,c\n", r"line 3: more cells than the head has"),
    "short csv row": ("test.csv", "question,answer\nq\n", r"line 2: the field 'answer' is missing"),
    "open quote in csv": (
        "test.csv",
        'question,answer\n"q,#### 1\n',
        r'test\.csv, line 2: unexpected end of data\n.*\n  next: a cell that begins with " ends with "',
    ),
    "two columns of one name": ("test.csv", "question,answer,answer\nq,#### 1,#### 2\n", "two columns called 'answer'"),
    "a number without end": ("test.jsonl", '{"question": ' + "9" * 5000 + "}", r"line 1: not JSON"),
    "a list of such": ("test.json", '[{"question": ' + "9" * 5000 + "}]", r"test\.json: not JSON"),
    "half a character": (
        "test.jsonl",
        '{"question": "\\ud800", "answer": "#### 1"}',
        r"line 1: it holds half a character, '\\ud800'",
    ),
    "one list in .jsonl": ("test.jsonl", '[{"question": "q"}]', r"\n  next: name the file \.json if it is one list"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_named_with_line_and_field(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        GSM8K.load("test", TaskData(path=str(tmp_path)))
    assert name in str(raised.value)
    assert raised.value.exit_code == 2


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}')
    with pytest.raises(DataError, match=r"line 1: not UTF-8 text \(byte 14\)"):
        GSM8K.load("test", TaskData(path=str(tmp_path)))


def test_folder_without_known_files(tmp_path: Path) -> None:
    (tmp_path / "gsm.parquet").touch()
    with pytest.raises(DataError, match=r"no data file that is known by name; it holds gsm\.parquet"):
        GSM8K.load("test", TaskData(path=str(tmp_path)))


def test_two_files_for_one_split(tmp_path: Path) -> None:
    _write(tmp_path / "dev.jsonl", _rows(2))
    _write(tmp_path / "validation.jsonl", _rows(2))
    with pytest.raises(DataError, match=r"two files for validation: dev\.jsonl and validation\.jsonl"):
        GSM8K.load("validation", TaskData(path=str(tmp_path)))


def test_path_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data at .*nowhere"):
        GSM8K.load("test", TaskData(path=str(tmp_path / "nowhere")))
    (tmp_path / "test.parquet").touch()
    with pytest.raises(
        DataError,
        match=r"not a kind of file that is read\n  expected: one of \.jsonl.*\n  next: write it as JSON lines",
    ):
        GSM8K.load("test", TaskData(path=str(tmp_path / "test.parquet")))


def test_folder_without_the_split_asked_for(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", _rows(20))
    with pytest.raises(DataError, match=r"has no test split, only train\n  expected: a file test\.jsonl"):
        GSM8K.load("test", TaskData(path=str(tmp_path)))


def test_unknown_split_and_bad_limit(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", _rows(2))
    with pytest.raises(DataError, match="no split 'dev'\n  expected: one of train, validation, test"):
        GSM8K.load("dev", TaskData(path=str(tmp_path)))
    with pytest.raises(DataError, match="limit is 0"):
        GSM8K.load("test", TaskData(path=str(tmp_path), limit=0))


def test_nothing_left_says_why(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", _rows(3))
    with pytest.raises(DataError, match="3 have a prompt of more than 5 characters\n  next: raise max_prompt_chars"):
        GSM8K.load("test", TaskData(path=str(tmp_path), max_prompt_chars=5))
    (tmp_path / "test.jsonl").rename(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"no row falls to the test split .* one split of 3 rows .*\n  next: give more"):
        GSM8K.load("test", TaskData(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(("folder", "rows"), both("gsm8k", samples=((90, 10, 60),), sets=((6973, 500, 1319),)))
def test_gsm8k_has_the_counts_of_the_data_set(folder: Path, rows: tuple[int, int, int]) -> None:
    data = TaskData(path=str(folder))
    counts = {split: len(GSM8K.load(split, data).examples) for split in ("train", "validation", "test")}
    assert counts == dict(zip(("train", "validation", "test"), rows, strict=True))


def test_columns_under_other_names(tmp_path: Path) -> None:
    rows = [{"Prompt": f"{i}?", "Completion": f"so #### {i}", "question": "not this"} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = resolve_task("gsm8k", data=str(tmp_path), columns={"question": "Prompt", "answer": "Completion"})
    example = load_split(spec, "test").examples[1]
    assert example.prompt == "Question: 1?\nAnswer:"
    assert example.row == {"question": "1?", "answer": "so #### 1"}
    plain = resolve_task("gsm8k", data=str(tmp_path))
    assert spec.identity() != plain.identity()


def test_a_column_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"Prompt": "1?", "answer": "#### 1"}\n{"prompt": "2?", "answer": "#### 2"}\n')
    spec = resolve_task("gsm8k", data=str(tmp_path), columns={"question": "Prompt"})
    with pytest.raises(
        DataError, match=r"test.jsonl.*2.*no column 'Prompt' to read question from; given are prompt, answer"
    ):
        load_split(spec, "test")
