"""Cutting and drawing rows, reproducibly.

Order comes from sha256 of seed and key, never from a random generator's state: the same rows fall to the same side
on every machine and Python, and a row that is added to the source moves no other row by more than a cut's edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from plr.tasks.data.sources import Row

T = TypeVar("T")
Groups = Callable[[Row], frozenset[str]]

__all__ = ["choose", "cut_validation", "divide", "halve", "normalized", "without_duplicates"]

HELD_OUT_SHARE = 0.1
MAX_VALIDATION = 500


def normalized(text: str) -> str:
    """Leave out case and white space, for comparing texts.

    >>> normalized(" How  many\\nApples? ")
    'how many apples?'
    """
    return " ".join(text.casefold().split())


def without_duplicates(rows: Iterable[T], key: Callable[[T], Hashable | None]) -> list[T]:
    """Keep the first row of each key; rows with key None all stay."""
    seen: set[Hashable] = set()
    firsts: list[T] = []
    for row in rows:
        value = key(row)
        if value is None or value not in seen:
            firsts.append(row)
            seen.add(value)
    return firsts


def choose(items: Sequence[T], limit: int | None, seed: int, key: Callable[[T], str]) -> list[T]:
    """Draw `limit` items with `seed`, in their order; a larger limit draws a superset."""
    if limit is None or limit >= len(items):
        return list(items)
    drawn = sorted(range(len(items)), key=lambda i: _rank(seed, "draw", key(items[i])))[: max(limit, 0)]
    return [items[i] for i in sorted(drawn)]


def cut_validation(rows: Sequence[Row], groups: Groups, seed: int) -> tuple[list[Row], list[Row]]:
    """Cut (train, validation): a tenth of the rows, 500 at most, is taken out of train, whole groups at a time."""
    size = min(MAX_VALIDATION, int(len(rows) * HELD_OUT_SHARE))
    side = _fill(_components(rows, groups), [("validation", size)], "train", seed)
    return [r for r, s in zip(rows, side, strict=True) if s == "train"], [
        r for r, s in zip(rows, side, strict=True) if s == "validation"
    ]


def divide(rows: Sequence[Row], groups: Groups, seed: int) -> dict[str, list[Row]]:
    """Divide one source split into train, validation (a tenth) and test (a tenth); rows linked by a group stay together.

    A component larger than what is left of a held-out split goes to train.
    """
    size = int(len(rows) * HELD_OUT_SHARE)
    side = _fill(_components(rows, groups), [("test", size), ("validation", size)], "train", seed)
    return {name: [r for r, s in zip(rows, side, strict=True) if s == name] for name in ("train", "validation", "test")}


def halve(rows: Sequence[Row], groups: Groups, seed: int) -> tuple[list[Row], list[Row]]:
    """Cut the (first, second) half of the rows, the odd one in the first; rows linked by a group stay together."""
    side = _fill(_components(rows, groups), [("second", len(rows) // 2)], "first", seed)
    return [r for r, s in zip(rows, side, strict=True) if s == "first"], [
        r for r, s in zip(rows, side, strict=True) if s == "second"
    ]


def _fill(components: Sequence[str], sizes: list[tuple[str, int]], rest: str, seed: int) -> list[str]:
    """Choose the side of each row: components in sha256 order, each into the first side that still has room for all of it."""
    count: dict[str, int] = {}
    for component in components:
        count[component] = count.get(component, 0) + 1
    room = dict(sizes)
    side: dict[str, str] = {}
    for component in sorted(count, key=lambda name: _rank(seed, "cut", name)):
        side[component] = next((name for name, left in room.items() if count[component] <= left), rest)
        if side[component] != rest:
            room[side[component]] -= count[component]
    return [side[component] for component in components]


def _components(rows: Sequence[Row], groups: Groups) -> list[str]:
    """Name for each row its component: the least key that rows linked by shared keys lead to (union-find)."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: list[str] = []
    for row in rows:
        keys = sorted(groups(row))
        for key in keys:
            parent.setdefault(key, key)
        roots = sorted({find(key) for key in keys})
        for root in roots[1:]:
            parent[root] = roots[0]
        first.append(keys[0])
    return [find(key) for key in first]


def _rank(seed: int, purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).digest()
