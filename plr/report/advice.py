"""The base that an adapter belongs on: the choice of `plr advise`, the numbers behind it, and its sentence.

The rule. On the rows that choose, the candidate with the best primary metric is taken (answer loss where no candidate answers).
On the other rows it is compared once with the adapter on its own base, or, where nobody knows that base, with the adapter on 16
bits. Its gain is *proven* if the paired bootstrap's 95 % interval leaves out 0 and, where rows are right or wrong, McNemar's exact
test has p < 0.05. Without proof the adapter stays where it was trained. Then the best of the candidates that take fewer bytes is
asked for: it is deployed instead if its loss is not detected and, with 95 % confidence, under `plr.report.verdicts.MARGIN`; where
a gain was proven, its own gain has to be proven too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from plr import stats
from plr.core.fingerprint import JsonObject
from plr.core.modes import plain_mode, plain_modes
from plr.core.specs import GivenAdapter, bits_word
from plr.core.store import Store
from plr.errors import PlrError
from plr.report.metrics import LOSS, is_proportion, suffix, with_unit
from plr.report.results import Contrast, compare
from plr.report.verdicts import FLOOR, LEVEL, MARGIN
from plr.scoring.metric import PERCENT, Metric
from plr.study.advise import Inquiry, base_words, evaluated, restricted, served_bytes
from plr.study.cells import CellResult

__all__ = [
    "ADVICE_HEAD",
    "Advice",
    "Candidate",
    "advice_json",
    "advice_notes",
    "advice_rows",
    "advice_words",
    "advise",
    "gigabytes",
    "judge",
]

ADVICE_HEAD = (
    "k → l",
    "Mode",
    "Base",
    "Chooses",
    "Certifies",
    "95 % interval",
    "Against",
    "95 % interval",
    "Answer loss",
    "GB",
)

Reason = Literal["gain", "fewer bytes", "own is best", "not proven"]
WhyMetric = Literal["primary", "no row has a score of the primary metric", "no candidate answers"]


@dataclass(frozen=True)
class Candidate:
    """One way to serve the adapter, on the rows that choose and on those that certify; `size` is in bytes, None if not known."""

    bits: int
    mode: str
    base: str
    own: bool
    chosen_on: CellResult
    certified_on: CellResult
    size: int | None

    @property
    def words(self) -> str:
        """Its base and mode, in words."""
        if self.own:
            return f"its own {self.bits}-bit base"
        return f"{self.bits} bits" + ("" if self.mode in plain_modes() else f" ({self.mode})")


@dataclass(frozen=True)
class Advice:
    """A choice among candidates, and the reason.

    `best` has the best score on the rows that choose, `reference` is what it is compared with. `gain`: `best` against `reference`
    on the rows that certify (of `reference` itself: the plain 16-bit candidate, or the next best). `saving`: `deploy` against what
    it takes fewer bytes than.
    """

    inquiry: Inquiry
    metric: Metric
    why_metric: WhyMetric
    candidates: Sequence[Candidate]
    failed: Sequence[tuple[str, str]]
    reference: Candidate
    best: Candidate
    deploy: Candidate
    reason: Reason
    gain: Contrast | None
    saving: Contrast | None = None

    @property
    def cells(self) -> list[CellResult]:
        """The candidates on the rows that certify, for tables and page."""
        return [one.certified_on for one in self.candidates]

    @property
    def place(self) -> tuple[int, int] | None:
        """Place (k, l) of what to deploy, where tables show it by that."""
        own = self.deploy.certified_on
        return (own.train_bits, own.restore_bits) if self.deploy.mode in plain_modes() else None


def advise(inquiry: Inquiry, store: Store, failed: Mapping[str, str], *, offline: bool = False) -> Advice:
    """Choose among the scored candidates of an inquiry, and judge the choice on the other rows.

    Raises:
        PlrError: fewer than two candidates have a score.
        IntegrityError, DataError: see `Inquiry.results`.
    """
    results = inquiry.results(store, failed)
    scored = [(cell, result) for cell, result in zip(inquiry.cells, results, strict=True) if not result.failed]
    lost = [(f"{r.restore_bits} bits, {r.mode}", r.error or "") for r in results if r.failed]
    if len(scored) < 2:
        raise PlrError(
            f"{len(scored)} of {len(results)} candidates have a score: there is nothing to compare",
            hint=f"the first that failed, {lost[0][0]}: {lost[0][1]}",
        )
    own = inquiry.adapter.own_base
    candidates = []
    for cell, result in scored:
        target = evaluated(cell.step)
        candidates.append(
            Candidate(
                bits=target.base.bits,
                mode=target.mode,
                base=base_words(target.base),
                own=target.mode == plain_mode(same_base=True) and target.base == own,
                chosen_on=restricted(result, inquiry.rows.choosing),
                certified_on=restricted(result, inquiry.rows.certifying),
                size=served_bytes(target, store, offline=offline),
            )
        )
    return judge(inquiry, candidates, lost)


def judge(inquiry: Inquiry, candidates: Sequence[Candidate], failed: Sequence[tuple[str, str]] = ()) -> Advice:
    """Apply the rule of this module to candidates that have their scores."""
    metric, why = _metric(candidates)
    reference = _reference(candidates)
    best = max(candidates, key=lambda one: _rank(one, metric))
    gain = _pair(reference, _other(candidates, metric, reference) if best is reference else best, metric)
    proven = best is not reference and _proven(gain, metric)
    stay, reason = (best, "gain") if proven else (reference, "own is best" if best is reference else "not proven")
    saving = None
    smaller = [one for one in candidates if (one.size or inf) < (stay.size or inf)]
    if smaller:
        cheaper = max(smaller, key=lambda one: _rank(one, metric))
        pair = _pair(stay, cheaper, metric)
        if _close(pair, metric) and (not proven or _proven(_pair(reference, cheaper, metric), metric)):
            stay, reason, saving = cheaper, "fewer bytes", pair
    return Advice(inquiry, metric, why, candidates, failed, reference, best, stay, reason, gain, saving)


def _metric(candidates: Sequence[Candidate]) -> tuple[Metric, WhyMetric]:
    """Choose what decides: the primary metric, or the answer loss where that has no score by row or all are at the floor."""
    first = candidates[0].chosen_on
    metric, loss = first.metric(first.primary), first.metric(LOSS)
    values = [one.chosen_on.value(metric.name) for one in candidates]
    if any(value is None for value in values):
        return loss, "no row has a score of the primary metric"
    if metric.unit == PERCENT and metric.sign > 0 and max(value or 0.0 for value in values) < FLOOR:
        return loss, "no candidate answers"
    return metric, "primary"


def _reference(candidates: Sequence[Candidate]) -> Candidate:
    own = next((one for one in candidates if one.own), None)
    return own or next((one for one in candidates if one.bits == 16), candidates[0])


def _other(candidates: Sequence[Candidate], metric: Metric, reference: Candidate) -> Candidate:
    """Choose what a reference that is best itself is compared with: the plain 16 bits, or the next best."""
    others = [one for one in candidates if one is not reference]
    plain = [one for one in others if one.bits == 16 and one.mode == plain_mode(same_base=False)]
    return plain[0] if plain else max(others, key=lambda one: _rank(one, metric))


def _rank(one: Candidate, metric: Metric) -> tuple[float, float, float]:
    value, loss = one.chosen_on.value(metric.name), one.chosen_on.value(LOSS)
    return (-inf if value is None else metric.sign * value, -inf if loss is None else -loss, -(one.size or inf))


def _pair(first: Candidate, second: Candidate, metric: Metric) -> Contrast | None:
    return compare({0: first.certified_on}, {0: second.certified_on}, metric.name)


def _proven(pair: Contrast | None, metric: Metric) -> bool:
    if pair is None or pair.low is None or pair.high is None:
        return False
    return min(metric.sign * pair.low, metric.sign * pair.high) > 0 and (pair.p is None or pair.p < LEVEL)


def _lost(pair: Contrast, metric: Metric) -> bool:
    """Tell whether the interval lies below 0."""
    ends = (pair.low, pair.high)
    return None not in ends and max(metric.sign * end for end in ends if end is not None) < 0


def _close(pair: Contrast | None, metric: Metric) -> bool:
    """Tell whether a loss is not detected and, with 95 % confidence, under the margin, which holds for percentages."""
    if pair is None or pair.low is None or pair.high is None or metric.unit != PERCENT:
        return False
    worst, most = sorted((metric.sign * pair.low, metric.sign * pair.high))
    return most >= 0 and worst >= -MARGIN


def advice_words(advice: Advice) -> str:
    """Write the sentence: where to deploy, the gain with its interval, n, and what is served."""
    deploy, metric, n = advice.deploy, advice.metric, len(advice.inquiry.rows.certifying)
    chose = len(advice.inquiry.rows.choosing)
    text = f"{metric.name} {_value(deploy, metric)} (n = {n}), {gigabytes(deploy.size)} served"
    name, reference, best = advice.inquiry.adapter.label, advice.reference, advice.best
    by = {
        "primary": "",
        "no candidate answers": " No candidate answers: the answer loss decides.",
        "no row has a score of the primary metric": " The primary metric has no score by row: the answer loss decides.",
    }[advice.why_metric]
    if advice.reason == "fewer bytes":
        assert advice.saving is not None
        stay = best if _proven(advice.gain, metric) and best is not reference else reference
        return (
            f"Deploy {name} on {deploy.words}: {text}. Not detectably worse than {stay.words} ({_value(stay, metric)}, "
            f"{gigabytes(stay.size)}): {_contrast(advice.saving)}.{by}"
        )
    if advice.reason == "gain":
        return (
            f"Deploy {name} on {deploy.words}: {text}. {_capital(_contrast(advice.gain))} against {reference.words} "
            f"({_value(reference, metric)}, {gigabytes(reference.size)}).{by}"
        )
    verb = "Keep" if reference.own else "Deploy"
    head = f"{verb} {name} on {deploy.words}: {text}."
    if advice.gain is None:
        return head + by
    if advice.reason == "own is best":
        other = _other(advice.candidates, metric, reference)
        return f"{head} It was best on the {chose} rows that chose, too; {other.words} against it: {_contrast(advice.gain)}.{by}"
    found = "it loses" if _lost(advice.gain, metric) else "no gain is proven"
    return (
        f"{head} {_capital(best.words)} was best on the {chose} rows that chose; on the other {n} "
        f"{found}: {_contrast(advice.gain)}.{by}"
    )


def advice_rows(advice: Advice) -> list[tuple[str, ...]]:
    """Write a row a candidate, in the columns of `ADVICE_HEAD`; the one to deploy has a star."""
    metric, rows = advice.metric, []
    for one in advice.candidates:
        cell = one.certified_on
        pair = None if one is advice.reference else _pair(advice.reference, one, metric)
        low, high = _interval(cell, metric, advice.cells)
        rows.append(
            (
                f"{bits_word(cell.train_bits)} → {one.bits}{' *' if one is advice.deploy else ''}",
                one.mode,
                one.base,
                metric.show(one.chosen_on.value(metric.name)),
                metric.show(cell.value(metric.name)),
                "-" if low is None else f"{metric.show(low)} to {metric.show(high)}",
                "-" if pair is None else metric.show_signed(pair.difference),
                "-"
                if pair is None or pair.low is None
                else f"{metric.show_signed(pair.low)} to {metric.show_signed(pair.high)}",
                cell.metric(LOSS).show(cell.value(LOSS)),
                gigabytes(one.size).removesuffix(" GB"),
            )
        )
    return rows


def advice_notes(advice: Advice) -> list[str]:
    """Say what the columns are, what the rows are, and what nobody can know of them."""
    rows = advice.inquiry.rows
    unit = ", in percent" if advice.metric.unit == PERCENT else ""
    notes = [
        f"{advice.metric.name}{unit}. Chooses: on the {len(rows.choosing)} rows that choose; all other columns: on the "
        f"{len(rows.certifying)} that certify. Against: the paired difference to {advice.reference.words}. *: to deploy. "
        "GB: weights served, base and adapter."
    ]
    if isinstance(advice.inquiry.adapter, GivenAdapter):
        notes.append("Another tool trained the adapter: nothing here knows whether it saw these test rows.")
    notes += [f"Not scored: {what}: {error}" for what, error in advice.failed]
    return notes


def advice_json(advice: Advice) -> JsonObject:
    """Build the value that `--json` prints."""
    metric = advice.metric

    def contrast(pair: Contrast | None) -> JsonObject | None:
        if pair is None:
            return None
        return {"difference": pair.difference, "low": pair.low, "high": pair.high, "n": pair.n, "p": pair.p}

    def named(one: Candidate) -> JsonObject:
        return {"restore_bits": one.bits, "mode": one.mode, "base": one.base, "own": one.own}

    def candidate(one: Candidate) -> JsonObject:
        cell = one.certified_on
        return {
            **named(one),
            "choosing": one.chosen_on.value(metric.name),
            "certifying": cell.value(metric.name),
            "interval": _interval(cell, metric, advice.cells),
            "answer_loss": cell.value(LOSS),
            "bytes": one.size,
            "against_reference": None if one is advice.reference else contrast(_pair(advice.reference, one, metric)),
            "result": cell.fingerprint,
        }

    return {
        "adapter": advice.inquiry.adapter.label,
        "task": advice.inquiry.task.name,
        "sentence": advice_words(advice),
        "reason": advice.reason,
        "metric": metric.name,
        "decided_by": advice.why_metric,
        "rows": {"choosing": len(advice.inquiry.rows.choosing), "certifying": len(advice.inquiry.rows.certifying)},
        "deploy": named(advice.deploy),
        "reference": named(advice.reference),
        "best_on_choosing_rows": named(advice.best),
        "gain": contrast(advice.gain),
        "saving": contrast(advice.saving),
        "candidates": [candidate(one) for one in advice.candidates],
        "failed": [{"candidate": what, "error": error} for what, error in advice.failed],
    }


def gigabytes(size: int | None) -> str:
    """Write a size in GB, with three digits.

    >>> gigabytes(269_000_000), gigabytes(16_060_000_000), gigabytes(None)
    ('0.269 GB', '16.1 GB', '? GB')
    """
    if size is None:
        return "? GB"
    return f"{size / 1e9:.3g} GB"


def _interval(cell: CellResult, metric: Metric, cells: Sequence[CellResult]) -> tuple[float | None, float | None]:
    """Compute the 95 % interval of one candidate: Wilson for a share of rows, Student for another mean."""
    values = [value for value in cell.samples.get(metric.name, {}).values() if value is not None]
    if not values:
        return None, None
    if is_proportion(metric, cells):
        return stats.wilson(sum(values), len(values))
    return stats.mean_interval(values) if len(values) > 1 else (None, None)


def _value(one: Candidate, metric: Metric) -> str:
    return f"{metric.show(one.certified_on.value(metric.name))}{suffix(metric)}"


def _contrast(pair: Contrast | None) -> str:
    assert pair is not None
    text = with_unit(pair.measure, pair.difference)
    if pair.low is None:
        return text
    p = "" if pair.p is None else f", p = {pair.p:.2g}"
    return f"{text} (95 % interval {pair.measure.show_signed(pair.low)} to {pair.measure.show_signed(pair.high)}{p})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
