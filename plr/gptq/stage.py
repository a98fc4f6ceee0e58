"""A stage: the layers that are called with one input, and what calibration says of that input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from plr.gptq import correction, hessian
from plr.gptq.errors import WalkError
from plr.gptq.factorization import Factor, factor_with
from plr.gptq.settings import Settings

__all__ = ["Stage", "same_tensor"]


class Stage:
    """The Hessian of one distinct input, shared by all layers that are called with it.

    With `input_correction`, every input holds two batches, one after the other: that of the quantized model and that of
    the source model. The Hessian is of the first; how they differ is kept beside it (`plr.gptq.correction`).
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name  # the first of these layers
        self.settings = settings
        self.n_tokens = 0
        self.inputs: list[tuple[Tensor, int]] = []  # of each batch, with its version: kept to recognize it again
        self.shift: Tensor | None = None  # [in, in], 2/n sum (x_source - x) x^T
        self.routed: int | None = None
        """Tokens that are routed to the expert of these layers; None: no expert's."""
        self._hessian: Tensor | None = None

    def add(self, X: Tensor, rows: Tensor | None, *, keep: bool = True) -> None:
        """Fold in the input of the next batch; `rows [b*t]` says which rows are tokens (None: all)."""
        if keep:
            self.inputs.append((X, X._version))
        own, source = X.chunk(2) if self.settings.input_correction else (X, None)
        flat = self._tokens(own, rows)
        if self._hessian is None:
            self._hessian = hessian.empty(flat.shape[1], flat.device)
        if source is not None:
            if self.shift is None:
                self.shift = hessian.empty(flat.shape[1], flat.device)
            correction.accumulate(self.shift, flat, self._tokens(source, rows), self.n_tokens)
        self.n_tokens = hessian.accumulate(self._hessian, flat, self.n_tokens)

    def _tokens(self, X: Tensor, rows: Tensor | None) -> Tensor:
        flat = X.reshape(-1, X.shape[-1])  # [b*t, in]
        if rows is None:
            return flat
        if rows.numel() != flat.shape[0]:
            raise WalkError(
                f"{self.name} was called with {flat.shape[0]} rows for a batch of {rows.numel()} positions.",
                "one row for each position, to tell padding from tokens.",
                "calibrate without padding (batches of samples of equal length).",
            )
        return flat[rows]

    def sees(self, inputs: Sequence[Tensor]) -> bool:
        """Tell whether every batch brings the very input that this stage has seen, unchanged."""
        return len(inputs) == len(self.inputs) and all(
            same_tensor(X, other) and X._version == version
            for (X, version), other in zip(self.inputs, inputs, strict=True)
        )

    @property
    def H(self) -> Tensor:
        assert self._hessian is not None
        return self._hessian

    def close(self) -> None:
        """Complete the Hessian: all batches are in."""
        hessian.finish(self.H)

    @cached_property
    def factor(self) -> Factor:
        """The Hessian made ready to solve with, see `plr.gptq.factorization`."""
        return factor_with(self.settings, self.H, name=self.name, n_samples=self.n_tokens)

    def target(self, W: Tensor) -> Tensor | None:
        """Compute what the layers of this stage approximate in the place of `W [out, in]`; None: `W` itself."""
        if self.shift is None:
            return None
        return correction.target(W, self.shift, self.factor, self.settings.input_correction)


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are the same memory seen the same way."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    )
