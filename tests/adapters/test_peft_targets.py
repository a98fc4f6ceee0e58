"""One default list of target modules on every architecture."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from architectures import architecture
from tiny_models import tiny_model

from plr.adapters import adapters
from plr.adapters.targets import ROLES, linear_names, named_in
from plr.errors import ModelError

ATTENTION = {
    "llama": ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "bert": ["attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value"],
    "roberta": ["attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value"],
    "distilbert": ["attention.k_lin", "attention.out_lin", "attention.q_lin", "attention.v_lin"],
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    "gpt_neox": ["attention.dense", "attention.query_key_value"],
    "opt": ["self_attn.k_proj", "self_attn.out_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "phi": ["self_attn.dense", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "bloom": ["self_attention.dense", "self_attention.query_key_value"],
}


def wrapped(name: str, method: str, **config: Any) -> list[str]:
    """The layers of block 0 that carry an adapter, and whatever else does."""
    chosen = adapters.get(method)
    kind: Any = "classification" if "bert" in name else "generation"
    model = chosen.attach(tiny_model(name), chosen.resolve(config), seed=0, kind=kind)
    layers = {n.partition(".lora_")[0].partition(".ia3_")[0].partition(".ln_tuning_")[0]: p for n, p in
              model.named_parameters() if any(part in n for part in ("lora_A", "ia3_l", "ln_tuning_layers"))}  # fmt: skip
    short = {n.removeprefix("base_model.model.") for n in layers}
    assert not any(".1." in n for n in short) or len(short) > 1
    return sorted(n.split(".0.", 1)[-1] for n in short if ".1." not in n)


@pytest.mark.parametrize("name", ATTENTION)
def test_the_attention_projections_are_found(name: str) -> None:
    assert wrapped(name, "lora", r=2) == ATTENTION[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["mlp.down_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("roberta", ["attention.self.key", "attention.self.value", "output.dense"]),
        ("gpt2", ["attn.c_attn", "mlp.c_proj"]),
        ("opt", ["fc2", "self_attn.k_proj", "self_attn.v_proj"]),
    ],
)
def test_a_role_may_need_a_pattern(name: str, expected: list[str]) -> None:
    """RoBERTa's attention.output.dense is no down_proj, although its name ends like one."""
    assert wrapped(name, "ia3") == expected


def test_feedforward_modules_follow() -> None:
    """Where they did not, PEFT would scale the output of the MLP and not its input."""
    config = named_in(tiny_model("roberta"), adapters.get("ia3").resolve({}), "IA3Config")
    assert config["feedforward_modules"] == [f"roberta.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert set(config["feedforward_modules"]) < set(config["target_modules"])


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 5), ("roberta", 5), ("gpt2", 5), ("opt", 5), ("gpt_neox", 5), ("phi", 3)]
)
def test_layer_norms_are_found(name: str, count: int) -> None:
    chosen = adapters.get("ln_tuning")
    kind: Any = "classification" if "bert" in name else "generation"
    model = chosen.attach(tiny_model(name), chosen.resolve({}), seed=0, kind=kind)
    layers = [m for m in model.modules() if type(m).__name__ == "LNTuningLayer"]
    assert len(layers) == count


@pytest.mark.parametrize("name", sorted(ROLES.keys() & ATTENTION.keys()))
def test_every_role_of_the_table_is_there(name: str) -> None:
    model = tiny_model(name)
    for role in ROLES[name]:
        found = named_in(model, {"target_modules": [role]}, "Any")["target_modules"]
        assert found, role


def test_a_name_the_model_has_is_left_alone() -> None:
    config = {"target_modules": ["query", "attention.output.dense"], "r": 2}
    assert named_in(tiny_model("bert"), config, "LoraConfig") == config


@pytest.mark.parametrize("value", ["all-linear", r".*\.(query|value)", None])
def test_patterns_are_peft_s(value: str | None) -> None:
    assert named_in(tiny_model("bert"), {"target_modules": value}, "LoraConfig")["target_modules"] == value


def test_nothing_found_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has no module called qproj, query") as caught:
        named_in(tiny_model("llama"), {"target_modules": ["qproj", "query"]}, "LoraConfig")
    message = str(caught.value)
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in message
    assert "did you mean" in message
    assert "lm_head" not in message


def test_nothing_found_and_nothing_near_shows_how_to_name_layers() -> None:
    with pytest.raises(ModelError) as caught:
        named_in(tiny_model("gpt2"), {"target_modules": ["zzz"]}, "LoraConfig")
    assert "--set adapters.0.config.target_modules='[c_attn, c_proj, c_fc]'" in str(caught.value)


def test_linear_layers_of_every_kind_are_listed() -> None:
    from plr.gptq import quantize_model

    torch.manual_seed(0)
    model = tiny_model("llama")
    names = linear_names(model)
    quantize_model(model, [], bits=4, group_size=-1, method="rtn")
    assert linear_names(model) == names


FUSED = {
    "phi3": ["self_attn.o_proj", "self_attn.qkv_proj"],
    "gptj": ["attn.k_proj", "attn.out_proj", "attn.q_proj", "attn.v_proj"],
    "gpt_neo": ["attn.attention.k_proj", "attn.attention.out_proj", "attn.attention.q_proj", "attn.attention.v_proj"],
    "codegen": ["attn.out_proj", "attn.qkv_proj"],
    "falcon": ["self_attention.dense", "self_attention.query_key_value"],
    "mpt": ["attn.Wqkv", "attn.out_proj"],
    "xglm": ["self_attn.k_proj", "self_attn.out_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "gpt_bigcode": ["attn.c_attn", "attn.c_proj"],
    "persimmon": ["self_attn.dense", "self_attn.query_key_value"],
    "lfm2": ["self_attn.k_proj", "self_attn.out_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "deepseek_v3": [
        "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj", "self_attn.o_proj", "self_attn.q_a_proj", "self_attn.q_b_proj",
    ],
    "deberta-v2": ["attention.output.dense", "attention.self.key_proj", "attention.self.query_proj", "attention.self.value_proj"],
    "mpnet": ["attention.attn.k", "attention.attn.o", "attention.attn.q", "attention.attn.v"],
    "modernbert": ["attn.Wo", "attn.Wqkv"],
    "albert": ["attention.dense", "attention.key", "attention.query", "attention.value"],
}  # fmt: skip
"""Families outside the table: where the attention projections are, in a block."""


@pytest.mark.parametrize("family", FUSED)
def test_roles_are_found_by_the_names_that_families_have(family: str) -> None:
    model = architecture(family)
    config = named_in(model, adapters.get("lora").resolve({}), "LoraConfig")
    reached = {
        name
        for name, _ in model.named_modules()
        if any(name.endswith(f".{target}") for target in config["target_modules"])
    }
    blocks = {re.sub(r"^.*?\.\d+\.(?:albert_layers\.\d+\.)?", "", name) for name in reached}
    assert sorted(blocks) == FUSED[family]


@pytest.mark.parametrize("family", ["phi3", "gptj", "lfm2", "deepseek_v3"])
def test_a_name_that_reaches_nothing_is_refused(family: str) -> None:
    model, lora = architecture(family), adapters.get("lora")
    with pytest.raises(ModelError, match=r"has no module called r_proj$|has no module called r_proj\n"):
        named_in(model, lora.resolve({"target_modules": ["q_proj", "r_proj"]}), "LoraConfig")
