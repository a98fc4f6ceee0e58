"""Rows of the comparison of adapters: costs and scores of each, its seeds together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from plr import stats
from plr.core.modes import plain_modes
from plr.core.specs import bits_word
from plr.report.cells import Entry, Line, ResultSet
from plr.report.metrics import LOSS, is_proportion, show_entry
from plr.report.results import paired_scores
from plr.scoring.metric import Metric
from plr.study.cells import NO_ADAPTER, CellResult

__all__ = ["CostRow", "compare_rows"]

Z95 = 1.959963984540054
KEYS = ("trainable_parameters", "updated_parameters", "adapter_bytes", "peak_memory_bytes", "seconds_per_step")


@dataclass(frozen=True)
class CostRow:
    """One place of the study, all its seeds together. Scores, `low` and `high` are in the unit of `measure`."""

    task: str
    model: str
    adapter: str
    train_bits: int
    restore_bits: int
    mode: str
    costs: Mapping[str, float | None]
    metric: str
    measure: Metric
    scores: Entry
    low: float | None
    high: float | None
    n: int
    losses: Entry
    seeds: int

    @property
    def value(self) -> float | None:
        return self.scores.mean

    @property
    def text(self) -> str:
        return show_entry(self.measure, self.scores)

    @property
    def loss(self) -> float | None:
        return self.losses.mean

    @property
    def bits(self) -> str:
        mode = "" if self.mode in plain_modes() else f" {self.mode}"
        if self.adapter == NO_ADAPTER:
            return f"{self.restore_bits}{mode}"
        return f"{bits_word(self.train_bits)} -> {self.restore_bits}{mode}"


def compare_rows(results: ResultSet, costs: Mapping[str, Mapping[str, object]]) -> list[CostRow]:
    """List the rows by task, model, adapter (the base alone first), then k and l falling; a failed cell has no value."""
    rows = []
    lines = sorted(
        results.lines(),
        key=lambda line: (results.tasks.index(line.task), results.models.index(line.model), line.adapter != NO_ADAPTER),
    )
    for line in lines:
        for mode in (None, *results.modes()):
            for k, ell in sorted(results.bits(mode, line.adapter), reverse=True):
                cells = list(results.at(line, k, ell, mode).values())
                if cells:
                    rows.append(_row(results, line, cells, costs))
    return rows


def _row(
    results: ResultSet, line: Line, cells: Sequence[CellResult], costs: Mapping[str, Mapping[str, object]]
) -> CostRow:
    first = cells[0]
    metric = results.metric(line, results.primary(line))
    entry = results.entry(line, first.train_bits, first.restore_bits, metric.name, first.mode)
    recorded = [costs[cell.fingerprint] for cell in cells if cell.fingerprint in costs]
    known = {key: _mean([one.get(key) for one in recorded]) for key in KEYS}
    overhead = [shares for one in recorded if isinstance(shares := one.get("inference_overhead"), Mapping)]
    known |= {key: _mean([one.get(key) for one in overhead]) for key in ("unmerged", "merged")}
    low, high = _interval(results, line, metric, entry.mean, entry.n, cells)
    return CostRow(
        task=line.task,
        model=line.model,
        adapter=line.adapter,
        train_bits=first.train_bits,
        restore_bits=first.restore_bits,
        mode=first.mode,
        costs=known,
        metric=metric.name,
        measure=metric,
        scores=entry,
        low=low,
        high=high,
        n=entry.n,
        losses=results.entry(line, first.train_bits, first.restore_bits, LOSS, first.mode),
        seeds=len(cells),
    )


def _interval(
    results: ResultSet, line: Line, metric: Metric, mean: float | None, n: int, cells: Sequence[CellResult]
) -> tuple[float | None, float | None]:
    """Compute the 95 % interval of the mean over seeds.

    Wilson for a proportion, Student over the documents; for a metric of all rows at once its own standard error.
    """
    if mean is None:
        return None, None
    if is_proportion(metric, results.of(line)) and n:
        return stats.wilson(min(float(n), max(0.0, mean * n)), n)
    scored = [cell for cell in cells if cell.value(metric.name) is not None]
    values, _ = paired_scores(scored, scored, metric.name)
    if len(values) > 1:
        return stats.mean_interval(values)
    errors = [
        cell.metrics[metric.name].stderr for cell in scored
    ]  # the seeds share their rows: no less than one seed's error
    known = [error for error in errors if error is not None]
    return (mean - Z95 * fmean(known), mean + Z95 * fmean(known)) if known else (None, None)


def _mean(values: Iterable[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return fmean(known) if known else None
