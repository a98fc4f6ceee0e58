"""Weights of bases, adapters and checkpoints, added up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from plr.bases.load import load_base
from plr.core.runtime import Runtime
from plr.lab import Lab
from plr.quantizers import densify


def dense_weights(lab: Lab, base: Any) -> dict[str, torch.Tensor]:
    """The weights of a base, made dense, float32."""
    model: Any = load_base(base, lab.store, Runtime(dtype="float32")).model
    densify(model)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def lora_change(folder: Path) -> dict[str, torch.Tensor]:
    """The product of the two matrices of each layer of a LoRA, as PEFT scales it, by the name of the weight."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        f"{name.removeprefix('base_model.model.')}.weight": scale
        * tensors[f"{name}.lora_B.weight"].float()
        @ tensors[f"{name}.lora_A.weight"].float()
        for name in names
    }


def written_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a dense checkpoint, float32."""
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
