"""A GPTQ checkpoint in the layout of compressed-tensors (`pack-quantized`), which vLLM serves at 2, 3, 4 and 8 bits.

A weight is `scale * (code - zero)` in both; `plr.gptq.foreign` describes the layout, and reads it back. Words of codes are the
same, transposed; zero points are packed along the outputs, and left out where the grid is symmetric.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from plr.bases.look import tensors_of
from plr.core.fingerprint import JsonObject
from plr.errors import ModelError
from plr.export.files import TOKENIZER, copy
from plr.export.gptq import add_tokenizer, checkpoint_folder
from plr.export.work import Work
from plr.gptq import packing
from plr.gptq.linear import BUFFERS
from plr.gptq.typed import open_tensors

__all__ = ["write_compressed", "write_from_store"]


def write_from_store(work: Work) -> JsonObject:
    """Write the GPTQ checkpoint of an export in this layout, with its tokenizer.

    Raises:
        PlrError, IntegrityError: see `Store.require`.
        ModelError: see `write_compressed`.
    """
    record = write_compressed(checkpoint_folder(work), work.folder)
    add_tokenizer(work)
    return record


def write_compressed(folder: Path, out: Path) -> JsonObject:
    """Write the GPTQ checkpoint in `folder` to `out`, file by file; return bits, group size and symmetry.

    Raises:
        ModelError: no GPTQ checkpoint, layers of several group sizes, or layers that compressed-tensors has no place for.
    """
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    setting = config.get("quantization_config") or {}
    if setting.get("quant_method") != "gptq":
        raise ModelError(f"{folder} has no quantization_config of gptq", expected="a GPTQ checkpoint")
    bits, layout = int(setting["bits"]), setting.get("checkpoint_format") or setting.get("format") or packing.V1
    stored = tensors_of(folder, folder.name)
    layers = sorted(key.removesuffix(".qweight") for key in stored if key.endswith(".qweight"))
    facts = _facts(stored, layers, bits, layout)
    config["quantization_config"] = _setting(facts, bits, _dense_linears(folder, layers))
    total = 0
    names: dict[str, str] = {}
    for file in sorted({*stored.values()}):
        tensors = dict(_relaid(file, stored, layers, bits, layout, facts))
        if not tensors:
            continue
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len({*names.values()}) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": names}
        text = json.dumps(index, indent=2, sort_keys=True)
        (out / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy(folder, out, ("generation_config.json", *TOKENIZER))
    return {"bits": bits, "group_size": facts["group_size"], "symmetric": facts["symmetric"]}


def _facts(stored: dict[str, Path], layers: list[str], bits: int, layout: str) -> dict[str, Any]:
    """Find what the settings have to say of all layers: symmetry and group size.

    Raises:
        ModelError: a layer without one of its tensors, layers that differ in their groups, or columns in another order.
    """
    half, symmetric, in_order = 2 ** (bits - 1), True, True
    sizes: set[int] = set()
    for name in layers:
        scales, order = (_tensor(stored, f"{name}.{key}") for key in ("scales", "g_idx"))
        groups, columns = scales.shape[0], order.shape[0]
        sizes.add(-1 if groups == 1 else columns // groups)
        zeros = packing.unpack_zeros(_tensor(stored, f"{name}.qzeros"), bits, scales.shape[1], layout)
        symmetric = symmetric and bool((zeros == half).all())
        in_order = in_order and torch.equal(order.long(), torch.arange(columns) // (columns // groups))
    if len(sizes) != 1:
        raise ModelError(f"layers have groups of {sorted(sizes)} columns", expected="one group size for all layers")
    if not in_order:
        raise ModelError(
            "the columns of the checkpoint are in order of activation (desc_act), which compressed-tensors does not read any more",
            expected="columns as they stand",
            hint="use --format gptq, or quantize with act_group_aware in the place of desc_act",
        )
    return {"symmetric": symmetric, "group_size": sizes.pop()}


def _tensor(stored: dict[str, Path], key: str) -> Tensor:
    if key not in stored:
        raise ModelError(f"the checkpoint lacks {key}", hint="make it again")
    with open_tensors(stored[key]) as opened:
        return opened.get_tensor(key)


def _dense_linears(folder: Path, layers: list[str]) -> list[str]:
    """List the linear layers that are not quantized; the loaders want them named.

    Raises:
        ModelError: a quantized layer that is no `nn.Linear` (the Conv1D of GPT-2).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # pyright: ignore[reportUnknownMemberType]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = cast("nn.Module", AutoModelForCausalLM.from_config(config))  # pyright: ignore[reportUnknownMemberType]
    modules = dict(model.named_modules())
    other = [name for name in layers if not isinstance(modules.get(name), nn.Linear)]
    if other:
        raise ModelError(
            f"{other[0]} is {type(modules.get(other[0])).__name__}: compressed-tensors has a place for nn.Linear alone",
            hint="use --format gptq",
        )
    return sorted({name for name, module in modules.items() if isinstance(module, nn.Linear)} - {*layers})


def _setting(facts: dict[str, Any], bits: int, ignored: list[str]) -> JsonObject:
    grouped = facts["group_size"] != -1
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": facts["symmetric"],
        "strategy": "group" if grouped else "channel",
        "group_size": facts["group_size"] if grouped else None,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _relaid(
    file: Path, stored: dict[str, Path], layers: list[str], bits: int, layout: str, facts: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file in their new layout; a layer is written where its codes lie."""
    known = {*layers}
    with open_tensors(file) as opened:
        for key in sorted(opened.keys()):
            name, _, kind = key.rpartition(".")
            if name not in known or kind not in BUFFERS:
                yield key, opened.get_tensor(key)
            elif kind == "qweight":
                yield from _layer(name, stored, bits, layout, facts)


def _layer(
    name: str, stored: dict[str, Path], bits: int, layout: str, facts: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    words, scales, order = (_tensor(stored, f"{name}.{key}") for key in ("qweight", "scales", "g_idx"))
    out_features = scales.shape[1]
    yield f"{name}.weight_packed", words.t().contiguous()
    yield f"{name}.weight_scale", scales.t().contiguous()
    yield f"{name}.weight_shape", torch.tensor([out_features, order.shape[0]], dtype=torch.int64)
    if not facts["symmetric"]:
        zeros = packing.unpack_zeros(_tensor(stored, f"{name}.qzeros"), bits, out_features, layout)
        yield f"{name}.weight_zero_point", packing.pack_zeros(zeros, bits, packing.V2).t().contiguous()
