"""Metrics in words: the unit behind a value, in a title and of a difference; and whether a metric is a share of right answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plr.report.cells import Entry
from plr.scoring.metric import ANSWER_LOSS, NATS, PERCENT, Metric
from plr.study.cells import CellResult

__all__ = [
    "ENDED",
    "FIRST_ANSWER",
    "LOSS",
    "STRICT",
    "difference_unit",
    "foreign_note",
    "is_proportion",
    "show_entry",
    "sort_metrics",
    "suffix",
    "unit_note",
    "with_unit",
]

LOSS = ANSWER_LOSS.name
ENDED = "ended"
STRICT = "exact_match,strict"
FIRST_ANSWER = "exact_match,first-answer"


def is_proportion(metric: Metric, cells: Sequence[CellResult]) -> bool:
    """Tell whether a fraction counts right and wrong: by its documents where they are known, else by what its scorer says."""
    if metric.unit != PERCENT:
        return False
    values = {value for cell in cells for value in cell.samples.get(metric.name, {}).values() if value is not None}
    return values <= {0.0, 1.0} if values else metric.proportion


def suffix(metric: Metric) -> str:
    """Write the unit behind a value in a sentence; nats per token go without."""
    if metric.unit == PERCENT:
        return " %"
    return f" {metric.unit}" if metric.unit not in ("", NATS) else ""


def difference_unit(metric: Metric) -> str:
    """Name the unit of a difference of two values."""
    return "points" if metric.unit == PERCENT else metric.unit


def with_unit(metric: Metric, difference: float | None) -> str:
    """Write a difference with its sign and unit.

    >>> with_unit(Metric("acc", PERCENT), 0.012), with_unit(Metric("bleu", digits=2), -1.5)
    ('+1.20 points', '-1.50')
    """
    return f"{metric.show_signed(difference)} {difference_unit(metric)}".rstrip()


def unit_note(metrics: Iterable[Metric]) -> str:
    """Write the unit and direction that a title adds to the names of its metrics, with the comma before them.

    >>> unit_note([Metric("acc", PERCENT)]), unit_note([Metric("latency", "seconds", higher_is_better=False)])
    (', in percent', ', in seconds (lower is better)')
    >>> unit_note([Metric("bleu")]), unit_note([Metric("bleu", declared=False)])
    ('', ', a plain number: its task declares no unit')
    """
    distinct = list(dict.fromkeys(metrics))
    notes = list(dict.fromkeys(_note(metric) for metric in distinct))
    if len(notes) > 1:
        units = [_note(metric) if metric.unit != NATS else _unit(metric) for metric in distinct]
        notes = [" or ".join(sorted(dict.fromkeys(unit or "a plain number" for unit in units), key=_last_of_all))]
    return f", {notes[0]}" if notes and notes[0] else ""


def foreign_note(metric: Metric) -> str:
    """Write the unit note of a metric, but none for a percentage or a loss: a reader takes a bare number as one of these."""
    return "" if metric.unit in (PERCENT, NATS) else unit_note([metric])


def show_entry(metric: Metric, entry: Entry) -> str:
    """Write a table cell: value, or mean ± sd over seeds, `failed`, or `-`; `(2/3)` where a seed is missing."""
    if entry.mean is None:
        return "failed" if entry.failed else "-"
    text = metric.show(entry.mean)
    if entry.sd is not None:
        text += f" ± {metric.show(entry.sd)}"
    return text if len(entry.values) == entry.runs else f"{text} ({len(entry.values)}/{entry.runs})"


def sort_metrics(metrics: Iterable[Metric]) -> list[str]:
    """Sort the names of metrics for a report: by name, then `ended`, then losses."""
    ordered = sorted(metrics, key=lambda metric: (metric.unit == NATS, metric.name == ENDED, metric.name))
    return list(dict.fromkeys(metric.name for metric in ordered))


def _note(metric: Metric) -> str:
    if not metric.declared:
        return "a plain number: its task declares no unit"
    lower = "" if metric.higher_is_better else "lower is better"
    unit = _unit(metric)
    return f"{unit} ({lower})" if unit and lower else unit or lower


def _unit(metric: Metric) -> str:
    words = metric.unit.replace("/", " per ")
    return words if metric.unit == NATS or not words else f"in {words}"


def _last_of_all(note: str) -> int:
    """Rank a note: percentages first, plain numbers last, whose note may be long."""
    return 0 if note == "in percent" else 2 if note.startswith("a plain number") else 1
