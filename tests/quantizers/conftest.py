"""A tiny random Llama, token batches, and what every method needs to say about them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from plr.core.quiet import quiet_libraries
from plr.core.specs import Quantization
from plr.quantizers import quantizers

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
VOCABULARY = 64
SPECS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 32},
    "gptq": {"bits": 3, "group_size": 32},
    "gptqmodel": {"bits": 4, "group_size": 32, "damp_percent": 0.05},
    "nf4": {"bits": 4, "group_size": 64},
    "int8": {"bits": 8, "group_size": -1},
}
PACKAGES = {"gptqmodel": "gptqmodel", "nf4": "bitsandbytes", "int8": "bitsandbytes"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    quiet_libraries()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_model() -> Any:
    """The same random weights at each call, large enough that every one matters."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return tiny_model("llama", seed=1, **sizes, **tokens, initializer_range=0.1)


def make_batches() -> list[dict[str, Tensor]]:
    """Two batches [4, 24], the first with a row of 6 tokens and padding."""
    generator = torch.Generator().manual_seed(0)
    batches: list[dict[str, Tensor]] = []
    for short in (6, 24):
        ids = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
        mask = torch.ones_like(ids)
        ids[0, short:], mask[0, short:] = 0, 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def need(method: str) -> None:
    package = PACKAGES.get(method)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"method {method} needs {package}: pip install plr[{package}]")


def spec_of(method: str, **over: Any) -> Quantization:
    return Quantization(method=method, **{**SPECS[method], **over})


def quantized(method: str, folder: Path, **over: Any) -> tuple[Any, dict[str, Any]]:
    """A fresh model quantized through the registry into ``folder``, and what was recorded."""
    need(method)
    model, quantizer = make_model(), quantizers.get(method)
    batches = make_batches() if quantizer.needs_calibration else []
    return model, quantizer.quantize(model, batches, spec_of(method, **over), folder)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=make_batches()[1]["input_ids"]).logits.float()
