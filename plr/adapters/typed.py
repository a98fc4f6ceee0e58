"""Types for the parts of PEFT that `plr.adapters` uses and that `torch.nn.Module` does not declare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn

__all__ = ["Adapted", "adapted", "lora_config"]


class Adapted(Protocol):
    """A base with adapters of PEFT on it, each under a name."""

    peft_config: dict[str, PeftConfig]
    base_model: BaseTuner

    def save_pretrained(self, folder: Path, *, safe_serialization: bool, selected_adapters: list[str]) -> None: ...
    def delete_adapter(self, name: str) -> None: ...
    def merge_and_unload(self, *, safe_merge: bool) -> nn.Module: ...
    def get_base_model(self) -> nn.Module: ...


def adapted(model: nn.Module) -> Adapted:
    """Read `model` as what PEFT made of a base."""
    return cast(Adapted, model)


def lora_config(model: nn.Module, name: str) -> LoraConfig:
    """Return the configuration of the LoRA adapter `name` of `model`."""
    return cast("LoraConfig", adapted(model).peft_config[name])
