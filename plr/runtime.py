"""How a step is carried out: never part of its identity.

Moving from one core to four GPUs changes this object and reuses every artifact. The torch part (probing the device and its
fast dtype) imports torch inside the functions, so that planning stays light.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from plr.errors import UsageError

__all__ = ["Runtime", "default_home"]


def default_home() -> Path:
    """``$PLR_HOME``, or ``./artifacts``."""
    return Path(os.environ.get("PLR_HOME") or "artifacts").absolute()


class Runtime(BaseModel, frozen=True, extra="forbid"):
    """Where and how to run.

    ``micro_batch`` rows go through the model at once in training; ``slots`` rows decode side by side in evaluation;
    ``workers`` processes run independent steps side by side, each with ``threads`` threads.
    """

    home: Path = Field(default_factory=default_home)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kernel: Literal["auto", "packed", "dequantized"] = "auto"
    workers: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    gradient_checkpointing: bool = False
    slots: int = Field(default=64, ge=1)
    checkpoint_seconds: float = Field(default=120, ge=0)
    """A training that is killed loses at most this much work."""
    low_memory: bool = False
    """Quantize with one block and the activations of one block's input in memory; they go to disk where they do not fit."""
    offline: bool = False
    report_to: tuple[str, ...] = ()

    def torch_device(self) -> str:
        """The device as torch names it.

        Raises:
            UsageError: a GPU was asked for and there is none.
        """
        import torch

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"device {self.device} was asked for, and torch sees no CUDA GPU", hint="use --device cpu")
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def apply_threads(self) -> None:
        """Set torch's thread count for this process, if one was asked for."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)

    def kernel_name(self) -> Literal["packed", "dequantized"]:
        """``dequantized`` on the CPU (the weight is unpacked once and kept), ``packed`` on a GPU (memory of k bits)."""
        if self.kernel != "auto":
            return self.kernel
        return "dequantized" if self.torch_device() == "cpu" else "packed"
