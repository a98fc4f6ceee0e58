from __future__ import annotations

import pytest
import torch

from plr.lm import choose_dtype, dtype


@pytest.mark.parametrize(
    ("wide", "narrow", "chosen"), [(1.0, 0.5, torch.bfloat16), (1.0, 0.95, torch.float32), (0.5, 1.0, torch.float32)]
)
def test_narrow_type_is_chosen_only_where_it_is_clearly_faster(wide, narrow, chosen, monkeypatch):
    seconds = {torch.float32: wide, torch.bfloat16: narrow}
    monkeypatch.setattr(dtype, "_seconds", lambda device, kind, size: seconds[kind])
    dtype._measured.cache_clear()
    assert choose_dtype("cpu") == chosen
    dtype._measured.cache_clear()


def test_probe_runs_once_a_device(monkeypatch):
    calls = []
    measure = dtype._seconds
    monkeypatch.setattr(dtype, "_seconds", lambda *a: (calls.append(a), measure(*a))[1])
    dtype._measured.cache_clear()
    assert choose_dtype("cpu") in (torch.float32, torch.bfloat16)
    assert choose_dtype(torch.device("cpu")) == choose_dtype("cpu")
    assert len(calls) == 2
