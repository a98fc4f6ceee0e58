"""Removal: what goes, what stays because something needs it, and no half artifact whenever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plr import Lab
from plr.core.collect import Leftovers
from plr.core.locks import hold
from plr.core.manifest import MANIFEST, write_manifest
from plr.core.removal import Removal, age_of
from plr.core.specs import (
    AdapterSpec,
    Evaluate,
    ModelRef,
    Quantization,
    Quantize,
    Restore,
    Source,
    Step,
    TaskSpec,
    Train,
    TrainSpec,
)
from plr.core.store import Artifact, Store
from plr.errors import IntegrityError, UsageError

SOURCE = Source(model=ModelRef(kind="local", name="m", revision="0" * 64))
TASK = TaskSpec(name="t", version=1)
K4, K8, LOOSE = (Quantize(source=SOURCE, quantization=Quantization(bits=bits)) for bits in (4, 8, 3))  # type: ignore[arg-type]
ADAPTER = Train(base=K4, task=TASK, adapter=AdapterSpec(), train=TrainSpec())
UNSCORED = Train(base=LOOSE, task=TASK, adapter=AdapterSpec(), train=TrainSpec())
RESTORED = Restore(adapter=ADAPTER, base=K8)
MERGED = Restore(adapter=ADAPTER, base=SOURCE, merge=True)
RESULT = Evaluate(target=RESTORED, task=TASK)
OF_MERGED = Evaluate(target=MERGED, task=TASK)
STEPS: dict[str, Step] = {
    "k4": K4, "k8": K8, "loose": LOOSE, "adapter": ADAPTER, "unscored": UNSCORED, "restored": RESTORED,
    "merged": MERGED, "result": RESULT, "of_merged": OF_MERGED,
}  # fmt: skip


def fill(folder: Path) -> dict[str, Any]:
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_bytes(b"12345")
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "home")
    for step in STEPS.values():
        made.make(step, fill)
    return made


def at(store: Store, name: str) -> Path:
    return store.path(STEPS[name])


def there(store: Store) -> set[str]:
    return {name for name, step in STEPS.items() if store.get(step) is not None}


def dated(artifact: Artifact, date: str) -> None:
    content = json.loads((artifact.path / MANIFEST).read_text())
    content["provenance"]["date"] = date
    write_manifest(artifact.path / MANIFEST, {k: v for k, v in content.items() if k not in ("format", "sha256")})


@pytest.mark.parametrize(
    ("name", "dependents"),
    [
        ("result", set()),
        ("restored", set()),  # a result has the adapter and the base for inputs, not the folder that was served
        ("merged", {"of_merged"}),
        ("k8", {"restored", "result"}),
        ("adapter", {"restored", "merged", "result", "of_merged"}),
        ("k4", {"adapter", "restored", "merged", "result", "of_merged"}),
        ("loose", {"unscored"}),
    ],
)
def test_what_others_were_made_from_is_refused_or_goes_with_them(store: Store, name: str, dependents: set[str]) -> None:
    before = there(store)
    ref = at(store, name).name
    if dependents:
        with pytest.raises(UsageError, match=f"{len(dependents)} artifacts were made from") as caught:
            Removal.plan(store, [ref])
        assert all(at(store, one).name in str(caught.value) for one in dependents)
    plan = Removal.plan(store, [ref], with_dependents=True)
    assert plan.dependents == {at(store, one) for one in dependents}
    assert there(store) == before
    assert set(plan.remove()) == {at(store, one) for one in dependents | {name}}
    assert there(store) == before - dependents - {name}
    assert Leftovers.find(store.home).folders == []


def test_several_that_need_each_other_go_together(store: Store) -> None:
    names = ["loose", "unscored"]
    plan = Removal.plan(store, [at(store, name).name for name in names])
    assert [artifact.path for artifact in plan.artifacts] == [at(store, "unscored"), at(store, "loose")]
    plan.remove()
    assert there(store) == STEPS.keys() - set(names)


def test_unused_is_what_no_result_and_no_restored_adapter_needs(store: Store) -> None:
    plan = Removal.plan(store, unused=True)
    assert {artifact.path for artifact in plan.artifacts} == {at(store, "loose"), at(store, "unscored")}
    size = sum(
        file.stat().st_size for name in ("loose", "unscored") for file in at(store, name).rglob("*") if file.is_file()
    )
    assert plan.bytes == size
    plan.remove()
    assert plan.freed == size
    assert Removal.plan(store, unused=True).artifacts == []
    Removal.plan(store, [at(store, "result").name, at(store, "restored").name]).remove()
    assert {artifact.path for artifact in Removal.plan(store, unused=True).artifacts} == {at(store, "k8")}


def test_old_is_by_the_date_on_record_and_what_newer_ones_need_stays(store: Store) -> None:
    for name in ("k4", "loose", "of_merged"):
        dated(store.require(STEPS[name]), "2020-01-01T00:00:00+00:00")
        os.utime(at(store, name) / MANIFEST)
    plan = Removal.plan(store, older="30d")
    assert [artifact.path for artifact in plan.artifacts] == [at(store, "of_merged")]
    assert len(plan.alone) == 2
    assert "is needed" in plan.alone[0]
    assert {a.path for a in Removal.plan(store, older="30d", unused=True, with_dependents=True).artifacts} == {
        at(store, "loose"),
        at(store, "unscored"),
    }
    assert Removal.plan(store, older="10000w").artifacts == []


def test_ages() -> None:
    assert age_of("8w") == 8 * 7 * 24 * 3600
    for text in ("", "30", "d", "-1d", "30 d", "1m", "nand", "9999999d"):
        with pytest.raises(UsageError, match="--older is"):
            age_of(text)


@pytest.mark.parametrize("options", [{}, {"refs": ["k"], "unused": True}, {"refs": ["k"], "older": "1d"}])
def test_names_or_a_rule(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"was named|were given"):
        Removal.plan(store, **options)


def test_a_path_that_leads_into_an_artifact_is_a_need(store: Store) -> None:
    folder = at(store, "merged")
    inside = Source(model=ModelRef(kind="local", name="x", revision="1" * 64, path=str(folder)))
    store.make(Quantize(source=inside, quantization=Quantization(bits=4)), fill)
    with pytest.raises(UsageError, match="2 artifacts were made from"):
        Removal.plan(store, [folder.name])
    link = store.home.parent / "link"
    link.symlink_to(store.home)
    other = Source(model=ModelRef(kind="local", name="y", revision="2" * 64, path=str(link / "restored" / folder.name)))
    store.make(Quantize(source=other, quantization=Quantization(bits=4)), fill)
    with pytest.raises(UsageError, match="3 artifacts were made from"):
        Removal.plan(store, [folder.name])


def test_what_is_held_stays_and_so_does_what_it_was_made_from(store: Store) -> None:
    with hold(store.home, UNSCORED.fingerprint[:12]):
        plan = Removal.plan(store, unused=True)
        assert plan.artifacts == []
        assert any("is in use now" in reason for reason in plan.alone)
        assert any("left alone" in reason for reason in plan.alone)
    plan = Removal.plan(store, unused=True)
    with hold(store.home, UNSCORED.fingerprint[:12]):
        assert plan.remove() == []
    assert any("is in use now" in reason for reason in plan.alone)
    assert there(store) == STEPS.keys()


def test_while_a_step_is_made_nothing_goes_by_a_rule(store: Store) -> None:
    other = Quantize(source=SOURCE, quantization=Quantization(bits=2))

    def build(folder: Path) -> dict[str, Any]:
        for rule in ({"unused": True}, {"older": "1d"}):
            with pytest.raises(UsageError, match="1 steps are being made"):
                Removal.plan(store, **rule)  # type: ignore[arg-type]
        assert "a run is at work" in Removal.plan(store, [at(store, "result").name]).alone[0]
        return {}

    store.make(other, build)
    (store.home / "base" / ".partial-0123456789ab").mkdir()  # of a killed run: nobody holds its lock
    assert Removal.plan(store, unused=True).artifacts


def test_what_was_made_after_the_plan_keeps_what_it_needs(store: Store) -> None:
    plan = Removal.plan(store, unused=True)
    store.make(Evaluate(target=Restore(adapter=UNSCORED, base=SOURCE), task=TASK), fill)
    assert plan.remove() == []
    assert there(store) == STEPS.keys()


def test_links_and_other_places_are_left_alone(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    at(store, "result").rename(outside)
    at(store, "result").symlink_to(outside)
    plan = Removal.plan(store, [at(store, "result").name])
    assert plan.artifacts == []
    assert "is no folder" in plan.alone[0]
    (store.home / "restored").rename(tmp_path / "elsewhere")
    (store.home / "restored").symlink_to(tmp_path / "elsewhere")
    plan = Removal.plan(store, [at(store, "restored").name])
    assert plan.remove() == []
    assert "is a link" in plan.alone[0]
    assert plan.left == plan.named
    assert (tmp_path / "elsewhere" / at(store, "restored").name / MANIFEST).is_file()
    shutil.copytree(outside, tmp_path / "copy")
    with pytest.raises(UsageError, match="lies outside of the store"):
        Removal.plan(store, [str(tmp_path / "copy")])


def test_a_link_inside_goes_and_not_what_it_leads_to(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (at(store, "result") / "link").symlink_to(tmp_path / "precious")
    assert Removal.plan(store, [at(store, "result").name]).remove() == [at(store, "result")]
    assert (tmp_path / "precious" / "file").exists()


def test_a_broken_one_goes_by_name_and_stops_a_rule(store: Store) -> None:
    (at(store, "result") / MANIFEST).write_text("{")
    with pytest.raises(IntegrityError, match="nobody knows what 1 artifacts were made from"):
        Removal.plan(store, unused=True)
    for ref in (at(store, "result").name, str(at(store, "result")), RESULT.fingerprint[:6]):
        assert [artifact.path for artifact in Removal.plan(store, [ref]).artifacts] == [at(store, "result")]
    Removal.plan(store, [at(store, "result").name]).remove()
    assert Removal.plan(store, unused=True).artifacts


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_kill_leaves_whole_artifacts_and_leftovers(store: Store, calls: int) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from plr.core.removal import Removal
        from plr.core.store import Store
        left = int(sys.argv[3])
        def counted(original):
            def call(*arguments, **options):
                global left
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*arguments, **options)
            return call
        os.unlink, os.rmdir, os.rename = counted(os.unlink), counted(os.rmdir), counted(os.rename)
        Path.rename = counted(Path.rename)
        Removal.plan(Store(Path(sys.argv[1])), [sys.argv[2]], with_dependents=True).remove()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.home), at(store, "loose").name, str(calls)], check=False
    )
    assert done.returncode == -9
    for artifact in Store(store.home).all():
        artifact.check()
        for need in artifact.step.inputs:
            assert store.get(need) is not None
    assert there(store) >= STEPS.keys() - {"loose", "unscored"}
    left = Leftovers.find(store.home)
    assert all(path.name.startswith(".removed-") for path in left.folders)
    left.remove()
    Removal.plan(store, unused=True).remove()
    assert there(store) == STEPS.keys() - {"loose", "unscored"}


def test_made_again_it_has_the_same_hash_and_the_same_bytes(home: Path) -> None:
    lab = Lab(home, dtype="float32", device="cpu", offline=True)
    quick = ["train.epochs=1", "train.train_limit=16", "train.validation_limit=8"]
    make: Callable[[], Artifact] = lambda: lab.train(bits=4, task="tiny_math", overrides=[*quick, "quantize.samples=8"])  # noqa: E731
    adapter = make()
    before = {artifact.fingerprint: artifact.record.files for artifact in lab.store.all()}
    base = next(artifact for artifact in lab.store.all() if artifact.kind == "base")
    with pytest.raises(UsageError, match="1 artifacts were made from"):
        lab.rm(base)
    assert lab.rm(base, with_dependents=True, dry_run=True).gone == []
    assert lab.rm(base, with_dependents=True).gone == [adapter.path, base.path]
    assert lab.store.all() == []
    make()
    assert {artifact.fingerprint: artifact.record.files for artifact in lab.store.all()} == before
