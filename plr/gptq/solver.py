"""GPTQ: quantize the columns of W one by one, each time letting the columns still to come absorb the error.

Algorithm 1 of Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2022, arXiv:2210.17323).

How it works (letters as in the paper; `W [out, in]`, `H [in, in]`):

1. dead inputs are set aside, H is damped;
2. `U`, upper triangular, with `H^-1 = U^T U`; both steps, and the order of columns, are `plr.gptq.factorization`;
3. for each column j: `q_j = quant(w_j)`, `e_j = (w_j - q_j) / U[j, j]`, then `w_k <- w_k - e_j U[j, k]` for all k > j;
4. `refine_passes` of coordinate descent (`plr.gptq.refine`).

Step 3 (`_solve_columns`) is arranged for the machine, and gives the result of the plain loop:

- everything is transposed, `[in, out]`: a column of W is a contiguous row;
- it looks left: a column collects the errors of its predecessors when its turn comes, one matrix-vector product for
  each column within runs of `RUN`, one matrix product for each run, each group and each block (the paper's lazy
  batches);
- a group's scale is taken from the *current* weights, with all errors before it applied, also when group_size <
  block_size. The reference code and GPTQModel read weights there that lack the errors of the running block, so their
  scales, and with them most codes, differ when group_size < block_size. With group_size >= block_size all agree;
- the error is not divided by `U[j, j]`, the rows of U are: one operation a column less.

Layers that see the same input are solved side by side: `W` may hold the rows of several of them (`Solution.split`).

Works in float32, or in float64 if W is given in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from plr.gptq import affine, hessian, refine
from plr.gptq.errors import GPTQError, GroupSizeError
from plr.gptq.factorization import Factor, factor_with, solver_dtype
from plr.gptq.settings import Knobs, Settings, settings_of
from plr.gptq.solution import Solution
from plr.gptq.typed import linalg, numbers

__all__ = ["check_group_size", "gptq_solve", "rtn_solve"]

RUN = 8  # columns updated one by one before a matrix product takes over

Grids = dict[int, tuple[Tensor, Tensor]]  # group -> (scale [out], zero [out])


@torch.no_grad()
def gptq_solve(
    W: Tensor,  # [out, in]
    H: Tensor | Factor,  # [in, in]
    *,
    settings: Settings | None = None,
    scale_dtype: torch.dtype | None = torch.float16,
    target: Tensor | None = None,  # [out, in]
    name: str = "weight",
    n_samples: int | None = None,
    **knobs: Unpack[Knobs],
) -> Solution:
    """Quantize `W` so that `tr((W - Q) H (W - Q)^T)`, the output error, is small.

    Args:
        W: weight, any floating dtype; not changed. Rows are independent: several layers of one input may be stacked.
        H: the finished Hessian, or its `Factor` (then the order and `damp_percent` are those of the factor).
        settings, or its fields as keywords: see `Settings`. `input_correction` is the caller's: it makes `target`.
        scale_dtype: round scales to it before codes are chosen, see `plr.gptq.affine`.
        target: what to approximate in the place of `W` (see `plr.gptq.correction`). Errors reported are against it.
        name, n_samples: for error messages.

    Raises:
        GroupSizeError, HessianError, GPTQError.
    """
    s = settings_of(settings, knobs)
    layer = _prepare(W if target is None else target, H, s, scale_dtype, name, n_samples)
    codes, errors, grids = _solve_columns(layer)
    return _finish(layer, codes, errors, grids)


@dataclass(frozen=True)
class _Layer:
    """A weight and a factored Hessian made ready for the column loop; transposed, a column of W is a row here."""

    settings: Settings
    factor: Factor
    W: Tensor  # [in, out] what is approximated, columns as they stand; those of dead inputs are 0
    U: Tensor  # [in, in] the factor's, each row over its diagonal: unit upper triangular
    cost: Tensor  # [in, 1] what a squared error of each column costs, in the order of solving
    group: int  # columns of a group
    g_idx: Tensor  # [in] int64, the group of each column, in the order of solving
    static: bool  # whether all grids are those of W before the first column is solved
    scale_dtype: torch.dtype | None

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return len(self.W) // self.group

    def grid(self, rows: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Find the scale and zero point, each `[out]`, of a group: `rows [g, out]`, `cost [g, 1]`."""
        s = self.settings
        scale, zero = affine.find_params(
            rows, bits=s.bits, sym=s.sym, grid=s.grid, dim=0, scale_dtype=self.scale_dtype, weight=cost
        )
        return scale[0], zero[0]

    def static_grids(self) -> Grids:
        """Find the grids of all groups, runs of columns as they stand."""
        perm, g = self.factor.perm, self.group
        cost = self.cost if perm is None else self.cost[torch.argsort(perm)]
        return {i: self.grid(self.W[i * g : (i + 1) * g], cost[i * g : (i + 1) * g]) for i in range(self.groups)}


def _prepare(
    weight: Tensor,  # [out, in]
    H: Tensor | Factor,  # [in, in]
    s: Settings,
    scale_dtype: torch.dtype | None,
    name: str,
    n_samples: int | None,
) -> _Layer:
    """Check the sizes, factor H (steps 1 and 2), and lay everything out for the loop."""
    affine.check_bits(s.bits)
    columns = weight.shape[1]
    group = check_group_size(columns, s.group_size, name)
    F = H if isinstance(H, Factor) else factor_with(s, H, name=name, n_samples=n_samples)
    if F.U.shape[0] != columns:
        raise GPTQError(
            f"{name} has {columns} columns and its Hessian {F.U.shape[0]}.",
            "as many.",
            "accumulate this layer's inputs.",
        )
    weight = _finite(weight, name)
    diagonal = F.U.diagonal().to(weight.dtype)
    W = weight.t().clone(memory_format=torch.contiguous_format)
    W[F.dead] = 0  # a dead input's error costs nothing
    static = s.static_groups or columns == group
    g_idx = torch.arange(columns, device=W.device) // group
    if F.perm is not None and (static or F.grouped):
        g_idx = g_idx[F.perm]
    return _Layer(
        settings=s,
        factor=F,
        W=W,
        U=F.U.to(weight.dtype) / diagonal[:, None],
        cost=diagonal.pow(-2)[:, None],
        group=group,
        g_idx=g_idx,
        static=static,
        scale_dtype=scale_dtype,
    )


def _solve_columns(layer: _Layer) -> tuple[Tensor, Tensor, Grids]:
    """Quantize column after column: step 3. Columns lie in the order of solving.

    Returns the codes less their zero point `[in, out]`, the errors `w_j - q_j [in, out]`, and the grid of each group.
    """
    U, cost, group, static = layer.U, layer.cost, layer.group, layer.static
    perm, columns = layer.factor.perm, len(layer.W)
    W = layer.W.clone() if perm is None else layer.W[perm]  # [in, out] what is left to approximate
    C, E = torch.empty_like(W), torch.empty_like(W)
    grids = layer.static_grids() if static else {}
    group_of = [int(g) for g in numbers(layer.g_idx)]
    run = _Run(W, layer.settings)
    for i1, i2 in _blocks(columns, layer.settings.block_size, columns if static else group):
        for p1, p2 in _runs(i1, i2, i2 - i1 if static else group):  # one group, or the block where none starts within
            W[p1:p2].addmm_(U[i1:p1, p1:p2].t(), E[i1:p1], alpha=-1)
            if not static and p1 % group == 0:
                grids[group_of[p1]] = layer.grid(W[p1 : p1 + group], cost[p1 : p1 + group])
            for s1, s2 in _runs(p1, p2, RUN):
                torch.addmm(W[s1:s2], U[p1:s1, s1:s2].t(), E[p1:s1], alpha=-1, out=run.W[: s2 - s1])
                run.solve(U[s1:s2, s1:s2], [grids[g] for g in group_of[s1:s2]])
                C[s1:s2], E[s1:s2] = run.C[: s2 - s1], run.E[: s2 - s1]
        W[i2:].addmm_(U[i1:i2, i2:].t(), E[i1:i2], alpha=-1)
    return C, E, grids


class _Run:
    """Up to `RUN` columns, solved one by one in small buffers with fixed views of their rows: no slicing for each column."""

    def __init__(self, like: Tensor, s: Settings) -> None:
        self.W, self.C, self.E = (
            torch.zeros(RUN, like.shape[1], dtype=like.dtype, device=like.device) for _ in range(3)
        )  # [RUN, out] each: weights, codes less their zero point, errors
        self.maxq, self.sym = 2**s.bits - 1, s.sym
        self._rows = list(zip(self.W.unbind(), self.C.unbind(), self.E.unbind(), strict=True))
        self._errors = self.E.t()
        self._corner = torch.zeros(RUN, RUN, dtype=like.dtype, device=like.device)  # of U, transposed, strictly lower
        self._above = self._corner.unbind()

    def solve(self, U: Tensor, grids: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Quantize `W` column by column, each on its grid, into `C` and `E`; `U` is these columns' own square."""
        size, maxq, sym = len(grids), self.maxq, self.sym
        self._corner[:size, :size] = U.t().tril(-1)
        for k, (scale, zero) in enumerate(grids):
            w, code, error = self._rows[k]  # [out] each
            if k:  # columns from k on have no weight in above[k]
                w.addmv_(self._errors, self._above[k], alpha=-1)
            torch.div(w, scale, out=code).round_()
            _clamp(code, zero, maxq, sym)
            torch.addcmul(w, code, scale, value=-1, out=error)


def _finish(layer: _Layer, codes: Tensor, errors: Tensor, grids: Grids) -> Solution:
    """Refine (step 4), measure, and lay codes and scales out as the checkpoint has them; `codes`, `errors` are used up."""
    s, F, W, g_idx = layer.settings, layer.factor, layer.W, layer.g_idx
    scales = torch.stack([grids[g][0] for g in range(layer.groups)])  # [groups, out]
    zeros = torch.stack([grids[g][1] for g in range(layer.groups)])
    power = hessian.quadratic_form(W.t(), F.H.to(W.dtype))
    # E = W - Q = e U and H_damped^-1 = U^T U, so diag(E H_damped E^T) = sum_j e_j^2 / U[j, j]^2.
    noise = errors.square_().t() @ layer.cost[:, 0]
    if F.perm is not None:
        back = torch.argsort(F.perm)
        codes, g_idx = codes[back], g_idx[back]
    if s.refine_passes:
        codes, scales, noise = refine.refine(
            W, codes, scales, zeros, g_idx, F,
            passes=s.refine_passes, maxq=2**s.bits - 1, scale_dtype=layer.scale_dtype,
        )  # fmt: skip
    in_order = _in_order(g_idx, layer.group)
    shape = (layer.groups, layer.group, -1) if in_order else W.shape

    def spread(per_group: Tensor) -> Tensor:
        """Give each column its group's number: by broadcasting where groups are runs, else by a gather."""
        return per_group[:, None] if in_order else per_group[g_idx]

    E = torch.addcmul(W.view(shape), codes.view(shape), spread(scales), value=-1).view(W.shape)  # [in, out]
    codes = codes.view(shape).add_(spread(zeros)).view(W.shape)
    E[F.dead] = 0
    # The damping's share of the error is damp |E|^2.
    noise = noise.double() - F.damp * linalg.vector_norm(E, dim=0).double().square()
    return Solution(
        Q=codes.to(torch.int32).t(),
        scale=scales.t().contiguous(),
        zero=zeros.t().to(torch.int32).contiguous(),
        g_idx=g_idx.to(torch.int32),
        perm=F.perm,
        bits=s.bits,
        group_size=s.group_size,
        sym=s.sym,
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
    settings: Settings | None = None,
    scale_dtype: torch.dtype | None = torch.float16,
    name: str = "weight",
    **knobs: Unpack[Knobs],
) -> Solution:
    """Round `W` to the nearest point of its grid: what GPTQ is compared with, and equals where H is the identity.

    Of the knobs, `bits`, `group_size`, `sym` and `grid` say which grid; the others are passed over.
    """
    s = settings_of(settings, knobs)
    affine.check_bits(s.bits)
    columns = W.shape[1]
    group = check_group_size(columns, s.group_size, name)
    weight = _finite(W, name)
    Wt = weight.t().reshape(-1, group, W.shape[0])  # [groups, g, out]
    # A Hessian-weighted grid without a Hessian counts all columns alike.
    scale, zero = affine.find_params(Wt, bits=s.bits, sym=s.sym, grid=s.grid, dim=1, scale_dtype=scale_dtype)
    Qt = affine.quantize(Wt, scale, zero, 2**s.bits - 1).flatten(0, 1)
    solution = Solution(
        Q=Qt.to(torch.int32).t(),
        scale=scale[:, 0].t().contiguous(),
        zero=zero[:, 0].t().to(torch.int32).contiguous(),
        g_idx=(torch.arange(columns, device=W.device) // group).to(torch.int32),
        perm=None,
        bits=s.bits,
        group_size=s.group_size,
        sym=s.sym,
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


def check_group_size(in_features: int, group_size: int, name: str = "weight") -> int:
    """Count the columns of a group; `GroupSizeError` naming the layer unless groups divide its columns."""
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


def _finite(W: Tensor, name: str) -> Tensor:
    """Take `W` into the solver's dtype; `GPTQError` where it is not finite."""
    if not math.isfinite(float(W.detach().sum(dtype=solver_dtype(W)))):  # a sum holds inf and NaN as its terms do
        raise GPTQError(f"The weight of {name} holds inf or NaN.", "finite weights.", "check the source checkpoint.")
    return W.detach().to(solver_dtype(W))


def _runs(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, stop)) for i in range(start, stop, step)]


def _blocks(columns: int, block_size: int, group: int) -> list[tuple[int, int]]:
    """Cut the columns into blocks that hold whole groups, or lie within one.

    So where a group starts, no error is pending for its end.
    """
    if block_size < 1:
        raise GPTQError(f"block_size={block_size} was given.", "a positive number.", "use 128 (the paper's).")
    if group <= block_size:
        return _runs(0, columns, block_size // group * group)
    return [block for start, stop in _runs(0, columns, group) for block in _runs(start, stop, block_size)]


def _in_order(g_idx: Tensor, group: int) -> bool:
    """Tell whether groups are runs of `group` columns."""
    return bool((g_idx == torch.arange(len(g_idx), device=g_idx.device) // group).all())


def _clamp(code: Tensor, zero: Tensor, maxq: int, sym: bool) -> None:
    """Clamp codes less their zero point into `-zero .. maxq - zero`, in place."""
    if sym:
        middle = (maxq + 1) / 2
        code.clamp_(-middle, maxq - middle)
    else:
        torch.clamp(code, -zero, maxq - zero, out=code)
