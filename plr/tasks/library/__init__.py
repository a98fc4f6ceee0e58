"""The tasks that ship with plr, a module each: a file put here is found when `plr.tasks` is imported.

A module registers its task, or a family of them. What several share may lie beside them (`alpaca`).
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

__all__ = ["discover"]


def discover() -> dict[str, ModuleType]:
    """Import every module of this folder, so that its tasks are registered; the modules by name."""
    return {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
