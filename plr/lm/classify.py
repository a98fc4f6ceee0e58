"""Running a sequence classification model: what its head says of texts.

How it works.

1. A pair goes in as the tokenizer builds pairs where it has a separator token (BERT, RoBERTa, DeBERTa: segments and all);
   a decoder's tokenizer has none, and the two texts are joined by a newline. Training and evaluation share `encode_texts`.
2. Rows are sorted by length, batched and padded on the right, with an attention mask. An encoder reads its first token; a
   decoder is read at its last token that is not padding, which transformers finds by the padding id. So `pad_token_id` of the
   model must be the tokenizer's, and a text must not end in it.
3. Prompt and P-tuning put vectors before the text, and then transformers cannot see the padding ids: a decoder is
   read at its very last position. For these, rows of one batch must have one length (`needs_equal_lengths`).

A text that does not fit is an error; nothing is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plr.errors import DataError, ModelError
from plr.lm.loss import logits_probe
from plr.lm.support import evaluating, input_device, position_limit, prompt_learning, unwrap
from plr.lm.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Probe",
    "classify",
    "collate",
    "encode_texts",
    "has_head",
    "head_limit",
    "head_loss",
    "needs_equal_lengths",
    "probe",
]

Texts = tuple[str, str | None]
Encoded = dict[str, list[int]]


def has_head(model: nn.Module) -> bool:
    """Tell whether `model` (or the base inside its adapter) is a sequence classification model."""
    return type(unwrap(model)).__name__.endswith("ForSequenceClassification")


def needs_equal_lengths(model: nn.Module) -> bool:
    """Tell whether a batch must not be padded: virtual tokens before the text of a decoder."""
    config = getattr(model, "active_peft_config", None)
    by_embeddings = getattr(config, "peft_type", None) in (
        "PROMPT_TUNING",
        "P_TUNING",
        "MULTITASK_PROMPT_TUNING",
        "CPT",
    )
    return prompt_learning(model) > 0 and by_embeddings and hasattr(unwrap(model), "score")


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Texts],
    max_length: int | None = None,
    *,
    names: Sequence[str] | None = None,
) -> list[Encoded]:
    """Tokenize each text or pair: `input_ids`, and `token_type_ids` where the tokenizer makes them.

    Args:
        names: what messages call the rows, for example their ids.

    Raises:
        DataError: a row without a token, or of more than `max_length`.
    """
    if not texts:
        return []
    pairs = typed(tokenizer).sep_token_id is not None
    first = [a if b is None or pairs else f"{a}\n{b}" for a, b in texts]
    second = [b for _, b in texts] if pairs and all(b is not None for _, b in texts) else None
    if second is None and pairs and any(b is not None for _, b in texts):
        raise DataError("texts and pairs are mixed", expected="rows of one kind")
    encoded = typed(tokenizer)(first, second, truncation=False, verbose=False, return_attention_mask=False)
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoded]
    rows = [{key: list(encoded[key][i]) for key in keys} for i in range(len(texts))]
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        if not length or (max_length is not None and length > max_length):
            raise DataError(
                f"row {names[i] if names else i} has {length} tokens",
                expected=f"1 to {max_length}" if max_length is not None else "one at least",
                hint="raise the length where the model has more positions, or drop long rows with the task's max_prompt_chars",
            )
    return rows


def collate(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Collate `input_ids`, `attention_mask` and, as the rows have them, `token_type_ids`: int64 `[b, t]`, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": torch.full((len(rows), width), typed(tokenizer).pad_token_id)}
    others = ["attention_mask", *(key for key in rows[0] if key != "input_ids")]
    batch |= {key: torch.zeros(len(rows), width, dtype=torch.long) for key in others}
    for i, row in enumerate(rows):
        for key, values in row.items():
            batch[key][i, : len(values)] = torch.tensor(values)
        batch["attention_mask"][i, : len(row["input_ids"])] = 1
    return batch


def head_loss(logits: Tensor, labels: Tensor, regression: bool, reduction: str = "sum") -> Tensor:
    """Compute the cross entropy of `logits [b, labels]` at `labels int64 [b]`, or squared error of `logits [b, 1]`; in float32.

    `reduction` is `sum`, `mean` or `none`, over rows.
    """
    if regression:
        return F.mse_loss(logits.float().squeeze(-1), labels.to(logits.device).float(), reduction=reduction)
    return F.cross_entropy(logits.float(), labels.to(logits.device).long(), reduction=reduction)


def classify(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Texts],
    *,
    max_tokens_per_batch: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Compute the head's outputs `[rows, outputs]`, float32 on the CPU, in the order of `texts`.

    Raises:
        DataError: a text does not fit into the model's positions.
        ModelError: `model` has no head, or its outputs are not numbers.
    """
    base = unwrap(model)
    if not has_head(model):
        raise ModelError(
            f"{type(base).__name__} has no classification head", expected="a model for sequence classification"
        )
    rows = encode_texts(tokenizer, texts, head_limit(model))
    outputs: list[Tensor | None] = [None] * len(rows)
    device, done = input_device(model), 0
    with evaluating(model):
        for batch in _batches(
            [len(row["input_ids"]) for row in rows], max_tokens_per_batch, needs_equal_lengths(model)
        ):
            inputs = {key: value.to(device) for key, value in collate(tokenizer, [rows[i] for i in batch]).items()}
            logits = model(**inputs, return_dict=True).logits.float().cpu()
            for i, row in zip(batch, logits, strict=True):
                outputs[i] = row
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
    stacked = (
        torch.stack([row for row in outputs if row is not None]) if rows else torch.empty(0, cast(int, base.num_labels))
    )
    if not bool(stacked.isfinite().all()):
        row = int((~stacked.isfinite()).any(dim=1).nonzero()[0, 0])
        raise ModelError(
            f"the head says {stacked[row].tolist()} of row {row}",
            expected="finite numbers",
            hint="the base or the training has diverged: see its manifest",
        )
    return stacked


def head_limit(model: nn.Module) -> int | None:
    """Return the most tokens of a text: RoBERTa counts its positions from behind the padding id."""
    limit, base = position_limit(model), unwrap(model)
    for name, module in base.named_modules():
        padding: int | None = getattr(module, "padding_idx", None)
        if limit is not None and name.endswith("position_embeddings") and padding is not None:
            limit -= padding + 1
            break
    return None if limit is None else limit - prompt_learning(model)


@dataclass(frozen=True)
class Probe:
    """Outputs of a model for a few texts, float32 on the CPU."""

    outputs: Tensor
    """`[texts, n]`: the logits of the next token, or the head's outputs."""
    body: Tensor | None = None
    """`[texts, hidden]`: the body's last states, their mean over positions; of a model with a head alone."""

    def change(self, later: Probe) -> float:
        """Return the largest change of an output; 0 if nothing acts on the body.

        A trained head by itself changes every output: what acts below it must be seen below it.
        """
        if self.body is not None and later.body is not None and torch.equal(self.body, later.body):
            return 0.0
        return float((later.outputs - self.outputs).abs().max())


def probe(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | Sequence[Texts]) -> Probe:
    """Compute the outputs of `model` for `texts`, one by one, so that equal weights give equal bits.

    Two probes that differ prove that an adapter is active.
    """
    if not has_head(model):
        return Probe(logits_probe(model, tokenizer, [text if isinstance(text, str) else text[0] for text in texts]))
    base, states = unwrap(model), list[Tensor]()
    hook = base.base_model.register_forward_hook(lambda _, __, out: states.append(out[0][0].mean(0).float().cpu()))
    try:
        outputs = [classify(model, tokenizer, [(t, None) if isinstance(t, str) else t]) for t in texts]
    finally:
        hook.remove()
    return Probe(torch.cat(outputs), torch.stack(states))


def _batches(lengths: list[int], budget: int, equal: bool) -> Iterator[list[int]]:
    """Batch row numbers, longest first, of at most `budget` padded tokens (one row at least); `equal`: of one length."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > budget or (equal and lengths[i] != longest)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
