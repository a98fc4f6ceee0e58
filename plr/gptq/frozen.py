"""`FrozenWeight`: the dense weight of a packed layer, readable like any tensor, loud when written to.

Why it exists: adapters merge with `layer.weight.data += delta`. On a layer that holds k-bit codes the dense weight is
derived, so the sum would vanish (or live in a cache until the next move or reload). PEFT knows its own quantized layers
and refuses; for an `nn.Linear` it goes ahead. A plain tensor cannot intercept that write; this subclass can:

1. every torch function that takes a FrozenWeight arrives in `__torch_function__`;
2. in-place operations on it, item assignment, `out=` and setting `.data` or `.requires_grad` raise `FrozenWeightError`;
3. results that share its memory (`.data`, `.t()`, slices, `.detach()`, `.to(same dtype)`) stay frozen, so
   `w.data.add_()` and `w.data[i] = 0` raise too; results with memory of their own (`clone`, sums, products) are
   ordinary tensors.

What it gives up: writes through `.numpy()` or a raw pointer are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from plr.gptq.errors import FrozenWeightError

__all__ = ["FrozenWeight"]

IN_PLACE = frozenset(
    f"__{name}__"
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "setitem", "set")
)


class FrozenWeight(Tensor):
    """A read-only view of a dense weight; see the module's docstring. Make one with `FrozenWeight.of(tensor)`."""

    @staticmethod
    def of(tensor: Tensor) -> FrozenWeight:
        """View `tensor`, same memory, as a FrozenWeight."""
        return tensor.as_subclass(FrozenWeight)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = args[0] if args else next(iter(kwargs.values()), None)  # torch.nn.init passes keywords only
        writes = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        if name == "requires_grad_" or (name, _attribute(func)) == ("__set__", "requires_grad"):
            writes = bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))  # False: as it is
        if (writes and isinstance(target, cls)) or isinstance(kwargs.get("out"), cls):
            raise FrozenWeightError(
                f"An attempt to write to the weight of a k-bit layer ({name}).",
                "reads only: the layer stores k-bit codes, and what is added to its dense view would be lost.",
                "keep the adapter beside the base, merge it into a 16-bit base, or replace the layer by "
                "PackedLinear.to_linear() first.",
            )
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                return _freeze_alias(result, args)
            if isinstance(result, tuple | list):
                items = cast(Sequence[object], result)
                frozen = [_freeze_alias(item, args) if isinstance(item, Tensor) else item for item in items]
                kind = cast(Callable[[list[object]], object], type(items))
                make = getattr(kind, "_make", kind)  # named tuples and torch.return_types alike
                return make(frozen)
            return result


def _attribute(func: Callable[..., object]) -> str:
    """Name the attribute that a setter or getter of Tensor is of: `data`, `requires_grad`."""
    return getattr(getattr(func, "__self__", None), "__name__", "")


def _freeze_alias(result: Tensor, args: tuple[object, ...]) -> Tensor:
    """Freeze `result` where it shares the memory of a frozen argument."""
    for arg in args:
        if isinstance(arg, FrozenWeight) and _storage(result) == _storage(arg):
            return result.as_subclass(FrozenWeight)
    return result.as_subclass(Tensor) if type(result) is FrozenWeight else result


def _storage(tensor: Tensor) -> int:
    """Identify a tensor's memory."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
