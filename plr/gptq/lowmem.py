"""The walk that holds one block and one batch: for models whose activations, or whose weights on a GPU, do not fit.

How it works:

1. what enters block i lies in one file a batch, `[b, t, hidden]`, mapped into memory: the system keeps of it what fits;
2. block i is made float32 and moved to the device. For each stage (the layers of one input) every batch is run through
   the block up to the stage's first layer, whose input goes into the Hessian; then the stage is solved and packed;
3. every batch is run through the finished block, its output replaces its file, and the block goes back.

To run one block, the whole model is called with all other blocks replaced by a stub: that of block i - 1 hands out the
stored activations, those before it pass on what they get. So masks, rotary embeddings and whatever else a family computes
for its blocks are its own code's, and nothing is assumed about a block's arguments but that the first is, and its output
begins with, the hidden state.

What it costs against the other walk: a batch runs through a block once for each of its stages (about three times the
arithmetic of the forward, none of the Hessians'). What it gives: the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plr.gptq.errors import WalkError
from plr.gptq.layers import Layers
from plr.gptq.stage import Stage, same_tensor
from plr.gptq.streams import Batch, both_streams, check_all_reached, forward_in, prepare, token_rows

__all__ = ["LowMemoryWalk"]


class _Reached(BaseException):
    """Raised to end a batch's forward where the walk has what it wants."""


class _Output(NamedTuple):
    """Form of a block's output: the hidden state by itself, or first in a tuple, before `rest`."""

    in_tuple: bool
    rest: tuple[object, ...]

    def around(self, hidden: Tensor) -> Tensor | tuple[object, ...]:
        """Return `hidden` as the block would."""
        return (hidden, *self.rest) if self.in_tuple else hidden


class LowMemoryWalk:
    """Quantizes `layers` block by block; see the module's docstring."""

    def __init__(self, layers: Layers, batches: Sequence[Batch]) -> None:
        self.layers = layers
        self.model = layers.model
        self.correct = layers.settings.input_correction > 0
        self.home = next(self.model.parameters()).device
        device = layers.execution.device
        self.device = torch.device(device) if device is not None else self.home
        self.rows = [token_rows(batch) for batch in batches]
        self.batches = [prepare(batch, torch.device("cpu"), twice=self.correct) for batch in batches]
        self.states: list[Tensor | None] = [None] * len(batches)  # [b, t, hidden], what enters the next block
        self.output: _Output | None = None  # of the blocks; None until the first has run

    def run(self) -> None:
        """Quantize every target, or go on after the blocks an earlier run has left."""
        layers, blocks, work = self.layers, self.layers.blocks, self.layers.execution.work
        finished = layers.resume()
        with ExitStack() as stack:
            if work is not None:
                work.mkdir(parents=True, exist_ok=True)
                for left in work.glob("states-*"):  # by a run that was killed
                    shutil.rmtree(left, ignore_errors=True)
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="states-", dir=work)))
            stack.enter_context(self._rest_on_device())
            indices = sorted(layers.members)
            last = indices[-1]
            for i, block in enumerate(blocks[: last + 1]):
                names = layers.members.get(i, [])
                with self._block_on_device(
                    block, names, done=indices.index(i) < finished if names else True
                ) as serving:
                    if any(name not in layers.done for name in names):
                        for stage_names in self._stages(i, names):
                            self._solve(i, stage_names, serving)
                    if i < last:
                        self._pass(i)
        check_all_reached(layers)

    def _stages(self, i: int, names: Sequence[str]) -> list[list[str]]:
        """List the layers of block `i` in the order the first batch reaches them, those of one input together."""
        seen: list[tuple[str, Tensor, int]] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                if any(name == other for other, _, _ in seen):
                    raise WalkError(
                        f"{name} was called more than once in one forward pass.",
                        "each layer once: its later calls would not be calibrated.",
                        "skip this module (models that share layers between blocks are not supported).",
                    )
                seen.append((name, args[0], args[0]._version))

            return hook

        with ExitStack() as stack:
            for name in names:
                handle = self.layers.targets[name].register_forward_pre_hook(note(name))
                stack.callback(handle.remove)
            self._run(i, 0)
        stages: list[list[str]] = []
        before: tuple[Tensor, int] | None = None
        for name, X, version in seen:
            if before is not None and same_tensor(X, before[0]) and version == before[1]:
                stages[-1].append(name)
            else:
                stages.append([name])
            before = (X, version)
        return stages

    def _solve(self, i: int, names: Sequence[str], serving: ExitStack) -> None:
        """Quantize the layers of one stage."""
        stage = Stage(names[0], self.layers.settings)
        for batch, rows in enumerate(self.rows):
            stage.add(self._input_of(i, names[0], batch), rows, keep=False)
        stage.close()
        for name in names:
            self.layers.solve(name, stage)
            if self.correct:
                serving.enter_context(both_streams(self.model.get_submodule(name), self.layers.targets[name]))

    def _input_of(self, i: int, name: str, batch: int) -> Tensor:
        inputs: list[Tensor] = []

        def reached(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.append(args[0])
            raise _Reached

        handle = self.layers.targets[name].register_forward_pre_hook(reached)
        try:
            self._run(i, batch)
        finally:
            handle.remove()
        if not inputs:
            raise WalkError(
                f"{name} was reached by the first calibration batch and not by batch {batch}.",
                "all batches to reach the same layers in the same order.",
                "models with a data-dependent order (mixtures of experts) are not supported; skip those layers.",
            )
        return inputs[0]

    def _pass(self, i: int) -> None:
        """Run every batch through block `i` and keep what comes out."""
        for batch in range(len(self.batches)):
            state = self._run(i, batch)
            assert state is not None
            stored = self.states[batch]
            if stored is None or stored.shape != state.shape or stored.dtype != state.dtype:
                stored = self._spill(batch, state)
            stored.copy_(state)
            self.states[batch] = stored

    def _spill(self, batch: int, like: Tensor) -> Tensor:
        file = self.folder / f"batch-{batch:05}"
        with file.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, and not a crash when pages are written
                os.posix_fallocate(stream.fileno(), 0, like.numel() * like.element_size())
        mapped = torch.from_file(str(file), shared=True, size=like.numel(), dtype=like.dtype)
        return mapped.view(like.shape)

    def _run(self, i: int, batch: int) -> Tensor | None:
        """Call the model with block `i` real and all others stubs; returns the hidden state that block `i` does."""
        out: list[Tensor] = []

        def after(module: nn.Module, args: object, output: Tensor | tuple[object, ...]) -> None:
            hidden, self.output = _taken_apart(output)
            out.append(hidden)
            raise _Reached

        handle = self.layers.blocks[i].register_forward_hook(after)
        inputs = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in self.batches[batch].items()}
        with self._stubs(i, batch), forward_in(self.layers.execution.forward_dtype, self.device):
            try:
                self.model(**inputs)
            except _Reached:
                pass
            finally:
                handle.remove()
        return out[0] if out else None

    @contextmanager
    def _stubs(self, i: int, batch: int) -> Generator[None]:
        """Replace all blocks before `i`; that of `i - 1` hands out the stored state."""
        blocks = self.layers.blocks
        state = self.states[batch]

        def stub(index: int) -> Callable[..., object]:
            def forward(*args: object, **kwargs: object) -> object:
                hidden = cast(Tensor, args[0] if args else kwargs["hidden_states"])
                if index == i - 1 and state is not None:
                    hidden = state.to(self.device)
                return hidden if self.output is None else self.output.around(hidden)

            return forward

        with ExitStack() as stack:
            for index in range(i):
                blocks[index].forward = stub(index)  # pyright: ignore[reportAttributeAccessIssue]
                stack.callback(blocks[index].__dict__.pop, "forward", None)
            yield

    @contextmanager
    def _rest_on_device(self) -> Generator[None]:
        """Hold what lies outside of the blocks (embeddings, norms, not the head) on the device, in float32."""
        blocks, inside = self.layers.blocks, set(self.layers.blocks.modules())
        own_head = getattr(self.model, "get_output_embeddings", None)
        head: nn.Module | None = own_head() if own_head is not None else None
        moved: list[tuple[nn.Module, torch.dtype]] = []
        for module in self.model.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if module in inside or module is head or not own or module is blocks:
                continue
            moved.append((module, next((p.dtype for p in own if p.is_floating_point()), torch.float32)))
        tables: list[RemovableHandle] = []
        for module, dtype in moved:
            if type(module) is nn.Embedding:  # large, and as exact when its rows are cast after they were looked up
                _move_own(module, self.device, dtype)
                tables.append(module.register_forward_hook(_in_float32))
            else:
                _move_own(module, self.device, torch.float32)
        try:
            yield
        finally:
            for table in tables:
                table.remove()
            for module, dtype in moved:
                _move_own(module, self.home, dtype)

    @contextmanager
    def _block_on_device(self, block: nn.Module, names: Sequence[str], *, done: bool) -> Generator[ExitStack]:
        """Hold `block` in float32 on the device; afterwards back, in its own dtype. Yields what ends before it goes back."""
        dtype = next((p.dtype for p in block.parameters() if p.is_floating_point()), torch.float32)
        block.to(self.device, torch.float32)
        try:
            with ExitStack() as serving:
                if self.correct and done:
                    for name in names:  # the dense layers of a block that an earlier run finished
                        dense = self.layers.targets[name].to(self.device, torch.float32)
                        serving.enter_context(both_streams(self.model.get_submodule(name), dense))
                yield serving
        finally:
            for name in names:
                self.layers.targets[name].to(self.home, dtype)
            block.to(self.home, dtype)


def _taken_apart(output: Tensor | tuple[object, ...]) -> tuple[Tensor, _Output]:
    """Split what a block returned into its hidden state and the form it came in.

    Raises:
        WalkError: tensors beside the hidden state.
    """
    if isinstance(output, Tensor):
        return output, _Output(in_tuple=False, rest=())
    hidden, *rest = output
    if any(isinstance(item, Tensor) for item in rest):
        raise WalkError(
            "A block returns tensors beside its hidden state.",
            "blocks that return a hidden state alone.",
            "quantize this model without low_memory.",
        )
    return cast(Tensor, hidden), _Output(in_tuple=True, rest=tuple(rest))


def _in_float32(module: nn.Module, args: object, output: Tensor) -> Tensor:
    """Cast the rows that were looked up in an embedding."""
    return output.float()


def _move_own(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move the parameters and buffers of `module` itself, floating ones to `dtype`."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)
