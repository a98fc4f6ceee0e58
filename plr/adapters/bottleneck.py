"""Bottleneck adapters: a small two-layer network beside or behind a module, as a method of PEFT.

1. *serial* (Houlsby et al., 2019, arXiv:1902.00751, figure 2): `h = f(x) + s * up(act(down(f(x))))`, put on the output
   projection of each sublayer, so before the residual connection;
2. *parallel* (He et al., 2022, arXiv:2110.04366, equation 8): `h = f(x) + s * up(act(down(x)))`, around a whole module such
   as `mlp`, or around a linear layer;
3. `up` starts at zero: the adapted model is the base, bit for bit, until the first step;
4. the wrapped module is only called, its weight is never read: a dense layer, a layer of k-bit codes and a module of any
   number of layers are all the same to it.

With several active adapters their terms are added (each sees `f(x)` or `x`, not what another made of it).

What it gives up: merging (there is a non-linearity in it, so no weight can hold it). In post-norm encoders the term passes the
dropout that follows the projection; Houlsby's own code adds it behind.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from plr.adapters.peft_types import register
from plr.adapters.wrapper import WrapperLayer, WrapperModel
from plr.errors import ConfigError, ModelError
from plr.registry import did_you_mean

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

MODES = ("serial", "parallel")
LLAMA_LIKE = ["gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"]
BERT_LIKE = ["bert", "electra", "roberta", "xlm-roberta"]
SUBLAYER_OUTPUTS = {
    **{kind: ["o_proj", "down_proj"] for kind in LLAMA_LIKE},
    **{kind: ["attention.output.dense", "output.dense"] for kind in BERT_LIKE},
    "distilbert": ["out_lin", "lin2"],
    "gpt2": ["c_proj"],
    "gpt_neox": ["attention.dense", "dense_4h_to_h"],
    "opt": ["out_proj", "fc2"],
    "phi": ["self_attn.dense", "fc2"],
}
"""The output projection of attention and of the feed-forward network, by model type."""


@dataclass
class BottleneckConfig(PeftConfig):
    """Serial or parallel bottleneck adapters; see the module's docstring.

    Raises:
        ConfigError: a mode, a size, a scaling, a dropout or an activation that does not exist.
    """

    bottleneck_size: int = field(default=64, metadata={"help": "Width of the hidden layer, m."})
    non_linearity: str = field(
        default="gelu", metadata={"help": "A name of transformers' ACT2FN: gelu, relu, silu ..."}
    )
    mode: str = field(default="serial", metadata={"help": "'serial': behind the module; 'parallel': beside it."})
    scaling: float = field(default=1.0, metadata={"help": "s: what the adapter's term is multiplied by."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of what goes into the adapter, while training."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, suffixes or one regex; None: the output projection of every sublayer."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names, suffixes or a regex."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these layers."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Trained and saved whole, e.g. a head."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as every method of PEFT
        if self.mode not in MODES:
            raise ConfigError(f"mode is {self.mode!r}", expected="serial or parallel", hint="set mode: serial")
        if self.bottleneck_size < 1:
            raise ConfigError(
                f"bottleneck_size is {self.bottleneck_size}", expected="a whole number >= 1", hint="try 64"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}", expected="0 <= dropout < 1", hint="set dropout: 0.0")
        if not self.scaling > 0:
            raise ConfigError(f"scaling is {self.scaling}", expected="a number > 0", hint="set scaling: 1.0")
        if self.non_linearity not in ACT2FN:
            raise ConfigError(
                f"non_linearity is {self.non_linearity!r}",
                expected="an activation of transformers, e.g. gelu, relu, silu, tanh",
                hint=did_you_mean(self.non_linearity, set(ACT2FN)) or "set non_linearity: gelu",
            )


class BottleneckLayer(WrapperLayer):
    """`base_layer` (any module that returns one tensor) with bottleneck adapters by name.

    For each name: `bottleneck_down[name]` Linear [d -> m], `bottleneck_up[name]` Linear [m -> d_out], both with bias;
    d is the width of the module's output (serial) or input (parallel), d_out that of its output.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_activation", "bottleneck_dropout", "mode", "scaling")

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.in_features, self.out_features = _widths(base_layer, module_name)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.mode: dict[str, str] = {}
        self.scaling: dict[str, float] = {}

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add a fresh adapter called `name`: phi = m (d + 1) + d_out (m + 1) parameters."""
        width = self.out_features if config.mode == "serial" else self.in_features
        down, up = nn.Linear(width, config.bottleneck_size), nn.Linear(config.bottleneck_size, self.out_features)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.bottleneck_activation[name] = ACT2FN[config.non_linearity]
        self.bottleneck_dropout[name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.mode[name], self.scaling[name] = config.mode, config.scaling
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Add the terms of the active adapters to the output [.., d_out] of `base_layer`, whose arguments it takes."""
        output = self.base_layer(*args, **kwargs)
        active = [name for name in self.active_adapters if name in self.bottleneck_down]
        if self.disable_adapters or not active:
            return output
        self._check(output)
        inputs = _first_tensor(args, kwargs)
        total = output
        for name in active:
            down = cast(nn.Linear, self.bottleneck_down[name])
            up = cast(nn.Linear, self.bottleneck_up[name])
            x = self._cast_input_dtype(output if self.mode[name] == "serial" else inputs, down.weight.dtype)
            term = up(self.bottleneck_activation[name](down(self.bottleneck_dropout[name](x))))
            total = total + (self.scaling[name] * term).to(output.dtype)
        return total

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge: see `refuse_merge`."""
        refuse_merge()

    def unmerge(self) -> None:
        """Do nothing: nothing is ever merged."""

    def _check(self, output: object) -> None:
        if not isinstance(output, Tensor) or output.shape[-1] != self.out_features:
            actual = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"{self.module_name} returns {actual}: a bottleneck adapter cannot be added to it",
                expected=f"one tensor [.., {self.out_features}]",
                hint="target the output projection inside it instead, e.g. o_proj or down_proj",
            )


class BottleneckModel(WrapperModel):
    """The base with bottleneck adapters on its target modules."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping = SUBLAYER_OUTPUTS

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:
        """Refuse a target inside another: only one of them could be wrapped.

        Raises:
            ModelError: names both.
        """
        wrapped = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
        targets = [name for name, _ in model.named_modules() if name and check_target_module_exists(peft_config, name)]
        names = sorted({*wrapped, *targets})
        for outer, inner in itertools.product(names, names):
            if inner.startswith(f"{outer}.") and not inner.startswith(f"{outer}.{self.prefix}"):
                raise ModelError(
                    f"two bottleneck adapters would be nested: {inner} lies in {outer}",
                    expected="targets of which none contains another",
                    hint="target either the whole module or a layer in it, in all adapters on this base",
                )

    def _check_merge_allowed(self) -> None:
        refuse_merge()


def refuse_merge() -> None:
    """Refuse to merge a bottleneck adapter.

    Raises:
        ModelError: always; a bottleneck adapter is no part of any weight.
    """
    raise ModelError(
        "a bottleneck adapter cannot be merged: there is a non-linearity between its two layers",
        expected="a method whose update is a matrix (lora, sparse, bitfit ...)",
        hint="serve it attached (mode restore or keep, without merge)",
    )


def _first_tensor(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def _widths(module: nn.Module, name: str) -> tuple[int, int]:
    """Return the widths of input and output: of a linear layer, or of the first and last linear layer inside a module."""
    linears = [(first, last) for first, last in map(_linear_widths, module.modules()) if first and last]
    own = _linear_widths(module)
    if own != (0, 0):
        return own
    if not linears:
        raise ModelError(
            f"a bottleneck adapter was to go on {name}, a {type(module).__name__} without a linear layer",
            expected="a linear layer, or a module of linear layers that returns one tensor",
            hint="choose other target_modules, e.g. [o_proj, down_proj]",
        )
    return linears[0][0], linears[-1][1]


def _linear_widths(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    widths = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
    return widths if all(isinstance(width, int) for width in widths) else (0, 0)


BOTTLENECK = register("bottleneck", BottleneckConfig, BottleneckModel)
