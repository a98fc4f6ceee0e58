"""Places of an adapter: target modules named as in Llama, found in any architecture.

A default list such as `[q_proj, k_proj, v_proj, o_proj]` is part of an adapter's identity and is written down before any
model is loaded. So that one list serves every architecture:

1. A name that the model has (a whole module name, or its end after a dot) stands for itself, as in PEFT.
2. A name of Llama's that the model lacks is a *role*, and stands for the modules of that role in its family: `o_proj` is
   `attention.output.dense` in RoBERTa. The table below is all there is to it; the names taken stand in the saved
   `adapter_config.json`.
3. A list of which nothing is found is an error that says what layers the model does have.

What it gives up: a fused projection (GPT-2's `c_attn`) is one module, so `q_proj` there means queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from plr.adapters.base import Config, Settings
from plr.errors import ModelError
from plr.registry import did_you_mean

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ATTENTION", "ROLES", "linear_names", "named_in"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The default of every method that adapts linear layers: the attention projections."""
LISTS = ("target_modules", "feedforward_modules", "exclude_modules")

_BERT = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention.output.dense",
    "up_proj": "intermediate.dense",
    "down_proj": r"re:.*\.\d+\.output\.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "post_attention_layernorm": r"re:.*\.\d+\.output\.LayerNorm",
    "norm": "embeddings.LayerNorm",
}
_DISTILBERT = {"q_proj": "q_lin", "k_proj": "k_lin", "v_proj": "v_lin", "o_proj": "out_lin"}
_DISTILBERT |= {"up_proj": "lin1", "down_proj": "lin2"}
_DISTILBERT |= {"input_layernorm": "sa_layer_norm", "post_attention_layernorm": "output_layer_norm"}
_FUSED = {"q_proj": "query_key_value", "k_proj": "query_key_value", "v_proj": "query_key_value"}
_FUSED |= {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
_GPT2 = {"q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "attn.c_proj"}
_GPT2 |= {"up_proj": "c_fc", "down_proj": "mlp.c_proj", "self_attn": "attn"}
_GPT2 |= {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "norm": "ln_f"}
_OPT = {"o_proj": "out_proj", "up_proj": "fc1", "down_proj": "fc2"}
_OPT |= {"input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm"}
ROLES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "bloom": _FUSED | {"o_proj": "self_attention.dense", "norm": "ln_f"},
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "falcon": _FUSED | {"o_proj": "self_attention.dense", "norm": "ln_f"},
    "gpt2": _GPT2,
    "gpt_neox": _FUSED | {"o_proj": "attention.dense", "norm": "final_layer_norm"},
    "opt": _OPT,
    "phi": {"o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2", "norm": "final_layernorm"},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""model_type -> role -> the end of a module's name, or a pattern (`re:`) for whole names."""


def named_in(model: nn.Module, config: Config, method: str) -> Settings:
    """Translate the lists of modules in `config` to the names of `model`.

    Raises:
        ModelError: `target_modules` is a list and the model has none of them.
    """
    names = [name for name, _ in model.named_modules()]
    roles = ROLES.get(str(getattr(getattr(model, "config", None), "model_type", "")), {})
    result = dict(config)
    for key in LISTS:
        value = config.get(key)
        if isinstance(value, list | tuple):
            result[key] = list(dict.fromkeys(module for item in value for module in _resolved(str(item), names, roles)))
        elif isinstance(value, str) and value in roles and not _has(names, value):
            result[key] = roles[value]
    wanted = config.get("target_modules")
    if isinstance(wanted, list | tuple) and not any(_has(names, item) for item in result["target_modules"]):
        have = linear_names(model)
        near = [advice for item in wanted if (advice := did_you_mean(str(item), have))]
        raise ModelError(
            f"{method}: {type(model).__name__} has no module called {', '.join(map(str, wanted))}",
            expected=f"target_modules among its linear layers: {', '.join(have)}",
            hint=near[0] if near else f"--set adapters.0.config.target_modules='[{', '.join(have[:3])}]'",
        )
    return result


def linear_names(model: nn.Module) -> list[str]:
    """List the last parts of the names of all linear layers (k-bit ones and GPT-2's Conv1D too), the output layer left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    names = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    )
    return list(dict.fromkeys(names))


def _has(names: list[str], item: str) -> bool:
    return any(name == item or name.endswith(f".{item}") for name in names)


def _resolved(item: str, names: list[str], roles: Mapping[str, str]) -> list[str]:
    if _has(names, item) or item not in roles:
        return [item]
    role = roles[item]
    if not role.startswith("re:"):
        return [role]
    return [name for name in names if re.fullmatch(role.removeprefix("re:"), name)]
