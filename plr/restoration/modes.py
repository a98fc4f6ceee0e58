"""Which restoration modes fit which bits."""

from __future__ import annotations

from plr.core.specs import Restore
from plr.errors import UsageError

__all__ = ["check_mode"]


def check_mode(step: Restore) -> None:
    """Refuse a mode that does not fit the bits, before any work.

    Raises:
        UsageError: a merge into fewer than 16 bits, ``keep`` or ``roundtrip`` on another base, ``requantize`` to 16 bits.
    """
    if step.merge and step.base.bits != 16:
        raise UsageError(
            f"--merge with --bits {step.base.bits} would round the adapter away",
            expected="--bits 16 with --merge",
            hint="leave --merge out, or use --mode requantize (merged at 16 bits, then quantized)",
        )
    if step.mode in ("keep", "roundtrip") and step.base != step.adapter.base:
        raise UsageError(
            f"mode {step.mode} serves the base the adapter was trained on ({step.adapter.base.bits} bits), not "
            f"{step.base.label}",
            hint=f"use --bits {step.adapter.base.bits}, or --mode restore",
        )
    if step.mode == "requantize" and step.base.bits == 16:
        raise UsageError("mode requantize to 16 bits quantizes nothing", hint="use --merge")
