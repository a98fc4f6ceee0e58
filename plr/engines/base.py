"""The plug-in point for engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from plr.core.runtime import Runtime
from plr.core.store import Store
from plr.engines.plan import Event, Plan
from plr.registry import Registry

__all__ = ["Engine", "Outcome", "engines"]


@dataclass
class Outcome:
    """The outcome of a run: fingerprints of finished steps, and of failed ones with the reason."""

    done: set[str] = field(default_factory=set[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])


class Engine(ABC):
    """Runs a plan. A step whose input failed is failed too; everything else is done."""

    @abstractmethod
    def run(self, plan: Plan, store: Store, runtime: Runtime, on_event: Callable[[Event], None]) -> Outcome: ...


engines: Registry[Engine] = Registry("engine", "plr.engines")
