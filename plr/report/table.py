"""The table of a study: `table.md` in the form of the report's Table 1, and the k x l matrix for the terminal.

The Markdown holds, in this order: the primary metric; its 95 % intervals; the share of variance that is seed (several
seeds); one table for each further metric; the contrasts; the limits of the numbers; the failed cells.
It has no dates: the same cells give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from plr.core.specs import bits_word
from plr.report.advice import ADVICE_HEAD, Advice, advice_notes, advice_rows, advice_words
from plr.report.cells import Line, ResultSet
from plr.report.metrics import ENDED, show_entry, sort_metrics, unit_note
from plr.report.results import Contrast, contrasts, value_difference
from plr.report.sheets import AVERAGE, Sheet, adapter_label, blocks, interval_sheet, metric_sheet, seed_sheet
from plr.report.words import detectable_words, headline, line_words, sample_words, stop_words
from plr.scoring.metric import NATS, PERCENT, Metric
from plr.study.cells import NO_ADAPTER, CellResult

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "CONTRAST_HEAD",
    "console_table",
    "contrast_legend",
    "contrast_rows",
    "markdown",
    "metric_title",
    "other_metrics",
    "primary_metrics",
    "show_p",
    "table_md",
]

CONTRAST_HEAD = (
    "Dataset", "Model", "Adapter", "Seed", "Contrast", "Metric",
    "Difference", "95 % interval", "p", "p (Holm)", "n", "Detectable",
)  # fmt: skip

MetricOf = Callable[[Line], str | None]


def table_md(cells: Iterable[CellResult], found: Sequence[Contrast] | None = None, advice: Advice | None = None) -> str:
    """Write the text of `table.md`.

    Args:
        cells: in the order in which models, tasks and adapters are to appear.
        found: `contrasts` of the same cells, if already computed.
        advice: where the cells are the candidates of one: its sentence and table stand first.
    """
    results = cells if isinstance(cells, ResultSet) else ResultSet(cells)
    found = contrasts(results) if found is None else found
    parts: list[str] = [_text(headline(results, found) if advice is None else advice_words(advice))]
    if advice is not None:
        parts += [markdown(ADVICE_HEAD, advice_rows(advice)), *map(_text, advice_notes(advice))]
    elif words := line_words(results, found):
        parts.append("\n".join(f"- {_text(name)}: {_text(text)}" for name, text in words))
    primaries = primary_metrics(results)
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(metric.name for metric in primaries))
    title = f"{names}, the primary metric{unit_note(primaries)}"
    parts += _section(results, title, results.primary, metric_sheet, _legend(results))
    parts += _section(results, f"95 % intervals of {names}", results.primary, interval_sheet)
    parts += _section(
        results, "Share of the variance of one run's score that is its seed, in percent", results.primary, seed_sheet
    )
    for name in other_metrics(results):
        parts += _section(results, metric_title(results, name, code=True), _only(results, name), metric_sheet)
    if rows := contrast_rows(found):
        keep = _used_columns(rows)
        parts.append("### Contrasts, on the same documents")
        parts.append(contrast_legend(found))
        parts.append(markdown([CONTRAST_HEAD[i] for i in keep], [[row[i] for i in keep] for row in rows]))
    for line in [*stop_words(results), *sample_words(results), *detectable_words(results)]:
        parts.append(_text(line))
    if results.failed:
        parts.append("### Failed cells")
        head = ("Dataset", "Model", "Adapter", "k", "l", "Mode", "Seed", "Reason")
        parts.append(markdown(head, [_failure(cell) for cell in results.failed]))
    return "\n\n".join(parts) + "\n"


def console_table(cells: Iterable[CellResult]) -> Table:
    """Draw the matrix of each line, rows k and columns l: the primary metric and, in brackets, the gain over the diagonal."""
    from rich.table import Table
    from rich.text import Text

    results = cells if isinstance(cells, ResultSet) else ResultSet(cells)
    several = f", means of {len(results.seeds)} seeds" if len(results.seeds) > 1 else ""
    outer = Table.grid(padding=0)
    outer.add_row(f"trained on k bits (rows), served on l bits (columns): value (gain over l = k){several}")
    for line in results.lines():
        metric, places = results.metric(line, results.primary(line)), results.bits(adapter=line.adapter)
        adapter = {NO_ADAPTER: ["no adapter"], "lora": []}.get(line.adapter, [adapter_label(line.adapter)])
        name = ", ".join(dict.fromkeys([line.task, line.model, *adapter]))
        outer.add_row("")
        outer.add_row(Text(f"{name}: {metric.name}{unit_note([metric])}", style="bold"))
        outer.add_row(_matrix(results, line, metric, places))
    return outer


def _matrix(results: ResultSet, line: Line, metric: Metric, places: Sequence[tuple[int, int]]) -> Table:
    from rich.table import Table

    widths = sorted({ell for _, ell in places}, reverse=True)
    bare = line.adapter == NO_ADAPTER
    table = Table()
    table.add_column("l" if bare else "k \\ l", justify="right", style="bold")
    for ell in widths:
        table.add_column(str(ell), justify="right")
    if bare:
        table.add_row("base", *(_console_cell(results, line, ell, ell, metric) for ell in widths))
        return table
    columns: list[tuple[int, str | None]] = [(ell, None) for ell in widths]
    for mode in results.modes():  # in columns of their own, behind the widths
        columns += [(ell, mode) for ell in sorted({ell for _, ell in results.bits(mode, line.adapter)}, reverse=True)]
    for ell, mode in columns[len(widths) :]:
        table.add_column(f"{mode} {ell}", justify="right")
    for k in dict.fromkeys(k for k, _ in places):
        table.add_row(bits_word(k), *(_console_cell(results, line, k, ell, metric, mode) for ell, mode in columns))
    return table


def primary_metrics(results: ResultSet) -> list[Metric]:
    """List the primary metrics of the lines, each once; of a task that failed altogether none is known."""
    named = {line: name for line in results.lines() if (name := results.primary(line))}
    return list(dict.fromkeys(results.metric(line, name) for line, name in named.items()))


def other_metrics(results: ResultSet) -> list[str]:
    """List the metrics that are not the primary one of every task."""
    pairs = ((line, name) for line in results.lines() for name in results.metrics(line))
    return sort_metrics(results.metric(line, name) for line, name in pairs if name != results.primary(line))


def metric_title(results: ResultSet, name: str, *, code: bool = False) -> str:
    """Name a metric with its unit, in every line that has it."""
    shown = f"`{name}`" if code else name
    if name == ENDED:
        return f"{shown}: answers that ended by themselves within the limit, in percent"
    return (
        f"{shown}{unit_note(results.metric(line, name) for line in results.lines() if name in results.metrics(line))}"
    )


def contrast_legend(pairs: Iterable[Contrast]) -> str:
    """Write the sentences above a table of contrasts."""
    others = dict.fromkeys(c.metric for c in pairs if c.measure.unit not in (PERCENT, NATS))
    other = f" and {', '.join(others)} in the metric's own unit" if others else ""
    return (
        f"Places are (k, l); the difference is the second minus the first, in points (for a loss in nats per token{other}), with "
        "its paired bootstrap interval. p: McNemar, exact, two-sided; p (Holm): corrected over every p of this report. "
        "Detectable: the smallest difference found with 80 % power at the disagreement seen."
    )


def contrast_rows(pairs: Sequence[Contrast]) -> list[tuple[str, ...]]:
    """Write the contrasts as text, in the columns of `CONTRAST_HEAD`."""
    rows = []
    for c in pairs:
        between = f"({c.first[0]}, {c.first[1]}) to ({c.second[0]}, {c.second[1]})"
        kind = {"gain": "gain of restoring", "shortfall": "against 16-bit " + adapter_label(c.line.adapter)}.get(
            c.kind, c.kind
        )
        interval = "-" if c.low is None else f"{c.measure.show_signed(c.low)} to {c.measure.show_signed(c.high)}"
        rows.append((
            c.line.task, c.line.model, adapter_label(c.line.adapter), str(c.seed), f"{kind} {between}", c.metric,
            c.measure.show_signed(c.difference), interval, show_p(c.p), show_p(c.p_holm),
            str(c.n or "-"), "-" if c.detectable is None else _detectable(c.measure, c.detectable),
        ))  # fmt: skip
    return rows


def show_p(p: float | None) -> str:
    """Write a p-value.

    >>> show_p(0.0312), show_p(0.00004), show_p(None)
    ('0.031', '<0.001', '-')
    """
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _section(
    results: ResultSet, title: str, metric_of: MetricOf, make: Callable[..., Sheet | None], legend: str = ""
) -> list[str]:
    parts: list[str] = []
    for block in blocks(results):
        sheet = make(results, block, metric_of)
        if sheet is not None:
            parts += [f"**{_text(block.title)}**"] if block.title else []
            head = ["Datasets", "Models", *(column.head for column in block.columns)]
            parts.append(markdown(head, _sheet_rows(sheet), bold=[(False, False, *row.best) for row in sheet.rows]))
    return [f"### {title}", *([legend] if legend else []), *parts] if parts else []


def _sheet_rows(sheet: Sheet) -> list[list[str]]:
    rows, last = [], None
    for row in sheet.rows:
        rows.append(["" if row.task == last else row.task, row.model, *row.texts])
        last = row.task
    return rows


def _legend(results: ResultSet) -> str:
    labels = [adapter_label(name) for name in results.adapters if name != NO_ADAPTER]
    if not labels:
        return ""
    label = labels[0]
    seeds = f" Mean ± standard deviation of {len(results.seeds)} seeds." if len(results.seeds) > 1 else ""
    averages = f" {AVERAGE}: plain mean." if len(results.models) > 1 or len(results.tasks) > 1 else ""
    return (
        f"k-bit Q{label}: {label} trained and served on the k-bit base. PLRl: the same adapter served on the l-bit "
        f"base, without retraining. Bold: best of its k. `-`: not in the study.{seeds}{averages}"
    )


def _only(results: ResultSet, metric: str) -> MetricOf:
    return lambda line: metric if metric in results.metrics(line) and metric != results.primary(line) else None


def _used_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """List the columns worth printing: names that vary, and everything from the contrast on."""
    names = [i for i in range(4) if len({row[i] for row in rows}) > 1]
    return [*names, *range(4, len(CONTRAST_HEAD))]


def _failure(cell: CellResult) -> list[str]:
    places = (bits_word(cell.train_bits), str(cell.restore_bits), cell.mode, str(cell.seed))
    return [cell.task, cell.model, cell.adapter, *places, " ".join((cell.error or "").split())]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[Sequence[bool]] | None = None) -> str:
    """Write a Markdown table; nothing in its cells can end a cell or start markup. `bold` marks the bold cells of each row."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    marks = bold or [[False] * len(head)] * len(rows)
    body = [
        line(f"**{_text(text)}**" if mark else _text(text) for text, mark in zip(row, flags, strict=True))
        for row, flags in zip(rows, marks, strict=True)
    ]
    return "\n".join([line(_text(text) for text in head), line("---" for _ in head), *body])


def _text(text: str) -> str:
    """Escape a name or message from outside: nothing in it may end a table cell or start markup."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped)


def _detectable(metric: Metric, value: float) -> str:
    return "none" if value > 1 else f"{metric.scale * value:.{max(1, metric.decimals - 1)}f}"


def _console_cell(results: ResultSet, line: Line, k: int, ell: int, metric: Metric, mode: str | None = None) -> str:
    entry = results.entry(line, k, ell, metric.name, mode)
    if entry.mean is None:
        return show_entry(metric, entry)
    text = metric.show(entry.mean)
    if len(entry.values) < entry.runs:
        text += f" {len(entry.values)}/{entry.runs}"
    there = results.at(line, k, ell, mode)
    gain = value_difference(results.at(line, k, k), there, metric.name) if k != ell or mode is not None else None
    return text if gain is None else f"{text} ({metric.show_signed(gain)})"
