"""LoRA and its kin, with initialisations that take a part of the base into the adapter converted back when saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plr.adapters.absorbing import absorbs, initial, refuse, save_converted
from plr.adapters.base import Config, Kind
from plr.adapters.peft import PeftMethod, is_quantized
from plr.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Lora"]

STATE = "plr_initial_adapter"
"""Attribute of a model in training whose base was changed: A_0 and B_0 of every layer."""


class Lora(PeftMethod):
    """LoRA; see `plr.adapters.absorbing` for what `init_lora_weights: pissa` and `olora` become."""

    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        """Put a fresh LoRA adapter on `model`.

        Raises:
            ConfigError, ModelError: an initialisation that plr does not make, or not on a quantized base.
        """
        refuse(config, is_quantized(model))
        adapted = super().attach(model, config, seed=seed, kind=kind, steps=steps)
        if absorbs(config):
            setattr(adapted, STATE, initial(adapted))
        return adapted

    def save(self, model: nn.Module, folder: Path) -> None:
        if STATE in vars(model):
            save_converted(model, vars(model)[STATE], folder)
        else:
            super().save(model, folder)

    def unload(self, model: nn.Module, name: str) -> nn.Module:
        """Take the adapter off `model`.

        Raises:
            ModelError: an adapter in training that holds a part of the base.
        """
        if STATE in vars(model):
            raise ModelError(
                "the adapter was initialised with a part of the base: without it the base is not what it was",
                expected="an adapter loaded from a file",
                hint="load the base again",
            )
        return super().unload(model, name)
