"""Ours: from a checkpoint folder to the logits of one sample, with one of the two kernels."""

from __future__ import annotations

from typing import Any

import torch
from clock import Clock, options, preload

from plr.gptq import load_checkpoint


def main(o: dict[str, Any]) -> None:
    ids = torch.tensor([o["ids"]])
    preload(o["checkpoint"])
    clock = Clock()
    with clock.stage("load"):
        model = load_checkpoint(o["checkpoint"], dtype=getattr(torch, o["dtype"]), kernel=o["kernel"])
    with clock.stage("first"), torch.inference_mode():
        logits = model(ids).logits[0, -1].float()
    clock.report(dtype=str(model.dtype), logits=logits.tolist())


main(options())
