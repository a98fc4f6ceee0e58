"""Tiny random transformers, calibration batches and Hessians for the GPTQ tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

VOCABULARY = 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def sizes(hidden: int = 64) -> dict[str, int]:
    return {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4}


def decoder(hidden: int = 64, inner: int = 128, kv_heads: int = 2) -> dict[str, int]:
    heads = {"num_key_value_heads": kv_heads, "head_dim": hidden // 4}
    return {**sizes(hidden), **TOKENS, **heads, "intermediate_size": inner}


def encoder(hidden: int = 64, inner: int = 128) -> dict[str, int]:
    return {**sizes(hidden), "pad_token_id": 0, "intermediate_size": inner}


DECODER = decoder()

# (hidden, inner, key-value heads) -> model; where heads cannot be shared, the third is not used.
ARCHITECTURES: dict[str, Callable[[int, int, int], Any]] = {
    "llama": lambda h, i, kv: transformers.LlamaForCausalLM(transformers.LlamaConfig(**decoder(h, i, kv))),
    "llama_tied": lambda h, i, kv: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**decoder(h, i, kv), tie_word_embeddings=True, attention_bias=True)
    ),
    "qwen2": lambda h, i, kv: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**decoder(h, i, kv))),
    "qwen3": lambda h, i, kv: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**decoder(h, i, kv))),
    "gemma2": lambda h, i, kv: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**decoder(h, i, kv))),
    "gemma3": lambda h, i, kv: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**decoder(h, i, kv), sliding_window_pattern=2)
    ),
    "mistral": lambda h, i, kv: transformers.MistralForCausalLM(transformers.MistralConfig(**decoder(h, i, kv))),
    "opt": lambda h, i, _: transformers.OPTForCausalLM(
        transformers.OPTConfig(**sizes(h), **TOKENS, ffn_dim=i, word_embed_proj_dim=h)
    ),
    "gpt2": lambda h, i, _: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, **TOKENS, n_embd=h, n_inner=i, n_layer=2, n_head=4)
    ),
    "gpt_neox": lambda h, i, _: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**sizes(h), **TOKENS, intermediate_size=i)
    ),
    "phi": lambda h, i, _: transformers.PhiForCausalLM(
        transformers.PhiConfig(**sizes(h), **TOKENS, intermediate_size=i, partial_rotary_factor=0.25)
    ),
    "bert": lambda h, i, _: transformers.BertForSequenceClassification(transformers.BertConfig(**encoder(h, i))),
    "roberta": lambda h, i, _: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**encoder(h, i))),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_model(name: str, hidden: int = 64, inner: int = 128, kv_heads: int = 2) -> Any:
    """A tiny random model in eval mode, the same at each call. Small biases and weights that are not all alike."""
    torch.manual_seed(1)
    model = ARCHITECTURES[name](hidden, inner, kv_heads).eval()
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
