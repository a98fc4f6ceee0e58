"""One entry for the methods of PEFT.

A method is its PEFT config class, the keys plr spells out by default and nothing else. Adapters are saved in PEFT's own
format; ``base_model_name_or_path`` names the source model (never a local folder of k-bit weights), so that the adapter opens
with ``PeftModel.from_pretrained`` on any machine. Which base it was trained on stands in the manifest beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from plr.adapters.base import AdapterMethod, adapters
from plr.errors import ConfigError, ModelError
from plr.quiet import import_gptqmodel
from plr.registry import did_you_mean
from plr.store import write_atomic

__all__ = ["PeftMethod"]

ACTIVE = "default"


class PeftMethod(AdapterMethod):
    """A method of PEFT, e.g. ``PeftMethod("LoraConfig", {"r": 16, ...})``."""

    def __init__(self, config_class: str, defaults: Mapping[str, Any]) -> None:
        self.config_class = config_class
        self.defaults = dict(defaults)

    def resolve(self, config: Mapping[str, Any]) -> dict[str, Any]:
        for key in config.keys() - self.defaults.keys():
            known = {field.name for field in fields(self._config_class())} - _SET_BY_PLR
            if key not in known:
                raise ConfigError(
                    f"{self.config_class} has no key {key!r}",
                    expected="a key of PEFT's config class: " + ", ".join(sorted(known)),
                    hint=did_you_mean(key, known),
                )
        return {**self.defaults, **config}

    def attach(self, model: Any, config: Mapping[str, Any], *, seed: int) -> Any:
        import torch
        from peft import get_peft_model

        import_gptqmodel()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                return get_peft_model(model, self._config_class()(task_type="CAUSAL_LM", **config), adapter_name=ACTIVE)
            except (ValueError, TypeError) as error:
                raise ModelError(
                    f"{self.config_class} cannot be attached to {type(model).__name__}: {error}",
                    hint="give target_modules that this model has: --set adapters.0.config.target_modules='[...]'",
                ) from error

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True, selected_adapters=[ACTIVE])
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)

    def load(self, model: Any, folder: Path, name: str) -> Any:
        from peft import PeftModel

        import_gptqmodel()
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
        except (
            TypeError
        ) as error:  # trained on k-bit layers, which are nn.Linear; the 16-bit base may have Conv1D (GPT-2)
            raise ModelError(
                f"{self.config_class} cannot be put on {type(model).__name__}: {str(error).splitlines()[0]}",
                expected="layers that PEFT's method knows (on Conv1D: lora, dora, ia3, adalora, vera, fourierft)",
                hint="serve it on a k-bit base, or train a method that PEFT also puts on this base",
            ) from error
        model.set_adapter(name)
        return model.eval()

    def unload(self, model: Any, name: str) -> Any:
        if list(model.peft_config) == [name]:
            return model.unload()
        model.delete_adapter(name)
        return model

    def merge(self, model: Any) -> Any:
        return model.merge_and_unload(safe_merge=True)

    def _config_class(self) -> Any:
        import peft

        return getattr(peft, self.config_class)


_SET_BY_PLR = {
    "task_type",
    "peft_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
}


def name_base(folder: Path, base: str, revision: str | None) -> None:
    """Write into a saved adapter which base it goes on."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base
    config["revision"] = revision
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()  # PEFT keeps a set: its order would differ from run to run
    write_atomic(file, json.dumps(config, indent=2, sort_keys=True))


adapters.register("lora")(
    PeftMethod(
        "LoraConfig",
        {
            "r": 16,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        },
    )
)
