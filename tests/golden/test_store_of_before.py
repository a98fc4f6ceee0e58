"""Artifacts made before the packages were laid out anew are found, whole, and used: see `make_store.py`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from command_line import run

from plr.core.precision import Precision
from plr.core.specs import Step
from plr.core.store import Store
from plr.engines import Plan
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


def steps_in(store: Store, dtype: Precision) -> list[Step]:
    """The adapter, the restored adapter and the result of the store, as a command that computes in `dtype` would name them."""
    kinds = {artifact.kind: artifact for artifact in store.all()}
    adapter = kinds["adapter"].step.replaced(dtype=dtype)
    restored = kinds["restored"].step.replaced(adapter=adapter)
    return [adapter, restored, kinds["result"].step.replaced(target=restored, dtype=dtype)]


def test_what_was_made_before_is_found_in_the_dtype_that_it_records(store: Store) -> None:
    wanted = steps_in(store, "float32")
    artifacts = [artifact for step in wanted if (artifact := store.get(step)) is not None]
    assert [artifact.fingerprint for artifact in artifacts] == [step.former().fingerprint for step in wanted]
    assert not {artifact.fingerprint for artifact in artifacts} & {step.fingerprint for step in wanted}
    assert [store.identify(artifact) for artifact in artifacts[:2]] == wanted[:2]
    assert all(store.get(step) is None for step in steps_in(store, "bfloat16"))


def test_a_result_in_its_dtype_on_an_adapter_of_another_is_not_found(store: Store) -> None:
    adapter, restored, result = steps_in(store, "float32")
    other = restored.replaced(adapter=adapter.replaced(dtype="bfloat16"))
    assert store.get(result) is not None
    assert store.get(result.replaced(target=other)) is None


def test_without_the_adapter_that_says_its_dtype_nothing_is_guessed(store: Store) -> None:
    adapter, restored, result = steps_in(store, "float32")
    trained = store.get(adapter)
    assert trained is not None
    shutil.rmtree(trained.path)
    assert store.get(restored) is None
    assert store.get(result) is None


def test_a_plan_in_another_dtype_begins_with_the_training(store: Store) -> None:
    module = generator()
    overrides = [text for text in module.SETTINGS if text != "--set" and not text.startswith("runtime.")]
    found, anew = (
        Plan.of([lab.result(lab.restored(lab.adapter(bits=2, overrides=overrides), 16), limit=4)], store)
        for lab in (Lab(store.home, offline=True, dtype=dtype) for dtype in ("float32", "bfloat16"))
    )
    assert found.missing == []
    assert [step.kind for step in anew.missing] == ["adapter", "result"]


def test_a_new_artifact_names_the_input_that_was_used(store: Store) -> None:
    """By the hash that it has in the store."""
    adapter = next(artifact for artifact in store.all("adapter"))
    restored = Lab(store.home, offline=True, dtype="float32").restore(adapter, bits=2)
    assert adapter.fingerprint in {need["fingerprint"] for need in restored.manifest["inputs"]}
