# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportInvalidTypeForm=false
# Basic, not strict: Triton is untyped, and absent on machines without CUDA: plr.gptq.kernels looks before it comes here.
"""Triton kernels that read k-bit codes: `x W^T`, `dy W` and the dense `W`, straight from the checkpoint's tensors.

How they work:

1. `_tile` dequantizes a tile of `W^T [BK, BN]`: a word and a shift for each code (3 bits: two words where a code lies
   across them), the scale and zero point of the code's group, `scale * (code - zero)` in fp32. With scales of 16 bits
   that product is exact, so the only rounding is the one to the activations' dtype: the tile holds the numbers of
   `PackedLinear.dequantize`, bit for bit;
2. `_forward` runs over K and `_backward` over N with such tiles and `tl.dot`, fp32 accumulators, fp32 inputs in full
   precision (no TF32). Neither writes a dense weight anywhere;
3. few rows make few programs: then the loop is cut in SPLIT parts, whose fp32 sums are stored side by side and added by
   torch in a fixed order. No atomics: equal inputs give equal outputs;
4. `_dense` writes `W [out, in]` for many rows, where one cuBLAS product of it is faster (`plr.gptq.kernels.FUSED_ROWS`).

Shapes need not be multiples of a tile: loads and stores are masked. Where a tile of K lies in one group (columns in
order, group_size a multiple of BK, or one group a row) one scale a column is loaded, otherwise one a code, by g_idx.

What they give up: tiles are fixed by the number of rows, not tuned by trial on the machine at hand; a code's word is
loaded once for each code of it, from L1.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from plr.gptq.packing import Codes

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # the module can be read (by documentation, by tests) and nothing in it runs
    triton = tl = None

__all__ = ["dequantize", "input_grad", "linear"]

MAX_SPLIT = 16
STAGES = 2  # of the loads' pipeline: 96 KiB of shared memory at most; 3 would take 176 KiB, more than many GPUs have
STEPS_A_PART = 4  # a part of the loop shorter than this costs more than it gives


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


@_jit
def _field(words, index, mask, stride, n, BITS: tl.constexpr):
    """Unpack the codes number `index` of a stream of words with this stride, at offsets `n`; shapes broadcast."""
    bit = index * BITS
    word, shift = bit // 32, bit % 32
    value = tl.load(words + word * stride + n, mask=mask, other=0).to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)
    if 32 % BITS != 0:
        across = mask & (shift + BITS > 32)
        high = tl.load(words + (word + 1) * stride + n, mask=across, other=0).to(tl.uint32, bitcast=True)
        value |= high << ((32 - shift) & 31).to(tl.uint32)  # 0 where the code does not lie across
    return (value & ((1 << BITS) - 1)).to(tl.int32)


@_jit
def _tile(
    qweight,  # int32 [ceil(K*BITS/32), N]
    qzeros,  # int32 [groups, zero_words]
    scales,  # fp16, bf16 or fp32 [groups, N]
    g_idx,  # int32 [K]
    k,  # int32 [BK]
    n,  # int32 [BN]
    K,
    N,
    zero_words,
    group,  # columns of a group; used with ONE_GROUP only
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,  # 1: zero points are stored less 1 (v1)
    ONE_GROUP: tl.constexpr,  # all of k lie in one group, columns in order
):
    """Load a tile `W^T [BK, BN]` in fp32; zero outside of K and N."""
    inside = (k[:, None] < K) & (n[None, :] < N)
    code = _field(qweight, k[:, None], inside, N, n[None, :], BITS)
    if ONE_GROUP:
        g = (tl.min(k, axis=0) // group) + tl.zeros_like(n)[None, :]  # [1, BN]
        known = n[None, :] < N
    else:
        g = tl.load(g_idx + k, mask=k < K, other=0)[:, None] + tl.zeros_like(n)[None, :]  # [BK, BN]
        known = inside
    scale = tl.load(scales + g * N + n[None, :], mask=known, other=0).to(tl.float32)
    column = n[None, :] + tl.zeros_like(g)
    zero = (_field(qzeros, column, known, 1, g * zero_words, BITS) + OFFSET) & ((1 << BITS) - 1)
    return (code - zero).to(tl.float32) * scale


@_jit
def _forward(
    x,  # [M, K]
    qweight,
    qzeros,
    scales,
    g_idx,
    bias,  # [N] or None
    y,  # [M, N] in x's dtype; SPLIT > 1: fp32 [SPLIT, M, N]
    M,
    K,
    N,
    zero_words,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(part * BK, K, BK * SPLIT):
        k = start + tl.arange(0, BK)
        a = tl.load(x + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        w = _tile(qweight, qzeros, scales, g_idx, k, n, K, N, zero_words, group, BITS, OFFSET, ONE_GROUP)
        total = tl.dot(a, w.to(a.dtype), total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0).to(tl.float32)[None, :]
    to = y + (part.to(tl.int64) * M + m[:, None]) * N + n[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@_jit
def _backward(
    dy,  # [M, N]
    qweight,
    qzeros,
    scales,
    g_idx,
    dx,  # [M, K] in dy's dtype; SPLIT > 1: fp32 [SPLIT, M, K]
    M,
    K,
    N,
    zero_words,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    part = tl.program_id(2)
    total = tl.zeros((BM, BK), dtype=tl.float32)
    for start in range(part * BN, N, BN * SPLIT):
        n = start + tl.arange(0, BN)
        a = tl.load(dy + m[:, None] * N + n[None, :], mask=(m[:, None] < M) & (n[None, :] < N), other=0)
        w = _tile(qweight, qzeros, scales, g_idx, k, n, K, N, zero_words, group, BITS, OFFSET, ONE_GROUP)
        total = tl.dot(a, tl.trans(w.to(a.dtype)), total, input_precision="ieee")
    to = dx + (part.to(tl.int64) * M + m[:, None]) * K + k[None, :]
    tl.store(to, total.to(dx.dtype.element_ty), mask=(m[:, None] < M) & (k[None, :] < K))


@_jit
def _dense(
    qweight,
    qzeros,
    scales,
    g_idx,
    weight,  # [N, K]
    K,
    N,
    zero_words,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    w = _tile(qweight, qzeros, scales, g_idx, k, n, K, N, zero_words, group, BITS, OFFSET, ONE_GROUP)
    to = weight + n[:, None].to(tl.int64) * K + k[None, :]
    tl.store(to, tl.trans(w).to(weight.dtype.element_ty), mask=(n[:, None] < N) & (k[None, :] < K))


def linear(x: Tensor, codes: Codes, bias: Tensor | None = None, *, split: int | None = None) -> Tensor:
    """Multiply `x [.., in] -> x W^T + bias [.., out]` in the dtype of `x`: fp16, bf16 or fp32. `split=None`: by the machine."""
    M, K, N = x.numel() // codes.in_features, codes.in_features, codes.out_features
    BM, BN, BK = _tiles(M, x.dtype)
    tiles = _cdiv(M, BM) * _cdiv(N, BN)
    split = split or _split(tiles, _cdiv(K, BK), x.device)
    y = x.new_empty(M, N) if split == 1 else x.new_empty(split, M, N, dtype=torch.float32)
    rows = x.reshape(M, K).contiguous()
    with _on(x):
        _forward[(_cdiv(M, BM), _cdiv(N, BN), split)](
            rows, codes.qweight, codes.qzeros, codes.scales, codes.g_idx, bias if split == 1 else None, y, M,
            **_shape(codes, BK), SPLIT=split, BM=BM, BN=BN, BK=BK, num_stages=STAGES,
        )  # fmt: skip
    if split > 1:
        total = y.sum(0)
        y = (total if bias is None else total.add_(bias)).to(x.dtype)
    return y.view(*x.shape[:-1], N)


def input_grad(dy: Tensor, codes: Codes, *, split: int | None = None) -> Tensor:
    """Multiply `dy [.., out] -> dy W [.., in]` in the dtype of `dy`: fp16, bf16 or fp32."""
    M, K, N = dy.numel() // codes.out_features, codes.in_features, codes.out_features
    BM, BN, BK = _tiles(M, dy.dtype)
    tiles = _cdiv(M, BM) * _cdiv(K, BK)
    split = split or _split(tiles, _cdiv(N, BN), dy.device)
    dx = dy.new_empty(M, K) if split == 1 else dy.new_empty(split, M, K, dtype=torch.float32)
    rows = dy.reshape(M, N).contiguous()
    with _on(dy):
        _backward[(_cdiv(M, BM), _cdiv(K, BK), split)](
            rows, codes.qweight, codes.qzeros, codes.scales, codes.g_idx, dx, M,
            **_shape(codes, BK), SPLIT=split, BM=BM, BN=BN, BK=BK, num_stages=STAGES,
        )  # fmt: skip
    if split > 1:
        dx = dx.sum(0).to(dy.dtype)
    return dx.view(*dy.shape[:-1], K)


def dequantize(codes: Codes, dtype: torch.dtype) -> Tensor:
    """Unpack the dense weight `[out, in]`, contiguous: fp16, bf16 or fp32."""
    K, N = codes.in_features, codes.out_features
    weight = torch.empty(N, K, dtype=dtype, device=codes.qweight.device)
    BN, BK = 64, 64
    with _on(weight):
        _dense[(_cdiv(K, BK), _cdiv(N, BN))](
            codes.qweight, codes.qzeros, codes.scales, codes.g_idx, weight, **_shape(codes, BK), BN=BN, BK=BK
        )
    return weight


def _shape(codes: Codes, BK: int) -> dict[str, Any]:
    """Collect the arguments of all kernels besides the tensors, by name."""
    groups = codes.scales.shape[0]
    group = codes.in_features // groups
    return {
        "K": codes.in_features,
        "N": codes.out_features,
        "zero_words": codes.qzeros.shape[1],
        "group": group,
        "BITS": codes.bits,
        "OFFSET": codes.offset,
        "ONE_GROUP": codes.in_order and (groups == 1 or group % BK == 0),
    }


def _cdiv(n: int, size: int) -> int:
    return -(-n // size)


def _tiles(M: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Choose BM, BN, BK: a row tile that M fills, and tiles of W that leave room for it in registers."""
    BM = 16 if M <= 16 else 32 if M <= 32 else 64
    return (BM, 64, 32) if dtype == torch.float32 else (BM, 64, 64)


def _split(tiles: int, steps: int, device: torch.device) -> int:
    """Choose the parts of the loop, so that there are about two programs for each multiprocessor."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(2 * processors // tiles, steps // STEPS_A_PART, MAX_SPLIT))


def _on(tensor: Tensor) -> Any:
    """Make the tensor's device the current one, where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
