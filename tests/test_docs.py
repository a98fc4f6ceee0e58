"""The README and docs/architecture.md are a contract: what they show parses, exists and is complete."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from test_layers import FLOORS

from plr.cli.root import app
from plr.registry import Registry
from plr.study import study_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "docs/architecture.md": ARCHITECTURE}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLI: Any = typer.main.get_command(app)
TOP = ("plr/", "docs/", "configs/", "notes/", "notebooks/", "tests/", "calibration/")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words behind ``plr`` of every command in a bash block of the README."""
    found = []
    for line in "\n".join(blocks(README, "bash")).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words[:2] == ["accelerate", "launch"]:
                words = words[words.index("-m") + 1 :]
            if words[:1] == ["plr"]:
                found.append(words[1:])
    return found


def python_blocks() -> list[Any]:
    return [
        pytest.param(code, id=f"{name}-{i}")
        for name, page in PAGES.items()
        for i, code in enumerate(blocks(page, "python"))
    ]


def public_names(module: str) -> set[str]:
    """``__all__`` of a module of plr, read from its source: importing some of them takes torch."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{source} has no __all__")


def markdown_files() -> list[Path]:
    kept = [path for folder in TOP for path in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *kept])


def test_every_command_stands_in_the_table() -> None:
    listed = re.findall(r"^\| `plr ([a-z-]+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(CLI.commands)


def test_there_are_commands_to_check() -> None:
    assert {words[0] for words in commands()} >= {"quantize", "train", "restore", "eval", "grid", "report", "ls", "gc"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    """Options and their kinds; nothing is run."""
    CLI.commands[words[0]].make_context(words[0], words[1:])


def test_a_wrong_option_does_not_parse() -> None:
    with pytest.raises(Exception, match=r"No such option: --bit\b"):
        CLI.commands["train"].make_context("train", ["--bit=3", "--task", "tiny_math"])


def test_study_files_shown_are_valid() -> None:
    shown = blocks(README, "yaml")
    assert shown
    for text in shown:
        study_config({"name": "readme", **yaml.safe_load(text)}, "README.md")


def test_the_study_shown_has_the_cells_the_text_says() -> None:
    config = study_config({"name": "readme", **yaml.safe_load(blocks(README, "yaml")[0])})
    pairs = sum(ell >= k for k in config.train_bits for ell in config.restore_bits)
    cells = pairs * len(config.models) * len(config.tasks) * len(config.adapters) * len(config.seeds)
    said = re.search(r"has (\d+) cells and (\d+) baselines", README)
    assert said
    assert config.baselines
    assert (int(said[1]), int(said[2])) == (cells, len(config.restore_bits))


def test_overrides_shown_are_valid() -> None:
    preset = {"name": "readme", "preset": "paper"}
    for words in commands():
        settings = [after for word, after in pairwise(words) if word == "--set"]
        study_config(preset, "README.md", tuple(settings))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[name]):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_paths_named_exist(name: str) -> None:
    named = {p for p in re.findall(r"[\w./-]+/[\w./-]*\w/?", PAGES[name]) if p.startswith(TOP)}
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("code", python_blocks())
def test_python_compiles_and_its_names_exist(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "plr":
            assert {alias.name for alias in node.names} <= public_names(node.module), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "plr":
            assert hasattr(importlib.import_module("plr"), node.attr), node.attr
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lab":
            lab = importlib.import_module("plr").Lab
            assert hasattr(lab, node.attr) or node.attr == "store", f"lab.{node.attr}"


def test_plug_ins_of_the_architecture_page_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made (an abstract method left out would raise), and the task scores as its metrics say."""
    from plr.tasks.types import Example, Response

    for package in ("adapters", "engines", "quantizers", "tasks"):
        importlib.import_module(f"plr.{package}")  # plr's own are registered before the registry is replaced
    made: dict[str, Any] = {}

    def register(self: Registry[Any], name: str) -> Any:
        return lambda item: made.setdefault(name, item)

    monkeypatch.setattr(Registry, "register", register)
    for code in blocks(ARCHITECTURE, "python"):
        exec(compile(code, "docs/architecture.md", "exec"), {"__name__": "example"})
    assert list(made) == ["capitals", "vera-qv", "mse-rounding", "in-order"]

    task, row = made["capitals"], {"country": "France", "capital": "Paris"}
    example = Example("test-0", row, task.prompt(row), task.target(row))
    values = [
        [score.value for score in task.score(example, Response(text, ended)).values()]
        for text, ended in ((" Paris", True), (" Paris\nQuestion", False), (" Lyon", True))
    ]
    assert values == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+) +#", README))
    assert named == {"grid", "test"}
    assert named <= targets


def test_extras_are_those_of_the_project() -> None:
    extras = set(PROJECT["optional-dependencies"])
    table = README.partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == extras
    assert {extra for group in re.findall(r"\.\[([a-z,]+)\]", README) for extra in group.split(",")} <= extras


def test_modes_and_exit_codes_are_those_of_the_code() -> None:
    from plr import errors
    from plr.core.specs import Restore

    for mode in Restore.model_fields["mode"].annotation.__args__:  # type: ignore[union-attr]
        assert f"| `{mode}`" in README
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    text = README.partition("Exit codes:")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"\b(\d+) ", text)} == codes | {0, 130}


def test_architecture_places_every_module_on_its_floor() -> None:
    shown = ARCHITECTURE.partition("## Floors")[2].partition("```")[2].partition("```")[0]
    floor = ""
    placed: dict[str, int] = {}
    for line in shown.strip().splitlines():
        floor = line[:2].strip() or floor
        placed |= dict.fromkeys(re.findall(r"\w+/?", line[2:42]), int(floor))
    here = [path for path in (ROOT / "plr").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert placed == {path.stem + "/" * path.is_dir(): FLOORS[path.stem] for path in here}


def test_changelog_has_this_version() -> None:
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_absolute_paths(path: Path) -> None:
    found = re.search(r"(?<![\w.~}-])/(root|home|work|tmp|Users)/[\w.-]+", path.read_text(encoding="utf-8"))
    assert found is None, found


@pytest.fixture(scope="module")
def fill() -> Any:
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs" / "fill_readme.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fill_readme"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("study", re.findall(r"<!-- table:([\w.-]+) -->", README))
def test_results_are_those_recorded(study: str, fill: Any) -> None:
    folder = ROOT / "notes" / "results" / study
    if not (folder / "table.md").is_file():
        pytest.skip(f"notes/results/{study} is not recorded yet")
    shown = README.partition(f"<!-- table:{study} -->\n")[2].partition(f"<!-- /table:{study} -->")[0]
    assert shown == fill.block(folder), "run: python docs/fill_readme.py"


def test_fill_takes_first_table_counts_and_intervals(fill: Any, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "table.md").write_text(
        "It gains.\n\n- one: yes\n\n### `acc`, the primary metric, in percent\n\nLegend.\n\n| a |\n| --- |\n| 1 |\n\n"
        "### 95 % intervals of `acc`\n\n| a |\n| --- |\n| 0 to 2 |\n\n### other\n\n| a |\n| --- |\n| 9 |\n"
    )
    (folder / "results.csv").write_text("task,seed,n\none,0,300\none,0,300\ntwo,0,64\ntwo,1,60\n")
    readme = "x\n<!-- table:demo -->\nold\n<!-- /table:demo -->\n<!-- table:none -->\nold\n<!-- /table:none -->\n"
    text = fill.filled(readme, tmp_path)
    assert "`acc`, the primary metric, in percent (one: n = 300; two: n = 60 to 64; 2 seeds).\n\n| a |" in text
    assert text.index("| 1 |") < text.index("0 to 2") < text.index("It gains.")
    assert "| 9 |" not in text
    assert "old" not in text
    assert "_Not recorded yet._" in text
    assert fill.filled(text, tmp_path) == text
