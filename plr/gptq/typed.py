"""Types for the parts of torch and safetensors that `plr.gptq` uses and that declare none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import safetensors
import torch
from torch import Tensor

__all__ = ["Slice", "TensorFile", "linalg", "numbers", "open_tensors"]


class _Linalg(Protocol):
    """The functions of `torch.linalg` in use."""

    def eigh(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def qr(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def cholesky_ex(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def solve_triangular(self, A: Tensor, B: Tensor, /, *, upper: bool) -> Tensor: ...
    def vector_norm(self, x: Tensor, /, *, dim: int) -> Tensor: ...


linalg = cast(_Linalg, torch.linalg)


class Slice(Protocol):
    """A tensor of a file before it is read."""

    def get_shape(self) -> list[int]: ...


class TensorFile(Protocol):
    """An open safetensors file."""

    def keys(self) -> Sequence[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def get_slice(self, name: str) -> Slice: ...


def open_tensors(path: Path, device: str | torch.device = "cpu") -> AbstractContextManager[TensorFile]:
    """Open a safetensors file; its tensors are read to `device`."""
    return cast(AbstractContextManager[TensorFile], safetensors.safe_open(path, framework="pt", device=str(device)))


def numbers(vector: Tensor) -> list[float]:
    """Read the numbers of `vector [n]`."""
    return cast(list[float], vector.tolist())  # pyright: ignore[reportUnknownMemberType]
