"""Rows of the list of artifacts: their fields, filters and order, on a store with all kinds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from plr import Lab
from plr.core.specs import Calibration, Evaluate, ModelRef, Quantization, Quantize, Source, TaskSpec
from plr.errors import UsageError
from plr.study.listing import Listed, arranged, listed, select

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
SOURCE = Source(model=ModelRef(kind="hub", name="org/small-1B", revision="0" * 40))


@pytest.fixture
def lab(home: Path) -> Lab:
    shutil.copytree(GOLDEN, home)
    return Lab(home, offline=True)


def scored(lab: Lab, metric: str, value: float, n: int = 4, seed: int = 0, **fields: Any) -> Listed:
    """Commit a result with this primary metric."""
    step = Evaluate(target=SOURCE, task=TaskSpec(name=metric, version=1, split_seed=seed))

    def build(folder: Path) -> dict[str, Any]:
        (folder / "x").write_text("1" * round(value))
        return {"primary": metric, "metrics": {metric: {"value": value, "stderr": None, "n": n, **fields}}}

    return listed(lab.store.make(step, build)[0])


def test_every_kind_has_its_fields(lab: Lab) -> None:
    rows = lab.ls()
    found = [(r.artifact.kind, r.model, r.k, r.l, r.mode, r.method, r.task, r.seed) for r in rows]
    assert found == [
        ("base", "embedded:tiny", 2, None, None, "gptq", "tiny_math", None),
        ("adapter", "embedded:tiny", 2, None, None, "lora", "tiny_math", 0),
        ("restored", "embedded:tiny", 2, 16, "restore", "lora", "tiny_math", 0),
        ("result", "embedded:tiny", 2, 16, "restore", "lora", "tiny_math", 0),
    ]
    assert [row.score is None for row in rows] == [True, True, True, False]
    record = rows[-1].record
    assert record["metrics"] == rows[-1].artifact.metrics["metrics"]
    assert record["score"]["value"] == record["metrics"][record["score"]["metric"]]["value"]
    assert record["score"]["n"] == 4
    assert Path(record["path"]).is_dir()
    assert record["fingerprint"].startswith(record["hash"])
    assert (
        record["bytes"]
        == sum(file.stat().st_size for file in Path(record["path"]).rglob("*") if file.is_file())
        - (Path(record["path"]) / "manifest.json").stat().st_size
    )


def test_a_base_alone_and_a_base_without_a_task(lab: Lab) -> None:
    row = scored(lab, "f1", 0.5)
    assert (row.k, row.l, row.mode, row.method, row.task) == (16, 16, None, "none", "f1")
    step = Quantize(source=SOURCE, quantization=Quantization(bits=4, calibration=Calibration(file_sha256="0" * 64)))
    assert listed(lab.store.make(step, lambda folder: {})[0]).task is None


@pytest.mark.parametrize(
    ("filters", "kinds"),
    [
        ({"model": "embedded:tiny"}, "base adapter restored result"),
        ({"model": "em*"}, "base adapter restored result"),
        ({"model": "tiny"}, ""),
        ({"k": 2}, "base adapter restored result"),
        ({"k": "[24]", "l": "16"}, "restored result"),
        ({"l": [8, 16]}, "restored result"),
        ({"l": "*"}, "restored result"),
        ({"mode": "re*"}, "restored result"),
        ({"method": ["gptq", "dora"]}, "base"),
        ({"task": "tiny_*", "method": "lora"}, "adapter restored result"),
        ({"task": "tiny"}, ""),
        ({"task": None, "k": []}, "base adapter restored result"),
    ],
)
def test_filters_are_exact_or_patterns(lab: Lab, filters: dict[str, Any], kinds: str) -> None:
    assert [row.artifact.kind for row in lab.ls(**filters)] == kinds.split()


def test_a_model_of_the_hub_is_found_by_the_end_of_its_name(lab: Lab) -> None:
    scored(lab, "f1", 0.5)
    assert [row.model for row in lab.ls(model="small-*")] == ["org/small-1B"]
    assert [row.model for row in lab.ls(model="org/*")] == ["org/small-1B"]


def test_scores_are_sorted_by_what_is_better_each_metric_by_itself(lab: Lab) -> None:
    rows = [
        scored(lab, "perplexity", 9.0, seed=1),
        scored(lab, "perplexity", 2.0, seed=2),
        scored(lab, "f1", 0.25, seed=3),
        scored(lab, "f1", 0.75, seed=4),
        scored(lab, "latency", 3.0, seed=5, unit="s", higher_is_better=False, proportion=False, of_numbers=False, digits=1),
    ]  # fmt: skip
    order = [(row.score.metric.name, row.score.value) for row in arranged(rows, "score") if row.score]
    assert order == [("f1", 0.25), ("f1", 0.75), ("latency", 3.0), ("perplexity", 9.0), ("perplexity", 2.0)]
    everything = arranged([*lab.ls()], "score")
    assert [row.score is None for row in everything] == sorted((row.score is None for row in everything), reverse=True)


def test_the_end_is_kept_and_turned_around(lab: Lab) -> None:
    rows = lab.ls()
    assert arranged(rows, limit=2) == rows[-2:]
    assert arranged(rows, limit=2, reverse=True) == rows[-2:][::-1]
    assert arranged(rows, limit=99) == rows
    assert [row.bytes for row in lab.ls(sort="size", limit=1)] == [max(row.bytes for row in rows)]
    assert [row.name for row in lab.ls(sort="name")] == sorted(row.name for row in rows)


def test_what_there_is_not_is_refused(lab: Lab) -> None:
    with pytest.raises(UsageError, match="--sort is 'age'"):
        lab.ls(sort="age")
    with pytest.raises(UsageError, match="--limit is 0"):
        lab.ls(limit=0)
    with pytest.raises(UsageError, match="artifacts have no 'bits'"):
        select([], bits=4)
