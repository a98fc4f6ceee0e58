r"""The arithmetic suite of LLM-Adapters (Hu et al. 2023): trained on Math10K, scored on seven sets of word problems.

A row of Math10K as prompt and target, in the one template (Alpaca's) that serves training and evaluation::

    Below is an instruction that describes a task. Write a response that appropriately completes the request.

    ### Instruction:
    Natalia sold clips to 48 of her friends in April, and then [...] altogether in April and May?

    ### Response:
    Natalia sold 48/2 = 24 clips in May. [...]
    The answer is 72.

- `math10k` is what is trained on; a file that is named for no split is divided into three, `train.json` alone gives all
  its rows but a validation cut, and has no test: score it on the other tasks.
- `multiarith`, `gsm8k_arithmetic`, `addsub`, `singleeq`, `svamp`, `mawps` ask for a number, `aqua` for the
  letter of an option. Their `output` was written by a model and is often wrong (or empty): it is never read. The target,
  which the answer loss is measured on, is the gold answer as the last sentence of a training row says it.

Metrics of a number: `exact_match,llm-adapters` reads the last number of the whole response, as the suite does;
`exact_match,first-answer` (primary) reads it from the text through the first sentence that states an answer. Metrics of a
letter: `exact_match,fixed` (primary) and `exact_match,llm-adapters`, see `plr.scoring.arithmetic`; `fixed` also
stops where the model goes on with a heading of the template. Both have `first-answer`, `strict` and `ended`.

The suite cuts a response at the next `### Response:` and nowhere else; so does `llm-adapters` here.
"""

from __future__ import annotations

from typing import ClassVar

from plr.errors import DataError
from plr.scoring.arithmetic import (
    LETTERS,
    cut_after_stated_answer,
    first_letter,
    letter_match,
    number_match,
    number_of,
    option_letter,
)
from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.tasks.base import Task, tasks
from plr.tasks.data.sources import GeneratedSource
from plr.tasks.library.alpaca import alpaca_prompt
from plr.tasks.types import Example, Fields, Response

__all__ = ["Arithmetic", "Math10k", "NumberTest", "OptionTest"]

FIRST, SUITE, FIXED = "exact_match,first-answer", "exact_match,llm-adapters", "exact_match,fixed"
HEADING = "### "


class Arithmetic(Task):
    """Common base of the tasks of the suite."""

    version = 1
    fields = ("instruction", "answer")
    metrics = (FIRST, SUITE, "exact_match,strict", "ended")
    primary = FIRST
    stop = ("### Response:",)
    max_new_tokens = 256
    source: ClassVar[str]
    """Path of its file in the repository of LLM-Adapters."""

    def prompt(self, row: Fields) -> str:
        return alpaca_prompt(str(row["instruction"]), str(row.get("input") or ""))

    def target(self, row: Fields) -> str:
        return f"The answer is {_plain(row['answer'])}."

    def question(self, row: Fields) -> str:
        return str(row["instruction"])

    def generated(self) -> GeneratedSource | None:
        raise DataError(
            f"{self.name} is in no data set on the hub",
            expected=f"rows with {', '.join(self.fields)} in a folder or file",
            hint=f"--data FOLDER with the {self.source} of github.com/AGI-Edgerunners/LLM-Adapters",
        )

    def letters(self, row: Fields) -> bool:
        """Tell whether the answer of `row` is the letter of an option."""
        return _is_letter(row["answer"])

    def boundary(self, text: str) -> str:
        return self._boundary(text, letters=False)

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        gold, letters = str(example.row["answer"]).strip(), self.letters(example.row)
        whole, first = cut_at_stops(response.text, self.stop), self._boundary(response.text, letters=letters)
        if letters:
            stated = {FIRST: option_letter(first), FIXED: option_letter(_own(whole)), SUITE: first_letter(whole)}
            return {metric: letter_match(letter, gold) for metric, letter in stated.items() if metric in self.metrics}
        return {FIRST: number_match(first, gold), SUITE: number_match(whole, gold)}

    def _boundary(self, text: str, *, letters: bool) -> str:
        return cut_after_stated_answer(_own(text), letters=letters)


class NumberTest(Arithmetic):
    """A test set whose answers are numbers."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.source = name, f"dataset/{folder}/test.json"  # pyright: ignore[reportAttributeAccessIssue]

    def problem(self, row: Fields) -> str | None:
        return None if number_of(row["answer"]) is not None else f"the answer {row['answer']!r} is no number"


class OptionTest(Arithmetic):
    """AQuA: the answer is the letter of one of five options."""

    name = "aqua"
    source = "dataset/AQuA/test.json"
    metrics = (FIXED, SUITE, FIRST, "exact_match,strict", "ended")
    primary = FIXED

    def boundary(self, text: str) -> str:
        return self._boundary(text, letters=True)

    def problem(self, row: Fields) -> str | None:
        return None if _is_letter(row["answer"]) else f"the answer {row['answer']!r} is none of {', '.join(LETTERS)}"


class Math10k(Arithmetic):
    """The training set: working and answer; most answers are numbers, those of its AQuA rows letters."""

    name = "math10k"
    fields = ("instruction", "output", "answer")
    source = "ft-training_set/math_10k.json"

    def target(self, row: Fields) -> str:
        return str(row["output"]).strip()

    def boundary(self, text: str) -> str:
        number, letter = (self._boundary(text, letters=letters) for letters in (False, True))
        return min(number, letter, key=len)

    def problem(self, row: Fields) -> str | None:
        known = _is_letter(row["answer"]) or number_of(row["answer"]) is not None
        return None if known else f"the answer {row['answer']!r} is neither a number nor one of {', '.join(LETTERS)}"


def _own(text: str) -> str:
    """Return `text` before the model goes on with a heading of the template."""
    return cut_at_stops(text, (HEADING,))


def _is_letter(answer: object) -> bool:
    return len(str(answer).strip()) == 1 and str(answer).strip() in LETTERS


def _plain(answer: object) -> str:
    """Return a number without a needless `.0`; anything else as it stands.

    >>> _plain("15.0"), _plain("9.8"), _plain(" C ")
    ('15', '9.8', 'C')
    """
    text = str(answer).strip()
    return text[:-2] if text.endswith(".0") and number_of(text) is not None else text


tasks.register("math10k")(Math10k())
tasks.register("aqua")(OptionTest())
for _name, _folder in (
    ("multiarith", "MultiArith"),
    ("gsm8k_arithmetic", "gsm8k"),
    ("addsub", "AddSub"),
    ("singleeq", "SingleEq"),
    ("svamp", "SVAMP"),
    ("mawps", "mawps"),
):
    tasks.register(_name)(NumberTest(_name, _folder))
