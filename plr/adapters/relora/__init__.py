"""ReLoRA: the method, and its restarts."""

from __future__ import annotations
