"""Score a classification head: its outputs on each row, and the task's metrics over all of them.

The loss of a row is the cross entropy of its label in nats, or the squared error of its number. It stands where the loss of a
written answer stands (`answer_loss`), and like it moves where accuracy does not. `acc` has a value a row, so that cells can be
compared row by row; Matthews, F1, Pearson, Spearman and the ROC area are of all rows at once (`plr.scoring.classification`).

A base without an adapter has a head that nobody trained, unless its own checkpoint holds one. It is scored as it is, which is at
chance, and the record says so (`head`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from plr.bases.heads import HEAD_SEED
from plr.core.specs import Restore
from plr.evaluation.cell import OpenCell
from plr.evaluation.protocol import protocol_record
from plr.evaluation.records import ANSWER_LOSS, HeadRecord, MetricRecord, Sample, Scored, summary
from plr.lm.classify import classify, head_loss
from plr.scoring.classification import measure, predicted
from plr.tasks import Classification, Example, HeadSpec
from plr.tasks.data.rows import seen_in_train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["score_head"]

RESAMPLES = 1000
"""Bootstrap resamples behind the standard errors."""


def score_head(
    cell: OpenCell,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head_is_new: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Classify every row and measure the task's metrics; `head_is_new`: the base's own head is a random start."""
    task, head = cell.task, cell.head
    assert isinstance(task, Classification)
    assert head is not None
    texts = [task.texts(row.row) for row in cell.rows]
    gold = [task.label(row.row, head) for row in cell.rows]
    outputs = classify(model, tokenizer, texts, on_progress=on_progress)
    samples = _samples(task, head, cell.rows, texts, gold, outputs)
    metrics = _metrics(task, samples, gold, outputs)
    judged = ["\x1f".join(text for text in pair if text is not None) for pair in texts]
    dtype = str(model.dtype).removeprefix("torch.")
    seen = seen_in_train(cell.step.task, cell.step.split)
    return Scored(
        samples=samples,
        metrics=metrics,
        settings={"output_type": "classification", "doc_to_choice": list(head.names)},
        protocol=protocol_record(cell, judged, {"dtype": dtype}),
        dtype=dtype,
        head=_head_record(cell, head, head_is_new),
        seen_in_train=sum(row.id in seen for row in cell.rows),
    )


def _samples(
    task: Classification,
    head: HeadSpec,
    rows: Sequence[Example],
    texts: Sequence[Sequence[str | None]],
    gold: Sequence[float],
    outputs: Any,
) -> list[Sample]:
    """Record each row as a sample, in row order."""
    import torch

    loss: Any = head_loss(outputs, torch.tensor(gold), head.regression, reduction="none")
    losses: list[float] = loss.tolist()
    numbers: list[list[float]] = outputs.double().tolist()
    chosen: list[int] | None = None if head.regression else predicted(outputs.double().numpy()).tolist()
    by_row = ["acc"] if chosen is not None and "acc" in task.metrics else []
    samples: list[Sample] = []
    for i, row in enumerate(rows):
        answer = f"{numbers[i][0]:g}" if chosen is None else head.names[chosen[i]]
        samples.append(
            Sample(
                row,
                arguments=[text for text in texts[i] if text is not None],
                response=numbers[i],
                answer=answer,
                scores={name: float(chosen is not None and chosen[i] == gold[i]) for name in by_row},
                loss=losses[i],
                answers=dict.fromkeys(task.metrics, answer),
                nll=None if head.regression else losses[i],
                answer_tokens=None if head.regression else 1,
                over_all=[name for name in task.metrics if name not in by_row],
            )
        )
    return samples


def _metrics(
    task: Classification, samples: Sequence[Sample], gold: Sequence[float], outputs: Any
) -> dict[str, MetricRecord]:
    """Measure the task's metrics in its order, the loss last: row means where each row has a value, else over all rows."""
    metrics = summary(samples)
    over_all = [name for name in task.metrics if name not in metrics]
    measured = measure(over_all, gold, outputs.double().numpy(), resamples=RESAMPLES)
    for name, (value, error) in measured.items():
        metrics[name] = {"value": value, "stderr": error, "n": len(samples), "unscored": 0}
    return {name: metrics[name] for name in (*task.metrics, ANSWER_LOSS)}


def _head_record(cell: OpenCell, head: HeadSpec, head_is_new: bool) -> HeadRecord:
    if isinstance(cell.step.target, Restore):
        origin = "the adapter's"
    elif head_is_new:
        origin = f"untrained (random, seed {HEAD_SEED}): the scores are chance"
    else:
        origin = "the checkpoint's"
    return {"is": origin, "outputs": head.num_labels, "labels": list(head.names)}
