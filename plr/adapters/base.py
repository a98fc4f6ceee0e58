"""The plug-in point for adapter methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from plr.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

__all__ = ["NEW_MODULES", "AdapterMethod", "Config", "Family", "Kind", "Properties", "Settings", "adapters"]

Config: TypeAlias = Mapping[str, Any]
"""A method's configuration, to read: values that JSON can hold, checked by the method's `resolve`."""
Settings: TypeAlias = dict[str, Any]
"""A configuration that is made here: keys and values of the method's own."""

Kind = Literal["generation", "classification"]
"""Work of the model: write an answer (causal language model), or choose a label (sequence classification head)."""

Family = Literal["reparameterization", "additive", "prompt", "selective", "full"]
"""Families of methods, by what they train."""


NEW_MODULES = "plr_new_modules"
"""Attribute of a model: names of the modules of its head that no checkpoint holds, so that an adapter has to carry them."""


@dataclass(frozen=True)
class Properties:
    """Properties of a method, for people who choose one and for the commands that use it."""

    summary: str
    """One line: what is trained, and where."""
    family: Family
    merges: bool = True
    """True if it can be added into the weights of a 16-bit base, so that inference costs nothing more."""
    learning_rate: float = 1.0
    """The learning rate it wants, as a multiple of LoRA's on the same base."""
    kinds: tuple[Kind, ...] = ("generation", "classification")
    quantized: bool = True
    """True if it trains on bases below 16 bits."""
    source: str = ""
    """The paper."""


class AdapterMethod(ABC):
    """One way to adapt a base with few parameters.

    A method is stateless: it is given the base and its whole configuration (no default of a library stands in), and what it
    saves must open without plr.
    """

    properties: Properties = Properties(summary="", family="reparameterization")

    @abstractmethod
    def resolve(self, config: Config) -> Settings:
        """Return the whole configuration: the method's defaults with `config` over them; this is what is hashed.

        Raises:
            ConfigError: an unknown key or a value of the wrong kind.
        """

    @abstractmethod
    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        """Put a fresh trainable adapter on the base; only the adapter (and a classification head) requires gradients.

        `steps` is how many optimizer steps will follow, for methods that plan ahead.

        Raises:
            ModelError: the base has nothing that the method could be attached to, or is quantized and must not be.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter (safetensors + JSON) to `folder`."""

    @abstractmethod
    def load(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        """Attach a saved adapter under `name` and make it the active one; `model` may already carry others."""

    def unfit(self, model: nn.Module, folder: Path, name: str) -> tuple[list[str], list[str]]:
        """Compare the adapter `name` on `model` with its file: the tensors that the file lacks, and those that found no place."""
        return [], []

    @abstractmethod
    def unload(self, model: nn.Module, name: str) -> nn.Module:
        """Take the adapter called `name` off again; the result computes as if it had never been there."""

    @abstractmethod
    def merge(self, model: nn.Module) -> nn.Module:
        """Merge the active adapter into the weights of the dense base.

        Raises:
            ModelError: what the method trains is no part of the base's weights.
        """

    def callbacks(self, model: nn.Module, config: Config) -> Sequence[TrainerCallback]:
        """Return the callbacks of the trainer that act between optimizer steps."""
        return ()

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of the state of training that are no parameters: saved in checkpoints, read back in place."""
        return {}

    def updated_parameters(self, model: nn.Module) -> int:
        """Count the weights of the base that the trained adapter changes when merged; 0 for one that stays beside it."""
        return 0


adapters: Registry[AdapterMethod] = Registry("adapter method", "plr.adapters")
