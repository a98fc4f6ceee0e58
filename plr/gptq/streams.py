"""Batch helpers of both walks: token mask, doubling for input correction, autocast, a layer that serves both halves."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from plr.gptq.errors import WalkError
from plr.gptq.layers import Layers

__all__ = ["Batch", "both_streams", "check_all_reached", "forward_in", "prepare", "token_rows"]

Batch = Mapping[str, object]


def check_all_reached(layers: Layers) -> None:
    """Raise `WalkError` unless every layer was quantized."""
    missed = [name for name in layers.targets if name not in layers.done]
    if missed:
        raise WalkError(
            f"The forward pass never reached {', '.join(missed)}.",
            "every linear layer of the blocks to be called.",
            "skip these modules, or calibrate with inputs that reach them.",
        )


@contextmanager
def both_streams(packed: nn.Module, linear: nn.Module) -> Generator[None]:
    """Let `packed` serve the first half of each batch, and the dense layer it stands for the second."""
    own = packed.forward

    def forward(input: Tensor) -> Tensor:
        quantized, source = input.chunk(2)
        return torch.cat([own(quantized), type(linear).forward(linear, source)])

    packed.forward = forward
    try:
        yield
    finally:
        packed.__dict__.pop("forward", None)


def forward_in(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Enter autocast to `dtype` on `device`; nothing for None and float32."""
    if dtype is None or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


def prepare(batch: Batch, device: torch.device, *, twice: bool) -> dict[str, object]:
    """Move the batch to `device` without labels; with `twice`, every tensor of its size twice, one after the other."""
    size = next(value.shape[0] for value in batch.values() if isinstance(value, Tensor))

    def ready(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        here = value.to(device)
        return torch.cat([here, here]) if twice and here.dim() and here.shape[0] == size else here

    return {key: ready(value) for key, value in batch.items() if key != "labels"}


def token_rows(batch: Batch) -> Tensor | None:
    """Tell which of the `b*t` positions are tokens, or None where all are."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or bool((mask != 0).all()):
        return None
    if mask.dim() != 2:
        raise WalkError(
            f"attention_mask of shape {tuple(mask.shape)}.",
            "[b, t] with 1 for tokens, 0 for padding.",
            "pass the 2-D mask.",
        )
    if not bool(mask.any()):
        raise WalkError("A calibration batch is all padding.", "at least one token.", "drop empty samples.")
    return mask.reshape(-1) != 0
