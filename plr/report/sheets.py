"""The content of the report's Table 1, apart from its printing: columns, rows, averages, the best of each group.

A `Block` is one table's columns: the main one of each adapter (16-bit LoRA, then k-bit QLoRA and its PLRl), and,
where a study has them, the bases without an adapter, the cells with l < k, and one for each further mode.
A `Sheet` fills a block with one metric; Markdown and HTML print the same sheets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from plr import stats
from plr.core.specs import UNKNOWN_BITS, bits_word
from plr.report.cells import Entry, Line, ResultSet, average
from plr.report.metrics import LOSS, is_proportion, show_entry
from plr.report.results import paired_scores
from plr.scoring.metric import PERCENT, Metric
from plr.study.cells import NO_ADAPTER, CellResult

__all__ = [
    "AVERAGE",
    "Block",
    "Column",
    "MetricOf",
    "Row",
    "Sheet",
    "adapter_label",
    "blocks",
    "interval_sheet",
    "metric_sheet",
    "seed_sheet",
]

AVERAGE = "Avg."
MetricOf: TypeAlias = Callable[[Line], str | None]
"""The name of the metric that a table shows for a line; None leaves the line out."""

_LABELS = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "adalora": "AdaLoRA", "ia3": "IA3", "vera": "VeRA"}


@dataclass(frozen=True)
class Column:
    """A column of cells; `group` is the head over the columns of one k, `head` the one of a single-row head."""

    k: int
    ell: int
    mode: str | None
    group: str
    sub: str
    head: str


@dataclass(frozen=True)
class Block:
    title: str
    adapter: str
    columns: Sequence[Column]


@dataclass(frozen=True)
class Row:
    task: str
    model: str
    texts: Sequence[str]
    best: Sequence[bool]
    average: bool = False


@dataclass(frozen=True)
class Sheet:
    block: Block
    rows: Sequence[Row]


def adapter_label(adapter: str) -> str:
    """Spell an adapter's name as the field does.

    >>> adapter_label("lora"), adapter_label("lora-r8"), adapter_label("mine")
    ('LoRA', 'LoRA-r8', 'mine')
    """
    name, dash, rest = adapter.partition("-")
    return _LABELS.get(name, name) + dash + rest


def blocks(results: ResultSet) -> list[Block]:
    """List all tables of one metric: each adapter's main block first, then its extra ones."""
    tables: list[Block] = []
    for adapter in sorted(results.adapters, key=lambda name: name == NO_ADAPTER):
        pairs = results.bits(adapter=adapter)
        if adapter == NO_ADAPTER:
            columns = [Column(k, k, None, f"{k}-bit", "base", f"{k}-bit base") for k, ell in pairs if k == ell]
            tables.append(Block("Base without an adapter", adapter, columns))
            continue
        label = adapter_label(adapter)
        several = len([name for name in results.adapters if name != NO_ADAPTER]) > 1
        tables.append(Block(label if several else "", adapter, _main_columns(label, pairs)))
        prefix = f"{label}: " if several else ""
        below = [
            Column(k, ell, None, _group(k, label), f"on {ell}", f"{_group(k, label)} on {ell}")
            for k, ell in pairs
            if ell < k
        ]
        if below:
            tables.append(Block(f"{prefix}served on fewer bits than trained (l < k)", adapter, below))
        for mode in results.modes():
            other = [
                Column(k, ell, mode, _group(k, label), f"{mode} {ell}", f"{_group(k, label)} {mode} {ell}")
                for k, ell in results.bits(mode, adapter)
            ]
            if other:
                tables.append(Block(f"{prefix}mode {mode}", adapter, other))
    return tables


def metric_sheet(results: ResultSet, block: Block, metric_of: MetricOf) -> Sheet | None:
    """Fill the block with one metric (which may depend on the task), with averages; None if no row has it."""
    metrics = {line: results.metric(line, name) for line in results.lines(block.adapter) if (name := metric_of(line))}
    entries = {
        line: [results.entry(line, c.k, c.ell, metric.name, c.mode) for c in block.columns]
        for line, metric in metrics.items()
    }
    rows: list[Row] = []

    def add(task: str, model: str, lines: Sequence[Line]) -> None:
        if not _have_mean(results, [(line, metrics[line]) for line in lines]):
            return
        columns = list(zip(*(entries[line] for line in lines), strict=True))
        filled = [column[0] if len(lines) == 1 else average(column) for column in columns]
        texts = [show_entry(metrics[lines[0]], entry) for entry in filled]
        best = _best(block.columns, filled, metrics[lines[0]])
        rows.append(Row(task, model, texts, best, average=AVERAGE in (task, model)))

    tasks = [(task, list(group)) for task, group in groupby(metrics, key=lambda line: line.task)]
    for task, of_task in tasks:
        for line in of_task:
            add(task, line.model, [line])
        if len(of_task) > 1:
            add(task, AVERAGE, of_task)
    complete = [model for model in results.models if sum(line.model == model for line in metrics) == len(tasks)]
    if len(tasks) > 1:
        for model in complete:
            add(AVERAGE, model, [line for line in metrics if line.model == model])
        if len(complete) > 1:
            add(AVERAGE, AVERAGE, [line for line in metrics if line.model in complete])
    return Sheet(block, rows) if rows else None


def interval_sheet(results: ResultSet, block: Block, metric_of: MetricOf) -> Sheet | None:
    """Fill the block with 95 % intervals of the mean over seeds: Wilson for a proportion, else Student over the documents."""
    rows = []
    for line in results.lines(block.adapter):
        if name := metric_of(line):
            metric = results.metric(line, name)
            proportion = is_proportion(metric, results.of(line))
            texts = [
                _interval(
                    metric,
                    proportion,
                    results.entry(line, c.k, c.ell, name, c.mode),
                    list(results.at(line, c.k, c.ell, c.mode).values()),
                )
                for c in block.columns
            ]
            rows.append(Row(line.task, line.model, texts, [False] * len(texts)))
    return Sheet(block, rows) if rows else None


def seed_sheet(results: ResultSet, block: Block, metric_of: MetricOf) -> Sheet | None:
    """Fill the block with the percent of the variance of one run's score that is its seed; None with fewer than two seeds."""
    rows = []
    for line in results.lines(block.adapter):
        if metric := metric_of(line):
            texts = [_seed_share(list(results.at(line, c.k, c.ell, c.mode).values()), metric) for c in block.columns]
            if any(text != "-" for text in texts):
                rows.append(Row(line.task, line.model, texts, [False] * len(texts)))
    return Sheet(block, rows) if rows else None


def _group(k: int, label: str) -> str:
    return f"16-bit {label}" if k == 16 else f"{bits_word(k)}-bit Q{label}"


def _main_columns(label: str, pairs: Sequence[tuple[int, int]]) -> list[Column]:
    columns = [Column(16, 16, None, _group(16, label), label, _group(16, label))]
    for k in dict.fromkeys(k for k, _ in pairs if k != 16):
        group = _group(k, label)
        if k != UNKNOWN_BITS:
            columns.append(Column(k, k, None, group, f"Q{label}", group))
        columns += [Column(k, ell, None, group, f"PLR{ell}", f"PLR{ell}") for k_, ell in pairs if k_ == k and ell > k]
    return columns


def _have_mean(results: ResultSet, pairs: Sequence[tuple[Line, Metric]]) -> bool:
    """Check that the lines have a mean: their metrics share a unit and a direction, their losses one kind of answer."""
    numeric = {results.metric(line, results.primary(line)).of_numbers for line, metric in pairs if metric.name == LOSS}
    return len(numeric) < 2 and len({(metric.unit, metric.sign) for _, metric in pairs}) == 1


def _best(columns: Sequence[Column], entries: Sequence[Entry], metric: Metric) -> list[bool]:
    """Mark the best of each k, as printed; none where there is no choice or no difference."""
    digits = metric.decimals + (2 if metric.unit == PERCENT else 0)
    flags = [False] * len(entries)
    for _, group in groupby(range(len(columns)), key=lambda index: columns[index].group):
        means = {index: round(mean, digits) for index in group if (mean := entries[index].mean) is not None}
        if len(set(means.values())) > 1:
            top = (max if metric.higher_is_better else min)(means.values())
            for index, mean in means.items():
                flags[index] = mean == top
    return flags


def _interval(metric: Metric, proportion: bool, entry: Entry, cells: Sequence[CellResult]) -> str:
    mean, n = entry.mean, entry.n
    if mean is None:
        return show_entry(metric, entry)
    scored = [cell for cell in cells if cell.value(metric.name) is not None]
    values, _ = paired_scores(scored, scored, metric.name)
    if proportion and n:
        interval = stats.wilson(min(n, mean * n), n)
    elif len(values) > 1:
        interval = stats.mean_interval(values)
    else:
        return "-"
    return f"{metric.show(interval.low)} to {metric.show(interval.high)}"


def _seed_share(cells: Sequence[CellResult], metric: str) -> str:
    scored = [cell for cell in cells if cell.value(metric) is not None and cell.samples.get(metric)]
    by_seed = [paired_scores([cell], scored, metric)[0] for cell in scored]
    if len(by_seed) < 2 or len(by_seed[0]) < 2:
        return "-"
    return f"{100 * stats.seed_variance(by_seed).share:.0f}"
