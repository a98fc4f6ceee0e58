"""Objectives of training: the loss of the answer's tokens, or that of a classification head.

An objective encodes rows, collates a micro-batch, gives its summed loss and validates; `plr.training.trainer.PlrTrainer`
divides the sum by the items (answer tokens or rows) of the whole optimizer batch, so that micro-batches change no update.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plr.bases.load import Loaded
from plr.core.specs import TaskSpec
from plr.errors import DataError
from plr.lm import answer_loss, encode_pair
from plr.lm.classify import classify, collate, encode_texts, head_loss, needs_equal_lengths
from plr.lm.row_attention import RowAttention, why_not_rows
from plr.lm.support import accepts, evaluating, input_device, prompt_learning, unwrap
from plr.lm.typed import typed
from plr.scoring.classification import measure
from plr.tasks import Classification, Example, HeadSpec, task_of
from plr.training.loss import summed_cross_entropy
from plr.training.products import Quick

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORE", "AnswerCollator", "AnswerObjective", "HeadObjective", "Objective", "Row", "RowsCollator"]

log = logging.getLogger(__name__)

Row = tuple[list[int], list[int]]
IGNORE = -100
TRIED_ROWS = 3
"""Rows, the shortest, whose loss is compared between a padded batch and rows that stand one behind the other."""
TRIED = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest relative difference of the two, by the dtype of the computation; of others 1e-4."""


class Objective(ABC):
    """Rows to learn from, and how far a model is from them."""

    rows: Sequence[object]
    """Encoded training rows, in source order."""
    lengths: list[int]
    """Tokens of each of them."""

    def bind(self, model: nn.Module) -> None:
        """Take note of the model with its adapter: what the batches look like may depend on it."""
        self.quick = Quick(model)

    @contextmanager
    def serving(self) -> Generator[None]:
        """Let the model compute as a training step of this objective does inside, forward and backward."""
        with self.quick.serving():
            yield

    @abstractmethod
    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """Collate rows to the tensors of a micro-batch; `labels` and `shift_labels` hold IGNORE where there is nothing to count."""

    @abstractmethod
    def loss(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, object]:
        """Compute the summed loss of a micro-batch, and the model's outputs."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute `loss`, the mean of an item over the validation rows, and the task's metrics, where a pass gives them."""


class AnswerCollator:
    """Rows -> tensors: input_ids, attention_mask, position_ids int64 [b, t]; labels int64 [b, n] of the last n tokens.

    Padded on the left, all answers stand in the last columns, and `n` is the longest of them. `right` pads on the right,
    as virtual tokens want it that a prompt-learning method puts before the row: nothing must stand between them and the text.
    `labels` hold IGNORE where a row has prompt or padding; the logits that predict them are those of the last `n + 1`
    positions but one.
    """

    def __init__(self, pad_token_id: int, *, position_ids: bool, right: bool = False) -> None:
        self.pad_token_id = pad_token_id
        self.position_ids = position_ids and not right
        self.right = right

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        width = max(len(prompt) + len(target) for prompt, target in rows)
        answer = max(len(target) for _, target in rows)
        if self.right:
            answer = width - min(len(prompt) for prompt, _ in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORE)
        for i, (prompt, target) in enumerate(rows):
            start = 0 if self.right else width - len(prompt) - len(target)
            middle, end = start + len(prompt), start + len(prompt) + len(target)
            ids[i, start:end] = torch.tensor(prompt + target)
            mask[i, start:end] = 1
            labels[i, middle:end] = torch.tensor(target)
        labels = labels[:, width - answer :].contiguous()
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "shift_labels": labels}
        if self.position_ids:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch


class RowsCollator:
    """Rows -> tensors without padding: input_ids, position_ids int64 [1, t]; lengths [b]; columns, labels int64 [n].

    The rows stand one behind the other, each without its last token, which predicts nothing; positions begin anew with each.
    `columns` are the places whose logits predict `labels`.
    """

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        ids: list[int] = []
        positions: list[int] = []
        columns: list[int] = []
        labels: list[int] = []
        lengths: list[int] = []
        for prompt, target in rows:
            length = len(prompt) + len(target) - 1
            columns += range(len(ids) + len(prompt) - 1, len(ids) + length)
            labels += target
            ids += prompt + target[:-1]
            positions += range(length)
            lengths.append(length)
        named = {"columns": columns, "labels": labels, "shift_labels": labels, "lengths": lengths}
        batch = {name: torch.tensor(value) for name, value in named.items()}
        return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions]), **batch}


class AnswerObjective(Objective):
    """Cross entropy of the answer's tokens and EOS after the prompt, logits at the answer only.

    Rows stand one behind the other where the model allows it (`plr.lm.row_attention`), otherwise in a padded batch.
    """

    def __init__(
        self, loaded: Loaded, train: Sequence[Example], validation: Sequence[Example], max_length: int
    ) -> None:
        self.tokenizer = loaded.tokenizer
        self.rows: list[Row] = [_encode(self.tokenizer, row, max_length) for row in train]
        self.lengths = [len(prompt) + len(target) for prompt, target in self.rows]
        self.pairs = [(row.prompt, row.target) for row in validation]

    def bind(self, model: nn.Module) -> None:
        super().bind(model)
        self.collator: AnswerCollator | RowsCollator = AnswerCollator(
            typed(self.tokenizer).pad_token_id,
            position_ids="position_ids" in inspect.signature(unwrap(model).forward).parameters,
            right=prompt_learning(model) > 0,
        )
        self.attention: RowAttention | None = None
        self.keeps_logits = accepts(model, "logits_to_keep")
        # A slice of the hidden states is not contiguous, and the output layer on it runs as a slow batched product.
        head = unwrap(model).get_output_embeddings()
        if isinstance(head, torch.nn.Linear):
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
        why_not = why_not_rows(model, max(self.lengths)) or self._rows_differ(model)
        if why_not is not None:
            log.info("rows are padded to batches: %s", why_not)

    def _rows_differ(self, model: nn.Module) -> str | None:
        """Let rows stand one behind the other from now on, or return the reason why their loss is not that of a padded batch."""
        rows = sorted(self.rows, key=lambda row: len(row[0]) + len(row[1]))[TRIED_ROWS - 1 :: -1]
        padded = self._try(model, rows)
        self.collator, self.attention, before = RowsCollator(), RowAttention(model), self.collator
        try:
            behind = self._try(model, rows)
            tolerance = TRIED.get(unwrap(model).dtype, 1e-4) * abs(padded)
            refusal = (
                None if abs(behind - padded) <= tolerance else f"their loss is {behind:g} in one and {padded:g} apart"
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the model's own code, which may count on a mask or on one row a text
            refusal = str(error) or type(error).__name__
        if refusal is not None:
            self.collator, self.attention = before, None
        return refusal

    def _try(self, model: nn.Module, rows: list[Row]) -> float:
        inputs = {name: tensor.to(input_device(model)) for name, tensor in self.collate(rows).items()}
        labels = inputs.pop("labels")
        inputs.pop("shift_labels")
        with evaluating(model), self._attending():
            return float(self.loss(model, inputs, labels)[0])

    def _attending(self) -> AbstractContextManager[None]:
        return nullcontext() if self.attention is None else self.attention.serving()

    @contextmanager
    def serving(self) -> Generator[None]:
        with super().serving(), self._attending():
            yield

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        return self.collator(rows)

    def loss(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, object]:
        if self.attention is None:
            options = {"logits_to_keep": labels.shape[1] + 1} if self.keeps_logits else {}
            outputs = model(**inputs, **options, use_cache=False)
            counted = labels != IGNORE
            return summed_cross_entropy(outputs.logits[:, -labels.shape[1] - 1 : -1][counted], labels[counted]), outputs
        columns = inputs.pop("columns")
        self.attention.plan(inputs.pop("lengths").tolist())
        options = {"logits_to_keep": columns} if self.keeps_logits else {}
        outputs = model(**inputs, **options, use_cache=False)
        self.attention.check()
        logits: Tensor = outputs.logits.flatten(0, 1)
        if not self.keeps_logits:
            logits = logits[columns]
        return summed_cross_entropy(logits, labels), outputs

    def validate(self, model: nn.Module) -> dict[str, float]:
        losses = answer_loss(model, self.tokenizer, self.pairs)
        return {"loss": sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)}


class HeadObjective(Objective):
    """Cross entropy of a classification head, or squared error of a regression head."""

    def __init__(
        self,
        loaded: Loaded,
        task: TaskSpec,
        head: HeadSpec,
        train: Sequence[Example],
        validation: Sequence[Example],
        max_length: int,
    ) -> None:
        self.tokenizer = loaded.tokenizer
        self.head = head
        work = task_of(task)
        assert isinstance(work, Classification)
        self.work = work
        names = [row.id for row in train]
        encoded = encode_texts(self.tokenizer, [work.texts(row.row) for row in train], max_length, names=names)
        self.rows = list(zip(encoded, [self._label(row) for row in train], strict=True))
        self.lengths = [len(row["input_ids"]) for row in encoded]
        self.texts = [work.texts(row.row) for row in validation]
        self.labels = torch.tensor([self._label(row) for row in validation])

    def _label(self, row: Example) -> float | int:
        return self.work.label(row.row, self.head)

    def bind(self, model: nn.Module) -> None:
        super().bind(model)
        self.unpadded = needs_equal_lengths(model)

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        labels = torch.tensor([label for _, label in rows])
        return {**collate(self.tokenizer, [row for row, _ in rows]), "labels": labels, "shift_labels": labels}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, object]:
        if not self.unpadded:
            outputs = model(**inputs)
            return head_loss(outputs.logits, labels, self.head.regression), outputs
        lengths = inputs["attention_mask"].sum(1)
        losses, outputs = [], None
        for length in lengths.unique().tolist():  # rows of one length at a time: nothing is padded
            rows = lengths == length
            outputs = model(**{name: tensor[rows, :length] for name, tensor in inputs.items()})
            losses.append(head_loss(outputs.logits, labels[rows], self.head.regression))
        return torch.stack(losses).sum(), outputs

    def validate(self, model: nn.Module) -> dict[str, float]:
        logits = classify(model, self.tokenizer, self.texts)
        measured = measure(self.work.metrics, self.labels.tolist(), logits.double().numpy(), resamples=0)
        metrics = {name: value for name, (value, _) in measured.items() if value is not None}
        return {"loss": float(head_loss(logits, self.labels, self.head.regression, reduction="mean")), **metrics}


def _encode(tokenizer: PreTrainedTokenizerBase, row: Example, max_length: int) -> Row:
    prompt, target = encode_pair(tokenizer, row.prompt, row.target)
    if len(prompt) + len(target) > max_length:
        raise DataError(
            f"row {row.id} has {len(prompt) + len(target)} tokens",
            expected=f"at most train.max_length = {max_length}",
            hint="raise train.max_length, or drop long rows with the task's max_prompt_chars",
        )
    return prompt, target
