"""An export at work, and a row of the table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Quantize, Restore
from plr.core.store import Store

__all__ = ["ExportFormat", "Target", "Work"]

Target = Restore | Quantize
"""Targets of an export: an adapter on a base, a merged or requantized checkpoint, or a quantized base."""


@dataclass(frozen=True)
class Work:
    """An export at work: what is written, from where, and the folder that it is written to."""

    target: Target
    folder: Path
    store: Store
    runtime: Runtime
    shard_bytes: int = 5_000_000_000
    """Largest file of weights that is written."""


@dataclass(frozen=True)
class ExportFormat:
    """One format: its name, what opens it, and how it is written."""

    name: str
    summary: str
    """One line: what is written."""
    opens: str
    """Code or command that opens the folder, with `FOLDER` in the place of its path."""
    check: Callable[[Target], None]
    """Raises `UsageError` where the format cannot hold the target: before any work."""
    write: Callable[[Work], JsonObject]
    """Fills the folder, and returns what is to be recorded."""
    relation: str
    """`base_model_relation` of the card: adapter, merge, quantized."""
    library: str = "transformers"
