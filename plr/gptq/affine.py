"""The affine grid: `w = scale * (code - zero)` with integer codes `0 .. maxq = 2**bits - 1`.

How the grid of one row (or of one group of a row) is found:

1. symmetric: `zero = 2**(bits-1)`, `scale = 2 max|w| / maxq`. The grid has one more step below zero than above, so
   `+max|w|` is clipped by half a step. (The GPTQ reference keeps `min = 0` for a row without negative weights and so
   gives such a row half of its range; here the range is always `+-max|w|`.)
2. asymmetric: the range `[min(w, 0), max(w, 0)]`, `scale = range / maxq`, `zero = round(-min / scale)`. Zero is on the
   grid.
3. `grid="mse"`: shrink the range by `p = 1.00, 0.99 .. 0.21` and keep the `p` of the least `sum |w - Q(w)|**2.4`
   (the search of the GPTQ reference, `Quantizer.find_params` with `mse=True`).
4. a row of zeros gets the range +-1: any grid represents it.

The checkpoint stores scales in 16 bits. With `scale_dtype=torch.float16` the scale is rounded *before* codes are
chosen, so codes and reported errors are those of the grid that is served; a peer that rounds afterwards serves a
slightly different weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plr.gptq.errors import GPTQError

__all__ = ["BITS", "GRIDS", "Grid", "check_bits", "dequantize", "find_params", "quantize"]

BITS = (2, 3, 4, 8)
Grid = Literal["minmax", "mse"]
GRIDS: tuple[Grid, ...] = ("minmax", "mse")

MSE_STEPS = 100  # the range is shrunk in steps of 1/100 ...
MSE_TRIALS = 80  # ... down to 0.21 of its size
MSE_NORM = 2.4


def check_bits(bits: int) -> None:
    """Raise `GPTQError` unless `bits` is one of 2, 3, 4, 8."""
    if bits not in BITS:
        raise GPTQError(f"bits={bits!r} was given.", "one of 2, 3, 4, 8.", "choose a width the GPTQ format stores.")


def quantize(W: Tensor, scale: Tensor, zero: Tensor, maxq: int) -> Tensor:
    """Codes (as floats) of `W` on the grid; all arguments broadcast. A new tensor, `0 <= code <= maxq`."""
    return torch.div(W, scale).round_().add_(zero).clamp_(0, maxq)


def dequantize(Q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`scale * (Q - zero)`; all arguments broadcast. The codes may be integers."""
    return (Q - zero) * scale


def find_params(
    W: Tensor,  # [.., n, ..]: n weights share one grid along `dim`
    *,
    bits: int,
    sym: bool,
    grid: str = "minmax",
    dim: int = -1,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row of `W`: two tensors of `W`'s shape and dtype with size 1 along `dim`.

    Args:
        W: floating-point weights; statistics are taken along `dim`.
        bits: code width, 2, 3, 4 or 8.
        sym: symmetric grid (zero in the middle) or asymmetric (zero anywhere on the grid).
        grid: "minmax" or "mse".
        dim: the axis along which weights share a grid.
        scale_dtype: round scales to this dtype (see the module's docstring); None keeps the dtype of `W`.

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

    scale, zero = _affine(low, high, maxq, sym, scale_dtype)
    if grid == "mse":
        best = torch.full_like(scale, torch.inf)
        for trial in range(MSE_TRIALS):
            p = 1 - trial / MSE_STEPS
            scale_p, zero_p = _affine(p * low, p * high, maxq, sym, scale_dtype)
            error = dequantize(quantize(W, scale_p, zero_p, maxq), scale_p, zero_p).sub_(W).abs_().pow_(MSE_NORM)
            error = error.sum(dim, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, scale_p, scale)
            zero = torch.where(better, zero_p, zero)
    return scale, zero


def _affine(low: Tensor, high: Tensor, maxq: int, sym: bool, scale_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    scale = (high - low) / maxq
    if scale_dtype is not None and scale_dtype != scale.dtype:
        info = torch.finfo(scale_dtype)
        stored = scale.to(scale_dtype)
        if not bool(torch.isfinite(stored).all()):
            raise GPTQError(
                f"The weights need a scale of {scale.max().item():.3g}.",
                f"at most {info.max:.3g}, the largest {scale_dtype} number, and no NaN.",
                "check the weights of this layer for inf and NaN.",
            )
        # A scale that rounds to 0 becomes the least positive number of the dtype: the grid must have a step.
        scale = stored.clamp_(min=info.smallest_normal * info.eps).to(scale.dtype)
    zero = torch.full_like(scale, (maxq + 1) / 2) if sym else torch.round(-low / scale).clamp_(0, maxq)
    return scale, zero
