"""The weights that a training sees beside those of its k-bit base: a frozen correction, the way to the source, other quantizations.

An adapter learns beside W_k, and what it learns there of E = W_16 - W_k is of no use on another base. Each of these shows it less
of E, or E in several forms:

- `compensate`: the leading part of E lies frozen beside W_k (`plr.restoration.compensation`).
- `mix`: each optimizer step computes with W_k + t E, t drawn from 0 to 1 for each layer, as LLM-QFA samples widths in training
  (arXiv:2405.20202). Both bases are in memory: this is no saving over training at 16 bits.
- `rotate`: several quantizations of the same width take turns. Memory is that of one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plr.bases.load import Loaded, load_source, runtime_dtype
from plr.bases.quantize import taken_apart
from plr.core.fingerprint import JsonObject
from plr.core.runtime import Runtime
from plr.core.specs import Train
from plr.core.store import Store
from plr.errors import ModelError
from plr.lm.moments import second_moments
from plr.quantizers.base import named_modules
from plr.restoration.compensation import Factors, compensated, cost_of, save_compensation
from plr.restoration.line import k_bit_layers
from plr.restoration.lowrank import Felt, matrix_of
from plr.restoration.rows import training_inputs
from plr.tasks import HeadSpec

__all__ = ["Exposure", "exposed"]

INPUT_ROWS = 96
"""Training rows on which the inputs of the layers are measured."""

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass
class Exposure:
    """The hooks of one training."""

    callbacks: list[TrainerCallback] = field(default_factory=list[TrainerCallback])
    record: JsonObject = field(default_factory=dict[str, Any])
    factors: Factors = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    rotation: Rotation | None = None

    def around(self, validate: Validate) -> Validate:
        """Wrap the measurement of the validation loss."""
        return validate if self.rotation is None else self.rotation.validating(validate)

    def save(self, folder: Path) -> None:
        """Write beside the adapter what belongs to it."""
        if self.factors:
            save_compensation(self.factors, folder)


@contextmanager
def exposed(step: Train, loaded: Loaded, store: Store, runtime: Runtime, head: HeadSpec | None) -> Generator[Exposure]:
    """Show the model of `loaded`, which has no adapter yet, what `step` asks for, inside the context.

    Raises:
        ModelError: a base without k-bit layers, or a source that has other layers.
    """
    spec = step.train
    if not (spec.compensate or spec.mix or spec.rotate > 1):
        yield Exposure()
        return
    layers = k_bit_layers(dict(named_modules(loaded.model)))
    if not layers:
        raise ModelError(f"{step.base.label} has no k-bit layer", expected="a base below 16 bits")
    if spec.rotate > 1:
        rotation = Rotation(layers, [store.require(base).path for base in step.bases], spec.rotate_every)
        yield Exposure([rotation], rotation=rotation)
    elif spec.mix:
        mixing = Mixing(layers, _dense_layers(step, layers, store, runtime, head), spec.seed)
        with mixing.hooked():
            yield Exposure([mixing])
    else:
        factors, record = _compensation(step, loaded, layers, store, runtime, head)
        with compensated(layers, factors):
            yield Exposure(factors=factors, record={"compensation": {**cost_of(factors), **record}})


def _dense_layers(
    step: Train, layers: dict[str, nn.Module], store: Store, runtime: Runtime, head: HeadSpec | None
) -> dict[str, nn.Module]:
    """Load the source, and select its layers by the names of the k-bit ones."""
    source = load_source(
        step.base.source.model,
        dtype=runtime_dtype(runtime),
        device=runtime.torch_device(),
        offline=runtime.offline,
        head=head,
        home=store.home,
    )
    modules = dict(named_modules(source.model))
    if not layers.keys() <= modules.keys():
        taken_apart(source.model)
        modules = dict(named_modules(source.model))
    if missing := sorted(layers.keys() - modules.keys()):
        raise ModelError(f"{step.base.source.label} has no layer {missing[0]}", expected="the source of the k-bit base")
    return {name: modules[name] for name in layers}


def _compensation(
    step: Train,
    loaded: Loaded,
    layers: dict[str, nn.Module],
    store: Store,
    runtime: Runtime,
    head: HeadSpec | None,
) -> tuple[dict[str, tuple[Tensor, Tensor]], JsonObject]:
    rows = training_inputs(step.task, INPUT_ROWS, 0, loaded.tokenizer)
    felt = Felt(layers, dict(second_moments(loaded.model, layers, rows)))
    dense = _dense_layers(step, layers, store, runtime, head)
    ranks = dict.fromkeys(layers, step.train.compensate)
    return felt.factors(lambda name: matrix_of(dense[name]), ranks, seed=0)


class Mixing(TrainerCallback):
    """Computes with W_k + t E in training, t drawn for each step and layer, and with W_16 in validation: it is served there."""

    def __init__(self, layers: dict[str, nn.Module], dense: dict[str, nn.Module], seed: int) -> None:
        self.layers, self.seed = layers, seed
        self.errors: dict[str, Tensor] = {}
        for name, layer in layers.items():
            weight: Any = getattr(dense[name], "weight", None)
            self.errors[name] = (matrix_of(dense[name]) - matrix_of(layer)).to(weight.dtype)
        self.places: dict[str, float] = {}
        self.draw(0)

    def draw(self, step: int) -> None:
        """Draw the places of an optimizer step: the same ones for the same seed and step."""
        generator = torch.Generator().manual_seed((self.seed << 20) + step)
        drawn: list[float] = torch.rand(len(self.layers), generator=generator).tolist()
        self.places = dict(zip(self.layers, drawn, strict=True))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.draw(state.global_step)

    @contextmanager
    def hooked(self) -> Generator[None]:
        """Add t E x to the output of each layer inside the context."""

        def adding(name: str) -> Any:
            def add(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                x: Tensor = inputs[0]
                place = self.places[name] if layer.training else 1.0
                return output + place * F.linear(x, self.errors[name].to(x.dtype)).to(output.dtype)

            return add

        hooks = [layer.register_forward_hook(adding(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Rotation(TrainerCallback):
    """Puts the codes of the next base into the layers every few steps; the validation loss is the mean over all of them."""

    def __init__(self, layers: dict[str, nn.Module], folders: list[Path], every: int) -> None:
        self.layers, self.folders, self.every = layers, folders, every
        self.current = 0

    def turn(self, to: int) -> None:
        """Put the codes of base `to` into the layers.

        Raises:
            ModelError: a base of another layout.
        """
        if to == self.current:
            return
        stored: dict[str, Tensor] = {}
        for file in sorted(self.folders[to].glob("*.safetensors")):
            stored |= load_file(file)
        for name, layer in self.layers.items():
            state = {key: stored[f"{name}.{key}"] for key in layer.state_dict() if f"{name}.{key}" in stored}
            wrong = layer.state_dict().keys() - state.keys()
            if wrong:
                raise ModelError(
                    f"{self.folders[to]} has no {name}.{sorted(wrong)[0]}", expected="a base of the same layout"
                )
            layer.load_state_dict(state)
        self.current = to

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.turn(state.global_step // self.every % len(self.folders))

    def validating(self, validate: Validate) -> Validate:
        """Measure on every base in turn, and return the means."""

        def measure(model: nn.Module) -> dict[str, float]:
            now, found = self.current, list[dict[str, float]]()
            for index in range(len(self.folders)):
                self.turn(index)
                found.append(validate(model))
            self.turn(now)
            return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

        return measure
