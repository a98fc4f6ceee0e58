"""Every metric of every GLUE task, and ROC AUC, against scikit-learn and scipy on random vectors, degenerate ones included.

Where those raise, warn or give NaN, ``_wanted`` says what a result of ours must say: the table of
:mod:`plr.scoring.classification`, written down a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.scoring.classification import measure, probabilities
from plr.tasks import Classification, tasks

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
scipy_special = pytest.importorskip("scipy.special")
scipy_stats = pytest.importorskip("scipy.stats")
pytestmark = pytest.mark.filterwarnings("ignore")

GLUE = [name for name in tasks.names() if name.startswith("glue_")]
Oracle = Callable[[Any, Any], float]
ORACLES: dict[str, Oracle] = {
    "acc": lambda gold, said: sklearn_metrics.accuracy_score(gold, said),
    "f1": lambda gold, said: sklearn_metrics.f1_score(gold, said, zero_division=0.0),
    "mcc": lambda gold, said: sklearn_metrics.matthews_corrcoef(gold, said),
    "pearson": lambda gold, said: float(scipy_stats.pearsonr(gold, said)[0]),
    "spearman": lambda gold, said: float(scipy_stats.spearmanr(gold, said)[0]),
}


def _wanted(metric: str, gold: Any, said: Any) -> float | None:
    """The oracle's value; a correlation with a constant is 0 if the prediction is constant, None if the gold is."""
    if metric in ("pearson", "spearman"):
        if len(set(gold.tolist())) == 1:
            return None
        if len(set(said.tolist())) == 1:
            assert math.isnan(ORACLES[metric](gold, said))
            return 0.0
    return ORACLES[metric](gold, said)


def _vectors(seed: int, n: int, labels: int, shape: str) -> tuple[Any, Any]:
    """Gold and outputs of a head: of ``labels``, or one number where there are none."""
    rng = np.random.default_rng(seed)
    if labels:
        gold, outputs = rng.integers(0, labels, n), np.round(rng.normal(size=(n, labels)), 1)
        if shape == "right":
            outputs = np.eye(labels)[gold]
        if shape == "constant prediction":
            outputs = np.tile(outputs[0], (n, 1))
    else:
        gold, outputs = np.round(rng.uniform(0, 5, n) * 5) / 5, np.round(rng.normal(size=(n, 1)), 1)
        if shape == "right":
            outputs = gold[:, None].copy()
        if shape == "constant prediction":
            outputs[:] = outputs[0]
    if shape == "constant gold":
        gold[:] = gold[0]
    return gold, outputs


SHAPES = st.sampled_from(["random", "random", "right", "constant prediction", "constant gold"])


@pytest.mark.parametrize("name", GLUE)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 120), shape=SHAPES)
def test_metrics_of_a_task(name: str, seed: int, n: int, shape: str) -> None:
    task = tasks.get(name)
    assert isinstance(task, Classification)
    gold, outputs = _vectors(seed, n, len(task.labels()), shape)
    said = outputs.argmax(axis=1) if task.labels() else outputs[:, 0]
    found = measure(task.metrics, gold, outputs, resamples=0)
    assert tuple(found) == task.metrics
    for metric in task.metrics:
        wanted = _wanted(metric, gold, said)
        assert found[metric][0] == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), metric


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 120), labels=st.integers(2, 4), shape=SHAPES)
def test_roc_auc(seed: int, n: int, labels: int, shape: str) -> None:
    """Not defined where a label stands in no gold row, or in all; there scikit-learn says NaN, or raises."""
    gold, outputs = _vectors(seed, n, labels, shape)
    shares = probabilities(outputs)  # the oracle is given ours: rounding decides which of two are a tie
    assert shares == pytest.approx(scipy_special.softmax(outputs, axis=1), abs=1e-12)
    ((value, _),) = measure(["roc_auc"], gold, outputs, resamples=0).values()
    if len(set(gold.tolist())) < labels:
        assert value is None
    else:
        given_shares = shares[:, 1] if labels == 2 else shares
        assert value == pytest.approx(sklearn_metrics.roc_auc_score(gold, given_shares, multi_class="ovr"), abs=1e-9)


def test_the_headline_metric_of_each_task_is_that_of_the_papers() -> None:
    headline = {"glue_cola": "mcc", "glue_stsb": "pearson"}
    assert {name: tasks.get(name).primary for name in GLUE} == {name: headline.get(name, "acc") for name in GLUE}
    second = {"glue_cola": "acc", "glue_mrpc": "f1", "glue_qqp": "f1", "glue_stsb": "spearman"}
    assert {name: tasks.get(name).metrics[1:] for name in GLUE} == {
        name: (second[name],) if name in second else () for name in GLUE
    }
