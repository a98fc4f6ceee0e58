"""The sparse layer: phi, selection while scores move, positive scores, moments, merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from plr.adapters.sparse.layer import SparseLayer, draw_scores, reassign
from plr.adapters.sparse.tuner import SparseConfig, changed_parameters, clear_moments
from plr.errors import ModelError


class Net(nn.Module):
    def __init__(self, lin: nn.Module | None = None) -> None:
        super().__init__()
        self.lin = lin or nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


def sparse(net: nn.Module | None = None, **settings: Any) -> tuple[Any, Any]:
    """(the PEFT model, its one sparse layer)."""
    torch.manual_seed(0)
    model = get_peft_model(
        net or Net(), SparseConfig(**{"n": 4, "m": 3, "k": 4, "target_modules": ["lin"], **settings})
    )
    return model, next(layer for layer in model.modules() if isinstance(layer, SparseLayer))


def oracle(layer: SparseLayer, x: Tensor, name: str = "default") -> Tensor:
    """`x (W + dW)^T + b` with dW from the formula, block by block."""
    weight = layer.get_base_layer().weight
    W = (weight.t() if isinstance(layer.get_base_layer(), Conv1D) else weight).detach().clone()
    m = layer.sparse_scores[name].shape[1]
    bo, bi = layer.sparse_values[name].shape[1:]
    for i, p in enumerate(layer.positions(name).tolist()):
        r, c = divmod(p, m)
        block = layer.alpha[name] * layer.sparse_scores[name][r, c] * layer.sparse_values[name][i]
        W[r * bo : r * bo + bo, c * bi : c * bi + bi] += block.detach()
    return F.linear(x, W, layer.bias)


@pytest.mark.parametrize(("n", "m", "k"), [(4, 3, 4), (2, 6, 1), (8, 12, 96), (1, 1, 1)])
def test_phi_is_exact(n: int, m: int, k: int) -> None:
    model, layer = sparse(n=n, m=m, k=k)
    assert model.get_nb_trainable_parameters()[0] == n * m + k * (8 // n) * (12 // m)
    assert changed_parameters(model) == k * (8 // n) * (12 // m)
    assert layer.positions("default").dtype == torch.int64


def test_starts_as_the_base_and_on_the_top_k() -> None:
    base, x = Net(), torch.randn(5, 12)
    expected = base(x)
    model, layer = sparse(base, alpha=3.0)
    assert torch.equal(model(x), expected)
    best = layer.sparse_scores["default"].detach().flatten().topk(4).indices
    assert set(layer.positions("default").tolist()) == set(best.tolist())


@pytest.mark.parametrize("lin", [nn.Linear(12, 8), nn.Linear(12, 8, bias=False), Conv1D(8, 12)])
def test_forward_is_the_dense_formula(lin: nn.Module) -> None:
    model, layer = sparse(Net(lin), init_weights=False, alpha=1.5)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(model(x), oracle(layer, x))
    delta = layer.get_delta_weight("default")
    assert delta.shape == layer.get_base_layer().weight.shape
    assert int((delta != 0).sum()) == changed_parameters(model) == 4 * 2 * 4


# -- selection --


def test_reassign_keeps_incumbents_and_fills_in_order_of_rank() -> None:
    scores = torch.tensor([[5.0, 1.0, 9.0], [7.0, 8.0, 0.0]])
    fresh, keep = reassign(scores, torch.tensor([1, 2, 5]))
    assert fresh.tolist() == [4, 2, 3]  # 1 and 5 fell out; best outside: 4, then 3
    assert keep.tolist() == [False, True, False]
    again, keep = reassign(scores, fresh)
    assert torch.equal(again, fresh)
    assert bool(keep.all())


def test_incumbents_stay_at_equal_score() -> None:
    scores = torch.ones(2, 3)
    for positions in ([5, 0], [1, 3], [2, 4]):
        fresh, keep = reassign(scores, torch.tensor(positions))
        assert fresh.tolist() == positions
        assert bool(keep.all())


def test_reassign_is_topk_for_random_scores() -> None:
    torch.manual_seed(0)
    positions = torch.randperm(20)[:7]
    for _ in range(50):
        scores = torch.randn(4, 5)
        fresh, keep = reassign(scores, positions)
        assert set(fresh.tolist()) == set(scores.flatten().topk(7).indices.tolist())
        assert torch.equal(fresh[keep], positions[keep])
        positions = fresh
    everything = torch.randperm(20)
    assert torch.equal(reassign(torch.randn(4, 5), everything)[0], everything)


def fall(layer: SparseLayer, slot: int) -> int:
    """Let the score of a slot's block fall below all others; the block."""
    block = int(layer.positions("default")[slot])
    with torch.no_grad():
        layer.sparse_scores["default"].view(-1)[block] = -9.0
    return block


def test_a_fallen_block_leaves_at_the_next_training_forward_and_its_values_restart() -> None:
    model, layer = sparse(init_weights=False)
    before, values = layer.positions("default").clone(), layer.sparse_values["default"].detach().clone()
    fall(layer, 2)
    x = torch.randn(3, 12)
    model.eval()(x)
    assert torch.equal(layer.positions("default"), before)  # never in eval
    model.train()(x)
    after = layer.positions("default")
    assert (after != before).tolist() == [False, False, True, False]
    best = layer.sparse_scores["default"].detach().flatten().topk(4).indices
    assert set(after.tolist()) == set(best.tolist())
    values[2] = 0
    assert torch.equal(layer.sparse_values["default"], values)
    torch.testing.assert_close(model(x), oracle(layer, x))


def test_the_output_changes_by_the_block_that_left_and_by_nothing_else() -> None:
    model, layer = sparse(init_weights=False)
    x = torch.randn(3, 12)
    block = fall(layer, 1)
    before = model.eval()(x)
    r, c = divmod(block, 3)
    content = layer._blocks("default")[1].detach()
    after = model.train()(x)
    expected = before.clone()
    expected[:, 2 * r : 2 * r + 2] -= x[:, 4 * c : 4 * c + 4] @ content.t()
    torch.testing.assert_close(after, expected)


def test_two_selected_scores_that_swap_ranks_swap_nothing() -> None:
    model, layer = sparse(init_weights=False)
    before = layer.positions("default").clone()
    scores = layer.sparse_scores["default"]
    with torch.no_grad():
        flat = scores.view(-1)
        flat[before] = flat[before].flip(0)
    model.train()(torch.randn(2, 12))
    assert torch.equal(layer.positions("default"), before)


def test_a_frozen_adapter_keeps_its_selection_in_training_mode() -> None:
    model, layer = sparse(init_weights=False)
    before = layer.positions("default").clone()
    fall(layer, 0)
    layer.requires_grad_(False)
    model.train()(torch.randn(2, 12))
    assert torch.equal(layer.positions("default"), before)


def test_selection_moves_while_training_and_scores_outside_do_not() -> None:
    model, layer = sparse(n=8, m=12, k=24)
    target = nn.Linear(12, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    first = layer.sparse_scores["default"].detach().clone()
    ever, losses = set(layer.positions("default").tolist()), []
    for step in range(80):
        x = torch.randn(32, 12, generator=torch.Generator().manual_seed(step))
        y = model(x)
        loss = F.mse_loss(y, target(x).detach())
        assert bool((layer.sparse_scores["default"].view(-1)[layer.positions("default")] > 0).all())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ever |= set(layer.positions("default").tolist())
        losses.append(float(loss.detach()))
    assert len(ever) > 24
    assert losses[-1] < losses[0]
    outside = [p for p in range(96) if p not in ever]
    assert torch.equal(layer.sparse_scores["default"].detach().view(-1)[outside], first.view(-1)[outside])


def test_accumulated_micro_batches_are_the_gradient_of_the_batch() -> None:
    gradients = []
    x = torch.randn(8, 12)
    for parts in (1, 4):
        model, layer = sparse(init_weights=False)
        fall(layer, 3)
        for part in x.chunk(parts):
            model.train()(part).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# -- positive scores --


@pytest.mark.parametrize("k", [1, 10, 90, 144, 190, 191, 192])
def test_selected_scores_and_the_next_one_are_positive_at_the_start(k: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        ranked = draw_scores(12, 16, k, 1.0).flatten().sort(descending=True).values
        assert float(ranked[min(k, 191)]) > 0


def test_scores_are_normal_where_k_is_small_and_half_normal_where_it_is_not() -> None:
    torch.manual_seed(0)
    drawn = torch.randn(24, 32)
    torch.manual_seed(0)
    assert torch.equal(draw_scores(24, 32, 15, 0.5), drawn * 0.5)
    torch.manual_seed(0)
    assert torch.equal(draw_scores(24, 32, 700, 0.5), drawn.abs() * 0.5)


# -- optimizers --


def test_moments_of_a_moved_slot_are_cleared_and_others_kept() -> None:
    model, layer = sparse(init_weights=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def backward() -> None:
        model.train()(torch.ones(2, 12)).square().sum().backward()

    backward()
    assert clear_moments(model, optimizer) == 0
    optimizer.step()
    fall(layer, 2)
    backward()
    before = optimizer.state[layer.sparse_values["default"]]["exp_avg"].clone()
    assert clear_moments(model, optimizer) == 1
    after = optimizer.state[layer.sparse_values["default"]]["exp_avg"]
    assert float(before[2].abs().min()) > 0
    before[2] = 0
    assert torch.equal(after, before)
    assert clear_moments(model, optimizer) == 0


def test_decoupled_weight_decay_keeps_the_selection() -> None:
    model, layer = sparse(init_weights=False)
    before = layer.positions("default").clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(5):
        (model.train()(torch.ones(2, 12)) * 0.0).sum().backward()
        optimizer.step()
    model(torch.ones(2, 12))
    assert torch.equal(layer.positions("default"), before)


# -- merging --


@pytest.mark.parametrize("lin", [nn.Linear(12, 8), Conv1D(8, 12)])
@pytest.mark.parametrize("safe", [False, True])
def test_merge_changes_the_blocks_only_and_unmerge_restores_every_bit(lin: nn.Module, safe: bool) -> None:
    model, layer = sparse(Net(lin), init_weights=False)
    model.add_adapter("other", SparseConfig(n=2, m=6, k=5, target_modules=["lin"], init_weights=False))
    x, weight = torch.randn(4, 12), layer.get_base_layer().weight.detach().clone()
    model.eval().set_adapter("default")
    expected = model(x)
    layer.merge(safe_merge=safe)
    torch.testing.assert_close(model(x), expected)
    assert int((layer.get_base_layer().weight != weight).sum()) == 4 * 2 * 4
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        layer.merge(adapter_names=["default", "other"])
    assert layer.merged_adapters == ["default", "other"]
    layer.unmerge()
    assert torch.equal(layer.get_base_layer().weight, weight)


def test_safe_merge_of_a_broken_adapter_leaves_the_base_as_it_was() -> None:
    _, layer = sparse(init_weights=False)
    weight = layer.get_base_layer().weight.detach().clone()
    with torch.no_grad():
        layer.sparse_values["default"][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="The adapter default seems to be broken"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, weight)
    assert not layer.merged


def test_changed_parameters_counts_shared_blocks_once() -> None:
    model, layer = sparse()
    model.add_adapter("same", SparseConfig(n=4, m=3, k=6, target_modules=["lin"]))
    model.add_adapter("finer", SparseConfig(n=8, m=12, k=20, target_modules=["lin"]))
    assert changed_parameters(model) == 32
    model.base_model.set_adapter(["default", "same"])
    union = set(layer.positions("default").tolist()) | set(layer.positions("same").tolist())
    assert changed_parameters(model) == 8 * len(union)
    model.base_model.set_adapter(["default", "finer"])
    cells = (torch.zeros(8, 12) + 0).bool()
    for name, bo, bi in (("default", 2, 4), ("finer", 1, 1)):
        m = layer.sparse_scores[name].shape[1]
        for p in layer.positions(name).tolist():
            cells[p // m * bo : p // m * bo + bo, p % m * bi : p % m * bi + bi] = True
    assert changed_parameters(model) == int(cells.sum())
    with model.disable_adapter():
        assert changed_parameters(model) == 0


# -- what is refused --


@pytest.mark.parametrize("module", [nn.Embedding(12, 8), nn.Conv2d(4, 8, 1), nn.LayerNorm(12), nn.Bilinear(4, 4, 8)])
def test_other_layers_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"Target module lin is not supported: it is a {type(module).__name__}"):
        sparse(Net(module))


def test_the_projection_of_multihead_attention_is_refused() -> None:
    """It would take no effect: nn.MultiheadAttention reads the weight past the layer."""
    with pytest.raises(ModelError, match=r"nn\.MultiheadAttention reads its weight"):
        sparse(nn.MultiheadAttention(8, 2), target_modules=["out_proj"])
