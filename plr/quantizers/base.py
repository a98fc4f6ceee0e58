"""The plug-in point for quantizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.registry import Registry
from plr.specs import Quantization

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Quantizer", "quantizers"]


class Quantizer(ABC):
    """One way to quantize. ``needs_calibration`` says whether ``batches`` may be empty."""

    needs_calibration: bool

    def check(self, spec: Quantization) -> None:
        """Raise ``UsageError`` for settings this method cannot carry out. Called before any work; imports nothing heavy."""

    @abstractmethod
    def quantize(
        self,
        model: PreTrainedModel,
        batches: Sequence[dict[str, Tensor]],
        spec: Quantization,
        folder: Path,
        *,
        work: Path | None = None,
        low_memory: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Quantize ``model`` in place and write a checkpoint that opens without plr to ``folder``.

        In place means: layers are replaced, their tensors are not written to, so that the caller can put them back.
        ``batches`` are dicts of input_ids and attention_mask, int64 [b, t]. ``work`` is a folder that survives a kill, for what
        lets the same call go on where it was; ``low_memory`` asks for less memory at the price of time, with the same result.
        Returns what is to be recorded per module.
        """


quantizers: Registry[Quantizer] = Registry("quantization method", "plr.quantizers")
