"""The floating-point type of a computation: asked of the hardware, never timed, so that one machine always gives one answer.

`auto` is bfloat16 where the device has instructions for it, and float32 elsewhere: a CPU without them multiplies bfloat16 dozens of
times more slowly than float32, and a GPU without them emulates it. A CPU is asked without torch, so that planning stays light.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["Precision", "cpu_has_bfloat16", "fast_precision", "may_have_gpu"]

Precision = Literal["float32", "bfloat16", "float16"]
CPUINFO = Path("/proc/cpuinfo")
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Device files of NVIDIA, AMD, and of either under Windows' Linux."""
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of x86 and, the last, of ARM."""
BFLOAT16_ISAS = ("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")
"""Values of `ONEDNN_MAX_CPU_ISA`, or their beginnings, that leave oneDNN the instructions."""


def fast_precision(device: str) -> Precision:
    """Choose bfloat16 where `device`, as torch names it, has instructions for it, else float32."""
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.startswith("cpu") and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Ask the CPU's flags for bfloat16 instructions, and the environment whether oneDNN may use them.

    False where the system does not say (not Linux).
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return allowed.startswith(BFLOAT16_ISAS) and not BFLOAT16_FLAGS.isdisjoint(_cpu_flags(CPUINFO))


def may_have_gpu() -> bool:
    """Look for the driver of a GPU that torch could use: without one, torch need not be asked."""
    return sys.platform != "linux" or any(driver.exists() for driver in GPU_DRIVERS)


@cache
def _cpu_flags(file: Path) -> frozenset[str]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())
