"""PiSSA and OLoRA convert exactly to a LoRA of the source; what cannot be converted is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from plr.adapters.absorbing import CONVERSION_FILE, absorbs, converted, initial, refuse, save_converted
from plr.errors import ConfigError, ModelError

from .conftest import small_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
TARGETS = ["q_proj", "down_proj"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train(model: Any, steps: int = 3) -> None:
    labels = torch.tensor([0, 1]) if "Classification" in type(model.get_base_model()).__name__ else IDS
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "rslora": {"init_lora_weights": "pissa", "use_rslora": True, "lora_alpha": 3},
    "dora": {"init_lora_weights": "pissa", "use_dora": True},
    "patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"down_proj": 6},
        "alpha_pattern": {r"layers.1.self_attn.q_proj": 5},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_source_with_the_converted_adapter_computes_what_was_trained(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = logits(small_model())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=TARGETS, **{"r": 4, "lora_alpha": 8} | VARIANTS[variant]
    )
    model = peft.get_peft_model(small_model(), config)
    start = initial(model)
    torch.testing.assert_close(logits(model), source, rtol=1e-3, atol=1e-4)
    train(model)
    trained = logits(model)
    assert not torch.allclose(trained, source, atol=1e-2)
    save_converted(model, start, tmp_path)
    restored = peft.PeftModel.from_pretrained(small_model(), tmp_path).eval()
    torch.testing.assert_close(logits(restored), trained, rtol=1e-3, atol=1e-4)
    for name, layer in restored.named_modules():
        if isinstance(layer, LoraLayer):
            own = model.get_submodule(name)
            assert layer.scaling["default"] == pytest.approx(own.scaling["default"])  # type: ignore[index]
            assert layer.r["default"] == 2 * own.r["default"]  # type: ignore[index, operator]
    assert torch.equal(logits(restored.unload()), source)


def test_unconverted_it_would_be_wrong_on_the_source() -> None:
    """What the conversion is for: the trained tensors as they are do not restore."""
    model = peft.get_peft_model(
        small_model(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="pissa")
    )
    train(model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    plain = peft.get_peft_model(small_model(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in trained:
                parameter.copy_(trained[name])
    assert not torch.allclose(logits(plain), logits(model), atol=1e-2)


@pytest.mark.parametrize("bits", [8, 3])
def test_it_restores_to_a_quantized_base_as_an_update_of_its_weights(bits: int, tmp_path: Path) -> None:
    """The oracle adds ``trained weight - source weight`` to the quantized layers' dense weights."""
    model = peft.get_peft_model(
        small_model(), peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="pissa", task_type="CAUSAL_LM")
    )
    start = initial(model)
    train(model)
    save_converted(model, start, tmp_path)
    restored = peft.PeftModel.from_pretrained(small_model(bits=bits), tmp_path).eval()
    merged, source, oracle = model.merge_and_unload(), small_model(), small_model(bits=bits)
    for name, layer in list(oracle.named_modules()):
        if name.endswith(tuple(TARGETS)):
            dense = layer.to_linear()
            dense.weight.data += merged.get_submodule(name).weight.data - source.get_submodule(name).weight.data
            parent, _, last = name.rpartition(".")
            setattr(oracle.get_submodule(parent), last, dense)
    torch.testing.assert_close(logits(restored), logits(oracle), rtol=1e-3, atol=1e-4)


def test_gpt2s_transposed_layers_convert_too(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights="pissa", fan_in_fan_out=True)
    model = peft.get_peft_model(small_model("gpt2"), config)
    start = initial(model)
    train(model)
    save_converted(model, start, tmp_path)
    restored = peft.PeftModel.from_pretrained(small_model("gpt2"), tmp_path).eval()
    torch.testing.assert_close(logits(restored), logits(model), rtol=1e-3, atol=1e-4)


def test_a_trained_head_is_taken_over(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights="olora", task_type="SEQ_CLS")
    model = peft.get_peft_model(small_model("bert"), config)
    start = initial(model)
    train(model)
    save_converted(model, start, tmp_path)
    restored = peft.PeftModel.from_pretrained(small_model("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(restored), logits(model), rtol=1e-3, atol=1e-4)


def test_the_conversion_is_recorded_and_no_init_is_left(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="pissa", use_rslora=True)
    model = peft.get_peft_model(small_model(), config)
    start = initial(model)
    train(model)
    record = save_converted(model, start, tmp_path)
    assert record == json.loads((tmp_path / CONVERSION_FILE).read_text())
    assert record["from"] == {"init_lora_weights": "pissa", "r": 4, "lora_alpha": 8, "use_rslora": True}
    assert record["to"] == {"init_lora_weights": True, "r": 8, "lora_alpha": 32, "use_rslora": False}
    assert record["layers"] == 4
    assert record["base_dtype"] == "float32"
    assert record["largest_norm_of_initial_update"] > 0
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True
    assert model.peft_config["default"].init_lora_weights == "pissa"  # the model goes on training as it was
    again, tensors = converted(model, start)
    assert (again.r, len(tensors)) == (8, 8)


def test_which_inits_change_the_base() -> None:
    assert [absorbs({"init_lora_weights": init}) for init in ("pissa", "pissa_niter_2", "OLoRA")] == [True] * 3
    assert not any(absorbs({"init_lora_weights": init}) for init in (True, False, "gaussian", "orthogonal", "mica"))


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("init", ["loftq", "corda", "eva", "lora_ga", "eora"])
def test_inits_that_need_data_or_quantize_are_refused_on_every_base(init: str, quantized: bool) -> None:
    with pytest.raises(ConfigError, match=f"init_lora_weights is '{init}'") as caught:
        refuse({"init_lora_weights": init}, quantized)
    assert "init_lora_weights: true" in str(caught.value.hint)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_inits_that_change_the_base_are_refused_on_a_quantized_one(init: str) -> None:
    with pytest.raises(ModelError, match="takes a part out of the base's weights") as caught:
        refuse({"init_lora_weights": init}, True)
    assert "--bits 16" in str(caught.value.hint)
    refuse({"init_lora_weights": init}, False)


def test_plain_inits_pass_everywhere() -> None:
    for init in (True, False, "gaussian", "orthogonal"):
        refuse({"init_lora_weights": init}, True)
    refuse({}, True)
