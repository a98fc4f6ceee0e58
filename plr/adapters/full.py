"""Full fine-tuning at 16 bits: no adapter at all, the reference row of every comparison.

All weights train, in float32. What is saved is a whole checkpoint of transformers. Put on a base again, its weights take the
place of the base's, in the base's dtype; the base's own are kept on the CPU, so that they can go back bit for bit.

What it gives up: it does not go on a k-bit base, because the difference to the source is no separate part that could be added
there. Mode `requantize` quantizes the trained weights instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from plr.adapters.base import AdapterMethod, Config, Kind, Properties, Settings
from plr.adapters.peft import is_quantized
from plr.errors import ConfigError, ModelError, ProvenanceError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["FullMethod"]

REPLACED = "plr_replaced_weights"
"""Attribute of a model whose weights were replaced: the name they came under, and its own weights on the CPU."""


class FullMethod(AdapterMethod):
    """Every weight trains."""

    properties = Properties(
        summary="every weight, no adapter: full fine-tuning at 16 bits",
        family="full",
        learning_rate=0.1,
        quantized=False,
        source="the usual reference",
    )

    def resolve(self, config: Config) -> Settings:
        if config:
            raise ConfigError(
                f"full fine-tuning has no key {min(config)!r}", expected="no key", hint="remove config from the adapter"
            )
        return {}

    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        """Make all of `model` trainable, in float32 (a classification head too)."""
        if is_quantized(model):
            raise ModelError(
                f"full fine-tuning was asked for on a quantized {type(model).__name__}",
                expected="a base at 16 bits: codes of k bits have no gradient",
                hint="train with --bits 16, or choose an adapter for this base: see plr adapters",
            )
        model.float()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a whole checkpoint in float32; the tokenizer is the source's."""
        folder.mkdir(parents=True, exist_ok=True)
        cast("PreTrainedModel", model).save_pretrained(folder)

    def load(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        """Load the saved weights into `model`.

        Raises:
            ModelError: a k-bit base, or one that carries something already.
            ProvenanceError: a checkpoint of another architecture or size.
        """
        if is_quantized(model):
            raise ModelError(
                "a fully fine-tuned model was to be put on a k-bit base, but its weights are a whole model",
                expected="mode requantize (its 16-bit weights are quantized to k bits), or a base at 16 bits",
                hint="use --mode requantize, or --bits 16",
            )
        if hasattr(model, "peft_config") or hasattr(model, REPLACED):
            carried = getattr(model, REPLACED, ("an adapter",))[0]
            raise ModelError(
                f"a fully fine-tuned model was to be put on a base that carries {carried}",
                expected="a bare base: all of its weights are replaced",
                hint="unload what it carries first",
            )
        trained = _read(type(cast("PreTrainedModel", model)), folder)
        own: dict[str, Tensor] = model.state_dict()
        other = [key for key in trained.keys() | own.keys() if _shape(trained, key) != _shape(own, key)]
        if other:
            key = min(other)
            raise ProvenanceError(
                f"the fully fine-tuned model has {_shape(trained, key)} as {key}, the base {_shape(own, key)}",
                expected="the same module names and shapes as in training",
                hint="use the source it was trained from",
            )
        originals = {key: tensor.detach().to("cpu", copy=True) for key, tensor in own.items()}
        _copy(trained, own)
        setattr(model, REPLACED, (name, originals))
        return model.eval()

    def unload(self, model: nn.Module, name: str) -> nn.Module:
        """Give the base its own weights again, bit for bit.

        Raises:
            ModelError: nothing was loaded under `name`; a model that was trained here has no weights to go back to.
        """
        loaded, originals = getattr(model, REPLACED, (None, {}))
        if loaded != name:
            raise ModelError(
                f"no fully fine-tuned weights were put on this base under the name {name!r}",
                expected=f"the name {loaded!r}" if loaded else "a model made by load",
                hint="load the source again",
            )
        _copy(originals, model.state_dict())
        delattr(model, REPLACED)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """Return `model`: its weights are the result."""
        if hasattr(model, REPLACED):
            delattr(model, REPLACED)
        return model

    def updated_parameters(self, model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())


def _read(model_class: type[PreTrainedModel], folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a saved checkpoint, in float32, under the names of the model's own state."""
    import torch

    loaded = model_class.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model, info = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)
    missing = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if missing:
        raise ProvenanceError(
            f"{folder} is no whole checkpoint of {model_class.__name__}: {missing[0]} does not match",
            expected="a folder written by full fine-tuning of the same architecture",
            hint="use the source it was trained from",
        )
    return model.state_dict()


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(source[key])


def _shape(tensors: Mapping[str, Tensor], key: str) -> str:
    return f"shape {list(tensors[key].shape)}" if key in tensors else "nothing"
