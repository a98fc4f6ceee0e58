"""Resume state of a killed quantization: one file for each finished block.

How it works:

1. `block-0007.safetensors` holds the packed buffers of the block's layers, and in its header their shapes, the reports
   and a key. It is written to a temporary name, flushed to the disk and renamed: it is there whole, or not at all;
2. a later run with the same key (settings, calibration tokens, names and sizes of the layers) puts these layers in
   place and starts with the block after them. Its batches run through them as they did in the first run, so its bytes
   are the same;
3. files of another key are removed: they belong to other settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from plr.gptq.execution import Execution
from plr.gptq.linear import BUFFERS, PackedLinear
from plr.gptq.settings import Settings
from plr.gptq.typed import open_tensors

__all__ = ["BlockStore", "key_of"]


def key_of(
    settings: Settings,
    execution: Execution,
    sizes: Mapping[str, Sequence[int]],  # of each layer
    batches: Sequence[Mapping[str, object]],
) -> str:
    """Hash (sha256) what decides a block's bytes and reports: settings, layers and their sizes, calibration tokens."""
    decides = settings.identity() | {
        "kernel": execution.kernel,
        "measure_rtn": execution.measure_rtn,
        "forward_dtype": str(execution.forward_dtype),
    }
    digest = hashlib.sha256(json.dumps([decides, {k: list(v) for k, v in sizes.items()}], sort_keys=True).encode())
    for batch in batches:
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}{tuple(value.shape)}".encode())
                array = cast(_Bytes, value.detach().cpu().contiguous().numpy())  # pyright: ignore[reportUnknownMemberType]
                digest.update(array.tobytes())
    return digest.hexdigest()


class _Bytes(Protocol):
    """A numpy array, as far as it is used here."""

    def tobytes(self) -> bytes: ...


class BlockStore:
    """Finished blocks in `folder`, which is made when the first is saved."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def save(self, index: int, layers: Mapping[str, PackedLinear], record: Mapping[str, Any]) -> None:
        """Write the layers of block `index` (dotted name -> layer) and `record` (JSON values)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{name}.{buffer}": getattr(layer, buffer) for name, layer in layers.items() for buffer in BUFFERS}
        kinds = {
            name: {
                "in_features": layer.in_features,
                "out_features": layer.out_features,
                "bias": layer.bias is not None,
                "bits": layer.bits,
                "groups": layer.scales.shape[0],
                "checkpoint_format": layer.checkpoint_format,
                "dtype": str(layer.compute_dtype).removeprefix("torch."),
            }
            for name, layer in layers.items()
        }
        header = {"key": self.key, "layers": json.dumps(kinds), "record": json.dumps(dict(record))}
        path = self._path(index)
        partial = path.with_suffix(".partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
        _flush(partial)
        os.replace(partial, path)
        _flush(self.folder)

    def load(self, index: int, names: Sequence[str]) -> tuple[dict[str, PackedLinear], dict[str, Any]] | None:
        """Read the layers of block `index` and its record; None where there is no whole file of this key."""
        path = self._path(index)
        try:
            with open_tensors(path) as file:
                header = file.metadata() or {}
                kinds: dict[str, dict[str, Any]] = json.loads(header.get("layers", "{}"))
                if header.get("key") != self.key or set(kinds) != set(names):
                    path.unlink()
                    return None
                layers: dict[str, PackedLinear] = {}
                for name in names:
                    kind = kinds[name]
                    layer = PackedLinear(**{**kind, "dtype": getattr(torch, kind["dtype"])})
                    for buffer in BUFFERS:
                        setattr(layer, buffer, file.get_tensor(f"{name}.{buffer}"))
                    layers[name] = layer
                return layers, json.loads(header["record"])
        except FileNotFoundError:
            return None
        except (SafetensorError, json.JSONDecodeError):
            path.unlink(missing_ok=True)
            return None

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04}.safetensors"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
