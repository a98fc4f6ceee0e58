"""A linear layer with block-sparse updates: `y = base(x) + x dW^T`, `dW = alpha * Sparse(p, v W^v)`, `(p, v) = TopK(W^p)`.

Source: Harada, Yamazaki, Yoshida (Toshiba), equations 1 to 4: W^p `[n, m]` is drawn from a normal distribution, W^v
`[k, d_out/n, d_in/m]` is zero, so dW is zero at the start; `phi = nm + k (d_out/n)(d_in/m)` parameters.

1. **Selection.** `sparse_positions` says which block each slot holds. In training, every forward looks whether the slots still
   hold the top k blocks; only after an optimizer step can the answer be no. A slot whose block has fallen out goes to the best
   block that has come in, and its values restart at zero. All other slots stay: dW changes by the blocks that left, which is what
   TopK means, and by nothing else. Recomputation (gradient checkpointing), accumulation and ties change nothing: an incumbent
   stays at equal score. In `eval()`, and for a frozen adapter, the selection stands still: what was saved is what is served.
   The literal reading, "slot i holds the block of rank i", is not used: two selected scores that swap ranks would swap the
   contents of their blocks, and dW would jump although TopK chose the same blocks.
2. **Gradient to W^p** comes through v alone: `dL/dv_i = alpha <W^v_i, dL/dW block>`. TopK itself has none. Scores that are not
   selected get gradient 0 and stay where they are; a block can only come in when a selected score falls below its own.
3. **Why v stays positive.** A selected score leaves when it falls below the best score outside. Outside are the initial scores
   of blocks never chosen, and fallen ones just below the bar of their time. As long as positive scores are left outside (about
   nm/2 - k of them at the start) the bar is positive, and so is every v at the moment of selection. One optimizer step may carry a
   score below the bar before the next forward lets it go. With k = nm nothing competes and v is free.
   The bar must be positive at the start too: if fewer than k+1 of the nm drawn scores are, all are replaced by their absolute
   values (half-normal). Drawing again would not do: for k above nm/2 it would nearly never end.
4. **Optimizers.** Moments belong to the slot, not to the block: after a slot moves, Adam's first moment of the old block pushes
   the new one for about 1/(1 - beta1) = 10 steps; `clear_moments` in `sparse` forgets it.
   Decoupled weight decay (AdamW) multiplies all scores by one factor: the order, and so the selection, stays, while v shrinks, and
   with it dW, in addition to the decay of W^v. L2 decay inside Adam moves scores outside too, toward zero: use AdamW, or none.

Given up: only float weights take a merge; k-bit layers serve the adapter beside them.
"""

from __future__ import annotations

from typing import cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from plr.adapters.sparse.budget import Grid, SparseConfigError, SparseLayerError, check_grid
from plr.adapters.sparse.config import SparseConfig
from plr.adapters.sparse.product import add_block_product, dense_blocks, weighted_blocks

__all__ = ["SparseLayer", "draw_scores", "features", "reassign"]

TEST_VALUES_STD = 0.1  # of W^v under init_weights=False


def features(module: nn.Module, name: str = "the layer") -> tuple[int, int]:
    """Return (d_out, d_in) of the weight of a linear layer.

    Raises:
        SparseLayerError: it is no linear layer.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise SparseLayerError(
            f"Target module {name} is not supported: nn.MultiheadAttention reads its weight and never calls it",
            expected="linear layers that are called",
            hint="name others in target_modules",
        )
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    d_out, d_in = getattr(module, "out_features", None), getattr(module, "in_features", None)
    # Layers of quantization libraries are no nn.Linear, and compute y = x W^T like one.
    if isinstance(d_out, int) and isinstance(d_in, int) and "Bilinear" not in type(module).__name__:
        return d_out, d_in
    raise SparseLayerError(
        f"Target module {name} is not supported: it is a {type(module).__name__}",
        expected="linear layers: torch.nn.Linear, PackedLinear, transformers' Conv1D, or a quantized linear layer",
        hint="name others in target_modules; train this one whole with modules_to_save",
    )


def draw_scores(n: int, m: int, k: int, std: float) -> Tensor:
    """Draw W^p `[n, m]`: normal, or half-normal where fewer than k+1 of them would be positive (see 3 above)."""
    scores = torch.randn(n, m) * std
    if not scores.is_meta and int((scores > 0).sum()) < min(k + 1, n * m):
        scores = scores.abs()
    return scores


def reassign(scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the blocks of the slots after `scores [n, m]` changed: `(positions [k], keep bool [k])`.

    A slot keeps its block while no k others have a higher score; the j-th slot that does not gets the j-th best block outside.
    Shapes do not depend on values: it compiles without a graph break.
    """
    flat, k = scores.flatten(), len(positions)
    bar = flat.topk(k).values[-1]
    keep = flat.index_select(0, positions) >= bar
    outside = flat.numel() - k
    if outside == 0:
        return positions, torch.ones_like(keep)
    entering = flat.index_fill(0, positions, -torch.inf).topk(min(k, outside)).indices
    turn = ((~keep).cumsum(0) - 1).clamp(0, len(entering) - 1)
    return torch.where(keep, positions, entering.index_select(0, turn)), keep


class SparseLayer(nn.Module, BaseTunerLayer):
    """A linear layer with sparse adapters by name; see the module's docstring.

    For each adapter: parameters `sparse_scores` `[n, m]` and `sparse_values` `[k, d_out/n, d_in/m]`, buffer
    `sparse_positions` int64 `[k]` (slot -> block `row * m + col`), and `alpha`.
    """

    adapter_layer_names = ("sparse_scores", "sparse_values")  # pyright: ignore
    other_param_names = ("sparse_positions", "alpha")  # pyright: ignore

    def __init__(self, base_layer: nn.Module, adapter_name: str, grid: Grid, k: int, config: SparseConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.out_features, self.in_features = features(self.get_base_layer(), grid.name)
        self.sparse_scores = nn.ParameterDict()
        self.sparse_values = nn.ParameterDict()
        self.sparse_positions = BufferDict(persistent=True)
        self.alpha: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self._unmerged: dict[str, Tensor] = {}  # [k, bo, bi]: what stood where a merged adapter's blocks are
        self._moved: dict[str, Tensor] = {}  # bool [k]: slots that moved and were not asked for yet
        self._active_adapter = [adapter_name]
        self.update_layer(adapter_name, grid, k, config)

    def update_layer(self, adapter_name: str, grid: Grid, k: int, config: SparseConfig) -> None:
        """Add an adapter of that name, or begin it anew.

        Raises:
            SparseConfigError: the grid does not divide the weight, or has fewer than k blocks.
        """
        check_grid(grid, k)
        if hasattr(self.sparse_scores, adapter_name) and adapter_name not in self.sparse_scores:
            raise SparseConfigError(
                f"an adapter cannot be called {adapter_name!r}: it is a word of torch's ParameterDict",
                hint="choose another name",
            )
        scores = draw_scores(grid.n, grid.m, k, config.init_std)
        values = torch.zeros(k, self.out_features // grid.n, self.in_features // grid.m)
        if not config.init_weights:
            values.normal_(0, TEST_VALUES_STD)
        self._unmerged.pop(adapter_name, None)
        self._moved.pop(adapter_name, None)
        self.alpha[adapter_name] = config.alpha
        self.sparse_positions[adapter_name] = scores.flatten().topk(k).indices
        self.sparse_scores[adapter_name] = nn.Parameter(scores)
        self.sparse_values[adapter_name] = nn.Parameter(values)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._unmerged.pop(adapter_name, None)
        self._moved.pop(adapter_name, None)

    def positions(self, adapter_name: str) -> Tensor:
        """Return the block of each slot, `row * m + col`: int64 `[k]`."""
        return cast(Tensor, self.sparse_positions[adapter_name])

    # -- selection --

    def select(self, adapter_name: str) -> None:
        """Let slots whose block is no longer among the top k go to those that are; in training only, and idempotent."""
        scores, values = self.sparse_scores[adapter_name], self.sparse_values[adapter_name]
        positions = self.positions(adapter_name)
        if not (self.training and scores.requires_grad) or scores.is_meta:
            return
        with torch.no_grad():
            if not torch.compiler.is_compiling():
                flat = scores.flatten()
                if int((flat > flat.index_select(0, positions).min()).sum()) < len(positions):
                    return  # fewer than k scores are above the lowest selected
            fresh, keep = reassign(scores, positions)
            positions.copy_(fresh)
            values.mul_(keep.to(values.dtype)[:, None, None])
            if not torch.compiler.is_compiling():
                moved = self._moved.get(adapter_name)
                self._moved[adapter_name] = ~keep if moved is None else moved.to(keep.device) | ~keep

    def take_moved(self, adapter_name: str) -> Tensor | None:
        """Take the slots that moved since the last call, bool `[k]`; None where none did. Not known of compiled forwards."""
        return self._moved.pop(adapter_name, None)

    # -- forward --

    def forward(self, x: Tensor, *args: object, adapter_names: list[str] | None = None, **kwargs: object) -> Tensor:
        """Multiply `[.., d_in] -> [.., d_out]`; `adapter_names` gives each row of the batch its own adapter (`__base__`: none)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.sparse_values:
                self.select(name)
                result = self._add(result, x, name)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        return add_block_product(
            result,
            x,
            self.sparse_scores[name],
            self.sparse_values[name],
            self.positions(name),
            self.alpha[name],
        )

    def _forward_mixed(self, x: Tensor, adapter_names: list[str], *args: object, **kwargs: object) -> Tensor:
        if len(adapter_names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result = self.base_layer(x, *args, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name in self.sparse_values and not self.disable_adapters:
                rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
                result = result.index_copy(0, rows, self._add(result[rows], x[rows], name))
        return result

    # -- merging --

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Compute dW `[d_out, d_in]` (of a Conv1D `[d_in, d_out]`), dense, in the adapter's dtype."""
        n, m = self.sparse_scores[adapter].shape
        delta = dense_blocks(self._blocks(adapter), self.positions(adapter), n, m)
        return delta.t() if isinstance(self.get_base_layer(), Conv1D) else delta

    def _blocks(self, adapter: str) -> Tensor:
        positions = self.positions(adapter)
        return weighted_blocks(self.sparse_scores[adapter], self.sparse_values[adapter], positions, self.alpha[adapter])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters, or those named, into the base weight: k blocks change, all others keep their bits.

        Raises:
            SparseLayerError: the base stores codes, which cannot take a sum.
            ValueError: under `safe_merge`, a merged weight would not be finite; the base is as before.
        """
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.sparse_values:
                continue
            grid, rows, cols = self._base_grid(name)
            before = grid[rows, :, cols]
            after = (before + self._blocks(name).to(before.dtype)).detach()
            if safe_merge and not bool(after.isfinite().all()):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            self._unmerged[name] = before
            grid[rows, :, cols] = after
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the weights back that merging changed, bit by bit, last merged first."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            grid, rows, cols = self._base_grid(name)
            grid[rows, :, cols] = self._unmerged.pop(name).to(grid)

    def _base_grid(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the base weight as a view `[n, bo, m, bi]`, and the rows and columns `[k]` of the adapter's blocks."""
        base = self.get_base_layer()
        weight = base._parameters.get("weight")
        count = self.out_features * self.in_features
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.numel() != count:
            raise SparseLayerError(
                f"a sparse adapter cannot be merged into a {type(base).__name__}",
                expected="a layer that stores float weights",
                hint="keep it beside the k-bit base, or merge it into the 16-bit model",
            )
        dense = weight.data.t() if isinstance(base, Conv1D) else weight.data
        n, m = self.sparse_scores[adapter].shape
        positions = self.positions(adapter)
        return dense.unflatten(1, (m, -1)).unflatten(0, (n, -1)), positions // m, positions % m

    def __repr__(self) -> str:
        return "sparse." + super().__repr__()
