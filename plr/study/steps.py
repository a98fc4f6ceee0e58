"""Steps of a cell from settings and resolved names: a base, an adapter, an evaluation.

Settings are those of a study file, names are resolved already; a study and a single command build the same steps from the same
settings here.
"""

from __future__ import annotations

from plr.core.config import parse
from plr.core.precision import Precision
from plr.core.specs import (
    AdapterSpec,
    CorrectionKnobs,
    Evaluate,
    GivenAdapter,
    GivenBase,
    Quantization,
    QuantizationKnobs,
    Quantize,
    Restore,
    Source,
    TaskSpec,
    Train,
    TrainSpec,
)
from plr.errors import ConfigError, UsageError
from plr.restoration.check import check_scales
from plr.restoration.correction import check_correction, correction_for, is_lora
from plr.study.file import AdapterConfig, EvaluateConfig, QuantizeConfig
from plr.study.resolve import Resolver

__all__ = [
    "CELL_TASK",
    "adapter_spec",
    "base_step",
    "evaluation_step",
    "restored_step",
    "training_spec",
    "training_step",
]

CELL_TASK = "task"
"""The value of `quantize.calibration` for the task of the cell."""


def base_step(
    source: Source, bits: int, settings: QuantizeConfig, task: TaskSpec | None, resolver: Resolver
) -> Source | Quantize | GivenBase:
    """Build the base at `bits`: the source at 16, the checkpoint that the settings name, or a quantization of the source.

    It is calibrated and measured on `task`, or on a file.

    Raises:
        UsageError: no such quantizer or calibration, or settings that the quantizer cannot carry out.
        ConfigError: settings out of their bounds.
    """
    if bits == 16:
        return source
    own = settings.at(bits)
    if own.path is not None:
        given = resolver.base(own.path, source.model.argument)
        if given.bits != bits:
            raise ConfigError(f"{own.path} has {given.bits} bits", expected=f"a checkpoint of {bits} bits")
        return given
    text = None if own.calibration == CELL_TASK else own.calibration
    calibration = resolver.calibration(own.method, text, own, task=task)
    value: dict[str, object] = {
        **own.model_dump(include={*QuantizationKnobs.model_fields}),
        "bits": bits,
        "calibration": calibration,
        "gate_task": task,
        "gate_text": None if own.gate_text is None else resolver.gate_text(own.gate_text),
    }
    quantization = parse(Quantization, value, "quantize")
    resolver.check_base(source.model, quantization)
    return Quantize(source=source, quantization=quantization)


def adapter_spec(adapter: AdapterConfig, resolver: Resolver) -> AdapterSpec:
    """Resolve the whole configuration of an adapter method."""
    return AdapterSpec(method=adapter.method, config=resolver.adapter_config(adapter.method, adapter.config))


def training_spec(
    adapter: AdapterConfig, settings: TrainSpec, resolver: Resolver, *, scale_rate: bool, where: str
) -> TrainSpec:
    """Lay an adapter's own training over that of its task; a rate that is LoRA's becomes the method's with `scale_rate`.

    Raises:
        ConfigError: settings out of their bounds.
    """
    value: dict[str, object] = {**settings.model_dump(), **adapter.train}
    if scale_rate and "learning_rate" not in adapter.train:
        value["learning_rate"] = resolver.learning_rate(adapter.method, settings.learning_rate)
    return parse(TrainSpec, value, f"{where}: train")


def restored_step(
    adapter: Train | GivenAdapter,
    base: Source | Quantize | GivenBase,
    mode: str,
    knobs: CorrectionKnobs,
    dtype: Precision,
    **options: bool,
) -> Restore:
    """Build the restoration of `adapter` to `base`, with the correction that its mode asks for out of `knobs`.

    `options` are `merge` and `allow_mismatch`.

    Raises:
        UsageError: a correction that the adapter or its base does not fit.
    """
    correction = correction_for(mode, knobs, adapter)
    chosen = correction is not None and correction.task is not None
    step = Restore(
        adapter=adapter,
        base=base,
        mode=mode,
        merge=options.get("merge", False),
        allow_mismatch=options.get("allow_mismatch", False),
        correction=correction,
        dtype=dtype if chosen else None,
    )
    check_correction(step)
    return step


def training_step(
    base: Source | Quantize | GivenBase, task: TaskSpec, adapter: AdapterSpec, train: TrainSpec, dtype: Precision
) -> Train:
    """Build the training of an adapter on `base`; at 16 bits there is nothing to compensate, to mix or to rotate.

    Raises:
        UsageError: a compensation beside an adapter that is no LoRA, or bases in turn that have no calibration.
    """
    if base.bits == 16:
        train = train.model_copy(update={"compensate": 0, "mix": False, "rotate": 0})
    if train.compensate and not is_lora(adapter.config):
        raise UsageError(
            f"train.compensate with an adapter of {adapter.method}",
            expected="lora, rslora or relora: on its own base the two are served as one LoRA",
        )
    if train.rotate > 1 and not (isinstance(base, Quantize) and base.quantization.method == "gptq"):
        raise UsageError(
            f"train.rotate with {base.label}",
            expected="a base of plr's own GPTQ: each turn has another calibration draw and grid",
            hint="leave train.rotate out, or set quantize.method=gptq",
        )
    return Train(base=base, task=task, adapter=adapter, train=train, dtype=dtype)


def evaluation_step(
    target: Source | Quantize | GivenBase | Restore,
    task: TaskSpec,
    settings: EvaluateConfig,
    dtype: Precision,
    resolver: Resolver,
    *,
    where: str,
) -> Evaluate:
    """Build the evaluation of `target` on `task`; the task says how long answers may be where the settings do not.

    Raises:
        UsageError: examples for a task that is answered by a head, or an engine that cannot serve the target.
        ConfigError: settings that exclude each other.
    """
    if isinstance(target, Restore):
        check_scales(target.adapter, target.base, allow_mismatch=target.allow_mismatch)
    value: dict[str, object] = {**settings.model_dump(), "target": target, "task": task, "dtype": dtype}
    if settings.max_new_tokens is None:
        value["max_new_tokens"] = resolver.max_new_tokens(task)
    return resolver.check_evaluation(parse(Evaluate, value, where))
