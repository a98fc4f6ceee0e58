"""plr's own GPTQ and its round-to-nearest baseline, behind the quantizer interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.core.specs import Quantization
from plr.errors import ModelError, UsageError
from plr.quantizers.base import Execution, Quantizer, check_settings, quantizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from plr.gptq import ModuleReport

__all__ = ["GPTQQuantizer"]

_TAKES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gptq": {"double_quant": (False,)},
    "rtn": {
        "desc_act": (False,),
        "static_groups": (False,),
        "act_group_aware": (False,),
        "grid": ("minmax", "mse"),
        "refine_passes": (0,),
        "input_correction": (0.0,),
        "double_quant": (False,),
    },
}


class GPTQQuantizer(Quantizer):
    """GPTQ (Frantar et al. 2022) or, with ``method="rtn"``, plain rounding in the same checkpoint format.

    Rounding has no Hessian: it takes none of what orders columns or weighs errors, and passes over ``damp_percent``.
    """

    def __init__(self, method: Literal["gptq", "rtn"]) -> None:
        self.method: Literal["gptq", "rtn"] = method
        self.needs_calibration = method == "gptq"

    def check(self, spec: Quantization) -> None:
        check_settings(self.method, spec, _TAKES[self.method])
        if spec.desc_act and spec.act_group_aware:
            raise UsageError(
                "desc_act and act_group_aware are two orders of the same columns",
                expected="one of them",
                hint="use act_group_aware: it costs nothing at inference",
            )

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
        from plr.gptq import GPTQError, quantize_model, save_checkpoint

        how = execution or Execution()
        told: list[int] = []  # layers done at each report: the first is more than one where an earlier run left blocks

        def progress(done: int, total: int, _: ModuleReport) -> None:
            told.append(done)
            if on_progress is not None:
                on_progress(done, total)

        knobs = {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "sym": spec.sym,
            "desc_act": spec.desc_act,
            "static_groups": spec.static_groups,
            "damp_percent": spec.damp_percent,
        }
        search = {
            "act_group_aware": spec.act_group_aware,
            "grid": spec.grid,
            "refine_passes": spec.refine_passes,
            "input_correction": spec.input_correction,
        }
        try:
            reports = quantize_model(
                model,
                list(batches),
                **knobs,
                **search,
                block_size=spec.block_size,
                method=self.method,
                kernel="packed" if how.low_memory else "dequantized",
                on_progress=progress,
                forward_dtype=how.forward_dtype,
                work=how.work,
                low_memory=how.low_memory,
                device=how.device,
            )
            save_checkpoint(model, folder, **knobs, meta={"quantizer": "plr", "method": self.method, **search})
        except GPTQError as error:
            raise ModelError(str(error)) from error
        return {
            "modules": [asdict(report) for report in reports],
            "resumed_from_layer": told[0] if told and told[0] > 1 else 0,
        }


quantizers.register("gptq")(GPTQQuantizer("gptq"))
quantizers.register("rtn")(GPTQQuantizer("rtn"))
