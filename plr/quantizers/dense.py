"""k-bit layers of any kind made dense again: what a merge and a round trip need."""

from __future__ import annotations

from typing import Any

from plr.quantizers.bnb import dense_layer, is_bitsandbytes

__all__ = ["densify"]


def densify(model: Any) -> None:
    """Replace every k-bit layer of ``model``, in place, by a dense one with the same (dequantized) weight.

    ``model`` is then an ordinary transformers model: it can be cast, merged into and saved.
    """
    from plr.gptq import PackedLinear
    from plr.gptq.blocks import replace_module

    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            replace_module(model, name, module.to_dense())
        elif is_bitsandbytes(module):
            replace_module(model, name, dense_layer(module))
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(name, None)
    model.is_quantized = False
    # How the checkpoint was read is how it would be written: without the steps that unpacked k-bit weights.
    conversions = [step for step in getattr(model, "_weight_conversions", None) or () if not _unpacks(step)]
    model._weight_conversions = conversions or None


def _unpacks(step: Any) -> bool:
    return any("bitsandbytes" in type(operation).__module__ for operation in getattr(step, "operations", ()))
