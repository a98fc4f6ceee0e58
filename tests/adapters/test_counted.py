"""The tensors of an adapter are counted against its file, for every method: none is left out in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch import Tensor

from plr.adapters import adapters
from plr.adapters.peft import WEIGHTS
from plr.errors import ModelError

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"bias": "all"}),
    ("lora", {"modules_to_save": ["lm_head"]}),
    ("dora", {}),
    ("vera", {}),
    ("loha", {}),
    ("lokr", {}),
    ("oft", {"oft_block_size": 4}),
    ("hra", {"r": 2}),
    ("ia3", {}),
    ("bitfit", {}),
    ("ln_tuning", {}),
    ("sparse", {"n": 4, "m": 4, "k": 2}),
    ("shira", {"r": 2}),
    ("bottleneck", {"bottleneck_size": 4}),
    ("prompt_tuning", {}),
    ("prefix_tuning", {}),
]
IDS = [f"{name}-{'-'.join(map(str, config))}" for name, config in METHODS]


def base(layers: int = 2) -> Any:
    return tiny_model("llama", attention_bias=True, num_hidden_layers=layers)


def saved(name: str, config: dict[str, Any], folder: Path) -> Any:
    method = adapters.get(name)
    method.save(method.attach(base(), method.resolve(config), seed=0, steps=10), folder)
    return method


def counts(method: Any, folder: Path, layers: int = 2) -> tuple[int, int]:
    missing, unexpected = method.unfit(method.load(base(layers), folder, "cell"), folder, "cell")
    return len(missing), len(unexpected)


def edited(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(("name", "config"), METHODS, ids=IDS)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_every_tensor_of_every_method(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    method = saved(name, config, tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    assert counts(method, tmp_path) == (0, 0)
    edited(tmp_path, whole | {"base_model.model.model.layers.7.self_attn.q_proj.extra.weight": torch.zeros(2)})
    assert counts(method, tmp_path) == (0, 1)
    if len(whole) == 1:
        return  # without it there is no adapter
    key = sorted(key for key in whole if "lm_head" not in key)[-1]
    edited(tmp_path, {other: tensor for other, tensor in whole.items() if other != key})
    assert counts(method, tmp_path) == (1, 0)
    edited(
        tmp_path,
        {f"{key}.x" if other == key else other: tensor for other, tensor in whole.items()},
    )
    assert counts(method, tmp_path) == (1, 1)


@pytest.mark.parametrize(
    "part", ["self_attn.q_proj.base_layer.weight", "self_attn.q_proj.weight", "mlp.up_proj.weight"]
)
def test_a_weight_of_the_base_has_no_place_in_an_adapter(part: str, tmp_path: Path) -> None:
    method = saved("lora", {}, tmp_path)
    own = base().model.layers[0].get_submodule(part.replace(".base_layer", "").removesuffix(".weight")).weight
    edited(tmp_path, load_file(tmp_path / WEIGHTS) | {f"base_model.model.model.layers.0.{part}": torch.zeros_like(own)})
    assert counts(method, tmp_path) == (0, 1)


def test_a_module_that_is_named_and_not_there_is_counted(tmp_path: Path) -> None:
    method, file = saved("lora", {}, tmp_path), tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": [*config["target_modules"], "nowhere_proj"]}))
    assert counts(method, tmp_path) == (1, 0)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_base_of_other_layers(tmp_path: Path) -> None:
    method = saved("lora", {}, tmp_path)
    tensors = len(load_file(tmp_path / WEIGHTS))
    assert counts(method, tmp_path, layers=1) == (0, tensors // 2)
    assert counts(method, tmp_path, layers=3) == (tensors // 2, 0)


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    method = saved("lora", {}, tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="pickled weights are not read"):
        method.load(base(), tmp_path, "cell")
    shutil.rmtree(tmp_path)
