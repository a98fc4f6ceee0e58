"""One process that executes answers, seen from the parent: started, fed, read, and how it ended.

It is a program of its own (no fork of a process that holds torch), without the environment of this one, and ends when its input
closes: with this process, however that ends. Its verdicts are short and are read while it works, so neither side waits for
the other to empty a pipe.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from plr.errors import ResourceError
from plr.scoring.sql.judge import Verdict

__all__ = ["CPU_TIME", "WALL_SECONDS", "Sample", "WorkerProcess"]

WALL_SECONDS = 60.0
"""Limit for a worker that neither answers nor uses CPU time, say because it is stopped."""
CPU_TIME = "CPU time"
"""The reason of an end that the sample itself is guilty of."""


class Sample(NamedTuple):
    """A question to the judge: does `answer` do what `gold` does on databases of `context`?"""

    context: str
    gold: str
    answer: str
    seed: int = 0


class _Died(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class WorkerProcess:
    """A process and the pipes to it.

    Raises:
        ResourceError: it does not start.
    """

    def __init__(self) -> None:
        self.why = ""
        """Reason of its death; empty while it lives."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "plr.scoring.sql.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
            bufsize=0,
        )
        self._buffer = b""
        try:
            self._read()
        except _Died as died:
            self._errors.seek(0)
            output = self._errors.read().decode(errors="replace").strip().splitlines()
            raise ResourceError(
                f"the process that executes SQL does not start ({died.why}): {output[-1] if output else 'it says nothing'}",
                hint="python -m plr.scoring.sql.worker shows why",
            ) from None

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge samples in order; fewer than samples if the process died over the next one (then `why` says how)."""
        assert self._process.stdin is not None
        verdicts: list[Verdict] = []
        message = b"".join(json.dumps(list(sample)).encode() + b"\n" for sample in samples)
        try:
            while message:
                message = message[self._process.stdin.write(message) or 0 :]
        except BrokenPipeError:
            pass  # it died before all was sent; what it wrote before is still there
        try:
            while len(verdicts) < len(samples):
                verdicts.append(self._read())
        except _Died as died:
            self.why = died.why
        return verdicts

    def close(self) -> None:
        """End it: by its input, or after two seconds by force."""
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
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    code = self._process.wait()
                    if -code in (signal.SIGPROF, signal.SIGXCPU):
                        raise _Died(CPU_TIME)
                    raise _Died(signal.Signals(-code).name if code < 0 else f"exit code {code}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return Verdict(*json.loads(line))
