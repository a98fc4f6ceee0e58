"""`generate`: greedy answers to many prompts, by slots where the model allows it, else by padded batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from plr.errors import ResourceError, UsageError
from plr.lm.batched import run_batched
from plr.lm.engine import Row, SlotEngine
from plr.lm.prepacked import prepacked
from plr.lm.probe import Differs, probe_of, verdict_of
from plr.lm.registered import Refused
from plr.lm.slot_attention import why_not_slot_attention
from plr.lm.stops import StopStrings
from plr.lm.support import evaluating, position_limit, prompt_learning, why_not_slots
from plr.lm.tokens import check_room, decode, encode_prompt, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Generation", "generate"]

log = logging.getLogger(__name__)

_UNFIT = (TypeError, ValueError, LookupError, AttributeError, RuntimeError)
"""Errors of a model that does not take the masks, positions or caches of slots."""
_PACK_FROM = 256  # answers x tokens; fewer do not pay for laying the weights out


@dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    """Up to, and without, EOS or the stop string."""
    raw_tokens: int
    """Tokens generated, EOS and the tokens of the stop string included."""
    ended: bool
    """EOS came within `max_new_tokens`."""
    stopped: str | None
    """The stop string that cut the answer."""
    prompt_tokens: int
    """Tokens of the prompt, BOS included, virtual tokens of an adapter not."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The tokens generated, EOS and those of the stop string included."""


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    slots: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
    names: Sequence[str] | None = None,
) -> list[Generation]:
    """Generate greedy answers to `prompts`, in their order: the text `model.generate(do_sample=False)` writes for each alone.

    `model` is a transformers causal language model, plain or wrapped by PEFT, on any device, in any mode (restored
    afterwards). Of its `generation_config` only the EOS ids are read: no penalty, no sampling, no forced token.
    At most `slots` prompts run at once; on CUDA, when memory runs out, half as many, and so on (logged as a warning).
    `on_progress(done, total)` is called as answers finish. `names` is what messages call the prompts, instead of numbers from 0.

    On a CPU the model attends as `plr.lm.slot_attention` says, and multiplies weights laid out beforehand
    (`plr.lm.prepacked`), where it can: faster, and equal but for the order of floating-point sums.

    Models that a slot cache cannot express (windows shorter than the text, recurrent layers, ALiBi, flash attention)
    run in left-padded batches of `slots` through transformers' own generation; `plr.lm.support.why_not_slots` says
    which and why, and the reason is logged. So do models whose first answers in slots are not those they give alone
    (`plr.lm.probe`), and one by one those that batches change; both is logged as a warning.

    Raises:
        DataError: a prompt has no token, or no room for `max_new_tokens` within the model's positions.
        UsageError: `max_new_tokens` or `slots` below 1, `max_new_tokens` beyond the model's positions, an empty stop string.
        ModelError: logits are NaN.
        ResourceError: a single prompt does not fit into the accelerator's memory.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("slots", slots)):
        if value < 1:
            raise UsageError(f"{name} is {value}", expected="1 or more", hint=f"set {name} to a positive number")
    stops, ends = StopStrings(tokenizer, stop), end_tokens(model, tokenizer)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_room(encoded, position_limit(model), max_new_tokens, virtual=prompt_learning(model), names=names)
    results: list[Generation | None] = [None] * len(encoded)
    finished = 0

    def done(row: Row) -> None:
        nonlocal finished
        if probe is not None:
            probe.check(row.index, row.out)
        results[row.index] = _result(tokenizer, row, ends, stops)
        finished += 1
        if on_progress is not None:
            on_progress(finished, len(encoded))

    longest = prompt_learning(model) + max(map(len, encoded), default=0) + max_new_tokens
    reason = why_not_slots(model, longest)
    verdict = verdict_of(model)
    probe = probe_of(model, encoded, verdict, slots=reason is None)
    if verdict.slots_differ:
        reason = reason or "its answers in slots are not those it gives alone"
    slots = 1 if verdict.batches_differ else slots
    if reason is not None:
        log.info("generating in padded batches, since the model does not run in slots: %s", reason)
    plain = why_not_slot_attention(model)
    if reason is None and plain is not None:
        log.debug("generating with the model's own attention: %s", plain)
    much = len(encoded) * max_new_tokens >= _PACK_FROM
    with evaluating(model), prepacked(model) if much else nullcontext():
        while todo := [Row(i, ids) for i, ids in enumerate(encoded) if results[i] is None]:
            try:
                if reason is None:
                    arguments = {"ends": ends, "stops": stops, "max_new_tokens": max_new_tokens, "slots": slots}
                    SlotEngine(model, todo, **arguments, own_attention=plain is None, probe=probe).run(done)
                else:
                    run_batched(
                        model, tokenizer, todo, done, ends=ends, stops=stops, max_new_tokens=max_new_tokens, batch=slots
                    )
            except Refused as error:
                plain = str(error)
                log.info("generating with the model's own attention, which is slower: %s", plain)
            except torch.OutOfMemoryError as error:
                if slots == 1:
                    raise ResourceError(
                        f"out of memory with a single prompt of up to {longest} tokens, answer included",
                        expected="a model, and the keys and values of one text, that fit into the accelerator's memory",
                        hint="choose fewer bits, a smaller model or a smaller max_new_tokens",
                    ) from error
                slots = min(slots, len(todo)) // 2 or 1
                log.warning("out of memory: %d of %d answers to go, %d at once", len(todo), len(encoded), slots)
            except (Differs, *_UNFIT) as error:
                results[:], finished = [None] * len(encoded), 0
                if reason is None:
                    reason, verdict.slots_differ = str(error), True
                    log.warning(
                        "generating in padded batches: plr's own engine does not give the model's answers (%s)", error
                    )
                elif isinstance(error, Differs):
                    slots, probe, verdict.batches_differ = 1, None, True
                    log.warning("generating one answer at a time: batches do not give the model's answers (%s)", error)
                else:
                    raise
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
    return [result for result in results if result is not None]


def _result(tokenizer: PreTrainedTokenizerBase, row: Row, ends: frozenset[int], stops: StopStrings) -> Generation:
    ended = bool(row.out) and row.out[-1] in ends
    text = decode(tokenizer, row.out[:-1] if ended else row.out)
    stopped = None
    if hit := stops.find(text):
        text, stopped = hit
    return Generation(text, len(row.out), ended, stopped, len(row.ids), tuple(row.out))
