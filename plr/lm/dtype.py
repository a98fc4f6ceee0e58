"""Which floating-point type is faster here, measured and not assumed."""

from __future__ import annotations

import time
from functools import cache

import torch

__all__ = ["choose_dtype"]


def choose_dtype(device: torch.device | str) -> torch.dtype:
    """float32, or bfloat16 where a matrix product in it is at least 1.2 times as fast on `device`.

    A probe of a few hundredths of a second, once a process and device. Many CPUs have no hardware for bfloat16 and
    multiply it more slowly than float32; there the wider type is both faster and more exact.
    """
    return _measured(str(torch.device(device)))


@cache
def _measured(device: str) -> torch.dtype:
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    size = 4096 if device.startswith("cuda") else 512
    wide, narrow = (_seconds(device, dtype, size) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if wide > 1.2 * narrow else torch.float32


def _seconds(device: str, dtype: torch.dtype, size: int) -> float:
    """The best of five products `[size, size] @ [size, size]` after one to warm up."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for repeat in range(6):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        if repeat:
            best = min(best, time.perf_counter() - start)
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
