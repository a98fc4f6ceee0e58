"""ReLoRA (Lialin et al., 2023, arXiv:2307.05695): a high-rank update out of low-rank ones, one after another.

The update is `s sum_i B_i A_i` over `restarts + 1` pairs of rank r, of which only the last trains; how a restart is made
stands in `plr.adapters.relora.restarts`. What is saved is an ordinary LoRA adapter of rank `(restarts + 1) r`
with all pairs side by side, so it opens in PEFT, goes on a base of any width, and merges like LoRA.

Where this differs from the paper: it trains an adapter of a given base, so nothing trains at full rank first; and on a base of
k-bit codes, where the paper's merge would have to quantize the weights anew each time, the pairs stay beside the codes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plr.adapters.base import AdapterMethod, Config, Kind, Properties, Settings
from plr.adapters.peft import ACTIVE, PeftMethod
from plr.adapters.targets import ATTENTION
from plr.adapters.typed import lora_config
from plr.core.files import write_atomic
from plr.errors import ConfigError
from plr.registry import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from plr.adapters.relora.restarts import Restarts

__all__ = ["ReLoraMethod"]

DEFAULTS: Settings = {
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "restarts": 3,
    "warmup_fraction": 0.1,
    "reset_share": 0.99,
    "merge_into_base": True,
    "target_modules": list(ATTENTION),
}
WHERE = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
"""Further keys, handed to LoRA as they are."""
OF_LORA = {"bias": "none", "use_rslora": False, "use_dora": False, "init_lora_weights": True}
STATE = "plr_restarts"
"""Attribute of a model that is being trained."""


class ReLoraMethod(AdapterMethod):
    """LoRA with restarts.

    Keys: `r`, `lora_alpha`, `lora_dropout`, `target_modules` as LoRA's; `restarts`: how often;
    `warmup_fraction`: of the steps between two restarts; `reset_share`: of Adam's moments that a restart sets to zero
    (paper: 0.9 to 0.99, or all); `merge_into_base`: add what was learned into dense weights while training (a step then
    costs what LoRA's costs).
    """

    properties = Properties(
        summary="LoRA merged and restarted several times: a sum of low-rank updates, of higher rank",
        family="reparameterization",
        source="Lialin et al. 2023, ReLoRA (arXiv:2307.05695)",
    )

    def __init__(self) -> None:
        self._lora = PeftMethod("LoraConfig", OF_LORA)

    def resolve(self, config: Config) -> Settings:
        known = [*DEFAULTS, *WHERE]
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"relora has no key {key!r}", expected=", ".join(sorted(known)), hint=did_you_mean(key, known)
                )
        whole = {**DEFAULTS, **config}
        for key in ("r", "restarts"):
            if type(whole[key]) is not int or whole[key] < 1:
                raise _wrong(key, whole[key], "a whole number >= 1")
        for key in ("warmup_fraction", "reset_share"):
            if type(whole[key]) not in (int, float) or not 0 <= whole[key] <= 1:
                raise _wrong(key, whole[key], "a number from 0 to 1")
        return whole

    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        """Put a fresh LoRA adapter on `model`, with room for its restarts.

        Raises:
            ConfigError: more restarts than `steps` have room for.
            ModelError: targets that are not there, or are no linear layers.
        """
        if 0 < steps <= config["restarts"]:
            raise ConfigError(
                f"relora's restarts is {config['restarts']}, but there are {steps} optimizer steps",
                expected="at least one step between restarts",
                hint="train longer (train.epochs), or set restarts lower",
            )
        from plr.adapters.relora.restarts import Restarts

        own = {"restarts", "warmup_fraction", "reset_share", "merge_into_base"}
        lora = {**OF_LORA, **{key: value for key, value in config.items() if key not in own}}
        adapted = self._lora.attach(model, lora, seed=seed, kind=kind, steps=steps)
        state = Restarts.begin(
            adapted, name=ACTIVE, restarts=config["restarts"], seed=seed, merge=config["merge_into_base"]
        )
        setattr(adapted, STATE, state)
        return adapted

    def callbacks(self, model: nn.Module, config: Config) -> Sequence[TrainerCallback]:
        from plr.adapters.relora.restarts import Jagged

        knobs = {key: config[key] for key in ("restarts", "warmup_fraction", "reset_share")}
        return [Jagged(getattr(model, STATE), **knobs)]

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        state = _state(model)
        return {} if state is None else state.buffers()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a LoRA adapter of rank `(restarts made + 1) r` in PEFT's format."""
        state = _state(model)
        if state is None:
            self._lora.save(model, folder)
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ACTIVE, save_embedding_layers=False)
        for name, (a, b) in state.sums().items():
            assert f"{name}.lora_A.weight" in tensors, name
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = copy.copy(lora_config(model, ACTIVE))
        pairs = int(state.done) + 1
        config.r, config.lora_alpha, config.inference_mode = config.r * pairs, config.lora_alpha * pairs, True
        config.save_pretrained(str(folder))
        _sort_lists(folder / "adapter_config.json")

    def load(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        return self._lora.load(model, folder, name)

    def unfit(self, model: nn.Module, folder: Path, name: str) -> tuple[list[str], list[str]]:
        return self._lora.unfit(model, folder, name)

    def unload(self, model: nn.Module, name: str) -> nn.Module:
        state = _state(model)
        if state is not None and name == state.name:
            state.end(keep=False)
            delattr(model, STATE)
        return self._lora.unload(model, name)

    def merge(self, model: nn.Module) -> nn.Module:
        state = _state(model)
        if state is not None:
            state.end(keep=True)
            delattr(model, STATE)
        return self._lora.merge(model)

    def updated_parameters(self, model: nn.Module) -> int:
        return self._lora.updated_parameters(model)


def _wrong(key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"relora's {key} is {value!r}", expected=expected, hint=f"set {key}: {DEFAULTS[key]}")


def _state(model: nn.Module) -> Restarts | None:
    return vars(model).get(STATE)


def _sort_lists(file: Path) -> None:
    """Sort the lists of names in a JSON file: PEFT keeps them in sets, whose order differs from run to run."""
    config = json.loads(file.read_text())
    for value in config.values():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value.sort()
    write_atomic(file, json.dumps(config, indent=2, sort_keys=True, allow_nan=False))
