"""NF4 against QLoRA's own words, int8 against its own, and what bitsandbytes does behind one's back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import tiny_model

from plr.bases.load import load_quantized
from plr.errors import MissingDependencyError, ModelError
from plr.quantizers import bnb, densify, quantizers

from .conftest import logits, make_batches, make_model, quantized, spec_of

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install plr[bitsandbytes]")
NAME = "model.layers.0.mlp.down_proj"  # [64, 128]


def dense_weight(folder: Path) -> torch.Tensor:
    model: Any = load_quantized(folder, dtype=torch.float32, device="cpu")
    densify(model)
    return model.get_submodule(NAME).weight


def test_a_block_that_spans_two_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"q_proj has 64 inputs: blocks of 128 would span two rows") as error:
        quantized("nf4", tmp_path, group_size=128)
    assert error.value.expected == "a group_size that divides every layer's inputs: 64, 32"
    assert not list(tmp_path.iterdir())


def normal_float_levels() -> torch.Tensor:
    """The 16 levels of NF4 (QLoRA, appendix E): 8 of the normal distribution's negative quantiles, 9 of its positive ones."""
    normal, offset = torch.distributions.Normal(0.0, 1.0), 0.9677083
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    levels = torch.cat([positive, negative, torch.zeros(1)]).sort().values
    return levels / levels.max()


@pytest.mark.parametrize("block", [32, 64])
def test_nf4_is_the_nearest_normal_float_times_the_largest_of_the_block(block: int, tmp_path: Path) -> None:
    weight = make_model().get_submodule(NAME).weight.detach().reshape(-1, block)
    quantized("nf4", tmp_path, group_size=block)
    scale = weight.abs().amax(1, keepdim=True)
    levels = normal_float_levels()
    nearest = levels[((weight / scale).unsqueeze(-1) - levels).abs().argmin(-1)] * scale
    found = dense_weight(tmp_path).reshape(-1, block)
    # A weight half-way between two levels may go either way.
    assert ((found - nearest).abs() > 1e-4 * scale).float().mean() < 1e-3


@pytest.mark.parametrize(("double_quant", "bits"), [(False, 4 + 32 / 64), (True, 4 + 8 / 64 + 32 / 64 / 256)])
def test_bits_of_a_weight_on_disk(double_quant: bool, bits: float, tmp_path: Path) -> None:
    quantized("nf4", tmp_path, double_quant=double_quant)
    stored = load_file(tmp_path / "model.safetensors")
    tables = ("quant_map", "bitsandbytes__nf4")  # the same few bytes whatever the size of the layer
    parts = [t for key, t in stored.items() if key.startswith(NAME) and not key.endswith(tables)]
    size = 8 * sum(tensor.numel() * tensor.element_size() for tensor in parts)
    assert size / (64 * 128) == pytest.approx(bits, abs=0.01)


def test_double_quant_costs_little(tmp_path: Path) -> None:
    plain, double = dense_weight_of(tmp_path / "a", False), dense_weight_of(tmp_path / "b", True)
    assert 0 < (plain - double).norm() < 0.02 * plain.norm()


def dense_weight_of(folder: Path, double_quant: bool) -> torch.Tensor:
    quantized("nf4", folder, double_quant=double_quant)
    return dense_weight(folder)


def test_int8_is_one_scale_a_row(tmp_path: Path) -> None:
    weight = make_model().get_submodule(NAME).weight.detach()
    _, record = quantized("int8", tmp_path)
    scale = weight.half().float().abs().amax(1, keepdim=True) / 127
    found = dense_weight(tmp_path)
    assert ((found - weight).abs() <= 0.5001 * scale + 1e-3 * weight.abs()).all()
    codes = found / scale
    assert (codes - codes.round()).abs().max() < 1e-2
    error = next(m["weight_error"] for m in record["modules"] if m["name"] == NAME)
    assert error == pytest.approx(float((found - weight).norm() / weight.norm()), rel=1e-5)


def test_an_evaluation_takes_no_gradient_away(tmp_path: Path) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes repacks NF4 weights when it evaluates; that product has no gradient."""
    quantized("nf4", tmp_path)
    model: Any = load_quantized(tmp_path, dtype=torch.float32, device="cpu")

    def gradient() -> torch.Tensor:
        model.train()
        model.model.embed_tokens.weight.requires_grad_(True).grad = None
        batch = make_batches()[1]
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return model.model.embed_tokens.weight.grad.clone()

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(**make_batches()[0])
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_bfloat16_loads_the_same_codes_and_computes_in_bfloat16(method: str, tmp_path: Path) -> None:
    quantized(method, tmp_path)
    model: Any = load_quantized(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.bfloat16
    stored, held = load_file(tmp_path / "model.safetensors"), model.state_dict()
    for key in (key for key in stored if key.startswith("model.layers") and "norm" not in key and "nf4" not in key):
        assert torch.equal(held[key], stored[key]), key
    exact = logits(load_quantized(tmp_path, dtype=torch.float32, device="cpu"))
    assert (logits(model) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_gpt2_whose_layers_are_transposed(method: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1}
    model = tiny_model("gpt2", **sizes, bos_token_id=1, eos_token_id=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    exact = logits(model)
    quantizers.get(method).quantize(model, [], spec_of(method), tmp_path)
    loaded: Any = load_quantized(tmp_path, dtype=torch.float32, device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert (logits(loaded) - exact).norm() < 0.2 * exact.norm()
    densify(loaded)
    loaded.save_pretrained(tmp_path / "dense")
    reread = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
    assert (logits(reread) - logits(model)).norm() < 0.05 * exact.norm()


def test_progress_and_record(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record = quantizers.get("nf4").quantize(
        make_model(), [], spec_of("nf4"), tmp_path, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, 14) for i in range(1, 15)]
    assert record["bitsandbytes"]
    assert all(0.05 < module["weight_error"] < 0.15 for module in record["modules"])


WITHOUT_LIBRARY = """
import ctypes, json, sys
from pathlib import Path
load = ctypes.cdll.LoadLibrary
def refuse(name):
    if "bitsandbytes" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    return load(name)
ctypes.cdll.LoadLibrary = refuse
import tests.quantizers.conftest as here
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
assert isinstance(lib, ErrorHandlerMockBNBNativeLibrary)
print(json.dumps([here.quantized(m, Path(sys.argv[1]) / m)[1]["modules"][0]["weight_error"] for m in ("nf4", "int8")]))
"""


def test_on_a_cpu_without_a_native_library_both_methods_round_alike(tmp_path: Path) -> None:
    """Bitsandbytes goes on in torch where its library cannot be loaded, and where it has no instructions for it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WITHOUT_LIBRARY, str(tmp_path / "without")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(root), str(root / "tests")))}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = [quantized(m, tmp_path / m)[1]["modules"][0]["weight_error"] for m in ("nf4", "int8")]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_device_that_bitsandbytes_cannot_use_is_named_with_what_runs_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("Native code method attempted to call: lib.cquantize_blockwise()\nsee the documentation")

    monkeypatch.setattr(bnb, "_dequantized", refuse)
    with pytest.raises(ModelError, match=r"cannot quantize \S+q_proj on cpu: Native code method \S.*lib") as error:
        quantized("nf4", tmp_path)
    assert "--method gptq or rtn" in str(error.value.hint)


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13"), OSError("libcudart.so.13"), RuntimeError("\n")])
def test_a_bitsandbytes_that_cannot_be_imported_says_why(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise error

    monkeypatch.setattr(bnb.importlib, "import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported: (libcudart\.so\.13|RuntimeError)"):
        bnb._bitsandbytes()
