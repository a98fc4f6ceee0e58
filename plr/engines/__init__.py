"""Engines by name: where the jobs of a plan run."""

from __future__ import annotations

from plr.engines.base import Engine, Outcome, engines
from plr.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Outcome", "engines"]
