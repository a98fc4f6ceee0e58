"""Scorers: pure functions from text to :class:`~plr.scoring.score.Score`, no model and no data set in sight."""

from __future__ import annotations

from plr.scoring.score import Score

__all__ = ["Score"]
