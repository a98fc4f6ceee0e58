"""The block product against a dense dW written from the formula: values, gradients, dtypes, shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plr.adapters.sparse.product import add_block_product, dense_blocks, weighted_blocks

N, M, K, BO, BI, ALPHA = 3, 4, 5, 2, 3, 1.7
POSITIONS = torch.tensor([7, 0, 11, 4, 5])  # rows 1, 0, 2, 1, 1: three blocks share a row; columns 3, 0, 3, 0, 1


def dense_delta(scores: Tensor, values: Tensor, positions: Tensor, alpha: float) -> Tensor:
    """dW block by block, as equation 2 says."""
    n, m = scores.shape
    _, bo, bi = values.shape
    delta = torch.zeros(n * bo, m * bi, dtype=values.dtype)
    for i, p in enumerate(positions.tolist()):
        r, c = divmod(p, m)
        delta = delta.index_put(
            (torch.arange(r * bo, r * bo + bo)[:, None], torch.arange(c * bi, c * bi + bi)),
            alpha * scores[r, c] * values[i],
        )
    return delta


def tensors(*lead: int, dtype: torch.dtype = torch.double) -> list[Tensor]:
    torch.manual_seed(3)
    made = [torch.randn(*lead, N * BO), torch.randn(*lead, M * BI), torch.randn(N, M), torch.randn(K, BO, BI)]
    return [t.to(dtype).requires_grad_() for t in made]


def test_dense_blocks_is_the_formula() -> None:
    _, _, scores, values = tensors(1)
    blocks = weighted_blocks(scores, values, POSITIONS, ALPHA)
    assert torch.equal(dense_blocks(blocks, POSITIONS, N, M), dense_delta(scores, values, POSITIONS, ALPHA))


@pytest.mark.parametrize("lead", [(5,), (2, 3), (), (2, 2, 2), (0,)])
def test_forward_and_all_gradients_are_those_of_the_dense_product(lead: tuple[int, ...]) -> None:
    ours, theirs = tensors(*lead), tensors(*lead)
    y = add_block_product(*ours, POSITIONS, ALPHA)
    result, x, scores, values = theirs
    expected = result + F.linear(x, dense_delta(scores, values, POSITIONS, ALPHA))
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(expected)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    selected = torch.zeros(N * M, dtype=torch.bool).index_fill(0, POSITIONS, True).view(N, M)
    assert ours[2].grad is not None
    assert torch.equal(ours[2].grad[~selected], torch.zeros(N * M - K, dtype=torch.double))


def test_gradcheck_in_double() -> None:
    def product(*inputs: Tensor) -> Tensor:
        return add_block_product(*inputs, POSITIONS, ALPHA)

    assert torch.autograd.gradcheck(product, tensors(3))


def test_one_gradient_alone() -> None:
    """Only x, as below a frozen adapter; only the parameters, as in the first layer."""
    for wanted in range(4):
        inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors(4))]
        (found,) = torch.autograd.grad(add_block_product(*inputs, POSITIONS, ALPHA).square().sum(), inputs[wanted])
        oracle = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        y = oracle[0] + F.linear(oracle[1], dense_delta(oracle[2], oracle[3], POSITIONS, ALPHA))
        torch.testing.assert_close(found, torch.autograd.grad(y.square().sum(), oracle[wanted])[0])


def test_the_result_given_is_not_written_to() -> None:
    result, x, scores, values = (t.detach() for t in tensors(4))
    before = result.clone()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            add_block_product(result, x, scores, values, POSITIONS, ALPHA)
    assert torch.equal(result, before)


def test_inputs_that_are_not_contiguous() -> None:
    result, x, scores, values = tensors(4, 3)
    expected = add_block_product(result, x, scores, values, POSITIONS, ALPHA)
    turned = add_block_product(
        result.transpose(0, 1), x.transpose(0, 1), scores, values.transpose(1, 2).contiguous().transpose(1, 2),
        POSITIONS, ALPHA,
    )  # fmt: skip
    torch.testing.assert_close(turned.transpose(0, 1), expected)
    wide = torch.randn(4, 3, 2 * M * BI, dtype=torch.double)[..., ::2].requires_grad_()
    add_block_product(result, wide, scores, values, POSITIONS, ALPHA).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_base_with_float_adapter_computes_in_float(dtype: torch.dtype) -> None:
    result, x = (t.detach().to(dtype) for t in tensors(6)[:2])
    x.requires_grad_()
    scores, values = (t.detach().float().requires_grad_() for t in tensors(6)[2:])
    y = add_block_product(result, x, scores, values, POSITIONS, ALPHA)
    delta = dense_delta(scores.detach(), values.detach(), POSITIONS, ALPHA)
    assert torch.equal(y, (result.float() + F.linear(x.float(), delta)).to(dtype))
    y.float().sum().backward()
    assert (x.grad.dtype, scores.grad.dtype, values.grad.dtype) == (dtype, torch.float32, torch.float32)  # pyright: ignore


def test_autocast_multiplies_in_its_dtype_and_gives_float_gradients() -> None:
    result, x, scores, values = tensors(6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = add_block_product(result, x, scores, values, POSITIONS, ALPHA)
        y.sum().backward()
    assert y.dtype == torch.float32
    exact = result + F.linear(x, dense_delta(scores, values, POSITIONS, ALPHA))
    error = (y - exact).abs().max()
    assert 0 < error < 0.1
    assert values.grad is not None
    assert values.grad.dtype == torch.float32
    torch.testing.assert_close(values.grad, torch.autograd.grad(exact.sum(), values)[0], rtol=0.05, atol=0.1)


def test_only_references_and_k_numbers_are_kept_for_backward() -> None:
    result, x, scores, values = tensors(50)
    kept: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        add_block_product(result, x, scores, values, POSITIONS, ALPHA)
    own: dict[int, Any] = {t.untyped_storage().data_ptr(): t for t in kept}
    for given in (x, values, POSITIONS):
        own.pop(given.untyped_storage().data_ptr(), None)
    assert sum(t.numel() for t in own.values()) == 3 * K  # rows, columns and scores of the slots
