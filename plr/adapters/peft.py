"""One entry for the methods of PEFT, and for plr's own that are made like PEFT's.

A method is its PEFT config class, the keys plr spells out by default, and its properties. Adapters are saved in PEFT's own
format; `base_model_name_or_path` names the source model (never a local folder of k-bit weights), so that the adapter opens
with `PeftModel.from_pretrained` on any machine. Which base it was trained on stands in the manifest beside it.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from plr.adapters.base import NEW_MODULES, AdapterMethod, Config, Kind, Properties, Settings
from plr.adapters.targets import has_module, named_in
from plr.adapters.typed import adapted
from plr.adapters.values import check_values
from plr.core.files import write_atomic
from plr.core.memory import out_of_memory
from plr.core.quiet import import_gptqmodel
from plr.errors import ConfigError, ModelError, PlrError
from plr.quantizers import is_quantized_layer
from plr.registry import did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["ACTIVE", "SET_BY_PLR", "PeftMethod", "calm", "is_quantized", "name_base"]

ACTIVE = "default"
WEIGHTS = "adapter_model.safetensors"
SET_BY_PLR = frozenset(
    {
        "task_type",
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "peft_version",
    }
)
"""Keys of every PEFT config that are no choice of the user's."""
TASK_TYPES: dict[Kind, str] = {"generation": "CAUSAL_LM", "classification": "SEQ_CLS"}


class PeftMethod(AdapterMethod):
    """A method of PEFT, e.g. `PeftMethod("LoraConfig", {"r": 16, ...})`.

    Args:
        config_class: its name in `module`.
        defaults: every key that bears identity; a user may give any other key of the config class too.
        properties: what it is; by default a family like LoRA.
        module: where the config class is defined; importing it makes PEFT know the method.
        updates: the attribute of a layer (adapter name -> tensor) that holds one number for each weight of the base that a
            merge changes; None where a merge changes the whole weight of every layer it is put on.
        state: parts of the names of buffers that change in training.
    """

    filled_in: frozenset[str] = frozenset()
    """Keys that depend on the run: plr fills them in, see `settings`."""

    def __init__(
        self,
        config_class: str,
        defaults: Config,
        properties: Properties | None = None,
        module: str = "peft",
        *,
        updates: str | None = None,
        state: tuple[str, ...] = (),
    ) -> None:
        self.config_class = config_class
        self.defaults = dict(defaults)
        self.properties = properties or Properties(
            summary=f"PEFT's {config_class.removesuffix('Config')}", family="reparameterization"
        )
        self.module = module
        self.updates = updates
        self.state = state

    def resolve(self, config: Config) -> Settings:
        for key in config.keys() - self.defaults.keys():
            known = self.known_keys() - SET_BY_PLR - self.filled_in
            if key not in known:
                raise ConfigError(
                    f"{self.config_class} has no key {key!r}",
                    expected="a key of its config class: " + ", ".join(sorted(known)),
                    hint=did_you_mean(key, known),
                )
        check_values(self.config_class, self.defaults, config)
        return {**self.defaults, **config}

    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        import torch
        from peft import get_peft_model

        config_class = self._config_class()
        self._check(model, kind)
        import_gptqmodel()
        settings = self.settings(model, named_in(model, config, self.config_class), seed=seed, steps=steps)
        if kind == "classification" and (new := [*_new_modules(model, config_class)]):
            settings = {**settings, "modules_to_save": [*(settings.get("modules_to_save") or []), *new]}
        with torch.random.fork_rng(), calm():
            torch.manual_seed(seed)
            try:
                peft_config = config_class(task_type=TASK_TYPES[kind], **settings)
                return get_peft_model(cast("PreTrainedModel", model), peft_config, adapter_name=ACTIVE)
            except PlrError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
                raise ModelError(
                    f"{self.config_class} cannot be attached to {type(model).__name__}: {_first_line(error)}",
                    hint="give other settings, e.g. --set adapters.0.config.target_modules='[...]'",
                ) from error

    def settings(self, model: nn.Module, config: Settings, *, seed: int, steps: int) -> Settings:
        """Complete `config` for PEFT: what depends on the run is filled in.

        Raises:
            ModelError: the run is too short for what the method plans.
        """
        return config

    def save(self, model: nn.Module, folder: Path) -> None:
        with calm():
            adapted(model).save_pretrained(folder, safe_serialization=True, selected_adapters=[ACTIVE])
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)

    def load(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        from peft import PeftModel
        from transformers.pytorch_utils import Conv1D

        self._config_class()
        import_gptqmodel()
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                f"{folder} has no {WEIGHTS}",
                expected="an adapter in safetensors (pickled weights are not read)",
                hint="save it again with model.save_pretrained(folder)",
            )
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        originals = _named_by(folder, base)
        try:
            with calm():
                if isinstance(model, PeftModel):
                    model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
                else:
                    model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
        except (TypeError, NotImplementedError, ValueError) as error:
            if not _layer_is_foreign(error):
                raise
            # Trained on k-bit layers, which are nn.Linear; the 16-bit base may have Conv1D (GPT-2). Or the other way round.
            conv1d = any(isinstance(module, Conv1D) for module in model.modules())
            raise ModelError(
                f"{self.config_class} cannot be put on {type(model).__name__}: {_first_line(error)}",
                expected="layers that PEFT's method knows (on Conv1D: lora, dora, ia3, adalora, vera, fourierft)",
                hint="serve it on a " + ("k-bit" if conv1d else "16-bit") + " base, or train a method "
                "that PEFT also puts on this base",
            ) from error
        _keep_overwritten(base, name, originals)
        model.set_adapter(name)
        return model.eval()

    def unfit(self, model: nn.Module, folder: Path, name: str) -> tuple[list[str], list[str]]:
        from peft import get_peft_model_state_dict

        with calm():
            own = get_peft_model_state_dict(adapted(model), adapter_name=name, save_embedding_layers=False).keys()
        stored, names = _names_in(folder), [name for name, _ in model.named_modules()]
        # Beside its own tensors a file may hold biases of the base, and embeddings that PEFT saves with it.
        known = {_below_adapters(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        held = {key for key in known if key.endswith((".bias", *_embeddings(model)))}
        beside = {key for key in stored if _below_adapters(key) in held}
        targets: object = getattr(adapted(model).peft_config[name], "target_modules", None)
        listed = cast("list[str]", [*targets]) if isinstance(targets, set | list) else []
        lost = [item for item in listed if not has_module(names, item)]
        return sorted([*(own - stored), *lost]), sorted(stored - own - beside)

    def unload(self, model: nn.Module, name: str) -> nn.Module:
        peft_model = adapted(model)
        config = peft_model.peft_config[name]
        if list(peft_model.peft_config) != [name]:
            with calm():
                peft_model.delete_adapter(name)
            _give_back(peft_model.get_base_model(), name)
            return model
        if config.is_adaption_prompt:
            peft_model.base_model.disable_adapter_layers()
        # Prompts live in the wrapper alone.
        base = _bared(peft_model.base_model if config.is_prompt_learning else peft_model.base_model.model)
        _give_back(base, name)
        return base

    def merge(self, model: nn.Module) -> nn.Module:
        if not self.properties.merges:
            raise ModelError(
                f"{self.config_class} cannot be merged: what it trains is no part of the base's weights",
                expected="a method that merges: see plr adapters",
                hint="serve the adapter beside its base (no --merge, mode restore or keep)",
            )
        _untie(cast("PreTrainedModel", adapted(model).get_base_model()))
        try:
            return adapted(model).merge_and_unload(safe_merge=True)
        except (NotImplementedError, ValueError, RuntimeError) as error:  # no merge in PEFT, or not into these layers
            if out_of_memory(error):
                raise
            raise ModelError(
                f"{self.config_class} cannot be merged into {type(adapted(model).get_base_model()).__name__}: {_first_line(error)}",
                hint="serve the adapter beside its base (no --merge, mode restore or keep)",
            ) from error

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        return {n: b for n, b in model.named_buffers() if any(part in n.split(".") for part in self.state)}

    def updated_parameters(self, model: nn.Module) -> int:
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not self.properties.merges:
            return 0
        total = 0
        for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
            for name in layer.active_adapters:
                if self.updates is not None:
                    held = getattr(layer, self.updates)
                    total += held[name].numel() if name in held else 0
                elif _acts(layer, name):
                    total += _weights_of(layer.get_base_layer())
        return total

    def _check(self, model: nn.Module, kind: Kind) -> None:
        if kind not in self.properties.kinds:
            raise ModelError(
                f"{self.config_class} is not for {kind}", expected=f"a task of {', '.join(self.properties.kinds)}"
            )
        if not self.properties.quantized and is_quantized(model):
            raise ModelError(
                f"{self.config_class} does not train on a quantized base",
                expected="a base at 16 bits",
                hint="train with --bits 16, or choose another method: see plr adapters",
            )

    def known_keys(self) -> set[str]:
        """List the keys of the configuration that the installed PEFT knows."""
        return {field.name for field in fields(self._config_class())}

    def _config_class(self) -> type[PeftConfig]:
        return getattr(importlib.import_module(self.module), self.config_class)


NO_NEWS = (
    "fan_in_fan_out is set to",  # PEFT puts it right by itself
    "Failed to load the CUDA extension",  # BOFT then computes the same in torch
    "Setting boft_n_butterfly_factor to 1",  # to 1, which it is
    "Unsupported layer type",  # layer norms, which PEFT's LN tuning was made for
    "The following rank_pattern keys did not match",  # AdaLoRA names tensors where LoRA names modules
    r"Adapter '.*': \d+ LoRA tensor",  # AdaLoRA gave up all ranks of a layer
    "Adapter .* was active which is now deleted",
)
"""Warnings of PEFT that nobody can act on."""


@contextmanager
def calm() -> Iterator[None]:
    """Silence those warnings of PEFT's that say nothing; all others pass."""
    with warnings.catch_warnings():
        for message in NO_NEWS:
            warnings.filterwarnings("ignore", message=message)
        yield


def is_quantized(model: nn.Module) -> bool:
    """Tell whether any layer of `model` holds fewer than 16 bits."""
    return any(is_quantized_layer(module) for module in model.modules())


def name_base(folder: Path, base: str, revision: str | None) -> None:
    """Write into a saved adapter which base it goes on."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base
    config["revision"] = revision
    for key in ("target_modules", "feedforward_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()  # PEFT keeps a set: its order would differ from run to run
    write_atomic(file, json.dumps(config, indent=2, sort_keys=True, allow_nan=False))


def _layer_is_foreign(error: Exception) -> bool:
    """Tell whether a method of PEFT says that it cannot be put on a kind of layer.

    Some raise TypeError or NotImplementedError for it, others a ValueError as for anything else: of those the words alone tell.
    """
    return not isinstance(error, ValueError) or "Target module" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _acts(layer: BaseTunerLayer, name: str) -> bool:
    return any(name in getattr(layer, part, ()) for part in layer.adapter_layer_names)


def _weights_of(layer: nn.Module) -> int:
    """Count the weights of a layer; those of a k-bit one by its shape."""
    shape = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return shape[0] * shape[1] if None not in shape else sum(p.numel() for p in layer.parameters())  # type: ignore[operator]


def _untie(base: PreTrainedModel) -> None:
    """Give the output layer a weight of its own, where it shares the embedding's and one of the two carries an adapter.

    Merged into one weight, what was trained on one of them would act on both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    both = (base.get_input_embeddings(), base.get_output_embeddings())
    inner = [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in both]
    weights = [getattr(module, "weight", None) for module in inner]
    if weights[0] is None or weights[0] is not weights[1] or not any(isinstance(m, BaseTunerLayer) for m in both):
        return
    cast("nn.Linear", inner[1]).weight = nn.Parameter(weights[0].detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


WRAPPERS = (".base_layer.", ".original_module.", ".modules_to_save.default.", ".modules_to_save.")
"""Names of PEFT's layers around a layer of the base, inside the name of a tensor."""
OVERWRITTEN = "_plr_overwritten"
"""Attribute of a base: its own tensors in whose place each adapter has written (biases, with `bias: all`), by its name."""


def _new_modules(model: nn.Module, config_class: type[PeftConfig]) -> list[str]:
    """List the parts of a head with a random start that PEFT does not save by itself, as it does `classifier` and `score`."""
    if "modules_to_save" not in {field.name for field in fields(config_class)}:
        return []
    names: list[str] = getattr(model, NEW_MODULES, [])
    return [name for name in names if not name.endswith(("classifier", "score"))]


def _embeddings(model: nn.Module) -> tuple[str, ...]:
    """Return the ends of the names of the weights of the embedding and the output layer."""
    base = cast("PreTrainedModel", adapted(model).get_base_model())
    both = (base.get_input_embeddings(), base.get_output_embeddings())
    return tuple(f"{name.rpartition('.')[2]}.weight" for name, module in base.named_modules() if module in both)


def _names_in(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as stored:
        return {*stored.keys()}


def _named_by(folder: Path, base: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Copy the base's own tensors that the file of an adapter names: (tensor, its values)."""
    names = {_below_adapters(key.removeprefix("base_model.model.")) for key in _names_in(folder)}
    own = base.named_parameters(remove_duplicate=False)
    return [(tensor, tensor.detach().clone()) for name, tensor in own if _below_adapters(name) in names]


def _below_adapters(name: str) -> str:
    """Return the name that a tensor of the base has without the layers of adapters around it."""
    for layer in WRAPPERS:
        name = name.replace(layer, ".")
    return name


def _keep_overwritten(base: nn.Module, adapter: str, originals: list[tuple[Tensor, Tensor]]) -> None:
    import torch

    kept: dict[str, list[tuple[Tensor, Tensor]]] = vars(base).setdefault(OVERWRITTEN, {})
    kept[adapter] = [(tensor, values) for tensor, values in originals if not torch.equal(tensor, values)]


def _give_back(base: nn.Module, adapter: str) -> None:
    """Write the values of the base back where `adapter` has written its own."""
    kept: dict[str, list[tuple[Tensor, Tensor]]] = vars(base).get(OVERWRITTEN, {})
    for tensor, values in kept.pop(adapter, []):
        tensor.data.copy_(values)
    if not kept:
        vars(base).pop(OVERWRITTEN, None)


def _bared(model: nn.Module) -> nn.Module:
    """Take the adapter's layers off `model`: each makes room for the layer it was put on, a trained head for the untrained one.

    PEFT's own `unload` assigns the base layer's weight to the base layer, which a k-bit layer refuses.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    done: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) or name.startswith(done):
            continue
        parent, _, last = name.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper):
            below = module.original_module  # PEFT's unload leaves the trained one
        elif isinstance(module, AuxiliaryTrainingWrapper):
            below = module.unload_and_optionally_merge_module(merge=False, safe_merge=False, adapter_names=None)
        else:
            below = module.get_base_layer()
        setattr(model.get_submodule(parent), last, below)
        done = (*done, f"{name}.")
    vars(model).pop("peft_config", None)
    return model
