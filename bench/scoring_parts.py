"""What a scored SQL sample costs: by part, against the least it could cost, and done in the straightforward way.

All three judge in this process, so that CPU time can be told apart; the answers are those of the benchmark and end by themselves.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from plr.scoring.sql import judge as sql_judge
from plr.scoring.sql.databases import Data, Maker
from plr.scoring.sql.judge import Suite, Verdict, judge
from plr.scoring.sql.match import canonical, normalized_match, raw_match
from plr.scoring.sql.pool import Sample
from plr.scoring.sql.sandbox import Failure, Result, Sandbox

__all__ = ["PARTS", "floor", "forget", "parts", "straightforward"]

PARTS = {
    "parse": "sqlglot: canonical forms of answer and gold, in the parent",
    "draw": "drawing the rows of the databases",
    "load": "making the tables in SQLite and filling them",
    "execute": "gold and answer, in the sandbox",
    "compare": "bags of rows",
    "read": "the rest of a verdict: schema, what the gold asks, spelling",
}


class _Fresh(Sandbox):
    """A connection for every database, opened, filled and closed each time; nothing is limited."""

    def __init__(self, statements: list[str]) -> None:
        self.statements, self.connection = statements, sqlite3.connect(":memory:")

    def load(self, tables: list[tuple[str, str]], data: Data) -> None:
        self.connection.close()
        self.connection = sqlite3.connect(":memory:")
        for statement in self.statements:
            self.connection.execute(statement)
        for (_, insert), rows in zip(tables, data, strict=True):
            self.connection.executemany(insert, rows)

    def run(self, query: str) -> Result | Failure:
        try:
            cursor = self.connection.execute(query)
            return Result(cursor.fetchall()) if cursor.description else Failure("parse error", "no query")
        except (sqlite3.Error, sqlite3.Warning) as error:
            missing = str(error).startswith("no such")
            return Failure("missing table or column" if missing else "parse error", str(error))


def forget() -> None:
    """No text parsed before and no databases made before help the next measurement."""
    canonical.cache_clear()
    for suite in sql_judge._suites().values():
        suite.close()
    sql_judge._suites().clear()


def compare_texts(sample: Sample, response: str) -> None:
    """The metrics of the task that compare text."""
    raw_match(response, sample.gold)
    normalized_match(response, sample.gold)
    normalized_match(sample.answer, sample.gold)
    normalized_match(sample.answer, sample.gold, fold_literals=True)


def straightforward(samples: Sequence[Sample], responses: Sequence[str]) -> list[Verdict]:
    """One process, one sample after the other: texts parsed, then the same databases in a fresh connection each."""
    found: list[Verdict] = []
    with patch.object(sql_judge, "Sandbox", _Fresh):
        for sample, response in zip(samples, responses, strict=True):
            compare_texts(sample, response)
            found.append(judge(*sample))
            forget()
    return found


def parts(samples: Sequence[Sample], responses: Sequence[str]) -> dict[str, float]:
    """CPU milliseconds a sample of each of PARTS, as the worker spends them."""
    spent = dict.fromkeys(PARTS, 0.0)
    forget()
    with _clocks(spent):
        for sample, response in zip(samples, responses, strict=True):
            _timed(spent, "parse", compare_texts)(sample, response)
            _timed(spent, "read", judge)(*sample)
    spent["read"] -= sum(spent[name] for name in ("draw", "load", "execute", "compare"))
    return {name: 1000 * seconds / len(samples) for name, seconds in spent.items()}


def floor(samples: Sequence[Sample]) -> float:
    """CPU milliseconds a sample of SQLite alone: one connection, its tables, ten databases, gold and answer on each."""
    spent = 0.0
    for sample in samples:
        suite = Suite(sample.context, sample.gold, sample.seed)
        queries = [
            sql_judge.Query(sample.gold, None, suite.names),
            sql_judge.Query(sample.answer, suite.texts, suite.names),
        ]
        texts = [query.spelled() for query in queries]
        begun = time.process_time()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        for table in suite.schema.tables:
            connection.execute(table.create)
        for data, _ in suite.databases:
            for (delete, insert), rows in zip(suite.tables, data, strict=True):
                connection.execute(delete)
                connection.executemany(insert, rows)
            for text in texts:
                try:
                    connection.execute(text).fetchall()
                except (sqlite3.Error, sqlite3.Warning):
                    break
        connection.close()
        spent += time.process_time() - begun
        suite.close()
    return 1000 * spent / len(samples)


def _timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*given, **named)
        finally:
            spent[name] += time.process_time() - begun

    return timed


@contextmanager
def _clocks(spent: dict[str, float]) -> Iterator[None]:
    places = ((Maker, "draw", "draw"), (Sandbox, "__init__", "load"), (Sandbox, "load", "load"), (Sandbox, "run", "execute"),
              (sql_judge, "same_rows", "compare"), (sql_judge, "normalized_rows", "compare"))  # fmt: skip
    with ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(patch.object(owner, attribute, _timed(spent, name, getattr(owner, attribute))))
        yield
