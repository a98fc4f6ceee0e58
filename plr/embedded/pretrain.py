"""Pretrain the embedded base from scratch: `python -m plr.embedded.pretrain --out DIR --seed 0`.

1. A byte-level BPE tokenizer is trained on the corpus: lossless on any text, digits one by one, the space before a
   number a token of its own, so that a number is the same tokens wherever it stands.
2. A narrow, bias-free Llama with tied embeddings reads packed documents, each closed by the end-of-text token.
   Matrices inside the blocks are trained by Muon (orthogonalised momentum: Jordan et al. 2024, step scaled to AdamW's
   as in Liu et al. 2025), embeddings and norms by AdamW; the rate is warmed up, held, then brought to zero linearly.
3. Weights are saved in bfloat16 as a Hugging Face checkpoint, with what made them in `training.json`.

Equal seed, steps, torch and thread count on one kind of CPU give equal weights.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plr.embedded.corpus import math_prompt, math_rows, pretraining_texts, sql_prompt, sql_rows

__all__ = ["main", "make_config", "make_tokenizer", "pretrain"]

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 768
TOKENIZER_TEXTS, TASK_ROWS = 10_000, 2_000
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n?|\s"  # a word, a digit, punctuation (with its line end), a space
BATCH, LENGTH = 16, 128
RATE, WARM_UP, DECAY = 3e-3, 200, 0.4  # peak rate; steps of warm-up; share of the steps in which the rate falls to zero
WEIGHT_DECAY = 0.05
SAVE_EVERY = 500  # steps; the last save stands


def _led(answer: str) -> str:
    """Write a worked answer with its steps led in by `Now` and `So`: the wording on which the committed merges were learnt.

    The rows have since been worded with the words of the stories, which the base has read; the merges stay as they are,
    so that this script makes the committed tokenizer.
    """
    answer = re.sub(r"^\w+ has(?= <<)", "Now", answer, flags=re.MULTILINE)
    return re.sub(r"^\w+ \w+(?= <<)", "So", answer, flags=re.MULTILINE)


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first texts of the stream and on rows of both tasks' train split."""
    tasks = [math_prompt({**row, "answer": _led(row["answer"])}) for row in math_rows("train", TASK_ROWS, seed)]
    tasks += [sql_prompt(row) for row in sql_rows("train", TASK_ROWS, seed)]
    texts = chain(islice(pretraining_texts(seed), TOKENIZER_TEXTS), map("".join, tasks))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape of the base; every inner width divides by 128, so that group sizes up to 128 fit."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Yield endless batches of packed token ids, int64 [BATCH, LENGTH]."""
    texts, ids = pretraining_texts(seed), []
    need = BATCH * LENGTH
    while True:
        while len(ids) < need:
            for text in tokenizer(list(islice(texts, 64)))["input_ids"]:
                ids.extend([*text, tokenizer.eos_token_id])
        yield torch.tensor(ids[:need]).view(BATCH, LENGTH)
        ids = ids[need:]


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step`: warm-up, hold, linear fall."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Return the mean loss over four batches of another stream, in nats per token."""
    losses = [model(input_ids=b, labels=b).loss.item() for b in islice(batches(tokenizer, seed), 4)]
    return sum(losses) / len(losses)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, object]) -> None:
    """Write the checkpoint and its record; the model in memory keeps its precision."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = cast(Any, LlamaForCausalLM(model.config)).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.generation_config = GenerationConfig(
        do_sample=False,
        **special_ids(tokenizer),
    )
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def pretrain(out: Path, seed: int, steps: int, threads: int) -> dict[str, object]:
    """Train, save to `out`, and return the record that `training.json` holds."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    tokenizer = make_tokenizer(seed)
    model = LlamaForCausalLM(make_config(tokenizer))
    stream, makers = batches(tokenizer, seed), optimizers(model)
    began, smooth, record = time.monotonic(), 0.0, {}
    for step in range(steps):
        for optimizer in makers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_at(step, steps)
        ids = next(stream)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in makers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        minutes = (time.monotonic() - began) / 60
        if step % 100 == 99:
            print(f"step {step + 1}/{steps}  loss {smooth:.4f}  {minutes:.1f} min", flush=True)
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step == steps - 1:
            record = {
                "made_by": f"python -m plr.embedded.pretrain --seed {seed} --steps {steps} --threads {threads}",
                "seed": seed,
                "steps": step + 1,
                "tokens": (step + 1) * BATCH * LENGTH,
                "parameters": sum(p.numel() for p in model.parameters()),
                "minutes": round(minutes, 1),
                "threads": threads,
                "train_loss": round(smooth, 4),
                "held_out_loss": round(held_out_loss(model, tokenizer, seed + 1), 4),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            save(model, tokenizer, out, record)
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plr.embedded.pretrain", description="Pretrain the embedded base.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    print(json.dumps(pretrain(options.out, options.seed, options.steps, options.threads), indent=2))


if __name__ == "__main__":
    main()
