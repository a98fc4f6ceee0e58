"""AWQ and compressed-tensors checkpoints: each weight is the number that the other tool computes; anything else is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from given import logits, quantized_by
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plr.gptq import PackedLinear, load_checkpoint
from plr.gptq.checkpoint import dense_bytes
from plr.gptq.errors import CheckpointError
from plr.gptq.foreign import bits_of

SCHEMES = [
    ("awq", {"sym": False}),
    ("awq", {"sym": False, "group": 128}),
    ("compressed-tensors", {}),
    ("compressed-tensors", {"sym": False}),
    ("compressed-tensors", {"bits": 2, "sym": False}),
    ("compressed-tensors", {"bits": 3}),
    ("compressed-tensors", {"bits": 3, "sym": False}),
    ("compressed-tensors", {"bits": 8, "strategy": "channel"}),
    ("compressed-tensors", {"bits": 8, "strategy": "channel", "sym": False, "dtype": torch.bfloat16}),
    ("compressed-tensors", {"dtype": torch.float16}),
]


def rewrite(folder: Path, edit: Any) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    edit(state)
    save_file({key: value.contiguous() for key, value in state.items()}, file, {"format": "pt"})


@pytest.mark.parametrize(("method", "knobs"), SCHEMES)
def test_every_weight_is_the_one_that_the_codes_stand_for(tmp_path: Path, method: str, knobs: dict[str, Any]) -> None:
    folder, dense = quantized_by(tmp_path / "theirs", method, **knobs)
    for kernel in ("dequantized", "packed"):
        model: Any = load_checkpoint(folder, dtype=torch.float32, kernel=kernel)
        layers = {name: one for name, one in model.named_modules() if isinstance(one, PackedLinear)}
        assert len(layers) == 42
        for name, layer in layers.items():
            assert layer.bits == knobs.get("bits", 4)
            torch.testing.assert_close(layer.dequantize(), dense.get_submodule(name).weight.data, atol=0, rtol=0)
        torch.testing.assert_close(logits(model), logits(dense), atol=0, rtol=0)
    assert dense_bytes(folder, 2) == 2 * sum(layer.in_features * layer.out_features for layer in layers.values())


def test_awq_as_transformers_and_gptqmodel_load_it(tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: pip install plr[gptqmodel]")
    from plr.core.quiet import import_gptqmodel

    import_gptqmodel()
    folder, _ = quantized_by(tmp_path / "theirs", "awq", sym=False)
    unpack: Any = importlib.import_module("gptqmodel.quantization.awq.utils.packing_utils").dequantize_gemm
    state = load_file(folder / "model.safetensors")
    model: Any = load_checkpoint(folder, dtype=torch.float32)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.5.mlp.down_proj"):
        codes, zeros, scales = (state[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales"))
        theirs = unpack(qweight=codes, qzeros=zeros, scales=scales.float(), bits=4, group_size=32)  # [in, out]
        torch.testing.assert_close(model.get_submodule(name).dequantize(), theirs.t(), atol=0, rtol=0)
    whole = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    # Their kernel multiplies in 16 bits.
    assert (whole - logits(model)).norm() < 1e-2 * whole.norm()


@pytest.mark.parametrize(
    ("bits", "symmetric", "strategy"),
    [
        (4, True, "group"),
        (4, False, "group"),
        (8, True, "channel"),
        (2, False, "group"),
        (3, True, "group"),
        (4, True, "tensor"),
    ],
)
def test_what_compressed_tensors_writes_and_computes(tmp_path: Path, bits: int, symmetric: bool, strategy: str) -> None:
    pytest.importorskip(
        "compressed_tensors", reason="compressed-tensors is not installed: pip install compressed-tensors"
    )
    quantization: Any = importlib.import_module("compressed_tensors.quantization")
    parameters: Any = importlib.import_module("compressed_tensors.quantization.utils").calculate_qparams
    compressors: Any = importlib.import_module("compressed_tensors.compressors")
    packed: Any = importlib.import_module("compressed_tensors.compressors.pack_quantized").PackedQuantizationCompressor
    from plr.embedded import tiny_path

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    arguments = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy} | (
        {"group_size": 32} if strategy == "group" else {}
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))
    settings = quantization.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, settings)
    module: Any
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            weight = module.weight.data
            shape = {"group": (weight.shape[0], -1, 32), "channel": (weight.shape[0], 1, -1), "tensor": (1, 1, -1)}
            groups = weight.view(shape[strategy])
            scale, zero = parameters(groups.amin(-1), groups.amax(-1), module.quantization_scheme.weights)
            module.weight_scale.data.copy_(scale.view_as(module.weight_scale))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.view_as(module.weight_zero_point))
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs")
    compressor.update_config(tmp_path / "theirs")
    ours: Any = load_checkpoint(tmp_path / "theirs", dtype=torch.float32)
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    names = [key.removesuffix(".weight_packed") for key in state if key.endswith(".weight_packed")]
    assert len(names) == 42
    for name in names:
        layer = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        weight = packed.decompress(layer, scheme)["weight"]
        torch.testing.assert_close(ours.get_submodule(name).dequantize(), weight, atol=0, rtol=0)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]["sparsity_config"] == {}


def test_zero_points_of_older_checkpoints_and_ordered_columns(tmp_path: Path) -> None:
    folder, dense = quantized_by(tmp_path / "theirs", "compressed-tensors", sym=False)
    plain = {name: layer for name, layer in load_checkpoint(folder).named_modules() if isinstance(layer, PackedLinear)}

    def older(state: dict[str, torch.Tensor]) -> None:
        for name, layer in plain.items():
            state[f"{name}.weight_zero_point"] = (layer.zeros().t() - 8).to(torch.int8)
            state[f"{name}.weight_g_idx"] = torch.full((layer.in_features,), -1)

    rewrite(folder, older)
    torch.testing.assert_close(logits(load_checkpoint(folder, dtype=torch.float32)), logits(dense), atol=0, rtol=0)
    name = "model.layers.0.self_attn.q_proj"
    order = torch.arange(128).flip(0) // 32
    rewrite(folder, lambda state: state.update({f"{name}.weight_g_idx": order}))
    layer: Any = load_checkpoint(folder, dtype=torch.float32).get_submodule(name)
    codes = (dense.get_submodule(name).weight.data.view(128, 4, 32) / plain[name].scales.t().float()[..., None]).round()
    codes = codes.view(128, 128) + plain[name].zeros().t().repeat_interleave(32, 1)
    expected = (codes - plain[name].zeros().t()[:, order]) * plain[name].scales.t().float()[:, order]
    torch.testing.assert_close(layer.dequantize(), expected)


def test_the_older_name_of_the_settings(tmp_path: Path) -> None:
    folder, dense = quantized_by(tmp_path / "theirs", "compressed-tensors")
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"quantization_config"', '"compression_config"'))
    torch.testing.assert_close(logits(load_checkpoint(folder, dtype=torch.float32)), logits(dense), atol=0, rtol=0)


def settings(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32} | changes.pop("weights", {})
    group = {"targets": ["Linear"], "weights": weights} | changes.pop("group", {})
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}} | changes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (settings(format="float-quantized"), r"layout of g .* is float-quantized"),
        (settings(format="marlin-24"), r"is marlin-24"),
        (settings(group={"format": "int-quantized"}), r"is int-quantized"),
        (settings(weights={"type": "float"}), r"codes of 4 bits \(float\)"),
        (settings(weights={"num_bits": 5}), r"codes of 5 bits"),
        (settings(weights={"strategy": "block"}), r"a scale for each block"),
        (settings(group={"input_activations": {"num_bits": 8}}), r"rounds input_activations too"),
        (settings(kv_cache_scheme={"num_bits": 8}), r"has a kv_cache_scheme"),
        (settings(transform_config={"config_groups": {"R1": {}}}), r"has a transform_config"),
        (settings(sparsity_config={"format": "sparse-24-bitmask"}), r"is sparse"),
        (settings(config_groups={}), r"has no config_groups"),
        (
            settings(
                config_groups={str(bits): settings(weights={"num_bits": bits})["config_groups"]["g"] for bits in (4, 8)}
            ),
            r"have 4 and 8 bits",
        ),
        ({"quant_method": "awq", "bits": 4, "version": "GEMV"}, r"layout of the AWQ checkpoint is gemv"),
        ({"quant_method": "awq", "bits": 4, "format": "marlin"}, r"is marlin"),
        ({"quant_method": "awq", "w_bit": 3}, r"has 3 bits"),
    ],
)
def test_settings_that_compute_something_else(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        bits_of(config)


def test_settings_that_are_read() -> None:
    assert bits_of(settings(transform_config={}, sparsity_config={"format": "dense"}, kv_cache_scheme=None)) == 4
    assert bits_of({"quant_method": "awq", "w_bit": 4}) == 4
    assert bits_of({"quant_method": "awq", "bits": 4, "version": "GEMM"}) == 4


NAME = "model.layers.2.mlp.up_proj"


@pytest.mark.parametrize(
    ("method", "edit", "words"),
    [
        ("awq", lambda s: s.pop(f"{NAME}.qzeros"), rf"lacks {NAME}.qzeros"),
        ("awq", lambda s: s.pop(f"{NAME}.qweight"), "it has no use for"),
        ("awq", lambda s: s.update({f"{NAME}.scales": s[f"{NAME}.scales"][:2]}), "codes .* scales .* zero points"),
        ("awq", lambda s: s.update({f"{NAME}.qweight": s[f"{NAME}.qweight"][:64]}), "instead of"),
        ("compressed-tensors", lambda s: s.pop(f"{NAME}.weight_scale"), rf"lacks {NAME}.weight_scale"),
        ("compressed-tensors", lambda s: s.pop(f"{NAME}.weight_shape"), rf"lacks {NAME}.weight_shape"),
        ("compressed-tensors", lambda s: s.update({f"{NAME}.weight_shape": torch.tensor([256, 96])}), "codes without gaps"),
        ("compressed-tensors", lambda s: s.update({f"{NAME}.weight_scale": s[f"{NAME}.weight_scale"][:, :3]}), "sides that fit"),
        ("compressed-tensors", lambda s: s.update({f"{NAME}.weight_zero_point": torch.ones(3, 3)}), "is torch.float32"),
        ("compressed-tensors", lambda s: s.update({f"{NAME}.input_scale": torch.ones(1)}), "no use for .*input_scale"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path: Path, method: str, edit: Any, words: str) -> None:
    folder, _ = quantized_by(tmp_path / "theirs", method)
    rewrite(folder, edit)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder)
