"""An adapter that is taken off leaves nothing behind: parameters, buffers and modules of the base are the ones it had."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from plr.adapters import adapters

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"bias": "all"}),
    ("lora", {"bias": "lora_only"}),
    ("lora", {"modules_to_save": ["lm_head"]}),
    ("lora", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("dora", {}),
    ("dora", {"bias": "all"}),
    ("rslora", {"bias": "all"}),
    ("vera", {"bias": "all"}),
    ("oft", {"bias": "all", "oft_block_size": 4}),
    ("boft", {"bias": "all"}),
    ("hra", {"bias": "all", "r": 2}),
    ("miss", {"bias": "all", "r": 4}),
    ("fourierft", {"bias": "all", "n_frequency": 16}),
    ("loha", {}),
    ("lokr", {}),
    ("ia3", {}),
    ("bitfit", {}),
    ("ln_tuning", {}),
    ("sparse", {"n": 4, "m": 4, "k": 2}),
    ("shira", {"r": 2}),
    ("bottleneck", {"bottleneck_size": 4}),
    ("prompt_tuning", {}),
    ("prefix_tuning", {}),
    ("trainable_tokens", {"token_indices": [0, 1]}),
    ("full", {}),
    ("pissa", {}),
    ("adalora", {}),
    ("relora", {}),
    ("randlora", {"r": 4}),
    ("c3a", {"block_size": 4}),
    ("road", {"group_size": 4}),
    ("llama_adapter", {}),
    ("p_tuning", {}),
    ("parallel_bottleneck", {"bottleneck_size": 4}),
    ("lora", {"target_modules": ["lm_head"]}),
    ("lora", {"modules_to_save": ["embed_tokens"]}),
    ("lora", {"bias": "all", "modules_to_save": ["norm"]}),
]


def base() -> nn.Module:
    model = tiny_model("llama", seed=0, attention_bias=True, mlp_bias=True, initializer_range=0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Every adapter once, trained by noise: all that it trains is off its start."""
    made: list[tuple[str, Path]] = []
    for number, (name, config) in enumerate(METHODS):
        method, folder = adapters.get(name), tmp_path_factory.mktemp(f"{number}-{name}")
        model = method.attach(base(), method.resolve(config), seed=number, steps=100)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        method.save(model, folder)
        made.append((name, folder))
    return made


def test_in_any_order(saved: list[tuple[str, Path]]) -> None:
    model: Any = base()
    state = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    order = list(range(len(saved))) * 2
    random.Random(0).shuffle(order)
    changed = 0
    for number in order:
        name, folder = saved[number]
        method = adapters.get(name)
        put_on: Any = method.load(model, folder, "cell")
        with torch.no_grad():
            changed += not torch.equal(put_on(input_ids=ids).logits, logits)
        model = method.unload(put_on, "cell")
        now = model.state_dict()
        assert now.keys() == state.keys(), METHODS[number]
        assert [key for key in state if not torch.equal(now[key], state[key])] == [], METHODS[number]
        assert {key: type(module) for key, module in model.named_modules()} == {
            key: type(module) for key, module in modules.items()
        }, METHODS[number]
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, logits), METHODS[number]
    assert changed == len(order)


def test_every_method_of_the_table_is_here() -> None:
    assert {*adapters.names()} <= {name for name, _ in METHODS}


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("first_off", ["plain", "biased"])
def test_two_at_once(saved: list[tuple[str, Path]], bias: str, first_off: str) -> None:
    """The one with biases is put on layers that carry the other already; each takes its own away."""
    folders = {
        "plain": saved[METHODS.index(("lora", {}))][1],
        "biased": saved[METHODS.index(("lora", {"bias": bias}))][1],
    }
    method, model, ids = adapters.get("lora"), base(), torch.arange(12)[None]
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        alone = method.load(copy.deepcopy(model), folders["plain"], "plain")(input_ids=ids).logits
        put_on: Any = model
        for name, folder in folders.items():
            put_on = method.load(put_on, folder, name)
        put_on = method.unload(put_on, first_off)
        if first_off == "biased":
            put_on.set_adapter("plain")
            assert torch.equal(put_on(input_ids=ids).logits, alone)
    now = method.unload(put_on, "plain" if first_off == "biased" else "biased").state_dict()
    assert [key for key in state if not torch.equal(now[key], state[key])] == []
