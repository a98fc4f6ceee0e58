"""The figure of the output error of every quantized layer over depth.

It has one line for each kind of layer, on a log scale; the thin line of the same colour is the error of rounding to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plr.bases.modules import Module
from plr.report.figures import plot
from plr.report.figures.shapes import Figure, Line, Text

__all__ = ["error_figure"]

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 66, 150, 56, 52
ENTRY = 22
"""Height of one entry of the key."""

Errors = dict[str, list[tuple[int, float]]]
"""Errors by kind of layer: (block, error) of each."""


def error_figure(modules: Sequence[Module], title: str) -> Figure | None:
    """Draw the errors of the layers of one base (`plr.bases.modules.modules_of`); None where none above zero was measured."""
    solved, rounded = _errors(modules, "error"), _errors(modules, "rtn_error")
    if not solved:
        return None
    rounded = {kind: rounded[kind] for kind in solved if kind in rounded}
    if all(rounded.get(kind) == points for kind, points in solved.items()):
        rounded = {}  # the base was rounded: there is nothing to set beside it
    order = sorted(solved, key=lambda kind: -_mean(solved[kind]))
    blocks = [block for points in solved.values() for block, _ in points]
    first, last = min(blocks), max(blocks)
    height = max(HEIGHT, TOP + BOTTOM + ENTRY * (len(order) + 2))
    foot, right = height - BOTTOM, WIDTH - RIGHT
    x = plot.bands(last - first + 1, LEFT, right)
    y = plot.log([error for points in (*solved.values(), *rounded.values()) for _, error in points], foot, TOP)
    marks = [(block - first, str(block)) for block in _block_ticks(first, last)]
    shapes = [Text(LEFT, 26, title, "head"), Text(LEFT, 44, "relative output error of each quantized layer, log scale")]
    shapes += [*plot.up(y, LEFT, right), *plot.across(x, foot, marks, "block", notches=False)]

    def path(kind: str, errors: Errors) -> list[tuple[float, float]]:
        return [(x(block - first), y(error)) for block, error in errors.get(kind, ())]

    shapes += [plot.series(i, path(kind, solved), thin=path(kind, rounded), size=2.4) for i, kind in enumerate(order)]
    left, below = right + 16, TOP + 14 + ENTRY * len(order)
    shapes += plot.key([_shortened(kind) for kind in order], left, TOP + 6)
    if rounded:
        shapes += [Line([(left, below), (left + 26, below)], "thin"), Text(left + 34, below + 4, "rounding")]
    return Figure(WIDTH, height, title, _described(order, solved, rounded), shapes)


def _errors(modules: Sequence[Module], key: str) -> Errors:
    """Collect the errors of each kind by block, the mean of several in a block (experts); zero has no place on a log scale."""
    by_kind: dict[str, dict[int, list[float]]] = {}
    for module in modules:
        value = module.number(key)
        if value is not None and math.isfinite(value) and value > 0:
            by_kind.setdefault(module.kind, {}).setdefault(module.block, []).append(value)
    return {kind: [(block, sum(v) / len(v)) for block, v in sorted(blocks.items())] for kind, blocks in by_kind.items()}


def _mean(points: Sequence[tuple[int, float]]) -> float:
    return sum(value for _, value in points) / len(points)


def _block_ticks(first: int, last: int) -> list[int]:
    if last - first < 10:
        return list(range(first, last + 1))
    return [int(t) for t in plot.ticks(first, last, 10) if t == int(t) and first <= t <= last]


def _shortened(kind: str, most: int = 15) -> str:
    return kind if len(kind) <= most else "\u2026" + kind[-most + 1 :]


def _described(order: Sequence[str], solved: Errors, rounded: Errors) -> str:
    def one(kind: str) -> str:
        beside = f", rounding {_mean(rounded[kind]):.3g}" if kind in rounded else ""
        worst = max(solved[kind], key=lambda point: point[1])
        return f"{kind}: mean {_mean(solved[kind]):.3g}{beside}, largest {worst[1]:.3g} in block {worst[0]}"

    return "Relative output error by kind of layer. " + "; ".join(map(one, order)) + "."
