"""The affine grid: `w = scale * (code - zero)` with integer codes `0 .. maxq = 2**bits - 1`.

How the grid of one row (or of one group of a row) is found:

1. symmetric: `zero = 2**(bits-1)`, `scale = 2 max|w| / maxq`. The grid has one more step below zero than above, so
   `+max|w|` is clipped by half a step. (The GPTQ reference keeps `min = 0` for a row without negative weights and so
   gives such a row half of its range; here the range is always `+-max|w|`.)
2. asymmetric: the range `[min(w, 0), max(w, 0)]`, `scale = range / maxq`, `zero = round(-min / scale)`. Zero is on the
   grid.
3. `grid="mse"`: shrink the range by `p = 1.00, 0.99 .. 0.21` and keep the `p` of the least `sum |w - Q(w)|**2.4`
   (the search of the GPTQ reference, `Quantizer.find_params` with `mse=True`).
4. `grid="hessian"`: the same kind of search, for the error that counts: `sum_j h_j (w_j - Q(w)_j)**2` with a weight
   `h_j` for each column. GPTQ pays `1 / U[j, j]**2` for a squared error in column j (what later columns cannot make
   good, from the paper's equation 2), so that is what the solver passes. Coarse steps of p first, fine steps about each
   row's best, then twice the scale that is best for the codes at hand (weighted least squares): a tenth of the trials
   of "mse" and a lower minimum.
5. a row of zeros gets the range +-1: any grid represents it.

The checkpoint stores scales in 16 bits. With `scale_dtype=torch.float16` the scale is rounded *before* codes are
chosen, so codes and reported errors are those of the grid that is served; a peer that rounds afterwards serves a
slightly different weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from plr.gptq.errors import GPTQError

__all__ = ["BITS", "GRIDS", "Grid", "check_bits", "dequantize", "find_params", "quantize", "round_scale"]

BITS = (2, 3, 4, 8)
Grid = Literal["minmax", "mse", "hessian"]
GRIDS: tuple[Grid, ...] = ("minmax", "mse", "hessian")

MSE_STEPS = 100  # the range is shrunk in steps of 1/100 ...
MSE_TRIALS = 80  # ... down to 0.21 of its size
MSE_NORM = 2.4
COARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # shares of the range tried for every row ...
FINE = (-0.05, -0.025, 0.025, 0.05)  # ... and about the best of them
REFITS = 2


def check_bits(bits: int) -> None:
    """Raise `GPTQError` unless `bits` is one of 2, 3, 4, 8."""
    if bits not in BITS:
        raise GPTQError(f"bits={bits!r} was given.", "one of 2, 3, 4, 8.", "choose a width the GPTQ format stores.")


def quantize(W: Tensor, scale: Tensor, zero: Tensor, maxq: int) -> Tensor:
    """Round `W` to codes (as floats) on the grid; all arguments broadcast. A new tensor, `0 <= code <= maxq`."""
    return torch.div(W, scale).round_().add_(zero).clamp_(0, maxq)


def dequantize(Q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Compute `scale * (Q - zero)`; all arguments broadcast. The codes may be integers."""
    return (Q - zero) * scale


def find_params(
    W: Tensor,  # [.., n, ..]: n weights share one grid along `dim`
    *,
    bits: int,
    sym: bool,
    grid: str = "minmax",
    dim: int = -1,
    scale_dtype: torch.dtype | None = None,
    weight: Tensor | None = None,  # broadcasts with W
) -> tuple[Tensor, Tensor]:
    """Find scale and zero point of each row of `W`: two tensors of `W`'s shape and dtype with size 1 along `dim`.

    Args:
        W: floating-point weights; statistics are taken along `dim`.
        bits: code width, 2, 3, 4 or 8.
        sym: symmetric grid (zero in the middle) or asymmetric (zero anywhere on the grid).
        grid: "minmax", "mse" or "hessian".
        dim: the axis along which weights share a grid.
        scale_dtype: round scales to this dtype (see the module's docstring); None keeps the dtype of `W`.
        weight: for "hessian", what a squared error of each weight costs; None counts all alike.

    Raises:
        GPTQError: unknown bits or grid, or scales that `scale_dtype` cannot hold.
    """
    check_bits(bits)
    if grid not in GRIDS:
        raise GPTQError(f"grid={grid!r} was given.", f"one of {', '.join(GRIDS)}.", "use 'minmax' (GPTQ's default).")
    maxq = 2**bits - 1
    low = W.amin(dim, keepdim=True).clamp_(max=0)
    high = W.amax(dim, keepdim=True).clamp_(min=0)
    if sym:
        high = torch.maximum(-low, high)
        low = -high
    empty = high == low  # a row of zeros
    low = torch.where(empty, -1.0, low)
    high = torch.where(empty, 1.0, high)

    def grid_of(p: float | Tensor) -> tuple[Tensor, Tensor]:
        return _affine(p * low, p * high, maxq, sym, scale_dtype)

    if grid == "mse":
        shares = [1 - trial / MSE_STEPS for trial in range(MSE_TRIALS)]
        return _Search(W, maxq, dim, lambda E: E.abs_().pow_(MSE_NORM).sum(dim, keepdim=True)).best(grid_of, shares)[1:]
    if grid == "hessian":
        search = _Search(
            W, maxq, dim, lambda E: (E.square_() if weight is None else E.square_().mul_(weight)).sum(dim, keepdim=True)
        )
        p, scale, zero = search.best(grid_of, (1.0, *COARSE))
        p, scale, zero = search.best(grid_of, [p + step for step in FINE])
        for _ in range(REFITS):
            scale, zero = search.refit(scale, zero, weight, scale_dtype)
        return scale, zero
    return grid_of(1.0)


class _Search:
    """The best grid found so far for each row, by an error that `cost` sums along `dim` (it may write to its argument)."""

    def __init__(self, W: Tensor, maxq: int, dim: int, cost: Callable[[Tensor], Tensor]) -> None:
        self.W, self.maxq, self.dim, self.cost = W, maxq, dim, cost
        self.error: Tensor | None = None  # of the best grid; with it stand its scale, zero and share p

    def best(
        self, grid_of: Callable[[float | Tensor], tuple[Tensor, Tensor]], shares: Iterable[float | Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Try ranges shrunk to each of `shares`; the best share, scale and zero of each row, of all tried so far."""
        for p in shares:
            self._offer(*grid_of(p), p)
        return self.p, self.scale, self.zero

    def refit(
        self, scale: Tensor, zero: Tensor, weight: Tensor | None, scale_dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        """Keep the codes of (scale, zero), take the scale of least weighted squares for them, and keep it where it is better."""
        C = quantize(self.W, scale, zero, self.maxq).sub_(zero)
        weighted = C if weight is None else C * weight
        size = (weighted * C).sum(self.dim, keepdim=True)
        fitted = (weighted * self.W).sum(self.dim, keepdim=True).div_(size)
        fitted = round_scale(torch.where((size > 0) & (fitted > 0), fitted, scale), scale_dtype)
        self._offer(fitted, zero, torch.nan)
        return self.scale, self.zero

    def _offer(self, scale: Tensor, zero: Tensor, p: float | Tensor) -> None:
        codes = quantize(self.W, scale, zero, self.maxq).sub_(zero)
        error = self.cost(torch.addcmul(self.W, codes, scale, value=-1))
        share = torch.as_tensor(p, dtype=scale.dtype, device=scale.device).expand_as(scale)
        if self.error is None:
            self.error, self.scale, self.zero, self.p = error, scale, zero, share
            return
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)
        self.p = torch.where(better, share, self.p)


def _affine(low: Tensor, high: Tensor, maxq: int, sym: bool, scale_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    scale = round_scale((high - low) / maxq, scale_dtype)
    zero = torch.full_like(scale, (maxq + 1) / 2) if sym else torch.round(-low / scale).clamp_(0, maxq)
    return scale, zero


def round_scale(scale: Tensor, scale_dtype: torch.dtype | None) -> Tensor:
    """Round `scale` as a checkpoint that stores `scale_dtype` will serve it; never to 0.

    Raises:
        GPTQError: a scale that `scale_dtype` cannot hold.
    """
    if scale_dtype is None or scale_dtype == scale.dtype:
        return scale
    info = torch.finfo(scale_dtype)
    stored = scale.to(scale_dtype)
    if not bool(torch.isfinite(stored).all()):
        raise GPTQError(
            f"The weights need a scale of {scale.max().item():.3g}.",
            f"at most {info.max:.3g}, the largest {scale_dtype} number, and no NaN.",
            "check the weights of this layer for inf and NaN.",
        )
    # A scale that rounds to 0 becomes the least positive number of the dtype: the grid must have a step.
    return stored.clamp_(min=info.smallest_normal * info.eps).to(scale.dtype)
