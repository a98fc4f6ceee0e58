"""Coordinate descent on solved codes: GPTQ decides each code once, these passes look at each again.

GPTQ is greedy: a code is chosen before the columns after it are. Afterwards all errors are known, and the objective

    f(Q) = tr(E H E^T),   E = W - Q,   H damped

is quadratic, so each code, and each scale, can be moved to its exact minimum while all others stand (cyclic descent as
in QuantEase, Behdin et al. 2023, arXiv:2309.01885, section 3; the scale step is the one-dimensional least squares of
the same objective). f never rises.

How one pass works (transposed, as in the solver; `G = H E^T [in, out]` is half the gradient):

1. for each run of columns `a..b` of one group: `G[a:b] = H[a:b] E^T`, one matrix product;
2. if the run is a whole group: the scale moves by `d = <C, G> / <C, H C>` with `C` the codes less their zero point, is
   rounded as a checkpoint stores it, and the move is kept in the rows where it lowers f;
3. column by column: the best real value for `q_j` is `q_j + G_j / H_jj`; it is rounded to the grid, and what changed is
   taken out of `G` for the columns of the run that follow.

What it costs: about twice the arithmetic of the GPTQ loop a pass. What it gives up: scales of groups longer than `RUN`
columns (whole rows) stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plr.gptq import affine
from plr.gptq.factorization import Factor
from plr.gptq.typed import numbers

__all__ = ["refine"]

RUN = 256  # columns whose gradient is held at once


def refine(
    Wt: Tensor,  # [in, out] what is approximated
    Ct: Tensor,  # [in, out] codes less their zero point
    scales: Tensor,  # [groups, out]
    zeros: Tensor,  # [groups, out]
    g_idx: Tensor,  # [in] int64
    F: Factor,
    *,
    passes: int,
    maxq: int,
    scale_dtype: torch.dtype | None = torch.float16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Improve codes and scales by `passes` rounds of coordinate descent; the arguments are not changed.

    Returns codes and scales, shaped as they came, and the diagonal of `E H_damped E^T [out]`.
    """
    order = torch.argsort(g_idx, stable=True)  # the columns of a group side by side
    in_order = bool((order == torch.arange(len(order), device=order.device)).all())
    H = _damped(F, Wt.dtype, None if in_order else order)
    if not in_order:
        Wt, Ct = Wt[order], Ct[order]
    Ct, scales = Ct.clone(), scales.clone()
    group = Wt.shape[0] // scales.shape[0]
    Et = Wt - Ct * scales.repeat_interleave(group, 0)
    step = min(group, RUN)
    diagonal = numbers(H.diagonal())
    for _ in range(passes):
        for a in range(0, len(Wt), step):
            b = min(a + step, len(Wt), (a // group + 1) * group)
            scale, zero = scales[a // group], zeros[a // group]
            codes, local = Ct[a:b], H[a:b, a:b]
            G = H[a:b] @ Et  # [run, out]
            if b - a == group:
                _move_scale(scale, codes, local, G, Et[a:b], scale_dtype)
            low, high = -zero, maxq - zero
            D = torch.empty_like(codes)  # how far each value moved
            for j in range(b - a):
                if j:
                    G[j].addmv_(D[:j].t(), local[:j, j], alpha=-1)
                value = codes[j] * scale
                best = torch.add(value, G[j], alpha=1 / diagonal[a + j]).div_(scale).round_()
                torch.clamp(best, low, high, out=codes[j])
                torch.addcmul(-value, codes[j], scale, out=D[j])
            Et[a:b] -= D
    noise = (Et * (H @ Et)).sum(0, dtype=torch.float64)
    if not in_order:
        Ct = Ct[torch.argsort(order)]
    return Ct, scales, noise


def _damped(F: Factor, dtype: torch.dtype, order: Tensor | None) -> Tensor:
    """Copy the Hessian with its damping, its columns in `order` (None: as they stand)."""
    H = F.H.to(dtype, copy=True)
    H.diagonal()[F.dead] = 1
    H.diagonal().add_(F.damp)
    return H if order is None else H[order][:, order]


def _move_scale(scale: Tensor, C: Tensor, H: Tensor, G: Tensor, E: Tensor, scale_dtype: torch.dtype | None) -> None:
    """Move a scale (step 2 of the module's docstring); changes `scale [out]`, `G` and `E` `[g, out]` in place."""
    HC = H @ C
    slope, curve = (C * G).sum(0), (C * HC).sum(0)
    moved = torch.where(curve > 0, scale + slope / curve, scale)
    moved = affine.round_scale(torch.where(moved > 0, moved, scale), scale_dtype)
    d = moved - scale
    d = torch.where(d * (2 * slope - d * curve) > 0, d, 0.0)  # what f falls by
    scale += d
    G.sub_(HC * d)
    E.sub_(C * d)
