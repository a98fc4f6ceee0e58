"""LoRA initialisations that move a part of the base into the adapter, converted back so that they restore to any base.

1. PiSSA and OLoRA start at `B_0 A_0` instead of zero and take `s B_0 A_0` out of the base: training sees
   `W - s B_0 A_0 + s B A`. Such an adapter is right on its own changed base and wrong on every other.
2. The update of the source is `s (B A - B_0 A_0)`: a LoRA of rank 2r with `A' = [A; A_0]` and `B' = [B, -B_0]`. This is
   what is saved, with `init_lora_weights: true`, so nothing is taken out of a base when it is loaded. With DoRA the
   direction is that of the same sum, so the magnitudes stay.
3. Every layer's scaling s is kept: `lora_alpha' = 2 r s` with rsLoRA off, layer by layer where ranks or alphas differ.
4. Other such inits are refused. LoftQ quantizes the base itself, in its own format; CorDA, EVA, LoRA-GA and EoRA need data
   that this run does not hand them. On a k-bit base the changed weight would have to be quantized anew.

What it gives up: twice the rank on disk and while serving. On a half-precision base PEFT rounds the residual `W - s B_0 A_0` and
the pair to that precision; this rounding is in what was trained and not in what is saved (`base_dtype` in the record says so).
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from plr.adapters.base import Config, Settings
from plr.adapters.typed import LoraModule, lora_config, lora_layers
from plr.core.files import write_atomic
from plr.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn

__all__ = ["CONVERSION_FILE", "absorbs", "converted", "initial", "refuse", "save_converted"]

CONVERSION_FILE = "conversion.json"
CONVERTS = ("pissa", "olora")
NEEDS_DATA = ("corda", "eva", "lora_ga", "eora")
QUANTIZES = ("loftq",)


def absorbs(config: Config) -> bool:
    """Tell whether LoRA with `config` changes the base when it is attached, and is converted when it is saved.

    >>> absorbs({"init_lora_weights": "pissa_niter_16"}), absorbs({"init_lora_weights": True}), absorbs({})
    (True, False, False)
    """
    return _init(config).startswith(CONVERTS)


def refuse(config: Config, quantized: bool) -> None:
    """Refuse an initialisation that plr does not make, or not on a quantized base.

    Raises:
        ConfigError: an initialisation that needs data, or quantizes the base itself.
        ModelError: one that changes the base, on a base of k bits (`quantized`).
    """
    init = _init(config)
    if init.startswith(QUANTIZES):
        raise ConfigError(
            f"init_lora_weights is {init!r}, which quantizes the base in a format of its own",
            expected="an initialisation that leaves the base as it is, or pissa, olora on a 16-bit base",
            hint="set init_lora_weights: true; the base is quantized by its own step (--bits, --method)",
        )
    if init.startswith(NEEDS_DATA):
        raise ConfigError(
            f"init_lora_weights is {init!r}, which is computed from data before training",
            expected="an initialisation from the weights alone: true, gaussian, orthogonal, pissa, pissa_niter_16, olora",
            hint="set init_lora_weights: true, or pissa on a 16-bit base",
        )
    if quantized and init.startswith(CONVERTS):
        raise ModelError(
            f"init_lora_weights is {init!r}, which takes a part out of the base's weights, and the base is quantized",
            expected="a base at 16 bits: the changed weight of a k-bit layer would have to be quantized anew",
            hint="train with --bits 16 (what is saved restores to every width), or set init_lora_weights: true",
        )


def initial(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return `A_0` and `B_0` of each layer under the keys of a saved adapter, on the CPU; call it right after attaching."""
    return {
        f"{key}.{part}.weight": getattr(layer, part)[name].weight.detach().to("cpu", copy=True)
        for key, layer in _layers(model, name).items()
        for part in ("lora_A", "lora_B")
    }


def converted(
    model: nn.Module, initial: Mapping[str, Tensor], name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return a LoRA configuration and tensors (under the keys of a saved adapter) that do on the source what `model` does.

    `initial` is what `initial` gave. Trained heads and DoRA's magnitudes are taken over.
    """
    import torch
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: tensor.detach().cpu() for key, tensor in state.items()}
    layers = _layers(model, name)
    for key in layers:
        a, b = f"{key}.lora_A.weight", f"{key}.lora_B.weight"
        tensors[a] = torch.cat([tensors[a], initial[a].to(tensors[a].dtype)])
        tensors[b] = torch.cat([tensors[b], -initial[b].to(tensors[b].dtype)], dim=1)
    config = copy.copy(lora_config(model, name))
    config.init_lora_weights, config.use_rslora, config.inference_mode = True, False, True
    scales = {key: (2 * layer.r[name], 2 * layer.r[name] * layer.scaling[name]) for key, layer in layers.items()}
    (config.r, alpha), _ = Counter(scales.values()).most_common(1)[0]
    config.lora_alpha = cast(int, _whole(alpha))  # PEFT declares an int and takes any number
    names = {key: key.removeprefix("base_model.model.") for key in scales}
    config.rank_pattern = {names[key]: rank for key, (rank, _) in scales.items() if rank != config.r}
    config.alpha_pattern = {names[key]: _whole(own) for key, (_, own) in scales.items() if own != alpha}
    return config, {key: tensor.contiguous() for key, tensor in tensors.items()}


def save_converted(model: nn.Module, initial: Mapping[str, Tensor], folder: Path, name: str = "default") -> Settings:
    """Write the converted adapter in PEFT's format, and what was done as `conversion.json`, which is also returned."""
    from safetensors.torch import save_file

    own = lora_config(model, name)
    config, tensors = converted(model, initial, name)
    layers = _layers(model, name)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    record = {
        "from": {
            "init_lora_weights": own.init_lora_weights,
            "r": own.r,
            "lora_alpha": own.lora_alpha,
            "use_rslora": own.use_rslora,
        },
        "to": {"init_lora_weights": True, "r": config.r, "lora_alpha": config.lora_alpha, "use_rslora": False},
        "update": "s (B A - B_0 A_0) as one LoRA: A' = [A; A_0], B' = [B, -B_0]",
        "layers": len(layers),
        "base_dtype": str(next(iter(layers.values())).get_base_layer().weight.dtype).removeprefix("torch."),
        "largest_norm_of_initial_update": max(
            float((layer.scaling[name] * _product(initial, key)).norm()) for key, layer in layers.items()
        ),
    }
    write_atomic(folder / CONVERSION_FILE, json.dumps(record, indent=2, sort_keys=True, allow_nan=False))
    return record


def _product(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    return tensors[f"{key}.lora_B.weight"].float() @ tensors[f"{key}.lora_A.weight"].float()


def _layers(model: nn.Module, name: str) -> dict[str, LoraModule]:
    """Return the LoRA layers of `model` by the names of a saved adapter."""
    return {key: layer for key, layer in lora_layers(model).items() if name in layer.lora_A}


def _init(config: Config) -> str:
    return str(config.get("init_lora_weights", True)).lower()


def _whole(number: float) -> float:
    """Return an int where it is one: PEFT and those who read its files expect it for lora_alpha."""
    return int(number) if float(number).is_integer() else number
