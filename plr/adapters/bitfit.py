"""BitFit (Ben Zaken et al., 2022, arXiv:2106.10199): train the bias terms and nothing else, as a method of PEFT.

1. Each targeted module (linear, LayerNorm ...) is wrapped: `y = base(x) + delta`, delta [features] zero at the start. That is
   the bias plus delta, written so that the base keeps its bias: it works at every bit width, and delta moves to any other.
2. `target_modules: null` means every module with a bias outside the heads that are saved whole; the names found are written
   into the saved configuration.
3. A model without biases (Llama) has nothing to train. `add_biases: true` gives the targeted linear layers a zero bias, which
   is again a delta.
4. Merging adds delta to the bias. A layer that had none gets one, and then the model's configuration must say so, or its
   checkpoint would lose them on loading: the flags (`attention_bias` ...) are tried on an empty copy of the architecture, and
   where no setting of them yields the biases that were trained, merging is refused before anything is changed.

What it gives up: merged in a half-precision base, delta is rounded with the bias.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from accelerate import init_empty_weights
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plr.adapters.peft_types import register
from plr.adapters.wrapper import WrapperLayer, WrapperModel
from plr.errors import ModelError

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel"]

FLAGS = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qkv_bias", "bias", "add_bias_linear")
"""Names in configurations of the flag that gives linear layers biases."""


class _Biased(Protocol):
    """A layer whose bias may be None."""

    bias: Tensor | None


@dataclass
class BitFitConfig(PeftConfig):
    """Configuration of BitFit: which biases train; see the module's docstring."""

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, suffixes or one regex; None: every module that has a bias."}
    )
    add_biases: bool = field(
        default=False, metadata={"help": "Give targeted linear layers without a bias a zero one, and train it."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names, suffixes or a regex."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these layers."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Trained and saved whole, e.g. a head."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BITFIT
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as every method of PEFT


class BitFitLayer(WrapperLayer):
    """`base_layer` with, for each adapter name, `bitfit_delta[name]` [features] added to its output."""

    adapter_layer_names = ("bitfit_delta",)

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.bitfit_delta = nn.ParameterDict()
        self._unmerged: Tensor | None = None  # the bias before the first merge

    def update_layer(self, name: str, config: BitFitConfig) -> None:
        """Add a fresh delta called `name`."""
        self.bitfit_delta[name] = nn.Parameter(torch.zeros(_features(self.base_layer)))
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Add the active deltas to `base_layer`'s output [.., features]."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.bitfit_delta:
                output = output + self.bitfit_delta[name].to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the deltas to the bias; one that was not there is made.

        Raises:
            ValueError: `safe_merge` and the sum is not finite.
        """
        base = cast(_Biased, self.base_layer)
        for name in [n for n in check_adapters_to_merge(self, adapter_names) if n in self.bitfit_delta]:
            delta = self.bitfit_delta[name].detach()
            merged = delta if base.bias is None else base.bias.detach().float() + delta.float()
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaN or infinity in the merged bias of adapter {name}: it was not merged")
            if not self.merged:
                self._unmerged = None if base.bias is None else base.bias.detach().clone()
            if base.bias is None:
                dtype = self._get_base_layer_device_and_dtype(self.base_layer)[1]
                base.bias = nn.Parameter(merged.to(dtype, copy=True), requires_grad=False)
            else:
                base.bias.data.copy_(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the bias back as it was, bit for bit."""
        base = cast(_Biased, self.base_layer)
        if self.merged and self._unmerged is None:
            base.bias = None
        elif self.merged and base.bias is not None and self._unmerged is not None:
            base.bias.data.copy_(self._unmerged)
        self.merged_adapters.clear()
        self._unmerged = None


class BitFitModel(WrapperModel):
    """The base with trainable deltas of the biases of its target modules."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # as PEFT declares it

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict[str, object]) -> BitFitConfig:
        return peft_config  # the modules are needed, not the type of the model: see _prepare_model

    def _prepare_model(self, peft_config: BitFitConfig, model: nn.Module) -> None:
        """Write the targets into `peft_config` if it names none.

        Raises:
            ModelError: a target has no bias and `add_biases` is off, or cannot have one.
        """
        if peft_config.target_modules is None:
            peft_config.target_modules = set(_biased(model, peft_config))  # type: ignore[assignment]
            if not peft_config.target_modules:
                raise _no_bias(f"{type(model).__name__} has no bias to train")
        for name, module in _bare(model):
            if not check_target_module_exists(peft_config, name):
                continue
            if not isinstance(module, nn.Linear | Conv1D) and getattr(module, "bias", None) is None:
                raise ModelError(
                    f"bitfit was to train the bias of {name}, a {type(module).__name__} that has none",
                    expected="modules with a bias, or linear layers with add_biases: true",
                    hint="name linear layers or LayerNorms in target_modules",
                )
            if getattr(module, "bias", None) is None and not peft_config.add_biases:
                raise _no_bias(f"bitfit was to train the bias of {name}, which has none")

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a model that could not be saved and loaded again.

        Raises:
            ModelError: the merged model could not be saved and loaded again.
        """
        added = self._added()
        for name, layer in added.items():
            if type(layer.base_layer) is not nn.Linear:
                raise ModelError(
                    f"a bias was trained for {name}, a {type(layer.base_layer).__name__} that has none",
                    expected="a dense nn.Linear to merge into",
                    hint="merge on the 16-bit base, or serve the adapter attached",
                )
        if added and hasattr(self.model, "config"):
            _flags(cast(PreTrainedModel, self.model), set(added))

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        added = set(self._added()) if merge else set()
        if merge:
            self._check_merge_allowed()
        flags, biases = (
            _flags(cast(PreTrainedModel, self.model), added) if added and hasattr(self.model, "config") else ({}, set())
        )
        model = cast(
            PreTrainedModel, super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        )
        for flag in flags:
            setattr(model.config, flag, True)
        for name in biases - added:  # what the flags bring with them
            layer = cast(nn.Linear, model.get_submodule(name))
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(_features(layer)), requires_grad=False)
        return model

    def _added(self) -> dict[str, BitFitLayer]:
        """List wrapped layers without a bias of their own, by the names of the base model."""
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, BitFitLayer)}
        return {
            name: m for name, m in layers.items() if m.base_layer.bias is None or (m.merged and m._unmerged is None)
        }


def _no_bias(problem: str) -> ModelError:
    return ModelError(
        problem,
        expected="a model with biases, e.g. BERT, RoBERTa, GPT-2, OPT, Qwen2 (query, key, value)",
        hint="set add_biases: true with target_modules: zero biases are added to those linear layers and trained",
    )


def _bare(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules of the base by name, without adapters: those inside are left out, those wrapped are given bare."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    wrapped = tuple(f"{name}." for name in layers)
    modules = [(name, module) for name, module in model.named_modules() if not name.startswith(wrapped)]
    return [(name, m.get_base_layer() if isinstance(m, BaseTunerLayer) else m) for name, m in modules]


def _biased(model: nn.Module, config: BitFitConfig) -> list[str]:
    """List the names of the modules whose bias trains by default."""
    heads = {"lm_head", *(config.modules_to_save or ())}
    aside = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper))
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in _bare(model)
        if name
        and not heads & set(name.split("."))
        and not name.startswith(aside)
        and module is not output
        and (
            isinstance(getattr(module, "bias", None), Tensor)
            or (config.add_biases and isinstance(module, nn.Linear | Conv1D))
        )
    ]


def _features(module: nn.Module) -> int:
    """Return the width of what the module returns."""
    bias = getattr(module, "bias", None)
    if bias is not None:
        return bias.shape[0]
    return module.nf if isinstance(module, Conv1D) else module.out_features  # type: ignore[return-value]


def _flags(model: PreTrainedModel, added: set[str]) -> tuple[dict[str, bool], set[str]]:
    """Find flags to set in the model's configuration so that its architecture has the biases `added`; all biases it has then.

    Raises:
        ModelError: no setting of the flags yields them.
    """
    off = [flag for flag in FLAGS if getattr(model.config, flag, None) is False]
    for count in range(1, len(off) + 1):
        for chosen in itertools.combinations(off, count):
            config = copy.deepcopy(model.config)
            for flag in chosen:
                setattr(config, flag, True)
            with init_empty_weights():
                empty = type(model)(config)
            linears = {name: m for name, m in empty.named_modules() if isinstance(m, nn.Linear)}
            biases = {name for name, module in linears.items() if module.bias is not None}
            if added <= biases:
                return dict.fromkeys(chosen, True), biases
    raise ModelError(
        f"{type(model).__name__} has no place for the bias of {min(added)}: saved after a merge, it would be lost on loading",
        expected="an architecture whose configuration can ask for these biases"
        + (f" (it knows {', '.join(off)})" if off else ""),
        hint="serve the adapter attached, or train biases of layers that the configuration covers",
    )


BITFIT = register("bitfit", BitFitConfig, BitFitModel)
