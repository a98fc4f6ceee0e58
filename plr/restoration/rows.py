"""Rows on which restorations are compared: a teacher-forced forward pass each, its loss and whether it is all right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from plr.core.specs import TaskSpec
from plr.errors import DataError, ModelError
from plr.lm import answer_loss, encode_pair
from plr.lm.classify import classify, encode_texts, head_loss
from plr.scoring.classification import predicted
from plr.tasks import Classification, Example, HeadSpec, task_of
from plr.tasks.data.rows import draw, guarded_train, head_of, load_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Marks", "Rows", "training_inputs", "validation_rows"]

LEAST = 2


class Marks(NamedTuple):
    """Marks of a model on rows, in their order."""

    losses: tuple[float, ...]
    """Nats a token of the gold answer; of a head its cross entropy, or squared error."""
    exact: tuple[float, ...] | None
    """1 where every gold token and the end is the likeliest, or the label is right; None for a head that gives a number."""

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)

    @property
    def share(self) -> float | None:
        """Share of the rows that are right."""
        return None if self.exact is None else math.fsum(self.exact) / len(self.exact)

    def part(self, start: int, end: int) -> Marks:
        """Take the marks of rows `start` to `end`."""
        return Marks(self.losses[start:end], None if self.exact is None else self.exact[start:end])


@dataclass(frozen=True)
class Rows:
    """Rows of one task, ready to be read by any model of it."""

    task: TaskSpec
    examples: tuple[Example, ...]
    head: HeadSpec | None

    def part(self, start: int, end: int) -> Rows:
        """Take rows `start` to `end`."""
        return Rows(self.task, self.examples[start:end], self.head)

    def marks(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Marks:
        """Read all rows with `model`: one forward pass each, no answer is written.

        Raises:
            ModelError: a loss that is no number.
            DataError: a row that does not fit.
        """
        if self.head is None:
            names = [row.id for row in self.examples]
            pairs = [(row.prompt, row.target) for row in self.examples]
            found = answer_loss(model, tokenizer, pairs, names=names)
            return _finite(Marks(tuple(one.mean for one in found), tuple(float(one.exact) for one in found)))
        return _finite(self._judged(self.head, model, tokenizer))

    def _judged(self, head: HeadSpec, model: Any, tokenizer: PreTrainedTokenizerBase) -> Marks:
        import torch

        task = task_of(self.task)
        assert isinstance(task, Classification)
        gold = [task.label(row.row, head) for row in self.examples]
        outputs = classify(model, tokenizer, [task.texts(row.row) for row in self.examples])
        losses: Any = head_loss(outputs, torch.tensor(gold), head.regression, reduction="none")
        exact = None
        if not head.regression:
            numbers: Any = outputs.double()
            chosen: Sequence[int] = predicted(numbers.numpy()).tolist()
            exact = tuple(float(one == right) for one, right in zip(chosen, gold, strict=True))
        return Marks(tuple(losses.tolist()), exact)


def training_inputs(task: TaskSpec, rows: int, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Encode training rows, prompt and answer, or what a head reads: int64 `[1, t]` each.

    Raises:
        DataError: data that cannot be read.
    """
    import torch

    drawn = draw(guarded_train(task), rows, seed)
    work = task_of(task)
    if isinstance(work, Classification) and head_of(task) is not None:
        encoded = encode_texts(tokenizer, [work.texts(row.row) for row in drawn])
        return [{key: torch.tensor([ids]) for key, ids in row.items()} for row in encoded]
    pairs = [encode_pair(tokenizer, row.prompt, row.target) for row in drawn]
    return [{"input_ids": torch.tensor([prompt + target])} for prompt, target in pairs]


def _finite(marks: Marks) -> Marks:
    if not all(map(math.isfinite, marks.losses)):
        raise ModelError(
            f"the loss of a row is {next(loss for loss in marks.losses if not math.isfinite(loss))}",
            expected="finite logits",
            hint="compute in float32, or check the base: plr eval the unadapted base first",
        )
    return marks


def validation_rows(task: TaskSpec, rows: int, seed: int, *, least: int = LEAST) -> Rows:
    """Draw `rows` validation rows in an order of the draw; all, where there are fewer.

    Raises:
        DataError: fewer than `least` rows, or data that cannot be read.
    """
    import random

    split = load_split(task, "validation").examples
    drawn = draw(split, min(rows, len(split)), seed)
    if len(drawn) < least:
        raise DataError(
            f"{len(drawn)} validation rows of {task.name}", expected=f"at least {least} to choose a restoration on"
        )
    random.Random(seed).shuffle(drawn)  # so that any part of them is a fair one
    return Rows(task, tuple(drawn), head_of(task))
