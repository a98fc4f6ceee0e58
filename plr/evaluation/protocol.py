"""What was asked of the model and how: enough to ask another one the very same.

Every result holds it, in its manifest and in ``results_*.json`` under ``protocol``. Nothing is ever cut off a prompt: one that does
not fit is an error (``prompts_cut`` is 0 by construction, and says so). ``answers_cut`` counts those that reached the limit of
tokens with neither EOS nor a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plr.core.fingerprint import text_sha256
from plr.core.specs import Evaluate
from plr.evaluation.fewshot import DELIMITER, Shots, stops_for
from plr.lm import Generation

__all__ = ["generation_settings", "protocol"]


def protocol(
    step: Evaluate,
    prompts: Sequence[str],
    shots: Shots | None = None,
    generations: Sequence[Generation | None] = (),
    *,
    head: bool = False,
    **engine: Any,
) -> dict[str, Any]:
    """The protocol of a run over ``prompts``, few-shot examples included; with a ``head``, over the texts that it judged.

    ``engine`` is what the engine says of itself.
    """
    shots = shots or Shots()
    made = [one for one in generations if one is not None]
    return {
        "prompts_sha256": text_sha256("\x00".join(prompts)),
        "first_prompt": prompts[0] if prompts else None,
        "fewshot": {
            "num_fewshot": len(shots.examples),
            "ids": shots.ids,
            "split": "train" if shots.examples else None,
            "sampler": ("first_n" if step.fewshot_seed is None else "drawn") if shots.examples else None,
            "seed": step.fewshot_seed,
            "delimiter": DELIMITER if shots.examples else None,
            "context_sha256": text_sha256(shots.context) if shots.examples else None,
        },
        "chat_template": None,
        "generation": generation_settings(step) if step.generate and not head else None,
        "engine": {"name": step.engine, **engine},
        "prompts_cut": 0,
        "prompt_tokens": sum(one.prompt_tokens for one in made) if made else None,
        "answer_tokens": sum(one.raw_tokens for one in made) if made else None,
        "answers_cut": sum(not one.ended and one.stopped is None for one in made) if made else None,
        "answers_stopped": sum(one.stopped is not None for one in made) if made else None,
    }


def generation_settings(step: Evaluate) -> dict[str, Any]:
    """As lm-eval spells them."""
    return {"until": list(stops_for(step)), "do_sample": False, "max_gen_toks": step.max_new_tokens}
