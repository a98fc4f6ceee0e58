"""Restoration modes: one row each. What builds a mode stands in `plr/restoration/modes.py`; no other file knows its name.

With dW the trained adapter, W_16 the source and W_k = dequant(Q_k(W_16)); k bits trained on, l bits restored to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from plr.errors import UnknownNameError, UsageError

__all__ = [
    "EXPLAINED",
    "MERGED",
    "MODES",
    "RECOMMENDED",
    "Mode",
    "asked_modes",
    "explained",
    "grid_modes",
    "mode_of",
    "modes_help",
    "plain_mode",
    "plain_modes",
]

Bits = Callable[[int, int], bool]
"""(k, l) -> whether."""


@dataclass(frozen=True)
class Mode:
    """One restoration mode: what it serves, when it fits, and its words."""

    name: str
    serves: str
    """The weights, for tables and help."""
    words: str
    """The rest of its help."""
    writes: Literal["adapter", "dense", "quantized"]
    """The adapter as it was trained, its config naming the l-bit base; or a whole checkpoint, of 16 or of l bits."""
    grid: Bits
    """The (k, l) at which a study has a cell of it."""
    fits: Bits = lambda k, ell: True
    """The (k, l) at which it can be asked for."""
    misfit: str = ""
    """The reason why it does not fit, written after `mode NAME to L bits`."""
    advice: str = ""
    """Advice where it does not fit."""
    own_base: bool = False
    """True if it serves the very base that the adapter was trained on."""
    needs_base: bool = True
    """True if the l-bit base has to be made first."""
    plain: bool = False
    """True if tables show it without its name: it is what a pair (k, l) means by itself."""
    implied: bool = False
    """True if a study has its cells unasked."""
    knobs: tuple[str, ...] = ()
    """Settings of a correction that it reads (fields of `plr.core.specs.CorrectionKnobs`); none where nothing is corrected."""
    both_bases: bool = False
    """True if the base that the adapter was trained on is read too."""
    dense_at_16: bool = False
    """True if a dense checkpoint is served at 16 bits, whatever `writes` says of fewer."""
    size: str = ""
    """The files that are served, in a few words."""
    served_by: str = ""
    """Tools that serve adapters in this way."""

    @property
    def checkpoint(self) -> bool:
        """True if a whole checkpoint is served, and not an adapter beside its base."""
        return self.writes != "adapter"

    def at(self, bits: int) -> Mode:
        """Return the row as it is at l = `bits`."""
        return replace(self, writes="dense", dense_at_16=False) if self.dense_at_16 and bits == 16 else self

    def check(self, k: int, ell: int, *, same_base: bool, base: str) -> None:
        """Refuse bits or a base that the mode does not fit; `base` is what messages call the base it is asked for on.

        Raises:
            UsageError: with the mode or the bits that would fit.
        """
        if self.own_base and not same_base:
            raise UsageError(
                f"mode {self.name} serves the base the adapter was trained on ({k} bits), not {base}",
                hint=f"use --bits {k}, or --mode restore",
            )
        if not self.fits(k, ell):
            raise UsageError(f"mode {self.name} to {ell} bits {self.misfit}", hint=self.advice or None)


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            "restore",
            "Wl + dW",
            "",
            "adapter",
            plain=True,
            grid=lambda k, ell: k != ell,
            size="l-bit base, adapter",
            served_by="Unsloth, LLaMA-Factory, litgpt (l = 16)",
        ),
        Mode(
            "keep",
            "Wk + dW",
            "its own base, l = k: plain QLoRA",
            "adapter",
            plain=True,
            implied=True,
            own_base=True,
            grid=lambda k, ell: k == ell,
            size="k-bit base, adapter",
            served_by="PEFT, vLLM on a GPTQ or bitsandbytes base",
        ),
        Mode(
            "roundtrip",
            "dense Wk + dW",
            "the maths of keep in any engine",
            "dense",
            own_base=True,
            grid=lambda k, ell: k == ell < 16,
            size="16-bit checkpoint",
            served_by="Axolotl's merge, torchtune",
        ),
        Mode(
            "requantize",
            "Ql(W16 + dW)",
            "merged at 16 bits, then quantized: no side path",
            "quantized",
            needs_base=False,
            grid=lambda k, ell: ell < 16,
            fits=lambda k, ell: ell < 16,
            misfit="quantizes nothing",
            advice="use --merge",
            size="l-bit checkpoint",
            served_by="whoever merges and quantizes for serving",
        ),
        Mode(
            "path",
            "Wk + t (W16 - Wk) + s dW",
            "dense, t and s chosen on validation rows or given",
            "dense",
            grid=lambda k, ell: k < ell == 16,
            fits=lambda k, ell: k < ell == 16,
            misfit="has no way to go: it leads from k bits to 16",
            advice="use --mode correct, or --bits 16",
            knobs=("t", "scale", "rows", "seed"),
            both_bases=True,
            size="16-bit checkpoint",
            served_by="plr",
        ),
        Mode(
            "scale",
            "Wl + s dW",
            "lora_alpha times s, chosen on validation rows or given",
            "adapter",
            grid=lambda k, ell: k != ell,
            knobs=("scale", "rows", "seed"),
            size="l-bit base, adapter",
            served_by="any server of PEFT's format",
        ),
        Mode(
            "correct",
            "Wl + dW - C",
            "C: the part of Wl - Wk that inputs feel most, as more ranks of the adapter",
            "adapter",
            grid=lambda k, ell: k != ell,
            fits=lambda k, ell: k != ell,
            misfit="has nothing to correct: the adapter was trained on such a base",
            advice="use --mode keep",
            knobs=("scale", "rank", "calibration_rows", "seed"),
            both_bases=True,
            size="l-bit base, larger adapter",
            served_by="any server of PEFT's format",
        ),
        Mode(
            "auto",
            "the best of keep, restore, path, scale, correct",
            "keep unless another is certified to be no worse",
            "adapter",
            grid=lambda k, ell: k != ell,
            fits=lambda k, ell: k != ell,
            misfit="has nothing to choose: the adapter was trained on such a base",
            advice="use --mode keep",
            knobs=("t", "scale", "rank", "rows", "calibration_rows", "seed"),
            both_bases=True,
            dense_at_16=True,
            size="16-bit checkpoint; below 16 a base, adapter",
            served_by="plr",
        ),
    )
}
"""Every mode, in the order of help and, at one (k, l), of a study's cells."""

MERGED = Mode("merged", "W16 + dW", "a dense checkpoint", "dense", grid=lambda k, ell: False)
"""The result of `--merge` on a mode: no mode by itself."""


def mode_of(name: str) -> Mode:
    """Look a mode up.

    Raises:
        UnknownNameError: no such mode; the message lists all and names the nearest.
    """
    from plr.registry import did_you_mean

    if name not in MODES:
        raise UnknownNameError(
            f"unknown mode {name!r}", expected="one of " + ", ".join(MODES), hint=did_you_mean(name, MODES)
        )
    return MODES[name]


def plain_mode(*, same_base: bool) -> str:
    """Name what an adapter on a base means where no mode is asked for: on its own base, or on another."""
    return next(mode.name for mode in MODES.values() if mode.plain and mode.own_base == same_base)


def plain_modes() -> set[str]:
    """Name the modes that tables show by (k, l) alone."""
    return {mode.name for mode in MODES.values() if mode.plain}


def asked_modes() -> list[str]:
    """List the modes that a study names."""
    return [mode.name for mode in MODES.values() if not mode.implied]


def grid_modes(asked: tuple[str, ...], k: int, ell: int) -> Iterator[str]:
    """Yield the modes of a study's cells at (k, l): those implied, and those of `asked`."""
    for mode in MODES.values():
        if mode.grid(k, ell) and (mode.implied or mode.name in asked):
            yield mode.name


EXPLAINED = ("mode", "serves", "files", "who serves so", "fits")
"""Heads of the columns of `explained`."""
RECOMMENDED = (
    "Recommended: auto, where the adapter's task has validation rows. It keeps the adapter on its own base unless another mode is "
    "certified, on rows that did not choose it, to lose no more than a point. Without rows: keep. Restoring as it is (restore) "
    "loses most where k is smallest; what was measured stands in docs/restoration.md."
)


def explained(k: int | None = None, ell: int | None = None) -> list[tuple[str, ...]]:
    """List a row of `EXPLAINED` for every mode; with k and l, `fits` says whether it can be asked for there."""
    rows: list[tuple[str, ...]] = []
    for mode in MODES.values():
        fits = ""
        if k is not None and ell is not None:
            fits = "yes" if mode.fits(k, ell) and (k == ell or not mode.own_base) else "no"
        serves = f"{mode.serves}: {mode.words}" if mode.words else mode.serves
        rows.append((mode.name, serves, mode.size, mode.served_by, fits))
    return rows


def modes_help() -> str:
    """Describe every mode for a help text.

    >>> modes_help().split("; ")[1]
    'keep: Wk + dW (its own base, l = k: plain QLoRA)'
    """
    return "; ".join(f"{m.name}: {m.serves}" + (f" ({m.words})" if m.words else "") for m in MODES.values())
