"""The figure of a base's output errors, read back from its SVG."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from plr.bases.modules import modules_of
from plr.report.figures.bases import HEIGHT, LEFT, RIGHT, TOP, WIDTH, error_figure
from plr.report.figures.plot import log_ticks
from plr.report.figures.svg import svg_whole

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SVG = "{http://www.w3.org/2000/svg}"


def records(blocks: int = 6, kinds: tuple[str, ...] = KINDS, **over: Any) -> dict[str, Any]:
    return {
        "modules": [
            {
                "name": f"model.layers.{block}.{'mlp' if 'down' in kind or 'up' in kind else 'self_attn'}.{kind}",
                "error": 0.002 * (at + 1) * 1.2**block,
                "rtn_error": 0.004 * (at + 1) * 1.2**block,
                **over,
            }
            for block in range(blocks)
            for at, kind in enumerate(kinds)
        ]
    }


def drawn(metrics: dict[str, Any]) -> ET.Element:
    figure = error_figure(modules_of(metrics), "a base & more")
    assert figure is not None
    return ET.fromstring(svg_whole(figure))


def points(line: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def test_points_lie_where_the_numbers_say() -> None:
    root = drawn(records())
    marks = {float(t.text or ""): float(t.attrib["y"]) - 4 for t in root.iter(f"{SVG}text")
             if re.fullmatch(r"[\d.e-]+", t.text or "") and t.attrib.get("text-anchor") == "end"}  # fmt: skip
    (a, ya), *_, (b, yb) = sorted(marks.items())
    for line in root.iter(f"{SVG}polyline"):
        assert len(points(line)) == 6
    down = [m for m in records()["modules"] if m["name"].endswith("down_proj")]
    lines = [points(line) for line in root.iter(f"{SVG}polyline") if line.attrib["class"] == "line"]
    top = min(lines, key=lambda line: line[-1][1])  # the largest error stands highest
    for (_, y), module in zip(top, down, strict=True):
        value = 10 ** (math.log10(a) + (ya - y) / (ya - yb) * (math.log10(b) - math.log10(a)))
        assert value == pytest.approx(module["error"], rel=0.02)


def test_everything_lies_inside_and_labels_do_not_meet() -> None:
    kinds = (*KINDS, "extra_one", "extra_two", *(f"more_{i}" for i in range(12)))
    root = drawn(records(40, kinds))
    height = float(root.attrib["height"])
    assert height >= HEIGHT
    for line in root.iter(f"{SVG}polyline"):
        for x, y in points(line):
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP <= y <= height
    boxes = []
    for text in root.iter(f"{SVG}text"):
        wide = 6.6 * len(text.text or "") * (1.3 if text.attrib["class"] == "head" else 1)
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        left = x - {"end": wide, "middle": wide / 2}.get(text.attrib.get("text-anchor", ""), 0)
        boxes.append((left, left + wide, y - 10, y + 2, text.text))
    for i, (l1, r1, t1, b1, one) in enumerate(boxes):
        assert l1 >= 0, one
        assert r1 <= WIDTH, one
        assert b1 <= height, one
        for l2, r2, t2, b2, other in boxes[:i]:
            assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, (one, other)


def test_description_gives_the_numbers_and_the_title_is_escaped() -> None:
    root = drawn(records())
    assert root.find(f"{SVG}title").text == "a base & more"  # type: ignore[union-attr]
    said = root.find(f"{SVG}desc").text or ""  # type: ignore[union-attr]
    assert said.index("down_proj: mean") < said.index("q_proj: mean"), "the worst kind comes first"
    assert f"largest {0.014 * 1.2**5:.3g} in block 5" in said


def test_a_rounded_base_has_no_second_line() -> None:
    metrics = records()
    for module in metrics["modules"]:
        module["rtn_error"] = module["error"]
    root = drawn(metrics)
    assert {line.attrib["class"] for line in root.iter(f"{SVG}polyline")} == {"line"}
    assert all(text.text != "rounding" for text in root.iter(f"{SVG}text"))


def test_experts_of_a_block_are_their_mean() -> None:
    modules = [{"name": f"l.0.experts.{i}.up", "error": e} for i, e in enumerate((0.1, 0.3))]
    assert "up: mean 0.2, largest 0.2 in block 0" in (drawn({"modules": modules}).find(f"{SVG}desc").text or "")  # type: ignore[union-attr]


@pytest.mark.parametrize("metrics", [{}, {"modules": []}, records(error=None), records(error=0.0)])
def test_without_errors_there_is_no_figure(metrics: dict[str, Any]) -> None:
    assert error_figure(modules_of(metrics), "x") is None


def test_one_module_is_enough() -> None:
    root = drawn({"modules": [{"name": "model.layers.0.mlp.up_proj", "error": 0.01}]})
    assert len(list(root.iter(f"{SVG}circle"))) == 2, "the point, and the key's"


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.01), (0.02, 0.05), (1e-9, 1.0), (0.0999, 0.1001), (3.0, 40.0)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    marks = log_ticks(low, high)
    assert marks == sorted(set(marks))
    assert marks[0] <= low <= high <= marks[-1]
    assert 2 <= len(marks) <= 11
