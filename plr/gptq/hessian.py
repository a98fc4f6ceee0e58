"""The layer Hessian `H = 2/n sum_i x_i x_i^T` of GPTQ (Frantar et al. 2022, section 3.1), accumulated batch by batch.

How it works:

1. `empty(in_features)` makes zeros in float32;
2. `accumulate(H, X, n)` folds the rows of `X` into the running mean: `H <- n/(n+m) H + 2/(n+m) X^T X`. H is symmetric,
   so only the panels on and above the diagonal are computed: half the arithmetic. Below them H is garbage until ...
3. `finish(H)` mirrors the upper half down.

A running mean, not a sum: its magnitude does not grow with the sample count, so float32 keeps its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plr.gptq.errors import HessianError

__all__ = ["accumulate", "empty", "finish", "panel", "quadratic_form"]


def empty(in_features: int, device: torch.device | str | None = None) -> Tensor:
    """Make a Hessian that has seen nothing: zeros `[in, in]` in float32."""
    return torch.zeros(in_features, in_features, dtype=torch.float32, device=device)


def accumulate(H: Tensor, X: Tensor, n: int) -> int:
    """Fold the rows of `X [.., in]` into `H [in, in]`, which has seen `n` rows. In place; returns the new row count.

    Only the upper panels of `H` are written: call `finish` before using it.
    """
    rows = X.reshape(-1, X.shape[-1]).to(H.dtype)  # [m, in]
    if rows.shape[1] != H.shape[0]:
        raise HessianError(
            f"Inputs of {rows.shape[1]} features were given to a Hessian of {H.shape[0]}.",
            "as many features as the Hessian has rows.",
            "make the Hessian with empty(in_features) of this layer.",
        )
    m = rows.shape[0]
    if m == 0:
        return n
    columns, size = H.shape[0], panel(H.shape[0])
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        part = H[start:stop, start:]  # [<= size, in - start]
        torch.addmm(part, rows[:, start:stop].t(), rows[:, start:], beta=n / (n + m), alpha=2 / (n + m), out=part)
    return n + m


def finish(H: Tensor) -> Tensor:
    """Mirror the upper half of `H [in, in]` into the lower one, in place; returns `H`."""
    columns, size = H.shape[0], panel(H.shape[0])
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        corner = H[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).t())
        H[stop:, start:stop] = H[start:stop, stop:].t()
    return H


def quadratic_form(E: Tensor, H: Tensor) -> Tensor:
    """Compute the diagonal of `E H E^T` for `E [out, in]` and a symmetric `H [in, in]`: `[out]`, float64.

    Twice the mean squared output that each row of `E` makes. Off-diagonal panels count twice and are computed once.
    """
    Et = E.t()  # [in, out], as the solver has it
    total = torch.zeros(E.shape[0], dtype=torch.float64, device=E.device)
    size = panel(H.shape[0])
    for start in range(0, H.shape[0], size):
        stop = min(start + size, H.shape[0])
        rows = Et[start:stop]  # [<= size, out]
        product = torch.addmm(H[start:stop, start:stop] @ rows, H[start:stop, stop:], Et[stop:], alpha=2)
        total += product.mul_(rows).sum(0, dtype=torch.float64)
    return total


def panel(columns: int) -> int:
    """Choose the columns of a panel: small enough to skip half the work, large enough for a fast GEMM."""
    return 128 if columns <= 1024 else 256
