"""Files of a figure that stands alone: SVG, and beside it PNG where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

from plr.core.files import write_atomic
from plr.report.figures.shapes import Figure
from plr.report.figures.svg import svg_whole

__all__ = ["PNG_HINT", "write_figure"]

PNG_HINT = "PNG beside SVG: pip install 'plr[figures]'"


def write_figure(figure: Figure, file: Path) -> list[Path]:
    """Write `file` (.svg) and, where matplotlib is installed, the .png of the same name; return the files written."""
    from plr.report.figures.png import can_draw, png_bytes

    write_atomic(file, svg_whole(figure))
    if not can_draw():
        return [file]
    image = file.with_suffix(".png")
    partial = image.with_name(f".{image.name}.tmp")
    partial.write_bytes(png_bytes(figure))
    partial.replace(image)
    return [file, image]
