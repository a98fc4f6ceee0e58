"""What an adapter costs is measured."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from plr.training import costs
from plr.training.costs import inference_overhead, peak_memory, reset_peak_memory


class Slow(nn.Module):
    """Passes on a clock of its own: 2 s without the adapter, with it the next of `seconds`."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.now, self.on, self.seconds = 0.0, True, list(seconds)

    @contextmanager
    def disable_adapter(self) -> Any:
        self.on = False
        yield
        self.on = True

    def forward(self) -> None:
        self.now += self.seconds.pop(0) if self.on else 2.0


def test_overhead_is_the_median_ratio_of_on_to_off_after_a_pass_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(1000.0, 4.0, 5.0, 6.0, 8.0, 9.0, 70.0)
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: model.now))
    assert inference_overhead(model, model) == 3.5
    assert model.seconds == []


def test_a_model_without_an_adapter_beside_it_has_none() -> None:
    assert inference_overhead(nn.Linear(2, 2), lambda: pytest.fail("nothing to measure")) == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset by Linux alone")
def test_the_peak_is_that_of_one_step() -> None:
    """An earlier step's peak is forgotten; memory that was touched and freed since counts."""
    big = np.ones(40_000_000)
    del big
    reset_peak_memory()
    before = peak_memory()
    touched = np.ones(20_000_000)
    assert peak_memory() - before >= 0.9 * touched.nbytes
    del touched
    after = peak_memory()
    reset_peak_memory()
    assert peak_memory() < after - 100_000_000
