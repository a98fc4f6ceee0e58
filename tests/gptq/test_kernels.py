"""The torch path here, the Triton kernels under their interpreter, compiled for a GPU, and (marker gpu) on one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plr.gptq import PackedLinear, kernels

from .kernel_cases import Case, cases, check_dense, check_layer, check_products

HERE = Path(__file__).parent
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed: it comes with torch's CUDA wheels")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_torch_dequantizes_to_the_numbers_of_the_codes(case: Case) -> None:
    for dtype in (*DTYPES, torch.float64):
        check_dense(case, "cpu", dtype)


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_both_kernels_of_a_layer_agree(rows: int) -> None:
    check_layer("cpu", torch.float32, rows)


def test_on_a_cpu_torch_multiplies_and_says_why() -> None:
    name, why = kernels.kernel_in_use("cpu")
    assert name == "torch"
    assert "cpu has no Triton kernel" in why


@pytest.mark.parametrize(
    ("triton", "dtype", "capability", "compiler", "refusal", "why"),
    [
        (False, torch.float16, (9, 0), "gcc", "", "Triton is not installed"),
        (True, torch.float64, (9, 0), "gcc", "", r"fp16, bf16 and fp32, not torch\.float64"),
        (True, torch.float16, (7, 5), "gcc", "", r"from compute capability 8\.0 on; this GPU has 7\.5"),
        (True, torch.float16, (8, 6), None, "", "a C compiler"),
        (True, torch.float16, (8, 6), "gcc", "no Python.h", r"installed and does not work here: no Python\.h"),
        (True, torch.bfloat16, (8, 6), "gcc", "", "codes are read in the kernel up to 256 rows"),
    ],
)
def test_on_a_gpu_the_reason_names_what_is_missing(
    triton: bool, dtype: Any, capability: Any, compiler: Any, refusal: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_refusal", lambda device, dtype: refusal)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    kernels._kernel_in_use.cache_clear()
    try:
        found = kernels.kernel_in_use("cuda:0", dtype)
    finally:
        kernels._kernel_in_use.cache_clear()
    assert found.name == ("triton" if "codes" in why else "torch")
    assert re.search(why, found.why)


def test_triton_is_trusted_after_it_has_written_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from plr.gptq import triton_kernels
    from plr.gptq.packing import Codes

    def write(codes: Codes, dtype: torch.dtype) -> torch.Tensor:
        """What Triton's kernel writes, by torch."""
        return kernels.dequantize(codes, dtype)

    monkeypatch.setattr(triton_kernels, "dequantize", write)
    assert kernels._refusal("cpu", torch.float16) == ""

    def fail(codes: Codes, dtype: torch.dtype) -> torch.Tensor:
        raise OSError("fatal error: Python.h: No such file\ncompilation terminated")

    monkeypatch.setattr(triton_kernels, "dequantize", fail)
    assert kernels._refusal("cpu", torch.float16) == "fatal error: Python.h: No such file"

    def full(codes: Codes, dtype: torch.dtype) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_kernels, "dequantize", full)
    with pytest.raises(torch.OutOfMemoryError):  # no word against Triton
        kernels._refusal("cpu", torch.float16)


@pytest.mark.skipif(TRITON, reason="Triton is installed")
def test_without_triton_its_kernels_do_not_run() -> None:
    assert kernels._refusal("cpu", torch.float16)


@needs_triton
def test_under_the_interpreter_the_triton_kernels_give_the_oracles_numbers() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, str(HERE / "kernel_cases.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(len(list(cases()))), "cases"]


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_the_kernels_compile_to_tensor_cores_within_the_shared_memory_of_a_gpu(capability: int) -> None:
    """Without a GPU: Triton compiles for one that is not here. 99 KiB is what consumer GPUs (8.6, 8.9, 12.0) have."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from plr.gptq import triton_kernels

    target = GPUTarget("cuda", capability, 32)
    codes = {"qweight": "*i32", "qzeros": "*i32", "scales": "*fp16", "g_idx": "*i32"}
    numbers = dict.fromkeys(("M", "K", "N", "zero_words", "group"), "i32")
    dense = {"x": "*bf16", "dy": "*bf16", "bias": "*bf16", "y": "*bf16", "dx": "*bf16"}
    for bits, one_group in ((3, False), (4, True)):  # 3 bits in any order take the most
        chosen = {"BITS": bits, "OFFSET": 1, "ONE_GROUP": one_group, "SPLIT": 1, "BM": 64, "BN": 64, "BK": 64}
        for kernel in (triton_kernels._forward, triton_kernels._backward):
            types = {name: {**codes, **numbers, **dense}.get(name, "constexpr") for name in kernel.arg_names}
            constants = {(kernel.arg_names.index(name),): value for name, value in chosen.items()}
            aligned = [name for name, kind in types.items() if kind.startswith("*") or name in ("M", "K", "N")]
            attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
            source = ASTSource(kernel, signature=types, constexprs=constants, attrs=attributes)
            found = triton.compile(source, target=target, options={"num_stages": triton_kernels.STAGES})
            assert "mma" in found.asm["ptx"]
            assert found.metadata.shared <= 99 * 1024


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_on_a_gpu_the_kernels_give_the_oracles_numbers(case: Case, dtype: torch.dtype) -> None:
    assert kernels.kernel_in_use("cuda", dtype).name == "triton", kernels.kernel_in_use("cuda", dtype).why
    torch.manual_seed(0)
    check_dense(case, "cuda", dtype)
    for rows in (1, 16, 37, 200):
        for split in (None, 1, 3):
            check_products(case, "cuda", dtype, rows, split)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_on_a_gpu_both_kernels_of_a_layer_agree(rows: int, dtype: torch.dtype) -> None:
    check_layer("cuda", dtype, rows)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "case", [Case(4, (4096, 4096, 32), True, "gptq"), Case(3, (1536, 576, 9), True, "gptq")], ids=str
)
def test_on_a_gpu_true_sizes_and_equal_inputs_give_equal_outputs(case: Case) -> None:
    check_products(case, "cuda", torch.bfloat16, 64, None)
    codes, _ = case.make("cuda")
    x = torch.randn(7, codes.in_features, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(
        kernels.linear(x, codes, None, x.dtype, x.dtype), kernels.linear(x, codes, None, x.dtype, x.dtype)
    )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("rows", [64, 2048])
def test_on_a_gpu_training_keeps_k_bits_and_activations(rows: int) -> None:
    """Eight layers of 2048 x 2048: between forward and backward there is room for one dense weight, not for eight."""
    layers = [
        PackedLinear(2048, 2048, False, bits=4, groups=16, kernel="packed", dtype=torch.bfloat16) for _ in range(8)
    ]
    model = torch.nn.Sequential(*layers).cuda()
    x = torch.randn(rows, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    model(x).sum().backward()  # compile
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(x).sum().backward()
    dense, activations = 2048 * 2048 * 2, rows * 2048 * 2
    assert torch.cuda.max_memory_allocated() - before < 2 * dense + 24 * activations
