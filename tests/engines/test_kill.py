"""kill -9 in each kind of step, then the same command again: the same bytes as a run nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plr.core.collect import Leftovers
from plr.core.specs import Step
from plr.core.store import Store
from plr.engines.plan import Event
from plr.lab import Lab
from plr.report.figures.png import can_draw

SMALL = (
    "train.train_limit=64",
    "train.batch_size=16",
    "train.validation_limit=8",
    "quantize.samples=8",
    "evaluate.limit=4",
)
KINDS = ("base", "adapter", "restored", "result")


def lab_at(home: Path) -> Lab:
    # A checkpoint after every step, so that a killed training has something to go on from.
    return Lab(home, offline=True, dtype="float32", checkpoint_seconds=0)


def step_of(lab: Lab, kind: str) -> Step:
    adapter = lab.adapter(bits=2, overrides=SMALL)
    steps: dict[str, Any] = {
        "base": lambda: lab.base(bits=2, overrides=SMALL),
        "adapter": lambda: adapter,
        "restored": lambda: lab.restored(adapter, bits=16, merge=True),
        "result": lambda: lab.result(lab.restored(adapter, bits=16), limit=4, max_new_tokens=6),
    }
    return steps[kind]()


def run_and_die(home: Path, kind: str, where: str) -> None:
    """In a process of its own: make the step and be killed in its middle, or with all files written and no manifest."""
    lab = lab_at(home)
    step = step_of(lab, kind)

    def die_in_the_middle(event: Event) -> None:
        # Of a base one whole block and a layer are done by then: a block of the embedded base has 7.
        if (
            event.fingerprint == step.fingerprint
            and event.what == "progress"
            and event.done >= (8 if kind == "base" else 2)
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    def die_at_the_commit(store: Store, committed: Step, *rest: Any) -> None:
        if committed == step:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(store, committed, *rest)

    commit = Store._commit
    if where == "commit":
        Store._commit = die_at_the_commit  # type: ignore[method-assign]
    lab.make(step, on_event=die_in_the_middle if where == "middle" else None)
    raise SystemExit("the step ended without being killed")


def hashes(home: Path, step: Step) -> dict[str, str]:
    """sha256 of the step's files; the results file holds a date, so of that only the samples count."""
    artifact = Store(home).require(step)
    artifact.check()
    files = artifact.manifest["files"]
    return {name.split("_20")[0]: file["sha256"] for name, file in files.items() if not name.startswith("results_")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    lab = lab_at(home)
    for kind in KINDS:
        lab.make(step_of(lab, kind))
    return home


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, where) for kind in KINDS for where in ("middle", "commit") if (kind, where) != ("restored", "middle")],
)
def test_killed_step_ends_with_the_same_bytes(kind: str, where: str, undisturbed: Path, tmp_path: Path) -> None:
    home = _with_inputs(undisturbed, tmp_path, kind)
    code = f"from test_kill import run_and_die; from pathlib import Path; run_and_die(Path({str(home)!r}), {kind!r}, {where!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    lab = lab_at(home)
    step = step_of(lab, kind)
    assert lab.store.get(step) is None
    artifact = lab.make(step)
    assert hashes(home, step) == hashes(undisturbed, step)
    assert Leftovers.find(home).folders == []
    if kind == "base":
        assert artifact.metrics["resumed_from_layer"] == (7 if where == "middle" else 42)
    if (kind, where) == ("adapter", "middle"):
        assert artifact.metrics["resumed_from_step"] >= 1
        first = lab_at(undisturbed).make(step_of(lab_at(undisturbed), kind))
        assert artifact.metrics["curve"] == first.metrics["curve"]


def test_killed_study_goes_on_without_redoing_finished_steps(tmp_path: Path) -> None:
    """A grid over two workers is killed as soon as its first base is there; the second run makes the rest."""
    home, runs = tmp_path / "home", tmp_path / "runs"
    words = [sys.executable, "-m", "plr", "grid", "configs/studies/quickstart.yaml", "--json", "-o", str(runs)]
    for text in (
        *SMALL,
        "tasks=[tiny_math]",
        "train_bits=[16, 2]",
        "restore_bits=[16, 2]",
        "evaluate.max_new_tokens=6",
    ):
        words += ["--set", text]
    environment = {**os.environ, "PLR_HOME": str(home)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        words, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        while not list(home.glob("base/*/manifest.json")) and first.poll() is None:
            time.sleep(0.05)
        first.kill()
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/*/manifest.json")}
    assert before, "the first run was to finish a step before it was killed"
    again = subprocess.run(words, cwd=root, env=environment, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in runs.iterdir()) == [
        "compare.md",
        *(["compare.png"] if can_draw() else []),
        "compare.svg",
        "report.html",
        "results.csv",
        "table.md",
    ]
    assert len(list(home.glob("result/*/manifest.json"))) == 4


def _with_inputs(undisturbed: Path, tmp_path: Path, kind: str) -> Path:
    """A store that holds what ``kind`` needs and nothing after it."""
    import shutil

    home = tmp_path / "home"
    home.mkdir()
    for earlier in KINDS[: KINDS.index(kind)]:
        if earlier != "restored":
            shutil.copytree(undisturbed / earlier, home / earlier)
    return home
