"""A key/value cache with one row ("slot") a running answer, each row with a length of its own.

How it works
1. A layer holds keys and values as `[slots, heads, columns, head_dim]`, allocated once. Row r's token at position p lies
   in column `p - origin`, with no padding inside a row. `origin` is 0, or the length of a prefix that all rows share and
   that lies elsewhere (`plr.lm.slot_attention`). (Head before column: attention on CPU over `[slots, columns, heads, head_dim]`
   took 1.1 to 4 times as long.)
2. Running rows are always rows `0 .. active-1`. What attention reads is a view `[:active, :longest]`: no copy.
3. A step writes one token a row, each in its own column (`point` writes). A prefill writes a block of rows and columns
   (`block` writes). Which of the two the next forward does is planned beforehand.
4. A finished row is dropped by moving the last running row into its place, one copy a layer and only of its length.
5. Attention over columns that a row has not written yet is cut off by the additive mask `[slots, columns]`, which
   changes by one element a row and step. Stale numbers behind it are finite (memory starts as zeros), and a finite
   number times the weight 0 is 0.

It replaces `DynamicCache`, which re-allocates all keys and values at every token and pads all rows to one length.
It gives up sliding windows shorter than the text, recurrent states, and kernels that take no mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["SlotCache"]


@dataclass
class _Plan:
    """Plan of the columns that the next forward writes and reads; shared by all layers."""

    slots: int
    columns: int
    origin: int = 0  # position of column 0
    rows: slice = field(default_factory=lambda: slice(0, 0))  # rows that take part
    start: int = 0  # block write: first column
    stop: int = 0  # attention reads columns [0, stop)
    point: bool = False  # one token a row at `places`, else a block of columns [start, stop)
    # Point write: row and column of each new token, both [active], by device.
    places: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def places_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        here = self.places.get(device)
        if here is None:  # a model spread over several devices
            row, column = next(iter(self.places.values()))
            here = self.places[device] = row.to(device), column.to(device)
        return here


class _SlotLayer(CacheLayerMixin):
    is_sliding = False
    supports_early_init = False
    keys: Tensor  # None until the first update, as in the base class
    values: Tensor

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(states: Tensor) -> Tensor:  # keys and values may differ in head_dim
            return states.new_zeros(self.plan.slots, states.shape[1], self.plan.columns, states.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values `[rows, heads, tokens, head_dim]`; return all that the rows may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        if plan.point:
            row, column = plan.places_on(key_states.device)
            self.keys[row, :, column] = key_states[:, :, 0]
            self.values[row, :, column] = value_states[:, :, 0]
        else:
            self.keys[plan.rows, :, plan.start : plan.stop] = key_states
            self.values[plan.rows, :, plan.start : plan.stop] = value_states
            if plan.start == 0:  # all there is: a fresh tensor reads faster than a view
                return key_states, value_states
        return self.keys[plan.rows, :, : plan.stop], self.values[plan.rows, :, : plan.stop]

    def move(self, source: int, target: int, length: int) -> None:
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def spread(self, other: _SlotLayer) -> None:
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        length = other.keys.shape[2]
        self.keys[:, :, :length] = other.keys
        self.values[:, :, :length] = other.values

    def get_seq_length(self) -> int:
        """Count the tokens before those of the coming forward, in its longest row."""
        return self.plan.origin + (self.plan.stop - 1 if self.plan.point else self.plan.start)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.plan.origin + self.plan.columns


class SlotCache(Cache):
    """The cache of `slots` running answers of at most `columns` tokens each, prompt included.

    `origin` tokens before column 0 lie elsewhere.
    """

    def __init__(self, layers: int, slots: int, columns: int, origin: int = 0) -> None:
        self.plan = _Plan(slots, columns, origin)
        self.slot_layers = [_SlotLayer(self.plan) for _ in range(layers)]
        self.latest: int | None = None  # the layer that was written last, for an attention function to know where it is
        super().__init__(layers=[*self.slot_layers])

    def update(  # the base class's, without its offloading: this runs once a layer and token
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.latest = layer_idx
        return self.slot_layers[layer_idx].update(key_states, value_states)

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the stored keys; None before the first forward."""
        first = self.slot_layers[0]
        return first.keys.dtype if first.is_initialized else None

    def plan_block(self, rows: slice, start: int, stop: int) -> None:
        """Let the next forward write columns `start .. stop-1` of `rows`, and attend to those before as well."""
        plan = self.plan
        plan.rows, plan.start, plan.stop, plan.point = rows, start, stop, False

    def plan_point(self, row: Tensor, column: Tensor, longest: int) -> None:
        """Let the next forward write one token a row and attend to the first `longest` columns.

        The rows are `row = 0 .. n-1`; each token goes to its `column` (both int64, `[n]`).
        """
        plan = self.plan
        plan.rows, plan.stop, plan.point = slice(0, row.shape[0]), longest, True
        plan.places = {row.device: (row, column)}

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` to row `target`."""
        for layer in self.slot_layers:
            if layer.is_initialized:
                layer.move(source, target, length)

    def spread(self, prefix: SlotCache) -> None:
        """Copy the one row of `prefix`, which all prompts share, to the first columns of all rows."""
        for layer, other in zip(self.slot_layers, prefix.slot_layers, strict=True):
            if other.is_initialized:
                layer.spread(other)
