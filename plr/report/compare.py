"""What each adapter of a study costs and what it gives: `compare.md` and `compare.svg`.

One row for each model, task, adapter and k -> l, in the form of the LINE paper's Table 2. Costs are read from the manifest of the
training behind a cell; over several seeds they are means. A number that was not recorded is shown as ``-``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from plr import stats
from plr.report.by_task import by_task_md
from plr.report.cells import NO_ADAPTER, CellResult, Entry, Line, ResultSet
from plr.report.metrics import LOSS, is_proportion, show, show_entry
from plr.report.results import paired_scores
from plr.report.sheets import adapter_label
from plr.report.table import markdown

if TYPE_CHECKING:
    from plr.core.store import Store
    from plr.study import Cell

__all__ = ["COMPARE_HEAD", "CostRow", "compare_md", "compare_rows", "compare_texts", "costs_of", "write_compare"]

COMPARE_HEAD = (
    "Task", "Model", "Adapter", "k -> l", "Trainable", "Updated", "Adapter, MB", "Peak memory, MB", "s/step",
    "Forward, unmerged", "Forward, merged", "Metric", "Value", "95 % interval", "n", "Answer loss",
)  # fmt: skip
LEGEND = (
    "Trainable: parameters with a gradient. Updated: weights of the base that change when the adapter is merged; 0 for one that "
    "stays beside it. Adapter: its file. Peak memory and seconds a step: of the training, as measured on the machine that ran it "
    "(on a CPU the whole process, libraries included). Forward: time of a forward pass with the adapter on over one without; "
    "merged into a 16-bit base, `-` where the method cannot be. -: not recorded."
)
Z95 = 1.959963984540054
KEYS = ("trainable_parameters", "updated_parameters", "adapter_bytes", "peak_memory_bytes", "seconds_per_step")


@dataclass(frozen=True)
class CostRow:
    """One place of the study, all its seeds together. Scores, ``low`` and ``high`` are fractions, or nats of a loss."""

    task: str
    model: str
    adapter: str
    train_bits: int
    restore_bits: int
    mode: str
    costs: Mapping[str, float | None]
    metric: str
    scores: Entry
    low: float | None
    high: float | None
    n: int
    losses: Entry
    seeds: int

    @property
    def value(self) -> float | None:
        return self.scores.mean

    @property
    def text(self) -> str:
        return show_entry(self.metric, self.scores)

    @property
    def loss(self) -> float | None:
        return self.losses.mean

    @property
    def bits(self) -> str:
        mode = "" if self.mode in ("keep", "restore") else f" {self.mode}"
        if self.adapter == NO_ADAPTER:
            return f"{self.restore_bits}{mode}"
        return f"{self.train_bits} -> {self.restore_bits}{mode}"


def costs_of(cells: Iterable[Cell], store: Store) -> dict[str, Mapping[str, Any]]:
    """Fingerprint of a cell's step -> the metrics of the training behind it; cells without one are left out."""
    from plr.core.specs import Restore

    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        if isinstance(cell.step.target, Restore) and (artifact := store.get(cell.step.target.adapter)) is not None:
            found[cell.step.fingerprint] = artifact.metrics
    return found


def compare_rows(results: ResultSet, costs: Mapping[str, Mapping[str, Any]]) -> list[CostRow]:
    """The rows, by task, model, adapter (the base alone first), then k and l falling; failed cells are rows without a value."""
    rows = []
    lines = sorted(
        results.lines(),
        key=lambda line: (results.tasks.index(line.task), results.models.index(line.model), line.adapter != NO_ADAPTER),
    )
    for line in lines:
        for mode in (None, *results.modes()):
            for k, ell in sorted(results.bits(mode, line.adapter), reverse=True):
                cells = list(results.at(line, k, ell, mode).values())
                if cells:
                    rows.append(_row(results, line, cells, costs))
    return rows


def compare_texts(rows: Sequence[CostRow]) -> list[tuple[str, ...]]:
    """The rows as text, in the columns of :data:`COMPARE_HEAD`."""
    texts = []
    for row in rows:
        label = "none" if row.adapter == NO_ADAPTER else adapter_label(row.adapter)
        costs = row.costs
        texts.append((
            row.task, row.model, label, row.bits, _count(costs["trainable_parameters"]), _count(costs["updated_parameters"]),
            _megabytes(costs["adapter_bytes"]), _megabytes(costs["peak_memory_bytes"]), _fixed(costs["seconds_per_step"], 3),
            _fixed(costs["unmerged"], 2), _fixed(costs["merged"], 2), row.metric, row.text,
            "-" if row.low is None else f"{show(row.metric, row.low)} to {show(row.metric, row.high)}", str(row.n or "-"),
            show(LOSS, row.loss),
        ))  # fmt: skip
    return texts


def compare_md(rows: Sequence[CostRow], title: str) -> str:
    """The whole of `compare.md`."""
    texts = compare_texts(rows)
    spare = {0, 1, 11} | ({15} if all(text[15] == "-" for text in texts) else set())
    keep = [i for i in range(len(COMPARE_HEAD)) if i not in spare or len({text[i] for text in texts}) > 1]
    fixed = [f"{COMPARE_HEAD[i]}: {texts[0][i]}." for i in (0, 1, 11) if i not in keep and texts]
    head = ["k → l" if COMPARE_HEAD[i] == "k -> l" else COMPARE_HEAD[i] for i in keep]
    table = markdown(head, [[text[i].replace(" -> ", " → ") for i in keep] for text in texts])
    seeds = max((row.seeds for row in rows), default=1)
    units = "Values in percent, losses in nats per token." + (f" Means of up to {seeds} seeds." if seeds > 1 else "")
    side_by_side = by_task_md(rows)
    sections = [f"### {title}: adapters by task", side_by_side] if side_by_side else []
    sections += [f"### {title}: what an adapter costs and gives", " ".join([*fixed, units]), table, LEGEND]
    return "\n\n".join(sections) + "\n"


def write_compare(
    cells: Iterable[CellResult], costs: Mapping[str, Mapping[str, Any]], folder: Path, title: str
) -> dict[str, Path]:
    """Write `compare.md` and, where a cell has both a value and a recorded peak memory, `compare.svg`; where they lie."""
    from plr.core.store import write_atomic
    from plr.report.figures.compare import compare_figure

    rows = compare_rows(ResultSet(cells), costs)
    paths = {"costs": folder / "compare.md"}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(paths["costs"], compare_md(rows, title))
    figure = compare_figure(rows, title)
    if figure is not None:
        paths["costs_figure"] = folder / "compare.svg"
        write_atomic(paths["costs_figure"], figure)
    return paths


def _row(
    results: ResultSet, line: Line, cells: Sequence[CellResult], costs: Mapping[str, Mapping[str, Any]]
) -> CostRow:
    first = cells[0]
    metric = next(
        (cell.primary for cell in [*cells, *results] if cell.primary and cell.task == line.task), ""
    )  # failed: no name
    entry = results.entry(line, first.train_bits, first.restore_bits, metric, first.mode)
    found = [costs[cell.fingerprint] for cell in cells if cell.fingerprint in costs]
    known = {key: _mean([one.get(key) for one in found]) for key in KEYS}
    overhead = [one["inference_overhead"] for one in found if isinstance(one.get("inference_overhead"), Mapping)]
    known |= {key: _mean([one.get(key) for one in overhead]) for key in ("unmerged", "merged")}
    low, high = _interval(results, line, metric, entry.mean, entry.n, cells)
    return CostRow(
        task=line.task,
        model=line.model,
        adapter=line.adapter,
        train_bits=first.train_bits,
        restore_bits=first.restore_bits,
        mode=first.mode,
        costs=known,
        metric=metric,
        scores=entry,
        low=low,
        high=high,
        n=entry.n,
        losses=results.entry(line, first.train_bits, first.restore_bits, LOSS, first.mode),
        seeds=len(cells),
    )


def _interval(
    results: ResultSet, line: Line, metric: str, mean: float | None, n: int, cells: Sequence[CellResult]
) -> tuple[float | None, float | None]:
    """95 %: Wilson of a proportion, Student over the documents; of a metric of all rows at once its own standard error. Of the mean
    over seeds."""
    if mean is None:
        return None, None
    if is_proportion(metric, results.of(line)) and n:
        return stats.wilson(min(float(n), max(0.0, mean * n)), n)
    scored = [cell for cell in cells if cell.value(metric) is not None]
    values, _ = paired_scores(scored, scored, metric)
    if len(values) > 1:
        return stats.mean_interval(values)
    errors = [
        cell.metrics[metric].stderr for cell in scored
    ]  # the seeds share their rows: no less than one seed's error
    known = [error for error in errors if error is not None]
    return (mean - Z95 * fmean(known), mean + Z95 * fmean(known)) if known else (None, None)


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return fmean(known) if known else None


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _megabytes(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.2f}" if value < 1e8 else f"{value / 1e6:,.0f}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
