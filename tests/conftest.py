"""Shared fixtures. Tests run with one thread: two on a shared machine can be slower than one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty store."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PLR_HOME", str(folder))
    return folder
