"""LLaMA-Adapter: PEFT's AdaptionPrompt, in as many of the upper layers as the model has."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from plr.adapters.base import Settings
from plr.adapters.peft import PeftMethod

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["LlamaAdapter"]


class LlamaAdapter(PeftMethod):
    """`adapter_layers` is the most layers that are adapted, from the top; the number taken stands in the saved config."""

    def settings(self, model: nn.Module, config: Settings, *, seed: int, steps: int) -> Settings:
        return {
            **config,
            "adapter_layers": min(config["adapter_layers"], cast("PreTrainedModel", model).config.num_hidden_layers),
        }
