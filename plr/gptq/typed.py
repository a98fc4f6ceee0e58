"""Types for the parts of torch and safetensors that `plr.gptq` uses and that declare none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import safetensors
import torch
from torch import Tensor

__all__ = ["Context", "Slice", "TensorFile", "linalg", "numbers", "open_tensors", "pointwise", "unviewed"]


class _Linalg(Protocol):
    """The functions of `torch.linalg` in use."""

    def eigh(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def qr(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def cholesky_ex(self, A: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def solve_triangular(self, A: Tensor, B: Tensor, /, *, upper: bool) -> Tensor: ...
    def vector_norm(self, x: Tensor, /, *, dim: int) -> Tensor: ...


linalg = cast(_Linalg, torch.linalg)


class _Pointwise(Protocol):
    """oneDNN's product `x W^T + bias`, with an operation applied to it."""

    def __call__(
        self, x: Tensor, W: Tensor, bias: Tensor | None, name: str, scalars: Sequence[float], algorithm: str, /
    ) -> Tensor: ...


def pointwise() -> _Pointwise:
    """Find the operation in this torch.

    Raises:
        AttributeError: a torch that was built without it.
    """
    return cast(_Pointwise, torch.ops.mkldnn._linear_pointwise)


def unviewed(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Give `x`, which nobody else holds, another shape; to autograd the result is no view, and may be added to in place."""
    return cast(Tensor, torch.ops.aten._unsafe_view.default(x, shape))


class Context(Protocol):
    """Memory of an autograd function between its forward and its backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


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
