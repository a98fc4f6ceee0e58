"""The local engine: jobs in this process, or in worker processes of this machine.

Each worker is a fresh process (spawned, so that no thread or CUDA state is inherited) that imports torch once and takes jobs
over a pipe. The scheduler is the only one that decides; workers commit to the store themselves, under its locks, so a second
`plr grid` on the same study shares the work instead of repeating it. On Linux a worker dies with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from plr.core.runtime import Runtime
from plr.core.specs import Step, step_from_json
from plr.core.store import Store
from plr.engines.base import Engine, Outcome, engines
from plr.engines.jobs import run_job
from plr.engines.plan import Event, Plan, ready_jobs
from plr.errors import PlrError
from plr.tasks.data.gold import check_gold

__all__ = ["LocalEngine"]

_PR_SET_PDEATHSIG = 1
_GOODBYE_SECONDS = 10


class LocalEngine(Engine):
    """The engine of one machine: `runtime.workers` processes; with one, this process does the work."""

    def run(self, plan: Plan, store: Store, runtime: Runtime, on_event: Callable[[Event], None]) -> Outcome:
        board = _Board(plan, on_event)
        for fingerprint in plan.cached:
            board.event(Event("found", fingerprint))
        check_gold(plan.missing)
        if runtime.workers == 1:
            while jobs := board.jobs(1):
                run_job(jobs[0], store, runtime, board.event)
        else:
            _run_in_workers(board, store, runtime)
        board.fail_blocked()
        return board.outcome


class _Board:
    """The state of a run: which steps are open, running, done and failed."""

    def __init__(self, plan: Plan, on_event: Callable[[Event], None]) -> None:
        self.open = {step.fingerprint: step for step in plan.missing}
        self.running: set[str] = set()
        self.outcome = Outcome()
        self.not_run: dict[str, str] = {}
        """Steps that wait for one that failed: fingerprint -> which, and why."""
        self.on_event = on_event

    def jobs(self, workers: int) -> list[list[Step]]:
        waiting = [s for f, s in self.open.items() if f not in self.running]
        return ready_jobs(waiting, self.outcome.done, workers)

    def event(self, event: Event) -> None:
        if event.what in ("made", "found"):
            self.outcome.done.add(event.fingerprint)
            self.open.pop(event.fingerprint, None)
        elif event.what == "failed":
            self.outcome.failed[event.fingerprint] = event.error
            self.open.pop(event.fingerprint, None)
        self.on_event(event)

    def fail_blocked(self) -> None:
        """Fail every step that is still open: each waits for one that failed."""
        while self.open:
            for fingerprint, step in list(self.open.items()):
                causes = [need for need in step.inputs if need.fingerprint in self.outcome.failed]
                if causes:
                    cause = causes[0].fingerprint
                    reason = f"not run: {causes[0].label} failed: {self.outcome.failed[cause]}"
                    text = self.not_run[fingerprint] = self.not_run.get(cause, reason)
                    self.event(Event("failed", fingerprint, error=text))


def _run_in_workers(board: _Board, store: Store, runtime: Runtime) -> None:
    context = multiprocessing.get_context("spawn")
    threads = runtime.threads or max(1, (os.cpu_count() or 1) // runtime.workers)
    settings = runtime.model_copy(update={"threads": threads}).model_dump(mode="json")
    workers: dict[Connection, tuple[Any, list[Step]]] = {}
    try:
        while True:
            idle = [pipe for pipe, (_, job) in workers.items() if not job]
            for job in board.jobs(runtime.workers):
                if not idle and len(workers) < runtime.workers:
                    idle.append(_start(context, str(store.home), settings, threads, workers))
                if not idle:
                    break
                pipe = idle.pop()
                try:
                    pipe.send([step.model_dump(mode="json") for step in job])
                except OSError:  # it died while it was idle: another takes its place, and the job
                    workers.pop(pipe)[0].join()
                    continue
                board.running.update(step.fingerprint for step in job)
                workers[pipe] = (workers[pipe][0], list(job))
            busy = [pipe for pipe, (_, job) in workers.items() if job]
            if not busy:
                if board.jobs(runtime.workers):
                    continue
                return
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                _receive(pipe, workers, board)
    finally:
        for pipe in workers:
            pipe.close()  # an idle worker reads the end of its pipe and goes home by itself
        for process, job in workers.values():
            process.join(timeout=0 if job else _GOODBYE_SECONDS)
            process.terminate()
            process.join()


def _start(
    context: Any, home: str, settings: dict[str, Any], threads: int, workers: dict[Connection, tuple[Any, list[Step]]]
) -> Connection:
    ours, theirs = context.Pipe()
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child's OpenMP when it starts
    try:
        process = context.Process(target=_work, args=(theirs, home, settings, os.getpid()), daemon=True)
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    theirs.close()
    workers[ours] = (process, [])
    return ours


def _receive(pipe: Connection, workers: dict[Connection, tuple[Any, list[Step]]], board: _Board) -> None:
    process, job = workers[pipe]
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # OSError: a message of which a part arrived
        process.join()
        for step in job:
            if step.fingerprint in board.open:
                text = f"the worker process ended with code {process.exitcode}" + (
                    ": killed, most likely for memory" if process.exitcode == -signal.SIGKILL else ""
                )
                board.event(Event("failed", step.fingerprint, error=text, exit_code=4))
        board.running.difference_update(step.fingerprint for step in job)
        del workers[pipe]
        return
    if isinstance(message, Event):
        board.event(message)
    elif message == "idle":
        board.running.difference_update(step.fingerprint for step in job)
        workers[pipe] = (process, [])
    else:
        raise message


def _work(pipe: Connection, home: str, settings: dict[str, Any], parent: int) -> None:
    """Run jobs until the pipe closes: a list of steps in, events out, then `idle`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    runtime, store = Runtime.model_validate(settings), Store(Path(home))
    while True:
        try:
            job = [step_from_json(value) for value in pipe.recv()]
        except EOFError:
            return
        try:
            try:
                run_job(job, store, runtime, pipe.send)
            except PlrError as error:
                pipe.send(error)
            else:
                pipe.send("idle")
        except (BrokenPipeError, ConnectionResetError):  # the parent was ended, and says so itself
            return


engines.register("local")(LocalEngine())
