"""An adapter on its bases, in memory, to be read in any correcting mode: on its own base, between the two, on the l-bit one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from plr.adapters import adapters
from plr.bases.load import Loaded, load_base
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Correction, GivenBase, Quantize, Restore, Source
from plr.lm.moments import second_moments
from plr.quantizers import densify
from plr.quantizers.base import named_modules
from plr.restoration.attach import Attachment, attach
from plr.restoration.fit import fit
from plr.restoration.guard import KEEP
from plr.restoration.line import Line, k_bit_layers, set_scale
from plr.restoration.lowrank import Felt, correct
from plr.restoration.rows import Marks, Rows, training_inputs
from plr.restoration.work import NAME, Restoration, copy_adapter, kept, own_base, plain, trained_head

__all__ = [
    "Beside",
    "Between",
    "Stage",
    "Tuned",
    "k_bit_in_either",
    "put_on",
    "put_on_line",
    "settings_of",
    "write_correction",
]

CORRECTED = "corrected"
"""Name of the corrected adapter beside the one that was trained."""


def settings_of(step: Restore) -> Correction:
    """Return the settings of a correction; `check_correction` has seen to it that there are some."""
    assert step.correction is not None
    return step.correction


@dataclass
class Tuned:
    """A base with the adapter on it."""

    loaded: Loaded
    modules: dict[str, nn.Module]
    """Modules of the base, by the names that they have without the adapter."""
    attached: Attachment
    line: Line | None = None
    """The way to another base, where it can move."""
    trained: dict[int, float] | None = None

    def marks(self, rows: Rows, t: float, scale: float) -> Marks:
        """Read `rows` at (t, s); where there is no way to another base, `t` is of no account."""
        if self.line is not None:
            self.line.move(t)
        self.trained = set_scale(self.attached.model, NAME, scale, self.trained)
        return rows.marks(self.attached.model, self.loaded.tokenizer)


def put_on(
    work: Restoration,
    base: Source | Quantize | GivenBase,
    runtime: Runtime,
    adapter: Path | None = None,
    *,
    dense: bool = False,
) -> Tuned:
    """Put the adapter on `base`, made dense if asked; `adapter` is another folder of it than the trained one."""
    loaded = load_base(base, work.store, runtime, head=trained_head(work.step))
    if dense:
        densify(loaded.model)
    loaded = fit(loaded, work.step.adapter, work.adapter)
    modules = dict(named_modules(loaded.model))
    with TemporaryDirectory(prefix="plr-kept-") as place:
        if adapter is None:
            adapter = kept(work, modules, Path(place)) if base == work.step.adapter.own_base else work.adapter
        return Tuned(loaded, modules, attach(loaded, plain(work.step, base), adapter, NAME))


def put_on_line(work: Restoration, runtime: Runtime) -> Tuned:
    """Put the adapter on its own base, made dense and ready to move to the l-bit one."""
    step, head = work.step, trained_head(work.step)
    loaded = load_base(own_base(step), work.store, runtime.model_copy(update={"kernel": "packed"}), head=head)
    line = Line(loaded.model, load_base(step.base, work.store, runtime, head=head).model, work.frozen)
    loaded = fit(loaded, step.adapter, work.adapter)
    modules = dict(named_modules(loaded.model))
    return Tuned(loaded, modules, attach(loaded, plain(step, own_base(step)), work.adapter, NAME), line)


def write_correction(
    work: Restoration, tuned: Tuned, low: Mapping[str, nn.Module], others: Mapping[str, nn.Module], folder: Path
) -> JsonObject:
    """Write the adapter of `tuned`, corrected for the base of the modules `others`, to `folder`; return what is to be recorded.

    `low` gives the layers that are corrected, with their weights on the adapter's own base; what reaches them is measured in
    `tuned` on training rows.
    """
    correction = settings_of(work.step)
    assert correction.task is not None
    rows = training_inputs(correction.task, correction.calibration_rows, correction.seed, tuned.loaded.tokenizer)
    layers = {name: tuned.modules[name] for name in low}
    moments = dict(second_moments(tuned.attached.model, layers, rows, on_progress=work.on_progress))
    copy_adapter(work, work.step.base, folder)
    return correct(folder, Felt(low, moments, work.frozen), others, correction, on_progress=work.on_progress)


def k_bit_in_either(tuned: Tuned, others: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Select the layers of the base of `tuned` that are k-bit there or in the other base."""
    names = {**k_bit_layers(tuned.modules), **k_bit_layers(others)}
    return {name: tuned.modules[name] for name in names}


class Stage(ABC):
    """The candidates of the guard in memory, and the corrected adapter in a folder where there is one."""

    place: float | None
    """The place t on the way, where it is not chosen."""
    record: JsonObject
    """Record of the corrected adapter; empty without one."""

    def __init__(self, work: Restoration, folder: Path) -> None:
        self.work, self.folder, self.record = work, folder, {}

    @abstractmethod
    def marks(self, rows: Rows, mode: str, t: float, scale: float) -> Marks:
        """Read `rows` as the candidate serves them."""

    def _load(self, tuned: Tuned) -> None:
        adapters.get(self.work.step.adapter.adapter.method).load(tuned.attached.model, self.folder, CORRECTED)

    def _activate(self, tuned: Tuned, mode: str) -> Any:
        model: Any = tuned.attached.model
        if self.record:
            model.set_adapter(CORRECTED if mode == "correct" else NAME)
        return model


class Between(Stage):
    """One dense model at 16 bits: every candidate is a point between the two bases, or the correction on the second."""

    def __init__(self, work: Restoration, runtime: Runtime, folder: Path) -> None:
        super().__init__(work, folder)
        self.place = settings_of(work.step).t
        self.tuned = put_on_line(work, runtime)
        if settings_of(work.step).rank:
            others = {**self.tuned.modules, **self.line.high}
            self.record = write_correction(work, self.tuned, self.line.low, others, folder)
            self._load(self.tuned)

    @property
    def line(self) -> Line:
        assert self.tuned.line is not None
        return self.tuned.line

    def marks(self, rows: Rows, mode: str, t: float, scale: float) -> Marks:
        model = self._activate(self.tuned, mode)
        if mode != "correct":
            return self.tuned.marks(rows, t, scale)
        self.line.move(1.0)
        return rows.marks(model, self.tuned.loaded.tokenizer)


class Beside(Stage):
    """The two bases below 16 bits, the adapter beside each."""

    def __init__(self, work: Restoration, runtime: Runtime, folder: Path) -> None:
        super().__init__(work, folder)
        self.place = 1.0
        self.own, self.other = put_on(work, own_base(work.step), runtime), put_on(work, work.step.base, runtime)
        if settings_of(work.step).rank:
            low = k_bit_in_either(self.own, self.other.modules)
            self.record = write_correction(work, self.own, low, self.other.modules, folder)
            self._load(self.other)

    def marks(self, rows: Rows, mode: str, t: float, scale: float) -> Marks:
        if mode == KEEP:
            return self.own.marks(rows, t, scale)
        model = self._activate(self.other, mode)
        if mode != "correct":
            return self.other.marks(rows, t, scale)
        return rows.marks(model, self.other.loaded.tokenizer)
