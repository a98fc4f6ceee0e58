"""Train three adapters without plr, as its users bring them: plain PEFT and Trainer, on a base that another tool quantized.

    python adapters.py MODEL DATA OUT lora-nf4 | lora-gptq | dora-nf4 [--rows 640] [--epochs 1]

`lora-nf4`: LoRA on a bitsandbytes NF4 base. `lora-gptq`: LoRA on a base that GPTQModel quantized to 4 bits (`OUT/gptq4`).
`dora-nf4`: DoRA on the NF4 base, the output layer trained whole (`modules_to_save`). MODEL is a folder of 16-bit weights, DATA one
with `train.jsonl` (question, context, answer). Prompt and answer are written as plr's task `sql_create_context` writes them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

from plr.tasks import find_task
from plr.tasks.data.rows import load_split, resolve_task

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100


def nf4_base(model: str) -> Any:
    """Load the model in bitsandbytes NF4, as a QLoRA script does."""
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=False,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=quantized, dtype=torch.float32)
    return prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False)


def gptq_base(model: str, texts: list[str], out: Path) -> Any:
    """Quantize the model with GPTQModel to 4 bits, group size 64, and load it for training."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    if not (out / "config.json").is_file():
        whole = GPTQModel.load(model, QuantizeConfig(bits=4, group_size=64, device="cpu"))
        whole.quantize(texts, batch_size=1)
        whole.save(str(out))
    loaded = GPTQModel.load(str(out), backend=BACKEND.TORCH, device="cpu", trainable=True, dtype=torch.bfloat16)
    return loaded.model


class Rows(Dataset):
    """Tokenized rows: the prompt bears no loss."""

    def __init__(self, tokenizer: Any, examples: list[Any]) -> None:
        self.rows = []
        for example in examples:
            prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(example.target, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            self.rows.append((prompt, answer))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        return self.rows[index]


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in rows:
        spare = longest - len(prompt) - len(answer)
        batch["input_ids"].append(prompt + answer + [pad] * spare)
        batch["attention_mask"].append([1] * (longest - spare) + [0] * spare)
        batch["labels"].append([IGNORED] * len(prompt) + answer + [IGNORED] * spare)
    return {name: torch.tensor(values) for name, values in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=["lora-nf4", "lora-gptq", "dora-nf4"])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=5e-4)
    chosen = parser.parse_args()

    find_task("sql_create_context")
    task = resolve_task("sql_create_context", data=chosen.data)
    examples = list(load_split(task, "train").examples)
    random.Random(0).shuffle(examples)
    examples = examples[: chosen.rows]
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    torch.manual_seed(0)
    if chosen.kind == "lora-gptq":
        model = gptq_base(chosen.model, [e.prompt + e.target for e in examples[:128]], chosen.out / "gptq4")
    else:
        model = nf4_base(chosen.model)
    extra: dict[str, Any] = {"use_dora": True, "modules_to_save": ["lm_head"]} if chosen.kind == "dora-nf4" else {}
    rank = 8 if chosen.kind == "dora-nf4" else 16
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM", **extra)
    trained = get_peft_model(model, config)
    trained.print_trainable_parameters()

    folder = chosen.out / chosen.kind
    arguments = TrainingArguments(
        output_dir=str(chosen.out / "checkpoints" / chosen.kind),
        per_device_train_batch_size=8,
        num_train_epochs=chosen.epochs,
        learning_rate=chosen.rate,
        lr_scheduler_type="linear",
        warmup_steps=3,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        seed=0,
        use_cpu=True,
        remove_unused_columns=False,
    )
    rows = Rows(tokenizer, examples)
    trainer = Trainer(
        model=trained, args=arguments, train_dataset=rows, data_collator=lambda batch: collate(batch, pad)
    )
    start = time.perf_counter()
    result = trainer.train()
    trained.save_pretrained(folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "kind": chosen.kind,
        "rows": len(rows),
        "steps": result.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
