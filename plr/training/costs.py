"""Costs of a training and its adapter: peak memory of one step, and the time a forward pass takes with the adapter on.

Both are measured, not derived. Times are ratios of interleaved passes, so a busy machine slows both sides alike.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import nn

from plr.lm.support import evaluating

__all__ = ["inference_overhead", "peak_memory", "reset_peak_memory"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PASSES = 7  # the first is not counted


def reset_peak_memory() -> None:
    """Let `peak_memory` count from here: what earlier steps left is given back, and the kernel forgets its peak (Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if _CLEAR.exists():
        # glibc keeps freed memory; other allocators give it back by themselves.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            _CLEAR.write_text("5")
        except OSError:  # a sandbox may forbid it: then the peak is that of the whole process
            return


def peak_memory() -> int:
    """Return the peak in bytes: of the GPU's allocator, or on the CPU of the resident set (base, activations, optimizer ...)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def inference_overhead(model: nn.Module, forward: Callable[[], object]) -> float:
    """Measure the time of `forward` with the adapter on over that with it switched off: the median of interleaved passes.

    1.0 for a model that has no adapter beside its weights.
    """
    if not hasattr(model, "disable_adapter"):
        return 1.0
    ratios = []
    with evaluating(model):
        for _ in range(_PASSES):
            seconds = []
            for context in (nullcontext, cast(Callable[[], AbstractContextManager[None]], model.disable_adapter)):
                with context():
                    started = time.perf_counter()
                    forward()
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - started)
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])
