"""Carry out Evaluate steps: one base in memory, the adapters of all its cells swapped over it.

A cell whose answer is written is scored twice over: greedy generation (accuracy and whether the answer ended) and the
teacher-forced loss of the gold answer, which still moves where accuracy is at its floor (`plr.evaluation.written`). A cell with
a classification head is scored by `plr.evaluation.heads`. Files are written in lm-eval's layout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from plr.core.specs import Evaluate, Restore
from plr.evaluation.cell import OpenCell, open_cell
from plr.evaluation.files import ModelFacts, model_facts, write
from plr.evaluation.heads import score_head
from plr.evaluation.holder import BaseHolder
from plr.evaluation.protocol import ProtocolRecord
from plr.evaluation.records import ANSWER_LOSS, HeadRecord, MetricRecord, Scored
from plr.evaluation.writers import Local
from plr.evaluation.written import score_written
from plr.scoring.metric import MetricUnit

__all__ = ["ResultRecord", "evaluate"]

OnProgress = Callable[[int, int], None]


class MeasuredRecord(MetricRecord, MetricUnit):
    """A score, with the unit and direction of its metric where the task declares them."""


class Proof(TypedDict, total=False):
    """The proof that the adapter of a cell acts."""

    largest_logit_change: float | None
    """The adapter's largest change of a logit, where the model is in this process; None without an adapter."""
    largest_logprob_change: float | None
    """The adapter's largest change of a log-probability in vLLM, which shows no logits."""
    adapter_tensors: Mapping[str, int]
    """Counts of the adapter's tensors that do not fit its base, where a mismatch is allowed."""


class ResultRecord(Proof):
    """The metrics of a result's manifest."""

    task: str
    primary: str
    metrics: Mapping[str, MeasuredRecord]
    n: int
    data: dict[str, object]
    protocol: ProtocolRecord
    outcomes: NotRequired[Mapping[str, Mapping[str, int]]]
    head: NotRequired[HeadRecord]
    seen_in_train: NotRequired[int | None]
    train_bits: int | None
    """None: nobody says on how many bits the adapter was trained."""
    restore_bits: int
    dtype: str


def evaluate(step: Evaluate, folder: Path, holder: BaseHolder, on_progress: OnProgress | None = None) -> ResultRecord:
    """Score one cell and write `results_*.json` and `samples_*.jsonl` to `folder`.

    Returns the metrics of the manifest: value, standard error, n, unit and direction of each metric, and the settings of the run.

    Raises:
        LeakageError: the adapter was trained on another task, in whose rows some of these stand.
        UsageError: the adapter was trained for another kind of answer.
        ModelError: a loss that is no number.
    """
    start = time.perf_counter()
    cell = open_cell(step)
    if step.engine == "vllm":
        writer = holder.writer(cell)
        scored, model = score_written(cell, writer, on_progress), model_facts(None, writer.tokenizer)
        proof: Proof = {"largest_logprob_change": writer.change}
    else:
        scored, model, proof = _score_here(cell, holder, on_progress)
    write(cell, scored, model, folder, seconds=time.perf_counter() - start)
    return _record(cell, scored, proof)


def _score_here(cell: OpenCell, holder: BaseHolder, on_progress: OnProgress | None) -> tuple[Scored, ModelFacts, Proof]:
    """Score with the model in this process, the adapter swapped over it meanwhile."""
    with holder.attached(cell) as held:
        if cell.head is not None:
            scored = score_head(cell, held.model, held.tokenizer, head_is_new=held.head_is_new, on_progress=on_progress)
        else:
            scored = score_written(cell, Local(held.model, held.tokenizer, holder.runtime.slots), on_progress)
        facts = model_facts(held.model, held.tokenizer)
    proof: Proof = {"largest_logit_change": held.largest_logit_change}
    if held.partial:
        proof["adapter_tensors"] = held.partial
    return scored, facts, proof


def _record(cell: OpenCell, scored: Scored, proof: Proof) -> ResultRecord:
    step, target = cell.step, cell.step.target
    record: ResultRecord = {
        "task": step.task.name,
        "primary": ANSWER_LOSS if cell.head is None and not step.generate else cell.task.primary,
        "metrics": {name: {**score, **cell.task.metric(name).record} for name, score in scored.metrics.items()},
        "n": len(scored.samples),
        "data": cell.data,
        "protocol": scored.protocol,
        "train_bits": (target.adapter.trained_bits or None) if isinstance(target, Restore) else step.base.bits,
        "restore_bits": step.base.bits,
        "dtype": scored.dtype,
        **proof,
    }
    if scored.outcomes:
        record["outcomes"] = scored.outcomes
    if scored.head is not None:
        record["head"], record["seen_in_train"] = scored.head, scored.seen_in_train
    return record
