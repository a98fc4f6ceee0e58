"""Quantizers by name: how a 16-bit base becomes a k-bit one."""

from __future__ import annotations

from plr.quantizers.base import Quantizer, quantizers
from plr.quantizers.gptq import GPTQQuantizer

__all__ = ["GPTQQuantizer", "Quantizer", "quantizers"]
