"""Carry out a Quantize step: source -> calibrated -> k-bit checkpoint, gated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plr.bases import Loaded, load_source, runtime_dtype
from plr.data import calibration_text, load_split
from plr.errors import ModelError
from plr.lm import answer_loss, encode_pair
from plr.quantizers import quantizers
from plr.runtime import Runtime
from plr.specs import Calibration, Quantize

__all__ = ["calibrate", "quantize"]

Progress = Callable[[int, int], None]
BATCH_TOKENS = 4096
GATE_ROWS = 32


def quantize(step: Quantize, folder: Path, runtime: Runtime, on_progress: Progress | None = None) -> dict[str, Any]:
    """Quantize the source of ``step`` and write the checkpoint to ``folder``.

    Returns the metrics of the manifest: the calibration record (ids, sha256, token counts, truncations), one entry a module
    (relative output error, damping, tokens, seconds), and the gate: the loss on held-out text before and after.

    Raises:
        ModelError: a module that cannot be quantized, by name; nothing is rounded instead.
        DataError, LeakageError: unusable calibration data.
    """
    spec = step.quantization
    method = quantizers.get(spec.method)
    if method.needs_calibration and spec.calibration is None:
        raise ModelError(f"method {spec.method} needs calibration data", hint="give --calibration task:NAME or a file")
    # Scales and Hessians are float32 numbers; a float32 source keeps the solver's input exact on every device.
    loaded = load_source(step.source.model, dtype=torch.float32, device=runtime.torch_device(), offline=runtime.offline)
    batches, record = calibrate(spec.calibration, loaded) if spec.calibration else ([], {})
    held_out = _held_out(spec.calibration)
    before = _loss(loaded, held_out)
    metrics = method.quantize(loaded.model, batches, spec, folder, on_progress=on_progress)
    loaded.tokenizer.save_pretrained(folder)
    return {
        "bits": spec.bits,
        "calibration": record,
        "gate": _gate(before, _loss(loaded, held_out), len(held_out), loaded.model.config.get_text_config().vocab_size),
        "dtype": str(runtime_dtype(runtime)).removeprefix("torch."),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        **metrics,
    }


def calibrate(calibration: Calibration, loaded: Loaded) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Draw and tokenize: batches of similar length, int64 [b, t], right-padded; at most BATCH_TOKENS cells each."""
    text = calibration_text(calibration)
    rows: list[list[int]] = []
    truncated = 0
    for prompt, target in text.pairs:
        prompt_ids, target_ids = encode_pair(loaded.tokenizer, prompt, target)
        ids = prompt_ids + target_ids
        truncated += len(ids) > calibration.max_length
        rows.append(ids[: calibration.max_length])
    tokens = sum(map(len, rows))
    rows.sort(key=len)
    pad: Any = loaded.tokenizer.pad_token_id
    device = loaded.model.device
    batches: list[dict[str, Tensor]] = []
    while rows:
        width = len(rows[-1])
        count = max(1, BATCH_TOKENS // width)
        chunk, rows = rows[-count:], rows[:-count]
        ids = torch.full((len(chunk), width), pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(chunk):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        batches.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    return batches, {**text.report, "tokens": tokens, "truncated": truncated, "max_length": calibration.max_length}


def _held_out(calibration: Calibration | None) -> list[tuple[str, str]]:
    """Rows for the gate: the task's validation split where the calibration has a task, else none."""
    if calibration is None or calibration.task is None:
        return []
    rows = load_split(calibration.task, "validation").examples[:GATE_ROWS]
    return [(row.prompt, row.target) for row in rows]


def _loss(loaded: Loaded, pairs: list[tuple[str, str]]) -> float | None:
    """Mean negative log-likelihood in nats a target token."""
    if not pairs:
        return None
    losses = answer_loss(loaded.model, loaded.tokenizer, pairs)
    return sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)


def _gate(before: float | None, after: float | None, rows: int, vocabulary: int) -> dict[str, Any]:
    if before is None or after is None:
        return {"rows": 0, "verdict": "not measured: no task to measure on"}
    if not math.isfinite(after):
        raise ModelError(f"the quantized base gives a loss of {after}", hint="raise damp_percent or the bits")
    chance = math.log(vocabulary)
    verdict = "broken: at or above chance" if after >= chance else "ok"
    return {"rows": rows, "loss_16bit": before, "loss": after, "chance": chance, "verdict": verdict}
