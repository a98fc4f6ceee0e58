"""Ours on one checkpoint, with the memory it takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, preload

from plr.gptq import quantize_model, save_checkpoint
from plr.gptq.blocks import find_blocks

SAMPLING = 0.02  # seconds between two looks at the memory


class Peak:
    """The largest anonymous memory of this process, looked at by a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            time.sleep(SAMPLING)


def main(o: dict[str, Any]) -> None:
    preload(o["model"])
    peak = Peak()
    clock = Clock()
    low, device = o["low_memory"], torch.device(o["device"])
    with clock.stage("load"):
        dtype = "auto" if low else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype).eval()
        if not low:
            model.to(device)
    _, blocks = find_blocks(model)
    block_bytes = sum(p.numel() for p in blocks[0].parameters()) * 2
    torch.manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (o["samples"], o["length"]))
    knobs = {"bits": o["bits"], "group_size": 128, "sym": True, "desc_act": False, "damp_percent": 0.01}
    with clock.stage("quantize"):
        quantize_model(
            model,
            [{"input_ids": chunk} for chunk in ids.split(o["batch"])],
            **knobs,
            measure_rtn=False,
            kernel="packed",
            forward_dtype=getattr(torch, o["forward_dtype"]),
            low_memory=low,
            device=device,
            work=Path(o["work"]) if low else None,
        )
    with clock.stage("save"):
        save_checkpoint(model, Path(o["out"]), **knobs)
    clock.report(
        peak_anonymous=peak.bytes,
        peak_gpu=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        block_bytes=block_bytes,
    )


main(options())
