"""A few processes that execute answers, kept from sample to sample and replaced when one dies.

1. Each process (`plr.scoring.sql.process`) is started when it is needed, and has a thread here that feeds it.
2. Samples go to it in chunks and come back in order, so after a death the first one without a verdict is to blame.
3. That one is tried once more, unless it used up its CPU time, and then with the gold as its answer. If that ends the
   process too, the gold is to blame and the sample is undecidable; else the answer is. The run goes on with a new process.
4. Verdicts are given out as they come: who asks can work on the first ones (and parse SQL) while others are made.
5. A forked child starts processes of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Sequence

from plr.scoring.sql.judge import Verdict
from plr.scoring.sql.process import CPU_TIME, Sample, WorkerProcess

__all__ = ["Pool", "Sample", "default_workers", "shared_pool"]

CHUNK = 16


class Pool:
    """`workers` processes at most. Threads may share it."""

    def __init__(self, workers: int) -> None:
        self._locks = [threading.Lock() for _ in range(workers)]
        self._workers: list[WorkerProcess | None] = [None] * workers

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge each sample, in order.

        Raises:
            ResourceError: the processes do not start.
        """
        return list(self.verdicts(samples))

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        """Yield the verdicts of `judge`, begun at once, one by one. Closing the iterator ends the work early."""
        run = _Run(samples)
        for slot in range(min(len(self._workers), len(run.chunks))):
            threading.Thread(target=self._work, args=(slot, run), daemon=True).start()
        return run.results()

    def close(self) -> None:
        """End the processes; a later `judge` starts new ones."""
        for slot in range(len(self._workers)):
            self._drop(slot)

    def _work(self, slot: int, run: _Run) -> None:
        with self._locks[slot]:
            while (number := run.take()) is not None:
                try:
                    run.give(number, self._chunk(slot, run, run.chunks[number]))
                except BaseException as error:  # carried to the thread that asked
                    run.fail(error)

    def _chunk(self, slot: int, run: _Run, samples: Sequence[Sample]) -> list[Verdict]:
        done: list[Verdict] = []
        while len(done) < len(samples) and not run.ended:
            verdicts, why = self._ask(slot, samples[len(done) :])
            done += verdicts
            if why and not run.ended:
                done.append(self._blame(slot, samples[len(done)], why))
        return done

    def _blame(self, slot: int, sample: Sample, why: str) -> Verdict:
        """Make the verdict on a sample over which a process died."""
        if why != CPU_TIME:  # killed from outside, perhaps; used-up CPU time is its own doing
            verdicts, why = self._ask(slot, [sample])
            if verdicts:
                return verdicts[0]
        _, gold = self._ask(slot, [sample._replace(answer=sample.gold)])
        if gold:
            return Verdict("undecidable", f"the gold ends its process ({gold})")
        return Verdict("timeout" if why == CPU_TIME else "crash", f"the answer ends its process ({why})")

    def _ask(self, slot: int, samples: Sequence[Sample]) -> tuple[list[Verdict], str]:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = WorkerProcess()
        try:
            verdicts = worker.judge(samples)
        except BaseException:  # in the middle of an exchange: its answers would be taken for those to others
            self._drop(slot)
            raise
        if worker.why:
            self._drop(slot)
        return verdicts, worker.why

    def _drop(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.close()


class _Run:
    """The chunks of one request, and what the threads make of them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
        self._next = iter(range(len(self.chunks)))
        self._done: dict[int, list[Verdict]] = {}
        self._error: BaseException | None = None
        self.ended = False
        """Nobody waits any more: all is given out, an error was met, or the iterator was closed."""
        self._change = threading.Condition()

    def take(self) -> int | None:
        """Take the number of a chunk to work on, or None if there is nothing more to do."""
        with self._change:
            return None if self.ended else next(self._next, None)

    def give(self, number: int, verdicts: list[Verdict]) -> None:
        with self._change:
            self._done[number] = verdicts
            self._change.notify()

    def fail(self, error: BaseException) -> None:
        with self._change:
            self._error, self.ended = self._error or error, True
            self._change.notify()

    def results(self) -> Iterator[Verdict]:
        try:
            for number in range(len(self.chunks)):
                with self._change:
                    while number not in self._done and self._error is None:
                        self._change.wait()
                    if self._error is not None:
                        raise self._error
                    verdicts = self._done.pop(number)
                yield from verdicts
        finally:
            self.ended = True


def default_workers() -> int:
    """Count one worker for each core this process may use, four at most."""
    return min(4, len(os.sched_getaffinity(0)))


_shared: Pool | None = None
_sharing = threading.Lock()


def shared_pool() -> Pool:
    """Return the pool of this process."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = Pool(default_workers())
            atexit.register(_shared.close)
        return _shared


def _forget() -> None:
    """Forget the pool in a forked child: the parent's processes answer the parent."""
    global _shared, _sharing
    if _shared is not None:
        atexit.unregister(_shared.close)
    _shared, _sharing = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
