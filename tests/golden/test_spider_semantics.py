"""When two queries do the same, by the rules of Spider's test suites: a table of cases, each executed in SQLite.

The rules: rows are a bag (how often a row stands there counts), their order matters only where the gold has ORDER BY; columns may
be permuted, the same way for all rows, and their names do not matter; two empty results are equal; values are compared as Python
compares what SQLite gives. The tables are fixed here, so that each case says one thing; tables made for a gold are tested in
``tests/scoring/sql/test_execute.py``.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import pytest

from plr.scoring.sql.compare import normalized_rows, same_rows
from plr.scoring.sql.reader import read_demands
from plr.scoring.sql.schema import read_schema
from plr.scoring.sql.tokens import executable, texts

CONTEXT = """
CREATE TABLE t (id INTEGER, name TEXT, score REAL, code);
CREATE TABLE u (id INTEGER, city TEXT);
CREATE TABLE empty (id INTEGER, name TEXT)
"""
ROWS = """
INSERT INTO t VALUES (1, 'a', 1.5, 1), (2, 'b', 2.0, '1'), (3, 'b', NULL, 1.0), (4, NULL, 0.1, 'x'), (4, NULL, 0.2, NULL);
INSERT INTO u VALUES (1, 'Rome'), (2, 'Oslo'), (2, 'Oslo'), (9, NULL)
"""


class Case(NamedTuple):
    gold: str
    answer: str
    equal: bool


CASES = {
    # order
    "order is free without ORDER BY": Case("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC", True),
    "order of the gold counts": Case("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC", False),
    "an answer may leave ORDER BY out if the order is right": Case("SELECT id FROM t ORDER BY id", "SELECT id FROM t", True),
    "ORDER BY inside a subquery of the gold counts too": Case(
        "SELECT id FROM t WHERE id IN (SELECT id FROM u ORDER BY id LIMIT 9)", "SELECT id FROM t WHERE id IN (2, 1)", True
    ),
    "the word order in a literal asks for none": Case(
        "SELECT id FROM t WHERE name <> 'order by'", "SELECT id FROM t WHERE id < 4 ORDER BY id DESC", True
    ),
    "ties may stand as they like only if equal": Case(
        "SELECT id FROM u ORDER BY city", "SELECT id FROM u ORDER BY city, id DESC", True
    ),
    "ascending is the default": Case("SELECT id FROM t ORDER BY id ASC", "SELECT id FROM t ORDER BY id", True),
    # duplicates
    "a duplicate more": Case("SELECT DISTINCT city FROM u", "SELECT city FROM u", False),
    "a duplicate less": Case("SELECT city FROM u", "SELECT DISTINCT city FROM u", False),
    "other rows twice, as many in all": Case(
        "SELECT id FROM t WHERE id > 2",
        "SELECT id FROM t WHERE id IN (3, 4) GROUP BY id UNION ALL SELECT 3",
        False,
    ),
    "UNION drops duplicates": Case("SELECT id FROM u UNION SELECT id FROM u", "SELECT DISTINCT id FROM u", True),
    "UNION ALL keeps them": Case("SELECT id FROM u UNION ALL SELECT id FROM u", "SELECT id FROM u UNION SELECT id FROM u", False),
    "DISTINCT of a key changes nothing": Case("SELECT DISTINCT id FROM t WHERE id < 4", "SELECT id FROM t WHERE id < 4", True),
    "GROUP BY is DISTINCT": Case("SELECT DISTINCT name FROM t", "SELECT name FROM t GROUP BY name", True),
    # columns
    "columns permuted": Case("SELECT id, name FROM t", "SELECT name, id FROM t", True),
    "columns permuted, in order": Case("SELECT id, name FROM t ORDER BY id", "SELECT name, id FROM t ORDER BY id", True),
    "three columns turned": Case("SELECT id, name, score FROM t", "SELECT score, id, name FROM t", True),
    "values paired otherwise": Case(
        "SELECT 1, 'x' UNION ALL SELECT 2, 'y'", "SELECT 1, 'y' UNION ALL SELECT 2, 'x'", False
    ),
    "one column may not stand for two": Case(
        "SELECT 1, 1 UNION ALL SELECT 2, 2", "SELECT 1, 2 UNION ALL SELECT 2, 1", False
    ),
    "permuted row by row": Case("SELECT 1, 2 UNION ALL SELECT 3, 4", "SELECT 1, 2 UNION ALL SELECT 4, 3", False),
    "a column more": Case("SELECT id FROM t", "SELECT id, name FROM t", False),
    "a column twice": Case("SELECT id FROM t", "SELECT id, id FROM t", False),
    "the name of a column": Case("SELECT id FROM t", "SELECT id AS number FROM t", True),
    "another column with the same values": Case("SELECT 1, id FROM u", "SELECT id / id, id FROM u", True),
    # NULL
    "NULL is NULL": Case("SELECT name FROM t WHERE id = 4", "SELECT NULL FROM t WHERE id = 4", True),
    "NULL is not 0": Case("SELECT score FROM t WHERE id = 3", "SELECT 0", False),
    "NULL is not the empty text": Case("SELECT name FROM t WHERE id = 4", "SELECT '' FROM t WHERE id = 4", False),
    "NULL is not the text NULL": Case("SELECT city FROM u WHERE id = 9", "SELECT 'None'", False),
    "COUNT of a column leaves NULL out": Case("SELECT COUNT(name) FROM t", "SELECT COUNT(*) FROM t", False),
    "NOT EQUAL leaves NULL out": Case("SELECT id FROM t WHERE name <> 'a'", "SELECT id FROM t WHERE NOT name IS 'a'", False),
    "a row of NULL is a row": Case("SELECT MAX(id) FROM empty", "SELECT id FROM empty", False),
    # nothing
    "two empty results": Case("SELECT id FROM empty", "SELECT id FROM t WHERE id > 99", True),
    "two empty results of other columns": Case("SELECT id FROM empty", "SELECT id, name FROM t WHERE id > 99", True),
    "empty and not": Case("SELECT id FROM empty", "SELECT id FROM u", False),
    "COUNT of nothing is 0, no row": Case("SELECT COUNT(*) FROM empty", "SELECT id FROM empty", False),
    "LEFT JOIN keeps what has no partner": Case(
        "SELECT city FROM u LEFT JOIN t ON u.id = t.id", "SELECT city FROM u JOIN t ON u.id = t.id", False
    ),
    # types
    "an integer is its float": Case("SELECT 2", "SELECT 2.0", True),
    "a number is not its text": Case("SELECT code FROM t WHERE id = 1", "SELECT code FROM t WHERE id = 2", False),
    "mixed types in one column": Case("SELECT code FROM t", "SELECT code FROM t ORDER BY typeof(code), code", True),
    "mixed types, one changed": Case("SELECT code FROM t", "SELECT CAST(code AS TEXT) FROM t", False),
    "the case of a text": Case("SELECT 'Oslo'", "SELECT 'oslo'", False),
    "trailing space of a text": Case("SELECT 'Oslo'", "SELECT 'Oslo '", False),
    "a blob is no text": Case("SELECT 'a'", "SELECT x'61'", False),
    "true is 1": Case("SELECT id > 0 FROM u", "SELECT 1 FROM u", True),
    # floats: the one thing that is kinder here, twelve digits
    "order of the terms of a sum": Case("SELECT 0.1 + 0.2 + 0.3", "SELECT 0.3 + 0.2 + 0.1", True),
    "an average and its sum over its count": Case("SELECT AVG(score) FROM t", "SELECT SUM(score) / COUNT(score) FROM t", True),
    "the eleventh digit": Case("SELECT 1.0", "SELECT 1.00000000001", False),
    "rounded is not equal": Case("SELECT AVG(score) FROM t", "SELECT ROUND(AVG(score), 2) FROM t WHERE id < 4", False),
    "integer division": Case("SELECT 3 / 2", "SELECT 3 / 2.0", False),
    # spelling
    "spaces inside an operator": Case("SELECT id FROM t WHERE id >= 3", "SELECT id FROM t WHERE id > = 3", True),
    "double quotes around a text": Case("SELECT id FROM t WHERE name = 'b'", 'SELECT id FROM t WHERE name = "b"', True),
    "double quotes around a column": Case("SELECT name FROM t", 'SELECT "name" FROM t', True),
}  # fmt: skip


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(CONTEXT + ";" + ROWS)
    return connection


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Case, database: sqlite3.Connection) -> None:
    ordered = read_demands(case.gold, read_schema(CONTEXT)).ordered
    gold = database.execute(executable(case.gold, None)).fetchall()
    answer = database.execute(executable(case.answer, texts(case.gold))).fetchall()
    assert same_rows(normalized_rows(gold), normalized_rows(answer), ordered=ordered) is case.equal
    assert same_rows(normalized_rows(gold), normalized_rows(gold), ordered=ordered)


def test_every_verdict_occurs() -> None:
    assert min(sum(case.equal for case in CASES.values()), sum(not case.equal for case in CASES.values())) >= 20
