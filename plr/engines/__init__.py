"""Engines by name: where the jobs of a plan run."""

from __future__ import annotations

from plr.engines.base import Engine, Outcome, engines
from plr.engines.jobs import make, run_job
from plr.engines.local import LocalEngine
from plr.engines.plan import Event, Plan, closure, ready_jobs

__all__ = [
    "Engine",
    "Event",
    "LocalEngine",
    "Outcome",
    "Plan",
    "closure",
    "engines",
    "make",
    "ready_jobs",
    "run_job",
]
