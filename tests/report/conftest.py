"""Tiny studies whose numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from plr.study.cells import CellResult, Measured

FIRST, STRICT, LOSS = "exact_match,first-answer", "exact_match,strict", "answer_loss"


@pytest.fixture
def cell() -> Callable[..., CellResult]:
    """``cell(k, l, right="1101", ...)``: a cell whose primary samples are the given bits, one a document."""

    def make(
        k: int,
        ell: int,
        right: str | None = None,
        *,
        model: str = "tiny",
        task: str = "math",
        adapter: str = "lora",
        seed: int = 0,
        mode: str | None = None,
        primary: str = FIRST,
        strict: str | None = None,
        losses: Sequence[float] | None = None,
        ended: str | None = None,
        extra: Mapping[str, Measured] | None = None,
        error: str | None = None,
    ) -> CellResult:
        samples: dict[str, dict[str, float | None]] = {}
        for name, scores in ((primary, right), (STRICT, strict), (LOSS, losses), ("ended", ended)):
            if scores is not None:
                samples[name] = {f"d{i}": float(score) for i, score in enumerate(scores)}
        metrics = {
            name: Measured(sum(float(v or 0) for v in by.values()) / len(by), 0.1, len(by))
            for name, by in samples.items()
        }
        return CellResult(
            model=model,
            task=task,
            adapter=adapter,
            train_bits=k,
            restore_bits=ell,
            mode=mode or ("keep" if k == ell else "restore"),
            seed=seed,
            fingerprint=f"{k:02d}{ell:02d}{seed:02d}",
            primary=primary,
            metrics={} if error else {**metrics, **(extra or {})},
            samples={} if error else samples,
            seconds=None if error else 1.5,
            error=error,
        )

    return make


@pytest.fixture
def small(cell) -> list[CellResult]:
    """k 16, 4, 2; n = 4; the cell (2, 4) failed."""
    return [
        cell(16, 16, "1110", strict="1110", losses=[0.1, 0.2, 0.3, 0.4], ended="1111"),
        cell(4, 4, "1100", strict="1100", losses=[0.2, 0.3, 0.4, 0.5], ended="1111"),
        cell(4, 16, "1110", strict="1000", losses=[0.1, 0.3, 0.4, 0.4], ended="1001"),
        cell(2, 2, "0000", strict="0000", losses=[0.9, 0.8, 0.7, 0.8], ended="1111"),
        cell(2, 4, error="out of memory | 3.1 <GiB> needed"),
        cell(2, 16, "1000", strict="1000", losses=[0.6, 0.6, 0.6, 0.6], ended="1111"),
    ]
