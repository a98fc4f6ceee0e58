"""Several sparse adapters on one base: where they meet, what meeting costs, and their exact sum as one adapter.

Two adapters touch each other only in blocks that both have chosen. For a pair, over the modules both adapt:

- *Jaccard*: blocks in both over blocks in either; *by chance*: what it would be if each chose its blocks at random;
- *shared energy*: the part of an adapter's sum of squares that lies in blocks of both;
- *cosine* of the two updates on the shared blocks; None where there are none;
- *interference*: 2 <A, B> / (|A|^2 + |B|^2), how far the energy of the sum is from the sum of the energies: 0 where they do not
  meet, 1 for equal ones, -1 for opposite ones;
- *same start*: most scores of blocks that neither has chosen are equal, so both began from one draw (one seed). Then what they
  share is mostly that draw, not their tasks: TopK keeps its first choice unless training moves it.

The sum (`compose`) needs no retraining and loses nothing: its blocks are the union, so k differs from module to module. A
block's score is the highest it has in any adapter that chose it (0.001 at least: v stays positive), other blocks stay below all
of these, and the values are the sum divided by that score.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from plr.adapters.base import Settings
from plr.adapters.sparse.reading import CONFIG, PARTS, PREFIX, WEIGHTS, BlockModule, SparseAdapter
from plr.errors import ProvenanceError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["compose", "overlap", "overlaps"]

LEAST = 1e-3


class Measures(TypedDict):
    """The quantities of a pair of adapters, in all or on one module; see the module's docstring."""

    shared_blocks: int
    jaccard: float
    jaccard_by_chance: float
    shared_energy_first: float
    shared_energy_second: float
    cosine: float | None
    interference: float


class ModuleOverlap(Measures):
    """The overlap of a pair on one module."""

    module: str


class Overlap(Measures):
    """The overlap of a pair of adapters, named `first` and `second`."""

    first: str
    second: str
    same_start: bool
    modules: list[ModuleOverlap]


def overlaps(adapters: Sequence[SparseAdapter]) -> list[Overlap]:
    """Compute the `overlap` of every pair."""
    return [overlap(a, b) for a, b in combinations(adapters, 2)]


def overlap(a: SparseAdapter, b: SparseAdapter) -> Overlap:
    """Measure the overlap of one pair, in all and (`modules`) by module.

    Raises:
        UsageError: no module is adapted by both, or one is cut into different blocks.
    """
    names = [module.name for module in a.modules if module.name in b.by_name]
    if not names:
        raise UsageError(f"{a.name} and {b.name} adapt no module together", expected="adapters of one model")
    sums = [_of_module(a.by_name[name], b.by_name[name], (a, b)) for name in names]
    total = {key: sum(one[key] for one in sums) for key in sums[0]}
    return {
        "first": a.name,
        "second": b.name,
        **_measures(total),
        "same_start": all(_same_start(a.by_name[name], b.by_name[name]) for name in names),
        "modules": [{"module": name, **_measures(one)} for name, one in zip(names, sums, strict=True)],
    }


def compose(
    adapters: Sequence[SparseAdapter], folder: Path, weights: Sequence[float] | None = None
) -> dict[str, object]:
    """Write the sum of `adapters` (each times its weight) to `folder` as one sparse adapter in PEFT's format.

    Returns:
        How many blocks the sum has, and of how many adapters.

    Raises:
        UsageError: fewer than two, other weights than adapters, different blocks, heads that have no sum, or a folder in use.
        ProvenanceError: adapters of different base models.
    """
    import numpy as np
    from safetensors.numpy import save_file

    weights = [1.0] * len(adapters) if weights is None else list(weights)
    _check_sum(adapters, weights, folder)
    alpha = float(adapters[0].config.get("alpha", 1.0))
    tensors: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for name in sorted({module.name for adapter in adapters for module in adapter.modules}):
        parts = [(a.by_name[name], w) for a, w in zip(adapters, weights, strict=True) if name in a.by_name]
        _check_blocks([module for module, _ in parts], adapters)
        first = parts[0][0]
        positions = np.array(sorted(frozenset[int]().union(*(module.chosen for module, _ in parts))), dtype=np.int64)
        scores = np.full(first.scores.size, -np.inf)
        outside = np.full(first.scores.size, np.inf)
        total = np.zeros((len(positions), *first.values.shape[1:]))
        for module, weight in parts:
            flat = module.scores.reshape(-1)
            scores[module.positions] = np.maximum(scores[module.positions], flat[module.positions])
            outside = np.minimum(outside, flat)
            total[np.searchsorted(positions, module.positions)] += weight * module.delta
        v = np.maximum(scores[positions], LEAST)
        scores = np.minimum(outside, v.min())
        scores[positions] = v
        arrays = (scores.reshape(first.scores.shape), total / (alpha * v)[:, None, None], positions)
        for part, array in zip(PARTS, arrays, strict=True):
            stored = array if array.dtype == np.int64 else array.astype(np.float32)
            tensors[f"{PREFIX}{name}.{part}"] = np.ascontiguousarray(stored)
        counts[name] = len(positions)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(
        json.dumps(_config(adapters[0], counts), indent=2, sort_keys=True, allow_nan=False), encoding="utf-8"
    )
    return {
        "folder": str(folder),
        "adapters": len(adapters),
        "weights": weights,
        "modules": len(counts),
        "blocks": sum(counts.values()),
    }


def _of_module(a: BlockModule, b: BlockModule, pair: tuple[SparseAdapter, SparseAdapter]) -> dict[str, float]:
    """Return the counts and sums that add up over modules."""
    _check_blocks([a, b], pair)
    slot_a = {int(place): slot for slot, place in enumerate(a.positions)}
    slot_b = {int(place): slot for slot, place in enumerate(b.positions)}
    shared = sorted(slot_a.keys() & slot_b.keys())
    in_a, in_b = [slot_a[place] for place in shared], [slot_b[place] for place in shared]
    return {
        "both": len(shared),
        "either": len(slot_a.keys() | slot_b.keys()),
        "chance": a.k * b.k / a.scores.size,
        "k": a.k + b.k,
        "a": a.energy,
        "b": b.energy,
        "shared_a": float(a.energies[in_a].sum()),
        "shared_b": float(b.energies[in_b].sum()),
        "product": float((a.delta[in_a] * b.delta[in_b]).sum()),
    }


def _same_start(a: BlockModule, b: BlockModule) -> bool:
    import numpy as np

    chosen = sorted(a.chosen | b.chosen)
    rest = [np.delete(module.scores.reshape(-1), chosen) for module in (a, b)]
    return rest[0].size > 0 and float(np.mean(rest[0] == rest[1])) > 0.5


def _measures(s: dict[str, float]) -> Measures:
    norm = math.sqrt(s["shared_a"] * s["shared_b"])
    return {
        "shared_blocks": int(s["both"]),
        "jaccard": s["both"] / s["either"],
        "jaccard_by_chance": s["chance"] / (s["k"] - s["chance"]),
        "shared_energy_first": s["shared_a"] / s["a"] if s["a"] else 0.0,
        "shared_energy_second": s["shared_b"] / s["b"] if s["b"] else 0.0,
        "cosine": s["product"] / norm if norm else None,
        "interference": 2 * s["product"] / (s["a"] + s["b"]) if s["a"] + s["b"] else 0.0,
    }


def _check_blocks(modules: Sequence[BlockModule], adapters: Sequence[SparseAdapter]) -> None:
    shapes = {(module.scores.shape, module.values.shape[1:]) for module in modules}
    if len(shapes) > 1:
        cut = " and ".join(f"{n} x {m} of {r} x {c}" for (n, m), (r, c) in sorted(shapes))
        raise UsageError(
            f"{' and '.join(adapter.name for adapter in adapters)} cut {modules[0].name} into different blocks: {cut}",
            expected="adapters with the same n and m on weights of the same size",
        )


def _check_sum(adapters: Sequence[SparseAdapter], weights: Sequence[float], folder: Path) -> None:
    if len(adapters) < 2 or len(adapters) != len(weights):
        raise UsageError(
            f"a sum of {len(adapters)} adapters with {len(weights)} weights", expected="two or more, a weight for each"
        )
    bases = {(str(a.config.get("base_model_name_or_path")), str(a.config.get("revision"))) for a in adapters}
    if len(bases) > 1:
        raise ProvenanceError(
            f"the adapters are of different base models: {', '.join(sorted(name for name, _ in bases))}",
            expected="adapters trained on one source model, whatever its bits",
        )
    heads = next((adapter for adapter in adapters if adapter.others), None)
    if heads is not None:
        raise UsageError(
            f"{heads.name} has modules that were trained whole ({heads.others[0]}, ...): a sum of those is not defined",
            expected="adapters without modules_to_save, such as those of generative tasks",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} exists and is not an empty folder",
            hint="choose another --compose folder: nothing is overwritten",
        )


def _config(adapter: SparseAdapter, counts: dict[str, int]) -> Settings:
    """Return the first adapter's configuration with what differs in the sum: k of every module, by its full name."""
    exact: Settings = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern", "budget"))
    changed = {
        "k": max(counts.values()),
        "k_pattern": {re.escape(name): k for name, k in counts.items()},
        "k_ramp": 1.0,
        "target_modules": sorted(counts),
        "inference_mode": True,
    }
    return {**adapter.config, **exact, **changed}
