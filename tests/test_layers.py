"""The rooms of docs/architecture.md: imports point down, no two files need each other, the light rooms import no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "plr"

ROOMS = (
    ("errors", "registry", "stats"),
    ("core", "gptq"),
    ("scoring", "hub", "embedded"),
    ("adapters", "quantizers", "tasks", "lm"),
    ("bases", "serving"),
    ("training", "restoration", "evaluation"),
    ("engines",),
    ("study",),
    ("report", "export"),
    ("lab",),
    ("__init__", "__main__", "cli"),
)
"""The floors from the ground up. What lies side by side may import each other one way."""
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
LOOSE = {"__init__", "__main__", "errors", "lab", "registry", "stats"}
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


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    parts = ("plr", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, *, top_level_only: bool) -> list[tuple[int, str]]:
    """(line, module) of every import. ``top_level_only``: of those that run when the file is imported."""
    targets: list[tuple[int, str]] = []
    queue = [tree]
    while queue:
        node = queue.pop()
        if top_level_only and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            continue
        if isinstance(node, ast.Import):
            targets += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"line {node.lineno}: a relative import"  # noqa: PT018
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & MODULES.keys()
            targets += [(node.lineno, name) for name in submodules]
            if len(submodules) < len(node.names):
                targets.append((node.lineno, node.module))
        queue.extend(ast.iter_child_nodes(node))
    return targets


FILES = sorted(ROOT.rglob("*.py"))
MODULES = {module(path): path for path in FILES}


def test_every_room_has_a_floor_and_six_files_are_loose() -> None:
    assert {room(path) for path in FILES} == FLOORS.keys()
    assert {path.stem for path in ROOT.glob("*.py")} == LOOSE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """Type-only imports and those inside functions included: workers are imported by the floor above them, never the other way."""
    here = FLOORS[room(path)]
    for line, target in imports(ast.parse(path.read_text()), top_level_only=False):
        parts = target.split(".")
        if parts[0] == "plr":
            there = parts[1] if len(parts) > 1 else "__init__"
            assert FLOORS[there] <= here, f"{path.name}:{line} imports {target} from a floor above"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            components.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return [component for component in components if len(component) > 1]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_circle_between_files() -> None:
    """A type-only import counts: it says that a noun lies in the wrong file. A package's ``__init__`` names what is inside it."""
    arrows = {
        name: {
            target
            for _, target in imports(ast.parse(path.read_text()), top_level_only=False)
            if target in MODULES and target != name
        }
        for name, path in MODULES.items()
    }
    assert circles(arrows) == []


def test_no_circle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {name: set() for name in FLOORS}
    for path in FILES:
        for _, target in imports(ast.parse(path.read_text()), top_level_only=False):
            parts = target.split(".")
            if parts[0] == "plr" and len(parts) > 1 and parts[1] != room(path):
                arrows[room(path)].add(parts[1])
    assert circles(arrows) == []


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
LIGHT_FILES = [path for path in FILES if room(path) in LIGHT and path not in TUNERS]


@pytest.mark.parametrize("path", LIGHT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_light_floors_import_nothing_heavy(path: Path) -> None:
    for line, target in imports(ast.parse(path.read_text()), top_level_only=True):
        assert target.split(".")[0] not in HEAVY, f"{path.name}:{line} imports {target} at module level"


def test_gptq_knows_nothing_of_plr() -> None:
    for path in (ROOT / "gptq").glob("*.py"):
        for line, target in imports(ast.parse(path.read_text()), top_level_only=False):
            assert not target.startswith("plr.") or target.startswith("plr.gptq"), (
                f"{path.name}:{line} imports {target}"
            )


def test_core_knows_nothing_of_gptq() -> None:
    for path in (ROOT / "core").glob("*.py"):
        for line, target in imports(ast.parse(path.read_text()), top_level_only=False):
            assert not target.startswith("plr.gptq"), f"{path.name}:{line} imports {target}"


def test_planning_a_study_loads_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from plr.study import Study, load_study; from plr.core.store import Store;"
        "study = Study(load_study(Path('configs/studies/quickstart.yaml')));"
        "plan = study.plan(Store(Path('nowhere')));"
        "assert len(study.cells) == 38 and len(plan.steps) == 64, (len(study.cells), len(plan.steps));"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
