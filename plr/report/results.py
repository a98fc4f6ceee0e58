"""The tidy CSV of a study, and its contrasts: the gain of restoring to 16 bits, and the shortfall against 16-bit LoRA.

The two primary contrasts are named beforehand, for every model, task, adapter, seed and k:

    gain       (k, k) -> (k, 16)     what restoration gains over QLoRA
    shortfall  (16, 16) -> (k, 16)   what is still lost to 16-bit LoRA (negative: lost)

Both compare the same documents. The p-values of one report form one family for Holm's correction.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean

from plr import stats
from plr.report.cells import Line, ResultSet
from plr.report.metrics import LOSS
from plr.scoring.metric import Metric
from plr.study.cells import NO_ADAPTER, CellResult
from plr.study.frame import COLUMNS, tidy_rows

__all__ = [
    "COLUMNS",
    "Contrast",
    "compare",
    "compare_at",
    "contrasts",
    "csv_text",
    "gains",
    "paired_scores",
    "value_difference",
    "write_csv",
]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a formula in a spreadsheet."""


@dataclass(frozen=True)
class Contrast:
    """Two cells on the same documents. `difference` is the second minus the first, in the unit of `measure`.

    `low`, `high`: paired bootstrap 95 % interval. `b` / `c`: documents right only in the first / only in the
    second. `p`: McNemar exact, `p_holm`: corrected. None where it does not apply: no samples, or not right/wrong.
    `seed` None: several seeds, averaged document by document.
    """

    kind: str
    line: Line
    seed: int | None
    metric: str
    measure: Metric
    train_bits: int
    first: tuple[int, int]
    second: tuple[int, int]
    difference: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    b: int | None = None
    c: int | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None

    @property
    def significant(self) -> bool:
        """The test at 5 %: by the corrected p-value; where there is none, by the interval."""
        if self.p_holm is not None:
            return self.p_holm < 0.05
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def csv_text(cells: Iterable[CellResult]) -> str:
    """Write the rows of `plr.study.frame.tidy_rows` as CSV; a value that is missing is an empty field.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_field(item) for item in row] for row in tidy_rows(cells))
    return out.getvalue()


def _field(item: object) -> object:
    if isinstance(item, float):
        return repr(item)
    return f"'{item}" if isinstance(item, str) and item.startswith(FORMULA) else item


def write_csv(cells: Iterable[CellResult], path: Path) -> None:
    """Write `csv_text` to `path` whole or not at all; the same cells give the same bytes in any order."""
    from plr.core.files import write_atomic

    write_atomic(path, csv_text(cells))


def contrasts(cells: Iterable[CellResult]) -> list[Contrast]:
    """Compute the primary contrasts on the primary metric (with p-values), then the same on the answer loss (intervals only).

    A contrast whose cells are missing, failed or without value is left out: the failures are listed by the report.
    """
    results = cells if isinstance(cells, ResultSet) else ResultSet(cells)
    primary = [c for line in results.lines() for c in _line_contrasts(results, line, results.primary(line))]
    tested = [index for index, contrast in enumerate(primary) if contrast.p is not None]
    for index, p in zip(tested, stats.holm([primary[index].p or 0.0 for index in tested]), strict=True):
        primary[index] = replace(primary[index], p_holm=p)
    losses = [
        replace(c, p=None, detectable=None)
        for line in results.lines()
        if results.primary(line) != LOSS
        for c in _line_contrasts(results, line, LOSS)
    ]
    return primary + losses


def _line_contrasts(results: ResultSet, line: Line, metric: str) -> Iterable[Contrast]:
    if line.adapter == NO_ADAPTER:
        return
    trained = [k for k, ell in results.bits(adapter=line.adapter) if ell == 16 and k != 16]
    for k in trained:
        for kind, first in (("gain", (k, k)), ("shortfall", (16, 16))):
            before, after = results.at(line, *first), results.at(line, k, 16)
            for seed in sorted(before.keys() & after.keys()):
                contrast = compare_at(results, line, first, (k, 16), metric, kind=kind, seed=seed)
                if contrast is not None:
                    yield contrast


def gains(results: ResultSet, line: Line, metric: str) -> list[Contrast]:
    """Compute the gain of restoring to 16 bits at each k, all seeds together, k falling."""
    if line.adapter == NO_ADAPTER:
        return []
    trained = [k for k, ell in results.bits(adapter=line.adapter) if ell == 16 and k != 16]
    compared = (compare_at(results, line, (k, k), (k, 16), metric, kind="gain") for k in trained)
    return [contrast for contrast in compared if contrast is not None]


def compare_at(
    results: ResultSet,
    line: Line,
    first: tuple[int, int],
    second: tuple[int, int],
    metric: str,
    *,
    kind: str = "pair",
    seed: int | None = None,
) -> Contrast | None:
    """Compare two places (k, l) of a line, at one seed or over all of them; the result is computed once and kept."""
    before, after = results.at(line, *first), results.at(line, *second)
    seeds = tuple(sorted(before.keys() & after.keys())) if seed is None else (seed,)
    key = (line, first, second, metric, seeds)
    if key not in results.memo:
        results.memo[key] = compare({s: before[s] for s in seeds}, {s: after[s] for s in seeds}, metric)
    contrast = results.memo[key]
    return replace(contrast, kind=kind) if contrast is not None else None


def value_difference(first: Mapping[int, CellResult], second: Mapping[int, CellResult], metric: str) -> float | None:
    """Average `second` minus `first` over the shared seeds, without an interval; None where no seed has both."""
    pairs = [(first[seed].value(metric), second[seed].value(metric)) for seed in sorted(first.keys() & second.keys())]
    whole = [after - before for before, after in pairs if before is not None and after is not None]
    return fmean(whole) if whole else None


def compare(
    first: Mapping[int, CellResult], second: Mapping[int, CellResult], metric: str, *, kind: str = "pair"
) -> Contrast | None:
    """Compare `second` with `first`, each a place of the study by seed; None where no seed has a value on both sides.

    With several seeds a document's score is its mean over the seeds that both sides have. The difference is taken over
    the documents scored on both sides; without samples it is that of the values and has no interval.
    """
    seeds = [
        seed
        for seed in sorted(first.keys() & second.keys())
        if first[seed].value(metric) is not None and second[seed].value(metric) is not None
    ]
    if not seeds:
        return None
    one, two = first[seeds[0]], second[seeds[0]]
    base = Contrast(
        kind=kind,
        line=Line(two.model, two.task, two.adapter),
        seed=seeds[0] if len(seeds) == 1 else None,
        metric=metric,
        measure=two.metric(metric),
        train_bits=two.train_bits,
        first=(one.train_bits, one.restore_bits),
        second=(two.train_bits, two.restore_bits),
        difference=value_difference({s: first[s] for s in seeds}, second, metric) or 0.0,
    )
    a, b = paired_scores([first[s] for s in seeds], [second[s] for s in seeds], metric)
    if not a:
        return base
    interval = stats.paired_bootstrap(a, b)
    base = replace(base, difference=interval.value, low=interval.low, high=interval.high, n=interval.n)
    if len(seeds) > 1 or not set(a) | set(b) <= {0.0, 1.0}:
        return base
    lost = sum(x > y for x, y in zip(a, b, strict=True))
    won = sum(x < y for x, y in zip(a, b, strict=True))
    detectable = stats.detectable_difference(len(a), discordance=(lost + won) / len(a))
    return replace(base, b=lost, c=won, p=stats.mcnemar_exact(lost, won), detectable=detectable)


def paired_scores(
    first: Sequence[CellResult], second: Sequence[CellResult], metric: str, other: str | None = None
) -> tuple[list[float], list[float]]:
    """Collect the scores of the documents that every cell scored, in order of id, averaged over each side's cells.

    `other` names the metric of the second side, where it differs.
    """
    maps = [
        {
            doc: float(value)
            for doc, value in cell.samples.get(name, {}).items()
            if value is not None and isfinite(value)
        }
        for name, side in ((metric, first), (other or metric, second))
        for cell in side
    ]
    shared = sorted(set(maps[0]).intersection(*maps[1:])) if maps else []
    return _mean_by(shared, maps[: len(first)]), _mean_by(shared, maps[len(first) :])


def _mean_by(docs: Sequence[str], maps: Sequence[Mapping[str, float]]) -> list[float]:
    if len(maps) == 1:
        return [maps[0][doc] for doc in docs]
    return [fmean(scores[doc] for scores in maps) for doc in docs]
