"""Ours: load, quantize with plain settings, pack, save. Several widths run in one process, the model loaded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, preload

from plr.bases.quantize import forward_dtype
from plr.gptq import quantize_model, save_checkpoint


def main(o: dict[str, Any]) -> None:
    rows = torch.tensor(json.loads(Path(o["rows"]).read_text(encoding="utf-8")))  # [samples, length]
    batches = [{"input_ids": chunk} for chunk in rows.split(o["batch"])]
    preload(o["model"])
    clock = Clock()
    with clock.stage("load"):
        dtype = "auto" if o["dtype"] == "native" else getattr(torch, o["dtype"])
        model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype).eval()
    forward = forward_dtype(model, o["forward_dtype"])
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for bits in o["bits"]:
        knobs = {"bits": bits, "group_size": o["group_size"], "sym": True, "desc_act": False, "damp_percent": 0.01}
        with clock.stage("quantize"):
            # The error of rounding is a report that no peer makes.
            quantize_model(model, batches, **knobs, measure_rtn=False, forward_dtype=forward)
        with clock.stage("save"):
            save_checkpoint(model, Path(o["out"]) / str(bits), **knobs)
        for name, module in linears.items():  # the next width starts from the 16-bit layers
            model.set_submodule(name, module)
    clock.report(dtype=str(model.dtype), forward_dtype=str(forward))


main(options())
