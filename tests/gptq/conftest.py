"""Tiny random transformers, calibration batches and Hessians for the GPTQ tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

VOCABULARY = 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {"tie_word_embeddings": True, "attention_bias": True},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {"sliding_window_pattern": 2},
    "mistral": {},
    "opt": TOKENS,
    "gpt2": TOKENS,
    "gpt_neox": TOKENS,
    "phi": {**TOKENS, "partial_rotary_factor": 0.25},
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 0, "head": "masked"},
}
"""What a family is given beside its sizes; those of the first seven share key-value heads."""
SHARING = tuple(ARCHITECTURES)[:7]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_model(name: str, hidden: int = 64, inner: int = 128, kv_heads: int = 2) -> Any:
    """A tiny random model in eval mode, the same at each call. Small biases and weights that are not all alike."""
    heads = {**TOKENS, "num_key_value_heads": kv_heads, "head_dim": hidden // 4} if name in SHARING else {}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": inner}
    model = tiny_model(name.removesuffix("_tied"), seed=1, **sizes, **heads, **ARCHITECTURES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def make_batches(n: int = 3, b: int = 4, t: int = 24, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(3, VOCABULARY, (b, t), generator=generator),
            "attention_mask": torch.ones(b, t, dtype=torch.long),
        }
        for _ in range(n)
    ]


def make_hessian(n_in: int, n: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """`2/n X^T X [in, in]` of correlated inputs."""
    mix = torch.eye(n_in, dtype=dtype) + torch.randn(n_in, n_in, dtype=dtype) / n_in**0.5
    X = torch.randn(n or 4 * n_in, n_in, dtype=dtype) @ mix
    return 2 / X.shape[0] * X.t() @ X
