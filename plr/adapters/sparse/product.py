"""Products with a matrix of which only k blocks are not zero; the rest of it never exists.

The weight update of the sparse adapter, `dW [d_out, d_in]`, is cut into `n x m` blocks of `bo = d_out/n` by `bi = d_in/m`.
Slot i of k holds block `p_i = row_i * m + col_i`; its content is `w_i = alpha * W^p[p_i] * W^v[i]`.

1. Forward: one gather of the k column parts of x, one batched product, one `index_add` onto the base layer's result:
   `y[:, row_i] += x[:, col_i] w_i^T`.
2. Backward, with g = dL/dy: slot i has `G_i = g[:, row_i]^T x[:, col_i]`, and from it `dL/dW^v[i] = alpha * W^p[p_i] * G_i`,
   `dL/dW^p[p_i] = alpha * <W^v[i], G_i>` and `dL/dx[:, col_i] += g[:, row_i] w_i`. All other scores have gradient 0.
3. Kept for backward are references: x, which the neighbours that read it keep too, and W^v; beside them k numbers each of p
   and v. Neither the gathered parts nor w: both are cheaper to make again than to hold.

A loop over the slots that multiplies views in place, without a gather, was as fast on a CPU for 500 rows and slower for fewer.

Given up: derivatives of second order (`once_differentiable`), and bitwise repeatability of `index_add` on CUDA unless
`torch.use_deterministic_algorithms(True)` asks for it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["add_block_product", "dense_blocks", "weighted_blocks"]


def add_block_product(
    result: Tensor, x: Tensor, scores: Tensor, values: Tensor, positions: Tensor, alpha: float
) -> Tensor:
    """Compute `result + x dW^T` as a new tensor of the dtype of `result`.

    Args:
        result: `[.., d_out]`, what the base layer made of `x`.
        x: `[.., d_in]`.
        scores: `[n, m]`, W^p.
        values: `[k, d_out/n, d_in/m]`, W^v.
        positions: int64 `[k]`, distinct: the block of each slot, `row * m + col`.
        alpha: the scale of the whole update.

    The products are taken in the dtype of `values`, under autocast in autocast's.
    """
    kind = x.device.type
    if not _autocast(kind):
        return _apply(result, x, scores, values, positions, alpha, values.dtype)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return _apply(result, x, scores, values, positions, alpha, dtype)


def weighted_blocks(scores: Tensor, values: Tensor, positions: Tensor, alpha: float) -> Tensor:
    """Compute the content of each slot's block of dW, `[k, bo, bi]`, in the dtype of `values`."""
    v = scores.flatten().index_select(0, positions) * alpha
    return v.to(values.dtype)[:, None, None] * values


def dense_blocks(blocks: Tensor, positions: Tensor, n: int, m: int) -> Tensor:
    """Build the whole `[n*bo, m*bi]` matrix: `blocks [k, bo, bi]` at `positions`, zeros elsewhere; only merging needs it."""
    _, bo, bi = blocks.shape
    grid = blocks.new_zeros(n * m, bo, bi)
    return grid.index_copy(0, positions, blocks).view(n, m, bo, bi).transpose(1, 2).reshape(n * bo, m * bi)


def _apply(
    result: Tensor, x: Tensor, scores: Tensor, values: Tensor, positions: Tensor, alpha: float, dtype: torch.dtype
) -> Tensor:
    if torch.is_grad_enabled():
        return _BlockProduct.apply(result, x, scores, values, positions, alpha, dtype)  # pyright: ignore
    m = scores.shape[1]
    w = weighted_blocks(scores, values, positions, alpha)
    return _forward(result, x, w, positions // m, positions % m, scores.shape[0], m, dtype)


class _Context(Protocol):
    """Values that autograd hands from the forward to the backward pass of one product."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    n: int
    m: int
    alpha: float
    dtype: torch.dtype
    scores_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        result: Tensor,
        x: Tensor,
        scores: Tensor,
        values: Tensor,
        positions: Tensor,
        alpha: float,
        dtype: torch.dtype,
    ) -> Tensor:
        n, m = scores.shape
        row, col = positions // m, positions % m
        v = scores.flatten().index_select(0, positions).mul_(alpha).to(values.dtype)[:, None, None]
        ctx.save_for_backward(x, values, positions, row, col, v)
        ctx.n, ctx.m, ctx.alpha, ctx.dtype, ctx.scores_dtype = n, m, alpha, dtype, scores.dtype
        return _forward(result, x, v * values, row, col, n, m, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kind = grads[0].device.type
        if _autocast(kind):
            with torch.autocast(kind, enabled=False):
                return _backward(ctx, grads[0])
        return _backward(ctx, grads[0])


def _forward(
    result: Tensor, x: Tensor, w: Tensor, row: Tensor, col: Tensor, n: int, m: int, dtype: torch.dtype
) -> Tensor:
    y = result.to(dtype, copy=True, memory_format=torch.contiguous_format)
    X = _gather(x, col, m).to(dtype)  # [k, T, bi]
    _scatter_add(y, row, n, torch.bmm(X, w.to(dtype).transpose(1, 2)))
    return y.to(result.dtype)


def _backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of result, x, scores and values; None for positions, alpha and dtype."""
    x, values, positions, row, col, v = ctx.saved_tensors
    n, m, dtype = ctx.n, ctx.m, ctx.dtype
    Y = _gather(grad, row, n).to(dtype)  # [k, T, bo]
    grad_x = grad_scores = grad_values = None
    if ctx.needs_input_grad[1]:
        # In the shape of x, no view of another tensor: autograd adds what the base layer sends to x into it, in place.
        grad_x = torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format)
        _scatter_add(grad_x, col, m, torch.bmm(Y, (v * values).to(dtype)))
        grad_x = grad_x.to(x.dtype)
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        G = torch.bmm(Y.transpose(1, 2), _gather(x, col, m).to(dtype)).to(values.dtype)  # [k, bo, bi]
        of_slots = torch.linalg.vecdot(G.flatten(1), values.flatten(1)) * ctx.alpha
        grad_scores = of_slots.new_zeros(n * m).index_copy_(0, positions, of_slots).view(n, m).to(ctx.scores_dtype)
        grad_values = G * v
    return grad, grad_x, grad_scores, grad_values, None, None, None


def _autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _gather(x: Tensor, parts: Tensor, count: int) -> Tensor:
    """Gather parts `[k]` of the `count` equal parts of the last dimension of `x [.., d]`: `[k, T, d/count]`."""
    d = x.shape[-1]
    return x.reshape(-1, count, d // count).index_select(1, parts).transpose(0, 1)


def _scatter_add(y: Tensor, parts: Tensor, count: int, blocks: Tensor) -> None:
    """Add `blocks [k, T, d/count]` to those parts of the last dimension of the contiguous `y [.., d]`, in place."""
    d = y.shape[-1]
    y.view(-1, count, d // count).index_add_(1, parts, blocks.transpose(0, 1))
