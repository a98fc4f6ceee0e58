"""Laws of Algorithm 1, and a textbook implementation to compare with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plr.gptq import affine, hessian
from plr.gptq.errors import GPTQError, GroupSizeError, HessianError
from plr.gptq.factorization import factor
from plr.gptq.solver import gptq_solve, rtn_solve

from .conftest import make_hessian

BITS = (2, 3, 4, 8)
SCALE = torch.float16  # an unrounded symmetric scale puts -max|w| exactly between two codes, where the last bit decides
ORDERS = [(False, False), (False, True), (True, False), (True, True)]  # desc_act, static_groups


def textbook(
    W: Tensor, H: Tensor, *, bits: int, group: int, sym: bool, desc_act: bool, static_groups: bool, damp_percent: float
) -> tuple[Tensor, Tensor]:
    """Optimal Brain Quantization in a fixed order: the inverse of what is left of H, afresh for each column."""
    W, H = W.clone(), H.clone()
    columns, maxq = W.shape[1], 2**bits - 1
    H = H + damp_percent * H.diagonal().mean() * torch.eye(columns, dtype=H.dtype)
    order = torch.argsort(H.diagonal(), descending=True) if desc_act else torch.arange(columns)
    original, W, H = W, W[:, order], H[order][:, order]
    codes, dequantized = torch.zeros_like(W), torch.zeros_like(W)
    grid: tuple[Tensor, Tensor] | None = None
    for j in range(columns):
        if static_groups or group == columns:
            g = int(order[j]) // group
            grid = affine.find_params(original[:, g * group : (g + 1) * group], bits=bits, sym=sym, scale_dtype=SCALE)
        elif j % group == 0:
            grid = affine.find_params(W[:, j : j + group], bits=bits, sym=sym, scale_dtype=SCALE)
        assert grid is not None
        inverse = torch.linalg.inv(H[j:, j:])
        w = W[:, j : j + 1]
        q = affine.quantize(w, *grid, maxq)
        codes[:, j : j + 1], dequantized[:, j : j + 1] = q, affine.dequantize(q, *grid)
        W[:, j:] -= (w - affine.dequantize(q, *grid)) @ inverse[:1] / inverse[0, 0]
    back = torch.argsort(order)
    return codes[:, back], dequantized[:, back]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("desc_act", "static_groups"), ORDERS)
@pytest.mark.parametrize("group_size", [8, 24, -1])
def test_equals_the_textbook_algorithm(
    bits: int, sym: bool, desc_act: bool, static_groups: bool, group_size: int
) -> None:
    W, H = torch.randn(12, 48, dtype=torch.float64), make_hessian(48)
    options = {"bits": bits, "sym": sym, "desc_act": desc_act, "static_groups": static_groups, "damp_percent": 0.01}
    codes, dequantized = textbook(W, H, group=48 if group_size == -1 else group_size, **options)
    found = gptq_solve(W, H, group_size=group_size, block_size=16, scale_dtype=SCALE, **options)
    assert torch.equal(found.Q.double(), codes)
    torch.testing.assert_close(found.dequantize(), dequantized)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("grid", ["minmax", "mse"])
@pytest.mark.parametrize("static_groups", [False, True])
def test_identity_hessian_is_rounding_to_nearest(bits: int, grid: str, static_groups: bool) -> None:
    W = torch.randn(16, 64)
    found = gptq_solve(W, torch.eye(64), bits=bits, group_size=32, grid=grid, static_groups=static_groups)
    nearest = rtn_solve(W, torch.eye(64), bits=bits, group_size=32, grid=grid)
    assert torch.equal(found.Q, nearest.Q)
    assert torch.equal(found.scale, nearest.scale)
    assert found.error == pytest.approx(nearest.error, rel=1e-5)


@pytest.mark.parametrize("block_size", [1, 7, 16, 40, 64, 1000])
@pytest.mark.parametrize(("desc_act", "static_groups"), ORDERS)
@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_block_size_does_not_change_the_result(
    block_size: int, desc_act: bool, static_groups: bool, group_size: int
) -> None:
    W, H = torch.randn(8, 96, dtype=torch.float64), make_hessian(96)
    options = {"bits": 3, "group_size": group_size, "desc_act": desc_act, "static_groups": static_groups}
    one, other = gptq_solve(W, H, block_size=96, **options), gptq_solve(W, H, block_size=block_size, **options)
    assert torch.equal(one.Q, other.Q)
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.g_idx, other.g_idx)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("desc_act", "static_groups"), ORDERS)
def test_output_error_is_at_most_that_of_rounding(bits: int, sym: bool, desc_act: bool, static_groups: bool) -> None:
    W, H = torch.randn(64, 128), make_hessian(128, dtype=torch.float32)
    options = {"bits": bits, "group_size": 32, "sym": sym}
    found = gptq_solve(W, H, desc_act=desc_act, static_groups=static_groups, **options)
    nearest = rtn_solve(W, H, **options)
    assert found.error is not None
    assert nearest.error is not None
    assert found.error < nearest.error


@pytest.mark.parametrize("rows", [20, 400])  # fewer rows than columns: H is singular, damping carries
def test_reported_error_is_the_output_error_of_the_dequantized_weight(rows: int) -> None:
    W, H = torch.randn(24, 64), make_hessian(64, n=rows, dtype=torch.float32)
    H[3], H[:, 3] = 0, 0
    for solution in (gptq_solve(W, H, bits=3, group_size=32), rtn_solve(W, H, bits=3, group_size=32)):
        E = (W - solution.dequantize()).double()
        power = hessian.quadratic_form(W.double(), H.double())
        noise = hessian.quadratic_form(E, H.double())
        torch.testing.assert_close(solution.power, power, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(solution.noise, noise, rtol=1e-3, atol=0.0)
        assert solution.error == pytest.approx(float(noise.sum() / power.sum()), rel=1e-3)


def test_more_bits_and_smaller_groups_make_smaller_errors() -> None:
    W, H = torch.randn(32, 128), make_hessian(128, dtype=torch.float32)
    errors = [gptq_solve(W, H, bits=bits, group_size=32).error for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    errors = [gptq_solve(W, H, bits=3, group_size=g).error for g in (-1, 64, 16)]
    assert errors == sorted(errors, reverse=True)


def test_a_group_scale_is_that_of_the_current_weights_within_a_block() -> None:
    """The second group's scale must contain the errors of the first, though both lie in one block."""
    W, H = torch.randn(8, 64, dtype=torch.float64), make_hessian(64)
    one_block = gptq_solve(W, H, bits=2, group_size=32, block_size=64)
    two_blocks = gptq_solve(W, H, bits=2, group_size=32, block_size=32)
    stale, _ = affine.find_params(W[:, 32:], bits=2, sym=True, scale_dtype=torch.float16)
    assert torch.equal(one_block.scale, two_blocks.scale)
    assert not torch.equal(one_block.scale[:, 1:], stale)


def test_static_groups_take_their_scales_from_the_original_weights() -> None:
    W, H = torch.randn(8, 64), make_hessian(64, dtype=torch.float32)
    for desc_act in (False, True):
        found = gptq_solve(W, H, bits=3, group_size=16, static_groups=True, desc_act=desc_act)
        nearest = rtn_solve(W, bits=3, group_size=16)
        assert torch.equal(found.scale, nearest.scale)
        assert torch.equal(found.g_idx, nearest.g_idx)


def test_desc_act_groups_are_runs_of_falling_diagonal() -> None:
    W, H = torch.randn(4, 32), make_hessian(32, dtype=torch.float32)
    found = gptq_solve(W, H, bits=4, group_size=8, desc_act=True)
    order = torch.argsort(H.diagonal(), descending=True)
    assert found.perm is not None
    assert torch.equal(found.perm, order)
    assert found.g_idx[order].tolist() == [i // 8 for i in range(32)]


def test_desc_act_on_a_hessian_in_order_changes_nothing() -> None:
    W = torch.randn(4, 32, dtype=torch.float64)
    H = make_hessian(32)
    order = torch.argsort(H.diagonal(), descending=True)
    H = H[order][:, order]
    plain, ordered = (gptq_solve(W, H, bits=3, group_size=8, desc_act=flag) for flag in (False, True))
    assert torch.equal(plain.Q, ordered.Q)
    assert torch.equal(plain.g_idx, ordered.g_idx)


def test_a_permutation_of_the_inputs_permutes_the_codes_of_desc_act() -> None:
    W, H = torch.randn(4, 32, dtype=torch.float64), make_hessian(32)
    shuffle = torch.randperm(32)
    one = gptq_solve(W, H, bits=3, group_size=8, desc_act=True)
    other = gptq_solve(W[:, shuffle], H[shuffle][:, shuffle], bits=3, group_size=8, desc_act=True)
    assert torch.equal(one.Q[:, shuffle], other.Q)
    assert torch.equal(one.g_idx[shuffle], other.g_idx)


def test_dead_inputs_get_the_code_of_zero_and_do_not_disturb_the_rest() -> None:
    W, H = torch.randn(6, 32, dtype=torch.float64), make_hessian(32)
    H[5], H[:, 5] = 0, 0
    found = gptq_solve(W, H, bits=4, group_size=-1)
    assert found.dead == 1
    assert found.dequantize()[:, 5].abs().max() == 0
    W[:, 5] = 0
    assert torch.equal(gptq_solve(W, H, bits=4, group_size=-1).Q, found.Q)


def test_a_factor_serves_every_layer_with_the_same_input() -> None:
    H = make_hessian(32)
    shared = factor(H, damp_percent=0.05, desc_act=True)
    for rows in (4, 9):
        W = torch.randn(rows, 32, dtype=torch.float64)
        alone = gptq_solve(W, H, bits=4, group_size=8, damp_percent=0.05, desc_act=True)
        assert torch.equal(gptq_solve(W, shared, bits=4, group_size=8).Q, alone.Q)
        assert alone.damp == pytest.approx(0.05 * H.diagonal().mean().item())


@pytest.mark.parametrize("n", [3, 128, 300])
def test_factor_holds_the_upper_cholesky_factor_of_the_inverse(n: int) -> None:
    H = make_hessian(n)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(n, dtype=H.dtype)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(factor(H).U, expected)


def test_inputs_are_not_changed() -> None:
    W, H = torch.randn(4, 32), make_hessian(32, dtype=torch.float32)
    H[2], H[:, 2] = 0, 0
    before = W.clone(), H.clone()
    gptq_solve(W, H, bits=4, group_size=8, desc_act=True)
    assert torch.equal(W, before[0])
    assert torch.equal(H, before[1])


def test_float32_agrees_with_float64_but_for_ties() -> None:
    W, H = torch.randn(64, 128, dtype=torch.float64), make_hessian(128)
    exact, single = (gptq_solve(W.to(t), H.to(t), bits=4, group_size=32) for t in (torch.float64, torch.float32))
    assert (exact.Q != single.Q).float().mean() < 2e-3
    assert single.error == pytest.approx(exact.error, rel=1e-3)


@pytest.mark.parametrize("solve", [gptq_solve, rtn_solve])
def test_a_group_size_that_does_not_divide_names_the_layer_and_what_fits(solve: object) -> None:
    with pytest.raises(
        GroupSizeError, match=r"blocks\.0\.q has in_features=96, which group_size=64 .*use group_size 16, 32, -1"
    ):
        solve(torch.randn(4, 96), torch.eye(96), bits=4, group_size=64, name="blocks.0.q")  # type: ignore[operator]


def test_a_singular_hessian_is_an_error_that_names_layer_damping_and_rows() -> None:
    H = -torch.eye(8)
    H[0, 0] = 9
    with pytest.raises(
        HessianError, match=r"blocks\.0\.q is not positive definite at damp_percent=0.01 over 7 rows \(0 of 8"
    ):
        gptq_solve(torch.randn(4, 8), H, bits=4, group_size=-1, name="blocks.0.q", n_samples=7)


def test_a_rank_deficient_hessian_without_damping_does_not_fall_back() -> None:
    X = torch.ones(3, 8)
    with pytest.raises(HessianError, match=r"not positive definite at damp_percent=0.0.*larger damp_percent"):
        gptq_solve(torch.randn(4, 8), X.t() @ X, bits=4, group_size=-1, damp_percent=0.0)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "holds inf or NaN"), (0.0, "is all zeros")])
def test_a_hessian_without_data_is_an_error(value: float, message: str) -> None:
    with pytest.raises(HessianError, match=rf"Hessian of q {message} over 5 rows"):
        factor(torch.full((4, 4), value), name="q", n_samples=5)


def test_weights_that_are_not_finite_are_an_error() -> None:
    W = torch.randn(4, 8)
    W[1, 2] = float("inf")
    with pytest.raises(GPTQError, match="weight of q holds inf or NaN"):
        rtn_solve(W, bits=4, group_size=-1, name="q")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"damp_percent": 1.0}, r"damp_percent=1.0.*0 <= damp_percent < 1"), ({"block_size": 0}, "block_size=0")],
)
def test_settings_out_of_range_are_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(GPTQError, match=message):
        gptq_solve(torch.randn(4, 8), torch.eye(8), bits=4, group_size=-1, **options)  # type: ignore[arg-type]


def test_a_hessian_of_another_size_is_an_error() -> None:
    with pytest.raises(GPTQError, match="q has 8 columns and its Hessian 6"):
        gptq_solve(torch.randn(4, 8), torch.eye(6), bits=4, group_size=-1, name="q")
