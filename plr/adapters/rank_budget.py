"""AdaLoRA between optimizer steps: importance of each rank, the budget they share, and orthogonal factors.

How it works, at every step:

1. Before the optimizer: the gradient of `orth_reg_weight * mean ||P P^T - I||_F` (Equation 4 of the paper) is added in closed
   form. PEFT adds the penalty to a loss that the model computes itself; plr's trainer computes the loss outside.
2. After it: PEFT's allocator updates the importance of each triplet (its gradient is still there) and zeroes the singular
   values that the budget of this step has no room for.
3. The running means and the mask are kept in tensors of this object, so that a checkpoint holds them and a resumed run ends
   with the same bytes.

What it gives up: the penalty's gradient is added after gradient clipping, so it is not scaled down with the rest.
"""

from __future__ import annotations

from typing import cast

import torch
from peft.tuners.adalora import AdaLoraConfig, AdaLoraModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["RankBudget"]


class RankBudget(TrainerCallback):
    """The callback of one adapted model; `tensors` is its state, read and written in place."""

    def __init__(self, model: nn.Module, adapter: str) -> None:
        self.tuner = cast(AdaLoraModel, model.base_model)
        self.adapter = adapter
        self.factors = {
            name: p for name, p in self.tuner.model.named_parameters() if "lora_" in name and adapter in name
        }
        self.means = {name: torch.zeros_like(p) for name, p in self.factors.items()}
        self.spreads = {name: torch.zeros_like(p) for name, p in self.factors.items()}
        self.kept = {
            name: torch.ones(p.shape[0], dtype=torch.bool, device=p.device)
            for name, p in self.factors.items()
            if "lora_E" in name
        }
        self.masked = torch.zeros((), dtype=torch.bool)

    @property
    def tensors(self) -> dict[str, Tensor]:
        named = {"mean": self.means, "spread": self.spreads, "kept": self.kept}
        state = {f"rank_budget.{kind}.{name}": t for kind, group in named.items() for name, t in group.items()}
        return state | {"rank_budget.masked": self.masked}

    @property
    def _config(self) -> AdaLoraConfig:
        return cast(AdaLoraConfig, self.tuner.peft_config[self.adapter])

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        weight = self._config.orth_reg_weight
        factors = {name: p for name, p in self.factors.items() if "lora_E" not in name and p.grad is not None}
        for name, p in factors.items():
            rows = p if "lora_A" in name else p.t()  # [r, in] or [r, out]
            excess = rows @ rows.t() - torch.eye(len(rows), device=p.device, dtype=p.dtype)
            gradient = 2 * excess @ rows / excess.norm().clamp(min=1e-12)
            p.grad.add_(gradient if "lora_A" in name else gradient.t(), alpha=weight / len(factors))  # type: ignore[union-attr]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        allocator, config = self.tuner.rankallocator, self._config
        allocator.ipt = dict(self.means)  # its keys say that the means are under way; the values are overwritten
        allocator.exp_avg_ipt, allocator.exp_avg_unc = dict(self.means), dict(self.spreads)
        config.rank_pattern = {name: kept.tolist() for name, kept in self.kept.items()} if self.masked else None
        self.tuner.update_and_allocate(state.global_step + 1)
        for name in self.means.keys() & allocator.exp_avg_ipt.keys():
            self.means[name].copy_(allocator.exp_avg_ipt[name])
            self.spreads[name].copy_(allocator.exp_avg_unc[name])
        if config.rank_pattern:
            self.masked.fill_(True)
            for name, kept in self.kept.items():
                kept.copy_(torch.tensor(config.rank_pattern[name]))

    def note_ranks(self) -> None:
        """Tell PEFT which ranks to save: those whose singular value is not zero now."""
        ranks = {name: (self.factors[name] != 0).flatten().tolist() for name in self.kept}
        self._config.rank_pattern = ranks if self.masked else None
