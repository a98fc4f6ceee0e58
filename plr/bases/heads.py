"""Loading a model with a classification head, at 16 bits and at fewer.

How it works.

1. The model of the source is loaded with a head of as many outputs as the task has labels. The head is new, unless the
   checkpoint has one of that size: its random start is seeded, so that it is the same for all bits and machines. What a trained
   adapter carries takes its place (PEFT's `modules_to_save`).
2. For a k-bit base the linear layers of the body are then replaced by the k-bit layers of the quantized checkpoint, which
   was made without a head, by their names within the body. So one quantized base serves the language model and every head.

What it gives up: the dense layers are loaded and let go again, once a base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.adapters.base import NEW_MODULES
from plr.errors import ModelError
from plr.quantizers import is_quantized_layer
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["HEAD_SEED", "auto_class", "graft", "is_encoder", "load_classifier"]

HEAD_SEED = 0
"""Seed of the random start of a head that no checkpoint holds."""


def is_encoder(config: PreTrainedConfig) -> bool:
    """Tell whether a model of this config reads a whole text at once and predicts no next token (BERT, RoBERTa, DeBERTa, ...)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return config.model_type in MASKED and not decodes


def auto_class(folder: Path, **gguf: Any) -> Any:
    """Return the class that loads a model without a head of its own."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
    return AutoModel if is_encoder(config) else AutoModelForCausalLM


def load_classifier(
    folder: Path, head: HeadSpec, *, dtype: torch.dtype | str, pad_token_id: int, name: str, **more: object
) -> tuple[PreTrainedModel, bool]:
    """Load the model in `folder` with `head`, on the CPU in eval mode; and whether its head came out of the checkpoint.

    Raises:
        ModelError: no classification model of this architecture, or weights of its body are missing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    names = head.names or ("value",)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(HEAD_SEED)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=dtype,
                num_labels=head.num_labels,
                problem_type="regression" if head.regression else "single_label_classification",
                id2label=dict(enumerate(names)),
                label2id={label: i for i, label in enumerate(names)},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                **({} if "gguf_file" in more else {"use_safetensors": True}),
                **more,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{name} cannot be loaded with a classification head from {folder}: {error}",
            expected="a model for which transformers has a ForSequenceClassification class",
        ) from error
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    new = [*info["missing_keys"], *mismatched]
    body = [key for key in new if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body:
        raise ModelError(
            f"{name} lacks {len(body)} weights of its body: {', '.join(sorted(body)[:4])}",
            expected="a whole checkpoint",
            hint="fetch it again",
        )
    setattr(model, NEW_MODULES, _modules_of(new, model.base_model_prefix))
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = pad_token_id
    return model.eval(), not new


def _modules_of(keys: list[str], body: str) -> list[str]:
    """List the modules that tensors belong to: the one after the body's name, or the first.

    >>> _modules_of(["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"], "bert")
    ['classifier', 'pooler']
    """
    return sorted({key.removeprefix(f"{body}.").partition(".")[0] for key in keys})


def graft(model: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Replace the linear layers of `model`'s body, in place, by the k-bit layers of `quantized`, which is used up.

    Raises:
        ModelError: the bodies differ.
    """
    from plr.gptq.blocks import is_linear, replace_module

    body, theirs = model.base_model, quantized.base_model
    layers = {n: m for n, m in theirs.named_modules() if is_quantized_layer(m)}
    known = dict(body.named_modules())
    for name, layer in layers.items():
        if not is_linear(known.get(name)):
            raise ModelError(
                f"the quantized base has a layer {name} that {type(model).__name__} has not",
                expected="a base made from the same source model",
            )
        replace_module(body, name, layer)
