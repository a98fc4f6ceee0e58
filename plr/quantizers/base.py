"""The plug-in point for quantizers: a method knows what it takes, the checkpoints it reads and the layers it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.core.fingerprint import JsonObject
from plr.errors import UsageError
from plr.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from plr.core.specs import Quantization

__all__ = ["WIDTHS", "Execution", "Quantizer", "check_settings", "methods_help", "named_modules", "quantizers"]

WIDTHS = (8, 4, 3, 2)
PASSED_OVER = ("method", "bits", "damp_percent", "block_size", "calibration", "gate_task", "gate_text")
"""Settings that ask for nothing a method could lack (`Quantizer.check`), or that it is chosen by."""


@dataclass(frozen=True)
class Execution:
    """Settings of execution of a quantization: nothing of it changes what is meant by its result."""

    work: Path | None = None
    """A folder that survives a kill, for what lets the same call go on where it was."""
    low_memory: bool = False
    """Less memory at the price of time."""
    device: str | None = None
    """Device to compute on; None is where the model is."""
    forward_dtype: torch.dtype | None = None
    """Type that the forward of the calibration is cast to; None leaves it as it is."""


class Quantizer(ABC):
    """One way to quantize, and what is known of its layers and checkpoints.

    A method that writes GPTQ or bitsandbytes checkpoints needs `needs_calibration` and `quantize` alone: those formats are read,
    and their layers known, already. One with layers of its own says which checkpoints it reads (`formats`), loads them (`load`),
    recognises its layers (`is_layer`) and makes them dense (`dense`). Such a layer is an `nn.Linear` (so that PEFT takes it) with
    `in_features` and `out_features`; its codes lie in buffers, or in a parameter called `weight`.
    """

    needs_calibration: bool
    """True if `quantize` wants batches to calibrate on."""
    widths: tuple[int, ...] = WIDTHS
    """The bits that it makes."""
    experts: bool = False
    """True if it quantizes experts that lie in one tensor, as transformers keeps them."""
    grouped: bool = False
    """True if `group_size` has to divide the inputs of every layer."""
    encoders: bool = True
    """True if an encoder's checkpoint is read back: one has no language model head."""
    formats: tuple[str, ...] = ()
    """The `quant_method` of the checkpoints that it reads."""

    def check(self, spec: Quantization) -> None:
        """Raise `UsageError` for settings this method cannot carry out.

        Called when a study is planned and before any work; imports nothing heavy.

        A setting that asks for something the method does not do is an error, whatever its default: a width, a group size, an
        order of columns, a search. One that only says how a solver works inside (`damp_percent`, `block_size`,
        `calibration`) is passed over by a method that has no such solver, so that one study file can set it for all widths.
        """
        check_settings(spec.method, spec, {"bits": self.widths})

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
    ) -> JsonObject:
        """Quantize `model` in place and write a checkpoint that opens without plr to `folder`.

        In place means: layers are replaced, their tensors are not written to, so that the caller can put them back.
        `batches` are dicts of input_ids and attention_mask, int64 [b, t]. `execution` may be passed over by a
        method that has no use for it. Returns what is to be recorded per module.
        """

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Tell whether `load` reads checkpoints with this `quantization_config`; imports nothing heavy."""
        return config.get("quant_method") in self.formats

    def width(self, config: Mapping[str, Any]) -> object:
        """Read the bits of a checkpoint off its `quantization_config`; None, or no width of plr, where it does not say.

        Raises:
            ModelError: settings with which `load` reads no checkpoint, although it reads the format.
        """
        return config.get("bits")

    def load(self, folder: Path, *, dtype: torch.dtype, device: str, kernel: str) -> PreTrainedModel:
        """Load the k-bit model in `folder`, computing in `dtype`, in eval mode.

        `kernel` is `packed` (memory of k bits) or `dequantized`; a method whose layers have no choice passes over it.

        Raises:
            ModelError: tensors that do not fit.
            MissingDependencyError: a package that is needed for it is not installed.
        """
        raise NotImplementedError(f"{type(self).__name__} names the formats {self.formats} and has no load")

    def dense_bytes(self, folder: Path, itemsize: int) -> int:
        """Count the bytes of the dense weights that kernel `dequantized` keeps, at `itemsize` a weight; 0 without that kernel."""
        return 0

    def is_layer(self, module: nn.Module) -> bool:
        """Tell whether `module` is a k-bit layer of this method's own."""
        return False

    def dense(self, module: nn.Module) -> nn.Module:
        """Return an ordinary layer with the dequantized weight of `module`, one of this method's, and of the kind it stands for."""
        raise NotImplementedError(f"{type(self).__name__} has layers of its own and no dense")

    def densify(self, model: PreTrainedModel) -> None:
        """Replace this method's layers of `model`, in place, by dense ones."""
        from plr.gptq.blocks import replace_module

        for name, module in named_modules(model):
            if self.is_layer(module):
                replace_module(model, name, self.dense(module))


def check_settings(
    method: str, spec: Quantization, takes: Mapping[str, Sequence[Any]], *, free: Sequence[str] | None = None
) -> None:
    """Raise `UsageError` that names every field of `spec` whose value is not among those `method` takes.

    With `free`, the fields that may have any value, all others but `PASSED_OVER` have to be left at their default unless
    `takes` says otherwise: so a field that is new to `Quantization` is refused by each method that does not name it.
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


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules of `model` by name, before any is replaced."""
    return list(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]


def methods_help() -> str:
    """List every method for a help text, with the bits of those that do not make all; imports no other package.

    >>> methods_help()
    'gptq, gptqmodel, int8 (8 bits), nf4 (4 bits), rtn'
    """
    limits = {name: method.widths for name, method in quantizers.loaded().items() if method.widths != WIDTHS}
    bits = {name: f" ({' or '.join(map(str, widths))} bits)" for name, widths in limits.items()}
    return ", ".join(name + bits.get(name, "") for name in quantizers.names())
