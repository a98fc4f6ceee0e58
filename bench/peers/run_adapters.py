"""Training steps of one model under several adapters: their seconds in turn, or the memory of one.

`{"do": "steps", "variants": [...]}` times a step of each in every round, in an order that rotates.
`{"do": "memory", "variants": [one]}` counts what one keeps for backward, and how far a step lifts the resident memory.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, peak_rss
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from plr.adapters.sparse.layer import SparseLayer
from plr.adapters.sparse.product import dense_blocks, weighted_blocks
from plr.adapters.sparse.tuner import SparseConfig, changed_parameters

VOCABULARY = 1024  # small: embeddings and head are the same for all, and would hide differences
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj"]
BERT = ["query", "key", "value"]


class DenseLayer(SparseLayer):
    """The naive reading of the method: dW is made whole, and autograd goes through it."""

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        n, m = self.sparse_scores[name].shape
        p = self.positions(name)
        blocks = weighted_blocks(self.sparse_scores[name], self.sparse_values[name], p, self.alpha[name])
        return result + F.linear(x, dense_blocks(blocks, p, n, m))


def base(o: dict[str, Any]) -> Any:
    """The model with random weights, the same in every call."""
    torch.manual_seed(0)
    sizes = {**o["sizes"], "num_hidden_layers": o["layers"], "vocab_size": VOCABULARY}
    if o["family"] == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # or no two runs had the same losses
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **quiet, num_labels=2))


def adapted(o: dict[str, Any], variant: str, budget: int | None) -> Any:
    """The base under one adapter; the sparse ones have at most `budget` parameters."""
    targets = LLAMA if o["family"] == "llama" else BERT
    model = base(o)
    torch.manual_seed(1)
    if variant == "lora":
        return get_peft_model(model, LoraConfig(r=o["rank"], lora_alpha=o["rank"], target_modules=targets)).train()
    n, m = o["grid"]
    model = get_peft_model(model, SparseConfig(n=n, m=m, k=1, budget=budget, target_modules=targets)).train()
    if variant == "dense":
        for layer in model.modules():
            if isinstance(layer, SparseLayer):
                layer.__class__ = DenseLayer
    return model


class Training:
    """One model, its optimizer, and one batch."""

    def __init__(self, o: dict[str, Any], variant: str, budget: int | None) -> None:
        self.model = adapted(o, variant, budget)
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.changes = changed_parameters(self.model)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=o["lr"])
        samples, length = o["tokens"]
        ids = torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(2))
        labels = ids if o["family"] == "llama" else torch.arange(samples) % 2
        self.batch = {"input_ids": ids, "labels": labels}
        self.losses: list[float] = []

    def forward(self) -> Tensor:
        return self.model(**self.batch).loss

    def step(self) -> tuple[float, float]:
        """One step; its wall and CPU seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))
        return time.perf_counter() - wall, time.process_time() - cpu


def saved_bytes(training: Training) -> int:
    """Bytes that the forward keeps for the backward beside weights and buffers; shared memory counts once."""
    own = {t.untyped_storage().data_ptr() for t in (*training.model.parameters(), *training.model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed could come back under the same address

    def note(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            alive.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        training.forward()
    return sum(kept.values())


def lift(training: Training) -> int:
    """Bytes by which three steps lift the peak of resident memory above what was resident before them."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts at what is resident now
    before = peak_rss()
    for _ in range(3):
        training.step()
    return peak_rss() - before


def main(o: dict[str, Any]) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    clock = Clock()
    budget = None
    if any(variant != "lora" for variant in o["variants"]):
        budget = Training(o, "lora", None).parameters
    if o["do"] == "memory":
        training = Training(o, o["variants"][0], budget)
        resident = lift(training)
        clock.report(saved=saved_bytes(training), lift=resident, parameters=training.parameters)
        return
    runs = {variant: Training(o, variant, budget) for variant in o["variants"]}
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in runs}
    order = list(runs)
    for number in range(o["rounds"] + 2):  # two to warm up
        for variant in order:
            spent = runs[variant].step()
            if number >= 2:
                times[variant].append(spent)
        order = order[1:] + order[:1]
    clock.report(
        wall={variant: [wall for wall, _ in found] for variant, found in times.items()},
        cpu={variant: [cpu for _, cpu in found] for variant, found in times.items()},
        losses={variant: run.losses for variant, run in runs.items()},
        parameters={variant: run.parameters for variant, run in runs.items()},
        changes={variant: run.changes for variant, run in runs.items()},
    )


main(options())
