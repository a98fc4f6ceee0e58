"""Which kernel k-bit layers get: as asked, or by the device and its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.bases import load
from plr.bases.load import kernel_for
from plr.core.runtime import Runtime


@pytest.mark.parametrize(
    ("workers", "itemsize", "kernel"),
    [(1, 4, "dequantized"), (2, 4, "packed"), (2, 2, "dequantized"), (3, 2, "packed"), (1, 8, "packed")],
)
def test_dense_weights_are_kept_on_a_cpu_if_they_take_half_of_its_free_memory(
    workers: int, itemsize: int, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plr.gptq import checkpoint

    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    monkeypatch.setattr(load, "available_memory", lambda: 1000 * 1024)
    monkeypatch.setattr(checkpoint, "dense_bytes", lambda folder, itemsize: 100 * 1024 * itemsize)
    assert kernel_for(Runtime(device="cpu", workers=workers), tmp_path, itemsize) == kernel


def test_where_the_system_does_not_say_dense_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda: None)
    assert kernel_for(Runtime(device="cpu"), tmp_path, 4) == "dequantized"


@pytest.mark.parametrize("kernel", ["packed", "dequantized"])
def test_a_kernel_that_was_asked_for_is_taken(kernel: str, tmp_path: Path) -> None:
    assert kernel_for(Runtime.model_validate({"device": "cpu", "kernel": kernel}), tmp_path, 4) == kernel


def test_on_a_gpu_the_codes_are_read_in_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "torch_device", lambda self: "cuda")
    assert kernel_for(Runtime(), tmp_path, 4) == "packed"
