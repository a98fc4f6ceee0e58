from __future__ import annotations

import pytest
import torch

from plr.gptq import hessian
from plr.gptq.errors import HessianError


@pytest.mark.parametrize("n_in", [5, 256, 300])
def test_accumulating_in_batches_equals_two_over_n_xtx(n_in: int) -> None:
    X = torch.randn(90, n_in)
    H, n = hessian.empty(n_in), 0
    for part in X.split([40, 1, 49]):
        n = hessian.accumulate(H, part, n)
    assert n == 90
    torch.testing.assert_close(hessian.finish(H), 2 / 90 * X.t() @ X, rtol=1e-4, atol=1e-5)


def test_leading_axes_are_rows_and_low_precision_is_summed_in_float32() -> None:
    X = torch.randn(3, 7, 16, dtype=torch.bfloat16)
    H = hessian.empty(16)
    assert hessian.accumulate(H, X, 0) == 21
    rows = X.reshape(21, 16).float()
    torch.testing.assert_close(hessian.finish(H), 2 / 21 * rows.t() @ rows, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_changes_nothing() -> None:
    H = hessian.empty(4)
    n = hessian.accumulate(H, torch.randn(3, 4), 0)
    before = H.clone()
    assert hessian.accumulate(H, torch.empty(0, 4), n) == n
    assert torch.equal(H, before)


def test_quadratic_form_equals_the_trace_and_the_output_energy() -> None:
    X, E = torch.randn(700, 300, dtype=torch.float64), torch.randn(9, 300, dtype=torch.float64)
    H = 2 / 700 * X.t() @ X
    value = hessian.quadratic_form(E, H)
    torch.testing.assert_close(value, (E @ H @ E.t()).diagonal())
    torch.testing.assert_close(value, 2 * (X @ E.t()).square().mean(0))


def test_inputs_of_another_size_are_an_error() -> None:
    with pytest.raises(HessianError, match=r"5 features were given to a Hessian of 4"):
        hessian.accumulate(hessian.empty(4), torch.randn(2, 5), 0)
