"""A GPTQ checkpoint with all that a server needs beside it: tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
from pathlib import Path

from plr.bases.load import load_tokenizer
from plr.bases.resolve import model_path
from plr.core.fingerprint import JsonObject
from plr.core.specs import Quantize
from plr.errors import ModelError
from plr.export.files import TOKENIZER, copy, copy_tokenizer, has_tokenizer
from plr.export.work import Work

__all__ = ["checkpoint_folder", "write_gptq"]

FILES = ("config.json", "quantize_config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


def checkpoint_folder(work: Work) -> Path:
    """Return the folder of the GPTQ checkpoint that is exported, its files compared with what was committed."""
    return work.store.require(work.target).path


def write_gptq(work: Work) -> JsonObject:
    """Copy the checkpoint and its tokenizer.

    Raises:
        PlrError: it is not in the store.
        IntegrityError: its files are not as they were committed.
        ModelError: its configuration does not say how it is quantized.
    """
    folder = checkpoint_folder(work)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    setting = config.get("quantization_config") or {}
    if setting.get("quant_method") != "gptq":
        raise ModelError(f"{folder} has no quantization_config of gptq", expected="a GPTQ checkpoint")
    copy(folder, work.folder, (*FILES, *TOKENIZER))
    add_tokenizer(work)
    return {"bits": setting["bits"], "group_size": setting["group_size"]}


def add_tokenizer(work: Work) -> None:
    """Write the tokenizer of the source beside weights that have none."""
    base = work.target if isinstance(work.target, Quantize) else work.target.base
    if has_tokenizer(work.folder):
        return
    if base.model.kind == "gguf":
        load_tokenizer(base.model, home=work.store.home).save_pretrained(work.folder)  # pyright: ignore[reportUnknownMemberType]
        return
    source = model_path(base.model, offline=work.runtime.offline)
    copy_tokenizer(work.folder, source)
    if not (work.folder / "generation_config.json").is_file():
        copy(source, work.folder, ("generation_config.json",))
