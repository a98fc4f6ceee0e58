"""Small databases on which a gold query says something, and a wrong query says something else.

How the rows of one database are drawn, from a seed:

1. Every column gets candidates (`plr.scoring.sql.candidates`): the literals the gold compares it with, and near misses of
   each (the next number, the text with another case, one letter less or more); *good* and *near* ones.
2. Columns that are joined share one small pool of keys.
3. The first row of each table is a *witness*: good values, the first key. Joined witnesses satisfy a conjunction.
4. Other rows are *neighbours*, a witness with one column gone wrong, so that a condition left out shows; or drawn
   freely, so that OR, NOT, aggregates and groups have something to count.
5. Columns the gold does not compare are filled with values of their own, repeated in some databases (DISTINCT), with
   NULL in some (COUNT), unless it sorts by them. Rows stand in random order; in some databases one of several tables is empty.

What is given up: constraints between columns that no literal shows (a total that is the sum of two columns), and the
order of texts as dates. A table has 3 to 14 rows, more where the gold
counts or limits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from plr.scoring.sql.candidates import Candidates, Value
from plr.scoring.sql.compare import Row
from plr.scoring.sql.demands import ColumnKey, Demands
from plr.scoring.sql.schema import Column, Schema, Table

__all__ = ["Data", "Maker"]

_Item = TypeVar("_Item")
Data = list[list[Row]]
"""The rows of each table, in the order of the schema."""
_MOST_ROWS = 80
_MOST_COUNTED = 210


class Maker:
    """Draws databases for one schema and one gold; `draw` is a function of its `seed` alone."""

    def __init__(self, schema: Schema, wants: Demands, seed: str) -> None:
        self.schema, self.wants, self.seed = schema, wants, seed
        candidates = Candidates(schema, wants)
        self.group, self.good, self.near = candidates.group, candidates.good, candidates.near

    def draw(self, index: int) -> Data:
        """Draw database number `index`."""
        return _Draw(self, index).rows()


class _Draw:
    def __init__(self, maker: Maker, index: int) -> None:
        self.maker, self.wants, self.index = maker, maker.wants, index
        self.random = random.Random(f"{maker.seed}:{index}")
        self.p_good = self._pick((0.35, 0.6, 0.85))
        self.spread = self._pick((2, 4, 40))
        self.p_null = 0.3 if index % 3 == 2 else 0.0
        self.keys = self._pick((2, 4, 8))
        self.heavy = 0
        """Rows of one group, where the gold counts: as many as it names, one less, one more."""
        if self.wants.counts:
            self.heavy = min(max(1, self._pick(self.wants.counts) + (0, 1, 2, -1)[index % 4]), _MOST_COUNTED)

    def rows(self) -> Data:
        tables = self.maker.schema.tables
        empty = self._pick(range(len(tables))) if len(tables) > 1 and self.index % 8 == 7 else None
        many = self._pick(range(len(tables)))
        return [
            []
            if number == empty
            else self._table(number, table, number == many or self._chance(0.1 if self.heavy else 0.3))
            for number, table in enumerate(tables)
        ]

    def _table(self, number: int, table: Table, many: bool) -> list[Row]:
        name = table.name.lower()
        keys = [(name, column.name.lower()) for column in table.columns]
        relevant = [i for i, key in enumerate(keys) if key in self.maker.good or key in self.maker.group]
        count = self._pick((3, 6, 10, 14))
        count = max(count, min(self.wants.limit + 2, _MOST_ROWS))
        unique = {i for i, key in enumerate(keys) if self._is_unique(table.columns[i], key)}
        fillers = [_Filler(self, number * 11 + i, table.columns[i], key) for i, key in enumerate(keys)]
        styles = ["witness"] * (max(1, self.heavy) if many else 1)
        styles += ["neighbour" if relevant and self._chance(0.5) else "free" for _ in range(count - 1)]
        drawn: list[Row] = []
        for style in styles:
            wrong = self._pick(relevant) if style == "neighbour" else None
            row = [
                self._cell(key, fillers[i], style, i == wrong, len(drawn) if i in unique else None)
                for i, key in enumerate(keys)
            ]
            drawn.append(tuple(row))
        self.random.shuffle(drawn)
        return drawn

    def _is_unique(self, column: Column, key: ColumnKey) -> bool:
        if key in self.maker.good and key not in self.maker.group:
            return False
        if column.unique:
            return True
        if key in self.wants.sorted_by and self.wants.limit:
            return self._chance(0.8)  # the first of several equal rows is nobody's choice
        if key not in self.maker.group and key not in self.wants.grouped_by:
            return self._chance(0.1)
        return self._chance(0.85 if _names_its_rows(key) else 0.5)

    def _cell(self, key: ColumnKey, filler: _Filler, style: str, wrong: bool, serial: int | None) -> Value:
        good, near = self.maker.good.get(key), self.maker.near.get(key)
        if good and near:
            if style == "free":
                wrong = not self._chance(self.p_good)
            if serial is not None and serial > 0:
                return filler.value(serial)
            return self._pick(near if wrong else good)
        if serial is not None:
            return filler.value(serial)
        if key in self.maker.group:
            if self.heavy:  # no other row may join the group that is counted
                return filler.value(0 if style == "witness" else 1 + self._below(self.keys))
            first = style == "witness" or (style == "neighbour" and not wrong) or self._chance(0.3)
            return filler.value(0 if first else self._below(self.keys))
        if self.heavy and key in self.wants.grouped_by:
            return filler.value(0 if style == "witness" else 1 + self._below(self.spread))
        if self.p_null and not filler.declared_unique and key not in self.wants.sorted_by and self._chance(self.p_null):
            return None
        return filler.value(self._below(self.spread))

    def _chance(self, p: float) -> bool:
        return self.random.random() < p

    def _below(self, n: int) -> int:
        return int(self.random.random() * n)

    def _pick(self, items: Sequence[_Item]) -> _Item:
        return items[self._below(len(items))]


class _Filler:
    """Values of one column that no literal names; joined columns have the same."""

    def __init__(self, draw: _Draw, number: int, column: Column, key: ColumnKey) -> None:
        self.key = key in draw.maker.group
        self.text = column.affinity == "TEXT"
        self.declared_unique = column.unique
        self.name = column.name.lower()
        self.digits = not self.text or self.key or key in draw.wants.numeric
        self.base = 1 if self.key else 3 + (number * 17) % 60
        self.step = 1 if self.key else 1 + draw.index % 3

    def value(self, serial: int) -> Value:
        if not self.digits:
            return f"{self.name} {serial}"
        number = self.base + serial * self.step
        return str(number) if self.text else number


def _names_its_rows(key: ColumnKey) -> bool:
    """Tell by its name that a column is a key of its table: `people.id`, `semesters.semester_id`.

    >>> _names_its_rows(("semesters", "semester_id")), _names_its_rows(("enrolment", "semester_id"))
    (True, False)
    """
    table, column = key
    stem = column.removesuffix("id").rstrip("_")
    return column == "id" or (len(stem) > 2 and table.startswith(stem) and len(table) - len(stem) < 3)
