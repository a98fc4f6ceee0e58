"""A few processes that execute answers, kept from sample to sample and replaced when one dies.

1. A worker is started when it is needed, as a program of its own (no fork of a process that holds torch), without
   the environment of this one. It ends when its input closes: with this process, however that ends.
2. Samples go to it in chunks and come back in order, so after a death the first one without a verdict is to blame.
3. That one is tried once more, unless it used up its CPU time, and then with the gold as its answer. If that ends the
   worker too, the gold is to blame and the sample is undecidable; else the answer is. The run goes on with a new worker.
4. A forked child starts workers of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from plr.errors import ResourceError
from plr.scoring.sql_judge import Verdict

__all__ = ["Pool", "Sample", "default_workers", "shared_pool"]

CHUNK = 16
WALL_SECONDS = 60.0
"""For a worker that neither answers nor uses CPU time, say because it is stopped."""
_CPU = "CPU time"


class Sample(NamedTuple):
    """What is judged: does ``answer`` do what ``gold`` does on databases of ``context``?"""

    context: str
    gold: str
    answer: str
    seed: int = 0


class _Died(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Worker:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "plr.scoring.sql_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
            bufsize=0,
        )
        self._buffer = b""
        try:
            self._read()
        except _Died as died:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise ResourceError(
                f"the process that executes SQL does not start ({died.why}): {said[-1] if said else 'it says nothing'}",
                hint="python -m plr.scoring.sql_worker shows why",
            ) from None

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Verdicts in order; fewer than samples if the process died over the next one (then :attr:`why` says how)."""
        self.why = ""
        verdicts: list[Verdict] = []
        try:
            assert self._process.stdin is not None
            message = b"".join(json.dumps(list(sample)).encode() + b"\n" for sample in samples)
            while message:
                message = message[self._process.stdin.write(message) or 0 :]
            for _ in samples:
                verdicts.append(self._read())
        except _Died as died:
            self.why = died.why
        except BrokenPipeError:  # it died before all was sent; what it wrote before is still there
            try:
                while len(verdicts) < len(samples):
                    verdicts.append(self._read())
            except _Died as died:
                self.why = died.why
        return verdicts

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> Verdict:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + WALL_SECONDS
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._process.kill()
                more = os.read(self._process.stdout.fileno(), 1 << 16)
                if not more:
                    code = self._process.wait()
                    if -code in (signal.SIGPROF, signal.SIGXCPU):
                        raise _Died(_CPU)
                    raise _Died(signal.Signals(-code).name if code < 0 else f"exit code {code}")
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return Verdict(*json.loads(line))


class Pool:
    """``workers`` processes at most. Threads may share it."""

    def __init__(self, workers: int) -> None:
        self._locks = [threading.Lock() for _ in range(workers)]
        self._workers: list[_Worker | None] = [None] * workers

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """A verdict for each sample, in order.

        Raises:
            ResourceError: the processes do not start.
        """
        verdicts: list[Verdict | None] = [None] * len(samples)
        starts = iter(range(0, len(samples), CHUNK))
        turn, failed = threading.Lock(), list[BaseException]()

        def work(slot: int) -> None:
            try:
                with self._locks[slot]:
                    while not failed:
                        with turn:
                            start = next(starts, None)
                        if start is None:
                            return
                        verdicts[start : start + CHUNK] = self._chunk(slot, samples[start : start + CHUNK])
            except BaseException as error:  # carried to the thread that asked
                failed.append(error)

        wanted = min(len(self._workers), -(-len(samples) // CHUNK))
        threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(1, wanted)]
        for thread in threads:
            thread.start()
        if samples:
            work(0)
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return [verdict for verdict in verdicts if verdict is not None]

    def close(self) -> None:
        """End the processes; a later :meth:`judge` starts new ones."""
        for slot in range(len(self._workers)):
            self._drop(slot)

    def _chunk(self, slot: int, samples: Sequence[Sample]) -> list[Verdict]:
        done: list[Verdict] = []
        while len(done) < len(samples):
            verdicts, why = self._ask(slot, samples[len(done) :])
            done += verdicts
            if why:
                done.append(self._blame(slot, samples[len(done)], why))
        return done

    def _blame(self, slot: int, sample: Sample, why: str) -> Verdict:
        """The verdict on a sample over which a worker died."""
        if why != _CPU:  # killed from outside, perhaps; used-up CPU time is its own doing
            verdicts, why = self._ask(slot, [sample])
            if verdicts:
                return verdicts[0]
        _, gold = self._ask(slot, [sample._replace(answer=sample.gold)])
        if gold:
            return Verdict("undecidable", f"the gold ends its process ({gold})")
        return Verdict("timeout" if why == _CPU else "crash", f"the answer ends its process ({why})")

    def _ask(self, slot: int, samples: Sequence[Sample]) -> tuple[list[Verdict], str]:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = _Worker()
        try:
            verdicts = worker.judge(samples)
        except (
            BaseException
        ):  # interrupted in the middle of an exchange: its answers would be taken for those to others
            self._drop(slot)
            raise
        if worker.why:
            self._drop(slot)
        return verdicts, worker.why

    def _drop(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.close()


def default_workers() -> int:
    """One for each core this process may use, four at most."""
    return min(4, len(os.sched_getaffinity(0)))


_shared: Pool | None = None
_sharing = threading.Lock()


def shared_pool() -> Pool:
    """The pool of this process."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = Pool(default_workers())
            atexit.register(_shared.close)
        return _shared


def _forget() -> None:
    """In a forked child: the parent's workers answer the parent."""
    global _shared, _sharing
    if _shared is not None:
        atexit.unregister(_shared.close)
    _shared, _sharing = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
