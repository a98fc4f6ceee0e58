"""The sparse adapter: configuration, layer, product, budget, and reading a saved one."""

from __future__ import annotations
