"""The statistics behind every table: intervals, paired tests, correction, and what a study of this size cannot see.

1. One cell: the Wilson interval of a proportion, the Student interval of a mean.
2. Two cells on the same documents: McNemar's exact test, the paired bootstrap of the difference.
3. The whole study: Holm's correction; the smallest difference its size can detect; the share of variance that is seed.

Every function takes numbers and returns numbers. numpy and scipy are imported where they are used, so that importing
this module costs nothing. Proportions and differences are fractions (0.05, not 5 points).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from plr.errors import PlrError

__all__ = [
    "Difference",
    "Interval",
    "SeedVariance",
    "detectable_difference",
    "holm",
    "mcnemar_exact",
    "mean_interval",
    "paired_bootstrap",
    "paired_lower_bound",
    "seed_variance",
    "wilson",
]

_CHUNK = 1 << 22
"""Index draws held at once by the bootstrap (32 MiB of gathered float64)."""


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference `mean(b - a)` and its interval."""

    value: float
    low: float
    high: float
    n: int


class SeedVariance(NamedTuple):
    """`sd`: of the seeds' mean scores. `share`: part of the variance of a run's score that is its seed, 0 to 1."""

    sd: float
    share: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of a proportion (Wilson 1927, JASA 22:209-212), without continuity correction.

    `successes` may be fractional: the mean over seeds times `n` documents.

    >>> [round(end, 4) for end in wilson(15, 148)]   # Newcombe 1998, Table I
    [0.0624, 0.1605]

    Raises:
        PlrError: `successes` outside 0..n, or `n` < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise PlrError(f"{successes} successes of {n}", expected="0 <= successes <= n and n >= 1")
    z = _z_two_sided(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return Student's t interval of the mean of continuous values, such as answer losses (Student 1908, Biometrika 6:1-25).

    Raises:
        PlrError: fewer than two values, or one that is not finite.
    """
    _check_finite(values, "values")
    if len(values) < 2:
        raise PlrError(f"an interval of {len(values)} value(s)", expected="at least 2 values")
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    n = len(values)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(n)
    centre = fmean(values)
    return Interval(centre - half, centre + half)


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact p-value of McNemar's test (McNemar 1947, Psychometrika 12:153-157).

    `b` documents are right only before, `c` only after; under the null hypothesis b ~ Binomial(b + c, 1/2).
    The tail is summed in integers, so it is exact at any size.

    >>> mcnemar_exact(0, 6)
    0.03125

    Raises:
        PlrError: a negative count.
    """
    if b < 0 or c < 0:
        raise PlrError(f"discordant counts {b} and {c}", expected="counts >= 0")
    n, least = b + c, min(b, c)
    term = tail = 1
    for i in range(least):
        term = term * (n - i) // (i + 1)
        tail += term
    # dividing two integers is correctly rounded, also beyond the range of floats
    return min(1.0, 2 * tail / (1 << n))


def paired_lower_bound(gained: int, lost: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of a paired difference of two proportions (Agresti and Min 2005, Stat. Med. 24:729-740).

    `gained` documents of `n` are right only after, `lost` only before. Half a document is added to each of the four counts, so
    that few documents without any difference prove little.

    >>> [round(100 * paired_lower_bound(0, 0, n), 2) for n in (50, 500)]
    [-3.16, -0.33]

    Raises:
        PlrError: a negative count, or more differences than documents.
    """
    if min(gained, lost) < 0 or n < 1 or gained + lost > n:
        raise PlrError(f"{gained} gained and {lost} lost of {n}", expected="counts >= 0, together n at most")
    b, c, total = gained + 0.5, lost + 0.5, n + 2
    difference = (b - c) / total
    error = math.sqrt(b + c - (b - c) ** 2 / total) / total
    return difference - NormalDist().inv_cdf(confidence) * error


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Return the mean of `b - a` and its percentile interval (Efron & Tibshirani 1993, Introduction to the Bootstrap, ch. 13).

    Args:
        a, b: (n,) scores of the same n documents, in the same order.
        resamples: documents are drawn with replacement this many times.
        seed: of the draws; the same numbers and seed give the same interval.

    Where the differences take few values (-1, 0, 1 for right and wrong) only their counts matter, so the counts are
    drawn from the multinomial: the same distribution in a fraction of the time.

    Raises:
        PlrError: lengths that differ, no documents, a score that is not finite, or `resamples` < 1.
    """
    if len(a) != len(b) or not len(a):
        raise PlrError(f"{len(a)} scores against {len(b)}", expected="the same n >= 1 documents on both sides")
    if resamples < 1:
        raise PlrError(f"{resamples} resamples", expected="at least 1")
    _check_finite(a, "a")
    _check_finite(b, "b")
    import numpy as np

    d = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)  # (n,)
    n = d.size
    rng = np.random.default_rng(seed)
    support, counts = np.unique(d, return_counts=True)  # (v,), (v,)
    if support.size <= 16:
        draws = rng.multinomial(n, counts / n, size=resamples)  # (resamples, v)
        means = draws @ support / n
    else:
        rows = max(1, _CHUNK // n)
        parts = [
            d[rng.integers(0, n, size=(min(rows, resamples - done), n), dtype=np.int32)].mean(axis=1)
            for done in range(0, resamples, rows)
        ]
        means = np.concatenate(parts)  # (resamples,)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(float(d.mean()), float(low), float(high), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values of the step-down correction, in the order given (Holm 1979, Scand. J. Statist. 6:65-70).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]

    Raises:
        PlrError: a p-value outside 0..1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise PlrError(f"p-value {p}", expected="a number from 0 to 1")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(order)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def detectable_difference(n: int, *, discordance: float = 0.2, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest paired difference of two proportions that `n` documents detect with `power`; inf if none.

    Solves the sample size formula of McNemar's test (Connor 1987, Biometrics 43:207-211) for the difference delta:

        sqrt(n) delta = z_{1 - alpha/2} sqrt(psi) + z_power sqrt(psi - delta^2)

    `discordance` psi is the share of documents on which the two cells disagree. A difference cannot exceed it: where
    the solution would, psi is raised to meet it. Nor can it fall below what the exact test is able to call significant
    at all (6 documents at alpha 0.05, all in one direction).

    >>> [round(100 * detectable_difference(1319, discordance=psi), 1) for psi in (0.1, 0.2)]
    [2.4, 3.4]

    Raises:
        PlrError: `n` < 1 or `discordance` outside 0..1.
    """
    if n < 1 or not 0 <= discordance <= 1:
        raise PlrError(f"n {n}, discordance {discordance}", expected="n >= 1 and 0 <= discordance <= 1")
    za, zb = _z_two_sided(alpha=alpha), NormalDist().inv_cdf(power)
    # (n + zb^2) delta^2 - 2 sqrt(n) za sqrt(psi) delta + (za^2 - zb^2) psi = 0, larger root
    half = math.sqrt(n * discordance) * za
    root = math.sqrt(max(0.0, half * half - (n + zb * zb) * (za * za - zb * zb) * discordance))
    delta = (half + root) / (n + zb * zb)
    if delta > discordance:  # psi = delta: n delta = (za + zb sqrt(1 - delta))^2, whose right side falls as delta grows
        low, high = 0.0, 1.0
        for _ in range(60):
            delta = (low + high) / 2
            if n * delta < (za + zb * math.sqrt(1 - delta)) ** 2:
                low = delta
            else:
                high = delta
    smallest = math.ceil(1 - math.log2(alpha))  # 2 (1/2)^m <= alpha
    delta = max(delta, smallest / n)
    return delta if smallest <= n else math.inf


def seed_variance(scores: Sequence[Sequence[float]]) -> SeedVariance:
    """Estimate the share of a run's score that is its seed, by two-way analysis of variance (Searle, Casella & McCulloch 1992).

    Args:
        scores: (seeds, n) score of each document under each seed, at least 2 x 2.

    With y[s, i] = mu + seed[s] + document[i] + rest, one run's mean score has variance
    var_seed + (var_document + var_rest) / n; `share` is the first part of it (an estimate below 0 is 0).

    Raises:
        PlrError: fewer than 2 seeds or documents, or rows of unequal length.
    """
    if len(scores) < 2 or len(scores[0]) < 2 or len({len(row) for row in scores}) != 1:
        raise PlrError("scores are not a rectangle", expected="at least 2 seeds of the same >= 2 documents")
    import numpy as np

    y = np.asarray(scores, dtype=np.float64)  # (S, n)
    seeds, n = y.shape
    by_seed, by_document = y.mean(axis=1), y.mean(axis=0)  # (S,), (n,)
    rest = y - by_seed[:, None] - by_document[None, :] + y.mean()
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    ms_seed = n * float(by_seed.var(ddof=1))
    ms_document = seeds * float(by_document.var(ddof=1))
    var_seed = max(0.0, (ms_seed - ms_rest) / n)
    var_document = max(0.0, (ms_document - ms_rest) / seeds)
    total = var_seed + (var_document + ms_rest) / n
    return SeedVariance(float(by_seed.std(ddof=1)), var_seed / total if total > 0 else 0.0)


def _z_two_sided(confidence: float | None = None, *, alpha: float = 0.05) -> float:
    tail = (alpha if confidence is None else 1 - confidence) / 2
    return NormalDist().inv_cdf(1 - tail)


def _check_finite(values: Sequence[float], name: str) -> None:
    for position, value in enumerate(values):
        if not math.isfinite(value):
            raise PlrError(
                f"{name}[{position}] is {value}", expected="finite scores", hint="leave unscored documents out"
            )
