"""Scorers: pure functions from text to `Score`, no model and no data set in sight; and the metrics they measure."""

from __future__ import annotations

from plr.scoring.metric import Metric
from plr.scoring.score import Score

__all__ = ["Metric", "Score"]
