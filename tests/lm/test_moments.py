"""Second moments of inputs, against inputs that a hook of the test's own collects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from plr.lm.moments import second_moments


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "head" not in name
    }


@pytest.mark.parametrize("budget", [1, 10**9])
def test_they_are_the_mean_of_the_outer_products(budget: int, llama: Any) -> None:
    layers = linears(llama)
    rows = [{"input_ids": torch.tensor([ids])} for ids in ([3, 5, 7], [4, 4], [9, 8, 7, 6, 5])]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0][0].clone()))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for row in rows:
            llama(**row)
    for hook in hooks:
        hook.remove()
    passes: list[tuple[int, int]] = []
    found = dict(second_moments(llama, layers, rows, budget=budget, on_progress=lambda *done: passes.append(done)))
    assert found.keys() == layers.keys()
    for name, moment in found.items():
        x = torch.cat(seen[name])
        assert torch.allclose(moment, x.T @ x / len(x), atol=1e-5), name
    assert passes[-1][0] == passes[-1][1]
    assert (passes[-1][1] == len(rows)) == (budget > 1)


def test_layers_of_one_input_share_their_moment(llama: Any) -> None:
    found = dict(second_moments(llama, linears(llama), [{"input_ids": torch.tensor([[3, 5, 7]])}]))
    first = next(name for name in found if name.endswith("q_proj"))
    assert found[first] is found[first.replace("q_proj", "k_proj")]
    assert found[first] is not found[first.replace("q_proj", "o_proj")]


def test_a_layer_that_nothing_reaches_is_left_out(llama: Any) -> None:
    layers = {**linears(llama), "idle": nn.Linear(4, 4)}
    assert "idle" not in dict(second_moments(llama, layers, [{"input_ids": torch.tensor([[3, 5]])}]))
