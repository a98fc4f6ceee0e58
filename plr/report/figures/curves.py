"""The figure of a corrected restoration: the loss on the rows that chose it, from its own base (t = 0) to the other (t = 1).

One line for each factor s of the adapter that was tried; the chosen point is ringed. A restoration that moves along no path has one
column of points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypedDict

from plr.report.figures import plot
from plr.report.figures.shapes import Figure, Rect, Shape, Text
from plr.report.figures.svg import svg_whole

__all__ = ["Restored", "curve_figure", "curve_rows", "curves_section", "restored_words"]

WIDTH, HEIGHT = 560, 300
FRAME = plot.Box(64, 48, 440, 244)
SHOWN = 12
"""A page holds no more figures than this."""


class Restored(TypedDict):
    """A corrected restoration of a study: its name and the metrics of its manifest."""

    name: str
    metrics: Mapping[str, Any]


def restored_words(metrics: Mapping[str, Any]) -> str:
    """Say in one sentence what a corrected restoration serves, and on how many rows it was chosen."""
    if "sentence" in metrics:
        return str(metrics["sentence"])
    settings = [
        f"{letter} = {metrics[key]:g}" for letter, key in (("t", "t"), ("s", "scale")) if metrics.get(key) is not None
    ]
    chosen = f", chosen on {metrics['chosen_on']} validation rows" if "chosen_on" in metrics else ""
    rank = f", rank {metrics['rank']}" if "rank" in metrics else ""
    return f"{metrics['serves']} ({', '.join(settings)}{rank}){chosen}"


def curve_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """List (t, s, loss, right) of every point that was tried, as texts."""
    return [
        (
            f"{point['t']:g}",
            f"{point['scale']:g}",
            f"{point['loss']:.4f}",
            "-" if point["exact"] is None else f"{100 * point['exact']:.1f} %",
        )
        for point in metrics.get("curve", [])
    ]


def curve_figure(metrics: Mapping[str, Any], title: str) -> Figure | None:
    """Draw the tried points of one restoration; None where none were tried."""
    points: Sequence[Mapping[str, float]] = metrics.get("curve", [])
    if not points:
        return None
    losses = [point["loss"] for point in points]
    best = min(losses)
    top = max(loss for loss in losses if loss <= 4 * best)  # what lies far above would press the rest flat
    x = plot.linear((0.0, 1.0), FRAME.left + 8, FRAME.right - 8)
    y = plot.linear((best, top), FRAME.bottom, FRAME.top)
    shapes: list[Shape] = [Text(12, 24, title, "head"), *plot.up(y, FRAME.left, FRAME.right)]
    shapes += plot.across(x, FRAME.bottom, title="t: 0 keeps, 1 restores")
    left_out = 0
    for index, scale in enumerate(dict.fromkeys(point["scale"] for point in points)):
        of_scale = [point for point in points if point["scale"] == scale]
        drawn = [(x(point["t"]), y(point["loss"])) for point in of_scale if point["loss"] <= top]
        left_out += len(of_scale) - len(drawn)
        if drawn:
            shapes.append(plot.series(index, drawn))
            shapes.append(plot.key_mark(index, FRAME.right + 18, FRAME.top + 8 + 20 * index, 22))
            shapes.append(Text(FRAME.right + 48, FRAME.top + 12 + 20 * index, f"s = {scale:g}"))
    chosen = min(points, key=lambda point: point["loss"])
    shapes.append(Rect(x(chosen["t"]) - 8, y(chosen["loss"]) - 8, 16, 16, "chosen"))
    if left_out:
        shapes.append(
            Text(FRAME.left, HEIGHT - 6, f"{left_out} points of more than four times the least loss are left out")
        )
    described = "; ".join(f"t {t}, s {s}: {loss}" for t, s, loss, _ in curve_rows(metrics))
    return Figure(WIDTH, HEIGHT, f"{title}: loss between the bases", f"Nats a token. {described}", shapes)


def curves_section(restored: Sequence[Restored]) -> str:
    """Write the section of the report's page, empty without a corrected restoration."""
    if not restored:
        return ""
    parts = [
        '<section aria-labelledby="curves">',
        '<h2 id="curves">Between keeping and restoring</h2>',
        '<p class="soft">The loss of the gold answer on the validation rows that chose: W<sub>k</sub> + t (W<sub>l</sub> - '
        "W<sub>k</sub>) + s dW. t = 0 is the adapter on its own base, t = 1 plain restoration; the ringed point is the least. "
        "Scores above are of other rows.</p>",
    ]
    figures = 0
    for one in restored:
        figure = curve_figure(one["metrics"], one["name"]) if figures < SHOWN else None
        words = f'<p class="note">{escape(restored_words(one["metrics"]))}</p>'
        if figure is None:
            parts.append(f"<h3>{escape(one['name'])}</h3>{words}")
            continue
        unfolded = ' open=""' if figures == 0 else ""
        figures += 1
        parts.append(
            f"<details{unfolded}><summary>{escape(one['name'])}</summary>{words}"
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(one["name"])}: loss between the bases">'
            f"{svg_whole(figure, f'curve{figures}')}</div></details>"
        )
    return "\n".join([*parts, "</section>"])
