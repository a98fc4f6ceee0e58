"""Small encoders with random weights and a word tokenizer, saved as anybody's checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

__all__ = ["WORDS", "write_encoder"]

WORDS = [f"w{i}" for i in range(40)] + ["good", "bad"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,  # far apart texts, far apart outputs
}


def _tokenizer(cls: str, sep: str, pad: str, unk: str, *, roberta: bool, segments: bool) -> PreTrainedTokenizerFast:
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
    more = {"bos_token": cls, "eos_token": sep} if roberta else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unk,
        model_input_names=names,
        **more,
    )


def write_encoder(folder: Path, kind: str) -> Path:
    """An encoder of ``kind`` (bert, roberta, distilbert, deberta-v2) in ``folder``, without any head."""
    torch.manual_seed(0)
    size = len(WORDS) + 4
    if kind == "roberta":
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        model: Any = RobertaModel(RobertaConfig(vocab_size=size, type_vocab_size=1, **ids, **SIZES))
    elif kind == "deberta-v2":
        model = DebertaV2Model(DebertaV2Config(vocab_size=size, pad_token_id=0, **SIZES))
    elif kind == "bert":
        model = BertModel(BertConfig(vocab_size=size, **SIZES))
    else:
        sizes = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
        sizes |= {"max_position_embeddings": 66, "initializer_range": 0.2, "seq_classif_dropout": 0.0}
        model = DistilBertModel(DistilBertConfig(vocab_size=size, **sizes))
    model.save_pretrained(folder)
    names = ("<s>", "</s>", "<pad>", "<unk>") if kind == "roberta" else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    _tokenizer(*names, roberta=kind == "roberta", segments=kind == "bert").save_pretrained(folder)
    return folder
