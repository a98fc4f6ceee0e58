"""Look at a source before its weights are used: its files without loading them, then what was loaded.

Nothing is guessed: a tensor that is missing would start at random, one that is left over means another model, and a number that is
not finite spoils every number after it.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from plr.core.fingerprint import JsonObject
from plr.errors import ModelError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "check_group_size",
    "fitting_group_size",
    "header_of",
    "json_object",
    "look_at_files",
    "look_at_model",
    "tensors_of",
]

INDEX = "model.safetensors.index.json"
_MOST_JSON = 64 << 20
"""Bytes of a JSON file or of a header; vocabularies of 256,000 words take 30 MB."""
_OUTER = ("hidden_size", "n_embd", "d_model")
_INNER = ("intermediate_size", "n_inner", "ffn_dim")
_WIDTHS = ("vocab_size", "word_embed_proj_dim", *_OUTER, *_INNER)
"""Keys of config.json that are a side of some tensor."""
_LENGTHS = ("max_position_embeddings", "n_positions")
_LEFT_OUT = (".inv_freq", ".masked_bias", ".attn.bias", ".position_ids")
"""Ends of names of buffers that older checkpoints hold and newer models compute."""


def look_at_files(folder: Path, name: str, *, quantized: bool = False) -> None:
    """Check the files of a checkpoint of transformers, before anything is built of them.

    Raises:
        ModelError: a file that is missing, cut, no regular file or not of its form; weights that are pickled, outside of
            `folder` or (unless `quantized`) quantized; more layers than tensors.
    """
    config = json_object(folder / "config.json", name)
    if (setting := config.get("quantization_config")) and not quantized:
        method = cast("JsonObject", setting).get("quant_method") if isinstance(setting, dict) else setting
        _refuse(
            f"{name} is quantized already ({method}): quantization_config in {folder / 'config.json'}",
            expected="a source model at 16 or 32 bits",
            hint="name the model it was made from",
        )
    if config.get("is_encoder_decoder"):
        _refuse(
            f"{name} is an encoder-decoder ({config.get('model_type')})",
            expected="a decoder (a causal language model), or an encoder for classification",
        )
    for optional in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / optional).exists() or (folder / optional).is_symlink():
            json_object(folder / optional, name)
    if (folder / "tokenizer.json").is_symlink() or (folder / "tokenizer.json").exists():
        _regular(folder / "tokenizer.json", name)  # megabytes, which the tokenizer's own loader reads at once
    tensors: JsonObject = {}
    for file in _weight_files(folder, name):
        tensors |= header_of(file, name)
    if quantized:
        return  # codes are whole numbers, and packed: their sides are none of the model's
    whole = sorted(key for key, entry in tensors.items() if str(entry.get("dtype")).startswith(("I", "U", "BOOL")))
    if taken := [key for key in whole if key.endswith((".weight", ".bias"))]:
        _refuse(f"{taken[0]} of {name} is of whole numbers", expected="weights of floating-point numbers")
    _check_sizes(config, tensors, name)


def _check_sizes(config: JsonObject, tensors: JsonObject, name: str) -> None:
    """Refuse sizes that the tensors cannot have, before memory is asked for them."""
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > max(len(tensors), 1):
        _refuse(f"{name} has {layers} layers by config.json, and {len(tensors)} tensors", expected="a whole checkpoint")
    shapes = [cast("object", entry.get("shape")) for entry in tensors.values()]
    widest = max(
        (side for shape in shapes if isinstance(shape, list) for side in shape if isinstance(side, int)), default=0
    )
    sparse = any("expert" in key for key in config)  # experts have widths of their own, and none may have this one
    for key in (*_WIDTHS, *_LENGTHS):
        if sparse and key in _INNER:
            continue
        value = config.get(key)
        if not isinstance(value, int) or (value > 0 and (value <= widest or key in _LENGTHS)):
            continue
        _refuse(
            f"{key} in config.json of {name} is {value}, of tensors with sides up to {widest}",
            expected="the config.json of these weights",
            hint="fetch it again",
        )


def check_group_size(folder: Path, name: str, group_size: int) -> None:
    """Compare a group size with the inputs of the layers that config.json tells, before anything is loaded.

    Raises:
        UsageError: a width that the group size does not divide.
    """
    for key, width in _widths(folder, name):
        if width % group_size:
            raise UsageError(
                f"group_size {group_size} does not divide {key} {width} of {name}",
                expected="a divisor of the inputs of every layer, or -1 (one group a row)",
                hint=f"give --group-size {fitting_group_size(folder, name, 128)}",
            )


def fitting_group_size(folder: Path, name: str, most: int) -> int:
    """Choose the largest group size up to `most` that divides the widths of config.json; -1 (a whole row) if none does."""
    widths = [width for _, width in _widths(folder, name)]
    sizes = (most, 128, 64, 32, 16, 8)
    return next((size for size in sizes if size <= most and not any(width % size for width in widths)), -1)


def _widths(folder: Path, name: str) -> list[tuple[str, int]]:
    """List the inputs of layers that config.json tells."""
    config = json_object(folder / "config.json", name)
    inner = () if any("expert" in key for key in config) else _INNER
    return [(key, width) for key in (*_OUTER, *inner) if isinstance(width := config.get(key), int)]


def look_at_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, info: Mapping[str, Iterable[Any]] | None
) -> None:
    """Check a source that was loaded: all of its tensors were there, all are finite, and the tokenizer's ids have a row.

    `info` is what `from_pretrained(..., output_loading_info=True)` says; None where the loader refuses by itself.

    Raises:
        ModelError: by the name of the first tensor or token.
    """
    if info is not None:
        _check_names(model, name, info)
    import torch

    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
            if not (math.isfinite(low) and math.isfinite(high)):
                _refuse(
                    f"{key} of {name} holds a number that is not finite (in {str(tensor.dtype).removeprefix('torch.')})",
                    expected="finite weights",
                    hint="fetch it again, or use --dtype bfloat16 or float32 where float16 is too narrow",
                )
    _check_ids(model, tokenizer, name)


def _check_names(model: PreTrainedModel, name: str, info: Mapping[str, Iterable[Any]]) -> None:
    from plr.bases.heads import is_encoder

    missing = sorted(key for key in info["missing_keys"] if ".pooler." not in f".{key}")
    inside = f"{model.base_model_prefix}."
    unexpected = sorted(
        key for key in info["unexpected_keys"] if key.startswith(inside) and not key.endswith(_LEFT_OUT)
    )
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if is_encoder(model.config):  # a masked-language or classification head is no part of the body
        unexpected = [key for key in unexpected if ".pooler." not in f".{key}"]
    for what, keys in (("lacks", missing), ("has other sizes in", mismatched), ("has no place for", unexpected)):
        if keys:
            _refuse(
                f"the checkpoint of {name} {what} {len(keys)} tensors of {type(model).__name__}: {', '.join(keys[:4])}"
                if what != "has no place for"
                else f"{type(model).__name__} {what} {len(keys)} tensors of the checkpoint of {name}: {', '.join(keys[:4])}",
                expected="a whole checkpoint that fits its config.json",
                hint="fetch it again",
            )


def _check_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None:
        return
    vocabulary = tokenizer.get_vocab()
    token, most = max(vocabulary.items(), key=lambda item: item[1])
    if most >= rows:
        beyond = sum(id_ >= rows for id_ in vocabulary.values())
        _refuse(
            f"{beyond} tokens of the tokenizer of {name} have no row in its embedding: {token!r} is {most}, of {rows} rows",
            expected="a tokenizer whose ids are below the number of embeddings",
            hint="resize the embedding (model.resize_token_embeddings) and save the model again, or take its own tokenizer",
        )
    settings = getattr(model, "generation_config", None)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(settings, key, None)
        for id_ in value if isinstance(value, list) else [value]:
            if isinstance(id_, int) and id_ >= rows:
                _refuse(f"{key} of {name} is {id_}, of {rows} tokens", expected="a token of the vocabulary")


def tensors_of(folder: Path, name: str) -> dict[str, Path]:
    """List the tensors of a checkpoint, each with the file that holds it.

    Raises:
        ModelError: see `look_at_files`.
    """
    return {key: file for file in _weight_files(folder, name) for key in header_of(file, name)}


def _weight_files(folder: Path, name: str) -> list[Path]:
    """List the files transformers reads: `model.safetensors`, or what its index names."""
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors").is_symlink():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if not index.exists() and (quantized := sorted(folder.glob("gptq_model*.safetensors"))):
        return quantized  # AutoGPTQ's name
    if not index.exists():
        _refuse(
            f"{name} has no *.safetensors that is read: neither model.safetensors nor {INDEX}",
            expected="weights in safetensors (pickled weights are not read)",
            hint=f"save it again with model.save_pretrained(folder); on the hub, {name}@refs/pr/1 may hold them",
        )
    shards = json_object(index, name).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        _refuse(f"{index} has no weight_map", expected="the name of a file for each tensor")
    files = sorted({str(file) for file in cast("JsonObject", shards).values()})
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            _refuse(f"{index} names {file!r}", expected="a .safetensors file beside it (pickled weights are not read)")
    return [folder / file for file in files]


def header_of(file: Path, name: str) -> JsonObject:
    """Read the tensors of a safetensors file from its header, and compare its size with theirs."""
    size = _regular(file, name)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_JSON):
            _refuse(f"{file} is no safetensors file, or was cut ({size} bytes)", hint="fetch it again")
        content = stream.read(length)
    header = _parsed(content, file)
    tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
    try:
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (TypeError, KeyError, IndexError, ValueError):
        _refuse(f"the header of {file} describes no tensors", expected="a safetensors file", hint="fetch it again")
    if 8 + length + end != size:
        _refuse(f"{file} has {size} bytes, its header says {8 + length + end}", hint="fetch it again")
    return tensors


def json_object(file: Path, name: str) -> JsonObject:
    if _regular(file, name) > _MOST_JSON:
        _refuse(f"{file} has more than {_MOST_JSON >> 20} MB", expected="a file of settings")
    return _parsed(file.read_bytes(), file)


def _parsed(content: bytes, file: Path) -> JsonObject:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        _refuse(f"{file} is no JSON: {str(error)[:200]}", hint="fetch it again")
    if not isinstance(value, dict):
        _refuse(f"{file} holds no JSON object", expected="an object of settings", hint="fetch it again")
    return cast("JsonObject", value)


def _regular(file: Path, name: str) -> int:
    """Return the size of a regular file."""
    try:
        state = file.stat()
    except OSError as error:
        _refuse(
            f"{file} cannot be read: {error.strerror}",
            expected=f"a file of the checkpoint of {name}",
            hint="fetch it again",
        )
    if not stat.S_ISREG(state.st_mode):
        _refuse(f"{file} is no regular file", expected=f"a file of the checkpoint of {name}")
    return state.st_size


def _refuse(message: str, *, expected: str | None = None, hint: str | None = None) -> NoReturn:
    raise ModelError(message, expected=expected, hint=hint)
