"""Entries of a study are told apart in every table, or refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.inputs import write_model

from plr.core.specs import ModelRef
from plr.errors import ConfigError
from plr.study import Study, study_config
from plr.study.names import model_names


def study(**settings: Any) -> Study:
    quick: dict[str, Any] = {"train_bits": [16], "restore_bits": [16], "runtime": {"dtype": "float32"}}
    return Study(study_config({"name": "s", "preset": "tiny", **quick, **settings}))


def adapters(*entries: Any) -> list[str]:
    return list(dict.fromkeys(cell.adapter for cell in study(adapters=list(entries)).cells))


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["lora"], ["lora"]),
        ([{"method": "lora", "config": {"r": r}} for r in (4, 8)], ["lora r=4", "lora r=8"]),
        (["lora", {"method": "lora", "config": {"r": 8}}], ["lora", "lora r=8"]),
        ([{"method": "lora", "train": {"epochs": n}} for n in (1, 2)], ["lora epochs=1", "lora epochs=2"]),
        (
            [
                {"method": "lora", "config": {"target_modules": modules}}
                for modules in (["q_proj"], ["q_proj", "v_proj"])
            ],
            ["lora target_modules=q_proj", "lora target_modules=q_proj+v_proj"],
        ),
        (["dora", {"method": "lora", "config": {"r": 2}}], ["dora", "lora"]),
        (["lora", {"method": "lora", "name": "small", "config": {"r": 2}}], ["lora", "small"]),
    ],
)
def test_adapters_of_one_method_are_named_by_what_they_set(entries: list[Any], names: list[str]) -> None:
    assert adapters(*entries) == names


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"method": "lora", "name": "a"}, {"method": "dora", "name": "a"}], "2 adapters are called a"),
        (["dora", {"method": "lora", "name": "dora"}], "2 adapters are called dora"),
        ([{"method": "lora", "name": "none"}], "as the base without one"),
    ],
)
def test_adapters_of_one_name_are_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapters(*entries)


def test_folders_of_one_name_are_told_apart_by_what_is_above_them(tmp_path: Path) -> None:
    folders = [tmp_path / place / "model" for place in ("a", "b", "b/c")]
    for seed, folder in enumerate(folders):
        write_model(folder, seed=seed)
    cells = study(models=["embedded:tiny", *map(str, folders)]).cells
    assert list(dict.fromkeys(cell.model for cell in cells)) == ["embedded:tiny", "a/model", "b/model", "c/model"]
    assert len({(cell.model, cell.step) for cell in cells}) == 4


def test_one_model_twice_is_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_model(tmp_path / place / "model")
    with pytest.raises(ConfigError, match="are the same model"):
        study(models=[str(tmp_path / place / "model") for place in ("a", "b")])
    commits = [ModelRef(kind="hub", name="org/m", revision=letter * 40) for letter in "ab"]
    with pytest.raises(ConfigError, match="2 models are called org/m"):
        model_names(commits)
