"""What every measured script does: read its options, time its stages, print one line of JSON at the end.

Standard library only at import: the scripts beside this one run in other environments. Clocks start after the imports.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["MARK", "Clock", "options", "peak_rss", "preload"]

MARK = "BENCH-RESULT "
PACKAGES = ("plr", "torch", "transformers", "gptqmodel", "optimum", "lm_eval", "numpy")


def options() -> dict[str, Any]:
    """The one argument of the script, a JSON object."""
    return json.loads(sys.argv[1])


def preload(model: str) -> None:
    """Import what transformers would import on the first `from_pretrained` of the folder `model`: no clock runs yet."""
    import transformers

    for name in transformers.AutoConfig.from_pretrained(model).architectures or []:
        getattr(transformers, name)


class Clock:
    """Wall and CPU seconds of named stages, and of everything from the clock's making to `report`."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._start = _now()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds to the stage `name`: a stage entered twice counts both times."""
        start = _now()
        yield
        spent = self.stages.setdefault(name, {"wall": 0.0, "cpu": 0.0})
        for key, value in _since(start).items():
            spent[key] += value

    def report(self, **fields: Any) -> None:
        """Print the result: the stages, the whole, the peak of resident memory, versions, and `fields`."""
        self.stages["whole"] = _since(self._start)
        result = {"stages": self.stages, "peak_rss": peak_rss(), "versions": _versions(), **fields}
        print("\n" + MARK + json.dumps(result), flush=True)


def _now() -> dict[str, float]:
    """CPU seconds are those of all threads, and of child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": time.perf_counter(), "cpu": time.process_time() + children.ru_utime + children.ru_stime}


def _since(start: dict[str, float]) -> dict[str, float]:
    return {key: value - start[key] for key, value in _now().items()}


def peak_rss() -> int:
    """Bytes. Of this process alone where /proc says so: getrusage counts the parent's memory before exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "threads": os.environ.get("OMP_NUM_THREADS", "")}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
