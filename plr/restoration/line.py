"""The way from one base to another, with an adapter on it: W(t) = (1 - t) W_k + t W_l, and the adapter times s.

t = 0 is the adapter on its own base, t = 1 plain restoration. For LoRA the served weight is W_k + t (W_l - W_k) + s dW.
Models are joined by lines of weights in Ilharco et al. 2022 (arXiv:2212.04089) and Wortsman et al. 2022 (arXiv:2109.01903);
here both ends are bases of one model at two widths, and the adapter is that of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plr.bases.quantize import taken_apart
from plr.errors import ModelError
from plr.quantizers import densify, is_quantized_layer
from plr.quantizers.base import named_modules
from plr.quantizers.layers import dense_layer
from plr.restoration.compensation import Factors, sum_of
from plr.restoration.lowrank import matrix_of

__all__ = ["Line", "k_bit_layers", "set_scale"]


def k_bit_layers(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Select the k-bit layers among modules by name."""
    return {name: module for name, module in modules.items() if is_quantized_layer(module)}


class Line:
    """The bases between two ends, in the place of one dense model.

    Of the k-bit end only the codes are kept and a layer of it is dequantized at a time: two dense models are in memory, not three.
    """

    def __init__(self, low: Any, high: Any, frozen: Factors | None = None) -> None:
        """Make the k-bit base `low` dense, in place, to be moved towards `high`, of which the weights of the same layers are kept.

        `frozen` is a compensation that belongs to the k-bit end.

        Raises:
            ModelError: no k-bit layer, or one that the other base does not have or has in another shape.
        """
        self.low = k_bit_layers(dict(named_modules(low)))
        """Layers of the k-bit end."""
        if not self.low:
            raise ModelError("the base the adapter was trained on has no k-bit layer", expected="a base below 16 bits")
        modules = dict(named_modules(high))
        if not self.low.keys() <= modules.keys():
            taken_apart(high)  # experts, which lie one by one in a k-bit base
            modules = dict(named_modules(high))
        densify(low)
        self.layers: dict[str, Any] = {}
        """Layers of the model that moves."""
        self.high: dict[str, nn.Module] = {}
        """Layers of the other end."""
        for name in self.low:
            layer: Any = low.get_submodule(name)
            other: Any = modules.get(name)
            if other is None or _dense(other).weight.shape != layer.weight.shape:
                raise ModelError(
                    f"the layer {name} of the k-bit base is not in the other one, or has another shape",
                    expected="two bases of one source model",
                )
            self.layers[name], self.high[name] = layer, other
        self.frozen = frozen or {}
        self.t = -1.0  # nowhere yet
        self.move(0.0)

    @torch.no_grad()
    def move(self, t: float) -> None:
        """Go to the base at `t`; both ends are met bit by bit."""
        if t == self.t:
            return
        for name, start, end in self._ends():
            weight = self.layers[name].weight
            if t in (0.0, 1.0):
                weight.copy_(end if t else start)
            else:
                weight.copy_(torch.lerp(start.float(), end.float(), t))
        self.t = t

    def _ends(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, module in self.low.items():
            start: Any = dense_layer(module)
            yield name, with_compensation(start, self.frozen, name), _dense(self.high[name]).weight


def with_compensation(layer: Any, frozen: Factors, name: str) -> Tensor:
    """Return the weight of a dense layer, in its own layout, with the compensation that belongs to it."""
    if name not in frozen:
        return layer.weight
    whole = matrix_of(layer)
    whole = whole + sum_of(frozen, name, whole)
    return (whole.T if isinstance(layer, Conv1D) else whole).to(layer.weight.dtype)


def _dense(layer: Any) -> Any:
    return dense_layer(layer) if is_quantized_layer(layer) else layer


def set_scale(
    model: nn.Module, name: str, factor: float, trained: Mapping[int, float] | None = None
) -> dict[int, float]:
    """Let the adapter `name` act `factor` times as much as it was trained to.

    Args:
        model: with the adapter on it.
        name: of the adapter.
        factor: s.
        trained: what an earlier call returned, where there was one.

    Returns the scales as trained, for the next call.

    Raises:
        ModelError: no layer of the adapter has a scale, and `factor` is not 1.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = [layer for layer in layers if name in layer.scaling]
    if not layers and factor != 1.0:
        raise ModelError("no layer of this adapter has a scale", expected="an adapter with lora_alpha")
    before: dict[int, float] = dict(trained or {id(layer): layer.scaling[name] for layer in layers})
    for layer in layers:
        layer.scaling[name] = before[id(layer)] * factor
    return before
