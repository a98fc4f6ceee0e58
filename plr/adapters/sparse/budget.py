"""Block budget of each module of a sparse adapter: patterns, the ramp over the depth, the global budget.

1. `base` is `k`, or the value of the first key of `k_pattern` that matches the module's name (a regex, as PEFT's `rank_pattern`).
2. `k_ramp = last / first` multiplies it by a line over the depth with mean 1: fewer blocks near the input, more near the output.
   The depth of a module is that of the first number in its name; layers count in the order in which the model has them.
3. Without a `budget` the blocks of all modules of one block size add up to what they had before the ramp.
4. With a `budget` all quotas are multiplied by the largest factor whose parameters, `nm + k bo bi` summed over the modules, fit.
   Each module has at least 1 and at most nm blocks.
5. Quotas become whole numbers by largest remainder; at equal remainders the module that was to have more comes first, then the one
   nearer to the output. So the blocks of equal modules rise or fall with the ramp, and what is left of the budget is less than one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plr.errors import ConfigError, ModelError

__all__ = ["Grid", "SparseConfigError", "SparseLayerError", "check_grid", "distribute", "pattern_value"]


class SparseConfigError(ConfigError, ValueError):
    """Values of a SparseConfig that do not go together, or not with this model. A ValueError, as PEFT raises."""


class SparseLayerError(ModelError, TypeError):
    """A layer that a sparse adapter cannot be put on, or not be merged into. A TypeError, as PEFT raises."""


@dataclass(frozen=True)
class Grid:
    """One weight `[d_out, d_in]` and its blocks."""

    name: str
    d_out: int
    d_in: int
    n: int
    m: int

    @property
    def block(self) -> int:
        """Weights in a block."""
        return (self.d_out // self.n) * (self.d_in // self.m)

    @property
    def blocks(self) -> int:
        return self.n * self.m


def check_grid(grid: Grid, k: int) -> None:
    """Tell whether the weight can be cut into that grid and k of its blocks be chosen.

    Raises:
        SparseConfigError: n or m does not divide, or k is more than there are blocks.
    """
    n, m = _nearest(grid.d_out, grid.n), _nearest(grid.d_in, grid.m)
    if (n, m) != (grid.n, grid.m):
        raise SparseConfigError(
            f"{grid.name} has a weight of {grid.d_out} x {grid.d_in} (out x in): n = {grid.n}, m = {grid.m} do not divide it",
            expected="n divides the outputs and m the inputs of every target module",
            hint=f"the nearest that do are n = {n}, m = {m}; or leave the module out of target_modules",
        )
    if not 1 <= k <= grid.blocks:
        raise SparseConfigError(
            f"k = {k} blocks for {grid.name}, which has n*m = {grid.n} * {grid.m} = {grid.blocks}",
            expected=f"1 <= k <= {grid.blocks}",
            hint="a smaller k, or a finer grid",
        )


def _nearest(size: int, parts: int) -> int:
    """Return the divisor of `size` nearest to `parts`; the larger of two equally near."""
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - parts), -d))


def pattern_value(pattern: Mapping[str, int], name: str, default: int) -> int:
    """Return the value of the first key that matches `name`, whole or from a dot on.

    >>> pattern_value({r"layers\\.1\\..*": 9, "q_proj": 2}, "model.layers.0.q_proj", 5)
    2
    """
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def distribute(grids: Sequence[Grid], base: Sequence[int], ramp: float = 1.0, budget: int | None = None) -> list[int]:
    """Distribute the blocks: k of each module, in order.

    Args:
        grids: the modules in the order in which the model has them.
        base: k of each before ramp and budget.
        ramp: k of the last layer over k of the first, the mean kept.
        budget: parameters over all modules, W^p included; None: as many blocks as `base` has.

    Raises:
        SparseConfigError: a grid that does not divide, k above n*m, a budget too small for one block each, or a ramp over
            modules without a layer number.
    """
    for grid, k in zip(grids, base, strict=True):
        check_grid(grid, 1 if budget is not None else k)
    quotas = [k * f for k, f in zip(base, _line(grids, ramp), strict=True)]
    if budget is not None:
        return _fit(grids, quotas, budget)
    if ramp == 1.0:
        return list(base)
    counts = [0] * len(grids)
    for size in dict.fromkeys(grid.block for grid in grids):
        members = [i for i, grid in enumerate(grids) if grid.block == size]
        total = sum(base[i] for i in members)
        factor = total / sum(quotas[i] for i in members)  # not 1 where layers have different numbers of modules
        whole = _round([quotas[i] * factor for i in members], [1] * len(members), total)
        for i, k in zip(members, whole, strict=True):
            counts[i] = k
    for grid, k, quota in zip(grids, counts, quotas, strict=True):
        if not 1 <= k <= grid.blocks:
            raise SparseConfigError(
                f"k_ramp = {ramp} asks for {quota:.2f} of {grid.blocks} blocks in {grid.name}",
                expected="at least 1 and at most n*m blocks in every module",
                hint="a k_ramp nearer to 1, another k, or a finer grid",
            )
    return counts


def _line(grids: Sequence[Grid], ramp: float) -> list[float]:
    """Return a factor for each module: linear over the depth, last / first = ramp, mean of first and last 1."""
    if ramp == 1.0:
        return [1.0] * len(grids)
    matches = [re.match(r"(.*?\.)??(\d+)(\.|$)", grid.name) for grid in grids]
    for grid, match in zip(grids, matches, strict=True):
        if match is None:
            raise SparseConfigError(
                f"k_ramp = {ramp}, and {grid.name} has no layer number in its name",
                expected="target modules inside numbered layers",
                hint="k_ramp = 1 with a k_pattern, or leave the module out of target_modules",
            )
    layers = [match.group(0).rstrip(".") for match in matches if match is not None]
    order = {layer: i for i, layer in enumerate(dict.fromkeys(layers))}
    last = max(len(order) - 1, 1)
    first = 2 / (1 + ramp) if len(order) > 1 else 1.0
    return [first * (1 + (ramp - 1) * order[layer] / last) if len(order) > 1 else 1.0 for layer in layers]


def _fit(grids: Sequence[Grid], quotas: Sequence[float], budget: int) -> list[int]:
    """Return the largest common factor on `quotas` that fits, rounded."""
    scores = sum(grid.blocks for grid in grids)
    least = scores + sum(grid.block for grid in grids)
    if budget < least:
        raise SparseConfigError(
            f"a budget of {budget:,} parameters for {len(grids)} modules",
            expected=f"at least {least:,}: {scores:,} scores and one block in each module",
            hint="a larger budget, a finer grid, or fewer target modules",
        )

    def at(factor: float) -> list[float]:
        return [min(max(factor * q, 1.0), float(grid.blocks)) for q, grid in zip(quotas, grids, strict=True)]

    low, high = 0.0, max(grid.blocks / q for q, grid in zip(quotas, grids, strict=True))
    cost = [grid.block for grid in grids]
    left = budget - scores
    for _ in range(200):
        middle = (low + high) / 2
        fits = sum(c * q for c, q in zip(cost, at(middle), strict=True)) <= left
        low, high = (middle, high) if fits else (low, middle)
    most = at(high)
    if sum(c * q for c, q in zip(cost, most, strict=True)) > left:
        most = at(low)
    return _round(most, cost, left, [grid.blocks for grid in grids], quotas)


def _round(
    quotas: Sequence[float],
    cost: Sequence[int],
    total: int,
    most: Sequence[int] | None = None,
    ranks: Sequence[float] | None = None,
) -> list[int]:
    """Round `quotas` to whole numbers of total cost at most `total`: floors, then one more for the largest remainder, and again.

    At equal remainders the larger of `ranks` comes first (quotas that were cut to their bounds are equal, what was asked is not),
    then the later module.
    """
    ranks = [0.0] * len(quotas) if ranks is None else ranks
    counts = [math.floor(q + 1e-9) for q in quotas]
    left = total - sum(c * k for c, k in zip(cost, counts, strict=True))
    while True:
        open_ = [i for i, k in enumerate(counts) if cost[i] <= left and (most is None or k < most[i])]
        if not open_:
            return counts
        best = max(open_, key=lambda i: (round(quotas[i] - counts[i], 6), ranks[i], i))
        counts[best] += 1
        left -= cost[best]
