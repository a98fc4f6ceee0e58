"""The metrics of a head agree with scikit-learn and scipy, and are defined where those are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.scoring.classification import METRICS, measure, probabilities

sklearn_metrics = pytest.importorskip("sklearn.metrics")
scipy_stats = pytest.importorskip("scipy.stats")

SEEDS = st.integers(0, 2**31)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def labelled(seed: int, labels: int, n: int = 40) -> tuple[Any, Any]:
    """Gold labels and outputs that are coarse enough for ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, labels, n), np.round(rng.normal(size=(n, labels)) * 2) / 2


def value(name: str, gold: Any, outputs: Any) -> float | None:
    return measure([name], gold, outputs, resamples=0)[name][0]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 4))
def test_labels_agree_with_scikit_learn(seed: int, labels: int) -> None:
    gold, outputs = labelled(seed, labels)
    ours = outputs.argmax(axis=1)
    assert value("acc", gold, outputs) == pytest.approx(sklearn_metrics.accuracy_score(gold, ours))
    assert value("mcc", gold, outputs) == pytest.approx(sklearn_metrics.matthews_corrcoef(gold, ours), abs=1e-12)
    shares = probabilities(outputs)
    assert value("roc_auc", gold, outputs) == pytest.approx(
        sklearn_metrics.roc_auc_score(gold, shares[:, 1] if labels == 2 else shares, multi_class="ovr", average="macro")
    )
    if labels == 2:
        assert value("f1", gold, outputs) == pytest.approx(sklearn_metrics.f1_score(gold, ours))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_numbers_agree_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = np.round(rng.uniform(0, 5, 50) * 2) / 2
    outputs = np.round(gold + rng.normal(size=50))[:, None]
    assert value("pearson", gold, outputs) == pytest.approx(scipy_stats.pearsonr(gold, outputs[:, 0])[0])
    assert value("spearman", gold, outputs) == pytest.approx(scipy_stats.spearmanr(gold, outputs[:, 0])[0])


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-600, 1e-170, 1e200, 2.0**1000])
def test_a_correlation_does_not_depend_on_the_unit(name: str, scale: float) -> None:
    gold, outputs = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[1.0], [2.5], [2.0], [4.5]])
    assert value(name, gold, outputs * scale) == pytest.approx(value(name, gold, outputs), rel=1e-12)
    assert value(name, gold * scale, outputs) == pytest.approx(value(name, gold, outputs), rel=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_weight_is_a_row_that_stands_there_as_often(name: str) -> None:
    """What the bootstrap rests on: the weighted metric is the metric of the rows repeated."""
    rng = np.random.default_rng(0)
    one = name in ("pearson", "spearman")
    gold = np.round(rng.uniform(0, 5, 30), 1) if one else rng.integers(0, 2, 30)
    outputs = np.round(rng.normal(size=(30, 1 if one else 2)), 1)
    weights = rng.integers(0, 4, (5, 30))
    weighted = METRICS[name](gold, outputs, weights.astype(float))
    for row, found in zip(weights, weighted, strict=True):
        assert found == pytest.approx(value(name, np.repeat(gold, row), np.repeat(outputs, row, axis=0)))


def test_the_bootstrap_finds_the_standard_error_of_a_mean() -> None:
    gold, outputs = labelled(1, 2, n=400)
    accuracy, error = measure(["acc"], gold, outputs)["acc"]
    assert accuracy is not None
    assert error == pytest.approx((accuracy * (1 - accuracy) / 400) ** 0.5, rel=0.1)


def test_the_bootstrap_is_seeded_and_its_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, outputs = labelled(2, 3)
    first = measure(["mcc", "roc_auc"], gold, outputs, resamples=100)
    assert first == measure(["mcc", "roc_auc"], gold, outputs, resamples=100)
    monkeypatch.setattr("plr.scoring.classification._CELLS", 40 * 7)
    assert measure(["mcc", "roc_auc"], gold, outputs, resamples=100)["mcc"][1] == pytest.approx(first["mcc"][1])
    assert measure(["mcc"], gold, outputs, resamples=100, seed=1)["mcc"][1] != first["mcc"][1]


RIGHT = np.array([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("name", "gold", "outputs", "expected"),
    [
        pytest.param("mcc", [0, 1, 1], RIGHT[[1, 1, 1]], 0.0, id="mcc of one label predicted"),
        pytest.param("mcc", [1, 1, 1], RIGHT[[0, 1, 1]], 0.0, id="mcc of one label in gold"),
        pytest.param("mcc", [0, 1, 0], RIGHT[[1, 0, 1]], -1.0, id="mcc of everything wrong"),
        pytest.param("f1", [0, 0], RIGHT[[0, 0]], 0.0, id="f1 without a positive"),
        pytest.param("f1", [1, 1], RIGHT[[1, 1]], 1.0, id="f1 of everything right"),
        pytest.param("pearson", [1.0, 2.0, 3.0], [[2.5]] * 3, 0.0, id="pearson of equal predictions"),
        pytest.param("spearman", [1.0, 2.0, 3.0], [[2.5]] * 3, 0.0, id="spearman of equal predictions"),
        pytest.param("pearson", [0.1] * 3, [[1.0], [2.0], [3.0]], None, id="pearson of equal gold"),
        pytest.param("spearman", [0.1] * 3, [[1.0], [2.0], [3.0]], None, id="spearman of equal gold"),
        pytest.param("roc_auc", [1, 1], RIGHT, None, id="roc_auc of one label in gold"),
        pytest.param("roc_auc", [0, 1, 1, 0], [[0.0, 0.0]] * 4, 0.5, id="roc_auc of equal scores"),
        pytest.param("roc_auc", [0, 1], [[900.0, 0.0], [0.0, 900.0]], 1.0, id="roc_auc of large outputs"),
        pytest.param("acc", [0], [[1.0, 1.0]], 1.0, id="the first of equal outputs is predicted"),
    ],
)
def test_edges(name: str, gold: Any, outputs: Any, expected: float | None) -> None:
    assert value(name, gold, outputs) == expected


@pytest.mark.parametrize(
    ("name", "gold", "outputs"),
    [("f1", [0, 1, 2], np.eye(3)), ("acc", [0.5], [[0.5]]), ("acc", [0, 1], np.eye(3)), ("acc", [], np.empty((0, 2)))],
)
def test_a_metric_that_does_not_fit_is_an_error(name: str, gold: Any, outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"f1|acc|shape"):
        value(name, gold, outputs)


@pytest.mark.parametrize("name", ["acc", "f1", "mcc", "roc_auc"])
@pytest.mark.parametrize("gold", [[-1, 0, 1], [0, 1, 2], [0.0, 1.0, 1.0]], ids=["below", "above", "no integers"])
def test_a_gold_label_that_no_output_stands_for_is_an_error(name: str, gold: list[int]) -> None:
    with pytest.raises(ValueError, match="gold labels from 0 to 1"):
        value(name, gold, RIGHT[[0, 1, 1]])


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_an_error(name: str, bad: float) -> None:
    one = name in ("pearson", "spearman")
    outputs = np.array([[1.0], [2.0], [3.0]]) if one else RIGHT[[0, 1, 1]]
    outputs[2, 0] = bad
    with pytest.raises(ValueError, match="row 2"):
        value(name, [1.0, 2.0, 3.0] if one else [0, 1, 1], outputs)


def test_minus_infinity_is_a_label_that_is_never_chosen() -> None:
    gold, outputs = labelled(3, 2)
    wider = np.column_stack([outputs, np.full(len(gold), -np.inf)])
    for name in ("acc", "mcc"):
        assert value(name, gold, wider) == value(name, gold, outputs)
