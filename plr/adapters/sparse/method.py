"""The sparse adapter among the methods: what it changes is its k blocks, and a slot that moves starts afresh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plr.adapters.base import Config
from plr.adapters.peft import PeftMethod

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

__all__ = ["Sparse"]


class Sparse(PeftMethod):
    """The sparse TopK-block adapter; see `plr.adapters.sparse.tuner`."""

    def callbacks(self, model: nn.Module, config: Config) -> Sequence[TrainerCallback]:
        from plr.adapters.sparse.tuner import FreshSlots

        return (FreshSlots(),)

    def updated_parameters(self, model: nn.Module) -> int:
        from plr.adapters.sparse.tuner import changed_parameters

        return changed_parameters(model)
