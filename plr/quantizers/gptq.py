"""plr's own GPTQ and its round-to-nearest baseline, behind the quantizer interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.errors import ModelError
from plr.quantizers.base import Quantizer, quantizers
from plr.specs import Quantization

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["GPTQQuantizer"]


class GPTQQuantizer(Quantizer):
    """GPTQ (Frantar et al. 2022) or, with ``method="rtn"``, plain rounding in the same checkpoint format."""

    def __init__(self, method: Literal["gptq", "rtn"]) -> None:
        self.method: Literal["gptq", "rtn"] = method
        self.needs_calibration = method == "gptq"

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
        from plr.gptq import GPTQError, quantize_model, save_checkpoint

        knobs = {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "sym": spec.sym,
            "desc_act": spec.desc_act,
            "static_groups": spec.static_groups,
            "damp_percent": spec.damp_percent,
        }
        try:
            reports = quantize_model(
                model,
                list(batches),
                **knobs,
                block_size=spec.block_size,
                grid=spec.grid,
                method=self.method,
                on_progress=(lambda done, total, _: on_progress(done, total)) if on_progress else None,
            )
            save_checkpoint(model, folder, **knobs, meta={"quantizer": "plr", "method": self.method, "grid": spec.grid})
        except GPTQError as error:
            raise ModelError(str(error)) from error
        return {"modules": [asdict(report) for report in reports]}


quantizers.register("gptq")(GPTQQuantizer("gptq"))
quantizers.register("rtn")(GPTQQuantizer("rtn"))
