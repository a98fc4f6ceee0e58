"""Typed records of a scored cell: one sample a row, and their summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NotRequired, TypedDict

from plr.core.fingerprint import text_sha256
from plr.evaluation.protocol import GenerationSettings, ProtocolRecord
from plr.evaluation.samples import document_of
from plr.tasks import Example

__all__ = [
    "ANSWER_LOSS",
    "FORCED_EXACT",
    "P_GOLD",
    "HeadRecord",
    "MetricRecord",
    "Sample",
    "Scored",
    "TaskSettings",
    "summary",
]

ANSWER_LOSS = "answer_loss"
FORCED_EXACT = "exact_match,teacher-forced"
"""1 where every token of the gold answer and the end are the likeliest after what stands before them: greedy exact match."""
P_GOLD = "p_gold"
"""Probability of the whole gold answer."""


class MetricRecord(TypedDict):
    """A score over the `n` samples that could be scored."""

    value: float | None
    stderr: float | None
    n: int
    unscored: int


HeadRecord = TypedDict("HeadRecord", {"is": str, "outputs": int, "labels": list[str]})
"""The classification head of a run; `is` says where its weights come from."""


class TaskSettings(TypedDict):
    """The part of a task's configuration that lm-eval records beside its name."""

    output_type: str
    generation_kwargs: NotRequired[GenerationSettings]
    doc_to_choice: NotRequired[list[str]]


@dataclass(frozen=True)
class Sample:
    """One scored row."""

    row: Example
    arguments: Sequence[str | GenerationSettings]
    """The inputs of the model; the first is the prompt as the model reads it."""
    response: str | Sequence[float] | None
    answer: str | None
    scores: Mapping[str, float | None]
    """By metric; None where this row cannot be scored."""
    loss: float
    """Nats a token of the gold answer; of a head its cross entropy or squared error."""
    answers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The answer that each metric extracted from the response."""
    explanations: Mapping[str, str] | None = None
    """The reason for each score; None for a head."""
    nll: float | None = None
    """Summed nats of the gold answer."""
    answer_tokens: int | None = None
    tokens: int | None = None
    """Tokens generated."""
    stopped: str | None = None
    """The stop text that cut the answer."""
    over_all: Sequence[str] = ()
    """Metrics of all rows at once, which have no value a row."""

    @property
    def number(self) -> int:
        """The place of the row in its source."""
        return int(document_of(self.row.id))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics with a value a row, the loss last."""
        return (*self.scores, ANSWER_LOSS)

    @cached_property
    def hashes(self) -> tuple[str, str, str]:
        """sha256 of the row, the prompt and the target, as lm-eval takes them."""
        doc = json.dumps(dict(self.row.row), indent=2, default=str, ensure_ascii=False)
        return text_sha256(doc), text_sha256(str(self.arguments[0])), text_sha256(self.row.target)

    def value(self, metric: str) -> float | None:
        """Return the score under `metric`, or the loss."""
        return self.loss if metric == ANSWER_LOSS else self.scores[metric]

    def as_json(self) -> dict[str, object]:
        """Build the line of `samples_*.jsonl`, in lm-eval's layout."""
        doc_hash, prompt_hash, target_hash = self.hashes
        head = self.explanations is None
        return {
            "doc_id": self.number,
            "doc": dict(self.row.row),
            "target": self.row.target,
            "arguments": {"gen_args_0": {f"arg_{i}": argument for i, argument in enumerate(self.arguments)}},
            "resps": [[self.response]],
            "filtered_resps": [self.answer],
            "filter": "none",
            "metrics": list(self.metrics),
            "doc_hash": doc_hash,
            "prompt_hash": prompt_hash,
            "target_hash": target_hash,
            ANSWER_LOSS: self.loss,
            "tokens": self.tokens,
            **({} if head else {"stopped": self.stopped}),
            "answers": dict(self.answers),
            **({} if head else {"explanations": self.explanations}),
            "answer_nll": self.nll,
            "answer_tokens": self.answer_tokens,
            **self.scores,
            **dict.fromkeys(self.over_all),
        }


@dataclass(frozen=True)
class Scored:
    """The scored rows of a cell, and the record of the run."""

    samples: Sequence[Sample]
    metrics: Mapping[str, MetricRecord]
    settings: TaskSettings
    protocol: ProtocolRecord
    dtype: str
    """The dtype of the computation."""
    outcomes: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Counts of answers by kind, for the metrics that tell kinds apart."""
    head: HeadRecord | None = None
    seen_in_train: int | None = None
    """Rows that stand in the train split too; counted for a head alone."""


def summary(samples: Sequence[Sample]) -> dict[str, MetricRecord]:
    """Summarize each metric over its scored samples: mean, standard error of the mean, and n."""
    metrics: dict[str, MetricRecord] = {}
    for name in samples[0].metrics if samples else ():
        values = [value for sample in samples if (value := sample.value(name)) is not None]
        n = len(values)
        mean = sum(values) / n if n else None
        stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if mean is not None and n > 1 else None
        metrics[name] = {"value": mean, "stderr": stderr, "n": n, "unscored": len(samples) - n}
    return metrics
