"""transformers with GPTQModel's kernels: from a checkpoint folder to the logits of one sample."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))

import gptqmodel  # noqa: F401  (transformers would import both later, on the clock)
import optimum.gptq  # noqa: F401
import torch
import transformers
from clock import Clock, options, preload


def main(o: dict[str, Any]) -> None:
    ids = torch.tensor([o["ids"]])
    preload(o["checkpoint"])
    clock = Clock()
    with clock.stage("load"):
        config = transformers.GPTQConfig(bits=o["bits"], backend="gptq_torch")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            o["checkpoint"], quantization_config=config, dtype=getattr(torch, o["dtype"]), device_map="cpu"
        ).eval()
    with clock.stage("first"), torch.inference_mode():
        logits = model(ids).logits[0, -1].float()
    clock.report(dtype=str(model.dtype), logits=logits.tolist())


main(options())
