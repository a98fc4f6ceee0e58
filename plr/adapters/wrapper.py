"""Common base of plr's methods that only *call* the wrapped module, as methods of PEFT (bottleneck, BitFit).

The module is never asked for its weight, so a layer of k-bit codes, whose dense weight would have to be computed, costs nothing
and loses nothing, and a whole `mlp` is as good as a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from plr.errors import ModelError

__all__ = ["WrapperLayer", "WrapperModel"]


class WrapperLayer(nn.Module, BaseTunerLayer):
    """`base_layer` in a wrapper that adds to its output; `module_name` is its name in the base model."""

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def update_layer(self, name: str, config: PeftConfig) -> None:
        """Add a fresh adapter called `name`."""
        raise NotImplementedError

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        tensors = list(itertools.chain(base_layer.parameters(), base_layer.buffers()))
        floating = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
        return (tensors[0].device if tensors else None), floating

    def __repr__(self) -> str:
        return "plr." + super().__repr__()


class WrapperModel(BaseTuner):
    """A base whose target modules are wrapped in `tuner_layer_cls`."""

    tuner_layer_cls: type[WrapperLayer]

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, current_key)
        layer.update_layer(adapter_name, peft_config)
        layer.set_adapter(adapter_name)
        if adapter_name not in self.active_adapters:  # a further adapter does not train by itself
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, self.tuner_layer_cls):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # unloading: the wrapped module goes back as it is; PEFT would assign its weight to itself
            setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        """Refuse `adapter_names`, else let the forward pass.

        Raises:
            ModelError: `adapter_names` was given, one adapter for each row; PEFT would leave it unheard.
        """
        if kwargs.get("adapter_names") is not None:
            raise ModelError(
                f"adapter_names was given to {type(self).__name__}",
                expected="one set of active adapters for the whole batch",
                hint="call set_adapter, and the model once for each adapter",
            )
        yield
