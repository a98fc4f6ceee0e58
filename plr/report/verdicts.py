"""Decisions of a report and the numbers behind them: the cell to deploy, the gain of restoring, stops, detectable differences.

`plr.report.words` puts each into a sentence. No difference is called real unless its corrected test says so: with one seed
by Holm's correction of McNemar's test; where that test does not apply (several seeds averaged, scores that are not right or wrong)
by the bootstrap interval, widened for the study's number of such gains (Bonferroni).

The rule behind `Deployment` (each model, task and adapter by itself): take the cell with the best primary metric. Among the cells
with fewer bits (first k, then l) choose the first whose loss against it is not detected and, with 95 % confidence, under `MARGIN`.
The margin holds for percentages; for a metric in another unit the best cell is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plr import stats
from plr.report.cells import Line, ResultSet
from plr.report.metrics import ENDED, FIRST_ANSWER, STRICT, is_proportion
from plr.report.results import Contrast, compare_at, contrasts, gains, paired_scores
from plr.scoring.metric import PERCENT, Metric
from plr.study.cells import NO_ADAPTER

__all__ = [
    "MARGIN",
    "Deployment",
    "Detectable",
    "Gain",
    "Stop",
    "StopMove",
    "Unscored",
    "adapted_lines",
    "deployment",
    "detectables",
    "gain_verdicts",
    "stops",
    "unscored",
]

MARGIN = 0.05
FLOOR = 0.01
LEVEL = 0.05

Place = tuple[int, int]
"""A place of a study: (k, l)."""


@dataclass(frozen=True)
class Deployment:
    """The cell of a line to deploy (`place`, None if there is none to name), and why.

    `best` is the cell with the best primary metric. `pair` compares `place` with it where fewer bits were chosen.
    """

    line: Line
    metric: Metric
    reason: Literal["not scored", "floor", "one cell", "fewer bits", "no margin", "fewest bits", "best"]
    place: Place | None = None
    value: float | None = None
    best: Place | None = None
    best_value: float | None = None
    pair: Contrast | None = None


@dataclass(frozen=True)
class Gain:
    """The change by restoring to 16 bits at one k: `outcome` 1 gains, -1 loses, 0 is not significant after correction.

    `tests` is the number of tests that the correction is for.
    """

    contrast: Contrast
    outcome: Literal[1, -1, 0]
    tests: int

    @property
    def suggestive(self) -> bool:
        """Not significant after correction, though its own 95 % interval leaves out 0."""
        low, high = self.contrast.low, self.contrast.high
        return self.outcome == 0 and low is not None and high is not None and not low <= 0 <= high


@dataclass(frozen=True)
class StopMove:
    """Restoring at one k moves strict and first-answer match apart: the change of each."""

    train_bits: int
    first_answer: float
    strict: float


@dataclass(frozen=True)
class Stop:
    """Cells of a line in which strict match is below first-answer match: `apart` of `cells`, most at `place` with these values."""

    line: Line
    cells: int
    apart: int
    place: Place | None = None
    strict: float | None = None
    first_answer: float | None = None
    ended: float | None = None
    moves: Sequence[StopMove] = ()


@dataclass(frozen=True)
class Detectable:
    """The smallest paired difference that `n` (to `most`) documents a cell show.

    `small` holds where two cells disagree on 10 % of the documents, `large` where on 20 %.
    """

    task: str
    n: int
    most: int
    small: float
    large: float


@dataclass(frozen=True)
class Unscored:
    """Documents of a line that some cell did not score, so that no pair silently shrinks."""

    line: Line
    missing: int
    documents: int


def adapted_lines(results: ResultSet) -> list[Line]:
    """List the lines with an adapter."""
    return [line for line in results.lines() if line.adapter != NO_ADAPTER]


def deployment(results: ResultSet, line: Line) -> Deployment:
    """Choose the cell of a line to deploy."""
    metric = results.metric(line, results.primary(line))
    sign, percent = metric.sign, metric.unit == PERCENT
    scored = {
        (k, ell): mean
        for k, ell in results.bits(adapter=line.adapter)
        if (mean := results.entry(line, k, ell, metric.name).mean) is not None
    }
    if not scored:
        return Deployment(line, metric, "not scored")
    best = max(scored, key=lambda place: (sign * scored[place], -place[0], -place[1]))
    if percent and sign > 0 and scored[best] < FLOOR:
        return Deployment(line, metric, "floor", best=best, best_value=scored[best])
    if len(scored) == 1:
        return Deployment(line, metric, "one cell", best=best, best_value=scored[best])
    for place in sorted(scored):
        if place >= best or not percent:
            break
        pair = compare_at(results, line, best, place, metric.name)
        if pair and pair.low is not None and pair.high is not None:
            worst, most = sorted((sign * pair.low, sign * pair.high))
            if most >= 0 and worst >= -MARGIN:
                return Deployment(line, metric, "fewer bits", place, scored[place], best, scored[best], pair)
    reason = "no margin" if not percent else "fewest bits" if best == min(scored) else "best"
    return Deployment(line, metric, reason, best, scored[best], best, scored[best])


def gain_verdicts(results: ResultSet, line: Line, pairs: Sequence[Contrast] | None = None) -> list[Gain]:
    """Judge the gain of restoring to 16 bits at each k; `pairs` are `contrasts` of the results, if already computed."""
    pairs = contrasts(results) if pairs is None else pairs
    metric = results.primary(line)
    sign = results.metric(line, metric).sign
    tested = {c.train_bits: c for c in pairs if c.kind == "gain" and c.line == line and c.metric == metric}
    family = sum(contrast.p is not None for contrast in pairs)
    comparisons = sum(len(gains(results, one, results.primary(one))) for one in results.lines())
    verdicts: list[Gain] = []
    for gain in gains(results, line, metric):
        own = tested.get(gain.train_bits) if gain.seed is not None else None
        if own is not None and own.p_holm is not None:
            gain, real, tests = own, own.p_holm < LEVEL, family
        else:
            real, tests = _apart(results, gain, LEVEL / comparisons), comparisons
        direction = sign if gain.difference > 0 else -sign
        verdicts.append(Gain(gain, (1 if direction > 0 else -1) if real else 0, tests))
    return verdicts


def stops(results: ResultSet) -> list[Stop]:
    """Find the lines in which the answer is right and runs on; lines without both metrics are left out."""
    verdicts: list[Stop] = []
    for line in results.lines():
        if not {STRICT, FIRST_ANSWER} <= set(results.metrics(line)):
            continue
        apart: list[tuple[float, int, int]] = []
        scored = 0
        for k, ell in results.bits(adapter=line.adapter):
            cells = [
                c for c in results.at(line, k, ell).values() if None not in (c.value(STRICT), c.value(FIRST_ANSWER))
            ]
            strict, first = paired_scores(cells, cells, STRICT, FIRST_ANSWER)
            scored += bool(strict)
            if strict and (pair := stats.paired_bootstrap(strict, first)).low > 0 and pair.value >= 0.01:
                apart.append((pair.value, k, ell))
        if apart:
            _, k, ell = max(apart)
            values = [results.entry(line, k, ell, metric).mean for metric in (STRICT, FIRST_ANSWER, ENDED)]
            verdicts.append(Stop(line, scored, len(apart), (k, ell), *values, moves=_moves(results, line)))
        elif scored:
            verdicts.append(Stop(line, scored, 0))
    return verdicts


def detectables(results: ResultSet) -> list[Detectable]:
    """Compute the detectable difference for each task that is scored by right and wrong."""
    verdicts: list[Detectable] = []
    for task in results.tasks:
        scored = [cell for cell in results.cells if cell.task == task and cell.value(cell.primary) is not None]
        counts = {cell.count(cell.primary) for cell in scored if is_proportion(cell.metric(cell.primary), scored)} - {0}
        if counts:
            small, large = (stats.detectable_difference(min(counts), discordance=psi) for psi in (0.1, 0.2))
            verdicts.append(Detectable(task, min(counts), max(counts), small, large))
    return verdicts


def unscored(results: ResultSet) -> list[Unscored]:
    """Count the documents of each line that some of its cells did not score; lines without any are left out."""
    verdicts: list[Unscored] = []
    for line in results.lines():
        metric = results.primary(line)
        cells = [cell for cell in results.of(line) if cell.value(metric) is not None]
        sets = [{doc for doc, value in cell.samples.get(metric, {}).items() if value is not None} for cell in cells]
        every: set[str] = set().union(*sets)
        if missing := every - every.intersection(*sets):
            verdicts.append(Unscored(line, len(missing), len(every)))
    return verdicts


def _apart(results: ResultSet, pair: Contrast, alpha: float) -> bool:
    """Test whether the bootstrap interval at `1 - alpha` leaves out 0."""
    key = ("apart", pair, alpha)
    if key not in results.memo:
        before, after = results.at(pair.line, *pair.first), results.at(pair.line, *pair.second)
        seeds = [
            seed
            for seed in sorted(before.keys() & after.keys())
            if before[seed].value(pair.metric) is not None and after[seed].value(pair.metric) is not None
        ]
        a, b = paired_scores([before[s] for s in seeds], [after[s] for s in seeds], pair.metric)
        interval = stats.paired_bootstrap(a, b, confidence=1 - alpha) if a else None
        results.memo[key] = interval is not None and not interval.low <= 0 <= interval.high
    return results.memo[key]


def _moves(results: ResultSet, line: Line) -> list[StopMove]:
    """Find the k at which restoring moves strict and first-answer match apart."""
    moves: list[StopMove] = []
    for strict in gains(results, line, STRICT):
        k = strict.train_bits
        cells = [
            (before, after)
            for seed, before in results.at(line, k, k).items()
            if (after := results.at(line, k, 16).get(seed)) and not before.failed and not after.failed
        ]
        before, after = [pair[0] for pair in cells], [pair[1] for pair in cells]
        s0, s1 = paired_scores(before, after, STRICT)
        f0, f1 = paired_scores(before, after, FIRST_ANSWER)
        first = compare_at(results, line, (k, k), (k, 16), FIRST_ANSWER)
        if first is None or not s0 or len(s0) != len(f0):
            continue
        apart = stats.paired_bootstrap(
            [y - x for x, y in zip(s0, s1, strict=True)], [y - x for x, y in zip(f0, f1, strict=True)]
        )
        if not apart.low <= 0 <= apart.high:
            moves.append(StopMove(k, first.difference, strict.difference))
    return moves
