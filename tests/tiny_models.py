"""Models of every family with random weights, small enough for a test.

Sizes have one name for all families (`hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`); the table
knows what a family calls them and what else it needs. Equal arguments give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from plr.gptq import quantize_model

__all__ = ["WORDS", "rounded", "save_tiny", "tiny_config", "tiny_model"]

WORDS = [f"w{i}" for i in range(40)] + ["good", "bad"]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
Head = Literal["text", "labels", "masked", "none"]
HEADS: dict[Head, Any] = {
    "text": transformers.AutoModelForCausalLM,
    "labels": transformers.AutoModelForSequenceClassification,
    "masked": transformers.AutoModelForMaskedLM,
    "none": transformers.AutoModel,
}


def _nothing(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _own_heads(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values of as many heads as queries have: the default of these families is that of a large model."""
    return {"num_key_value_heads": sizes["num_attention_heads"]}


def _divided_heads(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return _own_heads(sizes) | {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]}


@dataclass(frozen=True)
class Kind:
    """A family: the class of its config, its own names of sizes (`None`: it has no such size), and what it needs besides."""

    config: str
    names: Mapping[str, str | None] = field(default_factory=dict)
    needs: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    head: Head = "text"


KINDS: dict[str, Kind] = {
    "llama": Kind("LlamaConfig"),
    "mistral": Kind("MistralConfig", needs=_own_heads),
    "qwen2": Kind("Qwen2Config", needs=_own_heads),
    "qwen3": Kind("Qwen3Config", needs=_divided_heads),
    "gemma": Kind("GemmaConfig", needs=_divided_heads),
    "gemma2": Kind("Gemma2Config", needs=_divided_heads),
    "gemma3": Kind("Gemma3TextConfig", needs=_divided_heads),
    "granite": Kind("GraniteConfig"),
    "cohere": Kind("CohereConfig"),
    "phi": Kind("PhiConfig"),
    "gpt_neox": Kind("GPTNeoXConfig"),
    "gpt2": Kind("GPT2Config", names={"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}),
    "opt": Kind(
        "OPTConfig",
        names={"intermediate_size": "ffn_dim", "initializer_range": "init_std"},
        needs=lambda sizes: {"word_embed_proj_dim": sizes["hidden_size"]},
    ),
    "bloom": Kind("BloomConfig", names={"intermediate_size": None}),
    "mamba": Kind(
        "MambaConfig", names={"intermediate_size": None, "num_attention_heads": None}, needs=lambda _: {"state_size": 4}
    ),
    "bert": Kind("BertConfig", head="labels"),
    "roberta": Kind("RobertaConfig", head="labels"),
    "deberta-v2": Kind("DebertaV2Config", head="labels"),
    "distilbert": Kind(
        "DistilBertConfig",
        names={
            "intermediate_size": "hidden_dim",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        head="labels",
    ),
}


def tiny_config(kind: str, **sizes: Any) -> transformers.PreTrainedConfig:
    """Build the config of a family; `sizes` are those of the table or anything that its config knows."""
    family, whole = KINDS[kind], SIZES | sizes
    named = {family.names.get(name, name): value for name, value in (family.needs(whole) | whole).items()}
    named.pop(None, None)
    return getattr(transformers, family.config)(**named)


def tiny_model(
    kind: str = "llama",
    *,
    seed: int = 0,
    head: Head | None = None,
    dtype: torch.dtype | None = None,
    **sizes: Any,
) -> Any:
    """Build a model in eval mode; without `head`, a language model of a decoder and a classifier of an encoder."""
    config = tiny_config(kind, **sizes)
    torch.manual_seed(seed)
    model = HEADS[head or KINDS[kind].head].from_config(config, **({"dtype": dtype} if dtype else {}))
    return model.eval()


def rounded(model: Any, bits: int, group_size: int) -> Any:
    """Round the linear layers of a model to nearest in place; at 16 bits nothing happens."""
    if bits < 16:
        quantize_model(model, [], bits=bits, group_size=group_size, method="rtn")
    return model


def _tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of words with the special tokens and the templates of an encoder's family."""
    roberta, segments = kind == "roberta", kind == "bert"
    cls, sep, pad, unk = ("<s>", "</s>", "<pad>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    special = [cls, pad, sep, unk] if roberta else [pad, cls, sep, unk]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = f"{sep} $B {sep}" if roberta else f"$B:1 {sep}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {second}",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    ends = {"bos_token": cls, "eos_token": sep} if roberta else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unk,
        model_input_names=names,
        **ends,
    )


def save_tiny(kind: str, folder: Path) -> Path:
    """Save an encoder (bert, roberta, distilbert, deberta-v2) without any head and its tokenizer, as anybody's checkpoint is."""
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,  # far apart texts, far apart outputs
    }
    own: dict[str, dict[str, Any]] = {
        "roberta": {"type_vocab_size": 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
        "deberta-v2": {"pad_token_id": 0},
        "distilbert": {"seq_classif_dropout": 0.0},
    }
    tiny_model(kind, head="none", **sizes, **own.get(kind, {})).save_pretrained(folder)
    _tokenizer(kind).save_pretrained(folder)
    return folder
