"""SQL as tokens: enough to see what a query names and compares, with the standard library alone.

No grammar: a query is a flat list of tokens, so nothing a model writes can fail to be read. sqlglot reads more
(`plr.scoring.sql.match`), but not everything a model writes, and the processes that execute queries
have no installed packages.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Token", "executable", "pieces", "quoted_name", "texts", "tokens"]

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|$))
    |(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<name>`[^`]*`|\[[^\]]*\])
    |(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
    |(?P<word>\w+)
    |(?P<op><=|>=|<>|!=|==|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)
_BEFORE_A_NAME = {"select", "distinct", "where", "and", "or", "not", "by", "on", "having", "when", "then", "else",
                  "between", ",", "(", ".", "=", "==", "!=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "/"}  # fmt: skip
_RESERVED = {"add", "all", "alter", "and", "as", "autoincrement", "between", "case", "cast", "check", "collate",
             "commit", "constraint", "create", "default", "deferrable", "delete", "distinct", "drop", "else",
             "escape", "except", "exists", "foreign", "from", "group", "having", "in", "index", "insert",
             "intersect", "into", "is", "isnull", "join", "limit", "not", "notnull", "nothing", "null", "on", "or",
             "order", "primary", "references", "returning", "select", "set", "table", "then", "to", "transaction",
             "union", "unique", "update", "using", "values", "when", "where"}  # fmt: skip


class Token(NamedTuple):
    """A token of SQL.

    `kind` is text (single or double quotes), name (backticks, brackets), number, word or op; `value` is without quotes;
    words and ops are in lower case.
    """

    kind: str
    value: str
    raw: str


def tokens(sql: str) -> list[Token]:
    """Split a query into tokens; comments are left out.

    >>> [token.value for token in tokens("SELECT `a b` FROM t WHERE x >= 'it''s' -- so")]
    ['select', 'a b', 'from', 't', 'where', 'x', '>=', "it's"]
    """
    return [token for token in pieces(sql) if token.kind != "space"]


def texts(sql: str) -> set[str]:
    """List the texts that stand in quotes."""
    return {token.value for token in pieces(sql) if token.kind == "text"}


def quoted_name(name: str) -> str:
    """Quote `name` so that SQLite reads it whatever it is."""
    return '"' + name.replace('"', '""') + '"'


def executable(sql: str, known_texts: Collection[str] | None, columns: Collection[str] = ()) -> str:
    """Rewrite `sql` as it is given to SQLite: the same query, its awkward spellings settled.

    - A double-quoted word that is a text of the gold is a text, though a column has that name; in the gold itself
      (`known_texts` None) every one is. Any other is what SQLite takes it for: a column, or else a text.
    - `> =` is `>=`, as in Spider's evaluator.
    - Words of `columns` (lower case) that SQLite reads as no name, `order` or `1st_leg`, are quoted where a name
      may stand. Only asked for where the query does not parse without.

    >>> executable('SELECT a FROM t WHERE b > = 1 AND c = "a"', None)
    "SELECT a FROM t WHERE b >= 1 AND c = 'a'"
    >>> executable("SELECT 1st, order FROM t ORDER BY order", None, {"1st", "order"})
    'SELECT "1st", "order" FROM t ORDER BY "order"'
    """
    parts: list[str] = []
    before = ""
    for token in pieces(sql):
        raw = token.raw
        if token.kind == "space":
            if parts and raw.isspace() and before in ("<", ">", "!"):
                continue
            raw = " " if not raw.isspace() else raw
        elif token.kind == "text" and raw[0] == '"' and (known_texts is None or token.value in known_texts):
            raw = "'" + token.value.replace("'", "''") + "'"
        elif token.kind == "word" and token.value in columns and before in _BEFORE_A_NAME:
            raw = quoted_name(raw) if raw[0].isdigit() or token.value in _RESERVED else raw
        if token.kind != "space":
            before = token.value if token.kind in ("word", "op") else ""
        parts.append(raw)
    return "".join(parts)


@lru_cache(maxsize=16)
def pieces(sql: str) -> tuple[Token, ...]:
    """Split into tokens, white space and comments among them; cached, since a gold is read several times."""
    return tuple(_token(match.lastgroup or "op", match.group()) for match in _TOKEN.finditer(sql))


def _token(kind: str, raw: str) -> Token:
    if kind == "text":
        return Token(kind, raw[1:-1].replace(raw[0] * 2, raw[0]), raw)
    if kind == "name":
        return Token(kind, raw[1:-1], raw)
    return Token(kind, raw.lower(), raw)
