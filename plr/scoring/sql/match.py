"""SQL answers compared as text: as written, and in a canonical form that leaves out what cannot matter.

Two spellings are one answer when they differ only in (all by sqlglot, dialect below):

1. white space, comments, a trailing `;`, parentheses around the whole query;
2. the case of keywords, functions and identifiers, and the quotes around identifiers;
3. single or double quotes around a literal;
4. needless aliases: `SELECT T1.a FROM t AS T1` is `SELECT a FROM t`; where a table stands twice its aliases are
   needed and are renamed in order of appearance; a column alias used nowhere but in ORDER BY is put back as its
   expression;
5. needless words: `INNER`, `OUTER` after LEFT/RIGHT/FULL, `ASC`, `<>` for `!=`, `AS`.

The case of a literal is kept (`"TKO"` is not `"tko"`); with `fold_literals` it is not, a second metric for
data whose gold lower-cases what the question capitalises. A number is not its text: `5` is not `"5"`.

The awkward case: a double-quoted word is a name in standard SQL and a text in MySQL, in WikiSQL and in
sql-create-context. Here it is always a text; names are quoted with backticks or brackets. So `SELECT "a" FROM t`
is not `SELECT a FROM t`, unless the caller knows the schema and has settled it (`plr.scoring.sql.quotes`).

What is given up: no knowledge of the schema, so the order of conditions, columns and joined tables counts, and
equivalent but differently built queries differ. Queries that compare equal do the same; the converse does not hold.

Nothing a model writes raises: what is too long, too deep, no query or not SQL at all is unequal, and the
explanation says why.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import NamedTuple

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.tokens import Tokenizer

from plr.scoring.score import Score, shown
from plr.scoring.sql.aliases import drop_needless_aliases

__all__ = ["MAX_CHARS", "MAX_DEPTH", "Canonical", "canonical", "first_statement", "normalized_match", "raw_match"]

MAX_CHARS = 4096
MAX_DEPTH = 24
MAX_OPEN_JOINS = 10
"""Joins without a condition: the parser tries each as nested first, twice the work for every one."""

_QUOTED = r"""'(?:[^'\n]|'')*'|"(?:[^"\n]|"")*"|`[^`\n]*`"""
_PIECE = re.compile(rf"(?P<end>[;\n])|{_QUOTED}|[^'\"`;\n]+|['\"`]")
_STRING = re.compile(_QUOTED)
_BLANK_LINE = re.compile(r"\n[ \t\r]*(?:\n|$)")
_CANONICAL_TEXT = re.compile(r"`[^`]*`|'(?:[^']|'')*'")
"""A literal of the canonical form; names in backticks, which may hold a quote, are in lower case already."""
_SIMPLE_NAME = re.compile(r"\w+")
_QUERY = re.compile(r"[\s(]*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
_JOIN = re.compile(r"(?<!cross )(?<!natural )\bjoin\b", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:on|using)\b", re.IGNORECASE)
_short = partial(shown, most=200)


class _Lenient(Dialect):
    """sqlglot's own superset dialect, with both kinds of quotes around texts."""

    class Tokenizer(Tokenizer):
        QUOTES = ["'", '"']  # noqa: RUF012 - read by sqlglot's metaclass
        STRING_ESCAPES = ["'", '"']  # noqa: RUF012
        IDENTIFIERS = ["`", ("[", "]")]  # noqa: RUF012


class Canonical(NamedTuple):
    """`text` is the canonical form, `folded` the same with literals in lower case; both None where `problem`
    is given."""

    text: str | None
    folded: str | None
    problem: str


def first_statement(text: str, *, lines: bool = False) -> str:
    """Cut `text` at its first newline or `;`, leading white space skipped: where an SQL answer is complete.

    With `lines`, for answers that are written over several lines, a blank line ends it in the place of a newline.
    A `;` inside quotes belongs to the literal. A quote that is not closed on its line is an ordinary character.

    >>> first_statement(' SELECT a FROM t WHERE b = "x; y"; SELECT 2')
    'SELECT a FROM t WHERE b = "x; y"'
    >>> first_statement(' SELECT a FROM t\\nOutput: 23')
    'SELECT a FROM t'
    """
    text = text.lstrip()
    for piece in _PIECE.finditer(text):
        end = piece.group("end")
        if end == ";" or (end and (not lines or _BLANK_LINE.match(text, piece.start()))):
            return text[: piece.start()].rstrip()
    return text.rstrip()


def raw_match(answer: str, gold: str) -> Score:
    """Score string equality after strip."""
    answer = answer.strip()
    equal = answer == gold.strip()
    return Score.of(equal, _short(answer), "equal as written" if equal else "differs as written")


def normalized_match(answer: str, gold: str, *, fold_literals: bool = False) -> Score:
    """Score the equality of the canonical forms.

    A gold that sqlglot does not read is compared as text with white space squeezed and the final `;` dropped, and the
    explanation says so.

    >>> normalized_match("select T1.a from T as T1 where b = 'x';", 'SELECT a FROM t WHERE b = "x"').value
    1.0
    """
    if answer.strip() == gold.strip():
        return Score.of(True, _short(answer.strip()), "equal as written")
    wanted, read = canonical(gold.strip()), canonical(answer.strip())
    if wanted.text is None:
        equal = _squeezed(answer, fold_literals) == _squeezed(gold, fold_literals)
        return Score.of(equal, _short(answer.strip()), f"compared as text, because the gold {wanted.problem}")
    if read.text is None:
        return Score.of(False, _short(answer.strip()), f"the answer {read.problem}")
    shown = (read.folded if fold_literals else read.text) or ""
    equal = shown == (wanted.folded if fold_literals else wanted.text)
    return Score.of(equal, shown, "equal in canonical form" if equal else f"gold: {_short(wanted.text)}")


@lru_cache(maxsize=1 << 14)
def canonical(sql: str) -> Canonical:
    """Compute the canonical form of one query.

    >>> canonical("select COUNT( * ) from Head as h where h.Age <> 'Old'").text
    "SELECT COUNT(*) FROM head WHERE age <> 'Old'"
    >>> canonical("I do not know").problem
    'is no query (it does not begin with SELECT)'
    """
    if problem := _unreadable(sql):
        return Canonical(None, None, problem)
    try:
        root = sqlglot.parse_one(sql.rstrip("; \t\r\n"), dialect=_Lenient)
        while isinstance(root, exp.Subquery) and set(_set_arguments(root)) == {"this"}:
            root = root.this
        if not isinstance(root, exp.Query):
            return Canonical(None, None, f"is no query but {type(root).__name__}")
        _drop_needless_words(root)
        _fold_names(root)
        drop_needless_aliases(root)
        text = root.sql(dialect=_Lenient, comments=False, copy=False)
        return Canonical(text, _CANONICAL_TEXT.sub(lambda literal: literal.group().casefold(), text), "")
    except RecursionError:
        return Canonical(None, None, "is nested too deeply")
    except Exception as error:  # what a parser raises on junk is not a closed set, and junk must only ever be unequal
        first_line = str(error).partition("\n")[0]
        return Canonical(None, None, f"does not parse: {_short(first_line) or type(error).__name__}")


def _unreadable(sql: str) -> str:
    """Explain why `sql` is not given to the parser at all; empty if it is."""
    if len(sql) > MAX_CHARS:
        return f"is longer than {MAX_CHARS} characters"
    bare = _STRING.sub("''", sql)
    if not _QUERY.match(bare):
        return "is no query (it does not begin with SELECT)"
    if bare.rstrip("; \t\r\n").find(";") >= 0:
        return "holds more than one statement"
    if len(_JOIN.findall(bare)) - len(_CONDITION.findall(bare)) > MAX_OPEN_JOINS:
        return f"holds more than {MAX_OPEN_JOINS} joins without a condition"
    depth = deepest = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return f"is nested deeper than {MAX_DEPTH} parentheses" if deepest > MAX_DEPTH else ""


def _drop_needless_words(root: exp.Expr) -> None:
    for join in root.find_all(exp.Join):
        if join.kind == "INNER" or (join.side and join.kind == "OUTER"):
            join.set("kind", None)
    for ordered in root.find_all(exp.Ordered):
        if ordered.args.get("desc") is False:
            ordered.set("desc", None)


def _fold_names(root: exp.Expr) -> None:
    for name in root.find_all(exp.Identifier):
        folded = name.name.lower()
        name.set("this", folded)
        name.set("quoted", not _SIMPLE_NAME.fullmatch(folded))


def _set_arguments(node: exp.Expr) -> list[str]:
    return [key for key, value in node.args.items() if value]


def _squeezed(text: str, fold: bool) -> str:
    text = " ".join(text.split()).rstrip("; ")
    return text.casefold() if fold else text
