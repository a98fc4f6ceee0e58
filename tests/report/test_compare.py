"""The cost table and its picture, on cells whose numbers are known."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plr import stats
from plr.core.specs import AdapterSpec, Evaluate, ModelRef, Restore, Source, TaskSpec, Train, TrainSpec
from plr.core.store import Store
from plr.report.cells import ResultSet
from plr.report.compare import COMPARE_HEAD, compare_md, compare_texts, write_compare
from plr.report.costs import compare_rows
from plr.report.figures import plot
from plr.report.figures.compare import LEFT, compare_figure
from plr.report.figures.png import can_draw
from plr.report.figures.shapes import Dot, Figure, Group, Line, Text
from plr.report.figures.svg import svg_whole
from plr.report.figures.write import write_figure
from plr.study import Cell
from plr.study.cells import CellResult, Measured
from plr.study.costs import costs_of

IMAGE = ["compare.png"] if can_draw() else []
COST = {
    "trainable_parameters": 16_384,
    "updated_parameters": 12_288,
    "adapter_bytes": 70_000,
    "peak_memory_bytes": 5 * 10**8,
    "seconds_per_step": 0.25,
    "inference_overhead": {"unmerged": 1.125, "merged": 1.0},
}


def _columns(row: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(COMPARE_HEAD, row, strict=True))


def test_row_of_one_cell(cell: Any) -> None:
    rows = compare_rows(ResultSet([cell(4, 16, "1101", losses=[0.1, 0.2, 0.3, 0.4])]), {"041600": COST})
    assert _columns(compare_texts(rows)[0]) == {
        "Task": "math",
        "Model": "tiny",
        "Adapter": "LoRA",
        "k -> l": "4 -> 16",
        "Trainable": "16,384",
        "Updated": "12,288",
        "Adapter, MB": "0.07",
        "Peak memory, MB": "500",
        "s/step": "0.250",
        "Forward, unmerged": "1.12",
        "Forward, merged": "1.00",
        "Metric": "exact_match,first-answer",
        "Value": "75.00",
        "95 % interval": "30.06 to 95.44",
        "n": "4",
        "Answer loss": "0.2500",
    }
    assert (rows[0].low, rows[0].high) == stats.wilson(3, 4)


def test_what_was_not_recorded_is_a_dash(cell: Any) -> None:
    cells = [cell(4, 4, "10"), cell(4, 16, error="broke", primary=""), cell(16, 16, "11", adapter="prompt")]
    partly = {"trainable_parameters": 5, "inference_overhead": {"unmerged": 2.0, "merged": None}}
    rows = {row.bits: _columns(text) for row, text in _pairs(cells, {"161600": partly, "040400": {}})}
    assert [rows["4 -> 4"][name] for name in ("Trainable", "Peak memory, MB", "Forward, unmerged")] == ["-", "-", "-"]
    names = ("Metric", "Value", "95 % interval", "n")
    assert [rows["4 -> 16"][name] for name in names] == ["exact_match,first-answer", "failed", "-", "-"]
    assert [rows["16 -> 16"][name] for name in ("Trainable", "Updated", "Forward, unmerged", "Forward, merged")] == [
        "5",
        "-",
        "2.00",
        "-",
    ]


def _pairs(cells: list[CellResult], costs: dict[str, Any]) -> Any:
    rows = compare_rows(ResultSet(cells), costs)
    return zip(rows, compare_texts(rows), strict=True)


def test_seeds_are_means_and_rows_are_in_order(cell: Any) -> None:
    cells = [
        cell(4, 16, "1100", seed=0), cell(4, 16, "1111", seed=1), cell(16, 16, "1111"), cell(4, 4, "1000"),
        cell(4, 4, "0000", adapter="none"), cell(4, 4, "0000", mode="roundtrip"),
    ]  # fmt: skip
    costs = {"041600": COST, "041601": COST | {"seconds_per_step": 0.75}}
    rows = compare_rows(ResultSet(cells), costs)
    assert [row.bits for row in rows] == ["4", "16 -> 16", "4 -> 16", "4 -> 4", "4 -> 4 roundtrip"]
    both = rows[2]
    assert (both.costs["seconds_per_step"], both.value, both.seeds, both.text) == (0.5, 0.75, 2, "75.00 ± 35.36")
    assert (both.low, both.high) == stats.wilson(3, 4)


def test_a_loss_has_students_interval(cell: Any) -> None:
    row = compare_rows(ResultSet([cell(4, 4, [0.2, 0.4, 0.9], primary="answer_loss")]), {})[0]
    assert (row.text, (row.low, row.high)) == ("0.5000", stats.mean_interval([0.2, 0.4, 0.9]))


def test_a_metric_of_all_rows_at_once_has_the_interval_of_its_error(cell: Any) -> None:
    cells = [cell(16, 16, "11", primary="mcc", extra={"mcc": Measured(0.5, 0.1, 40)}, seed=seed) for seed in (0, 1)]
    for one in cells:
        one.samples["mcc"].clear()
    row = compare_rows(ResultSet(cells), {})[0]
    assert (row.low, row.high) == (pytest.approx(0.5 - 1.96 * 0.1, abs=1e-4), pytest.approx(0.5 + 1.96 * 0.1, abs=1e-4))


def test_markdown_says_once_what_all_rows_share(cell: Any) -> None:
    text = compare_md(compare_rows(ResultSet([cell(4, 4, "1"), cell(4, 16, "1")]), {"040400": COST}), "study")
    assert "Task: math. Model: tiny. Metric: exact_match,first-answer." in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].startswith("| Adapter | k → l | Trainable |")
    assert [line.split("|")[2].strip() for line in table[2:]] == ["4 → 16", "4 → 4"]
    two = compare_md(compare_rows(ResultSet([cell(4, 4, "1"), cell(4, 4, "1", task="a|b")]), {}), "study")
    assert "| Task |" in two
    assert "a\\|b" in two


def _points(figure: Figure) -> dict[str, tuple[float, float]]:
    """Tooltip -> place of the mark."""
    groups = [shape for shape in figure.shapes if isinstance(shape, Group) and shape.tip]
    return {group.tip: next((dot.x, dot.y) for dot in group.shapes if isinstance(dot, Dot)) for group in groups}


def test_picture_places_points_by_trained_parameters_and_value(cell: Any) -> None:
    cells = [cell(4, 4, "1110", adapter=name) for name in ("vera", "lora", "dora", "lost")]
    cells += [cell(4, 16, "1100", adapter="lora")]
    costs = {"040400": COST}
    sizes = {"vera": 10**3, "lora": 10**4, "dora": 10**5}
    rows = [
        replace(row, costs=row.costs | {"trainable_parameters": sizes.get(row.adapter)})
        for row in compare_rows(ResultSet(cells), costs)
    ]
    figure = compare_figure(rows, "t")
    assert figure is not None
    at = _points(figure)
    assert set(at) == {"VeRA 4 -> 4: 75.00", "LoRA 4 -> 4: 75.00", "DoRA 4 -> 4: 75.00", "LoRA 4 -> 16: 50.00"}
    vera, lora, dora = (at[f"{name} 4 -> 4: 75.00"] for name in ("VeRA", "LoRA", "DoRA"))
    assert lora[0] - vera[0] == pytest.approx(dora[0] - lora[0])
    assert lora[0] > vera[0]
    assert vera[1] == lora[1] < at["LoRA 4 -> 16: 50.00"][1]
    assert at["LoRA 4 -> 16: 50.00"][0] == lora[0]
    assert "LoRA 4 -> 16: 50.00, 10,000 trained parameters" in figure.description
    ET.fromstring(svg_whole(figure))


def test_adapters_of_one_size_stand_at_the_bits_they_are_served_on(cell: Any) -> None:
    cells = [cell(4, 4, "1100"), cell(4, 16, "1110"), cell(16, 16, "1111")]
    rows = compare_rows(ResultSet(cells), {one.fingerprint: COST for one in cells})
    at = _points(compare_figure(rows, "t") or pytest.fail("no figure"))
    assert at["LoRA 4 -> 16: 75.00"][0] == at["LoRA 16 -> 16: 100.00"][0] > at["LoRA 4 -> 4: 50.00"][0]


def test_front_joins_what_nothing_smaller_reaches(cell: Any) -> None:
    right = {"a": "1100", "b": "1000", "c": "1110", "d": "1110"}
    cells = [cell(4, 4, bits, adapter=name) for name, bits in right.items()]
    rows = [
        replace(row, costs=row.costs | {"trainable_parameters": 10.0 ** (2 + index)})
        for index, row in enumerate(compare_rows(ResultSet(cells), {}))
    ]
    figure = compare_figure(rows, "t")
    assert figure is not None
    at = _points(figure)
    (front,) = [shape for shape in figure.shapes if isinstance(shape, Line) and shape.style == "front"]
    assert at["a 4 -> 4: 50.00"] in front.points
    assert at["c 4 -> 4: 75.00"] in front.points
    assert at["b 4 -> 4: 25.00"] not in front.points
    assert front.points[-1] == at["d 4 -> 4: 75.00"]


@pytest.mark.parametrize("sizes", [(2e3, 1e6), (1e5, 1.01e5), (1e5, 1e5)])
def test_names_lie_inside_the_frame_and_do_not_meet(cell: Any, sizes: tuple[float, float]) -> None:
    cells = [cell(4, 4, "1" * (i % 5) + "0" * (5 - i % 5), adapter=f"method_{i}") for i in range(29)]
    low, high = sizes
    rows = [
        replace(row, costs=row.costs | {"trainable_parameters": low * (high / low) ** (index / 28)})
        for index, row in enumerate(compare_rows(ResultSet(cells), {}))
    ]
    figure = compare_figure(rows, "t")
    assert figure is not None
    boxes = []
    for shape in figure.shapes:
        if isinstance(shape, Text) and shape.style == "name":
            boxes.append(plot.Box(shape.x, shape.y - 9, shape.x + 6.2 * len(shape.text), shape.y + 2))
    assert len(boxes) >= (29 if high > 2 * low else 12)
    frame = plot.Box(LEFT, 0, figure.width, figure.height)
    for index, box in enumerate(boxes):
        assert frame.holds(box)
        assert not any(box.meets(other) for other in boxes[:index])


def test_files_of_a_figure(cell: Any, tmp_path: Path) -> None:
    rows = compare_rows(ResultSet([cell(4, 4, "1")]), {"040400": COST})
    figure = compare_figure(rows, "t")
    assert figure is not None
    files = write_figure(figure, tmp_path / "x.svg")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [file.suffix for file in files] == ([".svg", ".png"] if can_draw() else [".svg"])


def test_files(cell: Any, tmp_path: Path) -> None:
    without = write_compare([cell(4, 4, "1")], {}, tmp_path, "study")
    assert set(without) == {"costs"}
    paths = write_compare([cell(4, 4, "1")], {"040400": COST}, tmp_path, "study")
    assert {path.name for path in paths.values()} == {"compare.md", "compare.svg", *IMAGE}
    assert all(path.is_file() for path in paths.values())


def test_costs_are_those_of_the_training_behind_a_cell(tmp_path: Path) -> None:
    source, task = Source(model=ModelRef(kind="local", name="m", revision="0")), TaskSpec(name="t", version=1)
    trained = [Train(base=source, task=task, adapter=AdapterSpec(), train=TrainSpec(seed=seed)) for seed in (0, 1)]
    store = Store(tmp_path)
    store.make(trained[0], lambda folder: COST)
    steps = [Evaluate(target=Restore(adapter=train, base=source, mode="keep"), task=task) for train in trained]
    cells = [Cell("m", "t", "lora", 16, 16, "keep", seed, step) for seed, step in enumerate(steps)]
    cells.append(Cell("m", "t", "none", 16, 16, "keep", 0, Evaluate(target=source, task=task)))
    assert costs_of(cells, store) == {steps[0].fingerprint: COST}
