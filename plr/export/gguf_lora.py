"""A LoRA as a GGUF file, which llama.cpp puts on a GGUF of its base (`llama-cli -m BASE.gguf --lora adapter.gguf`).

llama.cpp adds `alpha / r * B A x` to the output of a layer, with one alpha a file and r of each tensor; what an adapter's own scale
differs from that by (rank and alpha patterns, rsLoRA) is multiplied into B. In Llama's family GGUF has the rows of q and k in
another order (the halves of a rotated pair beside each other), and so B has.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plr.adapters.peft import SET_BY_PLR, calm
from plr.bases.given_adapters import CONFIG, WEIGHTS
from plr.bases.look import header_of
from plr.bases.resolve import model_path
from plr.core.fingerprint import JsonObject
from plr.core.quiet import import_gptqmodel
from plr.core.specs import Restore
from plr.errors import MissingDependencyError, ModelError
from plr.export.work import Work
from plr.restoration.attach import check_init, check_provenance
from plr.restoration.served import as_served, served_adapter

__all__ = ["FILE", "write_from_store", "write_gguf_lora"]

FILE = "adapter.gguf"
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "phi3": ("phi3", False),
}
"""`model_type` -> name in GGUF, and whether rows of q and k are in another order there."""
A, B = ".lora_A.weight", ".lora_B.weight"


def write_from_store(work: Work) -> JsonObject:
    """Write the adapter of an export as a GGUF file.

    Raises:
        ProvenanceError: it holds a part of its own base, or the base comes from another model.
        ModelError: see `write_gguf_lora`.
    """
    step = work.target
    assert isinstance(step, Restore)
    folder = served_adapter(step, work.store, offline=work.runtime.offline)
    step = as_served(step, work.store)
    check_provenance(step.adapter, step.base, allow_mismatch=step.allow_mismatch)
    check_init(step, folder)
    if step.base.model.kind == "gguf":
        raise ModelError(
            f"the configuration of {step.base.model.title} lies in its .gguf alone",
            expected="a source with config.json",
            hint="name the model that it was made from: --model MODEL",
        )
    source = model_path(step.base.model, offline=work.runtime.offline)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return write_gguf_lora(folder, config, work.folder / FILE)


def write_gguf_lora(adapter: Path, config: JsonObject, out: Path) -> JsonObject:
    """Write the LoRA in `adapter` (PEFT's format) to `out`, in float32; `config` is the config.json of its base.

    Raises:
        ModelError: no plain LoRA on linear layers, or a base whose names in GGUF are not known here.
        MissingDependencyError: the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError("gguf is not installed", hint="pip install gguf") from error
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8")) if (adapter / CONFIG).is_file() else {}
    check_plain(settings, adapter)
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"the names of {kind} in GGUF are not known here",
            expected=", ".join(ARCHITECTURES),
            hint="use --format merged, and llama.cpp's own converter",
        )
    name, permuted = ARCHITECTURES[kind]
    layers = int(config["num_hidden_layers"])
    number = next(one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(number, layers)
    pairs = _pairs(adapter)
    scales = _scales(settings, config)
    if scales.keys() != pairs.keys():
        lost = sorted(scales.keys() ^ pairs.keys())
        raise ModelError(
            f"the adapter in {adapter} does not fit its base: {len(lost)} layers have no place, {lost[0]} the first",
            expected="the same module names as in training",
        )
    alpha = float(settings["lora_alpha"])
    writer = gguf.GGUFWriter(out, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, (a, b) in sorted(pairs.items()):
        target = names.get_name(module)
        if target is None or (target == "output" and config.get("tie_word_embeddings")):
            writer.close()
            out.unlink(missing_ok=True)
            raise ModelError(
                f"{module} has no place of its own in a GGUF of this base",
                hint="use --format merged, or train other layers",
            )
        if permuted and (heads := _heads(module, config)) is not None:
            b = _permuted(b, heads)
        b = b * (scales[module] * a.shape[0] / alpha)
        writer.add_tensor(f"{target}.weight.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{target}.weight.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"architecture": name, "lora_alpha": alpha, "layers": len(pairs)}


def check_plain(settings: JsonObject, adapter: Path) -> None:
    """Refuse what a GGUF file of a LoRA cannot hold.

    Raises:
        ModelError: another method, or a LoRA that changes more than the products of its linear layers.
    """
    if str(settings.get("peft_type")).upper() != "LORA":
        raise ModelError(
            f"the adapter in {adapter} is of the type {settings.get('peft_type')}",
            expected="LoRA",
            hint="use --format merged",
        )
    more = (
        "use_dora",
        "modules_to_save",
        "trainable_token_indices",
        "lora_bias",
        "alora_invocation_tokens",
        "target_parameters",
    )
    for key in (*more, "layer_replication"):
        if settings.get(key):
            raise ModelError(
                f"the adapter in {adapter} has {key}, for which a GGUF file of a LoRA has no place",
                hint="use --format merged",
            )
    if settings.get("bias", "none") != "none":
        raise ModelError(f"the adapter in {adapter} trains biases", hint="use --format merged")
    other = [name for name in header_of(adapter / WEIGHTS, str(adapter)) if not name.endswith((A, B))]
    if other:
        raise ModelError(
            f"the adapter in {adapter} holds {other[0]}", expected="lora_A and lora_B alone", hint="use --format merged"
        )


def _pairs(adapter: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the adapter: module -> (A `[r, in]`, B `[out, r]`) in float32.

    Raises:
        ModelError: one without the other, or numbers that are not finite.
    """
    from safetensors.torch import load_file

    tensors = {key: value.to(torch.float32) for key, value in load_file(adapter / WEIGHTS).items()}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{key} of {adapter} holds numbers that are not finite", hint="train it again")
        stem = key.removesuffix(A).removesuffix(B)
        if stem + A not in tensors or stem + B not in tensors:
            raise ModelError(f"{adapter} has {key} without its other half", hint="save the adapter again")
        pairs[stem.removeprefix("base_model.model.")] = (tensors[stem + A], tensors[stem + B])
    return pairs


def _scales(settings: JsonObject, config: JsonObject) -> dict[str, float]:
    """Ask PEFT for the scale of every layer, on a base without weights: patterns are its own to read."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    import_gptqmodel()  # which PEFT does, aloud
    names = {field.name for field in fields(LoraConfig)} - set(SET_BY_PLR)
    known_settings: dict[str, Any] = {key: value for key, value in settings.items() if key in names}
    known = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    base_config: Any = AutoConfig.for_model(str(config["model_type"]), **known)  # pyright: ignore[reportUnknownMemberType]
    with torch.device("meta"), calm():
        model: Any = AutoModelForCausalLM.from_config(base_config)  # pyright: ignore[reportUnknownMemberType]
        make: Any = LoraConfig
        lora = make(**known_settings | {"init_lora_weights": False})
        wrapped: Any = get_peft_model(model, lora)
    found = {}
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            [scale] = [*module.scaling.values()]
            found[name] = float(scale)
    return found


def _heads(module: str, config: JsonObject) -> int | None:
    """Return the heads of a q or k projection; None of another layer."""
    found = re.search(r"\.(q|k)_proj$", module)
    if found is None:
        return None
    heads = int(config["num_attention_heads"])
    return heads if found[1] == "q" else int(config.get("num_key_value_heads") or heads)


def _permuted(b: Tensor, heads: int) -> Tensor:
    """Put the rows of B `[out, r]` into GGUF's order: of each head, row i of the first half before row i of the second."""
    rows, rank = b.shape
    if rows % (2 * heads):
        raise ModelError(f"{rows} rows of {heads} heads", expected="an even number of rows a head")
    size = math.prod((heads, 2))
    return b.reshape(heads, 2, rows // size, rank).swapaxes(1, 2).reshape(rows, rank)
