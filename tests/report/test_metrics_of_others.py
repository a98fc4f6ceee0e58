"""Metrics of a task that plr did not write: shown in the unit and direction that the task declares, or bare, with a note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plr.report.by_task import by_task_md
from plr.report.cells import ResultSet
from plr.report.compare import compare_md
from plr.report.costs import compare_rows
from plr.report.figures.compare import compare_figure
from plr.report.figures.svg import svg_whole
from plr.report.html import report_html
from plr.report.table import table_md
from plr.report.verdicts import deployment, gain_verdicts
from plr.report.words import deploy_words, detectable_words, gain_words
from plr.scoring.metric import PERCENT, Metric
from plr.stats import mean_interval
from plr.study.cells import CellResult, Measured

BLEU = Metric("bleu", digits=2)
LATENCY = Metric("latency_seconds", "seconds", higher_is_better=False)
WER = Metric("wer", PERCENT, higher_is_better=False)
Make = Callable[..., CellResult]


@pytest.fixture
def measured(cell: Make) -> Make:
    """`measured(k, l, metric, values)`: a cell whose one metric carries its unit."""

    def make(k: int, ell: int, metric: Metric, values: list[float], **more: Any) -> CellResult:
        mean = Measured(sum(values) / len(values), 0.1, len(values), metric if metric.declared else None)
        return cell(k, ell, values, primary=metric.name, extra={metric.name: mean}, **more)

    return make


def deploy(cells: list[CellResult]) -> tuple[tuple[int, int] | None, str]:
    results = ResultSet(cells)
    verdict = deployment(results, results.lines()[0])
    return verdict.place, deploy_words(verdict)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| math")]


def test_a_corpus_score_is_not_multiplied(measured: Make) -> None:
    cells = [measured(16, 16, BLEU, [30.5, 31.5]), measured(4, 4, BLEU, [20.0, 21.0])]
    text = table_md(cells)
    assert "### `bleu`, the primary metric\n" in text
    assert rows(text)[0] == "| math | tiny | 31.00 | 20.50 |"
    low, high = mean_interval([30.5, 31.5])
    assert rows(text)[1].startswith(f"| math | tiny | {low:.2f} to {high:.2f} |")
    assert deploy(cells) == (
        (16, 16),
        "Train on 16 bits and deploy on 16: the best cell with 31.00.",
    )


def test_of_seconds_fewer_are_better(measured: Make) -> None:
    cells = [
        measured(4, 4, LATENCY, [1.0] * 20),
        measured(4, 16, LATENCY, [0.5] * 20),
        measured(4, 4, LATENCY, [2.0] * 20, adapter="sparse"),
    ]
    results = ResultSet(cells)
    line = results.lines()[0]
    assert deploy(cells) == (
        (4, 16),
        "Train on 4 bits and deploy on 16: the best cell with 0.5000 seconds.",
    )
    assert gain_words(gain_verdicts(results, line)) == "Restoring to 16 bits gains at k = 4 (-0.5000 seconds)."
    text = table_md(cells)
    assert "### `latency_seconds`, the primary metric, in seconds (lower is better)" in text
    assert "| math | tiny | - | 1.0000 | **0.5000** |" in text
    assert "and latency_seconds in the metric's own unit" in text
    assert detectable_words(results) == []  # all of them are 1 in one cell: still no share of right answers
    compared = compare_rows(results, {})
    assert (compared[0].low, compared[0].high) == mean_interval([0.5] * 20)
    assert "latency_seconds, in seconds (lower is better)." in compare_md(compared, "s")


def test_the_best_of_a_task_is_bold_in_its_direction(measured: Make) -> None:
    cells = [
        measured(4, ell, metric, [value, value], task=task)
        for task, metric, values in (("fast", LATENCY, (2.0, 1.0)), ("good", BLEU, (30.0, 20.0)))
        for ell, value in zip((4, 16), values, strict=True)
    ]
    text = by_task_md(compare_rows(ResultSet(cells), {}))
    assert "| LoRA | 4 → 16 | - | **1.0000** | 20.00 |" in text
    assert "| LoRA | 4 → 4 | - | 2.0000 | **30.00** |" in text
    assert "Avg. |" not in text.splitlines()[2] or "- |" in text  # seconds and scores have no mean


def test_an_error_rate_is_a_percentage_of_which_less_is_better(measured: Make) -> None:
    """Within 5 points of the best, fewer bits are chosen; beyond them not, though the number is higher."""
    near = [measured(16, 16, WER, [0.20, 0.22] * 50), measured(4, 4, WER, [0.22, 0.20] * 50)]
    place, text = deploy(near)
    assert place == (4, 4)
    assert "the one with the fewest bits" in text or "not detectably above the best cell" in text
    far = [measured(16, 16, WER, [0.20, 0.22] * 50), measured(4, 4, WER, [0.40, 0.42] * 50)]
    assert deploy(far)[0] == (16, 16)
    assert ", in percent (lower is better)" in table_md(far)


def test_what_nobody_declared_is_a_plain_number_and_says_so(measured: Make) -> None:
    cells = [measured(16, 16, Metric("oddity", declared=False), [0.25, 0.75])]
    text = table_md(cells)
    assert "### `oddity`, the primary metric, a plain number: its task declares no unit" in text
    assert rows(text)[0] == "| math | tiny | 0.5000 |"


def test_two_tasks_may_give_one_name_two_units(measured: Make) -> None:
    cells = [
        measured(16, 16, Metric("score", PERCENT), [0.5], task="a"),
        measured(16, 16, Metric("score"), [7.0], task="b"),
    ]
    text = table_md(cells)
    assert "### `score`, the primary metric, in percent or a plain number" in text
    assert "| a | tiny | 50.00 |" in text
    assert "| b | tiny | 7.0000 |" in text
    assert "Avg. | tiny" not in text


def test_page_and_picture_name_the_unit(measured: Make) -> None:
    cells = [measured(4, 4, LATENCY, [2.0, 2.5]), measured(4, 16, LATENCY, [1.0, 1.5])]
    page = report_html(cells, title="t", settings={}, provenance={}, timings=[])
    assert "math: change of latency_seconds from restoring to 16 bits (seconds, lower is better)" in page
    assert "Difference in seconds with 95 % intervals." in page
    costs = {one.fingerprint: {"trainable_parameters": 100} for one in cells}
    figure = compare_figure(compare_rows(ResultSet(cells), costs), "s")
    picture = "" if figure is None else svg_whole(figure)
    assert "latency_seconds, in seconds (lower is better)" in picture
    assert "LoRA 4 -&gt; 16: 1.2500" in picture


def test_a_line_whose_first_cell_failed_keeps_its_metric(cell: Make) -> None:
    """A failed cell has no primary metric; its row is still shown."""
    cells = [cell(16, 16, error="broke", primary=""), cell(4, 4, "1100")]
    text = table_md(cells)
    assert "### `exact_match,first-answer`, the primary metric, in percent" in text
    assert "| math | tiny | failed | 50.00 |" in text
