"""The DataFrame of a study holds what its CSV holds, and its samples add up to its metrics."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from plr.lab import Lab
from plr.report.results import csv_text
from plr.study import Study, study_config
from plr.study.cells import CellResult, Measured
from plr.study.frame import COLUMNS, cells_frame, samples_frame


def result(**over: object) -> CellResult:
    values = {"model": "m", "task": "t", "adapter": "lora", "train_bits": 4, "restore_bits": 16, "mode": "restore"}
    metrics = {"acc": Measured(0.5, 0.1, 2), "answer_loss": Measured(1 / 3, None, 2)}
    given = {**values, "seed": 0, "fingerprint": "f", "primary": "acc", "metrics": metrics, **over}
    return CellResult(**given)  # type: ignore[arg-type]


def test_frame_reads_as_the_csv_does() -> None:
    cells = [result(), result(seed=1, metrics={"acc": Measured(float("nan"), None, 0)}), result(seed=2, error="gone")]
    frame = cells_frame(cells)
    assert tuple(frame.columns) == COLUMNS
    pd.testing.assert_frame_equal(frame, pd.read_csv(io.StringIO(csv_text(cells))))
    assert frame["value"].isna().sum() == 2


def test_frames_without_rows_have_their_columns() -> None:
    assert tuple(cells_frame([]).columns) == COLUMNS
    assert list(samples_frame([], {}).columns)[-5:] == ["doc_id", "prompt", "target", "response", "answer"]


def test_samples_of_a_scored_study_average_to_its_metrics(tmp_path: Path) -> None:
    lab = Lab(home=tmp_path)
    config = {"name": "s", "preset": "tiny", "adapters": [], "baselines": True, "restore_bits": [16]}
    study = lab.grid(study_config({**config, "evaluate": {"limit": 6}}))
    cells, samples = study.frame(lab.store), study.frame(lab.store, samples=True)
    assert len(samples) == 6
    assert samples["doc_id"].is_unique
    assert samples["response"].map(type).eq(str).all()
    for row in cells.itertuples():
        assert samples[row.metric].mean() == pytest.approx(row.value)
        assert set(samples["fingerprint"]) == {row.fingerprint}


def test_cells_that_are_not_there_are_rows_without_value(tmp_path: Path) -> None:
    lab = Lab(home=tmp_path)
    study = Study(study_config({"name": "s", "preset": "tiny", "train_bits": [16, 4]}), resolver=lab.resolver)
    frame = study.frame(lab.store)
    assert len(frame) == len(study.cells)
    assert frame["value"].isna().all()
    assert study.frame(lab.store, samples=True).empty
