"""Choose a place on the way between two bases, and a factor of the adapter, by the loss on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from plr.restoration.rows import Marks

__all__ = ["PLACES", "SCALES", "Point", "choose", "curve_json"]

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places t that are tried at scale 1: both ends are among them."""
SCALES = (1.25, 1.6, 2.0, 3.0)
"""Factors s that are tried at the best places, one after the other while the loss falls."""
BEST = 2
"""Places at which they are tried."""


class Point(NamedTuple):
    """A candidate, and its marks on the rows that choose."""

    t: float
    scale: float
    marks: Marks


def choose(
    marks: Callable[[float, float], Marks],
    *,
    t: float | None,
    scale: float | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Point, list[Point]]:
    """Choose (t, s) by the least loss; what is given is not varied.

    First every place at scale 1, then rising factors at the best two places, as long as the loss falls.

    Args:
        marks: reads all rows at (t, s).
        t: the place, where it is given.
        scale: the factor, where it is given.
        on_progress: called with points done and the most there may be.

    Returns the best point, and all that were tried, in their order.
    """
    places: Sequence[float] = PLACES if t is None else (t,)
    first = 1.0 if scale is None else scale
    total = len(places) + (min(BEST, len(places)) * len(SCALES) if scale is None else 0)
    tried: list[Point] = []

    def read(where: float, factor: float) -> None:
        tried.append(Point(where, factor, marks(where, factor)))
        if on_progress is not None:
            on_progress(len(tried), total)

    for place in places:
        read(place, first)
    if scale is None:
        best = sorted(tried, key=lambda point: point.marks.loss)[:BEST]
        for place in sorted(point.t for point in best):
            before = next(point.marks.loss for point in tried if (point.t, point.scale) == (place, first))
            for factor in SCALES:
                read(place, factor)
                if tried[-1].marks.loss >= before:
                    break
                before = tried[-1].marks.loss
    return min(tried, key=lambda point: point.marks.loss), tried


def curve_json(points: Sequence[Point]) -> list[dict[str, float | None]]:
    """Write tried points for a manifest: t, scale, loss and share of rows that are right."""
    return [
        {"t": point.t, "scale": point.scale, "loss": point.marks.loss, "exact": point.marks.share} for point in points
    ]
