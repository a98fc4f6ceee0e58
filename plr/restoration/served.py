"""Load the checkpoint that a restoration wrote: dense, or requantized."""

from __future__ import annotations

from typing import Any

from plr.bases.load import Loaded, load_tokenizer, open_quantized, runtime_dtype
from plr.core.runtime import Runtime
from plr.core.specs import Restore
from plr.core.store import Store
from plr.tasks import HeadSpec

__all__ = ["load_served"]


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
    return Loaded(model.eval(), load_tokenizer(step.base.model, offline=runtime.offline), head)
