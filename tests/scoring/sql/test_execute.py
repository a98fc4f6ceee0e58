"""Execution match: the gold passes, what means the same passes, what means something else fails."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from real_data import both

from plr.scoring.sql.databases import Maker
from plr.scoring.sql.execute import Sample, exec_match, exec_match_all
from plr.scoring.sql.judge import DATABASES, Suite
from plr.scoring.sql.match import canonical
from plr.scoring.sql.reader import read_demands
from plr.scoring.sql.schema import read_schema

HEADS = "CREATE TABLE head (name VARCHAR, age INTEGER, born VARCHAR, id INTEGER)"
SHOPS = (
    "CREATE TABLE shop (shop_id VARCHAR, city VARCHAR); CREATE TABLE sale (shop_id VARCHAR, sum INTEGER, day VARCHAR)"
)

SAME = {
    "condition turned": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE 56 < age"),
    "integers": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age >= 57"),
    "conditions in another order": (
        HEADS,
        'SELECT name FROM head WHERE age > 56 AND born = "Ohio"',
        "SELECT name FROM head WHERE born = 'Ohio' AND age > 56",
    ),
    "IN and OR": (
        HEADS,
        'SELECT name FROM head WHERE born = "Ohio" OR born = "Iowa"',
        'SELECT name FROM head WHERE born IN ("Iowa", "Ohio")',
    ),
    "columns permuted": (HEADS, "SELECT name, age FROM head", "SELECT age, name FROM head"),
    "column alias": (HEADS, "SELECT COUNT(*) FROM head", "SELECT COUNT(*) AS n FROM head"),
    "the largest": (
        HEADS,
        "SELECT name FROM head ORDER BY age DESC LIMIT 1",
        "SELECT name FROM head WHERE age = (SELECT MAX(age) FROM head)",
    ),
    "distinct and group": (HEADS, "SELECT DISTINCT born FROM head", "SELECT born FROM head GROUP BY born"),
    "join turned": (
        SHOPS,
        'SELECT T1.city FROM shop AS T1 JOIN sale AS T2 ON T1.shop_id = T2.shop_id WHERE T2.day = "Monday"',
        "SELECT city FROM sale JOIN shop ON sale.shop_id = shop.shop_id WHERE day = 'Monday'",
    ),
    "join and IN": (
        SHOPS,
        "SELECT city FROM shop WHERE NOT shop_id IN (SELECT shop_id FROM sale)",
        "SELECT city FROM shop WHERE NOT EXISTS (SELECT 1 FROM sale WHERE sale.shop_id = shop.shop_id)",
    ),
    "number of a text column": (
        HEADS,
        "SELECT name FROM head WHERE born = 1912",
        'SELECT name FROM head WHERE born = "1912"',
    ),
    "spaces in an operator": (HEADS, "SELECT name FROM head WHERE age >= 5", "SELECT name FROM head WHERE age > = 5"),
    "a text that is also a column": (
        HEADS,
        'SELECT id FROM head WHERE name = "age"',
        "SELECT id FROM head WHERE name = 'age'",
    ),
    "a column in double quotes": (HEADS, "SELECT name FROM head", 'SELECT "name" FROM head'),
    "trailing semicolon": (HEADS, "SELECT name FROM head", "SELECT name FROM head;"),
}

DIFFERENT = {
    "literal": (HEADS, 'SELECT name FROM head WHERE born = "Ohio"', 'SELECT name FROM head WHERE born = "Iowa"'),
    "case of a literal": (
        HEADS,
        'SELECT name FROM head WHERE born = "TKO"',
        'SELECT name FROM head WHERE born = "tko"',
    ),
    "number": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age > 57"),
    "bound": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age >= 56"),
    "direction": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age < 56"),
    "selected column": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT born FROM head WHERE age > 56"),
    "compared column": (HEADS, 'SELECT id FROM head WHERE born = "Ohio"', 'SELECT id FROM head WHERE name = "Ohio"'),
    "no WHERE": (HEADS, "SELECT name FROM head WHERE age > 56", "SELECT name FROM head"),
    "a condition less": (
        HEADS,
        'SELECT name FROM head WHERE age > 56 AND born = "Ohio"',
        'SELECT name FROM head WHERE born = "Ohio"',
    ),
    "OR for AND": (
        HEADS,
        'SELECT name FROM head WHERE age > 56 AND born = "Ohio"',
        'SELECT name FROM head WHERE age > 56 OR born = "Ohio"',
    ),
    "order turned": (HEADS, "SELECT name FROM head ORDER BY age", "SELECT name FROM head ORDER BY age DESC"),
    "no order": (HEADS, "SELECT name FROM head ORDER BY age", "SELECT name FROM head"),
    "limit": (HEADS, "SELECT name FROM head ORDER BY age LIMIT 1", "SELECT name FROM head ORDER BY age LIMIT 2"),
    "DISTINCT": (HEADS, "SELECT DISTINCT born FROM head", "SELECT born FROM head"),
    "duplicates of UNION": (
        HEADS,
        "SELECT born FROM head UNION SELECT name FROM head",
        "SELECT born FROM head UNION ALL SELECT name FROM head",
    ),
    "aggregate": (HEADS, "SELECT MAX(age) FROM head", "SELECT MIN(age) FROM head"),
    "NULL is not counted": (HEADS, "SELECT COUNT(name) FROM head", "SELECT COUNT(*) FROM head"),
    "inner for left": (
        SHOPS,
        "SELECT city, day FROM shop LEFT JOIN sale ON shop.shop_id = sale.shop_id",
        "SELECT city, day FROM shop JOIN sale ON shop.shop_id = sale.shop_id",
    ),
    "join on nothing": (
        SHOPS,
        "SELECT city FROM shop JOIN sale ON shop.shop_id = sale.shop_id",
        "SELECT city FROM shop JOIN sale",
    ),
    "INTERSECT": (
        SHOPS,
        "SELECT shop_id FROM shop INTERSECT SELECT shop_id FROM sale",
        "SELECT shop_id FROM shop UNION SELECT shop_id FROM sale",
    ),
    "HAVING": (
        SHOPS,
        "SELECT shop_id FROM sale GROUP BY shop_id HAVING COUNT(*) > 3",
        "SELECT shop_id FROM sale GROUP BY shop_id HAVING COUNT(*) > 4",
    ),
    "LIKE": (
        HEADS,
        "SELECT name FROM head WHERE born LIKE '%hi%'",
        "SELECT name FROM head WHERE born LIKE 'hi%'",
    ),
    "BETWEEN": (
        HEADS,
        "SELECT name FROM head WHERE age BETWEEN 3 AND 9",
        "SELECT name FROM head WHERE age > 3 AND age < 9",
    ),
}

ONE_WAY = {SAME["the largest"][1:], SAME["a column in double quotes"][1:], DIFFERENT["no order"][1:]}
"""With gold and answer exchanged the verdict differs: ties count, a quoted word of the gold is a text, order is free."""


@pytest.mark.parametrize(("context", "gold", "answer"), SAME.values(), ids=SAME)
def test_what_means_the_same_is_right(context: str, gold: str, answer: str) -> None:
    score = exec_match(answer, gold, context)
    assert (score.value, score.explanation) == (1.0, "equal: on 10 databases")
    if (gold, answer) not in ONE_WAY:
        assert exec_match(gold, answer, context).value == 1.0


@pytest.mark.parametrize(("context", "gold", "answer"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_means_something_else_is_wrong(context: str, gold: str, answer: str) -> None:
    assert exec_match(gold, gold, context).value == 1.0
    score = exec_match(answer, gold, context)
    assert score.value == 0.0
    assert score.explanation.startswith("result mismatch: database ")
    if (gold, answer) not in ONE_WAY:
        assert exec_match(gold, answer, context).value == 0.0


@pytest.mark.parametrize(
    ("answer", "explanation"),
    [
        ("SELECT title FROM head", "missing table or column: no such column: title"),
        ("SELECT name FROM heads", "missing table or column: no such table: heads"),
        ("SELECT name FROM", "parse error: incomplete input"),
        ("SELECT MEDIAN(age) FROM head", "missing table or column: no such function: MEDIAN"),
        ("DELETE FROM head", "forbidden: DELETE from head"),
    ],
)
def test_a_failure_says_its_kind(answer: str, explanation: str) -> None:
    score = exec_match(answer, "SELECT name FROM head", HEADS)
    assert (score.value, score.explanation) == (0.0, explanation)


@pytest.mark.parametrize(
    ("context", "gold", "why"),
    [
        (HEADS, "SELECT title FROM head", "the gold does not run: missing table or column: no such column: title"),
        (HEADS, "SELECT name FROM head WHERE age > 9 AND age < 5", "the gold returns nothing on 48 databases"),
        (HEADS, "SELECT COUNT(*) FROM head WHERE age > 9 AND age < 5", "the gold returns nothing on 48 databases"),
        (HEADS, "SELECT MAX(id) FROM head WHERE age > 9 AND age < 5", "the gold returns nothing on 48 databases"),
        ("no table at all", "SELECT 1", "the context creates no table"),
    ],
)
def test_an_undecidable_sample_has_no_score_whatever_is_answered(context: str, gold: str, why: str) -> None:
    for answer in (gold, "SELECT name FROM head", "nonsense"):
        score = exec_match(answer, gold, context)
        assert (score.value, score.explanation) == (None, f"undecidable: {why}")


@pytest.mark.parametrize(
    ("context", "gold"),
    [
        ("CREATE TABLE t (order VARCHAR, from VARCHAR)", 'SELECT order FROM t WHERE from = "x" ORDER BY order'),
        ("CREATE TABLE t (1st_leg VARCHAR, 2005_06 INTEGER)", 'SELECT MAX(2005_06) FROM t WHERE 1st_leg = "0-1"'),
        ("CREATE TABLE t (cast VARCHAR, _1957 VARCHAR)", 'SELECT cast FROM t WHERE _1957 = "x"'),
        ("CREATE TABLE group (a VARCHAR)", "SELECT a FROM `group`"),
        ("CREATE TABLE t (a VARCHAR, a VARCHAR); CREATE TABLE t (b INTEGER)", "SELECT a FROM t WHERE b > 3"),
        ("CREATE TABLE t (a VARCHAR(20) NOT NULL, b DECIMAL(10, 2), PRIMARY KEY (a))", "SELECT a FROM t WHERE b > 2.5"),
        ("CREATE TABLE t (a, b)", 'SELECT a FROM t WHERE b = "ł ’ 日本"'),
        ("CREATE TABLE t (year VARCHAR)", "SELECT year FROM t WHERE year BETWEEN 60 AND 120"),
    ],
)
def test_awkward_schemas_are_made_and_their_golds_run(context: str, gold: str) -> None:
    assert exec_match(gold, gold, context).explanation == "equal: on 10 databases"


def test_databases_are_a_function_of_the_seed_and_hold_no_literal_of_an_answer() -> None:
    gold = 'SELECT name FROM head WHERE born = "Ohio"'
    schema = read_schema(HEADS)
    data = [[Maker(schema, read_demands(gold, schema), s).draw(i) for i in range(20)] for s in ("0", "0", "1")]
    assert data[0] == data[1] != data[2]
    text = repr(data)
    assert "'Ohio'" in text
    assert "'oHIO'" in text
    assert "Iowa" not in text


def test_a_tie_behind_limit_decides_nothing() -> None:
    """Rows in another order change no database that the suite keeps."""
    suite = Suite(HEADS, "SELECT name FROM head ORDER BY age DESC LIMIT 1", 0)
    assert len(suite.databases) == DATABASES
    for (rows,), _ in suite.databases:
        ages = [row[1] for row in rows if row[1] is not None]
        first = {row[0] for row in rows if row[1] == max(ages)}
        assert len(first) == 1
    suite.close()


def test_scores_of_a_batch_are_those_one_by_one() -> None:
    samples = [Sample(context, gold, answer) for context, gold, answer in [*SAME.values(), *DIFFERENT.values()]]
    assert exec_match_all(samples) == [exec_match(s.answer, s.gold, s.context) for s in samples]


def _rows(file: Path, source: str, count: int) -> list[dict[str, str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["source"] == source]
    return random.Random(1).sample(rows, min(count, len(rows)))


@pytest.mark.parametrize(
    ("file", "source", "most", "alike"),
    [
        *both("sql/dev.jsonl", samples=("wikisql", 0, 0), sets=("wikisql", 2, 1), label="wikisql"),
        *both("sql/dev.jsonl", samples=("spider", 0, 0), sets=("spider", 4, 1), label="spider"),
    ],
)
def test_gold_passes_in_its_canonical_form_and_another_answer_does_not(
    file: Path, source: str, most: int, alike: int
) -> None:
    """But for `most` golds that do not run, and `alike` answers of other rows that do the same."""
    rows = _rows(file, source, 200)
    forms = [canonical(row["answer"]).text or row["answer"] for row in rows]
    same = exec_match_all([Sample(row["context"], row["answer"], form) for row, form in zip(rows, forms, strict=True)])
    decided = [score for score in same if score.value is not None]
    assert len(decided) >= len(rows) - most
    assert {score.value for score in decided} == {1.0}
    turned = [*rows[1:], rows[0]]
    other = exec_match_all(
        [Sample(row["context"], row["answer"], wrong["answer"]) for row, wrong in zip(rows, turned, strict=True)]
    )
    assert sum(score.value or 0 for score in other) <= alike
