"""Architectures of transformers as tiny random models, by `model_type`, and nothing of ours in between.

Beside `tiny_models`, whose families are built for many sizes: here are as many as can be, each at one size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

__all__ = ["DECODERS", "ENCODERS", "ENCODER_DECODERS", "architecture"]

Config = dict[str, Any]
ENDS: Config = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: Config = ENDS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
OWN: Config = SIZES | {"num_key_value_heads": 4}
HEADS: Config = OWN | {"head_dim": 8}
GPT: Config = ENDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS: Config = {"num_local_experts": 4, "num_experts_per_tok": 2}
MULTI: Config = ENDS | {
    "d_model": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 256,
}
NO_INNER: Config = {key: value for key, value in SIZES.items() if key != "intermediate_size"}

DECODERS: dict[str, Config] = {
    "llama": SIZES,
    "mistral": OWN | {"sliding_window": 8},
    "qwen2": OWN,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"sliding_window": 8},
    "gemma3_text": HEADS | {"sliding_window": 8},
    "phi": SIZES,
    "phi3": OWN,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": ENDS
    | {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 256,
    },
    "gpt_neox": SIZES,
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4, "n_ctx": 256},
    "opt": NO_INNER | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": ENDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": NO_INNER,
    "mpt": ENDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "xglm": MULTI,
    "biogpt": SIZES,
    "persimmon": SIZES,
    "olmo": SIZES,
    "olmo2": SIZES,
    "stablelm": OWN,
    "starcoder2": OWN,
    "cohere": SIZES,
    "granite": SIZES,
    "nemotron": OWN,
    "smollm3": OWN,
    "glm": HEADS,
    "helium": HEADS,
    "ernie4_5": HEADS,
    "exaone4": OWN,
    "lfm2": OWN | {"layer_types": ["conv", "full_attention"]},
    "mamba": ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "mixtral": OWN | LOCAL_EXPERTS,
    "granitemoe": OWN | LOCAL_EXPERTS,
    "gpt_oss": HEADS | LOCAL_EXPERTS,
    "qwen3_moe": HEADS | EXPERTS | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_next": HEADS
    | EXPERTS
    | {
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "deepseek_v3": OWN
    | {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "llama4_text": HEADS
    | {"num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 64},
}
ENCODERS: dict[str, Config] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": SIZES | {"embedding_size": 32},
    "albert": SIZES | {"embedding_size": 16},
    "mpnet": SIZES,
    "distilbert": ENDS | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "deberta-v2": SIZES,
    "modernbert": SIZES | {"global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
}
ENCODER_DECODERS: dict[str, Config] = {
    "t5": ENDS | {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    "bart": ENDS
    | {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 256,
    },
}


def architecture(model_type: str, *, vocabulary: int = 64, spread: float = 0.3, seed: int = 0) -> Any:
    """Build the model of one architecture in float32, its matrices drawn with standard deviation `spread`."""
    config = (DECODERS | ENCODERS | ENCODER_DECODERS)[model_type]
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if model_type in DECODERS else AutoModel
    model = auto.from_config(AutoConfig.for_model(model_type, vocab_size=vocabulary, **config))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=spread)
    return model.float().eval()
