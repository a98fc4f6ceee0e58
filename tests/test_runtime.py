"""Which kernel k-bit layers get, and how much memory there is for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr import runtime
from plr.runtime import Runtime, available_memory

CPU = Runtime(device="cpu")


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
    assert CPU.kernel_name(tmp_path) == "dequantized"


@pytest.mark.parametrize(
    ("workers", "itemsize", "kernel"),
    [(1, 4, "dequantized"), (2, 4, "packed"), (2, 2, "dequantized"), (3, 2, "packed"), (1, 8, "packed")],
)
def test_dense_weights_are_kept_on_a_cpu_if_they_take_half_of_its_free_memory(
    workers: int, itemsize: int, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plr.gptq import checkpoint

    a_machine(tmp_path, monkeypatch, free=1000)
    monkeypatch.setattr(checkpoint, "dense_bytes", lambda folder, itemsize: 100 * 1024 * itemsize)
    machine = Runtime(device="cpu", workers=workers)
    assert machine.kernel_name(tmp_path, itemsize=itemsize) == kernel
    assert machine.kernel_name() == "dequantized"


@pytest.mark.parametrize("kernel", ["packed", "dequantized"])
def test_a_kernel_that_was_asked_for_is_taken(kernel: str, tmp_path: Path) -> None:
    assert Runtime(device="cpu", kernel=kernel).kernel_name(tmp_path) == kernel  # pyright: ignore[reportArgumentType]


def test_on_a_gpu_the_codes_are_read_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "torch_device", lambda self: "cuda")
    assert Runtime().kernel_name() == "packed"
