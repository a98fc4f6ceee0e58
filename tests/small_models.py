"""Random models of a few kinds, small enough for a test, at 16 bits or rounded to fewer."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from plr.gptq import quantize_model

__all__ = ["small_model"]


def small_model(
    kind: str = "llama", bits: int = 16, *, hidden: int = 32, dtype: torch.dtype = torch.float32, **more: Any
) -> Any:
    """The same weights each time. ``kind``: llama, llama_classifier, bert (a classifier) or gpt2; ``more`` goes to its config."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "pad_token_id": 0, **more}
    model: Any
    if kind == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    elif kind == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
        )
    elif kind == "llama_classifier":
        model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model = model.to(dtype)
    if bits < 16:
        quantize_model(model, [], bits=bits, group_size=16, method="rtn")
    return model.eval()
