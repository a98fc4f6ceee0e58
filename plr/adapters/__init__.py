"""Adapter methods by name: what is trained on a base and re-attached to another."""

from __future__ import annotations

from plr.adapters.base import AdapterMethod, adapters
from plr.adapters.peft import PeftMethod

__all__ = ["AdapterMethod", "PeftMethod", "adapters"]
