"""Resolution of arguments and YAML entries to specs, the same way for every command.

The heavy modules behind it (tasks read data sets, bases ask the hub) are imported when first used, so planning a study on
resolved or embedded models stays quick and free of torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from plr.core.fingerprint import JsonObject
from plr.core.specs import (
    Calibration,
    CalibrationKnobs,
    Evaluate,
    GivenAdapter,
    GivenBase,
    ModelRef,
    Quantization,
    QuantizationKnobs,
    Source,
    TaskSpec,
)
from plr.errors import DataError, HubUnreachable, UsageError

__all__ = ["Resolver"]

UNRESOLVED = "unresolved"
KnobsT = TypeVar("KnobsT", bound=QuantizationKnobs)
log = logging.getLogger(__name__)


class Resolver:
    """A resolver of names; with `strict=False` a name that only the network can resolve becomes `unresolved` and is listed.

    A plan with unresolved parts can be shown, not run.
    """

    def __init__(self, *, strict: bool = True, offline: bool = False) -> None:
        self.strict = strict
        self.offline = offline
        self.unresolved: list[str] = []
        self._fitted: set[str] = set()  # models of which it was said that the recipe's groups do not fit
        self.model = cache(self._model)

    def _model(self, text: str) -> ModelRef:
        from plr.bases.resolve import resolve_model

        try:
            return resolve_model(text, offline=self.offline)
        except HubUnreachable:
            if self.strict:
                raise
            self.unresolved.append(f"model {text}")
            return ModelRef(kind="hub", name=text.partition("@")[0], revision=UNRESOLVED)

    def base(self, text: str, source: str | None = None) -> Source | GivenBase:
        """Resolve a model: one of 16 bits, or a quantized checkpoint and the `source` it was made from."""
        from plr.bases.given_bases import given_base

        ref = self.model(text)
        if ref.revision == UNRESOLVED:
            return Source(model=ref)
        return given_base(ref, source=source, offline=self.offline)

    def adapter(
        self,
        text: str,
        *,
        model: str | None = None,
        source: str | None = None,
        trained_on: str | None = None,
        task: TaskSpec | None = None,
        allow_mismatch: bool = False,
    ) -> GivenAdapter:
        """Resolve an adapter that another tool trained, as `plr.bases.given_adapters.resolve_adapter` does."""
        from plr.bases.given_adapters import resolve_adapter

        return resolve_adapter(
            text,
            model=model,
            source=source,
            trained_on=trained_on,
            task=task,
            allow_mismatch=allow_mismatch,
            offline=self.offline,
        )

    def task(
        self,
        name: str,
        *,
        data: str | None = None,
        split_seed: int = 0,
        max_prompt_chars: int | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> TaskSpec:
        """Resolve a task and its data, as `plr.tasks.data.rows.resolve_task` does."""
        from plr.tasks import find_task
        from plr.tasks.data.rows import resolve_task

        try:
            return resolve_task(
                name,
                data=data,
                split_seed=split_seed,
                max_prompt_chars=max_prompt_chars,
                columns=columns,
                offline=self.offline,
            )
        except HubUnreachable:
            if self.strict:
                raise
            self.unresolved.append(f"data of task {name}")
            task = find_task(name)
            return TaskSpec(
                name=name if task.definition is None else task.name,
                version=task.version,
                definition=task.definition,
                revision=UNRESOLVED,
                split_seed=split_seed,
                max_prompt_chars=max_prompt_chars,
                columns=tuple(sorted((columns or {}).items())),
            )

    def adapter_config(self, method: str, config: Mapping[str, Any]) -> JsonObject:
        """Complete the configuration of an adapter method."""
        from plr.adapters import adapters

        return adapters.get(method).resolve(config)

    def learning_rate(self, method: str, lora: float) -> float:
        """Convert LoRA's learning rate to that of another method."""
        from plr.adapters import adapters

        return float(f"{lora * adapters.get(method).properties.learning_rate:.6g}")

    def calibration(
        self, method: str, text: str | None, knobs: CalibrationKnobs, *, task: TaskSpec | None
    ) -> Calibration | None:
        """Resolve `task:NAME`, a file, or None for the given `task`; None for a method that takes no calibration."""
        from plr.quantizers import quantizers
        from plr.tasks.data.rows import resolve_file

        if method.replace("_", "-").lower() in ("auto-gptq", "autogptq"):
            raise UsageError(
                f"{method} has reached its end of life and does not import with this version of transformers",
                expected="gptq: plr's own solver, which writes the same checkpoint format",
                hint="use --method gptq; the checkpoint opens in GPTQModel, the successor of auto-gptq",
            )
        if not quantizers.get(method).needs_calibration:
            return None
        if text is not None and not text.startswith("task:"):
            return resolve_file(text, knobs, guard=task)
        rows = task if text is None else self.task(text.removeprefix("task:"))
        return Calibration(task=rows, **knobs.model_dump(include={*CalibrationKnobs.model_fields}))

    def check_base(self, model: ModelRef, quantization: Quantization) -> None:
        """Check what a quantization asks for against its method and, where its files are here, against the model.

        Raises:
            UsageError: settings that cannot be carried out, or a group size that does not divide the inputs of a layer.
        """
        from plr.quantizers import quantizers

        method = quantizers.get(quantization.method)
        method.check(quantization)
        if method.grouped and quantization.group_size > 0 and (folder := _folder(model)) is not None:
            from plr.bases.look import check_group_size

            check_group_size(folder, model.title, quantization.group_size)

    def fitted(self, model: ModelRef, quantization: KnobsT) -> KnobsT:
        """Lower the group size of a recipe to one that divides the inputs of the model's layers, where its files are here."""
        from plr.quantizers import quantizers

        size = quantization.group_size
        if not quantizers.get(quantization.method).grouped or size < 1 or (folder := _folder(model)) is None:
            return quantization
        from plr.bases.look import fitting_group_size

        fitting = fitting_group_size(folder, model.title, size)
        if fitting == size:
            return quantization
        if model.title not in self._fitted:
            log.warning("group_size %d of the recipe does not fit %s: %d is taken", size, model.title, fitting)
        self._fitted.add(model.title)
        return quantization.model_copy(update={"group_size": fitting})

    def gate_text(self, text: str) -> str:
        """Resolve the absolute path of a text to measure bases on.

        Raises:
            DataError: there is no such file.
        """
        path = Path(os.path.expanduser(text)).absolute()
        if not path.is_file():
            raise DataError(f"there is no text file {path} to measure on", expected="a .jsonl or text file")
        return str(path)

    def max_new_tokens(self, task: TaskSpec) -> int:
        from plr.tasks import task_of

        return task_of(task).max_new_tokens

    def check_evaluation(self, step: Evaluate) -> Evaluate:
        """Return `step` if its task takes examples and its engine can serve it.

        Raises:
            UsageError: see `plr.evaluation.fewshot.check_shots` and `plr.serving.check_engine`.
        """
        from plr.evaluation.fewshot import check_shots
        from plr.serving import check_engine

        check_shots(step.task, step.num_fewshot)
        check_engine(step)
        return step


def _folder(model: ModelRef) -> Path | None:
    """Find the folder of a model whose files are on this machine in any case."""
    from plr.bases.resolve import EMBEDDED

    if model.kind not in ("local", "embedded"):
        return None
    return Path(model.path) if model.path is not None else EMBEDDED[model.name]()
