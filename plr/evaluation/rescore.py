"""Score a file of predictions with the same scorers as `plr eval`, and without a model.

How it works:

1. Predictions are matched with the rows of a split by `doc_id`, their place in the source. An id that the split has not, or a
   sample whose `doc` is another row than ours, is an error with its line: it is the wrong split, or other data.
2. Rows without a prediction are left out and counted (a run with `--limit` has such), or count as wrong, or are refused.
3. A task that writes is scored row by row. Where the file does not say whether the model ended, `ended` and `strict` have
   no value on that row: they leave the mean, and n says on how many rows it stands.
4. A task with a head is scored over all rows at once. The name of a label is as good as outputs for all metrics but `roc_auc`,
   which needs the outputs. A name that is no label is wrong, whatever the metric, and counted.

Intervals are 95 %: Wilson for shares of right answers, Student's t for other means, and for a metric over all rows the value and
1.96 of its bootstrap standard errors on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from plr.core.fingerprint import file_sha256
from plr.core.specs import TaskSpec
from plr.core.text import without_nan
from plr.errors import DataError
from plr.evaluation.predictions import Prediction, Predictions
from plr.scoring import Score
from plr.scoring.classification import measure
from plr.scoring.metric import PERCENT, Metric, MetricUnit
from plr.stats import mean_interval, wilson
from plr.tasks import Classification, Example, HeadSpec, Response, Task, outcomes, task_of
from plr.tasks.data.rows import head_of, load_split
from plr.tasks.gold import require_gold

__all__ = ["Missing", "Rescored", "rescore"]

Missing = Literal["leave-out", "wrong", "refuse"]
_NAMED = 5
_RESAMPLES = 1000
_AT_ONCE = 1000


class RescoredMetric(MetricUnit):
    """A score with its 95 % interval; the unit and direction where the task declares them."""

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


class RescoredRow(TypedDict):
    """A prediction as it was read, and its scores by metric."""

    doc_id: int
    target: str
    response: str | None
    scores: dict[str, float | None]
    answers: dict[str, str]
    explanations: dict[str, str]


class RescoredCounts(TypedDict, total=False):
    """Counts that only one kind of task has: the first two of written answers, the last of a head."""

    ended_unknown: int
    outcomes: Mapping[str, Mapping[str, int]]
    outside_labels: int


class RescoredFacts(RescoredCounts):
    """The data, the task and the predictions, and counts of all that was not scored."""

    task: str
    version: int
    split: str
    source: str
    split_digest: str
    predictions: str
    predictions_sha256: str
    primary: str
    rows: int
    scored: int
    without_prediction: int
    missing: Missing
    repeated_lines: int
    rows_not_compared: int


@dataclass(frozen=True)
class Rescored:
    """The scores of a prediction file.

    `metrics`: value, stderr, low, high, n, unscored, unit and direction of each. `rows`: each prediction as it was read.
    `about`: the data and the task, and counts of all that was not scored.
    """

    metrics: dict[str, RescoredMetric]
    rows: list[RescoredRow]
    about: RescoredFacts


def rescore(
    spec: TaskSpec,
    split: str,
    predictions: Predictions,
    *,
    missing: Missing = "leave-out",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rescored:
    """Score `predictions` on `split`; `on_progress` gets the number of scored rows and of all.

    Raises:
        DataError: an id that the split has not, another row under the same id, an answer of the wrong kind, or rows without a
            prediction under `missing="refuse"`; a gold answer that is wrong by itself.
    """
    task, data = task_of(spec), load_split(spec, split)
    rows = {int(row.id.rpartition("-")[2]): row for row in data.examples}
    alien = sum(not _check_row(one, rows, task, split) for one in predictions.by_id.values())
    absent = [number for number in rows if number not in predictions.by_id]
    if absent and missing == "refuse":
        others = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        raise DataError(
            f"{len(absent)} of {len(rows)} rows of the {split} split have no prediction: "
            f"{', '.join(map(str, absent[:_NAMED]))}{others}",
            expected="one for every row",
            hint="--missing leave-out scores the others, --missing wrong counts these as wrong",
        )
    pairs: list[tuple[Example, Prediction | None]] = [
        (row, predictions.by_id.get(number))
        for number, row in rows.items()
        if number in predictions.by_id or missing == "wrong"
    ]
    if isinstance(task, Classification):
        metrics, records, counts = _score_labels(task, head_of(spec), pairs)
    else:
        require_gold(task, [row for row, _ in pairs])
        metrics, records, counts = _score_texts(task, pairs, on_progress)
    about: RescoredFacts = {
        "task": task.name,
        "version": task.version,
        "split": split,
        "source": data.report.source,
        "split_digest": data.digest,
        "predictions": str(predictions.path),
        "predictions_sha256": file_sha256(predictions.path),
        "primary": task.primary,
        "rows": len(rows),
        "scored": len(pairs),
        "without_prediction": len(absent),
        "missing": missing,
        "repeated_lines": predictions.repeated,
        "rows_not_compared": alien,
        **counts,
    }
    with_units: dict[str, RescoredMetric] = {
        name: {**value, **task.metric(name).record} for name, value in metrics.items()
    }
    return Rescored(with_units, records, about)


def _check_row(one: Prediction, rows: Mapping[int, Example], task: Task, split: str) -> bool:
    """Refuse a prediction of another row; return False where its row has no field of ours, so that they cannot be compared."""
    row = rows.get(one.doc_id)
    if row is None:
        raise DataError(
            f"{one.where}: doc_id {one.doc_id} is no row of the {split} split of {task.name}",
            expected=f"one of its {len(rows)} rows, from {min(rows)} to {max(rows)}",
            hint="another --split, or the same --data as the predictions were made on; a row that repeats another is none: "
            "leave its line out",
        )
    if one.doc is not None:
        for name, ours in row.row.items():
            if name in one.doc and without_nan(one.doc[name]) != without_nan(ours):
                raise DataError(
                    f"{one.where}: doc {one.doc_id} is another row than row {one.doc_id} of the {split} split: its {name} differs",
                    expected=f"predictions on the {split} split of the same data",
                    hint="another --split, or the same --data as the predictions were made on",
                )
        return bool(row.row.keys() & one.doc.keys())
    return True


def _score_texts(
    task: Task, pairs: Sequence[tuple[Example, Prediction | None]], on_progress: Callable[[int, int], None]
) -> tuple[dict[str, RescoredMetric], list[RescoredRow], RescoredCounts]:
    records: list[RescoredRow] = []
    values: dict[str, list[float]] = {name: [] for name in task.metrics}
    silent = 0
    texts = [_text(one) for _, one in pairs]
    responses = [Response(text, ended=bool(one and one.ended)) for text, (_, one) in zip(texts, pairs, strict=True)]
    scored: list[dict[str, Score]] = []
    for start in range(0, len(pairs), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scored += task.score_all([row for row, _ in pairs[part]], responses[part])
        on_progress(len(scored), len(pairs))
    for (row, one), text, scores in zip(pairs, texts, scored, strict=True):
        if one is not None and one.ended is None:
            silent += 1
            unknown = Score.unscored("the predictions do not say whether the model ended")
            scores |= {name: unknown for name in ("ended", task.strict) if name in scores}
        for name, score in scores.items():
            if score.value is not None:
                values[name].append(score.value)
        records.append(_record(row, one, text, scores))
    metrics = {name: _mean(task.metric(name), scores, len(pairs)) for name, scores in values.items()}
    kinds = outcomes(task, [record["explanations"] for record in records])
    counts: RescoredCounts = {"ended_unknown": silent}
    if kinds:
        counts["outcomes"] = kinds
    return metrics, records, counts


def _text(one: Prediction | None) -> str:
    if one is None:
        return ""
    if not isinstance(one.response, str):
        raise DataError(f"{one.where}: the response is a number, and the task asks for text", expected="text")
    return one.response


def _score_labels(
    task: Classification, head: HeadSpec | None, pairs: Sequence[tuple[Example, Prediction | None]]
) -> tuple[dict[str, RescoredMetric], list[RescoredRow], RescoredCounts]:
    assert head is not None
    gold = [task.label(row.row, head) for row, _ in pairs]
    outputs_by_row = [_outputs(row, one, head) for row, one in pairs]
    known = all(one is not None and not isinstance(one.response, str) for _, one in pairs)
    records: list[RescoredRow] = []
    right: list[float] = []
    for (row, one), outputs, label in zip(pairs, outputs_by_row, gold, strict=True):
        answer = f"{outputs[0]:g}" if head.regression else _named(head, outputs)
        scores: dict[str, Score] = {}
        if not head.regression:
            scores["acc"] = Score.of(answer == head.names[int(label)], answer, f"the label is {head.names[int(label)]}")
            right.append(scores["acc"].value or 0.0)
        text = _shown(one) if one is not None else ""
        records.append(_record(row, one, text, {name: s for name, s in scores.items() if name in task.metrics}))
    metrics: dict[str, RescoredMetric] = {}
    for name in task.metrics:
        if name == "acc":
            metrics[name] = _mean(task.metric(name), right, len(pairs))
        elif name == "roc_auc" and not known:
            metrics[name] = _mean(task.metric(name), [], len(pairs))
        else:
            metrics[name] = _over_all(name, gold, outputs_by_row, head)
    outside = 0 if head.regression else sum(_named(head, outputs) == "" for outputs in outputs_by_row)
    return metrics, records, {"outside_labels": outside}


def _outputs(row: Example, one: Prediction | None, head: HeadSpec) -> list[float]:
    """Read the head's outputs of one row; a label's name becomes 1 for that label, and a last column stands for no label."""
    width = head.num_labels
    if one is None:
        if head.regression:
            raise DataError(
                f"row {row.id} has no prediction, and no number is wrong by definition", hint="--missing refuse"
            )
        return [0.0] * width + [1.0]
    if not isinstance(one.response, str):
        if len(one.response) != width:
            expected = "one number" if head.regression else f"the name of a label, or {width} outputs of a head"
            raise DataError(f"{one.where}: the response has {len(one.response)} numbers", expected=expected)
        return [*one.response] if head.regression else [*one.response, float("-inf")]
    answer = one.response.strip()
    if head.regression:
        try:
            return [_finite(answer)]
        except ValueError as error:
            raise DataError(f"{one.where}: the response {answer[:80]!r} is no number", expected="a number") from error
    place = head.names.index(answer) if answer in head.names else width
    return [float(i == place) for i in range(width + 1)]


def _over_all(
    name: str, gold: Sequence[float], outputs_by_row: Sequence[Sequence[float]], head: HeadSpec
) -> RescoredMetric:
    """Measure a metric over all rows.

    The column for answers that are no label stays where it counts as a label of its own (Matthews), and is dropped where it comes
    to the same as any wrong label.
    """
    import numpy as np

    outputs = np.asarray(outputs_by_row, dtype=np.float64)
    width = head.num_labels
    if not head.regression:
        if name == "f1":  # not the positive label, whatever else
            outputs = np.stack([1.0 - (outputs.argmax(1) == 1), 1.0 * (outputs.argmax(1) == 1)], axis=1)
        elif name == "roc_auc" or not (outputs.argmax(1) == width).any():
            outputs = outputs[:, :width]
    value, error = measure([name], gold, outputs, resamples=_RESAMPLES)[name]
    ends = (None, None) if value is None or error is None else (value - 1.96 * error, value + 1.96 * error)
    return {
        "value": value,
        "stderr": error,
        "low": None if ends[0] is None else max(-1.0 if name in ("mcc", "pearson", "spearman") else 0.0, ends[0]),
        "high": None if ends[1] is None else min(1.0, ends[1]),
        "n": len(gold),
        "unscored": 0,
    }


def _mean(metric: Metric, values: Sequence[float], total: int) -> RescoredMetric:
    n = len(values)
    if not n:
        return {"value": None, "stderr": None, "low": None, "high": None, "n": 0, "unscored": total}
    mean = sum(values) / n
    error = (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5 if n > 1 else None
    low, high = None, None
    if metric.unit == PERCENT and all(value in (0.0, 1.0) for value in values):
        low, high = wilson(sum(values), n)
    elif n > 1:
        low, high = mean_interval(values)
    return {"value": mean, "stderr": error, "low": low, "high": high, "n": n, "unscored": total - n}


def _record(row: Example, one: Prediction | None, text: str, scores: Mapping[str, Score]) -> RescoredRow:
    return {
        "doc_id": int(row.id.rpartition("-")[2]),
        "target": row.target,
        "response": text if one is not None else None,
        "scores": {name: score.value for name, score in scores.items()},
        "answers": {name: score.answer for name, score in scores.items()},
        "explanations": {name: score.explanation for name, score in scores.items()},
    }


def _named(head: HeadSpec, outputs: Sequence[float]) -> str:
    place = max(range(len(outputs)), key=lambda i: outputs[i])
    return head.names[place] if place < len(head.names) else ""


def _shown(one: Prediction) -> str:
    return one.response if isinstance(one.response, str) else ", ".join(f"{value:g}" for value in one.response)


def _finite(text: str) -> float:
    value = float(text)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value
