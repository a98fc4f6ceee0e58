"""Checks of this machine: packages, device, memory, disk and compiler, without loading heavy packages unasked."""

# pyright: basic
# torch describes devices without types.

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from plr.core.runtime import Runtime, device_refusal
from plr.core.sources import copies
from plr.errors import IntegrityError

__all__ = ["Check", "examine"]

_NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets")
_EXTRAS = {
    "gptqmodel": "pip install 'plr[gptqmodel]' for --method gptqmodel, and to run GPTQ checkpoints with its kernels",
    "bitsandbytes": "pip install 'plr[bitsandbytes]' for --method nf4 and int8",
    "vllm": "pip install 'plr[vllm]' to serve 4- and 8-bit bases",
}


@dataclass(frozen=True)
class Check:
    """One check: `ok` (is it there), `found` (its name or version), `advice` (the next step)."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(home: Path) -> list[Check]:
    """List every check, needed packages first."""
    checks = [_package(name, "pip install plr") for name in _NEEDED]
    checks += [_package(name, advice) for name, advice in _EXTRAS.items()]
    if importlib.util.find_spec("auto_gptq") is not None:
        checks.append(
            Check("auto-gptq", False, "installed", "end of life: remove it; plr and GPTQModel read its checkpoints")
        )
    return [*checks, *_torch(), _memory(), _disk(home), *_copies(home), _compiler()]


def _package(name: str, advice: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", advice)


def _torch() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from plr.gptq import kernel_in_use
    from plr.lm import choose_dtype

    device = Runtime().torch_device()
    dtype = choose_dtype(device)
    kernel = kernel_in_use(device, dtype)
    packed = Check("k-bit layers", True, f"{kernel.name}: {kernel.why}")
    if device == "cpu":
        fast = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {str(dtype).removeprefix('torch.')}"
        unusable = torch.cuda.is_available() and f"unusable: {device_refusal('cuda')}"
        return [
            Check("GPU", False, unusable or "none", "models of about 1B and more want one"),
            Check("CPU", True, fast),
            packed,
        ]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Check("GPU", True, ", ".join(f"{d.name} {d.total_memory / 1e9:.0f} GB" for d in devices)), packed]


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Check(
        "memory", total >= 4, f"{total:.0f} GB", "" if total >= 4 else "the embedded base alone needs about 2 GB"
    )


def _disk(home: Path) -> Check:
    there = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(there).free / 1e9
    return Check(
        "disk", free >= 1, f"{free:.0f} GB free at {home}", "" if free >= 1 else "set PLR_HOME to a larger disk"
    )


def _copies(home: Path) -> list[Check]:
    """Add up the copies of `.gguf` sources; without any there is nothing to say."""
    found = copies(home)
    if not found:
        return []
    try:
        total = sum(copy.bytes for copy in found)
    except IntegrityError as error:
        return [Check("copies", False, error.message, "plr gc removes broken copies of sources")]
    return [Check("copies", True, f"{len(found)} of .gguf sources, {total / 1e9:.2f} GB")]


def _compiler() -> Check:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return Check(
        "C compiler", found is not None, found or "none", "" if found else "GPTQModel compiles its packer with one"
    )
