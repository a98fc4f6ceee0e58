"""Run command lines of plr with a fault at a chosen call, or with hostile input: quickly, and seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Effect(IntEnum):
    """What a call does to the folder."""

    LOOKS = 0
    CHANGES = 1
    GROWS = 3


class Happens(IntEnum):
    """What happens at the chosen call: see `shim.c`."""

    NOTHING = 0
    DEATH_BEFORE = 1
    DEATH_WITHIN = 2
    DEATH_AFTER = 3
    ONE_FAILS = 4
    NO_MORE_ROOM = 5
    READ_ONLY = 6


@dataclass(frozen=True)
class Fault:
    """`happens` at the call of number `at`; of a failure, its errno."""

    at: int = 0
    happens: Happens = Happens.NOTHING
    errno: int = 0


@dataclass(frozen=True)
class Point:
    """One call that touches the store."""

    number: int
    call: str
    effect: Effect
    path: str


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    cpu: float
    megabytes: float
    points: tuple[Point, ...] = ()

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def is_clear(self) -> bool:
        """Tell whether it ended in plr's own words: no traceback, and not the sentence for its defects."""
        return "Traceback" not in self.text and "defect of plr" not in self.text


class Forks:
    """A client of `server.py`."""

    def __init__(self, *, faults: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "points"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if faults:
            environment["LD_PRELOAD"] = str(_built(Path(self._folder.name)))
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def run(
        self,
        *argv: str,
        home: Path,
        cwd: Path | None = None,
        fault: Fault | None = None,
        seconds: float = 120,
        **environment: str,
    ) -> Ran:
        """Run ``plr ARGV`` on the store `home`; with a `fault` its points are counted, and listed in what comes back."""
        assert self._server.stdin is not None
        self._log.write_text("")
        request = {
            "argv": argv,
            "home": str(home),
            "cwd": str(cwd or home.parent),
            "fault": fault and [fault.at, fault.happens, fault.errno],
            "log": str(self._log),
            "seconds": seconds,
            "environment": environment,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._read()
        calls = [line.split(" ", 3) for line in self._log.read_text(errors="replace").splitlines()]
        points = tuple(Point(int(number), call, Effect(int(effect)), path) for number, call, effect, path in calls)
        return Ran(**answer, points=points)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the server of forks has ended")
        return json.loads(line)


def _built(folder: Path) -> Path:
    library = folder / "shim.so"
    done = subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "shim.c"), "-ldl"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return library


def compiler_or_skip() -> None:
    from shutil import which

    if sys.platform != "linux" or which("cc") is None:
        pytest.skip("faults are injected by a preloaded C library: this needs Linux and a C compiler")
