"""Statistics against published numbers, scipy, and laws."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats as oracle

from plr.errors import PlrError
from plr.stats import (
    detectable_difference,
    holm,
    mcnemar_exact,
    mean_interval,
    paired_bootstrap,
    seed_variance,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published_newcombe_1998_method_3(successes, n, low, high):
    assert wilson(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 300), (300, 300), (7, 20), (551, 1319)])
def test_wilson_matches_scipy(successes, n, confidence):
    expected = oracle.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_impossible_counts_are_refused(successes, n):
    with pytest.raises(PlrError, match="successes"):
        wilson(successes, n)


def test_mean_interval_matches_scipy_t():
    values = [0.139, 0.237, 0.264, 0.151, 0.72]
    expected = oracle.t.interval(0.95, 4, loc=np.mean(values), scale=oracle.sem(values))
    assert mean_interval(values) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "message"), [([1.0], "1 value"), ([1.0, math.nan], r"values\[1\] is nan")])
def test_mean_interval_refuses_too_little_and_nan(values, message):
    with pytest.raises(PlrError, match=message):
        mean_interval(values)


def test_mcnemar_published_fagerland_2013_airway_hyperresponsiveness():
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("b", "c"), [*itertools.product(range(6), range(6)), (40, 61), (3000, 3100)])
def test_mcnemar_matches_binomial_test(b, c):
    expected = oracle.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_negative_count_is_refused():
    with pytest.raises(PlrError, match="discordant counts -1 and 2"):
        mcnemar_exact(-1, 2)


def test_bootstrap_difference_is_second_minus_first():
    found = paired_bootstrap([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    assert (found.value, found.n) == (0.5, 4)
    assert 0.0 <= found.low < 0.5 < found.high <= 1.0


def test_bootstrap_of_equal_cells_is_exactly_nothing():
    assert paired_bootstrap([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])[:3] == (0.0, 0.0, 0.0)


def test_bootstrap_is_the_same_each_time_and_moves_with_the_seed():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.normal(size=200)
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a, b).low != paired_bootstrap(a, b, seed=1).low


@pytest.mark.parametrize("kind", ["right or wrong", "continuous"])
def test_bootstrap_interval_agrees_with_scipy(kind):
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 150).astype(float) if kind == "right or wrong" else rng.gamma(1.0, 0.2, 150)
    b = np.where(rng.random(150) < 0.3, 1.0 - a, a)
    expected = oracle.bootstrap((b - a,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    found = paired_bootstrap(a.tolist(), b.tolist(), resamples=20_000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.007)


def test_bootstrap_counts_shortcut_has_the_law_of_drawing_documents():
    a = [0.0] * 60 + [1.0] * 40
    b = [1.0] * 15 + [0.0] * 45 + [1.0] * 35 + [0.0] * 5
    jitter = [value + 1e-9 * index for index, value in enumerate(b)]  # distinct differences: documents are drawn
    short, drawn = paired_bootstrap(a, b), paired_bootstrap(a, jitter)
    assert (short.low, short.high) == pytest.approx((drawn.low, drawn.high), abs=0.011)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0], [1.0, 0.0], "1 scores against 2"), ([], [], "0 scores"), ([math.nan], [1.0], r"a\[0\] is nan")],
)
def test_bootstrap_refuses_unpaired_and_nan(a, b, message):
    with pytest.raises(PlrError, match=message):
        paired_bootstrap(a, b)


def test_bootstrap_refuses_no_resamples():
    with pytest.raises(PlrError, match="0 resamples"):
        paired_bootstrap([1.0], [1.0], resamples=0)


def test_holm_is_the_closure_of_bonferroni():
    rng = random.Random(0)
    for size in range(1, 7):
        p = [rng.random() ** 3 for _ in range(size)]
        for index, adjusted in enumerate(holm(p)):
            families = [f for r in range(1, size + 1) for f in itertools.combinations(range(size), r) if index in f]
            assert adjusted == pytest.approx(max(min(1.0, len(f) * min(p[i] for i in f)) for f in families))


def test_holm_of_none_and_of_impossible():
    assert holm([]) == []
    with pytest.raises(PlrError, match=r"p-value 1\.5"):
        holm([0.2, 1.5])


@pytest.mark.parametrize(("n", "discordance"), [(1319, 0.1), (1319, 0.2), (300, 0.15), (10_000, 0.05)])
def test_detectable_difference_solves_connors_sample_size(n, discordance):
    delta = detectable_difference(n, discordance=discordance)
    za, zb = oracle.norm.ppf(0.975), oracle.norm.ppf(0.8)
    needed = (za * math.sqrt(discordance) + zb * math.sqrt(discordance - delta**2)) ** 2 / delta**2
    assert needed == pytest.approx(n)


def test_detectable_difference_at_the_size_of_gsm8k():
    found = [100 * detectable_difference(1319, discordance=psi) for psi in (0.1, 0.2)]
    assert found == [pytest.approx(2.4, abs=0.05), pytest.approx(3.45, abs=0.05)]


@pytest.mark.parametrize(("n", "discordance"), [(1319, 0.2), (300, 0.3), (40, 0.05)])
def test_detectable_difference_is_found_in_four_of_five_simulations(n, discordance):
    delta = detectable_difference(n, discordance=discordance)
    discordance = max(discordance, delta)
    counts = np.random.default_rng(0).multinomial(
        n, [(discordance - delta) / 2, (discordance + delta) / 2, 1 - discordance], size=20_000
    )
    lost, won = counts[:, 0], counts[:, 1]
    p = 2 * oracle.binom.cdf(np.minimum(won, lost), won + lost, 0.5)  # McNemar, exact
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.06)


def test_detectable_difference_is_never_below_what_the_exact_test_can_call_significant():
    assert mcnemar_exact(0, 5) > 0.05 > mcnemar_exact(0, 6)
    assert detectable_difference(100, discordance=0.0) >= 6 / 100
    assert detectable_difference(5) == math.inf


def test_detectable_difference_shrinks_with_n_and_grows_with_discordance():
    assert detectable_difference(300) > detectable_difference(600) > detectable_difference(1200)
    assert detectable_difference(1000, discordance=0.1) < detectable_difference(1000, discordance=0.3)


def test_detectable_difference_refuses_no_documents():
    with pytest.raises(PlrError, match="n 0"):
        detectable_difference(0)


def test_seed_variance_by_hand():
    # seed means 0.25, 0.75; documents 0, 0.5, 0.5, 1; rest 0.25 in every place but the corners
    found = seed_variance([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    # MS seed 4 * 0.125 = 1/2, MS rest (8 * 1/16) / 3 = 1/6, MS document 2 * 1/6 = 1/3
    # var seed (1/2 - 1/6) / 4 = 1/12, var document 1/12; share (1/12) / (1/12 + (1/12 + 1/6) / 4) = 4/7
    assert found.sd == pytest.approx(math.sqrt(0.125))
    assert found.share == pytest.approx(4 / 7)


def test_seed_variance_recovers_a_known_share():
    rng = np.random.default_rng(0)
    y = 0.1 * rng.normal(size=(400, 1)) + rng.normal(size=(1, 50)) * 0.3 + 0.4 * rng.normal(size=(400, 50))
    assert seed_variance(y).share == pytest.approx(0.01 / (0.01 + (0.09 + 0.16) / 50), abs=0.08)


def test_seed_variance_of_equal_runs_is_nothing():
    assert seed_variance([[0.0, 1.0, 1.0]] * 3) == (0.0, 0.0)


def test_seed_variance_refuses_a_ragged_table():
    with pytest.raises(PlrError, match="not a rectangle"):
        seed_variance([[1.0, 0.0], [1.0]])
