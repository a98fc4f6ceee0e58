"""The layers a walk quantizes: solve, pack, put in place, report, and keep what lets a killed run go on.

Layers of one input are solved side by side, as rows of one matrix: the column loop costs per column, not per layer. Which
layers belong together is learned in the first block (q, k, v; gate, up) and believed in the others until a walk finds
otherwise: a layer that turns out to see another input is solved again, alone.

With a folder, each block is written when its last layer is packed (`plr.gptq.resume`), and found again by a later run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from plr.gptq.blocks import LinearLike, bias_of, dense_weight, features, find_blocks, replace_module
from plr.gptq.errors import GPTQError, WalkError
from plr.gptq.execution import Execution
from plr.gptq.linear import PackedLinear
from plr.gptq.resume import BlockStore
from plr.gptq.settings import Settings
from plr.gptq.solution import Solution
from plr.gptq.solver import gptq_solve, rtn_solve
from plr.gptq.stage import Stage

__all__ = ["Layers", "ModuleReport", "Progress"]


@dataclass(frozen=True)
class ModuleReport:
    """A report on one quantized layer."""

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
    seconds: float  # of solving and packing, without the forward; its share where several were solved side by side
    routed: int | None = (
        None  # tokens routed to this expert, if fewer than n_tokens: its Hessian is of all; None: no expert
    )


Progress = Callable[[int, int, ModuleReport], None]  # layers done, layers in all, the last one


class Layers:
    """The targets of one model and what has become of them."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, LinearLike],
        settings: Settings,
        execution: Execution,
        *,
        on_progress: Progress | None = None,
        store: BlockStore | None = None,
    ) -> None:
        self.model = model
        self.targets = targets
        self.settings = settings
        self.execution = execution
        self.on_progress = on_progress
        self.store = store
        self.reports: list[ModuleReport] = []
        self.done: set[str] = set()
        self.prefix, self.blocks = find_blocks(model)
        self.members: dict[int, list[str]] = {}  # block -> its targets
        for name in targets:
            self.members.setdefault(self.block_of(name), []).append(name)
        self.first_block = min(self.members)
        self.sharers: dict[str, list[str]] = {}  # inner name of the first layer of an input -> those of all its layers
        self._ahead: dict[str, tuple[Stage, Solution, float | None, float]] = {}  # solved with an earlier layer

    def block_of(self, name: str) -> int:
        """Read the index of the block that the layer `name` lies in."""
        match = re.match(r"\.(\d+)\.", name.removeprefix(self.prefix))
        if match is None:
            raise WalkError(f"{name} lies in no numbered block of {self.prefix}.", "block.<index>.<layer>.", "skip it.")
        return int(match[1])

    def inner(self, name: str) -> str:
        """Take the name of a layer within its block: `self_attn.q_proj`."""
        return name.removeprefix(f"{self.prefix}.{self.block_of(name)}.")

    def resume(self) -> int:
        """Put the blocks in place that an earlier run has left; returns how many."""
        if self.store is None:
            return 0
        count = 0
        for index, names in sorted(self.members.items()):
            finished = self.store.load(index, names)
            if finished is None:
                break
            packed, record = finished
            for name, layer in packed.items():
                self._place(name, layer)
            self.reports += [ModuleReport(**report) for report in record["reports"]]
            self.sharers = record["sharers"]
            self.done.update(names)
            count += 1
        if count and self.on_progress is not None:
            self.on_progress(len(self.reports), len(self.targets), self.reports[-1])
        return count

    def solve(self, name: str, stage: Stage | None) -> None:
        """Quantize the layer `name`, whose input is that of `stage`, and put the packed layer in its place."""
        start = time.perf_counter()
        ahead = self._ahead.pop(name, None)
        if ahead is not None and ahead[0] is stage:
            solution, rtn_error, seconds = ahead[1:]
        else:
            solution, rtn_error = self._solve_with_sharers(name, stage)
            seconds = 0.0
        linear = self.targets[name]
        in_features, out_features = features(linear)
        self._place(
            name,
            PackedLinear.from_solution(
                solution, bias_of(linear), dtype=linear.weight.dtype, kernel=self.execution.kernel
            ),
        )
        report = ModuleReport(
            name=name,
            in_features=in_features,
            out_features=out_features,
            bits=self.settings.bits,
            group_size=self.settings.group_size,
            error=solution.error,
            rtn_error=rtn_error,
            damp=solution.damp,
            n_tokens=0 if stage is None else stage.n_tokens,
            dead=solution.dead,
            shared_input=stage is not None and name != stage.name,
            seconds=seconds + time.perf_counter() - start,
            routed=None if stage is None else stage.routed,
        )
        self.reports.append(report)
        self.done.add(name)
        self._learn(name, stage)
        self._keep_block(self.block_of(name))
        if self.on_progress is not None:
            self.on_progress(len(self.reports), len(self.targets), report)

    def _solve_with_sharers(self, name: str, stage: Stage | None) -> tuple[Solution, float | None]:
        """Solve `name` and the layers expected to share its input; their solutions are kept for their turn."""
        block = self.block_of(name)
        names = [name]
        if stage is not None and block != self.first_block:
            siblings = [f"{self.prefix}.{block}.{inner}" for inner in self.sharers.get(self.inner(name), ())]
            names += [n for n in siblings if n != name and n in self.targets and n not in self.done]
            columns = features(self.targets[name])[0]
            names = [n for n in names if features(self.targets[n])[0] == columns]
        start = time.perf_counter()
        weights = [dense_weight(self.targets[n]) for n in names]
        W = torch.cat([weight.detach() for weight in weights]) if names[1:] else weights[0]
        solution, rtn = self._solve(W, stage, " + ".join(names))
        rows = [features(self.targets[n])[1] for n in names]
        parts = solution.split(rows) if names[1:] else [solution]
        rtns = rtn.split(rows) if rtn is not None and names[1:] else [rtn] * len(names)
        seconds = time.perf_counter() - start
        for n, part, rounded, size in zip(names[1:], parts[1:], rtns[1:], rows[1:], strict=True):
            assert stage is not None
            share = seconds * size / sum(rows)
            self._ahead[n] = (stage, part, None if rounded is None else rounded.error, share)
        return parts[0], None if rtns[0] is None else rtns[0].error

    def _solve(self, W: Tensor, stage: Stage | None, label: str) -> tuple[Solution, Solution | None]:
        """Solve `W [out, in]` and, where asked for, round it to nearest."""
        settings = self.settings
        if settings.method == "rtn" or stage is None:
            solution = rtn_solve(W, None if stage is None else stage.H, settings=settings, name=label)
            return solution, solution
        solution = gptq_solve(W, stage.factor, settings=settings, target=stage.target(W), name=label)
        if not self.execution.measure_rtn:
            return solution, None
        power = solution.power if stage.shift is None else None
        return solution, rtn_solve(W, stage.H, power, settings=settings, name=label)

    def _place(self, name: str, packed: PackedLinear) -> None:
        bias = bias_of(self.targets[name])
        if packed.bias is not None and bias is not None:
            packed.bias.data.copy_(bias)
            packed.bias.requires_grad_(bias.requires_grad)
        packed.kernel = self.execution.kernel
        replace_module(self.model, name, packed)

    def _learn(self, name: str, stage: Stage | None) -> None:
        if stage is not None and self.block_of(name) == self.first_block:
            self.sharers.setdefault(self.inner(stage.name), []).append(self.inner(name))

    def _keep_block(self, index: int) -> None:
        names = self.members[index]
        if self.store is None or any(name not in self.done for name in names):
            return
        packed: dict[str, PackedLinear] = {}
        for name in names:
            layer = self.model.get_submodule(name)
            if not isinstance(layer, PackedLinear):
                raise GPTQError(f"{name} is {type(layer).__name__}.", "a packed layer.", "do not replace it meanwhile.")
            packed[name] = layer
        reports = [asdict(report) for report in self.reports if report.name in packed]
        self.store.save(index, packed, {"reports": reports, "sharers": self.sharers})
