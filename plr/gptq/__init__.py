"""GPTQ from the paper to the checkpoint: solve, pack, walk a transformer, save, load.

    reports = quantize_model(model, batches, bits=4, group_size=128)     # linear layers -> PackedLinear, in place
    save_checkpoint(model, "folder", bits=4, group_size=128)             # opens in transformers with GPTQModel
    model = load_checkpoint("folder")

Knobs are keywords, or one value: `settings = Settings(bits=4, group_size=64)`, `quantize_model(..., settings=settings)`.
Knows torch and transformers' checkpoints, and nothing else of plr.
"""

from plr.gptq.checkpoint import load_checkpoint
from plr.gptq.errors import (
    CheckpointError,
    FrozenWeightError,
    GPTQError,
    GroupSizeError,
    HessianError,
    PackingError,
    WalkError,
)
from plr.gptq.execution import Execution
from plr.gptq.factorization import Factor, factor
from plr.gptq.kernels import KernelInUse, kernel_in_use
from plr.gptq.layers import ModuleReport
from plr.gptq.linear import PackedLinear
from plr.gptq.saving import save_checkpoint
from plr.gptq.settings import Settings
from plr.gptq.solution import Solution
from plr.gptq.solver import gptq_solve, rtn_solve
from plr.gptq.walk import quantize_model

__all__ = [
    "CheckpointError",
    "Execution",
    "Factor",
    "FrozenWeightError",
    "GPTQError",
    "GroupSizeError",
    "HessianError",
    "KernelInUse",
    "ModuleReport",
    "PackedLinear",
    "PackingError",
    "Settings",
    "Solution",
    "WalkError",
    "factor",
    "gptq_solve",
    "kernel_in_use",
    "load_checkpoint",
    "quantize_model",
    "rtn_solve",
    "save_checkpoint",
]
