"""Training of a LoRA adapter by plr and by peers, in turn, on the same rows from the same first weights.

`{"do": "steps"}` runs a few optimizer steps of each in every round. `{"do": "memory", "runners": [one]}` says how far the steps of
one lift the peak of resident memory.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from clock import Clock, options, peak_rss
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from plr.adapters import adapters
from plr.bases.load import Loaded, load_base
from plr.core.specs import Train
from plr.gptq import products
from plr.gptq.linear import PackedLinear
from plr.lab import Lab
from plr.tasks.data.rows import draw, load_split
from plr.training.objectives import AnswerObjective
from plr.training.trainer import OrderedRows, PlrTrainer, training_order


class Steps(transformers.TrainerCallback):
    """Wall and CPU seconds of each optimizer step, the collation of its rows included."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.marks:
            self.marks.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))


class Rows(Dataset[dict[str, list[int]]]):
    """The rows of the training as a plain user has them: `input_ids`, and `labels` that leave the prompt out."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt, target = self.rows[index]
        return {"input_ids": prompt + target, "labels": [-100] * len(prompt) + target}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class Runner:
    """A model with an adapter, that starts every round from the same weights."""

    def __init__(self, model: Any, o: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.model, self.o = model, o
        self.first: dict[str, Tensor] = {}

    def trainer(self, steps: Steps) -> transformers.Trainer:
        raise NotImplementedError

    def remember(self) -> None:
        self.first = {name: p.detach().clone() for name, p in self.trained()}

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def run(self) -> dict[str, Any]:
        with torch.no_grad():
            for name, p in self.trained():
                p.copy_(self.first[name])
        steps = Steps()
        trainer = self.trainer(steps)
        for callback in (transformers.PrinterCallback, transformers.trainer_callback.ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        wall, cpu = (b - a for a, b in zip(steps.marks[0], steps.marks[-1], strict=True))
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"wall": wall, "cpu": cpu, "losses": losses}

    def arguments(self) -> transformers.TrainingArguments:
        o = self.o
        return transformers.TrainingArguments(
            output_dir=o["out"], per_device_train_batch_size=o["micro"], max_steps=o["steps"], learning_rate=o["lr"],
            gradient_accumulation_steps=o["batch"] // o["micro"], logging_steps=1, save_strategy="no", report_to="none",
            bf16=o["dtype"] == "bfloat16", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, log_level="error",
            remove_unused_columns=False, lr_scheduler_type="constant", warmup_steps=0, seed=0,
        )  # fmt: skip


class Ours(Runner):
    def __init__(self, loaded: Loaded, step: Train, rows: list[Any], o: dict[str, Any]) -> None:
        self.objective = AnswerObjective(loaded, rows, rows[:1], step.train.max_length)
        lengths = self.objective.lengths
        self.order = training_order(lengths, epochs=1, batch_size=o["batch"], seed=0)
        method = adapters.get(step.adapter.method)
        super().__init__(
            method.attach(loaded.model, step.adapter.config, seed=0, kind="generation", steps=o["steps"]), o
        )
        self.objective.bind(self.model)
        self.remember()

    def trainer(self, steps: Steps) -> transformers.Trainer:
        return PlrTrainer(
            model=self.model, args=self.arguments(), train_dataset=OrderedRows(self.objective.rows, self.order),
            callbacks=[steps], work=Path(self.o["out"]), objective=self.objective, save_best=lambda _: None,
        )  # fmt: skip


class Peer(Runner):
    """transformers' Trainer, PEFT and a padded batch."""

    def __init__(self, model: Any, ours: Ours, tokenizer: Any, config: dict[str, Any], o: dict[str, Any]) -> None:
        super().__init__(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)), o)
        first = {name.split("base_model.model.", 1)[-1]: value for name, value in ours.first.items()}
        with torch.no_grad():
            for name, p in self.trained():
                p.data = p.data.float()
                p.copy_(first[name.split("base_model.model.", 1)[-1]])
        self.remember()
        tokenizer.padding_side = "right"
        self.collate = transformers.DataCollatorForSeq2Seq(tokenizer)
        rows, batch = [ours.objective.rows[i] for i in ours.order], o["batch"]
        shuffle = random.Random(0).shuffle
        self.rows: list[Any] = []
        # The rows of a step in the order of chance, as a plain sampler has them.
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            shuffle(part)
            self.rows += part

    def trainer(self, steps: Steps) -> transformers.Trainer:
        return InOrder(
            model=self.model, args=self.arguments(), train_dataset=Rows(self.rows), callbacks=[steps],
            data_collator=self.collate,
        )  # fmt: skip


def peer_model(name: str, o: dict[str, Any], base: str) -> Any:
    dtype = getattr(torch, o["dtype"])
    if name == "transformers":
        return transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype)
    if name == "gptqmodel":
        config = transformers.GPTQConfig(bits=o["bits"], backend="gptq_torch")
        return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )
    return transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype, quantization_config=config)


def floor(model: Any, objective: AnswerObjective, order: list[int], dtype: torch.dtype) -> float:
    """CPU seconds of the linear layers on the true tokens, forward and the gradient of their inputs, by the faster library.

    The output layer counts at the answers' tokens alone. Attention, norms, the adapter and the optimizer are no part of it.
    """
    rows = [objective.rows[i] for i in order]
    tokens = sum(len(prompt) + len(target) - 1 for prompt, target in rows)
    answers = sum(len(target) for _, target in rows)
    head = model.get_base_model().get_output_embeddings()
    seconds = 0.0
    shapes: dict[tuple[int, int, bool], int] = {}
    for layer in model.modules():
        if (type(layer) is nn.Linear and not layer.weight.requires_grad) or isinstance(layer, PackedLinear):
            key = (layer.out_features, layer.in_features, layer is head)
            shapes[key] = shapes.get(key, 0) + 1
    for (out, inner, last), count in shapes.items():
        block = 512
        x, W = torch.randn(block, inner, dtype=dtype), torch.randn(out, inner, dtype=dtype)
        g = torch.randn(block, out, dtype=dtype)

        def best(*works: Any) -> float:
            found = []
            for work in works:
                work()
                for _ in range(5):
                    start = time.process_time()
                    work()
                    found.append(time.process_time() - start)
            return min(found)

        with torch.inference_mode():
            once = best(lambda x=x, W=W: x @ W.t(), lambda x=x, W=W: products.linear(x, W))
            once += best(lambda g=g, W=W: g @ W, lambda g=g, W=W: products.linear(g, W.t()))
        seconds += count * once * (answers if last else tokens) / block
    return seconds


def main(o: dict[str, Any]) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    clock = Clock()
    lab = Lab(Path(o["out"]) / "store", offline=True, dtype=o["dtype"], micro_batch=o["micro"])
    count = o["batch"] * o["steps"]
    step = lab.adapter(
        o["model"], o["bits"], task=o["task"], data=o["data"],
        overrides=[f"train.train_limit={count}", f"train.batch_size={o['batch']}", *o["overrides"]],
    )  # fmt: skip
    if o["bits"] < 16:
        lab.make(step.base)
    runtime = lab.runtime().computing_in(step.dtype)
    rows = draw(load_split(step.task, "train").examples, count, 0)
    loaded = load_base(step.base, lab.store, runtime)
    ours = Ours(loaded, step, rows, o)
    runners: dict[str, Runner] = {"plr": ours}
    base = str(lab.store.require(step.base).path) if o["bits"] < 16 else o["model"]
    config = {key: step.adapter.config[key] for key in ("r", "lora_alpha", "target_modules")}
    for name in o["runners"]:
        if name != "plr":
            runners[name] = Peer(peer_model(name, o, base), ours, loaded.tokenizer, config, o)
    if o["do"] == "memory":
        runner = runners[o["runners"][0]]
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts at what is resident now
        before = peak_rss()
        runner.run()
        clock.report(lift=peak_rss() - before)
        return
    found: dict[str, dict[str, list[Any]]] = {name: {"wall": [], "cpu": [], "losses": []} for name in runners}
    order = list(runners)
    for number in range(o["rounds"] + 1):  # one to warm up
        for name in order:
            one = runners[name].run()
            if number:
                for key, value in one.items():
                    found[name][key].append(value)
        order = order[1:] + order[:1]
    lengths = [ours.objective.lengths[i] for i in ours.order]
    clock.report(
        found=found,
        floor=floor(ours.model, ours.objective, ours.order, getattr(torch, o["dtype"])),
        tokens=sum(lengths),
        longest=max(lengths),
        trained=sum(p.numel() for _, p in ours.trained()),
        packed=ours.objective.attention is not None,
    )


main(options())
