"""The staged walk: quantize a transformer with one forward pass of the calibration set in all.

How it works. Every calibration batch is one suspended forward of the whole model (`plr.gptq.suspend`):

1. each target layer gets a gate: on a call, the batch hands its input to the walk and stops there;
2. when every batch has stopped at the same layer, its Hessian is complete: the layer is solved and replaced by a
   `PackedLinear`;
3. the batches go on, one after another, through the quantized layer to the next gate.

So each layer is applied once to each batch, already quantized, and each Hessian is that of the quantized model before
it (the paper's sequential order, layer by layer, where the reference code runs every block twice and peers run it up to
five times). A layer called with the very tensor of the layer before it (q, k, v; gate, up) sees the same Hessian: it is
neither accumulated nor factored again.

Memory: the model, one Hessian, one factor, and for each batch what its forward keeps alive. The pass ends after the
last block.

What it gives up: layers must be reached in the same order by all batches, once each. Mixtures of experts with a
data-dependent order and layers shared between blocks are an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, Protocol, Unpack, cast

import torch
from torch import Tensor, nn

from plr.gptq.blocks import check_targets, features, find_targets, named_modules
from plr.gptq.errors import WalkError
from plr.gptq.execution import Execution, Options, settings_and_execution
from plr.gptq.experts import SeparateExperts, every_expert, routed
from plr.gptq.layers import Layers, ModuleReport, Progress
from plr.gptq.lowmem import LowMemoryWalk
from plr.gptq.resume import BlockStore, key_of
from plr.gptq.settings import Settings
from plr.gptq.stage import Stage
from plr.gptq.streams import Batch, both_streams, check_all_reached, forward_in, prepare, token_rows
from plr.gptq.suspend import Suspended

__all__ = ["ModuleReport", "quantize_model"]


def quantize_model(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    settings: Settings | None = None,
    execution: Execution | None = None,
    skip: Sequence[str] = ("lm_head",),
    on_progress: Progress | None = None,
    **options: Unpack[Options],
) -> list[ModuleReport]:
    """Replace the linear layers in the transformer blocks of `model`, in place, by `PackedLinear`.

    Args:
        model: any transformer made of repeated blocks of linear layers (`nn.Linear`, or GPT-2's `Conv1D`); it is run in
            eval mode as `model(**batch)`. The dense layers themselves are not written to.
        batches: keyword arguments of the model's forward: `input_ids [b, t]`, and `attention_mask [b, t]` where there
            is padding (1: a token; rows of 0 stay out of the Hessian). May be empty for `method="rtn"`: errors are then
            None.
        settings, execution: how layers are quantized, and how that is carried out; or their fields as keywords, those of
            either: `bits=4, group_size=64, low_memory=True`. See `Settings` and `Execution`.
        skip: layers to leave dense: dotted names, ends of them, or globs.
        on_progress: called after each layer with (layers done, layers in all, report).

    Returns:
        A report for each layer, in the order they were reached.

    Raises:
        GroupSizeError, PackingError: a layer does not fit; raised before any work.
        WalkError: no blocks, a layer never reached or reached twice, batches that differ in order, padding that cannot
            be told.
        HessianError: a layer that cannot be solved. The layers before it are quantized by then: discard the model.
    """
    settings, execution = settings_and_execution(settings, execution, options)
    if settings.method == "gptq" and not batches:
        raise WalkError("No calibration batches were given.", "at least one.", "pass samples, or use method='rtn'.")
    targets = find_targets(model, skip)
    check_targets(targets, bits=settings.bits, group_size=settings.group_size)
    store = None
    if execution.work is not None:
        sizes = {name: features(linear) for name, linear in targets.items()}
        store = BlockStore(execution.work / "blocks", key_of(settings, execution, sizes, batches))
    layers = Layers(model, targets, settings, execution, on_progress=on_progress, store=store)
    if not batches:
        for name in targets:
            layers.solve(name, None)
        return layers.reports
    _check_experts(model, settings, execution)
    with torch.no_grad(), _evaluation(model), every_expert(model):
        if execution.low_memory:
            LowMemoryWalk(layers, batches).run()
        else:
            layers.resume()
            _Walk(layers, batches).run()
    return layers.reports


def _check_experts(model: nn.Module, settings: Settings, execution: Execution) -> None:
    """Raise for what experts are not quantized with."""
    asked = ["input_correction"] if settings.input_correction else []
    asked += ["low_memory"] if execution.low_memory else []
    if asked and any(isinstance(module, SeparateExperts) for _, module in named_modules(model)):
        raise WalkError(
            f"{' and '.join(asked)} is asked for, and {type(model).__name__} is a mixture of experts.",
            "neither, for experts: tokens are routed anew as layers change.",
            "leave it out (the preset best has input_correction).",
        )


class _Arrival(NamedTuple):
    """A batch stands before a layer."""

    name: str
    X: Tensor  # [.., in] as the layer was called
    routed: tuple[Tensor, Callable[[], Tensor]] | None = None  # of an expert: its tokens, and the input for all of them


class _Finished(BaseException):
    """Raised after the last block to end a batch's forward early: the head is not calibrated."""


class _Walk:
    """Runs all batches from gate to gate; see the module's docstring."""

    def __init__(self, layers: Layers, batches: Sequence[Batch]) -> None:
        self.layers = layers
        self.model = layers.model
        self.correct = layers.settings.input_correction > 0
        self.device = next(self.model.parameters()).device
        self.rows = [token_rows(batch) for batch in batches]
        self.batches = [prepare(batch, self.device, twice=self.correct) for batch in batches]
        self.gates = [name for name in layers.targets if name not in layers.done]
        self.calls: list[set[str]] = [set() for _ in batches]  # layers each batch has called
        self.runs = [Suspended[_Arrival](self._forward(i)) for i in range(len(batches))]
        self.pauses: list[Callable[[_Arrival], None] | None] = [None] * len(batches)
        self.running = 0  # the batch that has control

    def run(self) -> None:
        layers = self.layers
        with ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
            for run in self.runs:
                stack.callback(run.cancel)
            for name in self.gates:
                linear = layers.targets[name]
                linear.forward = self._gate(name, linear)  # pyright: ignore[reportAttributeAccessIssue]
                stack.callback(linear.__dict__.pop, "forward", None)
            if self.correct:
                for name in layers.done:
                    stack.enter_context(both_streams(self.model.get_submodule(name), layers.targets[name]))
            handle = layers.blocks[-1].register_forward_hook(self._after_last_block)
            stack.callback(handle.remove)

            stage: Stage | None = None
            while (arrivals := self._advance()) is not None:
                name = arrivals[0].name
                if stage is None or not stage.sees([a.X for a in arrivals]):
                    stage = self._stage(name, arrivals)
                if name in layers.done:
                    raise _called_twice(name)
                layers.solve(name, stage)
                handle = self.model.get_submodule(name).register_forward_pre_hook(self._count(name))
                stack.callback(handle.remove)
        check_all_reached(layers)

    def _stage(self, name: str, arrivals: Sequence[_Arrival]) -> Stage:
        """Fold in the inputs of all batches; of an expert that too few tokens reach, those of all tokens instead."""
        stage = Stage(name, self.layers.settings)
        for arrival, rows in zip(arrivals, self.rows, strict=True):
            token = None if arrival.routed is None else arrival.routed[0]
            stage.add(arrival.X, rows if rows is None or token is None else rows[token])
        if arrivals[0].routed is not None:
            reached, stage.routed = stage.n_tokens, stage.n_tokens
            if reached < features(self.layers.targets[name])[0]:
                stage = Stage(name, self.layers.settings)
                stage.routed = reached
                for arrival, rows in zip(arrivals, self.rows, strict=True):
                    assert arrival.routed is not None
                    stage.add(arrival.routed[1](), rows, keep=False)
        stage.close()
        return stage

    def _advance(self) -> list[_Arrival] | None:
        """Let every batch run to its next gate; None when all have ended."""
        arrivals: list[_Arrival] = []
        for i, run in enumerate(self.runs):
            self.running = i
            arrival = run.resume()
            if arrival is not None:
                arrivals.append(arrival)
        if not arrivals:
            return None
        names = sorted({a.name for a in arrivals})
        if len(arrivals) < len(self.runs) or len(names) > 1:
            raise WalkError(
                f"Calibration batches part ways: {len(arrivals)} of {len(self.runs)} wait, at {', '.join(names)}.",
                "all batches to reach the same layers in the same order.",
                "models with a data-dependent order (mixtures of experts) are not supported; skip those layers.",
            )
        return arrivals

    def _forward(self, i: int) -> Callable[[Callable[[_Arrival], None]], None]:
        def run(pause: Callable[[_Arrival], None]) -> None:
            self.pauses[i] = pause
            with suppress(_Finished), forward_in(self.layers.execution.forward_dtype, self.device):
                self.model(**self.batches[i])

        return run

    def _gate(self, name: str, linear: nn.Module) -> Callable[[Tensor], Tensor]:
        dense = type(linear).forward

        def forward(input: Tensor) -> Tensor:
            i = self.running
            pause = self.pauses[i]
            assert pause is not None
            with torch.autocast(self.device.type, enabled=False):  # while others run
                pause(_Arrival(name, input, routed(linear)))
            packed = self.model.get_submodule(name)  # by now the packed layer
            if not self.correct:
                return packed(input)
            quantized, source = input.chunk(2)
            return torch.cat([packed(quantized), dense(linear, source)])

        return forward

    def _count(self, name: str) -> Callable[..., None]:
        def before(*_: object) -> None:
            calls = self.calls[self.running]
            if name in calls:
                raise _called_twice(name)
            calls.add(name)

        return before

    def _after_last_block(self, *_: object) -> None:
        if len(self.calls[self.running]) == len(self.gates):
            raise _Finished


def _called_twice(name: str) -> WalkError:
    return WalkError(
        f"{name} was called more than once in one forward pass.",
        "each layer once: its later calls would not be calibrated.",
        "skip this module (models that share layers between blocks are not supported).",
    )


class _Cached(Protocol):
    """A configuration of transformers, as far as it is used here."""

    use_cache: bool | None


@contextmanager
def _evaluation(model: nn.Module) -> Generator[None]:
    """Put `model` into eval mode without a KV cache; both as before afterwards."""
    training = {name for name, module in named_modules(model) if module.training}
    config = cast(_Cached | None, getattr(model, "config", None))
    use_cache: bool | None = getattr(config, "use_cache", None)
    model.eval()
    if config is not None and use_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        for name, module in named_modules(model):  # by name: layers have been replaced
            module.training = name in training
        if config is not None and use_cache is not None:
            config.use_cache = use_cache
