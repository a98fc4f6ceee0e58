"""Run a job in this process: build each step and commit it to the store.

Workers are imported inside the functions that run them, so that planning takes no torch.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plr.core.files import disk_full, system_error
from plr.core.fingerprint import JsonObject
from plr.core.launcher import is_follower, strays_ignored
from plr.core.memory import out_of_memory
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Quantize, Restore, Step, Train
from plr.core.store import Artifact, Store
from plr.engines.plan import Event, OnEvent, Plan
from plr.errors import DiskFullError, PlrError, ResourceError, TrainingError
from plr.tasks.data.gold import check_gold

if TYPE_CHECKING:
    from plr.bases.quantize import SourceHolder
    from plr.evaluation.holder import BaseHolder

__all__ = ["make", "run_job"]


class Workbench:
    """Models that the steps of one job share: a source of quantizations or a base of evaluations, never both."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store = store
        self.runtime = runtime
        self._source: SourceHolder | None = None
        self._base: BaseHolder | None = None

    def source(self) -> SourceHolder:
        """Hold the source that quantizations share."""
        from plr.bases.quantize import SourceHolder

        self._base = None
        if self._source is None:
            self._source = SourceHolder(self.runtime)
        return self._source

    def base(self) -> BaseHolder:
        """Hold the base that evaluations share."""
        from plr.evaluation.holder import BaseHolder

        self._source = None
        if self._base is None:
            self._base = BaseHolder(self.store, self.runtime)
        return self._base

    def clear(self) -> None:
        """Let go of what is held."""
        self._source = self._base = None


def run_job(job: Sequence[Step], store: Store, runtime: Runtime, on_event: OnEvent) -> None:
    """Make every step of `job`; a step that fails is reported and the others go on.

    Raises:
        DiskFullError: going on would fail at every step.
    """
    runtime.apply_threads()
    bench = Workbench(store, runtime)
    for step in job:
        try:
            _make(step, bench, on_event)
        except PlrError as error:
            on_event(Event("failed", step.fingerprint, error=str(error), exit_code=error.exit_code))
            if isinstance(error, DiskFullError):
                raise
        except Exception as error:
            # A defect, not a situation of the user's: keep where it happened, let the rest of the study go on.
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            on_event(Event("failed", step.fingerprint, error=text, exit_code=1))


def make(steps: Sequence[Step], store: Store, runtime: Runtime, on_event: OnEvent | None = None) -> list[Artifact]:
    """Make `steps` and everything they need, in this process, and return their artifacts.

    Under `accelerate launch` the first process alone writes to the store; the others take part in the training.

    Raises:
        PlrError: whatever a step raised.
    """
    runtime.apply_threads()
    bench, report = Workbench(store, runtime), on_event or _unheard
    plan = Plan.of(steps, store)
    check_gold(plan.missing)
    for need in plan.steps:
        if is_follower() and isinstance(need, Train):
            _follow(need, bench, report)
        else:
            _make(need, bench, report)
    return [store.require(step) for step in steps]


def _unheard(event: Event) -> None: ...


def _make(step: Step, bench: Workbench, on_event: OnEvent) -> None:
    """Find or make one step, and report both."""
    started = time.perf_counter()
    on_event(Event("started", step.fingerprint))
    _, is_new = bench.store.make(step, lambda folder: _build(step, folder, bench, on_event))
    on_event(Event("made" if is_new else "found", step.fingerprint, seconds=time.perf_counter() - started))


def _follow(step: Train, bench: Workbench, on_event: OnEvent) -> None:
    """Take part in a training that the first process writes."""
    with tempfile.TemporaryDirectory() as scratch:
        _build(step, Path(scratch), bench, on_event)
    with bench.store.lock(step):  # the first process holds it until the adapter is committed, or until it ends
        pass
    if bench.store.get(step) is None:
        raise TrainingError(
            f"the first process left no {step.label} in {bench.store.home}",
            expected="one store for all processes of a launch",
            hint="read what the first process says; give all of them the same PLR_HOME",
        )


def _build(step: Step, folder: Path, bench: Workbench, on_event: OnEvent) -> JsonObject:
    """Carry out one step in an empty folder, and return the metrics to record."""

    def progress(done: int, total: int) -> None:
        on_event(Event("progress", step.fingerprint, done=done, total=total))

    from plr.core.quiet import quiet_libraries

    quiet_libraries()
    with _resources(step):
        if isinstance(step, Quantize):
            return bench.source().quantize(step, folder, progress, work=bench.store.work(step))
        if isinstance(step, Evaluate):
            from plr.evaluation.evaluate import evaluate

            return dict(evaluate(step, folder, bench.base(), progress))
        bench.clear()
        if isinstance(step, Train):
            from plr.training.train import train

            with strays_ignored():
                return train(step, folder, bench.store, bench.runtime, progress)
        if isinstance(step, Restore):
            from plr.restoration.restore import restore

            return restore(step, folder, bench.store, bench.runtime, progress)
    raise TypeError(f"no worker for a step of kind {step.kind}")


@contextmanager
def _resources(step: Step) -> Generator[None]:
    """Turn lack of memory and a full disk, as the libraries report them, into errors that name the step."""
    try:
        yield
    except PlrError:
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise ResourceError(
                f"out of memory in {step.label}",
                hint="lower runtime.micro_batch or runtime.slots, or use kernel packed: results do not change",
            ) from error
        if disk_full(error):
            raise DiskFullError(
                f"the disk is full while writing {step.label}",
                hint="free some space (plr gc) and run the same command again: finished steps are kept",
            ) from error
        if not isinstance(error, OSError) and (behind := system_error(error)) is not None:
            raise PlrError(
                f"{behind.strerror} in {step.label}",
                hint="look at the disk of the store, and run the same command again: finished steps are kept",
            ) from error
        raise
