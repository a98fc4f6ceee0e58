"""The plug-in point for quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.core.specs import Quantization
from plr.errors import UsageError
from plr.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Execution", "Quantizer", "check_settings", "quantizers"]

PASSED_OVER = ("method", "bits", "damp_percent", "block_size", "calibration", "gate_task", "gate_text")
"""Settings that ask for nothing a method could lack (``Quantizer.check``), or that it is chosen by."""


@dataclass(frozen=True)
class Execution:
    """How a quantization is carried out: nothing of it changes what is meant by its result."""

    work: Path | None = None
    """A folder that survives a kill, for what lets the same call go on where it was."""
    low_memory: bool = False
    """Less memory at the price of time."""
    device: str | None = None
    """Where to compute; None is where the model is."""
    forward_dtype: torch.dtype | None = None
    """What the forward of the calibration is cast to; None leaves it as it is."""


class Quantizer(ABC):
    """One way to quantize. ``needs_calibration`` says whether ``batches`` may be empty."""

    needs_calibration: bool

    def check(self, spec: Quantization) -> None:  # noqa: B027  (a method that takes everything need not say so)
        """Raise ``UsageError`` for settings this method cannot carry out.

        Called when a study is planned and before any work; imports nothing heavy.

        A setting that asks for something the method does not do is an error, whatever its default: a width, a group size, an
        order of columns, a search. One that only says how a solver works inside (``damp_percent``, ``block_size``,
        ``calibration``) is passed over by a method that has no such solver, so that one study file can set it for all widths.
        """

    @abstractmethod
    def quantize(
        self,
        model: PreTrainedModel,
        batches: Sequence[dict[str, Tensor]],
        spec: Quantization,
        folder: Path,
        *,
        execution: Execution | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Quantize ``model`` in place and write a checkpoint that opens without plr to ``folder``.

        In place means: layers are replaced, their tensors are not written to, so that the caller can put them back.
        ``batches`` are dicts of input_ids and attention_mask, int64 [b, t]. ``execution`` may be passed over by a
        method that has no use for it. Returns what is to be recorded per module.
        """


def check_settings(
    method: str, spec: Quantization, takes: Mapping[str, Sequence[Any]], *, free: Sequence[str] | None = None
) -> None:
    """Raise ``UsageError`` that names every field of ``spec`` whose value is not among those ``method`` takes.

    With ``free``, the fields that may have any value, all others but ``PASSED_OVER`` have to be left at their default unless
    ``takes`` says otherwise: so a field that is new to ``Quantization`` is refused by each method that does not name it.
    """
    if free is not None:
        named = {*takes, *free, *PASSED_OVER}
        defaults = {name: (field.default,) for name, field in type(spec).model_fields.items() if name not in named}
        takes = {**takes, **defaults}
    wrong = [name for name, values in takes.items() if getattr(spec, name) not in values]
    if wrong:
        first = wrong[0]
        value, where = _word(takes[first][0]), f"quantize.by_bits.{spec.bits}"
        raise UsageError(
            f"method {method} cannot carry out " + ", ".join(f"{name} {_word(getattr(spec, name))}" for name in wrong),
            expected="; ".join(f"{name} {' or '.join(map(_word, takes[name]))}" for name in wrong),
            hint=f"choose another method for {spec.bits} bits; in a study with several widths: {where}.method"
            if first == "bits"
            else f"--set quantize.{first}={value}; in a study, for this width alone: {where}.{first}",
        )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


quantizers: Registry[Quantizer] = Registry("quantization method", "plr.quantizers")
