"""Writes the sample rows of tests anew: `python -m samples.make`, run in the folder `tests`.

Every row is ours, drawn from our own words; only the layout (folders, file names, columns, odd cases) is that of the data sets
that the tasks are made for.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from samples.queries import long_queries, short_queries
from samples.sentences import GLUE, jnli_rows, poem_rows, qa_rows, xlsum_rows
from samples.word_problems import alpaca_rows, arithmetic_rows, chat_rows, gsm8k_rows, math10k_rows, option_rows

__all__ = ["FOLDER", "files"]

FOLDER = Path(__file__).parent
ARITHMETIC = ("MultiArith", "gsm8k", "AddSub", "SingleEq", "SVAMP", "mawps")
HELD_OUT = ("mnli", "qqp")
"""Tasks of GLUE whose scored split is stood in for by rows held out of train."""
Rows = list[dict[str, Any]]


def _sets() -> dict[str, Rows]:
    """The rows by file."""
    sets: dict[str, Rows] = {
        "gsm8k/train.jsonl": gsm8k_rows(1, 100),
        "gsm8k/test.jsonl": gsm8k_rows(2, 60),
        "sql/train.jsonl": short_queries(1, 20, 2),
        "sql/dev.jsonl": short_queries(2, 36, 3) + long_queries(slice(0, 4)),
        "sql/test.jsonl": short_queries(3, 30, 2) + long_queries(slice(4, None)),
        "llm_adapters/train/math10k_proxy.json": math10k_rows(5, 60),
        "llm_adapters/test/AQuA/test.json": option_rows(6, 40),
        "jglue/jnli-valid-v1.3.json": jnli_rows(7, 81),
        "jglue/jcommonsenseqa-train-v1.3.json": qa_rows(8, 0, 40),
        "jglue/jcommonsenseqa-valid-v1.3.json": qa_rows(9, 40, 41),
        "instruct/alpaca_en_demo.json": alpaca_rows(10, 40),
        "instruct/chat.jsonl": chat_rows(),
        "xlsum/japanese_test.jsonl": xlsum_rows(),
        "poems/train.tsv": poem_rows(11, 60),
        "poems/test.tsv": poem_rows(12, 60),
    }
    for seed, name in enumerate(ARITHMETIC, 20):
        sets[f"llm_adapters/test/{name}/test.json"] = arithmetic_rows(seed, 30)
    for name, rows in GLUE.items():
        scored = "heldout_from_train" if name in HELD_OUT else "validation"
        sets[f"glue_std/{name}/train.jsonl"] = rows(0, 120 if name in HELD_OUT else 60)
        sets[f"glue_std/{name}/{scored}.jsonl"] = rows(1, 42)
    sets["glue_std/mnli/validation_mismatched.jsonl"] = GLUE["mnli"](2, 42)
    return sets


def _written(name: str, rows: Rows) -> str:
    if name.endswith(".tsv"):
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()
    if name.endswith(".jsonl") or name.startswith(
        "jglue/"
    ):  # JGLUE's files hold one object a line and are called .json
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def files() -> dict[str, str]:
    """Compose the content of every sample file, by its path below `FOLDER`."""
    return {name: _written(name, rows) for name, rows in _sets().items()}


if __name__ == "__main__":
    for name, content in files().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
