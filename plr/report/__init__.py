"""A study's report: `results.csv` (tidy), `table.md` (Table 1), `report.html` (one self-contained page)."""

from __future__ import annotations

from plr.report.html import report_html
from plr.report.results import contrasts, write_csv
from plr.report.table import console_table, table_md
from plr.report.write import write_report, write_study
from plr.study.cells import CellResult, Measured

Metric = Measured
"""The name of `Measured` in releases before `plr.scoring.Metric`."""

__all__ = [
    "CellResult",
    "Measured",
    "Metric",
    "console_table",
    "contrasts",
    "report_html",
    "table_md",
    "write_csv",
    "write_report",
    "write_study",
]
