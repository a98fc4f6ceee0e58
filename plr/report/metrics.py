"""How a metric is shown: its unit, its direction, its name, and whether it is a proportion.

Scores are fractions and shown in percent with two decimals; their differences are points. Losses are nats per token,
shown with four decimals, and lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence

from plr.report.cells import Entry
from plr.study.cells import CellResult

__all__ = [
    "ENDED",
    "FIRST_ANSWER",
    "LOSS",
    "STRICT",
    "is_loss",
    "is_proportion",
    "of_a_number",
    "show",
    "show_entry",
    "show_signed",
    "sort_metrics",
    "unit",
]

LOSS = "answer_loss"
ENDED = "ended"
STRICT = "exact_match,strict"
FIRST_ANSWER = "exact_match,first-answer"

_PROPORTIONS = ("exact_match", "numeric_match", "exec_match", "acc", "accuracy", ENDED)


def is_loss(metric: str) -> bool:
    return metric.split(",")[0].endswith(("loss", "perplexity"))


def is_proportion(metric: str, cells: Sequence[CellResult]) -> bool:
    """Whether the metric counts right and wrong: by its documents where they are known, else by its name."""
    values = {value for cell in cells for value in cell.samples.get(metric, {}).values() if value is not None}
    return values <= {0.0, 1.0} if values else metric.split(",")[0] in _PROPORTIONS


def of_a_number(primary: str) -> bool:
    """Whether a task with this primary metric asks for a number: its loss is a squared error, which no mean takes with nats."""
    return primary in ("pearson", "spearman")


def unit(metric: str) -> str:
    """Of a difference."""
    return "nats/token" if is_loss(metric) else "points"


def show(metric: str, value: float | None, missing: str = "-") -> str:
    """The bare number.

    >>> show("exact_match,strict", 0.25), show("answer_loss", 0.25), show("acc", None)
    ('25.00', '0.2500', '-')
    """
    if value is None:
        return missing
    return _fixed(value, 4) if is_loss(metric) else _fixed(100 * value, 2)


def show_signed(metric: str, value: float | None, missing: str = "-") -> str:
    """A difference with its sign; one that rounds to nothing has none.

    >>> show_signed("acc", 0.012), show_signed("acc", -0.00001)
    ('+1.20', '0.00')
    """
    text = show(metric, value, missing)
    return f"+{text}" if value is not None and float(text) > 0 else text


def show_entry(metric: str, entry: Entry) -> str:
    """A table cell: value, or mean ± sd over seeds, ``failed``, or ``-``; ``(2/3)`` where a seed is missing."""
    if entry.mean is None:
        return "failed" if entry.failed else "-"
    text = show(metric, entry.mean)
    if entry.sd is not None:
        text += f" ± {show(metric, entry.sd)}"
    return text if len(entry.values) == entry.runs else f"{text} ({len(entry.values)}/{entry.runs})"


def sort_metrics(names: list[str], first: list[str]) -> list[str]:
    """``first`` (the primary ones), then the others by name, then ``ended`` and the losses."""
    return sorted(names, key=lambda name: (name not in first, is_loss(name), name == ENDED, name))


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
