"""What every kernel must do, on any device: on a GPU, and as a script under Triton's interpreter.

    TRITON_INTERPRET=1 python tests/gptq/kernel_cases.py

The interpreter has to be chosen before Triton is imported, hence a process of its own. It cuts bf16 numbers off where a GPU
rounds them, and multiplies their bits as integers: bf16 products are checked on a GPU only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plr.gptq import PackedLinear, kernels
from plr.gptq.packing import Codes, pack, pack_zeros

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of sums, relative
SHAPES = ((40, 72, 3), (33, 100, 1), (64, 128, 2))  # out, in, groups: ragged rows and columns, whole tiles
SHAPES_3 = ((96, 160, 5), (32, 96, 1), (64, 128, 2))  # 3 bits come in blocks of 32


@dataclass(frozen=True)
class Case:
    bits: int
    shape: tuple[int, int, int]
    in_order: bool
    checkpoint_format: str

    def make(self, device: str) -> tuple[Codes, Tensor]:
        """Random codes and the weight `[out, in]` they stand for, in fp64."""
        N, K, groups = self.shape
        random = torch.Generator().manual_seed(K + self.bits)
        codes = torch.randint(0, 2**self.bits, (K, N), generator=random)
        least = 1 if self.checkpoint_format == "gptq" else 0
        zero = torch.randint(least, 2**self.bits, (groups, N), generator=random, dtype=torch.int32)
        scale = (torch.rand(groups, N, generator=random) * 0.1 + 0.01).half()
        g_idx = torch.arange(K) // (K // groups)
        if not self.in_order:
            g_idx = g_idx[torch.randperm(K, generator=random)]
        weight = ((codes - zero[g_idx]) * scale.double()[g_idx]).t()
        packed = (pack(codes, self.bits), pack_zeros(zero, self.bits, self.checkpoint_format), scale, g_idx.int())
        tensors = [tensor.to(device) for tensor in packed]
        return Codes(*tensors, self.bits, K, self.checkpoint_format, self.in_order), weight.contiguous().to(device)


def cases() -> Iterator[Case]:
    for bits in (2, 3, 4, 8):
        for i, shape in enumerate(SHAPES_3 if bits == 3 else SHAPES):
            yield Case(bits, shape, True, ("gptq", "gptq_v2")[i % 2])
        yield Case(bits, (SHAPES_3 if bits == 3 else SHAPES)[0], False, "gptq_v2")


def check_dense(case: Case, device: str, dtype: torch.dtype, *, cut: bool = False) -> None:
    """The dense weight, bit for bit; `cut`: up to the last bit, where rounding is cut off."""
    codes, weight = case.make(device)
    found = kernels.dequantize(codes, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    if cut:
        assert bool(((found.double() - weight).abs() <= 2**-7 * weight.abs()).all()), case
    else:
        assert torch.equal(found, weight.to(dtype)), case


def check_products(case: Case, device: str, dtype: torch.dtype, rows: int, split: int | None) -> None:
    """Both products against fp64, with the weight rounded to the dtype."""
    from plr.gptq import triton_kernels

    codes, weight = case.make(device)
    W = weight.to(dtype).double()
    N, K = W.shape
    x, dy = torch.randn(rows, K, device=device, dtype=dtype), torch.randn(rows, N, device=device, dtype=dtype)
    bias = torch.randn(N, device=device, dtype=dtype)
    y, dx = triton_kernels.linear(x, codes, bias, split=split), triton_kernels.input_grad(dy, codes, split=split)
    for found, expected in ((y, x.double() @ W.t() + bias.double()), (dx, dy.double() @ W)):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        assert (found.double() - expected).norm() < TOLERANCE[dtype] * expected.norm(), (case, dtype, rows, split)


def check_layer(device: str, dtype: torch.dtype, rows: int) -> None:
    """`PackedLinear` of both kernels, forward and backward, at a batch of `rows` and one axis more."""
    torch.manual_seed(0)
    codes, _ = Case(4, (40, 72, 3), True, "gptq").make(device)
    kept = PackedLinear(72, 40, bits=4, groups=3, dtype=dtype, device=device)
    tensors = {"qweight": codes.qweight, "qzeros": codes.qzeros, "scales": codes.scales, "g_idx": codes.g_idx}
    kept.load_state_dict({**tensors, "bias": torch.randn(40)})
    packed = copy.deepcopy(kept)
    packed.kernel = "packed"
    X = torch.randn(2, rows, 72, device=device, dtype=dtype)
    results: list[list[Tensor]] = []
    for layer in (kept, packed):
        x = X.clone().requires_grad_()
        y = layer(x)
        y.float().square().sum().backward()
        assert x.grad is not None
        assert layer.bias is not None
        assert layer.bias.grad is not None
        with torch.no_grad():
            results.append([y, x.grad, layer.bias.grad, layer(X)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        assert (a.float() - b.float()).norm() <= 4 * TOLERANCE[dtype] * a.float().norm()


def interpreted() -> int:
    """Everything the interpreter can do; returns the number of cases."""
    assert kernels.kernel_in_use("cpu").name == "triton", kernels.kernel_in_use("cpu").why
    assert kernels.kernel_in_use("cpu", torch.bfloat16).name == "torch"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    count = 0
    for i, case in enumerate(cases()):
        check_dense(case, "cpu", torch.float16 if i % 2 else torch.float32)
        from plr.gptq import triton_kernels

        codes, weight = case.make("cpu")
        cut = triton_kernels.dequantize(codes, torch.bfloat16)
        assert bool(((cut.double() - weight).abs() <= 2**-7 * weight.abs()).all()), case
        dtype = torch.float32 if i % 2 else torch.float16
        check_products(case, "cpu", dtype, *((3, 1), (37, 3))[i // 2 % 2])
        count += 1
    check_layer("cpu", torch.float32, rows=5)
    check_layer("cpu", torch.float32, rows=kernels.FUSED_ROWS)  # the dense weight, made once a product
    return count


if __name__ == "__main__":
    print(interpreted(), "cases")
