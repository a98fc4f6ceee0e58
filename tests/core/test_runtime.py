"""How much memory there is, and which devices compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plr.cli import doctor
from plr.core import runtime
from plr.core.runtime import Runtime, available_memory, device_refusal
from plr.errors import UsageError


def a_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: int, **container: str) -> None:
    """A machine with `free` kB available, in a container whose files read as given."""
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemFree: 7 kB\nMemAvailable:   {free} kB\n")
    for name, text in container.items():
        (folder / f"memory.{name}").write_text(text)
    monkeypatch.setattr(runtime, "MEMINFO", meminfo)
    monkeypatch.setattr(runtime, "CGROUP", folder)


def test_available_memory_is_that_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(tmp_path, monkeypatch, free=1000)
    assert available_memory() == 1000 * 1024
    a_machine(tmp_path, monkeypatch, free=1000, max="max\n", current="5\n")
    assert available_memory() == 1000 * 1024


def test_available_memory_is_that_of_the_container_if_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the container keeps as a cache of files is free for the asking."""
    a_machine(tmp_path, monkeypatch, free=1000, max="5000\n", current="4000\n", stat="anon 3\ninactive_file 500\n")
    assert available_memory() == 5000 - 4000 + 500


def test_where_the_system_does_not_say_nothing_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(runtime, "CGROUP", tmp_path / "none")
    assert available_memory() is None


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch lists a GPU and has no kernels for it."""
    ones = torch.ones

    def refuse(*sizes: int, device: str = "cpu", **more: Any) -> torch.Tensor:
        if device != "cpu":
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"
            )
        return ones(*sizes, **more)

    device_refusal.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    yield
    device_refusal.cache_clear()


def test_a_gpu_that_does_not_compute_leaves_the_cpu(broken_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    assert Runtime().torch_device() == "cpu"
    assert Runtime().torch_device() == Runtime(device="cpu").torch_device() == "cpu"
    assert caplog.messages == [
        "device cuda does not compute: CUDA error: no kernel image is available for execution on the device"
    ]


def test_a_gpu_that_does_not_compute_and_was_asked_for_is_an_error(broken_gpu: None) -> None:
    with pytest.raises(UsageError, match=r"device cuda:0 was asked for, and does not compute: CUDA error: no kernel"):
        Runtime(device="cuda:0").torch_device()


def test_doctor_names_a_gpu_that_does_not_compute(broken_gpu: None, tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    assert not checks["GPU"].ok
    assert checks["GPU"].found.startswith("unusable: CUDA error: no kernel image")
    assert checks["CPU"].found.split(", ")[1] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="device mps was asked for, and does not compute: "):
        Runtime(device="mps").torch_device()


def test_a_device_that_computes_is_not_refused() -> None:
    assert device_refusal("cpu") == ""
