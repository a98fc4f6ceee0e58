"""Products with a layer of k-bit codes: which kernel serves a device, and the three products it is made of.

- On a CUDA GPU with Triton (torch's CUDA wheels bring it), up to `FUSED_ROWS` rows go through kernels that read the codes
  and never make a dense weight. More rows: a Triton kernel writes the dense weight, cuBLAS multiplies, and the weight is
  let go.
- Anywhere else torch dequantizes with few passes over the weight (`plr.gptq.packing.unpack_rows`), then multiplies.

Either way the dense weight lives for one product, forward and again backward: what training keeps is k bits.
`kernel_in_use` says which it is and why. Triton is trusted with a device after it has written one small dense weight there: a
broken installation, a compiler without Python's headers or a GPU that it does not know is no error, torch multiplies.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plr.gptq.packing import Codes, unpack_rows

__all__ = ["FUSED_ROWS", "KernelInUse", "dequantize", "input_grad", "kernel_in_use", "linear"]

log = logging.getLogger(__name__)

FUSED_ROWS = 256
"""Up to this many rows (batch x positions) the product reads the codes; above it, the dense weight is made once.

Set by arithmetic, not yet by measurement: at 4096 x 4096 writing and reading a 16-bit weight costs an H200 about 20 us, and
cuBLAS multiplies 256 rows in about 15 us; beyond, the second term outweighs the first and cuBLAS is the faster multiplier.
"""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_CAPABILITY = (8, 0)


class KernelInUse(NamedTuple):
    """`name`: "triton" or "torch"; `why`: one sentence."""

    name: str
    why: str


def kernel_in_use(device: torch.device | str, dtype: torch.dtype = torch.float16) -> KernelInUse:
    """Name the kernel that multiplies k-bit codes on `device` with activations of `dtype`, and why that one."""
    return _kernel_in_use(str(device), dtype, os.environ.get("TRITON_INTERPRET") == "1")


@functools.cache
def _kernel_in_use(device: str, dtype: torch.dtype, interpret: bool) -> KernelInUse:
    kind = torch.device(device).type
    if kind != "cuda" and not (kind == "cpu" and interpret):
        return KernelInUse("torch", f"{kind} has no Triton kernel: torch dequantizes, then multiplies")
    if importlib.util.find_spec("triton") is None:
        return KernelInUse("torch", "Triton is not installed: pip install triton, or a CUDA wheel of torch")
    if dtype not in DTYPES:
        return KernelInUse("torch", f"the Triton kernels take fp16, bf16 and fp32, not {dtype}")
    if kind == "cpu" and dtype == torch.bfloat16:
        return KernelInUse("torch", "Triton's interpreter multiplies the bits of bf16 numbers as integers")
    if kind == "cpu":
        return KernelInUse("triton", "TRITON_INTERPRET=1: Triton's interpreter, for tests")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        version = ".".join(map(str, capability))
        return KernelInUse("torch", f"Triton uses tensor cores from compute capability 8.0 on; this GPU has {version}")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")):
        return KernelInUse("torch", "Triton compiles its launcher with a C compiler, and there is none: install gcc")
    if refusal := _refusal(device, dtype):
        log.warning("k-bit layers on %s are multiplied by torch: Triton does not work there: %s", device, refusal)
        return KernelInUse("torch", f"Triton is installed and does not work here: {refusal}")
    return KernelInUse("triton", f"codes are read in the kernel up to {FUSED_ROWS} rows, dequantized once above")


def _refusal(device: str, dtype: torch.dtype) -> str:
    """Write a dense weight of 8 x 32 with Triton's kernel; returns the first line of what goes wrong, or nothing."""
    try:
        from plr.gptq import triton_kernels

        words = torch.zeros(5, 8, dtype=torch.int32, device=device)
        scales, g_idx = torch.ones(1, 8, dtype=torch.float16, device=device), words.new_zeros(32)
        triton_kernels.dequantize(Codes(words[:4], words[4:, :1], scales, g_idx, 4, 32, "gptq", True), dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton, its compiler, the driver: there is no list of what they raise
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def dequantize(codes: Codes, dtype: torch.dtype) -> Tensor:
    """Make a fresh dense weight `[out, in]`, contiguous: `scale * (code - zero)`, rounded once to `dtype`."""
    if kernel_in_use(codes.qweight.device, dtype).name == "triton" and codes.scales.dtype in DTYPES:
        from plr.gptq import triton_kernels

        return triton_kernels.dequantize(codes, dtype)
    groups, K, N = codes.scales.shape[0], codes.in_features, codes.out_features
    weight = unpack_rows(codes.qweight, codes.bits, K).float().contiguous()  # [out, in]
    zero, scale = codes.zeros().t().float().contiguous(), codes.scales.t().float().contiguous()  # [out, groups]
    if codes.in_order:
        weight.view(N, groups, K // groups).sub_(zero.unsqueeze(2)).mul_(scale.unsqueeze(2))
    else:
        weight.sub_(zero.index_select(1, codes.g_idx)).mul_(scale.index_select(1, codes.g_idx))
    return weight.to(dtype)


def linear(x: Tensor, codes: Codes, bias: Tensor | None, dtype: torch.dtype, rounded: torch.dtype) -> Tensor:
    """Multiply `x [.., in] -> x W^T + bias [.., out]`, the weight rounded to `rounded` and then taken in `dtype`."""
    if _fused(x, codes, dtype) and (bias is None or bias.dtype == dtype):
        from plr.gptq import triton_kernels

        return triton_kernels.linear(x, codes, bias)
    return F.linear(x, dequantize(codes, rounded).to(dtype), bias)


def input_grad(dy: Tensor, codes: Codes, dtype: torch.dtype, rounded: torch.dtype) -> Tensor:
    """Multiply `dy [.., out] -> dy W [.., in]`, the gradient of `linear` with respect to `x`."""
    if _fused(dy, codes, dtype):
        from plr.gptq import triton_kernels

        return triton_kernels.input_grad(dy, codes)
    return dy @ dequantize(codes, rounded).to(dtype)


def _fused(x: Tensor, codes: Codes, dtype: torch.dtype) -> bool:
    """Tell whether the product reads the codes themselves."""
    rows = x.numel() // x.shape[-1]
    return (
        0 < rows <= FUSED_ROWS
        and x.dtype == dtype
        and codes.scales.dtype in DTYPES
        and kernel_in_use(x.device, dtype).name == "triton"
    )
