"""transformers' own way: `GPTQConfig`, which quantizes through optimum while the model is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))

import gptqmodel  # noqa: F401  (transformers would import both later, on the clock)
import optimum.gptq  # noqa: F401
import torch
import transformers
from clock import Clock, options, preload


def main(o: dict[str, Any]) -> None:
    rows = json.loads(Path(o["rows"]).read_text(encoding="utf-8"))
    samples: Any = [{"input_ids": [row], "attention_mask": [[1] * len(row)]} for row in rows]
    preload(o["model"])
    clock = Clock()
    for bits in o["bits"]:
        config = transformers.GPTQConfig(
            bits=bits,
            tokenizer=transformers.AutoTokenizer.from_pretrained(o["model"]),
            dataset=samples,
            group_size=o["group_size"],
            damp_percent=0.01,
            desc_act=False,
            sym=True,
            act_group_aware=False,
            backend="gptq_torch",
        )
        with clock.stage("quantize"):  # loading is part of it
            dtype = "auto" if o["dtype"] == "native" else getattr(torch, o["dtype"])
            model = transformers.AutoModelForCausalLM.from_pretrained(
                o["model"], quantization_config=config, device_map="cpu", dtype=dtype
            )
        with clock.stage("save"):
            model.save_pretrained(Path(o["out"]) / str(bits))
    clock.report(dtype=str(model.dtype))


main(options())
