"""Score a classification head: its outputs on each row, and the task's metrics over all of them.

The loss of a row is the cross entropy of its label in nats, or the squared error of its number. It stands where the loss of a
written answer stands (``answer_loss``), and like it moves where accuracy does not. ``acc`` has a value a row, so that cells can be
compared row by row; Matthews, F1, Pearson, Spearman and the ROC area are of all rows at once (:mod:`plr.scoring.classification`).

A base without an adapter has a head that nobody trained, unless its own checkpoint holds one. It is scored as it is, which is at
chance, and the record says so (``head``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plr.bases.heads import HEAD_SEED
from plr.bases.load import Loaded
from plr.core.specs import Evaluate, Restore
from plr.errors import UsageError
from plr.evaluation.records import ANSWER_LOSS, record, summary
from plr.lm.classify import classify, head_loss
from plr.scoring.classification import measure, predicted
from plr.tasks import Classification, Example, HeadSpec, task_of
from plr.tasks.data.rows import head_of, seen_in_train

__all__ = ["head_for", "head_record", "score_head"]

RESAMPLES = 1000
"""Of the bootstrap behind the standard errors."""


def head_for(step: Evaluate) -> HeadSpec | None:
    """The head that the target of ``step`` carries; None for a language model.

    Raises:
        UsageError: the adapter was trained for another kind of answer than the task asks for.
    """
    asked = head_of(step.task)
    if not isinstance(step.target, Restore):
        return asked
    trained_on = step.target.adapter.task
    trained = head_of(trained_on)
    same = trained_on.name == step.task.name
    if _form(asked) != _form(trained) or (same and asked != trained):
        raise UsageError(
            f"the adapter was trained on {trained_on.name} ({_words(trained)}), and {step.task.name} asks for {_words(asked)}",
            expected="a task with the same head" if trained else "a task whose answer is written",
            hint=f"evaluate it on {trained_on.name}",
        )
    return trained


def score_head(
    step: Evaluate,
    rows: list[Example],
    model: Any,
    loaded: Loaded,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """One record a row, in row order, and the summary of each metric."""
    import torch

    task, head = task_of(step.task), head_of(step.task)
    assert isinstance(task, Classification)
    assert head is not None
    texts = [task.texts(row.row) for row in rows]
    gold = [task.label(row.row, head) for row in rows]
    outputs = classify(model, loaded.tokenizer, texts, on_progress=on_progress)
    losses = head_loss(outputs, torch.tensor(gold), head.regression, reduction="none").tolist()
    numbers = outputs.double().numpy()
    chosen = None if head.regression else predicted(numbers).tolist()
    samples: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        answer = f"{numbers[i, 0]:g}" if chosen is None else head.names[chosen[i]]
        scores = {"acc": float(chosen[i] == gold[i])} if chosen is not None and "acc" in task.metrics else {}
        sample = record(
            row,
            arguments=[text for text in texts[i] if text is not None],
            response=[float(value) for value in numbers[i]],
            answer=answer,
            scores=scores,
            loss=losses[i],
            tokens=None,
            answers=dict.fromkeys(task.metrics, answer),
            answer_nll=None if head.regression else losses[i],
            answer_tokens=None if head.regression else 1,
        )
        missing = [name for name in task.metrics if name not in scores]
        samples.append(sample | dict.fromkeys(missing))  # a metric of all rows has no value a row
    by_row = summary(samples)
    over_all = measure([m for m in task.metrics if m not in by_row], gold, numbers, resamples=RESAMPLES)
    found = {
        name: {"value": value, "stderr": error, "n": len(rows), "unscored": 0}
        for name, (value, error) in over_all.items()
    } | by_row
    return samples, {name: found[name] for name in (*task.metrics, ANSWER_LOSS)}


def head_record(step: Evaluate, rows: list[Example], loaded: Loaded) -> dict[str, Any]:
    """What the manifest says of the head, and how many of the rows stand in the train split too."""
    head = head_of(step.task)
    assert head is not None
    start = "the adapter's" if isinstance(step.target, Restore) else "the checkpoint's"
    if not isinstance(step.target, Restore) and loaded.head_is_new:
        start = f"untrained (random, seed {HEAD_SEED}): the scores are chance"
    seen = seen_in_train(step.task, step.split)
    return {
        "head": {"is": start, "outputs": head.num_labels, "labels": list(head.names)},
        "seen_in_train": sum(row.id in seen for row in rows),
    }


def _form(head: HeadSpec | None) -> tuple[int, bool] | None:
    return (head.num_labels, head.regression) if head else None


def _words(head: HeadSpec | None) -> str:
    if head is None:
        return "a written answer"
    return "a number" if head.regression else f"one of {head.num_labels} labels"
