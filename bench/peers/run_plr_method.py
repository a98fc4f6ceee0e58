"""Ours with the settings of a preset, through the quantizer that `plr quantize` runs: load, quantize, save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, preload

from plr.bases.quantize import forward_dtype
from plr.core.specs import Quantization
from plr.quantizers import Execution, quantizers


def main(o: dict[str, Any]) -> None:
    rows = torch.tensor(json.loads(Path(o["rows"]).read_text(encoding="utf-8")))  # [samples, length]
    batches = [{"input_ids": chunk, "attention_mask": torch.ones_like(chunk)} for chunk in rows.split(o["batch"])]
    spec = Quantization(**o["settings"])
    folder = Path(o["out"])
    folder.mkdir(parents=True, exist_ok=True)
    preload(o["model"])
    clock = Clock()
    with clock.stage("load"):
        model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=torch.float32).eval()
    with clock.stage("quantize"):  # saving is part of it
        how = Execution(forward_dtype=forward_dtype(model))
        quantizers.get(spec.method).quantize(model, batches, spec, folder, execution=how)
    clock.report(dtype="torch.float32", forward_dtype=str(how.forward_dtype))


main(options())
