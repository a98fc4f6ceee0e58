"""Double-quoted words are names or texts as the schema says."""

from __future__ import annotations

import json

import pytest
from real_data import needs, real

from plr.scoring.sql.quotes import names_by_schema

QUOTED = 'CREATE TABLE people ("First Name" TEXT, `order` TEXT, [a b] TEXT, age INTEGER, type TEXT)'


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ('SELECT "First Name" FROM people', "SELECT `First Name` FROM people"),
        ('SELECT age FROM people WHERE "first name" = "Ann"', 'SELECT age FROM people WHERE `first name` = "Ann"'),
        ('SELECT age FROM people WHERE age = "First Name"', "SELECT age FROM people WHERE age = `First Name`"),
        ('SELECT MAX("a b") FROM people GROUP BY "order"', "SELECT MAX(`a b`) FROM people GROUP BY `order`"),
        ('SELECT "age", "type" FROM people ORDER BY "age"', "SELECT `age`, `type` FROM people ORDER BY `age`"),
        ('SELECT COUNT(DISTINCT "age") FROM people', "SELECT COUNT(DISTINCT `age`) FROM people"),
        ('SELECT people."age" FROM people', "SELECT people.`age` FROM people"),
        ('SELECT age FROM people WHERE type = "type"', 'SELECT age FROM people WHERE type = "type"'),
        (
            'SELECT age FROM people WHERE type IN ("type", "age")',
            'SELECT age FROM people WHERE type IN ("type", "age")',
        ),
        (
            'SELECT age FROM people WHERE type BETWEEN "age" AND "type"',
            'SELECT age FROM people WHERE type BETWEEN "age" AND "type"',
        ),
        ('SELECT "First Name x" FROM people', 'SELECT "First Name x" FROM people'),
        ("SELECT 'First Name' FROM people", "SELECT 'First Name' FROM people"),
        ('SELECT a -- "First Name"\nFROM t', 'SELECT a -- "First Name"\nFROM t'),
    ],
)
def test_by_place_and_schema(sql: str, read: str) -> None:
    assert names_by_schema(sql, QUOTED) == read
    assert names_by_schema(read, QUOTED) == read


@needs("sql")
def test_no_gold_of_the_real_set_reads_otherwise() -> None:
    folder = real("sql")
    assert folder is not None
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum('"' in row["answer"] for row in rows) > 500
    assert [row["answer"] for row in rows if names_by_schema(row["answer"], row["context"]) != row["answer"]] == []
