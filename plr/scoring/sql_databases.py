"""Small databases on which a gold query says something, and a wrong query says something else.

How the rows of one database are drawn, from a seed:

1. Every column gets candidates: the literals the gold compares it with, and near misses of each (the next number, the
   text with another case, one letter less or more). *Good* candidates satisfy most of what the gold asks of that
   column, the others are *near*. Literals come from the gold alone: an answer cannot plant its own.
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
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from plr.scoring.sql_demands import Atom, ColumnKey, Demands
from plr.scoring.sql_schema import Column, Schema, Table

__all__ = ["Data", "Maker"]

Data = list[list[tuple[Any, ...]]]
"""The rows of each table, in the order of the schema."""
Value = str | int | float | None
_MOST_ROWS = 80
_MOST_COUNTED = 210


class Maker:
    """Draws databases for one schema and one gold; ``draw`` is a function of its ``seed`` alone."""

    def __init__(self, schema: Schema, wants: Demands, seed: str) -> None:
        self.schema, self.wants, self.seed = schema, wants, seed
        self.group = _components(wants.links)
        self.good: dict[ColumnKey, list[Value]] = {}
        self.near: dict[ColumnKey, list[Value]] = {}
        for table in schema.tables:
            for column in table.columns:
                self._candidates((table.name.lower(), column.name.lower()), column)
        self._share_literals()

    def _candidates(self, key: ColumnKey, column: Column) -> None:
        atoms = list(self.wants.atoms.get(key, []))
        text = column.affinity == "TEXT"
        if key not in self.wants.links:
            atoms += [Atom("~", loose) for loose in self.wants.loose if isinstance(loose, str) == text]
        if not atoms:
            return
        found: dict[Value, int] = {}
        numbers = sorted(atom.value for atom in atoms if not isinstance(atom.value, str))
        between = [(low + high) // 2 for low, high in pairwise(numbers)]
        raw = [value for atom in atoms for value in _around(atom)] + between
        for value in dict.fromkeys(_stored(value, text) for value in raw):
            found[value] = sum(_holds(value, atom, text) for atom in atoms)
        most = max(found.values())
        self.good[key] = [value for value, held in found.items() if held == most]
        self.near[key] = [value for value, held in found.items() if held != most] or self.good[key]

    def _share_literals(self) -> None:
        """A column joined to one that is compared takes the same candidates."""
        for members in self.group.values():
            given = [key for key in sorted(members) if key in self.good]
            for key in sorted(members):
                if given and key not in self.good:
                    self.good[key], self.near[key] = self.good[given[0]], self.near[given[0]]

    def draw(self, index: int) -> Data:
        """Database number ``index``."""
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

    def _table(self, number: int, table: Table, many: bool) -> list[tuple[Any, ...]]:
        name = table.name.lower()
        keys = [(name, column.name.lower()) for column in table.columns]
        relevant = [i for i, key in enumerate(keys) if key in self.maker.good or key in self.maker.group]
        count = self._pick((3, 6, 10, 14))
        count = max(count, min(self.wants.limit + 2, _MOST_ROWS))
        unique = {i for i, key in enumerate(keys) if self._is_unique(table.columns[i], key)}
        fillers = [_Filler(self, number * 11 + i, table.columns[i], key) for i, key in enumerate(keys)]
        styles = ["witness"] * (max(1, self.heavy) if many else 1)
        styles += ["neighbour" if relevant and self._chance(0.5) else "free" for _ in range(count - 1)]
        drawn: list[tuple[Any, ...]] = []
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

    def _pick(self, items: Any) -> Any:
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
    """``people.id``, ``semesters.semester_id``: by its name a key of its table.

    >>> _names_its_rows(("semesters", "semester_id")), _names_its_rows(("enrolment", "semester_id"))
    (True, False)
    """
    table, column = key
    stem = column.removesuffix("id").rstrip("_")
    return column == "id" or (len(stem) > 2 and table.startswith(stem) and len(table) - len(stem) < 3)


def _components(links: list[tuple[ColumnKey, ColumnKey]]) -> dict[ColumnKey, set[ColumnKey]]:
    """Linked columns -> all they lead to."""
    group: dict[ColumnKey, set[ColumnKey]] = {}
    for one, other in links:
        merged = group.get(one, {one}) | group.get(other, {other})
        for key in merged:
            group[key] = merged
    return group


def _around(atom: Atom) -> Sequence[str | int | float]:
    """The literal and its near misses."""
    value = atom.value
    if isinstance(value, int):
        return [value, value + 1, value - 1, value + 7]
    if isinstance(value, float):
        step = 10.0 ** -len(f"{value!r}".partition(".")[2]) if "e" not in repr(value) else 1.0
        return [value, round(value + step, 9), round(value - step, 9), value + 7, value - 7]
    if "like" in atom.operator:
        plain = value.replace("_", "a")
        filled, core = plain.replace("%", "qz"), plain.replace("%", "")
        return [filled, core, f"qz{core}", f"{core}qz", core[:-1], f"{core[:1]}q{core[1:]}", "qz"]
    bumped = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit.group()) + 1) % 10), value)
    swapped = value.swapcase() if not value.isupper() else value.capitalize()
    near = [value, value[:-1], f"{value} q", f"q {value}", swapped, bumped]
    if value.isdigit():
        near += [str(int(value) + 1), str(max(0, int(value) - 1))]
    return near


def _stored(value: str | int | float, text: bool) -> str | int | float:
    """What SQLite keeps of a value in a column of text, or of numbers."""
    if text:
        return value if isinstance(value, str) else str(value)
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def _holds(value: str | int | float, atom: Atom, text: bool) -> bool:
    operator, wanted = atom.operator, _stored(atom.value, text)
    if operator == "~":
        return value == wanted
    if "like" in operator:
        pattern = re.escape(str(atom.value)).replace("%", ".*").replace("_", ".")
        found = re.fullmatch(pattern, str(value), re.IGNORECASE | re.DOTALL) is not None
        return found != operator.startswith("not ")
    left, right = (isinstance(value, str), value), (isinstance(wanted, str), wanted)
    equal, less = left == right, left < right  # numbers come before texts, as in SQLite
    return {
        "=": equal,
        "!=": not equal,
        "<": less,
        "<=": less or equal,
        ">": not less and not equal,
        ">=": not less,
    }.get(operator, False)
