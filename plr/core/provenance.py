"""Provenance of an artifact: versions, commit, machine, command. Recorded beside results, never hashed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from plr.core.fingerprint import JsonObject

__all__ = ["provenance"]

PACKAGES = ("plr", "torch", "transformers", "peft", "accelerate", "datasets", "gptqmodel", "bitsandbytes", "numpy")


def provenance() -> JsonObject:
    """Collect date (UTC), command, package versions, git commit of the code and a short description of the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="microseconds"),
        "command": [_readable(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
        **_static(),
    }


def _readable(word: str) -> str:
    """Spell bytes of the command line that are no UTF-8 as escapes."""
    return word.encode(errors="backslashreplace").decode()


@cache
def _static() -> JsonObject:
    return {"versions": _versions(), "git": _git(), "machine": _machine()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> JsonObject | None:
    here = Path(__file__).parents[1]

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _machine() -> JsonObject:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"system": platform.platform(), "cpus": os.cpu_count(), "memory_bytes": memory, "processor": _processor()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
