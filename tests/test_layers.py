"""The floors of docs/architecture.md: imports point down, and the light floors import no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "plr"

FLOORS = {
    "errors": 0,
    "registry": 0,
    "stats": 0,
    "core": 1,
    "gptq": 1,
    "scoring": 2,
    "hub": 2,
    "embedded": 2,
    "adapters": 3,
    "quantizers": 3,
    "tasks": 3,
    "lm": 3,
    "bases": 4,
    "serving": 4,
    "training": 5,
    "restoration": 5,
    "evaluation": 5,
    "engines": 6,
    "report": 8,
    "study": 8,
    "lab": 9,
    "__init__": 10,
    "__main__": 10,
    "cli": 10,
}
LIGHT = {
    "__init__",
    "adapters",
    "cli",
    "core",
    "engines",
    "errors",
    "hub",
    "lab",
    "quantizers",
    "registry",
    "report",
    "scoring",
    "serving",
    "stats",
    "study",
    "tasks",
}
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "gptqmodel",
    "bitsandbytes",
    "matplotlib",
    "pandas",
    "scipy",
}


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, top_level_only: bool) -> list[tuple[int, str]]:
    """(line, module) of every import; those under ``if TYPE_CHECKING`` do not run and do not count."""
    found: list[tuple[int, str]] = []
    queue = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, node.module)]
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names if node.module == "plr"]
        queue.extend(ast.iter_child_nodes(node))
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_every_module_has_a_floor() -> None:
    assert {unit(path) for path in FILES} - FLOORS.keys() == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = FLOORS[unit(path)]
    # Workers are imported inside functions by the floor above them, never the other way.
    for line, module in imports(ast.parse(path.read_text()), top_level_only=False):
        parts = module.split(".")
        if parts[0] == "plr" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != unit(path):
            assert FLOORS[parts[1]] <= here, f"{path.name}:{line} imports {module} from a floor above"


# The methods themselves: imported inside functions, when one of them is used.
TUNERS = {
    ROOT / "adapters" / f"{name}.py"
    for name in (
        "bitfit",
        "bottleneck",
        "rank_budget",
        "relora/restarts",
        "sparse/config",
        "sparse/layer",
        "sparse/product",
        "sparse/tuner",
        "wrapper",
    )
}
LIGHT_FILES = [path for path in FILES if unit(path) in LIGHT and path not in TUNERS]


@pytest.mark.parametrize("path", LIGHT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_light_floors_import_nothing_heavy(path: Path) -> None:
    for line, module in imports(ast.parse(path.read_text()), top_level_only=True):
        assert module.split(".")[0] not in HEAVY, f"{path.name}:{line} imports {module} at module level"


def test_gptq_knows_nothing_of_plr() -> None:
    for path in (ROOT / "gptq").glob("*.py"):
        for line, module in imports(ast.parse(path.read_text()), top_level_only=False):
            assert not module.startswith("plr.") or module.startswith("plr.gptq"), (
                f"{path.name}:{line} imports {module}"
            )


def test_planning_a_study_loads_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from plr.study import Study, load_study; from plr.core.store import Store;"
        "study = Study(load_study(Path('configs/studies/quickstart.yaml')));"
        "plan = study.plan(Store(Path('nowhere')));"
        "assert len(study.cells) == 30 and len(plan.steps) == 48, (len(study.cells), len(plan.steps));"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
