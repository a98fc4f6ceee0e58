"""Carry out Evaluate steps: one base in memory, the adapters of all its cells swapped over it.

A cell whose answer is written is scored twice over: greedy generation (accuracy and whether the answer ended) and the
teacher-forced loss of the gold answer, which still moves where accuracy is at its floor. A cell with a classification head is
scored by :mod:`plr.evaluate_heads`. Files are written in lm-eval's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plr.bases import Loaded, load_base
from plr.data import draw, guard_other, load_split
from plr.evaluate_heads import head_for, head_record, score_head
from plr.fewshot import Shots, shots_for, stops_for
from plr.fingerprint import canonical_json
from plr.gptq.blocks import replace_module
from plr.lm import AnswerLoss, Generation, answer_loss, generate
from plr.lm.classify import Probe, probe
from plr.protocol import generation_settings, protocol
from plr.records import ANSWER_LOSS, record, summary, write
from plr.restore import attach, probe_texts, served
from plr.runtime import Runtime
from plr.scoring import Score
from plr.specs import Evaluate, Restore
from plr.store import Store
from plr.tasks import Example, HeadSpec, Response, Task, outcomes, task_of

__all__ = ["BaseHolder", "evaluate", "records"]


class BaseHolder:
    """The base that is in memory, and the adapter on it. Asking for another base lets the first one go."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: tuple[str, HeadSpec | None] | None = None
        self._loaded: Loaded | None = None
        self._probes: dict[str, Probe] = {}

    def base(self, step: Evaluate) -> Loaded:
        """The base of ``step``, with the head that its task asks for."""
        head = head_for(step)
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            self._key = None
            return _load_served(step, self.store, self.runtime, head)
        if self._key != (step.base.fingerprint, head) or self._loaded is None:
            self._loaded = None
            self._loaded = load_base(step.base, self.store, self.runtime, head=head)
            self._key, self._probes = (step.base.fingerprint, head), {}
        return self._loaded

    def with_adapter(self, step: Restore, loaded: Loaded) -> tuple[Any, Callable[[], None], float]:
        """The base with the adapter of ``step`` on it, how to take it off again, and the largest change of a logit."""
        from plr.adapters import adapters

        task = step.adapter.task.identity()
        key = canonical_json(task)
        if key not in self._probes:
            self._probes[key] = probe(loaded.model, loaded.tokenizer, probe_texts(step))
        folder = self.store.require(step.adapter).path
        modules: dict[str, Any] = dict(loaded.model.named_modules())
        model, change = attach(loaded, step, folder, "cell", self._probes[key])

        def detach() -> None:
            loaded.model = adapters.get(step.adapter.adapter.method).unload(model, "cell")
            # A head that came with the adapter must go too: every module is again the one it was, parents first.
            for name, module in modules.items():
                if name and loaded.model.get_submodule(name) is not module:
                    replace_module(loaded.model, name, module)

        return model, detach, change


def evaluate(
    step: Evaluate, folder: Path, holder: BaseHolder, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score one cell and write ``results_*.json`` and ``samples_*.jsonl`` to ``folder``.

    Returns the metrics of the manifest: value, standard error and n of each metric, and the settings of the run.

    Raises:
        LeakageError: the adapter was trained on another task, in whose rows some of these stand.
    """
    task, shots = task_of(step.task), shots_for(step)
    rows = draw(load_split(step.task, step.split).examples, step.limit, step.limit_seed)
    if isinstance(step.target, Restore):
        guard_other(step.target.adapter.task, step.task, rows)
    loaded = holder.base(step)
    change: float | None = None
    detach: Callable[[], None] | None = None
    model: Any = loaded.model
    if isinstance(step.target, Restore) and not step.target.is_checkpoint:
        model, detach, change = holder.with_adapter(step.target, loaded)
    head = head_for(step)
    try:
        if head is None:
            samples, asked = _answers(step, task, rows, shots, model, loaded, holder.runtime, on_progress)
            metrics, more = summary(samples), {"protocol": asked}
            if kinds := outcomes(task, [sample["explanations"] for sample in samples]):
                more |= {"outcomes": kinds}
            settings = {"output_type": "generate_until" if step.generate else "loglikelihood"}
            settings |= {"generation_kwargs": generation_settings(step)} if step.generate else {}
        else:
            samples, metrics = score_head(step, rows, model, loaded, on_progress)
            more = head_record(step, rows, loaded)
            settings = {"output_type": "classification", "doc_to_choice": more["head"]["labels"]}
            judged = ["\x1f".join(sample["arguments"]["gen_args_0"].values()) for sample in samples]
            more |= {"protocol": protocol(step, judged, head=True, dtype=_dtype(model))}
    finally:
        if detach is not None:
            detach()
    total = len(load_split(step.task, step.split).examples)
    write(step, task, samples, metrics, folder, total=total, settings=settings, protocol=more.get("protocol"))
    return {
        "task": step.task.name,
        "primary": task.primary if step.generate or head is not None else ANSWER_LOSS,
        "metrics": metrics,
        "n": len(samples),
        **more,
        "largest_logit_change": change,
        "train_bits": step.target.adapter.base.bits if isinstance(step.target, Restore) else step.base.bits,
        "restore_bits": step.base.bits,
        "dtype": _dtype(loaded.model),
    }


def _load_served(step: Evaluate, store: Store, runtime: Runtime, head: HeadSpec | None) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from plr.bases import load_quantized, load_tokenizer, runtime_dtype

    path, dtype, device = served(step, store), runtime_dtype(runtime), runtime.torch_device()
    assert isinstance(step.target, Restore)
    model: Any
    if step.target.mode == "requantize":
        kernel = runtime.kernel_name(path, itemsize=dtype.itemsize)
        model = load_quantized(path, dtype=dtype, device=device, kernel=kernel)
    else:
        auto = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
        model = auto.from_pretrained(path, dtype=dtype)
        model.to(device)
    return Loaded(model.eval(), load_tokenizer(step.base.model, offline=runtime.offline), head)


def _answers(
    step: Evaluate,
    task: Task,
    rows: list[Example],
    shots: Shots,
    model: Any,
    loaded: Loaded,
    runtime: Runtime,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One record a row, in row order, and the protocol of the run."""
    prompts = [shots.context + row.prompt for row in rows]
    total = len(rows) * (2 if step.generate else 1)
    generations: list[Generation] | list[None] = [None] * len(rows)
    if step.generate:
        generations = generate(
            model,
            loaded.tokenizer,
            prompts,
            max_new_tokens=step.max_new_tokens,
            stop=stops_for(step),
            slots=runtime.slots,
            on_progress=(lambda done, _: on_progress(done, total)) if on_progress else None,
        )
    pairs = [(prompt, row.target) for prompt, row in zip(prompts, rows, strict=True)]
    losses = answer_loss(model, loaded.tokenizer, pairs)
    if on_progress:
        on_progress(total, total)
    asked = protocol(step, prompts, shots, generations, dtype=_dtype(model))
    return records(step, task, rows, prompts, generations, losses), asked


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def records(
    step: Evaluate,
    task: Task,
    rows: Sequence[Example],
    prompts: Sequence[str],
    generations: Sequence[Generation | None],
    losses: Sequence[AnswerLoss | None],
) -> list[dict[str, Any]]:
    """One record a row, in row order; all answers are scored in one go."""
    written = [(row, made) for row, made in zip(rows, generations, strict=True) if made is not None]
    responses = [Response(text=made.text, ended=made.ended) for _, made in written]
    scored = iter(task.score_all([row for row, _ in written], responses))
    found: list[dict[str, Any]] = []
    for row, prompt, made, loss in zip(rows, prompts, generations, losses, strict=True):
        scores: dict[str, Score] = {} if made is None else next(scored)
        text = made.text if made else None
        more = {} if loss is None else {"answer_nll": loss.nll, "answer_tokens": loss.tokens}
        found.append(
            record(
                row,
                arguments=[prompt, generation_settings(step)],
                response=text,
                answer=text,
                scores={name: score.value for name, score in scores.items()},
                loss=None if loss is None else loss.mean,
                tokens=made.raw_tokens if made else None,
                stopped=made.stopped if made else None,
                answers={name: score.answer for name, score in scores.items()},
                explanations={name: score.explanation for name, score in scores.items()},
                **more,
            )
        )
    return found
