"""The committed calibration sets are what their generator writes, and their page tells the truth about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from plr.embedded.calibration import ROWS, calibration_files, main
from plr.embedded.corpus import math_prompt, math_rows, split_of, sql_prompt, sql_rows

FOLDER = Path(__file__).parents[2] / "calibration"


def rows_of(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def test_committed_files_are_those_the_generator_writes(tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == calibration_files()
    assert written == {name: (FOLDER / name).read_bytes() for name in written}


@pytest.mark.parametrize("name", ["tiny_math.jsonl", "tiny_sql.jsonl"])
def test_page_gives_the_count_and_hash_of_each_file(name: str) -> None:
    sha = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    assert f"| `{name}` | {len(rows_of(name))} | `{sha}` |" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(rows_of(name)) == ROWS


def test_every_row_belongs_to_the_train_split() -> None:
    for text in rows_of("tiny_math.jsonl"):
        assert split_of(text.removeprefix("Question: ").split("\nAnswer:")[0]) == "train"
    for text in rows_of("tiny_sql.jsonl"):
        context, question, _ = text.split("\n")
        assert split_of(context) == split_of(question.removeprefix("Question: ")) == "train"


def test_no_row_stands_in_validation_or_test() -> None:
    held = {"".join(math_prompt(row)) for split in ("validation", "test") for row in math_rows(split, 500)}
    held |= {"".join(sql_prompt(row)) for split in ("validation", "test") for row in sql_rows(split, 500)}
    assert not held & {*rows_of("tiny_math.jsonl"), *rows_of("tiny_sql.jsonl")}
