"""The walk with one block in memory, input correction, and going on after a kill: the same bytes in every way."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plr.gptq import PackedLinear, WalkError, layers, quantize_model
from plr.gptq.blocks import named_modules

from .conftest import ARCHITECTURES, make_batches, make_model

BEST: dict[str, Any] = {"sym": False, "grid": "hessian", "act_group_aware": True, "refine_passes": 2}


def buffers(model: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{buffer}": getattr(module, buffer)
        for name, module in named_modules(model)
        if isinstance(module, PackedLinear)
        for buffer in ("qweight", "qzeros", "scales", "g_idx")
    }


def quantized(name: str, **options: Any) -> dict[str, Tensor]:
    model = make_model(name)
    quantize_model(model, make_batches(), **{"bits": 4, "group_size": 16, **options})
    return buffers(model)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("correction", [0.0, 0.5])
def test_low_memory_gives_the_same_bytes(name: str, correction: float, tmp_path: Path) -> None:
    options = {"input_correction": correction, "measure_rtn": False}
    assert_same(quantized(name, low_memory=True, work=tmp_path, **options), quantized(name, **options))
    assert not list(tmp_path.glob("states-*"))


def test_low_memory_leaves_a_model_of_16_bits_in_its_own_dtype() -> None:
    half = make_model("llama").to(torch.bfloat16)
    full = make_model("llama").to(torch.bfloat16).float()
    quantize_model(half, make_batches(), bits=4, group_size=16, low_memory=True)
    quantize_model(full, make_batches(), bits=4, group_size=16)
    assert_same(buffers(half), buffers(full))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("correction", [0.0, 0.5])
@pytest.mark.parametrize("killed_after", [1, 7, 9])  # layers; a block has 7
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    low_memory: bool, correction: float, killed_after: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**BEST, "input_correction": correction, "low_memory": low_memory}
    expected = quantized("llama", **options)

    class Killed(Exception):
        pass

    def kill(done: int, total: int, report: layers.ModuleReport) -> None:
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        quantized("llama", work=tmp_path, on_progress=kill, **options)
    assert len(list((tmp_path / "blocks").glob("*.safetensors"))) == killed_after // 7
    told: list[int] = []
    model = make_model("llama")
    reports = quantize_model(
        model,
        make_batches(),
        bits=4,
        group_size=16,
        work=tmp_path,
        on_progress=lambda done, total, report: told.append(done),
        **options,
    )
    assert_same(buffers(model), expected)
    assert [r.name for r in reports] == [n.removesuffix(".qweight") for n in expected if n.endswith("qweight")]
    assert told[0] == (7 if killed_after >= 7 else 1)
    assert told[-1] == 14


def test_blocks_of_other_settings_or_other_tokens_are_not_used(tmp_path: Path) -> None:
    quantized("llama", work=tmp_path)
    assert_same(quantized("llama", work=tmp_path, bits=3, group_size=32), quantized("llama", bits=3, group_size=32))
    model, fresh = make_model("llama"), make_model("llama")
    quantize_model(model, make_batches(seed=5), bits=3, group_size=32, work=tmp_path)
    quantize_model(fresh, make_batches(seed=5), bits=3, group_size=32)
    assert_same(buffers(model), buffers(fresh))


def test_a_torn_file_is_not_used(tmp_path: Path) -> None:
    expected = quantized("llama", work=tmp_path)
    first, second = sorted((tmp_path / "blocks").glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:100])
    assert_same(quantized("llama", work=tmp_path), expected)
    assert first.is_file()
    assert second.stat().st_size > 100


def test_correction_brings_the_quantized_model_closer_to_the_source() -> None:
    batches, held_out = make_batches(n=6), make_batches(n=2, seed=9)
    source = make_model("llama")

    def distance(correction: float) -> float:
        model = make_model("llama")
        quantize_model(model, batches, bits=2, group_size=16, sym=False, input_correction=correction)
        with torch.no_grad():
            gaps = [(model(**b).logits - source(**b).logits).square().mean() for b in held_out]
        return float(torch.stack(gaps).mean())

    assert distance(1.0) < distance(0.0)


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        quantized("llama", low_memory=True, work=tmp_path)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "states-old").mkdir()
    quantized("llama", low_memory=True, work=tmp_path)
    assert not list(tmp_path.glob("states-*"))


def test_a_layer_called_twice_is_named_in_low_memory_too() -> None:
    model = make_model("llama")
    block = model.model.layers[0]
    block.mlp.up_proj = block.mlp.gate_proj
    with pytest.raises(WalkError, match=r"gate_proj was called more than once"):
        quantize_model(model, make_batches(), bits=4, group_size=16, low_memory=True)
