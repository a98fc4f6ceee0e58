"""The low-rank part of a weight difference that the inputs of a layer feel most.

For E `[out, in]` and H = mean x x^T of the layer's inputs, C = U U^T E with U the r leading eigenvectors of E H E^T
minimises mean |(E - C) x|^2 over all C of rank r: the outputs E x have covariance E H E^T, and their best projection of rank r is
its leading eigenspace (Eckart and Young 1936). The minimum is that of the whitened decompositions of EoRA (Liu et al. 2024,
arXiv:2410.21271) and QERA (Zhang et al. 2024, arXiv:2410.06040); here nothing is inverted, so that H may be singular.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plr.gptq.typed import linalg

__all__ = ["felt_share", "leading_directions"]

OVERSAMPLING = 16
"""Columns of the subspace beyond those asked for (Halko, Martinsson and Tropp 2011, SIAM Review 53:217-288)."""
ROUNDS = 3


def leading_directions(error: Tensor, moment: Tensor, rank: int, *, seed: int = 0) -> Tensor:
    """Return U `[out, r]`, orthonormal: the leading eigenvectors of E H E^T, the largest first.

    Subspace iteration with products alone; where the subspace would be as wide as the layer, the whole decomposition.

    Args:
        error: E `[out, in]`, float32.
        moment: H `[in, in]`, symmetric, float32.
        rank: r; at most `out` directions are returned.
        seed: of the first subspace.
    """
    rows = error.shape[0]
    rank, width = min(rank, rows), rank + OVERSAMPLING
    if width >= rows:
        return _first(torch.eye(rows).to(error), error, moment, rank)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, width, generator=generator).to(error)
    basis, _ = linalg.qr(start)
    for _ in range(ROUNDS):
        basis, _ = linalg.qr(error @ (moment @ (error.T @ basis)))
    return _first(basis, error, moment, rank)


def _first(basis: Tensor, error: Tensor, moment: Tensor, rank: int) -> Tensor:
    """Return the leading eigenvectors within the space of an orthonormal basis `[out, w]` (Rayleigh and Ritz)."""
    small = basis.T @ error  # [w, in]
    _, vectors = linalg.eigh(small @ moment @ small.T)  # values rise
    return (basis @ vectors.flip(1)[:, :rank]).contiguous()


def felt_share(error: Tensor, moment: Tensor, directions: Tensor) -> float:
    """Return the share of mean |E x|^2 that the part in `directions` has, from 0 to 1; 1 of an E that nothing feels."""
    part = directions.T @ error
    whole = float(((error @ moment) * error).sum())
    return float(((part @ moment) * part).sum()) / whole if whole > 0 else 1.0
