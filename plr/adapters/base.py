"""The plug-in point for adapter methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.registry import Registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AdapterMethod", "adapters"]


class AdapterMethod(ABC):
    """One way to adapt a base with few parameters.

    A method is stateless: it is given the base and its whole configuration (no default of a library stands in), and what it
    saves must open without plr.
    """

    @abstractmethod
    def resolve(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The whole configuration: the method's defaults with ``config`` over them; this is what is hashed.

        Raises:
            ConfigError: an unknown key or a value of the wrong kind.
        """

    @abstractmethod
    def attach(self, model: nn.Module, config: Mapping[str, Any], *, seed: int) -> Any:
        """The base with a fresh trainable adapter; only the adapter requires gradients."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter (safetensors + JSON) to ``folder``."""

    @abstractmethod
    def load(self, model: Any, folder: Path, name: str) -> Any:
        """Attach a saved adapter under ``name`` and make it the active one; ``model`` may already carry others."""

    @abstractmethod
    def unload(self, model: Any, name: str) -> Any:
        """Take the adapter called ``name`` off again; the result computes as if it had never been there."""

    @abstractmethod
    def merge(self, model: Any) -> nn.Module:
        """The dense base with the active adapter added into its weights."""


adapters: Registry[AdapterMethod] = Registry("adapter method", "plr.adapters")
