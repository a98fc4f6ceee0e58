"""Quantizers by name: how a 16-bit base becomes a k-bit one. A module put here is found when `plr.quantizers` is imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from plr.quantizers.base import Execution, Quantizer, check_settings, methods_help, quantizers
from plr.quantizers.bnb import BitsAndBytesQuantizer, load_bitsandbytes
from plr.quantizers.gptq import GPTQQuantizer
from plr.quantizers.gptqmodel import GPTQModelQuantizer
from plr.quantizers.layers import densify, formats, is_quantized_layer, reader_of

__all__ = [
    "BitsAndBytesQuantizer",
    "Execution",
    "GPTQModelQuantizer",
    "GPTQQuantizer",
    "Quantizer",
    "check_settings",
    "densify",
    "formats",
    "is_quantized_layer",
    "load_bitsandbytes",
    "methods_help",
    "quantizers",
    "reader_of",
]


def _discover() -> None:
    """Import every module of this folder, so that its quantizers are registered."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


_discover()
