"""Restoration: which modes fit, and the worker that re-attaches an adapter."""

from __future__ import annotations
