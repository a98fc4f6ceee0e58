"""Studies of adapters and bases that are there already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from given import quantized_by, save_adapter

from plr import Lab
from plr.core.specs import UNKNOWN_BITS, GivenAdapter, GivenBase, Quantize, Restore, Train
from plr.embedded import tiny_path
from plr.errors import ConfigError, PlrError, ProvenanceError
from plr.report import write_study
from plr.study import Study, study_config
from plr.study.resolve import Resolver

QUICK = {"evaluate": {"limit": 6, "max_new_tokens": 4}, "quantize": {"samples": 8}}


def study(**values: object) -> Study:
    return Study(study_config({"name": "given", "preset": "tiny", **QUICK, **values}), resolver=Resolver(offline=True))


def places(found: Study) -> list[tuple[int, int, str]]:
    return [(cell.train_bits, cell.restore_bits, cell.mode) for cell in found.cells]


def test_cells_of_an_adapter_that_is_there(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    found = study(adapters=[{"path": str(adapter), "trained_on": "nf4"}], restore_bits=[16, 8, 4], seeds=[0, 1])
    assert places(found) == [(4, 16, "restore"), (4, 8, "restore"), (4, 4, "keep")]
    dense = study(adapters=[{"path": str(adapter), "trained_on": 16}], restore_bits=[16])
    assert places(dense) == [(16, 16, "keep")]
    targets = [cell.step.target for cell in found.cells]
    assert all(isinstance(target, Restore) and isinstance(target.adapter, GivenAdapter) for target in targets)
    own = targets[-1].base
    assert isinstance(own, Quantize)
    assert own.quantization.method == "nf4"
    assert found.cells[0].adapter == "theirs"


def test_one_whose_own_base_nobody_knows(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    found = study(adapters=[{"path": str(adapter)}], restore_bits=[16, 4])
    assert places(found) == [(UNKNOWN_BITS, 16, "restore"), (UNKNOWN_BITS, 4, "restore")]
    assert "? -> 16 bits" in found.cells[0].label


def test_beside_one_that_is_trained(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    found = study(
        adapters=["lora", {"path": str(adapter), "name": "mine"}], train_bits=[4], restore_bits=[16], baselines=True
    )
    kinds = [type(cell.step.target.adapter) for cell in found.cells if isinstance(cell.step.target, Restore)]
    assert kinds == [Train, Train, GivenAdapter]
    assert [cell.adapter for cell in found.cells] == ["none", "lora", "lora", "mine"]


def test_a_quantized_checkpoint_as_a_model_and_as_a_width(home: Path, tmp_path: Path) -> None:
    lab = Lab(home, dtype="float32", device="cpu", offline=True)
    made = lab.quantize(bits=4, task="tiny_math", samples=8)
    folder = tmp_path / "theirs"
    shutil.copytree(made.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
    for file in tiny_path().glob("tokenizer*"):
        shutil.copy2(file, folder)
    found = study(models=[str(folder)], source="embedded:tiny", train_bits=[4], restore_bits=[16, 8])
    assert places(found) == [(4, 16, "restore"), (4, 8, "restore"), (4, 4, "keep")]
    bases = [cell.step.base for cell in found.cells]
    assert isinstance(bases[2], GivenBase)
    assert isinstance(bases[1], Quantize)
    assert {cell.model for cell in found.cells} == {"theirs"}
    both = study(
        models=["embedded:tiny", str(folder)], source="embedded:tiny", adapters=[], baselines=True, restore_bits=[4]
    )
    assert [type(cell.step.base) for cell in both.cells] == [Quantize, GivenBase]
    width = study(train_bits=[16], restore_bits=[4], cells="all", quantize={"by_bits": {4: {"path": str(folder)}}})
    assert [type(cell.step.base) for cell in width.cells][-1] is GivenBase
    with pytest.raises(ConfigError, match="has 4 bits"):
        study(train_bits=[8], quantize={"by_bits": {8: {"path": str(folder)}}})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "x", "method": "lora"}, "method would train one"),
        ({"path": "x", "train": {"epochs": 1}, "train_bits": [4]}, "train, train_bits would train one"),
        ({"method": "lora", "trained_on": "nf4"}, "trained_on is for an adapter with a path"),
    ],
)
def test_an_adapter_is_there_or_is_trained(entry: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        study(adapters=[entry])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PlrError, match="is no adapter"):
        study(adapters=[{"path": str(tmp_path / "nothing")}])


def test_the_whole_way_to_the_page(home: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    lab = Lab(home, dtype="float32", device="cpu", offline=True)
    config = study_config(
        {
            "name": "given",
            "preset": "tiny",
            **QUICK,
            "adapters": [
                {"path": str(adapter), "name": "unknown"},
                {"path": str(adapter), "name": "known", "trained_on": "16"},
            ],
            "restore_bits": [16, 4],
            "cells": "all",
            "runtime": {"dtype": "float32"},
        }
    )
    work = lab.grid(config)
    files = write_study(work, lab.store, tmp_path / "run")
    table = files["table"].read_text()
    assert "PLR16" in table
    assert "0-bit" not in table
    frame = work.frame(lab.store)
    assert set(frame["train_bits"]) == {0, 16}
    assert "train_bits" in files["csv"].read_text()


def test_a_base_that_scales_the_inputs_of_its_layers_is_refused_before_any_work(tmp_path: Path) -> None:
    folder, _ = quantized_by(tmp_path / "theirs", "awq", rescaled=True)
    by_bits = {"by_bits": {4: {"path": str(folder)}}}
    for bits in ({"train_bits": [4], "restore_bits": [16]}, {"train_bits": [16], "restore_bits": [4]}):
        with pytest.raises(ProvenanceError, match="scales the inputs of its layers"):
            study(quantize={"samples": 8, **by_bits}, cells="all", **bits)
    own = study(quantize={"samples": 8, **by_bits}, train_bits=[4], restore_bits=[4])
    assert places(own) == [(4, 4, "keep")]
    plain, _ = quantized_by(tmp_path / "plain", "awq")
    found = study(quantize={"samples": 8, "by_bits": {4: {"path": str(plain)}}}, train_bits=[4], restore_bits=[16])
    assert places(found) == [(4, 16, "restore"), (4, 4, "keep")]
