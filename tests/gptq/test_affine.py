from __future__ import annotations

import pytest
import torch

from plr.gptq import affine
from plr.gptq.errors import GPTQError


@pytest.mark.parametrize("bits", affine.BITS)
def test_symmetric_zero_is_the_middle_code_and_the_range_is_twice_the_largest_weight(bits: int) -> None:
    W = torch.tensor([[-0.5, 0.25, 0.1], [0.2, 0.8, 0.4]])  # the second row has no negative weight
    scale, zero = affine.find_params(W, bits=bits, sym=True)
    assert zero.flatten().tolist() == [2 ** (bits - 1)] * 2
    torch.testing.assert_close(scale.flatten(), torch.tensor([0.5, 0.8]) * 2 / (2**bits - 1))


def test_asymmetric_range_includes_zero_for_a_row_of_positive_weights() -> None:
    scale, zero = affine.find_params(torch.tensor([[0.3, 0.9, 0.6]]), bits=4, sym=False)
    assert zero.item() == 0
    assert scale.item() == pytest.approx(0.9 / 15)


@pytest.mark.parametrize("bits", affine.BITS)
@pytest.mark.parametrize("sym", [True, False])
def test_rounding_error_is_at_most_half_a_step_inside_the_range(bits: int, sym: bool) -> None:
    W = torch.randn(16, 64, dtype=torch.float64)
    scale, zero = affine.find_params(W, bits=bits, sym=sym)
    E = (affine.dequantize(affine.quantize(W, scale, zero, 2**bits - 1), scale, zero) - W).abs() / scale
    # Half a step; one at the ends, where the rounded zero point (asym) or the missing top code (sym) clips.
    assert E.max() <= 1 + 1e-9
    assert E.quantile(0.5) <= 0.5


@pytest.mark.parametrize("sym", [True, False])
def test_a_row_of_zeros_is_represented_exactly(sym: bool) -> None:
    W = torch.zeros(2, 8)
    scale, zero = affine.find_params(W, bits=3, sym=sym)
    assert torch.equal(affine.dequantize(affine.quantize(W, scale, zero, 7), scale, zero), W)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_the_axis_is_free() -> None:
    W = torch.randn(6, 10)
    for a, b in zip(
        affine.find_params(W, bits=4, sym=False), affine.find_params(W.t(), bits=4, sym=False, dim=0), strict=True
    ):
        assert torch.equal(a, b.t())


@pytest.mark.parametrize("sym", [True, False])
def test_mse_grid_is_the_best_of_all_shrunk_ranges(sym: bool) -> None:
    """Against the plain search over p, one row at a time."""
    W = torch.randn(4, 32, dtype=torch.float64) ** 3  # heavy tails: shrinking pays
    scale, _ = affine.find_params(W, bits=2, sym=sym, grid="mse")
    shrunk = 0
    for row, found in zip(W, scale.flatten(), strict=True):
        low, high = min(row.min().item(), 0), max(row.max().item(), 0)
        if sym:
            low, high = -max(-low, high), max(-low, high)
        candidates = []
        for trial in range(80):
            p = 1 - trial / 100
            s = p * (high - low) / 3
            z = 2 if sym else round(-p * low / s)
            q = ((row / s).round() + z).clamp(0, 3)
            candidates.append((((q - z) * s - row).abs() ** 2.4).sum().item())
        best = min(range(80), key=candidates.__getitem__)
        assert found.item() == pytest.approx((1 - best / 100) * (high - low) / 3)
        shrunk += best > 0
    assert shrunk


def test_scales_are_rounded_to_the_stored_dtype_and_never_to_zero() -> None:
    W = torch.stack([torch.randn(64), torch.randn(64) * 1e-9])
    scale, _ = affine.find_params(W, bits=4, sym=True, scale_dtype=torch.float16)
    assert torch.equal(scale, scale.half().float())
    assert scale[1].item() == 2**-24  # the least positive float16


def test_a_scale_beyond_float16_is_an_error() -> None:
    with pytest.raises(GPTQError, match=r"need a scale of 1e\+06.*at most 6.55e\+04.*inf and NaN"):
        affine.find_params(torch.full((1, 4), 7.5e6), bits=4, sym=True, scale_dtype=torch.float16)


@pytest.mark.parametrize("bits", [0, 1, 5, 16])
def test_other_widths_are_an_error(bits: int) -> None:
    with pytest.raises(GPTQError, match=rf"bits={bits} was given.*2, 3, 4, 8"):
        affine.find_params(torch.randn(1, 4), bits=bits, sym=True)


def test_an_unknown_grid_is_an_error() -> None:
    with pytest.raises(GPTQError, match=r"grid='mae'.*minmax, mse"):
        affine.find_params(torch.randn(1, 4), bits=4, sym=True, grid="mae")
