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

    @abstractmethod
    def quantize(
        self,
        model: PreTrainedModel,
        batches: Sequence[dict[str, Tensor]],
        spec: Quantization,
        folder: Path,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Quantize ``model`` in place and write a checkpoint that opens without plr to ``folder``.

        ``batches`` are dicts of input_ids and attention_mask, int64 [b, t]. Returns what is to be recorded per module.
        """


quantizers: Registry[Quantizer] = Registry("quantization method", "plr.quantizers")
