"""Metrics as values: the unit of a measure, its direction, and which kind of number it is.

A metric is named in the manner of lm-eval, `measure` or `measure,filter` (`exact_match,strict`); a filter says how the answer was
read and changes neither unit nor direction. plr knows the measures of its own scorers by name (`KNOWN`). A task that measures
something else declares it (`Task.declared`), and results carry what was declared, so that a report needs no task. Nothing is
guessed from a name: a measure that nobody declared is a plain number of which more is better, and every table says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

__all__ = ["ANSWER_LOSS", "KNOWN", "NATS", "PERCENT", "Metric", "MetricUnit", "find_metric", "metric_named"]

PERCENT = "percent"
NATS = "nats/token"


class MetricUnit(TypedDict, total=False):
    """The fields of a `Metric` that a result carries beside the value; none of what nobody declared."""

    unit: str
    higher_is_better: bool
    proportion: bool
    of_numbers: bool
    digits: int | None


@dataclass(frozen=True)
class Metric:
    """One measure of a model.

    >>> Metric("exact_match,strict", PERCENT, proportion=True).show(0.25)
    '25.00'
    >>> Metric("latency", "seconds", higher_is_better=False).show_signed(0.25)
    '+0.2500'
    """

    name: str
    unit: str = ""
    """`percent`: values are fractions and shown times 100. Anything else is shown as it is: `nats/token`, `seconds`, or empty."""
    higher_is_better: bool = True
    proportion: bool = False
    """Each row is right (1) or wrong (0), so that the value is a share of the rows."""
    of_numbers: bool = False
    """Compares numbers: the loss beside it is a squared error, not nats."""
    digits: int | None = None
    """Decimals shown: 2 of a percentage and 4 of any other number, if left out."""
    declared: bool = True
    """False where nothing but the name is known."""

    def __post_init__(self) -> None:
        if self.proportion and self.unit != PERCENT:
            raise ValueError(f"{self.name} is a proportion in {self.unit or 'no unit'}; expected: the unit {PERCENT!r}")

    @property
    def scale(self) -> float:
        """Factor between a value and the number that is shown."""
        return 100.0 if self.unit == PERCENT else 1.0

    @property
    def decimals(self) -> int:
        return self.digits if self.digits is not None else 2 if self.unit == PERCENT else 4

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1

    def show(self, value: float | None, missing: str = "-") -> str:
        """Format `value` without its unit.

        >>> Metric("acc", PERCENT).show(0.25), Metric("loss", NATS).show(0.25), Metric("acc", PERCENT).show(None)
        ('25.00', '0.2500', '-')
        """
        if value is None:
            return missing
        text = f"{self.scale * value:.{self.decimals}f}"
        return text.lstrip("-") if float(text) == 0 else text

    def show_signed(self, value: float | None, missing: str = "-") -> str:
        """Format a difference with its sign; one that rounds to nothing has none.

        >>> Metric("acc", PERCENT).show_signed(0.012), Metric("acc", PERCENT).show_signed(-0.00001)
        ('+1.20', '0.00')
        """
        text = self.show(value, missing)
        return f"+{text}" if value is not None and float(text) > 0 else text

    @property
    def record(self) -> MetricUnit:
        """The fields that a result carries beside the value; none of what nobody declared."""
        if not self.declared:
            return {}
        return {
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "proportion": self.proportion,
            "of_numbers": self.of_numbers,
            "digits": self.digits,
        }

    @classmethod
    def recorded(cls, name: str, record: Mapping[str, Any]) -> Metric:
        """Read `record` of a result back; a result of before units were recorded is known by its name.

        >>> Metric.recorded("latency", Metric("latency", "seconds", higher_is_better=False).record).unit
        'seconds'
        >>> Metric.recorded("acc", {"value": 0.5}).unit, Metric.recorded("latency", {"value": 0.5}).declared
        ('percent', False)
        """
        if "unit" not in record:
            return metric_named(name)
        return cls(
            name,
            record["unit"],
            record["higher_is_better"],
            record["proportion"],
            record["of_numbers"],
            record["digits"],
        )


ANSWER_LOSS = Metric("answer_loss", NATS, higher_is_better=False)
"""Mean loss of the gold answer (of a head: of the gold label), measured beside the metrics of every task."""

_SHARES = (
    "acc", "accuracy", "contains", "ended", "exact_match", "exact_match_folded", "exec_match", "in_choices", "numeric_match",
    "sql_match",
)  # fmt: skip
_FRACTIONS = ("f1", "mcc", "roc_auc", *(f"rouge{kind}{cut}" for kind in "12L" for cut in ("", "_ja")))

KNOWN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(name, PERCENT, proportion=True) for name in _SHARES),
        *(Metric(name, PERCENT) for name in _FRACTIONS),
        *(Metric(name, PERCENT, of_numbers=True) for name in ("pearson", "spearman")),
        ANSWER_LOSS,
        Metric("p_gold", PERCENT),
        Metric("perplexity", higher_is_better=False, digits=2),
    )
}
"""The measures of plr's own scorers; correlations in percent, as GLUE gives them."""


def find_metric(name: str, declared: Iterable[Metric]) -> Metric | None:
    """Look `name` up among `declared`: by its whole name, else by its measure, the part before the comma."""
    by_name = {metric.name: metric for metric in declared}
    chosen = by_name.get(name) or by_name.get(name.partition(",")[0])
    return None if chosen is None else replace(chosen, name=name)


def metric_named(name: str) -> Metric:
    """Look up the metric that plr knows under `name`, else a plain number that says it was not declared.

    >>> metric_named("exact_match,strict").proportion, metric_named("f1").unit, metric_named("bleu").declared
    (True, 'percent', False)
    """
    return find_metric(name, KNOWN.values()) or Metric(name, declared=False)
