"""The table of methods: nothing is inherited in silence, and every name of PEFT's is found."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import Any

import peft
import pytest
from peft.utils import PeftType

from plr.adapters import PeftMethod, Properties, adapters
from plr.adapters.known import REFUSED, OtherPeftMethod, peft_names
from plr.adapters.peft import SET_BY_PLR
from plr.errors import ConfigError, UnknownNameError

TABLE = adapters.names()
PEFT_MADE = [name for name in TABLE if isinstance(adapters.get(name), PeftMethod)]
OFF: dict[str, Any] = {
    "megatron_core": "megatron.core",  # of megatron_config, which is None
    "qalora_group_size": 16,  # of use_qalora, which is off
    "save_indices": False,
}
UNUSED = {"adalora": {"r", "total_step"}, "llama_adapter": {"modules_to_save"}}
"""AdaLoRA ignores r (it has init_r), and takes total_step from the run."""


def method(name: str) -> Any:
    return adapters.get(name)


@pytest.mark.parametrize("name", TABLE)
def test_a_method_says_what_it_is(name: str) -> None:
    properties = method(name).properties
    assert isinstance(properties, Properties)
    assert 20 <= len(properties.summary) <= 90
    assert "\n" not in properties.summary
    assert properties.source
    assert 0.005 <= properties.learning_rate <= 1000


@pytest.mark.parametrize("name", PEFT_MADE)
def test_a_key_that_is_not_spelled_out_is_off_by_default(name: str) -> None:
    """What stands in no plan must do nothing: its default in the config class is None, False or empty."""
    chosen = method(name)
    for field in fields(chosen._config_class()):
        if field.name in SET_BY_PLR or field.name in chosen.defaults or field.name in UNUSED.get(name, ()):
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name == "runtime_config":  # how PEFT computes, not what
            continue
        assert default in (None, False, OFF.get(field.name)) or default in ({}, [], ()), (field.name, default)


@pytest.mark.parametrize("name", PEFT_MADE)
def test_keys_are_those_of_the_config_class(name: str) -> None:
    chosen = method(name)
    known = {field.name for field in fields(chosen._config_class())}
    assert chosen.defaults.keys() <= known - SET_BY_PLR
    assert json.loads(json.dumps(chosen.resolve({}))) == chosen.resolve({})


def test_the_plan_of_lora_is_what_it_was() -> None:
    """Adapters made before there were other methods are found in the store."""
    assert json.dumps(method("lora").resolve({})) == (
        '{"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "use_rslora": false, "use_dora": false, '
        '"init_lora_weights": true, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}'
    )


def test_settings_go_over_the_defaults_and_may_be_any_key_of_the_class() -> None:
    whole = method("dora").resolve({"r": 4, "layers_to_transform": [0]})
    assert (whole["r"], whole["use_dora"], whole["layers_to_transform"]) == (4, True, [0])


@pytest.mark.parametrize(
    ("name", "key", "near"),
    [
        ("lora", "lora_aplha", "lora_alpha"),
        ("ia3", "feed_forward_modules", "feedforward_modules"),
        ("sparse", "K", "k"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(name: str, key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"has no key '{key}'") as caught:
        method(name).resolve({key: 1})
    assert near in str(caught.value)


@pytest.mark.parametrize("key", ["task_type", "peft_type", "inference_mode"])
def test_what_plr_sets_cannot_be_given(key: str) -> None:
    with pytest.raises(ConfigError, match=f"has no key '{key}'"):
        method("lora").resolve({key: "X"})


def test_names_of_peft_are_read_from_its_source() -> None:
    ours = {"sparse", "bottleneck", "bitfit"}
    assert set(peft_names()) == {member.value.lower() for member in PeftType} - ours


@pytest.mark.parametrize("name", sorted(set(peft_names()) - set(TABLE) - REFUSED.keys() - {"adaption_prompt"}))
def test_any_other_name_of_peft_resolves_to_its_whole_configuration(name: str) -> None:
    chosen = method(name)
    assert isinstance(chosen, OtherPeftMethod)
    whole = chosen.resolve({})
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name.upper()]]
    assert json.loads(json.dumps(whole)) == whole
    assert whole.keys() == {field.name for field in fields(config_class)} - SET_BY_PLR
    assert whole.get("target_modules", 0) is not None
    assert name not in adapters.names()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_of_one_task_says_why(name: str) -> None:
    with pytest.raises(ConfigError, match=f"PEFT's {name} is not for plr: it (trains|mixes)"):
        method(name).resolve({})


def test_the_two_names_of_llama_adapter_are_one_method() -> None:
    assert adapters.get("adaption_prompt") is adapters.get("llama_adapter")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(UnknownNameError, match="unknown adapter method 'lroa'") as caught:
        adapters.get("lroa")
    assert "or lora?" in str(caught.value)


def test_a_wrong_name_and_the_table_take_no_torch() -> None:
    code = (
        "import sys; from plr.adapters import adapters; [adapters.get(n).resolve({}) for n in adapters.names()]\n"
        "try:\n    adapters.get('lroa')\nexcept Exception as error:\n    assert 'lora' in str(error)\n"
        "heavy = {'torch', 'transformers', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
