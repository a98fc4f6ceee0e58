r"""GSM8K: grade-school word problems (Cobbe et al. 2021), scored as lm-eval scores them.

A real row, first of the test split, as prompt and target::

    Question: Janet's ducks lay 16 eggs per day. [...] How much in dollars does she make every day [...]?
    Answer: Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.
    She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.
    #### 18

Six metrics (the rules of the first three: `plr.scoring.numbers`):

- `exact_match,strict-match`, `exact_match,flexible-extract`: lm-eval's, on the text before its stop strings;
- `numeric_match`: the last number of that text, by value;
- `exact_match,first-answer`: strict match on the text through the first `#### n`. Because strict match takes
  the first mark anyway, it equals `exact_match,strict-match` on every response; it stands here under the name
  that all tasks share;
- `exact_match,strict` (not to be taken for strict-match): the first answer is right AND the generation ended
  there, by EOS, with nothing but white space behind the number;
- `ended`: EOS within the limit, before any stop string.

The awkward case: a model that writes `#### 18\n#### 19` is right under strict-match and wrong under flexible
extract and numeric match, which read the last number. Here it is right by first answer and wrong under `strict`.

The data set has no validation split: 500 rows of train (a tenth, if that is less) are taken, seeded.
"""

from __future__ import annotations

from plr.scoring.numbers import (
    INVALID,
    cut_after_marked_answer,
    cut_at_stops,
    exact_match,
    flexible_extract,
    numeric_match,
    strict_extract,
)
from plr.scoring.score import Score
from plr.tasks.base import Task, tasks
from plr.tasks.data.hub import HubData
from plr.tasks.types import Example, Fields, Response

__all__ = ["GSM8K", "Gsm8k"]


class Gsm8k(Task):
    name = "gsm8k"
    version = 1
    fields = ("question", "answer")
    metrics = (
        "exact_match,strict-match",
        "exact_match,flexible-extract",
        "numeric_match",
        "exact_match,first-answer",
        "exact_match,strict",
        "ended",
    )
    primary = "exact_match,first-answer"
    stop = ("Question:", "</s>", "<|im_end|>")
    max_new_tokens = 256
    hub = HubData("openai/gsm8k", config="main", splits={"train": "train", "test": "test"})

    def prompt(self, row: Fields) -> str:
        return f"Question: {row['question']}\nAnswer:"

    def target(self, row: Fields) -> str:
        return f" {row['answer']}"

    def problem(self, row: Fields) -> str | None:
        return "the answer has no '#### <number>'" if strict_extract(row["answer"]) == INVALID else None

    def boundary(self, text: str) -> str:
        return cut_after_marked_answer(cut_at_stops(text, self.stop))

    def first_answer(self, example: Example, text: str) -> str:
        first, gold = self.boundary(text), str(example.row["answer"]).rstrip()
        unit = gold[len(cut_after_marked_answer(gold)) :]
        return first + unit if text.startswith(unit, len(first)) else first

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        gold = str(example.row["answer"])
        text = cut_at_stops(response.text, self.stop)
        return {
            "exact_match,strict-match": exact_match(strict_extract(text), gold),
            "exact_match,flexible-extract": exact_match(flexible_extract(text), gold),
            "numeric_match": numeric_match(text, gold),
            "exact_match,first-answer": exact_match(strict_extract(self.boundary(response.text)), gold, units=True),
        }


GSM8K = tasks.register("gsm8k")(Gsm8k())
