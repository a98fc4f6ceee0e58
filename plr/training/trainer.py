"""transformers' Trainer, taught four things.

1. *The loss is the objective's* (`plr.training.objectives`): that of the answer's tokens, with logits at the
   answer only, or that of a classification head; always divided by the items of the whole optimizer batch.
2. *The batch is a value, its cutting is not.* Each optimizer step takes `batch_size` rows drawn by the seed; inside that
   batch rows are sorted by length before they are cut into micro-batches, so padding is small and the update is the same
   for every micro-batch size.
3. *Checkpoints hold no pickle and are atomic.* Trained tensors and optimizer moments as safetensors, the rest as JSON, in a
   folder that is flushed, and renamed when it is whole. A run that was killed goes on from the last one whose bytes are those
   that were written, and ends with the same bytes.
4. *The best checkpoint by validation loss is kept aside* as it is found.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plr.core.files import flush, flush_tree, write_atomic
from plr.core.fingerprint import file_sha256, folder_sha256, is_json
from plr.errors import TrainingError
from plr.training.objectives import IGNORE, Objective

__all__ = ["OrderedRows", "PlrTrainer", "ProgressCallback", "latest_checkpoint", "training_order"]

log = logging.getLogger(__name__)

SUMS = "sha256.json"
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it should the disk lose that."""


def training_order(lengths: Sequence[int], *, epochs: float, batch_size: int, seed: int) -> list[int]:
    """List row indices in the order of training: one permutation an epoch, each batch sorted by length, longest first.

    The last epoch may be partial. Batches are cut across epoch ends, so only the very last one can be short.
    """
    rows = len(lengths)
    generator = torch.Generator().manual_seed(seed)
    total = max(1, round(rows * epochs))
    order: list[int] = []
    while len(order) < total:
        order += torch.randperm(rows, generator=generator).tolist()
    order = order[:total]
    for start in range(0, total, batch_size):
        order[start : start + batch_size] = sorted(order[start : start + batch_size], key=lambda i: -lengths[i])
    return order


class OrderedRows(Dataset[object]):
    """Rows in training order: item `i` is the `i`-th row the model sees, over all epochs."""

    def __init__(self, rows: Sequence[object], order: Sequence[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> object:
        return self.rows[self.order[index]]


class ProgressCallback(TrainerCallback):
    """Reports steps, and asks for a checkpoint whenever `checkpoint_seconds` have passed."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, checkpoint_seconds: float) -> None:
        self.on_progress = on_progress
        self.checkpoint_seconds = checkpoint_seconds
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if self.on_progress is not None:
            self.on_progress(state.global_step, state.max_steps)
        if time.monotonic() - self.last >= self.checkpoint_seconds and state.global_step < state.max_steps:
            control.should_save = True
            self.last = time.monotonic()
        return control


class PlrTrainer(Trainer):
    """The Trainer of the module's docstring.

    `save_best` writes the adapter to a folder; `validate` measures it on the validation rows, as the objective does if left out;
    `buffers` are saved in checkpoints beside what is trained, and read back in place.
    """

    def __init__(
        self,
        *args: Any,
        work: Path,
        objective: Objective,
        save_best: Callable[[Path], None],
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        buffers: Callable[[], dict[str, Tensor]] = dict,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, data_collator=objective.collate, **kwargs)
        self.work = work
        self.objective = objective
        self.save_best = save_best
        self.validate = validate or objective.validate
        self.buffers = buffers
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the items of the whole batch itself

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Compute the summed loss of this micro-batch, over the items of the whole batch."""
        labels: Tensor = inputs.pop("labels")
        inputs.pop("shift_labels", None)
        loss, outputs = self.objective.loss(model, inputs, labels)
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE).sum())
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over devices
        self._check_finite(float(loss.detach()), "training")
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the loss of a micro-batch and its gradients, as the objective computes in training."""
        with self.objective.serving():
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[arg-type]

    def _check_finite(self, loss: float, what: str) -> None:
        """Stop at the first loss that is not finite: every step after it would train on it, and no number of it is one."""
        if not math.isfinite(loss):
            step = self.state.global_step
            last = next((entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry), None)
            raise TrainingError(
                f"the training diverged: the {what} loss is {loss} at step {step}"
                + (f", after {last} at the last record" if last is not None else ""),
                expected="a finite loss",
                hint=f"lower train.learning_rate ({self.args.learning_rate:g}), or raise train.warmup_fraction",
            )

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Compute the mean validation loss an item, and metrics of a head; the best adapter so far is kept in `work`."""
        measured = self.validate(self.accelerator.unwrap_model(self.model))
        loss, named = measured["loss"], {f"eval_{name}": value for name, value in measured.items()}
        self._check_finite(loss, "validation")
        self.log(named)
        if self.is_world_process_zero():
            best = read_best(self.work)
            if best is None or loss < best["loss"]:
                folder = self.work / f"best-{self.state.global_step}"
                shutil.rmtree(folder, ignore_errors=True)
                self.save_best(folder)
                flush_tree(folder)
                best_now: Best = {
                    "loss": loss,
                    "step": self.state.global_step,
                    "folder": folder.name,
                    "sha256": folder_sha256(folder),
                }
                write_atomic(self.work / "best.json", json.dumps(best_now, allow_nan=False))
                if best is not None and best["folder"] != folder.name:
                    shutil.rmtree(self.work / best["folder"], ignore_errors=True)
        return named

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        if not self.is_world_process_zero():
            return
        final = self.work / f"checkpoint-{self.state.global_step}"
        partial = self.work / ".partial-checkpoint"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(self._trained(), partial / "trained.safetensors")
        save_file(
            {name: b.detach().cpu().contiguous() for name, b in self.buffers().items()}, partial / "buffers.safetensors"
        )
        tensors, rest = _flatten(self.optimizer.state_dict())  # type: ignore[union-attr]
        save_file(tensors | _rng_state(), partial / "optimizer.safetensors")
        scheduler = {k: v for k, v in self.lr_scheduler.state_dict().items() if is_json(v)}  # type: ignore[union-attr]
        (partial / "rest.json").write_text(json.dumps({"optimizer": rest, "scheduler": scheduler}, allow_nan=False))
        self.state.save_to_json(str(partial / "trainer_state.json"))
        (partial / SUMS).write_text(json.dumps(_sums(partial)))
        flush_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flush(self.work)
        for old in _checkpoints(self.work)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / "trained.safetensors")
        trained = dict(self._named_trained())
        if saved.keys() != trained.keys():
            raise RuntimeError(f"{resume_from_checkpoint} belongs to another adapter")
        buffers = load_file(Path(resume_from_checkpoint) / "buffers.safetensors")
        with torch.no_grad():
            for name, tensor in saved.items():
                trained[name].copy_(tensor)
            for name, buffer in self.buffers().items():
                buffer.copy_(buffers[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        rest = json.loads((Path(checkpoint) / "rest.json").read_text())
        tensors = load_file(Path(checkpoint) / "optimizer.safetensors")
        self.optimizer.load_state_dict(_unflatten(tensors, rest["optimizer"]))  # type: ignore[union-attr]
        self.lr_scheduler.load_state_dict(self.lr_scheduler.state_dict() | rest["scheduler"])  # type: ignore[union-attr]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        tensors = load_file(Path(checkpoint) / "optimizer.safetensors")
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])

    def _named_trained(self) -> list[tuple[str, Tensor]]:
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in self._named_trained()}


class Best(TypedDict):
    """The best adapter so far: its validation loss, the optimizer step, and its folder in `work`."""

    loss: float
    step: int
    folder: str
    sha256: str


def latest_checkpoint(work: Path) -> str | None:
    """Find the folder of the newest whole checkpoint, or None; one that is broken is passed over, with a warning.

    Where the best adapter so far is broken, nothing of `work` is of use: it is emptied, and the training begins anew.
    """
    if (work / "best.json").is_file() and not _is_whole_best(work):
        log.warning("the best adapter so far, in %s, is broken: the training begins anew", work)
        shutil.rmtree(work)
        work.mkdir()
    for folder in reversed(_checkpoints(work)):
        if _is_whole(folder):
            return str(folder)
        log.warning("the checkpoint %s is broken: the one before is taken", folder)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _checkpoints(work: Path) -> list[Path]:
    """List the folders of checkpoints, the oldest first."""
    named = [path for path in work.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(named, key=lambda path: int(path.name.rpartition("-")[2]))


def _sums(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.name != SUMS}


def _is_whole(folder: Path) -> bool:
    """Compare the files of a checkpoint with the sums beside them."""
    try:
        return json.loads((folder / SUMS).read_text()) == _sums(folder)
    except (OSError, ValueError):
        return False


def _is_whole_best(work: Path) -> bool:
    try:
        best = read_best(work)
        return best is not None and folder_sha256(work / best["folder"]) == best["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def read_best(work: Path) -> Best | None:
    """Read loss, step, folder and hash of the best adapter so far, or None."""
    file = work / "best.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _rng_state() -> dict[str, Tensor]:
    state = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng.cuda"] = torch.cuda.get_rng_state()
    return state


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state dict into named tensors and the JSON rest."""
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, {"param_groups": [{k: v for k, v in g.items() if is_json(v)} for g in state["param_groups"]]}


def _unflatten(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if index != "rng":
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
