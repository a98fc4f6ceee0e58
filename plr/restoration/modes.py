"""Builders of the restoration modes: one row each, beside the mode's data in `plr/core/modes.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from plr.adapters import adapters
from plr.bases.load import Loaded, load_base, load_source
from plr.bases.quantize import calibrate, taken_apart
from plr.core.fingerprint import JsonObject
from plr.core.specs import Quantize, Restore
from plr.quantizers import densify, quantizers
from plr.quantizers.base import named_modules
from plr.restoration.attach import attach
from plr.restoration.corrected import corrected, guarded, on_path, scaled
from plr.restoration.fit import fit
from plr.restoration.work import NAME, Restoration, copy_adapter, kept, proof, trained_head, write_dense

__all__ = ["BUILDERS", "Builder", "Restoration", "builder_of", "merged"]


Builder = Callable[[Restoration], JsonObject]
"""A function that writes the served form of a mode, and returns its metrics for the manifest."""


def builder_of(step: Restore) -> Builder:
    """Look up the builder of the form in which `step` is served."""
    return merged if step.merge else BUILDERS[step.mode]


def beside(work: Restoration) -> JsonObject:
    """Write the adapter as it was trained, naming the l-bit base, once it is proved to act on it."""
    step = work.step
    loaded = fit(load_base(step.base, work.store, work.runtime, head=trained_head(step)), step.adapter, work.adapter)
    if step.compensated:
        folder = kept(work, dict(named_modules(loaded.model)), work.folder)
    else:
        folder = work.adapter
        copy_adapter(work, step.base, work.folder)
    return proof(attach(loaded, step, folder, NAME))


def merged(work: Restoration) -> JsonObject:
    """Merge into the base made dense."""
    step = work.step
    loaded = load_base(step.base, work.store, work.exact, head=trained_head(step))
    densify(loaded.model)
    loaded = fit(loaded, step.adapter, work.adapter)
    with TemporaryDirectory(prefix="plr-kept-") as place:
        folder = kept(work, dict(named_modules(loaded.model)), Path(place)) if step.compensated else work.adapter
        return write_dense(work, loaded, attach(loaded, step, folder, NAME))


def requantized(work: Restoration) -> JsonObject:
    """Merge into the source, quantize that as the l-bit base is, and write it."""
    step, runtime, base = work.step, work.runtime, work.step.base
    assert isinstance(base, Quantize)
    loaded = load_source(
        base.model,
        dtype=torch.float32,
        device=runtime.torch_device(),
        offline=runtime.offline,
        head=trained_head(step),
        home=work.store.home,
    )
    loaded = fit(loaded, step.adapter, work.adapter)
    attached = attach(loaded, step, work.adapter, NAME)
    dense: Any = adapters.get(step.adapter.adapter.method).merge(attached.model)
    if quantizers.get(base.quantization.method).experts:
        taken_apart(dense)
    spec = base.quantization
    batches, record = calibrate(spec.calibration, Loaded(dense, loaded.tokenizer)) if spec.calibration else ([], {})
    metrics = quantizers.get(spec.method).quantize(dense, batches, spec, work.folder, on_progress=work.on_progress)
    loaded.tokenizer.save_pretrained(work.folder)  # pyright: ignore[reportUnknownMemberType]
    return {**proof(attached), "calibration": record, **metrics}


BUILDERS: dict[str, Builder] = {
    "restore": beside,
    "keep": beside,
    "roundtrip": merged,
    "requantize": requantized,
    "path": on_path,
    "scale": scaled,
    "correct": corrected,
    "auto": guarded,
}
