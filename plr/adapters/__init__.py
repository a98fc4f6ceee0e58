"""Adapter methods by name: what is trained on a base and re-attached to another."""

from __future__ import annotations

from plr.adapters import methods as _methods  # registers them
from plr.adapters.base import AdapterMethod, Kind, Properties, adapters
from plr.adapters.peft import PeftMethod

__all__ = ["AdapterMethod", "Kind", "PeftMethod", "Properties", "adapters"]

del _methods
