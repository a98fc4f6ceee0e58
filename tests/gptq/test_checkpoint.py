from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plr.gptq import CheckpointError, GPTQError, PackedLinear, load_checkpoint, quantize_model, save_checkpoint
from plr.gptq.checkpoint import dense_bytes

from .conftest import make_batches, make_model

BATCHES = make_batches()


def quantized(name: str = "llama", bits: int = 4, group_size: int = 32, **options: Any) -> Any:
    model = make_model(name)
    quantize_model(model, BATCHES, bits=bits, group_size=group_size, **options)
    return model


def saved(folder: Path, name: str = "llama", **options: Any) -> Any:
    model = quantized(name, **options)
    save_checkpoint(model, folder, bits=4, group_size=32)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCHES[0]).logits


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = saved(tmp_path)
    other = load_checkpoint(tmp_path)
    assert type(other) is type(model)
    assert not other.training
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "options", [{"sym": False}, {"desc_act": True}, {"desc_act": True, "static_groups": True, "sym": False}]
)
def test_every_width_and_order_comes_back(bits: int, options: dict[str, bool], tmp_path: Path) -> None:
    model = quantized(bits=bits, **options)
    save_checkpoint(model, tmp_path, bits=bits, group_size=32, **options)
    for kernel in ("packed", "dequantized"):
        assert torch.equal(logits(load_checkpoint(tmp_path, kernel=kernel)), logits(model))


def test_the_folder_says_how_it_was_quantized(tmp_path: Path) -> None:
    model = quantized()
    save_checkpoint(model, tmp_path, bits=4, group_size=32, damp_percent=0.01, meta={"calibration": "task:gsm8k"})
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config == json.loads((tmp_path / "quantize_config.json").read_text())
    assert config["meta"] == {"calibration": "task:gsm8k", "quantizer": ["plr"]}
    expected = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False,
        "checkpoint_format": "gptq", "damp_percent": 0.01, "static_groups": False, "block_name_to_quantize": "model.layers",
        "lm_head": False,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert "modules_in_block_to_quantize" not in config
    assert (tmp_path / "generation_config.json").is_file()
    assert not list(tmp_path.glob("*.bin"))


def test_layers_left_dense_are_declared(tmp_path: Path) -> None:
    model = quantized(skip=("down_proj", "lm_head"))
    save_checkpoint(model, tmp_path, bits=4, group_size=32)
    config = json.loads((tmp_path / "quantize_config.json").read_text())
    (names,) = config["modules_in_block_to_quantize"]
    assert "mlp.down_proj" not in names
    assert len(names) == 6
    assert "self_attn.q_proj" in names
    assert torch.equal(logits(load_checkpoint(tmp_path)), logits(model))


def test_layers_left_dense_in_one_block_only_cannot_be_declared(tmp_path: Path) -> None:
    model = quantized(skip=("layers.0.mlp.down_proj", "lm_head"))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj is dense while its counterpart"):
        save_checkpoint(model, tmp_path, bits=4, group_size=32)


def test_one_zero_point_of_zero_makes_the_whole_checkpoint_v2(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.abs_()
    quantize_model(model, BATCHES, bits=4, group_size=32, sym=False)
    before = logits(model)
    formats = {layer.checkpoint_format for layer in model.modules() if isinstance(layer, PackedLinear)}
    assert formats == {"gptq", "gptq_v2"}
    save_checkpoint(model, tmp_path, bits=4, group_size=32, sym=False)
    assert json.loads((tmp_path / "quantize_config.json").read_text())["checkpoint_format"] == "gptq_v2"
    assert torch.equal(logits(load_checkpoint(tmp_path)), before)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = make_model("gemma2")
    quantize_model(model, BATCHES, bits=4, group_size=32)
    save_checkpoint(model, tmp_path, bits=4, group_size=32)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    other = load_checkpoint(tmp_path)
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_a_large_model_is_split_and_read_back(tmp_path: Path) -> None:
    model = quantized()
    save_checkpoint(model, tmp_path, bits=4, group_size=32, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load_checkpoint(tmp_path)), logits(model))
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00001-of"):
        load_checkpoint(tmp_path)


def test_a_dtype_casts_dense_weights_and_leaves_scales(tmp_path: Path) -> None:
    model = saved(tmp_path)
    other = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    layer = other.model.layers[0].mlp.up_proj
    assert other.dtype == layer.compute_dtype == layer.weight.dtype == logits(other).dtype == torch.bfloat16
    assert torch.equal(layer.scales, model.model.layers[0].mlp.up_proj.scales)
    assert (logits(other).float() - logits(model)).norm() < 0.05 * logits(model).norm()


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_the_dense_size_is_read_without_the_tensors(shard: str, tmp_path: Path) -> None:
    model = quantized()
    save_checkpoint(model, tmp_path, bits=4, group_size=32, max_shard_size=shard)
    weights = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, PackedLinear))
    assert dense_bytes(tmp_path) == 4 * weights
    assert dense_bytes(tmp_path, 2) == 2 * weights


def test_saving_a_loaded_model_writes_the_same_tensors(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    save_checkpoint(load_checkpoint(tmp_path / "one"), tmp_path / "two", bits=4, group_size=32)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_no_weight_is_random_after_loading(tmp_path: Path) -> None:
    """Buffers that are not stored (rotary frequencies, position ids) are computed; nothing stays uninitialised."""
    model = saved(tmp_path, "gemma3")
    for (name, a), (_, b) in zip(model.named_buffers(), load_checkpoint(tmp_path).named_buffers(), strict=True):
        assert torch.equal(a, b), name


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        (config["quantization_config"] if key in config["quantization_config"] else config)[key] = value
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks model\.norm\.weight; it has no use for nothing"),
        (lambda t: t.update(extra=torch.ones(1)), r"lacks nothing; it has no use for extra"),
        (lambda t: t.pop(f"{Q}.scales"), r"q_proj lacks scales\. Expected: all of qweight, qzeros, scales, g_idx"),
        (
            lambda t: t.update({f"{Q}.qweight": torch.zeros(8, 60, dtype=torch.int32)}),
            r"qweight \(8, 60\) instead of \(8, 64\)",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight \(3,\) instead of \(64,\)"),
        (lambda t: t.update({"model.norm.qweight": torch.ones(3)}), r"quantizes model\.norm, which is LlamaRMSNorm"),
        (lambda t: t.update({"model.other.qweight": torch.ones(3)}), r"quantizes model\.other, which is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_tensors(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint_format='marlin'.*'gptq' or 'gptq_v2'"),
        ({"pack_dtype": "int64"}, "pack_dtype='int64'"),
        ({"quant_method": "aqlm"}, "is quantized by aqlm"),
        ({"architectures": ["NoSuchModel"]}, r"names the architectures \['NoSuchModel'\]"),
        ({"bits": 8}, r"down_proj\.qweight \(16, 64\) instead of \(32, 64\)"),
        ({"bits": 5}, "bits=5 was given"),
    ],
)
def test_settings_that_cannot_be_right_are_an_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(GPTQError, match=message):
        load_checkpoint(tmp_path)


def test_a_folder_without_config_or_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks safetensors files"):
        load_checkpoint(tmp_path)


def test_a_dense_checkpoint_is_an_error(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no quantization_config"):
        load_checkpoint(tmp_path)


def test_saving_a_dense_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="LlamaForCausalLM has no PackedLinear"):
        save_checkpoint(make_model("llama"), tmp_path, bits=4, group_size=32)


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"group_size": 64}, {"group_size": -1}])
def test_saving_with_other_settings_is_an_error(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"q_proj has 4 bits in groups of 32"):
        save_checkpoint(quantized(), tmp_path, **{"bits": 4, "group_size": 32, **wrong})
