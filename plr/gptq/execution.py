"""`Execution`: where and how a model is quantized; of this only `forward_dtype` moves a byte of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from plr.gptq.errors import GPTQError
from plr.gptq.linear import Kernel
from plr.gptq.settings import Knobs, Settings, settings_of

__all__ = ["Execution", "Options", "settings_and_execution"]


@dataclass(frozen=True)
class Execution:
    """Settings of execution of a quantization."""

    work: Path | None = None
    """A folder that survives a kill: finished blocks are kept there, and a later call with the same arguments goes on after
    them and ends with the same bytes."""
    low_memory: bool = False
    """Hold one block and one batch instead of the activations of all batches, which go to files in `work` (or in a temporary
    folder); slower, with the same result. See `plr.gptq.lowmem`."""
    device: torch.device | str | None = None
    """Device on which `low_memory` computes blocks; the model stays where it is. None: where the model is."""
    forward_dtype: torch.dtype | None = None
    """Run the forward under autocast to this dtype; weights, Hessians and the solver stay as they are."""
    kernel: Kernel = "dequantized"
    """Kernel of the new layers, see `PackedLinear`."""
    measure_rtn: bool = True
    """Report the error of rounding to nearest beside GPTQ's (costs a few per cent)."""


class Options(Knobs, total=False):
    """The fields of `Settings` and of `Execution` as keyword arguments."""

    work: Path | None
    low_memory: bool
    device: torch.device | str | None
    forward_dtype: torch.dtype | None
    kernel: Kernel
    measure_rtn: bool


def settings_and_execution(
    settings: Settings | None, execution: Execution | None, options: Mapping[str, Any]
) -> tuple[Settings, Execution]:
    """Make the two values of a public function's `settings`, `execution` and keywords.

    Raises:
        GPTQError: one of them was given and its fields too, or neither `settings` nor `bits`.
        TypeError: a keyword that is a field of neither.
    """
    own = {field.name for field in fields(Execution)} & options.keys()
    if execution is not None and own:
        raise GPTQError(
            f"execution and {', '.join(sorted(own))} were given.",
            "execution=Execution(...), or its fields as keywords.",
            "use dataclasses.replace(execution, ...) for other values.",
        )
    knobs = {name: value for name, value in options.items() if name not in own}
    carried = execution or Execution(**{name: options[name] for name in own})
    return settings_of(settings, knobs), carried
