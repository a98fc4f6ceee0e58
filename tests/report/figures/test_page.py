"""A figure of the page is one file: the example of the documents, put where it belongs, is a section of the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plr.report import report_html
from plr.report.figures import page

DOCUMENT = Path(__file__).parents[3] / "docs" / "extending.md"


def example() -> str:
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "PageFigure" in block
    ]
    return code


def test_a_new_figure_is_one_file(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newcomer.py").write_text(example())
    assert len(example().splitlines()) < 50
    before = report_html(small, title="t", settings={}, provenance={}, timings=[])
    monkeypatch.setattr(page, "__path__", [*page.__path__, str(tmp_path)])
    after = report_html(small, title="t", settings={}, provenance={}, timings=[])
    assert "Scores by training bits" not in before
    assert (
        after.count('<svg class="chart" viewBox="0 0 420 250"')
        == before.count('<svg class="chart" viewBox="0 0 420 250"') + 1
    )
    assert "k = 2: 0.125, k = 4: 0.625, k = 16: 0.750" in after


def test_without_figures_there_is_no_section(cell: Any) -> None:
    assert page.sections(page.ResultSet([cell(4, 4, error="gone")])) == []
