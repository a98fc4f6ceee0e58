"""Carry out a Train step: an adapter on a base, by transformers' Trainer."""

from __future__ import annotations

import inspect
import math
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from plr.adapters import adapters
from plr.adapters.peft import name_base
from plr.bases import Loaded, load_base
from plr.data import draw, guarded_train, load_split
from plr.errors import DataError, ResourceError, TrainingError
from plr.lm import answer_loss, encode_pair
from plr.runtime import Runtime
from plr.specs import ModelRef, Train
from plr.store import Store
from plr.tasks import Example
from plr.trainer import (
    AnswerCollator,
    OrderedRows,
    PlrTrainer,
    ProgressCallback,
    latest_checkpoint,
    read_best,
    training_order,
)

__all__ = ["train"]


def train(
    step: Train,
    folder: Path,
    store: Store,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter of ``step`` and write it to ``folder``.

    Goes on from the last checkpoint in ``store.work(step)`` if an earlier run was killed. Returns the metrics of the
    manifest: loss curve, best validation loss, trainable parameters, seconds a step, peak memory, row and token counts.

    Raises:
        DataError: rows that do not fit max_length; nothing is cut.
        TrainingError: the loss is not finite.
        ResourceError: out of GPU memory.
    """
    spec, work = step.train, store.work(step)
    work.mkdir(parents=True, exist_ok=True)
    loaded = load_base(step.base, store, runtime)
    method = adapters.get(step.adapter.method)
    model = method.attach(loaded.model, step.adapter.config, seed=spec.seed)
    train_rows = draw(guarded_train(step.task), spec.train_limit, spec.seed)
    validation = draw(load_split(step.task, "validation").examples, spec.validation_limit, 0)
    encoded = [_encode(loaded, row, spec.max_length) for row in train_rows]
    lengths = [len(prompt) + len(target) for prompt, target in encoded]
    order = training_order(lengths, epochs=spec.epochs, batch_size=spec.batch_size, seed=spec.seed)
    pairs = [(row.prompt, row.target) for row in validation]

    def validate() -> float:
        losses = answer_loss(model, loaded.tokenizer, pairs)
        return sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)

    trainer = PlrTrainer(
        model=model,
        args=_arguments(step, runtime, work, len(order), loaded),
        train_dataset=OrderedRows(encoded, order),
        eval_dataset=pairs,
        data_collator=AnswerCollator(
            loaded.tokenizer.pad_token_id,  # type: ignore[arg-type]
            position_ids="position_ids" in inspect.signature(loaded.model.forward).parameters,
        ),
        callbacks=[ProgressCallback(on_progress, runtime.checkpoint_seconds)],
        work=work,
        validate=validate,
        save_best=lambda path: method.save(model, path),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(TqdmCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    resumed = latest_checkpoint(work)
    try:
        result = trainer.train(resume_from_checkpoint=resumed)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"training {step.label} ran out of GPU memory with micro_batch {runtime.micro_batch}",
            hint="lower runtime.micro_batch or set runtime.gradient_checkpointing: the result does not change",
        ) from error
    if read_best(work) is None:
        trainer.evaluate()
    history = _curve(trainer.state.log_history)
    if not math.isfinite(result.training_loss):
        raise TrainingError(
            f"training {step.label} diverged: loss {result.training_loss}", hint="lower the learning rate"
        )
    best = read_best(work)
    if spec.select == "best_validation_loss" and best is not None:
        shutil.copytree(work / best["folder"], folder, dirs_exist_ok=True)
    else:
        method.save(model, folder)
    _name_base(folder, step.base.model)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "train_bits": step.base.bits,
        "best": None if best is None else {"validation_loss": best["loss"], "step": best["step"]},
        "steps": trainer.state.global_step,
        "curve": history,
        "rows": {"train": len(train_rows), "validation": len(pairs)},
        "tokens_seen": sum(lengths[i] for i in order),
        "trainable_parameters": parameters,
        "adapter_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "seconds_per_step": result.metrics["train_runtime"] / max(1, trainer.state.global_step - _step_of(resumed)),
        "peak_memory_bytes": _peak_memory(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "devices": trainer.args.world_size,
        "resumed_from_step": _step_of(resumed),
    }


def _encode(loaded: Loaded, row: Example, max_length: int) -> tuple[list[int], list[int]]:
    prompt, target = encode_pair(loaded.tokenizer, row.prompt, row.target)
    if len(prompt) + len(target) > max_length:
        raise DataError(
            f"row {row.id} has {len(prompt) + len(target)} tokens",
            expected=f"at most train.max_length = {max_length}",
            hint="raise train.max_length, or drop long rows with the task's max_prompt_chars",
        )
    return prompt, target


def _arguments(step: Train, runtime: Runtime, work: Path, rows: int, loaded: Loaded) -> TrainingArguments:
    spec = step.train
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_device = spec.batch_size // world
    if per_device * world != spec.batch_size:
        raise TrainingError(
            f"batch_size {spec.batch_size} does not divide over {world} devices",
            hint="choose a multiple, or fewer devices",
        )
    micro = max(n for n in range(1, min(runtime.micro_batch, per_device) + 1) if per_device % n == 0)
    steps = math.ceil(rows / spec.batch_size)
    evaluations = max(1, round(spec.epochs * spec.evaluations_per_epoch))
    checkpointing: dict[str, Any] = {}
    if runtime.gradient_checkpointing:
        checkpointing = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_device // micro,
        num_train_epochs=1,  # the dataset is all epochs in order
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.scheduler,
        warmup_steps=round(steps * spec.warmup_fraction),
        weight_decay=spec.weight_decay,
        adam_beta1=spec.adam_beta1,
        adam_beta2=spec.adam_beta2,
        adam_epsilon=spec.adam_epsilon,
        max_grad_norm=spec.max_grad_norm,
        optim="adamw_torch",
        eval_strategy="steps",
        eval_steps=max(1, steps // evaluations),
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=max(1, steps // 200),
        seed=spec.seed,
        bf16=loaded.model.dtype == torch.bfloat16,
        **checkpointing,
        use_cpu=runtime.torch_device() == "cpu",
        dataloader_pin_memory=runtime.torch_device() != "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False if world > 1 else None,
        disable_tqdm=True,
        report_to=list(runtime.report_to) or "none",
        log_level="error",
    )


def _curve(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """Step with training loss, learning rate and gradient norm, or with validation loss."""
    keep = ("loss", "eval_loss", "learning_rate", "grad_norm")
    return [{"step": e["step"], **{k: e[k] for k in keep if k in e}} for e in log if "loss" in e or "eval_loss" in e]


def _name_base(folder: Path, model: ModelRef) -> None:
    is_hub = model.kind == "hub"
    name = model.name if is_hub else model.path or f"{model.kind}:{model.name}"
    name_base(folder, name, model.revision if is_hub else None)


def _step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0


def _peak_memory() -> int:
    """Bytes: of the GPU's allocator, or on the CPU the largest resident set of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
