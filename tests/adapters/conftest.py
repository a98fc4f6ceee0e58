"""The small models that adapters are hung on."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import rounded, tiny_model

GPT2 = {"intermediate_size": 128, "bos_token_id": 1, "eos_token_id": 2}


def small_model(kind: str = "llama", bits: int = 16, *, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """Build a model of two heads, of a family of `tiny_models` or a llama_classifier, at 16 bits or rounded to fewer."""
    family = kind.removesuffix("_classifier")
    own = GPT2 if family == "gpt2" else {"pad_token_id": 0}
    model = tiny_model(
        family, seed=1, head="labels" if family != kind else None, **{"num_attention_heads": 2, **own, **sizes}
    )
    return rounded(model.to(dtype), bits, group_size=16)
