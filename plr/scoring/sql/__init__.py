"""SQL answers by execution: reading, filling databases, running in a sandbox, comparing, judging."""

from __future__ import annotations
