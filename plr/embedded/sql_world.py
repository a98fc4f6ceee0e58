"""The tables and questions of the embedded base: one table, one query with up to two conditions.

As in `math_world`, a `Request` is the thing itself; `context`, `question` and `sql` write it in the form of
sql-create-context (CREATE TABLE, an English question, the query with string literals in double quotes).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Column", "Condition", "Request", "Table", "context", "draw", "draw_table", "question", "sql"]

TEXT_COLUMNS = ("team", "city", "player", "coach", "venue", "driver", "song", "artist", "nation", "title", "school",
                "club")  # fmt: skip
NUMBER_COLUMNS = ("year", "points", "rank", "score", "goals", "laps", "wins", "age", "week", "round", "votes", "size")
ONSETS = ("b", "d", "f", "k", "l", "m", "n", "p", "r", "s", "t", "v")
VOWELS = ("a", "e", "i", "o", "u")
NAME_FORMS = ("table_name_{}", "table_{}")
AGGREGATES = {"MAX": "highest", "MIN": "lowest", "AVG": "average", "SUM": "total"}
COMPARISONS = {">": "more than", "<": "less than", "=": "of"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `number` says INTEGER, otherwise VARCHAR."""

    name: str
    number: bool

    @property
    def type(self) -> str:
        return "INTEGER" if self.number else "VARCHAR"


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    column: Column
    op: str
    value: str | int

    @property
    def literal(self) -> str:
        return str(self.value) if isinstance(self.value, int) else f'"{self.value}"'

    def __str__(self) -> str:
        return f"{self.column.name} {self.op} {self.literal}"


@dataclass(frozen=True, slots=True)
class Request:
    """A question to `table`: `column` (through `aggregate`, `COUNT` or `None`) where `conditions` hold."""

    table: Table
    aggregate: str | None
    column: Column
    conditions: tuple[Condition, ...]
    form: int  # which of the question's wordings


def _word(rng: random.Random) -> str:
    """Invent a name such as `Kavo` or `Ribelu`: it can only be copied, never guessed."""
    syllables = rng.choice((2, 2, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)).capitalize()


def draw_value(rng: random.Random, column: Column) -> str | int:
    """Draw a value that could stand in `column`."""
    if column.name == "year":
        return rng.randint(1950, 2020)
    return rng.randint(2, 199) if column.number else _word(rng)


def draw_table(rng: random.Random) -> Table:
    """Draw a table of three or four columns, at least one text and one number, in random order."""
    name = rng.choice(NAME_FORMS).format(rng.randint(1, 99))
    texts, numbers = rng.choice(((1, 2), (2, 1), (2, 2)))
    columns = [Column(c, False) for c in rng.sample(TEXT_COLUMNS, texts)]
    columns += [Column(c, True) for c in rng.sample(NUMBER_COLUMNS, numbers)]
    rng.shuffle(columns)
    return Table(name, tuple(columns))


def draw(rng: random.Random, table: Table) -> Request:
    """Draw one request on `table`, with one or two conditions on columns other than the one asked for."""
    column = rng.choice(table.columns)
    kinds = (None, None, "COUNT", *AGGREGATES) if column.number else (None, None, "COUNT")
    aggregate = rng.choice(kinds)
    others = [c for c in table.columns if c is not column]
    conditions = []
    for other in rng.sample(others, rng.choice((1, 2))):
        op = rng.choice((">", "<", "=")) if other.number else "="
        conditions.append(Condition(other, op, draw_value(rng, other)))
    return Request(table, aggregate, column, tuple(conditions), rng.randrange(2))


def context(table: Table) -> str:
    """Write the CREATE TABLE statement, as sql-create-context writes it."""
    columns = ", ".join(f"{c.name} {c.type}" for c in table.columns)
    return f"CREATE TABLE {table.name} ({columns})"


def question(request: Request) -> str:
    """Write the request in English."""
    column, first = request.column.name, request.form == 0
    if request.aggregate is None:
        head = f"What is the {column}" if first else f"Name the {column}"
    elif request.aggregate == "COUNT":
        head = f"How many {column} are there" if first else f"Count the {column}"
    else:
        word = AGGREGATES[request.aggregate]
        head = f"What is the {word} {column}" if first else f"Name the {word} {column}"
    parts = [f"{c.column.name} {COMPARISONS[c.op]} {c.value}" for c in request.conditions]
    tail = " and ".join(parts)
    return f"{head} with {tail}?" if first else f"{head} when {tail}."


def sql(request: Request) -> str:
    """Write the query that answers the request."""
    column = request.column.name
    selected = column if request.aggregate is None else f"{request.aggregate}({column})"
    where = " AND ".join(str(c) for c in request.conditions)
    return f"SELECT {selected} FROM {request.table.name} WHERE {where}"
