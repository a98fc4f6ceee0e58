"""The leading part of a weight difference, against the whitened SVD that minimises the same error."""

from __future__ import annotations

import pytest
import torch

from plr.gptq.lowrank import felt_share, leading_directions


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(40, 24, 4), (24, 40, 8), (160, 96, 8), (96, 160, 16)])
def test_it_is_the_best_correction_of_its_rank(rows: int, columns: int, rank: int) -> None:
    """Eckart and Young in the metric of H: E H^(1/2) cut to its leading singular values."""
    error, moment = problem(rows, columns)
    u = leading_directions(error, moment, rank)
    assert torch.allclose(u.T @ u, torch.eye(rank), atol=1e-5)
    values = torch.linalg.svdvals(error @ torch.linalg.cholesky(moment))
    best = float((values[:rank] ** 2).sum() / (values**2).sum())
    assert felt_share(error, moment, u) == pytest.approx(best, rel=5e-3)
    plain = torch.linalg.svd(error).U[:, :rank]
    assert felt_share(error, moment, plain) < felt_share(error, moment, u)


def test_a_singular_metric_needs_no_inverse() -> None:
    error, _ = problem(32, 24)
    x = torch.zeros(24)
    x[3] = 1.0
    u = leading_directions(error, torch.outer(x, x), 1)
    assert felt_share(error, torch.outer(x, x), u) == pytest.approx(1.0, abs=1e-5)


def test_no_more_directions_than_rows() -> None:
    error, moment = problem(6, 24)
    u = leading_directions(error, moment, 32)
    assert u.shape == (6, 6)
    assert felt_share(error, moment, u) == pytest.approx(1.0, abs=1e-5)


def test_what_nothing_feels_is_whole() -> None:
    assert felt_share(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 1)) == 1.0


def test_equal_seeds_give_equal_bits() -> None:
    error, moment = problem(160, 96)
    assert torch.equal(leading_directions(error, moment, 8, seed=3), leading_directions(error, moment, 8, seed=3))
