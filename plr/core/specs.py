"""Specifications of everything that is computed: frozen, hashed values.

A study is a graph of four kinds of step over a source model:

```
Source ─┬─ Quantize(k bits) ── Train(adapter, task, seed) ─┐
        └─ Quantize(l bits) ───────────────────────────────┴─ Restore(mode) ── Evaluate(task)
```

What others made stands in the same places, by content and where it lies: a `GivenBase` for a quantization, a `GivenAdapter` for
a training.

Every field bears identity unless its name stands in the class's `LOCATION`: where a file lies is not what it says, so a
local path is kept for finding the file again while its content hash is what counts. How a step is carried out (device,
workers, micro-batch) is `plr.core.runtime.Runtime` and never here.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, Field, TypeAdapter, field_validator, model_validator

from plr.core.fingerprint import fingerprint
from plr.core.modes import MERGED, MODES, Mode
from plr.core.precision import Precision
from plr.errors import UsageError

__all__ = [
    "BITS",
    "KINDS",
    "UNKNOWN_BITS",
    "AdapterSpec",
    "AnyStep",
    "Base",
    "Calibration",
    "CalibrationKnobs",
    "Correction",
    "CorrectionKnobs",
    "Evaluate",
    "EvaluationKnobs",
    "GivenAdapter",
    "GivenBase",
    "GridSearch",
    "Kind",
    "ModelRef",
    "Quantization",
    "QuantizationKnobs",
    "Quantize",
    "Restore",
    "Seed",
    "ServingEngine",
    "Source",
    "Spec",
    "Step",
    "TaskSpec",
    "Train",
    "TrainSpec",
    "bits_word",
    "step_from_json",
]

BITS = (16, 8, 4, 3, 2)
UNKNOWN_BITS = 0
"""The k of an adapter of which nobody says on how many bits it was trained; tables show it as `?`."""


def bits_word(bits: int) -> str:
    """Write a width for people.

    >>> bits_word(4), bits_word(UNKNOWN_BITS)
    ('4', '?')
    """
    return "?" if bits == UNKNOWN_BITS else str(bits)


GridSearch = Literal["minmax", "mse", "hessian"]
ServingEngine = Literal["hf", "vllm"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Spec(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen value with an identity."""

    LOCATION: ClassVar[frozenset[str]] = frozenset()
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after others were in use. At their default they bear no identity, so what was made before is still found."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that bear identity, as JSON values; a step inside is given by its fingerprint."""
        return {
            name: _identity(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name not in self.LOCATION and not (name in self.LATER and getattr(self, name) == field.default)
        }


def _identity(value: Any) -> Any:
    if isinstance(value, Step):
        return value.fingerprint
    return value.identity() if isinstance(value, Spec) else value


class ModelRef(Spec, frozen=True):
    """A source model: a hub id at a commit, a local folder or `.gguf` file by content, or `embedded:tiny`."""

    LOCATION = frozenset({"path", "name"})
    kind: Literal["hub", "local", "gguf", "embedded"]
    name: str
    revision: str
    """Commit sha (hub) or sha256 of the content."""
    path: str | None = None

    @property
    def title(self) -> str:
        """Name of the model in tables."""
        return f"embedded:{self.name}" if self.kind == "embedded" else self.name

    @property
    def argument(self) -> str:
        """The text by which an option names it."""
        if self.kind == "embedded":
            return self.title
        return self.path or f"{self.name}@{self.revision}"

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({"name": self.name} if self.kind == "hub" else {})


class TaskSpec(Spec, frozen=True):
    """A task, the data it reads and how the data is split and filtered."""

    LOCATION = frozenset({"path"})
    LATER = frozenset({"definition", "columns"})
    name: str
    """Name of a registered task (`plr tasks`), or a task file that ends in `.yaml`."""
    version: int
    """Raised when the same name comes to mean something else."""
    definition: str | None = None
    """Content of a task file: all that bears on prompts and scores, as canonical JSON. A registered task is its version."""
    path: str | None = None
    """Local files of rows."""
    data_sha256: str | None = None
    """Hash of the rows' files."""
    revision: str | None = None
    """Commit of the data set on the hub."""
    split_seed: Seed = 0
    """Seed of the cut, where the data has no such split."""
    max_prompt_chars: int | None = None
    """Leave out rows whose prompt is longer; none: keep all."""
    columns: tuple[tuple[str, str], ...] = ()
    """Fields that the rows have under other names: (field, column of the file)."""


class CalibrationKnobs(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of a calibration, in steps and in study files."""

    samples: int = Field(default=500, ge=1)
    """Number of texts drawn."""
    seed: Seed = 0
    """Seed of the draw."""
    max_length: int = Field(default=512, ge=1)
    """Tokens; longer samples are cut and counted in the manifest."""


class Calibration(Spec, CalibrationKnobs, frozen=True):
    """The text GPTQ is calibrated on: `samples` draws with `seed` from a task's train split, or from a file."""

    LOCATION = frozenset({"path", "guard"})
    task: TaskSpec | None = None
    """Calibrate on the training rows of this task."""
    guard: TaskSpec | None = None
    """The task whose held-out rows a file must not contain: it is checked, and changes no byte of the result."""
    path: str | None = None
    """Calibrate on this JSONL or text file."""
    file_sha256: str | None = None
    """Hash of that file."""

    @model_validator(mode="after")
    def _one_source(self) -> Calibration:
        if (self.task is None) == (self.file_sha256 is None):
            raise ValueError("calibration needs a task or a file, and not both")
        return self


class QuantizationKnobs(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of a quantization, in steps and in study files. Names as in GPTQ checkpoints."""

    method: str = "gptq"
    """`gptq`, `rtn`, `gptqmodel`, `nf4` (4 bits), `int8` (8 bits), or a quantizer of yours."""
    group_size: int = 128
    """Input columns that share a scale; -1 for a whole row. It must divide the input width of every layer."""
    sym: bool = True
    """Symmetric grid around zero; false adds a zero point per group."""
    desc_act: bool = False
    """Solve columns in order of activation (act order); slower at inference."""
    static_groups: bool = False
    """Fix the groups' scales before columns are reordered; of use with `desc_act`."""
    act_group_aware: bool = False
    """Order by activation within groups and of groups: what act order gains, without its cost at inference."""
    damp_percent: float = Field(default=0.01, gt=0, lt=1)
    """Added to the Hessian's diagonal, as a share of its mean."""
    block_size: int = Field(default=128, ge=1)
    """Columns whose updates are applied to the rest of the matrix together."""
    grid: GridSearch = "minmax"
    """Choice of a group's range: its extremes, least squared error, or what an error costs by the Hessian."""
    refine_passes: int = Field(default=0, ge=0)
    """Rounds of coordinate descent on the solved codes."""
    input_correction: float = Field(default=0.0, ge=0, le=1)
    """Strength of quantization-error propagation (QEP): 0 = off, 1 = full least-squares correction of the layer's input error."""
    double_quant: bool = False
    """Quantize the scales too (nf4 alone)."""

    @model_validator(mode="after")
    def _group(self) -> Self:
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}: give -1 (one group a row) or a positive number")
        return self


class Quantization(Spec, QuantizationKnobs, frozen=True):
    """A quantization of a base to k bits: its options, its calibration, and the texts it is measured on."""

    LOCATION = frozenset({"gate_task", "gate_text"})
    bits: Literal[8, 4, 3, 2]
    """Width of a code."""
    calibration: Calibration | None = None
    gate_task: TaskSpec | None = None
    """The task on whose validation rows the base is measured once it is made; this changes no byte of it."""
    gate_text: str | None = None
    """A JSONL or text file on which it is measured too."""


class AdapterSpec(Spec, frozen=True):
    """A parameter-efficient method and its whole configuration; no default of a library is inherited."""

    method: str = "lora"
    """Name of the method (`plr adapters`)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Its whole configuration."""


class TrainSpec(Spec, frozen=True):
    """The training recipe. Defaults are the settings of the Post-LoRA Restoration report.

    `batch_size` is rows per optimizer step over all devices; how it is cut into micro-batches is Runtime's.
    """

    LATER = frozenset({"compensate", "mix", "rotate", "rotate_every"})

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak rate. One that comes from a preset is LoRA's, times the method's own factor."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimizer step, over all devices."""
    epochs: float = Field(default=10.0, gt=0, le=100_000)
    """Passes over the training rows; fractions are allowed."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of AdamW."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    max_length: int = Field(default=512, ge=8)
    """Tokens of prompt and answer; a longer row is an error, not a cut."""
    train_limit: int | None = Field(default=None, ge=1)
    """Train on this many rows, drawn by seed; none: all."""
    validation_limit: int | None = Field(default=500, ge=1)
    """Measure the validation loss on this many rows; none: all."""
    evaluations_per_epoch: int = Field(default=1, ge=1)
    """Measurements of the validation loss in an epoch."""
    select: Literal["best_validation_loss", "last"] = "best_validation_loss"
    """State of the adapter that is kept: the one with the lowest validation loss, or the last."""
    seed: Seed = 0
    """Seed of the adapter's start and of the order of rows; in a study `seeds` sets it."""
    compensate: int = Field(default=0, ge=0)
    """Rank of the leading part of W_16 - W_k that lies frozen beside a k-bit base while a LoRA is trained; 0: none."""
    mix: bool = False
    """Train between the k-bit base and the source: at a random place each step and layer. Both are in memory."""
    rotate: int = Field(default=0, ge=0)
    """Train on this many quantizations of one width in turn, each calibrated on another draw; 0 and 1: on the one."""
    rotate_every: int = Field(default=8, ge=1)
    """Optimizer steps on one of them before the next."""

    @model_validator(mode="after")
    def _one_exposure(self) -> Self:
        on = {"compensate": self.compensate > 0, "mix": self.mix, "rotate": self.rotate > 1}
        asked = [name for name, value in on.items() if value]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} exclude each other: give one")
        return self


class Kind(NamedTuple):
    """A kind of stored step: its name, what makes it, and about how long that takes beside the others."""

    name: str
    verb: str
    command: str
    effort: float


KINDS = {
    kind.name: kind
    for kind in (
        Kind("base", "quantize", "plr quantize", 4.0),
        Kind("adapter", "train", "plr train", 10.0),
        Kind("restored", "restore", "plr restore", 1.0),
        Kind("result", "evaluate", "plr eval", 2.0),
    )
}
"""Kinds of stored steps, in the order in which a plan makes them: what one needs stands before it."""


class Step(Spec, frozen=True):
    """A frozen step; equal steps have equal fingerprints, so nothing is computed twice."""

    VERSION: ClassVar[int]
    kind: str

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over kind, version, own fields and the fingerprints of the input steps."""
        return fingerprint({"version": self.VERSION, **self.identity()})

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Its fingerprint, and those it had at former versions of its kind: what was made then is still whole."""
        versions = range(1, self.VERSION)
        return (self.fingerprint, *(fingerprint({"version": v, **self.identity()}) for v in versions))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def info(self) -> Kind:
        """Its row in the table of kinds."""
        return KINDS[self.kind]

    @property
    def stage(self) -> int:
        """Place of its kind in a plan, from 0."""
        return list(KINDS).index(self.kind)

    def replaced(self, **values: object) -> Self:
        """Build the same step with other `values`, its fingerprint taken anew (`model_copy` would carry the old one along)."""
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)

    def former(self) -> Self:
        """Build the same step as it was identified before dtypes counted: without one, and so all that it stands on."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        steps = {name: value.former() for name, value in fields.items() if isinstance(value, Step)}
        return self.replaced(**steps | ({"dtype": None} if "dtype" in fields else {}))

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The steps whose artifacts this one needs, sources left out (they lie outside the store)."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """A few words for people: part of the artifact's folder name."""
        raise NotImplementedError


class Source(Step, frozen=True):
    """The unquantized model: 16 bits, never stored by plr."""

    VERSION = 1
    kind: Literal["source"] = "source"
    model: ModelRef

    @property
    def bits(self) -> int:
        return 16

    @property
    def source(self) -> Source:
        return self

    @property
    def inputs(self) -> tuple[Step, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"{self.model.name}-16bit"


class Quantize(Step, frozen=True):
    """A base at k < 16 bits."""

    VERSION = 1
    kind: Literal["base"] = "base"
    source: Source
    quantization: Quantization

    @property
    def bits(self) -> int:
        return self.quantization.bits

    @property
    def model(self) -> ModelRef:
        return self.source.model

    @property
    def inputs(self) -> tuple[Step, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"{self.model.name}-{self.quantization.method}-{self.bits}bit"


class GivenBase(Step, frozen=True):
    """A k-bit base that another tool quantized: its checkpoint as it is, by content. plr reads it where it lies."""

    LOCATION = frozenset({"origin", "setting"})
    VERSION = 1
    kind: Literal["given_base"] = "given_base"
    checkpoint: ModelRef
    method: str
    """`quant_method` of its configuration."""
    bits: Literal[8, 4, 3, 2]
    """Width of a code."""
    setting: dict[str, Any] = Field(default_factory=dict)
    """Its `quantization_config`, for the record: it is part of the content."""
    origin: ModelRef | None = None
    """The 16-bit model it was made from, where that is known."""

    @property
    def model(self) -> ModelRef:
        """The model that it stands for: the one it was made from; the checkpoint itself where that is not known."""
        return self.origin or self.checkpoint

    @property
    def source(self) -> Source:
        """The 16-bit model.

        Raises:
            UsageError: nobody said which it is.
        """
        if self.origin is None:
            raise UsageError(
                f"the model that {self.checkpoint.title} was quantized from is not known",
                expected="its 16-bit source",
                hint="name it: --source MODEL (with plr restore: --model MODEL)",
            )
        return Source(model=self.origin)

    @property
    def inputs(self) -> tuple[Step, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"{self.checkpoint.name}-{self.bits}bit"


Base = Annotated[Source | Quantize | GivenBase, Field(discriminator="kind")]


class Train(Step, frozen=True):
    """An adapter trained on a base."""

    VERSION = 1
    LATER = frozenset({"dtype"})
    kind: Literal["adapter"] = "adapter"
    base: Base
    task: TaskSpec
    adapter: AdapterSpec
    train: TrainSpec
    dtype: Precision | None = None
    """Type of the computation; every plan names it. None: as made before it was named, in whatever dtype that was."""

    @property
    def bases(self) -> tuple[Source | Quantize | GivenBase, ...]:
        """The bases that it is trained on in turn, its own first; each other one has another calibration draw and grid."""
        base = self.base
        if self.train.rotate < 2 or not isinstance(base, Quantize):
            return (base,)
        own = base.quantization
        grids = [own.grid, *(grid for grid in get_args(GridSearch) if grid != own.grid)]
        others: list[Quantize] = []
        for turn in range(1, self.train.rotate):
            drawn = own.calibration and own.calibration.model_copy(update={"seed": own.calibration.seed + turn})
            changed = {"calibration": drawn, "grid": grids[turn % len(grids)]}
            others.append(Quantize(source=base.source, quantization=own.model_copy(update=changed)))
        return (base, *others)

    @property
    def inputs(self) -> tuple[Step, ...]:
        return tuple(step for base in self.bases for step in _stored(base))

    @property
    def label(self) -> str:
        return f"{self.base.model.name}-{self.base.bits}bit-{self.task.name}-{self.adapter.method}-s{self.train.seed}"

    @property
    def own_base(self) -> Source | Quantize | GivenBase:
        """The base that it was trained on."""
        return self.base

    @property
    def trained_bits(self) -> int:
        """The k of that base."""
        return self.base.bits


class GivenAdapter(Step, frozen=True):
    """An adapter that another tool trained: a PEFT folder by content, or a repository of the hub at a commit."""

    LOCATION = frozenset({"named", "trained_on", "task", "method", "config"})
    VERSION = 1
    kind: Literal["given_adapter"] = "given_adapter"
    folder: ModelRef
    method: str
    """Name of the method; it stands in the adapter's own configuration."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Its configuration, for the record: it is part of the content."""
    named: Base
    """The base that it names, or that was named for it."""
    trained_on: Base | None = None
    """The base whose weights it was trained on, where that is known: a 16-bit name does not say it, QLoRA gives the same."""
    task: TaskSpec | None = None
    """The task it was trained on, where that is known."""

    @property
    def base(self) -> Source | Quantize | GivenBase:
        """The base that it was trained on; the one that it names where that is not known."""
        return self.trained_on or self.named

    @property
    def own_base(self) -> Source | Quantize | GivenBase | None:
        """The base that it was trained on, where that is known."""
        return self.trained_on

    @property
    def trained_bits(self) -> int:
        """The k of that base, or `UNKNOWN_BITS`."""
        return UNKNOWN_BITS if self.trained_on is None else self.trained_on.bits

    @property
    def adapter(self) -> AdapterSpec:
        """Its method and configuration."""
        return AdapterSpec(method=self.method, config=self.config)

    @property
    def dtype(self) -> None:
        """None: nobody says in which type it was trained."""
        return None

    @property
    def inputs(self) -> tuple[Step, ...]:
        return ()

    @property
    def label(self) -> str:
        return self.folder.name


AnyAdapter = Annotated[Train | GivenAdapter, Field(discriminator="kind")]


class CorrectionKnobs(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of the modes that correct a restoration (`path`, `scale`, `correct`, `auto`), in steps and in study files."""

    t: float | None = Field(default=None, ge=0, le=1)
    """Place on the way from the k-bit base (0) to the l-bit base (1); none: chosen."""
    scale: float | None = Field(default=None, gt=0, le=16)
    """Factor of the adapter: `lora_alpha` times this; none: chosen, and 1 in `correct`."""
    rank: int = Field(default=32, ge=1)
    """Rank of the correction of `correct`: its factors lie beside those of the adapter, in one file."""
    rows: int | None = Field(default=None, ge=2)
    """Validation rows that choose; none: 64, and of `auto` 1,000, of which half choose and half certify."""
    calibration_rows: int = Field(default=96, ge=1)
    """Training rows on which the inputs of the layers are measured for `correct`."""
    seed: Seed = 0
    """Seed of both draws."""


class Correction(Spec, frozen=True):
    """The part of a restoration that is between keeping and restoring; what its mode does not read stays at its default.

    `plr.restoration.correction.correction_for` fills it from `CorrectionKnobs`.
    """

    t: float | None = Field(default=None, ge=0, le=1)
    """Place on the way; none: chosen on `rows`."""
    scale: float | None = Field(default=None, gt=0, le=16)
    """Factor of the adapter; none: chosen on `rows`."""
    rank: int = Field(default=0, ge=0)
    """Rank of the correction; 0 without one."""
    rows: int = Field(default=0, ge=0)
    """Validation rows of `task`; 0 where nothing is chosen."""
    calibration_rows: int = Field(default=0, ge=0)
    """Training rows of `task`; 0 where no inputs are measured."""
    seed: Seed = 0
    """Seed of the draws of rows."""
    task: TaskSpec | None = None
    """The task of the rows; none where none is read."""


class Restore(Step, frozen=True):
    """A trained adapter on another base, without retraining.

    `mode` is a row of `plr.core.modes.MODES`. `allow_mismatch` lets a pair through whose provenance does not agree.
    """

    VERSION = 1
    LATER = frozenset({"correction", "dtype"})
    kind: Literal["restored"] = "restored"
    adapter: AnyAdapter
    base: Base
    mode: str = Field(default="restore", json_schema_extra=lambda schema: schema.update(enum=[*MODES]))
    merge: bool = False
    allow_mismatch: bool = False
    correction: Correction | None = None
    """Settings of a mode that corrects; none of the others."""
    dtype: Precision | None = None
    """Type of the computation by which a correction is chosen; none where nothing is computed to choose."""

    @field_validator("mode")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in MODES:
            raise ValueError(f"unknown mode {value}: one of {', '.join(MODES)}")
        return value

    @property
    def form(self) -> Mode:
        """The row of what is served: that of the mode, or of a merge."""
        return MERGED if self.merge else MODES[self.mode].at(self.base.bits)

    @property
    def is_checkpoint(self) -> bool:
        """True if a whole checkpoint is served, and not an adapter beside its base."""
        return self.form.checkpoint

    @property
    def compensated(self) -> bool:
        """True if a part of the base is served that was frozen beside it in training, on the base it belongs to."""
        return isinstance(self.adapter, Train) and self.adapter.train.compensate > 0 and self.adapter.base == self.base

    @property
    def made(self) -> bool:
        """True if what is served lies in its own artifact: a checkpoint, or an adapter that is not as it was trained."""
        return self.form.checkpoint or bool(self.form.knobs) or self.compensated

    @property
    def inputs(self) -> tuple[Step, ...]:
        made: tuple[Step, ...] = (self.adapter,) if isinstance(self.adapter, Train) else ()
        own = self.adapter.own_base
        if self.form.both_bases and own is not None and own != self.base:
            made = (*made, *_stored(own))
        return (*made, *_stored(self.base)) if self.form.needs_base else made

    @property
    def label(self) -> str:
        return f"{self.adapter.label}-to-{self.base.bits}bit-{self.form.name}"


class EvaluationKnobs(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Options of an evaluation, in steps and in study files."""

    split: Literal["train", "validation", "test"] = "test"
    """Split whose rows are scored."""
    limit: int | None = Field(default=None, ge=1)
    """Score this many rows, drawn by `limit_seed`; none: all."""
    limit_seed: Seed = 0
    """Seed of that draw."""
    generate: bool = True
    """False measures the answer loss alone, where accuracy is at the floor or too dear."""
    num_fewshot: int = Field(default=0, ge=0)
    """Solved rows of the train split before every question, the same ones for all."""
    fewshot_seed: Seed | None = None
    """Draws the examples; none takes the first of the train split."""
    engine: ServingEngine = "hf"
    """Writer of the answers: the transformers model in this process, or vLLM."""


class Evaluate(Step, EvaluationKnobs, frozen=True):
    """The score of a base, alone or with an adapter, on one split of a task.

    `VERSION` is raised too when a task gets a metric or results hold more: results are made anew, and bases and adapters, whose
    identity has the task's version in it, are kept. 2: SQL is executed, every result has the protocol of its run. What the pass of
    the answer loss measures beside it came without a new version: a result of before has less, and nothing else.
    """

    VERSION = 2
    LATER = frozenset({"dtype"})
    kind: Literal["result"] = "result"
    target: Annotated[Source | Quantize | GivenBase | Restore, Field(discriminator="kind")]
    task: TaskSpec
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens; cut answers are counted. None in a study: what the task says."""
    dtype: Precision | None = None
    """Type of the computation; every plan names it. None: as made before it was named, in whatever dtype that was."""

    @model_validator(mode="after")
    def _shots(self) -> Evaluate:
        if self.num_fewshot and self.split == "train":
            raise ValueError("few-shot examples come from the train split: score validation or test with them")
        if self.fewshot_seed is not None and not self.num_fewshot:
            raise ValueError("fewshot_seed draws examples, and num_fewshot is 0: give num_fewshot too")
        if self.engine != "hf" and not self.generate:
            raise ValueError(
                f"engine {self.engine} writes answers, and generate is false: use engine hf for the loss alone"
            )
        return self

    @property
    def base(self) -> Source | Quantize | GivenBase:
        return self.target.base if isinstance(self.target, Restore) else self.target

    @property
    def inputs(self) -> tuple[Step, ...]:
        if isinstance(self.target, Restore):
            return (self.target,) if self.target.made else self.target.inputs
        return _stored(self.target)

    @property
    def label(self) -> str:
        return f"{self.target.label}-{self.task.name}"


_Every = Source | Quantize | GivenBase | Train | GivenAdapter | Restore | Evaluate
AnyStep = Annotated[_Every, Field(discriminator="kind")]
_ANY = TypeAdapter[_Every](AnyStep)


def step_from_json(value: Any) -> _Every:
    """Return the step that `step.model_dump(mode="json")` describes."""
    return _ANY.validate_python(value)


def _stored(base: Source | Quantize | GivenBase) -> tuple[Step, ...]:
    return (base,) if isinstance(base, Quantize) else ()
