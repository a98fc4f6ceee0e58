"""k-bit layers of every kind, asked of the quantizers that know them: who reads a checkpoint, what is such a layer, dense again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plr.quantizers.base import Quantizer, quantizers

if TYPE_CHECKING:
    from torch import nn

__all__ = ["dense_layer", "densify", "formats", "is_quantized_layer", "reader_of"]


def reader_of(config: Mapping[str, Any]) -> Quantizer | None:
    """Return the quantizer that reads checkpoints with this `quantization_config`; None where none does.

    Those of other packages are imported only where none in memory reads it.
    """
    own = next((method for method in quantizers.loaded().values() if method.reads(config)), None)
    return own or next((method for method in quantizers.values() if method.reads(config)), None)


def formats() -> list[str]:
    """List every `quant_method` that a quantizer reads, sorted."""
    return sorted({name for method in quantizers.values() for name in method.formats})


def is_quantized_layer(module: nn.Module) -> bool:
    """Tell whether `module` is a k-bit layer of any quantizer. A model that has one was made by a quantizer in memory."""
    return any(method.is_layer(module) for method in quantizers.loaded().values())


def dense_layer(module: nn.Module) -> nn.Module:
    """Return an ordinary layer with the dequantized weight of a k-bit layer, of the kind it stands for."""
    return next(method for method in quantizers.loaded().values() if method.is_layer(module)).dense(module)


def densify(model: Any) -> None:
    """Replace every k-bit layer of `model`, in place, by a dense one with the same (dequantized) weight.

    `model` is then an ordinary transformers model: it can be cast, merged into and saved.
    """
    for method in quantizers.loaded().values():
        method.densify(model)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
