"""The list of the dearest tests counts processor time, of children too, and not the time on the clock."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

from cpu_durations import CpuDurations

BURN = "import time\nwhile time.process_time() < 0.5: pass"


def _spend(plugin: CpuDurations, name: str, work: Any) -> None:
    item: Any = SimpleNamespace(nodeid=name)
    phase = plugin.pytest_runtest_call(item)
    next(phase)
    work()
    with contextlib.suppress(StopIteration):
        phase.send(None)


def test_work_of_a_child_counts_and_waiting_does_not() -> None:
    plugin, lines = CpuDurations(1), list[str]()
    _spend(plugin, "waits", lambda: time.sleep(0.6))
    _spend(plugin, "asks a child", lambda: subprocess.run([sys.executable, "-c", BURN], check=True))
    assert plugin.phases["asks a child"]["call"] > 0.45 > plugin.phases["waits"]["call"]
    reporter: Any = SimpleNamespace(section=lines.append, line=lines.append)
    plugin.pytest_terminal_summary(reporter)
    assert [line.split("  ")[-1] for line in lines[1:]] == ["asks a child"]
