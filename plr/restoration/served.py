"""Load the checkpoint that a restoration wrote: dense, or requantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.bases.load import Loaded, load_tokenizer, open_quantized, runtime_dtype, tokenizer_in, tokenizer_ref
from plr.core.runtime import Runtime
from plr.core.specs import GivenAdapter, Restore
from plr.core.store import Store
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_served"]


def _tokenizer(step: Restore, folder: Path, store: Store, runtime: Runtime) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint: a given adapter may have brought its own, which was written beside the weights."""
    if isinstance(step.adapter, GivenAdapter):
        return tokenizer_in(folder, step.label)
    return load_tokenizer(tokenizer_ref(step.base), offline=runtime.offline, home=store.home)


def load_served(step: Restore, store: Store, runtime: Runtime, head: HeadSpec | None = None) -> Loaded:
    """Load the checkpoint that `step` serves in place of its base, in eval mode; with `head`, for classification."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    path = store.require(step).path
    model: Any
    if step.form.writes == "quantized":
        model = open_quantized(path, runtime)
    else:
        auto: Any = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
        model = auto.from_pretrained(path, dtype=runtime_dtype(runtime), use_safetensors=True, trust_remote_code=False)
        model.to(runtime.torch_device())
    return Loaded(model.eval(), _tokenizer(step, path, store, runtime), head)
