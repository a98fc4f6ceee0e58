"""Bits per weight of a GPTQ checkpoint, read from the headers of its safetensors files. Standard library only."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

__all__ = ["disk_bits", "headers", "ideal_bits"]

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def headers(folder: Path) -> dict[str, Any]:
    """Tensor name -> `{"dtype", "shape", "data_offsets"}` of all shards in `folder`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            found |= json.loads(file.read(size))
    found.pop("__metadata__", None)
    return found


def disk_bits(folder: Path) -> dict[str, float]:
    """`bytes` of all files of weights; `bits` a quantized weight takes, its scales, zeros and g_idx counted."""
    tensors = headers(folder)
    weights = stored = 0
    for name in [name for name in tensors if name.endswith(".qweight")]:
        layer = name.removesuffix("qweight")
        (rows,) = tensors[layer + "g_idx"]["shape"]
        weights += rows * tensors[name]["shape"][1]
        for part in PARTS:
            start, stop = tensors[layer + part]["data_offsets"]
            stored += stop - start
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"bytes": total, "bits": 8 * stored / weights if weights else math.nan}


def ideal_bits(bits: int, group_size: int) -> float:
    """`bits`, and a 16-bit scale with a zero point of `bits` for each group."""
    return bits + (16 + bits) / group_size
