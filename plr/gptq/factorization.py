"""The Hessian made ready to solve with: damped, its columns put in order, factored (steps 1 and 2 of `plr.gptq.solver`).

How it works (letters as in the paper; `H [in, in]`):

1. dead inputs (`H[j, j] = 0`): `H[j, j] <- 1`, `W[:, j] <- 0`; damping: `H <- H + damp_percent mean(diag H) I`;
2. `U`, upper triangular, with `H^-1 = U^T U`. The paper inverts H and takes the Cholesky factor of the inverse; here H
   is factored back to front (`H = R R^T`, R upper) and `U = R^-1`: the same U, one factorization, no squared condition
   number.

Orders (`order`): `desc_act` solves the columns in order of falling `H[j, j]`; groups are then runs of that order
(`g_idx` says which column is in which group), or, with `static_groups`, stay runs of the original order with scales
from the original weights. `act_group_aware` (Gafni, Karnieli, Hanani, "Dual Precision Quantization", CVPR
workshops 2025; GPTQModel's default) keeps groups together, the heaviest group first and within each the heaviest column
first: `g_idx` stays trivial, and inference pays nothing.

Does not fall back: a Hessian that cannot be factored is a `HessianError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plr.gptq.errors import GPTQError, HessianError
from plr.gptq.settings import Settings
from plr.gptq.typed import linalg

__all__ = ["Factor", "factor", "factor_with", "order", "solver_dtype"]

LEAF = 128  # size below which a matrix is factored in one piece


@dataclass(frozen=True)
class Factor:
    """A Hessian made ready to solve with: shared by all layers that see the same input."""

    H: Tensor  # [in, in], undamped, original column order
    U: Tensor  # [in, in] upper triangular, H_damped[perm][:, perm]^-1 = U^T U
    perm: Tensor | None  # [in] int64, the order in which columns are solved; None: as they stand
    grouped: bool  # whether perm keeps the columns of a group together (as None does)
    dead: Tensor  # [in] bool, inputs that were always zero
    damp: float  # the number added to the diagonal of H


def factor(
    H: Tensor,  # [in, in] symmetric
    *,
    damp_percent: float = Settings.damp_percent,
    desc_act: bool = Settings.desc_act,
    act_group_aware: bool = Settings.act_group_aware,
    group_size: int = Settings.group_size,
    name: str = "weight",
    n_samples: int | None = None,
) -> Factor:
    """Make `H` ready to solve with: steps 1 and 2 of the module's docstring. `H` is not changed.

    Args:
        H: the finished Hessian.
        damp_percent: damping as a share of the mean diagonal.
        desc_act, act_group_aware: the order, see `order`.
        group_size: of the groups that `act_group_aware` keeps together.
        name, n_samples: what to call the layer, and how many rows H has seen, in an error.

    Raises:
        HessianError: H holds inf or NaN, is all zeros, or is not positive definite after damping.
    """
    seen = "" if n_samples is None else f" over {n_samples} rows"
    if not 0 <= damp_percent < 1:
        raise GPTQError(f"damp_percent={damp_percent} was given.", "0 <= damp_percent < 1.", "use 0.01 (the paper's).")
    diagonal = H.diagonal()
    if not math.isfinite(float(H.sum())):
        raise HessianError(
            f"The Hessian of {name} holds inf or NaN{seen}.",
            "finite calibration activations.",
            "run the model in bfloat16 or float32 and check the calibration samples.",
        )
    dead = diagonal == 0
    if bool(dead.all()):
        raise HessianError(
            f"The Hessian of {name} is all zeros{seen}: it saw no input but zeros.",
            "calibration rows that reach this module.",
            "check attention masks and samples, or skip this module.",
        )
    damped = H.to(solver_dtype(H), copy=True)
    damped.diagonal()[dead] = 1
    damp = damp_percent * float(damped.diagonal().mean())
    damped.diagonal().add_(damp)

    perm = order(damped.diagonal(), group_size, desc_act=desc_act, act_group_aware=act_group_aware)
    if perm is not None:
        damped = damped[perm][:, perm]
    # L L^T = J H J with J the reversal; R = J L J is upper, R R^T = H, and U = R^-1 = J L^-1 J.
    inverse = _inverse_factor(damped.flip(0, 1))
    if inverse is None:
        raise HessianError(
            f"The Hessian of {name} is not positive definite at damp_percent={damp_percent}{seen} "
            f"({int(dead.sum())} of {H.shape[0]} inputs dead).",
            "a Hessian that Cholesky can factor.",
            "use more calibration samples or a larger damp_percent (0.05, 0.1).",
        )
    return Factor(H=H, U=inverse.flip(0, 1), perm=perm, grouped=not desc_act, dead=dead, damp=damp)


def factor_with(settings: Settings, H: Tensor, *, name: str, n_samples: int | None = None) -> Factor:
    """Call `factor` with the numbers of `settings`."""
    return factor(
        H,
        damp_percent=settings.damp_percent,
        desc_act=settings.desc_act,
        act_group_aware=settings.act_group_aware,
        group_size=settings.group_size,
        name=name,
        n_samples=n_samples,
    )


def order(
    diagonal: Tensor,  # [in]
    group_size: int,
    *,
    desc_act: bool = Settings.desc_act,
    act_group_aware: bool = Settings.act_group_aware,
) -> Tensor | None:
    """Order the columns for solving, int64 `[in]`, heavy ones first; None: as they stand.

    Args:
        diagonal: of the Hessian.
        group_size: as in a checkpoint, -1 for whole rows.
        desc_act: by falling diagonal.
        act_group_aware: groups by the falling mean of their diagonal, columns by falling diagonal within their group.

    Raises:
        GPTQError: both orders were asked for.
    """
    if desc_act and act_group_aware:
        raise GPTQError(
            "desc_act and act_group_aware were both given.",
            "one order.",
            "use act_group_aware: it costs nothing at inference.",
        )
    if desc_act or (act_group_aware and group_size == -1):
        return torch.argsort(diagonal, descending=True, stable=True)
    if not act_group_aware:
        return None
    grouped = diagonal.view(-1, group_size)  # [groups, g]
    groups = torch.argsort(grouped.mean(1), descending=True, stable=True)
    within = torch.argsort(grouped, dim=1, descending=True, stable=True)
    return (within + group_size * torch.arange(len(groups), device=diagonal.device)[:, None])[groups].flatten()


def solver_dtype(tensor: Tensor) -> torch.dtype:
    """Name the dtype the solver works in on `tensor`: float64 stays, all others become float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _inverse_factor(A: Tensor) -> Tensor | None:
    """Compute `L^-1 [n, n]` for `A = L L^T`, by halves; None if `A` is not positive definite.

    With `A = [[A11, .], [A21, A22]]`: `L21 = A21 L11^-T`, the same for `A22 - L21 L21^T`, and
    `L^-1 = [[L11^-1, 0], [-L22^-1 L21 L11^-1, L22^-1]]`. Nearly all work is in matrix products, several times faster than
    a factorization followed by a triangular solve against the identity; L itself is never put together.
    """
    n = A.shape[0]
    if n <= LEAF:
        L, info = linalg.cholesky_ex(A)
        if int(info):
            return None
        return linalg.solve_triangular(L, torch.eye(n, dtype=A.dtype, device=A.device), upper=False)
    half = n // 2
    first = _inverse_factor(A[:half, :half])
    if first is None:
        return None
    L21 = A[half:, :half] @ first.t()
    second = _inverse_factor(torch.addmm(A[half:, half:], L21, L21.t(), alpha=-1))
    if second is None:
        return None
    inverse = torch.zeros_like(A)
    inverse[:half, :half] = first
    inverse[half:, half:] = second
    torch.mm(second, L21 @ first, out=inverse[half:, :half]).neg_()
    return inverse
