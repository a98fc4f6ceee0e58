"""Artifacts made before the packages were laid out anew are found, whole, and used: see `make_store.py`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from command_line import run

from plr.core.store import Store
from plr.lab import Lab

HERE = Path(__file__).parent


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_store", HERE / "make_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    home = tmp_path / "store"
    shutil.copytree(HERE / "store", home)
    monkeypatch.setenv("PLR_HOME", str(home))
    return Store(home)


def test_every_kind_is_there_and_whole(store: Store) -> None:
    artifacts = store.all()
    assert {artifact.kind for artifact in artifacts} == {"base", "adapter", "restored", "result"}
    for artifact in artifacts:
        artifact.check(hashes=True)
        assert store.get(artifact.step) is not None
        assert artifact.path.name.endswith(artifact.step.fingerprint[:12])


def test_the_same_commands_make_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.home.rglob("*") if path.is_file()}
    module = generator()
    for command in module.COMMANDS:
        settings = module.SETTINGS if command[0] in ("quantize", "train") else []
        code, out, err = run(monkeypatch, capsys, *command, *settings)
        assert code == 0, err
        assert str(store.home) in out
    after = {path: path.stat().st_mtime_ns for path in store.home.rglob("*") if path.is_file()}
    assert {path for path in after if ".locks" not in path.parts} == set(before)
    assert all(after[path] == before[path] for path in before)


def test_an_adapter_of_before_is_restored_to_another_width(store: Store) -> None:
    lab = Lab(store.home, offline=True, dtype="float32")
    base = next(artifact for artifact in store.all() if artifact.kind == "base")
    adapter = next(artifact for artifact in store.all() if artifact.kind == "adapter")
    step = lab.restored(adapter, bits=2)
    assert store.get(step.base) is not None
    assert step.base.fingerprint == base.step.fingerprint
    restored = lab.make(step)
    assert restored.metrics["largest_logit_change"] > 0
