"""`Settings`: the knobs of the algorithm, each with its name, its type and its default here and nowhere else.

Everything inside `plr.gptq` hands one `Settings` on. A public function takes it as `settings=Settings(...)` or takes the
knobs as keywords, `bits=4, group_size=64`: `Knobs` is their type, `settings_of` makes one value of either. Functions that
need two or three numbers (`factor`, `find_params`) take numbers, with the defaults of `Settings`.

A new knob is a field of `Settings`, named in `LATER`, a line of `Knobs`, and the line that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict

from plr.gptq.affine import Grid
from plr.gptq.errors import GPTQError

__all__ = ["METHODS", "Knobs", "Method", "Settings", "settings_of"]

Method = Literal["gptq", "rtn"]
METHODS: tuple[Method, ...] = ("gptq", "rtn")
LATER: frozenset[str] = frozenset()
"""Knobs that came after blocks of killed runs were written: at their default they are no part of `Settings.identity`."""


@dataclass(frozen=True)
class Settings:
    """Knobs of a layer's quantization. Equal settings on equal inputs give equal bytes.

    Raises:
        GPTQError: an unknown method, or an `input_correction` out of range. Other values are checked by what uses them.
    """

    bits: int  # 2, 3, 4 or 8
    group_size: int = 128  # columns that share a scale, a divisor of `in`; -1 for whole rows
    sym: bool = True  # a symmetric grid, see `plr.gptq.affine`
    desc_act: bool = False  # solve the columns by falling activation, see `plr.gptq.factorization.order`
    static_groups: bool = False  # take all scales from W before the first column is solved
    act_group_aware: bool = False  # order groups, and columns within them, by activation
    damp_percent: float = 0.01  # damping as a share of the mean diagonal of H
    block_size: int = 128  # columns whose errors reach the rest of W in one matrix product; speed only
    grid: Grid = "minmax"  # how scales are searched for, see `plr.gptq.affine`
    refine_passes: int = 0  # rounds of coordinate descent on solved codes, see `plr.gptq.refine`
    input_correction: float = 0.0  # 0 to 1, see `plr.gptq.correction`; above 0 costs a second forward
    method: Method = "gptq"  # or "rtn": round to nearest

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise GPTQError(f"method={self.method!r} was given.", f"one of {', '.join(METHODS)}.", "use 'gptq'.")
        if not 0 <= self.input_correction <= 1:
            raise GPTQError(f"input_correction={self.input_correction} was given.", "0 to 1.", "use 0.5.")

    def identity(self) -> dict[str, Any]:
        """Return the knobs that a block of a killed run is found again by, as JSON values."""
        later = {field.name: field.default for field in fields(self) if field.name in LATER}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


class Knobs(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments."""

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    static_groups: bool
    act_group_aware: bool
    damp_percent: float
    block_size: int
    grid: Grid
    refine_passes: int
    input_correction: float
    method: Method


def settings_of(settings: Settings | None, knobs: Mapping[str, Any]) -> Settings:
    """Make one value of a public function's `settings` and keywords, of which one is used.

    Raises:
        GPTQError: both were given, or neither.
        TypeError: a keyword that is no knob.
    """
    if settings is None and "bits" in knobs:
        return Settings(**knobs)
    if settings is None or knobs:
        arguments = "neither settings nor bits" if settings is None else f"settings and {', '.join(knobs)}"
        raise GPTQError(
            f"{arguments[0].upper()}{arguments[1:]} were given.",
            "settings=Settings(...), or keywords with bits among them.",
            "pass bits=4, or dataclasses.replace(settings, ...) for other values.",
        )
    return settings
