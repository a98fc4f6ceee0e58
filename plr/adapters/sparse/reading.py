"""Read a saved sparse adapter: chosen blocks, their magnitudes, and runner-up blocks by score.

How it works.

1. The adapter's file is read as it is (numpy and the standard library; no model, no torch). Every adapted layer has its
   scores W^p `[n, m]`, the values W^v `[k, d_out/n, d_in/m]` and the places of its k blocks.
2. Slot i adds `alpha * W^p[place i] * W^v[i]` to block i; its *energy* is the sum of squares of that.
3. *Threshold*: the lowest score among the chosen blocks; *bar*: the best score outside.
4. *Level*: the score that k of n * m draws of the initial normal distribution are expected to reach, its quantile at
   1 - k/(n m). *Wanted*: how many blocks stand above it.
5. *Tried*: how many blocks have had a slot, estimated. Scores move only inside the k, and a block leaves when it falls below the
   bar; so every block that was drawn above today's bar has been inside, and n m (1 - F(bar)) - 1 of them were (F: the initial
   distribution; the bar itself is one of the draws). About k says that the first k were kept; many more, that blocks were tried
   and given up, and that k or the choice was in doubt. The paper reads the last layer on CoLA (section 4.3) as one where k is too
   small, by the look of many blocks of like brightness.
6. Both counts scatter by the luck of the draw alone: k +- sqrt(k (1 - k/(n m))). A module is *restless* where one of them is more
   than two of these above k, which fresh draws are in 5 to 8 of 100 modules.

What it gives up: by the rule of 5 a block outside never stands above the best that was outside at the start, so *wanted*
exceeds k by luck, or where scores were moved by something else. Weight decay on W^p moves the bar too, and *tried* then counts
too many.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, TypedDict

from plr.core.layers import layer_places
from plr.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plr.adapters.base import Config
    from plr.core.specs import Step
    from plr.core.store import Store

    Array = NDArray[np.float64]
    Stored = NDArray[np.number]

__all__ = ["BlockModule", "SparseAdapter", "depth_rows", "module_rows", "read_sparse", "sparse_adapters"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = ("sparse_scores", "sparse_values", "sparse_positions")
USUAL = (
    "query",
    "q_proj",
    "qkv_proj",
    "key",
    "k_proj",
    "value",
    "v_proj",
    "o_proj",
    "dense",
    "gate_proj",
    "up_proj",
    "down_proj",
)
THIRDS = ("near the input", "middle", "near the output")


@dataclass(frozen=True, eq=False)
class BlockModule:
    """One adapted layer: `scores [n, m]`, `values [k, rows, columns]`, `positions [k]` (row * m + column)."""

    name: str
    layer: int
    kind: str
    scores: Array
    values: Array
    positions: NDArray[np.int64]
    alpha: float
    init_std: float | None

    @property
    def k(self) -> int:
        return len(self.positions)

    @property
    def chosen(self) -> frozenset[int]:
        return frozenset(int(place) for place in self.positions)

    @property
    def threshold(self) -> float:
        """The lowest score of a chosen block."""
        return float(self.scores.reshape(-1)[self.positions].min())

    @cached_property
    def bar(self) -> float | None:
        """The best score outside; None where every block is chosen."""
        import numpy as np

        outside = np.delete(self.scores.reshape(-1), self.positions)
        return float(outside.max()) if outside.size else None

    @cached_property
    def _folded(self) -> int:
        """2 where the scores began half-normal (so many blocks are chosen that too few draws were positive), else 1."""
        import numpy as np

        outside = np.delete(self.scores.reshape(-1), self.positions)
        return 2 if outside.size >= 8 and outside.min() >= 0 else 1

    @property
    def level(self) -> float | None:
        """The score that k of n * m initial draws are expected to reach; None where the start is not known, or k = n * m."""
        if self.init_std is None or self.k >= self.scores.size:
            return None
        return NormalDist(0.0, self.init_std).inv_cdf(1 - self.k / (self._folded * self.scores.size))

    @property
    def wanted(self) -> int | None:
        """Number of blocks that stand above the level."""
        return None if self.level is None else int((self.scores > self.level).sum())

    @property
    def tried(self) -> float | None:
        """Number of blocks that have had a slot, estimated; not below k."""
        if self.bar is None or self.init_std is None:
            return None
        above = self._folded * (1 - NormalDist(0.0, self.init_std).cdf(self.bar))
        return max(float(self.k), min(1.0, above) * self.scores.size - 1)

    @property
    def restless(self) -> bool:
        """True if more blocks wanted a slot, or had one, than the luck of the draw explains."""
        most = self.k + 2 * math.sqrt(self.k * (1 - self.k / self.scores.size))
        return any(count is not None and count > most for count in (self.wanted, self.tried))

    @cached_property
    def delta(self) -> Array:
        """Update that slot i adds to its block, `[k, rows, columns]`."""
        return (self.alpha * self.scores.reshape(-1)[self.positions])[:, None, None] * self.values

    @cached_property
    def energies(self) -> Array:
        """The sum of squares that each slot adds, `[k]`."""
        return (self.delta**2).sum(axis=(1, 2))

    @property
    def energy(self) -> float:
        return float(self.energies.sum())


@dataclass(frozen=True, eq=False)
class SparseAdapter:
    """A saved sparse adapter. `others` are the names of its further tensors: heads and other `modules_to_save`."""

    name: str
    folder: Path
    config: Config
    modules: tuple[BlockModule, ...]
    others: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, BlockModule]:
        return {module.name: module for module in self.modules}

    @property
    def energy(self) -> float:
        return sum(module.energy for module in self.modules)


class ModuleRow(TypedDict):
    """One adapted module in the table of blocks."""

    module: str
    layer: int
    kind: str
    n: int
    m: int
    block: list[int]
    k: int
    wanted: int | None
    tried: float | None
    restless: bool
    threshold: float
    bar: float | None
    level: float | None
    largest_score: float
    energy: float
    energy_share: float


class DepthRow(TypedDict):
    """The modules of one kind in one third of the depth: means, and sums of `restless` and `energy_share`."""

    kind: str
    depth: str
    modules: int
    k: float | None
    wanted: float | None
    tried: float | None
    restless: int
    energy_share: float


def read_sparse(folder: Path, name: str = "") -> SparseAdapter:
    """Read the sparse adapter that PEFT saved in `folder`.

    Raises:
        UsageError: no saved adapter, or one of another method.
        IntegrityError: tensors that are missing or do not fit together.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = _read(folder / WEIGHTS)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(
            f"{folder} holds no adapter that can be read: {error}", expected=f"a folder with {CONFIG} and {WEIGHTS}"
        ) from error
    if str(config.get("peft_type", "")).upper() != "SPARSE":
        raise UsageError(
            f"{name or folder} is of the method {str(config.get('peft_type', 'none')).lower()}: it has no blocks",
            expected="a sparse adapter",
            hint="plr train --adapter sparse",
        )
    names = [key[: -len(PARTS[0]) - 1] for key in tensors if key.endswith(f".{PARTS[0]}")]
    short = [key.removeprefix(PREFIX) for key in names]
    if not names:
        raise IntegrityError(f"{folder / WEIGHTS} has no {PARTS[0]}", expected=f"keys {PREFIX}<module>.{PARTS[0]}")
    modules = []
    for key, module, (layer, kind) in zip(names, short, layer_places(short), strict=True):
        scores, values, positions = (_tensor(tensors, f"{key}.{part}", folder) for part in PARTS)
        _check(module, scores, values, positions)
        modules.append(
            BlockModule(
                name=module,
                layer=layer,
                kind=kind,
                scores=scores.astype("float64"),
                values=values.astype("float64"),
                positions=positions.astype("int64"),
                alpha=float(config.get("alpha", 1.0)),
                init_std=None if config.get("init_std") is None else float(config["init_std"]),
            )
        )
    kinds = sorted({module.kind for module in modules}, key=lambda kind: (_order(kind), kind))
    modules.sort(key=lambda one: (one.layer, kinds.index(one.kind), one.name))
    others = tuple(sorted(key for key in tensors if key.rpartition(".")[2] not in PARTS))
    return SparseAdapter(name or folder.name, folder, config, tuple(modules), others)


def sparse_adapters(steps: Iterable[Step], store: Store) -> list[SparseAdapter]:
    """List the sparse adapters among `steps` that are in the store, in their order."""
    from plr.core.specs import Train

    loaded = []
    for step in steps:
        if isinstance(step, Train) and step.adapter.method == "sparse":
            artifact = store.get(step, hashes=True)
            if artifact is not None:
                loaded.append(read_sparse(artifact.path, step.label))
    return loaded


def module_rows(adapter: SparseAdapter) -> list[ModuleRow]:
    """List one record a module, input first: numbers for the table and for `--json`."""
    total = adapter.energy
    return [
        {
            "module": module.name,
            "layer": module.layer,
            "kind": module.kind,
            "n": module.scores.shape[0],
            "m": module.scores.shape[1],
            "block": list(module.values.shape[1:]),
            "k": module.k,
            "wanted": module.wanted,
            "tried": module.tried,
            "restless": module.restless,
            "threshold": module.threshold,
            "bar": module.bar,
            "level": module.level,
            "largest_score": float(module.scores.max()),
            "energy": module.energy,
            "energy_share": module.energy / total if total else 0.0,
        }
        for module in adapter.modules
    ]


def depth_rows(rows: Sequence[ModuleRow]) -> list[DepthRow]:
    """Group the records of `module_rows` by kind and third of the depth: means of k, wanted and tried; restless modules; energy."""
    layers = sorted({row["layer"] for row in rows})
    third = {layer: THIRDS[3 * i // len(layers)] for i, layer in enumerate(layers)}
    records: list[DepthRow] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for depth in THIRDS:
            group = [row for row in rows if row["kind"] == kind and third[row["layer"]] == depth]
            if group:
                records.append(
                    {
                        "kind": kind,
                        "depth": depth,
                        "modules": len(group),
                        "k": _mean([row["k"] for row in group]),
                        "wanted": _mean([row["wanted"] for row in group]),
                        "tried": _mean([row["tried"] for row in group]),
                        "restless": sum(row["restless"] for row in group),
                        "energy_share": sum(row["energy_share"] for row in group),
                    }
                )
    return records


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _order(kind: str) -> int:
    """Return the place of a kind of module in its layer, by the names that are usual; unknown ones come last."""
    last = kind.rpartition(".")[2]
    return USUAL.index(last) if last in USUAL else len(USUAL)


def _tensor(tensors: Mapping[str, Stored], key: str, folder: Path) -> Stored:
    if key not in tensors:
        raise IntegrityError(f"{folder / WEIGHTS} has no {key}", expected=", ".join(PARTS) + " of every module")
    return tensors[key]


def _check(name: str, scores: Stored, values: Stored, positions: Stored) -> None:
    import numpy as np

    whole = scores.ndim == 2 and values.ndim == 3 and positions.shape == values.shape[:1] and positions.size > 0
    if not whole or not 0 <= positions.min() <= positions.max() < scores.size:
        shapes = f"scores {scores.shape}, values {values.shape}, positions {positions.shape}"
        raise IntegrityError(
            f"the tensors of {name} do not fit together: {shapes}",
            expected="[n, m], [k, rows, columns] and [k] below n * m",
        )
    if len(np.unique(positions)) != positions.size or not np.isfinite(scores).all():
        raise IntegrityError(f"{name} names a block twice, or has a score that is not finite")


def _read(file: Path) -> dict[str, Stored]:
    """Read every tensor of a safetensors file as numpy; bfloat16 becomes float32."""
    import numpy as np

    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    arrays: dict[str, Stored] = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__" or entry["dtype"] not in kinds:
            continue
        low, high = (start + offset for offset in entry["data_offsets"])
        array = np.frombuffer(content[low:high], dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = (array.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else array
    return arrays
