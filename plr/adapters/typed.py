"""Types for the parts of PEFT that `plr.adapters` uses and that `torch.nn.Module` does not declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn
    from torch.utils.hooks import RemovableHandle

__all__ = ["Adapted", "Factor", "LoraModule", "adapted", "lora_config", "lora_layers"]


class Adapted(Protocol):
    """A base with adapters of PEFT on it, each under a name."""

    peft_config: dict[str, PeftConfig]
    base_model: BaseTuner

    def save_pretrained(self, folder: Path, *, safe_serialization: bool, selected_adapters: list[str]) -> None: ...
    def delete_adapter(self, name: str) -> None: ...
    def merge_and_unload(self, *, safe_merge: bool) -> nn.Module: ...
    def get_base_model(self) -> nn.Module: ...


class Factor(Protocol):
    """One of the two factors of a LoRA adapter."""

    weight: nn.Parameter


class LoraModule(Protocol):
    """A layer with LoRA adapters of PEFT on it, each under a name."""

    lora_A: Mapping[str, Factor]
    lora_B: Mapping[str, Factor]
    r: Mapping[str, int]
    scaling: Mapping[str, float]
    disable_adapters: bool
    active_adapters: list[str]

    def get_base_layer(self) -> nn.Linear: ...
    def register_forward_hook(self, hook: Callable[..., object]) -> RemovableHandle: ...


def adapted(model: nn.Module) -> Adapted:
    """Read `model` as what PEFT made of a base."""
    return cast(Adapted, model)


def lora_config(model: nn.Module, name: str) -> LoraConfig:
    """Return the configuration of the LoRA adapter `name` of `model`."""
    return cast("LoraConfig", adapted(model).peft_config[name])


def lora_layers(model: nn.Module) -> dict[str, LoraModule]:
    """Return the LoRA layers of `model` by their names in it."""
    from peft.tuners.lora import LoraLayer

    return {name: cast(LoraModule, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
