"""Cells: the points of a study, and the result of each as it lies in the store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plr.core.specs import Evaluate, bits_word
from plr.core.store import Artifact
from plr.engines import Outcome
from plr.errors import PlrError
from plr.evaluation.samples import sample_scores
from plr.scoring.metric import Metric, metric_named

__all__ = [
    "NO_ADAPTER",
    "Cell",
    "CellResult",
    "Measured",
    "cell_result",
    "failed_cells",
    "finite",
    "raise_if_all_failed",
]

NO_ADAPTER = "none"


@dataclass(frozen=True)
class Cell:
    """One point of the study and the step that scores it."""

    model: str
    task: str
    adapter: str
    train_bits: int
    restore_bits: int
    mode: str
    seed: int
    step: Evaluate

    @property
    def label(self) -> str:
        return f"{self.model} {self.task} {self.adapter} {bits_word(self.train_bits)} -> {self.restore_bits} bits, seed {self.seed}"


@dataclass(frozen=True)
class Measured:
    """A metric over `n` documents; `value` None (or not finite) means that it could not be computed."""

    value: float | None
    stderr: float | None
    n: int
    metric: Metric | None = None
    """Unit and direction as the result carries them; None: known by name, or not at all."""


@dataclass(frozen=True)
class CellResult:
    """One scored (or failed) point of a study.

    `metrics` holds values in the unit of their metric; of a percentage that is a fraction (0.25 is 25 %). `samples` holds the
    same scores by document, for the paired tests; None is a document that could not be scored.
    """

    model: str
    task: str
    adapter: str
    train_bits: int
    restore_bits: int
    mode: str
    seed: int
    fingerprint: str
    primary: str
    metrics: Mapping[str, Measured]
    samples: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict[str, Mapping[str, float | None]])
    seconds: float | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str, int, int, str, int]:
        return (self.model, self.task, self.adapter, self.train_bits, self.restore_bits, self.mode, self.seed)

    @property
    def failed(self) -> bool:
        return self.error is not None

    def value(self, metric: str) -> float | None:
        """Return the finite value of `metric`, or None: failed, not measured, or not a number."""
        measured = None if self.failed else self.metrics.get(metric)
        return finite(measured.value) if measured else None

    def metric(self, name: str) -> Metric:
        """Look up unit and direction of the metric called `name`."""
        measured = self.metrics.get(name)
        return measured.metric if measured and measured.metric else metric_named(name)

    def count(self, metric: str) -> int:
        measured = None if self.failed else self.metrics.get(metric)
        return measured.n if measured else 0


def cell_result(cell: Cell, artifact: Artifact | None, failed: Mapping[str, str]) -> CellResult:
    """Read the result of `cell` from its artifact; without one it is a failed cell, with the reason."""
    common: dict[str, Any] = {
        "model": cell.model,
        "task": cell.task,
        "adapter": cell.adapter,
        "train_bits": cell.train_bits,
        "restore_bits": cell.restore_bits,
        "mode": cell.mode,
        "seed": cell.seed,
        "fingerprint": cell.step.fingerprint,
    }
    if artifact is None:
        reason = failed.get(cell.step.fingerprint, "not run yet")
        return CellResult(**common, primary="", metrics={}, samples={}, seconds=None, error=reason)
    metrics = {
        name: Measured(value=m["value"], stderr=m["stderr"], n=m["n"], metric=Metric.recorded(name, m))
        for name, m in artifact.metrics["metrics"].items()
    }
    return CellResult(
        **common,
        primary=artifact.metrics["primary"],
        metrics=metrics,
        samples=sample_scores(artifact.path, metrics),
        seconds=artifact.manifest["seconds"],
        error=None,
    )


def failed_cells(cells: list[Cell], outcome: Outcome) -> list[tuple[Cell, str]]:
    """List the cells without a result, each with its reason."""
    return [(c, outcome.failed[c.step.fingerprint]) for c in cells if c.step.fingerprint in outcome.failed]


def raise_if_all_failed(cells: list[Cell], outcome: Outcome) -> None:
    """Raise `PlrError` where every cell failed: a study in which nothing worked is itself a failure."""
    failed = failed_cells(cells, outcome)
    if cells and len(failed) == len(cells):
        raise PlrError(f"every cell failed; the first: {failed[0][0].label}: {failed[0][1]}")


def finite(value: float | None) -> float | None:
    """Return `value`, or None where it is None, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None
