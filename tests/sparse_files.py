"""Saved sparse adapters of known content, in the form in which PEFT writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model.model.layers."


def write_sparse(
    folder: Path,
    *,
    layers: int = 2,
    kinds: tuple[str, ...] = ("q_proj", "v_proj"),
    n: int = 4,
    m: int = 6,
    k: int = 5,
    seed: int = 0,
    std: float = 1.0,
    extra: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """An adapter whose scores are fresh draws and whose k best blocks of 2 x 3 hold random values."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for layer in range(layers):
        for kind in kinds:
            scores = rng.normal(0, std, (n, m)).astype(np.float32)
            key = f"{PREFIX}{layer}.self_attn.{kind}"
            tensors[f"{key}.sparse_scores"] = scores
            tensors[f"{key}.sparse_values"] = rng.normal(0, 0.1, (k, 2, 3)).astype(np.float32)
            tensors[f"{key}.sparse_positions"] = np.argsort(-scores.reshape(-1))[:k].astype(np.int64)
    settings = {
        "peft_type": "SPARSE",
        "n": n,
        "m": m,
        "k": k,
        "alpha": 2.0,
        "init_std": std,
        "target_modules": list(kinds),
    }
    return write_adapter(folder, tensors | (extra or {}), {**settings, "base_model_name_or_path": "base", **config})


def write_adapter(folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def dense(module: Any) -> Any:
    """dW of a module as one matrix, written out by its definition."""
    n, m = module.scores.shape
    _, rows, columns = module.values.shape
    whole = np.zeros((n * rows, m * columns))
    for slot, place in enumerate(module.positions):
        row, column = divmod(int(place), m)
        block = module.alpha * module.scores[row, column] * module.values[slot]
        whole[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = block
    return whole
