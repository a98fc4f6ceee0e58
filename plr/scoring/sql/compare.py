"""Equality of two results: the semantics of Spider's test suites (Zhong et al. 2020, `exec_eval.result_eq`).

1. Both empty: equal, whatever the columns.
2. Rows form a bag: order does not matter, how often a row stands there does. With `ordered` the order matters.
3. Columns may come in any order, the same for all rows; their names do not matter.
4. Values are equal as in Python: `1` is `1.0` and is not `"1"`; NULL is NULL.

Two things are kinder than there: numbers are compared in twelve digits, since a sum depends on the order of its terms, and rows are
not first compared sorted by type name, which there keeps `(1, 1.0)` from being what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["Row", "normalized_rows", "same_rows"]

Row = tuple[object, ...]
"""Values of one row of a table or a result: numbers, text, bytes and None, as `sqlite3` has them."""
_MAX_TRIES = 2000


def normalized_rows(rows: Sequence[Row]) -> list[Row]:
    """Round floats to twelve digits, so that equal results have equal rows."""
    if not any(type(value) is float for row in rows for value in row):
        return list(rows)
    return [tuple(float(f"{v:.12g}") if type(v) is float else v for v in row) for row in rows]


def same_rows(one: Sequence[Row], other: Sequence[Row], *, ordered: bool) -> bool:
    """Tell whether two results (of `normalized_rows`) are equal.

    >>> same_rows([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=False)
    True
    >>> same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)], ordered=False)
    False
    """
    if not one and not other:
        return True
    if len(one) != len(other) or len(one[0]) != len(other[0]):
        return False
    if one == other:
        return True
    left, right = list(zip(*one, strict=True)), list(zip(*other, strict=True))
    if ordered:
        return Counter(left) == Counter(right)
    bags = [Counter(column) for column in right]
    fits = [[i for i, bag in enumerate(bags) if bag == Counter(column)] for column in left]
    return _matches(left, right, sorted(range(len(left)), key=lambda c: len(fits[c])), fits)


def _matches(left: list[Row], right: list[Row], order: list[int], fits: list[list[int]]) -> bool:
    """Match each column of `left` to one of `right` that holds the same values, depth first.

    At every depth the columns chosen so far must agree as a bag of rows.
    """
    tries = 0
    bags: dict[int, Counter[Row]] = {}

    def extend(chosen: list[int]) -> bool:
        nonlocal tries
        depth = len(chosen)
        if depth and depth not in bags:
            bags[depth] = Counter(zip(*(left[c] for c in order[:depth]), strict=True))
        if depth and Counter(zip(*(right[c] for c in chosen), strict=True)) != bags[depth]:
            return False
        if depth == len(order):
            return True
        seen: set[Row] = set()
        for candidate in fits[order[depth]]:
            if candidate in chosen or right[candidate] in seen:
                continue
            seen.add(right[candidate])
            tries += 1
            if tries > _MAX_TRIES:
                return False
            if extend([*chosen, candidate]):
                return True
        return False

    return extend([])
