"""What the numbers say, in sentences: which cell to deploy, whether the stop is what differs, what n cannot show.

The rule behind "deploy" (each model, task and adapter by itself): take the cell with the best primary metric; among the
cells with fewer bits (first k, then l) choose the first whose loss against it is not detected and, with 95 %
confidence, under 5 points. A sentence never calls a difference real that its corrected test does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from plr import stats
from plr.report.cells import Line, ResultSet
from plr.report.metrics import ENDED, FIRST_ANSWER, STRICT, is_loss, is_proportion, show, show_signed, unit
from plr.report.results import Contrast, compare_at, contrasts, gains, paired_scores
from plr.report.sheets import adapter_label
from plr.study.cells import NO_ADAPTER

__all__ = [
    "MARGIN",
    "deploy",
    "deploy_words",
    "detectable_words",
    "gain_words",
    "headline",
    "line_words",
    "name_line",
    "sample_words",
    "stop_words",
]

MARGIN = 0.05
FLOOR = 0.01


def headline(results: ResultSet, found: Sequence[Contrast] | None = None) -> str:
    """One sentence for the whole study."""
    found = contrasts(results) if found is None else found
    lines = [line for line in results.lines() if line.adapter != NO_ADAPTER]
    if not any(
        results.entry(line, k, ell, results.primary(line)).values for line in lines for k, ell in results.bits()
    ):
        return "No cell with an adapter has a score: there is nothing to compare yet."
    if len(lines) == 1:
        return deploy_words(results, lines[0])
    verdicts = [verdict for line in lines for verdict in _verdicts(results, line, found)]
    if not verdicts:
        return "This study has no pair of a k-bit cell and its restoration to 16 bits."
    gain, loss = sum(v > 0 for _, v in verdicts), sum(v < 0 for _, v in verdicts)
    rest = len(verdicts) - gain - loss
    if not gain and not loss:
        return f"Restoring to 16 bits makes no detectable difference in any of {len(verdicts)} comparisons."
    said = [f"gains in {gain}" if gain else "", f"loses in {loss}" if loss else ""]
    text = f"Restoring to 16 bits {' and '.join(part for part in said if part)} of {len(verdicts)} comparisons"
    return f"{text}; in {rest} no difference is detectable." if rest else f"{text}."


def line_words(results: ResultSet, found: Sequence[Contrast] | None = None) -> list[tuple[str, str]]:
    """For each line with an adapter: its name, what restoring does and, in a study of several, the cell to deploy."""
    found = contrasts(results) if found is None else found
    lines = [line for line in results.lines() if line.adapter != NO_ADAPTER]
    said: list[tuple[str, str]] = []
    for line in lines:
        parts = [deploy_words(results, line) if len(lines) > 1 else "", gain_words(results, line, found)]
        said.append((name_line(results, line), " ".join(part for part in parts if part)))
    return [(name, text) for name, text in said if text]


def deploy_words(results: ResultSet, line: Line) -> str:
    """Which cell of the line to deploy, and on what evidence."""
    return deploy(results, line)[1]


def deploy(results: ResultSet, line: Line) -> tuple[tuple[int, int] | None, str]:
    """The cell (k, l) of the line to deploy, None if there is none to name, and the sentence that says why."""
    metric = results.primary(line)
    sign = -1 if is_loss(metric) else 1
    scored = {
        (k, ell): mean
        for k, ell in results.bits(adapter=line.adapter)
        if (mean := results.entry(line, k, ell, metric).mean) is not None
    }
    if not scored:
        return None, f"{line.task} has no scored cell."
    best = max(scored, key=lambda place: (sign * scored[place], -place[0], -place[1]))
    percent = "" if is_loss(metric) else " %"
    if sign > 0 and scored[best] < FLOOR:
        return (
            None,
            f"Every cell is at the floor (best {show(metric, scored[best])} %): look at the answer loss instead.",
        )
    if len(scored) == 1:
        return None, f"Only the cell k = {best[0]}, l = {best[1]} has a score: {show(metric, scored[best])}{percent}."
    best_text = f"k = {best[0]}, l = {best[1]} ({show(metric, scored[best])}{percent})"
    for place in sorted(scored):
        if place >= best or is_loss(metric):
            break
        pair = compare_at(results, line, best, place, metric)
        if pair and pair.low is not None and pair.high is not None and pair.high >= 0 and pair.low >= -MARGIN:
            return place, (
                f"Train on {place[0]} bits and deploy on {place[1]}: {show(metric, scored[place])} %, not detectably "
                f"below the best cell {best_text}; difference {_with_interval(pair)}."
            )
    text = f"Train on {best[0]} bits and deploy on {best[1]}: the best cell with {show(metric, scored[best])}{percent}"
    if is_loss(metric):
        return best, f"{text}."
    if best == min(scored):
        return best, f"{text}, and the one with the fewest bits."
    return best, f"{text}; no cell with fewer bits is shown to stay within 5 points of it."


def gain_words(results: ResultSet, line: Line, found: Sequence[Contrast] | None = None) -> str:
    """At which k restoring to 16 bits gains, loses, or shows nothing."""
    verdicts = _verdicts(results, line, contrasts(results) if found is None else found)
    if not verdicts:
        return ""
    groups = [
        (f"Restoring to 16 bits {word} at ", [c for c, v in verdicts if v == sign])
        for word, sign in (("gains", 1), ("loses", -1))
    ]
    parts = [
        lead + ", ".join(f"k = {c.train_bits} ({show_signed(c.metric, c.difference)} {unit(c.metric)})" for c in group)
        for lead, group in groups
        if group
    ]
    none = [str(c.train_bits) for c, v in verdicts if v == 0]
    if none:
        parts.append(f"{'no' if parts else 'No'} difference is detectable at k = {', '.join(none)}")
    return "; ".join(parts).replace("; Restoring to 16 bits", ";") + "."


def stop_words(results: ResultSet) -> list[str]:
    """Where strict and first-answer match disagree, the answer is right and runs on: the difference is the stop."""
    said: list[str] = []
    blamed = False
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
        name = name_line(results, line)
        if not apart:
            if scored:
                said.append(f"{name}: strict and first-answer match do not differ detectably in any of {scored} cells.")
            continue
        _, k, ell = max(apart)
        ended = results.entry(line, k, ell, ENDED).mean
        strict, first = (results.entry(line, k, ell, metric).mean for metric in (STRICT, FIRST_ANSWER))
        said.append(
            f"{name}: strict match is below first-answer match in {len(apart)} of {scored} cells, most at k = {k}, "
            f"l = {ell}: {show(STRICT, strict)} % against {show(FIRST_ANSWER, first)} %"
            + (f" ({show(ENDED, ended)} % of the answers ended)" if ended is not None else "")
            + "."
            + _stop_of_restoring(results, line)
        )
        blamed = True
    if blamed:
        said.append(
            "Where strict falls below first-answer match the answer is right and generation runs on after it: "
            "that difference is the stop, not the skill."
        )
    return said


def detectable_words(results: ResultSet) -> list[str]:
    """n, and the smallest paired difference of shares of right answers that it can show, for each task that is scored by one."""
    said: list[str] = []
    for task in results.tasks:
        scored = [cell for cell in results.cells if cell.task == task and cell.value(cell.primary) is not None]
        counts = {cell.count(cell.primary) for cell in scored if is_proportion(cell.primary, scored)} - {0}
        if not counts:
            continue
        n = min(counts)
        small, large = (stats.detectable_difference(n, discordance=psi) for psi in (0.1, 0.2))
        shown = str(n) if len(counts) == 1 else f"{n} to {max(counts)}"
        if small > 1:
            said.append(f"{task}: n = {shown} documents a cell, too few for any paired difference to be detected.")
            continue
        said.append(
            f"{task}: n = {shown} documents a cell. The smallest paired difference detected with 80 % power (two-sided "
            f"5 %, McNemar, before Holm's correction) is about {100 * small:.1f} points where two cells disagree on "
            f"10 % of the documents, {100 * large:.1f} points where they disagree on 20 %."
        )
    return said


def sample_words(results: ResultSet) -> list[str]:
    """Documents that some cell of a line did not score, so that no pair silently shrinks."""
    said: list[str] = []
    for line in results.lines():
        metric = results.primary(line)
        cells = [cell for cell in results.of(line) if cell.value(metric) is not None]
        sets = [{doc for doc, value in cell.samples.get(metric, {}).items() if value is not None} for cell in cells]
        every: set[str] = set().union(*sets)
        shared = every.intersection(*sets)
        if every - shared:
            said.append(
                f"{name_line(results, line)}: {len(every - shared)} of {len(every)} documents are unscored in some "
                "cell; a paired comparison uses those that both cells scored."
            )
    return said


def name_line(results: ResultSet, line: Line) -> str:
    """The line's name, no longer than the study needs."""
    parts = [line.task]
    if len(results.models) > 1:
        parts.append(line.model)
    if len(results.adapters) > 1:
        parts.append(adapter_label(line.adapter) if line.adapter != NO_ADAPTER else "no adapter")
    return ", ".join(parts)


def _verdicts(results: ResultSet, line: Line, found: Sequence[Contrast]) -> list[tuple[Contrast, int]]:
    """Gain at each k with +1, -1, or 0 (not detectable).

    One seed: by Holm's correction of McNemar's test. Where that test does not apply (several seeds averaged, scores
    that are not right or wrong) by the bootstrap interval, widened for the study's number of such gains (Bonferroni).
    """
    metric = results.primary(line)
    sign = -1 if is_loss(metric) else 1
    tested = {c.train_bits: c for c in found if c.kind == "gain" and c.line == line and c.metric == metric}
    comparisons = sum(len(gains(results, one, results.primary(one))) for one in results.lines())
    verdicts: list[tuple[Contrast, int]] = []
    for gain in gains(results, line, metric):
        holm = tested[gain.train_bits].p_holm if gain.seed is not None and gain.train_bits in tested else None
        real = holm < 0.05 if holm is not None else _apart(results, gain, 0.05 / comparisons)
        verdicts.append((gain, (sign if gain.difference > 0 else -sign) if real else 0))
    return verdicts


def _apart(results: ResultSet, pair: Contrast, alpha: float) -> bool:
    """Whether the bootstrap interval at ``1 - alpha`` leaves out 0."""
    key = ("apart", pair, alpha)
    if key not in results.memo:
        before, after = results.at(pair.line, *pair.first), results.at(pair.line, *pair.second)
        seeds = [
            seed
            for seed in sorted(before.keys() & after.keys())
            if before[seed].value(pair.metric) is not None and after[seed].value(pair.metric) is not None
        ]
        a, b = paired_scores([before[s] for s in seeds], [after[s] for s in seeds], pair.metric)
        found = stats.paired_bootstrap(a, b, confidence=1 - alpha) if a else None
        results.memo[key] = found is not None and not found.low <= 0 <= found.high
    return results.memo[key]


def _stop_of_restoring(results: ResultSet, line: Line) -> str:
    """The k at which restoring moves strict and first-answer match apart, in one sentence."""
    said: list[str] = []
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
            said.append(
                f"k = {k} by {show_signed(FIRST_ANSWER, first.difference)} points first-answer, "
                f"{show_signed(STRICT, strict.difference)} strict"
            )
    return f" Restoring to 16 bits moves {'; '.join(said)}." if said else ""


def _with_interval(pair: Contrast) -> str:
    ends = f"{show_signed(pair.metric, pair.low)} to {show_signed(pair.metric, pair.high)}"
    return f"{show_signed(pair.metric, pair.difference)} {unit(pair.metric)}, 95 % interval {ends}"
