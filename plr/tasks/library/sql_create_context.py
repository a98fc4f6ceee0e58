r"""SQL from a question and the CREATE TABLE statements it needs (b-mc2/sql-create-context).

78,577 rows, no table contents.

A real row, first of the data set, as prompt and target::

    CREATE TABLE head (age INTEGER)
    Question: How many heads of the departments are older than 56 ?
    SQL: SELECT COUNT(*) FROM head WHERE age > 56

Seven metrics (the rules: `plr.scoring.sql.match`, `plr.scoring.sql.execute`):

- `exact_match,raw` and `exact_match,normalized`: the whole generation up to EOS, as written and in canonical form;
- `exact_match,first-answer` and `exact_match,first-answer-casefold`: the canonical form of the first statement,
  up to a newline (a blank line, where the gold has several lines) or `;`; with the case of literals kept, and
  folded (part of the gold lower-cases literals that the question capitalises);
- `exec_match,first-answer`: the first statement returns what the gold returns on ten databases made for it; None
  where the sample is undecidable;
- `exact_match,strict`: the first answer is right AND the generation ended there, by EOS, with nothing but white
  space and `;` behind it (normalized asks for no EOS);
- `ended`: EOS within the limit.

The awkward case: ` SELECT a FROM t;` is right in every metric but raw, while ` SELECT a FROM t\nOutput: 23` is
right by first answer alone. There are no stop strings: a text that runs on must be seen to run on.

The data set has one split. It is divided 80/10/10, seeded, so that no table stands in two splits. Tables are told
apart by name: a context shows only the columns its question needs, so one table is created in many ways. Tables
that meet in one context go together, which ties the Spider rows into a few large components; these go to train.
Rows with equal question and schema are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plr.scoring.score import Score
from plr.scoring.sql.execute import Sample, exec_matches
from plr.scoring.sql.match import first_statement, normalized_match, raw_match
from plr.scoring.sql.quotes import names_by_schema
from plr.tasks.base import Task, tasks
from plr.tasks.data.hub import HubData
from plr.tasks.data.splits import normalized
from plr.tasks.types import Example, Fields, Response

__all__ = ["SQL_CREATE_CONTEXT", "SqlCreateContext"]

_TABLE = re.compile(r"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?([^\s(]+)", re.IGNORECASE)


class SqlCreateContext(Task):
    name = "sql_create_context"
    version = 1
    fields = ("question", "context", "answer")
    metrics = (
        "exact_match,raw",
        "exact_match,normalized",
        "exact_match,first-answer",
        "exact_match,first-answer-casefold",
        "exec_match,first-answer",
        "exact_match,strict",
        "ended",
    )
    primary = "exact_match,first-answer"
    kinds = ("exec_match,first-answer",)
    max_new_tokens = 128
    hub = HubData("b-mc2/sql-create-context", splits={"all": "train"})

    def prompt(self, row: Fields) -> str:
        return f"{row['context']}\nQuestion: {row['question']}\nSQL:"

    def target(self, row: Fields) -> str:
        return f" {row['answer']}"

    def duplicate_key(self, row: Fields) -> str | None:
        return normalized(self.prompt(row))

    def groups(self, row: Fields) -> frozenset[str]:
        tables = {name.strip('`"[]').casefold() for name in _TABLE.findall(row["context"])}
        return frozenset(tables) or frozenset({normalized(row["context"])})

    def boundary(self, text: str) -> str:
        return first_statement(text)

    def first_answer(self, example: Example, text: str) -> str:
        return first_statement(text, lines="\n" in str(example.row["answer"]).strip())

    def finished(self, rest: str) -> bool:
        return not rest.strip("; \t\r\n")

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        return self.scores_all([example], [response])[0]

    def scores_all(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Score]]:
        samples: list[Sample] = []
        for example, response in zip(examples, responses, strict=True):
            context, gold = str(example.row["context"]), str(example.row["answer"])
            first = self.first_answer(example, response.text)
            samples.append(Sample(context, names_by_schema(gold, context), names_by_schema(first, context)))
        scored: list[dict[str, Score]] = []
        for example, sample, response, executed in zip(
            examples, samples, responses, exec_matches(samples), strict=True
        ):
            gold, first = sample.gold, sample.answer
            scored.append(
                {
                    "exact_match,raw": raw_match(response.text, str(example.row["answer"])),
                    "exact_match,normalized": normalized_match(names_by_schema(response.text, sample.context), gold),
                    "exact_match,first-answer": normalized_match(first, gold),
                    "exact_match,first-answer-casefold": normalized_match(first, gold, fold_literals=True),
                    "exec_match,first-answer": executed,
                }
            )
        return scored


SQL_CREATE_CONTEXT = tasks.register("sql_create_context")(SqlCreateContext())
