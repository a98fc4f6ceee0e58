"""Quantizers by name: how a 16-bit base becomes a k-bit one."""

from __future__ import annotations

from plr.quantizers.base import Execution, Quantizer, check_settings, quantizers
from plr.quantizers.bnb import BitsAndBytesQuantizer, load_bitsandbytes
from plr.quantizers.dense import densify
from plr.quantizers.gptq import GPTQQuantizer
from plr.quantizers.gptqmodel import GPTQModelQuantizer

__all__ = [
    "BitsAndBytesQuantizer",
    "Execution",
    "GPTQModelQuantizer",
    "GPTQQuantizer",
    "Quantizer",
    "check_settings",
    "densify",
    "load_bitsandbytes",
    "quantizers",
]
