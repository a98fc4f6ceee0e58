"""A study: axes in a YAML file -> cells -> one plan -> results.

The cells of a study are ``models x tasks x adapters x seeds x (train_bits, restore_bits)``; each is one
:class:`~plr.core.specs.Evaluate` step, and what two cells share is one step. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from plr.core.config import parse
from plr.core.modes import grid_modes, plain_mode
from plr.core.precision import Precision
from plr.core.runtime import Runtime
from plr.core.specs import (
    AdapterSpec,
    Evaluate,
    Quantization,
    Quantize,
    Restore,
    Source,
    TaskSpec,
    Train,
    TrainSpec,
)
from plr.core.store import Store
from plr.engines import Outcome, engines
from plr.engines.plan import Event, Plan
from plr.errors import ConfigError
from plr.evaluation.samples import read_samples
from plr.quantizers import quantizers
from plr.study.cells import NO_ADAPTER, Cell, CellResult, cell_result
from plr.study.file import (
    EvaluateConfig,
    QuantizeConfig,
    StudyConfig,
    TaskConfig,
    TestConfig,
    expand,
)
from plr.study.frame import cells_frame, samples_frame
from plr.study.resolve import Resolver

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Study"]


class Study:
    """A study with its axes resolved to steps."""

    def __init__(
        self, config: StudyConfig, *, resolver: Resolver | None = None, runtime: Runtime | None = None
    ) -> None:
        """Resolve the axes of `config`; `runtime` is how it will be run, where that is not what the study itself says."""
        self.config = config
        self.resolver = resolver or Resolver()
        self.dtype: Precision = (runtime or self.runtime()).precision()
        """Of every training and evaluation: it counts, so `auto` is resolved here, once for all."""
        scored = [test for task in config.tasks for test in (task, *task.tests)]
        for text in (*config.models, *(task.data for task in scored if task.data)):
            expand(text)  # a variable that is not set is said before the network is asked for anything
        self._scored: dict[str, str] = {}  # name of a task -> how the file names it
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
        return [cell_result(cell, store.get(cell.step), failed or {}) for cell in self.cells]

    def frame(self, store: Store, *, samples: bool = False) -> DataFrame:
        """Build a tidy pandas DataFrame of what is in the store: one row a cell and metric, the columns of `results.csv`.

        With `samples` it has one row a cell and document instead: prompt, answer and the score by each metric; see
        `plr.study.frame.samples_frame`.
        """
        results = self.results(store)
        if not samples:
            return cells_frame(results)
        made = {cell.step.fingerprint: store.get(cell.step) for cell in self.cells}
        return samples_frame(results, {key: read_samples(one.path) for key, one in made.items() if one is not None})

    def _cells(self) -> Iterator[Cell]:
        config = self.config
        for model in config.models:
            source = Source(model=self.resolver.model(expand(model)))
            for task in config.tasks:
                yield from self._task_cells(source, task, self._task(task))

    def _task_cells(self, source: Source, task: TaskConfig, spec: TaskSpec) -> Iterator[Cell]:
        config, where = self.config, f"task {task.name}"
        quantize = parse(QuantizeConfig, {**config.quantize.model_dump(), **task.quantize}, f"{where}: quantize")
        training = {**config.train.model_dump(), **task.train}
        scaled = config.scale_rates and "learning_rate" not in task.train
        train_bits, restore_bits = task.train_bits or config.train_bits, task.restore_bits or config.restore_bits
        own = [bits for adapter in config.adapters for bits in adapter.train_bits or ()]
        bases = {bits: self._base(source, bits, quantize, spec) for bits in {*train_bits, *restore_bits, *own}}
        tests = list(self._tests(task, spec))
        model = source.model.title
        if config.baselines:
            for bits in sorted(restore_bits, reverse=True):
                for name, settings in tests:
                    step = self._evaluate({"target": bases[bits], **settings}, where)
                    yield Cell(model, name, NO_ADAPTER, bits, bits, plain_mode(same_base=True), config.seeds[0], step)
        for adapter in config.adapters:
            method = AdapterSpec(
                method=adapter.method, config=self.resolver.adapter_config(adapter.method, adapter.config)
            )
            recipe = {**training, **adapter.train}
            if scaled and "learning_rate" not in adapter.train:
                recipe["learning_rate"] = self.resolver.learning_rate(adapter.method, recipe["learning_rate"])
            recipe = parse(TrainSpec, recipe, f"{where}: train")
            for seed in config.seeds:
                for k, ell, mode in self._grid(adapter.train_bits or train_bits, restore_bits):
                    seeded = recipe.model_copy(update={"seed": seed})
                    train = Train(base=bases[k], task=spec, adapter=method, train=seeded, dtype=self.dtype)
                    target = Restore(adapter=train, base=bases[ell], mode=mode)
                    for name, settings in tests:
                        step = self._evaluate({"target": target, **settings}, where)
                        yield Cell(model, name, adapter.name or adapter.method, k, ell, mode, seed, step)

    def _tests(self, task: TaskConfig, spec: TaskSpec) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and Evaluate settings of everything that the adapters of ``task`` are scored on."""
        base = {**self.config.evaluate.model_dump(), **task.evaluate}
        for test in task.tests or (task,):
            evaluation = parse(EvaluateConfig, {**base, **test.evaluate}, f"task {test.name}: evaluate")
            scored = spec if test is task else self._task(test)
            if (first := self._scored.setdefault(scored.name, test.name)) != test.name:
                raise ConfigError(
                    f"{first} and {test.name} are both called {scored.name}",
                    hint="rows of results are told apart by name: write name: NAME into one of the files",
                )
            yield scored.name, {"task": scored, **self._evaluation(scored, evaluation)}

    def _task(self, task: TestConfig) -> TaskSpec:
        return self.resolver.task(
            expand(task.name),
            data=expand(task.data) if task.data else None,
            split_seed=task.split_seed,
            max_prompt_chars=task.max_prompt_chars,
        )

    def _grid(self, train_bits: Iterable[int], restore_bits: Iterable[int]) -> Iterator[tuple[int, int, str]]:
        """(train_bits, restore_bits, mode) of every cell, falling in k and l."""
        config = self.config
        for k in sorted(train_bits, reverse=True):
            for ell in sorted({*restore_bits, k}, reverse=True):
                if config.cells == "upper" and ell < k:
                    continue
                yield from ((k, ell, mode) for mode in grid_modes(config.modes, k, ell))

    def _base(self, source: Source, bits: int, config: QuantizeConfig, task: TaskSpec) -> Source | Quantize:
        if bits == 16:
            return source
        value = {**config.model_dump(exclude={"by_bits"}), **config.by_bits.get(bits, {})}
        config = parse(QuantizeConfig, value, f"quantize: by_bits: {bits}")
        calibration = self.resolver.calibration(
            config.method,
            None if config.calibration == "task" else expand(config.calibration),
            task=task,
            samples=config.samples,
            seed=config.seed,
            max_length=config.max_length,
        )
        knobs = config.model_dump(exclude={"calibration", "samples", "seed", "max_length", "by_bits", "gate_text"})
        gate_text = self.resolver.gate_text(expand(config.gate_text)) if config.gate_text else None
        value = {"bits": bits, "calibration": calibration, "gate_task": task, "gate_text": gate_text, **knobs}
        spec = parse(Quantization, value, "quantize")
        quantizers.get(spec.method).check(spec)
        return Quantize(source=source, quantization=spec)

    def _evaluate(self, value: dict[str, Any], where: str) -> Evaluate:
        return self.resolver.check_evaluation(parse(Evaluate, {**value, "dtype": self.dtype}, where))

    def _evaluation(self, task: TaskSpec, config: EvaluateConfig) -> dict[str, Any]:
        settings = config.model_dump()
        if settings["max_new_tokens"] is None:
            settings["max_new_tokens"] = self.resolver.max_new_tokens(task)
        return settings
