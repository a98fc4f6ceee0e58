"""The linear layers of a model in training: one product forward, one backward, and LoRA's two small ones in the same breath.

1. In float32 on a CPU a linear layer multiplies by the faster library (`plr.gptq.products`), forward and backward.
2. A LoRA layer of PEFT computes `x W^T + s (x A^T) B^T` in one function of autograd. PEFT's own makes `(x A^T) B^T` as a tensor
   of its own, scales it, and adds it; here it is added in place, and of the forward only `x` and `x A^T` are kept.

Each layer gets a `forward` of its own for the time of a step; every call that is not plain (dropout, DoRA or another variant,
several adapters, a merged or disabled one, hooks on the base layer) goes the way of its class. Results are those of the class but
for the order of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from plr.gptq import products
from plr.gptq.linear import PackedLinear
from plr.gptq.typed import Context

__all__ = ["Quick"]

Forward = Callable[..., Tensor]


class Quick:
    """The layers of a model that have a faster `forward`; the model with its adapter is that of the training."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards: list[tuple[nn.Module, Forward]] = []
        for layer in model.modules():
            if type(layer) is LoraLinear:
                self.forwards.append((layer, _lora(layer)))
            elif type(layer) is nn.Linear or isinstance(layer, PackedLinear):
                self.forwards.append((layer, _linear(layer)))

    @contextmanager
    def serving(self) -> Generator[None]:
        """Let the layers multiply as the module's docstring says inside."""
        ours = [(layer, forward) for layer, forward in self.forwards if "forward" not in layer.__dict__]
        for layer, forward in ours:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in ours:
                layer.__dict__.pop("forward", None)


class LoraContext(Context, Protocol):
    """Memory of `_LoraProduct`: the scaling, and the dtypes of A and B, too."""

    s: float
    wide: tuple[torch.dtype, torch.dtype]


class _Product(torch.autograd.Function):
    """`x W^T + b` for `x [rows, in]`, by `plr.gptq.products` forward and backward."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, W)
        return products.linear(x, W, bias)  # [rows, out]: a view would not bear being added to in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad, (x, W), wanted = grads[0], ctx.saved_tensors, ctx.needs_input_grad
        return (
            products.linear(grad, W.t()) if wanted[0] else None,
            products.linear(grad.t(), x.t()) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


class _LoraProduct(torch.autograd.Function):
    """`x W^T + b + s (x A^T) B^T` for `x [rows, in]` and a frozen `W`, in the dtype of `x`; A and B may be of a wider one."""

    @staticmethod
    def forward(ctx: LoraContext, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        a, b = A.to(x.dtype), B.to(x.dtype)
        z = x @ a.t()  # [rows, r]
        ctx.save_for_backward(x, z, a, b, W)
        ctx.s, ctx.wide = s, (A.dtype, B.dtype)
        return products.linear(x, W, bias).addmm_(z, b.t(), alpha=s)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: LoraContext, *grads: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, z, a, b, W = ctx.saved_tensors
        grad, s, wanted = grads[0], ctx.s, ctx.needs_input_grad
        back = grad @ b  # [rows, r]
        grad_x = products.linear(grad, W.t()).addmm_(back, a, alpha=s) if wanted[0] else None
        grad_A = (back.t() @ x).mul_(s).to(ctx.wide[0]) if wanted[3] else None
        grad_B = (grad.t() @ z).mul_(s).to(ctx.wide[1]) if wanted[4] else None
        return grad_x, None, None, grad_A, grad_B, None


def _by_rows(product: type[torch.autograd.Function], x: Tensor, *others: object) -> Tensor:
    """Apply a product of `[rows, in]` to `x [.., in]`."""
    made = cast(Tensor, product.apply(x.reshape(-1, x.shape[-1]), *others))  # pyright: ignore[reportUnknownMemberType]
    return made.view(*x.shape[:-1], made.shape[-1])


def _linear(layer: nn.Linear) -> Forward:
    own = type(layer).forward

    def forward(input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type) or not torch.is_grad_enabled():
            return own(layer, input)
        W = _dense(layer)
        if W is None or not products.takes(input, W):
            return own(layer, input)
        return _by_rows(_Product, input, W, layer.bias)

    return forward


def _lora(layer: LoraLinear) -> Forward:
    own = type(layer).forward

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        plain = None if args or kwargs else _plain(layer, x)
        if plain is None:
            return own(layer, x, *args, **kwargs)
        W, bias, name, dtype = plain
        bias = None if bias is None else bias.to(dtype)
        A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
        return _by_rows(_LoraProduct, x.to(dtype), W.to(dtype), bias, A, B, layer.scaling[name])

    return forward


def _plain(layer: LoraLinear, x: Tensor) -> tuple[Tensor, Tensor | None, str, torch.dtype] | None:
    """Collect the frozen weight, its bias, the adapter's name and the type to compute in; None where the call is not plain."""
    base: Any = layer.base_layer
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or not torch.is_grad_enabled():
        return None
    (name,) = names
    if name not in layer.lora_A or name in layer.lora_variant or base._forward_hooks or base._forward_pre_hooks:
        return None
    if not isinstance(layer.lora_dropout[name], nn.Identity) or layer.lora_B[name].bias is not None:
        return None
    W = _dense(base)
    if W is None or W.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return None
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return W, base.bias, name, torch.get_autocast_dtype(kind)
    adapter = layer.lora_A[name].weight.dtype
    return (W, base.bias, name, x.dtype) if x.dtype == W.dtype == adapter else None


def _dense(layer: nn.Module) -> Tensor | None:
    """Find the dense weight `[out, in]` that `layer` keeps; None if it keeps none, or is of another kind."""
    if isinstance(layer, PackedLinear):
        return layer.dense() if layer.kernel == "dequantized" else None
    return layer.weight if type(layer) is nn.Linear else None
