"""Distance of a model from what it was: KL divergence, loss and agreement, token by token.

How it works.

1. `Reference(model, rows)` runs the rows once, before the model changes, and keeps what enters the output head (after
   the last norm): `[tokens, hidden]`, where the logits would be `[tokens, vocabulary]`, hundreds of times as much;
2. the head sees one column of each batch alone, so that no logits of a whole batch are ever made;
3. `compare(model)` runs the same batches through the changed model and puts both inputs through their heads, a piece of
   `_MAX_LOGITS` elements at a time; log-softmax in float32, sums over the vocabulary in float64;
4. what a model does to its logits behind the head (soft cap, scale) is read off its config. It is not trusted: the one
   column that the model did finish must come out the same, and a token must not see what stands to its right.

Rows are padded on the right, and the padding is cut off before anything is compared. The first head is kept, so a head
that was replaced is compared too.

What it gives up: models whose logits are no function of the head's input alone, encoders, encoder-decoders. They are an
error that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from plr.errors import DataError, ModelError
from plr.lm.support import decoder_config, evaluating, input_device, position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Reference", "Shift"]

_MAX_LOGITS = 2**24  # elements of one piece of logits: 64 MiB in float32, a handful of which are alive at once
_PROBE = 16  # tokens on which causality is tried
_Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shift:
    """Change of the predictions in one row of `t` tokens: four vectors `[t-1]`, float64 on the CPU."""

    before: Tensor
    """Nats the reference gives to each token but the first."""
    after: Tensor
    """Nats the changed model gives to them."""
    kl: Tensor
    """KL(reference || changed model) of each prediction, in nats."""
    same: Tensor
    """1 where both hold the same token for the likeliest, else 0."""


class Reference:
    """Predictions of a model for `rows` now, to compare a later model with.

    Args:
        model: a transformers causal language model, as it is before the change.
        rows: token ids, at least two a row.
        max_tokens_per_batch: padded tokens of one forward.

    Raises:
        DataError: no rows, or a row of fewer than two tokens or longer than the model's positions.
        ModelError: the model has no output head, sees the tokens to the right, or treats its logits in an unknown way.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Sequence[int]], *, max_tokens_per_batch: int = 4096) -> None:
        self.rows = [list(row) for row in rows]
        _check_rows(model, self.rows)
        self.head = _head(model)
        self.finish = _finish(decoder_config(model))
        self.batches = list(_batches([len(row) - 1 for row in self.rows], max_tokens_per_batch))
        _check_causal(model, self.rows)
        self.inputs: dict[int, Tensor] = {}  # row -> [t-1, hidden], in the model's dtype on the CPU
        for at, batch in enumerate(self.batches):
            x, column = self._run(model, batch)
            if at == 0:
                with evaluating(self.head):
                    _check_logits(self.finish(self.head(x[:, :1])), column)
            for i, own in self._rows_of(batch, x):
                self.inputs[i] = own.cpu()

    def compare(self, model: nn.Module) -> list[Shift]:
        """Compute one `Shift` a row, in the order of the rows; the reference stays what it is, for the next model.

        Raises:
            ModelError: the model has no output head any more.
        """
        head = _head(model)
        shifts: dict[int, Shift] = {}
        for batch in self.batches:
            x, _ = self._run(model, batch)
            with evaluating(head):
                for i, own in self._rows_of(batch, x):
                    shifts[i] = self._shift(head, self.inputs[i], own, torch.tensor(self.rows[i][1:]))
        return [shifts[i] for i in range(len(self.rows))]

    def _run(self, model: nn.Module, batch: list[int]) -> tuple[Tensor, Tensor]:
        """Compute the head's input `[b, t-1, hidden]` of a batch and the model's own logits `[b, 1, vocabulary]` at column 0."""
        ids = torch.zeros(len(batch), max(len(self.rows[i]) for i in batch) - 1, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(self.rows[i]) - 1] = torch.tensor(self.rows[i][:-1])
        return _tapped(model, ids)

    def _rows_of(self, batch: list[int], x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for row, i in enumerate(batch):
            yield i, x[row, : len(self.rows[i]) - 1]

    def _shift(self, head: nn.Module, was: Tensor, now: Tensor, targets: Tensor) -> Shift:
        """Run both inputs `[t-1, hidden]` through their heads, piece by piece; `targets [t-1]`."""
        parts: list[Tensor] = []
        size, at = 1, 0  # the vocabulary is known after the first token
        while at < len(targets):
            p = self._log_probabilities(self.head, was[at : at + size].to(now.device))
            q = self._log_probabilities(head, now[at : at + size])
            wanted = targets[at : at + size, None].to(p.device)
            kl = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
            same = p.argmax(-1) == q.argmax(-1)
            before, after = (-v.gather(-1, wanted)[:, 0].double() for v in (p, q))
            parts.append(torch.stack([before, after, kl, same.double()]).cpu())
            at, size = at + size, max(1, _MAX_LOGITS // p.shape[-1])
        return Shift(*torch.cat(parts, dim=1))

    def _log_probabilities(self, head: nn.Module, x: Tensor) -> Tensor:
        """Compute log-probabilities `[n, hidden] -> [n, vocabulary]`, float32."""
        return self.finish(head(x)).float().log_softmax(-1)


def _check_rows(model: nn.Module, rows: list[list[int]]) -> None:
    if not rows or min(map(len, rows)) < 2:
        raise DataError("there is no text to compare on", expected="rows of two tokens or more", hint="give other rows")
    limit, longest = position_limit(model), max(map(len, rows))
    if limit is not None and longest - 1 > limit:
        raise DataError(
            f"a row has {longest} tokens",
            expected=f"at most {limit + 1}, as the model has {limit} positions",
            hint="cut the rows; nothing is truncated here",
        )


def _head(model: nn.Module) -> nn.Module:
    own = cast("PreTrainedModel", model)
    head = own.get_output_embeddings()
    if head is None or getattr(own.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is no language model with an output head",
            expected="a decoder that predicts the next token",
            hint="measure this model on its own task",
        )
    return head


def _finish(config: PreTrainedConfig) -> _Finish:
    """Find what the model does to its logits behind the head: Gemma caps, Cohere and Falcon-H1 multiply, Granite divides."""
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) * (getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= getattr(config, "logits_scaling", None) or 1.0

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return finish


def _check_causal(model: nn.Module, rows: list[list[int]]) -> None:
    """Change the last of a few tokens: what the model makes of those before must stay."""
    ids = torch.tensor([max(rows, key=len)[:_PROBE]] * 2)
    ids[1, -1] = ids[0, 0] if ids[0, -1] != ids[0, 0] else (ids[0, 0] + 1) % decoder_config(model).vocab_size
    x, _ = _tapped(model, ids)
    first, second = x[:, :-1].float()
    if not torch.allclose(first, second, rtol=0.0, atol=1e-2 * float(first.abs().max())):
        raise ModelError(
            f"in {type(model).__name__} a token sees what stands to its right",
            expected="a decoder that predicts the next token",
            hint="measure this model on its own task",
        )


def _check_logits(ours: Tensor, theirs: Tensor) -> None:
    """Compare logits, both `[b, 1, vocabulary]`; only the head's arithmetic may differ (another shape of matrix product)."""
    ours, theirs = ours.float(), theirs.float()
    tolerance = 2e-2 * float(theirs.abs().max())
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ModelError(
            "the model's logits are not those of its output head",
            expected="logits = head(x), with a soft cap or a scale that the config names",
            hint="measure the loss of this model alone",
        )


def _tapped(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Run `ids [b, t]`: the head's input `[b, t, hidden]`, and the logits `[b, 1, vocabulary]` of the first column."""
    with _tap(_head(model)) as seen, evaluating(model):
        logits = model(input_ids=ids.to(input_device(model)), use_cache=False, return_dict=True).logits
    if len(seen) != 1 or seen[0].shape[:2] != ids.shape:
        raise ModelError(
            f"the output head of {type(model).__name__} was called {len(seen)} times in a forward",
            expected="one call, with one vector a token",
            hint="measure the loss of this model alone",
        )
    return seen[0], logits


@contextmanager
def _tap(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the head is called with, and let it work on the first column alone."""
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][:, :1], *args[1:])

    handle = head.register_forward_pre_hook(before)
    try:
        yield seen
    finally:
        handle.remove()


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Batch row numbers, longest first, in batches of at most `budget` padded tokens (one row at least)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
