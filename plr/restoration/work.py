"""A Restore step at work, and what several modes write alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plr.adapters import adapters
from plr.adapters.peft import name_base
from plr.bases.given_adapters import bears
from plr.bases.load import Loaded
from plr.bases.named import public_name
from plr.bases.resolve import model_path
from plr.core.fingerprint import JsonObject
from plr.core.modes import plain_mode
from plr.core.runtime import Runtime
from plr.core.specs import GivenBase, Quantize, Restore, Source, Train
from plr.core.store import Store
from plr.gptq.experts import join
from plr.lm.classify import probe
from plr.restoration.attach import Attachment, probe_texts
from plr.restoration.compensation import COMPENSATION, Factors, compensation_in
from plr.restoration.lowrank import compensate
from plr.tasks import HeadSpec
from plr.tasks.data.rows import head_of

__all__ = ["NAME", "Restoration", "copy_adapter", "kept", "own_base", "plain", "proof", "trained_head", "write_dense"]

NAME = "restored"
"""Name of the adapter on a base while it is restored."""


@dataclass(frozen=True)
class Restoration:
    """A Restore step at work: what a builder reads, and where it writes."""

    step: Restore
    adapter: Path
    """The trained adapter."""
    folder: Path
    """Destination of the served files."""
    store: Store
    runtime: Runtime
    on_progress: Callable[[int, int], None] | None = None

    @property
    def frozen(self) -> Factors:
        """The compensation that the adapter was trained beside; empty without one."""
        return compensation_in(self.adapter)

    @property
    def exact(self) -> Runtime:
        """The runtime in which weights are added up: float32."""
        return self.runtime.model_copy(update={"kernel": "dequantized", "dtype": "float32"})


def trained_head(step: Restore) -> HeadSpec | None:
    """Find the classification head that the adapter brings, if any."""
    return None if step.adapter.task is None else head_of(step.adapter.task)


def proof(attached: Attachment) -> JsonObject:
    """Record that an adapter acts."""
    return {"largest_logit_change": attached.change, **attached.partial}


def copy_adapter(work: Restoration, base: Source | Quantize | GivenBase, folder: Path) -> None:
    """Copy the adapter as it was trained to `folder`, and name `base` in its configuration."""
    for file in work.adapter.iterdir():
        own = isinstance(work.step.adapter, Train) or bears(file.name)
        if file.is_file() and file.name not in ("manifest.json", COMPENSATION) and own:
            shutil.copy2(file, folder / file.name)
    if (folder / "adapter_config.json").is_file():
        name_base(folder, *public_name(base))


def kept(work: Restoration, modules: Mapping[str, nn.Module], place: Path) -> Path:
    """Find the adapter to put on its own base: as it was trained, or, with its compensation, as it is written to `place`."""
    frozen = work.frozen
    if not frozen:
        return work.adapter
    copy_adapter(work, own_base(work.step), place)
    compensate(place, frozen, modules)
    return place


def own_base(step: Restore) -> Source | Quantize | GivenBase:
    """Return the base that the adapter was trained on; `check_mode` has seen to it that it is known."""
    base = step.adapter.own_base
    assert base is not None
    return base


def plain(step: Restore, base: Source | Quantize | GivenBase) -> Restore:
    """Describe the adapter of `step` on `base`, uncorrected."""
    mode = plain_mode(same_base=step.adapter.own_base == base)
    return step.replaced(base=base, mode=mode, correction=None, dtype=None)


def write_dense(work: Restoration, loaded: Loaded, attached: Attachment) -> JsonObject:
    """Merge the adapter on a dense base in float32, and write that in the dtype of the source checkpoint."""
    step = work.step
    texts = probe_texts(step)
    before = probe(attached.model, loaded.tokenizer, texts)
    dense: Any = adapters.get(step.adapter.adapter.method).merge(attached.model)
    join(dense)
    dtype = _source_dtype(step)
    dense.to(dtype)
    dense.config.dtype = dtype
    dense.save_pretrained(work.folder)
    loaded.tokenizer.save_pretrained(work.folder)  # pyright: ignore[reportUnknownMemberType]
    difference = before.change(probe(dense.float(), loaded.tokenizer, texts))
    return {
        **proof(attached),
        "largest_merge_difference": difference,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _source_dtype(step: Restore) -> torch.dtype:
    ref = step.base.model
    if ref.kind == "gguf":
        return torch.bfloat16
    config = json.loads((model_path(ref) / "config.json").read_text())
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
