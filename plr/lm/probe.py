"""A probe of generation: a few prompts, answered by the model one by one, against what the fast ways of `generate` give.

`plr.lm.engine` and padded batches rely on how a model uses masks, positions and caches. Which models do so as they should is
read off their structure (`plr.lm.support.why_not_slots`); the probe sees the rest, on the very prompts that are asked:

1. The shortest prompt, the longest and the one between are run by the model alone, `STEPS` tokens each.
2. The logits that the engine computes for these rows are compared with those, as far as the tokens before are the same; of
   padded batches, which show no logits, the tokens.
3. A difference beyond rounding raises `Differs`, and the caller takes a slower way.

A base is probed once for prompts of a length; adapters on it share the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from plr.errors import ModelError
from plr.lm.support import evaluating, input_device, prompt_learning, unwrap

__all__ = ["Differs", "Probe", "Verdict", "probe_of", "verdict_of"]

STEPS = 3
"""Tokens of each answer that are compared."""
TOLERANCE = {torch.float32: 0.02, torch.float64: 0.02}
"""Largest difference of a logit that is rounding, as a share of their standard deviation; in half precision `HALF`."""
HALF = 0.3


class Differs(Exception):
    """The fast way gives other logits, or tokens, than the model alone."""


class Probe:
    """The first tokens of a few answers as the model alone gives them."""

    def __init__(self, model: nn.Module, encoded: Sequence[Sequence[int]], *, cached: bool) -> None:
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        self.longest = len(encoded[order[-1]])
        self.expected: dict[int, list[Tensor]] = {}
        with evaluating(model):
            for index in {order[0], order[len(order) // 2], order[-1]}:
                self.expected[index] = _alone(model, encoded[index], cached=cached)
                if not all(logits.isfinite().all() for logits in self.expected[index]):
                    raise ModelError(
                        f"the model's logits are not numbers (NaN) for prompt {index}",
                        expected="finite logits",
                        hint="run in float32, or check the base: plr eval the unadapted base first",
                    )

    def see(self, rows: Sequence[tuple[int, list[int]]], logits: Tensor) -> None:
        """Compare the next logits [rows, vocabulary] of `rows`, each its index and the tokens so far.

        Raises:
            Differs: beyond rounding.
        """
        for place, (index, out) in enumerate(rows):
            expected = self.expected.get(index, [])
            if len(out) >= len(expected) or not _follows(out, expected):
                continue
            found, wanted = logits[place], expected[len(out)]
            share = float((found.float().cpu() - wanted).abs().max() / wanted.std().clamp_min(1e-9))
            if not share <= TOLERANCE.get(logits.dtype, HALF):
                raise Differs(f"logits of prompt {index} differ by {share:.2g} of their standard deviation")

    def check(self, index: int, out: list[int]) -> None:
        """Compare the tokens `out` of an answer; one that the model nearly chose is as good.

        Raises:
            Differs: a token that the model does not choose.
        """
        for step, wanted in enumerate(self.expected.get(index, [])[: len(out)]):
            token = out[step]
            if token == int(wanted.argmax()):
                continue
            if float((wanted.max() - wanted[token]) / wanted.std().clamp_min(1e-9)) > HALF:
                raise Differs(f"token {step} of the answer to prompt {index} is another")
            return


def _follows(out: list[int], expected: list[Tensor]) -> bool:
    return all(token == int(logits.argmax()) for token, logits in zip(out, expected, strict=False))


def _alone(model: nn.Module, ids: Sequence[int], *, cached: bool) -> list[Tensor]:
    """Compute the logits of the first `STEPS` tokens behind one prompt, by the model's own forward."""
    run: Any = model
    text = torch.tensor([list(ids)], device=input_device(model))
    fed, past, found = text, {}, list[Tensor]()
    for _ in range(STEPS):
        out = run(input_ids=fed, attention_mask=torch.ones_like(text), use_cache=cached, **past)
        logits = out.logits[0, -1].float().cpu()
        found.append(logits)
        token = torch.tensor([[int(logits.argmax())]], device=text.device)
        text = torch.cat([text, token], 1)
        fed, past = (token, {"past_key_values": out.past_key_values}) if cached else (text, {})
    return found


@dataclass
class Verdict:
    """The verdict on a base: up to which length of prompts it was probed, and which ways it failed in."""

    longest: int = 0
    slots_differ: bool = False
    batches_differ: bool = False


_verdicts: WeakKeyDictionary[nn.Module, dict[bool, Verdict]] = WeakKeyDictionary()


def verdict_of(model: nn.Module) -> Verdict:
    """Return the verdict on the base of `model`, with virtual tokens before its prompts or without."""
    return _verdicts.setdefault(unwrap(model), {}).setdefault(bool(prompt_learning(model)), Verdict())


def probe_of(model: nn.Module, encoded: Sequence[Sequence[int]], verdict: Verdict, *, slots: bool) -> Probe | None:
    """Run some of the prompts `encoded` by the model alone; None where its base was probed with prompts about as long."""
    if verdict.batches_differ or not encoded or max(map(len, encoded)) <= 1.5 * verdict.longest:
        return None
    probe = Probe(model, encoded, cached=slots and not prompt_learning(model))
    verdict.longest = probe.longest
    return probe
