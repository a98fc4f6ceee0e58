"""The tasks that ship with plr."""

from __future__ import annotations
