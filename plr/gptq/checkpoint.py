"""Read GPTQ checkpoints: folders that open in plr, and in transformers with GPTQModel installed.

    config.json            the model's, with `quantization_config`
    quantize_config.json   the same quantization settings, where GPTQModel looks for them
    generation_config.json
    model.safetensors      qweight, qzeros, scales, g_idx (and bias) of each quantized layer; all other weights dense

The folder may be ours (`plr.gptq.saving`) or another tool's (GPTQModel, AutoGPTQ, optimum; AWQ and compressed-tensors by way
of `plr.gptq.foreign`). Which layers are quantized is read from the tensors, not from a list; every tensor must find its place
and every place its tensor. Scales keep the dtype they were stored in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightRenaming,
    rename_source_key,  # pyright: ignore[reportUnknownVariableType]
)
from transformers.initialization import no_init_weights

from plr.gptq.blocks import bias_of, features, is_linear, replace_module
from plr.gptq.errors import CheckpointError
from plr.gptq.experts import separate
from plr.gptq.foreign import CODES, FOREIGN, bits_of, dense_elements, relaid
from plr.gptq.linear import BUFFERS, PackedLinear
from plr.gptq.packing import V1, V2
from plr.gptq.typed import open_tensors

__all__ = ["dense_bytes", "load_checkpoint"]

EXPERT = re.compile(r"\.experts\.\d+\.(gate|up|down)_proj\.(qweight|weight_packed)$")
"""The codes of one expert, which transformers keeps in one tensor with the others."""


class _Format(NamedTuple):
    """Storage format of a checkpoint's codes."""

    bits: int
    checkpoint_format: str
    method: str = "gptq"


class _Keys(Protocol):
    """Result of `load_state_dict`."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Reader(Protocol):
    """`AutoConfig.from_pretrained`, as far as it is used here."""

    def __call__(self, folder: Path, *, local_files_only: bool) -> PretrainedConfig: ...


def load_checkpoint(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    kernel: str = "dequantized",
) -> PreTrainedModel:
    """Load the model in `folder`, its quantized layers as `PackedLinear`, in eval mode.

    Args:
        folder: a GPTQ checkpoint, ours or another tool's, or one of `plr.gptq.foreign`.
        dtype: of the dense weights and of computation; None: as config.json says (float32 if it does not).
        device: where to put the model.
        kernel: of the packed layers, see `PackedLinear`.

    Raises:
        CheckpointError: not a GPTQ checkpoint, an unknown format or architecture, or tensors missing, left over or of a
            wrong shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    stored = _read_format(folder, config)
    dtype = dtype or _config_dtype(config)
    with no_init_weights(), torch.device("cpu"):  # memory that is never written is never taken
        model = _empty_model(config, folder, dtype)
        if any(EXPERT.search(key) for key in _names(folder)):
            separate(model, compared=False)  # there are no weights yet
    # Some families are stored under other names than transformers uses in memory (GPT-NeoX's embed_out).
    renamings = [m for m in get_model_conversion_mapping(model) if isinstance(m, WeightRenaming)]
    state = {rename_source_key(key, renamings, [])[0]: value for key, value in _read_tensors(folder, device)}

    if stored.method in FOREIGN:
        state = relaid(state, stored.method, stored.bits)
    for name in [key.removesuffix(".qweight") for key in state if key.endswith(".qweight")]:
        _replace_layer(model, name, state, stored, dtype, kernel)
    for key, value in state.items():
        if value.is_floating_point() and not key.endswith(".scales"):
            state[key] = value.to(dtype)
    wanted = {key: value.shape for key, value in model.state_dict(keep_vars=True).items()}
    misfits = [
        f"{key} {tuple(value.shape)} instead of {tuple(wanted[key])}"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key]
    ]
    if misfits:
        raise CheckpointError(
            f"Tensors in {folder} do not fit the model: {_some(misfits)}.",
            "the shapes of config.json.",
            "fetch the checkpoint again.",
        )
    result = cast(_Keys, model.load_state_dict(state, strict=False, assign=True))
    tied = set(cast(dict[str, str], getattr(model, "all_tied_weights_keys", None) or {}))
    missing = [key for key in result.missing_keys if key not in tied]
    unexpected = [key for key in result.unexpected_keys if key not in tied]
    if missing or unexpected:
        raise CheckpointError(
            f"{folder} lacks {_some(missing)}; it has no use for {_some(unexpected)}.",
            f"the tensors of {type(model).__name__}, no more and no less.",
            "fetch the checkpoint again, or check `architectures` in config.json.",
        )
    model.tie_weights()
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
            folder
        )
    cast(nn.Module, model).to(device)
    return model.eval()


def _names(folder: Path) -> Iterator[str]:
    for path in _weight_files(folder):
        with open_tensors(path) as file:
            yield from file.keys()


def dense_bytes(folder: str | Path, itemsize: int = 4) -> int:
    """Count the bytes that the quantized layers of `folder` take when dequantized, at `itemsize` bytes a weight.

    Reads the headers of the files, no tensor.

    Raises:
        CheckpointError: no weights, or shards that are missing.
    """
    total = 0
    folder = Path(folder)
    stored = _read_format(folder, _read_config(folder))
    for path in _weight_files(folder):
        with open_tensors(path) as file:
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                if stored.method in FOREIGN:
                    shape = file.get_slice(key).get_shape() if key.endswith(CODES) else []
                    total += dense_elements(key, shape, stored.method, stored.bits) * itemsize if shape else 0
                elif key.endswith(".g_idx"):
                    out_features = file.get_slice(f"{key.removesuffix('.g_idx')}.qweight").get_shape()[1]
                    total += file.get_slice(key).get_shape()[0] * out_features * itemsize
    return total


def _read_config(folder: Path) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json.", "a checkpoint folder.", "check the path.")
    read = cast(_Reader, AutoConfig.from_pretrained)  # pyright: ignore[reportUnknownMemberType]
    return read(folder, local_files_only=True)


def _read_format(folder: Path, config: PretrainedConfig) -> _Format:
    """Read how the codes are stored, and check that it is a way this module reads."""
    own = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if own is None and (folder / "quantize_config.json").is_file():
        own = json.loads((folder / "quantize_config.json").read_text(encoding="utf-8"))
    settings = cast(dict[str, Any], own.to_dict() if own is not None and hasattr(own, "to_dict") else own or {})
    method = settings.get("quant_method", "gptq" if settings else None)
    if method in FOREIGN:
        return _Format(bits_of(settings), V2, method)
    if not settings or method != "gptq":
        raise CheckpointError(
            f"{folder} is quantized by {method}." if settings else f"{folder} has no quantization_config.",
            "a GPTQ checkpoint.",
            "load it with transformers' from_pretrained.",
        )
    checkpoint_format = settings.get("checkpoint_format") or settings.get("format") or V1
    if checkpoint_format not in (V1, V2) or settings.get("pack_dtype", "int32") != "int32":
        raise CheckpointError(
            f"{folder} has checkpoint_format={checkpoint_format!r}, pack_dtype={settings.get('pack_dtype')!r}.",
            "'gptq' or 'gptq_v2' in int32 words.",
            "convert it with GPTQModel.",
        )
    return _Format(bits=int(settings["bits"]), checkpoint_format=checkpoint_format)


def _empty_model(config: PretrainedConfig, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Make the model of `config`, its weights not filled in."""
    make = cast(
        Callable[..., PreTrainedModel],
        _model_class(config, folder)._from_config,  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    )
    return make(config, dtype=dtype)


def _config_dtype(config: PretrainedConfig) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."))
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _model_class(config: PretrainedConfig, folder: Path) -> type[PreTrainedModel]:
    names = cast(Sequence[str], getattr(config, "architectures", None) or ())
    for name in names:
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    raise CheckpointError(
        f"config.json in {folder} names the architectures {list(names)}.",
        "a model class of the installed transformers.",
        "update transformers, or correct `architectures`.",
    )


def _weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that hold the weights; `CheckpointError` unless all are there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
        names = names or sorted(path.name for path in folder.glob("*.safetensors"))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"{folder} lacks {_some(missing) if missing else 'safetensors files'}.",
            "model.safetensors, or all shards of its index.",
            "fetch the checkpoint again (pickled .bin files are not read).",
        )
    return [folder / name for name in names]


def _read_tensors(folder: Path, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    for path in _weight_files(folder):
        with open_tensors(path, device) as file:
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                yield key, file.get_tensor(key)


def _replace_layer(
    model: nn.Module,
    name: str,
    state: Mapping[str, Tensor],
    stored: _Format,
    dtype: torch.dtype,
    kernel: str,
) -> None:
    """Put an empty `PackedLinear` of the stored shapes where the model has the dense layer `name`."""
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        linear = None
    if not is_linear(linear):
        in_model = "missing" if linear is None else type(linear).__name__
        raise CheckpointError(
            f"The checkpoint quantizes {name}, which is {in_model} in the model.",
            "an nn.Linear or Conv1D layer.",
            "check `architectures` in config.json.",
        )
    lacking = [key for key in BUFFERS if f"{name}.{key}" not in state]
    if lacking:
        raise CheckpointError(
            f"{name} lacks {_some(lacking)}.", f"all of {_some(BUFFERS)}.", "fetch the checkpoint again."
        )
    in_features, out_features = features(linear)
    with torch.device("meta"):
        layer = PackedLinear(
            in_features,
            out_features,
            bias_of(linear) is not None,
            bits=stored.bits,
            groups=state[f"{name}.scales"].shape[0],
            checkpoint_format=stored.checkpoint_format,
            kernel=kernel,
            dtype=dtype,
        )
    layer.set_compute(dtype, "cpu")
    replace_module(model, name, layer)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
