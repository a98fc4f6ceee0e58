"""Attention over a slot cache on a CPU: no column is read in vain, and a prefix that all rows share is read once for all.

How it works
1. `A`: queries attend to their row's own columns, as the slots hold them. In a decode step rows are taken `ROWS` at a time, each
   such block only as far as its own longest row: the columns of all rows up to the longest were 1.4 to 1.8 times as many as
   needed. In a prefill attention is causal, without a mask.
2. A prefix that all rows share (few-shot examples, virtual tokens) may lie apart, in a cache of one row. All rows' queries,
   and all query heads that share a key head, are then the rows of one matrix, which attends to the whole prefix: `P`.
3. A softmax over both is the mean of the two, weighted by their sums of exponentials: `P w + A (1 - w)`, `w = sigmoid(p - a)`,
   where `p` and `a` are the logarithms of those sums, which the kernel returns beside its result. This is exact but for the
   order of the sums. ("Hydragen", Juravsky et al. 2024, section 3; "cascade" attention in FlashInfer.)
4. It comes into the model by transformers' registry of attention functions, under a name of its own, which the config holds
   for the time of the run.
5. A model that attends past this function, or asks it for what it does not do, is found out in the first forward: `Refused`.
   The caller then goes without.

It replaces `scaled_dot_product_attention` over all columns of all rows, and a copy of the prefix in every slot. What it gives
up: other devices, whose kernels have other interfaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plr.lm.registered import Refused, attending, refuse_options, why_not_registered
from plr.lm.slots import SlotCache
from plr.lm.support import decoder_config

__all__ = ["SlotAttention", "why_not_slot_attention"]

ROWS = 8  # of a decode step that attend to the same number of columns; more where there are more threads to keep busy
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


def why_not_slot_attention(model: nn.Module) -> str | None:
    """Return the reason why `model`, which runs in slots, runs with attention of its own; None if nothing speaks against this."""
    if not hasattr(torch.ops.aten, _KERNEL):
        return "this torch has no attention kernel that returns sums of exponentials"
    return why_not_registered(model)


class SlotAttention:
    """Attention of a model over `cache`, and over `prefix`, a cache of one row that lies before column 0 of `cache`."""

    def __init__(self, cache: SlotCache, prefix: SlotCache | None = None) -> None:
        self.cache, self.prefix = cache, prefix
        self._kernel = getattr(torch.ops.aten, _KERNEL)
        self._attended: set[int] = set()
        self._blocks: list[tuple[slice, int]] = []  # of a decode step: rows, and how many columns they attend to
        self._mask: Tensor | None = None  # that of the coming forward

    @contextmanager
    def serving(self, model: nn.Module) -> Iterator[None]:
        """Let `model` attend through this object inside."""
        with attending(decoder_config(model), self._attend):
            yield

    def plan(self, mask: Tensor | None, columns: Sequence[int] = ()) -> None:
        """Prepare the next forward with `mask`; if it is a decode step, new tokens are written at `columns`, one a row."""
        rows = max(ROWS, torch.get_num_threads())
        starts = range(0, len(columns), rows)
        self._blocks = [(slice(i, i + rows), max(columns[i : i + rows]) + 1) for i in starts]
        self._mask = mask

    def check(self) -> None:
        """Check, after a forward, that every layer attended through this object.

        Raises:
            Refused: a layer has not attended through this object.
        """
        if len(self._attended) != len(self.cache.slot_layers):
            raise Refused("its attention does not go through transformers' registry")
        self._attended.clear()

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
        """Attend, with the arguments of transformers' interface; the result is `[rows, tokens, heads, head_dim]`.

        `query` is `[rows, heads, tokens, head_dim]`; `key` and `value` are those of the own columns,
        `[rows, kv_heads, columns, head_dim]`; `attention_mask` is additive.
        """
        layer, self.cache.latest = self.cache.latest, None
        if layer is None:
            raise Refused("its layers share keys and values")
        self._refuse(module, query, key, value, attention_mask, dropout, kwargs)
        shared = self.prefix.slot_layers[layer] if self.prefix else None
        if shared is not None and shared.keys.dtype != key.dtype:
            raise Refused(f"the prefix is stored as {shared.keys.dtype}, and it computes in {key.dtype}")
        self._attended.add(layer)
        rows, heads, tokens, size = query.shape
        groups = key.shape[1]  # a group: the query heads of one key head
        queries = query.reshape(rows, groups, -1, size)  # the group's heads and the tokens are its rows
        if self._blocks and attention_mask is not None:
            A, a = self._step(queries, key, value, attention_mask, scaling)
        else:
            causal = attention_mask is None
            A, a = self._kernel(query, key, value, is_causal=causal, attn_mask=attention_mask, scale=scaling)
        if shared is None:
            return A.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None
        flat = queries.transpose(0, 1).reshape(1, groups, -1, size)
        P, p = self._kernel(flat, shared.keys, shared.values, scale=scaling)
        # Both to [rows, groups, heads of a group, tokens, head_dim]
        P, p = (t.reshape(groups, rows, -1, tokens, t.numel() // p.numel()).transpose(0, 1) for t in (P, p))
        A, a = A.reshape(P.shape), a.reshape(p.shape)
        out = torch.lerp(A.to(p.dtype), P.to(p.dtype), torch.sigmoid(p - a)).to(query.dtype)
        return out.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None

    def _step(
        self, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
    ) -> tuple[Tensor, Tensor]:
        """Attend for one token a row: `[rows, groups, heads of a group, head_dim]`, and logarithms `[rows, groups, heads ...]`."""
        parts = [
            self._kernel(
                queries[rows], key[rows, :, :end], value[rows, :, :end], attn_mask=mask[rows, :, :, :end], scale=scaling
            )
            for rows, end in self._blocks
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([A for A, _ in parts]), torch.cat([a for _, a in parts])

    def _refuse(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        others: dict[str, object],
    ) -> None:
        """Raise `Refused` where a call wants something else than plain attention of a decoder to its own keys."""
        refuse_options(others)
        if dropout or not getattr(module, "is_causal", True):
            raise Refused("its attention drops weights or looks ahead")
        if query.shape[-1] != value.shape[-1] or not query.dtype == key.dtype == value.dtype:
            raise Refused("its queries, keys and values differ in size or type")
        if mask is None or self._mask is None:
            same = mask is self._mask
        else:
            same = mask.data_ptr() == self._mask.data_ptr() and mask.shape == self._mask.shape
        if not same:
            raise Refused("it makes a mask of its own")
