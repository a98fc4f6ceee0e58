"""Second moments of what reaches the layers of a model: H = mean x x^T over the tokens of some rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plr.lm.support import evaluating, input_device

__all__ = ["second_moments"]

BUDGET = 4 * 2**30
"""Bytes of the moments that are held at once; a larger model is read in several passes."""


def second_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    rows: Sequence[Mapping[str, Tensor]],
    *,
    budget: int = BUDGET,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name and H `[in, in]`, float32, where the layer is; layers of one input share a tensor.

    A layer that no row reaches, as an expert nothing is routed to, is left out.

    Rows run one by one, without padding. Where all moments take more than `budget` bytes, some layers are measured in a pass of
    their own.

    Args:
        model: with its adapter on it, if it has one.
        layers: linear layers of `model` by name, with `in_features`.
        rows: inputs of the model, int64 `[1, t]` each.
        budget: bytes.
        on_progress: called with forward passes done and in all.
    """
    sharing = _sharing(model, layers, rows)
    groups = list(_groups(sharing, layers, budget))
    done = 0
    for group in groups:
        moments: dict[str, Tensor] = {}
        tokens: dict[str, int] = {}
        hooks = [
            layers[name].register_forward_pre_hook(_adding(name, moments, tokens))
            for name in group
            if sharing[name] == name
        ]
        try:
            with evaluating(model):
                for row in rows:
                    model(**_placed(row, input_device(model)))
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(rows) * len(groups))
        finally:
            for hook in hooks:
                hook.remove()
        means = {name: moment / tokens[name] for name, moment in moments.items()}
        for name in group:
            yield name, means[sharing[name]]


def _placed(row: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) for key, value in row.items()}


def _adding(name: str, moments: dict[str, Tensor], tokens: dict[str, int]) -> Callable[[nn.Module, Any], None]:
    def add(_: nn.Module, inputs: Any) -> None:
        x: Tensor = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        if name not in moments:
            moments[name], tokens[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device), 0
        moments[name].addmm_(x.T, x)
        tokens[name] += len(x)

    return add


def _sharing(model: nn.Module, layers: Mapping[str, nn.Module], rows: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """Find for each layer that is reached the first one that gets the very same input, in the row that reaches it first."""
    seen: list[tuple[Any, str]] = []
    owner: dict[str, str] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def look(_: nn.Module, inputs: Any) -> None:
            same = next((first for x, first in reversed(seen) if x is inputs[0]), None)
            if same is None:
                seen.append((inputs[0], name))
            owner.setdefault(name, same or name)

        return look

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for row in rows:
                model(**_placed(row, input_device(model)))
                seen.clear()
                if len(owner) == len(layers):
                    break
    finally:
        for hook in hooks:
            hook.remove()
    return {name: owner[name] for name in layers if name in owner}


def _groups(sharing: Mapping[str, str], layers: Mapping[str, nn.Module], budget: int) -> Iterator[list[str]]:
    """Cut the layers into passes whose moments take at most `budget` bytes; layers of one input stay together."""
    by_owner: dict[str, list[str]] = {}
    for name in sharing:
        by_owner.setdefault(sharing[name], []).append(name)
    group: list[str] = []
    held = 0
    for owner, names in by_owner.items():
        layer: Any = layers[owner]
        size = 4 * int(layer.in_features) ** 2
        if group and held + size > budget:
            yield group
            group, held = [], 0
        group, held = group + names, held + size
    if group:
        yield group
