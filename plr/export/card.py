"""Model cards: what an artifact is, its scores with their intervals, and the commands that make it again.

A card is Markdown with the metadata of the Hub in front (`huggingface_hub.ModelCard` reads it). Scores are those of the store: of
the artifact itself, and beside it the grid of the same adapter on other bases. `eval_results` gives the scores of data sets of the
Hub in the form of `.eval_results/*.yaml`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plr import stats
from plr.bases.named import name_of, public_name
from plr.core.modes import plain_modes
from plr.core.specs import Evaluate, GivenAdapter, GivenBase, ModelRef, Quantize, Restore, Source, Train, bits_word
from plr.core.store import Artifact, Store
from plr.errors import PlrError
from plr.export.work import ExportFormat
from plr.report.costs import Z95
from plr.scoring.metric import PERCENT, Metric
from plr.tasks import task_of

__all__ = ["MADE", "CardScore", "Carded", "card_text", "eval_results", "scores_of"]

MADE = "Made with plr."
"""The words by which a card of plr is known."""
Carded = Source | Quantize | GivenBase | Restore


@dataclass(frozen=True)
class CardScore:
    """One metric of a result in the store."""

    step: Evaluate
    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    n: int
    primary: bool
    date: str

    @property
    def place(self) -> str:
        """Place (k, l) and mode of what was scored."""
        target = self.step.target
        if not isinstance(target, Restore):
            return f"{target.bits}, no adapter"
        mode = "" if target.mode in plain_modes() and not target.merge else f", {target.form.name}"
        return f"{bits_word(target.adapter.trained_bits)} → {target.base.bits}{mode}"

    @property
    def interval(self) -> str:
        if self.low is None:
            return "-"
        return f"{self.metric.show(self.low)} to {self.metric.show(self.high)}"


def card_text(target: Carded, store: Store, row: ExportFormat | None = None) -> str:
    """Write the card of `target`, exported in a format or as it lies in the store."""
    from huggingface_hub import ModelCard, ModelCardData

    own, others = _scores(target, store)
    name, _ = public_name(target.base if isinstance(target, Restore) else target)
    base = target.base if isinstance(target, Restore) else target
    ref = base.checkpoint if isinstance(base, GivenBase) else base.model
    task = target.adapter.task if isinstance(target, Restore) else None
    relation = row.relation if row is not None else _relation(target)
    data = ModelCardData(
        base_model=name if ref.kind == "hub" else None,
        library_name=row.library if row is not None else ("peft" if relation == "adapter" else "transformers"),
        license=_license(ref),
        datasets=[hub.id]
        if task is not None and task.path is None and (hub := task_of(task).hub) is not None
        else None,
        tags=_tags(target, row),
        model_name=target.label,
        pipeline_tag="text-generation" if task is None or task_of(task).kind == "generation" else "text-classification",
        eval_results=_index(own) or None,
        base_model_relation=relation if ref.kind == "hub" and relation else None,
    )
    lines = [f"# {target.label}", "", _lead(target), ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in _facts(target)), ""]
    if row is not None:
        lines += [
            "## Use",
            "",
            f"```{'bash' if ' ' in row.opens.partition('(')[0] else 'python'}",
            _usage(row, name),
            "```",
            "",
        ]
    if own or others:
        lines += ["## Scores", "", *_table([*own, *others]), ""]
        lines += [
            "k → l: trained on k bits, served on l. 95 % intervals: Wilson's for shares of right answers, normal for other means. "
            "Another machine shows other digits.",
            "",
        ]
    lines += ["## How it was made", "", "```bash", *_commands(target, store), "```", ""]
    lines += [f"{MADE} Fingerprint: `{target.fingerprint}`.", ""]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def scores_of(target: Carded, store: Store) -> list[CardScore]:
    """List the scores in the store of `target` itself, the newest of equal ones."""
    return _scores(target, store)[0]


def eval_results(scores: Iterable[CardScore]) -> tuple[dict[str, str], list[str]]:
    """Write `.eval_results/NAME.yaml` for scores of data sets of the Hub; return name -> text, and in words what was left out.

    Only the primary metric of a whole published split counts there: rows of one's own and parts of a split are left out.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, str] = {}
    left: list[str] = []
    for score in scores:
        task = score.step.task
        hub = task_of(task).hub
        if not score.primary or score.value is None:
            continue
        if hub is None or task.path is not None:
            left.append(f"{task.name}: the rows are not those of a data set on the Hub")
            continue
        if score.step.limit is not None:
            left.append(f"{task.name}: {score.n} rows, and not the whole split")
            continue
        value = round(score.metric.scale * score.value, 6)
        notes = f"{score.metric.name}, n = {score.n}, 95 % interval {score.interval}, k → l: {score.place}, measured with plr"
        entry = EvalResultEntry(
            dataset_id=hub.id,
            task_id=hub.config or "default",
            value=value,
            dataset_revision=task.revision,
            date=score.date[:10],
            notes=notes,
        )
        files[f"{_slug(task.name)}.yaml"] = yaml.safe_dump(
            eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True
        )
    return files, left


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "result"


def _scores(target: Carded, store: Store) -> tuple[list[CardScore], list[CardScore]]:
    """Find the scores of `target`, and the primary ones of the same adapter elsewhere (of a base: with no adapter)."""
    own: dict[tuple[str, str], CardScore] = {}
    others: dict[tuple[str, str], CardScore] = {}
    for artifact in store.all("result"):
        try:
            step = store.identify(artifact)
        except PlrError:
            continue  # of another version of plr: `plr verify` names it
        if not isinstance(step, Evaluate):
            continue
        if step.target == target:
            own |= {(step.task.name, score.metric.name): score for score in _of(step, artifact)}
        elif isinstance(target, Restore) and isinstance(step.target, Restore) and step.target.adapter == target.adapter:
            primary = [score for score in _of(step, artifact) if score.primary]
            for score in primary:
                others[step.task.name, step.target.fingerprint] = score
    ordered = sorted(others.values(), key=lambda score: (score.step.task.name, -score.step.base.bits, score.place))
    return list(own.values()), ordered


def _of(step: Evaluate, artifact: Artifact) -> list[CardScore]:
    date = str(artifact.manifest.get("provenance", {}).get("date", ""))
    found = []
    for name, record in artifact.metrics["metrics"].items():
        metric, value, n = Metric.recorded(name, record), record["value"], record["n"]
        value = value if value is not None and math.isfinite(value) else None
        low, high = (None, None) if value is None else _interval(metric, value, record.get("stderr"), n)
        found.append(CardScore(step, metric, value, low, high, n, name == artifact.metrics["primary"], date))
    return found


def _interval(metric: Metric, value: float, stderr: float | None, n: int) -> tuple[float | None, float | None]:
    if metric.proportion and n:
        return stats.wilson(min(float(n), max(0.0, value * n)), n)
    return (None, None) if stderr is None else (value - Z95 * stderr, value + Z95 * stderr)


def _index(scores: Sequence[CardScore]) -> list[Any]:
    """Build the entries of `model-index`."""
    from huggingface_hub import EvalResult

    found = []
    for score in scores:
        if score.value is None:
            continue
        task = score.step.task
        hub = task_of(task).hub if task.path is None else None
        arguments: dict[str, Any] = {"n": score.n, "split": score.step.split}
        if score.low is not None:
            arguments["interval_95"] = [round(score.metric.scale * end, 4) for end in (score.low, score.high or 0.0)]
        found.append(
            EvalResult(
                task_type="text-generation" if task_of(task).kind == "generation" else "text-classification",
                dataset_type=hub.id if hub is not None else task.name,
                dataset_name=task.name,
                dataset_config=None if hub is None else hub.config,
                dataset_split=score.step.split,
                dataset_revision=task.revision,
                metric_type=score.metric.name,
                metric_name=score.metric.name + (", in percent" if score.metric.unit == PERCENT else ""),
                metric_value=round(score.metric.scale * score.value, 4),
                dataset_args=arguments,
            )
        )
    return found


def _table(scores: Sequence[CardScore]) -> list[str]:
    rows = []
    for score in scores:
        values = (
            score.step.task.name,
            score.place,
            score.metric.name,
            score.metric.show(score.value),
            score.interval,
            score.n,
        )
        rows.append("| " + " | ".join(_cell(str(value)) for value in values) + " |")
    return ["| task | k → l | metric | value | 95 % interval | n |", "|---|---|---|---:|---|---:|", *rows]


def _relation(target: Carded) -> str:
    if isinstance(target, Restore):
        return {"adapter": "adapter", "dense": "finetune", "quantized": "quantized"}[target.form.writes]
    return "quantized" if not isinstance(target, Source) else ""


def _tags(target: Carded, row: ExportFormat | None) -> list[str]:
    tags = ["plr"]
    if isinstance(target, Restore):
        tags += [target.adapter.adapter.method, target.form.name]
    base = target.base if isinstance(target, Restore) else target
    if isinstance(base, Quantize):
        tags += [base.quantization.method, f"{base.bits}-bit"]
    if row is not None:
        tags.append(row.name)
    return list(dict.fromkeys(tags))


def _lead(target: Carded) -> str:
    base = target.base if isinstance(target, Restore) else target
    served = _base_words(base)
    if not isinstance(target, Restore):
        return f"{served[:1].upper()}{served[1:]}."
    method, k = target.adapter.adapter.method, bits_word(target.adapter.trained_bits)
    on = "a base that is not known" if k == "?" else _base_words(target.adapter.base)
    task = target.adapter.task
    trained = f"A {method} adapter" + (f" for `{task.name}`" if task is not None else "") + f", trained on {on}"
    forms = {
        "adapter": f"served on {served}" if target.base != target.adapter.own_base else "served there",
        "dense": f"merged into {served}",
        "quantized": f"merged into the source, and quantized to {target.base.bits} bits",
    }
    return f"{trained}, {forms[target.form.writes]}: {target.form.serves}."


def _base_words(base: Source | Quantize | GivenBase) -> str:
    if isinstance(base, Source):
        return f"`{_title(base.model)}` in 16 bits"
    if isinstance(base, GivenBase):
        return f"the {base.bits}-bit checkpoint `{_title(base.checkpoint)}` ({base.method})"
    return f"`{_title(base.model)}` quantized to {base.bits} bits ({base.quantization.method})"


def _title(model: ModelRef) -> str:
    return model.title


def _facts(target: Carded) -> list[tuple[str, str]]:
    base = target.base if isinstance(target, Restore) else target
    name, revision = name_of(base.checkpoint if isinstance(base, GivenBase) else base.model)
    facts = [
        ("source model", f"`{name}`" + (f" at `{revision}`" if revision else f", sha256 `{base.model.revision[:16]}`"))
    ]
    if isinstance(target, Restore):
        facts += [
            ("trained on k", f"{bits_word(target.adapter.trained_bits)} bits"),
            ("served on l", f"{base.bits} bits"),
            ("mode", f"{target.form.name}: {target.form.serves}"),
            ("adapter", target.adapter.adapter.method),
        ]
        config = target.adapter.adapter.config
        shown = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "lora_dropout")
        facts += [(key, _plain(config[key])) for key in shown if config.get(key) not in (None, False, [], {})]
        if isinstance(target.adapter, Train):
            train = target.adapter.train
            recipe = (
                f"rate {train.learning_rate:g}, {train.epochs:g} epochs, batch {train.batch_size}, seed {train.seed}"
            )
            facts.append(("training", recipe))
    if isinstance(base, Quantize):
        knobs = base.quantization
        facts.append(
            ("quantization", f"{knobs.method}, {knobs.bits} bits, group size {knobs.group_size}, sym {knobs.sym}")
        )
        if (calibration := knobs.calibration) is not None:
            rows = calibration.task.name if calibration.task else Path(calibration.path or "a file").name
            facts.append(("calibration", f"{calibration.samples} samples of {rows}, seed {calibration.seed}"))
    return facts


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _usage(row: ExportFormat, base: str) -> str:
    return row.opens.replace("BASE", repr(base)).replace("FOLDER", ".")


def _commands(target: Carded, store: Store) -> list[str]:
    """Collect the commands on record that made the artifact and what it stands on."""
    steps: list[Any] = [target]
    if isinstance(target, Restore):
        steps = [target.adapter.base, target.base, target.adapter, target]
    found: list[str] = []
    for step in steps:
        if isinstance(step, Source | GivenBase | GivenAdapter):
            continue
        try:
            artifact = store.get(step)
        except PlrError:
            artifact = None
        command = None if artifact is None else artifact.manifest.get("provenance", {}).get("command")
        if isinstance(command, list) and command:
            words = ["plr" if command[0] == "__main__.py" else str(command[0]), *map(str, command[1:])]
            found.append(f"{shlex.join(words)}  # {step.kind}")
    return list(dict.fromkeys(found)) or ["# nothing of it is in the store"]


def _license(ref: ModelRef) -> str | None:
    """Read the licence from the card of the source model, where that is on this machine."""
    from plr.bases.resolve import model_path

    try:
        folder = model_path(ref, offline=True)
    except PlrError:
        return None
    card = (folder if folder.is_dir() else folder.parent) / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    match = re.search(r"(?m)^license:\s*([A-Za-z0-9.+-]+)\s*$", head)
    return match[1] if match else None
