"""GPTQ, Algorithm 1 of Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2022, arXiv:2210.17323): quantize the columns of W one by one, each time letting the columns
still to come absorb the error.

How it works (letters as in the paper; `W [out, in]`, `H [in, in]`):

1. dead inputs (`H[j, j] = 0`): `H[j, j] <- 1`, `W[:, j] <- 0`; damping: `H <- H + damp_percent mean(diag H) I`;
2. `U`, upper triangular, with `H^-1 = U^T U`. The paper inverts H and takes the Cholesky factor of the inverse; here H
   is factored back to front (`H = R R^T`, R upper) and `U = R^-1`: the same U, one factorization, no squared condition
   number;
3. for each column j: `q_j = quant(w_j)`, `e_j = (w_j - q_j) / U[j, j]`, then `w_k <- w_k - e_j U[j, k]` for all k > j.

Step 3 is arranged for the machine, and gives the result of the plain loop:

- everything is transposed, `[in, out]`: a column of W is a contiguous row;
- it looks left: a column collects the errors of its predecessors when its turn comes, one matrix-vector product for
  each column within runs of `RUN`, one matrix product for each run, each group and each block (the paper's lazy
  batches);
- a group's scale is taken from the *current* weights, with all errors before it applied, also when group_size <
  block_size. The reference code and GPTQModel read weights there that lack the errors of the running block, so their
  scales, and with them most codes, differ when group_size < block_size. With group_size >= block_size all agree.

- the error is not divided by `U[j, j]`, the rows of U are: one operation a column less.

Layers that see the same input are solved side by side: `W` may hold the rows of several of them (`Solution.split`).

Orders (`order`): `desc_act` solves the columns in order of falling `H[j, j]`; groups are then runs of that order
(`g_idx` says which column is in which group), or, with `static_groups`, stay runs of the original order with scales
from the original weights. `act_group_aware` (Gafni, Karnieli, Hanani, "Dual Precision Quantization", CVPR
workshops 2025; GPTQModel's default) keeps groups together, the heaviest group first and within each the heaviest column
first: `g_idx` stays trivial, and inference pays nothing.

After the loop: `refine_passes` of coordinate descent (`plr.gptq.refine`).

Works in float32, or in float64 if W is given in it. Does not fall back: a Hessian that cannot be factored is a
`HessianError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plr.gptq import affine, hessian, refine
from plr.gptq.errors import GPTQError, GroupSizeError
from plr.gptq.factorization import Factor, factor, solver_dtype

__all__ = ["Solution", "check_group_size", "gptq_solve", "rtn_solve"]

RUN = 8  # columns updated one by one before a matrix product takes over


@dataclass(frozen=True)
class Solution:
    """A quantized layer. `scale[:, g_idx] * (Q - zero[:, g_idx])` is the dequantized weight."""

    Q: Tensor  # [out, in] int32 codes, 0 .. 2**bits - 1
    scale: Tensor  # [out, groups], dtype of the solver
    zero: Tensor  # [out, groups] int32
    g_idx: Tensor  # [in] int32, the group of each column
    perm: Tensor | None  # [in] int64, the order in which columns were solved; None: as they stand
    bits: int
    group_size: int  # as asked for; -1 is one group a row
    sym: bool
    noise: Tensor | None  # [out] float64, the diagonal of E H E^T, E = W - dequantize(); None: no Hessian given
    power: (
        Tensor | None
    )  # [out] float64, the diagonal of W H W^T: twice the mean squared output; None: no Hessian given
    damp: float | None  # the number added to the diagonal of H; None: rounding to nearest
    dead: int  # inputs that were always zero in calibration

    @property
    def error(self) -> float | None:
        """The relative output error tr(E H E^T) / tr(W H W^T); None: no Hessian given."""
        if self.noise is None or self.power is None:
            return None
        noise, power = float(self.noise.sum()), float(self.power.sum())
        return max(noise, 0.0) / power if power > 0 else 0.0  # rounding may leave a vanishing noise below zero

    def dequantize(self) -> Tensor:
        """The weight these codes stand for, `[out, in]`."""
        columns, groups = self.Q.shape[1], self.scale.shape[1]
        size = columns // groups
        if bool((self.g_idx == torch.arange(columns, device=self.g_idx.device) // size).all()):
            Q = self.Q.unflatten(1, (groups, size))
            return affine.dequantize(Q, self.scale[..., None], self.zero[..., None]).flatten(1)
        g_idx = self.g_idx.long()
        return affine.dequantize(self.Q, self.scale[:, g_idx], self.zero[:, g_idx])

    def split(self, rows: Sequence[int]) -> list[Solution]:
        """One solution for each run of `rows` rows: of layers that were solved side by side."""
        parts = zip(
            *(
                [None] * len(rows) if tensor is None else torch.split(tensor, list(rows))
                for tensor in (self.Q, self.scale, self.zero, self.noise, self.power)
            ),
            strict=True,
        )
        return [
            replace(self, Q=Q, scale=scale, zero=zero, noise=noise, power=power, g_idx=self.g_idx.clone())
            for Q, scale, zero, noise, power in parts
        ]


def check_group_size(in_features: int, group_size: int, name: str = "weight") -> int:
    """The number of columns a group has; `GroupSizeError` naming the layer unless groups divide its columns."""
    if group_size == -1:
        return in_features
    if group_size < 1 or in_features % group_size:
        fits = [g for g in (16, 32, 64, 128, 256, 512, 1024) if in_features % g == 0]
        raise GroupSizeError(
            f"{name} has in_features={in_features}, which group_size={group_size} does not divide.",
            f"a group_size that divides {in_features}, or -1 (one group for each row).",
            f"use group_size {', '.join(map(str, [*fits, -1]))}, or skip this module.",
        )
    return group_size


@torch.no_grad()
def gptq_solve(
    W: Tensor,  # [out, in]
    H: Tensor | Factor,  # [in, in]
    *,
    bits: int,
    group_size: int = 128,
    sym: bool = True,
    desc_act: bool = False,
    static_groups: bool = False,
    act_group_aware: bool = False,
    damp_percent: float = 0.01,
    block_size: int = 128,
    grid: str = "minmax",
    refine_passes: int = 0,
    scale_dtype: torch.dtype | None = torch.float16,
    target: Tensor | None = None,  # [out, in]
    name: str = "weight",
    n_samples: int | None = None,
) -> Solution:
    """Quantize `W` so that `tr((W - Q) H (W - Q)^T)`, the output error, is small. Step 3 of the module's docstring.

    Args:
        W: weight, any floating dtype; not changed. Rows are independent: several layers of one input may be stacked.
        H: the finished Hessian, or its `Factor` (then the order and `damp_percent` are those of the factor).
        bits: 2, 3, 4 or 8.
        group_size: columns that share a scale; -1 for whole rows. Must divide `in`.
        sym, grid, scale_dtype: the grid, see `plr.gptq.affine.find_params`.
        desc_act, act_group_aware: the order, see `order`.
        static_groups: take all scales from W before the first column is solved.
        damp_percent: damping as a share of the mean diagonal.
        block_size: columns whose errors reach the rest of W in one matrix product. Speed only: the result is the same.
        refine_passes: rounds of coordinate descent afterwards, see `plr.gptq.refine`.
        target: what to approximate in the place of `W` (see `plr.gptq.correction`). Errors reported are against it.
        name, n_samples: for error messages.

    Raises:
        GroupSizeError, HessianError, GPTQError.
    """
    affine.check_bits(bits)
    columns = W.shape[1]
    group = check_group_size(columns, group_size, name)
    F = (
        H
        if isinstance(H, Factor)
        else factor(
            H,
            damp_percent=damp_percent,
            desc_act=desc_act,
            act_group_aware=act_group_aware,
            group_size=group_size,
            name=name,
            n_samples=n_samples,
        )
    )
    if F.U.shape[0] != columns:
        raise GPTQError(
            f"{name} has {columns} columns and its Hessian {F.U.shape[0]}.",
            "as many.",
            "accumulate this layer's inputs.",
        )
    weight = _finite(W if target is None else target, name)
    maxq = 2**bits - 1
    diagonal = F.U.diagonal().to(weight.dtype)
    cost = diagonal.pow(-2)[:, None]  # [in, 1] what a squared error of each column costs
    U = F.U.to(weight.dtype) / diagonal[:, None]  # [in, in] unit upper triangular
    original = weight.t().clone(memory_format=torch.contiguous_format)  # [in, out]
    original[F.dead] = 0  # a dead input's error costs nothing

    def params(rows: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:  # [g, out], [g, 1] -> [out], [out]
        scale, zero = affine.find_params(
            rows, bits=bits, sym=sym, grid=grid, dim=0, scale_dtype=scale_dtype, weight=cost
        )
        return scale[0], zero[0]

    n_groups = columns // group
    static = static_groups or n_groups == 1
    solved_group = torch.arange(columns, device=W.device) // group  # [in] group of the j-th column solved
    grids: dict[int, tuple[Tensor, Tensor]] = {}  # (scale, zero), each [out], of every group found so far
    back = None if F.perm is None else torch.argsort(F.perm)
    if static:
        natural = cost if back is None else cost[back]
        for g in range(n_groups):
            grids[g] = params(original[g * group : (g + 1) * group], natural[g * group : (g + 1) * group])
    Wt = original.clone() if F.perm is None else original[F.perm]  # [in, out] what is left to approximate
    if F.perm is not None and (static or F.grouped):
        solved_group = solved_group[F.perm]
    group_of = [int(g) for g in _numbers(solved_group)]

    Ct = torch.empty_like(Wt)  # [in, out] codes less their zero point
    Et = torch.empty_like(Wt)  # [in, out] w_j - q_j
    # A run is worked on in small buffers with fixed views of their rows: no slicing for each column.
    W_run, C_run, E_run = (torch.zeros(RUN, Wt.shape[1], dtype=Wt.dtype, device=Wt.device) for _ in range(3))
    rows, errors = list(zip(W_run.unbind(), C_run.unbind(), E_run.unbind(), strict=True)), E_run.t()
    corner = torch.zeros(RUN, RUN, dtype=Wt.dtype, device=Wt.device)  # of U, transposed, strictly lower
    above = corner.unbind()
    for i1, i2 in _blocks(columns, block_size, columns if static else group):
        for p1, p2 in _runs(i1, i2, i2 - i1 if static else group):  # one group, or the block where none starts within
            Wt[p1:p2].addmm_(U[i1:p1, p1:p2].t(), Et[i1:p1], alpha=-1)
            if not static and p1 % group == 0:
                grids[group_of[p1]] = params(Wt[p1 : p1 + group], cost[p1 : p1 + group])
            for s1, s2 in _runs(p1, p2, RUN):
                size = s2 - s1
                torch.addmm(Wt[s1:s2], U[p1:s1, s1:s2].t(), Et[p1:s1], alpha=-1, out=W_run[:size])
                corner[:size, :size] = U[s1:s2, s1:s2].t().tril(-1)
                for k in range(size):
                    w, code, error = rows[k]  # [out] each
                    if k:  # columns from k on have no weight in above[k]
                        w.addmv_(errors, above[k], alpha=-1)
                    scale, zero = grids[group_of[s1 + k]]
                    torch.div(w, scale, out=code).round_()
                    _clamp(code, zero, maxq, sym)
                    torch.addcmul(w, code, scale, value=-1, out=error)
                Ct[s1:s2] = C_run[:size]
                Et[s1:s2] = E_run[:size]
        Wt[i2:].addmm_(U[i1:i2, i2:].t(), Et[i1:i2], alpha=-1)

    scales = torch.stack([grids[g][0] for g in range(n_groups)])  # [groups, out]
    zeros = torch.stack([grids[g][1] for g in range(n_groups)])
    power = hessian.quadratic_form(original.t(), F.H.to(weight.dtype))
    # E = W - Q = e U and H_damped^-1 = U^T U, so diag(E H_damped E^T) = sum_j e_j^2 / U[j, j]^2.
    noise = Et.square_().t() @ cost[:, 0]
    if back is not None:
        Ct, solved_group = Ct[back], solved_group[back]
    if refine_passes:
        Ct, scales, noise = refine.refine(
            original, Ct, scales, zeros, solved_group, F, passes=refine_passes, maxq=maxq, scale_dtype=scale_dtype
        )
    if _in_order(solved_group, group):  # views in place of gathers
        shape = (n_groups, group, -1)
        E = torch.addcmul(original.view(shape), Ct.view(shape), scales[:, None], value=-1).flatten(0, 1)  # [in, out]
        codes = Ct.view(shape).add_(zeros[:, None]).flatten(0, 1)
    else:
        E = torch.addcmul(original, Ct, scales[solved_group], value=-1)
        codes = Ct.add_(zeros[solved_group])
    E[F.dead] = 0
    # The damping's share of the error is damp |E|^2.
    noise = noise.double() - F.damp * torch.linalg.vector_norm(E, dim=0).double().square()
    return Solution(
        Q=codes.to(torch.int32).t(),
        scale=scales.t().contiguous(),
        zero=zeros.t().to(torch.int32).contiguous(),
        g_idx=solved_group.to(torch.int32),
        perm=F.perm,
        bits=bits,
        group_size=group_size,
        sym=sym,
        noise=noise,
        power=power,
        damp=F.damp,
        dead=int(F.dead.sum()),
    )


@torch.no_grad()
def rtn_solve(
    W: Tensor,  # [out, in]
    H: Tensor | Factor | None = None,  # [in, in], only to measure the error with
    power: Tensor | None = None,  # [out] the diagonal of W H W^T, where it is known
    *,
    bits: int,
    group_size: int = 128,
    sym: bool = True,
    grid: str = "minmax",
    scale_dtype: torch.dtype | None = torch.float16,
    name: str = "weight",
) -> Solution:
    """Round `W` to the nearest point of its grid: what GPTQ is compared with, and equals where H is the identity."""
    affine.check_bits(bits)
    columns = W.shape[1]
    group = check_group_size(columns, group_size, name)
    weight = _finite(W, name)
    Wt = weight.t().reshape(-1, group, W.shape[0])  # [groups, g, out]
    # A Hessian-weighted grid without a Hessian counts all columns alike.
    scale, zero = affine.find_params(Wt, bits=bits, sym=sym, grid=grid, dim=1, scale_dtype=scale_dtype)
    Qt = affine.quantize(Wt, scale, zero, 2**bits - 1).flatten(0, 1)
    solution = Solution(
        Q=Qt.to(torch.int32).t(),
        scale=scale[:, 0].t().contiguous(),
        zero=zero[:, 0].t().to(torch.int32).contiguous(),
        g_idx=(torch.arange(columns, device=W.device) // group).to(torch.int32),
        perm=None,
        bits=bits,
        group_size=group_size,
        sym=sym,
        noise=None,
        power=None,
        damp=None,
        dead=0,
    )
    if H is None:
        return solution
    form = (H.H if isinstance(H, Factor) else H).to(weight.dtype)
    noise = hessian.quadratic_form(weight - solution.dequantize(), form)
    return replace(solution, noise=noise, power=hessian.quadratic_form(weight, form) if power is None else power)


def _finite(W: Tensor, name: str) -> Tensor:
    """`W` in the solver's dtype."""
    if not math.isfinite(float(W.detach().sum(dtype=solver_dtype(W)))):  # a sum holds inf and NaN as its terms do
        raise GPTQError(f"The weight of {name} holds inf or NaN.", "finite weights.", "check the source checkpoint.")
    return W.detach().to(solver_dtype(W))


def _numbers(vector: Tensor) -> list[float]:
    return vector.tolist()  # pyright: ignore


def _runs(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, stop)) for i in range(start, stop, step)]


def _blocks(columns: int, block_size: int, group: int) -> list[tuple[int, int]]:
    """Blocks that hold whole groups, or lie within one: where a group starts, no error is pending for its end."""
    if block_size < 1:
        raise GPTQError(f"block_size={block_size} was given.", "a positive number.", "use 128 (the paper's).")
    if group <= block_size:
        return _runs(0, columns, block_size // group * group)
    return [block for start, stop in _runs(0, columns, group) for block in _runs(start, stop, block_size)]


def _in_order(g_idx: Tensor, group: int) -> bool:
    """Whether groups are runs of `group` columns."""
    return bool((g_idx == torch.arange(len(g_idx), device=g_idx.device) // group).all())


def _clamp(code: Tensor, zero: Tensor, maxq: int, sym: bool) -> None:
    """Codes less their zero point into `-zero .. maxq - zero`, in place."""
    if sym:
        middle = (maxq + 1) / 2
        code.clamp_(-middle, maxq - middle)
    else:
        torch.clamp(code, -zero, maxq - zero, out=code)
