"""Judge whether an answer returns what the gold returns, on databases made for the gold.

1. The databases of a gold (`Suite`) are drawn until `DATABASES` are found on which the gold is *definite*:
   with the rows of each table in another order it returns the same. A tie behind LIMIT, or a column that GROUP BY does
   not fix, is not: there an answer could be right by luck only. Where too few are definite, others are taken, as in
   Spider's own suites.
2. On one of them at least the gold must *say something*: a row that is not NULL throughout, and for an aggregate not
   the 0 of an empty table. Else the sample is undecidable.
3. The answer must agree on every database.

Runs in the worker's process alone.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from typing import NamedTuple

from plr.scoring.sql.compare import Row, normalized_rows, same_rows
from plr.scoring.sql.databases import Data, Maker
from plr.scoring.sql.reader import read_demands
from plr.scoring.sql.sandbox import MAX_CHARS, Failure, Result, Sandbox
from plr.scoring.sql.schema import Schema, read_schema
from plr.scoring.sql.tokens import executable, texts

__all__ = ["DATABASES", "Suite", "Verdict", "judge"]

DATABASES = 10
_MOST_TRIES = 48
_KEPT_SUITES = 8
Rows = list[Row]
_LOOSE_ORDER = ("order", "group", "limit", "group_concat")


class Verdict(NamedTuple):
    """`kind`: equal, undecidable, result mismatch, or that of a `Failure`."""

    kind: str
    detail: str


class Query:
    """A query in the two spellings of `executable`, each made when it is needed."""

    def __init__(self, text: str, known_texts: set[str] | None, names: set[str]) -> None:
        self.text, self.known_texts, self.names = text, known_texts, names
        self._spelled: dict[bool, str] = {}

    def spelled(self, *, quoting: bool = False) -> str:
        """Spell the query for SQLite; with `quoting` the awkward ones of `names` are quoted."""
        if quoting not in self._spelled:
            self._spelled[quoting] = executable(self.text, self.known_texts, self.names if quoting else ())
        return self._spelled[quoting]


class Suite:
    """The databases of one gold and what it returns on each; `problem` says why the sample is undecidable."""

    def __init__(self, context: str, gold: str, seed: int) -> None:
        self.problem = ""
        self.databases: list[tuple[Data, Rows]] = []
        self.sandbox: Sandbox | None = None
        self.texts = texts(gold)
        self.schema: Schema = read_schema(context)
        if not self.schema.tables:
            self.problem = "the context creates no table"
            return
        self.names = {column.name.lower() for table in self.schema.tables for column in table.columns}
        self.names |= {table.name.lower() for table in self.schema.tables}
        self.wants = read_demands(gold, self.schema)
        self.schema = self.schema.with_numbers(self.wants.compared_as_numbers)
        self.tables = [(table.delete, table.insert) for table in self.schema.tables]
        try:
            self.sandbox = Sandbox([table.create for table in self.schema.tables])
            self._fill(gold, Maker(self.schema, self.wants, f"{seed}:{context}:{gold}"))
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:  # of the context, not of a query
            self.problem = f"the tables cannot be made: {error}"

    def close(self) -> None:
        if self.sandbox is not None:
            self.sandbox.close()

    def run(self, data: Data, query: Query) -> Rows | Failure:
        """Run `query` on `data`; return its rows.

        Where it does not compile as it stands, the awkward names of the schema are quoted; if that does not help, the
        first failure is the one reported.
        """
        assert self.sandbox is not None
        self.sandbox.load(self.tables, data)
        first = self.sandbox.run(query.spelled())
        if isinstance(first, Failure) and first.kind in ("parse error", "missing table or column"):
            second = self.sandbox.run(query.spelled(quoting=True))
            first = second if isinstance(second, Result) else first
        return normalized_rows(first.rows) if isinstance(first, Result) else first

    def _fill(self, gold: str, maker: Maker) -> None:
        spare: list[tuple[Data, Rows]] = []
        query = Query(gold, None, self.names)
        says = False
        for index in range(_MOST_TRIES):
            data = maker.draw(index)
            rows = self.run(data, query)
            if isinstance(rows, Failure):
                self.problem = f"the gold does not run: {rows.kind}: {rows.detail}"
                return
            saying = self._says(rows)
            last = len(self.databases) == DATABASES - 1
            if (saying or says or not last) and self._definite(query, data, rows):
                self.databases.append((data, rows))
                says = says or saying
                if last:
                    return
            else:
                spare.append((data, rows))
        spare.sort(key=lambda each: not self._says(each[1]))
        self.databases += spare[: DATABASES - len(self.databases)]
        if not any(self._says(rows) for _, rows in self.databases):
            self.problem = f"the gold returns nothing on {_MOST_TRIES} databases"

    def _definite(self, query: Query, data: Data, rows: Rows) -> bool:
        bare = self.wants.aggregates and len(rows) > 0 and len(rows[0]) > 1
        if not bare and not any(word in self.wants.words for word in _LOOSE_ORDER):
            return True
        for turned in ([table[::-1] for table in data], [table[1::2] + table[::2] for table in data]):
            other = self.run(turned, query)
            if isinstance(other, Failure) or not same_rows(rows, other, ordered=self.wants.ordered):
                return False
        return True

    def _says(self, rows: Rows) -> bool:
        nothing = (None, 0) if self.wants.aggregates and len(rows) == 1 else (None,)
        return any(value not in nothing for row in rows for value in row)


@lru_cache(maxsize=1)
def _suites() -> dict[tuple[str, str, int], Suite]:
    return {}


def _suite(context: str, gold: str, seed: int) -> Suite:
    suites, key = _suites(), (context, gold, seed)
    if key not in suites:
        if len(suites) >= _KEPT_SUITES:
            suites.pop(next(iter(suites))).close()
        suites[key] = Suite(context, gold, seed)
    return suites[key]


def judge(context: str, gold: str, answer: str, seed: int = 0) -> Verdict:
    """Judge one answer. Nothing an answer says raises."""
    suite = _suite(context, gold, seed)
    if suite.problem:
        return Verdict("undecidable", suite.problem)
    query = Query(answer[: MAX_CHARS + 1], suite.texts, suite.names)
    for number, (data, wanted) in enumerate(suite.databases, start=1):
        rows = suite.run(data, query)
        if isinstance(rows, Failure):
            return Verdict(rows.kind, rows.detail)
        if not same_rows(wanted, rows, ordered=suite.wants.ordered):
            return Verdict("result mismatch", f"database {number}: gold {_shown(wanted)}, answer {_shown(rows)}")
    return Verdict("equal", f"on {len(suite.databases)} databases")


def _shown(rows: Rows) -> str:
    first = f", first {rows[0]!r}"[:80] if rows else ""
    return f"{len(rows)} rows{first}"
