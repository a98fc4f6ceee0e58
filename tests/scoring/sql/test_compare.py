"""When two results are one: the cases of Spider's test suites, and the laws behind them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.scoring.sql.compare import normalized_rows, same_rows

Rows = list[tuple[Any, ...]]
CASES: dict[str, tuple[Rows, Rows, bool, bool]] = {
    "both empty": ([], [], False, True),
    "empty and not": ([], [(1,)], False, False),
    "rows in another order": ([(1,), (2,)], [(2,), (1,)], False, True),
    "rows in another order, ordered": ([(1,), (2,)], [(2,), (1,)], True, False),
    "duplicates counted": ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
    "duplicates of another number": ([(1,), (1,)], [(1,)], False, False),
    "columns permuted": ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], False, True),
    "columns permuted, ordered": ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True, True),
    "columns permuted row by row": ([(1, 2), (1, 2)], [(1, 2), (2, 1)], False, False),
    "same columns, rows paired otherwise": ([(1, "a"), (2, "b")], [(1, "b"), (2, "a")], False, False),
    "a column more": ([(1,)], [(1, 1)], False, False),
    "NULL is NULL": ([(None,)], [(None,)], False, True),
    "NULL is not 0": ([(None,)], [(0,)], False, False),
    "NULL is not the empty text": ([(None,)], [("",)], False, False),
    "1 is 1.0": ([(1,)], [(1.0,)], False, True),
    "1 is not '1'": ([(1,)], [("1",)], False, False),
    "case of a text": ([("a",)], [("A",)], False, False),
    "order of the terms of a sum": ([(0.1 + 0.2,)], [(0.3,)], False, True),
}


@pytest.mark.parametrize(("one", "other", "ordered", "equal"), CASES.values(), ids=CASES)
def test_case_of_spider(one: Rows, other: Rows, ordered: bool, equal: bool) -> None:
    assert same_rows(normalized_rows(one), normalized_rows(other), ordered=ordered) is equal
    assert same_rows(normalized_rows(other), normalized_rows(one), ordered=ordered) is equal


def _all_permutations(one: Rows, other: Rows, ordered: bool) -> bool:
    """Spider's definition, by trying every order of the columns."""
    if not one and not other:
        return True
    if len(one) != len(other) or len(one[0]) != len(other[0]):
        return False
    for order in permutations(range(len(one[0]))):
        turned = [tuple(row[i] for i in order) for row in other]
        if (turned == one) if ordered else (Counter(turned) == Counter(one)):
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_agrees_with_trying_every_permutation(seed: int, ordered: bool) -> None:
    rng = random.Random(seed)
    rows, width = rng.randint(1, 4), rng.randint(1, 4)
    one = [tuple(rng.choice((0, 1, None)) for _ in range(width)) for _ in range(rows)]
    order = rng.sample(range(width), width)
    other = [tuple(row[i] for i in order) for row in one]
    if rng.random() < 0.5:
        rng.shuffle(other)
    if rng.random() < 0.5:
        other[0] = tuple(rng.choice((0, 1, None)) for _ in range(width))
    assert same_rows(one, other, ordered=ordered) == _all_permutations(one, other, ordered)


def test_many_like_columns_end_quickly() -> None:
    rows = [tuple(int(i == j) for j in range(14)) for i in range(14)]
    assert same_rows(rows, rows[::-1], ordered=False)
