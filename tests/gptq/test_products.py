"""Products by oneDNN: float32 sums, for any strides, and only where they are worth it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plr.gptq import products

needs_onednn = pytest.mark.skipif(not products.multiplies(), reason="this torch has no oneDNN product on this CPU")


@needs_onednn
@pytest.mark.parametrize("strides", ["rows", "columns"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_one_in_float32(strides: str, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40, 72)
    W = torch.randn(96, 72) if strides == "rows" else torch.randn(72, 96).t()
    b = torch.randn(96) if bias else None
    assert products.takes(x, W)
    exact = F.linear(x.double(), W.double(), None if b is None else b.double())
    ours, plain = (y.double() - exact for y in (products.linear(x, W, b), F.linear(x, W, b)))
    assert ours.abs().max() <= 8 * plain.abs().max()
    assert ours.abs().max() / exact.abs().max() < 2e-6


@pytest.mark.parametrize("case", ["bfloat16", "few rows", "few weights", "none", "part of a matrix"])
def test_what_stays_with_the_plain_product(case: str) -> None:
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    rows = {"few rows": products.LEAST_ROWS - 1, "none": 0}.get(case, 128)
    x, W = torch.randn(rows, 64, dtype=dtype), torch.randn(8 if case == "few weights" else 64, 64, dtype=dtype)
    if case == "part of a matrix":
        W = torch.randn(64, 128)[:, :64]
    assert not products.takes(x, W)
    assert torch.equal(products.linear(x, W), F.linear(x, W))
