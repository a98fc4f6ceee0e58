"""Carry out a Restore step: put a trained adapter on another base without retraining (Post-LoRA Restoration).

The row of a mode in `plr/core/modes.py` says what it serves and when it fits; its builder is in `plr/restoration/modes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plr.bases.given_adapters import adapter_folder
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Restore
from plr.core.store import Store
from plr.restoration.check import check_merges, check_mode
from plr.restoration.modes import Restoration, builder_of

__all__ = ["restore"]


def restore(
    step: Restore,
    folder: Path,
    store: Store,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None = None,
) -> JsonObject:
    """Write the served form of `step` to `folder`, and return the metrics of the manifest.

    Raises:
        UsageError: a mode that does not fit the bits, or needs a merge that the adapter's method has not.
        ProvenanceError, IntegrityError: see `plr.restoration.attach.attach`.
    """
    check_mode(step)
    check_merges(step)
    work = Restoration(
        step, adapter_folder(step.adapter, store, offline=runtime.offline), folder, store, runtime, on_progress
    )
    return {
        "train_bits": step.adapter.trained_bits or None,
        "restore_bits": step.base.bits,
        "mode": step.mode,
        "merge": step.merge,
        "allow_mismatch": step.allow_mismatch,
        **builder_of(step)(work),
    }
