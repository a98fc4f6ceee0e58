"""plr's own GPTQ and its round-to-nearest baseline, behind the quantizer interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.core.fingerprint import JsonObject
from plr.errors import ModelError, UsageError
from plr.quantizers.base import Execution, Quantizer, check_settings, quantizers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from plr.core.specs import Quantization
    from plr.gptq import ModuleReport, Settings

__all__ = ["GPTQQuantizer"]


class GPTQQuantizer(Quantizer):
    """GPTQ (Frantar et al. 2022) or, with `method="rtn"`, plain rounding in the same checkpoint format.

    Rounding has no Hessian: it takes none of what orders columns or weighs errors, and passes over `damp_percent`.
    """

    formats = ("gptq", "awq", "compressed-tensors")
    grouped = True
    experts = True

    def __init__(self, method: Literal["gptq", "rtn"]) -> None:
        self.method: Literal["gptq", "rtn"] = method
        self.needs_calibration = method == "gptq"

    def check(self, spec: Quantization) -> None:
        if self.method == "rtn":
            check_settings("rtn", spec, {"grid": ("minmax", "mse")}, free=("group_size", "sym"))
        else:
            check_settings("gptq", spec, {"double_quant": (False,)})
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
    ) -> JsonObject:
        from plr.gptq import Execution as Walk
        from plr.gptq import GPTQError, quantize_model, save_checkpoint
        from plr.gptq.saving import beyond_format

        how = execution or Execution()
        told: list[int] = []  # layers done at each report: the first is more than one where an earlier run left blocks

        def progress(done: int, total: int, _: ModuleReport) -> None:
            told.append(done)
            if on_progress is not None:
                on_progress(done, total)

        settings = settings_of(spec, self.method)
        kernel = "packed" if how.low_memory else "dequantized"
        try:
            reports = quantize_model(
                model, batches, settings=settings, execution=Walk(**vars(how), kernel=kernel), on_progress=progress
            )
            save_checkpoint(model, folder, settings=settings, meta=beyond_format(settings))
        except GPTQError as error:
            raise ModelError(str(error)) from error
        return {
            "modules": [asdict(report) for report in reports],
            "resumed_from_layer": told[0] if told and told[0] > 1 else 0,
        }

    def width(self, config: Mapping[str, Any]) -> object:
        if config.get("quant_method") == "gptq":
            return super().width(config)
        from plr.gptq import GPTQError
        from plr.gptq.foreign import bits_of

        try:
            return bits_of(config)
        except GPTQError as error:
            raise ModelError(
                error.given.rstrip("."), expected=error.expected.rstrip("."), hint=error.next_step
            ) from error

    def load(self, folder: Path, *, dtype: torch.dtype, device: str, kernel: str) -> PreTrainedModel:
        from plr.gptq import load_checkpoint

        try:
            return load_checkpoint(folder, dtype=dtype, device=device, kernel=kernel).eval()
        except (ValueError, OSError) as error:  # a GPTQError is a ValueError; transformers raises both
            raise ModelError(f"the quantized checkpoint {folder} cannot be loaded: {error}") from error

    def dense_bytes(self, folder: Path, itemsize: int) -> int:
        from plr.gptq.checkpoint import dense_bytes

        try:
            return dense_bytes(folder, itemsize)
        except (ValueError, OSError) as error:
            raise ModelError(f"the quantized checkpoint {folder} cannot be loaded: {error}") from error

    def is_layer(self, module: nn.Module) -> bool:
        from plr.gptq import PackedLinear

        return isinstance(module, PackedLinear)

    def dense(self, module: nn.Module) -> nn.Module:
        from plr.gptq import PackedLinear

        assert isinstance(module, PackedLinear)
        return module.to_dense()


def settings_of(spec: Quantization, method: Literal["gptq", "rtn"]) -> Settings:
    """Read the knobs of plr's own GPTQ off `spec`, by the names of their fields."""
    from plr.gptq import Settings

    knobs: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(Settings)}
    knobs["method"] = method
    return Settings(**knobs)


quantizers.register("gptq")(GPTQQuantizer("gptq"))
quantizers.register("rtn")(GPTQQuantizer("rtn"))
