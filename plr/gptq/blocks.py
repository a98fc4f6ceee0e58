"""Layers of a model that get quantized: found by structure, not by a list of model names.

The transformer blocks are the outermost `nn.ModuleList` whose linear layers hold the most parameters; every linear layer
within it is a target, unless skipped. Embeddings, heads and poolers lie outside of it.

A linear layer is an `nn.Linear`, weight `[out, in]`, or transformers' `Conv1D` (GPT-2), weight `[in, out]`, which computes
the same. `features` and `dense_weight` read both alike; nobody else needs to know which of them stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TypeGuard

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plr.gptq.affine import check_bits
from plr.gptq.errors import WalkError
from plr.gptq.linear import PackedLinear
from plr.gptq.packing import packed_size
from plr.gptq.solver import check_group_size

__all__ = [
    "LinearLike",
    "bias_of",
    "check_targets",
    "dense_weight",
    "features",
    "find_blocks",
    "find_prefix",
    "find_targets",
    "is_linear",
    "is_skipped",
    "named_modules",
    "replace_module",
    "weights_of_blocks",
]

LinearLike = nn.Linear | Conv1D


SAME_FUNCTION = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
"""Subclasses of `nn.Linear` whose forward is written otherwise and computes the same."""


def is_linear(module: nn.Module | None) -> TypeGuard[LinearLike]:
    """Tell whether `module` is a dense layer that can be quantized: `nn.Linear` or `Conv1D`, or one that computes the same."""
    # Others are left out: PackedLinear, routers and quantized layers of other libraries have a forward of their own.
    kind = type(module)
    if kind is Conv1D or kind is nn.Linear:
        return True
    same = f"{kind.__module__}.{kind.__name__}" in SAME_FUNCTION
    return issubclass(kind, nn.Linear) and (kind.forward is nn.Linear.forward or same)


def features(module: LinearLike) -> tuple[int, int]:
    """Read `(in_features, out_features)`."""
    out_features, in_features = dense_weight(module).shape
    return in_features, out_features


def dense_weight(module: LinearLike) -> Tensor:
    """Read the weight `[out, in]`: a view, no copy; of a `Conv1D` the transposed one."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight


def bias_of(module: LinearLike) -> nn.Parameter | None:
    """Read the bias `[out]`; None where there is none, which torch's own types leave out."""
    return module.bias


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the dotted name and the list of the transformer blocks of `model`.

    Raises:
        WalkError: no list of blocks with linear layers, or they are quantized already.
    """
    best: tuple[str, nn.ModuleList] | None = None
    size = 0
    kinds: set[str] = set()
    for name, module in named_modules(model):
        if not isinstance(module, nn.ModuleList):
            continue
        inside = [m for _, m in named_modules(module)]
        kinds |= {type(m).__name__ for m in inside}
        here = sum(dense_weight(m).numel() for m in inside if is_linear(m))
        if here > size:  # an outer list comes first and holds at least as much as the lists within it
            best, size = (name, module), here
    if best is not None:
        return best
    problem = f"{type(model).__name__} has no nn.ModuleList of blocks with linear layers."
    if "PackedLinear" in kinds:
        raise WalkError(
            f"{type(model).__name__} is quantized already.",
            "a model with dense layers.",
            "quantize the 16-bit source model.",
        )
    raise WalkError(
        problem, "a transformer of repeated blocks.", "pass the transformer itself, not a wrapper without blocks."
    )


def find_prefix(names: Iterable[str]) -> str:
    """Find the dotted name of the block list that layers of these names lie in: what precedes the index of the block."""
    prefixes = {name[: match.start()] for name in names if (match := re.search(r"\.\d+\.", name))}
    if len(prefixes) != 1:
        raise WalkError(
            f"The layers lie in {len(prefixes)} lists of blocks ({', '.join(sorted(prefixes))}).",
            "one.",
            "quantize one stack.",
        )
    return prefixes.pop()


def find_targets(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, LinearLike]:
    """Find the linear layers to quantize, by dotted name, in the order of the blocks."""
    skip = tuple(skip)
    prefix, blocks = find_blocks(model)
    targets: dict[str, LinearLike] = {}
    for name, module in named_modules(blocks, prefix):
        if is_linear(module) and not is_skipped(name, skip):
            targets[name] = module
    if not targets:
        raise WalkError(
            f"All layers of {prefix} are skipped ({', '.join(skip)}).", "layers to quantize.", "skip fewer modules."
        )
    return targets


def weights_of_blocks(model: nn.Module) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Count the weights of the linear layers in the blocks, and name the other matrices there with their shapes.

    Matrices are parameters of two dimensions or more: of experts that lie in one tensor, routers, convolutions.
    """
    prefix, blocks = find_blocks(model)
    linear, others = 0, dict[str, tuple[int, ...]]()
    for name, module in named_modules(blocks, prefix):
        if is_linear(module):
            linear += dense_weight(module).numel()
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                others[f"{name}.{key}"] = tuple(parameter.shape)
    return linear, others


def is_skipped(name: str, skip: Iterable[str]) -> bool:
    """Tell whether a pattern of `skip` is the dotted name, its end (`mlp.down_proj`), or matches it as a glob (`*.0.*`)."""
    return any(name == s or name.endswith("." + s) or fnmatchcase(name, s) for s in skip)


def check_targets(targets: Mapping[str, LinearLike], *, bits: int, group_size: int) -> None:
    """Raise, before any work, for the first layer that the grid or the packed layout does not fit.

    Raises:
        GroupSizeError, PackingError, GPTQError: each names the layer and its size.
    """
    check_bits(bits)
    for name, linear in targets.items():
        in_features, out_features = features(linear)
        check_group_size(in_features, group_size, name)
        packed_size(in_features, bits, f"{name}: in_features")
        packed_size(out_features, bits, f"{name}: out_features")


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `model` has the module of this dotted name. A packed layer notes which kind it stands for."""
    if isinstance(new, PackedLinear):
        old = model.get_submodule(name)
        new.conv1d = old.conv1d if isinstance(old, PackedLinear) else isinstance(old, Conv1D)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def named_modules(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Walk `root.named_modules(prefix=prefix)`, typed."""
    yield from root.named_modules(prefix=prefix)
