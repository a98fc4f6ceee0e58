"""A merge on a base whose output layer is its embedding: what is written computes what base and adapter compute, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from plr.adapters import adapters
from plr.errors import ModelError

IDS = torch.arange(3, 20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("lora", {"modules_to_save": ["lm_head"]}),
        ("lora", {"modules_to_save": ["embed_tokens"]}),
        ("lora", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("lora", {"target_modules": ["q_proj", "lm_head"]}),
        ("lora", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("lora", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("lora", {"trainable_token_indices": [3, 5]}),
        ("trainable_tokens", {"token_indices": [3, 5]}),
        ("full", {}),
        ("lora", {}),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Model with `tie_word_embeddings=True`"
)
def test_what_is_written_is_what_was_served(tmp_path: Path, method: str, config: dict[str, Any]) -> None:
    chosen = adapters.get(method)
    trained = chosen.attach(tiny_model("llama", tie_word_embeddings=True), chosen.resolve(config), seed=0, steps=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    chosen.save(trained, tmp_path / "adapter")
    served = chosen.load(tiny_model("llama", tie_word_embeddings=True), tmp_path / "adapter", "cell")
    expected = logits(served)
    assert (expected - logits(tiny_model("llama", tie_word_embeddings=True))).abs().max() > 0.01
    try:
        dense: Any = chosen.merge(served)
    except ModelError:
        return
    dense.save_pretrained(tmp_path / "merged")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
