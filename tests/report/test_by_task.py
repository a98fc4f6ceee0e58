"""Adapters down, tasks across."""

from __future__ import annotations

from typing import Any

from plr.report.by_task import by_task_md
from plr.report.cells import ResultSet
from plr.report.compare import compare_md
from plr.report.costs import compare_rows


def rows_of(cells: list[Any]) -> Any:
    return compare_rows(ResultSet(cells), {})


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.split("\n\n")[1].splitlines() if not line.startswith("| ---")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_a_row_has_every_task_and_their_mean(cell: Any) -> None:
    cells = [
        cell(4, 16, "1100", task="math"),
        cell(4, 16, "1110", task="sql"),
        cell(4, 16, "1000", task="math", adapter="sparse"),
        cell(4, 16, "1111", task="sql", adapter="sparse"),
    ]
    shown = table(by_task_md(rows_of(cells)))
    assert shown[0] == ["Adapter", "k → l", "Trainable", "math", "sql", "Avg."]
    assert shown[1] == ["LoRA", "4 → 16", "-", "**50.00**", "75.00", "62.50"]
    assert shown[2][1:] == ["4 → 16", "-", "25.00", "**100.00**", "62.50"]


def test_the_mean_is_of_the_seeds_that_every_task_has(cell: Any) -> None:
    """As in table.md: over other seeds for one task than for another, it would compare other runs."""
    cells = [cell(4, 16, bits, task="math", seed=seed) for seed, bits in enumerate(("1100", "1111"))]
    cells.append(cell(4, 16, "1000", task="sql"))
    assert table(by_task_md(rows_of(cells)))[1][3:] == ["**75.00 ± 35.36**", "**25.00**", "37.50 (1/2)"]


def test_a_task_that_failed_leaves_no_mean(cell: Any) -> None:
    cells = [cell(4, 16, "1100", task="math"), cell(4, 16, task="sql", error="broke", primary="")]
    assert table(by_task_md(rows_of(cells)))[1] == ["LoRA", "4 → 16", "-", "**50.00**", "failed", "-"]


def test_one_task_needs_no_such_table(cell: Any) -> None:
    rows = rows_of([cell(4, 16, "1100"), cell(4, 4, "1000")])
    assert by_task_md(rows) == ""
    assert "by task" not in compare_md(rows, "s")


def test_losses_of_two_units_have_no_mean(cell: Any) -> None:
    cells = [
        cell(16, 16, "11", task="cola", primary="mcc", losses=[0.5, 0.5]),
        cell(16, 16, "11", task="stsb", primary="pearson", losses=[2.0, 2.0]),
    ]
    text = by_task_md(rows_of(cells)).partition("Answer loss")[2]
    assert "| Adapter | k → l | cola | stsb |" in text
    assert "1.2500" not in text


def test_the_lowest_loss_is_bold(cell: Any) -> None:
    cells = [
        cell(4, 16, "11", task="math", losses=[0.5, 0.5]),
        cell(4, 16, "11", task="sql", losses=[0.25, 0.25]),
        cell(4, 4, "11", task="math", losses=[1.0, 1.0]),
        cell(4, 4, "11", task="sql", losses=[1.0, 1.0]),
    ]
    text = by_task_md(rows_of(cells)).partition("Answer loss")[2]
    assert "| LoRA | 4 → 16 | **0.5000** | **0.2500** | 0.3750 |" in text
