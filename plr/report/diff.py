"""Two results of one task side by side: the rows whose verdict changed, both answers beside the gold, and the paired test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plr.core.fingerprint import JsonObject
from plr.core.specs import Evaluate, Restore, bits_word
from plr.core.store import Artifact, Store
from plr.errors import DataError, UsageError
from plr.evaluation.samples import read_samples
from plr.report.results import Contrast, compare
from plr.scoring.metric import Metric
from plr.study.cells import NO_ADAPTER, Cell, CellResult, cell_result

__all__ = ["CHANGES", "Diff", "Row", "diff", "diff_json"]

Change = Literal["gained", "lost", "both right", "both wrong", "same"]
CHANGES: tuple[Change, ...] = ("gained", "lost", "both right", "both wrong", "same")


@dataclass(frozen=True)
class Row:
    """One row that both results scored. `scores` are under the metric of the comparison."""

    doc: str
    change: Change
    prompt: str
    gold: str
    answers: tuple[str, str]
    scores: tuple[float, float]


@dataclass(frozen=True)
class Diff:
    """The second result against the first, on the rows that both scored."""

    first: Evaluate
    second: Evaluate
    metric: Metric
    rows: Sequence[Row]
    contrast: Contrast
    left_out: tuple[int, int]
    """Rows that only the first, only the second scored."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows by change."""
        found = Counter(row.change for row in self.rows)
        return {change: found[change] for change in CHANGES if found[change]}


def diff(store: Store, first: Artifact, second: Artifact, metric: str | None = None) -> Diff:
    """Compare two results row by row; by the primary metric, or the one named.

    Raises:
        UsageError: no results of one task and split, one result twice, no shared row, or a metric that one of them lacks.
        DataError: a row that has another prompt or gold in the second: the data is not the same.
    """
    one, two = _evaluation(store, first), _evaluation(store, second)
    if first.fingerprint == second.fingerprint:
        raise UsageError("both are one result", expected="two results of one task", hint="plr ls result lists them")
    if one.task.identity() != two.task.identity() or one.split != two.split:
        raise UsageError(
            f"{first.path.name} is of {one.task.name} ({one.split}), {second.path.name} of {two.task.name} ({two.split})",
            expected="two results of one task, its rows and one split",
            hint="score both again with the same --task, --data and --split",
        )
    cells = [cell_result(_cell(step), artifact, {}) for step, artifact in ((one, first), (two, second))]
    name = _metric(cells, metric)
    records = [
        {str(record["doc_id"]): record for record in read_samples(artifact.path)} for artifact in (first, second)
    ]
    shared = [doc for doc in records[0] if doc in records[1]]
    scored = [doc for doc in shared if None not in (records[0][doc].get(name), records[1][doc].get(name))]
    if not scored:
        raise UsageError(
            "no row is scored in both", expected="results on the same rows", hint="give both the same --limit"
        )
    for doc in shared:
        for key in ("prompt_hash", "target_hash"):
            if records[0][doc].get(key) != records[1][doc].get(key):
                raise DataError(
                    f"row {doc} has another {key.removesuffix('_hash')} in the second result",
                    expected="the same data and the same examples before each question",
                    hint="score both again with the same --data and --num-fewshot",
                )
    measure = cells[0].metric(name)
    contrast = compare({0: cells[0]}, {0: cells[1]}, name)
    assert contrast is not None
    rows = [_row(doc, records[0][doc], records[1][doc], name, measure) for doc in scored]
    return Diff(one, two, measure, rows, contrast, (len(records[0]) - len(scored), len(records[1]) - len(scored)))


def _evaluation(store: Store, artifact: Artifact) -> Evaluate:
    step = store.identify(artifact)
    if not isinstance(step, Evaluate):
        raise UsageError(
            f"{artifact.path.name} is of kind {artifact.kind}", expected="a result", hint="plr ls result lists them"
        )
    return step


def _cell(step: Evaluate) -> Cell:
    target, task = step.target, step.task.name
    if isinstance(target, Restore):
        k, method = target.adapter.trained_bits, target.adapter.adapter.method
        return Cell(target.base.model.title, task, method, k, target.base.bits, target.mode, 0, step)
    return Cell(target.model.title, task, NO_ADAPTER, target.bits, target.bits, "keep", 0, step)


def _metric(cells: Sequence[CellResult], asked: str | None) -> str:
    """Choose the metric, which has a score of each row in both."""
    both = [
        name
        for name in cells[0].metrics
        if all(any(value is not None for value in cell.samples.get(name, {}).values()) for cell in cells)
    ]
    name = asked or cells[0].primary
    if name in both:
        return name
    if asked is None and both:
        return both[-1]  # the loss: the primary metric is one number of all rows
    raise UsageError(
        f"{name} has no score of each row in both results",
        expected="one of " + (", ".join(both) or "none"),
        hint="--metric NAME",
    )


def _row(doc: str, first: JsonObject, second: JsonObject, name: str, metric: Metric) -> Row:
    scores = (float(first[name]), float(second[name]))
    gain = metric.sign * (scores[1] - scores[0])
    change: Change
    if gain:
        change = "gained" if gain > 0 else "lost"
    elif metric.proportion:
        change = "both right" if scores[0] == 1.0 else "both wrong"
    else:
        change = "same"
    answers = (_answer(first), _answer(second))
    return Row(doc, change, str(_prompt(first)), str(first.get("target", "")), answers, scores)


def _prompt(record: JsonObject) -> Any:
    return record.get("arguments", {}).get("gen_args_0", {}).get("arg_0", "")


def _answer(record: JsonObject) -> str:
    responses = record.get("resps") or [[None]]
    response = responses[0][0] if responses[0] else None
    return "" if response is None else str(response)


def result_words(step: Evaluate) -> str:
    """Name the model, bits and mode of a result."""
    target = step.target
    if not isinstance(target, Restore):
        return f"{target.model.title}, {target.bits} bits, no adapter"
    adapter = target.adapter
    return f"{adapter.label}, {bits_word(adapter.trained_bits)} -> {target.base.bits} bits, {target.form.name}"


def diff_json(found: Diff, rows: Sequence[Row]) -> JsonObject:
    """Build the value that `--json` prints, with these rows."""
    pair = found.contrast
    return {
        "first": result_words(found.first),
        "second": result_words(found.second),
        "task": found.first.task.name,
        "metric": found.metric.name,
        "n": len(found.rows),
        "left_out": {"first": found.left_out[0], "second": found.left_out[1]},
        "counts": dict(found.counts),
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "rows": [
            {
                "doc": row.doc,
                "change": row.change,
                "prompt": row.prompt,
                "gold": row.gold,
                "first": {"answer": row.answers[0], "score": row.scores[0]},
                "second": {"answer": row.answers[1], "score": row.scores[1]},
            }
            for row in rows
        ],
    }
