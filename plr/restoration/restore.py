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
from plr.bases.load import Loaded, load_base, load_source, model_path
from plr.bases.quantize import calibrate
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Quantize, Restore, Source, Train
from plr.core.store import Store
from plr.errors import IntegrityError, ProvenanceError, UsageError
from plr.lm.classify import Probe, probe
from plr.quantizers import densify, quantizers
from plr.restoration.modes import check_mode
from plr.tasks import Classification, Texts, task_of
from plr.tasks.data.rows import head_of, load_split

__all__ = ["attach", "check_init", "check_provenance", "restore", "served"]

ABSORBING_INITS = ("loftq", "pissa", "olora", "corda", "eora")
"""Initialisations that move part of the base (or of its quantization error) into the adapter."""
PROBE_ROWS = 4


def check_provenance(adapter: Train, base: Source | Quantize, *, allow_mismatch: bool = False) -> None:
    """Refuse a pair that does not belong together.

    Raises:
        ProvenanceError: another source model (then also tokenizer and shapes may differ).
    """
    ours, theirs = adapter.base.model, base.model
    if ours.identity() != theirs.identity() and not allow_mismatch:
        raise ProvenanceError(
            f"the adapter was trained on {ours.name} ({ours.revision[:12]}), this base comes from {theirs.name} "
            f"({theirs.revision[:12]})",
            expected="a base made from the same source model",
            hint=f"use --model {ours.path or ours.name}, or --allow-mismatch (recorded in the result)",
        )


def check_init(step: Restore, folder: Path) -> None:
    """Refuse an adapter file that still holds a part of its own base; what plr saves is converted (see ``conversion.json``).

    Raises:
        ProvenanceError: it does.
    """
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(ABSORBING_INITS):
        raise ProvenanceError(
            f"the adapter was initialised with {init}: it holds a part of its own {step.adapter.base.bits}-bit base",
            expected="an adapter that is zero at the start, or one converted to that when it was saved",
            hint="train it again: plr converts pissa and olora exactly, and refuses the others",
        )


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


def attach(loaded: Loaded, step: Restore, folder: Path, name: str, before: Probe | None = None) -> tuple[Any, float]:
    """Put the adapter saved in ``folder`` on ``loaded`` and prove that it acts.

    ``before`` is what the base itself says of the step's probe texts. Returns the model and the largest change of a logit.

    Raises:
        ProvenanceError: see :func:`check_provenance`; also when names or shapes do not match the base.
        IntegrityError: the logits do not change at all.
    """
    check_provenance(step.adapter, step.base, allow_mismatch=step.allow_mismatch)
    check_init(step, folder)
    texts = probe_texts(step)
    if before is None:
        before = probe(loaded.model, loaded.tokenizer, texts)
    try:
        model = adapters.get(step.adapter.adapter.method).load(loaded.model, folder, name)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ProvenanceError(
            f"the adapter {step.adapter.label} does not fit {step.base.label}: {str(error).splitlines()[0]}",
            expected="the same module names and shapes as in training",
        ) from error
    change = before.change(probe(model, loaded.tokenizer, texts))
    if change == 0.0:
        raise IntegrityError(
            f"the adapter {step.adapter.label} changes no logit of {step.base.label}",
            hint="it was trained for no step, or its weights are all zero: train it again",
        )
    return model, change


def probe_texts(step: Restore) -> list[str] | list[Texts]:
    """A few validation rows of the task the adapter was trained on: prompts, or what its head judges."""
    rows = load_split(step.adapter.task, "validation").examples[:PROBE_ROWS]
    task = task_of(step.adapter.task)
    return [task.texts(row.row) for row in rows] if isinstance(task, Classification) else [row.prompt for row in rows]


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


def served(step: Evaluate, store: Store) -> Path:
    """The dense or requantized checkpoint behind an evaluation in mode roundtrip or requantize."""
    assert isinstance(step.target, Restore)
    return store.require(step.target).path
