"""The table of architectures holds, and is what the document shows."""

from __future__ import annotations

import json

import pytest
from architecture_table import RESULTS, STEPS, table, walked
from architectures import DECODERS, ENCODER_DECODERS, ENCODERS

ALL = [*DECODERS, *ENCODERS, *ENCODER_DECODERS]


def test_the_recorded_table_is_whole_and_nothing_in_it_is_wrong() -> None:
    rows = json.loads((RESULTS / "rows.json").read_text(encoding="utf-8"))
    assert [row["model_type"] for row in rows] == ALL
    assert len(ALL) >= 40
    assert [row for row in rows if row["wrong"]] == []
    assert [row["model_type"] for row in rows if not row["refused"] and {*row["steps"]} != {*STEPS}] == []


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo", "mixtral", "deberta-v2", "t5"])
def test_a_sample_of_it_holds(model_type: str) -> None:
    (row,) = walked([model_type])
    recorded = {one["model_type"]: one for one in json.loads((RESULTS / "rows.json").read_text(encoding="utf-8"))}
    assert row.wrong == ""
    assert (row.steps, row.refused) == (recorded[model_type]["steps"], recorded[model_type]["refused"])


@pytest.mark.slow
def test_all_of_it_holds() -> None:
    assert table(walked(ALL)) == (RESULTS / "table.md").read_text(encoding="utf-8")
