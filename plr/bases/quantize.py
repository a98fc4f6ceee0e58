"""Carry out Quantize steps: source -> calibrated -> k-bit checkpoint, gated.

The widths of one source and one calibration are made one after another from a source that is loaded, calibrated and
measured once (`SourceHolder`): after each, the dense layers are put back.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plr.bases.gate import Gate
from plr.bases.heads import is_encoder
from plr.bases.load import Loaded, empty_experts, load_source
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Calibration, ModelRef, Quantize
from plr.errors import ModelError
from plr.gptq import GPTQError
from plr.gptq.blocks import find_targets, is_linear, replace_module, weights_of_blocks
from plr.gptq.experts import every_expert, separate
from plr.lm import choose_dtype, encode_pair
from plr.lm.classify import collate, encode_texts
from plr.quantizers import Execution, quantizers
from plr.tasks.data.rows import CalibrationText, calibration_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SourceHolder", "calibrate", "forward_dtype"]

Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)

BATCH_TOKENS = 4096
TOLD = 0.01
"""Share of block weights that stay at 16 bits from which a warning says so."""
AUTOCAST_FROM = 512
"""Hidden size from which the forward runs in the device's fast dtype; below it, casting costs what it saves."""


class SourceHolder:
    """One source in memory with its calibration and its gate, for all the widths made of it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._key: tuple[object, ...] | None = None
        self._held: tuple[Loaded, list[dict[str, Tensor]], JsonObject, Gate] | None = None

    def quantize(
        self, step: Quantize, folder: Path, on_progress: Progress | None = None, *, work: Path | None = None
    ) -> JsonObject:
        """Quantize the source of `step` and write the checkpoint to `folder`.

        `work` survives a kill: finished blocks are kept there, and the next call with the same step goes on after them.

        Returns the metrics of the manifest: the calibration record (ids, sha256, token counts, truncations), one entry a
        module (relative output error, damping, tokens, seconds), and the gate (`plr.bases.gate`).

        Raises:
            ModelError: a module that cannot be quantized, by name; nothing is rounded instead.
            DataError, LeakageError: unusable calibration data.
        """
        spec = step.quantization
        method = quantizers.get(spec.method)
        method.check(spec)
        if method.needs_calibration and spec.calibration is None:
            raise ModelError(
                f"method {spec.method} needs calibration data", hint="give --calibration task:NAME or a file"
            )
        loaded, batches, record, gate = self._load(step)
        if is_encoder(loaded.model.config) and not method.encoders:
            raise ModelError(
                f"method {spec.method} is for language models, and {step.model.name} is an encoder",
                expected="one of " + ", ".join(n for n, known in quantizers.loaded().items() if known.encoders),
                hint="--method gptq",
            )
        share = _share(loaded.model)
        if not self.runtime.low_memory:  # where a forward would read all blocks
            _check_calls(loaded.model, batches)
        runtime = self.runtime
        execution = Execution(
            work=work,
            low_memory=runtime.low_memory,
            device=runtime.torch_device(),
            forward_dtype=forward_dtype(loaded.model, runtime.dtype, runtime.torch_device()),
        )
        dense: dict[str, nn.Module] = {n: module for n, module in loaded.model.named_modules() if is_linear(module)}
        try:
            metrics = method.quantize(loaded.model, batches, spec, folder, execution=execution, on_progress=on_progress)
            measured = gate.measure()
        finally:
            if runtime.low_memory:
                self._key = self._held = None  # one block at a time was all there was room for
            else:
                _put_back(loaded.model, dense)
        loaded.tokenizer.save_pretrained(folder)
        return {
            "bits": spec.bits,
            "block_weights": share,
            "calibration": record,
            "gate": measured,
            "dtype": str(execution.forward_dtype or torch.float32).removeprefix("torch."),
            "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            **metrics,
        }

    def _load(self, step: Quantize) -> tuple[Loaded, list[dict[str, Tensor]], JsonObject, Gate]:
        spec, runtime = step.quantization, self.runtime
        key = (step.source, spec.calibration, spec.gate_task, spec.gate_text)
        if self._held is None or key != self._key:
            self._held = None  # before the next is loaded
            refuse_experts(step.source.model, apart=quantizers.get(spec.method).experts, offline=runtime.offline)
            text = (
                calibration_text(spec.calibration) if spec.calibration else None
            )  # what is wrong with it is said first
            # Scales and Hessians are float32 numbers; a float32 source keeps the solver's input exact on every device.
            # Where memory is short it stays as stored, which is as exact, and each block is cast when its turn comes.
            dtype, device = (torch.float32, runtime.torch_device()) if not runtime.low_memory else ("auto", "cpu")
            loaded = load_source(
                step.source.model, dtype=dtype, device=device, offline=runtime.offline, home=runtime.home
            )
            if quantizers.get(spec.method).experts:
                taken_apart(loaded.model)
            batches, record = calibrate(spec.calibration, loaded, text) if spec.calibration else ([], {})
            gate = Gate(loaded, spec.calibration, task=spec.gate_task, text=spec.gate_text)
            self._key, self._held = key, (loaded, batches, record, gate)
        return self._held


def taken_apart(model: PreTrainedModel) -> None:
    """Take the experts of `model` apart into linear layers, in place.

    Raises:
        ModelError: experts that compute otherwise than their form says.
    """
    try:
        if separate(model):
            log.warning("experts are quantized one by one: plr reads such a base, transformers by itself does not")
    except GPTQError as error:
        raise ModelError(str(error)) from error


def refuse_experts(ref: ModelRef, *, apart: bool, offline: bool = False) -> None:
    """Refuse a mixture of experts whose experts lie in one tensor, by its configuration and before any work.

    With `apart`, those are let through that can be taken apart.

    Raises:
        ModelError: such experts would stay at 16 bits, and they are most of the weights.
    """
    if ref.kind == "gguf":
        return
    model = empty_experts(ref, offline=offline)
    try:
        if apart and model is not None:
            separate(model, compared=False)
        linear, others = weights_of_blocks(model) if model is not None else (0, {})
    except GPTQError:  # without blocks, which is said later
        return
    experts = {name: math.prod(shape) for name, shape in others.items() if "expert" in name and len(shape) > 2}
    if not experts or model is None:
        return
    name, stays = next(iter(experts)), sum(experts.values())
    raise ModelError(
        f"{ref.name} ({model.config.model_type}) keeps its experts in tensors such as {name} {list(others[name])}: "
        f"{stays / (linear + sum(map(math.prod, others.values()))):.0%} of the weights of its blocks would stay at 16 bits",
        expected="a model whose blocks are linear layers",
        hint="train on it with --bits 16, or quantize a dense model",
    )


def _share(model: PreTrainedModel) -> JsonObject:
    """Count the weights of the blocks that are quantized, and those that stay as they are."""
    try:
        linear, others = weights_of_blocks(model)
    except GPTQError as error:
        raise ModelError(str(error)) from error
    dense = sum(map(math.prod, others.values()))
    if dense > TOLD * (linear + dense):
        largest = max(others, key=lambda name: math.prod(others[name]))
        log.warning("%.1f %% of the block weights stay as they are, e.g. %s", 100 * dense / (linear + dense), largest)
    return {"quantized": linear, "dense": dense}


def _check_calls(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> None:
    """Run two tokens through `model`, and see that each layer to be quantized is called, and at most once.

    Raises:
        ModelError: a layer that is called by no forward, which reads its weight otherwise; or, with calibration, several times:
            its later inputs would not count.
    """
    calls: Counter[str] = Counter()
    ids = next(iter(batches), {"input_ids": torch.zeros((1, 2), dtype=torch.long, device=model.device)})["input_ids"]
    layers = find_targets(model)

    def counter(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    handles = [layer.register_forward_pre_hook(counter(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode(), every_expert(model):
            model(input_ids=ids[:1, :2], attention_mask=torch.ones_like(ids[:1, :2]))
    finally:
        for handle in handles:
            handle.remove()
    never = [name for name in layers if not calls[name]]
    shared = [name for name in layers if batches and calls[name] > 1]
    for names, what in (
        (never, "is never called by the forward, which reads its weight in another way"),
        (shared, "is called several times in one forward, by blocks that share it"),
    ):
        if names:
            raise ModelError(
                f"{names[0]} ({type(model).__name__}) {what}; so are {len(names)} of {len(layers)} layers",
                expected="layers that are called once, on the inputs they are calibrated on",
                hint="use --method rtn, which needs no inputs" if calls[names[0]] else "train on it with --bits 16",
            )


def forward_dtype(model: PreTrainedModel, asked: str = "auto", device: str = "cpu") -> torch.dtype | None:
    """Choose the dtype that the forward of the calibration is cast to: as asked, or by the device; None: as it is."""
    if asked == "auto" and model.config.get_text_config().hidden_size < AUTOCAST_FROM:
        return None
    dtype = choose_dtype(device) if asked == "auto" else getattr(torch, asked)
    return None if dtype == torch.float32 else dtype


def calibrate(
    calibration: Calibration, loaded: Loaded, text: CalibrationText | None = None
) -> tuple[list[dict[str, Tensor]], JsonObject]:
    """Draw (unless `text` is given) and tokenize: int64 [b, t], right-padded, of similar length; at most BATCH_TOKENS cells each.

    Prompt, answer and EOS for a model that writes; for an encoder, or a task with labels, what a classification head reads.
    """
    text = text or calibration_text(calibration)
    tokenizer = loaded.tokenizer
    if text.texts is not None:
        rows = encode_texts(tokenizer, text.texts)
    elif is_encoder(loaded.model.config):
        rows = encode_texts(tokenizer, [(prompt + target, None) for prompt, target in text.pairs])
    else:
        pairs = [encode_pair(tokenizer, prompt, target) for prompt, target in text.pairs]
        rows = [{"input_ids": prompt + target} for prompt, target in pairs]
    truncated = sum(len(row["input_ids"]) > calibration.max_length for row in rows)
    rows = [{key: values[: calibration.max_length] for key, values in row.items()} for row in rows]
    tokens = sum(len(row["input_ids"]) for row in rows)
    rows.sort(key=lambda row: len(row["input_ids"]))
    device = loaded.model.device
    batches: list[dict[str, Tensor]] = []
    while rows:
        count = max(1, BATCH_TOKENS // len(rows[-1]["input_ids"]))
        chunk, rows = rows[-count:], rows[:-count]
        batches.append({key: value.to(device) for key, value in collate(tokenizer, chunk).items()})
    return batches, {**text.report, "tokens": tokens, "truncated": truncated, "max_length": calibration.max_length}


def _put_back(model: nn.Module, dense: dict[str, nn.Module]) -> None:
    """Put the dense layers of these names back where a quantizer has replaced them."""
    for name, module in dense.items():
        if model.get_submodule(name) is not module:
            replace_module(model, name, module)
