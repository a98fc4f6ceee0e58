"""The dtype of a device: asked of the hardware, the same at every call, and never more than torch's kernels can do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plr.core import precision
from plr.core.precision import cpu_has_bfloat16, fast_precision, may_have_gpu
from plr.core.runtime import Runtime
from plr.lm import choose_dtype

X86 = "processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl avx512dq{}\nbugs\t\t: bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd i8mm{}\n"


def a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = folder / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(precision, "CPUINFO", file)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        (X86.format(" avx512_bf16"), "bfloat16"),
        (X86.format(" amx_bf16"), "bfloat16"),
        (X86.format(""), "float32"),
        (ARM.format(" bf16"), "bfloat16"),
        (ARM.format(""), "float32"),
        ("", "float32"),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    text: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_cpu(tmp_path, monkeypatch, text)
    assert fast_precision("cpu") == dtype
    assert Runtime(device="cpu").precision() == dtype
    assert choose_dtype(torch.device("cpu")) == getattr(torch, dtype)


def test_where_the_system_does_not_say_it_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "none")
    assert fast_precision("cpu") == "float32"


@pytest.mark.parametrize(
    ("isa", "allowed"),
    [
        ("AVX2", False),
        ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE", False),
        ("avx512_core_bf16", True),
        ("AVX512_CORE_AMX", True),
        ("ALL", True),
    ],
)
def test_instructions_that_are_switched_off_do_not_count(
    isa: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_cpu(tmp_path, monkeypatch, X86.format(" avx512_bf16"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert cpu_has_bfloat16() is allowed


@pytest.mark.parametrize("isa", [None, "AVX2"])
def test_what_is_chosen_torch_can_multiply(isa: str | None) -> None:
    """oneDNN's own word is the oracle: it may have instructions that are not worth while, never the other way round."""
    code = (
        "import torch; from plr.core.precision import cpu_has_bfloat16;"
        "assert torch.ops.mkldnn._is_mkldnn_bf16_supported() or not cpu_has_bfloat16()"
    )
    settings = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    settings |= {} if isa is None else {"ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], check=True, env=settings, cwd=Path(__file__).parents[2])


def test_a_gpu_that_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "device", lambda device: _nothing())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert fast_precision("cuda:1") == "float32"
    assert asked == [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_dtype("cuda") == torch.bfloat16


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_device_of_another_kind_computes_in_float32() -> None:
    assert fast_precision("mps") == "float32"


def test_a_dtype_that_was_asked_for_is_taken() -> None:
    assert Runtime(dtype="float16").precision() == "float16"
    assert Runtime().computing_in("bfloat16").precision() == "bfloat16"
    assert Runtime(dtype="float16").computing_in(None).precision() == "float16"


def test_torch_is_asked_where_there_may_be_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def device(runtime: Runtime) -> str:
        asked.append(runtime.device)
        return "cpu"

    monkeypatch.setattr(Runtime, "torch_device", device)
    driver = tmp_path / "driver"
    monkeypatch.setattr(precision, "GPU_DRIVERS", (driver,))
    monkeypatch.setattr(sys, "platform", "linux")
    assert not may_have_gpu()
    Runtime().precision()
    assert asked == []
    driver.touch()
    Runtime().precision()
    Runtime(device="cpu").precision()
    assert asked == ["auto"]
