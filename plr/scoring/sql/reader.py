"""A gold query read for its demands: flat tokens, in one pass, operand, operator, operand.

Names are resolved generously (a column without a qualifier belongs to every table that has it), since a column that gets
values it did not need does no harm.

sqlglot reads the same queries for `plr.scoring.sql.match`, in the parent, where it may be imported. Demands read from its
trees there and sent to the processes came out equal on 29,999 of 30,000 golds, and all verdicts with them, but scoring took 9 to
16 % more CPU (right answers 21 to 45 %: nothing else of them is parsed), in no fewer lines (`notes/LOG.md`, 2026-11-26). So the
readers are two.
"""

from __future__ import annotations

from plr.scoring.sql.demands import Atom, Demands
from plr.scoring.sql.operands import Operand, Operands, number
from plr.scoring.sql.schema import Schema

__all__ = ["read_demands"]

_COMPARISONS = {"=", "==", "!=", "<>", "<", ">", "<=", ">=", "like", "in", "between", "is", "glob"}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def read_demands(gold: str, schema: Schema) -> Demands:
    """Read the demands of a gold query.

    >>> from plr.scoring.sql.schema import read_schema
    >>> schema = read_schema("CREATE TABLE t (a INT, b INT); CREATE TABLE u (a INT, c TEXT)")
    >>> wants = read_demands("SELECT x.b FROM t AS x JOIN u ON x.a = u.a WHERE c = 'k' AND b > 3", schema)
    >>> wants.atoms, wants.links
    ({('u', 'c'): [Atom(operator='=', value='k')], ('t', 'b'): [Atom(operator='>', value=3)]}, [(('t', 'a'), ('u', 'a'))])
    """
    return _Reader(gold, schema).read()


class _Reader:
    def __init__(self, gold: str, schema: Schema) -> None:
        self.operands = Operands(gold, schema)
        self.tokens, self._operand = self.operands.tokens, self.operands.read
        self.wants = Demands(words={token.value for token in self.tokens if token.kind == "word"})
        self.wants.links.extend(schema.references)

    def read(self) -> Demands:
        position = 0
        while position < len(self.tokens) - 1:
            token = self.tokens[position]
            if token.kind == "word" and token.value in ("limit", "offset"):
                self._limit(position + 1)
            if token.kind == "word" and token.value == "by":
                self._by(position)
            if token.kind == "word" and token.value in ("union", "intersect", "except"):
                self._set_operation(position)
            position = self._comparison(position) or position + 1
        self.wants.numeric |= self.operands.added
        return self.wants

    def _comparison(self, position: int) -> int | None:
        """Read `operand operator operand` at `position`; return where to go on, or None if there is none."""
        left = self._operand(position)
        if left is None:
            return None
        at = left.end
        negated = self.tokens[at].value == "not"
        at += negated
        operator = self.tokens[at].value
        if self.tokens[at].kind not in ("op", "word") or operator not in _COMPARISONS:
            return None
        if operator == "in":
            return self._member(left, at + 1, negated)
        right = self._operand(at + 1)
        if right is None:
            return None
        if operator == "between":
            upper = self._operand(right.end + 1) if self.tokens[right.end].value == "and" else None
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

    def _member(self, left: Operand, at: int, negated: bool) -> int:
        """Read `left IN (...)`: a list of literals, or a SELECT of one column."""
        if self.tokens[at].raw != "(":
            return at
        inner = self._operand(at)
        if inner is not None and inner.columns:
            self.wants.links += [(one, other) for one in left.columns for other in inner.columns if one != other]
            return at + 1
        at += 1
        while (item := self._operand(at)) is not None and item.literal is not None:
            self._atom(left, "!=" if negated else "=", item.literal)
            at = item.end + (self.tokens[item.end].raw == ",")
        return at

    def _atom(self, operand: Operand, operator: str, value: str | int | float | None) -> None:
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

    def _set_operation(self, position: int) -> None:
        """Link the columns of two SELECTs that UNION, INTERSECT or EXCEPT puts over each other."""
        depth, before = 0, None
        for at in range(position - 1, -1, -1):
            depth += (self.tokens[at].raw == ")") - (self.tokens[at].raw == "(")
            if depth == 0 and self.tokens[at].value == "select":
                before = at
                break
        after = next((i for i in range(position, len(self.tokens)) if self.tokens[i].value == "select"), None)
        if before is not None and after is not None:
            for one, other in zip(self._list(before + 1), self._list(after + 1), strict=False):
                self.wants.links += [(a, b) for a in one.columns for b in other.columns if a != b]

    def _list(self, at: int) -> list[Operand]:
        at += self.tokens[at].value == "distinct"
        operands: list[Operand] = []
        while (operand := self._operand(at)) is not None:
            operands.append(operand)
            if self.tokens[operand.end].raw != ",":
                break
            at = operand.end + 1
        return operands

    def _limit(self, position: int) -> None:
        if self.tokens[position].kind == "number":
            self.wants.limit += int(number(self.tokens[position].raw))

    def _by(self, position: int) -> None:
        """Read the columns behind ORDER BY or GROUP BY."""
        columns = self.wants.sorted_by if self.tokens[position - 1].value == "order" else self.wants.grouped_by
        at = position + 1
        while (operand := self._operand(at)) is not None:
            if operand.function != "count":
                columns.update(operand.columns)
            at = operand.end + (self.tokens[operand.end].value in ("asc", "desc"))
            if self.tokens[at].raw != ",":
                return
            at += 1
