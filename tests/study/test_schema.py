"""JSON schemas of the files: every key explained, what ships is valid, what a command refuses is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from plr.core.config import load_yaml
from plr.study.schema import MODELS, SCHEMAS, file_schema, meanings

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def check(which: Any, value: Any) -> None:
    jsonschema.Draft202012Validator(file_schema(which)).validate(value)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_meaning(model: Any) -> None:
    assert [key for key in model.model_fields if not meanings(model).get(key)] == []
    assert model.__doc__


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_files_name_their_schema_and_are_valid(path: Path) -> None:
    which = "task" if path.parent.name == "tasks" else "study"
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    [line] = [line for line in head if line.startswith("# yaml-language-server: ")]
    named = path.parent / line.removeprefix("# yaml-language-server: $schema=")
    assert named.resolve() == ROOT / "configs" / "schema" / f"{which}.json"
    check(which, load_yaml(path))


@pytest.mark.parametrize("which", SCHEMAS)
def test_schemas_are_schemas(which: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(file_schema(which))


@pytest.mark.parametrize(
    "text",
    [
        "modells: [a]",
        "cells: lower",
        "train_bits: [5]",
        "tasks: [{name: gsm8k, train_bits: [16, 7]}]",
        "tasks: [{data: x}]",
        "adapters: [{method: lora, rank: 4}]",
        "adapters: [{train: {epoch: 2}}]",
        "train: {epochs: 0}",
        "quantize: {samples: 0}",
        "quantize: {by_bits: {4: {metod: nf4}}}",
        "quantize: {by_bits: {16: {method: nf4}}}",
        "evaluate: {limit: many}",
        "runtime: {worker: 2}",
        "runtime: {workers: 0}",
    ],
)
def test_what_a_study_may_not_say_is_refused(text: str) -> None:
    value = json.loads(json.dumps(yaml.safe_load(text)))
    with pytest.raises(jsonschema.ValidationError):
        check("study", value)


@pytest.mark.parametrize("text", ["hub: {revision: x}", "kind: multiple", "promt: x", "splits: {dev: x}", "stop: 3"])
def test_what_a_task_file_may_not_say_is_refused(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check("task", yaml.safe_load(text))


def test_short_forms_are_allowed() -> None:
    check("study", {"tasks": ["gsm8k", {"name": "math10k", "tests": ["svamp"]}], "adapters": ["lora"]})
    check("study", {"quantize": {"by_bits": {"4": {"method": "nf4", "group_size": 64}}}, "runtime": {"workers": 2}})
    check("task", {"prompt": "{q}", "target": "{a}", "metric": "exact_match", "hub": "org/name", "stop": "x"})
    check("task", {"labels": [0, "one"], "choices": ["{a}", 2]})


def test_the_command_prints_it_without_torch() -> None:
    code = "import sys; from plr.cli.root import app; app(['config-schema', 'task'], standalone_mode=False);"
    code += "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == file_schema("task")
