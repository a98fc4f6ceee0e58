"""configs/adapters: every file parses, plans, and says truly how it is used."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from plr.adapters import adapters
from plr.cli.root import app
from plr.lab import Lab
from plr.study.presets import preset

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "adapters").glob("*.yaml"))
CLI: Any = typer.main.get_command(app)


def command(file: Path) -> list[str]:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# plr ")
    return shlex.split(first.removeprefix("# plr "))


def test_every_method_has_a_file() -> None:
    assert {file.stem for file in FILES} - {"sparse-roberta", "sparse-llama3-8b"} == set(adapters.names())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_at_the_head_is_one(file: Path) -> None:
    words = command(file)
    context = CLI.commands[words[0]].make_context(words[0], words[1:])
    assert ROOT / context.params["config"] == file
    assert (
        context.params["bits"] == 16
        or adapters.get(yaml.safe_load(file.read_text())["adapters"][0]["method"]).properties.quantized
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_plans(file: Path, home: Path) -> None:
    words = command(file)
    bits = int(words[words.index("--bits") + 1])
    step = Lab(home).adapter("embedded:tiny", bits, config=file, task="tiny_math")
    value = yaml.safe_load(file.read_text())
    (entry,) = value["adapters"]
    method = adapters.get(entry["method"])
    assert step.adapter.method == entry["method"]
    assert step.adapter.config == method.resolve(entry.get("config", {}))
    assert step.train.learning_rate == value["train"]["learning_rate"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_holds_only_what_differs_and_the_rate_of_the_table(file: Path) -> None:
    value = yaml.safe_load(file.read_text())
    assert value.keys() == {"adapters", "train"}
    (entry,) = value["adapters"]
    method = adapters.get(entry["method"])
    rate = preset("paper")["train"]["learning_rate"] * method.properties.learning_rate
    assert 0.4 < value["train"]["learning_rate"] / rate < 2.5
    shown = {"restarts", "adapter_len", "adapter_layers", "m", "alpha"}  # at their defaults: what one would turn first
    for key, setting in entry.get("config", {}).items():
        assert key in shown or method.resolve({})[key] != setting


def test_the_paper_s_sizes() -> None:
    """Parameters a weight: nm + k (out / n)(in / m); RoBERTa's 24 weights have 0.3 M, Llama-3-8B's 160 have 56.4 M."""

    def size(file: str, *shapes: tuple[int, int]) -> int:
        config = yaml.safe_load((ROOT / "configs" / "adapters" / file).read_text())["adapters"][0]["config"]
        n, m, k = (config[key] for key in ("n", "m", "k"))
        assert all(rows % n == 0 == columns % m for rows, columns in shapes)
        return sum(n * m + k * (rows // n) * (columns // m) for rows, columns in shapes)

    assert size("sparse-roberta.yaml", *[(768, 768)] * 24) == 294_912
    block = [(4096, 4096), (1024, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]
    assert size("sparse-llama3-8b.yaml", *block * 32) == 56_360_960
