"""The study file: its keys, their defaults and checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from plr.core.config import Read, apply_overrides, as_it_is, load_yaml, parse
from plr.core.modes import asked_modes
from plr.core.specs import BITS, CalibrationKnobs, CorrectionKnobs, EvaluationKnobs, QuantizationKnobs, Seed, TrainSpec
from plr.errors import ConfigError
from plr.registry import did_you_mean
from plr.study.presets import preset

__all__ = [
    "AdapterConfig",
    "EvaluateConfig",
    "QuantizeConfig",
    "StudyConfig",
    "TaskConfig",
    "TestConfig",
    "checked_config",
    "laid_over",
    "load_study",
    "study_config",
    "substitute",
]


class _Part(BaseModel, frozen=True, extra="forbid"):
    """A part of the study file."""


class QuantizeConfig(CalibrationKnobs, QuantizationKnobs, frozen=True):
    """Quantization of every base below 16 bits; `calibration` is `task` (the task of the cell) or a file."""

    calibration: str = "task"
    """`task` (training rows of the cell's task), or a JSONL or text file."""
    gate_text: str | None = None
    """A JSONL or text file on which every base is measured, beside the task; no part of a base's identity."""
    path: str | None = None
    """A quantized checkpoint that is the base of this width, instead of one that plr makes; of use in `by_bits`."""
    by_bits: dict[int, dict[str, Any]] = Field(default_factory=dict[int, dict[str, Any]])
    """Settings that differ at one width: `{4: {method: nf4, group_size: 64}}`."""

    def at(self, bits: int) -> QuantizeConfig:
        """Lay the settings of one width over these."""
        own = self.by_bits.get(bits)
        if not own:
            return self
        return parse(QuantizeConfig, {**self.model_dump(exclude={"by_bits"}), **own}, f"quantize: by_bits: {bits}")

    @field_validator("by_bits", mode="before")
    @classmethod
    def _one_entry_a_width(cls, value: object) -> object:
        """Merge the entries of one width: `--set quantize.by_bits.4.KEY` writes to "4", a file to 4."""
        if not isinstance(value, Mapping):
            return value
        merged: dict[str, object] = {}
        for bits, settings in cast("Mapping[object, object]", value).items():
            merged = laid_over(merged, {str(bits): settings})
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


class EvaluateConfig(EvaluationKnobs, frozen=True):
    """Settings of the scoring of cells."""

    max_new_tokens: int | None = Field(default=None, ge=1)


def _known_bits(value: tuple[int, ...]) -> tuple[int, ...]:
    for bits in value:
        if bits not in BITS:
            raise ValueError(f"bits {bits} is none of {', '.join(map(str, BITS))}")
    return value


def _asked(name: str) -> str:
    if name not in (names := asked_modes()):
        raise ValueError(f"{name} is no mode that a study asks for, {did_you_mean(name, names) or ', '.join(names)}")
    return name


AskedMode = Annotated[
    str, AfterValidator(_asked), Field(json_schema_extra=lambda schema: schema.update(enum=[*asked_modes()]))
]
BitWidths = Annotated[tuple[int, ...], AfterValidator(_known_bits)]


def _entries(value: object, key: str) -> object:
    """Read a bare name in a list as an entry with that name."""
    if not isinstance(value, list):
        return value
    return [{key: item} if isinstance(item, str) else item for item in cast("list[object]", value)]


class TestConfig(_Part, frozen=True):
    """A task to be scored on; `evaluate` holds the settings that differ from those of the task trained on."""

    name: str
    data: str | None = None
    """Local files instead of the hub: a folder or a file; `$NAME` is read from the environment."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Fields of the task that the rows have under other names: `{question: Prompt, answer: Completion}`."""
    split_seed: Seed = 0
    max_prompt_chars: int | None = None
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Settings of this task that differ from the `evaluate` around it."""


class TaskConfig(TestConfig, frozen=True):
    """One task; `quantize`, `train`, `evaluate` and the bit widths hold the settings that differ from the study's."""

    tests: tuple[TestConfig, ...] = ()
    """Tasks that its adapters are scored on; the task itself if left out."""
    train_bits: BitWidths | None = None
    """The study's, if left out."""
    restore_bits: BitWidths | None = None
    """The study's, if left out."""
    quantize: dict[str, Any] = Field(default_factory=dict)
    """Settings of this task that differ from the study's `quantize`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of this task that differ from the study's `train`."""

    @field_validator("tests", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return _entries(value, "name")


def _text_of_number(value: object) -> object:
    return str(value) if type(value) is int else value  # `trained_on: 16` is a number in YAML


class AdapterConfig(_Part, frozen=True):
    """One adapter method; `config` and `train` hold the settings that differ from its own and from the study's training."""

    method: str = "lora"
    """A method of `plr adapters`, or any other name that PEFT knows."""
    path: str | None = None
    """An adapter that is there already, instead of training one: a PEFT folder, or `ORG/NAME` of the hub."""
    trained_on: Annotated[str | None, BeforeValidator(_text_of_number)] = None
    """Base of the training of that adapter: `16`, `nf4`, `nf4-double-quant`, `int8`, `unknown`, or a quantized checkpoint."""
    name: str | None = None
    """Name in tables; the method's name if left out."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the method's own configuration (`plr adapters METHOD`)."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the study's training: a learning rate, above all."""
    train_bits: BitWidths | None = None
    """Bit widths of the bases it trains on, where they differ: `[16]` for full fine-tuning."""

    @model_validator(mode="after")
    def _one_kind(self) -> AdapterConfig:
        beside = [key for key in ("method", "config", "train", "train_bits") if key in self.model_fields_set]
        if self.path is not None and beside:
            raise ValueError(f"an adapter with a path is there already: {', '.join(beside)} would train one")
        if self.path is None and self.trained_on is not None:
            raise ValueError("trained_on is for an adapter with a path")
        return self


class StudyConfig(_Part, frozen=True):
    """A study file. Every key has a default; a key that is not known is an error."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Name of the study and of its folder under `runs/`; that of the file if left out."""
    preset: str | None = None
    """A recipe that the file's own settings are laid over."""
    models: tuple[str, ...] = ("embedded:tiny",)
    """Source models: `embedded:tiny`, folders, `.gguf` files, or `ORG/NAME[@REVISION]` of the hub; or quantized checkpoints."""
    source: str | None = None
    """The 16-bit model of the quantized checkpoints in `models`, where they do not name it."""
    tasks: tuple[TaskConfig, ...] = (TaskConfig(name="tiny_math"),)
    """Tasks; each trains and is scored by itself."""
    adapters: tuple[AdapterConfig, ...] = (AdapterConfig(),)
    """Adapter methods; `[]` with `baselines: true` scores bases alone."""
    seeds: tuple[Seed, ...] = (0,)
    """One training of each adapter for each seed."""
    train_bits: BitWidths = BITS
    """The values of k."""
    restore_bits: BitWidths = BITS
    """The values of l."""
    cells: Literal["upper", "all"] = "upper"
    """`upper`: l >= k; `all`: every pair. (k, k) always."""
    modes: tuple[AskedMode, ...] = ("restore",)
    """Beside `keep` at l = k: `restore` where l is not k, `roundtrip` at l = k < 16, `requantize` at every l below 16;
    `path` at k < l = 16, `scale`, `correct` and `auto` where l is not k."""
    correction: CorrectionKnobs = CorrectionKnobs()
    """Settings of the modes that correct a restoration."""
    baselines: bool = False
    """Also score every base without an adapter."""
    quantize: QuantizeConfig = QuantizeConfig()
    """Quantization of every base below 16 bits."""
    train: TrainSpec = TrainSpec()
    """Training of the adapters."""
    scale_rates: bool = True
    """Apply a method's own factor to a preset's `learning_rate`. False as soon as the file or an option names a rate."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Scoring of the cells."""
    runtime: dict[str, object] = Field(default_factory=dict)
    """Settings of execution; they change no result."""

    @field_validator("tasks", "adapters", mode="before")
    @classmethod
    def _names(cls, value: object, info: ValidationInfo) -> object:
        return _entries(value, "name" if info.field_name == "tasks" else "method")

    @field_validator("tasks")
    @classmethod
    def _tests_once(cls, value: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        """Refuse a task that is scored twice: rows of results are told apart by its name."""
        names = [test.name for task in value for test in (task.tests or (task,))]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is scored twice: name it in the tests of one task")
        return value

    @field_validator("models", "tasks", "adapters", "seeds", "train_bits", "restore_bits", "modes")
    @classmethod
    def _some(cls, value: tuple[object, ...], info: ValidationInfo) -> tuple[object, ...]:
        if not value and info.field_name != "adapters":
            raise ValueError("the list is empty: give at least one")
        if len(set(map(str, value))) != len(value):
            raise ValueError("the list names something twice")
        return value

    def substituted(self, text: str) -> str:
        """Replace `$NAME` in a text of this study that names a model, a task or a file."""
        return substitute(text)

    @model_validator(mode="after")
    def _something_to_score(self) -> StudyConfig:
        if not self.adapters and not self.baselines:
            raise ValueError(
                "adapters is empty, and baselines is false: give an adapter, or baselines: true for the bases alone"
            )
        return self


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> StudyConfig:
    """Read a study file, with `--set` overrides over it.

    Raises:
        ConfigError: see `plr.core.config`.
    """
    return study_config({"name": path.stem, **load_yaml(path)}, str(path), overrides)


def study_config(value: Mapping[str, object], where: str = "study", overrides: tuple[str, ...] = ()) -> StudyConfig:
    """Check a study from a mapping, with its preset below it and `overrides` above it."""
    return checked_config(StudyConfig, value, where, overrides)


C = TypeVar("C", bound=StudyConfig)


def checked_config(
    model: type[C], value: Mapping[str, object], where: str, overrides: tuple[str, ...], read: Read = as_it_is
) -> C:
    """Check `value`, with its preset below it and `overrides`, each passed through `read`, above it.

    Raises:
        ConfigError: a key or value that does not fit.
        UnknownNameError: no such preset.
    """
    settings = apply_overrides(value, overrides, read)
    name, training = settings.get("preset"), settings.get("train")
    below: Mapping[str, object] = {} if name is None else preset(str(name))
    rates = {"scale_rates": not (isinstance(training, Mapping) and "learning_rate" in training)}
    return parse(model, apply_overrides(laid_over({**below, **rates}, value), overrides, read), where)


def laid_over(base: Mapping[str, object], top: Mapping[str, object]) -> dict[str, object]:
    """Lay `top` over `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = laid_over(cast("Mapping[str, object]", below), cast("Mapping[str, object]", value))
        else:
            merged[key] = value
    return merged


def substitute(text: str) -> str:
    """Replace `$NAME` in a text by the environment's value.

    Raises:
        ConfigError: a variable that is not set.
    """
    substituted = os.path.expandvars(text)
    if "$" in substituted:
        raise ConfigError(f"{text} holds a variable that is not set", hint="set it, e.g. export PLR_DATA=FOLDER")
    return substituted
