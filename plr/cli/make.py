"""quantize, train, restore, eval: each makes one artifact, and whatever it needs first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plr.cli.app import app
from plr.cli.options import (
    Bits,
    Device,
    Json,
    Model,
    Offline,
    Output,
    Preset,
    Set,
    check_bits,
    finish,
    store_here,
    study_of,
)
from plr.errors import ProvenanceError, UsageError

__all__: list[str] = []

Task = Annotated[str | None, typer.Option("--task", "-t", help="Task to train on or to be scored by.")]
Data = Annotated[str | None, typer.Option("--data", help="Local files instead of the hub: a folder or a file.")]


@app.command()
def quantize(
    model: Model = "embedded:tiny",
    bits: Bits = 4,
    method: Annotated[str | None, typer.Option(help="gptq or rtn.")] = None,
    calibration: Annotated[str | None, typer.Option(help="task:NAME, or a JSONL or text file.")] = None,
    samples: Annotated[int | None, typer.Option(help="How many calibration samples are drawn.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Columns that share a scale; -1 for a whole row.")] = None,
    data: Data = None,
    preset: Preset = None,
    set_: Set = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to k bits with GPTQ, calibrated on a task's training data.

    Example: [bold]plr quantize --model embedded:tiny --bits 3 --calibration task:tiny_sql --samples 64[/bold]
    """
    from plr.study import Study

    check_bits(bits, below_16=True)
    task, file = None, None
    if calibration is not None:
        task, file = (calibration.removeprefix("task:"), None) if calibration.startswith("task:") else (None, calibration)
    settings: dict[str, Any] = {
        "method": method,
        "samples": samples,
        "seed": seed,
        "group_size": group_size,
        "calibration": file,
    }
    overrides = [f"quantize.{key}={value}" for key, value in settings.items() if value is not None]
    config = study_of(
        model,
        task=task,
        preset=preset,
        overrides=[*overrides, *_data(data), *(set_ or [])],
        train_bits=[bits],
        restore_bits=[bits],
    )
    study = Study(config, resolver=_resolver(offline))
    base = study.cells[0].step.base
    finish(base, study.runtime(device=device, offline=offline), output=output, as_json=as_json)


@app.command()
def train(
    model: Model = "embedded:tiny",
    bits: Bits = 4,
    task: Task = None,
    adapter: Annotated[str | None, typer.Option("--adapter", "-a", help="Adapter method, e.g. lora.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the adapter's start and of the order of rows.")] = 0,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML with the keys of a study file.")] = None,
    data: Data = None,
    preset: Preset = None,
    set_: Set = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train an adapter on a k-bit base (the base is made first if it is not there).

    Example: [bold]plr train --bits 4 --task tiny_math --set train.epochs=1[/bold]
    """
    from plr.study import Study

    check_bits(bits)
    study = Study(
        study_of(
            model,
            task=task,
            preset=preset,
            config=config,
            overrides=[*_data(data), *(set_ or [])],
            adapters=[adapter] if adapter else None,
            seeds=[seed],
            train_bits=[bits],
            restore_bits=[bits],
        ),
        resolver=_resolver(offline),
    )
    target: Any = study.cells[0].step.target
    finish(target.adapter, study.runtime(device=device, offline=offline), output=output, as_json=as_json)


@app.command()
def restore(
    adapter: Annotated[str | None, typer.Argument(help="Adapter: path, name or hash prefix; the latest if left out.")] = None,
    bits: Bits = 16,
    mode: Annotated[
        Literal["restore", "keep", "roundtrip", "requantize"] | None, typer.Option(help="What is served; see the README.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a dense checkpoint with the adapter merged in.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another place of the source model.")] = None,
    allow_mismatch: Annotated[bool, typer.Option(help="Attach although the provenance does not agree.")] = False,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Put a trained adapter on an l-bit base without retraining (Post-LoRA Restoration).

    Example: [bold]plr restore --bits 16 --merge -o served[/bold]
    """
    from plr.runtime import Runtime
    from plr.specs import Quantize, Restore, Source, Train
    from plr.study import Study

    check_bits(bits)
    trained = store_here().find(adapter, ("adapter",)).step
    assert isinstance(trained, Train)
    source = Source(model=_resolver(offline).model(model)) if model else Source(model=trained.base.model)
    base: Source | Quantize
    if bits == 16:
        base = source
    elif bits == trained.base.bits and isinstance(trained.base, Quantize):
        base = trained.base.model_copy(update={"source": source})
    elif isinstance(trained.base, Quantize):
        quantization = trained.base.quantization.model_copy(update={"bits": bits})
        base = Quantize(source=source, quantization=quantization)
    else:
        # Trained at 16 bits: no quantization to follow, so the recipe of the model's preset, calibrated on the same task.
        config = study_of(
            f"embedded:{source.model.name}" if source.model.kind == "embedded" else source.model.path or source.model.name,
            task=trained.task.name,
            preset=None,
            overrides=[],
            train_bits=[16],
            restore_bits=[bits],
            cells="all",
        )
        base = Study(config, resolver=_resolver(offline)).cells[-1].step.base
    chosen = mode or ("keep" if base == trained.base else "restore")
    step = Restore(adapter=trained, base=base, mode=chosen, merge=merge, allow_mismatch=allow_mismatch)
    if not allow_mismatch and base.model.identity() != trained.base.model.identity():
        raise ProvenanceError(
            f"the adapter was trained on {trained.base.model.name} ({trained.base.model.revision[:12]}), "
            f"--model is {base.model.name} ({base.model.revision[:12]})",
            expected="the same source model",
            hint="leave --model out, or add --allow-mismatch (recorded in the result)",
        )
    finish(step, Runtime(device=device, offline=offline), output=output, as_json=as_json)


@app.command("eval")
def evaluate(
    ref: Annotated[str | None, typer.Argument(help="Base, adapter or restored adapter; the latest if left out.")] = None,
    task: Task = None,
    limit: Annotated[int | None, typer.Option(help="Score only this many rows, drawn by seed.")] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which split is scored.")] = "test",
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    data: Data = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Score a base, an adapter on its own base, or a restored adapter.

    Example: [bold]plr eval --task tiny_math --limit 100[/bold]
    """
    from plr.cli.show import console
    from plr.presets import preset, preset_for
    from plr.runtime import Runtime
    from plr.specs import Evaluate, Restore, Train

    step = store_here().find(ref, ("restored", "adapter", "base")).step
    target = Restore(adapter=step, base=step.base, mode="keep") if isinstance(step, Train) else step
    resolver = _resolver(offline)
    trained_on = target.adapter.task if isinstance(target, Restore) else None
    if task is None and trained_on is None:
        calibration = target.quantization.calibration
        if calibration is None or calibration.task is None:
            raise UsageError(f"{step.label} has no task of its own", hint="give --task NAME")
        trained_on = calibration.task
    if trained_on is not None and (task is None or (task == trained_on.name and data is None)):
        spec = trained_on
    else:
        assert task is not None
        spec = resolver.task(task, data=data)
    source = target.base.model if isinstance(target, Restore) else target.model
    recipe = preset(preset_for(f"embedded:{source.name}" if source.kind == "embedded" else source.name))
    wanted = Evaluate(
        target=target,
        task=spec,
        split=split,
        limit=limit or recipe.get("evaluate", {}).get("limit"),
        max_new_tokens=max_new_tokens or resolver.max_new_tokens(spec.name),
    )
    runtime = Runtime(device=device, offline=offline, **recipe.get("runtime", {}))
    artifact = finish(wanted, runtime, output=output, as_json=as_json)
    if not as_json:
        for name, metric in artifact.metrics["metrics"].items():
            value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
            error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
            star = "*" if name == artifact.metrics["primary"] else " "
            console().print(f" {star} {name:34} {value}{error}  (n = {metric['n']})", highlight=False)


def _resolver(offline: bool) -> Any:
    from plr.resolve import Resolver

    return Resolver(offline=offline)


def _data(data: str | None) -> list[str]:
    return [f"tasks.0.data={data}"] if data else []
