"""The option `--cpu-durations=N`: the N tests that take most processor time, of this process and of children that ended.

Seconds on a clock say how busy the machine was; these say what a test asks of it. What a shared fixture costs counts for the test
that asks for it first, and stands apart as its set-up.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["CpuDurations"]


def cpu_seconds() -> float:
    """Count the processor time of this process and of its children that ended, in user and system mode."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class CpuDurations:
    """A plugin that counts each phase of each test and lists the dearest in the summary."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.phases: dict[str, dict[str, float]] = {}

    def _count(self, item: pytest.Item, phase: str) -> Generator[None, Any, Any]:
        start = cpu_seconds()
        try:
            return (yield)
        finally:
            self.phases.setdefault(item.nodeid, {})[phase] = cpu_seconds() - start

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._count(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._count(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._count(item, "teardown"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        totals = {test: sum(phases.values()) for test, phases in self.phases.items()}
        dearest = sorted(totals, key=lambda test: -totals[test])[: self.rows]
        terminalreporter.section(f"processor time: {sum(totals.values()):.1f} s in {len(totals)} tests")
        for test in dearest:
            setup = self.phases[test].get("setup", 0.0)
            terminalreporter.line(f"{totals[test]:7.1f} s  (set-up {setup:.1f} s)  {test}")
