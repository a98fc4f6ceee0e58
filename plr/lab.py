"""plr from Python: the same four steps and the same store as the command line.

    lab = plr.Lab()
    lab.quantize("embedded:tiny", bits=4)
    adapter = lab.train("embedded:tiny", bits=4, task="tiny_math")
    served = lab.restore(adapter, bits=16)
    lab.evaluate(served).metrics["metrics"]

Each verb has a noun beside it (``base``, ``adapter``, ``restored``, ``result``) that returns the step without making it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plr.core.config import load_yaml, parse
from plr.core.modes import mode_of, plain_mode
from plr.core.runtime import Runtime
from plr.core.specs import BITS, Evaluate, ModelRef, Quantize, Restore, Source, Train
from plr.core.store import Artifact, Store
from plr.engines.jobs import make
from plr.engines.plan import Event
from plr.errors import ProvenanceError, UsageError
from plr.quantizers import quantizers
from plr.restoration.check import check_mode
from plr.study import Study, StudyConfig, load_study, study_config
from plr.study.presets import preset, preset_for
from plr.study.resolve import Resolver

__all__ = ["Lab"]

Base = Source | Quantize
OnEvent = Callable[[Event], None]
DEFAULT_MODEL = "embedded:tiny"


class Lab:
    """A store and how to work on it. `home` is `$PLR_HOME` or `./artifacts` if left out.

    Of the settings of `runtime` the dtype alone counts: an adapter or a result in another one is another artifact.
    """

    def __init__(self, home: Path | str | None = None, *, offline: bool = False, **runtime: Any) -> None:
        settings = {**runtime, "offline": offline, **({"home": home} if home is not None else {})}
        self.settings = settings
        self.store = Store(parse(Runtime, settings, "options").home)
        self.resolver = Resolver(offline=offline)

    def runtime(self, recipe: Mapping[str, Any] | None = None) -> Runtime:
        """The lab's own settings over those of a recipe."""
        return parse(Runtime, {**(recipe or {}), **self.settings}, "options")

    # The steps, not made yet.

    def base(self, model: str = DEFAULT_MODEL, bits: int = 4, **options: Any) -> Base:
        """A model at ``bits``; see :meth:`study_for` for the options.

        Raises:
            UsageError: bits that plr does not know.
        """
        check_bits(bits)
        return self.study_for(model, train_bits=[bits], restore_bits=[bits], **options).cells[0].step.base

    def adapter(
        self, model: str = DEFAULT_MODEL, bits: int = 4, *, adapter: str | None = None, seed: int = 0, **options: Any
    ) -> Train:
        """An adapter on a model at ``bits``."""
        check_bits(bits)
        axes: dict[str, Any] = {"train_bits": [bits], "restore_bits": [bits], "seeds": [seed]}
        if adapter is not None:
            axes["adapters"] = [adapter]
        target = self.study_for(model, **axes, **options).cells[0].step.target
        assert isinstance(target, Restore)
        return target.adapter

    def restored(
        self,
        adapter: Artifact | Train | str | None = None,
        bits: int = 16,
        *,
        mode: str | None = None,
        merge: bool = False,
        model: str | None = None,
        method: str | None = None,
        allow_mismatch: bool = False,
    ) -> Restore:
        """``adapter`` (the latest one if None) on an l-bit base, without retraining.

        ``model`` gives the source model another place; it must be the same model. ``method`` is how the l-bit base is quantized: as
        the adapter's own base if None.

        Raises:
            UsageError: bits that plr does not know, a mode that does not fit them, or no adapter in the store.
            ProvenanceError: ``model`` is not what the adapter was trained on.
        """
        check_bits(bits)
        trained = self._step(adapter, ("adapter",))
        assert isinstance(trained, Train)
        source = Source(model=self.resolver.model(model)) if model else trained.base.source
        _check_source(trained.base.model, source.model, allow_mismatch)
        base = self._base_like(trained, source, bits, method)
        chosen = mode_of(mode).name if mode else plain_mode(same_base=base == trained.base)
        step = Restore(adapter=trained, base=base, mode=chosen, merge=merge, allow_mismatch=allow_mismatch)
        check_mode(step)
        return step

    def result(
        self,
        target: Artifact | Restore | Train | Quantize | str | None = None,
        task: str | None = None,
        *,
        data: str | None = None,
        split: str = "test",
        limit: int | None = None,
        max_new_tokens: int | None = None,
        num_fewshot: int = 0,
        fewshot_seed: int | None = None,
        engine: str = "hf",
    ) -> Evaluate:
        """The score of a base, of an adapter on its own base, or of a restored adapter (the latest of them if None).

        Raises:
            UsageError: nothing in the store, a target without a task of its own and no ``task`` given, examples for a task that
                is answered by a head, or an engine that cannot serve the target.
            ConfigError: settings that exclude each other.
        """
        step = self._step(target, ("restored", "adapter", "base"))
        if isinstance(step, Train):
            step = Restore(adapter=step, base=step.base, mode=plain_mode(same_base=True))
        own = _own_task(step)
        if task is None and own is None:
            raise UsageError(f"{step.label} has no task of its own", hint="give --task NAME")
        same = own is not None and (task is None or (task == own.name and data is None))
        spec = own if same else self.resolver.task(str(task), data=data)
        assert spec is not None
        settings = {
            "target": step,
            "task": spec,
            "split": split,
            "limit": self.recipe_for(step).get("evaluate", {}).get("limit") if limit is None else limit,
            "max_new_tokens": self.resolver.max_new_tokens(spec) if max_new_tokens is None else max_new_tokens,
            "num_fewshot": num_fewshot,
            "fewshot_seed": fewshot_seed,
            "engine": engine,
            "dtype": self.runtime().precision(),
        }
        return self.resolver.check_evaluation(parse(Evaluate, settings, "options"))

    def study_for(
        self,
        model: str,
        *,
        task: str | None = None,
        data: str | None = None,
        preset: str | None = None,
        config: Path | None = None,
        overrides: Sequence[str] = (),
        **axes: Any,
    ) -> Study:
        """A study of one model and one task: a single step resolves its options exactly as a study file would be.

        ``preset`` is the recipe below (``tiny`` for the embedded base, else ``paper``), ``config`` a YAML file with keys of a
        study file over it, ``overrides`` ``KEY=VALUE`` texts over that.
        """
        value: dict[str, Any] = {"name": "command", "preset": preset or preset_for(model)}
        if config is not None:
            value |= load_yaml(config)
        value["models"] = [model]
        if task is None and "tasks" not in value and not model.startswith("embedded:"):
            self.resolver.model(model)  # a model that is not there is the first thing to say
            raise UsageError(
                f"no task was given for {model}",
                expected="a task whose training rows calibrate and train, e.g. --task gsm8k or --calibration task:gsm8k",
                hint="plr train --help; the embedded base alone has a task by default",
            )
        if task is not None or "tasks" not in value:
            value["tasks"] = [{"name": task or "tiny_math", **({"data": data} if data else {})}]
        where = str(config) if config else "options"
        study = study_config(value | axes, where, tuple(overrides))
        return Study(study, resolver=self.resolver, runtime=self.runtime(study.runtime))

    # The steps, made.

    def make(self, step: Any, *, on_event: OnEvent | None = None) -> Artifact:
        """Make ``step`` and everything it needs; find what is there already."""
        return self.make_all([step], on_event=on_event)[0]

    def make_all(self, steps: Sequence[Any], *, on_event: OnEvent | None = None) -> list[Artifact]:
        """Make all of ``steps`` and everything they need; several widths of one source share its load and calibration."""
        return make(steps, self.store, self.runtime(self.recipe_for(steps[0]).get("runtime")), on_event)

    def quantize(self, model: str = DEFAULT_MODEL, bits: int = 4, **options: Any) -> Artifact:
        """Quantize a model to ``bits`` < 16; see :meth:`base`."""
        check_bits(bits, below_16=True)
        return self.make(self.base(model, bits, **options))

    def train(self, model: str = DEFAULT_MODEL, bits: int = 4, **options: Any) -> Artifact:
        """Train an adapter; see :meth:`adapter`."""
        return self.make(self.adapter(model, bits, **options))

    def restore(self, adapter: Artifact | Train | str | None = None, bits: int = 16, **options: Any) -> Artifact:
        """Restore an adapter; see :meth:`restored`."""
        return self.make(self.restored(adapter, bits, **options))

    def evaluate(self, target: Artifact | Restore | Train | Quantize | str | None = None, **options: Any) -> Artifact:
        """Score a target; see :meth:`result`."""
        return self.make(self.result(target, **options))

    def grid(
        self, study: Path | str | StudyConfig, *, overrides: Sequence[str] = (), on_event: OnEvent | None = None
    ) -> Study:
        """Run a study file or configuration; cells that fail are in :meth:`Study.results`."""
        config = study if isinstance(study, StudyConfig) else load_study(Path(study), tuple(overrides))
        runtime = self.runtime(config.runtime)
        work = Study(config, resolver=self.resolver, runtime=runtime)
        work.run(self.store, runtime, on_event=on_event)
        return work

    def recipe_for(self, step: Any) -> dict[str, Any]:
        """The preset that fits the source model of ``step``."""
        ref = _source_of(step).model
        return preset(preset_for(ref.title))

    def _step(self, what: Any, kinds: tuple[str, ...]) -> Any:
        if what is None or isinstance(what, str):
            what = self.store.find(what, kinds)
        return self.store.identify(what) if isinstance(what, Artifact) else what

    def _base_like(self, trained: Train, source: Source, bits: int, method: str | None) -> Base:
        """The l-bit base quantized as the adapter's own base was, or by ``method``."""
        if bits == 16:
            return source
        if isinstance(trained.base, Quantize) and method in (None, trained.base.quantization.method):
            quantization = trained.base.quantization.model_copy(update={"bits": bits})
            try:
                quantizers.get(quantization.method).check(quantization)
            except UsageError as error:
                hint = "name the method of the base to restore to, e.g. --method gptq"
                raise UsageError(error.message, expected=error.expected, hint=hint) from error
            return Quantize(source=source, quantization=quantization)
        # No quantization to follow: the model's recipe, calibrated on the adapter's task.
        ref = source.model
        name = f"{ref.name}@{ref.revision}" if ref.kind == "hub" else ref.path or ref.title
        if trained.task.definition is not None:
            self.resolver.known[trained.task.name] = trained.task
        overrides = [f"quantize.method={method}"] if method else []
        quantized = self.base(name, bits, task=trained.task.name, data=trained.task.path, overrides=overrides)
        assert isinstance(quantized, Quantize)
        calibration = quantized.quantization.calibration
        if calibration is not None:
            calibration = calibration.model_copy(update={"task": trained.task})
        quantization = quantized.quantization.model_copy(update={"calibration": calibration})
        return Quantize(source=source, quantization=quantization)


def check_bits(bits: int, *, below_16: bool = False) -> None:
    """Refuse a width plr does not know.

    Raises:
        UsageError: ``bits`` is none of 16, 8, 4, 3, 2 (of the last four, with ``below_16``).
    """
    allowed = BITS[1:] if below_16 else BITS
    if bits not in allowed:
        raise UsageError(
            f"bits is {bits}",
            expected="one of " + ", ".join(map(str, allowed)),
            hint="16 bits is the source itself: there is nothing to quantize" if bits == 16 else None,
        )


def _check_source(ours: ModelRef, theirs: ModelRef, allow_mismatch: bool) -> None:
    if not allow_mismatch and ours.identity() != theirs.identity():
        raise ProvenanceError(
            f"the adapter was trained on {ours.name} ({ours.revision[:12]}), the model given is {theirs.name} "
            f"({theirs.revision[:12]})",
            expected="the same source model",
            hint="leave --model out, or add --allow-mismatch (recorded in the result)",
        )


def _own_task(step: Restore | Quantize | Source) -> Any:
    if isinstance(step, Restore):
        return step.adapter.task
    calibration = step.quantization.calibration if isinstance(step, Quantize) else None
    return calibration.task if calibration else None


def _source_of(step: Any) -> Source:
    if isinstance(step, Evaluate):
        return step.base.source
    return step.source if isinstance(step, Source | Quantize) else step.base.source
