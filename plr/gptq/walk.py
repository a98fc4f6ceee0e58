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
last block. Each batch costs a thread, and OpenMP's workers for it: prefer tens of batches of several samples to
thousands of one.

What it gives up: layers must be reached in the same order by all batches, once each. Mixtures of experts with a
data-dependent order and layers shared between blocks are an error, not a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plr.gptq import hessian, solver
from plr.gptq.blocks import check_targets, find_blocks, find_targets, named_modules, replace_module
from plr.gptq.errors import GPTQError, WalkError
from plr.gptq.linear import PackedLinear
from plr.gptq.suspend import Suspended

__all__ = ["METHODS", "ModuleReport", "quantize_model"]

METHODS = ("gptq", "rtn")
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class ModuleReport:
    """What happened to one layer."""

    name: str
    in_features: int
    out_features: int
    bits: int
    group_size: int
    error: float | None  # relative output error tr(E H E^T) / tr(W H W^T); None: no calibration data
    rtn_error: float | None  # the same for rounding to nearest on the same grid
    damp: float | None  # the number added to the diagonal of H; None: rounding to nearest
    n_tokens: int  # rows the Hessian has seen
    dead: int  # inputs that were always zero
    shared_input: bool  # whether the Hessian was that of the layer before
    seconds: float  # solving and packing this layer, without the forward


Progress = Callable[[int, int, ModuleReport], None]  # layers done, layers in all, the last one


def quantize_model(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    bits: int,
    group_size: int = 128,
    sym: bool = True,
    desc_act: bool = False,
    static_groups: bool = False,
    damp_percent: float = 0.01,
    block_size: int = 128,
    grid: str = "minmax",
    method: str = "gptq",
    kernel: str = "dequantized",
    measure_rtn: bool = True,
    on_progress: Progress | None = None,
    skip: Sequence[str] = ("lm_head",),
) -> list[ModuleReport]:
    """Replace the linear layers in the transformer blocks of `model`, in place, by `PackedLinear`.

    Args:
        model: any transformer made of repeated blocks of `nn.Linear`; it is run in eval mode as `model(**batch)`.
        batches: keyword arguments of the model's forward: `input_ids [b, t]`, and `attention_mask [b, t]` where there
            is padding (1: a token; rows of 0 stay out of the Hessian). May be empty for `method="rtn"`: errors are then
            None.
        bits, group_size, sym, desc_act, static_groups, damp_percent, block_size, grid: see
            `plr.gptq.solver.gptq_solve`.
        method: "gptq", or "rtn" (round to nearest).
        kernel: of the new layers, see `PackedLinear`.
        measure_rtn: report the error of rounding to nearest beside GPTQ's (costs a few per cent).
        on_progress: called after each layer with (layers done, layers in all, report).
        skip: layers to leave dense: dotted names, ends of them, or globs.

    Returns:
        A report for each layer, in the order they were reached.

    Raises:
        GroupSizeError, PackingError: a layer does not fit; raised before any work.
        WalkError: no blocks, a layer never reached or reached twice, batches that differ in order, padding that cannot
            be told.
        HessianError: a layer that cannot be solved. The layers before it are quantized by then: discard the model.
    """
    if method not in METHODS:
        raise GPTQError(f"method={method!r} was given.", f"one of {', '.join(METHODS)}.", "use 'gptq'.")
    if method == "gptq" and not batches:
        raise WalkError("No calibration batches were given.", "at least one.", "pass samples, or use method='rtn'.")
    targets = find_targets(model, skip)
    check_targets(targets, bits=bits, group_size=group_size)
    reports: list[ModuleReport] = []

    def install(name: str, stage: _Stage | None) -> None:
        """Solve the layer `name` and put the packed layer in its place."""
        start = time.perf_counter()
        linear = targets[name]
        common: dict[str, Any] = {"bits": bits, "group_size": group_size, "sym": sym, "grid": grid, "name": name}
        rtn_error: float | None = None
        if method == "gptq" and stage is not None:
            solution = solver.gptq_solve(
                linear.weight,
                stage.factor(damp_percent, desc_act),
                static_groups=static_groups,
                block_size=block_size,
                **common,
            )
            if measure_rtn:
                rtn_error = solver.rtn_solve(linear.weight, stage.H, solution.signal, **common).error
        else:
            solution = solver.rtn_solve(linear.weight, None if stage is None else stage.H, **common)
            rtn_error = solution.error
        packed = PackedLinear.from_solution(solution, linear.bias, dtype=linear.weight.dtype, kernel=kernel)
        if packed.bias is not None:
            packed.bias.requires_grad_(linear.bias.requires_grad)
        replace_module(model, name, packed)
        report = ModuleReport(
            name=name,
            in_features=linear.in_features,
            out_features=linear.out_features,
            bits=bits,
            group_size=group_size,
            error=solution.error,
            rtn_error=rtn_error,
            damp=solution.damp,
            n_tokens=0 if stage is None else stage.n_tokens,
            dead=solution.dead,
            shared_input=stage is not None and name != stage.name,
            seconds=time.perf_counter() - start,
        )
        reports.append(report)
        if on_progress is not None:
            on_progress(len(reports), len(targets), report)

    if batches:
        with torch.no_grad(), _evaluation(model):
            _Walk(model, targets, batches, install).run()
    else:
        for name in targets:
            install(name, None)
    return reports


class _Arrival(NamedTuple):
    """A batch stands before a layer."""

    name: str
    X: Tensor  # [.., in] as the layer was called


class _Stage:
    """The Hessian of one distinct input, shared by all layers that are called with it."""

    def __init__(self, name: str) -> None:
        self.name = name  # the first of these layers
        self.n_tokens = 0
        self.inputs: list[tuple[Tensor, int]] = []  # of each batch, with its version: kept to recognize it again
        self._hessian: Tensor | None = None
        self._factor: solver.Factor | None = None

    def add(self, X: Tensor, rows: Tensor | None) -> None:
        """Fold in the input of the next batch; `rows [b*t]` says which rows are tokens (None: all)."""
        self.inputs.append((X, X._version))
        flat = X.reshape(-1, X.shape[-1])  # [b*t, in]
        if rows is not None:
            if rows.numel() != flat.shape[0]:
                raise WalkError(
                    f"{self.name} was called with {flat.shape[0]} rows for a batch of {rows.numel()} positions.",
                    "one row for each position, to tell padding from tokens.",
                    "calibrate without padding (batches of samples of equal length).",
                )
            flat = flat[rows]
        if self._hessian is None:
            self._hessian = hessian.empty(flat.shape[1], flat.device)
        self.n_tokens = hessian.accumulate(self._hessian, flat, self.n_tokens)

    def sees(self, arrivals: Sequence[_Arrival]) -> bool:
        """Whether every batch brings the very input that this stage has seen, unchanged."""
        return all(
            _same(X, a.X) and X._version == version for (X, version), a in zip(self.inputs, arrivals, strict=True)
        )

    @property
    def H(self) -> Tensor:
        assert self._hessian is not None
        return self._hessian

    def close(self) -> None:
        hessian.finish(self.H)

    def factor(self, damp_percent: float, desc_act: bool) -> solver.Factor:
        if self._factor is None:
            self._factor = solver.factor(
                self.H, damp_percent=damp_percent, desc_act=desc_act, name=self.name, n_samples=self.n_tokens
            )
        return self._factor


class _Finished(BaseException):
    """Ends a batch's forward after the last block: the head has nothing to say to calibration."""


class _Walk:
    """Runs all batches from gate to gate; see the module's docstring."""

    def __init__(
        self,
        model: nn.Module,
        targets: dict[str, nn.Linear],
        batches: Sequence[Batch],
        install: Callable[[str, _Stage], None],
    ) -> None:
        self.model = model
        self.targets = targets
        self.install = install
        self.device = next(model.parameters()).device
        self.batches = [{k: _to(v, self.device) for k, v in batch.items() if k != "labels"} for batch in batches]
        self.rows = [_token_rows(batch) for batch in self.batches]
        self.solved: dict[str, None] = {}
        self.calls: list[set[str]] = [set() for _ in batches]  # layers each batch has called
        self.runs = [Suspended[_Arrival](self._forward(i)) for i in range(len(batches))]
        self.pauses: list[Callable[[_Arrival], None] | None] = [None] * len(batches)
        self.running = 0  # the batch whose thread has control

    def run(self) -> None:
        with ExitStack() as stack:
            for run in self.runs:
                stack.callback(run.cancel)
            for name, linear in self.targets.items():
                linear.forward = self._gate(name)  # pyright: ignore[reportAttributeAccessIssue]
                stack.callback(linear.__dict__.pop, "forward", None)
            _, blocks = find_blocks(self.model)
            handle = blocks[-1].register_forward_hook(self._after_last_block)
            stack.callback(handle.remove)

            stage: _Stage | None = None
            while (arrivals := self._advance(stage)) is not None:
                name = arrivals[0].name
                if stage is None or not stage.sees(arrivals):
                    stage = _Stage(name)
                    for arrival, rows in zip(arrivals, self.rows, strict=True):
                        stage.add(arrival.X, rows)
                    stage.close()
                if name in self.solved:
                    raise _called_twice(name)
                self.install(name, stage)
                self.solved[name] = None
                handle = self.model.get_submodule(name).register_forward_pre_hook(self._count(name))
                stack.callback(handle.remove)
        missed = [name for name in self.targets if name not in self.solved]
        if missed:
            raise WalkError(
                f"The forward pass never reached {', '.join(missed)}.",
                "every linear layer of the blocks to be called.",
                "skip these modules, or calibrate with inputs that reach them.",
            )

    def _advance(self, stage: _Stage | None) -> list[_Arrival] | None:
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
            device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
            with suppress(_Finished), torch.no_grad(), device:  # no_grad and the device belong to the thread
                self.model(**self.batches[i])

        return run

    def _gate(self, name: str) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            i = self.running
            pause = self.pauses[i]
            assert pause is not None
            pause(_Arrival(name, input))
            return self.model.get_submodule(name)(input)  # by now the packed layer

        return forward

    def _count(self, name: str) -> Callable[..., None]:
        def before(*_: Any) -> None:
            calls = self.calls[self.running]
            if name in calls:
                raise _called_twice(name)
            calls.add(name)

        return before

    def _after_last_block(self, *_: Any) -> None:
        if len(self.calls[self.running]) == len(self.targets):
            raise _Finished


def _called_twice(name: str) -> WalkError:
    return WalkError(
        f"{name} was called more than once in one forward pass.",
        "each layer once: its later calls would not be calibrated.",
        "skip this module (models that share layers between blocks are not supported).",
    )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory seen the same way."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    )


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _token_rows(batch: Batch) -> Tensor | None:
    """Which of the `b*t` positions are tokens, or None where all are."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or bool((mask != 0).all()):
        return None
    if mask.dim() != 2:
        raise WalkError(
            f"attention_mask of shape {tuple(mask.shape)}.",
            "[b, t] with 1 for tokens, 0 for padding.",
            "pass the 2-D mask.",
        )
    if not bool(mask.any()):
        raise WalkError("A calibration batch is all padding.", "at least one token.", "drop empty samples.")
    return mask.reshape(-1) != 0


@contextmanager
def _evaluation(model: nn.Module) -> Generator[None]:
    """Eval mode without a KV cache; both as before afterwards."""
    training = {name for name, module in named_modules(model) if module.training}
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    model.eval()
    if use_cache is not None:
        config.use_cache = False  # pyright: ignore[reportOptionalMemberAccess]
    try:
        yield
    finally:
        for name, module in named_modules(model):  # by name: layers have been replaced
            module.training = name in training
        if use_cache is not None:
            config.use_cache = use_cache  # pyright: ignore[reportOptionalMemberAccess]
