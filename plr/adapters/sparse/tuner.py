"""The sparse TopK-block adapter as a method of PEFT: `get_peft_model(model, SparseConfig(n=24, m=32, k=15))`.

After "A proposal of a method to fine-tune large language models efficiently with sparse parameters" (Harada, Yamazaki, Yoshida;
Toshiba). The arithmetic stands in `block_product`, selection and merging in `sparse_layer`, numbers of blocks in `sparse_budget`,
the settings in `sparse_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plr.adapters.peft_types import register
from plr.adapters.sparse.budget import Grid, SparseConfigError, distribute, pattern_value
from plr.adapters.sparse.config import SparseConfig
from plr.adapters.sparse.layer import SparseLayer, features
from plr.errors import IntegrityError

__all__ = ["SPARSE", "FreshSlots", "SparseConfig", "SparseModel", "changed_parameters", "clear_moments"]


class SparseModel(BaseTuner):
    """A model whose target layers are `SparseLayer`. Made by PEFT."""

    prefix = "sparse_"
    peft_config: dict[str, SparseConfig]
    tuner_layer_cls = SparseLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_model(self, peft_config: SparseConfig, model: nn.Module) -> None:
        """Decide on the k of every target module, before the first is touched."""
        _maybe_include_all_linear_layers(peft_config, model)
        grids: list[Grid] = []
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name or name.startswith(inside or ("\0",)):
                continue
            if isinstance(module, BaseTunerLayer):
                inside = (*inside, f"{name}.")
            if self._check_target_module_exists(peft_config, name):
                grids.append(_grid(peft_config, name, module))
        base = [pattern_value(peft_config.k_pattern, grid.name, peft_config.k) for grid in grids]
        counts = distribute(grids, base, peft_config.k_ramp, peft_config.budget) if grids else []
        self._k = {grid.name: k for grid, k in zip(grids, counts, strict=True)}

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: SparseConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: object,
    ) -> None:
        grid = _grid(peft_config, current_key, target)
        if current_key in self._k:
            k = self._k[current_key]
        elif peft_config.budget is None and peft_config.k_ramp == 1.0:  # named by a state_dict, not by the config
            k = pattern_value(peft_config.k_pattern, current_key, peft_config.k)
        else:
            raise SparseConfigError(
                f"{current_key} stands in the state dict and is no target module: its share of k is not known",
                expected="target_modules that name every module of the adapter, where budget or k_ramp is set",
            )
        if isinstance(target, SparseLayer):
            target.update_layer(adapter_name, grid, k, peft_config)
            return
        layer = SparseLayer(target, adapter_name, grid, k, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trainable by being there
        self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SparseConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Check the positions, then remap as PEFT does.

        Raises:
            IntegrityError: positions that are no k different blocks of the grid.
        """
        for key, positions in state_dict.items():
            if key.endswith(".sparse_positions") and not positions.is_meta:
                known = positions[(positions >= 0) & (positions < config.n * config.m)]
                if positions.dtype != torch.int64 or len(known.unique()) != len(positions):
                    raise IntegrityError(
                        f"{key} of a saved sparse adapter does not name {len(positions)} different blocks",
                        expected=f"distinct int64 from 0 to {config.n * config.m - 1} (n = {config.n}, m = {config.m})",
                        hint="the file is damaged, or its adapter_config.json belongs to another adapter",
                    )
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    # -- batches in which each row has its own adapter --

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        names = cast("Sequence[str] | None", kwargs.pop("adapter_names", None))
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = [module for module in self.modules() if isinstance(module, SparseLayer)]
        known = {"__base__"}.union(*(layer.sparse_values.keys() for layer in layers))
        if unknown := sorted(set(names) - known):
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        beams = cast("int | None", kwargs.get("num_beams")) or 1
        repeated = [name for name in names for _ in range(beams)]
        encoder = self.model.get_encoder() if beams > 1 and hasattr(self.model, "get_encoder") else None
        once = set(encoder.modules()) if isinstance(encoder, nn.Module) and encoder is not self.model else set()
        handles = [
            module.register_forward_pre_hook(
                partial(_with_adapter_names, names=names if module in once else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, SparseLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- combination --

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add the adapter `sum_j weights[j] * dW_j`, exactly: its blocks are the union of theirs, its k the size of that.

        Scores: a block of the union has the highest score it has anywhere; the others stay below the lowest of those.

        Raises:
            ValueError: another `combination_type`, an adapter that is not there, a name that is, different n or m, or
                adapters with `modules_to_save`, which have no sum of this kind.
        """
        configs = self._check_combination(adapters, weights, adapter_name, combination_type)
        layers = {
            name: layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, SparseLayer) and any(adapter in layer.sparse_values for adapter in adapters)
        }
        sums = {name: _weighted_sum(layer, adapters, weights, configs[0].alpha) for name, layer in layers.items()}
        self.peft_config[adapter_name] = replace(
            configs[0],
            k=max(len(positions) for _, _, positions in sums.values()),
            k_pattern={re.escape(name): len(positions) for name, (_, _, positions) in sums.items()},
            k_ramp=1.0,
            budget=None,
            target_modules=sorted(sums),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            init_weights=True,
        )
        self.inject_adapter(self.model, adapter_name)
        with torch.no_grad():
            for name, (scores, values, positions) in sums.items():
                layers[name].sparse_scores[adapter_name].copy_(scores)
                layers[name].sparse_values[adapter_name].copy_(values)
                layers[name].positions(adapter_name).copy_(positions)
        self.set_requires_grad(adapter_name, False)

    def _check_combination(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str
    ) -> list[SparseConfig]:
        if combination_type != "linear":
            raise ValueError(
                f"Invalid combination_type: {combination_type}. A sparse adapter has 'linear', which is exact."
            )
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight for each adapter.")
        for name in adapters:
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} does not exist")
        if adapter_name in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} already exists: choose another name or delete it first.")
        configs = [self.peft_config[name] for name in adapters]
        grids = {(config.n, config.m) for config in configs}
        if len(grids) > 1:
            raise ValueError(
                f"The adapters cut weights into different blocks, (n, m) in {sorted(grids)}: they have no common ones."
            )
        if any(config.modules_to_save for config in configs):
            raise ValueError(
                "Adapters with modules_to_save cannot be combined: a weighted sum of those is not defined."
            )
        return configs


def changed_parameters(model: nn.Module) -> int:
    """Count the weights of the base that the active sparse adapters can change: the elements of their blocks, each counted once."""
    changed = 0
    for layer in model.modules():
        if isinstance(layer, SparseLayer) and not layer.disable_adapters:
            touched: dict[tuple[int, int], list[torch.Tensor]] = {}
            for name in layer.active_adapters:
                if name in layer.sparse_values:
                    n, m = layer.sparse_scores[name].shape
                    touched.setdefault((n, m), []).append(layer.positions(name))
            changed += _union_of_blocks(layer, touched)
    return changed


def clear_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Zero the optimizer's moments of slots that moved since the last call; returns how many did.

    To be called between backward and step, so that what the old block learned does not push the new one.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            for name, values in layer.sparse_values.items():
                moved = layer.take_moved(name)
                if moved is not None:
                    count += int(moved.sum())
                    for moment in optimizer.state.get(values, {}).values():
                        if isinstance(moment, torch.Tensor) and moment.shape == values.shape:
                            moment[moved] = 0
    return count


class FreshSlots(TrainerCallback):
    """Calls `clear_moments` before each optimizer step."""

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: object,
    ) -> TrainerControl:
        clear_moments(model, optimizer)
        return control


def _union_of_blocks(layer: SparseLayer, touched: dict[tuple[int, int], list[torch.Tensor]]) -> int:
    if len(touched) < 2:  # one grid: count blocks
        return sum(
            len(torch.cat(positions).unique()) * (layer.out_features // n) * (layer.in_features // m)
            for (n, m), positions in touched.items()
        )
    mask = torch.zeros(layer.out_features, layer.in_features, dtype=torch.bool)
    for (n, m), positions in touched.items():
        cells = mask.unflatten(1, (m, -1)).unflatten(0, (n, -1))
        for position in torch.cat(positions).tolist():
            cells[position // m, :, position % m] = True
    return int(mask.sum())


def _grid(config: SparseConfig, name: str, module: nn.Module | BaseTunerLayer) -> Grid:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return Grid(name, *features(base, name), config.n, config.m)


def _with_adapter_names(
    _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], *, names: Sequence[str]
) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, {**kwargs, "adapter_names": names}


def _weighted_sum(
    layer: SparseLayer, adapters: Sequence[str], weights: Sequence[float], alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (scores, values, positions) of the adapter that computes the weighted sum on this layer."""
    parts = [(name, weight) for name, weight in zip(adapters, weights, strict=True) if name in layer.sparse_values]
    positions = torch.cat([layer.positions(name) for name, _ in parts]).unique()
    scores = torch.stack([layer.sparse_scores[name].detach() for name, _ in parts]).amax(0)
    first = layer.sparse_values[parts[0][0]]
    total = first.new_zeros(len(positions), *first.shape[1:])
    for name, weight in parts:
        where = torch.searchsorted(positions, layer.positions(name))
        total.index_add_(0, where, layer._blocks(name).detach() * weight)
    flat = scores.flatten()
    v = flat[positions].clamp(min=1e-3)
    flat = flat.minimum(v.min()).index_copy(0, positions, v)
    return flat.view_as(scores), total / (alpha * v)[:, None, None].to(total.dtype), positions


SPARSE = register("sparse", SparseConfig, SparseModel)
"""The method's member of PEFT's `PeftType`."""
