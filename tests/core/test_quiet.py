"""Importing GPTQModel leaves the hub's settings as the user made them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from plr.core import quiet
from plr.errors import MissingDependencyError


def test_importing_gptqmodel_keeps_the_hub_settings_and_says_nothing() -> None:
    pytest.importorskip("gptqmodel", reason="the extra gptqmodel is not installed")
    code = (
        "import os\nfrom plr.core.quiet import import_gptqmodel\n"
        "before = {k: v for k, v in os.environ.items() if k.startswith('HF_')}\n"
        "import_gptqmodel()\n"
        "assert {k: v for k, v in os.environ.items() if k.startswith('HF_')} == before\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": "mine"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""


def test_a_gptqmodel_that_cannot_be_imported_says_why_and_keeps_the_hub_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> Any:
        os.environ["HF_HUB_CACHE"] = "its own"
        raise ImportError("undefined symbol: _ZN3c10\nin gptqmodel.so")

    monkeypatch.delitem(sys.modules, "gptqmodel", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", "mine")
    monkeypatch.setattr(quiet.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(quiet.importlib, "import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported: undefined symbol: _ZN3c10\n"):
        quiet.import_gptqmodel()
    assert os.environ["HF_HUB_CACHE"] == "mine"


def test_a_warning_after_a_silenced_import_is_heard() -> None:
    """GPTQModel has a handler made while it is imported, on the stream that is thrown away."""
    root = logging.getLogger()
    before = [*root.handlers]
    with quiet.silenced():
        root.addHandler(logging.StreamHandler())
        root.setLevel(logging.CRITICAL)
    assert root.handlers == before
    assert root.isEnabledFor(logging.WARNING)
