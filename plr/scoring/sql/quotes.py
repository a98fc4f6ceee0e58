"""Double-quoted words settled by the schema: a column's name, or a text.

Standard SQL takes `"First Name"` for a name; MySQL, WikiSQL and sql-create-context take it for a text. The CREATE TABLE
statements decide:

- a column that they themselves write in quotes, backticks or brackets is a name wherever it stands;
- any other column is a name where nothing but a name makes sense: in a list behind SELECT or BY, and behind a point;
- everything else is a text, so `WHERE type = "type"` still compares with a text.

What is a name is written in backticks, which every later reader takes for one.
"""

from __future__ import annotations

from functools import lru_cache

from plr.scoring.sql.schema import read_schema
from plr.scoring.sql.tokens import pieces

__all__ = ["names_by_schema"]

_LISTS = {"select": True, "by": True, "from": False, "where": False, "having": False, "limit": False, "on": False, "in": False,
          "values": False}  # fmt: skip
"""Words that begin a list of expressions (True), or end one."""


def names_by_schema(sql: str, context: str) -> str:
    """Write the double-quoted words of `sql` that are columns of `context` in backticks.

    >>> names_by_schema('SELECT "First Name", "k" FROM t WHERE "First Name" = "k"', 'CREATE TABLE t ("First Name" TEXT, k TEXT)')
    'SELECT `First Name`, `k` FROM t WHERE `First Name` = "k"'
    """
    if '"' not in sql:
        return sql
    quoted, bare = _columns(context)
    parts: list[str] = []
    in_list, before = False, ""
    for token in pieces(sql):
        raw = token.raw
        if token.kind == "word" and token.value in _LISTS:
            in_list = _LISTS[token.value]
        elif token.kind == "text" and raw[0] == '"' and "`" not in token.value:
            name = token.value.casefold()
            if name in quoted or (name in bare and (before == "." or (in_list and before in _OPENS))):
                raw = f"`{token.value}`"
        if token.kind != "space":
            before = token.value if token.kind in ("word", "op") else ""
        parts.append(raw)
    return "".join(parts)


_OPENS = {"select", "distinct", "by", ",", "("}


@lru_cache(maxsize=64)
def _columns(context: str) -> tuple[frozenset[str], frozenset[str]]:
    """List the columns of a schema in lower case: those it writes in quotes, and the others."""
    marked = {token.value.casefold() for token in pieces(context) if token.kind in ("text", "name")}
    names = {column.name.casefold() for table in read_schema(context).tables for column in table.columns}
    return frozenset(names & marked), frozenset(names - marked)
