"""Builders of the restoration modes: one row each, beside the mode's data in `plr/core/modes.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plr.adapters import adapters
from plr.adapters.peft import name_base
from plr.bases.given_adapters import bears
from plr.bases.load import Loaded, load_base, load_source
from plr.bases.named import public_name
from plr.bases.quantize import calibrate, taken_apart
from plr.bases.resolve import model_path
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Quantize, Restore, Train
from plr.core.store import Store
from plr.gptq.experts import join
from plr.lm.classify import probe
from plr.quantizers import densify, quantizers
from plr.restoration.attach import Attachment, attach, probe_texts
from plr.restoration.fit import fit
from plr.tasks import HeadSpec
from plr.tasks.data.rows import head_of

__all__ = ["BUILDERS", "Builder", "Restoration", "builder_of"]


@dataclass(frozen=True)
class Restoration:
    """A Restore step at work: what a builder reads, and where it writes."""

    step: Restore
    adapter: Path
    """The trained adapter."""
    folder: Path
    """Destination of the served files."""
    store: Store
    runtime: Runtime
    on_progress: Callable[[int, int], None] | None = None


Builder = Callable[[Restoration], JsonObject]
"""A function that writes the served form of a mode, and returns its metrics for the manifest."""


def builder_of(step: Restore) -> Builder:
    """Look up the builder of the form in which `step` is served."""
    return merged if step.merge else BUILDERS[step.mode]


def beside(work: Restoration) -> JsonObject:
    """Write the adapter as it was trained, naming the l-bit base, once it is proved to act on it."""
    step, folder = work.step, work.folder
    loaded = fit(load_base(step.base, work.store, work.runtime, head=_head(step)), step.adapter, work.adapter)
    attached = attach(loaded, step, work.adapter, "restored")
    for file in work.adapter.iterdir():
        if file.is_file() and file.name != "manifest.json" and (isinstance(step.adapter, Train) or bears(file.name)):
            shutil.copy2(file, folder / file.name)
    if (folder / "adapter_config.json").is_file():
        name_base(folder, *public_name(step.base))
    return _proof(attached)


def _proof(attached: Attachment) -> JsonObject:
    return {"largest_logit_change": attached.change, **attached.partial}


def merged(work: Restoration) -> JsonObject:
    """Merge into the base made dense, in float32, and write that in the dtype of the source checkpoint."""
    step = work.step
    exact = work.runtime.model_copy(update={"kernel": "dequantized", "dtype": "float32"})
    loaded = load_base(step.base, work.store, exact, head=_head(step))
    densify(loaded.model)
    loaded = fit(loaded, step.adapter, work.adapter)
    attached = attach(loaded, step, work.adapter, "restored")
    texts = probe_texts(step)
    before = probe(attached.model, loaded.tokenizer, texts)
    dense: Any = adapters.get(step.adapter.adapter.method).merge(attached.model)
    join(dense)
    dtype = _source_dtype(step)
    dense.to(dtype)
    dense.config.dtype = dtype
    dense.save_pretrained(work.folder)
    loaded.tokenizer.save_pretrained(work.folder)  # pyright: ignore[reportUnknownMemberType]
    difference = before.change(probe(dense.float(), loaded.tokenizer, texts))
    return {
        **_proof(attached),
        "largest_merge_difference": difference,
        "dtype": str(dtype).removeprefix("torch."),
    }


def requantized(work: Restoration) -> JsonObject:
    """Merge into the source, quantize that as the l-bit base is, and write it."""
    step, runtime, base = work.step, work.runtime, work.step.base
    assert isinstance(base, Quantize)
    loaded = load_source(
        base.model,
        dtype=torch.float32,
        device=runtime.torch_device(),
        offline=runtime.offline,
        head=_head(step),
        home=work.store.home,
    )
    loaded = fit(loaded, step.adapter, work.adapter)
    attached = attach(loaded, step, work.adapter, "restored")
    dense: Any = adapters.get(step.adapter.adapter.method).merge(attached.model)
    if quantizers.get(base.quantization.method).experts:
        taken_apart(dense)
    spec = base.quantization
    batches, record = calibrate(spec.calibration, Loaded(dense, loaded.tokenizer)) if spec.calibration else ([], {})
    metrics = quantizers.get(spec.method).quantize(dense, batches, spec, work.folder, on_progress=work.on_progress)
    loaded.tokenizer.save_pretrained(work.folder)  # pyright: ignore[reportUnknownMemberType]
    return {**_proof(attached), "calibration": record, **metrics}


def _head(step: Restore) -> HeadSpec | None:
    return None if step.adapter.task is None else head_of(step.adapter.task)


def _source_dtype(step: Restore) -> torch.dtype:
    ref = step.base.model
    if ref.kind == "gguf":
        return torch.bfloat16
    config = json.loads((model_path(ref) / "config.json").read_text())
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")


BUILDERS: dict[str, Builder] = {
    "restore": beside,
    "keep": beside,
    "roundtrip": merged,
    "requantize": requantized,
}
