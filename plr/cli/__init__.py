"""The command line: thin views on the store."""

from __future__ import annotations

from plr.cli.root import app, main

__all__ = ["app", "main"]
