"""The table of adapters (rows) by tasks (columns): the form of a paper's main table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plr.report.cells import Entry, average
from plr.report.costs import CostRow
from plr.report.metrics import LOSS, show_entry
from plr.report.sheets import adapter_label
from plr.report.table import markdown
from plr.scoring.metric import ANSWER_LOSS
from plr.study.cells import NO_ADAPTER

__all__ = ["by_task_md"]


def by_task_md(rows: Sequence[CostRow]) -> str:
    """Write three tables for each model: the primary metrics with their mean, their 95 % intervals with n, and the answer losses.

    The text is empty for a study of one task. The best value of a task is bold. The mean is over the tasks, seed by seed, and only
    of rows and seeds that have all of them; losses have a mean only where they have one unit.
    """
    parts: list[str] = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        tasks = list(dict.fromkeys(row.task for row in own))
        if len(tasks) < 2:
            continue
        metrics = {row.task: row.measure for row in own if row.metric}
        named = ", ".join(f"{task} {metrics[task].name if task in metrics else ''}".strip() for task in tasks)
        lines = _lines(own)
        losses = not all(metric.name == LOSS for metric in metrics.values())
        mean = not len({(metric.unit, metric.sign) for metric in metrics.values()}) > 1
        one_unit = len({metric.of_numbers for metric in metrics.values()}) == 1
        parts += [
            f"{model}: {named}.",
            _table(lines, tasks, lambda row: row.scores, lambda row: row.text, mean=mean, costs=True),
            "<details><summary>95 % intervals and n</summary>",
            _table(lines, tasks, lambda _: None, _interval),
            "</details>",
        ]
        if losses and any(row.loss is not None for row in own):
            parts += [
                "Answer loss, nats per token (of a head: nats per row; of a number: squared error):",
                _table(
                    lines,
                    tasks,
                    lambda row: row.losses,
                    lambda row: ANSWER_LOSS.show(row.loss),
                    loss=True,
                    mean=one_unit,
                ),
            ]
    return "\n\n".join(parts)


def _lines(rows: Sequence[CostRow]) -> dict[tuple[str, str], dict[str, CostRow]]:
    """Index the rows: (adapter, k -> l) -> task -> row."""
    lines: dict[tuple[str, str], dict[str, CostRow]] = {}
    for row in rows:
        lines.setdefault((row.adapter, row.bits), {})[row.task] = row
    return lines


def _table(
    lines: dict[tuple[str, str], dict[str, CostRow]],
    tasks: Sequence[str],
    entry: Callable[[CostRow], Entry | None],
    text: Callable[[CostRow], str],
    *,
    loss: bool = False,
    mean: bool = False,
    costs: bool = False,
) -> str:
    best: dict[str, float] = {}
    for line in lines.values():
        for task, row in line.items():
            if (value := _mean(entry(row))) is not None:
                better = max if not loss and row.measure.higher_is_better else min
                best[task] = value if task not in best else better(best[task], value)
    body: list[list[str]] = []
    marks: list[list[bool]] = []
    for (adapter, bits), line in lines.items():
        rows = [line.get(task) for task in tasks]
        cells = ["-" if row is None else text(row) for row in rows]
        bold = [row is not None and row.task in best and _mean(entry(row)) == best[row.task] for row in rows]
        entries = [value for row in rows if row is not None and (value := entry(row)) is not None]
        metric = ANSWER_LOSS if loss else next(iter(line.values())).measure
        trained = next(iter(line.values())).costs.get("trainable_parameters")
        label = "none" if adapter == NO_ADAPTER else adapter_label(adapter)
        front = [label, bits.replace("->", "→"), *(["-" if trained is None else f"{trained:,.0f}"] if costs else [])]
        back = [show_entry(metric, average(entries)) if len(entries) == len(tasks) else "-"] if mean else []
        body.append([*front, *cells, *back])
        marks.append([False] * len(front) + bold + [False] * len(back))
    head = ["Adapter", "k → l", *(["Trainable"] if costs else []), *tasks, *(["Avg."] if mean else [])]
    return markdown(head, body, marks)


def _mean(entry: Entry | None) -> float | None:
    return None if entry is None else entry.mean


def _interval(row: CostRow) -> str:
    if row.low is None:
        return f"- (n = {row.n})" if row.n else "-"
    return f"{row.measure.show(row.low)} to {row.measure.show(row.high)} (n = {row.n})"
