"""Named recipes: the settings below those of a study or a command.

`paper`: the settings of the PLR report, plain GPTQ. `best`: the same with the options of plr's GPTQ that lower
perplexity at low bits, in the same format and size. `tiny`: for the embedded base, small enough for two cores.
"""

from __future__ import annotations

from plr.core.fingerprint import JsonObject
from plr.errors import UnknownNameError
from plr.registry import did_you_mean

__all__ = ["PRESETS", "preset", "preset_for"]

_PAPER: JsonObject = {
    "quantize": {"method": "gptq", "group_size": 128, "sym": True, "samples": 500, "max_length": 512},
    "adapters": [{"method": "lora", "config": {"r": 16, "lora_alpha": 16}}],
    "train": {"learning_rate": 2e-4, "batch_size": 32, "epochs": 10},
}
_BEST = {
    "sym": False,
    "act_group_aware": True,
    "grid": "hessian",
    "refine_passes": 2,
    "input_correction": 0.5,
    "damp_percent": 0.05,
}
PRESETS: dict[str, JsonObject] = {
    "paper": _PAPER,
    "best": _PAPER | {"quantize": _PAPER["quantize"] | _BEST},
    "tiny": {
        "quantize": {"method": "gptq", "group_size": -1, "sym": True, "samples": 128, "max_length": 128},
        "adapters": [{"method": "lora", "config": {"r": 16, "lora_alpha": 16}}],
        "train": {
            "learning_rate": 6e-3,
            "batch_size": 16,
            "epochs": 1,
            "train_limit": 2400,
            "validation_limit": 100,
            "evaluations_per_epoch": 2,
            "scheduler": "linear",
            "warmup_fraction": 0.05,
            "max_length": 160,
        },
        "evaluate": {"limit": 300},
        "runtime": {"micro_batch": 32, "slots": 128},
    },
}


def preset(name: str) -> JsonObject:
    """Look up the settings called `name`.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError(
            f"unknown preset {name!r}", expected="one of " + ", ".join(PRESETS), hint=did_you_mean(name, PRESETS)
        )
    return PRESETS[name]


def preset_for(model: str) -> str:
    """Choose the preset of a command that names none: `tiny` for the embedded base, `paper` for any other."""
    return "tiny" if model.startswith("embedded:") else "paper"
