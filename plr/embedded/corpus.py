"""Everything the embedded base reads: the rows of its two tasks, and the text it was pretrained on.

Standard library only. Equal arguments give equal rows on every machine (string seeds of `random.Random` are hashed with
SHA-512), and the first rows of a longer draw are those of a shorter one.

The splits are disjoint by construction: a question belongs to the one split that its SHA-256 names, and a row is kept
only if it falls into the split asked for. A table of `sql_rows` is bound in the same way, so neither question nor
schema stands in two splits.

>>> math_rows("test", 1)[0]["answer"].splitlines()[-1].startswith("#### ")
True
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

from plr.embedded import math_world, sql_world

__all__ = ["Split", "math_prompt", "math_rows", "pretraining_texts", "split_of", "sql_prompt", "sql_rows"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BUCKETS: tuple[Split, ...] = ("test", "test", "validation", "train", "train", "train", "train", "train")


def split_of(text: str) -> Split:
    """Return the one split that `text` belongs to."""
    return BUCKETS[hashlib.sha256(text.encode()).digest()[0] % len(BUCKETS)]


def _rng(*parts: object) -> random.Random:
    return random.Random(":".join(str(part) for part in ("plr.embedded", *parts)))


def _check(split: str, n: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n is {n}; expected the number of rows wanted, 0 or more")


def math_rows(split: Split, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` distinct rows `{"question", "answer"}` in the form of GSM8K; `ValueError` for an unknown split."""
    _check(split, n)
    rng, rows = _rng("math", split, seed), {}
    while len(rows) < n:
        problem = math_world.draw(rng)
        text = math_world.question(problem)
        if split_of(text) == split and text not in rows:
            rows[text] = {"question": text, "answer": math_world.answer(problem)}
    return list(rows.values())


def sql_rows(split: Split, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` distinct rows `{"question", "context", "answer"}` in the form of sql-create-context."""
    _check(split, n)
    rng, rows = _rng("sql", split, seed), {}
    while len(rows) < n:
        table = sql_world.draw_table(rng)
        context = sql_world.context(table)
        if split_of(context) != split:
            continue
        request = sql_world.draw(rng, table)
        text = sql_world.question(request)
        if split_of(text) == split and text not in rows:
            rows[text] = {"question": text, "context": context, "answer": sql_world.sql(request)}
    return list(rows.values())


def math_prompt(row: dict[str, str]) -> tuple[str, str]:
    """Return the prompt and target of a math row; the target is followed by EOS in training."""
    return f"Question: {row['question']}\nAnswer:", f" {row['answer']}"


def sql_prompt(row: dict[str, str]) -> tuple[str, str]:
    """Return the prompt and target of an SQL row; the target is followed by EOS in training."""
    return f"{row['context']}\nQuestion: {row['question']}\nSQL:", f" {row['answer']}"


# Pretraining: the same worlds, never in the two forms above, and never a problem, table or request that
# belongs to validation or test.


def _problem(rng: random.Random) -> math_world.Problem:
    while True:
        problem = math_world.draw(rng)
        if split_of(math_world.question(problem)) == "train":
            return problem


def _request(rng: random.Random) -> sql_world.Request:
    while True:
        table = sql_world.draw_table(rng)
        request = sql_world.draw(rng, table)
        if {split_of(sql_world.context(table)), split_of(sql_world.question(request))} == {"train"}:
            return request


def _drill(rng: random.Random) -> str:
    """Write bare sums: the calculator notes and the `####` line are met here, without any story."""
    equations = [equation for _ in range(3) for equation in _problem(rng).equations]
    rng.shuffle(equations)
    form = rng.randrange(4)
    if form == 3:
        return "\n".join(f"Question {e.left}{e.op}{e.right}? Answer {e.result}." for e in equations[:5])
    if form == 0:
        return "Notes: " + " ".join(f"<<{e}>>{e.result}." for e in equations)
    if form == 1:
        return "Sums:\n" + "\n".join(str(e) for e in equations)
    return "\n".join(f"{e.left}{e.op}{e.right}.\n#### {e.result}" for e in equations[:5])


def _told(rng: random.Random) -> str:
    """Write a story that does its sums as it goes."""
    p = _problem(rng)
    told = " ".join(f"{e.sentence[:-1]} ({', '.join(map(str, e.equations))})." for e in p.events)
    return f"{p.name} has {p.start} {p.item}. {told} In the end {p.name} has {p.result} {p.item}."


def _ledger(rng: random.Random) -> str:
    """Write a ledger and its balance."""
    p = _problem(rng)
    entries = "; ".join(event.entry for event in p.events)
    balance = "; ".join(map(str, p.equations))
    return f"{p.item} of {p.name}: start {p.start}; {entries}.\nBalance: {balance}; end {p.result}"


def _steps(rng: random.Random) -> str:
    """Write a story first, its sums afterwards."""
    p = _problem(rng)
    told = " ".join(event.sentence for event in p.events)
    sums = ", ".join(map(str, p.equations))
    return f"Story: {p.name} has {p.start} {p.item}. {told}\n{p.asked} Steps: {sums}\nResult: {p.result}"


def _wanted(request: sql_world.Request) -> str:
    """Write the request in the terse words of a comment."""
    words = {None: "", "COUNT": "count ", **{k: f"{v} " for k, v in sql_world.AGGREGATES.items()}}
    parts = "; ".join(
        f"{c.column.name} {sql_world.COMPARISONS[c.op] if c.op != '=' else 'is'} {c.value}" for c in request.conditions
    )
    return f"{words[request.aggregate]}{request.column.name} if {parts}"


def _dump(rng: random.Random) -> str:
    """Write a schema in short, then as a statement, and a row of the table."""
    table = _request(rng).table
    values = [sql_world.draw_value(rng, column) for column in table.columns]
    cells = ", ".join(str(value) if isinstance(value, int) else f'"{value}"' for value in values)
    return f"SQL dump of {_schema(table)}\n{sql_world.context(table)};\nINSERT INTO {table.name} VALUES ({cells});"


def _schema(table: sql_world.Table) -> str:
    return f"{table.name}: " + ", ".join(f"{column.type} {column.name}" for column in table.columns)


def _commented(rng: random.Random) -> str:
    """Write a schema in short, then comments and their queries."""
    table = _request(rng).table
    lines = [f"schema {_schema(table)}"]
    while len(lines) < 4:
        request = sql_world.draw(rng, table)
        if split_of(sql_world.question(request)) == "train":
            lines.append(f"-- {_wanted(request)}\n{sql_world.sql(request)};")
    return "\n".join(lines)


def _explained(rng: random.Random) -> str:
    """Write a query and what it means."""
    request = _request(rng)
    return f"{sql_world.sql(request)};\nmeaning: {_wanted(request)} in {request.table.name}"


def _asked(rng: random.Random) -> str:
    """Write the English question before the schema, and then the query."""
    request = _request(rng)
    return f"Ask: {sql_world.question(request)}\n{sql_world.context(request.table)};\nquery {sql_world.sql(request)};"


FORMS = (
    (_drill, 2), (_told, 3), (_ledger, 2), (_steps, 4),
    (_dump, 1), (_commented, 4), (_explained, 1), (_asked, 4),
)  # fmt: skip


def pretraining_texts(seed: int = 0) -> Iterator[str]:
    """Yield an endless stream of pretraining documents, each without its end-of-text mark."""
    rng = _rng("pretraining", seed)
    forms, weights = zip(*FORMS, strict=True)
    while True:
        yield rng.choices(forms, weights)[0](rng)
