"""GGUF files of our own making: the embedded base, or another Llama, as the gguf package writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import quantize

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
PIECES = (
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    *"Tomhas3pe.",
    "\u2581T",
    "om",
    "\u2581Tom",
)


def write_gguf(
    file: Path,
    model: Any,
    tokenizer: Any,
    *,
    form: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    without: tuple[str, ...] = (),
    pieces: bool = False,
) -> Path:
    """Write a Llama model and its tokenizer; matrices in `form`, tensors `without` left out.

    With `pieces` the tokenizer is one of SentencePiece, which begins a text with BOS, and knows a few letters.
    """
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(PIECES)
        writer.add_token_scores([-float(len(PIECES) - index) for index in range(len(PIECES))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in model.state_dict().items():
        if name not in without and name != "lm_head.weight":
            target, array = _as_llama_cpp(name, tensor.float(), config)
            if array.ndim > 1 and form != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(target, quantize(array.contiguous().numpy(), form), raw_dtype=form)
            else:
                writer.add_tensor(target, array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _as_llama_cpp(name: str, array: torch.Tensor, config: Any) -> tuple[str, torch.Tensor]:
    """Name a tensor as llama.cpp does, with the rows of q and k in its order."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", array
    if name == "model.norm.weight":
        return "output_norm.weight", array
    _, _, index, *rest, _ = name.split(".")
    if rest[-1] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if rest[-1] == "q_proj" else config.num_key_value_heads
        rows, columns = array.shape
        array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return f"blk.{index}.{NAMES['.'.join(rest)]}.weight", array
