"""ReLoRA's restarts: what was learned so far is put aside, and a fresh pair of low rank goes on from there.

1. Before a restart each layer computes `W x + s sum_{j<i} B_j A_j x + s B A x`. A restart makes the trained pair (B, A) the next
   of the sum, draws A anew and sets B to zero: the function stays what it was.
2. The sum is kept as two tall tensors, A [restarts * r, in] and B [out, restarts * r], filled from the left. They say all there
   is to say: what is saved, checkpointed and resumed are these and the number of restarts made.
3. *Dense layer*: the weight itself becomes `W_0 + s B A` (rounded once, from the weight of the start, which is kept on the CPU),
   so a step costs what LoRA's costs. *k-bit layer*: there is no weight to add to; the sum is computed beside it.
4. The moments of Adam belong to the pair that has gone: a `reset_share` of them, the smallest, are set to zero. With a share
   of 1 the counter of its steps starts again too.
5. After a restart the learning rate rises from near zero to the scheduler's value. It is set just before the optimizer's step and
   set back just after, so the scheduler never sees it.

What it gives up: while a model trains, `disable_adapter` on dense layers shows the base with the sum in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from plr.adapters.typed import LoraModule, lora_layers
from plr.errors import ModelError, TrainingError

__all__ = ["Jagged", "Part", "Restarts"]


@dataclass
class Part:
    """One layer: the LoRA layer, the pairs put aside, and for a dense one its weight at the start."""

    layer: LoraModule
    a: Tensor
    """float [restarts * r, in]; rows of restarts not made yet are zero."""
    b: Tensor
    """float [out, restarts * r]"""
    merges: bool
    start: Tensor | None = None
    """W_0 on the CPU, once something was added to the weight."""
    hook: RemovableHandle | None = None


@dataclass
class Restarts:
    """The state of a ReLoRA run; `begin` puts it on a model with a fresh LoRA adapter."""

    parts: dict[str, Part]
    r: int
    scaling: float
    seed: int
    name: str
    done: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """Number of restarts made."""

    @classmethod
    def begin(cls, model: nn.Module, *, name: str, restarts: int, seed: int, merge: bool) -> Restarts:
        """Begin a run on a model with a fresh LoRA adapter.

        Args:
            name: the LoRA adapter of `model`.
            merge: add into the weights of dense layers; else the sum is computed beside them too.

        Raises:
            ModelError: an adapter on something that is no linear layer.
        """
        embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
        parts: dict[str, Part] = {}
        layers = lora_layers(model)
        for key, layer in layers.items():
            if name not in layer.lora_A or layer.lora_A[name].weight.dim() != 2:
                raise ModelError(
                    f"relora was to be put on {key}, a {type(layer.get_base_layer()).__name__}",
                    expected="linear layers",
                    hint="choose other target_modules, e.g. [q_proj, k_proj, v_proj, o_proj]",
                )
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            base = layer.get_base_layer()
            dense = _is_dense(base) and not any(base.weight is weight for weight in embeddings)
            parts[key] = Part(
                layer, a.new_zeros(restarts * a.shape[0], a.shape[1]), b.new_zeros(b.shape[0], restarts * b.shape[1]),
                merges=merge and dense,
            )  # fmt: skip
        first = next(iter(layers.values()))
        state = cls(parts, first.r[name], first.scaling[name], seed, name)
        for part in parts.values():
            if not part.merges:
                part.hook = part.layer.register_forward_hook(state._beside(part))
        return state

    def restart(self, optimizer: Optimizer | None = None, reset_share: float = 0.0) -> None:
        """Put the trained pairs aside and start fresh ones; the function of the model does not change.

        `optimizer`: whose moments of these pairs are reset; None: none.
        """
        start = int(self.done) * self.r
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (int(self.done) + 1))
        with torch.no_grad():
            for part in self.parts.values():
                a, b = self._pair(part)
                part.a[start : start + self.r] = a
                part.b[:, start : start + self.r] = b
                bound = a.shape[1] ** -0.5  # as LoRA's own start: Kaiming uniform with a = sqrt(5)
                a.copy_((2 * torch.rand(a.shape, generator=generator) - 1) * bound)
                b.zero_()
                if optimizer is not None:
                    for parameter in (a, b):
                        reset(optimizer.state.get(parameter, {}), reset_share)
        self.done += 1
        self.apply()

    def apply(self) -> None:
        """Make the weights of merging layers `W_0 + s B A` of what is put aside now; the same bytes each time."""
        rows = int(self.done) * self.r
        with torch.no_grad():
            for part in (part for part in self.parts.values() if part.merges):
                base = part.layer.get_base_layer()
                start = part.start
                if start is None:
                    if rows == 0:
                        continue
                    # nothing was added yet, in a run that goes on from a checkpoint neither: its base is loaded anew
                    start = part.start = base.weight.detach().to("cpu", copy=True)
                weight = start.to(base.weight.device)
                if rows:
                    update = self.scaling * (part.b[:, :rows] @ part.a[:rows])  # [out, in]
                    update = update.t() if isinstance(base, Conv1D) else update
                    weight = (weight.float() + update.float()).to(weight.dtype)
                base.weight.copy_(weight)

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute the whole update of each layer as one pair: A [(done + 1) r, in], B [out, (done + 1) r]."""
        rows = int(self.done) * self.r
        pairs = {key: (part, *self._pair(part)) for key, part in self.parts.items()}
        return {
            key: (torch.cat([part.a[:rows], a.detach()]), torch.cat([part.b[:, :rows], b.detach()], dim=1))
            for key, (part, a, b) in pairs.items()
        }

    def buffers(self) -> dict[str, Tensor]:
        """Return the tensors a checkpoint must hold beside the trained pairs."""
        held = {"relora.done": self.done}
        for key, part in self.parts.items():
            held |= {f"{key}.relora_A": part.a, f"{key}.relora_B": part.b}
        return held

    def end(self, *, keep: bool) -> None:
        """Take the sum off again (`keep=False`: dense weights are those of the start, bit for bit), or leave it in dense weights.

        Raises:
            ModelError: `keep` and a layer has no dense weight.
        """
        packed = [key for key, part in self.parts.items() if not _is_dense(part.layer.get_base_layer())]
        if keep and packed:
            raise ModelError(
                f"what relora put aside for {packed[0]} cannot be merged: the base holds fewer than 16 bits",
                expected="a 16-bit base",
                hint="load the saved adapter on the 16-bit base and merge there",
            )
        if keep:
            for part in self.parts.values():
                part.merges = True
        else:
            self.done.zero_()
        self.apply()
        for part in self.parts.values():
            if part.hook is not None:
                part.hook.remove()

    def _pair(self, part: Part) -> tuple[nn.Parameter, nn.Parameter]:
        return part.layer.lora_A[self.name].weight, part.layer.lora_B[self.name].weight

    def _beside(self, part: Part) -> Callable[[LoraModule, tuple[Tensor, ...], Tensor], Tensor]:
        def add(layer: LoraModule, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = int(self.done) * self.r
            if not rows or layer.disable_adapters or self.name not in layer.active_adapters:
                return output
            x = inputs[0].to(part.a.dtype)
            return output + (self.scaling * F.linear(F.linear(x, part.a[:rows]), part.b[:, :rows])).to(output.dtype)

        return add


class Jagged(TrainerCallback):
    """Restarts at equal distances, each with a warmup of its own; see the module's docstring.

    Args:
        warmup_fraction: of the steps between two restarts.
        reset_share: of Adam's moments, 0 to 1.
    """

    def __init__(self, state: Restarts, *, restarts: int, warmup_fraction: float, reset_share: float) -> None:
        self.state = state
        self.restarts = restarts
        self.warmup_fraction = warmup_fraction
        self.reset_share = reset_share
        self.rates: list[float] = []

    def points(self, steps: int) -> list[int]:
        """List those of `steps` optimizer steps that a restart follows.

        Raises:
            TrainingError: there are too few.
        """
        if steps <= self.restarts:
            raise TrainingError(
                f"{self.restarts} restarts were asked for in {steps} optimizer steps",
                expected="at least one step between restarts",
                hint="train longer, or set restarts lower",
            )
        return [steps * i // (self.restarts + 1) for i in range(1, self.restarts + 1)]

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate of the optimizer step that follows `step` others."""
        last = max((point for point in self.points(steps) if point <= step), default=None)
        warmup = round(self.warmup_fraction * steps / (self.restarts + 1))
        return 1.0 if last is None else min(1.0, (step - last + 1) / (warmup + 1))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        expected = sum(point <= state.global_step for point in self.points(state.max_steps))
        if expected != int(self.state.done):
            raise TrainingError(
                f"the checkpoint of step {state.global_step} was made after {int(self.state.done)} restarts",
                expected=f"{expected} restarts",
                hint="remove the folder of this step in .work and train again",
            )
        self.state.apply()  # resuming: the base was loaded as it was at the start

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor(state.global_step, state.max_steps)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        if state.global_step in self.points(state.max_steps):
            self.state.restart(optimizer, self.reset_share)


def _is_dense(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, Conv1D)


def reset(moments: Mapping[str, Tensor], share: float) -> None:
    """Set a `share` of the moments of one parameter to zero, in place: those where the first moment is smallest.

    The same places in every moment. Chosen for each by itself, a first moment could be left without its second, and Adam's next
    step there would be as large as the one divided by almost nothing.

    >>> moments = {"exp_avg": torch.tensor([[3.0, -1.0], [0.5, -4.0]]), "step": torch.tensor(7.0)}
    >>> moments["exp_avg_sq"] = torch.tensor([[1.0, 9.0], [9.0, 1.0]])
    >>> reset(moments, 0.5)
    >>> moments["exp_avg"].tolist(), moments["exp_avg_sq"].tolist(), moments["step"].item()
    ([[3.0, 0.0], [0.0, -4.0]], [[1.0, 0.0], [0.0, 1.0]], 7.0)
    >>> reset(moments, 1.0)
    >>> moments["exp_avg"].any().item(), moments["step"].item()
    (False, 0.0)
    """
    tensors = [value for value in moments.values() if isinstance(value, Tensor)]
    if share >= 1:
        for tensor in tensors:
            tensor.zero_()
    elif "exp_avg" in moments:
        size = moments["exp_avg"].numel()
        places = moments["exp_avg"].abs().view(-1).topk(round(share * size), largest=False).indices
        for tensor in tensors:
            if tensor.numel() == size and tensor.dim() > 0:
                tensor.view(-1)[places] = 0
