"""Importing GPTQModel leaves the hub's settings as the user made them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_importing_gptqmodel_keeps_the_hub_settings_and_says_nothing() -> None:
    pytest.importorskip("gptqmodel", reason="the extra gptqmodel is not installed")
    code = (
        "import os\nfrom plr.quiet import import_gptqmodel\n"
        "before = {k: v for k, v in os.environ.items() if k.startswith('HF_')}\n"
        "import_gptqmodel()\n"
        "assert {k: v for k, v in os.environ.items() if k.startswith('HF_')} == before\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": "mine"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
