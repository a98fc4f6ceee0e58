"""The section of the page that draws the blocks of sparse adapters."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from sparse_files import write_sparse

from plr.adapters.sparse.reading import read_sparse
from plr.report import report_html
from plr.report.figures.blocks import SHOWN, blocks_section


def test_section_of_the_page(tmp_path: Path, small: Any) -> None:
    assert blocks_section([]) == ""
    one = read_sparse(write_sparse(tmp_path, layers=1), "<one>")
    section = blocks_section([one, *(replace(one, name=f"a{i}") for i in range(SHOWN + 1))])
    ET.fromstring(section)
    assert (section.count("<details"), section.count("<details open")) == (SHOWN, 1)
    assert "2 more are left out" in section
    assert "&lt;one&gt;" in section
    idents = re.findall(r'\bid="([^"]+)"', section)
    assert len(idents) == len(set(idents))
    assert set(re.findall(r"url\(#([^)]+)\)", section)) <= set(idents)
    common: dict[str, Any] = {"title": "t", "settings": {}, "provenance": {}, "timings": []}
    assert 'id="blocks"' in report_html(small, **common, sparse=[one])
    assert 'id="blocks"' not in report_html(small, **common)
