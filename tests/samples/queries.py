"""Questions to tables with their SQL, as sql-create-context lays rows out: short ones on one table, long ones on two."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from plr.embedded import sql_world

__all__ = ["long_queries", "short_queries"]


def short_queries(seed: int, tables: int, of_each: int) -> list[dict[str, Any]]:
    """Rows of the embedded world of tables, under names and with the columns that WikiSQL's rows have, and a few odd ones."""
    rng, rows = random.Random(seed), list[dict[str, Any]]()
    for number in range(tables):
        key = f"{1 + number % 2}-{seed}{number:04d}-{rng.randint(1, 9)}"
        table = sql_world.Table(f"table_{key.replace('-', '_')}", sql_world.draw_table(rng).columns)
        drawn = dict[str, sql_world.Request]()
        while len(drawn) < of_each:
            request = sql_world.draw(rng, table)
            drawn.setdefault(sql_world.sql(request), request)
        rows += [_row(sql_world.question(r), sql_world.context(table), q, "wikisql") for q, r in drawn.items()]
    return [_row(*texts, "wikisql") for texts in _odd(seed)] + rows


def _odd(seed: int) -> list[tuple[str, str, str]]:
    """Literals with quotes, signs, keywords and letters of other scripts; a number with a point; a keyword's case."""
    table = f"CREATE TABLE table_{seed}_odd_{{}} (venue VARCHAR, f_laps VARCHAR, round INTEGER, record VARCHAR)"
    queries = (
        ("Which venue has o'brien's record?", 'SELECT venue FROM {} WHERE record = "o\'brien"'),
        ("which record has the venue order by 98–91\u00a0?", 'SELECT record FROM {} WHERE venue = "order by 98–91"'),
        ("How many f/laps has Ålesund (no), 100%?", 'SELECT COUNT(f_laps) FROM {} WHERE venue = "Ålesund (no), 100%"'),
        ("What rounds are above 1.0 with select?", 'SELECT round FROM {} WHERE round > 1.0 AND record = "select"'),
    )
    name = f"table_{seed}_odd_{{}}"
    return [(q, table.format(i), a.format(name.format(i))) for i, (q, a) in enumerate(queries)]


def _row(question: str, context: str, answer: str, source: str) -> dict[str, Any]:
    return {"question": question, "context": context, "answer": answer, "source": source}


@dataclass(frozen=True)
class Schema:
    """Two tables: a parent with a name, a kind and a number, and a child that points at it, with a label and a number."""

    parent: str
    child: str
    key: str
    kind: str
    number: str
    label: str
    amount: str
    kinds: tuple[str, str, str]
    labels: tuple[str, str]


SCHEMAS = (
    Schema("orchard", "harvest", "orchard_id", "region", "trees", "fruit", "tons", ("north", "Coast", "hills"),
           ("pear", "Quince")),
    Schema("lighthouse", "keeper", "tower_id", "coast", "height", "surname", "years", ("east", "West Bay", "isle"),
           ("Lund", "O'Hara")),
    Schema("choir", "concert", "choir_id", "city", "singers", "hall", "seats", ("Ghent", "Turku", "Bari"),
           ("Old Mill", "Dome")),
    Schema("telescope", "night", "scope_id", "site", "aperture", "object", "minutes", ("desert", "peak", "Andes"),
           ("M31", "Vega")),
    Schema("ferry", "crossing", "ferry_id", "harbour", "cabins", "weather", "passengers", ("Kiel", "Oban", "Split"),
           ("calm", "storm")),
    Schema("printer", "pamphlet", "printer_id", "quarter", "presses", "subject", "copies", ("docks", "Hill", "market"),
           ("law", "Song")),
)  # fmt: skip

TEMPLATES = (
    ("How many {p}s are there?", "SELECT COUNT(*) FROM {p}"),
    ("Names and {n} of all {p}s, most {n} first.", "SELECT name, {n} FROM {p} ORDER BY {n} DESC"),
    ("Which {p}s have more than 2 {n}?", "SELECT Name FROM {p} WHERE {n} > 2"),
    ("Average and most {a} for {l0}?", 'SELECT AVG({a}), MAX({a}) FROM {c} WHERE {l} = "{l0}"'),
    ("How many {c}s has every {p}?",
     "SELECT T1.name, COUNT(*) FROM {p} AS T1 JOIN {c} AS T2 ON T1.{i} = T2.{i} GROUP BY T1.{i}"),
    ("Which {p}s have at least 2 {c}s?",
     "SELECT T1.{k} FROM {p} AS T1 JOIN {c} AS T2 ON T1.{i} = T2.{i} GROUP BY T2.{i} HAVING COUNT(*) >= 2"),
    ("Which {k} has the most {p}s?", "SELECT {k} FROM {p} GROUP BY {k} ORDER BY COUNT(*) DESC LIMIT 1"),
    ("Which {p}s have no {c}?", "SELECT name FROM {p} WHERE NOT {i} IN (SELECT {i} FROM {c})"),
    ("The different {l}s, please.", "SELECT DISTINCT {l} FROM {c}"),
    ("How many different {k}s are there?", "SELECT COUNT(DISTINCT {k}) FROM {p}"),
    ("Which {p}s have more {n} than the average?", "SELECT name FROM {p} WHERE {n} > (SELECT AVG({n}) FROM {p})"),
    ("Which {k}s have {p}s with over 1 and with under 3 {n}?",
     "SELECT {k} FROM {p} WHERE {n} > 1 INTERSECT SELECT {k} FROM {p} WHERE {n} < 3"),
    ("Which {p}s have a {c} but none of {l1}?",
     "SELECT {i} FROM {c} EXCEPT SELECT {i} FROM {c} WHERE {l} = \"{l1}\""),
    ("Names of {p}s in {k0} or {k1}?", "SELECT name FROM {p} WHERE {k} = '{k0}' OR {k} = '{k1}'"),
    ("Which {p}s have an n in their name?", "SELECT name FROM {p} WHERE name LIKE '%n%'"),
    ("{l}s of {c}s with 1 to 2 {a}?", "SELECT {l} FROM {c} WHERE {a} BETWEEN 1 AND 2"),
    ("All {a} of each {l}, the least first.", "SELECT {l}, SUM({a}) FROM {c} GROUP BY {l} ORDER BY SUM({a})"),
    ("Names of {p}s with {l0} and over 1 {a}?",
     'SELECT DISTINCT T1.name FROM {p} AS T1 JOIN {c} AS T2 ON T1.{i} = T2.{i} WHERE T2.{l} = "{l0}" AND T2.{a} > 1'),
    ("{k}s that are not {k2}, with their least {n}.", 'SELECT {k}, MIN({n}) FROM {p} WHERE {k} <> "{k2}" GROUP BY {k}'),
)  # fmt: skip


def long_queries(schemas: slice) -> list[dict[str, Any]]:
    """Rows of joins, groups, subqueries and set operations, each kind on each schema, as Spider's are."""
    rows = list[dict[str, Any]]()
    for s in SCHEMAS[schemas]:
        words = {"p": s.parent, "c": s.child, "i": s.key, "k": s.kind, "n": s.number, "l": s.label, "a": s.amount}
        words |= {f"k{i}": kind for i, kind in enumerate(s.kinds)} | {
            f"l{i}": label for i, label in enumerate(s.labels)
        }
        parent = f"CREATE TABLE {s.parent} ({s.key} INTEGER, name VARCHAR, {s.kind} VARCHAR, {s.number} INTEGER)"
        child = f"CREATE TABLE {s.child} ({s.key} INTEGER, {s.label} VARCHAR, {s.amount} INTEGER)"
        for question, query in TEMPLATES:
            asked, answer = question.format(**words), query.format(**words)
            rows.append(_row(asked, f"{parent}; {child}", answer, "spider"))
    return rows
