"""Checks of a restoration before any work: does the mode fit, and can the adapter be merged."""

from __future__ import annotations

from plr.adapters import adapters
from plr.bases.given_bases import check_inputs
from plr.core.modes import mode_of
from plr.core.specs import GivenAdapter, GivenBase, Quantize, Restore, Source, Train
from plr.errors import UsageError
from plr.restoration.correction import check_correction

__all__ = ["check_merges", "check_mode", "check_scales"]


def check_mode(step: Restore) -> None:
    """Refuse a mode that does not fit the bits.

    Raises:
        UsageError: a merge into fewer than 16 bits, a mode on bits or a base that its row does not fit, or see `check_correction`.
    """
    if step.merge and step.base.bits != 16:
        raise UsageError(
            f"--merge with --bits {step.base.bits} would round the adapter away",
            expected="--bits 16 with --merge",
            hint="leave --merge out, or use --mode requantize (merged at 16 bits, then quantized)",
        )
    if step.form.writes == "quantized" and isinstance(step.base, GivenBase):
        raise UsageError(
            f"mode {step.mode} quantizes anew, and {step.base.label} is a checkpoint that was given",
            hint="leave --base out: plr quantizes the merged model as it does its own bases, or use --mode restore",
        )
    mode, own = mode_of(step.mode), step.adapter.own_base
    if own is None and mode.own_base:
        raise UsageError(
            f"mode {mode.name} serves the base the adapter was trained on, and nobody says which that is",
            hint="say it: --trained-on 16, nf4, int8 or a quantized checkpoint; or use --mode restore",
        )
    mode.check(step.adapter.trained_bits, step.base.bits, same_base=step.base == own, base=step.base.label)
    check_correction(step)


def check_merges(step: Restore) -> None:
    """Refuse a merged form for a method that cannot merge.

    Raises:
        UsageError: the adapter of this method is no part of the base's weights.
    """
    method = step.adapter.adapter.method
    if step.is_checkpoint and not adapters.get(method).properties.merges:
        raise UsageError(
            f"{'--merge' if step.merge else 'mode ' + step.mode} adds the adapter into the weights, and {method} is beside them",
            expected="a method that merges (plr adapters lists them)",
            hint="use --mode restore: the adapter stays beside the base",
        )


def check_scales(
    adapter: Train | GivenAdapter, base: Source | Quantize | GivenBase, *, allow_mismatch: bool, must_know: bool = False
) -> None:
    """Refuse a base whose layers get inputs of another scale than those beside which the adapter was trained, as AWQ's do.

    Raises:
        ProvenanceError: see `plr.bases.given_bases.check_inputs`.
    """
    if allow_mismatch or adapter.base == base:
        return
    for one in (adapter.base, base):
        if isinstance(one, GivenBase):
            check_inputs(one, must_know=must_know)
