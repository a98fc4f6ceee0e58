"""`plr blocks` and `plr compare` from the command line: what they print, write and refuse."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from sparse_files import write_adapter, write_sparse

from plr.adapters.sparse.reading import read_sparse
from plr.core.specs import AdapterSpec, ModelRef, Source, TaskSpec, Train, TrainSpec
from plr.core.store import Store

SOURCE = Source(model=ModelRef(kind="local", name="m", revision="0"))
TRAIN = Train(base=SOURCE, task=TaskSpec(name="t", version=1), adapter=AdapterSpec(method="sparse"), train=TrainSpec())


@pytest.fixture
def plr(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *words: run(monkeypatch, capsys, *words)


def test_the_latest_adapter_of_the_store(plr: Any, home: Path) -> None:
    Store(home).make(TRAIN, lambda folder: {"path": str(write_sparse(folder, layers=3))})
    code, out, _ = plr("blocks")
    assert code == 0
    assert TRAIN.label in out
    assert "6 modules of 4 x 6 blocks" in out
    rows = [line.split() for line in out.splitlines() if " x " in line and line.strip()[0].isdigit()]
    assert [row[:2] for row in rows[1:]] == [[str(layer), kind] for layer in range(3) for kind in ("q_proj", "v_proj")]
    assert "near the output" in out


def test_an_adapter_without_blocks_that_came_later_is_passed_over(plr: Any, home: Path) -> None:
    Store(home).make(TRAIN, lambda folder: {"path": str(write_sparse(folder, layers=3))})
    lora = TRAIN.model_copy(update={"adapter": AdapterSpec(method="lora")})

    def other(folder: Path) -> dict[str, Any]:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        return {}

    Store(home).make(lora, other)
    code, out, _ = plr("blocks")
    assert code == 0
    assert TRAIN.label in out


def test_json_says_all_of_it(plr: Any, tmp_path: Path) -> None:
    a, b = (str(write_sparse(tmp_path / name, seed=seed)) for seed, name in enumerate("ab"))
    code, out, _ = plr(
        "blocks",
        a,
        b,
        "-o",
        str(tmp_path / "x.svg"),
        "--compose",
        str(tmp_path / "sum"),
        "--weights",
        "1,0.5",
        "--json",
    )
    assert code == 0
    found = json.loads(out)
    assert [one["adapter"] for one in found["adapters"]] == ["a", "b"]
    assert {row["k"] for one in found["adapters"] for row in one["modules"]} == {5}
    assert (found["overlap"][0]["first"], found["overlap"][0]["second"]) == ("a", "b")
    assert [Path(file).name for file in found["files"] if file.endswith(".svg")] == ["x-1.svg", "x-2.svg"]
    assert sorted(Path(file).name for file in found["files"]) == sorted(file.name for file in tmp_path.glob("x-*"))
    for file in tmp_path.glob("x-*.svg"):
        ET.parse(file)
    assert found["composed"]["weights"] == [1.0, 0.5]
    assert len(read_sparse(tmp_path / "sum").modules) == 4


def test_overlap_in_words(plr: Any, tmp_path: Path) -> None:
    folder = str(write_sparse(tmp_path / "a"))
    code, out, _ = plr("blocks", folder, folder)
    assert code == 0
    assert "20 blocks in both, Jaccard 1.000 (by chance 0.116)" in out
    assert "interference +1.000" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{a}", "-o", "{tmp}/x.png"), "expected: a .svg file"),
        (("{a}", "-o", "{tmp}/no/x.svg"), "expected: a .svg file in a folder that is there"),
        (("{a}", "--weights", "1"), "--weights without --compose"),
        (("{a}", "{a}", "--compose", "{tmp}/sum", "--weights", "1,x"), "expected: numbers with commas"),
        (("{a}", "--compose", "{tmp}/sum"), "a sum of 1 adapters"),
        (("{lora}",), "of the method lora: it has no blocks"),
        (("nothing",), "no artifact matches 'nothing'"),
    ],
)
def test_what_is_refused(plr: Any, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    import numpy as np

    a = write_sparse(tmp_path / "a")
    lora = write_adapter(tmp_path / "lora", {"x": np.zeros(1)}, {"peft_type": "LORA"})
    code, _, err = plr("blocks", *(word.format(a=a, lora=lora, tmp=tmp_path) for word in words))
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("*.svg"))


def test_compare_of_a_study_that_was_not_run(plr: Any) -> None:
    code, _, err = plr("compare", "configs/studies/quickstart.yaml")
    assert code == 2
    assert "plr grid configs/studies/quickstart.yaml" in err
