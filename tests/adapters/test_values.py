"""Values of an adapter's configuration are checked when a study is planned, by the kind of their default."""

from __future__ import annotations

from typing import Any

import pytest

from plr.adapters import adapters
from plr.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("lora", "r", 0),
        ("lora", "r", -1),
        ("lora", "r", "x"),
        ("lora", "r", 4.5),
        ("lora", "r", True),
        ("lora", "lora_alpha", 0),
        ("lora", "lora_alpha", "16"),
        ("lora", "lora_dropout", 1.0),
        ("lora", "lora_dropout", -0.1),
        ("lora", "lora_dropout", float("nan")),
        ("lora", "target_modules", 5),
        ("lora", "target_modules", [1]),
        ("lora", "use_dora", 1),
        ("lora", "bias", 3),
        ("vera", "projection_prng_key", -1),
        ("fourierft", "n_frequency", 0),
        ("prompt_tuning", "num_virtual_tokens", 0),
        ("adalora", "init_r", "12"),
        ("sparse", "k", 0),
        ("relora", "r", 0),
    ],
)
def test_values_of_another_kind_are_refused(method: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        adapters.get(method).resolve({key: value})


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (
            "lora",
            {
                "r": 1,
                "lora_alpha": 0.5,
                "lora_dropout": 0.999,
                "init_lora_weights": "pissa",
                "target_modules": "all-linear",
            },
        ),
        ("lora", {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}),
        ("oft", {"r": 4, "oft_block_size": 0}),
        ("lokr", {"decompose_factor": 8}),
        ("adalora", {"tinit": 10, "tfinal": 20}),
        ("trainable_tokens", {"token_indices": [0, 1]}),
    ],
)
def test_values_of_its_kind_are_taken(method: str, config: dict[str, Any]) -> None:
    whole = adapters.get(method).resolve(config)
    assert {key: whole[key] for key in config} == config


def test_every_default_is_of_its_own_kind() -> None:
    for name in adapters.names():
        method = adapters.get(name)
        defaults = method.resolve({})
        assert method.resolve(defaults) == defaults or name == "full"
