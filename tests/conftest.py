"""Shared fixtures. Tests run with one thread: two on a shared machine can be slower than one.

No test is timed: a slow or busy machine is no fault.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from cpu_durations import CpuDurations

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-durations", type=int, default=0, metavar="N", help="list the N tests that take most processor time"
    )


def pytest_configure(config: pytest.Config) -> None:
    if rows := config.getoption("--cpu-durations"):
        config.pluginmanager.register(CpuDurations(rows), "cpu-durations")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty store."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PLR_HOME", str(folder))
    return folder
