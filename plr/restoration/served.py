"""Load the checkpoint that a restoration wrote: dense, or requantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.bases.given_adapters import adapter_folder
from plr.bases.load import Loaded, load_tokenizer, open_quantized, runtime_dtype, tokenizer_in, tokenizer_ref
from plr.core.runtime import Runtime
from plr.core.specs import GivenAdapter, Restore
from plr.core.store import Store
from plr.restoration.guard import KEEP
from plr.restoration.work import plain
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["as_served", "load_served", "served_adapter"]


def served_adapter(step: Restore, store: Store, *, offline: bool = False) -> Path:
    """Find the adapter that `step` serves: as it was trained, or as the step wrote it.

    Raises:
        PlrError, IntegrityError: it is not in the store, or not as it was committed.
    """
    return store.require(step).path if step.made else adapter_folder(step.adapter, store, offline=offline)


def as_served(step: Restore, store: Store) -> Restore:
    """Return the step that says what is served: where the guard kept the adapter on its own base, that; `step` itself otherwise.

    The adapter lies where `served_adapter` finds that of `step`.
    """
    own = step.adapter.own_base
    if own is None or not step.made or step.is_checkpoint or store.require(step).metrics.get("serves") != KEEP:
        return step
    return plain(step, own)


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
