"""`Solution`: a quantized layer as the solver leaves it, before it is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plr.gptq import affine

__all__ = ["Solution"]


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
    power: Tensor | None  # [out] float64, the diagonal of W H W^T: twice the mean squared output; None: as noise
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
        """Compute the weight these codes stand for, `[out, in]`."""
        columns, groups = self.Q.shape[1], self.scale.shape[1]
        size = columns // groups
        if bool((self.g_idx == torch.arange(columns, device=self.g_idx.device) // size).all()):
            Q = self.Q.view(len(self.Q), groups, size)
            return affine.dequantize(Q, self.scale[..., None], self.zero[..., None]).flatten(1)
        g_idx = self.g_idx.long()
        return affine.dequantize(self.Q, self.scale[:, g_idx], self.zero[:, g_idx])

    def split(self, rows: Sequence[int]) -> list[Solution]:
        """Cut it into one solution for each run of `rows` rows: of layers that were solved side by side."""
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
