"""Costs and scores of the adapters of a study: `compare.md` and `compare.svg`.

One row for each model, task, adapter and k -> l, in the form of the LINE paper's Table 2. Costs are read from the manifest of the
training behind a cell; over several seeds they are means. A number that was not recorded is shown as `-`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plr.report.by_task import by_task_md
from plr.report.cells import ResultSet
from plr.report.costs import CostRow, compare_rows
from plr.report.metrics import unit_note
from plr.report.sheets import adapter_label
from plr.report.table import markdown
from plr.scoring.metric import ANSWER_LOSS, NATS, PERCENT
from plr.study.cells import NO_ADAPTER, CellResult

__all__ = ["COMPARE_HEAD", "compare_md", "compare_texts", "write_compare"]

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


def compare_texts(rows: Sequence[CostRow]) -> list[tuple[str, ...]]:
    """Write the rows as text, in the columns of `COMPARE_HEAD`."""
    texts = []
    for row in rows:
        label = "none" if row.adapter == NO_ADAPTER else adapter_label(row.adapter)
        costs = row.costs
        texts.append((
            row.task, row.model, label, row.bits, _count(costs["trainable_parameters"]), _count(costs["updated_parameters"]),
            _megabytes(costs["adapter_bytes"]), _megabytes(costs["peak_memory_bytes"]), _fixed(costs["seconds_per_step"], 3),
            _fixed(costs["unmerged"], 2), _fixed(costs["merged"], 2), row.metric, row.text,
            "-" if row.low is None else f"{row.measure.show(row.low)} to {row.measure.show(row.high)}", str(row.n or "-"),
            ANSWER_LOSS.show(row.loss),
        ))  # fmt: skip
    return texts


def compare_md(rows: Sequence[CostRow], title: str) -> str:
    """Write the text of `compare.md`."""
    texts = compare_texts(rows)
    spare = {0, 1, 11} | ({15} if all(text[15] == "-" for text in texts) else set())
    keep = [i for i in range(len(COMPARE_HEAD)) if i not in spare or len({text[i] for text in texts}) > 1]
    fixed = [f"{COMPARE_HEAD[i]}: {texts[0][i]}." for i in (0, 1, 11) if i not in keep and texts]
    head = ["k → l" if COMPARE_HEAD[i] == "k -> l" else COMPARE_HEAD[i] for i in keep]
    table = markdown(head, [[text[i].replace(" -> ", " → ") for i in keep] for text in texts])
    seeds = max((row.seeds for row in rows), default=1)
    others = {row.metric: row.measure for row in rows if row.metric and row.measure.unit not in (PERCENT, NATS)}
    named = "".join(f" {name}{unit_note([metric]) or ', a plain number'}." for name, metric in others.items())
    units = f"Values in percent, losses in nats per token.{named}" + (
        f" Means of up to {seeds} seeds." if seeds > 1 else ""
    )
    side_by_side = by_task_md(rows)
    sections = [f"### {title}: adapters by task", side_by_side] if side_by_side else []
    sections += [f"### {title}: what an adapter costs and gives", " ".join([*fixed, units]), table, LEGEND]
    return "\n\n".join(sections) + "\n"


def write_compare(
    cells: Iterable[CellResult], costs: Mapping[str, Mapping[str, object]], folder: Path, title: str
) -> dict[str, Path]:
    """Write `compare.md` and, where a cell has a value and a recorded training, `compare.svg` and `.png`; return the paths."""
    from plr.core.files import write_atomic
    from plr.report.figures.compare import compare_figure
    from plr.report.figures.write import write_figure

    rows = compare_rows(ResultSet(cells), costs)
    paths = {"costs": folder / "compare.md"}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(paths["costs"], compare_md(rows, title))
    figure = compare_figure(rows, title)
    if figure is not None:
        paths |= dict(zip(("costs_figure", "costs_image"), write_figure(figure, folder / "compare.svg"), strict=False))
    return paths


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _megabytes(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.2f}" if value < 1e8 else f"{value / 1e6:,.0f}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
