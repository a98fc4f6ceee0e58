"""Settings of a correction, as one step needs them, and the checks that need no weights."""

from __future__ import annotations

from collections.abc import Mapping

from plr.core.modes import MODES, Mode
from plr.core.specs import Correction, CorrectionKnobs, GivenAdapter, Restore, TaskSpec, Train
from plr.errors import UsageError

__all__ = ["CHOOSING_ROWS", "GUARD_ROWS", "check_correction", "correction_for", "has_scale", "is_lora"]

CHOOSING_ROWS = 64
"""Validation rows that choose a place on the path and a factor, in 7 to 13 forward passes over them."""
GUARD_ROWS = 1000
"""Validation rows of `auto`: half of them certify, and fewer would certify next to nothing."""


def correction_for(mode: str, knobs: CorrectionKnobs, adapter: Train | GivenAdapter) -> Correction | None:
    """Take what `mode` reads out of `knobs`; None for a mode that corrects nothing.

    Equal restorations get equal values: a knob that changes nothing there stays at its default.

    Raises:
        UsageError: rows are needed, and nobody says of which task.
    """
    row = MODES[mode]
    if not row.knobs:
        return None
    config = adapter.adapter.config
    if knobs.scale is None and ("rows" not in row.knobs or ("t" in row.knobs and not has_scale(config))):
        knobs = knobs.model_copy(update={"scale": 1.0})  # nothing to choose
    chosen = _chooses(row, knobs)
    rank = knobs.rank if "rank" in row.knobs and (mode != "auto" or is_lora(config)) else 0
    rows = 0 if not chosen else knobs.rows or (GUARD_ROWS if mode == "auto" else CHOOSING_ROWS)
    calibration = knobs.calibration_rows if rank else 0
    needs_rows = bool(rows or calibration)
    return Correction(
        t=knobs.t if "t" in row.knobs else None,
        scale=knobs.scale,
        rank=rank,
        rows=rows,
        calibration_rows=calibration,
        seed=knobs.seed if needs_rows else 0,
        task=_task(mode, adapter) if needs_rows else None,
    )


def _chooses(row: Mode, knobs: CorrectionKnobs) -> bool:
    """Tell whether a mode chooses something that `knobs` leave open: `auto` does in any case."""
    if "rows" not in row.knobs:
        return False
    return row.name == "auto" or any(name in row.knobs and getattr(knobs, name) is None for name in ("t", "scale"))


def has_scale(config: Mapping[str, object]) -> bool:
    """Tell whether an adapter of this configuration can be multiplied by a factor: it has `lora_alpha`."""
    return "lora_alpha" in config


def check_correction(step: Restore) -> None:
    """Refuse a correction that the mode, the adapter or its base does not fit.

    Raises:
        UsageError: with what would fit.
    """
    mode, correction, adapter = MODES[step.mode], step.correction, step.adapter
    if (correction is not None) != bool(mode.knobs):
        raise UsageError(
            f"mode {mode.name} " + ("needs the settings of its correction" if mode.knobs else "corrects nothing"),
            hint="plr.restoration.correction.correction_for gives them",
        )
    if correction is None:
        return
    if step.merge:
        raise UsageError(
            f"--merge with --mode {mode.name}",
            hint="leave --merge out: at 16 bits path and auto write a dense checkpoint; plr export merges the others",
        )
    if mode.both_bases and adapter.own_base is None:
        raise UsageError(
            f"mode {mode.name} compares with the base the adapter was trained on, and nobody says which that is",
            hint="say it: --trained-on 16, nf4, int8 or a quantized checkpoint; or use --mode scale",
        )
    if step.compensated:
        raise UsageError(
            f"mode {mode.name} on the base that the adapter was trained on beside a compensation",
            expected="another base",
            hint="use --mode keep, which serves the two as one adapter, or --mode path",
        )
    method, config = adapter.adapter.method, adapter.adapter.config
    if correction.scale != 1.0 and not has_scale(config):
        raise UsageError(
            f"an adapter of {method} has no lora_alpha to multiply",
            expected="lora, or a method that is built on it",
            hint="use --mode path --scale 1, which needs none",
        )
    if mode.name == "correct" and not is_lora(config):
        raise UsageError(
            f"mode correct adds ranks to a LoRA, and {method} is not one",
            expected="an adapter of lora, rslora or relora",
            hint="use --mode path, which takes every method that merges",
        )


def is_lora(config: Mapping[str, object]) -> bool:
    """Tell whether an adapter of this configuration is the product of two matrices and nothing else."""
    return "lora_alpha" in config and "r" in config and not config.get("use_dora") and "target_r" not in config


def _task(mode: str, adapter: Train | GivenAdapter) -> TaskSpec:
    if adapter.task is None:
        raise UsageError(
            f"mode {mode} reads rows of the adapter's task, and {adapter.label} has none that is known",
            expected="the task that it was trained on",
            hint="give --task NAME, or give what is chosen: --t and --scale",
        )
    return adapter.task
