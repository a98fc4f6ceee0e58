"""Quantized layers of a base: their records in its manifest, and the bits they take on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plr.core.fingerprint import JsonObject
from plr.core.layers import layer_places

__all__ = ["Module", "disk_bits", "modules_of"]


@dataclass(frozen=True)
class Module:
    """One quantized layer: its block, what kind of layer it is there, and its record."""

    name: str
    block: int
    kind: str
    record: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """Return a number of the record; None where it was not measured or an older plr did not write it."""
        value = self.record.get(key)
        return float(value) if isinstance(value, int | float) else None


def modules_of(metrics: Mapping[str, Any]) -> list[Module]:
    """List the modules of a base in their order.

    >>> [m.kind for m in modules_of({"modules": [{"name": "h.0.attn.c_attn"}, {"name": "h.0.mlp.c_proj"}]})]
    ['c_attn', 'c_proj']
    """
    records = metrics.get("modules") or []
    places = layer_places(record["name"] for record in records)
    return [Module(record["name"], block, kind, record) for record, (block, kind) in zip(records, places, strict=True)]


def disk_bits(folder: Path, modules: Iterable[Module]) -> float | None:
    """Count the bits that each weight of the quantized layers takes on disk: codes, scales, zero points and indices.

    Read from the headers of the safetensors files; biases are not counted. None where the files or the shapes of the layers are
    not known.
    """
    weights = {}
    for module in modules:
        columns, rows = module.number("in_features"), module.number("out_features")
        if columns is None or rows is None:
            return None
        weights[module.name] = columns * rows
    size, seen = 0, set()
    for file in sorted(folder.glob("*.safetensors")):
        for tensor, entry in _header(file).items():
            owner = next((name for name in _prefixes(tensor) if name in weights), None)
            if owner is not None and not tensor.endswith(".bias"):
                size += entry["data_offsets"][1] - entry["data_offsets"][0]
                seen.add(owner)
    return 8 * size / sum(weights.values()) if weights and len(seen) == len(weights) else None


def _header(file: Path) -> JsonObject:
    """Read the JSON header of a safetensors file: its length as a little-endian uint64, then the text."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _prefixes(name: str) -> Sequence[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(len(words) - 1, 0, -1)]
