"""Rows of a task: from a file, the hub or a generator, split and checked for leakage."""

from __future__ import annotations
