"""Texts on the quality of a base (its gate), for the command line and the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

__all__ = ["GATE_HEAD", "BaseGate", "Gate", "answers_text", "gate_rows", "severity"]

GATE_HEAD = ("text", "tokens", "perplexity, from 16 bits", "ratio", "KL, nats", "top-1 kept")

Gate: TypeAlias = Mapping[str, Any]
"""The record of a base's gate, as `plr.bases.gate` wrote it into the manifest, this version's or an older one's."""


class BaseGate(TypedDict):
    """A quantized base of a study: its name and its gate."""

    name: str
    gate: Gate


def gate_rows(gate: Gate) -> list[tuple[str, ...]]:
    """List a row of `GATE_HEAD` for each text of the gate; a text that was not measured has two fields: its name and why."""
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


def answers_text(gate: Gate) -> str | None:
    """Write out the loss of the task's answers before and after; None where it was not measured."""
    if "loss" not in gate:
        return None
    before = f"{gate['loss_16bit']:.3f} to " if "loss_16bit" in gate else ""
    notes = [f"{gate['rows']} rows"] if "rows" in gate else []
    if "chance" in gate:
        notes.append(f"chance {gate['chance']:.2f}")
    return f"{before}{gate['loss']:.3f} nats a token" + (f" ({', '.join(notes)})" if notes else "")


def severity(verdict: str) -> str:
    """Take the first word of a verdict: ok, damaged, broken; `unknown` where nothing was measured."""
    word = re.match(r"\w+", verdict)
    return word[0] if word and word[0] in ("ok", "damaged", "broken") else "unknown"


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"
