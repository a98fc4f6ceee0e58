"""Builders of the modes that correct a restoration: path, scale, correct, and the guard that chooses among them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from plr.bases.load import load_base
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Correction
from plr.quantizers.base import named_modules
from plr.restoration.attach import attach
from plr.restoration.choose import choose, curve_json
from plr.restoration.fit import fit
from plr.restoration.guard import KEEP, LEAST_ROWS, Candidate, best_of, certify, sentence
from plr.restoration.line import set_scale
from plr.restoration.lowrank import rescale
from plr.restoration.rows import Marks, Rows, validation_rows
from plr.restoration.tuned import (
    Beside,
    Between,
    Stage,
    Tuned,
    k_bit_in_either,
    put_on,
    put_on_line,
    settings_of,
    write_correction,
)
from plr.restoration.work import (
    NAME,
    Restoration,
    copy_adapter,
    kept,
    own_base,
    plain,
    proof,
    trained_head,
    write_dense,
)

__all__ = ["corrected", "guarded", "on_path", "scaled"]

FIRST_ROWS = 64
"""Rows on which the guard finds its place on the way; all that choose compare it with the other candidates then."""


def on_path(work: Restoration) -> JsonObject:
    """Write the dense model at (t, s): as given, or at the least loss on validation rows."""
    t, scale, record = _chosen(work, settings_of(work.step).t, lambda runtime: put_on_line(work, runtime))
    return {**_serves("path", t, scale), **record, **_write_on_path(work, t, scale)}


def scaled(work: Restoration) -> JsonObject:
    """Write the adapter with another `lora_alpha`: as given, or at the least loss on validation rows."""
    base = work.step.base
    _, scale, record = _chosen(work, 1.0, lambda runtime: put_on(work, base, runtime))
    _write_scaled(work, scale)
    attached = put_on(work, base, work.runtime, work.folder).attached
    return {**_serves("scale", None, scale), **record, **proof(attached)}


def _chosen(work: Restoration, t: float | None, tuned: Callable[[Runtime], Tuned]) -> tuple[float, float, JsonObject]:
    """Choose what is not given of (t, s) on validation rows; return it, and what is to be recorded of the choice."""
    correction = settings_of(work.step)
    if t is not None and correction.scale is not None:
        return t, correction.scale, {}
    rows, model = _rows(correction), tuned(work.runtime.computing_in(work.step.dtype))
    best, tried = choose(
        lambda place, factor: model.marks(rows, place, factor),
        t=t,
        scale=correction.scale,
        on_progress=work.on_progress,
    )
    return best.t, best.scale, {"chosen_on": len(rows.examples), "curve": curve_json(tried)}


def corrected(work: Restoration) -> JsonObject:
    """Write the adapter with the leading part of W_l - W_k taken back, as more ranks."""
    step = work.step
    loaded = load_base(step.base, work.store, work.runtime, head=trained_head(step))
    others = dict(named_modules(loaded.model))
    tuned = put_on(work, own_base(step), work.runtime)
    record = write_correction(work, tuned, k_bit_in_either(tuned, others), others, work.folder)
    del tuned
    attached = attach(fit(loaded, step.adapter, work.adapter), plain(step, step.base), work.folder, NAME)
    return {**_serves("correct", None, settings_of(step).scale), **record, **proof(attached)}


def guarded(work: Restoration) -> JsonObject:
    """Serve the best restoration where it is certified to be no worse than the adapter on its own base, and that one otherwise."""
    step, correction = work.step, settings_of(work.step)
    rows = _rows(correction, LEAST_ROWS)
    half = len(rows.examples) // 2
    with TemporaryDirectory(prefix="plr-correction-") as place:
        make = Between if step.form.writes == "dense" else Beside
        stage = make(work, work.runtime.computing_in(step.dtype), Path(place))
        chosen, record = _weigh(stage, rows.part(0, half), rows.part(half, len(rows.examples)))
        record |= stage.record if chosen.mode == "correct" else {}
        del stage
        served = _serve(work, chosen, Path(place))
    return {**_serves(chosen.mode, chosen.t, chosen.scale), **record, **served}


def _weigh(stage: Stage, choosing: Rows, certifying: Rows) -> tuple[Candidate, JsonObject]:
    """Choose a candidate on one half of the rows, and certify it on the other."""
    correction = settings_of(stage.work.step)
    first = choosing.part(0, FIRST_ROWS)
    known: dict[tuple[float, float], Marks] = {}

    def read(t: float, scale: float) -> Marks:
        if (t, scale) not in known:
            known[t, scale] = stage.marks(first, "path", t, scale)
        return known[t, scale]

    best, curve = choose(read, t=stage.place, scale=correction.scale, on_progress=stage.work.on_progress)
    end = choose(read, t=1.0, scale=correction.scale)[0]
    points = [(KEEP, 0.0, 1.0), ("restore", 1.0, 1.0), ("scale", 1.0, end.scale), ("path", best.t, best.scale)]
    if stage.record:
        points.append(("correct", 1.0, correction.scale or 1.0))
    candidates: list[Candidate] = []
    for mode, t, scale in points:
        if mode == "correct" or (t, scale) not in {(one.t, one.scale) for one in candidates}:
            candidates.append(Candidate(mode, t, scale, stage.marks(choosing, mode, t, scale)))
    chosen = best_of(candidates)
    keep, verdict = candidates[0], None
    if chosen is not keep:
        kept = stage.marks(certifying, KEEP, 0.0, 1.0)
        verdict = certify(kept, stage.marks(certifying, chosen.mode, chosen.t, chosen.scale))
    served = chosen if verdict is None or verdict.certified else keep
    return served, {
        "chosen_on": len(choosing.examples),
        "curve": curve_json(curve),
        "candidates": [one.record for one in candidates],
        "best": chosen.mode,
        "verdict": None if verdict is None else verdict.record,
        "sentence": sentence(chosen, served, verdict),
    }


def _serve(work: Restoration, chosen: Candidate, place: Path) -> JsonObject:
    """Write what was chosen: one dense model at 16 bits, and an adapter beside its base below."""
    step = work.step
    if step.form.writes == "dense" and chosen.mode == "correct":
        tuned = put_on(work, step.base, work.exact, place, dense=True)
        return write_dense(work, tuned.loaded, tuned.attached)
    if step.form.writes == "dense":
        return _write_on_path(work, chosen.t, chosen.scale)
    base = own_base(step) if chosen.mode == KEEP else step.base
    if chosen.mode == "correct":
        shutil.copytree(place, work.folder, dirs_exist_ok=True)
    elif chosen.mode == "scale":
        _write_scaled(work, chosen.scale)
    elif chosen.mode == KEEP and work.frozen:
        tuned = put_on(work, base, work.runtime)
        kept(work, tuned.modules, work.folder)
        return proof(tuned.attached)
    else:
        copy_adapter(work, base, work.folder)
    return proof(put_on(work, base, work.runtime, work.folder).attached)


def _write_on_path(work: Restoration, t: float, scale: float) -> JsonObject:
    tuned = put_on_line(work, work.exact)
    assert tuned.line is not None
    tuned.line.move(t)
    set_scale(tuned.attached.model, NAME, scale)
    return write_dense(work, tuned.loaded, tuned.attached)


def _write_scaled(work: Restoration, scale: float) -> None:
    copy_adapter(work, work.step.base, work.folder)
    rescale(work.folder, scale)


def _rows(correction: Correction, least: int = 2) -> Rows:
    assert correction.task is not None
    return validation_rows(correction.task, correction.rows, correction.seed, least=least)


def _serves(mode: str, t: float | None, scale: float | None) -> JsonObject:
    """Record what is served, by the mode that serves the same by itself."""
    return {"serves": mode, "t": t, "scale": scale}
