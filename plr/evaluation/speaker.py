"""A model that answers what it is asked: a source, a base, or an adapter on one, without a task around it.

Greedy answers come from the engine that evaluations use, so that the answer to a row is the one on record. With a temperature, or
to show words as they are written, transformers' own generation writes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from plr.bases.load import load_base
from plr.core.quiet import quiet_libraries
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, GivenBase, Quantize, Restore, Source
from plr.core.store import Store
from plr.errors import UsageError
from plr.evaluation.cell import OpenCell, open_cell
from plr.evaluation.samples import document_of
from plr.lm import generate
from plr.lm.stops import StopStrings
from plr.lm.tokens import encode_prompt, end_tokens
from plr.restoration.attach import attach
from plr.restoration.fit import fit
from plr.restoration.served import as_served, load_served, served_adapter
from plr.tasks import Example, Response

__all__ = ["Answer", "Asked", "Sampling", "Speaker", "ask_row", "speaker"]

Target = Source | Quantize | GivenBase | Restore


@dataclass(frozen=True)
class Sampling:
    """Choice of each token: the likeliest at temperature 0, else drawn with `seed` from the likeliest that make up `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}", expected="0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}", expected="more than 0, up to 1")


@dataclass(frozen=True)
class Answer:
    """One answer; `ended` where the model ended it, `stopped` by which text it was cut."""

    text: str
    tokens: int
    ended: bool
    stopped: str | None = None


@dataclass(frozen=True)
class Speaker:
    """A model in memory, ready to answer."""

    model: Any
    tokenizer: Any

    @property
    def has_template(self) -> bool:
        """True where the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """Write messages (role, content) in the model's own template.

        Raises:
            UsageError: it has none, or the template does not take these messages.
        """
        from jinja2.exceptions import TemplateError

        if not self.has_template:
            raise UsageError("the model has no chat template", expected="an instruction-tuned model", hint="add --raw")
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UsageError(
                f"the chat template of the model refuses the messages: {error}", hint="add --raw"
            ) from error

    def answer(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer one prompt; `on_text` gets the pieces as they are written.

        Raises:
            DataError, UsageError, ModelError, ResourceError: see `plr.lm.generate`.
        """
        if on_text is None and (sampling is None or sampling.temperature == 0):
            [found] = generate(self.model, self.tokenizer, [prompt], max_new_tokens=max_new_tokens, stop=stop)
            return Answer(found.text, found.raw_tokens, found.ended, found.stopped)
        return self._written(prompt, max_new_tokens, stop, sampling or Sampling(), on_text)

    def _written(
        self,
        prompt: str,
        max_new_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
    ) -> Answer:
        from transformers import TextStreamer

        ids = encode_prompt(self.tokenizer, prompt)
        device = next(self.model.parameters()).device
        inputs = torch.tensor([ids], device=device)
        settings: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": max_new_tokens}
        if sampling.temperature > 0:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        else:
            settings |= {"temperature": None, "top_p": None, "top_k": None}
        if stop:
            settings |= {"stop_strings": list(stop), "tokenizer": self.tokenizer}
        if on_text is not None:

            class Pieces(TextStreamer):
                def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                    on_text(text)

            settings["streamer"] = Pieces(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ends = end_tokens(self.model, self.tokenizer)
        with torch.random.fork_rng(), torch.no_grad():  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(sampling.seed)  # pyright: ignore[reportUnknownMemberType]
            made = self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(ends) or None,
                **settings,
            )
        out = made[0].tolist()
        out = out[len(ids) :] if out[: len(ids)] == ids else out
        ended = bool(out) and out[-1] in ends
        text = self.tokenizer.decode(
            out[:-1] if ended else out, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        stopped = None
        if hit := StopStrings(self.tokenizer, stop).find(text):
            text, stopped = hit
        return Answer(text, len(out), ended, stopped)


@contextmanager
def speaker(target: Target, store: Store, runtime: Runtime) -> Generator[Speaker]:
    """Load what is asked, its adapter on its base and proved to act.

    Raises:
        PlrError: a step that is not in the store.
        ProvenanceError, IntegrityError: see `plr.restoration.attach.attach`.
        UsageError: a model that gives labels, and writes nothing.
    """
    quiet_libraries()
    named, target = target, as_served(target, store) if isinstance(target, Restore) else target
    if isinstance(target, Restore) and target.is_checkpoint:
        loaded = load_served(target, store, runtime)
    else:
        loaded = load_base(target.base if isinstance(target, Restore) else target, store, runtime)
    model: Any = loaded.model
    if isinstance(target, Restore) and isinstance(named, Restore) and not target.is_checkpoint:
        folder = served_adapter(named, store, offline=runtime.offline)
        loaded = fit(loaded, target.adapter, folder)
        model = attach(loaded, target, folder, "speaker").model
    if not hasattr(model, "generate") or model.get_output_embeddings() is None:
        raise UsageError(
            f"{target.label} writes no text", expected="a causal language model", hint="score it with plr eval"
        )
    yield Speaker(model.eval(), loaded.tokenizer)


@dataclass(frozen=True)
class Asked:
    """A row of a task as evaluations ask it."""

    cell: OpenCell
    row: Example

    @property
    def prompt(self) -> str:
        return self.cell.shots.context + self.row.prompt

    @property
    def number(self) -> str:
        """Its id in results."""
        return document_of(self.row.id)

    def scores(self, answer: Answer) -> dict[str, tuple[float | None, str]]:
        """Score an answer as evaluations do: metric -> (score, reason)."""
        [found] = self.cell.task.score_all([self.row], [Response(text=answer.text, ended=answer.ended)])
        return {name: (score.value, score.explanation) for name, score in found.items()}


def ask_row(step: Evaluate, number: int | None) -> Asked:
    """Take row `number` of the split of `step`, by its id in results; the first if None.

    Raises:
        UsageError: no such row, or a task that is answered by a label.
        DataError: rows that cannot be read.
    """
    cell = open_cell(step.replaced(limit=None))
    if cell.head is not None:
        raise UsageError(f"{step.task.name} is answered by a label", expected="a task whose answer is written")
    rows = {int(document_of(row.id)): row for row in cell.rows}
    if number is not None and number not in rows:
        raise UsageError(
            f"{step.task.name} has no row {number} in {step.split}",
            expected=f"one of {len(rows)} rows, {min(rows)} to {max(rows)}",
        )
    return Asked(cell, rows[min(rows) if number is None else number])
