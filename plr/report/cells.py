"""The results of a study, indexed: tables look a cell up by (model, task, adapter, k, l).

Models, tasks and adapters keep the order of the cells in every table; bits are always sorted. Over its seeds a cell
becomes an `Entry`, which counts the failed ones, so that no mean hides a missing run.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from plr.core.modes import plain_mode, plain_modes
from plr.errors import PlrError
from plr.scoring.metric import Metric, metric_named
from plr.study.cells import CellResult

__all__ = ["Entry", "Line", "ResultSet", "average"]


@dataclass(frozen=True)
class Line:
    """One row of a table: the model, task and adapter for which k and l vary."""

    model: str
    task: str
    adapter: str


@dataclass(frozen=True)
class Entry:
    """One place of a table: the values by seed, and how many of the runs failed."""

    values: Mapping[int, float]
    runs: int
    failed: int
    n: int = 0

    @property
    def mean(self) -> float | None:
        return fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (n - 1), None for a single seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


class ResultSet:
    """The cells of a study, indexed.

    Raises:
        PlrError: two cells with the same key.
    """

    def __init__(self, cells: Iterable[CellResult]) -> None:
        self.cells: Sequence[CellResult] = list(cells)
        self._at: dict[tuple[Line, int, int, str], dict[int, CellResult]] = {}
        self._of: dict[Line, list[CellResult]] = {}
        for cell in self.cells:
            line = Line(cell.model, cell.task, cell.adapter)
            self._of.setdefault(line, []).append(cell)
            seeds = self._at.setdefault((line, cell.train_bits, cell.restore_bits, cell.mode), {})
            if cell.seed in seeds:
                raise PlrError(f"two results for the cell {cell.key}", expected="each cell once")
            seeds[cell.seed] = cell
        self.memo: dict[Hashable, Any] = {}
        """Comparisons already worked out: a report says the same thing in several places."""
        self.models = list(dict.fromkeys(cell.model for cell in self.cells))
        self.tasks = list(dict.fromkeys(cell.task for cell in self.cells))
        self.adapters = list(dict.fromkeys(cell.adapter for cell in self.cells))
        self.seeds = sorted({cell.seed for cell in self.cells})
        self.failed = [cell for cell in self.cells if cell.failed]

    def __iter__(self) -> Iterator[CellResult]:
        return iter(self.cells)

    def lines(self, adapter: str | None = None) -> list[Line]:
        """List (model, task, adapter) in the order of a table: by adapter, task, then model."""
        order = [Line(m, t, a) for a in self.adapters for t in self.tasks for m in self.models]
        return [line for line in order if line in self._of and adapter in (None, line.adapter)]

    def bits(self, mode: str | None = None, adapter: str | None = None) -> list[tuple[int, int]]:
        """List the (k, l) with a cell: k falls; l rises from k to 16, then falls below k."""
        places = {
            (k, ell)
            for line, k, ell, m in self._at
            if (m == mode or (mode is None and m in plain_modes())) and adapter in (None, line.adapter)
        }
        return sorted(
            places, key=lambda pair: (-pair[0], pair[1] < pair[0], pair[1] if pair[1] >= pair[0] else -pair[1])
        )

    def modes(self) -> list[str]:
        """List the modes that have cells and are shown by name."""
        return sorted({place[3] for place in self._at} - plain_modes())

    def at(self, line: Line, k: int, ell: int, mode: str | None = None) -> Mapping[int, CellResult]:
        """Return the cells there by seed; `mode` None means keep on the diagonal and restore off it."""
        mode = mode or plain_mode(same_base=k == ell)
        return self._at.get((line, k, ell, mode), {})

    def of(self, line: Line) -> Sequence[CellResult]:
        return self._of[line]

    def primary(self, line: Line) -> str:
        """Name the primary metric of the line's task; empty where all cells of the task failed."""
        cells = (cell for cell in (*self._of[line], *self.cells) if cell.task == line.task)
        return next((cell.primary for cell in cells if cell.primary), "")

    def metric(self, line: Line, name: str) -> Metric:
        """Look up unit and direction of the metric called `name`, as the line's results carry them."""
        return next((cell.metric(name) for cell in self._of[line] if name in cell.metrics), metric_named(name))

    def metrics(self, line: Line | None = None) -> list[str]:
        """List the names of all metrics of the line's cells (of all cells without a line), sorted."""
        wanted = self.cells if line is None else self._of[line]
        return sorted({name for cell in wanted for name in cell.metrics})

    def entry(self, line: Line, k: int, ell: int, metric: str, mode: str | None = None) -> Entry:
        cells = self.at(line, k, ell, mode)
        values = {seed: value for seed, cell in sorted(cells.items()) if (value := cell.value(metric)) is not None}
        n = min((cells[seed].count(metric) for seed in values), default=0)
        return Entry(values, len(cells), sum(cell.failed for cell in cells.values()), n)


def average(entries: Sequence[Entry]) -> Entry:
    """Average over rows, seed by seed; empty where any row lacks a seed that another has, for no mean may hide a gap."""
    seeds = set().union(*(entry.values for entry in entries))
    whole = [seed for seed in sorted(seeds) if all(seed in entry.values for entry in entries)]
    if any(not entry.values for entry in entries):
        whole = []
    values = {seed: fmean(entry.values[seed] for entry in entries) for seed in whole}
    return Entry(values, len(seeds), 0)
