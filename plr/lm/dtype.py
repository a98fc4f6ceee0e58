"""The floating-point type that is faster on a device: asked of the hardware, then measured."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

import torch

__all__ = ["choose_dtype"]

log = logging.getLogger(__name__)


def choose_dtype(device: torch.device | str) -> torch.dtype:
    """float32, or bfloat16 where a matrix product in it is at least 1.2 times as fast on `device`.

    A probe of a few hundredths of a second, once a process and device. A CPU without the instructions multiplies bfloat16
    dozens of times more slowly than float32 (a probe would take more than a second), and a GPU without them emulates it:
    neither is measured, the wider type is both faster and more exact there.
    """
    return _measured(str(torch.device(device)))


@cache
def _measured(device: str) -> torch.dtype:
    if not _multiplies_bfloat16(torch.device(device)):
        log.info("%s has no instructions for bfloat16: float32", device)
        return torch.float32
    size = 4096 if device.startswith("cuda") else 512
    try:
        wide, narrow = (_seconds(device, dtype, size) for dtype in (torch.float32, torch.bfloat16))
    except (RuntimeError, TypeError) as refusal:  # of the type: where float32 fails too, the next to use it says so
        log.info("%s does not multiply bfloat16, float32 it is: %s", device, str(refusal).partition("\n")[0])
        return torch.float32
    return torch.bfloat16 if wide > 1.2 * narrow else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Ask the device for instructions for bfloat16; True, too, where it cannot be asked (a torch without oneDNN, MPS)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    ops: Any = torch.ops.mkldnn
    return device.type != "cpu" or bool(getattr(ops, "_is_mkldnn_bf16_supported", lambda: True)())


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
    elif device.startswith("mps"):
        torch.mps.synchronize()
