"""A study's report: `results.csv` (tidy), `table.md` (Table 1), `report.html` (one self-contained page)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plr.report.blocks import SparseAdapter
from plr.report.cells import CellResult, Metric, ResultSet
from plr.report.html import report_html
from plr.report.results import contrasts, write_csv
from plr.report.table import console_table, table_md

__all__ = ["CellResult", "Metric", "console_table", "contrasts", "report_html", "table_md", "write_csv", "write_report"]


def write_report(
    cells: Iterable[CellResult],
    folder: Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    timings: Sequence[Mapping[str, Any]],
    bases: Sequence[Mapping[str, Any]] = (),
    sparse: Sequence[SparseAdapter] = (),
) -> dict[str, Path]:
    """Write the three files into ``folder``, each whole or not at all, and return them as csv, table and html.

    ``cells`` come in the order in which models, tasks and adapters are to appear; failed ones belong among them. ``bases`` and
    ``sparse``: see :func:`report_html`.
    """
    from plr.core.store import write_atomic

    results = ResultSet(cells)
    found = contrasts(results)
    paths = {"csv": folder / "results.csv", "table": folder / "table.md", "html": folder / "report.html"}
    table = table_md(results, found)
    given: dict[str, Any] = {"settings": settings, "provenance": provenance, "timings": timings}
    page = report_html(results, title=title, found=found, bases=bases, sparse=sparse, **given)
    write_csv(results.cells, paths["csv"])
    write_atomic(paths["table"], table)
    write_atomic(paths["html"], page)
    return paths
