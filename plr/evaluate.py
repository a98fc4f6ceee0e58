"""Carry out Evaluate steps: one base in memory, the adapters of all its cells swapped over it.

Each cell is scored twice over: greedy generation (accuracy and whether the answer ended) and the teacher-forced loss of the gold
answer, which still moves where accuracy is at its floor. Files are written in lm-eval's layout.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plr.bases import Loaded, load_base
from plr.data import draw, load_split
from plr.fingerprint import canonical_json
from plr.lm import AnswerLoss, Generation, answer_loss, generate, logits_probe
from plr.provenance import provenance
from plr.restore import attach, probe_texts, served
from plr.runtime import Runtime
from plr.scoring import Score
from plr.specs import Evaluate, Restore
from plr.store import Store
from plr.tasks import Example, Response, Task, tasks

__all__ = ["BaseHolder", "evaluate"]

ANSWER_LOSS = "answer_loss"


class BaseHolder:
    """The base that is in memory, and the adapter on it. Asking for another base lets the first one go."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: str | None = None
        self._loaded: Loaded | None = None
        self._probes: dict[str, Any] = {}

    def base(self, step: Evaluate) -> Loaded:
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            self._key = None
            return _load_served(step, self.store, self.runtime)
        if self._key != step.base.fingerprint or self._loaded is None:
            self._loaded = None
            self._loaded = load_base(step.base, self.store, self.runtime)
            self._key, self._probes = step.base.fingerprint, {}
        return self._loaded

    def with_adapter(self, step: Restore, loaded: Loaded) -> tuple[Any, Callable[[], None], float]:
        """The base with the adapter of ``step`` on it, how to take it off again, and the largest change of a logit."""
        from plr.adapters import adapters

        task = step.adapter.task.identity()
        key = canonical_json(task)
        if key not in self._probes:
            self._probes[key] = logits_probe(loaded.model, loaded.tokenizer, probe_texts(step))
        folder = self.store.require(step.adapter).path
        model, change = attach(loaded, step, folder, "cell", self._probes[key])

        def detach() -> None:
            loaded.model = adapters.get(step.adapter.adapter.method).unload(model, "cell")

        return model, detach, change


def evaluate(
    step: Evaluate, folder: Path, holder: BaseHolder, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score one cell and write ``results_*.json`` and ``samples_*.jsonl`` to ``folder``.

    Returns the metrics of the manifest: value, standard error and n of each metric, and the settings of the run.
    """
    task = tasks.get(step.task.name)
    rows = draw(load_split(step.task, step.split).examples, step.limit, step.limit_seed)
    loaded = holder.base(step)
    change: float | None = None
    detach: Callable[[], None] | None = None
    model: Any = loaded.model
    if isinstance(step.target, Restore) and not step.target.is_checkpoint:
        model, detach, change = holder.with_adapter(step.target, loaded)
    try:
        samples = list(_score(step, task, rows, model, loaded, holder.runtime, on_progress))
    finally:
        if detach is not None:
            detach()
    summary = _summary(samples)
    _write(step, task, samples, summary, folder, total=len(load_split(step.task, step.split).examples))
    return {
        "task": step.task.name,
        "primary": task.primary if step.generate else ANSWER_LOSS,
        "metrics": summary,
        "n": len(samples),
        "largest_logit_change": change,
        "train_bits": step.target.adapter.base.bits if isinstance(step.target, Restore) else step.base.bits,
        "restore_bits": step.base.bits,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }


def _load_served(step: Evaluate, store: Store, runtime: Runtime) -> Loaded:
    from transformers import AutoModelForCausalLM

    from plr.bases import load_quantized, load_tokenizer, runtime_dtype

    path, dtype, device = served(step, store), runtime_dtype(runtime), runtime.torch_device()
    assert isinstance(step.target, Restore)
    model: Any
    if step.target.mode == "requantize":
        kernel = runtime.kernel_name(path, itemsize=dtype.itemsize)
        model = load_quantized(path, dtype=dtype, device=device, kernel=kernel)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.to(device)
    return Loaded(model.eval(), load_tokenizer(step.base.model, offline=runtime.offline))


def _score(
    step: Evaluate,
    task: Task,
    rows: list[Example],
    model: Any,
    loaded: Loaded,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[dict[str, Any]]:
    """One record a row, in row order."""
    total = len(rows) * (2 if step.generate else 1)
    generations: list[Generation] | list[None] = [None] * len(rows)
    if step.generate:
        generations = generate(
            model,
            loaded.tokenizer,
            [row.prompt for row in rows],
            max_new_tokens=step.max_new_tokens,
            stop=task.stop,
            slots=runtime.slots,
            on_progress=(lambda done, _: on_progress(done, total)) if on_progress else None,
        )
    losses = answer_loss(model, loaded.tokenizer, [(row.prompt, row.target) for row in rows])
    if on_progress:
        on_progress(total, total)
    for row, generation, loss in zip(rows, generations, losses, strict=True):
        yield _record(step, task, row, generation, loss)


def _record(
    step: Evaluate, task: Task, row: Example, generation: Generation | None, loss: AnswerLoss
) -> dict[str, Any]:
    scores: dict[str, Score] = {}
    if generation is not None:
        scores = task.score(row, Response(text=generation.text, ended=generation.ended))
    text = generation.text if generation else None
    doc = dict(row.row)
    return {
        "doc_id": int(row.id.rsplit("-", 1)[1]),
        "doc": doc,
        "target": row.target,
        "arguments": {"gen_args_0": {"arg_0": row.prompt, "arg_1": _generation_settings(step, task)}},
        "resps": [[text]],
        "filtered_resps": [text],
        "filter": "none",
        "metrics": [*scores, ANSWER_LOSS],
        "doc_hash": _sha(canonical_json(doc)),
        "prompt_hash": _sha(row.prompt),
        "target_hash": _sha(row.target),
        "tokens": generation.raw_tokens if generation else None,
        "answers": {name: score.answer for name, score in scores.items()},
        ANSWER_LOSS: loss.mean,
        "answer_nll": loss.nll,
        "answer_tokens": loss.tokens,
        **{name: score.value for name, score in scores.items()},
    }


def _generation_settings(step: Evaluate, task: Task) -> dict[str, Any]:
    return {"until": list(task.stop), "do_sample": False, "max_gen_toks": step.max_new_tokens}


def _summary(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard error of the mean and n over the scored samples of each metric."""
    summary: dict[str, dict[str, Any]] = {}
    for name in samples[0]["metrics"] if samples else []:
        values = [float(s[name]) for s in samples if s[name] is not None]
        n = len(values)
        mean = sum(values) / n if n else None
        stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if mean is not None and n > 1 else None
        summary[name] = {"value": mean, "stderr": stderr, "n": n, "unscored": len(samples) - n}
    return summary


def _write(
    step: Evaluate, task: Task, samples: list[dict[str, Any]], summary: dict[str, Any], folder: Path, total: int
) -> None:
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%f")
    results: dict[str, Any] = {"alias": task.name}
    for name, metric in summary.items():
        measure, _, filter_name = name.partition(",")
        results[f"{measure},{filter_name or 'none'}"] = metric["value"]
        results[f"{measure}_stderr,{filter_name or 'none'}"] = "N/A" if metric["stderr"] is None else metric["stderr"]
    made_by = provenance()
    document = {
        "results": {task.name: results},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "test_split": step.split,
                "output_type": "generate_until" if step.generate else "loglikelihood",
                "generation_kwargs": _generation_settings(step, task),
                "num_fewshot": 0,
                "metadata": {"version": task.version, "primary": task.primary},
            }
        },
        "versions": {task.name: task.version},
        "n-shot": {task.name: 0},
        "higher_is_better": {task.name: {name.partition(",")[0]: name != ANSWER_LOSS for name in summary}},
        "n-samples": {task.name: {"original": total, "effective": len(samples)}},
        "config": {
            "model": "plr",
            "model_args": step.target.label,
            "limit": step.limit,
            "step": step.model_dump(mode="json"),
        },
        "git_hash": (made_by["git"] or {}).get("commit"),
        "date": now.timestamp(),
        "task_hashes": {task.name: _sha("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))},
        "model_name": step.base.model.name,
        "versions_of_packages": made_by["versions"],
    }
    (folder / f"results_{stamp}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
    with (folder / f"samples_{task.name}_{stamp}.jsonl").open("w", encoding="utf-8") as stream:
        for sample in samples:
            stream.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
