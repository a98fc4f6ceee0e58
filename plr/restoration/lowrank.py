"""Deflated restoration: the part of W_l - W_k that the inputs feel most is taken back, as more ranks of the adapter.

For every k-bit layer, adapted or not, with E = W_l - W_k and H the mean of x x^T over the layer's inputs in the tuned k-bit model:
C = U U^T E, U the leading eigenvectors of E H E^T (`plr.gptq.lowrank`), and W_l + s dW - C is served. It is written as an
ordinary LoRA on W_l, A' = [A; U^T E] and B' = [s c B, -U] with c the adapter's own scale, all layers of one rank, so that PEFT
and vLLM serve it. A layer without an adapter gives all its ranks to the correction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from plr.core.files import write_atomic
from plr.core.fingerprint import JsonObject
from plr.core.specs import Correction
from plr.errors import ModelError
from plr.gptq.lowrank import felt_share, leading_directions
from plr.quantizers import is_quantized_layer
from plr.quantizers.layers import dense_layer
from plr.restoration.compensation import Factors, sum_of

__all__ = ["Felt", "compensate", "correct", "matrix_of", "rescale"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
CHOOSING = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings that leave out some of `target_modules`."""


def matrix_of(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer of any kind as `[out, in]`, float32, dequantized where it is k-bit."""
    from transformers.pytorch_utils import Conv1D

    if is_quantized_layer(layer):
        layer = dense_layer(layer)
    weight: Any = layer.weight
    matrix: Tensor = weight.detach().float()
    return matrix.T.contiguous() if isinstance(layer, Conv1D) else matrix


High = Callable[[str], Tensor]
"""Gives the weight `[out, in]`, float32, of a layer of the l-bit base."""


def _matrices_of(layers: Mapping[str, nn.Module]) -> High:
    def read(name: str) -> Tensor:
        if name not in layers:
            raise ModelError(f"the other base has no layer {name}", expected="two bases of one source model")
        return matrix_of(layers[name])

    return read


class Felt:
    """The change of a base as its layers feel it: H by layer, and the k-bit layers it was measured at."""

    def __init__(
        self, low: Mapping[str, nn.Module], moments: Mapping[str, Tensor], frozen: Factors | None = None
    ) -> None:
        """Take the layers and moments; `frozen` is a compensation that belongs to the layers."""
        self.low, self.moments, self.frozen = low, moments, frozen or {}

    def factors(
        self, high: High, ranks: Mapping[str, int], *, seed: int, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], JsonObject]:
        """Compute U `[out, r]` and U^T E `[r, in]` for each layer, on the CPU, and the share of |E x|^2 that they take.

        One layer of both bases is dense at a time.

        Raises:
            ModelError: a layer that the other base does not have.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        shares: list[float] = []
        names: list[str] = [*self.low]
        for done, name in enumerate(names, 1):
            if name in self.moments:
                moment = self.moments[name]
                weight = matrix_of(self.low[name])
                weight = weight + sum_of(self.frozen, name, weight)
                error = high(name).to(moment.device) - weight.to(moment.device)
                directions = leading_directions(error, moment, ranks[name], seed=seed)
                found[name] = (directions.cpu(), (directions.T @ error).cpu())
                shares.append(felt_share(error, moment, directions))
            if on_progress is not None:
                on_progress(done, len(self.low))
        return found, {
            "corrected_layers": len(found),
            "layers_without_input": len(self.low) - len(found),
            "taken_back": sum(shares) / len(shares) if shares else 0.0,
        }


def rescale(folder: Path, factor: float) -> None:
    """Multiply `lora_alpha` of the LoRA in `folder` by `factor`, in place.

    Raises:
        ModelError: a configuration without `lora_alpha`.
    """
    config: JsonObject = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if "lora_alpha" not in config:
        raise ModelError(f"{folder} has no lora_alpha", expected="an adapter of lora, or of a method built on it")
    config["lora_alpha"] *= factor
    alphas: dict[str, float] = dict(config.get("alpha_pattern") or {})
    config["alpha_pattern"] = {name: alpha * factor for name, alpha in alphas.items()}
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def correct(
    folder: Path,
    felt: Felt,
    others: Mapping[str, nn.Module],
    correction: Correction,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> JsonObject:
    """Correct the LoRA in `folder`, in place, for its way to the base of the modules `others`; return what is to be recorded.

    Raises:
        ModelError: no plain LoRA of linear layers, or tensors that do not fit the k-bit base.
    """
    lora = _Lora(folder)
    rank = lora.rank + correction.rank
    ranks = {name: rank - (lora.pairs[name][0].shape[0] if name in lora.pairs else 0) for name in felt.low}
    factors, record = felt.factors(_matrices_of(others), ranks, seed=correction.seed, on_progress=on_progress)
    taken = {name: (-left, right) for name, (left, right) in factors.items()}
    lora.write(taken, 1.0 if correction.scale is None else correction.scale, rank, others)
    return {"rank": rank, **record}


def compensate(folder: Path, frozen: Factors, others: Mapping[str, nn.Module]) -> None:
    """Add the compensation that the LoRA in `folder` was trained beside to it, in place, as more ranks.

    `others` are the modules of its own base.

    Raises:
        ModelError: no plain LoRA of linear layers.
    """
    lora = _Lora(folder)
    rank = lora.rank + max(left.shape[1] for left, _ in frozen.values())
    lora.write(frozen, 1.0, rank, others)


class _Lora:
    """A plain LoRA of linear layers, its scale folded into B.

    Raises:
        ModelError: another adapter, or tensors that find no place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: JsonObject = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _check_plain(self.config, folder)
        pairs, self.rest = _pairs(load_file(folder / WEIGHTS), folder)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {
            name: _scaled(self.config, name, pair) for name, pair in pairs.items()
        }
        self.rank: int = max((a.shape[0] for a, _ in self.pairs.values()), default=0)

    def write(self, added: Factors, scale: float, rank: int, others: Mapping[str, nn.Module]) -> None:
        """Write it anew, times `scale`, with the factors `added` as more ranks, all layers of one `rank`."""
        written: dict[str, Tensor] = dict(self.rest)
        layers = {**added, **self.pairs}
        for name in layers:
            right = [self.pairs[name][0]] if name in self.pairs else []
            left = [self.pairs[name][1] * scale] if name in self.pairs else []
            if name in added:
                left, right = [*left, added[name][0].float()], [*right, added[name][1].float()]
            a, b = torch.cat(right), torch.cat(left, 1)
            if a.shape[0] < rank:  # a layer of fewer dimensions than ranks
                a = torch.cat([a, torch.zeros(rank - a.shape[0], a.shape[1])])
                b = torch.cat([b, torch.zeros(b.shape[0], rank - b.shape[1])], 1)
            written[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
            written[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
        config = {**self.config, **dict.fromkeys(CHOOSING), "target_modules": _targets(layers, others)}
        config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
        save_file(written, self.folder / WEIGHTS, metadata={"format": "pt"})
        write_atomic(self.folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_plain(config: JsonObject, adapter: Path) -> None:
    """Refuse a configuration that says more than two matrices a layer."""
    beside = ("use_dora", "lora_bias", "use_qalora", "trainable_token_indices", "target_parameters")
    wrong = [key for key in beside if config.get(key)]
    if config.get("bias") not in (None, "none"):
        wrong.append("bias")
    if config.get("peft_type") != "LORA" or wrong:
        raise ModelError(
            f"the adapter in {adapter} is of type {config.get('peft_type')}"
            + (f" with {', '.join(wrong)}" if wrong else ""),
            expected="a plain LoRA: two matrices a layer",
            hint="use --mode path, which takes every method that merges",
        )


def _pairs(tensors: dict[str, Tensor], adapter: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Part the tensors of a LoRA in A and B by layer, and the rest (a trained head).

    Raises:
        ModelError: one of a pair is not there, or an embedding is adapted.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    rest = dict(tensors)
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            other = rest.pop(f"{name}.lora_B.weight", None)
            if other is not None and name.startswith(PREFIX):
                pairs[name.removeprefix(PREFIX)] = (rest.pop(key), other)
    if strange := [key for key in rest if ".lora_" in key]:
        raise ModelError(
            f"{adapter} holds {strange[0]}",
            expected="A and B of linear layers, in PEFT's names",
            hint="use --mode path, which takes every method that merges",
        )
    return pairs, rest


def _scaled(config: JsonObject, name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold the scale of a layer into B, as PEFT reads it: `alpha / r`, or `alpha / sqrt(r)` of rsLoRA."""
    from peft.utils.other import get_pattern_key

    a, b = pair
    alphas: dict[str, float] = dict(config.get("alpha_pattern") or {})
    default: float = config["lora_alpha"]
    alpha = alphas.get(get_pattern_key([*alphas], name), default)
    rank = a.shape[0]
    return a.float(), b.float() * (alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _targets(layers: Mapping[str, object], names: Collection[str]) -> list[str]:
    """Name the layers by their last part where that means no other module, else by their whole names."""
    last = {name.rpartition(".")[2] for name in layers}
    meant = {name for name in names if name.rpartition(".")[2] in last}
    return sorted(last) if meant == {*layers} else sorted(layers)
