"""Forgetting: the perplexity of general text, and the scores of other tasks, before and after an adapter.

1. The text is cut into chunks of running text of about `CHUNK` characters, in the order of the file, until the tokens asked
   for are there.
2. The loss of every chunk is taken on the base alone, then with the adapter on it. The windows are the same, so the difference is
   paired.
3. Perplexity is exp of the loss over all tokens; the losses by chunk are returned too, for an interval of the difference.

Scores of other tasks before and after are Evaluate steps: they lie in the store like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from plr.bases.load import load_base
from plr.core.runtime import Runtime
from plr.core.specs import Restore
from plr.core.store import Artifact, Store
from plr.errors import UsageError
from plr.evaluation.records import ANSWER_LOSS
from plr.evaluation.samples import sample_scores
from plr.lm import perplexity
from plr.restoration.attach import attach
from plr.restoration.fit import fit
from plr.restoration.served import as_served, served_adapter
from plr.scoring.metric import Metric, metric_named
from plr.stats import paired_bootstrap
from plr.tasks.data.rows import head_of

__all__ = ["Change", "TextShift", "check_writes", "chunks", "task_changes", "text_shift"]

CHUNK = 1500
"""Characters; some 400 tokens, so that a chunk is one window."""
WINDOW = 512


@dataclass(frozen=True)
class Change:
    """One measure on the base alone (`before`) and with the adapter (`after`).

    `change` is the mean paired difference over `n` documents, or chunks of text, with its 95 % interval; that of a perplexity is
    one of the loss, in nats a token. None: no document was scored both times. `tokens`: how many of a text were read.
    """

    what: str
    metric: Metric
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    n: int
    tokens: int | None = None


@dataclass(frozen=True)
class TextShift:
    """The perplexity of a text before and after; `before` and `after` are the losses of its chunks in nats a token, in order."""

    perplexity_before: float
    perplexity_after: float
    tokens: int
    before: tuple[float, ...]
    after: tuple[float, ...]

    def change(self, what: str) -> Change:
        """Compare the losses chunk by chunk; `what` names the text."""
        interval = paired_bootstrap(self.before, self.after)
        values = (self.perplexity_before, self.perplexity_after, interval.value, interval.low, interval.high)
        return Change(what, metric_named("perplexity"), *values, n=len(self.before), tokens=self.tokens)


def text_shift(
    step: Restore,
    texts: Sequence[str],
    store: Store,
    runtime: Runtime,
    *,
    tokens: int = 8192,
    on_progress: Callable[[int, int], None] | None = None,
) -> TextShift:
    """Measure how the perplexity of `texts` changes when the adapter of `step` is put on its base.

    About `tokens` tokens are read, in whole chunks.

    Raises:
        UsageError: `step` serves a checkpoint and not an adapter beside its base, or `check_writes`.
        ProvenanceError, IntegrityError: as `plr.restoration.attach.attach`.
        DataError: no text of two tokens.
    """
    if step.is_checkpoint:
        raise UsageError(f"{step.label} is a merged checkpoint", expected="an adapter, and the base it stands beside")
    check_writes(step)
    folder = served_adapter(step, store, offline=runtime.offline)
    step = as_served(step, store)
    loaded = load_base(step.base, store, runtime)
    loaded = fit(loaded, step.adapter, folder)
    drawn: list[str] = []
    count = 0
    for chunk in chunks(texts):
        if count >= tokens:
            break
        length = len(loaded.tokenizer(chunk)["input_ids"])
        if length > 1:
            drawn.append(chunk)
            count += length
    passes, done = 2 * max(1, len(drawn)), 0

    def losses(model: nn.Module) -> list[tuple[float, int]]:
        nonlocal done
        measured: list[tuple[float, int]] = []
        for chunk in drawn or [""]:  # nothing to read is said by perplexity itself
            value, size = perplexity(model, loaded.tokenizer, [chunk], max_length=WINDOW)
            measured.append((math.log(value), size))
            done += 1
            if on_progress is not None:
                on_progress(done, passes)
        return measured

    before = losses(loaded.model)
    model = attach(loaded, step, folder, "forgetting").model
    after = losses(model)
    sizes = [size for _, size in before]

    def over_all(chunk_losses: list[tuple[float, int]]) -> float:
        return math.exp(sum(loss * size for loss, size in chunk_losses) / sum(sizes))

    return TextShift(
        over_all(before),
        over_all(after),
        sum(sizes),
        tuple(loss for loss, _ in before),
        tuple(loss for loss, _ in after),
    )


def task_changes(before: Artifact, after: Artifact) -> list[Change]:
    """Compare two results of one task document by document: its primary metric and the answer loss."""
    metrics = before.metrics["metrics"]
    names = [name for name in dict.fromkeys([before.metrics["primary"], ANSWER_LOSS]) if name in metrics]
    first, second = sample_scores(before.path, names), sample_scores(after.path, names)
    changes: list[Change] = []
    for name in names:
        documents = [(value, second[name].get(key)) for key, value in first[name].items()]
        pairs = [(a, b) for a, b in documents if a is not None and b is not None]
        interval = paired_bootstrap([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
        difference = (interval.value, interval.low, interval.high) if interval else (None, None, None)
        values = (metrics[name]["value"], after.metrics["metrics"][name]["value"])
        metric = Metric.recorded(name, metrics[name])
        changes.append(Change(before.metrics["task"], metric, *values, *difference, n=len(pairs)))
    return changes


def check_writes(step: Restore) -> None:
    """Refuse an adapter that was trained with a classification head.

    Raises:
        UsageError: the adapter was trained with one.
    """
    if step.adapter.task is not None and head_of(step.adapter.task) is not None:
        raise UsageError(
            f"{step.adapter.label} was trained with a classification head: it has no perplexity, and no other task's head",
            expected="an adapter of a task that writes its answer",
        )


def chunks(texts: Sequence[str], size: int = CHUNK) -> Iterator[str]:
    """Cut texts into chunks of about `size` characters.

    Short documents are joined and long ones cut; only blanks at the edges are lost.

    >>> list(chunks(["one", "two", "a longer one"], size=8))
    ['one\\n\\ntwo', 'a longer', 'one']
    """
    waiting = ""
    for text in texts:
        joined = f"{waiting}\n\n{text}" if waiting else text
        if len(joined) <= size:
            waiting = joined
            continue
        if waiting:
            yield waiting
        pieces = [piece for at in range(0, len(text), size) if (piece := text[at : at + size].strip())]
        yield from pieces[:-1]
        waiting = pieces[-1] if pieces else ""
    if waiting:
        yield waiting
