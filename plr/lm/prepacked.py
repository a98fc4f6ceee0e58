"""Linear layers on a CPU with their weights laid out beforehand as oneDNN multiplies them.

How it works
1. A matrix library copies the weight into its own blocked layout in every product. With few rows (a decode step has one a
   running answer) that copy is a large part of the time. Here it is done once, for the time of a run.
2. Each `nn.Linear` of the model, and each `PackedLinear` that keeps its dense weight, gets a `forward` of its own, which
   multiplies the laid-out copy. Afterwards it has its class's again. Layers inside a PEFT adapter's are reached too.
3. It is left out, without a difference in results beyond the order of floating-point sums, where it would not help: off the
   CPU, for other types than float32 and bfloat16, under autocast, for small layers, and where the copies would take more than
   a quarter of the free memory.
4. It is left out, too, for a type that oneDNN refuses on this CPU (bfloat16 without AVX-512): `lays_out` tries each type once.

Measured on all linear layers of SmolLM2-135M, one core of an AMD EPYC (AVX-512): in float32 1.3 times the tokens a second at 64
rows, 1.7 at 16, 1.9 at 4, 1.2 at 1024; in bfloat16 1.2, 1.5, 2.0 and 1.0. Laying them out takes a third of a second.

What it gives up: the memory of a second copy of the weights while it lasts; gradients.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from plr.core.runtime import available_memory
from plr.gptq.linear import PackedLinear

__all__ = ["lays_out", "prepacked"]

log = logging.getLogger(__name__)

LEAST = 64 * 64  # weights; a smaller product costs as much either way
SHARE = 0.25  # of the free memory, at most: several workers may start at once
_TYPES = (torch.float32, torch.bfloat16)


@contextmanager
def prepacked(model: nn.Module) -> Iterator[int]:
    """Let the linear layers of `model` multiply laid-out copies of their weights inside; yields how many do.

    For inference only: nothing is differentiable inside. A weight that is changed inside has no effect until the end.
    """
    layers = _layers(model)
    try:
        for layer, weight in layers:
            layer.__dict__["forward"] = _product(layer, weight)
        yield len(layers)
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("forward", None)


@cache
def lays_out(dtype: torch.dtype) -> bool:
    """Try, once a process, whether oneDNN lays weights of `dtype` out on this CPU and multiplies them."""
    weight = torch.ones(64, 64, dtype=dtype)
    try:
        _multiplier(weight, None)(weight[:1])
    except (RuntimeError, AttributeError) as refusal:  # AttributeError: a torch that was built without these operations
        log.info("linear layers in %s stay as they are: %s", dtype, str(refusal).partition("\n")[0])
        return False
    return True


def _layers(model: nn.Module) -> list[tuple[nn.Linear, Tensor]]:
    """List the layers that are worth it, with their dense weights; none where the machine or the memory does not allow it."""
    if (
        platform.machine() not in ("x86_64", "AMD64")
        or not torch.backends.mkldnn.is_available()
        or torch.is_autocast_enabled("cpu")
    ):
        return []
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    dense = [(layer, weight) for layer in linears if (weight := _weight(layer)) is not None]
    free = available_memory()
    needed = sum(weight.nbytes for _, weight in dense)
    return dense if free is None or needed <= SHARE * free else []


def _weight(layer: nn.Linear) -> Tensor | None:
    if "forward" in layer.__dict__:  # another library's, e.g. a hook that moves weights between devices
        return None
    if type(layer) is nn.Linear:
        weight = layer.weight.detach()
    elif isinstance(layer, PackedLinear) and layer.kernel == "dequantized" and layer.qweight.device.type == "cpu":
        weight = layer.dense()
    else:
        return None
    worth = weight.device.type == "cpu" and weight.dtype in _TYPES and weight.numel() >= LEAST
    return weight if worth and lays_out(weight.dtype) else None


def _product(layer: nn.Linear, weight: Tensor) -> Callable[[Tensor], Tensor]:
    multiply, dtype = _multiplier(weight, None if layer.bias is None else layer.bias.detach()), weight.dtype

    def forward(input: Tensor) -> Tensor:
        if input.dtype != dtype or not input.numel():  # as the layer itself would say or do it
            return type(layer).forward(layer, input)
        return multiply(input)

    return forward


def _multiplier(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Multiply by a copy of `weight` that is laid out here and now."""
    ops: Any = torch.ops.mkldnn
    packed, multiply = ops._reorder_linear_weight(weight), ops._linear_pointwise
    return lambda input: multiply(input, packed, bias, "none", [], "")
