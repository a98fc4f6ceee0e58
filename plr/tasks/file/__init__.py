"""Tasks defined in one YAML file."""

from __future__ import annotations
