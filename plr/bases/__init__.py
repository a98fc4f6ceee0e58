"""One source model at some bits: loading, heads, quantizing, gating."""

from __future__ import annotations
