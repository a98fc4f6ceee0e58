"""README and `docs/` are a contract: what they show parses, runs, exists and is complete."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
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
PATHS = [ROOT / "README.md", *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
README, ARCHITECTURE, EXTENDING = PAGES["README.md"], PAGES["docs/architecture.md"], PAGES["docs/extending.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLI: Any = typer.main.get_command(app)
TOP = ("plr/", "docs/", "configs/", "notes/", "notebooks/", "tests/", "calibration/", "bench/")
LARGEST_README, LARGEST_IMAGE = 8192, 300_000
GENERATED = {"docs/cli.md", "docs/yaml.md"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words behind `plr` of every command in a bash block of any page."""
    found = []
    for line in "\n".join(block for page in PAGES.values() for block in blocks(page, "bash")).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part.partition(" > ")[0], comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words[:2] == ["accelerate", "launch"]:
                words = words[words.index("-m") + 1 :]
            if words[:1] == ["plr"] and words[1:] not in found:
                found.append(words[1:])
    return found


def python_blocks() -> list[Any]:
    return [
        pytest.param(code, id=f"{name}-{i}")
        for name, page in PAGES.items()
        for i, code in enumerate(blocks(page, "python"))
    ]


def yaml_blocks() -> list[Any]:
    return [
        pytest.param(text, id=f"{name}-{i}")
        for name, page in PAGES.items()
        for i, text in enumerate(blocks(page, "yaml"))
    ]


def public_names(module: str) -> set[str]:
    """`__all__` of a module of plr, read from its source: importing some of them takes torch."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{source} has no __all__")


def markdown_files() -> list[Path]:
    kept = [path for folder in TOP for path in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *kept])


def all_commands() -> list[Any]:
    """Every command and subcommand, by its words."""
    rows = [([name], command) for name, command in CLI.commands.items()]
    rows += [
        ([name, below], inner)
        for name, command in CLI.commands.items()
        for below, inner in getattr(command, "commands", {}).items()
    ]
    return [pytest.param(words, command, id=" ".join(words)) for words, command in rows]


def test_readme_is_short() -> None:
    assert len(README.encode()) <= LARGEST_README


def test_images_are_small_and_described() -> None:
    assert [p.name for p in (ROOT / "docs" / "images").iterdir() if p.stat().st_size > LARGEST_IMAGE] == []
    assert [name for name, page in PAGES.items() if re.search(r"!\[\]|<img(?![^>]*alt=)", page)] == []


@pytest.mark.parametrize(("words", "command"), all_commands())
def test_every_command_has_help_an_example_and_a_place(words: list[str], command: Any) -> None:
    summary, _, example = command.help.partition("Example: [bold]")
    assert summary.strip()
    shown = shlex.split(example.partition("[/bold]")[0])
    assert shown[:2] == ["plr", words[0]]
    assert f"\n#{'#' * len(words)} plr {' '.join(words)}\n" in PAGES["docs/cli.md"]
    guides = "\n".join(page for name, page in PAGES.items() if name not in GENERATED)
    assert re.search(rf"\bplr {' '.join(words)}\b", guides), "no guide says what it is for"


def test_there_are_commands_to_check() -> None:
    assert {words[0] for words in commands()} >= {"quantize", "train", "restore", "eval", "grid", "report", "ls", "gc"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    """Options and their kinds; nothing is run."""
    command = CLI.commands[words[0]]
    below = getattr(command, "commands", {}).get(words[1]) if len(words) > 1 else None
    if below is not None:
        below.make_context(words[1], words[2:])
    else:
        command.make_context(words[0], words[1:])


def test_a_wrong_option_does_not_parse() -> None:
    with pytest.raises(Exception, match=r"No such option: --bit\b"):
        CLI.commands["train"].make_context("train", ["--bit=3", "--task", "tiny_math"])


def test_there_are_study_files_to_check() -> None:
    assert len(blocks(PAGES["docs/studies.md"], "yaml")) > 1


@pytest.mark.parametrize("text", yaml_blocks())
def test_study_files_shown_are_valid(text: str) -> None:
    study_config({"name": "shown", **yaml.safe_load(text)}, "the page")


def test_the_study_shown_has_the_cells_the_text_says() -> None:
    page = PAGES["docs/studies.md"]
    config = study_config({"name": "shown", **yaml.safe_load(blocks(page, "yaml")[0])})
    pairs = sum(ell >= k for k in config.train_bits for ell in config.restore_bits)
    cells = pairs * len(config.models) * len(config.tasks) * len(config.adapters) * len(config.seeds)
    said = re.search(r"has (\d+) cells and (\d+) baselines", page)
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
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", PAGES[name]):
        link = target[0] or target[1]
        if "://" not in link:
            assert (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", PAGES)
def test_paths_named_exist(name: str) -> None:
    named = {p for p in re.findall(r"(?<![\w/.-])[\w./-]+/[\w./-]*\w/?", PAGES[name]) if p.startswith(TOP)}
    assert named or name not in ("README.md", "docs/architecture.md")
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


def test_python_of_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, on a preset that is made small, and for two cells of the grid: they come out and are shown."""
    from plr import Lab
    from plr.study import presets

    tiny = presets.PRESETS["tiny"]
    small = {
        "quantize": tiny["quantize"] | {"samples": 4, "max_length": 64},
        "train": tiny["train"] | {"train_limit": 16, "validation_limit": 4, "evaluations_per_epoch": 1},
        "evaluate": {"limit": 2, "max_new_tokens": 2},
    }
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny | small)
    monkeypatch.setenv("PLR_HOME", str(tmp_path / "store"))
    whole, few = Lab.grid, ["train_bits=[3]", "restore_bits=[16, 3]", "runtime.workers=1"]
    monkeypatch.setattr(Lab, "grid", lambda lab, study, overrides: whole(lab, study, overrides=[*overrides, *few]))
    printed: list[str] = []
    [code] = blocks(README, "python")
    scope: dict[str, Any] = {"__name__": "example", "print": lambda text: printed.append(str(text))}
    exec(compile(code.replace("limit=100", "limit=4"), "README.md", "exec"), scope)
    assert scope["served"].step.base.bits == 16
    assert "'n': 4" in printed[0]
    assert "| PLR16 |" in printed[1]
    assert [cell.error for cell in scope["study"].results(scope["lab"].store)] == [None, None, None]


def test_python_of_the_adapter_page_runs() -> None:
    for code in blocks(PAGES["docs/adapters.md"], "python"):
        scope: dict[str, Any] = {"__name__": "example"}
        exec(compile(code, "docs/adapters.md", "exec"), scope)
        assert scope["config"].peft_type == "SPARSE"


def test_plug_ins_of_the_extending_page_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made (an abstract method left out would raise), and the task scores as its metrics say."""
    from plr.tasks.types import Example, Response

    for package in ("adapters", "engines", "quantizers", "tasks"):
        importlib.import_module(f"plr.{package}")  # plr's own are registered before the registry is replaced
    made: dict[str, Any] = {}

    def register(self: Registry[Any], name: str) -> Any:
        return lambda item: made.setdefault(name, item)

    monkeypatch.setattr(Registry, "register", register)
    for code in blocks(EXTENDING, "python"):
        exec(compile(code, "docs/extending.md", "exec"), {"__name__": "example"})
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
    assert set(re.findall(r"^make ([a-z-]+) +#", README, re.MULTILINE)) == {"grid", "test"}
    for name, page in PAGES.items():
        assert set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks(page, "bash")), re.MULTILINE)) <= targets, name


def test_extras_are_those_of_the_project() -> None:
    extras = set(PROJECT["optional-dependencies"])
    page = PAGES["docs/quickstart.md"]
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == extras
    assert {extra for group in re.findall(r"\.\[([a-z,]+)\]", page) for extra in group.split(",")} <= extras
    assert set(re.findall(r"`([a-z]+)`", README.partition("Extras:")[2].partition("(")[0])) <= extras


def test_modes_and_exit_codes_are_those_of_the_code() -> None:
    from plr import errors
    from plr.cli.root import INTERRUPTED, TERMINATED
    from plr.core.modes import MODES

    modes = set(MODES)
    assert {m for m in modes if f"| `{m}`" in PAGES["docs/restoration.md"]} == modes
    assert {m for m in modes if f"| `{m}` | mode" in PAGES["docs/concepts.md"]} == modes
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    for name in ("docs/quickstart.md", "docs/cli.md"):
        text = PAGES[name].partition("Exit codes:")[2].partition("\n\n")[0]
        assert {int(code) for code in re.findall(r"\b(\d+) ", text)} == codes | {0, INTERRUPTED, TERMINATED}


def test_methods_and_tasks_listed_are_those_registered() -> None:
    from plr.adapters import adapters
    from plr.quantizers import quantizers
    from plr.tasks import tasks

    table = PAGES["docs/adapters.md"].partition("| kind | methods |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(adapters.names())
    assert f"{len(adapters.names())} adapter methods" in README
    table = PAGES["docs/bases.md"].partition("| method | what |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(quantizers.names())
    table = PAGES["docs/tasks.md"].partition("| group | tasks |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(\w+\*?)`", table))
    unlisted = {name for name in tasks.names() if name not in listed and not name.startswith("glue_")}
    assert unlisted == set()
    assert {name for name in listed if not name.endswith("*")} - set(tasks.names()) == {"ja"}


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
