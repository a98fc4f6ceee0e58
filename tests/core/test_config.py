"""YAML: what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.core.config import apply_overrides, load_yaml, parse
from plr.errors import ConfigError, UnknownNameError
from plr.study import StudyConfig, load_study, study_config
from plr.tasks import read_task

CONFIGS = Path(__file__).parents[2] / "configs"


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match=r"there is no file[\s\S]*did you mean quickstart.yaml"):
        load_yaml(tmp_path / "quikstart.yaml")


def test_broken_yaml_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb: [1,\n")
    with pytest.raises(ConfigError, match="line 3, column 1"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "train:\n  epochs: 1\n  epochs: 2\n", "x: [{a: 1, a: 1}]\n"])
def test_a_key_that_stands_twice_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"the key (a|epochs) stands twice"):
        load_yaml(tmp_path / "a.yaml")


def test_a_list_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds a list"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train_bit": [4]}, "unknown key train_bit, did you mean train_bits?"),
        ({"train": {"epoch": 3}}, "unknown key train.epoch, did you mean epochs?"),
        ({"tasks": [{"nam": "x", "name": "y"}]}, r"unknown key tasks.0.nam, did you mean name\?"),
        ({"train_bits": [5]}, r"bits 5 is none of 16, 8, 4, 3, 2"),
        ({"tasks": [{"name": "a", "train_bits": [7]}]}, r"tasks.0.train_bits: bits 7 is none of"),
        ({"train_bits": []}, "the list is empty"),
        ({"seeds": [1, 1]}, "names something twice"),
        ({"train": {"learning_rate": "fast"}}, r"train.learning_rate: .*\(given: 'fast'\)"),
        ({"name": "a/b"}, "name: "),
        ({"cells": "lower"}, "'upper' or 'all'"),
    ],
)
def test_a_wrong_study_says_where_and_what(value: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(StudyConfig, {"name": "s", **value}, "file")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(StudyConfig, {"name": "s", "sed": [1], "train_bits": [7]}, "file")
    assert "did you mean seeds" in str(caught.value)
    assert "bits 7" in str(caught.value)


def test_overrides_reach_into_lists_and_new_keys() -> None:
    value = {"tasks": [{"name": "a"}], "train": {"epochs": 1}}
    changed = apply_overrides(value, ["tasks.0.data=x/y", "train.epochs=2.5", "seeds=[0, 1]"])
    assert changed == {"tasks": [{"name": "a", "data": "x/y"}], "train": {"epochs": 2.5}, "seeds": [0, 1]}
    assert value == {"tasks": [{"name": "a"}], "train": {"epochs": 1}}


@pytest.mark.parametrize("text", ["train.epochs", "=3", "tasks.5.data=x", "name.a=1", "a=[1"])
def test_bad_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"name": "a", "tasks": [{"name": "b"}]}, [text])


def test_preset_lies_below_the_file_and_overrides_above() -> None:
    config = study_config(
        {"name": "s", "preset": "paper", "train": {"epochs": 3}, "quantize": {"group_size": 64}},
        "s",
        ("train.epochs=4",),
    )
    assert config.train.epochs == 4
    assert config.train.learning_rate == 2e-4
    assert config.quantize.group_size == 64
    assert config.quantize.samples == 500


def test_unknown_preset() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown preset 'papr'[\s\S]*did you mean paper"):
        study_config({"name": "s", "preset": "papr"})


def test_the_paper_study_has_the_settings_of_the_report() -> None:
    config = load_study(CONFIGS / "studies" / "paper.yaml")
    assert config.models == ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B")
    assert [task.name for task in config.tasks] == ["gsm8k", "sql_create_context"]
    assert (config.train.learning_rate, config.train.batch_size, config.train.epochs) == (2e-4, 32, 10)
    assert config.train.select == "best_validation_loss"
    assert config.quantize.samples == 500
    assert config.adapters[0].config["r"] == config.adapters[0].config["lora_alpha"] == 16
    assert set(config.train_bits) == set(config.restore_bits) == {16, 8, 4, 3, 2}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_parses_and_opens_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "plr " in first
    assert str(path.relative_to(CONFIGS.parent)) in first
    read = read_task if path.parent.name == "tasks" else load_study
    assert read(path).name == path.stem


@pytest.mark.parametrize(
    "text",
    [
        "a: &a0 x\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
        "a: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{<<: [*a{i}, *a{i}], k{i}: *a{i}}}\n" for i in range(40)),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "a: " + "9" * 5000 + "\n",
        "a: !!int abc\n",
        "a: !!timestamp abc\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "a: b\n" * 1_000_000,
    ],
    ids=["lists", "merges", "itself", "itself in a mapping", "deep", "digits", "int", "timestamp", "code", "long"],
)
def test_yaml_is_bounded(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_yaml(file)


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 10_000 + "]" * 10_000, "9" * 5000, "!!int abc"])
def test_a_set_value_is_bounded(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"train": {"epochs": 1}}, [f"train.epochs={text}"])
