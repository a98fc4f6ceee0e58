"""The floating-point type that is fast on a device, as torch has it."""

from __future__ import annotations

import torch

from plr.core.precision import fast_precision

__all__ = ["choose_dtype"]


def choose_dtype(device: torch.device | str) -> torch.dtype:
    """Choose bfloat16 where `device` has instructions for it, else float32: see `plr.core.precision`."""
    return getattr(torch, fast_precision(str(device)))
