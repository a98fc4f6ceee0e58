"""Losses of given texts: of an answer after its prompt, and of running text.

Rows are padded on the right, so that causal attention needs no mask and positions no correction: whatever stands to the
right of a token does not change it. The output layer, whose logits are the largest tensor of all, runs
only over the last columns that hold targets. What all rows begin with (few-shot examples) is computed once, where the model's
cache can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from plr.errors import DataError
from plr.lm.prepacked import prepacked
from plr.lm.support import (
    accepts,
    decoder_config,
    evaluating,
    input_device,
    position_limit,
    prompt_learning,
    why_not_slots,
)
from plr.lm.tokens import check_some, encode_pair, encode_prompt, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnswerLoss", "answer_loss", "logits_probe", "perplexity"]

_SHARE_FROM = 32  # tokens; a shorter prefix is not worth a cache
_MAX_LOGITS = 2**27  # elements of one logits tensor, 0.5 GiB in float32


@dataclass(frozen=True)
class AnswerLoss:
    nll: float
    """Negative log likelihood of the target and EOS, summed, in nats."""
    tokens: int
    """Tokens of the target, EOS included."""
    exact: bool
    """True if each of them is the likeliest at its place: greedy decoding would write these tokens, and end."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens


def answer_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_tokens_per_batch: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
    names: Sequence[str] | None = None,
) -> list[AnswerLoss]:
    """Compute the teacher-forced loss of each `(prompt, target)`, in order; log-softmax in float32.

    `names` is what messages call the rows, instead of numbers from 0.

    Raises:
        DataError: a prompt has no token, or a pair does not fit into the model's positions.
    """
    rows = []
    for name, (prompt, target) in zip(names or range(len(pairs)), pairs, strict=True):
        prompt_ids, target_ids = encode_pair(tokenizer, prompt, target)
        check_some(prompt_ids, name)
        rows.append((prompt_ids + target_ids, len(target_ids)))
    read = _losses(model, rows, max_tokens_per_batch, on_progress, names)
    return [AnswerLoss(nll, tokens, exact) for (nll, exact), (_, tokens) in zip(read, rows, strict=True)]


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = 512,
    max_tokens_per_batch: int = 4096,
) -> tuple[float, int]:
    """Compute `(perplexity, tokens scored)` of `texts`, cut into windows of `max_length` tokens that do not overlap.

    The first token of a window is context only. A text's windows begin anew; nothing of it is dropped.

    Raises:
        DataError: no text has two tokens.
    """
    rows = []
    for text in texts:
        ids = encode_prompt(tokenizer, text)
        rows += [(window, len(window) - 1) for window in windows(tokenizer, ids, max_length) if len(window) > 1]
    tokens = sum(count for _, count in rows)
    if not tokens:
        raise DataError(
            f"no token to score in {len(texts)} texts",
            expected="at least one text of two tokens or more",
            hint="give perplexity some running text",
        )
    return math.exp(sum(nll for nll, _ in _losses(model, rows, max_tokens_per_batch, None)) / tokens), tokens


def logits_probe(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Compute the logits that follow each of a few texts, `[texts, vocabulary]`, float32 on the CPU.

    Two probes that differ prove that an adapter is active. Texts run one by one, so equal weights give equal bits.
    """
    last_only = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    with evaluating(model):
        rows = []
        for text in texts:
            ids = torch.tensor([encode_prompt(tokenizer, text)], device=input_device(model))
            logits = model(input_ids=ids, use_cache=False, return_dict=True, **last_only).logits
            rows.append(logits[0, -1].float().cpu())
    return torch.stack(rows)


def _losses(
    model: nn.Module,
    rows: Sequence[tuple[list[int], int]],
    budget: int,
    on_progress: Callable[[int, int], None] | None,
    names: Sequence[str] | None = None,
) -> list[tuple[float, bool]]:
    """Compute for each `(ids, count)` the summed nats of the last `count` ids, each predicted from all before it.

    Beside it stands whether each of them is the likeliest there; of equals the first counts, as greedy decoding takes it.
    """
    limit, virtual = position_limit(model), prompt_learning(model)
    for i, (ids, _) in enumerate(rows):
        if limit is not None and virtual + len(ids) - 1 > limit:
            raise DataError(
                f"row {names[i] if names else i} has {len(ids)} tokens, target included",
                expected=f"at most {limit + 1 - virtual}, as the model has {limit} positions",
                hint="shorten the row; nothing is truncated",
            )
    read, done = [(0.0, False)] * len(rows), 0
    keeps = accepts(model, "logits_to_keep")
    device = input_device(model)
    shared = _shared(model, rows)
    with evaluating(model), prepacked(model):
        prefix = _prefix(model, rows[0][0][:shared], keeps) if shared else None
        rows = [(ids[shared:], count) for ids, count in rows]
        for batch in _batches(rows, budget, decoder_config(model).vocab_size, shared):
            width = max(len(rows[i][0]) for i in batch) - 1  # the last id predicts nothing
            columns = max(width - (len(rows[i][0]) - 1 - rows[i][1]) for i in batch)
            inputs = torch.zeros(len(batch), width, dtype=torch.long)
            targets = torch.full((len(batch), columns), -100)
            for row, i in enumerate(batch):
                ids, count = rows[i]
                inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
                end = len(ids) - 1 - (width - columns)  # the column after this row's last target
                targets[row, end - count : end] = torch.tensor(ids[len(ids) - count :])
            logits = model(
                input_ids=inputs.to(device),
                **({"use_cache": False} if prefix is None else _behind(prefix, len(batch), shared, width, device)),
                return_dict=True,
                **({"logits_to_keep": columns} if keeps else {}),
            ).logits[:, -columns:]
            targets = targets.to(logits.device)
            scored = targets >= 0
            kept = logits[scored].float()
            losses = F.cross_entropy(kept, targets[scored], reduction="none")
            sums = torch.zeros(targets.shape, device=logits.device).masked_scatter_(scored, losses).double().sum(1)
            missed = torch.zeros_like(scored).masked_scatter_(scored, kept.argmax(-1) != targets[scored]).any(1)
            for i, value, wrong in zip(batch, sums.tolist(), missed.tolist(), strict=True):
                read[i] = (value, not wrong)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
    return read


def _shared(model: nn.Module, rows: Sequence[tuple[list[int], int]]) -> int:
    """Count the first tokens of all rows to compute once; 0 where it is not worth it, or no cache of the model can hold them."""
    if len(rows) < 2 or prompt_learning(model):
        return 0
    low, high = min(ids for ids, _ in rows), max(ids for ids, _ in rows)
    most = (
        min(len(ids) - count for ids, count in rows) - 1
    )  # the token that predicts the first target stays with its row
    common = next((i for i in range(most) if low[i] != high[i]), max(most, 0))
    if common < _SHARE_FROM or why_not_slots(model, max(len(ids) for ids, _ in rows)) is not None:
        return 0
    return common


def _prefix(model: nn.Module, ids: list[int], keeps: bool) -> list[tuple[Tensor, Tensor]]:
    """Compute keys and values `[1, heads, tokens, head_dim]` of every layer."""
    cache = DynamicCache(config=decoder_config(model))
    tokens = torch.tensor([ids], device=input_device(model))
    options = {"logits_to_keep": 1} if keeps else {}
    model(input_ids=tokens, past_key_values=cache, use_cache=True, return_dict=True, **options)
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[attr-defined]


def _behind(
    prefix: list[tuple[Tensor, Tensor]], batch: int, shared: int, width: int, device: torch.device
) -> dict[str, object]:
    """Make the arguments of a forward over `batch` rows of `width` tokens that follow the prefix."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
    positions = torch.arange(shared, shared + width, device=device).expand(batch, -1)
    return {"past_key_values": cache, "use_cache": True, "position_ids": positions}


def _batches(
    rows: Sequence[tuple[list[int], int]], budget: int, vocabulary: int, shared: int = 0
) -> Iterator[list[int]]:
    """Batch row numbers by like length, longest first: at most `budget` padded tokens (one row at least).

    Behind a prefix of `shared` tokens the cache holds at most `4 * budget`.
    """
    batch: list[int] = []
    width = first = 0
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), rows[i][1])):
        start = len(rows[i][0]) - 1 - rows[i][1]
        count = len(batch) + 1
        columns = max(width, len(rows[i][0]) - 1) - min(first, start) if batch else rows[i][1]
        full = count * width > budget or count * (shared + width) > 4 * budget
        if batch and (full or count * columns * vocabulary > _MAX_LOGITS):
            yield batch
            batch = []
        if not batch:
            width, first = len(rows[i][0]) - 1, start
        first = min(first, start)
        batch.append(i)
    if batch:
        yield batch
