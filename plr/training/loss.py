"""Cross entropy that keeps one tensor of the size of the logits for its backward, not three."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from plr.gptq.typed import Context

__all__ = ["summed_cross_entropy"]

ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Logits that are taken to float32 at once: on a CPU as many as its caches hold."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross entropies, in float32, of `logits [n, vocabulary]` of any dtype at `targets` int64 `[n]`.

    The gradient is made in the forward, a block of rows at a time, in the dtype of the logits.
    """
    return cast(Tensor, _CrossEntropy.apply(logits, targets))  # pyright: ignore[reportUnknownMemberType]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(logits) if wanted else None
        total = logits.new_zeros((), dtype=torch.float32)
        step = max(1, ELEMENTS.get(logits.device.type, ELEMENTS["cuda"]) // logits.shape[-1])
        for start in range(0, logits.shape[0], step):
            rows = slice(start, start + step)
            at = targets[rows].unsqueeze(1)
            block = logits[rows].log_softmax(1, torch.float32)
            total -= block.gather(1, at).sum()
            if grad is not None:
                block.exp_().scatter_add_(1, at, block.new_full(at.shape, -1.0))
                grad[rows] = block
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = ctx.saved_tensors
        return (None if grad is None else grad * grads[0].to(grad.dtype)), None
