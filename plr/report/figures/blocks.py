"""The figure of a sparse adapter's block scores W^p: rows are layers, columns are kinds of module.

Bright blocks have high scores, on one scale for the whole picture; the k chosen blocks are outlined. The bar beside each panel
is the scale: its solid mark is the lowest chosen score, its dashed mark the score that k of n * m initial draws are expected to
reach. The text below a panel gives k, the number of blocks above the dashed mark, and the number that have had a slot
(`plr.adapters.sparse.reading`).

The blocks of a panel are one small image of 16 colours; each block is a whole number of its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from plr.adapters.sparse.reading import BlockModule, SparseAdapter
from plr.report.figures.shapes import Cells, Figure, Group, Line, Ramp, Rect, Shape, Squares, Text
from plr.report.figures.svg import RAMP, svg_whole

__all__ = ["blocks_figure", "blocks_section", "described"]

PANEL = 192
"""The longer side of a panel is about this many pixels."""
LINE = 120
"""Width of the line below a panel."""
LEFT, TOP, GAP, BAR, FOOT = 70, 100, 36, 7, 22
SHOWN = 12
"""A page holds no more figures than this."""


def blocks_figure(adapter: SparseAdapter, title: str = "") -> Figure:
    """Draw the scores of every module, layers down and kinds across."""
    kinds = list(dict.fromkeys(module.kind for module in adapter.modules))
    layers = sorted({module.layer for module in adapter.modules})
    rows, columns = (max(module.scores.shape[axis] for module in adapter.modules) for axis in (0, 1))
    cell = max(2, min(12, PANEL // max(rows, columns)))
    wide, high = max(columns * cell, LINE) + GAP, rows * cell + FOOT + 14
    scale = min(float(m.scores.min()) for m in adapter.modules), max(float(m.scores.max()) for m in adapter.modules)
    places = _places(adapter.modules, kinds, layers)
    title = title or adapter.name
    shapes: list[Shape] = [Text(12, 24, title, "head"), *_key(*scale)]
    for column, kind in dict.fromkeys((places[module.name][0], module.kind) for module in adapter.modules):
        shapes.append(Text(LEFT + column * wide, TOP - 8, kind, "ink"))
    for row, layer in enumerate(layers):
        shapes.append(Text(LEFT - 12, round(TOP + row * high + rows * cell / 2 + 4), f"layer {layer}", anchor="end"))
    for module in adapter.modules:
        column, row = places[module.name]
        shapes.append(_panel(module, LEFT + column * wide, TOP + row * high, cell, scale))
    width = LEFT + max(len({column for column, _ in places.values()}) * wide, 470)
    return Figure(width, TOP + len(layers) * high + 8, f"{title}: block scores", described(adapter), shapes)


def blocks_section(adapters: Sequence[SparseAdapter]) -> str:
    """Write the section of the report's page, empty without a sparse adapter; its pictures are folded but for the first."""
    if not adapters:
        return ""
    parts = [
        '<section aria-labelledby="blocks">',
        '<h2 id="blocks">Where the sparse adapters write</h2>',
        '<p class="soft">Block scores of every adapted layer: bright is high; the outlined blocks are the k that are trained and '
        "added to the base. The solid mark on a panel's bar is the lowest chosen score, the dashed one the score that k of the "
        "initial draws are expected to reach. Wanted: blocks above the dashed mark. Tried: blocks that have had a slot, "
        "estimated; many more than k say that k was too small there, or the choice in doubt.</p>",
    ]
    for index, adapter in enumerate(adapters[:SHOWN]):
        figure = svg_whole(blocks_figure(adapter), f"blocks{index}")
        unfolded = ' open=""' if index == 0 else ""
        parts.append(
            f"<details{unfolded}><summary>{escape(adapter.name)}</summary>"
            f'<p class="note">{escape(described(adapter))}</p>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(adapter.name)}: block scores">{figure}</div>'
            "</details>"
        )
    if len(adapters) > SHOWN:
        parts.append(f'<p class="note">{len(adapters) - SHOWN} more are left out: plr blocks ADAPTER draws one.</p>')
    return "\n".join([*parts, "</section>"])


def described(adapter: SparseAdapter) -> str:
    """Describe the picture in a sentence.

    The layer named is the one in which the most blocks were tried for each slot.
    """
    first = adapter.modules[0]
    size = f"{len(adapter.modules)} modules of {first.scores.shape[0]} x {first.scores.shape[1]} blocks."
    known = [(tried, module) for module in adapter.modules if (tried := module.tried) is not None]
    if not known:
        return f"{size} How the scores began is not recorded."
    restless = sum(module.restless for _, module in known)
    most, where = max(known, key=lambda one: one[0] / one[1].k)
    return (
        f"{size} In {restless} of them clearly more than k blocks wanted a slot or had one (by luck alone in about 1 of 15); "
        f"the most were tried in layer {where.layer}, {where.kind}: about {most:.0f} for k = {where.k}."
    )


def _places(modules: Sequence[BlockModule], kinds: Sequence[str], layers: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Place each module: name -> (column, row); several of one kind in a layer (experts) have columns of their own."""
    most = dict.fromkeys(kinds, 1)
    seen: dict[tuple[str, int], int] = {}
    nth: dict[str, int] = {}
    for module in modules:
        key = (module.kind, module.layer)
        nth[module.name] = seen.get(key, 0)
        seen[key] = nth[module.name] + 1
        most[module.kind] = max(most[module.kind], seen[key])
    start = {kind: sum(most[other] for other in kinds[:index]) for index, kind in enumerate(kinds)}
    return {m.name: (start[m.kind] + nth[m.name], layers.index(m.layer)) for m in modules}


def _panel(module: BlockModule, x: int, y: int, cell: int, scale: tuple[float, float]) -> Group:
    n, m = module.scores.shape
    wide, high, bar = m * cell, n * cell, x + m * cell + 4

    def mark(score: float, style: str) -> Line:
        share = 0.0 if scale[1] == scale[0] else (score - scale[0]) / (scale[1] - scale[0])
        at = y + high * (1 - min(1.0, max(0.0, share)))
        return Line([(bar - 2, at), (bar + BAR + 2, at)], style)

    counts = (("wanted", module.wanted), ("tried", module.tried))
    text = f"k {module.k}" + "".join(f", {name} {count:.0f}" for name, count in counts if count is not None)
    corners = [(x + place % m * cell + 0.5, y + place // m * cell + 0.5) for place in sorted(module.chosen)]
    shapes: list[Shape] = [
        Cells(x, y, _shares(module.scores, scale), cell),
        Squares(corners, cell - 1, "chosen"),
        Rect(x, y, wide, high, "edge"),
        Ramp(bar, y, BAR, high, upright=True),
        *([mark(module.level, "aim")] if module.level is not None else []),
        mark(module.threshold, "mark"),
        Text(x, y + high + 15, text, "more" if module.restless else "soft"),
    ]
    return Group(shapes, tip=f"{module.name}: {text}, lowest chosen score {module.threshold:.4g}")


def _key(low: float, top: float) -> list[Shape]:
    """Draw the scale of colours and the meaning of the marks."""
    return [
        Ramp(12, 52, 120, 9),
        Text(12, 46, f"{low:.3g}"),
        Text(132, 46, f"{top:.3g}", anchor="end"),
        Line([(156, 57), (170, 57)], "mark"),
        Text(176, 61, "lowest chosen"),
        Line([(272, 57), (286, 57)], "aim"),
        Text(292, 61, "level of k initial draws"),
        Rect(446, 52, 9, 9, "chosen"),
        Text(462, 61, "chosen"),
    ]


def _shares(scores: Any, scale: tuple[float, float]) -> Any:
    """Map scores to colour numbers 0 to 15."""
    import numpy as np

    low, top = scale
    share = (scores - low) / (top - low) if top > low else np.zeros_like(scores)
    return np.clip((share * RAMP).astype(int), 0, RAMP - 1).astype(np.uint8)
