"""A study: axes in a YAML file -> cells -> one plan -> results.

The cells of a study are ``models x tasks x adapters x seeds x (train_bits, restore_bits)``; each is one
:class:`~plr.specs.Evaluate` step, and what two cells share is one step. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator

from plr.config import apply_overrides, load_yaml, parse
from plr.engines import Outcome, engines
from plr.errors import ConfigError, PlrError
from plr.presets import preset
from plr.provenance import provenance
from plr.quantizers import quantizers
from plr.registry import did_you_mean
from plr.report.cells import CellResult, Metric
from plr.resolve import Resolver
from plr.runtime import Runtime
from plr.specs import (
    BITS,
    AdapterSpec,
    Evaluate,
    GridSearch,
    Quantization,
    Quantize,
    Restore,
    Source,
    TaskSpec,
    Train,
    TrainSpec,
)
from plr.steps import Event, Plan, closure
from plr.store import Artifact, Store

__all__ = ["Cell", "Study", "StudyConfig", "failed_cells", "load_study", "raise_if_all_failed", "study_config"]


class _Part(BaseModel, frozen=True, extra="forbid"):
    """A part of the study file."""


class QuantizeConfig(_Part, frozen=True):
    """How every base below 16 bits is made; ``calibration`` is ``task`` (the task of the cell) or a file."""

    method: str = "gptq"
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    static_groups: bool = False
    act_group_aware: bool = False
    damp_percent: float = 0.01
    block_size: int = 128
    grid: GridSearch = "minmax"
    refine_passes: int = 0
    input_correction: float = 0.0
    double_quant: bool = False
    calibration: str = "task"
    samples: int = Field(default=500, ge=1)
    seed: int = 0
    max_length: int = Field(default=512, ge=1)
    gate_text: str | None = None
    """A JSONL or text file on which every base is measured, beside the task; no part of a base's identity."""
    by_bits: dict[int, dict[str, Any]] = Field(default_factory=dict)
    """What differs at one width: ``{4: {method: nf4, group_size: 64}}``."""

    @field_validator("by_bits", mode="before")
    @classmethod
    def _one_entry_a_width(cls, value: Any) -> Any:
        """``--set quantize.by_bits.4.KEY`` writes to "4", a file to 4: both are the same entry."""
        if not isinstance(value, Mapping):
            return value
        merged: dict[str, Any] = {}
        for bits, settings in value.items():
            merged = _laid_over(merged, {str(bits): settings})
        return merged

    @field_validator("by_bits")
    @classmethod
    def _known_settings(cls, value: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        known = sorted(cls.model_fields.keys() - {"by_bits"})
        for bits, settings in value.items():
            if bits not in BITS or bits == 16:
                raise ValueError(
                    f"{bits} is no width of a quantized base: {', '.join(map(str, sorted({*BITS} - {16})))}"
                )
            for key in sorted(settings.keys() - known):
                raise ValueError(
                    f"{bits}: unknown key {key}, {did_you_mean(key, known) or 'known: ' + ', '.join(known)}"
                )
        return value


class EvaluateConfig(_Part, frozen=True):
    split: Literal["train", "validation", "test"] = "test"
    limit: int | None = Field(default=None, ge=1)
    limit_seed: int = 0
    max_new_tokens: int | None = Field(default=None, ge=1)
    generate: bool = True


def _known_bits(value: tuple[int, ...]) -> tuple[int, ...]:
    for bits in value:
        if bits not in BITS:
            raise ValueError(f"bits {bits} is none of {', '.join(map(str, BITS))}")
    return value


BitWidths = Annotated[tuple[int, ...], AfterValidator(_known_bits)]


class TaskConfig(_Part, frozen=True):
    """One task; ``quantize``, ``train``, ``evaluate`` and the bit widths hold what differs from the study's."""

    name: str
    data: str | None = None
    split_seed: int = 0
    max_prompt_chars: int | None = None
    train_bits: BitWidths | None = None
    restore_bits: BitWidths | None = None
    quantize: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)


class AdapterConfig(_Part, frozen=True):
    method: str = "lora"
    name: str | None = None
    """What tables call it; the method's name if left out."""
    config: dict[str, Any] = Field(default_factory=dict)


class StudyConfig(_Part, frozen=True):
    """The file. Everything but ``name`` has a default; unknown keys are errors."""

    name: str = Field(pattern=r"^[\w.-]+$")
    preset: str | None = None
    """A recipe of :mod:`plr.presets` that the file's own settings are laid over."""
    models: tuple[str, ...] = ("embedded:tiny",)
    tasks: tuple[TaskConfig, ...] = (TaskConfig(name="tiny_math"),)
    adapters: tuple[AdapterConfig, ...] = (AdapterConfig(),)
    seeds: tuple[int, ...] = (0,)
    train_bits: BitWidths = BITS
    restore_bits: BitWidths = BITS
    cells: Literal["upper", "all"] = "upper"
    modes: tuple[Literal["restore", "roundtrip", "requantize"], ...] = ("restore",)
    baselines: bool = False
    """Also score every base without an adapter."""
    quantize: QuantizeConfig = QuantizeConfig()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tasks", "adapters", mode="before")
    @classmethod
    def _names(cls, value: Any, info: Any) -> Any:
        """A bare name stands for an entry with that name."""
        key = "name" if info.field_name == "tasks" else "method"
        return [{key: item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value

    @field_validator("models", "tasks", "adapters", "seeds", "train_bits", "restore_bits", "modes")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("the list is empty: give at least one")
        if len(set(map(str, value))) != len(value):
            raise ValueError("the list names something twice")
        return value


@dataclass(frozen=True)
class Cell:
    """One point of the study and the step that scores it."""

    model: str
    task: str
    adapter: str
    train_bits: int
    restore_bits: int
    mode: str
    seed: int
    step: Evaluate

    @property
    def label(self) -> str:
        return (
            f"{self.model} {self.task} {self.adapter} {self.train_bits} -> {self.restore_bits} bits, seed {self.seed}"
        )


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> StudyConfig:
    """Read a study file, with ``--set`` overrides over it.

    Raises:
        ConfigError: see :mod:`plr.config`; also for a variable in ``data`` or ``models`` that is not set.
    """
    return study_config({"name": path.stem, **load_yaml(path)}, str(path), overrides)


def study_config(value: Mapping[str, Any], where: str = "study", overrides: tuple[str, ...] = ()) -> StudyConfig:
    """A checked study from a mapping, with its preset below it and ``overrides`` above it."""
    chosen = apply_overrides(dict(value), [text for text in overrides if text.startswith("preset=")]).get("preset")
    base = preset(str(chosen)) if chosen else {}
    return parse(StudyConfig, apply_overrides(_laid_over(base, value), overrides), where)


class Study:
    """A study with its axes resolved to steps."""

    def __init__(self, config: StudyConfig, *, resolver: Resolver | None = None) -> None:
        self.config = config
        self.resolver = resolver or Resolver()
        for text in (*config.models, *(task.data for task in config.tasks if task.data)):
            _expand(text)  # a variable that is not set is said before the network is asked for anything
        self.cells = list(self._cells())

    @property
    def name(self) -> str:
        return self.config.name

    def runtime(self, **over: Any) -> Runtime:
        """The study's runtime settings with those of the command line over them."""
        return parse(Runtime, {**self.config.runtime, **{k: v for k, v in over.items() if v is not None}}, "runtime")

    def plan(self, store: Store) -> Plan:
        return Plan.of([cell.step for cell in self.cells], store)

    def run(
        self,
        store: Store,
        runtime: Runtime,
        *,
        engine: str = "local",
        plan: Plan | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Outcome:
        """Make every step that is missing. Failed steps are in the outcome; the rest is done."""
        return engines.get(engine).run(plan or self.plan(store), store, runtime, on_event or (lambda event: None))

    def results(self, store: Store, failed: Mapping[str, str] | None = None) -> list[CellResult]:
        """One result a cell; a cell whose artifact is missing is a failed one with its reason."""
        return [_result(cell, store.get(cell.step), failed or {}) for cell in self.cells]

    def write(self, store: Store, folder: Path, failed: Mapping[str, str] | None = None) -> dict[str, Path]:
        """Write results.csv, table.md and report.html; where each of them lies."""
        from plr.report import write_report

        return write_report(
            self.results(store, failed),
            folder,
            title=self.name,
            settings=self.config.model_dump(mode="json", exclude={"runtime"}),
            provenance=provenance(),
            timings=list(self._timings(store)),
            bases=list(self._bases(store)),
        )

    def _bases(self, store: Store) -> Iterator[dict[str, Any]]:
        """The gate of every quantized base of the study; a base with none (an older plr, another maker) is left out."""
        for step in closure([cell.step for cell in self.cells]):
            artifact = store.get(step) if isinstance(step, Quantize) else None
            if artifact is not None and "gate" in artifact.metrics:
                yield {"name": step.label, "gate": artifact.metrics["gate"]}

    def _timings(self, store: Store) -> Iterator[dict[str, Any]]:
        for step in closure([cell.step for cell in self.cells]):
            artifact = store.get(step)
            if artifact is not None:
                yield {"kind": step.kind, "step": step.label, "seconds": artifact.manifest["seconds"]}

    def _cells(self) -> Iterator[Cell]:
        config = self.config
        for model in config.models:
            source = Source(model=self.resolver.model(_expand(model)))
            for task in config.tasks:
                spec = self.resolver.task(
                    task.name,
                    data=_expand(task.data) if task.data else None,
                    split_seed=task.split_seed,
                    max_prompt_chars=task.max_prompt_chars,
                )
                yield from self._task_cells(source, task, spec)

    def _task_cells(self, source: Source, task: TaskConfig, spec: TaskSpec) -> Iterator[Cell]:
        config, where = self.config, f"task {task.name}"
        quantize = parse(QuantizeConfig, {**config.quantize.model_dump(), **task.quantize}, f"{where}: quantize")
        training = parse(TrainSpec, {**config.train.model_dump(), **task.train}, f"{where}: train")
        evaluation = parse(EvaluateConfig, {**config.evaluate.model_dump(), **task.evaluate}, f"{where}: evaluate")
        train_bits, restore_bits = task.train_bits or config.train_bits, task.restore_bits or config.restore_bits
        bases = {bits: self._base(source, bits, quantize, spec) for bits in {*train_bits, *restore_bits}}
        settings = self._evaluation(task.name, evaluation)
        model = source.model.title
        if config.baselines:
            for bits in sorted(restore_bits, reverse=True):
                step = Evaluate(target=bases[bits], task=spec, **settings)
                yield Cell(model, task.name, "none", bits, bits, "keep", config.seeds[0], step)
        for adapter in config.adapters:
            method = AdapterSpec(
                method=adapter.method, config=self.resolver.adapter_config(adapter.method, adapter.config)
            )
            for seed in config.seeds:
                for k, ell, mode in self._grid(train_bits, restore_bits):
                    train = Train(
                        base=bases[k], task=spec, adapter=method, train=training.model_copy(update={"seed": seed})
                    )
                    step = Evaluate(target=Restore(adapter=train, base=bases[ell], mode=mode), task=spec, **settings)
                    yield Cell(model, task.name, adapter.name or adapter.method, k, ell, mode, seed, step)

    def _grid(self, train_bits: Iterable[int], restore_bits: Iterable[int]) -> Iterator[tuple[int, int, Any]]:
        """(train_bits, restore_bits, mode) of every cell, falling in k and l."""
        config = self.config
        for k in sorted(train_bits, reverse=True):
            for ell in sorted({*restore_bits, k}, reverse=True):
                if config.cells == "upper" and ell < k:
                    continue
                if ell == k:
                    yield k, ell, "keep"
                    if "roundtrip" in config.modes and k < 16:
                        yield k, ell, "roundtrip"
                elif "restore" in config.modes:
                    yield k, ell, "restore"
                if "requantize" in config.modes and ell < 16:
                    yield k, ell, "requantize"

    def _base(self, source: Source, bits: int, config: QuantizeConfig, task: TaskSpec) -> Source | Quantize:
        if bits == 16:
            return source
        value = {**config.model_dump(exclude={"by_bits"}), **config.by_bits.get(bits, {})}
        config = parse(QuantizeConfig, value, f"quantize: by_bits: {bits}")
        calibration = self.resolver.calibration(
            config.method,
            None if config.calibration == "task" else _expand(config.calibration),
            task=task,
            samples=config.samples,
            seed=config.seed,
            max_length=config.max_length,
        )
        knobs = config.model_dump(exclude={"calibration", "samples", "seed", "max_length", "by_bits", "gate_text"})
        gate_text = self.resolver.gate_text(_expand(config.gate_text)) if config.gate_text else None
        value = {"bits": bits, "calibration": calibration, "gate_task": task, "gate_text": gate_text, **knobs}
        spec = parse(Quantization, value, "quantize")
        quantizers.get(spec.method).check(spec)
        return Quantize(source=source, quantization=spec)

    def _evaluation(self, task: str, config: EvaluateConfig) -> dict[str, Any]:
        settings = config.model_dump()
        if settings["max_new_tokens"] is None:
            settings["max_new_tokens"] = self.resolver.max_new_tokens(task)
        return settings


def _result(cell: Cell, artifact: Artifact | None, failed: Mapping[str, str]) -> CellResult:
    common: dict[str, Any] = {
        "model": cell.model,
        "task": cell.task,
        "adapter": cell.adapter,
        "train_bits": cell.train_bits,
        "restore_bits": cell.restore_bits,
        "mode": cell.mode,
        "seed": cell.seed,
        "fingerprint": cell.step.fingerprint,
    }
    if artifact is None:
        reason = failed.get(cell.step.fingerprint, "not run yet")
        return CellResult(**common, primary="", metrics={}, samples={}, seconds=None, error=reason)
    metrics = {
        name: Metric(value=m["value"], stderr=m["stderr"], n=m["n"]) for name, m in artifact.metrics["metrics"].items()
    }
    return CellResult(
        **common,
        primary=artifact.metrics["primary"],
        metrics=metrics,
        samples=_samples(artifact, list(metrics)),
        seconds=artifact.manifest["seconds"],
        error=None,
    )


def _samples(artifact: Artifact, metrics: list[str]) -> dict[str, dict[str, float | None]]:
    """metric -> doc_id -> value, read from the result's samples file."""
    values: dict[str, dict[str, float | None]] = {name: {} for name in metrics}
    for file in artifact.path.glob("samples_*.jsonl"):
        with file.open(encoding="utf-8") as stream:
            for line in stream:
                sample = json.loads(line)
                for name in metrics:
                    values[name][str(sample["doc_id"])] = sample[name]
    return values


def _laid_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _expand(text: str) -> str:
    """``$NAME`` in a path or model, from the environment."""
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise ConfigError(f"{text} holds a variable that is not set", hint="set it, e.g. export PLR_DATA=FOLDER")
    return expanded


def failed_cells(cells: list[Cell], outcome: Outcome) -> list[tuple[Cell, str]]:
    """Cells without a result and why."""
    return [(c, outcome.failed[c.step.fingerprint]) for c in cells if c.step.fingerprint in outcome.failed]


def raise_if_all_failed(cells: list[Cell], outcome: Outcome) -> None:
    """A study in which nothing worked is a failure, not a study with failed cells."""
    failed = failed_cells(cells, outcome)
    if cells and len(failed) == len(cells):
        raise PlrError(f"every cell failed; the first: {failed[0][0].label}: {failed[0][1]}")
