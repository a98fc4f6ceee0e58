"""Settings of execution (device, workers, batch sizes): no part of an identity but for the dtype, which a plan writes into steps.

Moving from one core to four GPUs changes this object and reuses every artifact. The torch part (probing the device and its
fast dtype) imports torch inside the functions, so that planning stays light.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import BaseModel, Field

from plr.core.precision import Precision, fast_precision, may_have_gpu
from plr.errors import UsageError

__all__ = ["Runtime", "RuntimeOptions", "available_memory", "default_home", "device_refusal"]

log = logging.getLogger(__name__)

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def default_home() -> Path:
    """Return `$PLR_HOME`, or `./artifacts`."""
    return Path(os.environ.get("PLR_HOME") or "artifacts").absolute()


Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Kernel = Literal["auto", "packed", "dequantized"]


class RuntimeOptions(TypedDict, total=False):
    """Settings of `Runtime` as keyword arguments; `home` and `offline` are given by themselves."""

    device: str
    dtype: Dtype
    kernel: Kernel
    workers: int
    threads: int | None
    micro_batch: int
    gradient_checkpointing: bool
    slots: int
    checkpoint_seconds: float
    low_memory: bool
    report_to: Sequence[str]


class Runtime(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Settings of execution: place, device and sizes.

    `micro_batch` rows go through the model at once in training; `slots` rows decode side by side in evaluation;
    `workers` processes run independent steps side by side, each with `threads` threads.
    """

    home: Path = Field(default_factory=default_home)
    """The store; by default `$PLR_HOME` or `./artifacts`."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`, `cpu`, `mps`, `cuda` or `cuda:N`."""
    dtype: Dtype = "auto"
    """Precision of trainings and evaluations, part of what they are. `auto`: bfloat16 where the device has instructions for it."""
    kernel: Kernel = "auto"
    """Kernel of k-bit layers: codes read as they are (`packed`), or unpacked once (`dequantized`); `auto` by device and memory."""
    workers: int = Field(default=1, ge=1)
    """Processes that run independent steps side by side."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of each; none leaves torch's choice."""
    micro_batch: int = Field(default=8, ge=1)
    """Rows that go through the model at once in training; the update does not depend on it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    slots: int = Field(default=64, ge=1)
    """Rows that decode side by side in evaluation."""
    checkpoint_seconds: float = Field(default=120, ge=0)
    """A training that is killed loses at most this much work."""
    low_memory: bool = False
    """Quantize with one block and the activations of one block's input in memory; they go to disk where they do not fit."""
    offline: bool = False
    """Make no network call."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers for training curves: `tensorboard`, `mlflow`, `wandb`, `trackio`."""

    def torch_device(self) -> str:
        """Return the device as torch names it; for `auto` a CUDA GPU if torch sees one that computes, else the CPU.

        Raises:
            UsageError: a GPU was asked for, and there is none or it does not compute.
        """
        import torch

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"device {self.device} was asked for, and torch sees no CUDA GPU", hint="use --device cpu")
        if self.device not in ("auto", "cpu"):
            if refusal := device_refusal(self.device):
                raise UsageError(
                    f"device {self.device} was asked for, and does not compute: {refusal}", hint="use --device cpu"
                )
            return self.device
        return "cuda" if self.device == "auto" and torch.cuda.is_available() and not device_refusal("cuda") else "cpu"

    def check_device(self) -> None:
        """Ask torch for a device that was named, and not for one that is always there.

        Raises:
            UsageError: see `torch_device`.
        """
        if self.device not in ("auto", "cpu"):
            self.torch_device()

    def precision(self) -> Precision:
        """Resolve the dtype of a computation: as asked, or for `auto` by the device; torch is asked only where a GPU may be.

        Raises:
            UsageError: see `torch_device`.
        """
        if self.dtype != "auto":
            return self.dtype
        on_cpu = self.device == "cpu" or (self.device == "auto" and not may_have_gpu())
        return fast_precision("cpu" if on_cpu else self.torch_device())

    def computing_in(self, dtype: Precision | None) -> Runtime:
        """Take the dtype that a step names; None leaves it as it is."""
        return self if dtype is None else self.model_copy(update={"dtype": dtype})

    def apply_threads(self) -> None:
        """Set torch's thread count for this process, if one was asked for."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)


@cache
def device_refusal(device: str) -> str:
    """Compute one sum on a device, once a process; returns the first line of what goes wrong, or nothing.

    Torch lists GPUs that are too old for it, or whose driver is, and fails when they are used.
    """
    import torch

    try:
        float(torch.ones(2, device=device).sum())
    except torch.OutOfMemoryError:  # it would compute
        return ""
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("device %s does not compute: %s", device, words)
        return words
    return ""


def available_memory() -> int | None:
    """Return the bytes that a process may still take without swapping: of the machine, or of its container if that is less.

    None where the system does not say (not Linux).
    """
    limits: list[int] = []
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        cache = [line.split()[1] for line in _lines(CGROUP / "memory.stat") if line.startswith("inactive_file ")]
        limits.append(max(0, int(text) - int(used.read_text()) + sum(map(int, cache))))
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
