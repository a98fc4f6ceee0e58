"""W^p of every layer and module of a sparse adapter, as an SVG: rows are layers, columns are kinds of module.

Bright blocks have high scores, on one scale for the whole picture; the k chosen blocks are outlined. The bar beside each panel
is the scale: its solid mark is the lowest chosen score, its dashed mark the score that k of n * m initial draws are expected to
reach. Below a panel stand k, how many blocks are above the dashed mark, and how many have had a slot
(`plr.adapters.sparse.reading`).

The blocks of a panel are one small image (PNG, 16 colours), every block a whole number of its pixels: some ten thousand
rectangles would make a page slow.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from plr.adapters.sparse.reading import BlockModule, SparseAdapter
from plr.report.figures.svg import svg_style

__all__ = ["blocks_figure", "blocks_section"]

PANEL = 192
"""The longer side of a panel is about this many pixels."""
LEFT, TOP, GAP, BAR, FOOT = 70, 100, 36, 7, 22
SHOWN = 12
"""A page holds no more figures than this."""
_STOPS = (
    (0.0, (21, 18, 45)),
    (0.3, (43, 66, 126)),
    (0.55, (33, 122, 138)),
    (0.8, (104, 187, 104)),
    (1.0, (250, 232, 92)),
)
_COLOURS = 16


def blocks_figure(adapter: SparseAdapter, title: str = "", *, ident: str = "blocks") -> str:
    """A whole SVG document, which may also stand inside a page; ``ident`` is then unique in it."""
    kinds = list(dict.fromkeys(module.kind for module in adapter.modules))
    layers = sorted({module.layer for module in adapter.modules})
    rows, columns = (max(module.scores.shape[axis] for module in adapter.modules) for axis in (0, 1))
    cell = max(2, min(12, PANEL // max(rows, columns)))
    wide, high = columns * cell, rows * cell
    low = min(float(module.scores.min()) for module in adapter.modules)
    top = max(float(module.scores.max()) for module in adapter.modules)
    places = _places(adapter.modules, kinds, layers)
    width = LEFT + max(len({column for column, _ in places.values()}) * (wide + GAP), 470)
    height = TOP + len(layers) * (high + FOOT + 14) + 8
    title = title or adapter.name
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{ident}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="{ident}-t {ident}-d">',
        f'<title id="{ident}-t">{escape(title)}: block scores</title>',
        f'<desc id="{ident}-d">{escape(described(adapter))}</desc>',
        svg_style(f"svg.{ident}"),
        f'<defs><linearGradient id="{ident}-g" x1="0" x2="0" y1="1" y2="0">'
        + "".join(f'<stop offset="{at:g}" stop-color="rgb{rgb}"/>' for at, rgb in _STOPS)
        + f'</linearGradient><linearGradient id="{ident}-h" href="#{ident}-g" x1="0" x2="1" y1="0" y2="0"/></defs>',
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text class="head" x="12" y="24">{escape(title)}</text>',
        *_key(low, top, ident),
    ]
    for column, kind in dict.fromkeys((place[0], module.kind) for module, place in _paired(adapter.modules, places)):
        parts.append(f'<text class="ink" x="{LEFT + column * (wide + GAP)}" y="{TOP - 8}">{escape(kind)}</text>')
    for index, layer in enumerate(layers):
        y = TOP + index * (high + FOOT + 14)
        parts.append(
            f'<text class="soft" x="{LEFT - 12}" y="{y + high / 2 + 4:.0f}" text-anchor="end">layer {layer}</text>'
        )
    for module, (column, row) in _paired(adapter.modules, places):
        x, y = LEFT + column * (wide + GAP), TOP + row * (high + FOOT + 14)
        parts += _panel(module, x, y, cell, (low, top), ident)
    return "\n".join([*parts, "</svg>", ""])


def blocks_section(adapters: Sequence[SparseAdapter]) -> str:
    """A section of the report's page, empty without a sparse adapter; its pictures are folded but for the first."""
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
        figure = blocks_figure(adapter, ident=f"blocks{index}")
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
    """What the picture shows, in a sentence.

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
    """Module -> (column, row). Several of one kind in a layer (experts) have columns of their own."""
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


def _paired(
    modules: Sequence[BlockModule], places: dict[str, tuple[int, int]]
) -> list[tuple[BlockModule, tuple[int, int]]]:
    return [(module, places[module.name]) for module in modules]


def _panel(module: BlockModule, x: int, y: int, cell: int, scale: tuple[float, float], ident: str) -> list[str]:
    n, m = module.scores.shape
    wide, high = m * cell, n * cell
    image = base64.b64encode(_png(_shares(module.scores, scale), cell)).decode()
    outline = "".join(
        f"M{x + place % m * cell + 0.5:g} {y + place // m * cell + 0.5:g}h{cell - 1}v{cell - 1}h-{cell - 1}z"
        for place in sorted(module.chosen)
    )

    def at(score: float) -> float:
        share = 0.0 if scale[1] == scale[0] else (score - scale[0]) / (scale[1] - scale[0])
        return y + high * (1 - min(1.0, max(0.0, share)))

    bar = x + wide + 4
    counts = (("wanted", module.wanted), ("tried", module.tried))
    said = f"k {module.k}" + "".join(f", {name} {count:.0f}" for name, count in counts if count is not None)
    full = f"{module.name}: {said}, lowest chosen score {module.threshold:.4g}"
    parts = [
        f"<g><title>{escape(full)}</title>",
        f'<image class="cells" x="{x}" y="{y}" width="{wide}" height="{high}" href="data:image/png;base64,{image}"/>',
        f'<path class="chosen" d="{outline}"/>',
        f'<rect class="edge" x="{x}" y="{y}" width="{wide}" height="{high}"/>',
        f'<rect x="{bar}" y="{y}" width="{BAR}" height="{high}" fill="url(#{ident}-g)"/>',
    ]
    if module.level is not None:
        level = at(module.level)
        parts.append(f'<path class="aim" d="M{bar - 2} {level:.1f}h{BAR + 4}"/>')
    parts.append(f'<path class="mark" d="M{bar - 2} {at(module.threshold):.1f}h{BAR + 4}"/>')
    style = "more" if module.restless else "soft"
    return [*parts, f'<text class="{style}" x="{x}" y="{y + high + 15}">{said}</text>', "</g>"]


def _key(low: float, top: float, ident: str) -> list[str]:
    """The scale of colours, and what the marks say."""
    return [
        f'<rect x="12" y="52" width="120" height="9" fill="url(#{ident}-h)"/>',
        f'<text class="soft" x="12" y="46">{low:.3g}</text>',
        f'<text class="soft" x="132" y="46" text-anchor="end">{top:.3g}</text>',
        '<path class="mark" d="M156 57h14"/><text class="soft" x="176" y="61">lowest chosen</text>',
        '<path class="aim" d="M272 57h14"/><text class="soft" x="292" y="61">level of k initial draws</text>',
        '<rect class="chosen" x="446" y="52" width="9" height="9"/><text class="soft" x="462" y="61">chosen</text>',
    ]


def _shares(scores: Any, scale: tuple[float, float]) -> Any:
    """Scores as colour numbers 0 to 15."""
    import numpy as np

    low, top = scale
    share = (scores - low) / (top - low) if top > low else np.zeros_like(scores)
    return np.clip((share * _COLOURS).astype(int), 0, _COLOURS - 1).astype(np.uint8)


def _png(colours: Any, cell: int) -> bytes:
    """``colours [n, m]`` as a PNG of ``cell`` x ``cell`` pixels each, 4 bits a pixel (ISO/IEC 15948)."""
    import numpy as np

    pixels = np.repeat(np.repeat(colours, cell, axis=0), cell, axis=1)
    height, width = pixels.shape
    even = np.pad(pixels, ((0, 0), (0, width % 2)))
    packed = (even[:, 0::2] << 4 | even[:, 1::2]).astype(np.uint8)
    lines = np.pad(packed, ((0, 0), (1, 0)))  # filter 0 before every line
    palette = bytes(part for i in range(_COLOURS) for part in _colour(i / (_COLOURS - 1)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _colour(share: float) -> tuple[int, int, int]:
    for (a, start), (b, end) in pairwise(_STOPS):
        if share <= b:
            part = (share - a) / (b - a)
            return tuple(round(u + part * (v - u)) for u, v in zip(start, end, strict=True))  # type: ignore[return-value]
    return _STOPS[-1][1]
