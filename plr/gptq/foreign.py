"""Checkpoints that hold the same codes in another layout: AWQ's GEMM, and pack-quantized of compressed-tensors.

A weight is `scale * (code - zero)` in all three, with a scale and a whole zero point for each group of a row; only the words
differ. So their tensors are laid out anew as `PackedLinear` has them, and each weight is the number that the other tool computes.

    AWQ (gemm)        qweight int32 [in, out/8], eight columns of a word in the order 0 2 4 6 1 3 5 7
                      qzeros  int32 [groups, out/8] likewise, as they are; scales fp16 [groups, out]
    pack-quantized    weight_packed int32 [out, ceil(in*bits/32)], codes along `in`, 2^(bits-1) added to each
                      weight_scale [out, groups]; weight_zero_point int32 [ceil(out*bits/32), groups] or int8 [out, groups];
                      weight_g_idx int32 [in] where columns were ordered; weight_shape int64 [2]

Both are gptq_v2 here: zero points as they are. Refused by name is what computes something else: rounded activations or
caches, rotations, sparse or floating-point codes, several widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from plr.gptq import packing
from plr.gptq.errors import CheckpointError

__all__ = ["AWQ", "CODES", "COMPRESSED", "FOREIGN", "bits_of", "dense_elements", "relaid"]

AWQ, COMPRESSED = "awq", "compressed-tensors"
FOREIGN = (AWQ, COMPRESSED)
"""The `quant_method` of the checkpoints that this module reads."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of the eight codes of a word, from the lowest bits up."""
PACKED = ".weight_packed"
CODES = (".qweight", PACKED)
"""Ends of the names of codes."""
WIDTHS = (2, 3, 4, 8)


def bits_of(settings: Mapping[str, Any]) -> int:
    """Read the width of the codes, and refuse what this module does not read, by its `quantization_config`.

    Raises:
        CheckpointError: with the setting that stands in the way.
    """
    return _awq_bits(settings) if settings.get("quant_method") == AWQ else _compressed_bits(settings)


def _awq_bits(settings: Mapping[str, Any]) -> int:
    layout = str(
        settings.get("version") or settings.get("format") or settings.get("checkpoint_format") or "gemm"
    ).lower()
    if layout != "gemm":
        _refuse(f"The layout of the AWQ checkpoint is {layout}.", "gemm", "convert it, or quantize the model anew.")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != 4:
        _refuse(f"The AWQ checkpoint has {bits} bits.", "4 bits")
    return 4


def _compressed_bits(settings: Mapping[str, Any]) -> int:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        _refuse("The compressed-tensors checkpoint has no config_groups.", "the settings of its layers")
    for key in ("kv_cache_scheme", "transform_config"):
        if settings.get(key):
            _refuse(f"The compressed-tensors checkpoint has a {key}.", "weights alone that are quantized")
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and cast("dict[str, Any]", sparsity).get("format", "dense") != "dense":
        _refuse("The compressed-tensors checkpoint is sparse.", "dense weights")
    found = {_group_bits(name, group, settings.get("format")) for name, group in cast("dict[str, Any]", groups).items()}
    if len(found) > 1:
        _refuse(
            f"The layers of the compressed-tensors checkpoint have {' and '.join(map(str, sorted(found)))} bits.",
            "one width",
        )
    return found.pop()


def _group_bits(name: str, group: object, common: object) -> int:
    scheme = cast("dict[str, Any]", group) if isinstance(group, dict) else {}
    layout = scheme.get("format") or common
    if layout != "pack-quantized":
        _refuse(
            f"The layout of {name} of the compressed-tensors checkpoint is {layout}.",
            "pack-quantized (W2A16 to W8A16)",
            "quantize the model anew.",
        )
    for key in ("input_activations", "output_activations"):
        if scheme.get(key):
            _refuse(
                f"{name} of the compressed-tensors checkpoint rounds {key} too.", "weights alone that are quantized"
            )
    weights = cast("dict[str, Any]", scheme.get("weights") or {})
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy", "group")
    if kind != "int" or bits not in WIDTHS:
        _refuse(
            f"{name} of the compressed-tensors checkpoint has codes of {bits} bits ({kind}).",
            "whole numbers of 2, 3, 4 or 8 bits",
        )
    if strategy not in ("group", "channel", "tensor"):
        _refuse(
            f"{name} of the compressed-tensors checkpoint has a scale for each {strategy}.", "group, channel or tensor"
        )
    return int(bits)


def relaid(state: dict[str, Tensor], method: str, bits: int) -> dict[str, Tensor]:
    """Lay the tensors of a checkpoint out as `PackedLinear` names and packs them (gptq_v2); all others stay.

    Raises:
        CheckpointError: a layer that lacks a tensor, or sides that do not fit each other.
    """
    end = ".qweight" if method == AWQ else PACKED
    for name in [key.removesuffix(end) for key in state if key.endswith(end)]:
        layer = _from_awq(state, name) if method == AWQ else _from_compressed(state, name, bits)
        state |= {f"{name}.{key}": value for key, value in layer.items()}
    return state


def _from_awq(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    codes, zero = (
        _awq_codes(_taken(state, f"{name}.{key}")) for key in ("qweight", "qzeros")
    )  # [in, out], [groups, out]
    scales = _taken(state, f"{name}.scales")
    if zero.shape != scales.shape or codes.shape[1] != scales.shape[1] or codes.shape[0] % scales.shape[0]:
        _misfit(name, codes.t(), scales.t(), zero.t())
    return {
        "qweight": packing.pack(codes, 4, "in_features"),
        "qzeros": packing.pack_zeros(zero, 4, packing.V2),
        "scales": scales.contiguous(),
        "g_idx": _in_order(codes.shape[0], scales.shape[0], codes.device),
    }


def _awq_codes(words: Tensor) -> Tensor:
    """Unpack words int32 `[n, m/8]` to codes int32 `[n, m]`."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    stored = (words.unsqueeze(-1) >> shifts) & 15  # [n, m/8, 8], from the lowest bits up
    codes = torch.empty_like(stored)
    codes[..., list(AWQ_ORDER)] = stored
    return codes.flatten(1)


def _from_compressed(state: dict[str, Tensor], name: str, bits: int) -> dict[str, Tensor]:
    words, scale = _taken(state, name + PACKED), _taken(state, f"{name}.weight_scale")
    out_features, in_features = (int(side) for side in _taken(state, f"{name}.weight_shape"))
    if scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(out_features, 1)
    groups = scale.shape[-1]
    if scale.shape != (out_features, groups) or in_features % groups:
        _misfit(name, words, scale, None)
    size = packing.packed_size(in_features, bits, "in_features")
    if words.shape != (out_features, size):
        _refuse(
            f"{name}.weight_packed is {tuple(words.shape)} for a weight {out_features} x {in_features} of {bits} bits.",
            f"{out_features} x {size}: codes without gaps between words",
            "save it again with a newer compressed-tensors.",
        )
    order = state.pop(f"{name}.weight_g_idx", None)
    if order is None or int(order.min()) < 0:  # -1: not in use
        order = _in_order(in_features, groups, words.device)
    return {
        "qweight": words.t().contiguous(),
        "qzeros": _compressed_zeros(
            state.pop(f"{name}.weight_zero_point", None), name, bits, out_features, groups, words.device
        ),
        "scales": scale.t().contiguous(),
        "g_idx": order.to(torch.int32),
    }


def _compressed_zeros(
    stored: Tensor | None, name: str, bits: int, out_features: int, groups: int, device: torch.device
) -> Tensor:
    """Return qzeros `[groups, ceil(out*bits/32)]`: half of the range where the grid is symmetric, which stores none."""
    half = 2 ** (bits - 1)
    if stored is None:
        return packing.pack_zeros(torch.full((groups, out_features), half, device=device), bits, packing.V2)
    if stored.dtype == torch.int32 and stored.shape == (
        packing.packed_size(out_features, bits, "out_features"),
        groups,
    ):
        return stored.t().contiguous()
    if stored.dtype != torch.int8 or stored.shape != (out_features, groups):
        _refuse(
            f"{name}.weight_zero_point is {stored.dtype} {tuple(stored.shape)}.",
            f"int32, packed along {out_features} outputs, or int8 {out_features} x {groups}",
        )
    return packing.pack_zeros(stored.t().to(torch.int32) + half, bits, packing.V2)


def dense_elements(name: str, shape: list[int], method: str, bits: int) -> int:
    """Count the weights behind a tensor of codes; 0 for any other tensor.

    >>> dense_elements("a.qweight", [64, 4], AWQ, 4), dense_elements("a.weight_packed", [32, 8], COMPRESSED, 4)
    (2048, 2048)
    """
    if name.endswith(".qweight" if method == AWQ else PACKED):
        return shape[0] * shape[1] * packing.WORD // bits
    return 0


def _in_order(in_features: int, groups: int, device: torch.device) -> Tensor:
    return torch.arange(in_features, dtype=torch.int32, device=device) // (in_features // groups)


def _taken(state: dict[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise CheckpointError(
            f"The checkpoint lacks {key}.", "all tensors of a quantized layer.", "fetch the checkpoint again."
        )
    return state.pop(key)


def _misfit(name: str, codes: Tensor, scale: Tensor, zero: Tensor | None) -> NoReturn:
    zeros = "" if zero is None else f", zero points {tuple(zero.shape)}"
    _refuse(
        f"{name} has codes {tuple(codes.shape)}, scales {tuple(scale.shape)}{zeros}.",
        "sides that fit",
        "fetch the checkpoint again.",
    )


def _refuse(given: str, expected: str, hint: str = "name the 16-bit model it was made from.") -> NoReturn:
    raise CheckpointError(given, f"{expected}.", hint)
