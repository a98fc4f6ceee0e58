"""Properties of a model that decide how it runs: its base, its virtual tokens, and whether slots can express it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.config import PromptLearningConfig

__all__ = [
    "accepts",
    "decoder_config",
    "evaluating",
    "input_device",
    "position_limit",
    "prompt_learning",
    "unwrap",
    "why_not_slots",
]

_GROWING_ROPE = ("dynamic", "longrope")  # frequencies that depend on the longest text in the batch


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, model if inner is None else inner())


def decoder_config(model: nn.Module) -> PreTrainedConfig:
    return unwrap(model).config.get_text_config(decoder=True)


def input_device(model: nn.Module) -> torch.device:
    return cast(nn.Embedding, unwrap(model).get_input_embeddings()).weight.device


def accepts(model: nn.Module, name: str) -> bool:
    """Tell whether the base model's `forward` has the parameter `name`."""
    return name in inspect.signature(unwrap(model).forward).parameters


def _adapter_config(model: nn.Module) -> PeftConfig | None:
    """Return the PEFT config in force; None for a plain model and inside `disable_adapter()`."""
    if not hasattr(model, "get_base_model") or getattr(model, "_adapters_disabled", False):
        return None
    return getattr(model, "active_peft_config", None)


def prompt_learning(model: nn.Module) -> int:
    """Count the virtual tokens that a PEFT prompt-learning method (prompt, P-, prefix tuning) puts before every prompt."""
    config = _adapter_config(model)
    return (
        int(cast("PromptLearningConfig", config).num_virtual_tokens)
        if getattr(config, "is_prompt_learning", False)
        else 0
    )


def position_limit(model: nn.Module) -> int | None:
    """Return the most tokens the model's positions can tell apart, None where the config names no limit."""
    limit = getattr(decoder_config(model), "max_position_embeddings", None)
    return int(limit) if limit else None


def why_not_slots(model: nn.Module, longest: int) -> str | None:
    """Return the reason why texts of up to `longest` tokens of this model cannot run in a slot cache, None if they can.

    Every reason is read off the model's structure: which cache layers transformers makes for it, which arguments its
    `forward` takes, which attention it runs.
    """
    base, config = unwrap(model), decoder_config(model)
    if getattr(base.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    for name in ("input_ids", "attention_mask", "position_ids", "past_key_values"):
        if not accepts(model, name):
            return f"its forward takes no {name}"
    attention = getattr(base.config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"its attention {attention!r} takes no 4-D mask"
    if getattr(config, "alibi", False):
        return "its ALiBi bias is derived from a 2-D mask"
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest:
            continue  # the window never closes
        if type(layer) is not DynamicLayer:
            return f"it keeps a {type(layer).__name__} for texts of up to {longest} tokens"
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    original = original or position_limit(model) or longest
    if rope.get("rope_type") in _GROWING_ROPE and longest > original:
        return f"its {rope['rope_type']} RoPE changes beyond {original} tokens"
    if getattr(_adapter_config(model), "alora_invocation_tokens", None):
        return "its adapter (aLoRA) looks for its invocation in the whole prompt"
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and no gradients inside; afterwards every module's own `training` flag is as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
