"""The generated rows: determinism, disjoint splits, and the truth of every sum and query."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from itertools import islice

import pytest

from plr.embedded.corpus import SPLITS, math_prompt, math_rows, pretraining_texts, split_of, sql_prompt, sql_rows

MAKERS = {"math": math_rows, "sql": sql_rows}
# Made by: hashlib.sha256(json.dumps([maker(split, 20) for split in SPLITS], sort_keys=True).encode()).hexdigest()
GOLDEN = {
    "math": "926e8b5a113dedb3abfba3c3daf43aca84fa8b2dda534b0cac114b518ed3847a",
    "sql": "a60c8a53400d12a5cacd279d97dae7992107acb0e2b6466b14ddb1e1651a6928",
}
NOTE = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
VALUE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


@pytest.mark.parametrize("name", MAKERS)
def test_first_rows_are_those_of_the_golden_hash(name: str) -> None:
    rows = [MAKERS[name](split, 20) for split in SPLITS]
    assert hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", MAKERS)
def test_longer_draw_begins_with_the_shorter(name: str) -> None:
    assert MAKERS[name]("train", 60, 3)[:20] == MAKERS[name]("train", 20, 3)


@pytest.mark.parametrize("name", MAKERS)
def test_seeds_give_different_rows(name: str) -> None:
    assert MAKERS[name]("train", 10, 0) != MAKERS[name]("train", 10, 1)


@pytest.mark.parametrize("name", MAKERS)
def test_no_question_or_schema_stands_in_two_splits(name: str) -> None:
    drawn = [MAKERS[name](split, 400, seed) for split in SPLITS for seed in (0, 1)]
    for field in ("question", "context"):
        seen: dict[str, set[str]] = {}
        for split, rows in zip([s for s in SPLITS for _ in range(2)], drawn, strict=True):
            for row in rows:
                if field in row:
                    seen.setdefault(row[field], set()).add(split)
        assert all(len(splits) == 1 for splits in seen.values())
    assert all(len({row["question"] for row in rows}) == 400 for rows in drawn)


def test_split_shares_are_as_documented() -> None:
    splits = [split_of(str(number)) for number in range(4000)]
    shares = {split: splits.count(split) / 4000 for split in SPLITS}
    assert shares == pytest.approx({"train": 5 / 8, "validation": 1 / 8, "test": 2 / 8}, abs=0.03)


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"split 'dev' is unknown; expected one of train, validation, test"):
        math_rows("dev", 1)  # type: ignore[arg-type]


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="n is -1"):
        sql_rows("train", -1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_equation_is_true_and_the_last_line_follows(split: str) -> None:
    for row in math_rows(split, 500):
        *lines, last = row["answer"].split("\n")
        notes = [NOTE.search(line) for line in lines]
        assert 2 <= len(notes) <= 3
        assert all(notes)
        for note in notes:
            assert note is not None
            left, op, right, result, repeated = note.groups()
            assert result == repeated
            assert VALUE[op](int(left), int(right)) == int(result)
            assert op != "/" or int(left) % int(right) == 0
        assert last == f"#### {notes[-1].group(4)}"  # type: ignore[union-attr]


def test_numbers_of_a_chain_come_from_the_story_or_from_an_earlier_line() -> None:
    for row in math_rows("train", 300):
        known = set(re.findall(r"\d+", row["question"])) | {"2", "3"}  # "doubles", "triples"
        for left, _, right, result, _ in NOTE.findall(row["answer"]):
            assert {left, right} <= known
            known.add(result)


@pytest.mark.parametrize("split", SPLITS)
def test_every_gold_query_parses_and_runs_on_its_own_schema(split: str) -> None:
    import sqlglot

    for row in sql_rows(split, 200):
        assert sqlglot.parse_one(row["answer"], read="sqlite").find(sqlglot.exp.Table) is not None
        with sqlite3.connect(":memory:") as database:
            database.execute(row["context"])
            assert database.execute(row["answer"]).description


def test_gold_queries_name_only_columns_of_their_schema() -> None:
    for row in sql_rows("train", 300):
        bare = re.sub(r'"[^"]*"', "", row["answer"])
        columns = set(re.findall(r"(\w+) (?:VARCHAR|INTEGER)", row["context"]))
        used = set(re.findall(r"\b[a-z]+\b", bare.split(" WHERE ")[1]))
        assert used <= columns


def test_pretraining_texts_are_deterministic_and_never_hold_a_held_out_row() -> None:
    texts = list(islice(pretraining_texts(0), 3000))
    assert texts == list(islice(pretraining_texts(0), 3000))
    whole = "\n".join(texts)
    for split in ("validation", "test"):
        assert not any(row["question"] in whole for row in math_rows(split, 200))
        assert not any(row["question"] in whole or row["context"] in whole for row in sql_rows(split, 200))


def test_pretraining_texts_are_not_in_the_form_of_the_tasks() -> None:
    for text in islice(pretraining_texts(0), 3000):
        assert "\nAnswer: " not in text
        assert "\nSQL:" not in text


def test_prompts_are_the_fixed_forms_of_the_tasks() -> None:
    row = {"question": "q?", "answer": "a", "context": "CREATE TABLE t (c VARCHAR)"}
    assert math_prompt(row) == ("Question: q?\nAnswer:", " a")
    assert sql_prompt(row) == ("CREATE TABLE t (c VARCHAR)\nQuestion: q?\nSQL:", " a")
