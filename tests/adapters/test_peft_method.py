"""What PeftMethod does around PEFT: kinds of task, heads, taking off, counting, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from tiny_models import rounded, tiny_model

from plr.adapters import adapters
from plr.adapters.lora import Lora
from plr.adapters.peft import PeftMethod, is_quantized, name_base
from plr.errors import ConfigError, ModelError

IDS = torch.arange(3, 35).view(2, 16)
SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
LAYER, LAYERS = 32 * 32, 2
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "boft": {"target_modules": ["q_proj"]},
    "bottleneck": {"bottleneck_size": 4},
    "bitfit": {},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 50},
    "lora": {"r": 2},
    "miss": {"r": 8},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "randlora": {"r": 4},
    "relora": {"r": 2, "restarts": 2},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "sparse": {"n": 4, "m": 4, "k": 3},
    "vera": {"r": 4},
}


def decoder(bits: int = 16) -> Any:
    return rounded(tiny_model("llama", seed=1, **SHAPE), bits, group_size=-1)


def classifier(kind: str, bits: int = 16) -> Any:
    return rounded(tiny_model(kind, seed=1, head="labels", **SHAPE, num_labels=3), bits, group_size=-1)


def attached(name: str, model: Any, kind: Any = "generation", **config: Any) -> tuple[Any, Any]:
    method = adapters.get(name)
    return method, method.attach(model, method.resolve(SMALL.get(name, {}) | config), seed=0, kind=kind, steps=20)


def stepped(model: Any) -> Any:
    """One step of every trained parameter, the head included."""
    labels = {"labels": torch.tensor([0, 2])} if hasattr(model.config, "classifier_dropout") else {}
    outputs = model(input_ids=IDS, **labels)
    (outputs.loss if labels else outputs.logits.float().logsumexp(-1).mean()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter -= 0.05 * parameter.grad.sign()
    return model.eval()


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("architecture", ["roberta", "llama"])
@pytest.mark.parametrize("name", ["lora", "ia3", "sparse", "bottleneck", "bitfit", "prompt_tuning", "prefix_tuning"])
def test_a_classifier_trains_its_head_and_gets_the_old_one_back(
    name: str, architecture: str, bits: int, tmp_path: Path
) -> None:
    base = classifier(architecture, bits)
    before = base(input_ids=IDS).logits.detach()
    config = {"add_biases": True, "target_modules": ["q_proj"]} if name == "bitfit" else {}
    method, model = attached(name, base, "classification", **config)
    head = "score" if architecture == "llama" else "classifier"
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(f".{head}." in n for n in trained)
    assert not any(f".{head}.original_module" in n for n in trained)
    logits = stepped(model)(input_ids=IDS).logits
    method.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert torch.equal(method.unload(model, "default")(input_ids=IDS).logits, before)
    fresh = classifier(architecture, bits)
    served = method.load(fresh, tmp_path, "served")
    torch.testing.assert_close(served(input_ids=IDS).logits, logits)
    assert torch.equal(method.unload(served, "served")(input_ids=IDS).logits, before)


def test_a_method_for_generation_alone() -> None:
    with pytest.raises(ModelError, match="AdaptionPromptConfig is not for classification"):
        attached("llama_adapter", classifier("llama"), "classification")


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora", 4 * LAYERS * LAYER),
        ("vera", 4 * LAYERS * LAYER),
        ("ia3", LAYERS * (2 * LAYER + 32 * 48)),
        ("shira", 4 * LAYERS * 2 * 64),
        ("sparse", 4 * LAYERS * 3 * 8 * 8),
        ("ln_tuning", (2 * LAYERS + 1) * 32),
        ("bottleneck", 0),
        ("prompt_tuning", 0),
        ("prefix_tuning", 0),
        ("llama_adapter", 0),
    ],
)
def test_updated_parameters(name: str, expected: int, bits: int) -> None:
    method, model = attached(name, decoder(bits))
    assert method.updated_parameters(model) == expected


def test_updated_parameters_of_biases_alone() -> None:
    method, model = attached("bitfit", decoder(), add_biases=True, target_modules=["q_proj", "o_proj"])
    assert method.updated_parameters(model) == LAYERS * 2 * 32


@pytest.mark.parametrize("name", ["prompt_tuning", "llama_adapter", "bottleneck"])
def test_what_cannot_be_merged_says_so(name: str) -> None:
    method, model = attached(name, decoder())
    with pytest.raises(ModelError, match="cannot be merged"):
        method.merge(model)


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"bitfit"}))
def test_the_seed_alone_decides_on_the_start(name: str) -> None:
    def start(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed + 100)  # what was drawn before must not matter
        method = adapters.get(name)
        model = method.attach(decoder(), method.resolve(SMALL[name]), seed=3, steps=20)
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    first, second = start(0), start(1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


TRAINS_MORE = {"p_tuning", "prefix_tuning", "prompt_tuning", "full"}
"""What is saved of them has another name."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(set(adapters.names()) - TRAINS_MORE))
def test_what_trains_is_what_is_saved(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """PEFT makes AdaLoRA's ranknum trainable on a bfloat16 base, and saves it on none."""
    config = {"bitfit": {"add_biases": True, "target_modules": ["q_proj"]}, "pissa": {"r": 2}}
    method, model = attached(name, decoder().to(dtype), **config.get(name, {}))
    trained = {n.replace(".default", "") for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    method.save(model, tmp_path)
    with safetensors.safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    assert {n for n in trained if not {n, n.removesuffix(".weight")} & saved} == set()


@pytest.mark.parametrize("name", ["prompt_tuning", "llama_adapter", "lora", "ia3", "ln_tuning"])
@pytest.mark.parametrize("bits", [16, 4])
def test_two_adapters_side_by_side(name: str, bits: int, tmp_path: Path) -> None:
    """The second is loaded beside the first, acts alone, and is taken off again."""
    method = adapters.get(name)
    for i in (0, 1):
        _, model = attached(name, decoder(bits))
        method.save(stepped(stepped(model) if i else model), tmp_path / str(i))
    alone = [method.load(decoder(bits), tmp_path / str(i), "x")(input_ids=IDS).logits.detach() for i in (0, 1)]
    assert not torch.allclose(*alone)
    served = method.load(decoder(bits), tmp_path / "0", "first")
    served = method.load(served, tmp_path / "1", "second")
    assert torch.equal(served(input_ids=IDS).logits, alone[1])
    served = method.unload(served, "second")
    served.set_adapter("first")
    assert torch.equal(served(input_ids=IDS).logits, alone[0])


def test_methods_follow_each_other_on_one_base(tmp_path: Path) -> None:
    base = decoder(4)
    before = base(input_ids=IDS).logits.detach()
    for name in ("prefix_tuning", "lora", "llama_adapter", "ia3", "sparse", "prompt_tuning", "lora"):
        method, model = attached(name, base)
        stepped(model)
        method.save(model, tmp_path / name)
        base = method.unload(model, "default")
        assert torch.equal(base(input_ids=IDS).logits, before), name
        served = method.load(base, tmp_path / name, "served")
        assert not torch.equal(served(input_ids=IDS).logits, before)
        base = method.unload(served, "served")
        assert torch.equal(base(input_ids=IDS).logits, before), name


def test_llama_adapter_takes_at_most_the_layers_there_are(tmp_path: Path) -> None:
    method, model = attached("llama_adapter", decoder())
    assert model.peft_config["default"].adapter_layers == LAYERS
    method.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["adapter_layers"] == LAYERS


def test_a_setting_that_peft_refuses_is_one_message() -> None:
    with pytest.raises(
        ModelError, match=r"LoraConfig cannot be attached to LlamaForCausalLM: All modules were excluded"
    ):
        attached("lora", decoder(), exclude_modules=".*")


def test_a_key_of_the_wrong_kind_is_one_message() -> None:
    with pytest.raises(ModelError, match=r"C3AConfig cannot be attached to LlamaForCausalLM: .*block size"):
        attached("c3a", decoder(), block_size=7)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_for_16_bits(init: str) -> None:
    with pytest.raises(ModelError, match="the base is quantized"):
        attached("lora", decoder(4), init_lora_weights=init)


@pytest.mark.parametrize("init", ["loftq", "corda", "eva"])
def test_a_start_that_plr_does_not_make(init: str) -> None:
    with pytest.raises(ConfigError, match=f"init_lora_weights is '{init}'"):
        attached("lora", decoder(), init_lora_weights=init)


def test_what_took_a_part_of_the_base_does_not_come_off(tmp_path: Path) -> None:
    method, model = attached("pissa", decoder(), r=2)
    assert isinstance(method, Lora)
    method.save(model, tmp_path)
    assert (tmp_path / "conversion.json").is_file()
    with pytest.raises(ModelError, match="load the base again"):
        method.unload(model, "default")


def test_quantized_layers_are_seen() -> None:
    assert is_quantized(decoder(4))
    assert not is_quantized(decoder())


def test_a_method_for_16_bits_alone() -> None:
    from dataclasses import replace

    method = PeftMethod("LoraConfig", {"r": 2, "target_modules": ["q_proj"]})
    method.properties = replace(method.properties, quantized=False)
    assert method.attach(decoder(), method.resolve({}), seed=0) is not None
    with pytest.raises(ModelError, match="does not train on a quantized base"):
        method.attach(decoder(4), method.resolve({}), seed=0)


def test_names_are_sorted_in_the_saved_file(tmp_path: Path) -> None:
    method, model = attached("ia3", decoder())
    method.save(model, tmp_path)
    name_base(tmp_path, "org/model", "abc")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "v_proj"]
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "abc")
