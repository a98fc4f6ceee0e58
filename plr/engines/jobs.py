"""Run a job in this process: build each step and commit it to the store.

Workers are imported inside the functions that run them, so that planning takes no torch.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plr.core.files import disk_full
from plr.core.memory import out_of_memory
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Quantize, Restore, Step, Train
from plr.core.store import Artifact, Store
from plr.engines.plan import Event, OnEvent, Plan
from plr.errors import DiskFullError, PlrError, ResourceError

__all__ = ["make", "run_job"]


def run_job(job: Sequence[Step], store: Store, runtime: Runtime, on_event: OnEvent) -> None:
    """Make every step of ``job``; a step that fails is reported and the others go on.

    Raises:
        DiskFullError: going on would fail at every step.
    """
    runtime.apply_threads()
    holder: list[Any] = []
    for step in job:
        started = time.perf_counter()
        on_event(Event("started", step.fingerprint))
        try:
            _, made = store.make(step, lambda folder, step=step: _build(step, folder, store, runtime, on_event, holder))
        except PlrError as error:
            failed = Event("failed", step.fingerprint, error=str(error), exit_code=error.exit_code)
            on_event(failed)
            if isinstance(error, DiskFullError):
                raise
        except Exception as error:
            # A defect, not a situation of the user's: keep where it happened, let the rest of the study go on.
            import traceback

            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            on_event(Event("failed", step.fingerprint, error=text, exit_code=1))
        else:
            on_event(Event("made" if made else "found", step.fingerprint, seconds=time.perf_counter() - started))


def make(steps: Sequence[Step], store: Store, runtime: Runtime, on_event: OnEvent | None = None) -> list[Artifact]:
    """Make ``steps`` and everything they need, in this process; their artifacts.

    Under ``accelerate launch`` the first process alone writes to the store; the others take part in the training.

    Raises:
        PlrError: whatever a step raised.
    """
    runtime.apply_threads()
    report = on_event or (lambda event: None)
    holder: list[Any] = []
    follower = int(os.environ.get("RANK", "0")) > 0
    for need in Plan.of(steps, store).steps:
        if follower and isinstance(need, Train):
            with tempfile.TemporaryDirectory() as scratch:
                _build(need, Path(scratch), store, runtime, report, holder)
            while store.get(need) is None:  # the first process is writing it; if it dies, its launcher ends this one
                time.sleep(0.1)
            continue
        report(Event("started", need.fingerprint))
        started = time.perf_counter()
        _, made = store.make(need, lambda folder, need=need: _build(need, folder, store, runtime, report, holder))
        report(Event("made" if made else "found", need.fingerprint, seconds=time.perf_counter() - started))
    return [store.require(step) for step in steps]


def _build(
    step: Step, folder: Path, store: Store, runtime: Runtime, on_event: OnEvent, holder: list[Any]
) -> dict[str, Any]:
    """Carry out one step; ``holder`` keeps what the next step of the same job may share: a source, or a base."""

    def progress(done: int, total: int) -> None:
        on_event(Event("progress", step.fingerprint, done=done, total=total))

    from plr.core.quiet import quiet_libraries

    quiet_libraries()
    with _memory_errors(step):
        if isinstance(step, Quantize):
            from plr.bases.quantize import SourceHolder

            if not isinstance(holder[0] if holder else None, SourceHolder):
                holder[:] = [SourceHolder(runtime)]
            return holder[0].quantize(step, folder, progress, work=store.work(step))
        if not isinstance(step, Evaluate):
            holder.clear()
        if isinstance(step, Train):
            from plr.training.train import train

            return train(step, folder, store, runtime, progress)
        if isinstance(step, Restore):
            from plr.restoration.restore import restore

            return restore(step, folder, store, runtime, progress)
        if isinstance(step, Evaluate):
            from plr.evaluation.evaluate import evaluate
            from plr.evaluation.holder import BaseHolder

            if not isinstance(holder[0] if holder else None, BaseHolder):
                holder[:] = [BaseHolder(store, runtime)]
            return dict(evaluate(step, folder, holder[0], progress))
    raise TypeError(f"no worker for a step of kind {step.kind}")


class _memory_errors:
    """Turns out-of-memory and a full disk, as the libraries report them, into ResourceError."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, PlrError):
            return
        if out_of_memory(error):
            raise ResourceError(
                f"out of memory in {self.step.label}",
                hint="lower runtime.micro_batch or runtime.slots, or use kernel packed: results do not change",
            ) from error
        if disk_full(error):
            raise DiskFullError(
                f"the disk is full while writing {self.step.label}",
                hint="free some space (plr gc) and run the same command again: finished steps are kept",
            ) from error
