"""Carry out a Restore step: put a trained adapter on another base without retraining (Post-LoRA Restoration).

=============== ======================= ==============================================================
mode            weights served          what is written
=============== ======================= ==============================================================
``restore``     W_l + dW                the adapter, its config naming the l-bit base
``keep``        W_k + dW                the same, l = k: plain QLoRA
``restore`` +   W_16 + dW               a dense checkpoint (``merge``)
``roundtrip``   dense W_k + dW          a dense checkpoint: the maths of ``keep`` in any engine
``requantize``  Q_l(W_16 + dW)          an l-bit checkpoint without a side path
=============== ======================= ==============================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plr.adapters import adapters
from plr.adapters.peft import name_base
from plr.bases.load import Loaded, load_base, load_source
from plr.bases.quantize import calibrate
from plr.bases.resolve import model_path
from plr.core.runtime import Runtime
from plr.core.specs import Quantize, Restore
from plr.core.store import Store
from plr.errors import UsageError
from plr.lm.classify import probe
from plr.quantizers import densify, quantizers
from plr.restoration.attach import attach, probe_texts
from plr.restoration.modes import check_mode
from plr.tasks.data.rows import head_of

__all__ = ["restore"]


def _check_merges(step: Restore) -> None:
    """Refuse what needs a merge for a method that has none.

    Raises:
        UsageError: what the method trains is no part of the base's weights.
    """
    method = step.adapter.adapter.method
    if step.is_checkpoint and not adapters.get(method).properties.merges:
        raise UsageError(
            f"{'--merge' if step.merge else 'mode ' + step.mode} adds the adapter into the weights, and {method} is beside them",
            expected="a method that merges (plr adapters lists them)",
            hint="use --mode restore: the adapter stays beside the base",
        )


def restore(
    step: Restore,
    folder: Path,
    store: Store,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write what ``step`` serves to ``folder``; returns the metrics of the manifest.

    Raises:
        UsageError: a merge into fewer than 16 bits, or a mode that does not fit the bits.
        ProvenanceError, IntegrityError: see :func:`attach`.
    """
    check_mode(step)
    _check_merges(step)
    source = store.require(step.adapter)
    if step.mode == "requantize":
        assert isinstance(step.base, Quantize)
        return _requantize(step, step.base, source.path, folder, runtime, on_progress)
    if step.mode == "roundtrip" or step.merge:
        exact = runtime.model_copy(update={"kernel": "dequantized", "dtype": "float32"})
        loaded = load_base(step.base, store, exact, head=head_of(step.adapter.task))
        densify(loaded.model)
        return _write_merged(step, loaded, source.path, folder)
    loaded = load_base(step.base, store, runtime, head=head_of(step.adapter.task))
    _, change = attach(loaded, step, source.path, "restored")
    for file in source.path.iterdir():
        if file.is_file() and file.name != "manifest.json":
            shutil.copy2(file, folder / file.name)
    if isinstance(step.base, Quantize) and (folder / "adapter_config.json").is_file():
        name_base(folder, str(store.require(step.base).path), None)
    return {**_bits(step), "largest_logit_change": change}


def _bits(step: Restore) -> dict[str, Any]:
    return {
        "train_bits": step.adapter.base.bits,
        "restore_bits": step.base.bits,
        "mode": step.mode,
        "merge": step.merge,
        "allow_mismatch": step.allow_mismatch,
    }


def _write_merged(step: Restore, loaded: Loaded, adapter: Path, folder: Path) -> dict[str, Any]:
    """Merge in float32, then save in the dtype of the source checkpoint."""
    model, change = attach(loaded, step, adapter, "restored")
    texts = probe_texts(step)
    attached = probe(model, loaded.tokenizer, texts)
    merged: Any = adapters.get(step.adapter.adapter.method).merge(model)
    dtype = _source_dtype(step)
    merged.to(dtype)
    merged.config.dtype = dtype
    merged.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    difference = attached.change(probe(merged.float(), loaded.tokenizer, texts))
    return {
        **_bits(step),
        "largest_logit_change": change,
        "largest_merge_difference": difference,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _requantize(
    step: Restore,
    base: Quantize,
    adapter: Path,
    folder: Path,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    head = head_of(step.adapter.task)
    loaded = load_source(
        base.model, dtype=torch.float32, device=runtime.torch_device(), offline=runtime.offline, head=head
    )
    model, change = attach(loaded, step, adapter, "restored")
    merged: Any = adapters.get(step.adapter.adapter.method).merge(model)
    spec = base.quantization
    batches, record = calibrate(spec.calibration, Loaded(merged, loaded.tokenizer)) if spec.calibration else ([], {})
    metrics = quantizers.get(spec.method).quantize(merged, batches, spec, folder, on_progress=on_progress)
    loaded.tokenizer.save_pretrained(folder)
    return {**_bits(step), "largest_logit_change": change, "calibration": record, **metrics}


def _source_dtype(step: Restore) -> torch.dtype:
    ref = step.base.model
    if ref.kind == "gguf":
        return torch.bfloat16
    config = json.loads((model_path(ref) / "config.json").read_text())
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
