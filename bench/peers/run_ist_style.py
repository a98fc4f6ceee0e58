"""The schedule of GPTQ's first implementation, written anew from its description (arXiv:2210.17323, section 3).

How it works, block by block, one sample at a time:

1. every Linear of the block is hooked; one forward of all samples gathers a full Hessian for each of them;
2. each is solved in the column order: blocks of 128 columns, a rank-1 update for each column within the block, one
   matrix product for all columns behind it; a group's scale is read when its first column comes up;
3. a second forward of all samples, now quantized, makes the inputs of the next block.

It saves the dequantized weights: the first implementation has no common checkpoint format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, preload
from torch import Tensor, nn

from plr.bases.quantize import forward_dtype

BLOCK, DAMP = 128, 0.01


class Stop(Exception):
    """The input of the first block is known."""


def first_inputs(model: nn.Module, block: nn.Module, rows: Tensor) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What the first block is called with, for each row: hidden states `[1, t, hidden]` and keyword arguments."""
    inputs: list[Tensor] = []
    extras: list[dict[str, Any]] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0])
        extras.append(kwargs)
        raise Stop

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    for row in rows:
        try:
            model(row[None], use_cache=False)
        except Stop:
            continue
    handle.remove()
    return inputs, extras


class Layer:
    """One Linear: gathers its Hessian, then solves it."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.n = linear, 0
        self.H = torch.zeros(linear.in_features, linear.in_features)

    def hook(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add one sample `[1, t, in]`."""
        X = args[0].reshape(-1, args[0].shape[-1]).float()
        self.H *= self.n / (self.n + 1)
        self.n += 1
        X = X * (2 / self.n) ** 0.5
        with torch.autocast("cpu", enabled=False):
            self.H += X.t() @ X

    def solve(self, bits: int, group: int) -> None:
        W, H, maxq = self.linear.weight.data.float(), self.H, 2**bits - 1
        columns = W.shape[1]
        group = columns if group == -1 else group
        dead = H.diagonal() == 0
        H.diagonal()[dead] = 1
        W[:, dead] = 0
        H.diagonal().add_(DAMP * H.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
        U = torch.linalg.cholesky(inverse, upper=True)
        Q = torch.zeros_like(W)
        scale = torch.ones(W.shape[0])
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            part, errors = W[:, start:stop].clone(), torch.zeros(W.shape[0], stop - start)
            inner = U[start:stop, start:stop]
            for i in range(stop - start):
                if (start + i) % group == 0:
                    limit = W[:, start + i : start + i + group].abs().amax(1)
                    scale = torch.where(limit > 0, 2 * limit / maxq, 1.0)
                w = part[:, i]
                zero = (maxq + 1) / 2
                q = scale * ((w / scale).round().add(zero).clamp(0, maxq) - zero)
                Q[:, start + i] = q
                errors[:, i] = (w - q) / inner[i, i]
                part[:, i:] -= errors[:, i : i + 1] @ inner[i : i + 1, i:]
            W[:, stop:] -= errors @ U[start:stop, stop:]
        self.linear.weight.data = Q.to(self.linear.weight.dtype)


def quantize(model: nn.Module, rows: Tensor, bits: int, group: int, dtype: torch.dtype | None) -> None:
    blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    inputs, extras = first_inputs(model, blocks[0], rows)
    for block in blocks:
        layers = {name: Layer(m) for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        handles = [layer.linear.register_forward_pre_hook(layer.hook) for layer in layers.values()]
        forward(block, inputs, extras, dtype)
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.solve(bits, group)
        inputs = forward(block, inputs, extras, dtype)


def forward(
    block: nn.Module, inputs: list[Tensor], extras: list[dict[str, Any]], dtype: torch.dtype | None
) -> list[Tensor]:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs = [block(x, **extra) for x, extra in zip(inputs, extras, strict=True)]
    return [y[0] if isinstance(y, tuple) else y for y in outputs]


def main(o: dict[str, Any]) -> None:
    rows = torch.tensor(json.loads(Path(o["rows"]).read_text(encoding="utf-8")))  # [samples, length]
    dtype = "auto" if o["dtype"] == "native" else getattr(torch, o["dtype"])
    preload(o["model"])
    clock = Clock()
    for bits in o["bits"]:
        with clock.stage("load"):
            model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype).eval()
        own = forward_dtype(model, o["forward_dtype"])  # the forward in the dtype that ours takes
        with clock.stage("quantize"), torch.no_grad():
            quantize(model, rows, bits, o["group_size"], own)
        with clock.stage("save"):
            model.save_pretrained(Path(o["out"]) / str(bits))
    clock.report(dtype=str(model.dtype))


main(options())
