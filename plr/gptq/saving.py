"""Write GPTQ checkpoints: folders that open in plr, and in transformers with GPTQModel installed.

The `state_dict` of a model with `PackedLinear` layers is such a checkpoint (files: `plr.gptq.checkpoint`). Zero points are
stored as `checkpoint_format: gptq` (v1) if they all can be, as gptq_v2 otherwise (see `plr.gptq.packing`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plr.gptq.blocks import find_prefix, is_linear, named_modules
from plr.gptq.errors import CheckpointError
from plr.gptq.linear import BUFFERS, PackedLinear
from plr.gptq.packing import V1, V2, zero_format
from plr.gptq.settings import Knobs, Settings, settings_of

__all__ = ["beyond_format", "compact", "quantization_config", "save_checkpoint"]

SHARD = "5GB"
FORMAT = ("bits", "group_size", "sym", "desc_act", "static_groups", "damp_percent")  # knobs the format has keys for
SPEED = ("block_size",)  # knobs that leave the result as it is


def beyond_format(settings: Settings) -> dict[str, object]:
    """Name the knobs that decide the codes and for which the format has no key: worth keeping as `meta`."""
    return {name: value for name, value in asdict(settings).items() if name not in (*FORMAT, *SPEED)}


def quantization_config(
    model: nn.Module, settings: Settings, meta: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Describe `model`, which holds `PackedLinear` layers of these settings, as a checkpoint's `quantization_config`.

    Raises:
        CheckpointError: no packed layers, layers of another width, or a selection of layers that transformers cannot
            name.
    """
    packed = _packed_layers(model)
    if not packed:
        raise CheckpointError(
            f"{type(model).__name__} has no PackedLinear layer.", "a quantized model.", "run quantize_model first."
        )
    for name, layer in packed.items():
        group = layer.in_features if settings.group_size == -1 else settings.group_size
        if layer.bits != settings.bits or layer.group_size != group:
            raise CheckpointError(
                f"{name} has {layer.bits} bits in groups of {layer.group_size}.",
                f"bits={settings.bits}, group_size={settings.group_size} as passed.",
                "pass the settings the model was quantized with.",
            )
    prefix = find_prefix(packed)
    config: dict[str, object] = {
        "quant_method": "gptq",
        **{name: getattr(settings, name) for name in FORMAT},
        "true_sequential": True,
        "act_group_aware": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "checkpoint_format": V1 if all(zero_format(layer.zeros()) == V1 for layer in packed.values()) else V2,
        "block_name_to_quantize": prefix,
        "meta": {**(meta or {}), "quantizer": ["plr"]},
    }
    modules = _modules_in_block(model, prefix, packed)
    if modules is not None:
        config["modules_in_block_to_quantize"] = [modules]
    return config


def save_checkpoint(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    settings: Settings | None = None,
    meta: Mapping[str, object] | None = None,
    max_shard_size: str = SHARD,
    **knobs: Unpack[Knobs],
) -> None:
    """Write `model`, whose layers `quantize_model` packed, to `folder` in the standard GPTQ format.

    Args:
        model: a transformers model with `PackedLinear` layers.
        folder: made if missing.
        settings, or its fields as keywords: what the model was quantized with; checked against the layers where they
            show.
        meta: anything worth keeping (calibration, versions); stored as `quantization_config["meta"]`.
        max_shard_size: larger models are split into several safetensors files.

    Dense tensors (embeddings, norms, biases) are stored in 16 bits where that loses nothing, see `compact`.

    Raises:
        CheckpointError: see `quantization_config`.
    """
    folder = Path(folder)
    config = quantization_config(model, settings_of(settings, knobs), meta)
    checkpoint_format = cast(str, config["checkpoint_format"])
    for layer in _packed_layers(model).values():
        layer.set_checkpoint_format(checkpoint_format)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.quantization_config = config
    before = model.config.dtype
    state, model.config.dtype = compact(model)
    try:
        model.save_pretrained(  # pyright: ignore[reportUnknownMemberType]
            folder, state_dict=state, max_shard_size=max_shard_size
        )
    finally:
        model.config.dtype = before
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / "quantize_config.json").write_text(text, encoding="utf-8")


def compact(model: nn.Module) -> tuple[dict[str, Tensor], torch.dtype]:
    """Take the state of `model` with its dense tensors in the 16 bits that hold all of them exactly, and that dtype.

    A bfloat16 source that was loaded in float32 goes back to bfloat16, bit for bit; where neither bfloat16 nor float16 holds
    every number, all stay as they are.
    """
    state = dict(model.state_dict())
    packed = {f"{name}.{buffer}" for name in _packed_layers(model) for buffer in BUFFERS}
    dense = {key: value for key, value in state.items() if key not in packed and value.is_floating_point()}
    own = next((value.dtype for value in dense.values()), torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        if all(bool((value.to(dtype).to(value.dtype) == value).all()) for value in dense.values()):
            casts = {value.data_ptr(): value.to(dtype) for value in dense.values()}  # tied tensors stay one tensor
            return state | {key: casts[value.data_ptr()] for key, value in dense.items()}, dtype
    return state, own


def _packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    return {name: module for name, module in named_modules(model) if isinstance(module, PackedLinear)}


def _modules_in_block(model: nn.Module, prefix: str, packed: Mapping[str, PackedLinear]) -> list[str] | None:
    """Name the quantized layers within a block; None if those are all, as transformers assumes by default."""
    depth = prefix.count(".") + 2  # prefix.<index>. precedes the name within the block

    def inner(name: str) -> str:
        return ".".join(name.split(".")[depth:])

    dense = {name for name, m in named_modules(model) if is_linear(m) and name.startswith(prefix + ".")}
    if not dense:
        return None
    wanted = sorted({inner(name) for name in packed})
    both = sorted(name for name in dense if any(name.endswith(w) for w in wanted))
    if both:
        raise CheckpointError(
            f"{both[0]} is dense while its counterpart in another block is quantized.",
            "the same layers quantized in every block: the format cannot name others.",
            "skip the same layers in every block.",
        )
    return wanted
