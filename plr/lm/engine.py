"""Greedy generation with continuous refill over a slot cache.

1. Prompts are sorted by length. What they all share at the start (few-shot examples, virtual tokens of a
   prompt-learning adapter) is computed once. On a CPU it stays apart, and attention reads it once for all rows
   (`plr.lm.slot_attention`); elsewhere, and where it is short, it is copied to every slot.
2. A prompt enters a free slot by a prefill of all its tokens but the last, in groups of similar length, padded on the
   right: causal attention needs no mask for that, and no logits are read.
3. Its last token is fed by the next decode step, together with all other running rows. So there is one place
   where tokens are chosen, and one logit vector a row is computed, ever.
4. A step feeds one token a row, takes the argmax, and drops the rows that are done. When an eighth of the slots is free
   (or all), the next prompts enter.

Padding and batching change no row's arithmetic beyond the order of floating-point sums: a row's text is what
`model.generate(do_sample=False)` writes for it alone, up to exact ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from plr.errors import ModelError
from plr.lm.probe import Probe
from plr.lm.slot_attention import SlotAttention
from plr.lm.slots import SlotCache
from plr.lm.stops import StopStrings
from plr.lm.support import accepts, decoder_config, input_device, prompt_learning, unwrap
from plr.lm.typed import Prompted

__all__ = ["Row", "SlotEngine"]

_SHARE_FROM = 32  # a shared prefix shorter than this is not worth a masked prefill
_APART_FROM = 32  # nor is one shorter than this worth a second product in attention


@dataclass(eq=False, slots=True)
class Row:
    """One prompt on its way: `index` in the caller's order, prompt `ids`, generated `out` (EOS included)."""

    index: int
    ids: list[int]
    out: list[int] = field(default_factory=list)


class SlotEngine:
    """Runs `rows` to their ends; `done(row)` is called as each finishes.

    `rows` keep what they have generated only when they finish: after an exception the unfinished ones start again.
    With `own_attention` the model attends as `plr.lm.slot_attention` says: `run` raises `Refused` where it cannot. A `probe`
    sees every row's logits: `run` raises `Differs` where they are not the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        *,
        ends: frozenset[int],
        stops: StopStrings,
        max_new_tokens: int,
        slots: int,
        own_attention: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self.model, self.ends, self.stops, self.max_new_tokens = model, ends, stops, max_new_tokens
        self.probe = probe
        self.virtual = prompt_learning(model)
        # A prompt-learning wrapper would put its virtual tokens before every forward: here they are in the cache.
        self.network = unwrap(model) if self.virtual else model
        self.last_only = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
        self.pending = sorted(rows, key=lambda row: len(row.ids))  # taken from the end: longest first
        self.running: list[Row] = []
        self.columns: list[int] = []  # of each running row: where its next token is written

        self.device = input_device(model)
        self.prefill_tokens = 512 if self.device.type == "cpu" else 8192  # padded tokens of one prefill
        self.slots = min(slots, len(rows))
        self.token = torch.zeros(self.slots, dtype=torch.long, device=self.device)  # to be fed next, a row
        self.position = torch.zeros_like(self.token)  # of that token
        self.number = torch.arange(self.slots, device=self.device)  # of the row
        self.shared = self.virtual + self._share()
        self.layers = decoder_config(model).num_hidden_layers
        self.prefix = SlotCache(self.layers, 1, self.shared)
        apart = own_attention and self.shared >= _APART_FROM
        self.origin = self.shared if apart else 0  # position of the slots' column 0
        longest = self.virtual + len(self.pending[-1].ids) + max_new_tokens - self.origin
        width = -(-longest // 8) * 8  # aligned, as masked CUDA kernels want it
        self.cache = SlotCache(self.layers, self.slots, width, self.origin)
        self.attention = SlotAttention(self.cache, self.prefix if self.origin else None) if own_attention else None
        self.mask: Tensor | None = None  # [slots, width], additive; made when the cache's dtype is known

    def run(self, done: Callable[[Row], None]) -> None:
        self._fill_prefix()
        if self.shared and not self.origin:
            self.cache.spread(self.prefix)
        refill = max(1, self.slots // 8)
        with self.attention.serving(self.model) if self.attention else nullcontext():
            while self.pending or self.running:
                free = self.slots - len(self.running)
                if self.pending and (free >= refill or not self.running):
                    self._admit(free)
                for i in self._step():
                    done(self.running[i])
                    self._drop(i)

    # -- prompts enter --

    def _share(self) -> int:
        """Count the first tokens of all prompts that are computed once: the common ones, never a prompt's last."""
        if len(self.pending) < 2:
            return 0
        low, high = min(r.ids for r in self.pending), max(r.ids for r in self.pending)
        most = len(self.pending[0].ids) - 1
        common = next((i for i in range(most) if low[i] != high[i]), most)
        mean = sum(len(r.ids) for r in self.pending) / len(self.pending)
        worth = self.virtual or (common >= _SHARE_FROM and common >= mean / 4)
        return common if worth else 0

    def _fill_prefix(self) -> None:
        """Compute keys and values of the shared tokens, in a cache of one row."""
        if self.virtual:
            prompt = cast(Prompted, self.model).get_prompt(1)
            if isinstance(prompt, DynamicCache):  # prefix tuning: keys and values themselves
                self.prefix.plan_block(slice(0, 1), 0, self.virtual)
                for i, (keys, values, *_) in enumerate(cast("Any", prompt)):
                    self.prefix.update(keys, values, i)
            else:  # prompt and P-tuning: embeddings [1, virtual, hidden]
                embeddings = prompt.to(cast(nn.Embedding, unwrap(self.model).get_input_embeddings()).weight.dtype)
                self._forward(self.prefix, slice(0, 1), 0, self.virtual, inputs_embeds=embeddings)
        if self.shared > self.virtual:
            ids = self.pending[0].ids[: self.shared - self.virtual]
            self._prefill(self.prefix, slice(0, 1), self.virtual, [ids])

    def _admit(self, free: int) -> None:
        """Fill free slots with the longest pending prompts."""
        while free and self.pending:
            width = self.virtual + len(self.pending[-1].ids) - 1 - self.shared
            count = min(free, len(self.pending), max(1, self.prefill_tokens // max(1, width)))
            group = [self.pending.pop() for _ in range(count)]
            start, stop = len(self.running), len(self.running) + count
            known = self.shared - self.virtual
            if width:
                texts = [row.ids[known:-1] for row in group]
                self._prefill(self.cache, slice(start, stop), self.shared - self.origin, texts)
            positions = [self.virtual + len(row.ids) - 1 for row in group]
            self.running += group
            self.columns += [position - self.origin for position in positions]
            self.token[start:stop] = torch.tensor([row.ids[-1] for row in group], device=self.device)
            self.position[start:stop] = torch.tensor(positions, device=self.device)
            mask = self._mask()
            seen = torch.arange(mask.shape[1], device=self.device) < self.position[start:stop, None] - self.origin
            mask[start:stop] = torch.where(seen, 0.0, torch.finfo(mask.dtype).min)
            free -= count

    def _prefill(self, cache: SlotCache, rows: slice, start: int, texts: list[list[int]]) -> None:
        """Compute keys and values of `texts`, padded on the right, into columns `start ...` of `rows`."""
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=self.device)
        self._forward(cache, rows, start, start + width, input_ids=ids)

    def _forward(self, cache: SlotCache, rows: slice, start: int, stop: int, **inputs: Tensor) -> None:
        cache.plan_block(rows, start, stop)
        mask = None  # from column 0 on, attention is plainly causal
        if start:
            dtype = self._dtype()
            hidden = torch.full((stop - start, stop), torch.finfo(dtype).min, dtype=dtype)
            mask = hidden.triu_(start + 1)[None, None].to(self.device)
        served = self.attention if cache is self.cache else None
        if served:
            served.plan(mask)
        origin = cache.plan.origin
        positions = torch.arange(origin + start, origin + stop, device=self.device).expand(rows.stop - rows.start, -1)
        self.network(
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **self.last_only,
            **inputs,
        )
        if served:
            served.check()

    def _dtype(self) -> torch.dtype:
        """Return the dtype of attention: of the keys, and before there are any, of the embeddings."""
        return (
            self.cache.dtype
            or self.prefix.dtype
            or cast(nn.Embedding, unwrap(self.model).get_input_embeddings()).weight.dtype
        )

    def _mask(self) -> Tensor:
        if self.mask is None:
            dtype = self._dtype()
            shape = (self.slots, self.cache.plan.columns)
            self.mask = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=self.device)
        return self.mask

    # -- rows run --

    def _step(self) -> list[int]:
        """Generate one token more in every running row; returns the rows that are done, last first."""
        active, longest = len(self.running), max(self.columns) + 1
        position, mask = self.position[:active], self._mask()
        column = position - self.origin
        mask[:active].scatter_(1, column[:, None], 0.0)
        self.cache.plan_point(self.number[:active], column, longest)
        seen = mask[:active, None, None, :longest]
        if self.attention:
            self.attention.plan(seen, self.columns)
        logits = self.network(
            input_ids=self.token[:active, None],
            attention_mask=seen,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **self.last_only,
        ).logits[:, -1]
        if self.attention:
            self.attention.check()
        if self.probe:
            self.probe.see([(row.index, row.out) for row in self.running], logits)
        best, token = logits.max(-1)
        self.token[:active] = token
        position += 1
        finished = []
        for i, (row, new) in enumerate(zip(self.running, torch.where(best.isnan(), -1, token).tolist(), strict=True)):
            if new < 0:
                raise ModelError(
                    f"the model's logits are not numbers (NaN) for prompt {row.index}, token {len(row.out)}",
                    expected="finite logits",
                    hint="run in float32, or check the base: plr eval the unadapted base first",
                )
            row.out.append(new)
            self.columns[i] += 1
            full = len(row.out) >= self.max_new_tokens
            if full or new in self.ends or (self.stops.strings and self.stops.cut(row.out)):
                finished.append(i)
        return finished[::-1]

    def _drop(self, i: int) -> None:
        """Take row `i` out; the last running row moves into its place."""
        last = len(self.running) - 1
        if i != last:
            self.cache.move(last, i, self.columns[last])
            for tensor in (self.token, self.position, self._mask()):
                tensor[i] = tensor[last]
            self.running[i], self.columns[i] = self.running[last], self.columns[last]
        self.running.pop()
        self.columns.pop()
