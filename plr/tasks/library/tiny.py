"""The two tasks of the embedded base: GSM8K and SQL in small, with the prompts and scorers of the real ones.

Their rows are made by `plr.embedded.corpus` (no download, no licence), split by construction. Only the length
of an answer differs. `TaskData.path` reads other rows of the same form, as for the real tasks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from plr.tasks.base import tasks
from plr.tasks.data.sources import GeneratedSource
from plr.tasks.library.gsm8k import Gsm8k
from plr.tasks.library.sql_create_context import SqlCreateContext

__all__ = ["ROWS", "TINY_MATH", "TINY_SQL", "TinyMath", "TinySql"]

ROWS: dict[Literal["train", "validation", "test"], int] = {"train": 4000, "validation": 200, "test": 400}


class TinyMath(Gsm8k):
    name = "tiny_math"
    max_new_tokens = 96
    hub = None

    def generated(self) -> GeneratedSource:
        return _math()


class TinySql(SqlCreateContext):
    name = "tiny_sql"
    max_new_tokens = 48
    hub = None

    def generated(self) -> GeneratedSource:
        return _sql()


@lru_cache(maxsize=1)
def _math() -> GeneratedSource:
    from plr.embedded.corpus import math_rows

    return GeneratedSource({split: math_rows(split, n) for split, n in ROWS.items()})


@lru_cache(maxsize=1)
def _sql() -> GeneratedSource:
    from plr.embedded.corpus import sql_rows

    return GeneratedSource({split: sql_rows(split, n) for split, n in ROWS.items()})


TINY_MATH = tasks.register("tiny_math")(TinyMath())
TINY_SQL = tasks.register("tiny_sql")(TinySql())
