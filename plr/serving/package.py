"""The package vLLM: whether it is there and new enough, what it raises, and that in plr's words."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from plr.core.memory import out_of_memory
from plr.errors import MissingDependencyError, ModelError, PlrError, ResourceError

__all__ = ["ENVIRONMENT", "failures", "not_served", "require_vllm"]

OLDEST = (0, 32)
"""Older versions read `desc_act` and pass over `alpha_pattern` in silence."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""Standard output is the command's own."""
OWN_ENVIRONMENT = "pip install 'plr[vllm]' in an environment of its own (vLLM pins torch), or use --engine hf"


def require_vllm() -> Any:
    """Import the package.

    Raises:
        MissingDependencyError: it is not installed, cannot be imported here, or is too old.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            "the engine vllm needs the package vllm, and it is not installed",
            expected="Linux on x86_64 or aarch64, with a GPU that vLLM supports",
            hint=OWN_ENVIRONMENT,
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        package = importlib.import_module("vllm")
        _ = package.LLM  # loaded lazily, with all of its libraries
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"vllm is installed and cannot be imported: {_first_line(error)}",
            expected="vLLM and the torch it was built for",
            hint=OWN_ENVIRONMENT,
        ) from error
    version = tuple(int(part) for part in str(package.__version__).split(".")[:2] if part.isdigit())
    if version < OLDEST:
        raise MissingDependencyError(
            f"vllm is {package.__version__}", expected=f"{OLDEST[0]}.{OLDEST[1]} or later", hint=OWN_ENVIRONMENT
        )
    return package


def failures() -> tuple[type[BaseException], ...]:
    """List the errors vLLM raises when it cannot do what it is asked."""
    from vllm.exceptions import VLLMError  # type: ignore[import-not-found]

    return (VLLMError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError, ImportError)


def not_served(folder: Path, error: BaseException) -> PlrError:
    """Make the error to raise when vLLM raised `error` over the checkpoint in `folder`."""
    import torch

    words = _first_line(error)
    if _memory_is_short(error):
        return ResourceError(
            f"vLLM has not enough memory for {folder}: {words}",
            expected="a GPU that holds the weights and the keys and values of one text",
            hint="choose fewer bits, a smaller model or a smaller max_model_len, or use --engine hf",
        )
    gpu = "" if torch.cuda.is_available() else ", on a GPU (torch sees none here)"
    return ModelError(
        f"vLLM cannot serve {folder}: {words}",
        expected=f"a model and adapter that vLLM supports{gpu}",
        hint="use --engine hf, which runs everything that plr makes",
    )


def _memory_is_short(error: BaseException) -> bool:
    """Tell whether vLLM has no room for the weights, or for the keys and values of one text.

    It plans its memory, and raises a ValueError as for any other setting when the plan fails; what its engine process ran out of
    comes as a RuntimeError with the words of the first. The words alone tell these from others.
    """
    words = _first_line(error)
    return out_of_memory(error) or "out of memory" in words.lower() or "KV cache" in words


def _first_line(error: BaseException) -> str:
    """Find the line that says something: pydantic's first counts errors, and its others end in a description of the input."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    counted = "validation error" in lines[0] and len(lines) > 1
    return lines[1].partition(" [type=")[0].removeprefix("Value error, ") if counted else lines[0]
