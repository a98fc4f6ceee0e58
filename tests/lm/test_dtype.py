"""The dtype of a device: what the hardware lacks is not measured, what it has is."""

from __future__ import annotations

import pytest
import torch

from plr.lm import choose_dtype, dtype


@pytest.fixture(autouse=True)
def unmeasured():
    """No device has been measured yet, nor has one when the test is over."""
    dtype._measured.cache_clear()
    yield
    dtype._measured.cache_clear()


@pytest.fixture
def hardware(monkeypatch):
    """A device with instructions for bfloat16, whatever this machine has."""
    monkeypatch.setattr(dtype, "_multiplies_bfloat16", lambda device: True)


@pytest.mark.parametrize(
    ("wide", "narrow", "chosen"), [(1.0, 0.5, torch.bfloat16), (1.0, 0.95, torch.float32), (0.5, 1.0, torch.float32)]
)
def test_narrow_type_is_chosen_only_where_it_is_clearly_faster(wide, narrow, chosen, hardware, monkeypatch):
    seconds = {torch.float32: wide, torch.bfloat16: narrow}
    monkeypatch.setattr(dtype, "_seconds", lambda device, kind, size: seconds[kind])
    assert choose_dtype("cpu") == chosen


def test_probe_runs_once_a_device(hardware, monkeypatch):
    calls = []
    measure = dtype._seconds
    monkeypatch.setattr(dtype, "_seconds", lambda *a: (calls.append(a), measure(*a))[1])
    assert choose_dtype("cpu") in (torch.float32, torch.bfloat16)
    assert choose_dtype(torch.device("cpu")) == choose_dtype("cpu")
    assert len(calls) == 2


def unmeasurable(*_):
    pytest.fail("measured")


def test_a_cpu_without_the_instructions_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(dtype, "_seconds", unmeasurable)
    assert choose_dtype("cpu") == torch.float32


def test_a_gpu_that_emulates_it_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(dtype, "_seconds", unmeasurable)
    assert choose_dtype("cuda:1") == torch.float32


def test_a_torch_that_cannot_be_asked_is_measured(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(dtype, "_seconds", lambda device, kind, size: kind.itemsize)
    assert choose_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("refusal", [RuntimeError("no kernel image"), TypeError("MPS has no BFloat16")])
def test_a_device_that_refuses_bfloat16_computes_in_float32(refusal, hardware, monkeypatch):
    def seconds(device, kind, size):
        if kind == torch.bfloat16:
            raise refusal
        return 1.0

    monkeypatch.setattr(dtype, "_seconds", seconds)
    assert choose_dtype("mps") == torch.float32
