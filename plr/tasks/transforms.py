r"""One task made into another: rows of prompt and target, rewritten for instruction tuning and its kin.

Each takes examples and gives `{"prompt", "target", "source"}` rows, `source` being the id of the row behind:

- `as_chat`: messages in the chat template of a tokenizer, one row for each of the assistant's turns; where a row is no chat,
  its prompt is what the user says and its target the answer;
- `with_templates`: FLAN (Wei et al. 2021): a task in several wordings, so that a model learns the task and not one phrase.
  Each row gets one wording, or (`every`) all of them;
- `in_context`: in-context tuning (Chen et al. 2021): `shots` solved rows of train before every row, drawn anew for each;
- `with_symbols`: symbol tuning (Wei et al. 2023): the same, and the labels replaced by symbols that mean nothing, drawn
  anew for each row; what a label means stands in the solved rows alone, and every label is among them.

The rows of a task with a head are worded first (`worded`): text, a line `Label:`, the name of the label, which a wording
calls `{label}`.

Draws go by sha256 of the seed and the row's id, so no row's draw depends on another's. A row is never an example for itself, nor
is one with the same prompt. Solved rows always come from train, also for rows of validation and test.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from jinja2 import TemplateError

from plr.errors import DataError, UsageError
from plr.tasks.data.splits import normalized
from plr.tasks.file.template import Template
from plr.tasks.library.instruct import messages_of
from plr.tasks.types import Example

__all__ = [
    "BETWEEN",
    "SYMBOLS",
    "ChatTokenizer",
    "as_chat",
    "in_context",
    "one_turn",
    "with_symbols",
    "with_templates",
    "worded",
]

MAX_LABELS = 20
BETWEEN = "\n\n"
"""Stands between solved rows, and before the row that is asked."""
SYMBOLS = tuple(f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdfgklmnprstvz")
"""980 syllables; which are words by chance means nothing for the label they stand for."""


class ChatTokenizer(Protocol):
    """The part of a tokenizer that writes chats in the template of its model."""

    name_or_path: str
    eos_token: str | None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool = False
    ) -> str:
        """Write a chat as text."""
        ...


def worded(rows: Sequence[Example]) -> list[Example]:
    """Turn rows whose answer a head would choose into rows whose answer is written; their `label` is its name."""
    return [
        replace(one, row={**one.row, "label": one.target}, prompt=f"{one.prompt}\nLabel:", target=f" {one.target}")
        for one in rows
    ]


def one_turn(row: Example) -> list[dict[str, str]]:
    """Make a chat of a row that is none: the prompt, and the target in answer."""
    return [
        {"role": "user", "content": row.prompt.strip()},
        {"role": "assistant", "content": row.target.strip()},
    ]


def as_chat(
    rows: Sequence[Example],
    tokenizer: ChatTokenizer,
    messages: Callable[[Example], list[dict[str, str]]] = lambda row: messages_of(row.row),
) -> Iterator[dict[str, str]]:
    """Write prompts and targets in the tokenizer's chat template; EOS at the end is left out, as it follows every target.

    `messages` gives the chat of a row: by default that of the tasks `alpaca` and `chat`; of any other task `one_turn`.

    Raises:
        UsageError: the tokenizer has no chat template.
        DataError: a row that the template refuses; a template whose text with the answer does not begin with its text without.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template",
            expected="a model that was tuned to chat",
            hint="a base model takes the tasks alpaca and chat as they are, in plain text",
        )
    for row in rows:
        chat = messages(row)
        for place, one in enumerate(chat):
            if one["role"] != "assistant":
                continue
            try:
                asked = tokenizer.apply_chat_template(chat[:place], tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template(chat[: place + 1], tokenize=False)
            except (TemplateError, TypeError, ValueError, LookupError) as error:  # a template is a program of its own
                roles = ", ".join(one["role"] for one in chat[: place + 1])
                raise DataError(
                    f"row {row.id}: the chat template of {tokenizer.name_or_path} refuses the turns {roles}: {error}",
                    expected="turns that the template takes",
                    hint="mend the row, or write it with the task chat, in plain text",
                ) from error
            if not whole.startswith(asked):
                raise DataError(
                    f"row {row.id}: the chat template writes the question otherwise once it is answered",
                    expected="a template that only adds",
                    hint="write the rows with the task chat, in plain text",
                )
            answer = whole[len(asked) :].rstrip().removesuffix(tokenizer.eos_token or "").rstrip()
            yield {"prompt": asked, "target": answer, "source": row.id}


def with_templates(
    rows: Sequence[Example], templates: Sequence[tuple[str, str]], *, seed: int = 0, every: bool = False
) -> Iterator[dict[str, str]]:
    """Reword rows by `templates`, pairs of prompt and target over the fields of a row.

    Raises:
        UsageError: no templates, one that is not a template, or one that reads no field.
        DataError: a template names a field that a row has not.
    """
    try:
        parsed = [(Template.parse(prompt), Template.parse(target)) for prompt, target in templates]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not parsed:
        raise UsageError("there are no templates", expected="one at least: prompt and target")
    for texts, pair in zip(templates, parsed, strict=True):
        for text, template in zip(texts, pair, strict=True):
            if not template.fields:
                raise UsageError(
                    f"the template {text!r} reads no field of the row: all rows would have the same",
                    expected="fields in single braces, {question}; {{ and }} write braces",
                )
    for row in rows:
        chosen = parsed if every else [_random(seed, "template", row.id).choice(parsed)]
        for prompt, target in chosen:
            for name in (*prompt.fields, *target.fields):
                if row.row.get(name) is None:
                    fields = ", ".join(map(str, row.row))
                    raise DataError(f"row {row.id} has no field {name!r}; given are {fields}", hint="name one of these")
            yield {"prompt": prompt.fill(row.row), "target": target.fill(row.row), "source": row.id}


def in_context(
    rows: Sequence[Example], train: Sequence[Example], *, shots: int, seed: int = 0
) -> Iterator[dict[str, str]]:
    """Put every row behind `shots` solved rows of train.

    Raises:
        DataError: train has no `shots` other rows.
    """
    for row in rows:
        solved = _draw(train, row, shots, seed)
        yield {"prompt": _behind(solved, row.prompt), "target": row.target, "source": row.id}


def with_symbols(
    rows: Sequence[Example], train: Sequence[Example], *, shots: int, seed: int = 0
) -> Iterator[dict[str, str]]:
    """Put every row behind `shots` solved rows for each label, with labels as symbols. White space around a label stays.

    Raises:
        DataError: the targets are no labels (over 20 different ones, or one), a label that train has not, or too few rows.
    """
    by_label: dict[str, list[Example]] = {}
    for one in train:
        by_label.setdefault(one.target.strip(), []).append(one)
    if not 2 <= len(by_label) <= MAX_LABELS:
        raise DataError(
            f"train has {len(by_label)} different targets",
            expected=f"labels: 2 to {MAX_LABELS} different targets",
            hint="--as in-context keeps targets as they are",
        )
    labels = sorted(by_label)
    for row in rows:
        if row.target.strip() not in by_label:
            raise DataError(f"row {row.id} has the label {row.target.strip()!r}, which no row of train has")
        generator = _random(seed, "symbols", row.id)
        symbols = dict(zip(labels, generator.sample(SYMBOLS, len(labels)), strict=True))
        solved = [one for label in labels for one in _draw(by_label[label], row, shots, seed)]
        generator.shuffle(solved)
        told = [(one.prompt, _swapped(one.target, symbols)) for one in solved]
        text = BETWEEN.join([*(f"{prompt}{target}" for prompt, target in told), row.prompt])
        yield {"prompt": text, "target": _swapped(row.target, symbols), "source": row.id}


def _swapped(target: str, symbols: Mapping[str, str]) -> str:
    label = target.strip()
    before, _, after = target.partition(label)
    return f"{before}{symbols[label]}{after}"


def _behind(solved: Sequence[Example], prompt: str) -> str:
    return BETWEEN.join([*(f"{one.prompt}{one.target}" for one in solved), prompt])


def _draw(pool: Sequence[Example], row: Example, shots: int, seed: int) -> list[Example]:
    """Draw `shots` of `pool` that ask something else than `row`, in random order."""
    asked, drawn, seen = normalized(row.prompt), list[Example](), set[int]()
    generator = _random(seed, "shots", row.id)
    while len(drawn) < shots:
        if len(seen) == len(pool):
            raise DataError(
                f"there are {len(drawn)} other rows to stand before row {row.id}",
                expected=f"{shots}",
                hint="fewer --shots",
            )
        place = generator.randrange(len(pool))
        if place not in seen:
            seen.add(place)
            if normalized(pool[place].prompt) != asked:
                drawn.append(pool[place])
    return drawn


def _random(seed: int, purpose: str, row: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed}:{purpose}:{row}".encode()).digest())
