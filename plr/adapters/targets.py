"""Places of an adapter: target modules named as in Llama, found in any architecture.

A default list such as `[q_proj, k_proj, v_proj, o_proj]` is part of an adapter's identity and is written down before any
model is loaded. So that one list serves every architecture:

1. A name that the model has (a whole module name, or its end after a dot) stands for itself, as in PEFT.
2. A name of Llama's that the model lacks is a *role*, and stands for the modules of that role: by the table of its family
   (`o_proj` is `attention.output.dense` in RoBERTa), else by the names that families have for it. The names taken stand in the
   saved `adapter_config.json`.
3. A name that reaches nothing is an error that says what layers the model does have. Only norms may be fewer: not every
   family has two in a block.

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

__all__ = ["ATTENTION", "ROLES", "has_module", "linear_names", "named_in"]

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
_FUSED_QKV = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "q_proj": (("query_proj",), ("query",), ("attn.q",), ("q_a_proj", "q_b_proj"), *((name,) for name in _FUSED_QKV)),
    "k_proj": (("key_proj",), ("key",), ("attn.k",), ("kv_a_proj_with_mqa", "kv_b_proj"), *((n,) for n in _FUSED_QKV)),
    "v_proj": (
        ("value_proj",),
        ("value",),
        ("attn.v",),
        ("kv_a_proj_with_mqa", "kv_b_proj"),
        *((n,) for n in _FUSED_QKV),
    ),
    "o_proj": (
        ("attention.output.dense",),
        ("self_attn.out_proj",),
        ("attn.out_proj",),
        ("attention.out_proj",),
        ("attn.o",),
        ("attn.Wo",),
        ("self_attn.dense",),
        ("self_attention.dense",),
        ("attention.dense",),
        ("attn.c_proj",),
    ),
    "gate_proj": (("gate_up_proj",), ("w1",), ("mlp.Wi",)),
    "up_proj": (
        ("gate_up_proj",),
        ("w3",),
        ("mlp.Wi",),
        ("fc1",),
        ("fc_in",),
        ("c_fc",),
        ("dense_h_to_4h",),
        ("intermediate.dense",),
        ("ffn",),
    ),
    "down_proj": (
        ("w2",),
        ("mlp.Wo",),
        ("fc2",),
        ("fc_out",),
        ("mlp.c_proj",),
        ("dense_4h_to_h",),
        (r"re:.*\.\d+\.output\.dense",),
        ("ffn_output",),
    ),
}
"""Role -> what families outside the table call it, the first that a model has: one module, or the two of a factored one."""
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


def named_in(model: nn.Module, config: Config, method: str) -> Settings:
    """Translate the lists of modules in `config` to the names of `model`.

    Raises:
        ModelError: `target_modules` is a list and the model lacks one of them.
    """
    names = [name for name, _ in model.named_modules()]
    roles = ROLES.get(str(getattr(getattr(model, "config", None), "model_type", "")), {})
    result = dict(config)
    for key in LISTS:
        value = config.get(key)
        if isinstance(value, list | tuple):
            result[key] = list(dict.fromkeys(module for item in value for module in _resolved(str(item), names, roles)))
        elif isinstance(value, str) and value in roles and not has_module(names, value):
            result[key] = roles[value]
    wanted = config.get("target_modules")
    listed = [str(item) for item in wanted] if isinstance(wanted, list | tuple) else []
    lost = [item for item in listed if not any(has_module(names, name) for name in _resolved(item, names, roles))]
    if lost and (len(lost) == len(listed) or not {*lost} <= {*NORMS}):
        have = linear_names(model)
        near = [advice for item in lost if (advice := did_you_mean(str(item), have))]
        raise ModelError(
            f"{method}: {type(model).__name__} has no module called {', '.join(lost)}",
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


def has_module(names: list[str], item: str) -> bool:
    """Tell whether `item` is the name of a module, or its end."""
    return any(name == item or name.endswith(f".{item}") for name in names)


def _resolved(item: str, names: list[str], roles: Mapping[str, str]) -> list[str]:
    if has_module(names, item):
        return [item]
    for candidate in ((roles[item],),) if item in roles else NAMES.get(item, ()):
        found = [name for one in candidate for name in _named(one, names)]
        if found:
            return found
    return [item]


def _named(role: str, names: list[str]) -> list[str]:
    if not role.startswith("re:"):
        return [role] if has_module(names, role) else []
    return [name for name in names if re.fullmatch(role.removeprefix("re:"), name)]
