"""Tiny random models of several families and a tokenizer of single characters."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
import torch
from tiny_models import tiny_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

CHARACTERS = string.ascii_lowercase + string.digits + " .\n"
VOCABULARY = ["<pad>", "<s>", "</s>", *CHARACTERS]

_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama": lambda: tiny_config("llama", **_SHAPE, num_key_value_heads=2),
    "llama-eager": lambda: tiny_config("llama", **_SHAPE, num_key_value_heads=2, attn_implementation="eager"),
    "qwen2": lambda: tiny_config("qwen2", **_SHAPE, num_key_value_heads=1),
    "gemma": lambda: tiny_config("gemma", **_SHAPE, num_key_value_heads=1, head_dim=12),
    "gemma2": lambda: tiny_config("gemma2", **_SHAPE, num_key_value_heads=2, query_pre_attn_scalar=8),
    "gemma3": lambda: tiny_config("gemma3", **_SHAPE, num_key_value_heads=2, query_pre_attn_scalar=8),
    "gpt-neox": lambda: tiny_config("gpt_neox", **_SHAPE),
    "gpt2": lambda: tiny_config("gpt2", **{**_SHAPE, "intermediate_size": None}),
    "opt": lambda: tiny_config("opt", **_SHAPE),
    "mistral-window": lambda: tiny_config("mistral", **_SHAPE, num_key_value_heads=2, sliding_window=8),
    "bloom": lambda: tiny_config("bloom", vocab_size=len(VOCABULARY), initializer_range=0.4, pad_token_id=0),
    "mamba": lambda: tiny_config("mamba", vocab_size=len(VOCABULARY), eos_token_id=2, pad_token_id=0),
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
