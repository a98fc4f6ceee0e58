"""Planning and the local engine, with steps whose work is replaced by a few bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Quantize, Step
from plr.core.store import Store
from plr.engines import LocalEngine, jobs
from plr.engines.plan import Event, Plan, closure, ready_jobs
from plr.errors import ConfigError, DiskFullError, PlrError, ResourceError, UnknownNameError
from plr.study import Study, failed_cells, raise_if_all_failed, study_config


@pytest.fixture
def study() -> Study:
    return Study(study_config({"name": "s", "preset": "tiny", "train_bits": [16, 4, 2], "restore_bits": [16, 4, 2]}))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Replaces the work of every step; the list says in which order they ran."""
    order: list[Step] = []

    def build(step: Step, folder: Path, *rest: Any) -> dict[str, Any]:
        order.append(step)
        (folder / "file").write_text(step.label)
        return {"metrics": {}, "primary": "x"}

    monkeypatch.setattr(jobs, "_build", build)
    return order


def test_grid_shape(study: Study) -> None:
    cells = [(c.train_bits, c.restore_bits, c.mode) for c in study.cells]
    assert cells == [
        (16, 16, "keep"),
        (4, 16, "restore"),
        (4, 4, "keep"),
        (2, 16, "restore"),
        (2, 4, "restore"),
        (2, 2, "keep"),
    ]


def test_all_cells_and_every_mode() -> None:
    config = {"name": "s", "preset": "tiny", "train_bits": [16, 4], "restore_bits": [16, 4], "cells": "all"}
    modes = ["restore", "roundtrip", "requantize"]
    cells = Study(study_config({**config, "modes": modes, "baselines": True})).cells
    found = {(c.train_bits, c.restore_bits, c.mode, c.adapter) for c in cells}
    assert found == {
        (16, 16, "keep", "none"),
        (4, 4, "keep", "none"),
        (16, 16, "keep", "lora"),
        (16, 4, "restore", "lora"),
        (16, 4, "requantize", "lora"),
        (4, 16, "restore", "lora"),
        (4, 4, "keep", "lora"),
        (4, 4, "roundtrip", "lora"),
        (4, 4, "requantize", "lora"),
    }


def test_bases_alone_are_a_study(tmp_path: Path, built: list[Step]) -> None:
    """No adapter: the bases are quantized and scored, nothing is trained, and there is no cost to compare."""
    config = {"name": "s", "preset": "tiny", "train_bits": [16], "restore_bits": [16, 4], "adapters": []}
    with pytest.raises(ConfigError, match="adapters is empty, and baselines is false"):
        study_config(config)
    study = Study(study_config({**config, "baselines": True}))
    assert [(c.restore_bits, c.adapter) for c in study.cells] == [(16, "none"), (4, "none")]
    store = Store(tmp_path / "home")
    study.run(store, Runtime(home=tmp_path / "home"))
    assert [step.kind for step in built] == ["base", "result", "result"]


def test_a_task_may_have_bit_widths_of_its_own() -> None:
    tasks = [{"name": "tiny_math"}, {"name": "tiny_sql", "train_bits": [16, 2], "restore_bits": [16]}]
    config = study_config({"name": "s", "preset": "tiny", "tasks": tasks, "train_bits": [16], "restore_bits": [16]})
    cells = [(c.task, c.train_bits, c.restore_bits) for c in Study(config).cells]
    assert cells == [("tiny_math", 16, 16), ("tiny_sql", 16, 16), ("tiny_sql", 2, 16), ("tiny_sql", 2, 2)]


def test_equal_sub_steps_are_shared(study: Study) -> None:
    kinds = [step.kind for step in closure([cell.step for cell in study.cells])]
    assert (kinds.count("base"), kinds.count("adapter"), kinds.count("result")) == (2, 3, 6)


def test_inputs_come_before_what_needs_them(study: Study, built: list[Step], tmp_path: Path) -> None:
    store = Store(tmp_path)
    outcome = study.run(store, Runtime(home=tmp_path))
    assert outcome.failed == {}
    place = {step.fingerprint: i for i, step in enumerate(built)}
    assert len(place) == len(built) == 11
    assert all(place[need.fingerprint] < place[step.fingerprint] for step in built for need in step.inputs)


def test_evaluations_run_grouped_by_the_base_they_load(study: Study, built: list[Step], tmp_path: Path) -> None:
    study.run(Store(tmp_path), Runtime(home=tmp_path))
    bases = [step.base.fingerprint for step in built if isinstance(step, Evaluate)]
    changes = sum(a != b for a, b in pairwise(bases))
    assert changes == len(set(bases)) - 1


def test_second_run_finds_everything(study: Study, built: list[Step], tmp_path: Path) -> None:
    store, runtime = Store(tmp_path), Runtime(home=tmp_path)
    study.run(store, runtime)
    built.clear()
    outcome = study.run(store, runtime)
    assert built == []
    assert study.plan(store).missing == []
    assert {cell.step.fingerprint for cell in study.cells} <= outcome.done


def test_single_commands_find_what_a_study_made(study: Study, built: list[Step], tmp_path: Path) -> None:
    from plr.lab import Lab

    study.run(Store(tmp_path), Runtime(home=tmp_path))
    built.clear()
    lab = Lab(tmp_path)
    adapter = lab.train(bits=2)
    assert adapter.step == next(c.step.target.adapter for c in study.cells if c.train_bits == 2)  # type: ignore[union-attr]
    assert lab.quantize(bits=4).step in {c.step.base for c in study.cells}
    assert lab.evaluate(lab.restored(adapter, bits=4)).step in {c.step for c in study.cells}
    assert built == []


def test_a_failed_step_fails_its_cells_and_nothing_else(
    study: Study, built: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = jobs._build

    def build(step: Step, *rest: Any) -> dict[str, Any]:
        if isinstance(step, Quantize) and step.bits == 2:
            raise PlrError("layer 3 is singular")
        return inner(step, *rest)

    monkeypatch.setattr(jobs, "_build", build)
    store = Store(tmp_path)
    outcome = study.run(store, Runtime(home=tmp_path))
    failed = failed_cells(study.cells, outcome)
    assert {(c.train_bits, c.restore_bits) for c, _ in failed} == {(2, 16), (2, 4), (2, 2)}
    assert all("layer 3 is singular" in reason for _, reason in failed)
    raise_if_all_failed(study.cells, outcome)
    results = study.results(store, outcome.failed)
    assert sum(result.failed for result in results) == 3


def test_a_defect_is_reported_with_its_place(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*rest: Any) -> dict[str, Any]:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(jobs, "_build", build)
    outcome = study.run(Store(tmp_path), Runtime(home=tmp_path))
    assert any("ZeroDivisionError: oops (test_local.py:" in text for text in outcome.failed.values())
    with pytest.raises(PlrError, match="every cell failed"):
        raise_if_all_failed(study.cells, outcome)


def test_what_waits_for_a_failure_names_the_first_one(
    study: Study, built: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is a step between: the base, its adapter, the cell."""
    inner = jobs._build

    def build(step: Step, *rest: Any) -> dict[str, Any]:
        if isinstance(step, Quantize) and step.bits == 2:
            raise PlrError("not run: is how this message begins")
        return inner(step, *rest)

    monkeypatch.setattr(jobs, "_build", build)
    outcome = study.run(Store(tmp_path), Runtime(home=tmp_path))
    base = next(c.step.base for c in study.cells if c.restore_bits == 2)
    reasons = {reason for _, reason in failed_cells(study.cells, outcome)}
    assert reasons == {f"not run: {base.label} failed: not run: is how this message begins"}


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), ResourceError("vLLM has not enough memory")]
)
def test_a_step_that_runs_out_of_memory_stops_no_other(
    study: Study, built: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    inner = jobs._build

    def build(step: Step, *rest: Any) -> dict[str, Any]:
        if isinstance(step, Quantize) and step.bits == 2:
            with jobs._resources(step):
                raise raised
        return inner(step, *rest)

    monkeypatch.setattr(jobs, "_build", build)
    outcome = study.run(Store(tmp_path), Runtime(home=tmp_path))
    failed = failed_cells(study.cells, outcome)
    assert {(c.train_bits, c.restore_bits) for c, _ in failed} == {(2, 16), (2, 4), (2, 2)}
    assert all("memory" in reason for _, reason in failed)


def test_a_full_disk_stops_the_study(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def build(*rest: Any) -> dict[str, Any]:
        calls.append(1)
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    def guarded(step: Step, *rest: Any) -> dict[str, Any]:
        with jobs._resources(step):
            return build()
        raise AssertionError

    monkeypatch.setattr(jobs, "_build", guarded)
    with pytest.raises(DiskFullError, match="the disk is full while writing"):
        study.run(Store(tmp_path), Runtime(home=tmp_path))
    assert calls == [1]


def test_workers_get_shares_of_a_group(study: Study) -> None:
    evaluations = [cell.step for cell in study.cells]
    done = {need.fingerprint for step in evaluations for need in step.inputs}
    one = ready_jobs(evaluations, done, 1)
    two = ready_jobs(evaluations, done, 2)
    assert sorted(map(len, one)) == [1, 2, 3]
    assert max(map(len, two)) <= 3
    assert sum(map(len, two)) == 6


def test_dead_worker_fails_its_steps_only(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed (as for memory) fails the steps it held; the engine goes on and comes to an end."""
    from plr.engines import local

    monkeypatch.setattr(local, "_work", _die)
    events: list[Event] = []
    plan = study.plan(Store(tmp_path))
    outcome = LocalEngine().run(plan, Store(tmp_path), Runtime(home=tmp_path, workers=2), events.append)
    assert outcome.done == set()
    assert set(outcome.failed) == {step.fingerprint for step in plan.steps}
    assert any("killed, most likely for memory" in text for text in outcome.failed.values())


def _die(*args: Any) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_unknown_engine(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'locl'"):
        study.run(Store(tmp_path), Runtime(home=tmp_path), engine="locl")


def test_plan_leaves_out_inputs_of_what_is_there(study: Study, built: list[Step], tmp_path: Path) -> None:
    store = Store(tmp_path)
    study.run(store, Runtime(home=tmp_path))
    import shutil

    shutil.rmtree(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    assert Plan.of([cell.step for cell in study.cells], store).missing == []


def test_an_idle_worker_that_died_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, of which one is killed whenever it is idle: the study is done all the same."""
    import os
    import signal

    from plr.engines import local

    settings = {"preset": "tiny", "train_bits": [16], "restore_bits": [16, 4, 3], "adapters": [], "baselines": True}
    settings |= {"quantize": {"method": "rtn"}, "evaluate": {"limit": 2}, "runtime": {"dtype": "float32"}}
    study = Study(study_config({"name": "s", **settings}))
    receive, killed = local._receive, list[int]()

    def kill_when_idle(pipe: Any, workers: Any, board: Any) -> None:
        receive(pipe, workers, board)
        if pipe in workers and not workers[pipe][1] and len(killed) < 2:
            killed.append(workers[pipe][0].pid)
            os.kill(workers[pipe][0].pid, signal.SIGKILL)
            workers[pipe][0].join()

    monkeypatch.setattr(local, "_receive", kill_when_idle)
    store = Store(tmp_path)
    outcome = study.run(store, study.runtime(workers=2))
    assert outcome.failed == {}
    assert len(killed) == 2
    assert len(store.all("result")) == 3
