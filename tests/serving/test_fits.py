"""What vLLM can serve: the reasons, and the adapters that plr really saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from plr.adapters import adapters
from plr.serving import why_not_vllm
from plr.serving.fits import LORA_METHODS, RANKS, lora_rank, room_for_rank

LORA = {"r": 16, "lora_alpha": 16, "bias": "none", "use_dora": False, "init_lora_weights": True}


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("method", ["lora", "rslora", "relora", None])
def test_lora_on_16_8_and_4_bits_is_served(bits: int, method: str | None) -> None:
    quantizer = None if bits == 16 else "gptq"
    assert why_not_vllm(bits, quantizer, method, LORA if method else None, False) is None


@pytest.mark.parametrize(
    ("bits", "quantizer", "settings", "reason"),
    [
        (3, "gptq", {}, "at 8 and 4 bits, not at 3"),
        (2, "rtn", {}, "at 8 and 4 bits, not at 2"),
        (4, "nf4", {}, "no reader for nf4 bases"),
        (8, "int8", {}, "no reader for int8 bases"),
        (4, "gptq", {"sym": False}, "sym: false"),
        (4, "gptq", {"desc_act": True}, "no GPTQ with desc_act"),
        (8, "gptqmodel", {"group_size": 16}, "in groups of -1, 32, 64, 128, not of 16"),
        (8, "gptq", {"group_size": 256}, "not of 256"),
        (4, "gptq", {"desc_act": True, "group_size": -1}, None),
        (4, "gptq", {"act_group_aware": True, "group_size": 32}, None),
    ],
)
def test_bases(bits: int, quantizer: str, settings: dict[str, Any], reason: str | None) -> None:
    found = why_not_vllm(bits, quantizer, None, None, False, quantization=settings)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("method", "config", "reason"),
    [
        ("dora", LORA | {"use_dora": True}, "a magnitude beside A and B"),
        ("lora", LORA | {"use_dora": True}, "a magnitude beside A and B"),
        ("lora", LORA | {"modules_to_save": ["lm_head"]}, "whole modules"),
        ("lora", LORA | {"trainable_token_indices": [3]}, "rows of the embedding"),
        ("lora", LORA | {"bias": "lora_only"}, "bias: lora_only"),
        ("lora", LORA | {"lora_bias": True}, "has a bias"),
        ("lora", LORA | {"r": 513}, "rank 512 at most, and this one has 513"),
        ("lora", LORA | {"rank_pattern": {"q_proj": 600}}, "this one has 600"),
        ("pissa", LORA | {"r": 300, "init_lora_weights": "pissa_niter_16"}, "this one has 600"),
        ("relora", {"r": 256, "restarts": 3}, "this one has 1024"),
        ("lora", LORA | {"init_lora_weights": "loftq"}, "a part of its own base"),
        ("lora", LORA | {"init_lora_weights": "pissa", "peft_type": "LORA"}, "a part of its own base"),
        ("lora", LORA | {"init_lora_weights": "gaussian"}, None),
        ("pissa", LORA | {"init_lora_weights": "pissa_niter_16"}, None),
        ("sparse", {}, "sparse is none"),
        ("prompt_tuning", {"num_virtual_tokens": 20}, "prompt_tuning is none"),
        ("adalora", {"peft_type": "ADALORA"}, "adalora is none"),
    ],
)
def test_adapters(method: str, config: dict[str, Any], reason: str | None) -> None:
    found = why_not_vllm(4, "gptq", method, config, False)
    assert found is None if reason is None else reason in str(found)


def test_a_merged_adapter_is_asked_nothing() -> None:
    assert why_not_vllm(16, None, "sparse", {}, True) is None
    assert "sparse" in str(why_not_vllm(16, None, "sparse", {}, False))


def test_heads_and_gguf_files() -> None:
    assert "classification head" in str(why_not_vllm(16, None, "lora", LORA, False, head=True))
    assert why_not_vllm(16, None, None, None, False, gguf=True) == "vLLM reads no GGUF file"
    assert why_not_vllm(4, "gptq", None, None, False, gguf=True) is None


@pytest.mark.parametrize("method", sorted(adapters.names()))
def test_what_a_method_saves_is_judged_as_its_settings_are(method: str, tmp_path: Path) -> None:
    """A method that passes saves the files of a LoRA, of the rank foretold; nothing else passes."""
    entry = adapters.get(method)
    config = entry.resolve({})
    planned = why_not_vllm(16, None, method, config, False)
    assert (planned is None) == (method in LORA_METHODS)
    if planned is not None:
        return
    config["r"] = 2
    model = entry.attach(tiny_model(), config, seed=0, steps=12)
    entry.save(model, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert why_not_vllm(16, None, method, saved, False) is None
    # ReLoRA that has not restarted yet is smaller than it will be.
    assert lora_rank(method, saved) == (2 if method == "relora" else lora_rank(method, config))
    assert {key.split(".")[-2] for key in _keys(tmp_path / "adapter_model.safetensors")} == {"lora_A", "lora_B"}


def _keys(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def test_room_for_a_rank_is_the_least_that_vllm_offers() -> None:
    assert [room_for_rank(rank) for rank in RANKS] == list(RANKS)
    assert [room_for_rank(rank) for rank in (2, 9, 129, 257, 321)] == [8, 16, 256, 320, 512]
