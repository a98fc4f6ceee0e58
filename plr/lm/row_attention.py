"""Attention of a batch whose rows stand one behind the other in a single row, without padding: each attends to itself alone.

How it works
1. The model gets `input_ids [1, tokens]` of all rows, and `position_ids` that begin anew with each. All that it computes token by
   token needs no more: no column is padding.
2. Its attention comes here, by transformers' registry, under a name that the config holds for the time of a forward. It cuts
   queries, keys and values into rows, and runs torch's causal attention on each. Neighbours of equal length run as one batch:
   rows that are sorted by length make few calls.
3. `why_not_rows` reads off the structure of a model what speaks against it: recurrent states, windows that close, positions that
   depend on the batch, virtual tokens. A model that attends past this function is found out in its first forward: `Refused`.

It replaces a padded batch, whose padding is a tenth of the tokens even on short rows sorted by length, and its mask. What it gives
up: other devices, where it was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from plr.lm.registered import Refused, attending, refuse_options, why_not_registered
from plr.lm.support import decoder_config, prompt_learning, why_not_slots

__all__ = ["RowAttention", "why_not_rows"]


def why_not_rows(model: nn.Module, longest: int) -> str | None:
    """Return the reason why rows of up to `longest` tokens of this model cannot stand in one; None if nothing speaks against it."""
    if prompt_learning(model):
        return "its adapter puts virtual tokens before every row"
    return why_not_registered(model) or why_not_slots(model, longest)


class RowAttention:
    """Attention of `model` over rows that stand one behind the other."""

    def __init__(self, model: nn.Module) -> None:
        self.config = decoder_config(model)
        self.layers = len(DynamicCache(config=self.config).layers)
        self._runs: list[tuple[int, int]] = []  # rows of one length, and that length
        self._calls = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Let the model attend through this object inside, backward passes that compute anew included."""
        with attending(self.config, self._attend):
            yield

    def plan(self, lengths: Sequence[int]) -> None:
        """Prepare the next forward, and its backward: rows of `lengths` tokens."""
        self._runs = [(len(list(group)), length) for length, group in groupby(lengths)]
        self._calls = 0

    def check(self) -> None:
        """Check, after a forward, that every layer attended through this object.

        Raises:
            Refused: a layer has not attended through this object.
        """
        if self._calls != self.layers:
            raise Refused(f"{self._calls} of its {self.layers} layers attend through transformers' registry")

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Attend, with the arguments of transformers' interface: `[1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]`."""
        self._refuse(module, query, key, attention_mask, kwargs)
        self._calls += 1
        heads, groups = query.shape[1], key.shape[1]
        if heads != groups:
            key, value = (t.repeat_interleave(heads // groups, 1) for t in (key, value))
        dtype = query.dtype
        if query.device.type == "cpu" and dtype != torch.float32:  # torch's kernel takes there half the time in float32
            query, key, value = query.float(), key.float(), value.float()
        sizes = [count * length for count, length in self._runs]
        cut = [
            [_rows(part, *run) for part, run in zip(t.split(sizes, 2), self._runs, strict=True)]
            for t in (query, key, value)
        ]
        with torch.autocast(query.device.type, enabled=False):
            made = [
                F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling).transpose(
                    1, 2
                )
                for q, k, v in zip(*cut, strict=True)
            ]  # each [rows, length, heads, head_dim]
        return torch.cat([part.reshape(1, -1, *part.shape[2:]) for part in made], 1).to(dtype), None

    def _refuse(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, others: dict[str, object]
    ) -> None:
        """Raise `Refused` where a call wants something else than plain attention of a decoder to its own keys."""
        refuse_options(others)
        if not getattr(module, "is_causal", True) or mask is not None:
            raise Refused("it looks ahead, or makes a mask of its own")
        tokens = sum(count * length for count, length in self._runs)
        if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == tokens:
            raise Refused(f"it attends over {tuple(query.shape)} where there are {tokens} tokens")


def _rows(part: Tensor, count: int, length: int) -> Tensor:
    """Cut `[1, heads, count * length, head_dim]` into `[count, heads, length, head_dim]`."""
    if count == 1:
        return part
    return part.view(part.shape[1], count, length, part.shape[3]).transpose(0, 1)
