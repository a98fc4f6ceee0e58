r"""Japanese XLSum (Hasan et al. 2021): an article of the BBC, and its summary; 7,113 / 889 / 889 rows.

A row in the form of the LoRA study of LINE (Wang et al. 2023, Table 1; `[SEP]` is text here)::

    ワシントン州キング郡のアウトブレイクはひとつの介護施設に集中している [...][SEP]米ワシントン州で2日、新型コロナウイルス[...]

Metrics: ROUGE-1, ROUGE-2 and ROUGE-L F1 (`rouge1`, `rouge2`, `rougeL`) between the morphemes of answer and summary, by
MeCab with unidic-lite (`plr.scoring.japanese`, the extra `ja`), without a stemmer. Primary is `rougeL`; `ended` is
the share that stopped by EOS. There is no `strict`: a summary is not right or wrong.

The answer ends at `[SEP]` or a blank line. Articles are long (thousands of tokens): set `train.max_length` and the task's
`max_prompt_chars`; what is left out is counted.

The published archive's own names are read: `japanese_train.jsonl`, `japanese_val.jsonl`, `japanese_test.jsonl`. On the hub
the data set `csebuetnlp/xlsum` is a program; its rows as files are those of the branch `refs/convert/parquet`.
"""

from __future__ import annotations

import re

from plr.scoring.by_name import METRICS
from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.tasks.base import Task, tasks
from plr.tasks.data.hub import HubData
from plr.tasks.data.local import STEMS
from plr.tasks.types import Example, Fields, Response

__all__ = ["XLSUM_JA", "XlsumJa"]

_BLANK = re.compile(r"\n[ \t]*\n")


class XlsumJa(Task):
    name = "xlsum_ja"
    version = 1
    fields = ("text", "summary")
    metrics = ("rouge1", "rouge2", "rougeL", "ended")
    primary = "rougeL"
    strict = "rougeL,strict"
    stop = ("[SEP]",)
    max_new_tokens = 256
    hub = HubData("csebuetnlp/xlsum", revision="refs/convert/parquet", data_dir="japanese")
    stems = {**STEMS, "japanese_train": "train", "japanese_val": "validation", "japanese_test": "test"}  # noqa: RUF012

    def prompt(self, row: Fields) -> str:
        return f"{str(row['text']).strip()}[SEP]"

    def target(self, row: Fields) -> str:
        return str(row["summary"]).strip()

    def boundary(self, text: str) -> str:
        return _BLANK.split(cut_at_stops(text, self.stop).strip(), maxsplit=1)[0]

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        answer = self.boundary(response.text)
        return {name: METRICS[f"{name}_ja"].score(answer, example.target) for name in ("rouge1", "rouge2", "rougeL")}


XLSUM_JA = tasks.register("xlsum_ja")(XlsumJa())
