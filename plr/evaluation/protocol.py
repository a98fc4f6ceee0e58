"""The evaluation protocol of a run: prompts, few-shot examples and decoding, enough to repeat it with another model.

Every result holds it, in its manifest and in `results_*.json` under `protocol`. No prompt is ever truncated: one that does
not fit is an error, so `prompts_cut` is always 0. `answers_cut` counts answers that reached the token limit with neither EOS nor
a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from plr.core.fingerprint import text_sha256
from plr.core.specs import Evaluate
from plr.evaluation.cell import OpenCell
from plr.evaluation.fewshot import DELIMITER, Shots
from plr.lm import Generation

__all__ = ["EngineFacts", "GenerationSettings", "ProtocolRecord", "generation_settings", "protocol_record"]


class EngineFacts(TypedDict):
    """The facts an engine reports of itself."""

    dtype: str
    version: NotRequired[str]


class EngineRecord(EngineFacts):
    """The engine of a run."""

    name: str


class GenerationSettings(TypedDict):
    """The decoding settings of answers, in lm-eval's spelling."""

    until: list[str]
    do_sample: bool
    max_gen_toks: int


class ShotsRecord(TypedDict):
    """The few-shot examples of a run."""

    num_fewshot: int
    ids: list[str]
    split: str | None
    sampler: str | None
    seed: int | None
    delimiter: str | None
    context_sha256: str | None


class ProtocolRecord(TypedDict):
    """The protocol of a run, as it is written."""

    prompts_sha256: str
    first_prompt: str | None
    fewshot: ShotsRecord
    chat_template: None
    generation: GenerationSettings | None
    engine: EngineRecord
    prompts_cut: int
    prompt_tokens: int | None
    answer_tokens: int | None
    answers_cut: int | None
    answers_stopped: int | None


def protocol_record(
    cell: OpenCell, prompts: Sequence[str], engine: EngineFacts, generations: Sequence[Generation] = ()
) -> ProtocolRecord:
    """Record the protocol of a run over `prompts`, few-shot examples included; with a head, over the texts it judged."""
    step = cell.step
    return {
        "prompts_sha256": text_sha256("\x00".join(prompts)),
        "first_prompt": prompts[0] if prompts else None,
        "fewshot": _shots_record(step, cell.shots),
        "chat_template": None,
        "generation": generation_settings(cell) if step.generate and cell.head is None else None,
        "engine": {"name": step.engine, **engine},
        "prompts_cut": 0,
        "prompt_tokens": sum(one.prompt_tokens for one in generations) if generations else None,
        "answer_tokens": sum(one.raw_tokens for one in generations) if generations else None,
        "answers_cut": sum(not one.ended and one.stopped is None for one in generations) if generations else None,
        "answers_stopped": sum(one.stopped is not None for one in generations) if generations else None,
    }


def generation_settings(cell: OpenCell) -> GenerationSettings:
    """Describe greedy decoding up to a token limit or a stop text."""
    return {"until": list(cell.stops), "do_sample": False, "max_gen_toks": cell.step.max_new_tokens}


def _shots_record(step: Evaluate, shots: Shots) -> ShotsRecord:
    if not shots.examples:
        return {
            "num_fewshot": 0,
            "ids": [],
            "split": None,
            "sampler": None,
            "seed": step.fewshot_seed,
            "delimiter": None,
            "context_sha256": None,
        }
    return {
        "num_fewshot": len(shots.examples),
        "ids": shots.ids,
        "split": "train",
        "sampler": "first_n" if step.fewshot_seed is None else "drawn",
        "seed": step.fewshot_seed,
        "delimiter": DELIMITER,
        "context_sha256": text_sha256(shots.context),
    }
