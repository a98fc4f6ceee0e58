"""The values a gold asks for and near misses of them, for every column that it compares.

*Good* candidates satisfy most of what the gold asks of that column, the others are *near*. They are made of the gold's literals
alone: an answer cannot plant its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from plr.scoring.sql.demands import Atom, ColumnKey, Demands
from plr.scoring.sql.schema import Schema

__all__ = ["Candidates", "Value", "linked"]

Value = str | int | float | None


class Candidates:
    """Values for the columns that are compared with something: `good` ones satisfy the query, `near` ones just miss.

    `group` holds, for each column that is joined, all columns that its joins lead to, which have the same candidates.
    """

    def __init__(self, schema: Schema, wants: Demands) -> None:
        self.group = linked(wants.links)
        self.good: dict[ColumnKey, list[Value]] = {}
        self.near: dict[ColumnKey, list[Value]] = {}
        for table in schema.tables:
            for column in table.columns:
                self._add((table.name.lower(), column.name.lower()), wants, column.affinity == "TEXT")
        for members in self.group.values():
            filled = [key for key in sorted(members) if key in self.good]
            for key in sorted(members):
                if filled and key not in self.good:
                    self.good[key], self.near[key] = self.good[filled[0]], self.near[filled[0]]

    def _add(self, key: ColumnKey, wants: Demands, text: bool) -> None:
        atoms = list(wants.atoms.get(key, []))
        if key not in wants.links:
            atoms += [Atom("~", loose) for loose in wants.loose if isinstance(loose, str) == text]
        if not atoms:
            return
        numbers = sorted(atom.value for atom in atoms if not isinstance(atom.value, str))
        between = [(low + high) // 2 for low, high in pairwise(numbers)]
        raw = [value for atom in atoms for value in _around(atom)] + between
        satisfied: dict[Value, int] = {}
        for value in dict.fromkeys(_stored(value, text) for value in raw):
            satisfied[value] = sum(_holds(value, atom, text) for atom in atoms)
        most = max(satisfied.values())
        self.good[key] = [value for value, held in satisfied.items() if held == most]
        self.near[key] = [value for value, held in satisfied.items() if held != most] or self.good[key]


def linked(links: list[tuple[ColumnKey, ColumnKey]]) -> dict[ColumnKey, set[ColumnKey]]:
    """Group linked columns: each -> all it leads to."""
    group: dict[ColumnKey, set[ColumnKey]] = {}
    for one, other in links:
        merged = group.get(one, {one}) | group.get(other, {other})
        for key in merged:
            group[key] = merged
    return group


def _around(atom: Atom) -> Sequence[str | int | float]:
    """List the literal of an atom and its near misses."""
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
    """Convert a value as SQLite does when a column of text, or of numbers, stores it."""
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
        matches = re.fullmatch(pattern, str(value), re.IGNORECASE | re.DOTALL) is not None
        return matches != operator.startswith("not ")
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
