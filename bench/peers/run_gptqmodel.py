"""GPTQModel: load, quantize, save, on the CPU; with our settings (`plain`) or with its own defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))  # fewer is an error on small machines

import torch
from clock import Clock, options, preload
from gptqmodel import GPTQModel, QuantizeConfig


def main(o: dict[str, Any]) -> None:
    rows = torch.tensor(json.loads(Path(o["rows"]).read_text(encoding="utf-8")))  # [samples, length]
    samples: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    like_ours = {"damp_percent": 0.01, "act_group_aware": False} if o["plain"] else {}
    dtype = {} if o["dtype"] == "native" else {"dtype": getattr(torch, o["dtype"])}
    preload(o["model"])
    clock = Clock()
    for bits in o["bits"]:
        config = QuantizeConfig(bits=bits, group_size=o["group_size"], sym=True, desc_act=False, **like_ours)
        with clock.stage("load"):
            model = GPTQModel.load(o["model"], config, device="cpu", **dtype)
            used = str(model.model.dtype)
        with clock.stage("quantize"):
            model.quantize(samples, batch_size=o["batch"])
        with clock.stage("save"):
            model.save(str(Path(o["out"]) / str(bits)))
    clock.report(dtype=used)


main(options())
