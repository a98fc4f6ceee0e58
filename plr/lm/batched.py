"""Generation for models that slots cannot express: left-padded batches through transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from plr.lm.engine import Row
from plr.lm.stops import StopStrings
from plr.lm.support import input_device, unwrap
from plr.lm.typed import Generating, typed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["run_batched"]


@contextmanager
def _plain_greedy(base: PreTrainedModel, ends: frozenset[int], pad: int) -> Iterator[None]:
    """Leave out the penalties, forced and suppressed tokens that a checkpoint's generation_config may hold."""
    own = base.generation_config
    base.generation_config = GenerationConfig(do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=pad)
    try:
        yield
    finally:
        base.generation_config = own


class _CutRows(StoppingCriteria):
    """Says for each row whether its new text, after the first `start` columns, holds a stop string."""

    def __init__(self, stops: StopStrings, start: int, rows: int) -> None:
        self.stops, self.start, self.done = stops, start, [False] * rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        for i, ids in enumerate(input_ids[:, self.start :].tolist()):
            self.done[i] = self.done[i] or self.stops.cut(ids)
        return torch.tensor(self.done, device=input_ids.device)


def run_batched(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    done: Callable[[Row], None],
    *,
    ends: frozenset[int],
    stops: StopStrings,
    max_new_tokens: int,
    batch: int,
) -> None:
    """Run `rows`, longest first, `batch` at a time; `done(row)` after each batch, rows' `out` up to EOS or stop."""
    device = input_device(model)
    pad = typed(tokenizer).pad_token_id
    pad = min(ends, default=0) if pad is None else pad
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    for at in range(0, len(ordered), batch):
        group = ordered[at : at + batch]
        width = len(group[0].ids)
        ids = torch.tensor([[pad] * (width - len(r.ids)) + r.ids for r in group], device=device)
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in group], device=device)
        criteria = StoppingCriteriaList([_CutRows(stops, width, len(group))] if stops.strings else [])
        with _plain_greedy(unwrap(model), ends, pad):
            output = cast(Generating, model).generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, stopping_criteria=criteria
            )
        for row, new in zip(group, output[:, width:].tolist(), strict=True):
            row.out = _until_end(new, ends, stops)
            done(row)


def _until_end(new: list[int], ends: frozenset[int], stops: StopStrings) -> list[int]:
    """Cut generated tokens: without the padding that follows EOS or a stop string."""
    out: list[int] = []
    for token in new:
        out.append(token)
        if token in ends or (stops.strings and stops.cut(out)):
            break
    return out
