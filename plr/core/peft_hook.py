"""`import plr` is enough for PEFT to open adapters of plr's own methods.

`PeftModel.from_pretrained` reads the method's name out of `adapter_config.json` and must know it by then. plr itself imports
neither torch nor PEFT until they are needed, so the names are made known at whichever comes second: plr, or PEFT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["METHODS", "install"]

METHODS = ("plr.adapters.sparse.tuner", "plr.adapters.bottleneck", "plr.adapters.bitfit")
"""Modules that register a method of PEFT when they are imported."""


def install() -> None:
    """Make plr's methods known to PEFT now if it is there, else right after it has been imported."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    for name in METHODS:
        import_module(name)


class _AfterPeft(MetaPathFinder):
    """Finds PEFT as the other finders do, and registers plr's methods when it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("peft")
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # not installed now; it may be later
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec
