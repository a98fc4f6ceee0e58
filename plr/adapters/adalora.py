"""AdaLoRA: PEFT's layers and allocator, with a schedule in fractions of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from plr.adapters.base import Config, Kind, Settings
from plr.adapters.peft import ACTIVE, PeftMethod
from plr.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from plr.adapters.rank_budget import RankBudget

__all__ = ["AdaLora"]


class AdaLora(PeftMethod):
    """`tinit` and `tfinal` below 1 are fractions of the optimizer steps; `total_step` is the run's own."""

    filled_in = frozenset({"total_step", "rank_pattern"})

    def resolve(self, config: Config) -> Settings:
        whole = super().resolve(config)
        if whole["init_r"] <= whole["target_r"]:
            raise ConfigError(
                f"AdaLoRA: init_r is {whole['init_r']} and target_r {whole['target_r']}",
                expected="init_r above target_r: ranks are given up in training",
                hint="take lora for a fixed rank",
            )
        return whole

    def settings(self, model: nn.Module, config: Settings, *, seed: int, steps: int) -> Settings:
        total = max(1, steps)
        first, last = (_steps(config[key], total) for key in ("tinit", "tfinal"))
        if first >= total - last:
            raise ModelError(
                f"AdaLoRA: tinit {first} and tfinal {last} leave none of {total} steps to give up ranks in",
                hint="train longer, or set them as fractions: --set adapters.0.config.tinit=0.1",
            )
        return {**config, "tinit": first, "tfinal": last, "total_step": total}

    def attach(
        self, model: nn.Module, config: Config, *, seed: int, kind: Kind = "generation", steps: int = 0
    ) -> nn.Module:
        from plr.adapters.rank_budget import RankBudget

        adapted = super().attach(model, config, seed=seed, kind=kind, steps=steps)
        for name, parameter in adapted.named_parameters():
            if ".ranknum." in name:  # a constant that PEFT does not save; on a bfloat16 base it comes out trainable
                parameter.requires_grad_(False)
        tuner = cast(_Tuner, adapted.base_model)
        tuner.rank_budget = RankBudget(adapted, ACTIVE)
        return adapted

    def save(self, model: nn.Module, folder: Path) -> None:
        _budget(model).note_ranks()
        super().save(model, folder)

    def callbacks(self, model: nn.Module, config: Config) -> Sequence[TrainerCallback]:
        return (_budget(model),)

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        return _budget(model).tensors


class _Tuner(Protocol):
    """PEFT's AdaLoRA model in training."""

    rank_budget: RankBudget


def _budget(model: nn.Module) -> RankBudget:
    return cast(_Tuner, model.base_model).rank_budget


def _steps(value: float, total: int) -> int:
    return round(value * total) if isinstance(value, float) and value < 1 else int(value)
