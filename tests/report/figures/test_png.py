"""PNG of a figure: its pixels are those of the shapes, at twice the size."""

from __future__ import annotations

import io

import numpy as np
import pytest

from plr.report.figures.shapes import Cells, Dot, Figure, Group, Line, Ramp, Rect, Squares, Text
from plr.report.figures.style import COLOURS, ramp, series_colour

pytest.importorskip("matplotlib", reason="comes with plr[figures]")


def pixels(*shapes: object) -> np.ndarray:
    from matplotlib.image import imread

    from plr.report.figures.png import png_bytes

    image = imread(io.BytesIO(png_bytes(Figure(100, 60, "t", "d", shapes))))  # type: ignore[arg-type]
    return np.rint(255 * image[:, :, :3]).astype(int)


def rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def test_shapes_lie_where_they_are_put_and_have_their_colours() -> None:
    image = pixels(Group([Dot(20, 10, 1, size=4.5)], series=2), Line([(60, 30), (90, 30)], "mark"))
    assert image.shape == (120, 200, 3)
    assert image[20, 40].tolist() == rgb(series_colour(2)[0])
    assert image[60, 150].tolist() == rgb("#b3261e")
    assert image[100, 20].tolist() == rgb(COLOURS["page"][0])


def test_cells_are_the_colours_of_the_ramp() -> None:
    image = pixels(Cells(10, 20, np.array([[0, 15], [7, 3]]), 8))
    colours = ramp(16)
    for (row, column), colour in {(0, 0): 0, (0, 1): 15, (1, 0): 7, (1, 1): 3}.items():
        assert image[2 * (20 + 8 * row + 4), 2 * (10 + 8 * column + 4)].tolist() == list(colours[colour])


def test_every_shape_leaves_ink() -> None:
    blank = pixels()
    for shape in (Rect(5, 5, 20, 10, "edge"), Squares([(3, 3)], 9, "chosen"), Text(50, 30, "a $b_c", "head", "middle")):
        assert (pixels(shape) != blank).any()
    upright, flat = pixels(Ramp(10, 10, 20, 40, upright=True)), pixels(Ramp(10, 10, 40, 20))
    assert upright[22, 40].sum() > upright[96, 40].sum(), "bright is up"
    assert flat[40, 96].sum() > flat[40, 22].sum(), "bright is right"
