"""The study: axes of a YAML file, resolved to cells, one plan and results.

The cells of a study are `models x tasks x adapters x seeds x (train_bits, restore_bits)`; each is one
`Evaluate` step, and what two cells share is one step. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plr.core.config import parse
from plr.core.modes import MODES, grid_modes, plain_mode
from plr.core.precision import Precision
from plr.core.runtime import Runtime
from plr.core.specs import UNKNOWN_BITS, GivenAdapter, GivenBase, Quantize, Restore, Source, TaskSpec, Train, TrainSpec
from plr.core.store import Store
from plr.engines import Outcome, engines
from plr.engines.plan import Event, Plan
from plr.errors import ConfigError
from plr.evaluation.samples import read_samples
from plr.study.cells import NO_ADAPTER, Cell, CellResult, cell_result
from plr.study.file import AdapterConfig, EvaluateConfig, QuantizeConfig, StudyConfig, TaskConfig, TestConfig
from plr.study.frame import cells_frame, samples_frame
from plr.study.names import adapter_names, model_names
from plr.study.resolve import Resolver
from plr.study.steps import adapter_spec, base_step, evaluation_step, restored_step, training_spec, training_step

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["Study"]


Base = Source | Quantize | GivenBase
Bases = Mapping[int, Base]


@dataclass(frozen=True)
class _Scored:
    """A task that adapters are scored on, with the settings of its evaluation."""

    task: TaskSpec
    settings: EvaluateConfig


@dataclass(frozen=True)
class _Axes:
    """One task of a study: its own settings laid over the study's, its names resolved."""

    where: str
    title: str
    """Name of the model in tables."""
    model: str
    """The model as the file names it."""
    source: str | None
    """Its own source, of a quantized checkpoint that does not name it."""
    task: TaskSpec
    quantize: QuantizeConfig
    train: TrainSpec
    scale_rate: bool
    train_bits: tuple[int, ...]
    restore_bits: tuple[int, ...]
    scored: tuple[_Scored, ...]


class Study:
    """A study with its axes resolved to steps."""

    def __init__(
        self, config: StudyConfig, *, resolver: Resolver | None = None, runtime: Runtime | None = None
    ) -> None:
        """Resolve the axes of `config`; `runtime` is how it will be run, where that is not what the study itself says."""
        self.config = config
        self.resolver = resolver or Resolver()
        self.dtype: Precision = (runtime or self.runtime()).precision()
        """The dtype of every training and evaluation; it is part of their identity, so `auto` is resolved here, once for all."""
        scored = [test for task in config.tasks for test in (task, *task.tests)]
        for text in (*config.models, *(task.data for task in scored if task.data is not None)):
            config.substituted(text)  # a variable that is not set is said before the network is asked for anything
        self._scored: dict[str, str] = {}  # name of a task -> how the file names it
        self.cells = list(self._cells())

    @property
    def name(self) -> str:
        return self.config.name

    def runtime(self, *, workers: int | None = None, offline: bool = False) -> Runtime:
        """Lay options over the study's own runtime settings.

        Raises:
            ConfigError: a setting that does not fit.
        """
        over = {"workers": workers, "offline": offline or None}
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
        """Read one result a cell; a cell whose artifact is missing is a failed one with its reason.

        Raises:
            IntegrityError: a result is not as it was committed, by the name of the file.
        """
        return [cell_result(cell, store.get(cell.step, hashes=True), failed or {}) for cell in self.cells]

    def frame(self, store: Store, *, samples: bool = False) -> DataFrame:
        """Build a tidy pandas DataFrame of the results in the store: one row a cell and metric, the columns of `results.csv`.

        With `samples` it has one row a cell and document instead: prompt, answer and the score by each metric; see
        `plr.study.frame.samples_frame`.
        """
        results = self.results(store)
        if not samples:
            return cells_frame(results)
        stored = {cell.step.fingerprint: store.get(cell.step, hashes=True) for cell in self.cells}
        return samples_frame(results, {key: read_samples(one.path) for key, one in stored.items() if one is not None})

    def _cells(self) -> Iterator[Cell]:
        texts = [self.config.substituted(model) for model in self.config.models]
        titles = model_names([self.resolver.model(text) for text in texts])
        source = None if self.config.source is None else self.config.substituted(self.config.source)
        named = list(zip(self.config.adapters, adapter_names(self.config.adapters), strict=True))
        for text, title in zip(texts, titles, strict=True):
            is_source = (
                source is not None and self.resolver.model(source).identity() == self.resolver.model(text).identity()
            )
            origin = None if is_source else source
            model = self.resolver.base(text, origin)
            for entry in self.config.tasks:
                axes = self._axes(entry, title, text, origin)
                bases = self._bases(model, axes)
                if self.config.baselines:
                    yield from self._baselines(axes, bases)
                for adapter, name in named:
                    yield from self._adapter_cells(adapter, name, axes, bases)

    def _axes(self, entry: TaskConfig, title: str, model: str, source: str | None) -> _Axes:
        """Lay the settings of one task over those of the study."""
        config, where = self.config, f"task {entry.name}"
        task = self._task(entry)
        return _Axes(
            where=where,
            title=title,
            model=model,
            source=source,
            task=task,
            quantize=parse(QuantizeConfig, {**config.quantize.model_dump(), **entry.quantize}, f"{where}: quantize"),
            train=parse(TrainSpec, {**config.train.model_dump(), **entry.train}, f"{where}: train"),
            scale_rate=config.scale_rates and "learning_rate" not in entry.train,
            train_bits=entry.train_bits or config.train_bits,
            restore_bits=entry.restore_bits or config.restore_bits,
            scored=tuple(self._tests(entry, task)),
        )

    def _task(self, entry: TestConfig) -> TaskSpec:
        return self.resolver.task(
            self.config.substituted(entry.name),
            data=None if entry.data is None else self.config.substituted(entry.data),
            split_seed=entry.split_seed,
            max_prompt_chars=entry.max_prompt_chars,
            columns=entry.columns,
        )

    def _tests(self, entry: TaskConfig, task: TaskSpec) -> Iterator[_Scored]:
        """Resolve everything that the adapters of one task are scored on."""
        base = {**self.config.evaluate.model_dump(), **entry.evaluate}
        for test in entry.tests or (entry,):
            settings = parse(EvaluateConfig, {**base, **test.evaluate}, f"task {test.name}: evaluate")
            scored = task if test is entry else self._task(test)
            if (first := self._scored.setdefault(scored.name, test.name)) != test.name:
                raise ConfigError(
                    f"{first} and {test.name} are both called {scored.name}",
                    hint="rows of results are told apart by name: write name: NAME into one of the files",
                )
            yield _Scored(scored, settings)

    def _bases(self, model: Source | GivenBase, axes: _Axes) -> Bases:
        """Build the base of every width that a cell trains on or restores to; a quantized checkpoint is that of its own width."""
        trains = [adapter.train_bits or axes.train_bits for adapter in self.config.adapters if adapter.path is None]
        widths = {*axes.restore_bits, *(bits for own in trains for bits in own)}
        return {bits: self._base(model, bits, axes) for bits in widths}

    def _base(self, model: Source | GivenBase, bits: int, axes: _Axes) -> Base:
        if isinstance(model, GivenBase) and model.bits == bits:
            return model
        source = model.source
        own, substituted = axes.quantize.at(bits), self.config.substituted
        texts = {
            "calibration": substituted(own.calibration),
            "gate_text": None if own.gate_text is None else substituted(own.gate_text),
        }
        return base_step(source, bits, own.model_copy(update=texts), axes.task, self.resolver)

    def _baselines(self, axes: _Axes, bases: Bases) -> Iterator[Cell]:
        """Score every base without an adapter."""
        for bits in sorted(axes.restore_bits, reverse=True):
            yield from self._scores(
                bases[bits], axes, NO_ADAPTER, bits, bits, plain_mode(same_base=True), self.config.seeds[0]
            )

    def _adapter_cells(self, adapter: AdapterConfig, name: str, axes: _Axes, bases: Bases) -> Iterator[Cell]:
        """Train one adapter with every seed on every base, and score it on every base it is restored to."""
        if adapter.path is not None:
            yield from self._given_cells(adapter, adapter.path, name, axes, bases)
            return
        spec = adapter_spec(adapter, self.resolver)
        recipe = training_spec(adapter, axes.train, self.resolver, scale_rate=axes.scale_rate, where=axes.where)
        for seed in self.config.seeds:
            training = recipe.model_copy(update={"seed": seed})
            for k, ell, mode in self._grid(adapter.train_bits or axes.train_bits, axes.restore_bits):
                train = training_step(bases[k], axes.task, spec, training, self.dtype)
                target = self._restored(train, bases[ell], mode)
                yield from self._scores(target, axes, name, k, ell, mode, seed)

    def _given_cells(self, adapter: AdapterConfig, path: str, name: str, axes: _Axes, bases: Bases) -> Iterator[Cell]:
        """Score an adapter that is there already on its own base, where that is known, and on every base it is restored to."""
        own = None if adapter.trained_on is None else self.config.substituted(adapter.trained_on)
        given = self.resolver.adapter(
            self.config.substituted(path), model=axes.model, source=axes.source, trained_on=own, task=axes.task
        )
        k = given.trained_bits
        for _, ell, mode in self._grid((k,), axes.restore_bits):
            base = given.own_base if ell == k and given.own_base is not None else bases[ell]
            if MODES[mode].writes == "quantized" and isinstance(base, GivenBase):
                continue  # it cannot be quantized anew as it was
            target = self._restored(given, base, mode)
            yield from self._scores(target, axes, name, k, ell, mode, self.config.seeds[0])

    def _restored(self, adapter: Train | GivenAdapter, base: Base, mode: str) -> Restore:
        """Describe an adapter on a base, with the correction that its mode asks for.

        Raises:
            UsageError: a correction that the adapter does not fit.
        """
        return restored_step(adapter, base, mode, self.config.correction, self.dtype)

    def _scores(
        self, target: Base | Restore, axes: _Axes, adapter: str, k: int, ell: int, mode: str, seed: int
    ) -> Iterator[Cell]:
        """Score one target on every task of its axes."""
        for one in axes.scored:
            step = evaluation_step(target, one.task, one.settings, self.dtype, self.resolver, where=axes.where)
            yield Cell(axes.title, one.task.name, adapter, k, ell, mode, seed, step)

    def _grid(self, train_bits: Iterable[int], restore_bits: Iterable[int]) -> Iterator[tuple[int, int, str]]:
        """List (train_bits, restore_bits, mode) of every cell, falling in k and l."""
        config = self.config
        for k in sorted(train_bits, reverse=True):
            for ell in sorted({*restore_bits, k} - {UNKNOWN_BITS}, reverse=True):
                if config.cells == "upper" and ell < k:
                    continue
                yield from ((k, ell, mode) for mode in grid_modes(config.modes, k, ell))
