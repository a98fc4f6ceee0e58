"""Costs of the adapters of a study, as recorded by their trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plr.core.specs import Restore
from plr.core.store import Store
from plr.study.cells import Cell

__all__ = ["costs_of"]


def costs_of(cells: Iterable[Cell], store: Store) -> dict[str, Mapping[str, Any]]:
    """Map the fingerprint of each cell's step to the metrics of the training behind it; cells without one are left out."""
    costs: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        if isinstance(cell.step.target, Restore) and (artifact := store.get(cell.step.target.adapter)) is not None:
            costs[cell.step.fingerprint] = artifact.metrics
    return costs
