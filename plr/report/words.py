"""Sentences of a report: each verdict of `plr.report.verdicts` in words, and the headline of a study."""

from __future__ import annotations

from collections.abc import Sequence

from plr.report.cells import Line, ResultSet
from plr.report.metrics import ENDED, FIRST_ANSWER, suffix, with_unit
from plr.report.results import Contrast, contrasts
from plr.report.sheets import adapter_label
from plr.report.verdicts import (
    Deployment,
    Gain,
    Stop,
    adapted_lines,
    deployment,
    detectables,
    gain_verdicts,
    stops,
    unscored,
)
from plr.scoring.metric import metric_named
from plr.study.cells import NO_ADAPTER

__all__ = [
    "MACHINE",
    "deploy_words",
    "detectable_words",
    "gain_words",
    "headline",
    "line_words",
    "name_line",
    "sample_words",
    "stop_words",
]


MACHINE = (
    "Another machine shows other digits. Another kind of CPU alone, everything made anew in the same dtype, moved the cells of the "
    "quickstart study (300 documents each) by up to 0.7 points, and by up to 5.3 where the adapter had lost most of its skill; "
    "another dtype by up to 1.3 and 4.0. Differences of that size against numbers from elsewhere are no finding."
)
"""The limits that a report states of itself, as measured (`notes/LOG.md`)."""


def headline(results: ResultSet, pairs: Sequence[Contrast] | None = None) -> str:
    """Sum up the whole study in one sentence."""
    pairs = contrasts(results) if pairs is None else pairs
    lines = adapted_lines(results)
    if not any(
        results.entry(line, k, ell, results.primary(line)).values for line in lines for k, ell in results.bits()
    ):
        return "No cell with an adapter has a score: there is nothing to compare yet."
    if len(lines) == 1:
        return deploy_words(deployment(results, lines[0]))
    verdicts = [verdict for line in lines for verdict in gain_verdicts(results, line, pairs)]
    if not verdicts:
        return "This study has no pair of a k-bit cell and its restoration to 16 bits."
    gain, loss = sum(v.outcome > 0 for v in verdicts), sum(v.outcome < 0 for v in verdicts)
    rest, near = len(verdicts) - gain - loss, sum(v.suggestive for v in verdicts)
    if not gain and not loss:
        text = f"Restoring to 16 bits makes no detectable difference in any of {len(verdicts)} comparisons"
        return f"{text}{_before_correction(near)}."
    parts = [f"gains in {gain}" if gain else "", f"loses in {loss}" if loss else ""]
    text = f"Restoring to 16 bits {' and '.join(part for part in parts if part)} of {len(verdicts)} comparisons"
    return f"{text}; in {rest} no difference is detectable{_before_correction(near)}." if rest else f"{text}."


def line_words(results: ResultSet, pairs: Sequence[Contrast] | None = None) -> list[tuple[str, str]]:
    """Say for each line with an adapter what restoring does and, in a study of several, which cell to deploy."""
    pairs = contrasts(results) if pairs is None else pairs
    lines = adapted_lines(results)
    texts: list[tuple[str, str]] = []
    for line in lines:
        chosen = deploy_words(deployment(results, line)) if len(lines) > 1 else ""
        changes = gain_words(gain_verdicts(results, line, pairs))
        texts.append((name_line(results, line), " ".join(part for part in (chosen, changes) if part)))
    return [(name, text) for name, text in texts if text]


def deploy_words(verdict: Deployment) -> str:
    """Say which cell of a line to deploy, and on what evidence."""
    metric, best = verdict.metric, verdict.best
    if best is None:
        return f"{verdict.line.task} has no scored cell."
    best_value = f"{metric.show(verdict.best_value)}{suffix(metric)}"
    if verdict.reason == "floor":
        return f"Every cell is at the floor (best {best_value}): look at the answer loss instead."
    if verdict.place is None:
        return f"Only the cell k = {best[0]}, l = {best[1]} has a score: {best_value}."
    text = f"Train on {verdict.place[0]} bits and deploy on {verdict.place[1]}"
    if verdict.pair is not None:
        side = "below" if metric.higher_is_better else "above"
        return (
            f"{text}: {metric.show(verdict.value)}{suffix(metric)}, not detectably {side} the best cell "
            f"k = {best[0]}, l = {best[1]} ({best_value}); difference {_difference(verdict.pair)}, "
            f"95 % interval {_interval(verdict.pair)}."
        )
    ends = {
        "fewest bits": ", and the one with the fewest bits",
        "best": "; no cell with fewer bits is shown to stay within 5 points of it",
    }
    return f"{text}: the best cell with {best_value}{ends.get(verdict.reason, '')}."


def gain_words(verdicts: Sequence[Gain]) -> str:
    """Say at which k restoring to 16 bits gains, loses, is significant before correction alone, or shows no difference."""
    parts: list[str] = []
    for word, sign in (("gains", 1), ("loses", -1)):
        places = [f"k = {v.contrast.train_bits} ({_difference(v.contrast)})" for v in verdicts if v.outcome == sign]
        if places:
            parts.append(f"{'' if parts else 'Restoring to 16 bits '}{word} at {', '.join(places)}")
    for verdict in verdicts:
        if verdict.suggestive:
            parts.append(f"{'at' if parts else 'At'} k = {verdict.contrast.train_bits} {_suggestive(verdict)}")
    none = [str(v.contrast.train_bits) for v in verdicts if v.outcome == 0 and not v.suggestive]
    if none:
        parts.append(f"{'no' if parts else 'No'} difference is detectable at k = {', '.join(none)}")
    return f"{'; '.join(parts)}." if parts else ""


def stop_words(results: ResultSet) -> list[str]:
    """Say where strict and first-answer match disagree: the answer is right and runs on, so the difference is the stop."""
    verdicts = stops(results)
    texts = [_stop(verdict, name_line(results, verdict.line)) for verdict in verdicts]
    if any(verdict.apart for verdict in verdicts):
        texts.append(
            "Where strict falls below first-answer match the answer is right and generation runs on after it: "
            "that difference is the stop, not the skill."
        )
    return texts


def detectable_words(results: ResultSet) -> list[str]:
    """Say for each task how many documents a cell has, and the smallest paired difference that they can show."""
    texts: list[str] = []
    for verdict in detectables(results):
        shown = str(verdict.n) if verdict.n == verdict.most else f"{verdict.n} to {verdict.most}"
        if verdict.small > 1:
            text = f"n = {shown} documents a cell, too few for any paired difference to be detected."
        else:
            text = (
                f"n = {shown} documents a cell. The smallest paired difference detected with 80 % power (two-sided "
                f"5 %, McNemar, before Holm's correction) is about {100 * verdict.small:.1f} points where two cells disagree on "
                f"10 % of the documents, {100 * verdict.large:.1f} points where they disagree on 20 %."
            )
        texts.append(f"{verdict.task}: {text}")
    return texts


def sample_words(results: ResultSet) -> list[str]:
    """Say how many documents some cell of a line did not score."""
    return [
        f"{name_line(results, verdict.line)}: {verdict.missing} of {verdict.documents} documents are unscored in some "
        "cell; a paired comparison uses those that both cells scored."
        for verdict in unscored(results)
    ]


def name_line(results: ResultSet, line: Line) -> str:
    """Name a line no longer than the study needs."""
    parts = [line.task]
    if len(results.models) > 1:
        parts.append(line.model)
    if len(results.adapters) > 1:
        parts.append(adapter_label(line.adapter) if line.adapter != NO_ADAPTER else "no adapter")
    return ", ".join(parts)


def _before_correction(near: int) -> str:
    return f" after correction, though the interval of {near} leaves out 0" if near else ""


def _suggestive(verdict: Gain) -> str:
    contrast = verdict.contrast
    text = f"the difference is {_difference(contrast)} ({_interval(contrast)})"
    p = f" (p {contrast.p_holm:.2g})" if contrast.p_holm is not None else ""
    return f"{text}, not significant after correction for {verdict.tests} tests{p}"


def _stop(verdict: Stop, name: str) -> str:
    if verdict.place is None:
        return f"{name}: strict and first-answer match do not differ detectably in any of {verdict.cells} cells."
    k, ell = verdict.place
    shown, signed = metric_named(FIRST_ANSWER).show, metric_named(FIRST_ANSWER).show_signed
    ended = f" ({metric_named(ENDED).show(verdict.ended)} % of the answers ended)" if verdict.ended is not None else ""
    moves = [
        f"k = {move.train_bits} by {signed(move.first_answer)} points first-answer, {signed(move.strict)} strict"
        for move in verdict.moves
    ]
    return (
        f"{name}: strict match is below first-answer match in {verdict.apart} of {verdict.cells} cells, most at k = {k}, "
        f"l = {ell}: {shown(verdict.strict)} % against {shown(verdict.first_answer)} %{ended}."
        + (f" Restoring to 16 bits moves {'; '.join(moves)}." if moves else "")
    )


def _difference(pair: Contrast) -> str:
    return with_unit(pair.measure, pair.difference)


def _interval(pair: Contrast) -> str:
    return f"{pair.measure.show_signed(pair.low)} to {pair.measure.show_signed(pair.high)}"
