"""Tiny random models of several families and a tokenizer of single characters."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

CHARACTERS = string.ascii_lowercase + string.digits + " .\n"
VOCABULARY = ["<pad>", "<s>", "</s>", *CHARACTERS]

_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}
_GPT2 = {k: v for k, v in _SHAPE.items() if k not in ("intermediate_size", "max_position_embeddings")}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=2),
    "llama-eager": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=2, attn_implementation="eager"),
    "qwen2": lambda: Qwen2Config(**_SHAPE, num_key_value_heads=1),
    "gemma": lambda: GemmaConfig(**_SHAPE, num_key_value_heads=1, head_dim=12),
    "gemma2": lambda: Gemma2Config(**_SHAPE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**_SHAPE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "gpt-neox": lambda: GPTNeoXConfig(**_SHAPE),
    "gpt2": lambda: GPT2Config(**_GPT2, n_positions=128),
    "opt": lambda: OPTConfig(
        **{k: v for k, v in _SHAPE.items() if k not in ("intermediate_size", "initializer_range")},
        ffn_dim=48,
        word_embed_proj_dim=32,
        init_std=0.4,
    ),
    "mistral-window": lambda: MistralConfig(**_SHAPE, num_key_value_heads=2, sliding_window=8),
    "bloom": lambda: BloomConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4, pad_token_id=0
    ),
    "mamba": lambda: MambaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2, pad_token_id=0
    ),
}


def make_model(family: str, seed: int = 0):
    config = CONFIGS[family]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model.eval()


def make_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session", name="make_model")
def _make_model() -> Callable:
    return make_model


@pytest.fixture(scope="session", name="make_tokenizer")
def _make_tokenizer() -> Callable:
    return make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def llama():
    return make_model("llama")


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Prompts of 1 to 40 characters, in no order of length."""
    generator = torch.Generator().manual_seed(1)

    def one(length: int) -> str:
        return "".join(CHARACTERS[i] for i in torch.randint(len(CHARACTERS), (length,), generator=generator).tolist())

    return [one(n) for n in (9, 1, 40, 17, 17, 3, 28, 2, 33, 21)]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads on a shared machine can be many times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
