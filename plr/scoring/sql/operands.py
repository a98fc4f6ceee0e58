"""The operands of a query: a literal, a column, a function of one column, or a SELECT of one of these in parentheses."""

from __future__ import annotations

from typing import NamedTuple

from plr.scoring.sql.demands import ColumnKey
from plr.scoring.sql.schema import Schema
from plr.scoring.sql.tokens import Token, tokens

__all__ = ["Operand", "Operands", "number"]

_NOT_AN_ALIAS = {"as", "on", "where", "join", "inner", "left", "right", "full", "outer", "cross", "natural", "group",
                 "order", "having", "limit", "union", "intersect", "except", "using", "set"}  # fmt: skip
_ADDS = {"sum", "avg", "total"}


class Operand(NamedTuple):
    """`columns` it may mean (none for a literal), the `function` around them, and the position behind its `end`."""

    columns: list[ColumnKey]
    function: str
    literal: str | int | float | None
    end: int


class Operands:
    """The tokens of a query, closed by one of kind `end`, and what the names among them mean in a schema.

    `added` are the columns whose values are summed up.
    """

    def __init__(self, query: str, schema: Schema) -> None:
        self.tokens = [*tokens(query), Token("end", "", "")]
        self.columns: dict[str, list[ColumnKey]] = {}
        for table in schema.tables:
            for column in table.columns:
                self.columns.setdefault(column.name.lower(), []).append((table.name.lower(), column.name.lower()))
        tables = {table.name.lower() for table in schema.tables}
        self.aliases = self._aliases(tables)
        self.used = {table for named in self.aliases.values() for table in named} or tables
        self.added: set[ColumnKey] = set()

    def read(self, position: int) -> Operand | None:
        """Read the operand that begins at `position`; None if there is none."""
        if position >= len(self.tokens):
            return None
        token = self.tokens[position]
        if token.raw == "(":
            at = position + 1
            if self.tokens[at].value == "select":
                at += 1
            at += self.tokens[at].value == "distinct"
            inner = self.read(at)
            if inner is None or inner.literal is not None:
                return None
            return inner._replace(end=inner.end + (self.tokens[inner.end].raw == ")"))
        if token.kind == "number":
            return Operand([], "", number(token.raw), position + 1)
        if token.raw == "-" and self.tokens[position + 1].kind == "number":
            return Operand([], "", -number(self.tokens[position + 1].raw), position + 2)
        if (
            token.kind == "word"
            and self.tokens[position + 1].raw == "("
            and token.value not in ("and", "or", "in", "not")
        ):
            return self._function(position)
        if token.kind in ("word", "name", "text"):
            name = token.value.lower()
            if self.tokens[position + 1].raw == "." and name in self.aliases and position + 2 < len(self.tokens):
                column = self.tokens[position + 2].value.lower()
                columns = [key for key in self.columns.get(column, []) if key[0] in self.aliases[name]]
                return Operand(columns, "", None, position + 3)
            if token.kind == "text":
                return Operand([], "", token.value, position + 1)
            if name in self.columns:
                keys = self.columns[name]
                return Operand([key for key in keys if key[0] in self.used] or keys, "", None, position + 1)
        return None

    def _function(self, position: int) -> Operand | None:
        function, at = self.tokens[position].value, position + 2
        at += self.tokens[at].value == "distinct"
        star = self.tokens[at].raw == "*"
        inner = Operand([], "", None, at + 1) if star else self.read(at)
        if inner is None or inner.literal is not None or self.tokens[inner.end].raw != ")":
            return None
        if function in _ADDS:
            self.added.update(inner.columns)
        return Operand(inner.columns, function, None, inner.end + 1)

    def _aliases(self, tables: set[str]) -> dict[str, set[str]]:
        """Map every name a table goes by to its tables. One alias may mean two tables, in two SELECTs."""
        aliases: dict[str, set[str]] = {}
        for position, token in enumerate(self.tokens):
            name = token.value.lower()
            before = self.tokens[position - 1].value if position else ""
            if token.kind not in ("word", "name", "text") or name not in tables or before not in ("from", "join", ","):
                continue
            aliases.setdefault(name, set()).add(name)
            after = self.tokens[position + 1 + (self.tokens[position + 1].value == "as")]
            if after.kind in ("word", "name") and after.value not in _NOT_AN_ALIAS:
                aliases.setdefault(after.value.lower(), set()).add(name)
        return aliases


def number(raw: str) -> int | float:
    """Read a literal as a number.

    >>> number("5"), number(".5"), number("1e3")
    (5, 0.5, 1000.0)
    """
    return int(raw) if raw.isdigit() else float(raw)
