"""`report.html`: one file that answers the study's question, without a request to anywhere.

The page is a Jinja template (`template.html.j2`, autoescaped); this module gathers its values. Heatmaps are real
tables. Their cells carry their place on the scale (0 to 1) for the style sheet to colour, so that they read aloud,
print, copy, and follow the reader's light or dark mode.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from plr.adapters.sparse.reading import SparseAdapter
from plr.report.advice import ADVICE_HEAD, Advice, advice_notes, advice_rows, advice_words
from plr.report.bases import GATE_HEAD, BaseGate, answers_text, gate_rows, severity
from plr.report.cells import Line, ResultSet
from plr.report.figures.blocks import blocks_section
from plr.report.figures.curves import Restored, curves_section
from plr.report.figures.page import sections
from plr.report.figures.svg import svg_style
from plr.report.metrics import LOSS, show_entry
from plr.report.results import Contrast, contrasts, csv_text, value_difference
from plr.report.sheets import Block, MetricOf, Sheet, adapter_label, blocks, interval_sheet, metric_sheet, seed_sheet
from plr.report.table import CONTRAST_HEAD, contrast_legend, contrast_rows, metric_title, other_metrics, primary_metrics
from plr.report.verdicts import deployment
from plr.report.words import MACHINE, detectable_words, headline, line_words, sample_words, stop_words
from plr.study.cells import NO_ADAPTER, CellResult

__all__ = ["flatten", "report_html"]


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heatmap; without a value `share` is None, and `text` says why (failed, or nothing)."""

    text: str
    note: str = ""
    gain: str = ""
    share: float | None = None
    diagonal: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Heat:
    """One k x l matrix."""

    caption: str
    columns: Sequence[int]
    rows: Sequence[tuple[int, Sequence[HeatCell]]]
    lower: bool


def report_html(
    cells: Iterable[CellResult],
    *,
    title: str,
    settings: Mapping[str, object],
    provenance: Mapping[str, object],
    timings: Sequence[Mapping[str, object]],
    bases: Sequence[BaseGate] = (),
    sparse: Sequence[SparseAdapter] = (),
    restored: Sequence[Restored] = (),
    found: Sequence[Contrast] | None = None,
    advice: Advice | None = None,
) -> str:
    """Write the whole page as text.

    Args:
        cells: in the order in which models, tasks and adapters are to appear.
        settings, provenance: printed as they are, nested keys joined by dots.
        timings: one mapping a row, the union of their keys as columns.
        bases: for each quantized base its `name` and the `gate` of its manifest; none, and the section is left out.
        sparse: the study's sparse adapters, whose block scores are drawn; none, and the section is left out.
        restored: the study's corrected restorations, whose curves are drawn; none, and the section is left out.
        found: `contrasts` of the same cells, if already computed.
        advice: where the cells are the candidates of one: its sentence and table stand first, and its place is marked.
    """
    from jinja2 import Environment, StrictUndefined

    results = cells if isinstance(cells, ResultSet) else ResultSet(cells)
    found = contrasts(results) if found is None else found
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["prose"] = _prose
    template = page.from_string(files("plr.report").joinpath("template.html.j2").read_text(encoding="utf-8"))
    rows = contrast_rows(found)
    keep = [i for i in range(len(CONTRAST_HEAD)) if i >= 4 or len({row[i] for row in rows}) > 1]
    done = len(results.cells) - len(results.failed)
    return template.render(
        title=title,
        headline=headline(results, found) if advice is None else advice_words(advice),
        lines=line_words(results, found) if advice is None else [],
        advice_head=ADVICE_HEAD,
        advice_rows=[] if advice is None else advice_rows(advice),
        advice_notes=[] if advice is None else advice_notes(advice),
        facts=_facts(results, done),
        heats=[
            (_full_name(line), _heats(results, line, advice)) for line in results.lines() if line.adapter != NO_ADAPTER
        ],
        figures=sections(results),
        chart_style=svg_style("svg.chart"),
        stop=stop_words(results),
        contrast_legend=contrast_legend(found),
        contrast_head=[CONTRAST_HEAD[i] for i in keep],
        contrasts=[([row[i] for i in keep], c.significant) for row, c in zip(rows, found, strict=True)],
        tables=_tables(results),
        base_head=(*GATE_HEAD[1:], "answer loss, nats"),
        bases=[line for base in bases for line in _base_lines(base)],
        curves=curves_section(restored),
        blocks=blocks_section(sparse),
        machine=MACHINE,
        limits=[*sample_words(results), *detectable_words(results)],
        failed=results.failed,
        settings=flatten(settings),
        provenance=flatten(provenance),
        timing_head=(head := list(dict.fromkeys(key for row in timings for key in row))),
        timings=[[_plain(row.get(key)) for key in head] for row in timings],
        csv=base64.b64encode(csv_text(results.cells).encode()).decode(),
    )


def flatten(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested mappings into dotted keys with plain text.

    >>> flatten({"train": {"lr": 0.0002}, "bits": [4, 3], "resume": None})
    [('train.lr', '0.0002'), ('bits', '4, 3'), ('resume', '-')]
    """
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            pairs += flatten(item, f"{name}.")
        else:
            pairs.append((name, _plain(item)))
    return pairs


def _prose(text: str) -> str:
    """Set a true minus before a number that is a value, and allow no line break inside `k = 4` or `95 %`."""
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)
    return re.sub(r"(?<=\d) (?=%)|(?<=\b[kln]) (?== )|(?<=\b[kln] =) (?=\d)", "\u00a0", text)


def _plain(item: object) -> str:
    if item is None or item == [] or item == {}:
        return "-"
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, (list, tuple)):
        return ", ".join(_plain(one) for one in item)
    if isinstance(item, Mapping):
        return json.dumps(item, default=str, ensure_ascii=False)
    return str(item)


def _base_lines(base: BaseGate) -> list[tuple[str, str, str, str, list[str]]]:
    """List (name, severity, verdict, text, numbers) of each text of a base's gate; only the first has name and verdict."""
    gate = base["gate"]
    verdict = str(gate.get("verdict", "not measured"))
    rows = gate_rows(gate) or [("",)]
    answers = (answers_text(gate) or "-").partition(" nats")[0]
    lines = []
    for index, (text, *numbers) in enumerate(rows):
        whole = len(numbers) == len(GATE_HEAD) - 1
        cells = (
            [*numbers, "" if index else answers] if whole else ["-"] * (len(GATE_HEAD) - 1) + ["" if index else answers]
        )
        label = text if whole or not numbers else f"{text}: {numbers[0]}"
        lines.append(("" if index else base["name"], severity(verdict), "" if index else verdict, label, cells))
    return lines


def _facts(results: ResultSet, done: int) -> list[tuple[str, str]]:
    counts = {cell.count(cell.primary) for cell in results.cells if cell.value(cell.primary) is not None} - {0}
    n = "-" if not counts else str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    facts = [
        ("cells scored", f"{done} of {len(results.cells)}"),
        ("documents a cell", n),
        ("seeds", str(len(results.seeds))),
    ]
    seconds = sum(cell.seconds or 0.0 for cell in results.cells)
    return [*facts, ("scoring time", _duration(seconds))] if seconds else facts


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _full_name(line: Line) -> str:
    return ", ".join(dict.fromkeys([line.task, line.model, adapter_label(line.adapter)]))


def _heats(results: ResultSet, line: Line, advice: Advice | None) -> list[Heat]:
    primary = results.primary(line)
    place = deployment(results, line).place if advice is None else advice.place
    shown = [primary, *([LOSS] if LOSS in results.metrics(line) and primary != LOSS else [])]
    return [_heat(results, line, name, chosen=place if name == primary else None) for name in shown]


def _heat(results: ResultSet, line: Line, name: str, chosen: tuple[int, int] | None) -> Heat:
    places = results.bits(adapter=line.adapter)
    columns = sorted({ell for _, ell in places}, reverse=True)
    means = {place: mean for place in places if (mean := results.entry(line, *place, name).mean) is not None}
    low, high = min(means.values(), default=0.0), max(means.values(), default=0.0)
    metric = results.metric(line, name)

    def cell(k: int, ell: int) -> HeatCell:
        entry = results.entry(line, k, ell, name)
        mean = entry.mean
        if mean is None:
            return HeatCell("failed" if entry.failed else "")
        share = 0.5 if high == low else (mean - low) / (high - low)
        gain = value_difference(results.at(line, k, k), results.at(line, k, ell), name) if k != ell else None
        return HeatCell(
            text=metric.show(mean),
            note=show_entry(metric, entry).removeprefix(metric.show(mean)).strip(),
            gain=metric.show_signed(gain, ""),
            share=round(share if metric.higher_is_better else 1 - share, 3),
            diagonal=k == ell,
            chosen=(k, ell) == chosen,
        )

    rows = [(k, [cell(k, ell) for ell in columns]) for k in dict.fromkeys(k for k, _ in places)]
    return Heat(metric_title(results, name), columns, rows, not metric.higher_is_better)


def _tables(results: ResultSet) -> list[tuple[str, list[Sheet]]]:
    """List every metric's tables with their titles, the primary ones first."""

    def sheets_of(make: Callable[[ResultSet, Block, MetricOf], Sheet | None], metric_of: MetricOf) -> list[Sheet]:
        return [sheet for block in blocks(results) if (sheet := make(results, block, metric_of)) is not None]

    primaries = list(dict.fromkeys(metric.name for metric in primary_metrics(results)))
    names = ", ".join(metric_title(results, name) for name in primaries)
    tables = [(f"{names} (primary)", sheets_of(metric_sheet, results.primary))]
    tables.append((f"95 % intervals of {', '.join(primaries)}", sheets_of(interval_sheet, results.primary)))
    for name in other_metrics(results):

        def only(line: Line, name: str = name) -> str | None:
            return name if name in results.metrics(line) and name != results.primary(line) else None

        tables.append((metric_title(results, name), sheets_of(metric_sheet, only)))
    tables.append(
        (
            "Share of the variance of one run's score that is its seed, in percent",
            sheets_of(seed_sheet, results.primary),
        )
    )
    return [(title, sheets) for title, sheets in tables if sheets]
