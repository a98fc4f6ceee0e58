"""Every study that ships plans: its cells and steps come out without data, models or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plr.core.config import load_yaml
from plr.core.specs import Evaluate, Quantize, Restore, Train
from plr.core.store import Store
from plr.study import Study, study_config
from plr.study.resolve import Resolver

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))
PLANNED = {  # cells, and steps of each kind, counted by hand from the axes of the file
    "adapters": (2 * 27 + 2, {"base": 1, "adapter": 29, "result": 56}),
    "every-head": (8, {"base": 0, "adapter": 8, "result": 8}),
    "every-task": (14, {"base": 0, "adapter": 0, "result": 14}),
    "glue-minilm": (5 * 3 * 2, {"base": 0, "adapter": 30, "result": 30}),
    "math-smollm2": (12, {"base": 1, "adapter": 2, "result": 12}),
    "paper": (3 * 2 * 15, {"base": 3 * 2 * 4, "adapter": 3 * 2 * 5, "result": 90}),
    "quickstart": (38, {"base": 8, "adapter": 10, "restored": 8, "result": 38}),
    "restoration": (
        (27 + 5 * 26) * 3 * 2,
        {"base": (3 + 6) * 2, "adapter": (4 + 5 * 3) * 3 * 2, "restored": (6 * 18 + 2 * 3) * 3 * 2, "result": 942},
    ),
    "restoration-heads": (
        (22 + 3 * 16) * 3,
        {"base": 3, "adapter": (4 + 3 * 2) * 3, "restored": (3 + 5 + 5 + 3 * 10 + 2) * 3, "result": 210},
    ),
    "restoration-smollm2": ((5 + 8) * 3, {"base": 2, "adapter": 2 * 3, "restored": (3 + 5) * 3, "result": 39}),
    "smollm2": (15 + 6, {"base": 4 + 2, "adapter": 5 + 3, "result": 21}),
    "smollm2-best": (3 + 4, {"base": 3, "adapter": 2, "result": 7}),
}


def without_local_files(entry: Any) -> Any:
    """As the heads of the files advise: without the `data` keys, and so without tasks that have no home on the hub."""
    entry = {key: value for key, value in entry.items() if key != "data"} if isinstance(entry, dict) else entry
    if isinstance(entry, dict) and "tests" in entry:
        entry["tests"] = [without_local_files(test) for test in entry["tests"]]
    return entry


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_plans(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLR_MODELS", "ORG")
    monkeypatch.setenv("PLR_DATA", "DATA")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    value = load_yaml(path)
    value["tasks"] = [
        without_local_files(task)
        for task in value["tasks"]
        if isinstance(task, str) or not (task["name"].startswith("$") or task["name"] == "text_classification")
    ]
    study = Study(study_config({"name": path.stem, **value}, str(path)), resolver=Resolver(strict=False, offline=True))
    plan = study.plan(Store(tmp_path / "store"))
    kinds = [step.kind for step in plan.steps]
    counted = {kind: kinds.count(kind) for kind in dict.fromkeys(("base", "adapter", *kinds, "result"))}
    assert (len(study.cells), counted) == PLANNED[path.stem]
    assert {type(step) for step in plan.steps} <= {Quantize, Train, Evaluate, Restore}
