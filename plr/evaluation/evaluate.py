"""Carry out Evaluate steps: one base in memory, the adapters of all its cells swapped over it.

A cell whose answer is written is scored twice over: greedy generation (accuracy and whether the answer ended) and the
teacher-forced loss of the gold answer, which still moves where accuracy is at its floor. A cell with a classification head is
scored by :mod:`plr.evaluation.heads`. Files are written in lm-eval's layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plr.bases.load import Loaded, load_base
from plr.core.fingerprint import canonical_json
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Restore
from plr.core.store import Store
from plr.errors import ModelError
from plr.evaluation.fewshot import Shots, shots_for, stops_for
from plr.evaluation.heads import head_for, head_record, score_head
from plr.evaluation.protocol import generation_settings, protocol
from plr.evaluation.records import ANSWER_LOSS, record, summary, write
from plr.evaluation.writers import Local, Served, ServingBase, Writer
from plr.gptq.blocks import replace_module
from plr.lm import AnswerLoss, Generation
from plr.lm.classify import Probe, probe
from plr.restoration.attach import attach, probe_texts
from plr.restoration.restore import served
from plr.scoring import Score
from plr.tasks import Example, HeadSpec, Response, Task, outcomes, task_of
from plr.tasks.data.rows import data_record, draw, guard_other, load_split

__all__ = ["BaseHolder", "evaluate"]


class BaseHolder:
    """The base that is in memory, and the adapter on it. Asking for another base lets the first one go."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: tuple[str, HeadSpec | None] | None = None
        self._loaded: Loaded | None = None
        self._probes: dict[str, Probe] = {}
        self.serving = ServingBase(store, runtime)

    def base(self, step: Evaluate) -> Loaded:
        """The base of ``step``, with the head that its task asks for."""
        head = head_for(step)
        self.serving.close()
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            self._key = self._loaded = None
            return _load_served(step, self.store, self.runtime, head)
        if self._key != (step.base.fingerprint, head) or self._loaded is None:
            self._loaded = None
            self._loaded = load_base(step.base, self.store, self.runtime, head=head)
            self._key, self._probes = (step.base.fingerprint, head), {}
        return self._loaded

    def writer(self, step: Evaluate) -> Served:
        """vLLM with the base of ``step``; the one in this process is let go."""
        self._key = self._loaded = None
        return self.serving.writer(step)

    def with_adapter(self, step: Restore, loaded: Loaded) -> tuple[Any, Callable[[], None], float]:
        """The base with the adapter of ``step`` on it, how to take it off again, and the largest change of a logit.

        Until it is off, the base is nobody else's: after a failure it may carry a part of an adapter, and is loaded anew.
        """
        from plr.adapters import adapters

        task = step.adapter.task.identity()
        key = canonical_json(task)
        if key not in self._probes:
            self._probes[key] = probe(loaded.model, loaded.tokenizer, probe_texts(step))
        folder = self.store.require(step.adapter).path
        modules: dict[str, Any] = dict(loaded.model.named_modules())
        clean, self._key = self._key, None
        model, change = attach(loaded, step, folder, "cell", self._probes[key])

        def detach() -> None:
            loaded.model = adapters.get(step.adapter.adapter.method).unload(model, "cell")
            # A head that came with the adapter must go too: every module is again the one it was, parents first.
            for name, module in modules.items():
                if name and loaded.model.get_submodule(name) is not module:
                    replace_module(loaded.model, name, module)
            self._key = clean

        return model, detach, change


def evaluate(
    step: Evaluate, folder: Path, holder: BaseHolder, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score one cell and write ``results_*.json`` and ``samples_*.jsonl`` to ``folder``.

    Returns the metrics of the manifest: value, standard error and n of each metric, and the settings of the run.

    Raises:
        LeakageError: the adapter was trained on another task, in whose rows some of these stand.
        UsageError: the adapter was trained for another kind of answer.
        ModelError: a loss that is no number.
    """
    start = time.perf_counter()
    head_for(step)  # refuses an adapter that was trained for another kind of answer
    task, shots = task_of(step.task), shots_for(step)
    rows = draw(load_split(step.task, step.split).examples, step.limit, step.limit_seed)
    if isinstance(step.target, Restore):
        guard_other(step.target.adapter.task, step.task, rows)
    if step.engine == "vllm":
        writer = holder.writer(step)
        found = _Scored.written(step, task, rows, shots, writer, on_progress)
        found = replace(found, change={"largest_logprob_change": writer.change})
    else:
        found = _scored_here(step, task, rows, shots, holder, on_progress)
    write(
        step,
        task,
        found.samples,
        found.metrics,
        folder,
        total=len(load_split(step.task, step.split).examples),
        settings=found.settings,
        protocol=found.more["protocol"],
        model=found.model,
        tokenizer=found.tokenizer,
        seconds=time.perf_counter() - start,
    )
    return {
        "task": step.task.name,
        "primary": task.primary if step.generate or task.kind == "classification" else ANSWER_LOSS,
        "metrics": found.metrics,
        "n": len(found.samples),
        "data": data_record(step.task, step.split),
        **found.more,
        **found.change,
        "train_bits": step.target.adapter.base.bits if isinstance(step.target, Restore) else step.base.bits,
        "restore_bits": step.base.bits,
        "dtype": found.more["protocol"]["engine"]["dtype"],
    }


@dataclass(frozen=True)
class _Scored:
    """The rows of a cell with their scores, and what goes into its files beside them."""

    samples: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    more: dict[str, Any]
    """Of the manifest: protocol, kinds of wrong answers, the head."""
    model: Any
    tokenizer: Any
    change: Mapping[str, float | None] = field(default_factory=dict)
    """What the adapter changes at most, under the name of what was measured; None without one."""

    @classmethod
    def written(
        cls,
        step: Evaluate,
        task: Task,
        rows: list[Example],
        shots: Shots,
        writer: Writer,
        on_progress: Callable[[int, int], None] | None,
    ) -> _Scored:
        """Of a task whose answer is written."""
        prompts = [shots.context + row.prompt for row in rows]
        total = len(rows) * (2 if step.generate else 1)
        # The losses first: they cost little, and what cannot be scored is found out before hours of answers.
        names = [row.id for row in rows]
        losses = writer.answer_loss([(prompt, row.target) for prompt, row in zip(prompts, rows, strict=True)], names)
        for row, loss in zip(rows, losses, strict=True):
            if not math.isfinite(loss.nll):
                raise ModelError(
                    f"the loss of row {row.id} is {loss.nll}",
                    expected="finite logits",
                    hint="compute in float32, or check the base: plr eval the unadapted base first",
                )
        if on_progress:
            on_progress(len(rows), total)
        generations: list[Generation] | list[None] = [None] * len(rows)
        if step.generate:
            generations = writer.generate(
                prompts,
                max_new_tokens=step.max_new_tokens,
                stop=stops_for(step),
                names=names,
                on_progress=(lambda done, _: on_progress(len(rows) + done, total)) if on_progress else None,
            )
        samples = _records(step, task, rows, prompts, generations, losses)
        settings: dict[str, Any] = {"output_type": "generate_until" if step.generate else "loglikelihood"}
        settings |= {"generation_kwargs": generation_settings(step)} if step.generate else {}
        kinds = outcomes(task, [sample["explanations"] for sample in samples])
        more: dict[str, Any] = {"protocol": protocol(step, prompts, shots, generations, **writer.facts)}
        more |= {"outcomes": kinds} if kinds else {}
        return cls(samples, summary(samples), settings, more, writer.model, writer.tokenizer)

    @classmethod
    def judged(
        cls,
        step: Evaluate,
        rows: list[Example],
        model: Any,
        loaded: Loaded,
        on_progress: Callable[[int, int], None] | None,
    ) -> _Scored:
        """Of a task that a classification head answers."""
        samples, metrics = score_head(step, rows, model, loaded, on_progress)
        more = head_record(step, rows, loaded)
        texts = ["\x1f".join(sample["arguments"]["gen_args_0"].values()) for sample in samples]
        more |= {"protocol": protocol(step, texts, head=True, dtype=str(model.dtype).removeprefix("torch."))}
        settings = {"output_type": "classification", "doc_to_choice": more["head"]["labels"]}
        return cls(samples, metrics, settings, more, model, loaded.tokenizer)


def _scored_here(
    step: Evaluate,
    task: Task,
    rows: list[Example],
    shots: Shots,
    holder: BaseHolder,
    on_progress: Callable[[int, int], None] | None,
) -> _Scored:
    """With the model in this process, and the adapter swapped over it for the while."""
    loaded = holder.base(step)
    change: float | None = None
    detach: Callable[[], None] | None = None
    model: Any = loaded.model
    if isinstance(step.target, Restore) and not step.target.is_checkpoint:
        model, detach, change = holder.with_adapter(step.target, loaded)
    try:
        if head_for(step) is not None:
            found = _Scored.judged(step, rows, model, loaded, on_progress)
        else:
            writer = Local(model, loaded.tokenizer, holder.runtime.slots)
            found = _Scored.written(step, task, rows, shots, writer, on_progress)
    finally:
        if detach is not None:
            detach()
    return replace(found, change={"largest_logit_change": change})


def _load_served(step: Evaluate, store: Store, runtime: Runtime, head: HeadSpec | None) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from plr.bases.load import load_tokenizer, open_quantized, runtime_dtype

    path, dtype, device = served(step, store), runtime_dtype(runtime), runtime.torch_device()
    assert isinstance(step.target, Restore)
    model: Any
    if step.target.mode == "requantize":
        model = open_quantized(path, runtime)
    else:
        auto = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
        model = auto.from_pretrained(path, dtype=dtype)
        model.to(device)
    return Loaded(model.eval(), load_tokenizer(step.base.model, offline=runtime.offline), head)


def _records(
    step: Evaluate,
    task: Task,
    rows: Sequence[Example],
    prompts: Sequence[str],
    generations: Sequence[Generation | None],
    losses: Sequence[AnswerLoss],
) -> list[dict[str, Any]]:
    """One record a row, in row order; all answers are scored in one go."""
    written = [(row, made) for row, made in zip(rows, generations, strict=True) if made is not None]
    responses = [Response(text=made.text, ended=made.ended) for _, made in written]
    scored = iter(task.score_all([row for row, _ in written], responses))
    found: list[dict[str, Any]] = []
    for row, prompt, made, loss in zip(rows, prompts, generations, losses, strict=True):
        scores: dict[str, Score] = {} if made is None else next(scored)
        text = made.text if made else None
        explanations = {name: score.explanation for name, score in scores.items()}
        if made is not None and made.stopped is not None and "ended" in explanations:
            explanations["ended"] = f"ran into {made.stopped!r}"  # the scorer reads the text before it
        found.append(
            record(
                row,
                arguments=[prompt, generation_settings(step) if step.generate else row.target],
                response=text,
                answer=text,
                scores={name: score.value for name, score in scores.items()},
                loss=loss.mean,
                tokens=made.raw_tokens if made else None,
                stopped=made.stopped if made else None,
                answers={name: score.answer for name, score in scores.items()},
                explanations=explanations,
                answer_nll=loss.nll,
                answer_tokens=loss.tokens,
            )
        )
    return found
