"""Carry out a Train step: an adapter on a base, by transformers' Trainer."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from plr.adapters import Kind, adapters
from plr.adapters.peft import name_base
from plr.bases.load import Loaded, load_base
from plr.bases.named import name_of
from plr.core.launcher import world_size
from plr.core.runtime import Runtime
from plr.core.specs import ModelRef, Train
from plr.core.store import Store
from plr.errors import ConfigError, MissingDependencyError, ResourceError, TrainingError
from plr.registry import did_you_mean
from plr.tasks.data.rows import data_record, draw, guarded_train, head_of, load_split
from plr.training.costs import inference_overhead, peak_memory, reset_peak_memory
from plr.training.exposure import exposed
from plr.training.objectives import AnswerObjective, HeadObjective, Objective
from plr.training.trainer import (
    OrderedRows,
    PlrTrainer,
    ProgressCallback,
    latest_checkpoint,
    read_best,
    training_order,
)

__all__ = ["train"]

log = logging.getLogger(__name__)

PROBE_ROWS = 4
"""Rows of the forward pass that says what the adapter costs at inference."""


def train(
    step: Train,
    folder: Path,
    store: Store,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter of `step` and write it to `folder`.

    Goes on from the last checkpoint in `store.work(step)` if an earlier run was killed. Returns the metrics of the
    manifest: loss curve, best validation loss, trainable and updated parameters, seconds a step, peak memory, what the adapter
    costs a forward pass, row and token counts.

    Raises:
        ConfigError, MissingDependencyError: a tracker in `runtime.report_to` that is none, or is not installed.
        DataError: rows that do not fit max_length; nothing is cut.
        TrainingError: the loss is not finite, or the processes of a launch do not meet.
        ResourceError: out of GPU memory.
    """
    _check_reports(runtime.report_to)
    runtime = runtime.computing_in(step.dtype)
    spec, work = step.train, store.work(step)
    work.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    head = head_of(step.task)
    kind: Kind = "generation" if head is None else "classification"
    loaded = load_base(step.base, store, runtime, head=head)
    method = adapters.get(step.adapter.method)
    train_rows = draw(guarded_train(step.task), spec.train_limit, spec.seed)
    validation = draw(load_split(step.task, "validation").examples, spec.validation_limit, 0)
    objective: Objective
    if head is None:
        objective = AnswerObjective(loaded, train_rows, validation, spec.max_length)
    else:
        objective = HeadObjective(loaded, step.task, head, train_rows, validation, spec.max_length)
    order = training_order(objective.lengths, epochs=spec.epochs, batch_size=spec.batch_size, seed=spec.seed)
    steps = math.ceil(len(order) / spec.batch_size)
    with exposed(step, loaded, store, runtime, head) as seen:
        model = method.attach(loaded.model, step.adapter.config, seed=spec.seed, kind=kind, steps=steps)
        objective.bind(model)
        with _joining(world_size()):
            arguments = _arguments(step, runtime, work, len(order), loaded)
        trainer = PlrTrainer(
            model=model,
            args=arguments,
            train_dataset=OrderedRows(objective.rows, order),
            eval_dataset=validation,
            callbacks=[
                ProgressCallback(on_progress, runtime.checkpoint_seconds),
                *method.callbacks(model, step.adapter.config),
                *seen.callbacks,
            ],
            work=work,
            objective=objective,
            save_best=lambda path: method.save(model, path),
            validate=seen.around(objective.validate),
            buffers=lambda: method.buffers(model),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(TqdmCallback)
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
        peak = peak_memory()
        best = read_best(work)
        if spec.select == "best_validation_loss" and best is not None:
            shutil.copytree(work / best["folder"], folder, dirs_exist_ok=True)
        else:
            method.save(model, folder)
        _name_base(folder, step.base.model)
        adapter_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        seen.save(folder)
        return {
            "train_bits": step.base.bits,
            "best": None if best is None else {"validation_loss": best["loss"], "step": best["step"]},
            "steps": trainer.state.global_step,
            "curve": history,
            "rows": {"train": len(train_rows), "validation": len(validation)},
            "data": data_record(step.task, "train"),
            "tokens_seen": sum(objective.lengths[i] for i in order),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "updated_parameters": method.updated_parameters(model),
            "adapter_bytes": adapter_bytes,
            "seconds_per_step": result.metrics["train_runtime"] / max(1, trainer.state.global_step - _step_of(resumed)),
            "peak_memory_bytes": peak,
            "inference_overhead": {
                "unmerged": _overhead(model, objective, runtime),
                "merged": 1.0 if method.properties.merges else None,
            },
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "devices": trainer.args.world_size,
            "resumed_from_step": _step_of(resumed),
            **seen.record,
        }


def _overhead(model: nn.Module, objective: Objective, runtime: Runtime) -> float:
    """Measure what the adapter costs a forward pass over a few training rows, unmerged."""
    batch = objective.collate(list(objective.rows[:PROBE_ROWS]))
    labels = batch.pop("labels").to(runtime.torch_device())
    batch.pop("shift_labels")
    inputs = {name: tensor.to(runtime.torch_device()) for name, tensor in batch.items()}
    with objective.serving():
        return inference_overhead(model, lambda: objective.loss(model, dict(inputs), labels))


def _check_reports(names: Sequence[str]) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"runtime.report_to names {name!r}",
                expected="tensorboard, mlflow, or another tracker that transformers knows",
                hint=did_you_mean(name, INTEGRATION_TO_CALLBACK),
            )
        if name not in get_available_reporting_integrations():
            raise MissingDependencyError(
                f"runtime.report_to names {name}, which is not installed", hint=f"pip install {name}, or 'plr[track]'"
            )


@contextmanager
def _joining(world: int) -> Generator[None]:
    """Say for whom this process waits inside the context, and that they did not come.

    Raises:
        TrainingError: the processes did not meet.
    """
    if world == 1:
        yield
        return
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.warning("process %s waits for the others of %d at %s, half an hour at most", os.environ["RANK"], world, place)
    try:
        yield
    except torch.distributed.DistError as error:
        raise TrainingError(
            f"the {world} processes of WORLD_SIZE did not meet at {place}: {str(error).splitlines()[0]}",
            expected="processes that a launcher has started",
            hint="start with accelerate launch or torchrun; to train alone, unset RANK and WORLD_SIZE",
        ) from error


def _arguments(step: Train, runtime: Runtime, work: Path, rows: int, loaded: Loaded) -> TrainingArguments:
    spec = step.train
    world = world_size()
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
    """Step with training loss, learning rate and gradient norm, or with validation loss and metrics."""
    keep = ("loss", "learning_rate", "grad_norm")
    return [
        {"step": entry["step"], **{key: entry[key] for key in entry if key in keep or key.startswith("eval_")}}
        for entry in log
        if "loss" in entry or "eval_loss" in entry
    ]


def _name_base(folder: Path, model: ModelRef) -> None:
    if not (folder / "adapter_config.json").is_file():
        return  # a whole checkpoint (full fine-tuning) stands by itself
    name_base(folder, *name_of(model))


def _step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
