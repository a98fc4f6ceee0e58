"""Tiny random transformers, calibration batches and Hessians for the GPTQ tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SIZES, **TOKENS, "intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16}
ENCODER = {**SIZES, "pad_token_id": 0, "intermediate_size": 128}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**DECODER)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**DECODER, sliding_window_pattern=2)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER)),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**SIZES, **TOKENS, ffn_dim=128, word_embed_proj_dim=64)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**SIZES, **TOKENS, intermediate_size=128)
    ),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SIZES, **TOKENS, intermediate_size=128)),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**ENCODER)),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_model(name: str) -> Any:
    """A tiny random model in eval mode, the same at each call. Small biases and weights that are not all alike."""
    torch.manual_seed(1)
    model = ARCHITECTURES[name]().eval()
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
