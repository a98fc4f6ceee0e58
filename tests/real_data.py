"""Rows to test with: our own samples, which always are at hand, and the real data sets, where their folder is.

`PLR_TEST_DATA` names the folder of the real sets; without it `shared/data` beside the clone is taken if it is there. The samples
lie under the same names as the sets, so one test runs on both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SAMPLES", "both", "needs", "real"]

VARIABLE = "PLR_TEST_DATA"
SAMPLES = Path(__file__).parent / "samples"


def _folder() -> Path | None:
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_dir():
            raise pytest.UsageError(
                f"{VARIABLE} is {named!r}\n  expected: a folder\n  next: name one, or unset {VARIABLE}"
            )
        return Path(named).resolve()
    beside = Path(__file__).parents[2] / "shared" / "data"
    return beside.resolve() if beside.is_dir() else None


def real(name: str) -> Path | None:
    """Find a file or folder of the real sets, `None` where it is not at hand."""
    folder = _folder()
    return folder / name if folder is not None and (folder / name).exists() else None


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test where that part of the real sets is not at hand."""
    return pytest.mark.skipif(real(name) is None, reason=f"no real data: {VARIABLE} names no folder with {name}")


def both(name: str, *, samples: tuple[Any, ...] = (), sets: tuple[Any, ...] = (), label: str = "") -> list[Any]:
    """Parametrize by a path: that of the samples, then that of the real set; each with its own further values."""
    label = label and f"{label}-"
    return [
        pytest.param(SAMPLES / name, *samples, id=f"{label}samples"),
        pytest.param(real(name), *sets, id=f"{label}real", marks=needs(name)),
    ]
