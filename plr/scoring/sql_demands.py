"""What a gold query asks of the data: which values it compares with which columns, which columns it joins.

Read from the flat tokens of the query, in one pass: operand, operator, operand. Names are resolved generously (a column
without a qualifier belongs to every table that has it), since a column that gets values it did not need does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from plr.scoring.sql_schema import Schema
from plr.scoring.sql_tokens import Token, tokens

__all__ = ["Atom", "ColumnKey", "Demands", "read_demands"]

ColumnKey = tuple[str, str]
"""(table, column), in lower case."""
_COMPARISONS = {"=", "==", "!=", "<>", "<", ">", "<=", ">=", "like", "in", "between", "is", "glob"}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_NOT_AN_ALIAS = {"as", "on", "where", "join", "inner", "left", "right", "full", "outer", "cross", "natural", "group",
                 "order", "having", "limit", "union", "intersect", "except", "using", "set"}  # fmt: skip
_AGGREGATES = {"count", "sum", "avg", "min", "max", "total", "group_concat"}
_ADDS = {"sum", "avg", "total"}


class Atom(NamedTuple):
    """``column operator value`` of the gold; ``operator`` may be negated (``not like``, ``!=``)."""

    operator: str
    value: str | int | float


@dataclass
class Demands:
    """``counts`` are numbers that a COUNT is compared with or that stand behind LIMIT; ``loose`` are literals compared
    with something that is no column; ``ordered`` says that the gold has ORDER BY."""

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
        found: set[ColumnKey] = set()
        for key, atoms in self.atoms.items():
            literals = [atom.value for atom in atoms if atom.operator.strip("=") in ("<", ">")]
            if literals and not any(isinstance(literal, str) for literal in literals):
                found.add(key)
        return found

    @property
    def ordered(self) -> bool:
        return "order" in self.words

    @property
    def aggregates(self) -> bool:
        return bool(_AGGREGATES & self.words)


class _Operand(NamedTuple):
    columns: list[ColumnKey]
    function: str
    literal: str | int | float | None
    end: int


def read_demands(gold: str, schema: Schema) -> Demands:
    """
    >>> from plr.scoring.sql_schema import read_schema
    >>> schema = read_schema("CREATE TABLE t (a INT, b INT); CREATE TABLE u (a INT, c TEXT)")
    >>> wants = read_demands("SELECT x.b FROM t AS x JOIN u ON x.a = u.a WHERE c = 'k' AND b > 3", schema)
    >>> wants.atoms, wants.links
    ({('u', 'c'): [Atom(operator='=', value='k')], ('t', 'b'): [Atom(operator='>', value=3)]}, [(('t', 'a'), ('u', 'a'))])
    """
    return _Reader(gold, schema).read()


class _Reader:
    def __init__(self, gold: str, schema: Schema) -> None:
        self.found = [*tokens(gold), Token("end", "", "")]
        self.columns: dict[str, list[ColumnKey]] = {}
        for table in schema.tables:
            for column in table.columns:
                self.columns.setdefault(column.name.lower(), []).append((table.name.lower(), column.name.lower()))
        tables = {table.name.lower() for table in schema.tables}
        self.aliases = self._aliases(tables)
        self.used = {table for named in self.aliases.values() for table in named} or tables
        self.wants = Demands(words={token.value for token in self.found if token.kind == "word"})
        self.wants.links.extend(schema.references)

    def read(self) -> Demands:
        position = 0
        while position < len(self.found) - 1:
            token = self.found[position]
            if token.kind == "word" and token.value in ("limit", "offset"):
                self._limit(position + 1)
            if token.kind == "word" and token.value == "by":
                self._by(position)
            if token.kind == "word" and token.value in ("union", "intersect", "except"):
                self._set_operation(position)
            position = self._comparison(position) or position + 1
        return self.wants

    def _aliases(self, tables: set[str]) -> dict[str, set[str]]:
        """Every name a table goes by -> tables. One alias may mean two tables, in two SELECTs."""
        aliases: dict[str, set[str]] = {}
        for position, token in enumerate(self.found):
            name = token.value.lower()
            before = self.found[position - 1].value if position else ""
            if token.kind not in ("word", "name", "text") or name not in tables or before not in ("from", "join", ","):
                continue
            aliases.setdefault(name, set()).add(name)
            after = self.found[position + 1 + (self.found[position + 1].value == "as")]
            if after.kind in ("word", "name") and after.value not in _NOT_AN_ALIAS:
                aliases.setdefault(after.value.lower(), set()).add(name)
        return aliases

    def _comparison(self, position: int) -> int | None:
        """Reads ``operand operator operand`` at ``position``; where to go on, or None if there is none."""
        left = self._operand(position)
        if left is None:
            return None
        at = left.end
        negated = self.found[at].value == "not"
        at += negated
        operator = self.found[at].value
        if self.found[at].kind not in ("op", "word") or operator not in _COMPARISONS:
            return None
        if operator == "in":
            return self._member(left, at + 1, negated)
        right = self._operand(at + 1)
        if right is None:
            return None
        if operator == "between":
            upper = self._operand(right.end + 1) if self.found[right.end].value == "and" else None
            self._atom(left, ">=", right.literal)
            self._atom(left, "<=", upper.literal if upper else None)
            return (upper or right).end
        operator = {"==": "=", "<>": "!=", "is": "="}.get(operator, operator)
        operator = f"not {operator}" if negated else operator
        if left.literal is not None:
            self._atom(right, _MIRRORED.get(operator, operator), left.literal)
        elif right.literal is not None:
            self._atom(left, operator, right.literal)
        elif left.columns and right.columns:
            self.wants.links += [(one, other) for one in left.columns for other in right.columns if one != other]
        return right.end

    def _member(self, left: _Operand, at: int, negated: bool) -> int:
        """``left IN (...)``: a list of literals, or a SELECT of one column."""
        if self.found[at].raw != "(":
            return at
        inner = self._operand(at)
        if inner is not None and inner.columns:
            self.wants.links += [(one, other) for one in left.columns for other in inner.columns if one != other]
            return at + 1
        at += 1
        while (item := self._operand(at)) is not None and item.literal is not None:
            self._atom(left, "!=" if negated else "=", item.literal)
            at = item.end + (self.found[item.end].raw == ",")
        return at

    def _atom(self, operand: _Operand, operator: str, value: str | int | float | None) -> None:
        if value is None:
            return
        if operand.function == "count" or (not operand.columns and isinstance(value, int)):
            self.wants.counts += [value] if isinstance(value, int) else []
            return
        if not operand.columns:
            self.wants.loose.append(value)
        for column in operand.columns:
            self.wants.atoms.setdefault(column, []).append(Atom(operator, value))
            if not isinstance(value, str):
                self.wants.numeric.add(column)

    def _operand(self, position: int) -> _Operand | None:
        """A literal, a column, a function of one column, or a SELECT of one of these in parentheses."""
        found = self.found
        if position >= len(found):
            return None
        token = found[position]
        if token.raw == "(":
            at = position + 1
            if found[at].value == "select":
                at += 1
            at += found[at].value == "distinct"
            inner = self._operand(at)
            if inner is None or inner.literal is not None:
                return None
            return inner._replace(end=inner.end + (found[inner.end].raw == ")"))
        if token.kind == "number":
            return _Operand([], "", _number(token.raw), position + 1)
        if token.raw == "-" and found[position + 1].kind == "number":
            return _Operand([], "", -_number(found[position + 1].raw), position + 2)
        if token.kind == "word" and found[position + 1].raw == "(" and token.value not in ("and", "or", "in", "not"):
            return self._function(position)
        if token.kind in ("word", "name", "text"):
            name = token.value.lower()
            if found[position + 1].raw == "." and name in self.aliases and position + 2 < len(found):
                column = found[position + 2].value.lower()
                columns = [key for key in self.columns.get(column, []) if key[0] in self.aliases[name]]
                return _Operand(columns, "", None, position + 3)
            if token.kind == "text":
                return _Operand([], "", token.value, position + 1)
            if name in self.columns:
                keys = self.columns[name]
                return _Operand([key for key in keys if key[0] in self.used] or keys, "", None, position + 1)
        return None

    def _function(self, position: int) -> _Operand | None:
        function, at = self.found[position].value, position + 2
        at += self.found[at].value == "distinct"
        star = self.found[at].raw == "*"
        inner = _Operand([], "", None, at + 1) if star else self._operand(at)
        if inner is None or inner.literal is not None or self.found[inner.end].raw != ")":
            return None
        if function in _ADDS:
            self.wants.numeric.update(inner.columns)
        return _Operand(inner.columns, function, None, inner.end + 1)

    def _set_operation(self, position: int) -> None:
        """The columns of two SELECTs that UNION, INTERSECT or EXCEPT puts over each other."""
        depth, before = 0, None
        for at in range(position - 1, -1, -1):
            depth += (self.found[at].raw == ")") - (self.found[at].raw == "(")
            if depth == 0 and self.found[at].value == "select":
                before = at
                break
        after = next((i for i in range(position, len(self.found)) if self.found[i].value == "select"), None)
        if before is not None and after is not None:
            for one, other in zip(self._list(before + 1), self._list(after + 1), strict=False):
                self.wants.links += [(a, b) for a in one.columns for b in other.columns if a != b]

    def _list(self, at: int) -> list[_Operand]:
        at += self.found[at].value == "distinct"
        operands: list[_Operand] = []
        while (operand := self._operand(at)) is not None:
            operands.append(operand)
            if self.found[operand.end].raw != ",":
                break
            at = operand.end + 1
        return operands

    def _limit(self, position: int) -> None:
        if self.found[position].kind == "number":
            self.wants.limit += int(_number(self.found[position].raw))

    def _by(self, position: int) -> None:
        """The columns behind ORDER BY or GROUP BY."""
        kept = self.wants.sorted_by if self.found[position - 1].value == "order" else self.wants.grouped_by
        at = position + 1
        while (operand := self._operand(at)) is not None:
            if operand.function != "count":
                kept.update(operand.columns)
            at = operand.end + (self.found[operand.end].value in ("asc", "desc"))
            if self.found[at].raw != ",":
                return
            at += 1


def _number(raw: str) -> int | float:
    return int(raw) if raw.isdigit() else float(raw)
