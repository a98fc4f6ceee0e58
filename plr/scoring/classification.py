"""Metrics of a classification head, over all rows at once, with a standard error by bootstrap.

How it works.

1. Every metric is a function of the gold labels, the head's outputs and *weights*: how often each row counts. With all weights
   1 it is the metric as scikit-learn and scipy compute it.
2. A bootstrap resample (Efron 1979) is nothing but other weights: how often each row was drawn. So one definition serves
   the value and its standard error, and all resamples go through it as one array `[resamples, rows]`. Ranks and areas need one
   sort of the rows; weights only move cumulative sums.
3. The standard error is the standard deviation over resamples (seeded; those in which a metric is not defined are left out).
   It sees the rows that are there: where every resample gives one value (one label predicted of all) it is 0, and no certainty.

Where others raise, warn or give NaN:

==============================================  =======================================================
one class alone predicted, or alone in gold     `mcc` 0, as scikit-learn
nothing positive in gold and predictions        `f1` 0, as scikit-learn
all predictions equal                           `pearson`, `spearman` 0 (scipy: NaN): they order nothing
all gold numbers equal                          `pearson`, `spearman` None: there is no order to find
a label that stands in no gold row              `roc_auc` None (scikit-learn: NaN)
==============================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Labels = NDArray[np.intp]
    Numbers = Labels | Floats
    Metric = Callable[[Labels, Floats, Floats], Floats]

__all__ = ["METRICS", "measure", "predicted", "probabilities"]

_CELLS = 2**22
"""Weights that are in memory at once: 32 MiB."""


def measure(
    names: Sequence[str],
    gold: Sequence[int] | Sequence[float],
    outputs: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float | None, float | None]]:
    """Compute `{metric: (value, standard error)}`; None where it is not defined.

    Args:
        names: of METRICS.
        gold: `[n]`: label indices, or numbers.
        outputs: `[n, labels]` or `[n, 1]`: the head's outputs; of a row no NaN, and a largest that is finite.
        resamples: of the bootstrap.
        seed: of its random generator.

    Raises:
        ValueError: gold, outputs or a metric that do not fit each other, or outputs that are no numbers.
    """
    import numpy as np

    right = np.asarray(gold)
    scores = np.asarray(outputs, dtype=np.float64)
    if scores.ndim != 2 or len(scores) != len(right) or not len(right):
        raise ValueError(f"outputs of shape {scores.shape} for {len(right)} gold labels")
    if not np.isfinite(scores.max(axis=1)).all():
        raise ValueError(f"row {int(np.isfinite(scores.max(axis=1)).argmin())} has outputs that are no finite numbers")
    for name in names:
        if name in ("pearson", "spearman"):
            continue
        if scores.shape[1] == 1:
            raise ValueError(f"{name} needs one output a label, not one number")
        if right.dtype.kind not in "iu" or right.min() < 0 or right.max() >= scores.shape[1]:
            raise ValueError(f"{name} needs gold labels from 0 to {scores.shape[1] - 1}, as integers")
    values = {name: METRICS[name](right, scores, np.ones((1, len(right))))[0] for name in names}
    drawn: dict[str, list[Floats]] = {name: [] for name in names}
    generator = np.random.default_rng(seed)
    left = resamples
    while left > 0:
        count = min(left, max(1, _CELLS // len(right)))
        weights = _draw(generator, count, len(right))
        for name in names:
            drawn[name].append(METRICS[name](right, scores, weights))
        left -= count
    measured: dict[str, tuple[float | None, float | None]] = {}
    for name in names:
        over = np.concatenate(drawn[name]) if drawn[name] else np.empty(0)
        over = over[~np.isnan(over)]
        value = float(values[name])
        error = float(over.std(ddof=1)) if len(over) > 1 and value == value else None
        measured[name] = (value if value == value else None, error)
    return measured


def predicted(outputs: ArrayLike) -> Labels:
    """Find the index of the largest output of each row, the first of equals."""
    import numpy as np

    return np.asarray(outputs).argmax(axis=1)


def probabilities(outputs: ArrayLike) -> Floats:
    """Compute the softmax of each row, float64."""
    import numpy as np

    shifted = np.asarray(outputs, dtype=np.float64)
    exponentials = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _draw(generator: np.random.Generator, count: int, n: int) -> Floats:
    """Draw n of n rows with replacement, `count` times: how often each row is drawn, `[count, n]`."""
    import numpy as np

    rows = generator.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
    return np.bincount(rows.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _accuracy(gold: Labels, outputs: Floats, weights: Floats) -> Floats:
    return weights @ (predicted(outputs) == gold) / weights.sum(axis=1)


def _f1(gold: Labels, outputs: Floats, weights: Floats) -> Floats:
    """Compute the F1 of the second of two labels: 2 TP / (2 TP + FP + FN)."""
    import numpy as np

    if outputs.shape[1] != 2:
        raise ValueError(f"f1 is of two labels, not {outputs.shape[1]}")
    ours, theirs = predicted(outputs) == 1, gold == 1
    both = 2 * (weights @ (ours & theirs).astype(np.float64))
    all_of_them = weights @ ours.astype(np.float64) + weights @ theirs.astype(np.float64)
    return _ratio(both, all_of_them, 0.0)


def _matthews(gold: Labels, outputs: Floats, weights: Floats) -> Floats:
    """Compute the Matthews correlation of any number of labels (Gorodkin 2004).

    It is the covariance of the two assignments over the geometric mean of their variances.
    """
    import numpy as np

    size = outputs.shape[1]
    ours, theirs = np.eye(size)[predicted(outputs)], np.eye(size)[gold]
    total = weights.sum(axis=1)
    p, t = weights @ ours, weights @ theirs  # how often each label is predicted, and is right
    hits = weights @ (ours * theirs).sum(axis=1)
    covariance = hits * total - (p * t).sum(axis=1)
    variances = (total**2 - (p**2).sum(axis=1)) * (total**2 - (t**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(variances), 0.0)


def _pearson(gold: Numbers, outputs: Floats, weights: Floats) -> Floats:
    times = len(weights)
    return _correlation(_rows(_scaled(gold), times), _rows(_scaled(outputs[:, 0]), times), weights)


def _spearman(gold: Numbers, outputs: Floats, weights: Floats) -> Floats:
    """Compute Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return _correlation(_ranks(gold, weights), _ranks(outputs[:, 0], weights), weights)


def _roc_auc(gold: Labels, outputs: Floats, weights: Floats) -> Floats:
    """Compute the chance that a row of a label is given more of it than a row of another (half of ties).

    It is the mean over labels, or that of the second label where there are two.
    """
    import numpy as np

    shares = probabilities(outputs)
    labels = [1] if outputs.shape[1] == 2 else range(outputs.shape[1])
    return np.mean([_area(gold == label, shares[:, label], weights) for label in labels], axis=0)


def _area(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Compute Mann and Whitney's U over the number of pairs `[resamples]`; NaN without a positive or without a negative row."""
    import numpy as np

    own = weights * positive
    positives, negatives = own.sum(axis=1), (weights * ~positive).sum(axis=1)
    won = (own * _ranks(scores, weights)).sum(axis=1) - positives * (positives + 1) / 2
    return _ratio(won, positives * negatives, np.nan)


def _ranks(values: Numbers, weights: Floats) -> Floats:
    """Rank each row among all that were drawn, from 1; equal values have the mean of their ranks. `[resamples, rows]`."""
    import numpy as np

    _, group = np.unique(values, return_inverse=True)  # equal values form a group; groups ascend
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # how often each group was drawn
    return (sizes.cumsum(axis=1) - (sizes - 1) / 2)[:, group]


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Compute the weighted Pearson correlation of `x` and `y [resamples, rows]`; constant y (predicted): 0; constant x: NaN."""
    import numpy as np

    total = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / total
    dy = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = ((weights * a * b).sum(axis=1) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    flat_x, flat_y = (_flat(v, weights) for v in (x, y))
    correlation = np.clip(_ratio(xy, np.sqrt(xx * yy), 0.0), -1.0, 1.0)
    return np.where(flat_x, np.nan, np.where(flat_y, 0.0, correlation))


def _flat(values: Floats, weights: Floats) -> NDArray[np.bool_]:
    """Tell whether all drawn values of a resample are one number: exact, where a variance has rounding errors."""
    import numpy as np

    drawn = weights > 0
    return np.where(drawn, values, -np.inf).max(axis=1) == np.where(drawn, values, np.inf).min(axis=1)


def _scaled(values: Numbers) -> Floats:
    """Scale `values` by a power of two, so that the largest is near 1 and squares neither overflow nor vanish: no bit is lost."""
    import numpy as np

    return np.ldexp(values.astype(np.float64), -int(np.frexp(np.abs(values).max())[1]))


def _rows(values: Numbers, times: int) -> Floats:
    import numpy as np

    return np.broadcast_to(values.astype(np.float64), (times, len(values)))


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    import numpy as np

    return np.divide(above, below, out=np.full_like(above, otherwise, dtype=np.float64), where=below > 0)


METRICS: Mapping[str, Metric] = {
    "acc": _accuracy,
    "f1": _f1,
    "mcc": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "roc_auc": _roc_auc,
}
"""Metrics by the names of lm-eval and scikit-learn."""
