"""Experts that transformers keeps in one tensor, taken apart into linear layers, and put together again.

A mixture of experts holds `gate_up_proj [E, 2 I, H]` and `down_proj [E, H, I]` (Mixtral, Qwen3-MoE, Qwen3-Next, DeepSeek-V3,
GraniteMoE). `separate` puts `experts.<e>.gate_proj`, `up_proj` and `down_proj` in their place, views of the same memory, so that
each is a layer like any other: quantized with the Hessian of the tokens that are routed to it, packed, saved and loaded by its
name. `join` makes the one tensor again out of dense layers.

In calibration every expert is called, with no token if none is routed to it, so that all batches reach all layers in one order. An
expert that saw fewer tokens than a layer has inputs is solved with the Hessian of all tokens, as if each of them had been routed to
it; its report says how many were.

What it gives up: experts of another form (transposed, with biases) are not taken apart. A module is compared with what is to
stand in its place, on a few random tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from plr.gptq.blocks import named_modules
from plr.gptq.errors import WalkError

__all__ = ["Expert", "SeparateExperts", "can_separate", "every_expert", "join", "routed", "separate"]


class Expert(nn.Module):
    """One expert: `down(act(gate(x)) * up(x))`."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down


class SeparateExperts(nn.ModuleList):
    """The experts of one block as linear layers; takes the place of transformers' module, and is called as it is."""

    def __init__(self, fused: nn.Module) -> None:
        own = cast(Any, fused)
        inner = own.down_proj.shape[2]
        super().__init__(
            Expert(
                _linear(own.gate_up_proj[e, :inner]), _linear(own.gate_up_proj[e, inner:]), _linear(own.down_proj[e])
            )
            for e in range(own.down_proj.shape[0])
        )
        self.__dict__["fused"] = fused  # no submodule: its parameters are these layers'
        self.__dict__["act_fn"] = own.act_fn  # nor is this one of the list
        self.calls_all = False

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the weighted outputs of the experts of each token: `[tokens, H]`; indices and weights are `[tokens, k]`."""
        total = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self.children()):
            token, place = torch.where(top_k_index == index)
            if len(token) or self.calls_all:
                y = self._run(cast(Expert, expert), hidden_states, token) * top_k_weights[token, place, None]
                total.index_add_(0, token, y.to(total.dtype))
        return total

    def _run(self, expert: Expert, hidden: Tensor, token: Tensor) -> Tensor:
        """Run one expert on the rows `token` of `hidden`; before each layer it is left with it which rows these are."""
        act = cast("Callable[[Tensor], Tensor]", self.__dict__["act_fn"])

        def everything() -> Tensor:
            return act(expert.gate_proj.forward(hidden)) * expert.up_proj.forward(hidden)

        def call(layer: nn.Linear, x: Tensor, of_all: Callable[[], Tensor]) -> Tensor:
            if self.calls_all:
                layer.__dict__["routed"] = (token, of_all)
            return layer(x)

        x = hidden[token]
        gate, up = call(expert.gate_proj, x, lambda: hidden), call(expert.up_proj, x, lambda: hidden)
        return call(expert.down_proj, act(gate) * up, everything)


def routed(layer: nn.Module) -> tuple[Tensor, Callable[[], Tensor]] | None:
    """Return the tokens that an expert's layer is about to be called with, and its input for all tokens; None for other layers."""
    return layer.__dict__.pop("routed", None)


def can_separate(module: nn.Module) -> bool:
    """Tell by names and shapes whether `module` holds experts in the form that is taken apart here."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    if names != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
        return False
    gate_up, down = (cast(Tensor, getattr(module, name)) for name in ("gate_up_proj", "down_proj"))
    return (
        gate_up.ndim == down.ndim == 3
        and down.shape[0] == gate_up.shape[0]
        and gate_up.shape[1:] == (2 * down.shape[2], down.shape[1])
    )


def separate(model: nn.Module, *, compared: bool = True) -> int:
    """Take apart the experts of `model`, in place; returns in how many blocks.

    Without `compared`, what a module computes is not looked at: its weights are not there yet.

    Raises:
        WalkError: experts that compute otherwise than their form says.
    """
    found = [(name, module) for name, module in named_modules(model) if can_separate(module)]
    for name, fused in found:
        parts = SeparateExperts(fused).eval()
        if compared and not _same(fused, parts):
            raise WalkError(
                f"{name} ({type(fused).__name__}) computes otherwise than experts of its form.",
                "down(act(gate(x)) * up(x)) of each expert, weighted.",
                "skip it, or quantize another model.",
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, parts)
    return len(found)


def join(model: nn.Module) -> None:
    """Put dense experts of `model` that were taken apart together again, in place."""
    found = [(name, module) for name, module in named_modules(model) if isinstance(module, SeparateExperts)]
    for name, parts in found:
        fused: Any = parts.__dict__["fused"]
        experts = [cast(Expert, expert) for expert in parts.children()]
        gate_up = [torch.cat([one.gate_proj.weight, one.up_proj.weight]) for one in experts]
        fused.gate_up_proj = nn.Parameter(torch.stack(gate_up), requires_grad=False)
        fused.down_proj = nn.Parameter(torch.stack([one.down_proj.weight for one in experts]), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fused)


@contextmanager
def every_expert(model: nn.Module) -> Generator[None]:
    """Call every expert inside, with no token if none is routed to it."""
    experts = [module for module in model.modules() if isinstance(module, SeparateExperts)]
    for module in experts:
        module.calls_all = True
    try:
        yield
    finally:
        for module in experts:
            module.calls_all = False
            for layer in module.modules():
                layer.__dict__.pop("routed", None)


def _linear(weight: Tensor) -> nn.Linear:
    out_features, in_features = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(in_features, out_features, bias=False)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return linear


def _same(fused: nn.Module, parts: SeparateExperts) -> bool:
    """Compare both on a few random tokens."""
    own = cast(Any, fused)
    weight: Tensor = own.down_proj
    count, wide = weight.shape[0], weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, wide, generator=generator).to(weight)
    places = torch.stack([torch.randperm(count, generator=generator)[: min(2, count)] for _ in range(8)]).to(
        weight.device
    )
    shares = torch.rand(places.shape, generator=generator).to(weight)
    with torch.no_grad():
        expected, found = own(hidden, places, shares), parts(hidden, places, shares)
    scale = float(expected.float().abs().max())
    return float((expected - found).float().abs().max()) <= 0.02 * scale
