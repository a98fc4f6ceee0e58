"""Demands of a gold query on the data: which values it compares with which columns, which columns it joins.

`plr.scoring.sql.reader` reads it from a query, `plr.scoring.sql.candidates` makes values of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Atom", "ColumnKey", "Demands"]

ColumnKey = tuple[str, str]
"""(table, column), in lower case."""
_AGGREGATES = {"count", "sum", "avg", "min", "max", "total", "group_concat"}


class Atom(NamedTuple):
    """`column operator value` of the gold; `operator` may be negated (`not like`, `!=`)."""

    operator: str
    value: str | int | float


@dataclass
class Demands:
    """The demands of one gold query.

    `counts` are numbers that a COUNT is compared with or that stand behind LIMIT; `loose` are literals compared with
    something that is no column; `ordered` says that the gold has ORDER BY.
    """

    atoms: dict[ColumnKey, list[Atom]] = field(default_factory=dict)
    links: list[tuple[ColumnKey, ColumnKey]] = field(default_factory=list)
    numeric: set[ColumnKey] = field(default_factory=set)
    sorted_by: set[ColumnKey] = field(default_factory=set)
    grouped_by: set[ColumnKey] = field(default_factory=set)
    counts: list[int] = field(default_factory=list)
    limit: int = 0
    loose: list[str | int | float] = field(default_factory=list)
    words: set[str] = field(default_factory=set)

    @property
    def compared_as_numbers(self) -> set[ColumnKey]:
        """Columns that are less or greater than a number somewhere, and never than a text."""
        columns: set[ColumnKey] = set()
        for key, atoms in self.atoms.items():
            literals = [atom.value for atom in atoms if atom.operator.strip("=") in ("<", ">")]
            if literals and not any(isinstance(literal, str) for literal in literals):
                columns.add(key)
        return columns

    @property
    def ordered(self) -> bool:
        return "order" in self.words

    @property
    def aggregates(self) -> bool:
        return bool(_AGGREGATES & self.words)
