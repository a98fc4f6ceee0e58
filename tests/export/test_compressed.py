"""GPTQ checkpoints in the layout of compressed-tensors, opened by its own package, by transformers, and by plr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from given import logits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from plr import Lab
from plr.bases.load import load_quantized
from plr.errors import ModelError, UsageError
from plr.export.compressed import write_compressed
from plr.gptq import PackedLinear

WIDTHS: list[tuple[int, dict[str, Any]]] = [
    (2, {"group_size": 32}),
    (3, {"group_size": 32}),
    (4, {"group_size": 32}),
    (8, {"group_size": -1}),
    (4, {"group_size": 32, "sym": False}),
    (3, {"group_size": 32, "sym": False}),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), dtype="float32", device="cpu", offline=True)


def base(lab: Lab, bits: int, knobs: dict[str, Any]) -> Any:
    overrides = [f"quantize.{key}={json.dumps(value)}" for key, value in knobs.items()]
    return lab.quantize(bits=bits, task="tiny_math", samples=4, overrides=overrides)


@pytest.mark.parametrize(("bits", "knobs"), WIDTHS, ids=str)
def test_every_weight_is_the_number_that_it_was(lab: Lab, tmp_path: Path, bits: int, knobs: dict[str, Any]) -> None:
    made = base(lab, bits, knobs)
    done = lab.export(made, tmp_path / "out", "compressed-tensors")
    ours, back = (load_quantized(folder, dtype=torch.float32, device="cpu") for folder in (made.path, done.folder))
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, PackedLinear)}
    assert layers
    for name, layer in layers.items():
        assert torch.equal(back.get_submodule(name).to_dense().weight, layer.to_dense().weight), name  # type: ignore[operator]
    assert torch.equal(logits(ours), logits(back))
    setting = json.loads((done.folder / "config.json").read_text())["quantization_config"]
    weights = setting["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["symmetric"]) == (bits, knobs.get("sym", True))
    assert weights["strategy"] == ("channel" if knobs["group_size"] == -1 else "group")
    assert setting["ignore"] == ["lm_head"]


@pytest.mark.parametrize(("bits", "knobs"), WIDTHS, ids=str)
def test_its_own_package_unpacks_the_same_weights(lab: Lab, tmp_path: Path, bits: int, knobs: dict[str, Any]) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    made = base(lab, bits, knobs)
    done = lab.export(made, tmp_path / "out", "compressed-tensors")
    setting = json.loads((done.folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**setting["config_groups"]["group_0"])
    tensors = load_file(done.folder / "model.safetensors")
    ours = load_quantized(made.path, dtype=torch.float32, device="cpu")
    unpack = BaseCompressor.load_from_registry("pack-quantized")
    for name, layer in ((n, m) for n, m in ours.named_modules() if isinstance(m, PackedLinear)):
        own = {
            key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.weight")
        }
        theirs = unpack.decompress(own, scheme)["weight"]
        assert torch.allclose(theirs.float(), layer.to_dense().weight, atol=2e-3, rtol=2e-3), name


def test_transformers_opens_it(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    made = base(lab, 4, {"group_size": 32})
    done = lab.export(made, tmp_path / "out", "compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    ours = load_quantized(made.path, dtype=torch.float32, device="cpu")
    assert torch.allclose(logits(theirs), logits(ours), atol=0.05)


def test_what_it_does_not_hold_is_refused(lab: Lab, tmp_path: Path) -> None:
    adapter = lab.adapter(bits=4, task="tiny_math")
    with pytest.raises(UsageError, match=r"is an adapter beside its base"):
        lab.export(adapter, tmp_path / "out", "compressed-tensors")
    ordered = base(lab, 4, {"group_size": 32, "desc_act": True})
    with pytest.raises(ModelError, match=r"in order of activation \(desc_act\)"):
        lab.export(ordered, tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no quantization_config of gptq"):
        write_compressed(tmp_path / "dense", tmp_path)
