"""Make a base fit for an adapter that brings a vocabulary or a tokenizer of its own, and see that PEFT knows all its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from plr.bases.given_adapters import CONFIG, WEIGHTS
from plr.bases.load import Loaded, tokenizer_in
from plr.bases.look import header_of
from plr.core.specs import GivenAdapter, Train
from plr.errors import ModelError, ProvenanceError
from plr.quantizers.base import named_modules

__all__ = ["check_keys", "embedding_rows", "fit"]

NOT_CHOSEN = {"peft_type", "task_type", "peft_version", "auto_mapping"}


def fit(loaded: Loaded, adapter: Train | GivenAdapter, folder: Path) -> Loaded:
    """Give `loaded` the tokenizer that lies beside a given adapter, and as many rows of the embedding as it was saved with.

    What plr trained changes neither.

    Raises:
        ModelError: settings of a newer PEFT that this one would pass over.
        ProvenanceError: more tokens than the embedding has rows.
    """
    if not isinstance(adapter, GivenAdapter):
        return loaded
    check_keys(adapter, folder)
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file():
        loaded = replace(loaded, tokenizer=tokenizer_in(folder, adapter.folder.title))
    rows = embedding_rows(loaded)
    saved = _saved_rows(loaded.model, folder, adapter.folder.title, rows)
    most = max(loaded.tokenizer.get_vocab().values())
    if most >= saved:
        raise ProvenanceError(
            f"the tokenizer of {adapter.folder.title} has the token {most}, and the embedding {saved} rows",
            expected="an adapter that was saved with the embedding of its tokens",
            hint="save it with save_embedding_layers=True, or serve it with the tokenizer of its base",
        )
    if saved != rows:
        loaded.model.resize_token_embeddings(saved, mean_resizing=False)
    return loaded


def embedding_rows(loaded: Loaded) -> int:
    """Count the rows of the embedding of a base."""
    embedding: Any = loaded.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _saved_rows(model: Any, folder: Path, name: str, rows: int) -> int:
    """Find how many tokens the embedding had when the adapter was saved; `rows`, those of the base, where none was saved.

    Raises:
        ProvenanceError: the embedding and an output layer of its own have other numbers of rows, or one of them is not there and
            would get rows at random.
    """
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {key.rpartition(".")[2]: module for key, module in named_modules(model) if module in both}
    header: Any = header_of(folder / WEIGHTS, name)
    found: dict[str, int] = {}
    for key, entry in header.items():
        stem = key.removesuffix(".weight").removesuffix(".base_layer").removesuffix(".modules_to_save")
        if key.endswith(".weight") and (last := stem.rpartition(".")[2]) in names and len(entry["shape"]) == 2:
            found[last] = int(entry["shape"][0])
    sizes = {*found.values()} or {rows}
    weights = {id(getattr(module, "weight", None)) for module in names.values()}  # one, where they are tied
    if len(sizes) > 1 or (sizes != {rows} and len(found) < len(weights)):
        raise ProvenanceError(
            f"{name} was saved with {found} rows of {' and '.join(names)}, and the base has {rows}",
            expected="both, with a row for each token",
            hint="save it with save_embedding_layers=True",
        )
    return sizes.pop()


def check_keys(adapter: GivenAdapter, folder: Path) -> None:
    """Refuse settings that the installed PEFT does not know, and would pass over."""
    from plr.adapters import adapters
    from plr.adapters.peft import PeftMethod

    method = adapters.get(adapter.method)
    if not isinstance(method, PeftMethod):
        return
    known = method.known_keys()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key, value in config.items():
        if key not in known | NOT_CHOSEN and value not in (None, False, {}, [], ""):
            raise ModelError(
                f"{adapter.folder.title} was saved with {key} = {json.dumps(value)[:80]}, which the installed PEFT does not know",
                expected="settings of this version of PEFT",
                hint="update PEFT, or take the key out of adapter_config.json if it changes nothing",
            )
