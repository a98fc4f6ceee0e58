"""plr from Python: the same four steps and the same store as the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast

from plr.core.config import parse
from plr.core.modes import MODES, mode_of, plain_mode
from plr.core.removal import Removal
from plr.core.runtime import Runtime, RuntimeOptions
from plr.core.specs import (
    BITS,
    CorrectionKnobs,
    Evaluate,
    GivenAdapter,
    GivenBase,
    ModelRef,
    Quantize,
    Restore,
    ServingEngine,
    Source,
    Step,
    TaskSpec,
    Train,
)
from plr.core.store import MANIFEST, Artifact, Store
from plr.engines.jobs import make
from plr.engines.plan import Event
from plr.errors import ProvenanceError, UsageError
from plr.export.formats import formats
from plr.quantizers import quantizers
from plr.report.advice import Advice
from plr.report.advice import advise as judged
from plr.restoration.check import check_mode, check_scales
from plr.study import Study, StudyConfig, load_study, study_config
from plr.study.advise import Inquiry, cell_of, row_sets, targets
from plr.study.command import CommandConfig, QuantizeKnobs, RecipeOptions, command_config, no_task
from plr.study.listing import Listed, ListOptions, arranged, listed, select
from plr.study.presets import preset_for
from plr.study.resolve import Resolver
from plr.study.steps import CELL_TASK, base_step, restored_step

if TYPE_CHECKING:
    from plr.evaluation.speaker import Asked, Speaker
    from plr.export.run import Exported, WrittenCard
    from plr.hub import Pushed
    from plr.report.diff import Diff

__all__ = [
    "AdviseOptions",
    "EvaluateOptions",
    "ExportOptions",
    "GivenOptions",
    "Lab",
    "LabOptions",
    "QuantizeOptions",
    "RestoreOptions",
    "TrainOptions",
    "check_bits",
]

Base = Source | Quantize | GivenBase
Target = Artifact | Restore | Train | GivenAdapter | Base | str | Path
OnEvent = Callable[[Event], None]
DEFAULT_MODEL = "embedded:tiny"


class LabOptions(RuntimeOptions, total=False):
    """Options of `Lab` itself."""

    home: Path | str | None
    offline: bool


class GivenOptions(TypedDict, total=False):
    """Options of what another tool made: an adapter (a PEFT folder, or ORG/NAME of the hub), or a quantized checkpoint."""

    model: str | Path | None
    """The base, where not the one that the adapter names. Of an adapter of plr: another place of its source model."""
    source: str | Path | None
    """The 16-bit model of a quantized checkpoint, where that does not name it."""
    trained_on: str | Path | None
    """Base of the training of an adapter: `16`, `nf4`, `nf4-double-quant`, `int8`, `unknown`, or a quantized checkpoint."""


class QuantizeOptions(RecipeOptions, QuantizeKnobs, total=False):
    """Options of `Lab.quantize` and `Lab.base`."""


class TrainOptions(RecipeOptions, total=False):
    """Options of `Lab.train` and `Lab.adapter`."""

    adapter: str | None
    """Adapter method, e.g. `lora`; the recipe's if left out."""
    seed: int
    """Seed of the adapter's start and of the order of rows."""
    source: str | Path | None
    """The 16-bit model of a quantized checkpoint, where that does not name it."""


class RestoreOptions(GivenOptions, total=False):
    """Options of `Lab.restore` and `Lab.restored`."""

    mode: str | None
    """Name of a mode (`plr.core.modes.MODES`); `keep` on the adapter's own base and `restore` on others if left out."""
    merge: bool
    """Write a dense checkpoint with the adapter merged in."""
    t: float | None
    """Place between the two bases, 0 to 1 (mode `path`); chosen on validation rows if left out."""
    scale: float | None
    """Factor of the adapter (`path`, `scale`, `correct`, `auto`); chosen if left out. Without a mode it means `scale`."""
    correct: int | None
    """Rank of the correction (`correct`, `auto`; 32). Without a mode it means `correct`."""
    select_rows: int | None
    """Validation rows that choose (64; of `auto` 1,000, of which half certify)."""
    task: str | None
    """The task that an adapter of another tool was trained on: it calibrates an l-bit base, and says the labels of a classifier."""
    data: str | Path | None
    """Rows of that task: a folder or a file."""
    columns: Mapping[str, str] | None
    """Fields that the rows have under other names: field -> column."""
    calibration: str | Path | None
    """A JSONL or text file that calibrates the l-bit base of such an adapter instead."""
    base: str | Path | None
    """A quantized checkpoint to restore to, instead of a base that plr makes."""
    method: str | None
    """Quantizer of the l-bit base; that of the adapter's own base if left out."""
    allow_mismatch: bool
    """Attach although the provenance does not agree; recorded in the result."""


class EvaluateOptions(GivenOptions, total=False):
    """Options of `Lab.evaluate` and `Lab.result`."""

    data: str | Path | None
    """Rows of the task: a folder or a file."""
    columns: Mapping[str, str] | None
    """Fields that the rows have under other names: field -> column."""
    split: Literal["train", "validation", "test"]
    limit: int | None
    """Score only this many rows, drawn by seed; the recipe's number if left out."""
    max_new_tokens: int | None
    """Longest answer in tokens; what the task says if left out."""
    num_fewshot: int
    """Solved training rows before every question."""
    fewshot_seed: int | None
    """Draws them; the first of the train split if left out."""
    engine: ServingEngine


class AdviseOptions(GivenOptions, total=False):
    """Options of `Lab.advise` and `Lab.inquiry`."""

    data: str | Path | None
    """Rows of the task: a folder or a file."""
    columns: Mapping[str, str] | None
    """Fields that the rows have under other names: field -> column."""
    bits: Sequence[int]
    """Widths l to serve on (16, 8, 4), beside that of its own base."""
    modes: Sequence[str]
    """Modes beside `keep`: `restore`, `requantize` and `auto` if left out."""
    rows: int
    """Test rows that certify (400)."""
    select_rows: int
    """Further test rows that choose (200)."""
    method: str | None
    """Quantizer of the l-bit bases; that of the adapter's own base if left out."""
    calibration: str | Path | None
    """A JSONL or text file that calibrates the l-bit bases; rows of the task if left out."""
    max_new_tokens: int | None
    """Longest answer in tokens; what the task says if left out."""
    allow_mismatch: bool
    """Attach although the provenance does not agree; recorded in the results."""


class ExportOptions(GivenOptions, total=False):
    """Options of `Lab.export`."""

    bits: int | None
    """Put an adapter on a base of these bits first; its own base if left out."""
    mode: str | None
    """Mode of that, as of `Lab.restore`."""
    task: str | None
    """Task that an adapter of another tool was trained on."""
    data: str | Path | None
    """Rows of that task: a folder or a file."""
    columns: Mapping[str, str] | None
    """Fields that the rows have under other names: field -> column."""
    force: bool
    """Write an earlier export anew."""
    shard_gb: float | None
    """Largest file of weights in GB (5)."""


class Lab:
    """A store and how to work on it, from Python as from the command line.

        lab = plr.Lab()
        adapter = lab.train("embedded:tiny", bits=4, task="tiny_math")  # quantizes to 4 bits on the way
        served = lab.restore(adapter, bits=16)                          # the same adapter on the 16-bit base
        lab.evaluate(served, limit=100).metrics["metrics"]              # {"exact_match,last-number": {"value": ...

    Each verb has a noun beside it that returns the step without making it: `quantize` and `base`, `train` and `adapter`,
    `restore` and `restored`, `evaluate` and `result`; `grid` runs a whole study.

    `home` is where artifacts lie (`$PLR_HOME`, or `./artifacts`, if left out), `runtime` how steps are carried out:
    `device="cuda"`, `dtype="float32"`, `workers=2` ... of `plr.Runtime`. Of these the dtype alone counts: an adapter or a
    result in another one is another artifact.
    """

    def __init__(
        self, home: Path | str | None = None, *, offline: bool = False, **runtime: Unpack[RuntimeOptions]
    ) -> None:
        place = {} if home is None else {"home": home}
        self.settings: Mapping[str, object] = {**runtime, "offline": offline, **place}
        self.store = Store(parse(Runtime, self.settings, "options").home)
        self.resolver = Resolver(offline=offline)

    def runtime(self, recipe: Mapping[str, object] | None = None) -> Runtime:
        """Lay the lab's own settings over those of a recipe."""
        return parse(Runtime, {**(recipe or {}), **self.settings}, "options")

    # The steps, not made yet.

    def base(self, model: str | Path = DEFAULT_MODEL, bits: int = 4, **options: Unpack[QuantizeOptions]) -> Base:
        """Describe a model at `bits`; 16 is the model itself.

        Raises:
            UsageError: bits that plr does not know, or no task to calibrate on.
            ConfigError: options, a file or `KEY=VALUE` texts that do not fit.
        """
        config = self._config(model, bits, options, knobs=options, needs_task=False)
        source = self.resolver.base(str(model))
        if isinstance(source, GivenBase):
            raise _quantized_already(source)
        if "tasks" in config.model_fields_set:
            return self._only_cell(config).base
        settings = config.quantize.at(bits)
        if bits < 16 and settings.calibration == CELL_TASK and quantizers.get(settings.method).needs_calibration:
            raise no_task(str(model))
        return base_step(source, bits, settings, None, self.resolver)

    def adapter(
        self, model: str | Path = DEFAULT_MODEL, bits: int | None = None, **options: Unpack[TrainOptions]
    ) -> Train:
        """Describe an adapter trained on a model at `bits` (4 if None), or on a quantized checkpoint as it is.

        Raises:
            UsageError: bits that plr does not know, or no task to train on.
            ConfigError: options, a file or `KEY=VALUE` texts that do not fit.
        """
        seed, source = options.get("seed", 0), options.get("source")
        given = self.resolver.base(str(model), _text(source))
        if isinstance(given, GivenBase):
            if bits not in (None, given.bits):
                raise UsageError(
                    f"{given.checkpoint.title} has {given.bits} bits, and --bits is {bits}",
                    hint="leave --bits out; to train on another width name its source with --model",
                )
            bits = given.bits
        config = self._config(
            model, 4 if bits is None else bits, options, adapter=options.get("adapter"), seed=seed, source=_text(source)
        )
        target = self._only_cell(config).target
        assert isinstance(target, Restore)
        assert isinstance(target.adapter, Train)
        return target.adapter

    def restored(
        self,
        adapter: Artifact | Train | GivenAdapter | str | Path | None = None,
        bits: int | None = None,
        **options: Unpack[RestoreOptions],
    ) -> Restore:
        """Describe `adapter` (the latest one if None) on an l-bit base (16 if None, or that of `base`), without retraining.

        An adapter of another tool is a PEFT folder, or ORG/NAME of the hub.

        Raises:
            UsageError: bits that plr does not know, a mode that does not fit them, or no adapter in the store.
            ProvenanceError: `model` is not what the adapter was trained on.
        """
        if bits is not None:
            check_bits(bits)
        allow_mismatch, mode, task = (
            options.get("allow_mismatch", False),
            options.get("mode"),
            self._named_task(options),
        )
        trained = self.trained(adapter, task=task, allow_mismatch=allow_mismatch, **_given(options))
        trained, base = self._base_of(trained, bits, options)
        name = mode_of(mode).name if mode else _meant(options) or plain_mode(same_base=base == trained.own_base)
        merge, knobs = options.get("merge", False), _knobs(name, options)
        dtype = self.runtime().precision()
        step = restored_step(trained, base, name, knobs, dtype, merge=merge, allow_mismatch=allow_mismatch)
        check_mode(step)
        check_scales(trained, base, allow_mismatch=allow_mismatch)
        return step

    def result(
        self, target: Target | None = None, task: str | None = None, **options: Unpack[EvaluateOptions]
    ) -> Evaluate:
        """Describe the score of a base, of an adapter on its own base, or of a restored adapter (the latest of them if None).

        Raises:
            UsageError: nothing in the store, a target without a task of its own and no `task` given, examples for a task that
                is answered by a head, or an engine that cannot serve the target.
            ConfigError: settings that exclude each other.
        """
        step = self._scored(target, task, options)
        spec = self._task_of(step, task, options.get("data"), options.get("columns"))
        other = {"data", "columns", *GivenOptions.__annotations__}
        settings: dict[str, object] = {key: value for key, value in options.items() if key not in other}
        if settings.get("limit") is None:
            settings["limit"] = self.recipe_for(step).evaluate.limit
        if settings.get("max_new_tokens") is None:
            settings["max_new_tokens"] = self.resolver.max_new_tokens(spec)
        settings |= {"target": step, "task": spec, "dtype": self.runtime().precision()}
        return self.resolver.check_evaluation(parse(Evaluate, settings, "options"))

    def recipe_for(self, step: Step) -> StudyConfig:
        """Read the preset that fits the source model of `step`."""
        return study_config({"name": "recipe", "preset": preset_for(_model_of(step).title)})

    # The steps, made.

    def make(self, step: Step, *, on_event: OnEvent | None = None) -> Artifact:
        """Make `step` and everything it needs; find what is there already."""
        return self.make_all([step], on_event=on_event)[0]

    def make_all(self, steps: Sequence[Step], *, on_event: OnEvent | None = None) -> list[Artifact]:
        """Make all of `steps` and everything they need; several widths of one source share its load and calibration."""
        return make(steps, self.store, self.runtime(self.recipe_for(steps[0]).runtime), on_event)

    def quantize(
        self, model: str | Path = DEFAULT_MODEL, bits: int = 4, **options: Unpack[QuantizeOptions]
    ) -> Artifact:
        """Quantize a model to `bits` below 16."""
        check_bits(bits, below_16=True)
        return self.make(self.base(model, bits, **options))

    def train(
        self, model: str | Path = DEFAULT_MODEL, bits: int | None = None, **options: Unpack[TrainOptions]
    ) -> Artifact:
        """Train an adapter on a model at `bits` (4 if None), made first if it is not there, or on a quantized checkpoint."""
        return self.make(self.adapter(model, bits, **options))

    def restore(
        self,
        adapter: Artifact | Train | GivenAdapter | str | Path | None = None,
        bits: int | None = None,
        **options: Unpack[RestoreOptions],
    ) -> Artifact:
        """Restore an adapter (the latest one if None) onto an l-bit base, without retraining."""
        return self.make(self.restored(adapter, bits, **options))

    def evaluate(
        self, target: Target | None = None, task: str | None = None, **options: Unpack[EvaluateOptions]
    ) -> Artifact:
        """Score a base, an adapter on its own base, or a restored adapter (the latest of them if None)."""
        return self.make(self.result(target, task, **options))

    def grid(
        self, study: Path | str | StudyConfig, *, overrides: Sequence[str] = (), on_event: OnEvent | None = None
    ) -> Study:
        """Run a study file or configuration; cells that fail are in `Study.results`."""
        config = study if isinstance(study, StudyConfig) else load_study(Path(study), tuple(overrides))
        runtime = self.runtime(config.runtime)
        work = Study(config, resolver=self.resolver, runtime=runtime)
        work.run(self.store, runtime, on_event=on_event)
        return work

    def inquiry(
        self,
        adapter: Artifact | Train | GivenAdapter | str | Path | None = None,
        task: str | None = None,
        **options: Unpack[AdviseOptions],
    ) -> Inquiry:
        """Describe the candidates for serving an adapter (the latest one if None), and the rows that choose and certify.

        Raises:
            UsageError: no task, a width or mode that plr does not know, or fewer than two candidates.
            DataError: too few test rows.
            ProvenanceError: `model` is not what the adapter was trained on.
        """
        from plr.adapters import adapters

        widths, modes = options.get("bits", (16, 8, 4)), options.get("modes", ("restore", "requantize", "auto"))
        for bits in widths:
            check_bits(bits)
        modes = [mode_of(name).name for name in modes]
        rows: EvaluateOptions = {"data": options.get("data"), "columns": options.get("columns")}
        allow_mismatch = options.get("allow_mismatch", False)
        own_task = self._named_task({"task": task, **rows})
        trained = self.trained(adapter, task=own_task, allow_mismatch=allow_mismatch, **_given(options))

        def restored(bits: int, mode: str | None) -> Restore:
            kept = mode is None and bits == trained.trained_bits
            step: RestoreOptions = {
                "mode": mode,
                "method": None if kept else options.get("method"),
                "calibration": options.get("calibration"),
                "model": options.get("model") if isinstance(trained, Train) else None,
                "allow_mismatch": allow_mismatch,
            }
            return self.restored(trained, bits, **step)

        found = targets(trained, widths, modes, restored, merges=adapters.get(trained.adapter.method).properties.merges)
        spec = self._task_of(found[0], task, rows.get("data"), rows.get("columns"))
        parts = row_sets(spec, options.get("rows", 400), options.get("select_rows", 200))
        rows |= {"limit": parts.limit, "max_new_tokens": options.get("max_new_tokens")}
        cells = [cell_of(trained, target, self.result(target, task, **rows)) for target in found]
        return Inquiry(trained, spec, cells, parts)

    def advise(
        self,
        adapter: Inquiry | Artifact | Train | GivenAdapter | str | Path | None = None,
        task: str | None = None,
        *,
        on_event: OnEvent | None = None,
        **options: Unpack[AdviseOptions],
    ) -> Advice:
        """Find the base that an adapter belongs on: score it on its own and on others, choose, and judge the choice on other rows.

        Raises:
            PlrError: fewer than two candidates have a score; and as `inquiry`.
        """
        asked = adapter if isinstance(adapter, Inquiry) else self.inquiry(adapter, task, **options)
        runtime = self.runtime(self.recipe_for(asked.cells[0].step).runtime)
        outcome = asked.run(self.store, runtime, on_event)
        return judged(asked, self.store, outcome.failed, offline=self.resolver.offline)

    # The store.

    def ls(
        self, kind: str | None = None, *, sort: str = "date", limit: int | None = None, **filters: Unpack[ListOptions]
    ) -> list[Listed]:
        """List what is in the store, the newest (best, largest, last by name) at the end, as `plr ls` does.

        Raises:
            UsageError: an order, or a field, that there is not.
            IntegrityError: an artifact without a manifest that can be read.
        """
        return arranged(select(map(listed, self.store.all(kind)), **filters), sort, limit=limit)

    def rm(
        self,
        *refs: str | Path | Artifact,
        older: str | None = None,
        unused: bool = False,
        with_dependents: bool = False,
        dry_run: bool = False,
    ) -> Removal:
        """Remove artifacts by path, name or hash, older than `older` ("30d"), or those that no result or restored adapter needs.

        Returns what is gone, and in words what was left alone; `plr.core.removal` has the rules.

        Raises:
            UsageError: nothing was named; or others in the store were made from it (`with_dependents` takes them too).
        """
        names = [str(ref.path) if isinstance(ref, Artifact) else str(ref) for ref in refs]
        removal = Removal.plan(self.store, names, older=older, unused=unused, with_dependents=with_dependents)
        if not dry_run:
            removal.remove()
        return removal

    def target(
        self, ref: Target | None = None, task: str | None = None, **options: Unpack[EvaluateOptions]
    ) -> Base | Restore:
        """Find what a REF serves: a model, a base, or an adapter on one; the latest of the store if None.

        Raises:
            UsageError: nothing matches; or an adapter of another tool whose base is not known.
        """
        from plr.bases.given_adapters import names_adapter

        foreign = isinstance(ref, str) and task is None and self._is_foreign(ref)
        if foreign and names_adapter(str(ref), offline=self.resolver.offline):
            own = self.trained(str(ref), **_given(options)).own_base
            return self.restored(str(ref), 16 if own is None else own.bits, **cast("RestoreOptions", _given(options)))
        return self._scored(ref, task, options)

    def names(self, text: str) -> bool:
        """Tell whether a text names something that can be asked: an artifact, a folder, a model."""
        if self._is_foreign(text):
            return True
        try:
            self.store.find(text, ("base", "adapter", "restored"))
        except UsageError:
            return False
        return True

    def row(
        self, ref: Target | None, task: str, *, number: int | None = None, **options: Unpack[EvaluateOptions]
    ) -> Asked:
        """Take a row of a task as an evaluation of `ref` asks it (the first one if None), by its id in results.

        Raises:
            UsageError: no such row, or a task that is answered by a label.
        """
        from plr.evaluation.speaker import ask_row

        return ask_row(self.result(ref, task, **options), number)

    @contextmanager
    def speaker(self, target: Base | Restore) -> Generator[Speaker]:
        """Load what `target` found, made first if need be, ready to answer (`plr.evaluation.speaker`)."""
        from plr.evaluation.speaker import speaker

        made = isinstance(target, Quantize) or (isinstance(target, Restore) and target.made)
        missing = [target] if made else list(target.inputs)
        if missing:
            self.make_all(missing)
        runtime = self.runtime(self.recipe_for(target).runtime)
        with speaker(target, self.store, runtime.computing_in(runtime.precision())) as one:
            yield one

    def diff(self, first: Artifact | str, second: Artifact | str, metric: str | None = None) -> Diff:
        """Compare two results of one task row by row, by the primary metric or another.

        Raises:
            UsageError, DataError: see `plr.report.diff.diff`.
        """
        from plr.report.diff import diff

        return diff(self.store, self._used(first, ("result",)), self._used(second, ("result",)), metric)

    def export(
        self, target: Target | None, folder: str | Path, form: str = "merged", **options: Unpack[ExportOptions]
    ) -> Exported:
        """Write what plr made in a format of other tools (`plr.export.formats`), with a model card, to `folder`.

        `target` is a base, an adapter or a restored adapter, the latest if None; or an adapter of another tool.

        Raises:
            UsageError: a format that does not hold it, or something lies at `folder`.
            PlrError, IntegrityError: see `plr.export.run.export`.
        """
        from plr.export.run import check_place, export

        row, force, gigabytes = formats.get(form), options.get("force", False), options.get("shard_gb")
        check_place(Path(folder), force=force)
        step = self._exported(target, options)
        row.check(step)
        missing = step.inputs if isinstance(step, Restore) and not step.made else (step,)
        if missing:
            self.make_all(missing)
        runtime = self.runtime(self.recipe_for(step).runtime)
        shard_bytes = None if gigabytes is None else int(gigabytes * 1e9)
        return export(step, row, Path(folder), self.store, runtime, force=force, shard_bytes=shard_bytes)

    def _exported(self, target: Target | None, options: ExportOptions) -> Restore | Quantize:
        """Find what is exported: as it is, or the adapter on a base of other bits."""
        if options.get("bits") is not None or options.get("mode") is not None:
            names = RestoreOptions.__annotations__
            chosen = cast("RestoreOptions", {key: value for key, value in options.items() if key in names})
            given = str(target) if isinstance(target, Path) else target
            if not isinstance(given, Artifact | Train | GivenAdapter | str | None):
                raise UsageError("--bits and --mode are for adapters", hint="leave them out")
            return self.restored(given, options.get("bits"), **chosen)
        scored = cast("EvaluateOptions", {k: v for k, v in options.items() if k in EvaluateOptions.__annotations__})
        step = self._scored(target, options.get("task"), scored)
        if not isinstance(step, Restore | Quantize):
            raise UsageError(f"{step.label} was not made by plr", expected="an adapter, or a base that plr quantized")
        return step

    def push(
        self,
        target: Target | None,
        name: str,
        *,
        form: str | None = None,
        private: bool = False,
        revision: str | None = None,
    ) -> Pushed:
        """Send a folder that was written for others, or an artifact (exported first), to the repository ORG/NAME of the Hub.

        Raises:
            UsageError: nothing that can be sent, see `plr.hub.upload.look_before_pushing`.
            HubError: the Hub refuses it, or cannot be asked.
        """
        from plr.hub import push

        folder = Path(str(target)) if isinstance(target, str | Path) else None
        if folder is not None and folder.is_dir() and not (folder / MANIFEST).exists():
            if form is not None:
                raise UsageError(
                    f"{folder} is a folder as it goes out: it is not exported anew", hint="leave --format out"
                )
            return push(folder, name, private=private, revision=revision, offline=self.resolver.offline)
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out"
            step = self._exported(target, {})
            chosen = (
                form
                or {"adapter": "peft", "dense": "merged", "quantized": "gptq"}[
                    step.form.writes if isinstance(step, Restore) else "quantized"
                ]
            )
            self.export(step, out, chosen)
            return push(out, name, private=private, revision=revision, offline=self.resolver.offline)

    def card(self, target: Target | None = None, folder: str | Path | None = None) -> WrittenCard:
        """Write the model card of an artifact (of a result: of what was scored); into `folder`, if one is given."""
        from plr.export.run import write_card

        if target is None or isinstance(target, str):
            artifact = self._used(target, ("base", "adapter", "restored", "result"))
            step = self.store.identify(artifact)
            target = step.target if isinstance(step, Evaluate) else artifact
        return write_card(self._scored(target, None, {}), self.store, None if folder is None else Path(folder))

    # What the options name.

    def _config(
        self,
        model: str | Path,
        bits: int,
        recipe: RecipeOptions,
        *,
        knobs: QuantizeKnobs | None = None,
        adapter: str | None = None,
        seed: int | None = None,
        needs_task: bool = True,
        source: str | None = None,
    ) -> CommandConfig:
        """Resolve options exactly as a study file would be."""
        check_bits(bits)
        self.resolver.model(str(model))  # a model that is not there is the first thing to say
        return command_config(
            model, bits, recipe, knobs=knobs, adapter=adapter, seed=seed, needs_task=needs_task, source=source
        )

    def _only_cell(self, config: CommandConfig) -> Evaluate:
        study = Study(config, resolver=self.resolver, runtime=self.runtime(config.runtime))
        return study.cells[0].step

    def trained(
        self,
        adapter: Artifact | Train | GivenAdapter | str | Path | None = None,
        *,
        task: TaskSpec | None = None,
        allow_mismatch: bool = False,
        **options: Unpack[GivenOptions],
    ) -> Train | GivenAdapter:
        """Find an adapter by path, name or hash prefix, the latest if None; or one of another tool by folder or hub id.

        Raises:
            UsageError: nothing matches, or it lies outside of the store, which has no copy of it.
            IntegrityError: it is not as it was committed.
            ModelError, HubError: see `plr.bases.given_adapters.resolve_adapter`.
        """
        if isinstance(adapter, Train | GivenAdapter):
            return adapter
        if isinstance(adapter, str | Path) and self._is_foreign(str(adapter)):
            return self.resolver.adapter(
                str(adapter),
                model=_text(options.get("model")),
                source=_text(options.get("source")),
                trained_on=_text(options.get("trained_on")),
                task=task,
                allow_mismatch=allow_mismatch,
            )
        if isinstance(adapter, str) and "/" in adapter and not _lies(Path(adapter).expanduser()):
            raise UsageError(f"there is no folder {adapter}", expected="a PEFT folder, or an artifact of the store")
        if options.get("trained_on") is not None or (options.get("source") is not None):
            raise UsageError(
                "--trained-on and --source are for adapters and checkpoints of other tools",
                hint="leave them out: what plr trained has its base on record",
            )
        artifact = self._used(str(adapter) if isinstance(adapter, Path) else adapter, ("adapter",))
        step = self.store.identify(artifact)
        if not isinstance(step, Train):
            raise UsageError(f"{artifact.path.name} is of kind {artifact.kind}", expected="an adapter")
        return step

    def _is_foreign(self, ref: str) -> bool:
        """Tell what lies outside of plr (a folder without a manifest, a name of the hub) from an artifact."""
        from plr.bases.resolve import HUB_ID

        path = Path(ref).expanduser()
        if ref.startswith("embedded:"):
            return True
        if _lies(path / MANIFEST) or self.store.home in path.absolute().parents:
            return False  # what lies in the store is used as it was committed, or not at all
        if path.suffix == ".gguf" or _lies(path / "adapter_config.json") or _lies(path / "config.json"):
            return True
        return HUB_ID.fullmatch(ref.partition("@")[0]) is not None and not _lies(path.parent)

    def _used(self, ref: Artifact | str | None, kinds: tuple[str, ...]) -> Artifact:
        """Find the artifact of this store that is to be used, and compare its files with what was committed."""
        artifact = self.store.own(ref) if isinstance(ref, Artifact) else self.store.find(ref, kinds)
        artifact.use()
        return artifact

    def _scored(self, target: Target | None, task: str | None, options: EvaluateOptions) -> Base | Restore:
        given = _given(options)
        target = str(target) if isinstance(target, Path) else target
        if isinstance(target, str) and self._is_foreign(target):
            step = self._outside(target, {**options, "task": task}, given)
        elif any(value is not None for value in given.values()):
            raise UsageError(
                "--model, --source and --trained-on are for adapters and checkpoints of other tools",
                hint="leave them out: what plr made has its base on record",
            )
        elif target is None or isinstance(target, str | Artifact):
            step = self.store.identify(self._used(target, ("restored", "adapter", "base")))
        else:
            step = target
        if isinstance(step, Train | GivenAdapter):
            return Restore(adapter=step, base=step.base, mode=plain_mode(same_base=step.base == step.own_base))
        if isinstance(step, Evaluate):
            raise UsageError(f"{step.label} is a result already", expected="a base, an adapter or a restored adapter")
        return step

    def _outside(self, target: str, options: Mapping[str, object], given: GivenOptions) -> Base | GivenAdapter:
        """Resolve what another tool made: an adapter, a quantized checkpoint or a model."""
        from plr.bases.given_adapters import names_adapter

        if names_adapter(target, offline=self.resolver.offline):
            task = self._named_task(options)
            if task is None:
                raise UsageError(f"{target} is an adapter of another tool, without a task", hint="give --task NAME")
            adapter = self.trained(target, task=task, **given)
            assert isinstance(adapter, GivenAdapter)
            return adapter
        if given.get("model") is not None or given.get("trained_on") is not None:
            raise UsageError(f"{target} is a model", hint="--model and --trained-on are for adapters: leave them out")
        return self.resolver.base(target, _text(given.get("source")))

    def _named_task(self, options: Mapping[str, object]) -> TaskSpec | None:
        """Resolve the task that options name, if any."""
        task, data, columns = (options.get(key) for key in ("task", "data", "columns"))
        if task is None:
            return None
        return self.resolver.task(
            str(task),
            data=None if data is None else str(data),
            columns=cast("Mapping[str, str] | None", columns),
        )

    def _task_of(
        self,
        step: Base | Restore,
        task: str | None,
        data: str | Path | None,
        columns: Mapping[str, str] | None,
    ) -> TaskSpec:
        """Choose what `step` is scored on: its own task, or the one that is named."""
        own = _own_task(step)
        if own is not None and (task is None or (task == own.name and data is None and not columns)):
            return own
        if task is None:
            raise UsageError(f"{step.label} has no task of its own", hint="give --task NAME")
        return self.resolver.task(task, data=None if data is None else str(data), columns=columns)

    def _base_of(
        self, trained: Train | GivenAdapter, bits: int | None, options: RestoreOptions
    ) -> tuple[Train | GivenAdapter, Base]:
        """Describe the base that is restored to; the adapter too, where its own base learns of its source by that.

        Raises:
            UsageError: bits that the checkpoint of `base` does not have, or a source that is not known.
            ProvenanceError: another source model.
        """
        model, allow_mismatch = options.get("model"), options.get("allow_mismatch", False)
        if model is not None and isinstance(trained, Train):
            source = Source(model=self.resolver.model(str(model)))
            if isinstance(trained.base, GivenBase) and trained.base.origin is None:
                known = self.resolver.base(trained.base.checkpoint.argument, source.model.argument)
                trained = trained.replaced(base=known)  # compared with the source; its identity stays
            _check_source(trained.base.model, source.model, allow_mismatch)
        else:
            source = None
        if (named := options.get("base")) is not None:
            base = self.resolver.base(str(named), _text(options.get("source")) or trained.base.model.argument)
            if bits not in (None, base.bits):
                raise UsageError(f"--base {named} has {base.bits} bits, and --bits is {bits}", hint="leave --bits out")
            return trained, base
        bits = 16 if bits is None else bits
        own = trained.own_base
        anew = MODES[mode].writes == "quantized" if (mode := options.get("mode")) in MODES else False
        if isinstance(own, GivenBase) and own.bits == bits and options.get("method") is None and not anew:
            return trained, own
        return trained, self._base_like(trained, source or trained.base.source, bits, options)

    def _base_like(self, trained: Train | GivenAdapter, source: Source, bits: int, options: RestoreOptions) -> Base:
        """Describe the l-bit base, quantized as the adapter's own base was, or by `method`."""
        method, own = options.get("method"), trained.own_base
        if bits == 16:
            return source
        follows = isinstance(trained, Train) or (isinstance(own, Quantize) and bits == own.bits)
        if isinstance(own, Quantize) and (method == own.quantization.method or (method is None and follows)):
            quantization = own.quantization.model_copy(update={"bits": bits})
            try:
                quantizers.get(quantization.method).check(quantization)
            except UsageError as error:
                hint = "name the method of the base to restore to, e.g. --method gptq"
                raise UsageError(error.message, expected=error.expected, hint=hint) from error
            return Quantize(source=source, quantization=quantization)
        # No quantization to follow: the model's recipe, calibrated on the adapter's task.
        settings = self.recipe_for(source).quantize
        if method is not None:
            settings = settings.model_copy(update={"method": method})
        if (file := options.get("calibration")) is not None:
            settings = settings.model_copy(update={"calibration": str(Path(file).absolute())})
        at = settings = self.resolver.fitted(source.model, settings.at(bits))
        if trained.task is None and at.calibration == CELL_TASK and quantizers.get(at.method).needs_calibration:
            raise UsageError(
                f"nothing is named to calibrate a {bits}-bit base of {source.model.title} on",
                expected="the task that the adapter was trained on, or a text",
                hint="give --task NAME or --calibration FILE, or --method nf4 or rtn, which take none",
            )
        return base_step(source, bits, settings, trained.task, self.resolver)


_KNOBS = {"t": "t", "scale": "scale", "correct": "rank", "select_rows": "rows"}
"""Options of a restoration that are knobs of its correction."""


def _meant(options: RestoreOptions) -> str | None:
    """Name the mode that options mean where none is named."""
    return next((name for name in ("correct", "scale") if options.get(name) is not None), None)


def _knobs(mode: str, options: RestoreOptions) -> CorrectionKnobs:
    """Read the knobs of a correction off the options.

    Raises:
        UsageError: one that `mode` does not read.
        ConfigError: one out of its bounds.
    """
    given: dict[str, object] = {_KNOBS[key]: options[key] for key in _KNOBS if options.get(key) is not None}
    for option, knob in _KNOBS.items():
        if knob in given and knob not in MODES[mode].knobs:
            fits = ", ".join(name for name, row in MODES.items() if knob in row.knobs)
            raise UsageError(
                f"--{option.replace('_', '-')} with mode {mode}", expected=f"mode {fits}", hint="name it: --mode"
            )
    return parse(CorrectionKnobs, given, "options")


def check_bits(bits: int, *, below_16: bool = False) -> None:
    """Refuse a width plr does not know.

    Raises:
        UsageError: `bits` is none of 16, 8, 4, 3, 2 (of the last four, with `below_16`).
    """
    allowed = BITS[1:] if below_16 else BITS
    if bits not in allowed:
        raise UsageError(
            f"bits is {bits}",
            expected="one of " + ", ".join(map(str, allowed)),
            hint="16 bits is the source itself: there is nothing to quantize" if bits == 16 else None,
        )


def _given(options: Mapping[str, object]) -> GivenOptions:
    return cast("GivenOptions", {key: options.get(key) for key in GivenOptions.__annotations__})


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _lies(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than any name, or NUL
        return False


def _quantized_already(base: GivenBase) -> UsageError:
    return UsageError(
        f"{base.checkpoint.title} is quantized already ({base.method}, {base.bits} bits)",
        expected="a source model at 16 or 32 bits",
        hint="plr train and plr eval take it as it is; to quantize, name the model it was made from",
    )


def _check_source(ours: ModelRef, theirs: ModelRef, allow_mismatch: bool) -> None:
    if not allow_mismatch and ours.identity() != theirs.identity():
        raise ProvenanceError(
            f"the adapter was trained on {ours.name} ({ours.revision[:12]}), the model given is {theirs.name} "
            f"({theirs.revision[:12]})",
            expected="the same source model",
            hint="leave --model out, or add --allow-mismatch (recorded in the result)",
        )


def _own_task(step: Base | Restore) -> TaskSpec | None:
    if isinstance(step, Restore):
        return step.adapter.task
    calibration = step.quantization.calibration if isinstance(step, Quantize) else None
    return calibration.task if calibration else None


def _model_of(step: Step) -> ModelRef:
    match step:
        case Source() | Quantize() | GivenBase():
            return step.model
        case Train() | GivenAdapter() | Restore() | Evaluate():
            return step.base.model
        case _:
            raise TypeError(f"a step of kind {step.kind} has no model")
