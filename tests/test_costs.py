"""What an adapter costs is measured."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import nn

from plr.costs import inference_overhead, peak_memory, reset_peak_memory


class Slow(nn.Module):
    """A pass takes 4 ms with its adapter on, 2 ms without."""

    seconds = 0.004

    @contextmanager
    def disable_adapter(self) -> Any:
        self.seconds = 0.002
        yield
        self.seconds = 0.004


def test_overhead_is_the_ratio_of_on_to_off() -> None:
    model = Slow()
    assert inference_overhead(model, lambda: time.sleep(model.seconds)) == pytest.approx(2, rel=0.3)


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
