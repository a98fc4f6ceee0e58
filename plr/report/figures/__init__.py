"""Figures of a report."""

from __future__ import annotations
