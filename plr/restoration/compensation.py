"""Compensation: the part of W_16 - W_k that inputs feel most, frozen beside the k-bit base while an adapter is trained.

C = U U^T (W_16 - W_k) of rank r for every k-bit layer (`plr.gptq.lowrank`), as EoRA (Liu et al. 2024, arXiv:2410.21271) and QERA
(Zhang et al. 2024, arXiv:2410.06040) put r ranks beside a quantized base. The adapter is trained on W_k + C and lies apart from it:
restored, C is dropped; on its own base the two are served as one LoRA of both ranks.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F

from plr.core.fingerprint import JsonObject

__all__ = ["COMPENSATION", "Factors", "compensated", "compensation_in", "cost_of", "save_compensation", "sum_of"]

COMPENSATION = "compensation.safetensors"
"""File beside an adapter that was trained with one."""

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> U `[out, r]` and U^T E `[r, in]`."""


def save_compensation(factors: Factors, folder: Path) -> None:
    """Write the factors beside an adapter."""
    tensors: dict[str, Tensor] = {}
    for name, (left, right) in factors.items():
        tensors |= {f"{name}.left": left.contiguous(), f"{name}.right": right.contiguous()}
    save_file(tensors, folder / COMPENSATION)


def compensation_in(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the factors beside an adapter; empty where it was trained without."""
    if not (folder / COMPENSATION).is_file():
        return {}
    tensors = load_file(folder / COMPENSATION)
    names = [key.removesuffix(".left") for key in tensors if key.endswith(".left")]
    return {name: (tensors[f"{name}.left"], tensors[f"{name}.right"]) for name in names}


def sum_of(factors: Factors, name: str, weight: Tensor) -> Tensor:
    """Return C `[out, in]` of a layer like `weight`; zeros where it has none."""
    if name not in factors:
        return torch.zeros_like(weight)
    left, right = factors[name]
    return left.to(weight) @ right.to(weight)


@contextmanager
def compensated(layers: Mapping[str, nn.Module], factors: Factors) -> Generator[None]:
    """Add C x to the output of each layer inside the context; gradients pass through it to the input."""

    def adding(name: str, layer: nn.Module) -> Any:
        device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
        left, right = (factor.to(device) for factor in factors[name])

        def add(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            x: Tensor = inputs[0]
            return output + F.linear(F.linear(x, right.to(x.dtype)), left.to(x.dtype)).to(output.dtype)

        return add

    hooks = [layer.register_forward_hook(adding(name, layer)) for name, layer in layers.items() if name in factors]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cost_of(factors: Factors) -> JsonObject:
    """Count what C costs at training and wherever it is kept: 16 bits a number of its factors, for each weight of its layers."""
    numbers = sum(left.numel() + right.numel() for left, right in factors.values())
    weights = sum(left.shape[0] * right.shape[1] for left, right in factors.values())
    rank = max((left.shape[1] for left, _ in factors.values()), default=0)
    return {"rank": rank, "layers": len(factors), "bits_a_weight": 16 * numbers / weights if weights else 0.0}
