"""`PackedLinear`: a linear layer that holds its weight as k-bit codes, in the layout of a GPTQ checkpoint.

How it works:

1. the buffers `qweight, qzeros, scales, g_idx` (and the parameter `bias`) are those of the checkpoint
   (`plr.gptq.packing`), bit for bit: its `state_dict` is the checkpoint. There is no parameter `weight`: nothing to
   train, nothing for an optimizer to find;
2. `kernel="packed"` reads the codes in `forward` and again in `backward` (an autograd function keeps them, not the dense
   weight): memory is that of k bits. `kernel="dequantized"` keeps the dense weight in the compute dtype once it was
   needed. On a CPU both multiply by the same tensor in the same layout, so both give the same numbers; on a GPU the packed
   product may add in another order (`plr.gptq.kernels`), as the dense one may in training (`plr.training.products`);
3. it is an `nn.Linear`, so every PEFT method takes it. `.weight` reads as the dense weight (`FrozenWeight`); writing to
   it raises;
4. `.to(dtype)` sets the compute dtype. The scales stay the numbers that were stored: rounding them to bfloat16 would be
   another base.

What it gives up: `weight` is computed on each access under `kernel="packed"`; second derivatives through the packed
kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plr.gptq import kernels, packing
from plr.gptq.errors import FrozenWeightError, GPTQError
from plr.gptq.frozen import FrozenWeight
from plr.gptq.solution import Solution

__all__ = ["BUFFERS", "KERNELS", "Kernel", "PackedLinear"]

Kernel = Literal["packed", "dequantized"]
KERNELS: tuple[Kernel, ...] = ("packed", "dequantized")
BUFFERS = ("qweight", "qzeros", "scales", "g_idx")  # of a PackedLinear, as a checkpoint names them
INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class PackedLinear(nn.Linear):
    """`y = x W^T + b` with `W [out, in]` stored at `bits` bits; see the module's docstring.

    Buffers: `qweight` int32 `[ceil(in*bits/32), out]`, `qzeros` int32 `[groups, ceil(out*bits/32)]`, `scales` fp16
    `[groups, out]`, `g_idx` int32 `[in]`. Made empty; filled by `from_solution` or `load_state_dict`.

    Args:
        in_features, out_features, bias: as `nn.Linear`.
        bits: 2, 3, 4 or 8.
        groups: groups in each row (1: one scale a row).
        checkpoint_format: how qzeros are stored, "gptq" (v1) or "gptq_v2".
        kernel: "dequantized" (fast, dense memory) or "packed" (k-bit memory). May be changed at any time.
        dtype: the compute dtype; None is torch's default dtype.
        device: where the buffers lie.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bias: nn.Parameter | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int,
        groups: int = 1,
        checkpoint_format: str = packing.V1,
        kernel: str = "dequantized",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would make the dense weight
        self.in_features = in_features
        self.out_features = out_features
        self.bits = bits
        self.checkpoint_format = checkpoint_format
        self.conv1d = False  # whether it stands where a Conv1D stood (GPT-2), see `to_dense`
        self._kernel: Kernel = _kernel(kernel)
        self._dense: Tensor | None = None  # [out, in], compute dtype; only under kernel="dequantized"
        self._in_order: bool | None = None  # whether g_idx is 0..0 1..1 2..2; None: not looked at yet
        words = packing.packed_size(in_features, bits, "in_features")
        zero_words = packing.packed_size(out_features, bits, "out_features")
        self.register_buffer("qweight", torch.zeros(words, out_features, dtype=torch.int32, device=device))
        self.register_buffer("qzeros", torch.zeros(groups, zero_words, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16, device=device))
        self.register_buffer("g_idx", torch.zeros(in_features, dtype=torch.int32, device=device))
        self.set_compute(dtype or torch.get_default_dtype(), device)
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        )

    @classmethod
    def from_solution(
        cls,
        solution: Solution,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        kernel: str = "dequantized",
    ) -> PackedLinear:
        """Make the layer that serves `solution`, with `bias [out]`, on the solution's device.

        Zero points of 0 make its qzeros "gptq_v2", all others "gptq" (v1): see `plr.gptq.packing`.
        """
        out_features, in_features = solution.Q.shape
        zero = solution.zero.t()  # [groups, out]
        layer = cls(
            in_features,
            out_features,
            bias is not None,
            bits=solution.bits,
            groups=zero.shape[0],
            checkpoint_format=packing.zero_format(zero),
            kernel=kernel,
            dtype=dtype,
            device=solution.Q.device,
        )
        layer.qweight = packing.pack(solution.Q.t(), solution.bits, "in_features")
        layer.qzeros = packing.pack_zeros(zero, solution.bits, layer.checkpoint_format)
        # Copies: a solution may be a slice of another, and layers that share memory cannot be saved.
        layer.scales = solution.scale.t().to(torch.float16).clone(memory_format=torch.contiguous_format)
        layer.g_idx = solution.g_idx.to(torch.int32, copy=True)
        if bias is not None and layer.bias is not None:
            layer.bias.data.copy_(bias)
        return layer

    @property
    def kernel(self) -> Kernel:
        """ "packed" or "dequantized"."""
        return self._kernel

    @kernel.setter
    def kernel(self, value: str) -> None:
        self._kernel = _kernel(value)
        self._dense = None

    def set_compute(self, dtype: torch.dtype, device: torch.device | str | None = None) -> None:
        """Set the compute dtype (and where it is noted); `.to(dtype)` does so too, and moves the buffers."""
        # An empty frozen parameter, left out of the state_dict. `.to()` moves and casts it with the rest; and code that
        # asks `next(module.parameters())` for a dtype or device (PEFT's AdaptionPrompt) finds one.
        self._like = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        self._dense = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the dense weight and of the output: what `.to(dtype)` set."""
        return self._like.dtype

    @property
    def group_size(self) -> int:
        """Columns that share a scale; `in_features` where a row has one group."""
        return self.in_features // self.scales.shape[0]

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dense weight `[out, in]` in the compute dtype: read-only (`FrozenWeight`), never trainable."""
        return FrozenWeight.of(self.dense())

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Make a fresh dense weight `[out, in]`, contiguous: `scale * (code - zero)`, rounded once to `dtype`.

        `dtype=None` is the compute dtype.
        """
        return self._dequantize(dtype or self.compute_dtype)

    def zeros(self) -> Tensor:
        """Unpack the zero points, int32 `[groups, out]`."""
        return packing.unpack_zeros(self.qzeros, self.bits, self.out_features, self.checkpoint_format)

    def codes(self) -> packing.Codes:
        """Collect the stored tensors with what is needed to read them."""
        if self._in_order is None:
            order = torch.arange(self.in_features, dtype=self.g_idx.dtype, device=self.g_idx.device) // self.group_size
            self._in_order = bool(torch.equal(self.g_idx, order))
        return packing.Codes(
            self.qweight, self.qzeros, self.scales, self.g_idx, self.bits, self.in_features, self.checkpoint_format,
            self._in_order,
        )  # fmt: skip

    def set_checkpoint_format(self, checkpoint_format: str) -> None:
        """Store qzeros as "gptq" (v1) or "gptq_v2"; the weight stays what it is.

        Raises:
            PackingError: a zero point of 0, which v1 cannot hold.
        """
        if checkpoint_format != self.checkpoint_format:
            self.qzeros = packing.pack_zeros(self.zeros(), self.bits, checkpoint_format)
            self.checkpoint_format = checkpoint_format

    def to_linear(self) -> nn.Linear:
        """Make an ordinary dense `nn.Linear` with this weight and bias, in the compute dtype."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.compute_dtype)
        linear.weight = nn.Parameter(self.dequantize())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return linear

    def to_dense(self) -> nn.Linear | Conv1D:
        """Make a dense layer of the kind that this one replaced, so that the model saves in its own layout."""
        linear = self.to_linear()
        if not self.conv1d:
            return linear
        with torch.device("meta"):
            conv = Conv1D(self.out_features, self.in_features)
        conv.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        # A Conv1D has a bias always.
        bias = linear.weight.new_zeros(self.out_features) if self.bias is None else linear.bias
        conv.bias = nn.Parameter(bias.detach(), self.bias is not None and self.bias.requires_grad)
        return conv

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the weight: `[.., in] -> [.., out]`."""
        kind, bias = input.device.type, self.bias
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.compute_dtype
        if torch.is_autocast_enabled(kind):
            input = input.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self._kernel == "dequantized":
            return F.linear(input, self.dense().to(dtype), bias)
        if not torch.is_grad_enabled():
            return self._product(input, bias, dtype)
        return cast(Tensor, _PackedLinearFunction.apply(input, bias, self, dtype))  # pyright: ignore[reportUnknownMemberType]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, groups={self.scales.shape[0]}, kernel={self._kernel}"
        )

    def _product(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            return kernels.linear(x, self.codes(), bias, dtype, self.compute_dtype)

    def _dequantize(self, dtype: torch.dtype) -> Tensor:
        """Make a fresh dense weight `[out, in]`, contiguous."""
        # Out of inference mode: a weight kept from an evaluation must serve the next training step.
        with torch.inference_mode(False), torch.no_grad():
            return kernels.dequantize(self.codes(), dtype)

    def dense(self) -> Tensor:
        """Get the dense weight `[out, in]` in the compute dtype as a plain tensor; from the cache under "dequantized"."""
        if self._kernel == "packed":
            return self._dequantize(self.compute_dtype)
        if self._dense is None:
            self._dense = self._dequantize(self.compute_dtype)
        return self._dense

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        scales = self.scales
        # Casts pass integers by: as integers the scales move with the module and keep their bits.
        self._buffers["scales"] = scales.view(INTEGER_OF_SIZE[scales.element_size()])
        try:
            super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        finally:
            self._buffers["scales"] = self.scales.view(scales.dtype)
            self._dense = None
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # pyright: ignore[reportUnknownMemberType]
        del destination[prefix + "_like"]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        like = self._parameters.pop("_like")
        try:
            super()._load_from_state_dict(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        finally:
            self._parameters["_like"] = like
            self._dense = self._in_order = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            if isinstance(value, FrozenWeight) and torch.equal(value, self.dense()):
                return  # the weight it has: PEFT's unload() gives each layer its own back
            raise FrozenWeightError(
                "A new weight was assigned to a PackedLinear.",
                "no assignment: the layer stores k-bit codes.",
                "quantize the new weight (PackedLinear.from_solution), or use PackedLinear.to_linear().",
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dense": None}  # copies start without the cache


class _PackedLinearFunction(torch.autograd.Function):
    """`F.linear` that reads the codes in forward and again in backward, so that no dense weight is kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: PackedLinear, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype = layer, dtype
        return layer._product(x, bias, dtype)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grads[0]  # [.., out]
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            layer: PackedLinear = ctx.layer
            grad_x = kernels.input_grad(grad, layer.codes(), ctx.dtype, layer.compute_dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.sum(tuple(range(grad.dim() - 1)))
        return grad_x, grad_bias, None, None


def _kernel(kernel: str) -> Kernel:
    for known in KERNELS:
        if kernel == known:
            return known
    raise GPTQError(
        f"kernel={kernel!r} was given.", f"one of {', '.join(KERNELS)}.", "use 'dequantized' where memory allows."
    )
