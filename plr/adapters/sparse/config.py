"""The settings of the sparse adapter, as PEFT saves them in `adapter_config.json`. Import them from `plr.adapters.sparse.tuner`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from plr.adapters.sparse.budget import SparseConfigError

__all__ = ["SparseConfig"]


@dataclass
class SparseConfig(PeftConfig):
    """Configuration of the sparse adapter.

    Args:
        n, m: blocks over the outputs and over the inputs of each weight; they must divide.
        k: how many of the n*m blocks are trained.
        alpha: scale of the whole update.
        k_pattern: regex of a module's name -> its k.
        k_ramp: k of the last layer over k of the first, the mean kept; above 1 is more blocks near the output.
        budget: parameters of all modules together; all k are scaled to the most that fits.
        init_std: standard deviation of the initial scores. dW and its learning rate grow with it.
        init_weights: False draws the values too, for tests: then dW is not zero at the start.
        target_modules: names or a regex of the layers to adapt; None: where PEFT puts LoRA; "all-linear": all but the head.
        exclude_modules: names or a regex of layers to leave out.
        layers_to_transform, layers_pattern: numbers of the layers to adapt, and the name of the list they are in.
        modules_to_save: modules that are trained and saved whole, e.g. a classification head.
        bias: "none"; "sparse_only" or "all" train biases of the base too, beside the method and beside its count.

    Raises:
        SparseConfigError: a value out of its range.
    """

    n: int = field(default=32, metadata={"help": "blocks over the outputs of a weight"})
    m: int = field(default=32, metadata={"help": "blocks over the inputs of a weight"})
    k: int = field(default=16, metadata={"help": "blocks that are trained"})
    alpha: float = field(default=1.0, metadata={"help": "scale of the update"})
    k_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "regex of module names -> k"})
    k_ramp: float = field(default=1.0, metadata={"help": "k of the last layer over k of the first, the mean kept"})
    budget: int | None = field(default=None, metadata={"help": "parameters over all modules"})
    init_std: float = field(default=1.0, metadata={"help": "standard deviation of the initial scores"})
    init_weights: bool = field(default=True, metadata={"help": "False: random values, for tests"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "names or regex of the layers"})
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "names or regex of layers left out"}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "numbers of the layers"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved whole"})
    bias: Literal["none", "sparse_only", "all"] = field(
        default="none", metadata={"help": "biases of the base to train"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("SPARSE")  # made by `plr.adapters.sparse.tuner`, where the method is registered
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        for name in ("n", "m", "k", "budget"):
            value = getattr(self, name)
            if not (name == "budget" and value is None) and (type(value) is not int or value < 1):
                raise SparseConfigError(f"{name} = {value!r}", expected="a whole number of at least 1")
        for name in ("alpha", "k_ramp", "init_std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise SparseConfigError(f"{name} = {value!r}", expected="a number above 0")
        for key, value in self.k_pattern.items():
            if type(value) is not int or value < 1:
                raise SparseConfigError(f"k_pattern[{key!r}] = {value!r}", expected="a whole number of at least 1")
        if self.bias not in ("none", "sparse_only", "all"):
            raise SparseConfigError(f"bias = {self.bias!r}", expected='"none", "sparse_only" or "all"')
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise SparseConfigError(
                "`layers_to_transform` cannot be used when `target_modules` is a str",
                hint="list the modules, or put the layers into the regex",
            )
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise SparseConfigError(
                "`layers_pattern` cannot be used when `target_modules` is a str", hint="list the modules"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise SparseConfigError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    @classmethod
    def roberta(cls, **changes: Any) -> SparseConfig:
        """Return the paper's setting for RoBERTa (width 768)."""
        return cls(**{"n": 24, "m": 32, "k": 15, "alpha": 1.0, **changes})

    @classmethod
    def llama3_8b(cls, **changes: Any) -> SparseConfig:
        """Return the paper's setting for Llama-3-8B on an 8-bit base."""
        return cls(**{"n": 64, "m": 64, "k": 50, "alpha": 2.0, **changes})
