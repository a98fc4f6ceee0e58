"""LoRAs as GGUF files, read back by the format's own reader: each product is what PEFT adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from given import by_peft, save_adapter, write_config

from plr import Lab
from plr.embedded import tiny_path
from plr.errors import ModelError, UsageError
from plr.export.gguf_lora import FILE, write_gguf_lora

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every layer": {"target_modules": LAYERS},
    "rslora": {"use_rslora": True, "target_modules": LAYERS},
    "patterns": {"rank_pattern": {"k_proj": 2, "q_proj": 3}, "alpha_pattern": {"v_proj": 3}, "target_modules": LAYERS},
    "some layers": {"layers_to_transform": [1], "target_modules": LAYERS},
}


def config() -> dict[str, Any]:
    return json.loads((tiny_path() / "config.json").read_text())


def order_of_gguf(rows: int, heads: int) -> list[int]:
    """Of each head, row i of the first half before row i of the second: the row of GGUF -> the row of transformers."""
    size = rows // heads
    return [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]


def read(file: Path) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    reader = gguf.GGUFReader(file)
    return reader, {
        tensor.name: np.asarray(tensor.data).reshape(*reversed(tensor.shape.tolist())) for tensor in reader.tensors
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_product_is_what_peft_adds(tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(tmp_path / "theirs", **KINDS[kind])
    write_gguf_lora(adapter, config(), tmp_path / FILE)
    reader, tensors = read(tmp_path / FILE)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    model, seen = by_peft(adapter), 0
    heads = {"q_proj": config()["num_attention_heads"], "k_proj": config()["num_key_value_heads"]}
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        layer, last = name.split(".")[2], name.rpartition(".")[2]
        a, b = (tensors[f"blk.{layer}.{NAMES[last]}.weight.lora_{side}"] for side in "ab")
        delta = torch.from_numpy(alpha / b.shape[1] * (b @ a))  # as llama.cpp computes it
        wanted = module.get_delta_weight("default")
        if last in heads:
            wanted = wanted[order_of_gguf(wanted.shape[0], heads[last])]
        assert torch.allclose(delta, wanted, atol=1e-5), name
        seen += 1
    assert len(tensors) == 2 * seen > 0


def test_it_says_what_it_is(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    record = write_gguf_lora(adapter, config(), tmp_path / FILE)
    fields = gguf.GGUFReader(tmp_path / FILE).fields
    words = {key: fields[key].contents() for key in ("general.architecture", "general.type", "adapter.type")}
    assert words == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    assert record["lora_alpha"] == 8.0


def test_the_command_writes_it_beside_a_card(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "home", dtype="float32", device="cpu", offline=True)
    adapter = save_adapter(tmp_path / "theirs", named="embedded:tiny")
    done = lab.export(str(adapter), tmp_path / "out", "gguf-lora", bits=16)
    assert {file.name for file in done.folder.iterdir()} == {FILE, "README.md", "plr-export.json"}
    with pytest.raises(UsageError, match=r"is a whole checkpoint"):
        lab.export(str(adapter), tmp_path / "other", "gguf-lora", bits=8, mode="requantize", task="tiny_math")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, r"has use_dora"),
    ({"modules_to_save": ["lm_head"]}, r"has modules_to_save"),
    ({"bias": "all"}, r"trains biases"),
    ({"target_modules": ["embed_tokens"]}, r"expected: lora_A and lora_B alone"),
    ({"target_modules": ["lm_head"]}, r"expected: lora_A and lora_B alone"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=str)
def test_what_the_file_has_no_place_for(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    adapter = save_adapter(tmp_path / "theirs", **settings)
    with pytest.raises(ModelError, match=words):
        write_gguf_lora(adapter, config(), tmp_path / FILE)
    assert not (tmp_path / FILE).exists()


def test_a_base_whose_names_are_not_known_and_another_base(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs", target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"the names of mamba in GGUF are not known here"):
        write_gguf_lora(adapter, config() | {"model_type": "mamba"}, tmp_path / FILE)
    with pytest.raises(ModelError, match=r"does not fit its base"):
        write_gguf_lora(adapter, config() | {"num_hidden_layers": 2}, tmp_path / FILE)
    write_config(adapter, peft_type="IA3")
    with pytest.raises(ModelError, match=r"is of the type IA3"):
        write_gguf_lora(adapter, config(), tmp_path / FILE)
