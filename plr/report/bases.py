"""What a base's manifest says of its quality, as text and numbers for the command line, the page and the figure."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GATE_HEAD", "Module", "answers_text", "disk_bits", "gate_rows", "modules_of", "severity"]

GATE_HEAD = ("text", "tokens", "perplexity, from 16 bits", "ratio", "KL, nats", "top-1 kept")


@dataclass(frozen=True)
class Module:
    """One quantized layer: its block, what kind of layer it is there, and its record."""

    name: str
    block: int
    kind: str
    record: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the record; None where it was not measured or an older plr did not write it."""
        value = self.record.get(key)
        return float(value) if isinstance(value, int | float) else None


def modules_of(metrics: Mapping[str, Any]) -> list[Module]:
    """The modules of a base in their order.

    The kind is the part of the name behind the block's number (other numbers, of experts, left out): its last word where no
    other kind ends in the same one.

    >>> names = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"]
    >>> [m.kind for m in modules_of({"modules": [{"name": name} for name in names]})]
    ['c_attn', 'attn.c_proj', 'mlp.c_proj']
    """
    found: list[tuple[str, int, str, Mapping[str, Any]]] = []
    for record in metrics.get("modules") or []:
        name = record["name"]
        match = re.search(r"(?:^|\.)(\d+)\.", name)
        rest = name[match.end() :] if match else name
        kind = ".".join(word for word in rest.split(".") if not word.isdecimal())
        found.append((name, int(match[1]) if match else 0, kind, record))
    kinds = dict.fromkeys(kind for _, _, kind, _ in found)
    ends = [kind.rpartition(".")[2] for kind in kinds]
    short = {kind: end if ends.count(end) == 1 else kind for kind, end in zip(kinds, ends, strict=True)}
    return [Module(name, block, short[kind], record) for name, block, kind, record in found]


def gate_rows(gate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of `GATE_HEAD` for each text of the gate; a text that was not measured has two fields: its name and why."""
    rows: list[tuple[str, ...]] = []
    for text in gate.get("texts", []):
        if "not_measured" in text:
            rows.append((text["text"], f"not measured: {text['not_measured']}"))
            continue
        before, after = text["perplexity_16bit"], text["perplexity"]
        rows.append(
            (
                text["text"],
                f"{text['tokens']:,}",
                f"{_perplexity(before)} to {_perplexity(after)}",
                f"{after / before:.3g}",
                f"{text['kl']:.4f}" if text["kl"] < 1 else f"{text['kl']:.2f}",
                f"{100 * text['top1_agreement']:.1f} %",
            )
        )
    return rows


def answers_text(gate: Mapping[str, Any]) -> str | None:
    """The loss of the task's answers before and after, in words; None where it was not measured."""
    if "loss" not in gate:
        return None
    before = f"{gate['loss_16bit']:.3f} to " if "loss_16bit" in gate else ""
    more = [f"{gate['rows']} rows"] if "rows" in gate else []
    if "chance" in gate:
        more.append(f"chance {gate['chance']:.2f}")
    return f"{before}{gate['loss']:.3f} nats a token" + (f" ({', '.join(more)})" if more else "")


def severity(verdict: str) -> str:
    """The first word of a verdict: ok, damaged, broken; ``unknown`` where nothing was measured."""
    word = re.match(r"\w+", verdict)
    return word[0] if word and word[0] in ("ok", "damaged", "broken") else "unknown"


def disk_bits(folder: Path, modules: Iterable[Module]) -> float | None:
    """Bits that each weight of the quantized layers takes on disk: codes, scales, zero points and indices.

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


def _header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: its length as a little-endian uint64, then the text."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _prefixes(name: str) -> Sequence[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(len(words) - 1, 0, -1)]


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"
