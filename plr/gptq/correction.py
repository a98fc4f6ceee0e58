"""Input correction: a layer makes good what the layers before it lost.

A quantized model hands its layers inputs `x` that differ from the source model's `x_s`. The layer that serves best is
then not close to `W` but to the regression of `W x_s` on `x`:

    W* = W + strength * W S H^-1,   S = E[(x_s - x) x^T],   H = E[x x^T] (damped)

With strength 1 this is the least-squares solution; less of it overfits less where calibration is short. This is the
closed-form correction with a tunable strength of quantization error propagation (QEP, Arai and Ichikawa 2025,
arXiv:2504.09629), solved with the damped Hessian that GPTQ factors anyway.
The walk runs both models side by side as one batch of twice the size, which costs a second forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plr.gptq.factorization import Factor

__all__ = ["accumulate", "target"]


def accumulate(S: Tensor, X: Tensor, source: Tensor, n: int) -> None:
    """Fold the rows of `X [m, in]` and of `source [m, in]` into the running mean `S [in, in]`, which has seen `n` rows."""
    m = X.shape[0]
    if m:
        rows = X.to(S.dtype)
        torch.addmm(S, (source.to(S.dtype) - rows).t(), rows, beta=n / (n + m), alpha=2 / (n + m), out=S)


def target(W: Tensor, S: Tensor, factor: Factor, strength: float) -> Tensor:
    """Compute `W + strength * W S H^-1`, `[out, in]`, in the dtype of `S`. Inputs that were always zero are left as they are."""
    weight = W.to(S.dtype)
    moved = weight @ S  # [out, in]
    if factor.perm is not None:
        moved = moved[:, factor.perm]
    U = factor.U.to(S.dtype)
    moved = (moved @ U.t()) @ U  # H^-1 = U^T U
    if factor.perm is not None:
        moved = moved[:, torch.argsort(factor.perm)]
    return torch.add(weight, moved.masked_fill_(factor.dead, 0), alpha=strength)
