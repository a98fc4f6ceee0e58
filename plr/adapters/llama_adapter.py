"""LLaMA-Adapter: PEFT's AdaptionPrompt, in as many of the upper layers as the model has."""

from __future__ import annotations

from typing import Any

from plr.adapters.peft import PeftMethod

__all__ = ["LlamaAdapter"]


class LlamaAdapter(PeftMethod):
    """`adapter_layers` is the most layers that are adapted, from the top; the number taken stands in the saved config."""

    def settings(self, model: Any, config: dict[str, Any], *, seed: int, steps: int) -> dict[str, Any]:
        return {**config, "adapter_layers": min(config["adapter_layers"], model.config.num_hidden_layers)}
