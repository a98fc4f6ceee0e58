"""plr: quantization transfer.

Quantize a model to k bits, train an adapter on it, restore the adapter onto an l-bit base without retraining, score the k x l grid.
Everything here is loaded on first use, so that `import plr` is quick and takes no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plr.core.peft_hook import install

if TYPE_CHECKING:
    from plr.adapters import AdapterMethod
    from plr.core.runtime import Runtime
    from plr.core.specs import (
        AdapterSpec,
        Calibration,
        Evaluate,
        ModelRef,
        Quantization,
        Quantize,
        Restore,
        TaskSpec,
        Train,
        TrainSpec,
    )
    from plr.core.store import Artifact, Store
    from plr.engines import Engine
    from plr.errors import PlrError
    from plr.gptq import PackedLinear
    from plr.lab import Lab
    from plr.quantizers import Quantizer
    from plr.report import table_md, write_report
    from plr.study import Study, StudyConfig, load_study
    from plr.tasks import Task

_HOME = {
    "AdapterMethod": "adapters",
    "AdapterSpec": "core.specs",
    "Artifact": "core.store",
    "Calibration": "core.specs",
    "Engine": "engines",
    "Evaluate": "core.specs",
    "Lab": "lab",
    "ModelRef": "core.specs",
    "PackedLinear": "gptq",
    "PlrError": "errors",
    "Quantization": "core.specs",
    "Quantize": "core.specs",
    "Quantizer": "quantizers",
    "Restore": "core.specs",
    "Runtime": "core.runtime",
    "Store": "core.store",
    "Study": "study",
    "StudyConfig": "study",
    "Task": "tasks",
    "TaskSpec": "core.specs",
    "Train": "core.specs",
    "TrainSpec": "core.specs",
    "load_study": "study",
    "table_md": "report",
    "write_report": "report",
}
# Registries share their name with the package they live in, so they are attributes of these packages: plr.tasks.tasks.

__all__ = [
    "AdapterMethod",
    "AdapterSpec",
    "Artifact",
    "Calibration",
    "Engine",
    "Evaluate",
    "Lab",
    "ModelRef",
    "PackedLinear",
    "PlrError",
    "Quantization",
    "Quantize",
    "Quantizer",
    "Restore",
    "Runtime",
    "Store",
    "Study",
    "StudyConfig",
    "Task",
    "TaskSpec",
    "Train",
    "TrainSpec",
    "load_study",
    "table_md",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"plr.{_HOME[name]}"), name)
    raise AttributeError(f"module 'plr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


install()  # PEFT opens adapters of plr's own methods
