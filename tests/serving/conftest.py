"""The stand-in for vLLM, for one test."""

from __future__ import annotations

import importlib.util

import pytest

from plr.serving.package import ENVIRONMENT

from .vllm_stand_in import LLM, install


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM itself is here")
    for name in ("HF_HUB_OFFLINE", *ENVIRONMENT):
        monkeypatch.setenv(name, "1")
    return install(monkeypatch)
