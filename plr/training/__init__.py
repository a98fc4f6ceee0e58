"""Training: the worker, the trainer, objectives and costs."""

from __future__ import annotations
