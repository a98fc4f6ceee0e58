"""Attach a trained adapter to a base: check that they belong together, and prove that the adapter acts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from plr.adapters import adapters
from plr.bases.given_adapters import ABSORBING_INITS
from plr.bases.given_bases import check_origin
from plr.bases.load import Loaded
from plr.core.fingerprint import JsonObject
from plr.core.specs import GivenAdapter, GivenBase, Quantize, Restore, Source, Train
from plr.errors import IntegrityError, ProvenanceError
from plr.lm.classify import Probe, probe
from plr.restoration.check import check_scales
from plr.tasks import Classification, Texts, task_of
from plr.tasks.data.rows import load_split

__all__ = ["Attachment", "attach", "check_init", "check_provenance", "probe_texts"]

PROBE_ROWS = 4
PROBE_TEXTS = [
    "Question: What is 17 plus 25?\nAnswer:",
    "The capital of",
    "def add(a, b):",
    "Once upon a time there was a",
]
"""Prompts on which an adapter is shown to act whose own task is not known."""


def check_provenance(
    adapter: Train | GivenAdapter, base: Source | Quantize | GivenBase, *, allow_mismatch: bool = False
) -> None:
    """Refuse a pair that does not belong together.

    Raises:
        ProvenanceError: another source model (then also tokenizer and shapes may differ), or see `check_scales`.
    """
    ours, theirs = adapter.base.model, base.model
    if adapter.base == base:
        return  # its own base, whatever that was made from
    if ours.identity() != theirs.identity() and not allow_mismatch:
        raise ProvenanceError(
            f"the adapter was trained on {ours.name} ({ours.revision[:12]}), this base comes from {theirs.name} "
            f"({theirs.revision[:12]})",
            expected="a base made from the same source model",
            hint=f"use --model {ours.path or ours.name}, or --allow-mismatch (recorded in the result)",
        )
    check_scales(adapter, base, allow_mismatch=allow_mismatch, must_know=True)


def check_init(step: Restore, folder: Path) -> None:
    """Refuse an adapter file that still holds a part of its own base.

    Adapters that plr saves are converted (see `conversion.json`).

    Raises:
        ProvenanceError: the file holds a part of its base.
    """
    file = folder / "adapter_config.json"
    config: JsonObject = json.loads(file.read_text()) if file.is_file() else {}
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(ABSORBING_INITS):
        raise ProvenanceError(
            f"the adapter was initialised with {init}: it holds a part of its own {step.adapter.base.bits}-bit base",
            expected="an adapter that is zero at the start, or one converted to that when it was saved",
            hint="train it again: plr converts pissa and olora exactly, and refuses the others",
        )


class Attachment(NamedTuple):
    """A base with an adapter on it, and the proof that it acts."""

    model: Any
    change: float
    """The largest change of a logit."""
    partial: dict[str, int]
    """Counts of the adapter's tensors that are not there, or found no place; empty for a whole adapter."""


def attach(loaded: Loaded, step: Restore, folder: Path, name: str, before: Probe | None = None) -> Attachment:
    """Put the adapter saved in `folder` on `loaded` and prove that it is whole and acts.

    `before` holds the base's own outputs on the step's probe texts.

    Raises:
        ProvenanceError: see `check_provenance`; also when names or shapes do not match the base.
        IntegrityError: the logits do not change at all.
    """
    check_provenance(step.adapter, step.base, allow_mismatch=step.allow_mismatch)
    check_init(step, folder)
    for base in (step.adapter.base, step.base):
        if isinstance(base, GivenBase) and not step.allow_mismatch:
            check_origin(base)  # both are on this machine by now, where they were not when this was planned
    texts = probe_texts(step)
    if before is None:
        before = probe(loaded.model, loaded.tokenizer, texts)
    try:
        method = adapters.get(step.adapter.adapter.method)
        model = method.load(loaded.model, folder, name)
    except (RuntimeError, ValueError, KeyError) as error:
        words = f"its file lacks {error.args[0]}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ProvenanceError(
            f"the adapter {step.adapter.label} does not fit {step.base.label}: {words}",
            expected="the same module names and shapes as in training",
        ) from error
    partial = _count(*method.unfit(model, folder, name), step)
    change = before.change(probe(model, loaded.tokenizer, texts))
    if change == 0.0:
        raise IntegrityError(
            f"the adapter {step.adapter.label} changes no logit of {step.base.label}",
            hint="it was trained for no step, or its weights are all zero: train it again",
        )
    return Attachment(model, change, partial)


def _count(missing: list[str], unexpected: list[str], step: Restore) -> dict[str, int]:
    """Count the tensors of an adapter that do not fit its base; refuse them unless a mismatch is allowed."""
    if (missing or unexpected) and not step.allow_mismatch:
        first = (missing or unexpected)[0]
        raise ProvenanceError(
            f"the adapter {step.adapter.label} does not fit {step.base.label}: its file lacks {len(missing)} tensors that belong "
            f"to it there, and holds {len(unexpected)} that have no place, {first} the first",
            expected="the same module names as in training",
            hint="use the source it was trained on, or --allow-mismatch (counted in the result)",
        )
    return (
        {"missing_adapter_tensors": len(missing), "unexpected_adapter_tensors": len(unexpected)}
        if missing or unexpected
        else {}
    )


def probe_texts(step: Restore) -> list[str] | list[Texts]:
    """Take a few validation rows of the task the adapter was trained on: prompts, or the texts its head judges.

    Of an adapter without a task that is known they are the same few texts for all.
    """
    if step.adapter.task is None:
        return PROBE_TEXTS
    rows = load_split(step.adapter.task, "validation").examples[:PROBE_ROWS]
    task = task_of(step.adapter.task)
    return [task.texts(row.row) for row in rows] if isinstance(task, Classification) else [row.prompt for row in rows]
